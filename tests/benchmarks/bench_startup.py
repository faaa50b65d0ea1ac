"""How soon a query worker answers: beside a bare process that imports and loads the same model."""

from __future__ import annotations

import os
import subprocess
import sys
import time
from pathlib import Path

from base_clip import base_clip
from harness import ROOT, Run
from live_stack import LiveStack
from published import publish_random, settings_of

TITLE = "Start-up: from `celery worker -Q query` to its first answer"
QUICK = False  # it loads the model three times at least
ROUNDS = 7
# What a script must do before it can embed its first picture, and nothing else.
BARE = """
import sys
import torch
from transformers import CLIPModel
from transformers.models.clip import CLIPImageProcessorPil
import faiss
torch.set_num_threads(1)
CLIPModel.from_pretrained(sys.argv[1]).eval()
CLIPImageProcessorPil.from_pretrained(sys.argv[1])
"""
# A client that has nothing to start: its question waits in the queue before the worker is there.
ASK = """
import sys, time
from pathlib import Path
from cli import query_client
from cli.wiring import Wiring
wiring = Wiring()
data = query_client.message(Path(sys.argv[1]), wiring.settings)
asked = query_client.PendingQuery(wiring, "imgrec.query_image", (data, 5), 300.0, False)
print("asked", flush=True)
assert asked.answer()["matches"]
print(time.time(), flush=True)
"""


def measure(run: Run) -> None:
    model = base_clip()
    stack = LiveStack(run.folder, model)
    publish_random(settings_of(stack), 20_000, 512, stack.products)
    stack.start_redis()
    try:
        bare(stack, model)  # both read the same files: not the first one from the disk
        rows = []
        for number in range(ROUNDS):
            turns = (lambda: bare(stack, model), lambda n=number: first_answer(run, stack, n))
            found = [work() for work in (turns if number % 2 == 0 else turns[::-1])]
            rows.append(found if number % 2 == 0 else found[::-1])
    finally:
        stack.close()
    run.ratio(
        "first answer / bare import and load",
        [asked[0] / alone[0] for alone, asked in rows],
        what="from the spawn to the answer of a waiting query; ViT-B/32, in turns",
        target=1.2,
        better="lower",
    )
    run.ratio(
        "the same in CPU seconds",
        [asked[1] / alone[1] for alone, asked in rows],
        what="CPU of the whole process until then: what other load does not change",
        better="lower",
    )
    run.fact("bare import and load, s / CPU s", pair([alone for alone, _ in rows]))
    run.fact("first answer, s / CPU s", pair([asked for _, asked in rows]))


def bare(stack: LiveStack, model: Path) -> tuple[float, float]:
    """Return the seconds and CPU seconds of a process that only imports and loads."""
    start = time.time()
    process = subprocess.Popen(
        [sys.executable, "-c", BARE, str(model)], env=stack.env(), stderr=subprocess.DEVNULL
    )
    _, status, used = os.wait4(process.pid, 0)
    process.returncode = os.waitstatus_to_exitcode(status)
    assert process.returncode == 0
    return time.time() - start, used.ru_utime + used.ru_stime


def first_answer(run: Run, stack: LiveStack, number: int) -> tuple[float, float]:
    """Return the seconds and CPU seconds from a worker's spawn to its first answer."""
    photo = run.photos(10)[number % 10]
    file = run.folder / f"asked-{number}.jpg"
    file.write_bytes(photo.read_bytes() + str(time.time_ns()).encode())
    client = subprocess.Popen(
        [sys.executable, "-c", ASK, str(file)],
        cwd=ROOT,
        env=stack.env(),
        stdout=subprocess.PIPE,
        text=True,
    )
    assert client.stdout is not None
    assert client.stdout.readline() == "asked\n"
    start = time.time()
    worker = stack.worker("query")
    try:
        answered = float(client.stdout.readline() or "nan")
        used = cpu_s(worker.pid)
    finally:
        worker.kill()
        worker.wait()
        client.wait()
    return answered - start, used


def cpu_s(pid: int) -> float:
    import psutil

    times = psutil.Process(pid).cpu_times()
    return times.user + times.system


def pair(rows: list[tuple[float, float]]) -> str:
    wall, cpu = (sorted(column)[len(rows) // 2] for column in zip(*rows, strict=True))
    return f"{wall:.1f} / {cpu:.1f}"
