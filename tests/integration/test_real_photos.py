"""Three thousand real photos through two embed workers: each in the index once, each finds itself.

The photos are not part of the project; IMGREC_PHOTOS names a folder, `../shared/clothing/train` is
looked at where it is not set.
"""

from __future__ import annotations

import os
from pathlib import Path

import pytest
from celery import Celery
from live_stack import ROOT, LiveStack

PHOTOS = Path(os.environ.get("IMGREC_PHOTOS", ROOT.parent / "shared" / "clothing" / "train"))
AT_ONCE = 64


@pytest.mark.slow
@pytest.mark.skipif(not PHOTOS.is_dir(), reason="no folder of photos on this machine")
def test_three_thousand_photos_are_indexed_once_each_and_find_themselves(stack: LiveStack) -> None:
    photos = sorted(
        file.relative_to(PHOTOS).as_posix() for file in PHOTOS.rglob("*.jpg") if file.is_file()
    )
    assert len(photos) >= 3000
    stack.workers("embed", "embed", "index", "query")
    stack.products = PHOTOS
    done = stack.answer("enqueue-rebuild", str(PHOTOS), "--wait", "--timeout", "600")
    assert (done["images"], done["embedded"], done["skipped"]) == (len(photos), len(photos), 0)
    assert stack.indexed() == photos

    app = Celery(broker=stack.environment["REDIS_URL"], backend=stack.environment["REDIS_URL"])
    prefix = {"global_keyprefix": "imgrec:"}
    app.conf.update(broker_transport_options=prefix, result_backend_transport_options=prefix)
    strangers = []
    for start in range(0, len(photos), AT_ONCE):
        sent = [
            (
                name,
                app.send_task(
                    "imgrec.query_image",
                    args=((PHOTOS / name).read_bytes(), 1),
                    queue="query",
                    serializer="msgpack",
                ),
            )
            for name in photos[start : start + AT_ONCE]
        ]
        for name, pending in sent:
            best = pending.get(timeout=120)["matches"][0]
            if best["filename"] != name:
                strangers.append((name, best))
    assert strangers == []
