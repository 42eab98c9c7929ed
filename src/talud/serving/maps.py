"""Where the files of jobs lie, and how long."""

from __future__ import annotations

import os
import shutil
import time
from collections.abc import Iterator
from dataclasses import dataclass, field
from datetime import datetime, timedelta
from pathlib import Path

from talud.files import writing
from talud.inference.products import Products
from talud.serving.database import now
from talud.serving.jobs import STATUSES, UNFINISHED, Job, JobStore
from talud.serving.settings import Settings

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
            shutil.copyfile(model, scratch)
            scratch.replace(copy)

    def look_at(self, job: str) -> None:
        """Note that somebody looks at a job's map, which is then not removed for a while."""
        self._looked_at[job] = time.monotonic()

    def remove(self, job: str) -> None:
        """Remove all files of a job."""
        shutil.rmtree(self.of(job), ignore_errors=True)

    def clean(self, jobs: JobStore, settings: Settings) -> list[str]:
        """Remove what is older than the settings allow, or more: the oldest first, nothing in use.

        Returns:
            The ids of the jobs that were removed.
        """
        known = {job.id: job for job in jobs.list(STATUSES, limit=10**6)}
        for folder in self._folders():
            stray = folder.name not in known or known[folder.name].status == "dismissed"
            if stray and time.time() - folder.stat().st_mtime > IN_USE:
                shutil.rmtree(folder, ignore_errors=True)
        ended = sorted((job for job in known.values() if job.status not in UNFINISHED), key=_end)
        sizes = {job.id: _size(self.of(job.id)) for job in known.values()}
        excess, removed = sum(sizes.values()) - settings.results_bytes, []
        for job in ended:
            old = now() - _end(job) > timedelta(days=settings.results_days)
            if (old or (excess > 0 and sizes[job.id])) and not self._in_use(job.id):
                self.remove(job.id)
                jobs.remove(job.id)
                removed.append(job.id)
                excess -= sizes[job.id]
        return removed

    def _folders(self) -> Iterator[Path]:
        return iter(self.folder.iterdir()) if self.folder.is_dir() else iter(())

    def _in_use(self, job: str) -> bool:
        looked = self._looked_at.get(job)
        return looked is not None and time.monotonic() - looked < IN_USE


def _end(job: Job) -> datetime:
    return job.finished or job.updated


def _size(folder: Path) -> int:
    """Bytes of all files below a folder."""
    total = 0
    for root, _, names in os.walk(folder):
        for name in names:
            try:
                total += (Path(root) / name).stat().st_size
            except OSError:
                continue  # just removed
    return total
