"""Typer application of all commands, and options that several of them share."""

from __future__ import annotations

import inspect
import re
from collections.abc import Callable, Mapping
from functools import wraps
from pathlib import Path
from typing import Annotated, Any

import typer
from typer.core import TyperGroup

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
