"""Where `imgrec import-catalogue` reads from: a file, or an address that is downloaded."""

from __future__ import annotations

import hashlib
import json
import re
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from cli.progress import work_bar

if TYPE_CHECKING:
    from pipeline.store.feeds import Origin
    from workers.resources import Resources


class FileOrAddress(click.ParamType[str]):
    """A file that exists, or an address of http or https."""

    name = "file or address"

    def convert(self, value: Any, param: Any, ctx: Any) -> str:
        if re.match(r"https?://", value, re.IGNORECASE):
            return str(value)
        return str(click.Path(exists=True, dir_okay=False).convert(value, param, ctx))


@contextmanager
def opened(
    resources: Resources,
    source: str,
    name: str,
    how: dict[str, Any],
    dry_run: bool,
    quiet: bool,
) -> Iterator[tuple[Path, Origin] | None]:
    """Yield the file to read and where it comes from; None for a feed that has not changed.

    Args:
        name: of the feed.
        quiet: show no progress bar.
        how: the options by which it is read: with others, an unchanged feed is imported again.
    """
    from pipeline.fetch.feed_file import download_feed, is_feed_address, unpacked
    from pipeline.store.feeds import Origin

    if not is_feed_address(source):
        with unpacked(Path(source), int(resources.settings.feed_max_bytes)) as file:
            yield file, Origin(name, source)
        return
    digest = hashlib.sha256(json.dumps([source, how], sort_keys=True).encode()).hexdigest()
    known = None if dry_run else resources.feeds.find(name)
    if known is not None and known.digest != digest:  # another address, or read otherwise
        known = None
    etag, last_modified = (known.etag, known.last_modified) if known else ("", "")
    with ExitStack() as stack:
        with work_bar("downloading", None, quiet):
            feed = stack.enter_context(
                download_feed(source, resources.settings, etag=etag, last_modified=last_modified)
            )
        if feed is None or (known is not None and known.sha256 == feed.sha256):
            yield None
            return
        shown = source.partition("?")[0]  # a query may hold a secret
        yield (
            feed.path,
            Origin(name, shown, digest, feed.sha256, feed.etag, feed.last_modified),
        )
