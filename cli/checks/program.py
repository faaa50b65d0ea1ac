"""The row about the program itself."""

from __future__ import annotations

import platform
from importlib.metadata import version

import imgrec
from cli.checks.row import CheckContext, CheckFailed


def program(context: CheckContext) -> str:
    """The files of imgrec are its own."""
    if path := imgrec.replaced_file():
        raise CheckFailed(
            f"the file {path} below {imgrec.ROOT} was replaced or deleted by another package",
            "pip install --force-reinstall --no-deps FOLDER, where FOLDER is imgrec's checkout, in "
            "an environment of its own",
        )
    return f"imgrec {version('imgrec')} in {imgrec.ROOT}, Python {platform.python_version()}"
