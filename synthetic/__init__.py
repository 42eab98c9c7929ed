"""Generator of two synthetic basins: one to train on, one to transfer to."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

from synthetic import storage
from synthetic.basin import make
from synthetic.character import BASINS

SEED = 20150518


def write(out: Path, seed: int = SEED) -> Iterator[tuple[Path, ...]]:
    """Make the basins one after the other, each in a folder of its name below `out`; yield the files of each.

    The same seed gives the same bytes. All folders are checked before the first basin is made, which takes a while.

    Raises:
        OutputError: a file cannot be written, or a folder holds files of the user.
    """
    for character in BASINS:
        storage.check_folder(out / character.name)
    for character in BASINS:
        yield storage.write(make(character, seed), out / character.name)
