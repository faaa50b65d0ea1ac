"""How the options of a query are read."""

from __future__ import annotations

from typing import Any

import click

from cli.output import echo_err
from pipeline.search.query import AUTO, Box

OLD_OPTIONS = {
    "--not": "--exclude-text",
    "--diverse": "--diversity",
    "--personalize": "--user",
    "--feedback": "--demote-disliked",
}


class Score(click.ParamType[float | str]):
    """A number, or `auto`."""

    name = "number|auto"

    def convert(self, value: Any, param: Any, ctx: Any) -> float | str:
        if value == AUTO:
            return AUTO
        try:
            return float(value)
        except ValueError:
            self.fail(f"'{value}' is not a number, nor 'auto'.", param, ctx)


class BoxParameter(click.ParamType[Box | str]):
    """Four numbers with commas between them, or `auto`."""

    name = "x,y,w,h|auto"

    def convert(self, value: Any, param: Any, ctx: Any) -> Box | str:
        if value == AUTO:
            return AUTO
        try:
            x, y, width, height = (float(part) for part in str(value).split(","))
        except ValueError:
            self.fail(
                f"'{value}' is not x,y,width,height, e.g. 0.1,0.2,0.5,0.5, nor 'auto'.", param, ctx
            )
        return x, y, width, height


class QueryCommand(click.Command):
    """A command that accepts the old names of its options in this release."""

    def parse_args(self, ctx: click.Context, args: list[str]) -> list[str]:
        return super().parse_args(ctx, [_current_name(arg) for arg in args])


def _current_name(arg: str) -> str:
    name, equals, value = arg.partition("=")
    if name not in OLD_OPTIONS:
        return arg
    echo_err(
        f"{name} was renamed to {OLD_OPTIONS[name]}; the old name works until the next release."
    )
    return f"{OLD_OPTIONS[name]}{equals}{value}"
