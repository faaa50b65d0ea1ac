"""`make demo`: the real commands on the bundled catalogue, on servers of its own.

Everything lands below data/demo and nothing is left running; `make serve-demo` serves the page
until Ctrl-C.
"""

from __future__ import annotations

import os
import shlex
import socket
import subprocess
import sys
from pathlib import Path

import click

import imgrec
from pipeline.cgroup import cores
from pipeline.names import printable

DATA = Path("data/demo")
PRODUCTS = Path("data/products")
MODEL = Path("models/imgrec-mini")
QUERIES = 2


@click.command()
@click.option("--serve", is_flag=True, help="Serve the page on the catalogue until Ctrl-C.")
@click.option("--port", default=8000, show_default=True, help="Port of the page.")
def main(serve: bool, port: int) -> None:
    """Index data/products, query it, show the matches; exit with the failing command's code."""
    environment = {
        **os.environ,
        "DATA_DIR": str(DATA),
        "DATABASE_URL": f"sqlite:///{DATA}/app.db",
        "REDIS_URL": f"redis://127.0.0.1:{_free_port()}/0",
        "EMBEDDING_MODEL": str(MODEL),
        "USE_BG_REMOVAL": "true",
        "REMBG_MODEL": "u2netp",
        "U2NET_HOME": str(Path("models/u2net").resolve()),
        # The steps follow each other, so that each worker may use every core while it works.
        "CPU_THREADS": str(cores()),
    }
    click.echo(f"Model: {MODEL} (small, bundled); background removal: u2netp; data: {DATA}")
    try:
        _run(environment, "up", "--detach")
        _run(environment, "enqueue-rebuild", str(PRODUCTS), "--wait")
        if serve:
            _run(environment, "import-catalogue", str(PRODUCTS / "products.csv"))
            _run(environment, "web", "--port", str(port))
            return
        images = sorted(PRODUCTS.rglob("*.jpg"))
        for number in range(QUERIES):
            image = images[number * len(images) // QUERIES]
            page = DATA / f"query-{number + 1}.html"
            _run(environment, "query", str(image), "--wait", "--html", str(page))
        _run(environment, "import-catalogue", str(PRODUCTS / "products.csv"))
        _run(environment, "query", "--text", "a red shoe", "--where", "price<90", "--wait")
        _run(environment, "classify", str(images[0]), "--wait")
    except KeyboardInterrupt:
        if not serve:
            raise
        return
    finally:
        _run(environment, "down")
    pages = " and ".join(str(DATA / f"query-{number + 1}.html") for number in range(QUERIES))
    click.echo(f"\nThe matches with their images: open {pages}.")
    click.echo(f"The page: `make serve-demo` serves it at http://127.0.0.1:{port} until Ctrl-C.")
    click.secho("\nWith your own photos and the default model:", bold=True)
    click.echo(
        "  .venv/bin/imgrec up                              # in one terminal\n"
        "  .venv/bin/imgrec enqueue-rebuild FOLDER --wait   # in another\n"
        "  .venv/bin/imgrec query PHOTO --wait --html matches.html\n"
        "The default models, openai/clip-vit-base-patch32 and u2net, are downloaded at first use.\n"
        f"Set EMBEDDING_MODEL={MODEL} to keep the small one. All settings: .env.example."
    )


def _run(environment: dict[str, str], *command: str) -> None:
    click.secho(f"\n$ imgrec {printable(shlex.join(command))}", bold=True)
    sys.stdout.flush()
    process = subprocess.run([sys.executable, "-P", imgrec.__file__, *command], env=environment)
    if process.returncode:
        sys.exit(process.returncode)


def _free_port() -> int:
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        port: int = listener.getsockname()[1]
    return port


if __name__ == "__main__":
    main()
