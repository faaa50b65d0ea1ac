"""Messages that a stranger has put into Redis: each is refused, and no worker ends."""

from __future__ import annotations

import random
from typing import Any

from celery import Celery
from stand import Stand, draw_folder, draw_product, until


def test_a_pickled_message_is_refused_and_the_worker_lives(stand: Stand) -> None:
    names = draw_folder(stand.products, 6)
    stand.workers("embed", "index")
    query = stand.worker("query")
    stand.rebuild()
    trap = stand.folder / "trap"
    evil = Celery(broker=stand.environment["REDIS_URL"])
    evil.conf.update(
        task_serializer="pickle",
        accept_content=["pickle"],
        broker_transport_options={"global_keyprefix": "imgrec:"},
    )
    evil.send_task("imgrec.query_image", args=(_Trap(str(trap)), 3), queue="query")
    answer = stand.query(stand.products / names[0])
    assert answer["matches"][0]["filename"] == names[0]
    assert query.poll() is None
    assert not trap.exists()
    until(lambda: "Refusing to deserialize" in stand.log("query"), "the refusal is logged", 20)


class _Trap:
    """Creates a file when it is unpickled."""

    def __init__(self, file: str) -> None:
        self.file = file

    def __reduce__(self) -> tuple[object, tuple[str, str]]:
        return open, (self.file, "w")


def test_mutated_messages_are_answered_by_errors_and_no_worker_ends(stand: Stand) -> None:
    names = draw_folder(stand.products, 6)
    workers = [stand.worker(queue) for queue in ("embed", "index", "query")]
    stand.rebuild()
    app = Celery(broker=stand.environment["REDIS_URL"], backend=stand.environment["REDIS_URL"])
    prefix = {"global_keyprefix": "imgrec:"}
    app.conf.update(broker_transport_options=prefix, result_backend_transport_options=prefix)
    dice = random.Random(5)
    junk: list[Any] = [None, True, -1, 10**30, 0.5, "", "x" * 5000, "../../etc/passwd", [], {}]
    junk += [["a"] * 50, {"top_k": 5}, {"where": "a=b"}, {"where": [1]}, {"text": ["x"]}, "\0"]
    junk += [{"weight": "heavy"}, {"unheard": 1}, {"product": "../x"}, {"min_score": "high"}]
    tasks = {
        "imgrec.query_image": "query",
        "imgrec.classify_image": "query",
        "imgrec.pictures": "query",
        "imgrec.embed_shard": "embed",
        "imgrec.merge_shards": "index",
        "imgrec.nobody_knows_this": "query",
    }
    picture = (stand.products / names[0]).read_bytes()
    for number in range(300):
        task = dice.choice(list(tasks))
        args = [dice.choice([*junk, picture]) for _ in range(dice.randrange(4))]
        kwargs = {dice.choice(["data", "x"]): dice.choice(junk)} if dice.random() < 0.2 else {}
        if _unsendable(args, kwargs):
            continue
        kind = "msgpack" if number % 2 or picture in args else "json"
        app.send_task(task, args=args, kwargs=kwargs, queue=tasks[task], serializer=kind)
    answer = stand.query(stand.products / names[3])
    assert answer["matches"][0]["filename"] == names[3]
    draw_product(stand.products / "kind0" / "new.jpg", seed=901)
    assert stand.rebuild()["state"] == "published"
    assert [worker.poll() for worker in workers] == [None, None, None]


def _unsendable(args: list[Any], kwargs: dict[str, Any]) -> bool:
    """Tell what no serializer takes, so that nobody could send it."""
    return any(isinstance(each, int) and each > 2**63 for each in [*args, *kwargs.values()])
