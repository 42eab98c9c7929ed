"""The `talud` command: gathers the subcommands, and shows errors to a person."""

from __future__ import annotations

import importlib
import pkgutil
import sys

from talud import cli
from talud.cli.app import app
from talud.errors import TaludError

for module in pkgutil.iter_modules(cli.__path__):
    if module.name != "main":
        importlib.import_module(f"talud.cli.{module.name}")


def main() -> None:
    """Run the command line: a TaludError becomes one line on stderr and exit code 1."""
    try:
        app()
    except TaludError as error:
        print(f"talud: {' '.join(str(error).split())}", file=sys.stderr)
        sys.exit(1)


if __name__ == "__main__":
    main()
