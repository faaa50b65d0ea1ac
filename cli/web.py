"""The command that serves the HTTP API."""

from __future__ import annotations

import logging

import click

from cli.output import echo_err
from cli.wiring import Wiring, pass_wiring
from pipeline.errors import SetupError

# What the extra `web` adds, by the names of its modules.
EXTRA = (
    "fastapi",
    "h11",
    "jinja2",
    "prometheus_client",
    "python_multipart",
    "starlette",
    "uvicorn",
)
SERVING = "Serving "  # begins the line by which 'imgrec up' knows that connections are accepted


@click.command()
@click.option("--host", default="127.0.0.1", show_default=True, help="Address to listen on.")
@click.option(
    "--port",
    default=8000,
    show_default=True,
    type=click.IntRange(0, 65_535),
    help="Port to listen on.",
)
@pass_wiring
def web(wiring: Wiring, host: str, port: int) -> None:
    """Serve the HTTP API and the page.

    Queries go to the workers, as those of 'imgrec query' do. Without API keys only this machine is
    served; 'imgrec keys create' makes one. Ctrl-C stops the server.
    """
    try:
        from web.server import serve
    except ModuleNotFoundError as error:
        if (error.name or "").partition(".")[0] not in EXTRA:
            raise
        raise SetupError(
            f"{error.name} is not installed: install imgrec with the extra 'web', `pip install "
            "'.[web]'` in its folder."
        ) from error
    logging.basicConfig(level=logging.INFO, format="%(asctime)s %(levelname)s %(message)s")
    serve(wiring.resources, host, port, lambda url: echo_err(f"{SERVING}{url}. Ctrl-C stops it."))
