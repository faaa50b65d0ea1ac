"""Commands about the shared cache."""

from __future__ import annotations

import time
from typing import TYPE_CHECKING, Any

import click

from cli.output import duration, echo_err, json_option, print_json, print_table
from pipeline.errors import ImgrecError
from pipeline.settings import load_settings

if TYPE_CHECKING:
    from pipeline.store.cache import Cache

ROWS_AT_ONCE = 1000


@click.group()
def cache() -> None:
    """Look into the shared cache, clear it, fill it.

    It holds vectors by image content, query results, and vectors of texts. All of it can be
    computed again; nothing else in Redis is touched.
    """


@cache.command("list")
@json_option
def list_kinds(as_json: bool) -> None:
    """Show what is kept: keys, bytes, ages, hit rate."""
    since, kinds = _cache().describe()
    if as_json:
        print_json({"since": since, "kinds": [_object(kind) for kind in kinds]})
        return
    rows = [
        [
            kind.kind,
            kind.keys,
            kind.bytes,
            "-" if kind.newest_s is None else duration(kind.newest_s),
            "-" if kind.oldest_s is None else duration(kind.oldest_s),
            kind.hits,
            kind.misses,
            f"{kind.hits / asked:.1%}" if (asked := kind.hits + kind.misses) else "-",
        ]
        for kind in kinds
    ]
    start = "" if since is None else time.strftime(" since %Y-%m-%d %H:%M", time.localtime(since))
    columns = ["kind", "keys", "bytes", "newest", "oldest", "hits", "misses", "hit rate"]
    print_table(f"Cache, hits{start}", columns, rows, set(columns[1:]))


@cache.command()
@click.option(
    "--kind", type=click.Choice(["vectors", "results", "texts"]), help="Only this; default: all."
)
@json_option
def clear(kind: str | None, as_json: bool) -> None:
    """Delete what is kept; queues and answers in the same Redis stay."""
    gone = _cache().clear(kind)
    if as_json:
        print_json({"deleted": gone})
    else:
        click.echo(f"Deleted {gone} keys{f' of kind {kind}' if kind else ''}.")


@cache.command()
@json_option
def warm(as_json: bool) -> None:
    """Fill in the published index's vectors and the texts of classify's labels."""
    from pipeline.classify.classifiers import text_matrix
    from pipeline.classify.labels import load_labels
    from workers import resources

    settings = load_settings()
    held = _cache()
    held.describe()  # a cache that is away must be an error here, not a warning
    vectors = _warm_vectors(held)
    labels, texts = load_labels(settings.labels_file), 0
    known = resources.KnownTexts(resources.fingerprint().id)
    asked = [labels.category_prompts()]
    for category in (None, *labels.categories):
        for attribute in labels.attributes_of(category):
            asked.append(labels.attribute_prompts(category, attribute))
    for prompts in asked:
        texts += len(text_matrix(prompts, resources.clip(), known))
    if as_json:
        print_json({"vectors": vectors, "texts": texts})
    else:
        click.echo(f"The cache holds {vectors} vectors of the index and {texts} texts of labels.")


def _warm_vectors(held: Cache) -> int:
    from workers import resources

    try:
        version = resources.versions().current()
    except ImgrecError as error:
        echo_err(f"No vectors: {error}")
        return 0
    digests = [digest.decode() for digest in version.sha256]
    for start in range(0, len(digests), ROWS_AT_ONCE):
        names = digests[start : start + ROWS_AT_ONCE]
        rows = version.vectors[start : start + ROWS_AT_ONCE]
        held.put_vectors(version.fingerprint, dict(zip(names, rows, strict=True)))
    return len(set(digests))


def _cache() -> Cache:
    from pipeline.store.cache import Cache

    settings = load_settings()
    url = settings.cache_url or settings.redis_url
    return Cache(url, settings.vector_ttl_s, settings.result_ttl_s)


def _object(kind: Any) -> dict[str, Any]:
    asked = kind.hits + kind.misses
    return {
        "kind": kind.kind,
        "keys": kind.keys,
        "bytes": kind.bytes,
        "oldest_s": kind.oldest_s,
        "newest_s": kind.newest_s,
        "hits": kind.hits,
        "misses": kind.misses,
        "hit_rate": round(kind.hits / asked, 4) if asked else None,
    }
