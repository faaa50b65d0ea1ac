"""What a command works with: the settings, and what is made from them at first use."""

from __future__ import annotations

from functools import cached_property
from typing import TYPE_CHECKING

import click

from pipeline.settings import Settings, load_settings

if TYPE_CHECKING:
    from pipeline.store.identity import Identifier
    from workers.dispatch import Dispatcher
    from workers.local import LocalWorker
    from workers.resources import Resources


class Wiring:
    """One for each run of the program, shared by the lines of `imgrec serve`.

    Modules are imported with the part that needs them: a command that only asks a question needs
    neither a database nor Celery.
    """

    def __init__(self, resources: Resources | None = None) -> None:
        """Make everything from this process's settings, or use `resources`."""
        if resources is not None:
            vars(self).update(
                settings=resources.settings, dispatcher=resources.dispatcher, resources=resources
            )

    @cached_property
    def settings(self) -> Settings:
        return load_settings()

    @cached_property
    def dispatcher(self) -> Dispatcher:
        from workers.dispatch import CeleryDispatcher

        return CeleryDispatcher(self.settings.redis_url)

    @cached_property
    def resources(self) -> Resources:
        from workers.resources import Resources

        return Resources(self.settings, self.dispatcher)

    @cached_property
    def folders(self) -> Identifier:
        """What tells this process's folders from those of others; it asks no database."""
        from pipeline.store.identity import Identifier

        return Identifier(self.settings, None)

    @cached_property
    def local(self) -> LocalWorker:
        """The worker of `--local`, which has resources of its own."""
        from workers.local import LocalWorker

        return LocalWorker(self.settings)


pass_wiring = click.make_pass_decorator(Wiring, ensure=True)
