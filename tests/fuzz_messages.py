"""Task messages that no imgrec has sent, as they lie in Redis; each batch is made by its seed."""

from __future__ import annotations

import base64
import json
import pickle
import random
import uuid
import zlib
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml
from kombu.serialization import dumps
from kombu.utils.json import loads

from workers.routes import QUEUE_OF

JUNK: list[Any] = [
    *(None, True, False, -1, 0, 7, 2**63, 10**30, 0.5, 1e308, "", "x", "x" * 5000, "\0", "é😀"),
    *("../../etc/passwd", "9999-12-31T00:00:00", [], {}, [[]], ["a"] * 50, [None, None], [1, 1]),
    *({"a": 1}, {"__type__": "uuid", "__value__": 5}, {"text": ["x"]}, {"where": "a=b"}),
    *([{"task": "imgrec.merge_shards", "args": [], "kwargs": {}}], {"where": [" " * 900]}),
]
NOTHING_MORE = {"callbacks": None, "errbacks": None, "chain": None, "chord": None}


@dataclass(frozen=True)
class Sent:
    """One item for a queue; `task_id` is None where no answer can be given."""

    kind: str
    queue: str
    raw: bytes
    task_id: str | None


class Trap:
    """Creates a file when it is unpickled."""

    def __init__(self, file: Path) -> None:
        self.file = str(file)

    def __reduce__(self) -> tuple[object, tuple[str, str]]:
        return open, (self.file, "w")


def envelope(task: str, queue: str, body: Any, serializer: str = "msgpack") -> dict[str, Any]:
    """Return a message as Celery makes it."""
    content_type, encoding, data = dumps(body, serializer)
    data = data if isinstance(data, bytes) else data.encode()
    task_id = uuid.uuid4().hex
    headers = {
        "lang": "py",
        "task": task,
        "id": task_id,
        "shadow": None,
        "eta": None,
        "expires": None,
        "group": None,
        "group_index": None,
        "retries": 0,
        "timelimit": [None, None],
        "root_id": task_id,
        "parent_id": None,
        "argsrepr": "(...)",
        "kwargsrepr": "{}",
        "origin": "gen1@shop",
        "ignore_result": False,
        "replaced_task_nesting": 0,
        "stamped_headers": None,
        "stamps": {},
    }
    properties = {
        "correlation_id": task_id,
        "reply_to": uuid.uuid4().hex,
        "delivery_mode": 2,
        "delivery_info": {"exchange": "", "routing_key": queue},
        "priority": 0,
        "body_encoding": "base64",
        "delivery_tag": uuid.uuid4().hex,
    }
    return {
        "body": base64.b64encode(data).decode(),
        "content-encoding": encoding,
        "content-type": content_type,
        "headers": headers,
        "properties": properties,
    }


def bad_calls(picture: bytes, job_id: str) -> dict[str, list[tuple[list[Any], dict[str, Any]]]]:
    """Return calls of each task that cannot be right, whatever is around them."""
    deep: Any = []
    for _ in range(400):  # more than a parser's stack likes, less than msgpack refuses
        deep = [deep]
    questions: list[Any] = [{"unheard": 1}, {"where": [1]}, {"weight": "heavy"}, {"text": "\0"}]
    questions += [
        {"min_score": "high"},
        {"product": 5},
        [1],
        "text",
        7,
        {"where": [" " * 999] * 20},
    ]
    return {
        "imgrec.query_image": [
            *(([data, 3], {}) for data in (b"", b"no picture", "text", None, 5, [], {}, deep)),
            *(([picture, top], {}) for top in (0, -1, 10**9, "3", None, [3], True, 2.5, deep)),
            *(([picture, 3, question], {}) for question in questions),
            *(([], {}), ([picture], {}), ([picture, 3, {}, 4, 5], {}), ([picture, 3], {"x": 1})),
            ([], {"data": picture}),
        ],
        "imgrec.classify_image": [
            *(([data], {}) for data in (b"", b"no picture", "text", None, 5, [], {}, deep)),
            *(([picture, trained], {}) for trained in ("yes", 5, [], None, {"a": 1})),
            *(([], {}), ([picture, True, 3], {}), ([picture], {"unheard": 1})),
        ],
        "imgrec.pictures": [
            *(
                ([version, []], {})
                for version in ("v9999", "../../etc", None, 5, [], "v" + "1" * 300)
            ),
            *((["v0001", names], {}) for names in (None, 7, "kind0", {"a": 1})),
            *(([], {}), (["v0001"], {}), (["v0001", [], 3], {})),
        ],
        "imgrec.embed_shard": [
            *(([job, 0], {}) for job in ("nobody", None, 5, [], {}, "x\0y", "../x", "x" * 5000)),
            *(([job_id, n], {}) for n in (None, "0", -1, 2**40, 0.5, [], {}, True)),
            *(([], {}), ([job_id], {}), ([job_id, 0, 1], {}), ([job_id, 0], {"full": True})),
        ],
        "imgrec.merge_shards": [
            *(([job], {}) for job in ("nobody", None, 5, [], {}, "x\0y", "../x", "x" * 5000)),
            *(([], {}), ([job_id, 0], {}), ([], {"unheard": 1})),
        ],
    }


def mutated(seed: int, count: int, picture: bytes, job_id: str, trap: Path) -> Iterator[Sent]:
    """Yield the messages of a seed, all of them wrong.

    Args:
        trap: a file that exists afterwards if a message's code was run.
    """
    rng = random.Random(seed)
    calls = bad_calls(picture, job_id)
    for _ in range(count):
        task = rng.choice(list(calls))
        args, kwargs = rng.choice(calls[task])
        name = rng.choice(list(KINDS))
        message = envelope(task, QUEUE_OF[task], [args, kwargs, NOTHING_MORE])
        raw = KINDS[name](rng, message, trap)
        if raw is None:
            raw = json.dumps(message).encode()
        yield Sent(name, QUEUE_OF[task], raw, _answerable(raw))


def _answerable(raw: bytes) -> str | None:
    """Return the id that an answer can be stored under; what asks for no answer gets none."""
    try:
        headers = loads(raw)["headers"]  # Celery's parser also makes values of {"__type__": ...}
        wants_none = headers.get("ignore_result") is True
        task_id = headers["id"]
    except (ValueError, TypeError, KeyError, AttributeError, RecursionError):
        return None
    usable = isinstance(task_id, str) and task_id.isalnum() and task_id.isascii()
    return task_id if usable and len(task_id) <= 200 and not wants_none else None


Message = dict[str, Any]


def _call(rng: random.Random, message: Message, trap: Path) -> None:
    """Nothing but the call is wrong."""


def _field(rng: random.Random, message: Message, trap: Path) -> None:
    table = rng.choice((message, message["headers"], message["properties"]))
    key = rng.choice(list(table))
    what = rng.randrange(3)
    if what == 0:
        del table[key]
    else:
        table[key if what == 1 else f"x-{rng.randrange(99)}"] = rng.choice(JUNK)


def _fields(rng: random.Random, message: Message, trap: Path) -> None:
    for _ in range(rng.randrange(2, 6)):
        for part in ("headers", "properties"):
            if isinstance(message.get(part), dict) and message[part]:
                key = rng.choice(list(message[part]))
                if key != "id":
                    message[part][key] = rng.choice(JUNK)


def _unknown_task(rng: random.Random, message: Message, trap: Path) -> None:
    names = ("imgrec.nobody", "celery.chord_unlock", "celery.map", "os.system", "", "a" * 9000)
    message["headers"]["task"] = rng.choice(names)


def _wrong_queue(rng: random.Random, message: Message, trap: Path) -> None:
    wrong = {"imgrec.merge_shards": "imgrec.query_image"}
    message["headers"]["task"] = wrong.get(message["headers"]["task"], "imgrec.merge_shards")


def _pickle(rng: random.Random, message: Message, trap: Path) -> None:
    data = pickle.dumps([[Trap(trap)], {}, NOTHING_MORE])
    message["body"] = base64.b64encode(data).decode()
    kinds = (
        "application/x-python-serialize",
        "pickle",
        "application/json",
        "application/x-msgpack",
    )
    message["content-type"] = rng.choice(kinds)
    message["content-encoding"] = "binary"


def _yaml(rng: random.Random, message: Message, trap: Path) -> None:
    text = yaml.dump([[], {}, {}]) + f"\n- !!python/object/apply:builtins.open ['{trap}', 'w']\n"
    message["body"] = base64.b64encode(text.encode()).decode()
    message["content-type"] = rng.choice(("application/x-yaml", "yaml", "text/plain", "a/b"))


def _body(rng: random.Random, message: Message, trap: Path) -> None:
    shapes: list[Any] = [*JUNK, [[], {}], [[], [], {}], [5, {}, {}], {"args": [], "kwargs": {}}]
    shapes += [[[b"", 3], {}, {"callbacks": [{"task": "imgrec.merge_shards", "args": ["x"]}]}]]
    shapes += [[[b"", 3], {}, {"errbacks": 5}], [[b"", 3], {}, {"chain": [1]}], [[], {1: 2}, {}]]
    data = dumps([shape for shape in [rng.choice(shapes)] if shape != 10**30], "msgpack")[2]
    message["body"] = base64.b64encode(data[1:] if len(data) > 1 else data).decode()


def _broken_body(rng: random.Random, message: Message, trap: Path) -> None:
    body = message["body"]
    at = rng.randrange(len(body))
    others = (body[:at], body[:at] + "%%%" + body[at:], "=" * 9, "", "\ud800", body[::-1])
    message["body"] = rng.choice(others)
    if rng.random() < 0.5:
        message["content-type"] = "application/json"


def _bomb(rng: random.Random, message: Message, trap: Path) -> None:
    """A gigabyte in a megabyte."""
    message["body"] = base64.b64encode(_zeros()).decode()
    message["headers"]["compression"] = rng.choice(("application/x-gzip", "zlib", 5, []))


def _nested(rng: random.Random, message: Message, trap: Path) -> bytes:
    depth = rng.choice((500, 20_000, 200_000))
    text = json.dumps(message)[:-1] + ', "x": ' + "[" * depth + "]" * depth + "}"
    return text.encode()


def _raw(rng: random.Random, message: Message, trap: Path) -> bytes:
    whole = json.dumps(message).encode()
    place = rng.randrange(len(whole))
    flipped = bytearray(whole)
    flipped[place] ^= 1 << rng.randrange(8)
    items = (whole[:place], rng.randbytes(99), b"", b"[]", b"null", b"5", b'"x"', b"{}", b"NaN")
    return rng.choice((*items, bytes(flipped), pickle.dumps(Trap(trap)), whole.upper()))


_packed: list[bytes] = []


def _zeros() -> bytes:
    if not _packed:
        squeeze = zlib.compressobj(9)
        _packed.append(
            b"".join(squeeze.compress(bytes(1 << 20)) for _ in range(1024)) + squeeze.flush()
        )
    return _packed[0]


# Each changes a message in place, or returns what lies in Redis in its stead.
KINDS: dict[str, Callable[[random.Random, Message, Path], bytes | None]] = {
    "call": _call,
    "field": _field,
    "fields": _fields,
    "unknown task": _unknown_task,
    "wrong queue": _wrong_queue,
    "pickle": _pickle,
    "yaml": _yaml,
    "body": _body,
    "broken body": _broken_body,
    "bomb": _bomb,
    "nested": _nested,
    "raw": _raw,
}
