"""Two synthetic basins to try everything on: one to train on, one to transfer to."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

from talud.data.sample import storage
from talud.data.sample.basin import make
from talud.data.sample.character import BASINS

SEED = 20150518


def write(out: Path, seed: int = SEED) -> Iterator[tuple[Path, ...]]:
    """Make the sample basins one after the other, each in a folder of its name below `out`; yields the files of each.

    The same seed gives the same bytes.

    Raises:
        OutputError: a file cannot be written.
    """
    for character in BASINS:
        yield storage.write(make(character, seed), out / character.name)
