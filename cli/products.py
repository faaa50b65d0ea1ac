"""The command that reads a shop's own catalogue."""

from __future__ import annotations

from pathlib import Path

import click

from cli.agreement import require_agreement
from cli.output import echo, echo_err, json_option, print_json
from cli.wiring import Wiring, pass_wiring
from pipeline.errors import ImgrecError
from workers.routes import QUERY


@click.command("import-products")
@click.argument("file", type=click.Path(exists=True, dir_okay=False, path_type=Path))
@click.option("--replace", is_flag=True, help="Delete every product that is not in the file.")
@json_option
@pass_wiring
def import_products(wiring: Wiring, file: Path, replace: bool, as_json: bool) -> None:
    """Import product data from a CSV or JSON Lines file.

    FILE is a .csv file with a header, or a .jsonl file with one object on each line. The column
    'product_id' is required. The column 'image' names an image of the product, relative to the
    products folder; a product with several images has several rows. Without it, a product's images
    are the image of its name and those in the folder of its name. All other columns are shown in
    results and can be used with --where.
    """
    from pipeline.search.product_catalogue import read_products

    products, resources = read_products(file), wiring.resources
    require_agreement(resources, (QUERY,), "database")
    resources.products.put(products, replace=replace)
    catalogue = resources.products.catalogue()
    indexed = None
    try:
        paths = resources.versions.current().paths
    except ImgrecError:
        echo_err("No index yet: 'imgrec enqueue-rebuild FOLDER' creates one.")
    else:
        found = {catalogue.product_of(path) for path in paths}
        indexed = sum(product.product_id in found for product in products)
        strangers = [p.product_id for p in products if p.product_id not in found]
        if strangers:
            echo_err(
                f"{len(strangers)} of them have no image in the index, e.g. '{strangers[0]}'. "
                "A product_id is the path of an image without its suffix, or of a folder of "
                "images, unless the column 'image' names the images."
            )
    columns = list(dict.fromkeys(name for product in products for name in product.facts))
    answer = {
        "products": len(products),
        "images": sum(len(product.images) for product in products),
        "columns": columns,
        "total": len(catalogue.facts_json),
        "indexed": indexed,
    }
    if as_json:
        print_json(answer)
        return
    shown = f", {indexed} of them in the index" if indexed is not None else ""
    echo(
        f"Imported {len(products)} products{shown}; columns: {', '.join(columns) or 'none'}. "
        f"Products in total: {answer['total']}."
    )
