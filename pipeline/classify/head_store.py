"""Trained heads on disk: write one in a single step, read it with suspicion, notice a new one.

    MODELS_DIR/<category>/<attribute>/model.pt, classes.json     an attribute of a category
    MODELS_DIR/category_head/model.pt, classes.json              the category itself

model.pt is the truth: tensors and plain values, read by `torch.load(weights_only=True)`, which runs
no code of the file. One rename swaps it. classes.json tells people and other programs what the head
says; it is written second, so a kill in between leaves an older one, which the next training mends.
"""

from __future__ import annotations

import io
import json
import math
import os
from collections.abc import Iterator
from dataclasses import replace
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import numpy as np
from filelock import FileLock

from pipeline.access import is_unavailable
from pipeline.atomic_files import write_atomic
from pipeline.classify.head import CATEGORY, CATEGORY_HEAD, Head, HeadName
from pipeline.errors import HeadBroken, SetupError
from pipeline.failpoints import failpoint
from pipeline.names import child, nfc, wrong_name

MODEL, CLASSES, LOSS = "model.pt", "classes.json", "loss.png"
TIME = "%Y-%m-%dT%H:%M:%S.%fZ"  # of one length, so that later is greater as text, too


def save_head(models: Path, name: HeadName, head: Head, loss_curve: bytes) -> Head:
    """Write the head, classes.json and its loss curve (a PNG); return it with its time.

    Raises:
        SetupError: the folder is not one, or cannot be made.
    """
    folder = name.place(models)
    try:
        folder.mkdir(parents=True, exist_ok=True)
        # Two trainings of one head take turns, so that a later time is a later file.
        with FileLock(folder / ".lock"):
            head = replace(head, trained_at=_later_than_before(folder))
            _write(folder, head, loss_curve)
    except OSError as error:
        if is_unavailable(error):
            raise
        raise SetupError(
            f"The head cannot be written to '{folder}': {error.strerror or error}."
        ) from error
    return head


def _later_than_before(folder: Path) -> str:
    """Return the time; later than that of the head before, whatever the clock says."""
    now = datetime.now(UTC)
    try:
        before = json.loads((folder / CLASSES).read_text(encoding="utf-8"))["trained_at"]
        previous = datetime.strptime(before, TIME).replace(tzinfo=UTC)
    except (OSError, ValueError, TypeError, KeyError):
        return now.strftime(TIME)
    return max(now, previous + timedelta(microseconds=1)).strftime(TIME)


def _write(folder: Path, head: Head, loss_curve: bytes) -> None:
    import torch

    facts = {
        "classes": list(head.classes),
        "fingerprint": head.fingerprint,
        "made_with": head.made_with,
        "trained_at": head.trained_at,
        "accuracy": head.accuracy,
        "images": head.images,
        "temperature": head.temperature,
    }
    tensors = {"weight": torch.from_numpy(head.weight), "bias": torch.from_numpy(head.bias)}
    buffer = io.BytesIO()
    torch.save({**tensors, **facts}, buffer)
    write_atomic(folder / MODEL, buffer.getvalue())
    failpoint("head.between")
    text = json.dumps(facts, ensure_ascii=False, indent=2) + "\n"
    write_atomic(folder / CLASSES, text.encode())
    write_atomic(folder / LOSS, loss_curve)


def load_head(models: Path, name: HeadName) -> Head:
    """Read a head and check it against its classes.json.

    Raises:
        HeadBroken: a file cannot be read or contradicts the other; the sentence has the way out.
    """
    folder = name.place(models)
    # Before model.pt, in the order opposite to writing: then it is never the newer one because a
    # training ended meanwhile.
    said = _read_classes(folder / CLASSES, name)
    head = _read_model(folder / MODEL, name)
    if said is not None:
        classes, trained_at = said
        if trained_at > head.trained_at or (
            trained_at == head.trained_at and classes != list(head.classes)
        ):
            reason = f"it was not written with the {MODEL} beside it"
            raise _broken(folder / CLASSES, name, reason)
    return head


def list_heads(models: Path) -> list[HeadName]:
    """Name every head below a folder, the category head first."""
    names = [CATEGORY] if (models / CATEGORY.folder / MODEL).is_file() else []
    for category in _names(models):
        names += _heads_of(models, category)
    return names


class HeadStore:
    """The heads below a folder; one that was trained again is read again at the next call."""

    def __init__(self, models: Path) -> None:
        self._models = models
        self._read: dict[HeadName, tuple[tuple[int, int, int], Head]] = {}

    def of_category(self, category: str) -> dict[str, Head]:
        """Return the heads of a category by attribute.

        Raises:
            HeadBroken: one of them cannot be read.
        """
        heads = {name: self._get(name) for name in _heads_of(self._models, category)}
        return {name.attribute: head for name, head in heads.items() if head is not None}

    def category_head(self) -> Head | None:
        """Return the head that tells categories apart, where there is one.

        Raises:
            HeadBroken: it cannot be read.
        """
        return self._get(CATEGORY)

    def _get(self, name: HeadName) -> Head | None:
        try:
            stat = (name.place(self._models) / MODEL).stat()
        except FileNotFoundError:
            return None
        # Every training makes a new file, so one of the three differs. Asked for before reading:
        # a head that is swapped in between is read once more, and never kept under the wrong key.
        key = (stat.st_mtime_ns, stat.st_ino, stat.st_size)
        entry = self._read.get(name)
        if entry is not None and entry[0] == key:
            return entry[1]
        head = load_head(self._models, name)
        self._read[name] = (key, head)
        return head


def _names(folder: Path) -> Iterator[str]:
    if folder.is_dir():
        names = {nfc(entry.name) for entry in os.scandir(folder)}
        yield from sorted(name for name in names if not wrong_name(name))


def _heads_of(models: Path, category: str) -> list[HeadName]:
    if category == CATEGORY_HEAD or wrong_name(category):
        return []
    return [
        HeadName(category, attribute)
        for attribute in _names(child(models, category))
        if (HeadName(category, attribute).place(models) / MODEL).is_file()
    ]


def _read_classes(file: Path, name: HeadName) -> tuple[list[str], str] | None:
    """Return classes and time; None where a kill left a first model.pt alone."""
    try:
        said = json.loads(file.read_text(encoding="utf-8"))
        classes, trained_at = said["classes"], said["trained_at"]
        if not isinstance(classes, list) or not isinstance(trained_at, str):
            raise TypeError
    except FileNotFoundError:
        return None
    except OSError as error:
        if is_unavailable(error):
            raise
        raise _broken(file, name, f"it cannot be read ({error.strerror})") from error
    except (ValueError, TypeError, KeyError) as error:
        raise _broken(
            file, name, "it is not a JSON object with 'classes' and 'trained_at'"
        ) from error
    return classes, trained_at


def _read_model(file: Path, name: HeadName) -> Head:
    import torch

    try:
        content = torch.load(file, map_location="cpu", weights_only=True)
    except OSError as error:
        if is_unavailable(error):
            raise
        raise _broken(file, name, f"it cannot be read ({error.strerror})") from error
    except Exception as error:  # whatever a broken or hostile file does to torch
        raise _broken(file, name, "it is not a file of tensors and plain values") from error
    try:
        return _checked(content)
    except (ValueError, TypeError, KeyError, AttributeError, RuntimeError) as error:
        raise _broken(file, name, "its content is not a head") from error


def _checked(content: dict[str, Any]) -> Head:
    head = Head(
        weight=content["weight"].float().numpy(),
        bias=content["bias"].float().numpy(),
        temperature=float(content["temperature"]),
        classes=tuple(content["classes"]),
        fingerprint=content["fingerprint"],
        made_with=content["made_with"],
        accuracy=float(content["accuracy"]),
        images=int(content["images"]),
        trained_at=content["trained_at"],
    )
    count = len(head.classes)
    sound = (
        count >= 2
        and len(set(head.classes)) == count
        and all(isinstance(label, str) and not wrong_name(label) for label in head.classes)
        and head.weight.ndim == 2
        and len(head.weight) == count
        and head.bias.shape == (count,)
        and bool(np.isfinite(head.weight).all() and np.isfinite(head.bias).all())
        and math.isfinite(head.temperature)
        and head.temperature > 0
        and all(isinstance(t, str) for t in (head.fingerprint, head.made_with, head.trained_at))
    )
    if not sound:
        raise ValueError
    return head


def _broken(file: Path, name: HeadName, reason: str) -> HeadBroken:
    return HeadBroken(
        f"The trained head's file '{file}' cannot be used: {reason}; train it again with "
        f"'{name.command}'."
    )
