"""Where a secret could be seen: logs, process lists. Nobody's own environment is looked into."""

from __future__ import annotations

from pathlib import Path
from urllib.parse import quote

from live_stack import LiveStack

# Characters that an address must write as %XX, so that a secret has two forms.
SECRET = "s3cret-Pa55"
ODD_SECRET = "s3cret/P@:55 %?"
ODD_QUOTED = quote(ODD_SECRET, safe="")


def places_of(secret: str, stack: LiveStack, *folders: Path) -> list[str]:
    """Return every log of the stack and every process here that shows a secret in any form.

    Args:
        folders: whose files are searched, too.
    """
    forms = {secret, quote(secret, safe=""), quote(secret), repr(secret)[1:-1]}
    files = [*stack.folder.glob("*.log"), *stack.data.glob("run/*")]
    files += [file for folder in folders for file in folder.iterdir()]
    found = [
        str(file)
        for file in files
        if file.is_file() and any(form in file.read_text(errors="replace") for form in forms)
    ]
    for entry in Path("/proc").glob("[0-9]*"):
        try:
            title = (entry / "cmdline").read_bytes().decode(errors="replace")
        except OSError:
            continue
        if any(form in title for form in forms):
            found.append(f"{entry}: {title}")
    return found
