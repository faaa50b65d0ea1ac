"""Celery's app in processes that imgrec starts itself: it reads imgrec's own celeryconfig.py.

`celery worker` reads the celeryconfig.py that Celery finds: the working folder's before ours. A
command of imgrec may be called in a folder with any content, and takes no code from it.
"""

from __future__ import annotations

import importlib
import sys
from collections.abc import Sequence
from typing import Any, NoReturn

from celery import Celery, _state, current_app
from celery.loaders.app import AppLoader


class OwnLoader(AppLoader):
    """Imports as Python does, without the working folder that Celery's loaders put first."""

    def import_from_cwd(self, module: str, imp: Any = None, package: str | None = None) -> Any:
        return (imp or importlib.import_module)(module, package=package)


def app() -> Celery:
    """Return this process's app: the one of `celery worker`, or the first time, our own."""
    if _state.default_app is None:
        own = Celery("imgrec", loader=OwnLoader, set_as_current=False)
        own.config_from_object(importlib.import_module("celeryconfig"))
        own.set_default()
    return current_app._get_current_object()


def run_celery(args: Sequence[str]) -> NoReturn:
    """Run the command line of Celery on our own app."""
    from celery.bin.celery import main

    app()
    sys.argv = ["celery", *args]
    sys.exit(main())
