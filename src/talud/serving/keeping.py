"""What is kept, and for how long: maps and uploads; and that one service alone keeps them."""

from __future__ import annotations

import os
import shutil
import time
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import datetime, timedelta
from pathlib import Path

from talud.errors import BusyError
from talud.files import exclusive_lock, writing
from talud.serving import places
from talud.serving.database import now
from talud.serving.jobs import JobStore
from talud.serving.maps import IN_USE, Maps
from talud.serving.settings import Settings
from talud.serving.tables import STATUSES, UNFINISHED, Job
from talud.serving.uploads import UploadStore


@contextmanager
def alone(results: Path) -> Iterator[None]:
    """Keep other services from a folder of results, whose running jobs they would take for ones that were cut short.

    Raises:
        OutputError: another service uses it, or it cannot be written to.
    """
    with writing(results):
        results.mkdir(mode=0o700, parents=True, exist_ok=True)
        if results.stat().st_mode & 0o007:  # a group that an operator lets in stays
            results.chmod(0o700)
    busy = BusyError(f"{results}: another service uses this folder; stop it, or name another one")
    with exclusive_lock(results / "service.lock", busy):
        yield


def clean(jobs: JobStore, maps: Maps, settings: Settings) -> list[str]:
    """Remove what is older than the settings allow, or more: the oldest first, nothing in use.

    A map that people have reviewed stays until somebody throws it away: it could be made again, their work could not.

    Returns:
        The ids of the jobs and uploads that were removed.
    """
    known = {job.id: job for job in jobs.list(STATUSES, limit=10**6)}
    uploads = _folders(settings.results / places.UPLOADS)
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
        if f"{places.UPLOADS}/{folder.name}" not in mapped and (old or excess > 0) and _age(folder) > IN_USE:
            excess -= _size(folder)
            shutil.rmtree(folder, ignore_errors=True)
            removed.append(folder.name)
    root, uploaded = settings.results / places.UPLOADS, UploadStore(jobs.database, settings.upload_bytes_per_key)
    uploaded.forget(upload for upload in uploaded.all() if not (root / upload).is_dir())
    return removed


def remove_unfinished_uploads(results: Path) -> None:
    """Remove uploads that were interrupted when a service was ended.

    It is called before any new upload can arrive.
    """
    for folder in _folders(results / places.UPLOADS):
        if any(folder.glob("*.part")):
            shutil.rmtree(folder, ignore_errors=True)


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
