"""Where the files of jobs lie."""

from __future__ import annotations

import shutil
import time
from dataclasses import dataclass, field
from pathlib import Path

from talud.files import writing
from talud.products.rasters import Products

IN_USE = 15 * 60  # seconds after somebody looked at a map in which it is not removed


@dataclass(frozen=True)
class Maps:
    """The folders of jobs.

    Attributes:
        folder: that holds them, each under its job's id.
    """

    folder: Path
    _looked_at: dict[str, float] = field(default_factory=dict, repr=False)

    def of(self, job: str) -> Path:
        """The folder of a job: its model, its raster where that was fetched, and its map."""
        return self.folder / job

    def model(self, job: str) -> Path:
        """A job's own copy of its model, which no promotion and no clean-up of the registry takes from it."""
        return self.of(job) / "model.onnx"

    def fetched(self, job: str) -> Path:
        """The folder of a job's raster, where that was fetched from elsewhere."""
        return self.of(job) / "raster"

    def out(self, job: str) -> Path:
        """The folder of a job's map."""
        return self.of(job) / "map"

    def products(self, job: str) -> Products:
        """The files of a job's map."""
        return Products.within(self.out(job))

    def keep_model(self, job: str, model: Path) -> None:
        """Keep a job's own copy of its model.

        Raises:
            OutputError: the disk is full, or fails.
        """
        copy = self.model(job)
        with writing(copy):
            copy.parent.mkdir(parents=True, exist_ok=True)
            scratch = copy.with_suffix(".part")
            scratch.unlink(missing_ok=True)
            try:
                scratch.hardlink_to(model)  # a queue of jobs would else hold as many copies
            except OSError:  # it lies on another disk, or on one without links
                shutil.copyfile(model, scratch)
            scratch.replace(copy)

    def look_at(self, job: str) -> None:
        """Note that somebody looks at a job's map, which is then not removed for a while."""
        self._looked_at[job] = time.monotonic()

    def remove_tiles(self, job: str) -> None:
        """Remove the tiles of a map that is not finished."""
        for folder in self.of(job).glob(".*.partial"):
            shutil.rmtree(folder, ignore_errors=True)

    def remove(self, job: str) -> None:
        """Remove all files of a job."""
        shutil.rmtree(self.of(job), ignore_errors=True)

    def in_use(self, job: str) -> bool:
        """Whether somebody looked at a job's map of late."""
        looked = self._looked_at.get(job)
        return looked is not None and time.monotonic() - looked < IN_USE
