"""`imgrec check` proves each thing, and says for each failure what to type."""

from __future__ import annotations

from stand import Stand, draw_folder


def checks(stand: Stand, *options: str, **more: str) -> tuple[int, dict[str, dict[str, str]]]:
    import json

    done = stand.imgrec("check", "--json", *options, **more)
    assert "Traceback" not in done.stderr
    found = json.loads(done.stdout)
    assert found["ok"] == (done.returncode == 0)
    return done.returncode, {row["name"]: row for row in found["checks"]}


def test_what_works_is_proved_and_what_does_not_comes_with_the_next_command(stand: Stand) -> None:
    code, rows = checks(stand)
    assert code == 4
    assert rows["redis"]["ok"]
    assert "noeviction" in rows["redis"]["found"]
    assert rows["model"]["ok"]
    assert rows["database"]["ok"]
    assert rows["device"]["ok"]
    assert not rows["index"]["ok"]
    assert rows["index"]["next"] == "imgrec enqueue-rebuild FOLDER --wait"
    assert not rows["worker on embed"]["ok"]
    assert "celery worker -Q embed" in rows["worker on embed"]["next"]

    draw_folder(stand.products, 9)
    stand.workers("embed", "index", "query")
    stand.rebuild()
    code, rows = checks(stand)
    assert (code, [row["name"] for row in rows.values() if not row["ok"]]) == (0, [])
    assert "9 images" in rows["index"]["found"]
    assert rows["worker on query"]["found"] == "1 answers"

    # Another preprocessing: the index is of another kind.
    code, rows = checks(stand, "--no-model", PREPROCESS_SIZE="64,64")
    assert (code, rows["index"]["ok"]) == (4, False)
    assert "64x64" in rows["index"]["found"]
    assert "model" not in rows

    stand.redis().config_set("maxmemory-policy", "allkeys-lru")
    code, rows = checks(stand, "--no-model")
    assert (code, rows["redis"]["ok"]) == (4, False)
    assert "config set maxmemory-policy noeviction" in rows["redis"]["next"]
    shown = stand.imgrec("check", "--no-model")
    assert shown.returncode == 4
    assert "FAIL redis" in shown.stdout
    assert "     next: redis-cli" in shown.stdout


def test_nothing_there_is_a_list_of_next_commands_and_no_secret(stand: Stand) -> None:
    stand.kill_redis()
    code, rows = checks(
        stand,
        REDIS_URL=f"redis://:s3cret@127.0.0.1:{stand.port}/0",
        EMBEDDING_MODEL="/nowhere/model",
        DATABASE_URL="postgresql://ann:s3cret@127.0.0.1:1/shop",
    )
    assert code == 4
    bad = {name for name, row in rows.items() if not row["ok"]}
    assert {"redis", "database", "model", "index", "worker on query"} <= bad
    assert all(rows[name]["next"] for name in bad)
    assert "s3cret" not in str(rows)
