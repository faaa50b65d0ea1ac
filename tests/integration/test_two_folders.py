"""Workers in one folder, commands in another: nothing hangs, no answer is another shop's."""

from __future__ import annotations

import re
import shutil
from pathlib import Path

import pytest
from live_stack import LiveStack, draw_folder, until

from workers.registry import WorkerRegistry

pytestmark = pytest.mark.long

ELSEWHERE = "DATABASE_URL is sqlite:///"


def elsewhere(stack: LiveStack) -> dict[str, str]:
    """The settings of a command in another folder, with the same REDIS_URL."""
    other = stack.folder / "other"
    return {
        "DATA_DIR": str(other / "data"),
        "DATABASE_URL": f"sqlite:///{other}/data/app.db",
        "MODELS_DIR": str(other / "models"),
    }


def speaking(stack: LiveStack, *queues: str) -> None:
    """Start workers and wait until each has said what it works with."""
    stack.environment["MODELS_DIR"] = str(stack.folder / "models")
    stack.workers(*queues)
    call = WorkerRegistry(stack.environment["REDIS_URL"])
    until(lambda: len(call.present()) == len(queues), "the workers have spoken")


def test_a_rebuild_of_another_folder_s_is_refused_before_anything_is_planned(
    stack: LiveStack,
) -> None:
    draw_folder(stack.products, 3)
    speaking(stack, "embed", "index")
    there = elsewhere(stack)
    done = stack.imgrec("enqueue-rebuild", str(stack.products), "--wait", **there)
    assert done.returncode == 4
    assert ELSEWHERE in done.stderr
    assert f"{stack.data}/app.db" in done.stderr
    assert f"DATA_DIR is {there['DATA_DIR']}" in done.stderr
    assert "for this command" in done.stderr
    assert stack.answer("jobs", **there)["jobs"] == []
    assert stack.redis().llen("imgrec:embed") == 0
    # `check` has it as a row.
    checked = stack.imgrec("check", "--no-model", **there)
    assert re.search("FAIL agreement: +Not every process", checked.stdout)
    assert re.search(
        "ok   agreement: +2 workers work with this database",
        stack.imgrec("check", "--no-model").stdout,
    )
    # In their own folder, the workers do their work.
    assert stack.rebuild()["embedded"] == 3


def test_workers_of_another_folder_that_start_later_end_the_wait(stack: LiveStack) -> None:
    draw_folder(stack.products, 3)
    there = elsewhere(stack)
    job_id = stack.answer("enqueue-rebuild", str(stack.products), **there)["job_id"]
    speaking(stack, "embed", "index")
    done = stack.imgrec("status", job_id, "--wait", "--timeout", "100", **there)
    assert done.returncode == 4
    assert ELSEWHERE in done.stderr
    assert "The job continues" in done.stderr
    # The worker that was sent it says so, too.
    until(lambda: f"was sent job '{job_id}'" in stack.log("embed"), "the worker says so")
    assert "The message is dropped" in stack.log("embed")
    assert "Traceback" not in stack.log("embed")
    # Nothing is lost: a worker of that folder takes it up.
    for process in stack.processes:
        process.terminate()
        process.wait(60)
    stack.environment |= there
    stack.workers("embed", "index")
    assert stack.answer("status", job_id, "--wait", "--timeout", "100")["state"] == "published"


def test_an_import_feedback_a_head_a_class_and_a_rollback_are_refused_too(
    stack: LiveStack, tmp_path: Path
) -> None:
    names = draw_folder(stack.products, 6)
    speaking(stack, "query")
    there = elsewhere(stack)
    feed = tmp_path / "feed.csv"
    feed.write_text("product_id,title\n1,Shoe\n")
    refused = {
        "import-products": ("import-products", str(feed)),
        "feedback": ("feedback", "0" * 32, "1", "--like"),
    }
    for name, command in refused.items():
        done = stack.imgrec(*command, **there)
        assert (name, done.returncode) == (name, 4), done.stderr
        assert ELSEWHERE in done.stderr
    # With an index of its own, a command expects answers from it.
    assert stack.imgrec("enqueue-rebuild", str(stack.products), "--local", **there).returncode == 0
    assert stack.imgrec("query", str(stack.products / names[0]), "--wait", **there).returncode == 4
    assert stack.imgrec("index", "rollback", **there).returncode == 4
    local = stack.imgrec("query", str(stack.products / names[0]), "--local", **there)
    assert local.returncode == 0
    # Heads.
    training = Path(there["DATA_DIR"]) / "training" / "shoe" / "color"
    for number, label in enumerate(("red", "blue")):
        draw_folder(training / label, 4, first_seed=50 + 10 * number)
    train = ("train", "--category", "shoe", "--attribute", "color", "--epochs", "1")
    done = stack.imgrec(*train, **there)
    assert done.returncode == 4
    assert "MODELS_DIR is" in done.stderr
    assert not Path(there["MODELS_DIR"]).exists()
    assert stack.imgrec(*train, "--local", **there).returncode == 0
    image = str(stack.products / names[0])
    for command in (("classify", image, "--use-trained", "--wait"), ("heads",)):
        done = stack.imgrec(*command, **there)
        assert done.returncode == 4, done.stderr
        assert "MODELS_DIR is" in done.stderr
    assert stack.imgrec("classify", image, "--wait", **there).returncode == 0  # needs no folder


def test_a_client_without_an_index_of_its_own_asks_workers_of_any_folder(
    stack: LiveStack,
) -> None:
    names = draw_folder(stack.products, 3)
    speaking(stack, "embed", "index", "query")
    stack.rebuild()
    done = stack.answer("query", str(stack.products / names[0]), "--wait", **elsewhere(stack))
    assert done["matches"][0]["filename"] == names[0]


def test_the_same_folder_under_another_path_is_the_same_one(stack: LiveStack) -> None:
    draw_folder(stack.products, 3)
    speaking(stack, "embed", "index")
    mount = stack.folder / "mount"
    mount.symlink_to(stack.data)
    done = stack.answer(
        "enqueue-rebuild",
        str(stack.products),
        "--wait",
        DATA_DIR=str(mount),
        DATABASE_URL=f"sqlite:///{mount}/app.db",
    )
    assert done["state"] == "published"


def test_of_several_workers_the_one_that_differs_is_named_and_no_work_reaches_it(
    stack: LiveStack,
) -> None:
    draw_folder(stack.products, 3)
    speaking(stack, "embed", "index")
    stack.worker("embed", **elsewhere(stack))
    call = WorkerRegistry(stack.environment["REDIS_URL"])
    until(lambda: len(call.present()) == 3, "the third worker has spoken")
    done = stack.imgrec("enqueue-rebuild", str(stack.products))
    assert done.returncode == 4
    assert "for this command, worker" in done.stderr  # those that agree
    assert "other/data" in done.stderr
    assert stack.answer("jobs")["jobs"] == []


def test_up_refuses_to_start_beside_workers_of_another_folder(stack: LiveStack) -> None:
    speaking(stack, "query")
    done = stack.imgrec("up", "--detach", **elsewhere(stack))
    assert done.returncode == 4
    assert ELSEWHERE in done.stderr


def test_a_folder_that_was_replaced_under_running_workers_is_found_again(
    stack: LiveStack,
) -> None:
    """rm -rf data, restore a backup: the workers see the new folder, as the command does."""
    draw_folder(stack.products, 3)
    speaking(stack, "embed", "index")
    assert stack.rebuild()["state"] == "published"
    shutil.copytree(stack.data, stack.folder / "backup")
    shutil.rmtree(stack.data)
    shutil.copytree(stack.folder / "backup", stack.data)
    draw_folder(stack.products, 5)
    assert stack.rebuild()["images"] == 5


@pytest.mark.slow
def test_a_working_folder_that_was_deleted_under_a_worker_is_told(stack: LiveStack) -> None:
    import subprocess

    from live_stack import BIN

    shop = stack.folder / "shop"
    shop.mkdir()
    for name in ("DATA_DIR", "DATABASE_URL"):
        del stack.environment[name]
    log = (stack.folder / "embed-relative.log").open("wb")
    stack.processes.append(
        subprocess.Popen(
            [str(BIN / "celery"), "worker", "-Q", "embed,index"],
            cwd=shop,
            env={**stack.env(), "PYTHONPATH": str(Path(__file__).parents[2])},
            stdout=log,
            stderr=log,
            start_new_session=True,
        )
    )
    call = WorkerRegistry(stack.environment["REDIS_URL"])
    until(call.present, "it has spoken")

    def deleted() -> bool:  # the worker goes on writing heartbeats into it meanwhile
        shutil.rmtree(shop, ignore_errors=True)
        return not shop.exists()

    until(deleted, "the folder is deleted")
    shop.mkdir()
    draw_folder(stack.products, 2)
    until(lambda: any(each.identity.data.problem for each in call.present()), "it has noticed")
    done = stack.imgrec(
        "enqueue-rebuild",
        str(stack.products),
        DATA_DIR=str(shop / "data"),
        DATABASE_URL=f"sqlite:///{shop}/data/app.db",
    )
    assert done.returncode == 4
    assert "the working folder of the process was deleted" in done.stderr
