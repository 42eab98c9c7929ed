"""Typer application of all commands, their common options and progress."""

from __future__ import annotations

import inspect
import re
import sys
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from functools import wraps
from pathlib import Path
from typing import Annotated, Any, Protocol

import typer
from typer.core import TyperGroup

LINE_INTERVAL_SECONDS = 10.0
# Panels of `talud --help`, in the order in which they are shown.
DATA, TRAINING, MODELS, MAPS, SERVICE = "Data", "Training", "Models", "Maps", "Service"
_PANELS = (DATA, TRAINING, MODELS, MAPS, SERVICE)
# Commands of a panel in the order of their use; the others follow.
_ORDER = (
    "stack",
    "train",
    "evaluate",
    "baseline",
    "postprocess",
    "report",
    "quantize",
    "adapt",
    "finetune",
    "register",
)


class CommandGroup(TyperGroup):
    """The group of all commands, which rejects empty arguments."""

    def list_commands(self, ctx: Any) -> list[str]:
        """Return the command names by panel."""

        def position(name: str) -> tuple[int, int]:
            panel = getattr(self.commands[name], "rich_help_panel", None)
            return (
                _PANELS.index(panel) if panel in _PANELS else len(_PANELS),
                _ORDER.index(name) if name in _ORDER else len(_ORDER),
            )

        return sorted(super().list_commands(ctx), key=position)

    def parse_args(self, ctx: Any, args: list[str]) -> list[str]:
        """Reject empty arguments as wrong usage.

        An empty path would mean the working folder.
        """
        for argument in args:
            if not argument.strip() or re.fullmatch(r"--[a-z0-9-]+=\s*", argument):
                ctx.fail(f"an argument is empty ({argument or repr('')}); is a shell variable not set?")
        return super().parse_args(ctx, args)


app = typer.Typer(
    name="talud",
    cls=CommandGroup,
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
    rich_markup_mode="markdown",
)


def _print_version(requested: bool) -> None:
    if requested:
        from importlib.metadata import version

        print(f"talud {version('talud')}")
        raise typer.Exit


@app.callback()
def options(
    context: typer.Context,
    _version: Annotated[
        bool, typer.Option("--version", help="Show the version and exit.", callback=_print_version, is_eager=True)
    ] = False,
) -> None:
    """Map landslides in satellite images with U-Nets."""
    from talud.versions import check_project

    if context.invoked_subcommand != "versions":
        check_project(Path.cwd())


def with_options(
    parameter: str, declared: Mapping[str, tuple[Any, Any]], build: Callable[[dict[str, Any]], Any]
) -> Callable[[Callable[..., None]], Callable[..., None]]:
    """Return a decorator that expands a parameter into options.

    Args:
        parameter: name of the parameter that is replaced.
        declared: annotation and default of each option, by name.
        build: function that makes the value of the parameter from the values of the options.
    """

    def decorate(command: Callable[..., None]) -> Callable[..., None]:
        @wraps(command)
        def with_options_of_parameter(**given: Any) -> None:
            chosen = build({name: given.pop(name) for name in declared})
            command(**given, **{parameter: chosen})

        own = inspect.signature(command, eval_str=True).parameters.values()
        keywords = [each.replace(kind=inspect.Parameter.KEYWORD_ONLY) for each in own if each.name != parameter]
        keywords += [
            inspect.Parameter(name, inspect.Parameter.KEYWORD_ONLY, default=default, annotation=annotation)
            for name, (annotation, default) in declared.items()
        ]
        with_options_of_parameter.__signature__ = inspect.Signature(keywords)  # type: ignore[attr-defined]
        with_options_of_parameter.__annotations__ = {each.name: each.annotation for each in keywords}
        return with_options_of_parameter

    return decorate


class ProgressCallback(Protocol):
    """Callback that reports the progress of a command."""

    def __call__(self, done: int, total: int, note: str = "") -> None:
        """Report that `done` of `total` units are finished."""


@contextmanager
def show_progress(title: str, unit: str) -> Iterator[ProgressCallback]:
    """Yield a callback that shows progress on stderr.

    Args:
        title: name of the running step, such as "mapping".
        unit: plural name of the counted items, such as "tiles".
    """
    if not sys.stderr.isatty():
        yield _plain_lines(title, unit)
        return
    from rich.console import Console
    from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

    note_column = TextColumn("{task.fields[note]}")
    columns = (TextColumn(title), BarColumn(), MofNCompleteColumn(), TextColumn(unit), TimeRemainingColumn())
    with Progress(*columns, note_column, console=Console(stderr=True), transient=True) as bar:
        task = bar.add_task(title, note="")

        def report(done: int, total: int, note: str = "") -> None:
            bar.update(task, completed=done, total=total, note=note)

        yield report


def _plain_lines(title: str, unit: str) -> ProgressCallback:
    last = time.monotonic()

    def report(done: int, total: int, note: str = "") -> None:
        nonlocal last
        if time.monotonic() - last >= LINE_INTERVAL_SECONDS:
            last = time.monotonic()
            print(f"{title}: {done} of {total} {unit}{note and ', '}{note}", file=sys.stderr, flush=True)

    return report
