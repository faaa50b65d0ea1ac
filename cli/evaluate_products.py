"""`imgrec evaluate --products`: which model and which background removal find the right product."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

from cli.output import echo_err, print_json, print_table
from cli.progress import work_bar
from pipeline.errors import IndexMissing, WrongUse

if TYPE_CHECKING:
    from cli.wiring import Wiring
    from pipeline.evaluate.product_recall import Variant

REMOVALS = {"on": [True], "off": [False], "both": [True, False]}


def evaluate_products(
    wiring: Wiring,
    table: Path,
    folder: Path | None,
    models: tuple[str, ...],
    ks: tuple[int, ...],
    bg_removal: str,
    as_json: bool,
) -> None:
    """Measure each model with each way of background removal, and say which to take."""
    from pipeline.evaluate.product_recall import (
        Variant,
        advise,
        measure,
        read_photos,
        require_products,
    )
    from pipeline.evaluate.retrieval import list_folder
    from workers.resources import Resources

    settings = wiring.settings
    photos = read_photos(table)
    folder = folder or _published_folder(wiring)
    images, failures = list_folder(folder)
    for failure in failures:
        echo_err(f"{folder}/{failure.path}: {failure.reason}")
    catalogue = wiring.resources.products.catalogue()
    products = [catalogue.product_of(image.path) for image in images]
    require_products(photos, products, table)
    variants: list[Variant] = []
    for model in models or (settings.embedding_model,):
        chosen = settings.model_copy(update={"embedding_model": model})
        clip = Resources(chosen, wiring.dispatcher).clip
        for removal in REMOVALS[bg_removal]:
            variant = chosen.model_copy(update={"use_bg_removal": removal})
            embedder = Resources(variant, wiring.dispatcher, clip=clip).embedder
            name = f"{model}, background removal {'on' if removal else 'off'}"
            with work_bar(name, len(photos) + len(images), as_json) as advance:
                ranks, bad = measure(photos, folder, images, products, embedder, advance)
            for failure in bad:
                echo_err(f"{failure.path}: {failure.reason}")
            variants.append(Variant(model, removal, ranks, len(photos) - len(ranks.ranks)))
    advice = advise(variants)
    if as_json:
        reports = [variant.report(ks) for variant in variants]
        print_json({"catalogue": str(folder), "reports": reports, "advice": advice.object()})
        return
    _show([variant.report(ks) for variant in variants], folder, ks)
    echo_err(advice.sentence())


def _published_folder(wiring: Wiring) -> Path:
    """Return the folder that the published index was built from."""
    try:
        root = str(wiring.resources.versions.current().manifest["root"])
    except IndexMissing as error:
        raise IndexMissing(
            "No index was published yet: name the folder of the catalogue's images, imgrec "
            "evaluate FOLDER --products FILE."
        ) from error
    if not Path(root).is_dir():
        raise WrongUse(
            f"The published index was built from {root}, which is not a folder on this "
            "machine. Name the catalogue: 'imgrec evaluate FOLDER --products FILE'."
        )
    return Path(root)


def _show(reports: list[dict[str, Any]], folder: Path, ks: tuple[int, ...]) -> None:
    from cli.evaluate import figure

    rows = [
        [
            report["model"],
            "removed" if report["bg_removal"] else "kept",
            *(figure(report["recall"][str(k)], report["intervals"][str(k)]) for k in ks),
        ]
        for report in reports
    ]
    columns = ["model", "background", *(f"recall@{k}" for k in ks)]
    photos, products = reports[0]["photos"], reports[0]["products"]
    title = f"{photos} photos of {products} products against the catalogue {folder}"
    print_table(f"{title}; [95 % intervals]", columns, rows, set(columns[2:]))
