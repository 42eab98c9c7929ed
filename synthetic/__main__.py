"""Command line of the generator: `python -m synthetic` in the repository."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path

from synthetic import SEED, write
from talud.errors import TaludError


def main(arguments: Sequence[str] | None = None) -> int:
    """Generate the basins and print one line for each; return the exit code."""
    given = _parser().parse_args(arguments)
    try:
        for paths in write(given.out, given.seed):
            size = sum(path.stat().st_size for path in paths) / 1e6
            print(f"{paths[0].parent}: {', '.join(path.name for path in paths)} ({size:.1f} MB, synthetic)", flush=True)
    except TaludError as error:
        print(f"synthetic: {error}", file=sys.stderr)
        return 1
    return 0


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="python -m synthetic",
        description="Generate two SYNTHETIC basins to try talud: synthetic_argelia and synthetic_liboriana. Each has "
        "an optical image, a DTM, VV and VH amplitude before and after the event, an inventory and the outlines of "
        "clouds. They resemble a tropical mountain region, differ in light, vegetation, radar gain and size of the "
        "landslides, and show no real place.",
    )
    parser.add_argument(
        "--out", type=_folder, default=Path("data"), help="folder for the two basins (default: %(default)s)"
    )
    parser.add_argument(
        "--seed", type=_seed, default=SEED, help="the same seed makes the same bytes (default: %(default)s)"
    )
    return parser


def _folder(text: str) -> Path:
    if not text.strip():
        raise argparse.ArgumentTypeError("is empty; is a shell variable not set?")
    return Path(text)


def _seed(text: str) -> int:
    if not text.isdecimal():
        raise argparse.ArgumentTypeError(f"'{text}' is not a whole number of 0 or more")
    return int(text)


if __name__ == "__main__":
    sys.exit(main())
