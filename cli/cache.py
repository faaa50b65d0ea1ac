"""Commands about the shared cache."""

from __future__ import annotations

import time
from dataclasses import asdict
from typing import TYPE_CHECKING, Any

import click

from cli.output import duration, echo, echo_err, json_option, print_json, print_table
from cli.progress import work_bar
from cli.wiring import Wiring, pass_wiring
from pipeline.errors import IndexMissing, SetupError
from pipeline.images.decode import DECODING

if TYPE_CHECKING:
    from pipeline.store.cache import KindFacts
    from workers.resources import Resources

ROWS_AT_ONCE = 1000


@click.group()
def cache() -> None:
    """List, clear or fill the shared cache.

    It holds the vectors of images by their content, query results, and the vectors of texts. All
    of it can be computed again. Nothing else in Redis is touched.
    """


@cache.command("list")
@json_option
@pass_wiring
def list_kinds(wiring: Wiring, as_json: bool) -> None:
    """Show the keys, bytes, ages and hit rate of the cache."""
    since, kinds = wiring.resources.shared_cache.describe()
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
            "-" if kind.hit_rate is None else f"{kind.hit_rate:.1%}",
        ]
        for kind in kinds
    ]
    start = "" if since is None else time.strftime(" since %Y-%m-%d %H:%M", time.localtime(since))
    columns = ["kind", "keys", "bytes", "newest", "oldest", "hits", "misses", "hit rate"]
    print_table(f"Cache, hits{start}", columns, rows, set(columns[1:]))


@cache.command()
@click.option(
    "--kind",
    type=click.Choice(["vectors", "results", "texts"]),
    help="Delete this kind only; default: all.",
)
@json_option
@pass_wiring
def clear(wiring: Wiring, kind: str | None, as_json: bool) -> None:
    """Delete cached data.

    Queues and results in the same Redis stay.
    """
    gone = wiring.resources.shared_cache.clear(kind)
    if as_json:
        print_json({"deleted": gone})
    else:
        echo(f"Deleted {gone} keys{f' of kind {kind}' if kind else ''}.")


@cache.command()
@json_option
@pass_wiring
def warm(wiring: Wiring, as_json: bool) -> None:
    """Cache the vectors of the published index and of the labels' texts."""
    from pipeline.classify.classifiers import text_matrix
    from pipeline.classify.labels import load_labels

    resources = wiring.resources
    resources.shared_cache.describe()  # one that is unavailable must be an error, not a warning
    vectors = _warm_vectors(resources, as_json)
    labels, texts = load_labels(resources.settings.labels_file), 0
    prompt_sets = [labels.category_prompts()]
    for category in (None, *labels.categories):
        for attribute in labels.attributes_of(category):
            prompt_sets.append(labels.attribute_prompts(category, attribute))
    clip = resources.clip
    try:
        with work_bar("texts", len(prompt_sets), as_json) as report:
            for number, prompts in enumerate(prompt_sets, 1):
                texts += len(text_matrix(prompts, clip, resources.known_texts))
                report(number)
    except SetupError as error:  # a model of images alone, which an index needs no other for
        echo_err(f"No texts were cached: {error}")
    if as_json:
        print_json({"vectors": vectors, "texts": texts})
    else:
        echo(f"The cache holds {vectors} vectors of the index and {texts} texts of labels.")


def _warm_vectors(resources: Resources, quiet: bool) -> int:
    try:
        version = resources.versions.current()
    except IndexMissing as error:
        echo_err(f"No vectors were cached: {error}")
        return 0
    if version.decoding < DECODING:
        echo_err(
            f"No vectors were cached: index {version.name} has vectors of an earlier release, "
            "which decoded some images otherwise. 'imgrec enqueue-rebuild FOLDER --full' makes new "
            "ones."
        )
        return 0
    digests = [digest.decode() for digest in version.sha256]
    with work_bar("vectors", len(digests), quiet) as report:
        for start in range(0, len(digests), ROWS_AT_ONCE):
            names = digests[start : start + ROWS_AT_ONCE]
            rows = version.vectors[start : start + ROWS_AT_ONCE]
            resources.cache.put_vectors(version.fingerprint, dict(zip(names, rows, strict=True)))
            report(start + len(names))
    return len(set(digests))


def _object(kind: KindFacts) -> dict[str, Any]:
    return {**asdict(kind), "hit_rate": None if kind.hit_rate is None else round(kind.hit_rate, 4)}
