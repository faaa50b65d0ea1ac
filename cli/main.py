"""`imgrec`: the list of commands, and the one place where an error becomes an exit code.

Commands are imported when they run, so that `imgrec --help` needs nothing but click.
"""

from __future__ import annotations

import io
import logging
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from importlib import import_module
from typing import TYPE_CHECKING, Any

import click

if TYPE_CHECKING:
    from click.shell_completion import CompletionItem

    from cli.wiring import Wiring

COMMANDS = {
    # name: (module, attribute, one line of help; a test compares it with the command's own)
    "up": ("cli.up", "up", "Start Redis and the workers on this machine."),
    "down": ("cli.up", "down", "Stop what 'imgrec up --detach' started."),
    "enqueue-rebuild": ("cli.rebuild", "enqueue_rebuild", "Index a folder of product images."),
    "status": ("cli.rebuild", "status", "Show the progress of a rebuild."),
    "jobs": ("cli.rebuild", "jobs", "List the rebuilds."),
    "failures": (
        "cli.rebuild",
        "failures",
        "List the images that a rebuild left out or warned about.",
    ),
    "cancel": ("cli.rebuild", "cancel", "Cancel a rebuild; the published index stays."),
    "add": ("cli.live", "add", "Add photos to the published index."),
    "remove": ("cli.live", "remove", "Remove a product from the published index."),
    "query": ("cli.query", "query", "Find the products that look like an image."),
    "classify": ("cli.classify", "classify", "Name the category and attributes of a product."),
    "train": (
        "cli.train",
        "train",
        "Train a classification head on the images in DATA_DIR/training.",
    ),
    "heads": ("cli.train", "heads", "List the trained heads."),
    "result": ("cli.query", "result", "Show the result of an earlier query or classification."),
    "import-catalogue": (
        "cli.products",
        "import_catalogue",
        "Import product data from a table or a product feed.",
    ),
    "import-products": (
        "cli.products",
        "import_catalogue",
        "Import product data from a table or a product feed.",
    ),
    "feedback": (
        "cli.feedback",
        "feedback",
        "Record feedback on matches, and judge rankings by it.",
    ),
    "cache": ("cli.cache", "cache", "List, clear or fill the shared cache."),
    "serve": ("cli.shell", "serve", "Open an interactive shell with these commands."),
    "web": ("cli.web", "web", "Serve the HTTP API and the page."),
    "keys": ("cli.keys", "keys", "Create, list and revoke keys of the HTTP API."),
    "evaluate": (
        "cli.evaluate",
        "evaluate",
        "Measure models on FOLDER, which holds one folder of images for each class.",
    ),
    "evaluate-index": (
        "cli.evaluate_index",
        "evaluate_index",
        "Measure the recall of the published index against exact search.",
    ),
    "index": ("cli.index", "index", "List, inspect and roll back index versions."),
    "duplicates": (
        "cli.duplicates",
        "duplicates",
        "Find images of the published index that show the same thing.",
    ),
    "prune": (
        "cli.prune",
        "prune",
        "Delete old rebuilds, index versions, cached cut-outs and unused downloads of feed images.",
    ),
    "models": ("cli.models", "models", "List models to choose from, and the one in use."),
    "check": ("cli.check", "check", "Check everything that imgrec needs."),
    "health": ("cli.health", "health", "Tell whether this machine's workers are healthy."),
}


class LazyGroup(click.Group):
    """A group that knows its commands' names and help, and imports one when it is used."""

    def list_commands(self, ctx: click.Context) -> list[str]:
        return list(COMMANDS)

    def get_command(self, ctx: click.Context, cmd_name: str) -> click.Command | None:
        if cmd_name not in COMMANDS:
            return None
        module, attribute, _ = COMMANDS[cmd_name]
        command: click.Command = getattr(import_module(module), attribute)
        return command

    def resolve_command(
        self, ctx: click.Context, args: list[str]
    ) -> tuple[str | None, click.Command | None, list[str]]:
        name = args[0]
        if name not in COMMANDS:
            from difflib import get_close_matches

            near = get_close_matches(name, COMMANDS, 1)
            hint = f" Did you mean '{near[0]}'?" if near else " See 'imgrec --help'."
            ctx.fail(f"Unknown command '{name}'.{hint}")
        return super().resolve_command(ctx, args)

    def invoke(self, ctx: click.Context) -> Any:
        """Run a command; turn an error into a sentence and its exit code, unless --debug is given.

        Click's own errors, and a pipe that is closed, are Click's to handle.
        """
        try:
            return super().invoke(ctx)
        except (click.ClickException, click.exceptions.Exit, click.Abort, BrokenPipeError):
            raise
        except Exception as error:
            if not ctx.params["debug"]:
                ctx.exit(_explain(error))
            if _show_remote_traceback(error):
                ctx.exit(1)
            raise

    def shell_complete(self, ctx: click.Context, incomplete: str) -> list[CompletionItem]:
        """List commands from the table: click's own completion imports every one of them."""
        from click.shell_completion import CompletionItem

        commands = [
            CompletionItem(name, help=text)
            for name, (_, _, text) in COMMANDS.items()
            if name.startswith(incomplete)
        ]
        return commands + click.Command.shell_complete(self, ctx, incomplete)

    def format_commands(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        with formatter.section("Commands"):
            formatter.write_dl([(name, text) for name, (_, _, text) in COMMANDS.items()])


@click.group(cls=LazyGroup, context_settings={"help_option_names": ["-h", "--help"]})
@click.option("--debug", is_flag=True, help="Show the traceback of an error.")
@click.version_option(package_name="imgrec")
def imgrec(debug: bool) -> None:
    """Recommend visually similar products: a folder of photos becomes a searchable index."""


def main(args: list[str] | None = None, wiring: Wiring | None = None) -> None:
    """Run a command; print an error as one sentence and exit with its code.

    0 success, 1 failure, 2 wrong use, 3 not ready (no index), 4 a server is unavailable.
    """
    from cli.streams import finish, prepare

    prepare()
    sys.exit(finish(run(sys.argv[1:] if args is None else args, wiring)))


def run(args: list[str], wiring: Wiring | None = None) -> int:
    """Run a command; print an error as one sentence and return the exit code.

    Args:
        wiring: what it works with; by default, what it makes from the settings itself.
    """
    with _settings_notes_last(args):
        return _run(args, wiring)


def _run(args: list[str], wiring: Wiring | None) -> int:
    try:
        code = imgrec.main(args, "imgrec", standalone_mode=False, obj=wiring)
    except click.ClickException as error:
        _show(error)
        return error.exit_code
    except BrokenPipeError:
        return 1
    except OSError as error:  # of --help and the like; a command's own was explained before
        from cli.output import echo_err, unwritable

        echo_err(f"Error: {unwritable(error)}")
        return 1
    except (click.Abort, KeyboardInterrupt):
        click.echo("Interrupted.", err=True)
        return 130
    return code if isinstance(code, int) else 0


@contextmanager
def _settings_notes_last(args: list[str]) -> Iterator[None]:
    """Show what the settings warn about, such as an old name, after the answer of the command.

    To people only, and in `imgrec check`: a script may read the last line of a command.
    """
    from cli.output import echo_err

    notes = list[str]()

    class Collect(logging.Handler):
        def emit(self, record: logging.LogRecord) -> None:
            notes.append(record.getMessage())

    log, handler = logging.getLogger("pipeline.renamed_settings"), Collect()
    log.addHandler(handler)
    propagate, log.propagate = log.propagate, False
    try:
        yield
    finally:
        log.removeHandler(handler)
        log.propagate = propagate
        if sys.stderr.isatty() or "check" in args:
            for note in notes:
                echo_err(note)


def _show(error: click.ClickException) -> None:
    from cli.output import echo_err

    text = io.StringIO()
    error.show(text)
    for line in text.getvalue().splitlines():
        echo_err(line)


def _show_remote_traceback(error: Exception) -> bool:
    """Show the traceback of an error in a worker; False where the error is this process's own."""
    from cli.output import echo_err
    from pipeline.urls import without_password

    if not _is_remote(error) or not (lines := str(getattr(error, "traceback", ""))):
        return False
    for line in lines.splitlines():
        echo_err(without_password(line))
    return True


def _explain(error: Exception) -> int:
    from cli.output import echo_err, unwritable
    from pipeline.errors import ImgrecError

    if isinstance(error, ImgrecError):
        echo_err(f"Error: {error}")
        return error.exit_code
    from cli.streams import is_stdout

    if isinstance(error, OSError) and is_stdout(error):
        echo_err(f"Error: {unwritable(error)}")
        return 1
    from pipeline.access import explain, is_unavailable

    if isinstance(error, OSError) and is_unavailable(error):
        from pipeline.settings import load_settings

        trouble = explain(error, load_settings())
        echo_err(f"Error: {trouble}")
        return trouble.exit_code
    from pipeline.urls import without_password

    if _is_remote(error):
        echo_err(
            f"Error: the worker failed unexpectedly: {without_password(str(error))} (this is a "
            "bug: run 'imgrec --debug ...' and report the worker's traceback)."
        )
        return 1
    echo_err(
        f"Error: unexpected {type(error).__name__}: {without_password(str(error))} (this is a bug: "
        "run 'imgrec --debug ...' and report the traceback)."
    )
    return 1


def _is_remote(error: Exception) -> bool:
    """Tell whether a worker raised an error; without an import, which may be what failed."""
    messages = sys.modules.get("workers.query_messages")
    return messages is not None and isinstance(error, messages.RemoteError)


if __name__ == "__main__":
    main()
