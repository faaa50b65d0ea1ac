"""`imgrec check` proves each thing, and says for each failure what to type."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from live_stack import LiveStack, draw_folder

from cli.checks import models
from cli.checks.row import CheckContext, CheckFailed
from cli.wiring import Wiring
from pipeline.preprocess import onnx_runtime
from pipeline.settings import Settings
from workers.dispatch import InlineDispatcher
from workers.resources import Resources

Rows = dict[str, dict[str, str]]


def read(done: subprocess.CompletedProcess[str]) -> tuple[int, Rows]:
    assert "Traceback" not in done.stderr
    found = json.loads(done.stdout)
    assert done.returncode == (0 if found["ok"] else 4)
    rows = {row["name"]: row for row in found["checks"]}
    for row in rows.values():
        assert row["state"] in ("ok", "warning", "error")
        assert row["ok"] == (row["state"] != "error")
        assert (row["state"] == "ok") == (not row["next"])
    return done.returncode, rows


def checks(stack: LiveStack, *options: str, **more: str) -> tuple[int, Rows]:
    return read(stack.imgrec("check", "--json", *options, **more))


def bad(rows: Rows) -> list[str]:
    return [name for name, row in rows.items() if not row["ok"]]


def test_what_works_is_proved_and_what_does_not_comes_with_the_next_command(
    stack: LiveStack,
) -> None:
    code, rows = checks(stack)
    workers = [f"worker on {queue}" for queue in ("embed", "index", "query")]
    assert (code, bad(rows)) == (4, ["index", *workers])
    assert "policy noeviction, append-only" in rows["redis"]["found"]
    assert rows["index"]["next"] == "imgrec enqueue-rebuild FOLDER --wait"
    assert rows["worker on embed"]["next"].startswith("celery worker -Q embed")

    draw_folder(stack.products, 9)
    stack.workers("embed", "index", "query")
    stack.rebuild()
    code, rows = checks(stack)
    assert (code, bad(rows)) == (0, [])
    assert "9 images, made with the same model and settings" in rows["index"]["found"]
    assert rows["worker on query"]["found"] == "1 worker answers"

    # Another preprocessing: the index is of another kind, and the folder to embed again is known.
    code, rows = checks(stack, "--no-model", PREPROCESS_SIZE="64,64")
    assert (code, bad(rows)) == (4, ["index"])
    assert "64x64" in rows["index"]["found"]
    assert rows["index"]["next"] == f"imgrec enqueue-rebuild {stack.products} --wait"
    assert "model" not in rows

    stack.redis().config_set("maxmemory-policy", "allkeys-lru")
    stack.redis().config_set("appendonly", "no")
    code, rows = checks(stack, "--no-model")
    assert (code, bad(rows)) == (4, ["redis"])
    # The command, as it is typed: but for redis-cli, which is not there everywhere.
    words = rows["redis"]["next"].split()
    assert words[:5] == ["redis-cli", "-h", "127.0.0.1", "-p", str(stack.port)]
    assert stack.redis().execute_command(*words[5:]) == b"OK"
    code, rows = checks(stack, "--no-model")
    assert (code, bad(rows)) == (0, [])
    assert "not append-only: a restart loses tasks" in rows["redis"]["found"]

    processes = {process.args[3]: process for process in stack.processes}  # type: ignore[index]
    processes["embed"].terminate()
    processes["embed"].wait(60)
    shown = stack.imgrec("check", "--no-model")
    assert shown.returncode == 4
    lines = shown.stdout.splitlines()
    assert [" ".join(line.split()) for line in lines if not line.startswith("ok   ")] == [
        "FAIL worker on embed: no worker answers",
        "next: celery worker -Q embed, or all with: imgrec up",
    ]


def test_an_index_that_rotted_is_found_and_the_next_command_mends_it(stack: LiveStack) -> None:
    draw_folder(stack.products, 6)
    rebuild = ["enqueue-rebuild", str(stack.products), "--local"]
    stack.answer(*rebuild)
    file = stack.data / "faiss_index" / "v0001" / "index.bin"
    whole = file.read_bytes()
    file.write_bytes(whole[:-1] + bytes([whole[-1] ^ 1]))
    _, rows = checks(stack, "--no-model")
    assert "does not match the digest" in rows["index"]["found"]
    assert rows["index"]["next"] == "imgrec enqueue-rebuild FOLDER --wait"
    file.write_bytes(whole)

    assert stack.answer(*rebuild, "--full")["index_version"] == "v0002"
    (stack.data / "faiss_index" / "v0002" / "id_to_filename.json").unlink()
    _, rows = checks(stack, "--no-model")
    assert "is incomplete" in rows["index"]["found"]
    assert rows["index"]["next"] == "imgrec index rollback v0001"
    assert stack.imgrec(*rows["index"]["next"].split()[1:]).returncode == 0
    assert checks(stack, "--no-model")[1]["index"]["ok"]

    (stack.data / "faiss_index" / "CURRENT").write_text("rubbish")
    _, rows = checks(stack, "--no-model")
    assert rows["index"]["next"] == "imgrec index rollback v0001"


def test_nothing_there_is_a_list_of_next_commands_and_no_secret(stack: LiveStack) -> None:
    stack.kill_redis()
    code, rows = checks(
        stack,
        REDIS_URL=f"redis://:s3cret@127.0.0.1:{stack.port}/0",
        CACHE_URL=f"redis://:s3cret@127.0.0.1:{stack.port}/1",
        EMBEDDING_MODEL="/nowhere/model",
        DATABASE_URL="postgresql://ann:s3cret@127.0.0.1:1/shop",
        USE_BG_REMOVAL="true",
        REMBG_MODEL="no-such-model",
        DEVICE="cuda",
        CUDA_VISIBLE_DEVICES="",
    )
    assert code == 4
    assert [name for name, row in rows.items() if row["ok"]] == ["disk", "rights", "program"]
    assert rows["redis"]["next"] == "imgrec up"
    assert rows["cache"]["next"] == "correct CACHE_URL in .env, then: imgrec check"
    assert rows["database"]["next"] == "correct DATABASE_URL in .env, then: imgrec check"
    assert rows["model"]["next"] == "correct EMBEDDING_MODEL in .env, then: imgrec check"
    assert rows["background removal"]["next"].startswith("make weights")
    assert "sees no CUDA device" in rows["device"]["found"]
    assert rows["device"]["next"].startswith("nvidia-smi")
    assert rows["worker on embed"]["found"] == "not checked: Redis does not work"
    assert "s3cret" not in str(rows)


def test_a_gpu_that_is_there_and_not_used_is_a_failure(
    settings: Settings, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    driver = tmp_path / "nvidia-smi"
    driver.write_text("#!/bin/sh\n")
    driver.chmod(0o755)
    monkeypatch.setenv("PATH", str(tmp_path), prepend=":")
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    with pytest.raises(
        CheckFailed, match=r"an NVIDIA driver is installed, but torch .* finds no GPU"
    ) as found:
        models.device(context_of(settings))
    assert "the extra 'gpu'" in found.value.next
    left_alone = settings.model_copy(update={"device": "cpu"})
    assert models.device(context_of(left_alone)).startswith("DEVICE=cpu: no GPU found")

    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "get_device_name", lambda number: "a GPU")
    assert "a GPU is available but not used" in models.device(context_of(left_alone))
    assert models.device(context_of(settings)) == "a GPU is used"
    cutting = settings.model_copy(update={"use_bg_removal": True})
    monkeypatch.setattr(onnx_runtime, "sees_gpu", lambda: False)
    with pytest.raises(CheckFailed, match="onnxruntime does not find it"):
        models.device(context_of(cutting))


def context_of(settings: Settings) -> CheckContext:
    return CheckContext(Wiring(Resources(settings, InlineDispatcher())))


def in_process(stack: LiveStack, change: str) -> tuple[int, Rows]:
    """Run `imgrec check --no-model --json` after a line that changes its code."""
    program = f"from cli.checks import folders, table; {change}; from cli.main import main; main()"
    done = subprocess.run(
        [sys.executable, "-c", program, "check", "--no-model", "--json"],
        cwd=stack.folder,
        env=stack.env(),
        capture_output=True,
        text=True,
        timeout=120,
    )
    return read(done)


def test_a_disk_without_room_for_a_rebuild_is_a_failure(stack: LiveStack) -> None:
    _, rows = in_process(stack, "folders.LEAST_FREE = 2 ** 60")
    assert "but a rebuild needs 1073741824.0 GiB" in rows["disk"]["found"]
    assert "DATA_DIR" in rows["disk"]["next"]


def test_a_bug_in_one_line_is_that_line_and_code_4(stack: LiveStack) -> None:
    _, rows = in_process(
        stack, "table.CHECKS = (table.Check('database', lambda context: 1 / 0), *table.CHECKS[3:])"
    )
    assert rows["database"]["found"] == "unexpected ZeroDivisionError: division by zero"
    assert rows["disk"]["ok"]


def test_a_setting_that_cannot_be_used_is_the_one_line_that_there_is(stack: LiveStack) -> None:
    code, rows = checks(stack, TOP_K="many")
    assert (code, bad(rows)) == (4, ["settings"])
    assert "TOP_K" in rows["settings"]["found"]
