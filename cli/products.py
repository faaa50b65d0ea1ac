"""The command that reads a shop's own catalogue."""

from __future__ import annotations

from pathlib import Path

import click

from cli.output import echo_err, json_option, print_json
from cli.wiring import Wiring, pass_wiring
from pipeline.errors import ImgrecError


@click.command("import-products")
@click.argument("file", type=click.Path(exists=True, dir_okay=False, path_type=Path))
@click.option("--replace", is_flag=True, help="Forget every product that is not in the file.")
@json_option
@pass_wiring
def import_products(wiring: Wiring, file: Path, replace: bool, as_json: bool) -> None:
    """Tell imgrec what is known about products.

    FILE is .csv with a first line of columns, or .jsonl with an object a line. The column
    product_id is needed; `image` names an image of the product, below the products folder, and may
    stand in several rows; every other column is shown in results, and --where asks for it. Without
    `image`, a product's images are the one of its name and those in the folder of its name.
    """
    from pipeline.search.product_catalogue import read_products

    products, resources = read_products(file), wiring.resources
    resources.products.put(products, replace=replace)
    catalogue = resources.products.catalogue()
    indexed = None
    try:
        paths = resources.versions.current().paths
    except ImgrecError:
        echo_err("There is no index yet: 'imgrec enqueue-rebuild FOLDER' makes one.")
    else:
        found = {catalogue.product_of(path) for path in paths}
        indexed = sum(product.product_id in found for product in products)
        strangers = [p.product_id for p in products if p.product_id not in found]
        if strangers:
            echo_err(
                f"{len(strangers)} of them have no image in the index, for example "
                f"'{strangers[0]}': a product_id is an image's path without the suffix, the path "
                "of a folder of images, or the column 'image' names the images."
            )
    columns = list(dict.fromkeys(name for product in products for name in product.facts))
    answer = {
        "products": len(products),
        "images": sum(len(product.images) for product in products),
        "columns": columns,
        "total": len(catalogue.facts_json),
        "indexed": indexed,
    }
    if as_json:
        print_json(answer)
        return
    shown = f", {indexed} of them in the index" if indexed is not None else ""
    click.echo(
        f"Imported {len(products)} products{shown}; columns: {', '.join(columns) or 'none'}. "
        f"{answer['total']} are known."
    )
