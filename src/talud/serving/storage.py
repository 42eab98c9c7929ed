"""The results folder: files of jobs, uploads, its lock, and retention."""

from __future__ import annotations

import os
import re
import shutil
import threading
import time
import unicodedata
import uuid
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from datetime import datetime, timedelta
from pathlib import Path
from typing import BinaryIO

from rasterio.windows import Window
from sqlalchemy import delete, func, select

from talud.contract import Contract
from talud.errors import BusyError, SourceError
from talud.files import exclusive_lock, translate_write_errors
from talud.mapping.raster_checks import check_blocks
from talud.products.rasters import Products
from talud.serving import raster_paths
from talud.serving.database import Database, now
from talud.serving.jobs import JobStore
from talud.serving.problems import Problem
from talud.serving.rasters import Raster, opened, placed, raster
from talud.serving.settings import Settings
from talud.serving.tables import STATUSES, UNFINISHED, Job, Key, UploadOwner
from talud.text import dimensions

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
        """Return the folder of a job's model, fetched raster and map."""
        return self.folder / job

    def model(self, job: str) -> Path:
        """Return the path of a job's own copy of its model."""
        return self.of(job) / "model.onnx"

    def fetched(self, job: str) -> Path:
        """Return the folder of a job's fetched raster."""
        return self.of(job) / "raster"

    def out(self, job: str) -> Path:
        """Return the folder of a job's map."""
        return self.of(job) / "map"

    def products(self, job: str) -> Products:
        """Return the files of a job's map."""
        return Products.within(self.out(job))

    def keep_model(self, job: str, model: Path) -> None:
        """Keep a job's own copy of its model.

        Raises:
            OutputError: the disk is full, or fails.
        """
        copy = self.model(job)
        with translate_write_errors(copy):
            copy.parent.mkdir(parents=True, exist_ok=True)
            scratch = copy.with_suffix(".part")
            scratch.unlink(missing_ok=True)
            try:
                scratch.hardlink_to(model)  # a queue of jobs would else hold as many copies
            except OSError:  # it lies on another disk, or on one without links
                shutil.copyfile(model, scratch)
            scratch.replace(copy)

    def look_at(self, job: str) -> None:
        """Protect a job's map from removal for a while, because it was viewed."""
        self._looked_at[job] = time.monotonic()

    def remove_tiles(self, job: str) -> None:
        """Remove the tiles of a map that is not finished."""
        for folder in self.of(job).glob(".*.partial"):
            shutil.rmtree(folder, ignore_errors=True)

    def remove(self, job: str) -> None:
        """Remove all files of a job."""
        shutil.rmtree(self.of(job), ignore_errors=True)

    def in_use(self, job: str) -> bool:
        """Check whether a job's map was viewed recently."""
        looked = self._looked_at.get(job)
        return looked is not None and time.monotonic() - looked < IN_USE


_LONGEST_NAME = 80  # characters of an upload's name


@dataclass(frozen=True)
class Upload:
    """A raster that is being uploaded.

    Attributes:
        id: a UUID.
        path: where it will lie.
        stream: open, of what has arrived.
    """

    id: str
    path: Path
    stream: BinaryIO

    @classmethod
    def begun(cls, settings: Settings, filename: str) -> Upload:
        """Create an empty file in a folder of its own.

        Raises:
            OutputError: it cannot be made.
        """
        identity = str(uuid.uuid4())
        path = settings.results / raster_paths.UPLOADS / identity / safe_name(filename)
        with translate_write_errors(path):
            path.parent.mkdir(parents=True)
            return cls(identity, path, _part(path).open("wb"))

    def write(self, data: bytes) -> None:
        """Append received bytes.

        Raises:
            OutputError: the disk is full.
        """
        with translate_write_errors(self.path):
            self.stream.write(data)

    def finished(self, settings: Settings, contracts: Sequence[tuple[str, Contract]] = ()) -> Raster:
        """Check the uploaded file and return its raster.

        Raises:
            SourceError: it is no GeoTIFF that can be mapped.
            OutputError: the disk is full.
        """
        part = _part(self.path)
        with translate_write_errors(self.path):
            self.stream.close()
        try:
            _check_upload(part, settings)
        except SourceError as error:
            raise SourceError(str(error).replace(part.name, self.path.name)) from error
        with translate_write_errors(self.path):
            part.replace(self.path)
        return raster(f"{raster_paths.UPLOADS}/{self.id}", self.path, settings, contracts)

    def abandoned(self) -> None:
        """Delete the file and its folder."""
        self.stream.close()
        shutil.rmtree(self.path.parent, ignore_errors=True)


def safe_name(filename: str) -> str:
    """Return a file name of letters, digits, - and _, with the suffix .tif."""
    last = re.split(r"[/\\]", unicodedata.normalize("NFKC", filename))[-1]
    stem = re.sub(r"\.tiff?$", "", last, flags=re.IGNORECASE)
    plain = re.sub(r"[^A-Za-z0-9-]+", "_", unicodedata.normalize("NFKD", stem).encode("ascii", "ignore").decode())
    return f"{plain[:_LONGEST_NAME].strip('_-') or 'raster'}.tif"


def _part(path: Path) -> Path:
    return path.with_name(f"{path.name}.part")


def _check_upload(path: Path, settings: Settings) -> None:
    """Check that a file is a complete GeoTIFF with a location and few enough pixels."""
    raster_paths.check_directories(path, path.name)
    with opened(path) as dataset:
        grid = placed(dataset)
        if grid.height * grid.width > settings.pixels:
            raise SourceError(
                f"{path.name}: has {dimensions(grid.width, grid.height)}, and this service maps at most "
                f"{settings.pixels:,} pixels; cut it in parts"
            )
        check_blocks(dataset, dataset.indexes, path)
        dataset.read(window=Window(grid.width - 1, grid.height - 1, 1, 1))  # one that was cut off has no last block


@dataclass(frozen=True)
class UploadStore:
    """The uploads of a service, by the key that brought them.

    Attributes:
        database: that keeps them.
        quota: bytes that the uploads of one key may take.
    """

    database: Database
    quota: int
    _claiming: threading.Lock = field(default_factory=threading.Lock)

    def claim(self, upload: str, key: Key, size: int) -> None:
        """Count `size` bytes in all for an upload, received or expected.

        Raises:
            Problem: the key's uploads would take more than its quota.
        """
        others = select(func.coalesce(func.sum(UploadOwner.bytes), 0))
        others = others.where(UploadOwner.key_id == key.id, UploadOwner.id != upload)
        # One service uses the database, so that its own lock is enough for uploads that arrive at once.
        with self._claiming, self.database.transaction() as session:
            taken = int(session.scalar(others) or 0)
            if taken + size > self.quota:
                raise Problem(
                    413,
                    f"the uploads of the key of {key.name} take {taken:,} bytes and may take {self.quota:,}; "
                    "DELETE /uploads/ID removes one",
                )
            session.merge(UploadOwner(id=upload, key_id=key.id, bytes=size))

    def owner(self, upload: str) -> str | None:
        """Return the id of the key that owns an upload; None if unknown."""
        with self.database.session() as session:
            row = session.get(UploadOwner, upload)
            return row.key_id if row else None

    def all(self) -> tuple[str, ...]:
        """Return the ids of all counted uploads."""
        with self.database.session() as session:
            return tuple(session.scalars(select(UploadOwner.id)))

    def forget(self, uploads: Iterable[str]) -> None:
        """Stop counting uploads."""
        with self.database.transaction() as session:
            session.execute(delete(UploadOwner).where(UploadOwner.id.in_(list(uploads))))


@contextmanager
def lock_results(results: Path) -> Iterator[None]:
    """Lock the results folder, so that no second service restarts its jobs.

    Raises:
        OutputError: another service uses it, or it cannot be written to.
    """
    with translate_write_errors(results):
        results.mkdir(mode=0o700, parents=True, exist_ok=True)
        if results.stat().st_mode & 0o007:  # a group that an operator lets in stays
            results.chmod(0o700)
    busy = BusyError(f"{results}: another service uses this folder; stop it, or name another one")
    with exclusive_lock(results / "service.lock", busy):
        yield


def remove_expired(jobs: JobStore, maps: Maps, settings: Settings) -> list[str]:
    """Remove maps and uploads beyond the allowed age and size, oldest first.

    Those in use stay. A map with reviews stays until it is dismissed: it could be made again, the reviews could not.

    Returns:
        The ids of the jobs and uploads that were removed.
    """
    known = {job.id: job for job in jobs.list(STATUSES, limit=10**6)}
    uploads = _folders(settings.results / raster_paths.UPLOADS)
    for folder in _folders(maps.folder):
        stray = folder.name not in known or known[folder.name].status == "dismissed"
        if stray and _age(folder) > IN_USE:
            shutil.rmtree(folder, ignore_errors=True)
    sizes = {name: _size(maps.of(name)) for name in known}
    excess, removed = sum(sizes.values()) + sum(map(_size, uploads)) - settings.results_bytes, []
    reviewed = jobs.reviewed()
    ended = [job for job in known.values() if job.status not in UNFINISHED and job.id not in reviewed]
    for job in sorted(ended, key=_end):
        old = now() - _end(job) > timedelta(days=settings.results_days)
        if (old or (excess > 0 and sizes[job.id])) and not maps.in_use(job.id):
            jobs.remove(job.id)  # first: were the database away afterwards, a job without files would stay in it
            maps.remove(job.id)
            removed.append(job.id)
            excess -= sizes[job.id]
    mapped = {job.request.raster for job in known.values() if job.id not in removed}
    for folder in sorted(uploads, key=_age, reverse=True):
        old = _age(folder) > settings.results_days * 86400
        if f"{raster_paths.UPLOADS}/{folder.name}" not in mapped and (old or excess > 0) and _age(folder) > IN_USE:
            excess -= _size(folder)
            shutil.rmtree(folder, ignore_errors=True)
            removed.append(folder.name)
    root, uploaded = settings.results / raster_paths.UPLOADS, UploadStore(jobs.database, settings.upload_bytes_per_key)
    uploaded.forget(upload for upload in uploaded.all() if not (root / upload).is_dir())
    return removed


def remove_unfinished_uploads(results: Path) -> None:
    """Remove uploads that were interrupted when a service was ended.

    It is called before any new upload can arrive.
    """
    for folder in _folders(results / raster_paths.UPLOADS):
        if any(folder.glob("*.part")):
            shutil.rmtree(folder, ignore_errors=True)


def _folders(folder: Path) -> list[Path]:
    return [path for path in folder.iterdir() if path.is_dir()] if folder.is_dir() else []


def _age(folder: Path) -> float:
    """Return the seconds since a folder was last changed."""
    return time.time() - folder.stat().st_mtime


def _end(job: Job) -> datetime:
    return job.finished or job.updated


def _size(folder: Path) -> int:
    """Return the size of all files below a folder, in bytes."""
    total = 0
    for root, _, names in os.walk(folder):
        for name in names:
            try:
                total += (Path(root) / name).stat().st_size
            except OSError:
                continue  # just removed
    return total
