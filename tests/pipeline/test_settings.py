"""Settings come from the environment, then from .env; a wrong one is named, a secret never."""

from __future__ import annotations

import errno
import os
from collections.abc import Iterator
from pathlib import Path

import pytest
from pydantic import ValidationError

from pipeline.cgroup import cores
from pipeline.errors import ServerUnavailable, WrongUse
from pipeline.renamed_settings import RENAMED
from pipeline.settings import GIB, MIB, Settings, load_settings
from pipeline.store.database import Database
from pipeline.urls import without_password

NAMES = [name.upper() for name in (*Settings.model_fields, *RENAMED)]


@pytest.fixture(autouse=True)
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """A working folder without a .env and an environment without settings."""
    monkeypatch.chdir(tmp_path)
    for name in NAMES:
        monkeypatch.delenv(name, raising=False)
    load_settings.cache_clear()
    yield tmp_path
    load_settings.cache_clear()


def test_the_environment_wins_over_the_file_and_the_file_over_the_default(
    folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (folder / ".env").write_text("TOP_K=7\nSHARD_SIZE=99\n# a comment\nNOT_OURS=1\n")
    monkeypatch.setenv("TOP_K", "9")
    settings = load_settings()
    assert (settings.top_k, settings.shard_size, settings.embed_batch_size) == (9, 99, 32)


def test_a_byte_order_mark_hides_no_setting(folder: Path) -> None:
    """Editors of Windows write one."""
    (folder / ".env").write_text("TOP_K=7\nSHARD_SIZE=99\n", encoding="utf-8-sig")
    assert (load_settings().top_k, load_settings().shard_size) == (7, 99)


@pytest.mark.parametrize(
    ("data", "words"),
    [
        ("TOP_K=7\n".encode("utf-16"), "is UTF-16, not UTF-8"),  # PowerShell's >
        ("DATA_DIR=/srv/größe\n".encode("latin-1"), "is not UTF-8"),
    ],
)
def test_an_env_file_in_another_encoding_is_a_sentence(
    folder: Path, data: bytes, words: str
) -> None:
    (folder / ".env").write_bytes(data)
    with pytest.raises(WrongUse, match=f"^The settings file .env of the working folder {words}: "):
        load_settings()


@pytest.mark.parametrize("error", [errno.EACCES, errno.EIO])
def test_an_env_file_that_cannot_be_read_is_a_sentence(
    folder: Path, monkeypatch: pytest.MonkeyPatch, error: int
) -> None:
    (folder / ".env").write_text("TOP_K=7\n")

    def refuse(*args: object, **options: object) -> None:
        raise OSError(error, os.strerror(error), ".env")

    monkeypatch.setattr("dotenv.main.DotEnv.dict", refuse)
    with pytest.raises(WrongUse, match=f"cannot be read: {os.strerror(error)}"):
        load_settings()


def test_an_empty_value_is_the_default(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TOP_K", "")
    assert load_settings().top_k == 5


def test_the_example_file_is_the_defaults(folder: Path) -> None:
    example = Path(__file__).parents[2] / ".env.example"
    (folder / ".env").write_text(example.read_text())
    assert load_settings() == Settings(_env_file=None)


def test_settings_are_read_once_and_cannot_be_changed(monkeypatch: pytest.MonkeyPatch) -> None:
    settings = load_settings()
    monkeypatch.setenv("TOP_K", "9")
    assert load_settings() is settings
    with pytest.raises(ValueError, match="frozen"):
        settings.top_k = 3


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("TOP_K", "0"),
        ("TOP_K", "five"),
        ("DEVICE", "tpu"),
        ("EMBED_BATCH_SIZE", "0"),
        ("PREPROCESS_SIZE", "224"),
        ("PREPROCESS_SIZE", "224,224,3"),
        ("PREPROCESS_SIZE", "0,0"),
        ("PREPROCESS_SIZE", "100000,100000"),
        ("PREPROCESS_PADDING", "-0.1"),
        ("PREPROCESS_PADDING", "2"),
        ("PREPROCESS_BG_COLOR", "white"),
        ("PREPROCESS_BG_COLOR", "0,0,256"),
        ("USE_BG_REMOVAL", "perhaps"),
        ("KEEP_VERSIONS", "1"),
        ("LEASE_S", "0"),
        ("RECONCILE_S", "inf"),
        ("RECONCILE_S", "1e10"),
        ("FEED_TIMEOUT_S", "1e10"),
        ("HUNG_AFTER_S", "nan"),
        ("RATE_LIMIT", "inf"),
        ("MAX_IMAGE_BYTES", "1023"),
        ("WORKER_MAX_MEMORY", "-1"),
        ("DATABASE_URL", "mysql://shop:secret@host/db"),
        ("REDIS_URL", "http://:secret@host"),
        ("REDIS_URL", "redis://:secret@127.0.0.1:port/0"),
        ("CACHE_URL", "redis://[::1/0"),
        ("VECTOR_URL", "postgres:shop:secret@host/db"),
        ("VECTOR_READ_URLS", "postgres:shop:secret@host/db"),
        ("VECTOR_READ_URLS", "postgresql://host/db, postgres:shop:secret@host/db"),
    ],
)
def test_a_value_that_cannot_work_is_refused_with_its_name_and_without_a_secret(
    monkeypatch: pytest.MonkeyPatch, name: str, value: str
) -> None:
    monkeypatch.setenv(name, value)
    with pytest.raises(WrongUse, match=f"The setting {name} cannot be used: ") as caught:
        load_settings()
    assert caught.value.exit_code == 2
    assert "secret" not in str(caught.value)
    assert "\n" not in str(caught.value)


def test_a_path_begins_at_home_where_it_begins_with_a_tilde(
    monkeypatch: pytest.MonkeyPatch, folder: Path
) -> None:
    """A shell replaces it in a variable, and nobody does in .env."""
    monkeypatch.setenv("HOME", str(folder / "home"))
    lines = ["DATA_DIR=~/data", "MODELS_DIR=~/heads", "U2NET_HOME=~/u2net", "LABELS_FILE=~/l.toml"]
    (folder / ".env").write_text("\n".join(lines))
    settings = load_settings()
    assert settings.data_dir == folder / "home" / "data"
    assert settings.models_dir == folder / "home" / "heads"
    assert settings.u2net_home == str(folder / "home" / "u2net")
    assert settings.labels_file == str(folder / "home" / "l.toml")


def test_a_secret_of_standard_webhooks_is_base64(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("WEBHOOK_SECRET", "whsec_hunter2hunter2hunter2!")
    with pytest.raises(WrongUse, match="base64 is required behind whsec_") as caught:
        load_settings()
    assert "hunter2" not in str(caught.value)
    monkeypatch.setenv("WEBHOOK_SECRET", "whsec_aHVudGVyMmh1bnRlcjJodW50ZXIy")
    load_settings.cache_clear()
    assert load_settings().webhook_secret.startswith("whsec_")


@pytest.mark.parametrize(
    "name", ["CUTOUT_CACHE_BYTES", "MAX_IMAGE_BYTES", "WORKER_MAX_MEMORY", "INDEX_MEMORY"]
)
def test_every_size_takes_a_unit_or_plain_bytes(monkeypatch: pytest.MonkeyPatch, name: str) -> None:
    for text, size in (
        ("2GiB", 2 * GIB),
        ("2 gib", 2 * GIB),
        ("1.5MiB", 3 * MIB // 2),
        ("4096", 4096),
    ):
        monkeypatch.setenv(name, text)
        load_settings.cache_clear()
        assert getattr(load_settings(), name.lower()) == size
    for text, reason in (
        ("plenty", "a size in bytes is required, e.g. 2GiB or 512MB"),
        ("2 apples", "a size in bytes is required"),
        ("99999999EiB", "larger than any memory or disk"),
    ):
        monkeypatch.setenv(name, text)
        load_settings.cache_clear()
        with pytest.raises(WrongUse, match=f"The setting {name} cannot be used: .*{reason}"):
            load_settings()


def test_a_worker_without_a_limit_is_not_a_worker_with_the_default_limit(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    assert load_settings().worker_max_memory is None
    monkeypatch.setenv("WORKER_MAX_MEMORY", "0")
    load_settings.cache_clear()
    assert load_settings().worker_max_memory == 0


OLD_NAMES = [
    ("PRECISION", "MODEL_PRECISION", "fp32"),
    ("PREPARED_CACHE_BYTES", "CUTOUT_CACHE_BYTES", "4096"),
    ("SHARD_WINDOW", "MAX_SHARDS_IN_FLIGHT", "7"),
    ("STALL_S", "HUNG_AFTER_S", "7"),
    ("MAX_ATTEMPTS", "SHARD_MAX_ATTEMPTS", "7"),
]


def test_every_renamed_setting_is_tested() -> None:
    assert {(old, new) for old, new, _ in OLD_NAMES} == {
        (old.upper(), new.upper()) for old, new in RENAMED.items()
    }


@pytest.mark.parametrize("place", ["environment", "file"])
@pytest.mark.parametrize(("old", "new", "value"), OLD_NAMES)
def test_the_old_name_of_a_setting_works_and_says_so_once(
    folder: Path,
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
    place: str,
    old: str,
    new: str,
    value: str,
) -> None:
    if place == "file":
        (folder / ".env").write_text(f"{old}={value}\n")
    else:
        monkeypatch.setenv(old, value)
    settings = load_settings()
    assert str(getattr(settings, new.lower())).removesuffix(".0") == value
    load_settings()
    assert (
        caplog.messages.count(
            f"{old} was renamed to {new}; the old name works until the next release."
        )
        == 1
    )


@pytest.mark.parametrize("old_place", ["environment", "file"])
@pytest.mark.parametrize("new_place", ["environment", "file"])
def test_the_new_name_of_a_setting_wins_over_the_old_one(
    folder: Path,
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
    old_place: str,
    new_place: str,
) -> None:
    lines = ""
    for place, line in ((old_place, "STALL_S=7"), (new_place, "HUNG_AFTER_S=8")):
        if place == "file":
            lines += f"{line}\n"
        else:
            monkeypatch.setenv(*line.split("="))
    (folder / ".env").write_text(lines)
    assert load_settings().hung_after_s == 8
    assert caplog.messages == [
        "STALL_S was renamed to HUNG_AFTER_S; both are set and differ: HUNG_AFTER_S is used."
    ]


def test_a_folder_of_weights_from_the_file_reaches_rembg(
    folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """rembg reads U2NET_HOME from the environment only."""
    monkeypatch.setattr(os, "environ", dict(os.environ))
    (folder / ".env").write_text("U2NET_HOME=/weights\n")
    load_settings()
    assert os.environ["U2NET_HOME"] == "/weights"


def test_compute_threads_default_to_half_of_the_cores_and_at_least_one() -> None:
    assert Settings(_env_file=None, cpu_threads=3).threads == 3
    assert Settings(_env_file=None).threads == max(1, cores() // 2) >= 1


@pytest.mark.parametrize(
    "url",
    [
        "redis://:secret@host:6379/0",
        "redis://user:secret@host/0",
        "redis://:se@secret@host/0",
        "redis://:se/secret@host/0",
        "redis://host:6379/0?password=secret&db=1",
        "postgresql://shop:secret@host/db",
        "postgresql://shop:secret@one,two/db",
        "postgresql:///db?host=/run&user=shop&password=secret",
    ],
)
def test_no_password_is_ever_shown(url: str) -> None:
    shown = without_password(url)
    assert "secret" not in shown
    assert shown.startswith(url[:8])


def test_an_address_without_a_password_is_shown_as_it_is() -> None:
    for url in ("redis://127.0.0.1:6379/0", "postgresql:///db?host=/run", "redis://host"):
        assert without_password(url) == url


@pytest.mark.parametrize(
    "url",
    [
        "postgresql://shop:sec%zzret@127.0.0.1/db",
        "postgresql://shop:sec%zzret@[::1/db",
        "postgresql://shop:sec%7Aret@127.0.0.1:9/db?bogus=1",
    ],
)
def test_an_address_that_no_postgresql_can_have_is_a_sentence(url: str) -> None:
    with (
        pytest.raises(WrongUse, match="The setting DATABASE_URL") as caught,
        Database(url).transaction(),
    ):
        pass
    assert "sec%" not in str(caught.value)
    assert caught.value.__cause__ is None


def test_a_postgresql_that_is_away_is_a_sentence() -> None:
    url = "postgresql://shop:secret@127.0.0.1:9/db"
    with (
        pytest.raises(ServerUnavailable, match=r"postgresql://shop:\*\*\*@127\.0\.0\.1:9/db"),
        Database(url).transaction(),
    ):
        pass


@pytest.mark.parametrize(
    ("value", "directives"),
    [
        ("noai, NoImageAI", {"noai", "noimageai"}),
        ("noindex", {"noindex"}),
        ("off", set()),
    ],
)
def test_directives_of_robots_are_words(value: str, directives: set[str]) -> None:
    assert Settings(_env_file=None, fetch_robots=value).robots_directives == directives


@pytest.mark.parametrize("value", ["noai;noimageai", "no ai", ",", "1"])
def test_other_directives_are_refused(value: str) -> None:
    with pytest.raises(ValidationError, match="words separated by commas"):
        Settings(_env_file=None, fetch_robots=value)


@pytest.mark.parametrize("value", ["*", "*,10.1.0.0/16", "cdn.example,*.shop.example"])
def test_feeds_may_come_from_every_public_host(value: str) -> None:
    assert Settings(_env_file=None, fetch_hosts=value).fetch_hosts == value


@pytest.mark.parametrize("setting", ["image_url_hosts", "webhook_hosts"])
def test_what_strangers_name_never_may(setting: str) -> None:
    with pytest.raises(ValidationError, match="neither a host"):
        Settings(_env_file=None, **{setting: "*"})
