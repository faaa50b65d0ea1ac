"""A rebuild where little or nothing changed; many files, listed, planned and merged."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import time
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
from harness import ROOT, Run, anonymous_bytes, seconds
from numpy.typing import NDArray
from PIL import Image

from pipeline.embed.clip import load_clip
from pipeline.embed.embed_images import Embedder, build_embedder, embed_shard
from pipeline.embed.shards import write_shard
from pipeline.engines.choice import engines
from pipeline.images.find import find_images
from pipeline.images.source import ImageFolder
from pipeline.index.versions import VersionStore
from pipeline.rebuild.merge import merge
from pipeline.rebuild.plan import plan_rebuild
from pipeline.settings import Settings
from pipeline.store.database import Database
from pipeline.store.jobs import Jobs

TITLE = "Incremental: a rebuild costs what changed"
QUICK = False  # it draws twenty thousand pictures
SHARE = 64  # pictures that the model is timed on, two batches
MODEL = ROOT / "models" / "imgrec-mini"


def measure(run: Run) -> None:
    count, listed = (2_000, 10_000) if run.quick else (20_000, 200_000)
    changes(run, count, 1 if run.quick else 3)
    listing(run, listed)
    merging(run, 60_000 if run.quick else 200_000)


class ToyPipeline:
    """The steps of a rebuild in one process, without the queue, whose cost `queue` measures."""

    def __init__(self, folder: Path) -> None:
        self.root = folder / "products"
        self.settings = Settings(
            _env_file=None,
            data_dir=folder / "data",
            database_url=f"sqlite:///{folder}/data/app.db",
            embedding_model=str(MODEL),
            use_bg_removal=False,
            cpu_threads=1,
        )
        self.jobs = Jobs(Database(self.settings.database_url))
        self.versions = VersionStore(self.settings.index_dir)
        self.tools: Embedder = build_embedder(self.settings, load_clip(self.settings))

    def rebuild(self, full: bool = False) -> int:
        """Return how many images were embedded."""
        job_id = plan_rebuild(self.root, self.settings, self.jobs, self.versions, full=full)
        nothing: Any = SimpleNamespace(get=lambda digest: None, put=lambda vectors: None)
        while numbers := self.jobs.shards.next_window(job_id, 64):
            for n in numbers:
                claim = self.jobs.shards.claim(job_id, n, "bench", 600)
                assert claim is not None
                done = embed_shard(
                    ImageFolder(self.root),
                    claim.images,
                    self.tools,
                    nothing,
                    check=lambda count: None,
                )
                file, digest = write_shard(self.settings.jobs_dir / job_id, n, done.vectors)
                self.jobs.shards.finish(
                    claim,
                    file=file,
                    sha256=digest,
                    embedded=done.embedded,
                    reused=done.reused,
                    failures=done.failures,
                )
        claim = self.jobs.claim_merge(job_id, "bench", 600)
        assert claim is not None
        with self.versions.lock():
            shards = self.jobs.shards.done(job_id)
            merged = merge(
                claim.job,
                shards,
                self.settings,
                self.versions,
                lambda: None,
                engines=engines(self.settings, lambda: "bench"),
                later_jobs={},
            )
        assert merged.version is not None
        self.jobs.publish(job_id, merged.version)
        return self.jobs.progress(job_id).embedded


def changes(run: Run, count: int, rounds: int) -> None:
    """Measure rebuilds of few and of no changes; the full one from its two parts.

    Twenty thousand pictures through a model take too long here. So the full rebuild is the same
    rebuild with an encoder that does nothing, plus what the model takes for a picture, measured on
    a share of the pictures, times all of them.
    """
    folder = run.folder / "shop"
    draw_many(folder / "products", count)
    toy = ToyPipeline(folder)
    real = toy.tools
    toy.tools = replace(real, encoder=NoEncoder(real.encoder.dim))
    around = seconds(lambda: toy.rebuild(full=True))
    toy.tools = real
    share = [Image.open(file).convert("RGB") for file in sorted(toy.root.rglob("*.jpg"))[:SHARE]]
    prepared = [real.prepare(image).image for image in share]
    few, none, embedding = [], [], []
    real.encoder.embed_images(prepared[:8])  # the first ones are slower
    for number in range(rounds):
        early = seconds(lambda: real.encoder.embed_images(prepared))
        change(toy.root, count // 100, number)
        few.append(measured(toy.rebuild, count // 100))
        none.append(measured(toy.rebuild, 0))
        late = seconds(lambda: real.encoder.embed_images(prepared))
        embedding.append(count * (early + late) / 2 / len(prepared))
    run.fact("rebuild without the model, s", round(around, 1))
    run.fact("the model alone, s", [round(each, 1) for each in embedding])
    run.fact("1 % changed, s", [round(each, 2) for each in few])
    run.fact("unchanged, s", [round(each, 2) for each in none])
    what = (
        f"{count:,} drawn JPEGs of 64 px, one process, no queue. Full: a rebuild without the model "
        f"and {count:,} times what imgrec-mini takes for one of {SHARE} pictures; any other model, "
        "and background removal, take longer, so the fixed cost weighs most here"
    )
    whole = [around + each for each in embedding]
    run.ratio("1 % changed / full", divided(few, whole), what=what, better="lower", target=0.03)
    run.ratio("unchanged / full", divided(none, whole), what=what, better="lower", target=0.01)


class NoEncoder:
    """Gives each picture a vector that nothing was computed for."""

    def __init__(self, dim: int) -> None:
        self.dim = dim
        self._dice = np.random.default_rng(0)

    def embed_images(self, images: Sequence[Image.Image]) -> NDArray[np.float32]:
        rows = self._dice.standard_normal((len(images), self.dim), np.float32)
        unit: NDArray[np.float32] = rows / np.linalg.norm(rows, axis=1, keepdims=True)
        return unit


def divided(parts: list[float], wholes: list[float]) -> list[float]:
    return [part / whole for part, whole in zip(parts, wholes, strict=True)]


def measured(rebuild: Callable[[], int], expected: int) -> float:
    start = time.perf_counter()
    embedded = rebuild()
    took = time.perf_counter() - start
    assert embedded == expected, f"{embedded} embedded, not {expected}"
    return took


def draw_many(root: Path, count: int) -> None:
    """Write pictures that all differ: 8 x 8 random colours, enlarged."""
    rng = np.random.default_rng(0)
    for number in range(count):
        file = root / f"kind{number // 1000:03d}" / f"product-{number:06d}.jpg"
        file.parent.mkdir(parents=True, exist_ok=True)
        pixels = rng.integers(0, 256, (8, 8, 3), dtype=np.uint8)
        Image.fromarray(pixels).resize((64, 64)).save(file, quality=80)


def change(root: Path, count: int, seed: int) -> None:
    """Draw every so many-th picture again."""
    files = sorted(root.rglob("*.jpg"))
    rng = np.random.default_rng(1000 + seed)
    for file in files[:: len(files) // count][:count]:
        pixels = rng.integers(0, 256, (8, 8, 3), dtype=np.uint8)
        Image.fromarray(pixels).resize((64, 64)).save(file, quality=80)


def listing(run: Run, count: int) -> None:
    """List and plan real files in a process of its own, a tenth of them and all."""
    root = run.folder / "many"
    made: list[tuple[int, dict[str, float]]] = []
    for size in (count // 10, count):
        for number in range(len(made) and made[-1][0], size):
            file = root / f"kind{number // 1000:04d}" / f"product-{number:07d}.jpg"
            if number % 1000 == 0:
                file.parent.mkdir(parents=True, exist_ok=True)
            file.write_bytes(b"x")
        env = {**os.environ, "IMGREC_BENCH": "1", "DATA_DIR": str(run.folder / f"list-{size}")}
        done = subprocess.run(
            [sys.executable, __file__, str(root), str(run.folder / f"list-{size}")],
            env={**env, "PYTHONPATH": f"{ROOT}:{Path(__file__).parent}:{ROOT / 'tests'}"},
            capture_output=True,
            text=True,
            check=False,
        )
        assert done.returncode == 0, done.stderr
        found = json.loads(done.stdout)
        assert found["images"] == size
        made.append((size, found))
        run.fact(
            f"{size:,} files listed and planned",
            f"{found['seconds']:.1f} s ({found['cpu']:.1f} s of CPU), os.walk alone "
            f"{found['walk']:.1f} s; peak {found['bytes'] / 2**20:.1f} MiB above the start",
        )
    (_, few), (size, all_) = made
    run.ratio(
        "planning / os.walk with a stat a file",
        [all_["seconds"] / all_["walk"]],
        what=f"{size:,} real files in folders of 1,000: list, sort, cut, write the ledger",
        better="lower",
    )
    run.ratio(
        "seconds of planning / 10 s",
        [all_["seconds"] / 10 * 200_000 / size],
        what=f"{size:,} files, for 200,000 of them",
        better="lower",
        target=1.0,
    )
    run.ratio(
        "memory of planning, all files / a tenth",
        [(all_["bytes"] + 2**23) / (few["bytes"] + 2**23)],
        what=f"peak anonymous memory and 8 MiB of grace, {size:,} / {size // 10:,} files",
        better="lower",
        target=1.5,
    )


def merging(run: Run, count: int) -> None:
    """Merge many vectors, then few changed ones, in a process of its own."""
    script = [sys.executable, str(Path(__file__).with_name("merge_time.py"))]
    options = [str(run.folder / "merge"), "--count", str(count), "--rounds", "2"]
    done = subprocess.run([*script, *options], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    rebuilds = [each for each in map(json.loads, done.stdout.splitlines()) if "merge" in each]
    for each in rebuilds:
        merge, plan = each["merge"], each["plan"]
        run.fact(
            f"{count:,} x 512, {each['what']}",
            f"planned in {plan['s']:.1f} s ({plan['cpu_s']:.1f} s of CPU), merged in "
            f"{merge['s']:.1f} s ({merge['cpu_s']:.1f} s of CPU), {merge['written_mib']:,} MiB "
            f"written: {each['version']}",
        )
    (full,) = (each["merge"]["cpu_s"] for each in rebuilds if each["what"] == "full")
    few = [each["merge"]["cpu_s"] for each in rebuilds if each["what"] == "1 % changed"]
    run.ratio(
        "CPU time of a merge, 1 % changed / full",
        divided(few, [full] * len(few)),
        what=f"{count:,} x 512 synthetic vectors into a FAISS index; without the model",
        better="lower",
        target=0.5,
    )


def plan_here(root: Path, data: Path) -> None:
    """Plan a folder in this process; print seconds and peak memory."""
    settings = Settings(
        _env_file=None,
        data_dir=data,
        database_url=f"sqlite:///{data}/app.db",
        embedding_model=str(MODEL),
        use_bg_removal=False,
    )
    jobs, versions = Jobs(Database(settings.database_url)), VersionStore(settings.index_dir)
    walk = seconds(lambda: [os.stat(e) for d, _, names in os.walk(root) for e in at(d, names)])
    next(find_images(root))
    base, most = anonymous_bytes(), 0

    def listed(_: int) -> None:
        nonlocal most
        most = max(most, anonymous_bytes())

    start, cpu = time.perf_counter(), time.process_time()
    job_id = plan_rebuild(root, settings, jobs, versions, listed=listed)
    took = {"seconds": time.perf_counter() - start, "cpu": time.process_time() - cpu}
    images = jobs.progress(job_id).images
    print(json.dumps({**took, "walk": walk, "bytes": max(0, most - base), "images": images}))


def at(folder: str, names: list[str]) -> list[str]:
    return [os.path.join(folder, name) for name in names]


if __name__ == "__main__":
    plan_here(Path(sys.argv[1]), Path(sys.argv[2]))
