"""The typer application that every command joins."""

from __future__ import annotations

import inspect
import re
from collections.abc import Callable, Mapping
from functools import wraps
from pathlib import Path
from typing import Annotated, Any

import typer
from typer.core import TyperGroup


class CommandGroup(TyperGroup):
    """A group of commands that refuses empty arguments.

    An empty path would mean the working folder.
    """

    def parse_args(self, ctx: Any, args: list[str]) -> list[str]:
        """Refuse empty arguments as wrong usage."""
        for argument in args:
            if not argument.strip() or re.fullmatch(r"--[a-z0-9-]+=\s*", argument):
                ctx.fail(f"an argument is empty ({argument or repr('')}); is a variable of the shell not set?")
        return super().parse_args(ctx, args)


app = typer.Typer(
    name="talud",
    cls=CommandGroup,
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
    rich_markup_mode="markdown",
)


def _version(wanted: bool) -> None:
    if wanted:
        from importlib.metadata import version

        print(f"talud {version('talud')}")
        raise typer.Exit


@app.callback()
def options(
    context: typer.Context,
    _shown: Annotated[
        bool, typer.Option("--version", help="Show the version and exit.", callback=_version, is_eager=True)
    ] = False,
) -> None:
    """Train, compare, register and run U-Nets that map landslides in satellite stacks."""
    from talud.versions import check_project

    if context.invoked_subcommand != "versions":
        check_project(Path.cwd())


def with_options(
    parameter: str, declared: Mapping[str, tuple[Any, Any]], build: Callable[[dict[str, Any]], Any]
) -> Callable[[Callable[..., None]], Callable[..., None]]:
    """Return a decorator that gives a command the options of one parameter.

    Args:
        parameter: the parameter of the command.
        declared: the annotation and the default of each option, by name.
        build: a function that makes the parameter's value of the options' values.
    """

    def decorate(command: Callable[..., None]) -> Callable[..., None]:
        @wraps(command)
        def with_them(**given: Any) -> None:
            chosen = build({name: given.pop(name) for name in declared})
            command(**given, **{parameter: chosen})

        own = inspect.signature(command, eval_str=True).parameters.values()
        keywords = [each.replace(kind=inspect.Parameter.KEYWORD_ONLY) for each in own if each.name != parameter]
        keywords += [
            inspect.Parameter(name, inspect.Parameter.KEYWORD_ONLY, default=default, annotation=annotation)
            for name, (annotation, default) in declared.items()
        ]
        with_them.__signature__ = inspect.Signature(keywords)  # type: ignore[attr-defined]
        with_them.__annotations__ = {each.name: each.annotation for each in keywords}
        return with_them

    return decorate
