"""`imgrec evaluate-index`: measure the recall of the published index against exact search."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

import click

from cli.evaluate import Numbers, figure
from cli.output import echo_err, json_option, print_json, print_table
from cli.progress import work_bar
from cli.wiring import Wiring, pass_wiring
from pipeline.errors import BadImage

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

    from pipeline.index.versions import Version
    from workers.resources import Resources

INDEX_QUERIES = 1000  # when no folder is given


@click.command()
@click.argument("folder", required=False, type=click.Path(path_type=Path))
@click.option("--k", "ks", type=Numbers(), default="1,5,10", show_default=True, help="Values of k.")
@json_option
@pass_wiring
def evaluate_index(wiring: Wiring, folder: Path | None, ks: tuple[int, ...], as_json: bool) -> None:
    """Measure the recall of the published index against exact search.

    The queries are the images of FOLDER; without it, stored vectors with noise. Needs neither Redis
    nor workers.
    """
    measure_index(wiring.resources, folder, ks, as_json)


def measure_index(
    resources: Resources, folder: Path | None, ks: tuple[int, ...], as_json: bool
) -> None:
    """Measure the published index and print its recall."""
    from pipeline.evaluate.retrieval import intervals_by_k, recall_of_index
    from pipeline.index.faiss_index import noisy_queries

    # By its name: the index that this host follows may be a moment older.
    index = resources.live_index.version(resources.versions.current().name)
    version, vectors = index.version, index.version.vectors
    if folder is None:
        # Stored vectors would find themselves first whatever the index does.
        queries, source = noisy_queries(vectors, INDEX_QUERIES), "stored vectors with noise"
    else:
        queries, source = _embed_queries(resources, folder, version, as_json), str(folder)
    with work_bar("searching", None, as_json):
        recall = recall_of_index(lambda block, k: index.search(block, k)[1], vectors, queries, ks)
    factory = version.manifest["index"]["factory"]
    answer = {
        "index_version": version.name,
        "index": factory,
        "images": len(vectors),
        "queries": len(queries),
        "queries_from": source,
        "recall": {str(k): round(float(scores.mean()), 4) for k, scores in recall.items()},
        "intervals": intervals_by_k(recall),
    }
    if as_json:
        print_json(answer)
        return
    rows = [
        [f"recall@{k}", figure(answer["recall"][str(k)], answer["intervals"][str(k)])] for k in ks
    ]
    title = f"Index {version.name} ({factory}, {len(vectors)} images) against exact search, "
    print_table(f"{title}{len(queries)} queries: {source}", ["", "[95 % interval]"], rows, set())


def _embed_queries(
    resources: Resources, folder: Path, version: Version, quiet: bool
) -> NDArray[np.float32]:
    """Embed the images of a folder as queries of this version."""
    from pipeline.evaluate.retrieval import embed_folder

    fingerprint = resources.fingerprint
    version.require(fingerprint.id, fingerprint.summary)
    with work_bar(str(folder), 0, quiet) as advance:
        _, vectors, failures = embed_folder(folder, resources.embedder, advance)
    for failure in failures:
        echo_err(f"{folder}/{failure.path}: {failure.reason}")
    if not len(vectors):
        raise BadImage(f"No image below '{folder}' can be used.", "read")
    return vectors
