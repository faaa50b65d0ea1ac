"""Write a catalogue of drawn products: python -m tools.drawing data/products."""

from __future__ import annotations

import argparse
from pathlib import Path

from tools.drawing.catalogue import write_catalogue, write_training


def main() -> None:
    """Parse the arguments and write the folders."""
    parser = argparse.ArgumentParser(prog="python -m tools.drawing", description=__doc__)
    parser.add_argument("folder", type=Path, help="where the catalogue goes")
    parser.add_argument("--count", type=int, default=200, help="products of the catalogue")
    parser.add_argument("--seed", type=int, default=0, help="another seed, other products")
    parser.add_argument("--training", type=Path, help="also write labelled pictures to this folder")
    arguments = parser.parse_args()
    products = write_catalogue(arguments.folder, arguments.count, arguments.seed)
    print(f"{len(products)} products in {arguments.folder}")
    if arguments.training is not None:
        print(f"{write_training(arguments.training)} pictures in {arguments.training}")


if __name__ == "__main__":
    main()
