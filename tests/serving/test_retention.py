"""Tests of the clean-up of maps and uploads, and of claims of jobs."""

from __future__ import annotations

import os
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from datetime import timedelta
from pathlib import Path

import pytest
from sqlalchemy import update
from sqlalchemy.orm import Session

from talud.errors import BusyError
from talud.serving.database import Database, utc_now
from talud.serving.jobs import JobStore
from talud.serving.problems import Problem
from talud.serving.reviews import ReviewStore
from talud.serving.settings import Settings
from talud.serving.storage import JobFolders, lock_results, remove_expired
from talud.serving.tables import Job, Key, MapRequest, Review

MEGABYTE = 10**6
REVIEWER_KEY = Key(id="0" * 32, name="field office", digest="", scope="run", created=utc_now())


@pytest.fixture
def jobs(tmp_path: Path) -> Iterator[JobStore]:
    with Database.open(f"sqlite:///{tmp_path}/service.db") as database:
        yield JobStore(database)


def settings(tmp_path: Path, **others: object) -> Settings:
    return Settings(data=tmp_path, results=tmp_path, **others)


def make_review(job: str) -> Review:
    """Return a review of polygon 1 of a job's map."""
    return Review(job=job, polygon="1", verdict="accepted", reviewer="Ana", reviewed=utc_now())


def add_ended_job(jobs: JobStore, folders: JobFolders, name: str, days: float) -> None:
    """Add a job that ended some days ago, with a map of 1 MB."""
    jobs.create(name, "somebody", MapRequest(raster="a.tif"))
    jobs.end(name, "successful", "done")
    with Session(jobs.database.engine) as session, session.begin():
        session.execute(update(Job).where(Job.id == name).values(finished=utc_now() - timedelta(days=days)))
    folders.map_folder(name).mkdir(parents=True)
    (folders.map_folder(name) / "probability.tif").write_bytes(bytes(MEGABYTE))


def test_second_service_on_results_folder_is_refused(tmp_path: Path) -> None:
    with (
        lock_results(tmp_path),
        pytest.raises(BusyError, match="another service uses this folder"),
        lock_results(tmp_path),
    ):
        pass
    with lock_results(tmp_path):
        pass


def test_clean_up_removes_expired_maps(jobs: JobStore, tmp_path: Path) -> None:
    folders = JobFolders(tmp_path / "jobs")
    for name, days in (("old", 8), ("young", 6)):
        add_ended_job(jobs, folders, name, days)
    assert remove_expired(jobs, folders, settings(tmp_path, results_days=7)) == ["old"]
    assert (jobs.get("old"), folders.folder("old").exists(), folders.folder("young").exists()) == (None, False, True)


def test_clean_up_frees_space_but_keeps_maps_in_use(jobs: JobStore, tmp_path: Path) -> None:
    folders = JobFolders(tmp_path / "jobs")
    for name, days in (("first", 4), ("second", 3), ("third", 2), ("fourth", 1)):
        add_ended_job(jobs, folders, name, days)
    jobs.create("running", "somebody", MapRequest(raster="a.tif"))
    folders.map_folder("running").mkdir(parents=True)
    (folders.map_folder("running") / "tiles").write_bytes(bytes(MEGABYTE))
    folders.mark_viewed("second")
    assert remove_expired(jobs, folders, settings(tmp_path, results_bytes=3 * MEGABYTE)) == ["first", "third"]
    assert sorted(path.name for path in (tmp_path / "jobs").iterdir()) == ["fourth", "running", "second"]


def test_clean_up_keeps_reviewed_maps(jobs: JobStore, tmp_path: Path) -> None:
    folders = JobFolders(tmp_path / "jobs")
    for name in ("reviewed", "forgotten"):
        add_ended_job(jobs, folders, name, 100)
    ReviewStore(jobs.database).save(make_review("reviewed"), REVIEWER_KEY)
    assert remove_expired(jobs, folders, settings(tmp_path, results_days=7, results_bytes=1)) == ["forgotten"]
    assert ReviewStore(jobs.database).all("reviewed").keys() == {"1"}


def test_dismissed_job_is_removed_with_its_review(jobs: JobStore, tmp_path: Path) -> None:
    folders, store = JobFolders(tmp_path / "jobs"), ReviewStore(jobs.database)
    for name in ("thrown away", "kept"):
        add_ended_job(jobs, folders, name, 100)
        store.save(make_review(name), REVIEWER_KEY)
    jobs.dismiss("thrown away")
    assert store.all("thrown away") == {}
    assert store.history("thrown away", "1") == ()
    with Session(jobs.database.engine) as session, session.begin():
        session.execute(update(Job).values(finished=utc_now() - timedelta(days=100)))
    assert remove_expired(jobs, folders, settings(tmp_path, results_days=7)) == ["thrown away"]
    assert len(store.history("kept", "1")) == 1
    with pytest.raises(Problem, match="its map was deleted"):
        store.save(make_review("thrown away"), REVIEWER_KEY)
    assert store.all("thrown away") == {}


def test_clean_up_keeps_uploads_of_jobs(jobs: JobStore, tmp_path: Path) -> None:
    folders = JobFolders(tmp_path / "jobs")
    for name in ("shown", "forgotten", "fresh"):
        (tmp_path / "uploads" / name).mkdir(parents=True)
        (tmp_path / "uploads" / name / "a.tif").write_bytes(bytes(MEGABYTE))
        hours = 0 if name == "fresh" else 1
        os.utime(tmp_path / "uploads" / name, (time.time() - hours * 3600,) * 2)
    jobs.create("a", "somebody", MapRequest(raster="uploads/shown"))
    assert remove_expired(jobs, folders, settings(tmp_path, results_bytes=MEGABYTE)) == ["forgotten"]
    assert sorted(path.name for path in (tmp_path / "uploads").iterdir()) == ["fresh", "shown"]


def test_parallel_claims_return_different_jobs(jobs: JobStore) -> None:
    for number in range(40):
        jobs.create(f"{number:02}", "somebody", MapRequest(raster="a.tif"))
    first = jobs.claim()
    assert first is not None
    assert first.id == "00"
    with ThreadPoolExecutor(8) as threads:
        claimed = [job for job in threads.map(lambda _: jobs.claim(), range(120)) if job]
    assert sorted(job.id for job in claimed) == [f"{number:02}" for number in range(1, 40)]
    assert {job.status for job in claimed} == {"running"}


def test_dismissed_job_keeps_its_status(jobs: JobStore) -> None:
    jobs.create("a", "somebody", MapRequest(raster="a.tif"))
    jobs.claim()
    jobs.dismiss("a")
    assert not jobs.end("a", "successful", "done")
    jobs.save_progress("a", 50, "half")
    found = jobs.get("a")
    assert found is not None
    assert (found.status, found.progress) == ("dismissed", 0)
