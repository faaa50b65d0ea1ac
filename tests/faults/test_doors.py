"""Redis behind a password: the right one works, a wrong one is a sentence, none is shown."""

from __future__ import annotations

from pathlib import Path

from stand import Stand, draw_folder

SECRET = "s3cret-Pa55"


def start_locked(stand: Stand) -> None:
    """A Redis whose default user may do nothing, and an ACL user of imgrec's own keys."""
    stand.start_redis()
    client = stand.redis()
    client.execute_command(
        "ACL", "SETUSER", "shop", "on", f">{SECRET}", "~imgrec:*", "&*", "+@all", "-@admin"
    )
    client.execute_command("ACL", "SETUSER", "default", "off")


def secrets_in(stand: Stand) -> list[str]:
    logs = [file for file in stand.folder.glob("*.log") if SECRET in file.read_text()]
    titles = []
    for process in stand.processes:
        title = Path(f"/proc/{process.pid}/cmdline").read_bytes().decode()
        titles += [title] if SECRET in title else []
    return [*map(str, logs), *titles]


def test_an_acl_user_with_keys_of_its_own_is_enough(tmp_path: Path, model: Path) -> None:
    stand = Stand(tmp_path, model)
    try:
        start_locked(stand)
        stand.environment["REDIS_URL"] = f"redis://shop:{SECRET}@127.0.0.1:{stand.port}/0"
        good = draw_folder(stand.products, 12)
        stand.workers("embed", "index", "query")
        assert stand.rebuild()["state"] == "published"
        assert stand.query(stand.products / good[3])["matches"][0]["filename"] == good[3]
        assert stand.answer("cache", "list")["kinds"][0]["keys"] == 12
        assert secrets_in(stand) == []

        for url in (
            f"redis://shop:wrong-{SECRET}@127.0.0.1:{stand.port}/0",
            f"redis://nobody:{SECRET}@127.0.0.1:{stand.port}/0",
            f"redis://127.0.0.1:{stand.port}/0",
        ):
            for command in (
                ["enqueue-rebuild", str(stand.products)],
                ["query", str(stand.products / good[0]), "--wait"],
                ["cache", "list"],
            ):
                done = stand.imgrec(*command, REDIS_URL=url)
                assert done.returncode == 4, (url, command, done.stderr)
                assert done.stderr.startswith("Error: ")
                assert SECRET not in done.stderr + done.stdout
                assert "Traceback" not in done.stderr
    finally:
        stand.close()
