"""Celery's side: a task gets its resources, calls the pipeline, records, returns.

`celery worker -Q embed` needs no `-A`: the default app reads celeryconfig.py. `-A workers` names
the same app.
"""

from typing import Any

from imgrec import use_own_packages

use_own_packages()  # Celery imports with the working folder first


def __getattr__(name: str) -> Any:
    # At first use: a command that only names a task needs no Celery.
    if name == "app":
        from workers.celery_app import app

        return app()
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
