"""The typer application that every command joins."""

from __future__ import annotations

import typer

app = typer.Typer(
    name="talud",
    help="Train, compare, register and run U-Nets that map landslides in satellite stacks.",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
    rich_markup_mode="markdown",
)
