"""Journal from which an interrupted map resumes.

A tile is finished once its file has its final name: it is written under another name, synchronised to the disk, and
renamed. Whatever ends a run (a power cut, a full disk, kill -9), the next run finds complete tiles only. The facts that
the map depends on are stored with them, so that tiles of another raster, model or option are never mixed in.

The unfinished file of a tile is in a folder of its run, which the next run deletes: a worker that outlives its run (see
`talud.mapping.workers`) then fails to rename its file, and finishes no tile of a map that is not its own.
"""

from __future__ import annotations

import errno
import json
import os
import re
import shutil
import uuid
import zipfile
from collections.abc import Iterator, Mapping
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from talud.engine.tiling import Tile, Tiling
from talud.errors import BusyError, OutputError, TaludError
from talud.files import exclusive_lock, sync_to_disk, translate_write_errors

_IDENTITY_FILE, _LOCK_FILE, _TILES_FOLDER, _RUN_PREFIX, _PUBLISHING_FILE = (
    "journal.json",
    "lock",
    "tiles",
    "run-",
    "publishing",
)


@dataclass(frozen=True)
class TileResult:
    """Result for the core of a tile.

    Attributes:
        probability: probability of a landslide, float32 (height, width); no meaning where `unmapped` is not 0.
        unmapped: code of the reason why a pixel is not mapped (see `talud.engine.coverage`), uint16 (height, width); 0
            where it is mapped.
        disagreement: with test-time augmentation, standard deviation of the probabilities whose mean is `probability`,
            float32 (height, width); else None.
        partial: for a model that can do without some groups, code of the data that a pixel is mapped without (see
            `talud.engine.coverage`), uint16 (height, width); else None.
    """

    probability: NDArray[np.float32]
    unmapped: NDArray[np.uint16]
    disagreement: NDArray[np.float32] | None = None
    partial: NDArray[np.uint16] | None = None


@dataclass(frozen=True)
class Journal:
    """Journal of a map that is being made.

    Attributes:
        folder: folder of the journal. Nothing else may write there while the journal is open.
        run: folder within for temporary files of this run; empty when the journal is opened, deleted when it is closed.
    """

    folder: Path
    run: Path

    @classmethod
    @contextmanager
    def open(cls, out: Path, identity: Mapping[str, Any]) -> Iterator[Journal]:
        """Resume the journal of a map, or start it.

        At the end of the block the journal is deleted. After an error it is kept if a tile is finished.

        Args:
            out: folder of the map.
            identity: all facts that the bytes of the map depend on, by name, as JSON values.

        Raises:
            OutputError: Another process is making the map, its journal has another identity, or nothing can be written.
        """
        journal = cls._at(out)
        with journal._locked(out):
            journal._check_identity(identity)
            try:
                with translate_write_errors(out):
                    journal._start(identity)
                    yield journal
            except BaseException as error:
                kept = len(journal)
                if not kept:
                    shutil.rmtree(journal.folder, ignore_errors=True)
                elif isinstance(error, TaludError):
                    message = f"{error}; {kept} finished tiles are kept, run the same command to resume"
                    raise type(error)(message) from error
                raise
            with translate_write_errors(out):
                # Deleted first, so that the next run ignores the other files if this process is killed here.
                (journal.folder / _IDENTITY_FILE).unlink()
                shutil.rmtree(journal.folder, ignore_errors=True)  # a network share may keep the lock file open

    @classmethod
    @contextmanager
    def reserve(cls, out: Path) -> Iterator[Journal]:
        """Lock a map's folder while its stack is made.

        Args:
            out: folder of the map.

        Raises:
            OutputError: Another process is making the map, or nothing can be written.
        """
        journal = cls._at(out)
        with journal._locked(out):
            try:
                yield journal
            finally:
                if not len(journal):
                    shutil.rmtree(journal.folder, ignore_errors=True)

    @classmethod
    def was_publishing(cls, out: Path) -> bool:
        """Check if a run was interrupted while publishing.

        The interrupted run was moving the files of a map to `out`.
        """
        return (_working_folder(out) / _PUBLISHING_FILE).exists()

    def mark_publishing(self) -> None:
        """Record that the map is being published.

        Its files are moved to its folder.
        """
        (self.folder / _PUBLISHING_FILE).touch()

    @classmethod
    def started_tile(cls, out: Path) -> int | None:
        """Return the side of the tiles of an interrupted map.

        It is None if no run of the map was interrupted, or its journal is damaged.
        """
        match cls._at(out)._stored_identity().get("tile"):
            case [int(height), int(width)] if height > 0 and width > 0:
                return max(height, width)
        return None

    @property
    def products(self) -> Path:
        """Folder for the files of the map."""
        return self.run / "products"

    def __len__(self) -> int:
        """Return the number of finished tiles."""
        return sum(1 for _ in (self.folder / _TILES_FOLDER).glob("*.npz"))

    def missing(self, tiling: Tiling) -> list[Tile]:
        """Return the unfinished tiles of a tiling."""
        # List the folder first: a network share may cache for a minute that a file does not exist.
        names = {path.name for path in (self.folder / _TILES_FOLDER).iterdir()}
        return [tile for tile in tiling if self._path(tile).name not in names or self.read(tile) is None]

    def read(self, tile: Tile) -> TileResult | None:
        """Read the result for a tile.

        The result is None if it is not finished, or its file is damaged.
        """
        try:
            # NumPy verifies the checksums of the zip format.
            with self._path(tile).open("rb") as stream, np.load(stream, allow_pickle=False) as arrays:
                return TileResult(**arrays)
        except (OSError, EOFError, ValueError, TypeError, zipfile.BadZipFile):
            return None

    def write(self, tile: Tile, block: TileResult) -> None:
        """Store the result for a tile.

        Raises:
            OutputError: The disk is full or fails, or the run has ended.
        """
        path = self._path(tile)
        scratch = self.run / f"{path.stem}.{uuid.uuid4().hex}.part"  # two workers may compute the same tile
        with translate_write_errors(path):
            with scratch.open("wb") as stream:
                np.savez(stream, **{name: array for name, array in vars(block).items() if array is not None})
            sync_to_disk(scratch)
            scratch.replace(path)

    @classmethod
    def _at(cls, out: Path) -> Journal:
        folder = _working_folder(out)
        return cls(folder, folder / f"{_RUN_PREFIX}{uuid.uuid4().hex}")

    @contextmanager
    def _locked(self, out: Path) -> Iterator[None]:
        with translate_write_errors(out):
            if out.exists() and not out.is_dir():
                raise NotADirectoryError(errno.ENOTDIR, "a file of that name exists")
            lock = _lock_folder(self.folder)
        with lock:
            yield

    def _path(self, tile: Tile) -> Path:
        return self.folder / _TILES_FOLDER / f"{tile.core.row_off}_{tile.core.col_off}.npz"

    def _check_identity(self, identity: Mapping[str, Any]) -> None:
        before, now = self._stored_identity(), json.loads(json.dumps(identity))  # as after a round trip
        names = [name for name in before | now if before.get(name) != now.get(name)]
        changes = [describe_change(name, before.get(name), now.get(name)) for name in names]
        if changes and before and len(self):
            raise OutputError(
                f"{self.folder}: contains {len(self)} finished tiles of a map that was started with "
                f"{', '.join(changes)}; use the former values to resume, or delete that folder to start over"
            )

    def _start(self, identity: Mapping[str, Any]) -> None:
        if not (self._stored_identity() and len(self)):
            shutil.rmtree(self.folder / _TILES_FOLDER, ignore_errors=True)
        for interrupted in self.folder.glob(f"{_RUN_PREFIX}*"):
            shutil.rmtree(interrupted, ignore_errors=True)
        (self.folder / _TILES_FOLDER).mkdir(exist_ok=True)
        self.products.mkdir(parents=True)
        scratch = self.folder / f"{_IDENTITY_FILE}.part"
        scratch.write_text(json.dumps(identity, indent=2, ensure_ascii=False) + "\n", encoding="utf-8")
        scratch.replace(self.folder / _IDENTITY_FILE)

    def _stored_identity(self) -> dict[str, Any]:
        """Read the stored identity; empty if missing or damaged."""
        try:
            begun = json.loads((self.folder / _IDENTITY_FILE).read_text(encoding="utf-8"))
        except (OSError, ValueError):
            return {}
        return begun if isinstance(begun, dict) else {}


def _working_folder(out: Path) -> Path:
    """Return the working folder of a map.

    It is on the same disk, next to the map's own folder, which DVC empties before a run; or within it, if the parent
    folder is not writable.
    """
    out = out.resolve()
    within = out.is_dir() and (out.is_mount() or not os.access(out.parent, os.W_OK))
    return out / ".partial" if within else out.with_name(f".{out.name}.partial")


def _lock_folder(folder: Path) -> ExitStack:
    """Lock a working folder.

    The lock ends when the result is closed or the process ends.

    Raises:
        BusyError: Another process holds the lock.
    """
    path = folder / _LOCK_FILE
    busy = BusyError(f"{folder}: another process is making this map; wait for it, or name another --out")
    while True:
        folder.mkdir(parents=True, exist_ok=True)
        with ExitStack() as held:
            lock = held.enter_context(exclusive_lock(path, busy))
            if path.exists() and os.path.samestat(os.fstat(lock), path.stat()):
                return held.pop_all()
            # The process that held the lock has just finished, and deleted the folder.


def describe_change(name: str, before: Any, now: Any, when: str = "now") -> str:
    """Return the change of a value as text.

    The values of checksums are left out.
    """
    if re.fullmatch("[0-9a-f]{32,}", str(before)):
        return f"different {name}"
    return f"{name} {_format_value(before)} ({when} {_format_value(now)})"


def _format_value(value: Any) -> str:
    return " × ".join(map(str, value)) if isinstance(value, list) else str(value)
