"""A process that imports what imgrec needs and forks children that run its commands.

`python fork_server.py SOCKET` listens at once and answers when everything is imported. A connection
is one child: it is asked for with a line of JSON, and answered with its process id, then with its
exit code. A child whose connection is closed is killed, as are all when the standard input ends.

Of imgrec, what acts when it is imported is left to the children: settings, failpoints and state are
the child's own, as is its session. No thread runs here.
"""

from __future__ import annotations

import atexit
import contextlib
import ctypes
import importlib
import json
import os
import pkgutil
import runpy
import selectors
import signal
import socket
import sys
import threading
import traceback
from pathlib import Path
from typing import Any

# As where a command of pip's begins; here stand `pipeline` and others of the tests.
sys.path[0] = os.path.dirname(sys.executable)

import imgrec  # noqa: E402

LIBRARIES = (
    *("torch", "faiss", "scipy.ndimage", "safetensors.torch", "huggingface_hub.errors"),
    *("transformers.models.auto", "transformers.models.clip.modeling_clip"),
    *("transformers.models.clip.image_processing_pil_clip", "PIL.JpegImagePlugin"),
    *("transformers.models.mobilenet_v2.modeling_mobilenet_v2",),
    *("transformers.models.vision_text_dual_encoder.modeling_vision_text_dual_encoder",),
    *("transformers.models.bert.modeling_bert",),
    *("transformers.models.clip.tokenization_clip", "PIL.PngImagePlugin", "PIL.GifImagePlugin"),
    *("PIL.BmpImagePlugin", "PIL.PpmImagePlugin", "PIL.TiffImagePlugin", "PIL.WebPImagePlugin"),
    *("PIL.ImageDraw", "PIL.ImageFilter", "PIL.ImageFont", "PIL.ImageOps"),
    *("celery.bin.celery", "celery.bin.worker", "celery.apps.worker", "celery.app.log"),
    *("celery.worker.consumer", "celery.worker.components", "celery.worker.strategy"),
    *("celery.worker.autoscale", "celery.concurrency.thread", "celery.events.receiver"),
    *("celery.loaders.default", "celery.backends.redis", "celery.app.control"),
    *("celery.app.events", "celery.app.amqp", "kombu.transport.redis", "kombu.matcher"),
    *("kombu.mixins", "kombu.pidbox", "prompt_toolkit", "click_repl", "psycopg", "sqlite3"),
    *("pydantic_settings", "pydantic.networks", "filelock", "rich.table", "rich.progress"),
    *("rich.console", "tomllib", "encodings.idna", "redis", "msgpack", "http.client"),
    *("urllib3", "cachetools", "pi_heif", "fastapi.openapi.docs", "uvicorn.main", "jinja2"),
    *("uvicorn.protocols.http.h11_impl", "prometheus_client", "python_multipart.multipart"),
)


OWN = ("pipeline", "cli", "web", "workers")
# They read settings, need Celery's app, or end with their parent.
LATE = (
    *("workers.celery_app", "workers.lifecycle", "workers.tasks"),
    *("cli.die_with_parent", "cli.demo"),
)


def import_everything() -> None:
    """Import what the children need, and have done what a library does once when first used."""
    for name in LIBRARIES:
        importlib.import_module(name)
    for package in OWN:
        folder = str(Path(__file__).parent.parent / package)
        for module in pkgutil.walk_packages([folder], f"{package}."):
            if module.name not in LATE:
                importlib.import_module(module.name)
    from transformers import conversion_mapping

    # The first model that is loaded compiles a thousand regular expressions.
    conversion_mapping.get_checkpoint_conversion_mapping("clip")
    assert len(os.listdir("/proc/self/task")) == 1, "a library has started a thread"


def serve(path: str) -> dict[str, Any]:
    """Fork a child for each connection until the standard input ends; return in the children.

    Returns:
        what the child was asked for.
    """
    listener = socket.socket(socket.AF_UNIX)
    listener.bind(path)
    listener.listen(64)
    import_everything()
    woken, wake = socket.socketpair()
    wake.setblocking(False)
    woken.setblocking(False)
    signal.set_wakeup_fd(wake.fileno(), warn_on_full_buffer=False)
    signal.signal(signal.SIGCHLD, lambda *_: None)
    children: dict[int, socket.socket] = {}
    with selectors.DefaultSelector() as selector:
        for source in (listener, woken, sys.stdin):
            selector.register(source, selectors.EVENT_READ)
        while True:
            for key, _ in selector.select():
                if key.fileobj is sys.stdin:
                    for pid in children:
                        _kill(pid)
                    os._exit(0)
                elif key.fileobj is woken:
                    woken.recv(4096)
                    _tell_ends(children, selector)
                elif key.fileobj is listener:
                    connection = listener.accept()[0]
                    with connection.makefile("rb") as stream:
                        asked: dict[str, Any] = json.loads(stream.readline())
                    pid = os.fork()
                    if pid == 0:
                        signal.set_wakeup_fd(-1)
                        signal.signal(signal.SIGCHLD, signal.SIG_DFL)
                        for each in (listener, woken, wake, connection, *children.values()):
                            each.close()
                        return asked
                    children[pid] = connection
                    _say(connection, pid)
                    selector.register(connection, selectors.EVENT_READ, pid)
                elif key.data in children:  # nobody asks for a second thing: it was closed
                    selector.unregister(key.fileobj)
                    children.pop(key.data).close()
                    _kill(key.data)


def _tell_ends(children: dict[int, socket.socket], selector: selectors.BaseSelector) -> None:
    while True:
        try:
            pid, status = os.waitpid(-1, os.WNOHANG)
        except ChildProcessError:
            return
        if pid == 0:
            return
        connection = children.pop(pid, None)
        if connection is not None:
            selector.unregister(connection)
            _say(connection, os.waitstatus_to_exitcode(status))
            connection.close()


def _say(connection: socket.socket, number: int) -> None:
    with contextlib.suppress(OSError):  # who asked has ended
        connection.sendall(f"{number}\n".encode())


def _kill(pid: int) -> None:
    with contextlib.suppress(ProcessLookupError):
        os.kill(pid, signal.SIGKILL)


def run_command(
    *,
    args: list[str],
    cwd: str,
    env: dict[str, str],
    stdin: str,
    stdout: str,
    stderr: str,
    bare: bool,
) -> None:
    """Be `celery ...` or `imgrec ...`, as a shell would have started it."""
    os.setsid()
    os.environ.clear()
    os.environ.update(env)
    os.chdir(cwd)
    write = os.O_WRONLY | os.O_CREAT | os.O_APPEND
    for number, file, flags in ((0, stdin, os.O_RDONLY), (1, stdout, write), (2, stderr, write)):
        descriptor = os.open(file, flags)
        os.dup2(descriptor, number)
        os.close(descriptor)
    if bare:
        _drop_capabilities()
    sys.stdin = os.fdopen(0)
    sys.stdout = os.fdopen(1, "w", buffering=1)
    sys.stderr = os.fdopen(2, "w", buffering=1)
    # What Python would do at its start with this environment.
    sys.path[1:1] = [folder for folder in env.get("PYTHONPATH", "").split(os.pathsep) if folder]
    imgrec.use_own_packages()  # again: the working folder is another
    if "IMGREC_FAILPOINT" in env:
        runpy.run_module("sitecustomize", run_name="sitecustomize")
    sys.argv = args
    if args[0] == "celery":
        from celery.__main__ import main
    else:
        from cli.main import main
    main()


def exit_code(error: SystemExit) -> int:
    """Return the code that Python would exit with; what is no number it prints."""
    if error.code is None or isinstance(error.code, int):
        return error.code or 0
    print(error.code, file=sys.stderr)
    return 1


def _drop_capabilities() -> None:
    """Give up what root may and other users may not, for this process and its children.

    The numbers are of capabilities(7): PR_CAPBSET_DROP, and the version of capset's structures.
    """
    libc = ctypes.CDLL(None)
    for capability in range(64):  # those that the kernel does not know are refused
        libc.prctl(24, capability, 0, 0, 0)
    version, thread = 0x20080522, 0
    libc.capset((ctypes.c_uint32 * 2)(version, thread), (ctypes.c_uint32 * 6)())


if __name__ == "__main__":
    request = serve(sys.argv[1])
    code = 0
    try:
        run_command(**request)
    except SystemExit as error:
        code = exit_code(error)
    except BaseException:
        traceback.print_exc()
        code = 1
    # As at the end of any Python, but for taking apart all that was imported.
    threading._shutdown()  # type: ignore[attr-defined]
    atexit._run_exitfuncs()
    with contextlib.suppress(OSError, ValueError):
        sys.stdout.flush()
        sys.stderr.flush()
    os._exit(code & 0xFF)
