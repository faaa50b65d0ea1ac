"""The bundled catalogue and model of the demo, as tests use them."""

from __future__ import annotations

from pathlib import Path

import numpy as np

from cli.demo import MODEL, PRODUCTS
from pipeline.embed.clip import load_clip
from pipeline.images.decode import Limits, decode
from pipeline.preprocess.prepare import Preprocessing, prepare
from pipeline.settings import Settings

ROOT = Path(__file__).parents[1]


def write_demo_vectors(folder: Path) -> None:
    """Embed each product's photo as workers do, without background removal; write vectors.npz."""
    settings = Settings(
        _env_file=None, embedding_model=str(ROOT / MODEL), use_bg_removal=False, data_dir=folder
    )
    clip, spec = load_clip(settings), Preprocessing.from_settings(settings)
    limits, products = Limits.of(settings), ROOT / PRODUCTS
    files = sorted(products.rglob("*.jpg"))
    images = [
        prepare(decode(file.read_bytes(), limits, spec.bg_color), spec, None).image
        for file in files
    ]
    rows = np.concatenate([clip.embed_images(images[i : i + 16]) for i in range(0, len(files), 16)])
    names = [file.relative_to(products).with_suffix("").as_posix() for file in files]
    np.savez(folder / "vectors.npz", **dict(zip(names, rows, strict=True)))
