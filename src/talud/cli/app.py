"""The typer application that every command joins."""

from __future__ import annotations

from typing import Annotated

import typer

app = typer.Typer(
    name="talud",
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
    version: Annotated[
        bool, typer.Option("--version", help="Show the version and exit.", callback=_version, is_eager=True)
    ] = False,
) -> None:
    """Train, compare, register and run U-Nets that map landslides in satellite stacks."""
