"""HTML pages that commands write with --html: where to, the frame, the images in them."""

from __future__ import annotations

import os
from html import escape
from pathlib import Path
from typing import Any

import click

from cli.output import echo_err
from cli.progress import work_bar
from cli.query_client import PendingQuery
from cli.wiring import Wiring
from pipeline.atomic_files import write_atomic
from pipeline.errors import ImgrecError
from workers.routes import PICTURES

IMAGES_AT_ONCE = 100  # that a worker makes small for one message

STYLE = """
:root { color-scheme: light dark; --line: #8883; --muted: #777; }
body { font: 15px/1.45 system-ui, sans-serif; margin: 2rem auto; max-width: 68rem; padding: 0 1rem }
h1 { font-size: 1.3rem; margin: 0 0 .2rem } p { color: var(--muted); margin: 0 0 1.2rem }
.matches { display: grid; grid-template-columns: repeat(auto-fill, minmax(11.5rem, 1fr));
  gap: 1rem; padding: 0; margin: 0; list-style: none }
.matches li { border: 1px solid var(--line); border-radius: .6rem; overflow: hidden }
img, .gone { object-fit: contain; background: #fff; display: block; width: 100%; height: 11.5rem }
.gone { display: grid; place-items: center; color: #777 }
.text { padding: .6rem .7rem } .name { overflow-wrap: anywhere; font-weight: 600 }
.fact { color: var(--muted); font-size: .85rem; overflow-wrap: anywhere }
.score { color: var(--muted); font-variant-numeric: tabular-nums }
"""


class PageFile(click.Path):
    """A file that can be written, as far as can be told before the work for it is done."""

    def __init__(self) -> None:
        super().__init__(dir_okay=False, path_type=Path)

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> Path:
        """Check that the file can be made, and so can the folders that are missing."""
        file = Path(os.fsdecode(super().convert(value, param, ctx)))
        try:
            if file.exists() and not file.is_file():
                self.fail(f"'{file}' is not a regular file.", param, ctx)
            folder = next(each for each in file.absolute().parents if each.exists())
        except OSError as error:  # e.g. a name that is too long
            self.fail(f"'{file}' cannot be written: {error.strerror}.", param, ctx)
        if not folder.is_dir():
            self.fail(f"'{folder}' is not a folder.", param, ctx)
        if not os.access(folder, os.W_OK | os.X_OK):
            self.fail(f"The folder '{folder}' cannot be written to.", param, ctx)
        return file


def write_html(file: Path, title: str, body: str, style: str = STYLE) -> None:
    """Write a self-contained page, without a script or a request to anywhere.

    Raises:
        ImgrecError: the file cannot be written.
    """
    page = f"""<!doctype html>
<html lang="en"><meta charset="utf-8"><meta name="viewport" content="width=device-width">
<title>{escape(title)}</title>
<style>{style}</style>
{body}
</html>
"""
    try:
        write_atomic(file, page.encode())
    except OSError as error:
        raise ImgrecError(f"The page '{file}' cannot be written: {error.strerror}.") from error
    echo_err(f"Wrote {file}.")


def thumbnail_of(thumbnail: str | None, name: str) -> str:
    """Return the element that shows a base64 JPEG, or that there is none."""
    if thumbnail:
        return f'<img src="data:image/jpeg;base64,{thumbnail}" alt="{escape(name)}">'
    return '<div class="gone">no image</div>'


def thumbnails(
    wiring: Wiring, version: str, filenames: list[str], timeout: float, local: bool, quiet: bool
) -> dict[str, str]:
    """Return small JPEGs, base64, of images of an index version, by file name; some may be missing.

    Query workers make the images small, or this process.

    Args:
        timeout: seconds to wait for each hundred.
        quiet: show no progress bar.

    Raises:
        ImgrecError: see `PendingQuery`.
    """
    found: dict[str, str] = {}
    with work_bar("thumbnails", len(filenames), quiet) as show:
        for start in range(0, len(filenames), IMAGES_AT_ONCE):
            args = (version, filenames[start : start + IMAGES_AT_ONCE])
            found |= PendingQuery(wiring, PICTURES, args, timeout, local).answer()
            show(min(start + IMAGES_AT_ONCE, len(filenames)))
    return found
