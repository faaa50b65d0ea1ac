"""Rebuild with backgrounds cut out, beside rembg and the plain loop."""

from __future__ import annotations

import json
import os
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from base_clip import base_clip
from bench_rebuild import BATCH, WHITE, told
from harness import ROOT, Run
from PIL import Image
from transformers import AutoImageProcessor

from pipeline.cgroup import cores
from pipeline.embed.clip import Clip, load_clip
from pipeline.embed.embed_images import build_embedder, embed_shard
from pipeline.images.find import ImageFile
from pipeline.images.source import ImageFolder
from pipeline.preprocess.background_removal import iou, load_remover
from pipeline.settings import Settings

TITLE = "Rebuild with background removal: beside rembg, image by image, and the plain loop"
WEIGHTS = ROOT / "models" / "u2net"


class NoVectors:
    """Every picture is new."""

    def get(self, digest: str) -> None:
        return None

    def put(self, vectors: object) -> None: ...


def measure(run: Run) -> None:
    os.environ["U2NET_HOME"] = str(WEIGHTS)
    photos = run.photos(6 if run.quick else 48)
    for model in ("u2netp",) if run.quick else ("u2net", "u2netp"):
        if not (WEIGHTS / f"{model}.onnx").exists():
            run.fact(model, f"not measured: there is no {WEIGHTS / model}.onnx")
            continue
        compare(run, model, photos, rounds=2 if run.quick else 5)


def compare(run: Run, name: str, photos: Sequence[Path], rounds: int) -> None:
    import rembg

    settings = Settings(
        _env_file=None,
        embedding_model=str(base_clip()),
        data_dir=run.folder / name,
        cpu_threads=cores(),
        rembg_model=name,
        cutout_cache_bytes=0,
    )
    embedder = build_embedder(settings, load_clip(settings))
    cached = build_embedder(
        settings.model_copy(update={"cutout_cache_bytes": 10**9}), embedder.encoder
    )
    theirs = load_clip(settings.model_copy(update={"model_precision": "fp32"}))
    processor = AutoImageProcessor.from_pretrained(settings.embedding_model)
    session = rembg.new_session(name)
    images = [ImageFile(str(photo.relative_to(photo.anchor)), 0, 0) for photo in photos]
    root = Path(photos[0].anchor)

    def ours(with_tools: object) -> tuple[float, float]:
        return clocked(
            lambda: embed_shard(
                ImageFolder(root), images, with_tools, NoVectors(), check=lambda _: None
            )
        )

    def plain() -> None:
        for start in range(0, len(photos), BATCH):
            cut = []
            for photo in photos[start : start + BATCH]:
                made = rembg.remove(Image.open(photo), session=session)
                white = Image.new("RGBA", made.size, (*WHITE, 255))
                cut.append(Image.alpha_composite(white, made).convert("RGB"))
            embed_plainly(theirs, processor, cut)

    remover = load_remover(settings, threads=1, at_once=cores())
    agree = []
    for photo in photos:
        image = Image.open(photo).convert("RGB")
        agree.append(iou(rembg.remove(image, session=session, only_mask=True), remover(image)))
    run.ratio(
        f"{name}: mask IoU with rembg's own",
        agree,
        what=f"intersection / union of the two masks' foregrounds, {len(photos)} photos",
        target=0.98,
    )
    kept = json.loads((settings.data_dir / "rembg_backend.json").read_text())
    run.fact(f"{name}: what was measured to choose", told(kept))
    ours(cached)
    clock, spent, again = [], [], []
    for _ in range(rounds):
        fast_s, fast_cpu = ours(embedder)
        plain_s, plain_cpu = clocked(plain)
        again_s, _ = ours(cached)
        clock.append(plain_s / fast_s)
        spent.append(plain_cpu / fast_cpu)
        again.append(fast_s / again_s)
    what = "rembg.remove one by one, then CLIPImageProcessor and CLIPModel float32, batch 32 / "
    run.ratio(
        f"{name}: plain loop / ours",
        clock,
        what=f"{what}a shard of {len(photos)} photos",
        target=2.0,
    )
    run.ratio(f"{name}: the same in CPU seconds", spent, what="what a busy machine distorts less")
    run.ratio(
        f"{name}: first rebuild / one with another model",
        again,
        what="cut-outs made / cut-outs found by content on disk",
    )


def embed_plainly(clip: Clip, processor: Any, images: Sequence[Image.Image]) -> None:
    import torch

    inputs = processor(images=list(images), return_tensors="pt")
    with torch.inference_mode():
        found = clip._model.get_image_features(**inputs).pooler_output
        torch.nn.functional.normalize(found, dim=-1).numpy()


def clocked(work: Callable[[], object]) -> tuple[float, float]:
    """Return the seconds of a call by the clock and of CPU."""
    start, cpu = time.perf_counter(), time.process_time()
    work()
    return time.perf_counter() - start, time.process_time() - cpu
