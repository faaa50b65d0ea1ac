"""Sentences about folders that cannot be used."""

from __future__ import annotations

import errno
from pathlib import Path

import pytest

from pipeline.access import explain
from pipeline.settings import Settings


@pytest.mark.parametrize("code", [errno.EACCES, errno.EROFS, errno.ENOSPC])
def test_a_folder_that_is_gone_meanwhile_is_a_sentence_too(
    settings: Settings, tmp_path: Path, code: int
) -> None:
    error = OSError(code, "the reason", str(tmp_path / "data" / "gone" / "deep" / "file"))
    assert f"DATA_DIR ({settings.data_dir}) cannot be" in str(explain(error, settings))
