"""The `talud` command: gathers the subcommands, and shows errors to a person."""

from __future__ import annotations

import importlib
import sys

from talud.cli.app import app
from talud.errors import TaludError

COMMANDS = ("sample", "stack", "train", "predict", "evaluate", "register", "report", "ui")

for name in COMMANDS:
    importlib.import_module(f"talud.cli.{name}")


def main() -> None:
    """Run the command line: a TaludError becomes one line on stderr and exit code 1."""
    try:
        app()
    except TaludError as error:
        print(f"talud: {' '.join(str(error).split())}", file=sys.stderr)
        sys.exit(1)


if __name__ == "__main__":
    main()
