"""Generator of two synthetic basins: one to train on, one to transfer to."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

from synthetic import storage
from synthetic.basin import make_basin
from synthetic.profiles import BASINS

SEED = 20150518


def write(out: Path, seed: int = SEED) -> Iterator[tuple[Path, ...]]:
    """Write each basin to a folder of its name below `out`; yield the files of each.

    The same seed gives the same bytes. All folders are checked first, because a basin takes a while.

    Raises:
        OutputError: a file cannot be written, or a folder contains files that were not generated here.
    """
    for profile in BASINS:
        storage.check_folder(out / profile.name)
    for profile in BASINS:
        yield storage.write(make_basin(profile, seed), out / profile.name)
