"""Workers in one folder, commands in another: nothing hangs, no answer is another shop's."""

from __future__ import annotations

import re
import shutil
from pathlib import Path

import pytest
from live_stack import LiveStack, draw_folder, until

from workers.roll_call import RollCall

ELSEWHERE = "DATABASE_URL is sqlite:///"


def elsewhere(stand: LiveStack) -> dict[str, str]:
    """The settings of a command in another folder, with the same REDIS_URL."""
    other = stand.folder / "other"
    return {
        "DATA_DIR": str(other / "data"),
        "DATABASE_URL": f"sqlite:///{other}/data/app.db",
        "MODELS_DIR": str(other / "models"),
    }


def speaking(stand: LiveStack, *queues: str) -> None:
    """Start workers and wait until each has said what it works with."""
    stand.environment["MODELS_DIR"] = str(stand.folder / "models")
    stand.workers(*queues)
    call = RollCall(stand.environment["REDIS_URL"])
    until(lambda: len(call.present()) == len(queues), "the workers have spoken")


def test_a_rebuild_of_another_folder_s_is_refused_before_anything_is_planned(
    stand: LiveStack,
) -> None:
    draw_folder(stand.products, 3)
    speaking(stand, "embed", "index")
    there = elsewhere(stand)
    done = stand.imgrec("enqueue-rebuild", str(stand.products), "--wait", **there)
    assert done.returncode == 4
    assert ELSEWHERE in done.stderr
    assert f"{stand.data}/app.db" in done.stderr
    assert f"DATA_DIR is {there['DATA_DIR']}" in done.stderr
    assert "for this command" in done.stderr
    assert stand.answer("jobs", **there)["jobs"] == []
    assert stand.redis().llen("imgrec:embed") == 0
    # `check` has it as a row.
    checked = stand.imgrec("check", "--no-model", **there)
    assert re.search("FAIL agreement: +Not every process", checked.stdout)
    assert re.search(
        "ok   agreement: +2 workers work with this database",
        stand.imgrec("check", "--no-model").stdout,
    )
    # In their own folder, the workers do their work.
    assert stand.rebuild()["embedded"] == 3


def test_workers_of_another_folder_that_start_later_end_the_wait(stand: LiveStack) -> None:
    draw_folder(stand.products, 3)
    there = elsewhere(stand)
    job_id = stand.answer("enqueue-rebuild", str(stand.products), **there)["job_id"]
    speaking(stand, "embed", "index")
    done = stand.imgrec("status", job_id, "--wait", "--timeout", "100", **there)
    assert done.returncode == 4
    assert ELSEWHERE in done.stderr
    assert "The job continues" in done.stderr
    # The worker that was sent it says so, too.
    until(lambda: f"was sent job '{job_id}'" in stand.log("embed"), "the worker says so")
    assert "The message is dropped" in stand.log("embed")
    assert "Traceback" not in stand.log("embed")
    # Nothing is lost: a worker of that folder takes it up.
    for process in stand.processes:
        process.terminate()
        process.wait(60)
    stand.environment |= there
    stand.workers("embed", "index")
    assert stand.answer("status", job_id, "--wait", "--timeout", "100")["state"] == "published"


def test_an_import_feedback_a_head_a_class_and_a_rollback_are_refused_too(
    stand: LiveStack, tmp_path: Path
) -> None:
    names = draw_folder(stand.products, 6)
    speaking(stand, "query")
    there = elsewhere(stand)
    feed = tmp_path / "feed.csv"
    feed.write_text("product_id,title\n1,Shoe\n")
    refused = {
        "import-products": ("import-products", str(feed)),
        "feedback": ("feedback", "0" * 32, "1", "--like"),
    }
    for name, command in refused.items():
        done = stand.imgrec(*command, **there)
        assert (name, done.returncode) == (name, 4), done.stderr
        assert ELSEWHERE in done.stderr
    # With an index of its own, a command expects answers from it.
    assert stand.imgrec("enqueue-rebuild", str(stand.products), "--local", **there).returncode == 0
    assert stand.imgrec("query", str(stand.products / names[0]), "--wait", **there).returncode == 4
    assert stand.imgrec("index", "rollback", **there).returncode == 4
    local = stand.imgrec("query", str(stand.products / names[0]), "--local", **there)
    assert local.returncode == 0
    # Heads.
    training = Path(there["DATA_DIR"]) / "training" / "shoe" / "color"
    for number, label in enumerate(("red", "blue")):
        draw_folder(training / label, 4, first_seed=50 + 10 * number)
    train = ("train", "--category", "shoe", "--attribute", "color", "--epochs", "1")
    done = stand.imgrec(*train, **there)
    assert done.returncode == 4
    assert "MODELS_DIR is" in done.stderr
    assert not Path(there["MODELS_DIR"]).exists()
    assert stand.imgrec(*train, "--local", **there).returncode == 0
    image = str(stand.products / names[0])
    for command in (("classify", image, "--use-trained", "--wait"), ("heads",)):
        done = stand.imgrec(*command, **there)
        assert done.returncode == 4, done.stderr
        assert "MODELS_DIR is" in done.stderr
    assert stand.imgrec("classify", image, "--wait", **there).returncode == 0  # needs no folder


def test_a_client_without_an_index_of_its_own_asks_workers_of_any_folder(
    stand: LiveStack,
) -> None:
    names = draw_folder(stand.products, 3)
    speaking(stand, "embed", "index", "query")
    stand.rebuild()
    done = stand.answer("query", str(stand.products / names[0]), "--wait", **elsewhere(stand))
    assert done["matches"][0]["filename"] == names[0]


def test_the_same_folder_under_another_path_is_the_same_one(stand: LiveStack) -> None:
    draw_folder(stand.products, 3)
    speaking(stand, "embed", "index")
    mount = stand.folder / "mount"
    mount.symlink_to(stand.data)
    done = stand.answer(
        "enqueue-rebuild",
        str(stand.products),
        "--wait",
        DATA_DIR=str(mount),
        DATABASE_URL=f"sqlite:///{mount}/app.db",
    )
    assert done["state"] == "published"


def test_of_several_workers_the_one_that_differs_is_named_and_no_work_reaches_it(
    stand: LiveStack,
) -> None:
    draw_folder(stand.products, 3)
    speaking(stand, "embed", "index")
    stand.worker("embed", **elsewhere(stand))
    call = RollCall(stand.environment["REDIS_URL"])
    until(lambda: len(call.present()) == 3, "the third worker has spoken")
    done = stand.imgrec("enqueue-rebuild", str(stand.products))
    assert done.returncode == 4
    assert "for this command, worker" in done.stderr  # those that agree
    assert "other/data" in done.stderr
    assert stand.answer("jobs")["jobs"] == []


def test_up_refuses_to_start_beside_workers_of_another_folder(stand: LiveStack) -> None:
    speaking(stand, "query")
    done = stand.imgrec("up", "--detach", **elsewhere(stand))
    assert done.returncode == 4
    assert ELSEWHERE in done.stderr


def test_a_folder_that_was_replaced_under_running_workers_is_found_again(
    stand: LiveStack,
) -> None:
    """rm -rf data, restore a backup: the workers see the new folder, as the command does."""
    draw_folder(stand.products, 3)
    speaking(stand, "embed", "index")
    assert stand.rebuild()["state"] == "published"
    shutil.copytree(stand.data, stand.folder / "backup")
    shutil.rmtree(stand.data)
    shutil.copytree(stand.folder / "backup", stand.data)
    draw_folder(stand.products, 5)
    assert stand.rebuild()["images"] == 5


@pytest.mark.slow
def test_a_working_folder_that_was_deleted_under_a_worker_is_told(stand: LiveStack) -> None:
    import subprocess

    from live_stack import BIN

    shop = stand.folder / "shop"
    shop.mkdir()
    for name in ("DATA_DIR", "DATABASE_URL"):
        del stand.environment[name]
    log = (stand.folder / "embed-relative.log").open("wb")
    stand.processes.append(
        subprocess.Popen(
            [str(BIN / "celery"), "worker", "-Q", "embed,index"],
            cwd=shop,
            env={**stand.env(), "PYTHONPATH": str(Path(__file__).parents[2])},
            stdout=log,
            stderr=log,
            start_new_session=True,
        )
    )
    call = RollCall(stand.environment["REDIS_URL"])
    until(call.present, "it has spoken")

    def deleted() -> bool:  # the worker goes on writing heartbeats into it meanwhile
        shutil.rmtree(shop, ignore_errors=True)
        return not shop.exists()

    until(deleted, "the folder is deleted")
    shop.mkdir()
    draw_folder(stand.products, 2)
    until(lambda: any(each.identity.data.problem for each in call.present()), "it has noticed")
    done = stand.imgrec(
        "enqueue-rebuild",
        str(stand.products),
        DATA_DIR=str(shop / "data"),
        DATABASE_URL=f"sqlite:///{shop}/data/app.db",
    )
    assert done.returncode == 4
    assert "the working folder of the process was deleted" in done.stderr
