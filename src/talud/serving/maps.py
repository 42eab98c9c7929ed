"""Where the files of jobs and the uploads lie, and how long."""

from __future__ import annotations

import fcntl
import os
import shutil
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from datetime import datetime, timedelta
from pathlib import Path

from talud.errors import BusyError
from talud.files import writing
from talud.inference.products import Products
from talud.serving import places
from talud.serving.database import now
from talud.serving.jobs import STATUSES, UNFINISHED, Job, JobStore
from talud.serving.settings import Settings

IN_USE = 15 * 60  # seconds after somebody looked at a map in which it is not removed


@contextmanager
def alone(results: Path) -> Iterator[None]:
    """Keep other services from a folder of results, whose running jobs they would take for ones that were cut short.

    Raises:
        OutputError: another service uses it, or it cannot be written to.
    """
    with writing(results):
        results.mkdir(parents=True, exist_ok=True)
        lock = (results / "service.lock").open("w")
    with lock:
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError as error:
            raise BusyError(f"{results}: another service uses this folder; stop it, or name another one") from error
        yield


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

    def remove(self, job: str) -> None:
        """Remove all files of a job."""
        shutil.rmtree(self.of(job), ignore_errors=True)

    def clean(self, jobs: JobStore, settings: Settings) -> list[str]:
        """Remove what is older than the settings allow, or more: the oldest first, nothing in use.

        Returns:
            The ids of the jobs and uploads that were removed.
        """
        known = {job.id: job for job in jobs.list(STATUSES, limit=10**6)}
        uploads = _folders(settings.results / places.UPLOADS)
        for folder in _folders(self.folder):
            stray = folder.name not in known or known[folder.name].status == "dismissed"
            if stray and _age(folder) > IN_USE:
                shutil.rmtree(folder, ignore_errors=True)
        sizes = {name: _size(self.of(name)) for name in known}
        excess, removed = sum(sizes.values()) + sum(map(_size, uploads)) - settings.results_bytes, []
        for job in sorted((job for job in known.values() if job.status not in UNFINISHED), key=_end):
            old = now() - _end(job) > timedelta(days=settings.results_days)
            if (old or (excess > 0 and sizes[job.id])) and not self._in_use(job.id):
                self.remove(job.id)
                jobs.remove(job.id)
                removed.append(job.id)
                excess -= sizes[job.id]
        mapped = {job.request.raster for job in known.values() if job.id not in removed}
        for folder in sorted(uploads, key=_age, reverse=True):
            old = _age(folder) > settings.results_days * 86400
            if f"{places.UPLOADS}/{folder.name}" not in mapped and (old or excess > 0) and _age(folder) > IN_USE:
                excess -= _size(folder)
                shutil.rmtree(folder, ignore_errors=True)
                removed.append(folder.name)
        return removed

    def _in_use(self, job: str) -> bool:
        looked = self._looked_at.get(job)
        return looked is not None and time.monotonic() - looked < IN_USE


def _folders(folder: Path) -> list[Path]:
    return [path for path in folder.iterdir() if path.is_dir()] if folder.is_dir() else []


def _age(folder: Path) -> float:
    """Seconds since something was put into a folder."""
    return time.time() - folder.stat().st_mtime


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
