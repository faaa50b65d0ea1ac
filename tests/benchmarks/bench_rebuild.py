"""Images per second from folder to published index, beside the ideal and the plain loop."""

from __future__ import annotations

import io
import json
import sqlite3
import time
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
from base_clip import base_clip
from bench_queue import cpu_seconds
from harness import Run, in_turns
from live_stack import LiveStack
from PIL import Image
from transformers import AutoImageProcessor

from pipeline.cgroup import cores
from pipeline.embed import numeric_precision
from pipeline.embed.clip import Clip, load_clip
from pipeline.images.decode import Limits, decode
from pipeline.preprocess.prepare import Preprocessing, prepare
from pipeline.settings import Settings

TITLE = "Rebuild without background removal: the machine's limit, and the plain loop"
BATCH = 32
WHITE = (255, 255, 255)
LIMITS = Limits(100_000_000, 100_000_000)
SPEC = Preprocessing((224, 224), 0.0, WHITE, None)
TOP = 10
Work = Callable[[], Any]


def measure(run: Run) -> None:
    photos = run.photos(64 if run.quick else 512)
    model = base_clip()
    rebuild(run, photos, model, rounds=2 if run.quick else 5)
    answers(run, run.photos(128 if run.quick else 1024), model, run.folder / "stack" / "data")
    large_photos(run, rounds=2 if run.quick else 5)


def rebuild(run: Run, photos: Sequence[Path], model: Path, rounds: int) -> None:
    stack = LiveStack(run.folder / "stack", model)
    stack.environment |= {"CPU_THREADS": str(cores()), "MODEL_PRECISION": "auto"}
    stack.products.mkdir(parents=True)
    for number, photo in enumerate(photos):
        (stack.products / f"{number:05d}{photo.suffix}").write_bytes(photo.read_bytes())
    settings = Settings(
        _env_file=None, embedding_model=str(model), data_dir=stack.data, cpu_threads=cores()
    )
    start = time.perf_counter()
    clip = load_clip(settings)  # measures once; the worker finds it remembered
    run.fact("start of a process with the measurement", f"{time.perf_counter() - start:.1f} s")
    run.fact("precision that auto chose", clip.precision)
    kept = json.loads((stack.data / "precision.json").read_text())
    run.fact("what was measured to choose", told(kept))
    theirs = load_clip(settings.model_copy(update={"model_precision": "fp32"}))
    loop = plain_loop(theirs, AutoImageProcessor.from_pretrained(model))
    ideal, plain, plain_cpu, rates = [], [], [], []
    try:
        stack.start_redis()
        stack.workers("embed", "index")
        end_to_end(stack)  # loads the worker's model: start-up is reported apart
        for _ in range(rounds):
            pictures, decoding = timed(lambda: read_all(photos))
            _, forward = timed(partial(embed_all, clip, pictures))
            ours, ours_cpu = end_to_end(stack)
            cpu = time.process_time()
            _, theirs_s = timed(lambda: loop(photos))
            cpu = time.process_time() - cpu
            ideal.append((forward + decoding) / ours)
            plain.append(theirs_s / ours)
            plain_cpu.append(cpu / ours_cpu)
            rates.append(len(photos) / ours)
    finally:
        stack.close()
    run.fact("images/s, end to end", f"{min(rates):.1f} to {max(rates):.1f}")
    run.ratio(
        "end to end / the ideal of the same run",
        ideal,
        what="(bare forward + bare decode and resize, each alone on all cores, same precision) / "
        f"job created to index published, warm worker, {len(photos)} photos",
        target=0.92,
    )
    run.ratio(
        "end to end / plain loop",
        plain,
        what="open, CLIPImageProcessor, CLIPModel float32, one process, batch 32 / the same",
        target=2.0,
    )
    run.ratio(
        "CPU seconds of the plain loop / of the embed worker",
        plain_cpu,
        what="what a busy machine cannot distort as much as the clock",
    )


def end_to_end(stack: LiveStack) -> tuple[float, float]:
    """Rebuild all -> seconds from the job's creation to its end, CPU seconds of the embed worker.

    From creation, which is stricter than from the first claimed shard: planning is in it.
    """
    before = cpu_seconds(stack.processes[0].pid)
    job = stack.rebuild("--full")["job_id"]
    spent = cpu_seconds(stack.processes[0].pid) - before
    with sqlite3.connect(stack.data / "app.db") as ledger:
        row = ledger.execute("SELECT finished_at - created_at FROM jobs WHERE id = ?", (job,))
        return float(row.fetchone()[0]), spent


def plain_loop(clip: Clip, processor: Any) -> Callable[[Sequence[Path]], None]:
    """Return what everybody writes, with the same weights."""
    import torch

    model = clip._model

    def run(photos: Sequence[Path]) -> None:
        for start in range(0, len(photos), BATCH):
            images = [Image.open(photo).convert("RGB") for photo in photos[start : start + BATCH]]
            with torch.inference_mode():
                found = model.get_image_features(**processor(images=images, return_tensors="pt"))
                torch.nn.functional.normalize(found.pooler_output, dim=-1).numpy()

    return run


def read_all(photos: Sequence[Path]) -> list[Image.Image]:
    def one(photo: Path) -> Image.Image:
        return prepare(decode(photo.read_bytes(), LIMITS, WHITE, 448), SPEC, None).image

    with ThreadPoolExecutor(cores()) as pool:
        return list(pool.map(one, photos))


def embed_all(clip: Clip, pictures: Sequence[Image.Image]) -> np.ndarray:
    starts = range(0, len(pictures), BATCH)
    return np.concatenate([clip.embed_images(pictures[at : at + BATCH]) for at in starts])


def answers(run: Run, photos: Sequence[Path], model: Path, data: Path) -> None:
    """Compare the chosen precision's vectors and answers with float32's."""
    settings = Settings(
        _env_file=None, embedding_model=str(model), data_dir=data, cpu_threads=cores()
    )
    pictures = read_all(photos)
    exact = embed_all(load_clip(settings.model_copy(update={"model_precision": "fp32"})), pictures)
    chosen = load_clip(settings)
    fast = embed_all(chosen, pictures)
    run.ratio(
        "cosine with float32, the worst photo",
        [float((exact * fast).sum(1).min())],
        what=f"{chosen.precision}, {len(photos)} photos",
        target=numeric_precision.BOUND,
    )
    a, b = exact @ exact.T, fast @ fast.T
    first, second = (np.argsort(-each, axis=1)[:, :TOP] for each in (a, b))
    pairs = list(zip(first, second, strict=True))
    same = np.mean([set(one) == set(other) for one, other in pairs])
    shared = np.mean([len(set(one) & set(other)) / TOP for one, other in pairs])
    # A product that ranks tenth or eleventh by a hair may be either without anybody seeing it.
    hair = 0.002
    tied = np.mean([a[n, other].min() >= a[n, one].min() - hair for n, (one, other) in
                    enumerate(pairs)])  # fmt: skip
    run.fact("queries with the very same ten", f"{same:.1%} (seeded random weights)")
    run.fact("shared among the ten", f"{shared:.1%}")
    run.fact(f"queries whose ten float32 scores within {hair} of its own tenth", f"{tied:.1%}")


def large_photos(run: Run, rounds: int) -> None:
    """Compare decoding 12 megapixels with what the plain loop does."""
    mini = Settings(_env_file=None, embedding_model="models/imgrec-mini", model_precision="fp32")
    clip, cosines = load_clip(mini), []
    for words, grain in (("scaled up", 0.0), ("with a camera's grain", 5.0)):
        files = [enlarged(photo, number, grain) for number, photo in enumerate(run.photos(4))]

        def theirs(files: Sequence[bytes] = files) -> list[Image.Image]:
            return [Image.open(io.BytesIO(data)).convert("RGB") for data in files]

        def ours(files: Sequence[bytes] = files) -> list[Image.Image]:
            return [decode(data, LIMITS, WHITE, 448) for data in files]

        pairs = in_turns(theirs, ours, rounds)
        size = sum(map(len, files)) / len(files) / 1e6
        run.ratio(
            f"12 megapixels, {words}: decoding, plain loop / ours",
            [plain / reduced for plain, reduced in pairs],
            what="Image.open(...).convert('RGB') / our decode, one thread; JPEGs of 4000 pixels, "
            f"{size:.1f} MB: unpacking their Huffman codes is the floor of both",
            target=2.5,
        )
        seen = [
            clip.embed_images([prepare(each, SPEC, None).image for each in made])
            for made in (theirs(), ours())
        ]
        cosines += (seen[0] * seen[1]).sum(1).tolist()
    run.ratio(
        "12 megapixels: cosine with the fully decoded, the worst photo",
        [min(cosines)],
        what="imgrec-mini",
        target=0.999,
    )


def enlarged(photo: Path, number: int, grain: float) -> bytes:
    """Scale a photo to 4000 pixels -> a JPEG; `grain` is a standard deviation, of 255."""
    small = Image.open(photo).convert("RGB")
    scale = 4000 / max(small.size)
    size = (round(small.width * scale), round(small.height * scale))
    pixels = np.asarray(small.resize(size, Image.Resampling.LANCZOS)).astype(np.int16)
    noise = np.random.default_rng(number).normal(0, grain, pixels.shape[:2]).astype(np.int16)
    buffer = io.BytesIO()
    Image.fromarray((pixels + noise[..., None]).clip(0, 255).astype(np.uint8)).save(
        buffer, "JPEG", quality=90
    )
    return buffer.getvalue()


def told(kept: dict[str, list[dict[str, Any]]]) -> str:
    """Say in words what a file of measurements holds."""
    return "; ".join(
        f"{each['name']}: {each['speedup']:.2f} times the speed, agreement {each['agreement']:.4f}"
        for rows in kept.values()
        for each in rows
    )


def timed(work: Work) -> tuple[Any, float]:
    start = time.perf_counter()
    found = work()
    return found, time.perf_counter() - start
