"""Results folder: jobs, uploads, lock and retention."""

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
from talud.serving.database import Database, utc_now
from talud.serving.jobs import JobStore
from talud.serving.problems import Problem
from talud.serving.rasters import Raster, checked_grid, describe_raster, open_raster
from talud.serving.settings import Settings
from talud.serving.tables import STATUSES, UNFINISHED, Job, Key, UploadOwner
from talud.text import dimensions

VIEW_PROTECTION_SECONDS = 15 * 60  # a map is not removed for this long after it was viewed


@dataclass(frozen=True)
class JobFolders:
    """Folders of the jobs.

    Attributes:
        root: parent folder; each job has a folder named by its id.
    """

    root: Path
    _viewed_at: dict[str, float] = field(default_factory=dict, repr=False)

    def folder(self, job: str) -> Path:
        """Return the folder of a job."""
        return self.root / job

    def model(self, job: str) -> Path:
        """Return the path of a job's copy of its model."""
        return self.folder(job) / "model.onnx"

    def fetched_raster(self, job: str) -> Path:
        """Return the folder of a job's downloaded raster."""
        return self.folder(job) / "raster"

    def map_folder(self, job: str) -> Path:
        """Return the folder of a job's map."""
        return self.folder(job) / "map"

    def products(self, job: str) -> Products:
        """Return the files of a job's map."""
        return Products.within(self.map_folder(job))

    def copy_model(self, job: str, model: Path) -> None:
        """Copy a model into a job's folder, or link it.

        Raises:
            OutputError: the file cannot be written, for example on a full disk.
        """
        copy = self.model(job)
        with translate_write_errors(copy):
            copy.parent.mkdir(parents=True, exist_ok=True)
            scratch = copy.with_suffix(".part")
            scratch.unlink(missing_ok=True)
            try:
                # A link saves disk space when many jobs wait for the same model.
                scratch.hardlink_to(model)
            except OSError:  # another disk, or a file system without hard links
                shutil.copyfile(model, scratch)
            scratch.replace(copy)

    def mark_viewed(self, job: str) -> None:
        """Delay the removal of a map that was viewed."""
        self._viewed_at[job] = time.monotonic()

    def remove_tiles(self, job: str) -> None:
        """Remove the tiles of an unfinished map."""
        for folder in self.folder(job).glob(".*.partial"):
            shutil.rmtree(folder, ignore_errors=True)

    def remove(self, job: str) -> None:
        """Remove all files of a job."""
        shutil.rmtree(self.folder(job), ignore_errors=True)

    def recently_viewed(self, job: str) -> bool:
        """Check if a job's map was viewed recently."""
        viewed = self._viewed_at.get(job)
        return viewed is not None and time.monotonic() - viewed < VIEW_PROTECTION_SECONDS


_MAX_NAME_CHARACTERS = 80  # of an upload's file name, without its suffix


@dataclass(frozen=True)
class Upload:
    """Raster that is being uploaded.

    Attributes:
        id: UUID of the upload.
        path: path of the finished file.
        stream: open file of the bytes that were received so far.
    """

    id: str
    path: Path
    stream: BinaryIO

    @classmethod
    def create(cls, settings: Settings, filename: str) -> Upload:
        """Create an empty file in a new folder.

        Raises:
            OutputError: the file cannot be created.
        """
        identity = str(uuid.uuid4())
        path = settings.results / raster_paths.UPLOADS_FOLDER / identity / safe_name(filename)
        with translate_write_errors(path):
            path.parent.mkdir(parents=True)
            return cls(identity, path, _partial_path(path).open("wb"))

    def write(self, data: bytes) -> None:
        """Append received bytes to the file.

        Raises:
            OutputError: the disk is full.
        """
        with translate_write_errors(self.path):
            self.stream.write(data)

    def finish(self, settings: Settings, contracts: Sequence[tuple[str, Contract]] = ()) -> Raster:
        """Check the uploaded file and return its raster.

        Raises:
            SourceError: the file is not a GeoTIFF that can be mapped.
            OutputError: the disk is full.
        """
        part = _partial_path(self.path)
        with translate_write_errors(self.path):
            self.stream.close()
        try:
            _check_upload(part, settings)
        except SourceError as error:
            raise SourceError(str(error).replace(part.name, self.path.name)) from error
        with translate_write_errors(self.path):
            part.replace(self.path)
        return describe_raster(f"{raster_paths.UPLOADS_FOLDER}/{self.id}", self.path, settings, contracts)

    def discard(self) -> None:
        """Delete the file and its folder."""
        self.stream.close()
        shutil.rmtree(self.path.parent, ignore_errors=True)


def safe_name(filename: str) -> str:
    """Return a safe file name that ends in .tif.

    The name consists of ASCII letters, digits, - and _.
    """
    last = re.split(r"[/\\]", unicodedata.normalize("NFKC", filename))[-1]
    stem = re.sub(r"\.tiff?$", "", last, flags=re.IGNORECASE)
    plain = re.sub(r"[^A-Za-z0-9-]+", "_", unicodedata.normalize("NFKD", stem).encode("ascii", "ignore").decode())
    return f"{plain[:_MAX_NAME_CHARACTERS].strip('_-') or 'raster'}.tif"


def _partial_path(path: Path) -> Path:
    return path.with_name(f"{path.name}.part")


def _check_upload(path: Path, settings: Settings) -> None:
    """Check that a GeoTIFF is complete, georeferenced and small enough."""
    raster_paths.check_directories(path, path.name)
    with open_raster(path) as dataset:
        grid = checked_grid(dataset)
        if grid.height * grid.width > settings.pixels:
            raise SourceError(
                f"{path.name}: has {dimensions(grid.width, grid.height)}, and this service maps at most "
                f"{settings.pixels:,} pixels; split it into parts"
            )
        check_blocks(dataset, dataset.indexes, path)
        # A truncated file lacks its last block.
        dataset.read(window=Window(grid.width - 1, grid.height - 1, 1, 1))


@dataclass(frozen=True)
class UploadStore:
    """Owners and sizes of uploads, for the quota of each API key.

    Attributes:
        database: open database of the service.
        quota: largest total size of the uploads of one key, in bytes.
    """

    database: Database
    quota: int
    _lock: threading.Lock = field(default_factory=threading.Lock)

    def reserve(self, upload: str, key: Key, size: int) -> None:
        """Set the size of an upload, and check the quota.

        Raises:
            Problem: the key's uploads would exceed the quota.
        """
        others = select(func.coalesce(func.sum(UploadOwner.bytes), 0))
        others = others.where(UploadOwner.key_id == key.id, UploadOwner.id != upload)
        # Only one service uses the database, so a lock in this process is enough for parallel uploads.
        with self._lock, self.database.transaction() as session:
            taken = int(session.scalar(others) or 0)
            if taken + size > self.quota:
                raise Problem(
                    413,
                    f"the uploads of the key {key.name} have {taken:,} bytes, and the quota is {self.quota:,} bytes; "
                    "delete one with DELETE /uploads/ID",
                )
            session.merge(UploadOwner(id=upload, key_id=key.id, bytes=size))

    def owner(self, upload: str) -> str | None:
        """Return the id of an upload's key, or None."""
        with self.database.session() as session:
            row = session.get(UploadOwner, upload)
            return row.key_id if row else None

    def ids(self) -> tuple[str, ...]:
        """Return the ids of all uploads in the database."""
        with self.database.session() as session:
            return tuple(session.scalars(select(UploadOwner.id)))

    def release(self, uploads: Iterable[str]) -> None:
        """Remove uploads from the quota."""
        with self.database.transaction() as session:
            session.execute(delete(UploadOwner).where(UploadOwner.id.in_(list(uploads))))


@contextmanager
def lock_results(results: Path) -> Iterator[None]:
    """Lock the results folder, so that a second service cannot use it.

    Raises:
        BusyError: another service uses the folder.
        OutputError: the folder cannot be written to.
    """
    with translate_write_errors(results):
        results.mkdir(mode=0o700, parents=True, exist_ok=True)
        if results.stat().st_mode & 0o007:  # access for a group is left as the operator set it
            results.chmod(0o700)
    busy = BusyError(f"{results}: another service uses this folder; stop that service, or choose another folder")
    with exclusive_lock(results / "service.lock", busy):
        yield


def remove_expired(jobs: JobStore, job_folders: JobFolders, settings: Settings) -> list[str]:
    """Remove expired maps and uploads, and free space.

    Maps and uploads in use are kept. A map with reviews is kept until it is dismissed: the map could be made again, but
    the reviews could not.

    Returns:
        The ids of the jobs and uploads that were removed.
    """
    known = {job.id: job for job in jobs.list(STATUSES, limit=10**6)}
    uploads = _subfolders(settings.results / raster_paths.UPLOADS_FOLDER)
    for folder in _subfolders(job_folders.root):
        stray = folder.name not in known or known[folder.name].status == "dismissed"
        if stray and _age_seconds(folder) > VIEW_PROTECTION_SECONDS:
            shutil.rmtree(folder, ignore_errors=True)
    sizes = {name: _size_bytes(job_folders.folder(name)) for name in known}
    excess, removed = sum(sizes.values()) + sum(map(_size_bytes, uploads)) - settings.results_bytes, []
    reviewed = jobs.reviewed_ids()
    ended = [job for job in known.values() if job.status not in UNFINISHED and job.id not in reviewed]
    for job in sorted(ended, key=_end_time):
        old = utc_now() - _end_time(job) > timedelta(days=settings.results_days)
        if (old or (excess > 0 and sizes[job.id])) and not job_folders.recently_viewed(job.id):
            # The row is removed first: if the database failed afterwards, a job without files would stay in it.
            jobs.remove(job.id)
            job_folders.remove(job.id)
            removed.append(job.id)
            excess -= sizes[job.id]
    mapped = {job.request.raster for job in known.values() if job.id not in removed}
    for folder in sorted(uploads, key=_age_seconds, reverse=True):
        old = _age_seconds(folder) > settings.results_days * 86400
        unused = f"{raster_paths.UPLOADS_FOLDER}/{folder.name}" not in mapped
        if unused and (old or excess > 0) and _age_seconds(folder) > VIEW_PROTECTION_SECONDS:
            excess -= _size_bytes(folder)
            shutil.rmtree(folder, ignore_errors=True)
            removed.append(folder.name)
    root = settings.results / raster_paths.UPLOADS_FOLDER
    store = UploadStore(jobs.database, settings.upload_bytes_per_key)
    store.release(upload for upload in store.ids() if not (root / upload).is_dir())
    return removed


def remove_unfinished_uploads(results: Path) -> None:
    """Remove uploads that were interrupted by a stop of the service.

    It must be called before the service accepts uploads.
    """
    for folder in _subfolders(results / raster_paths.UPLOADS_FOLDER):
        if any(folder.glob("*.part")):
            shutil.rmtree(folder, ignore_errors=True)


def _subfolders(folder: Path) -> list[Path]:
    return [path for path in folder.iterdir() if path.is_dir()] if folder.is_dir() else []


def _age_seconds(folder: Path) -> float:
    """Return the seconds since a folder was last changed."""
    return time.time() - folder.stat().st_mtime


def _end_time(job: Job) -> datetime:
    return job.finished or job.updated


def _size_bytes(folder: Path) -> int:
    """Return the size of all files below a folder, in bytes."""
    total = 0
    for root, _, names in os.walk(folder):
        for name in names:
            try:
                total += (Path(root) / name).stat().st_size
            except OSError:
                continue  # removed in the meantime
    return total
