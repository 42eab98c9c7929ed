"""Tests of a database that is locked, unavailable or restarted.

No job fails because of it, and no file is removed.
"""

from __future__ import annotations

import hashlib
import sqlite3
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
from sqlalchemy.exc import DataError, IntegrityError, OperationalError, SQLAlchemyError

from app_client import add_job, make_settings, run_app
from postgresql import running_postgresql
from service_process import EXECUTION, ServiceProcess, run_service, wait_for
from talud.engine.runtime import Model, RegistryVersion
from talud.products.prediction import predict
from talud.serving import database
from talud.serving.database import Database
from talud.serving.jobs import JobStore
from talud.serving.settings import Settings
from talud.serving.storage import JobFolders, remove_expired
from talud.serving.tables import MapRequest

REQUEST = {"inputs": {"raster": {"href": "small.tif"}}}
RECORD = "map/prediction.json"
DATABASE_LOCKED = OperationalError("UPDATE jobs", {}, sqlite3.OperationalError("database is locked"))


@contextmanager
def locked(database: Path) -> Iterator[None]:
    """Hold the write lock of an SQLite database, as a backup does."""
    connection = sqlite3.connect(database, isolation_level=None)
    connection.execute("BEGIN EXCLUSIVE")
    try:
        yield
    finally:
        connection.execute("ROLLBACK")
        connection.close()


def checksums(folder: Path) -> dict[str, str]:
    """Return the checksums of a map's files by name, without the timings."""
    files = [path for path in folder.iterdir() if path.name != "timings.json"]
    return {path.name: hashlib.sha256(path.read_bytes()).hexdigest() for path in files}


@pytest.fixture(scope="module")
def expected_checksums(
    service_project: Path, tiny_model: Path, tmp_path_factory: pytest.TempPathFactory
) -> dict[str, str]:
    """Return the checksums of the map of large.tif made without a service."""
    out = tmp_path_factory.mktemp("undisturbed") / "map"
    predict(
        Model.load(tiny_model, RegistryVersion("landslide-unet-3band", "1")), service_project / "stacks/large.tif", out
    )
    return checksums(out)


def is_refused_with_503(service: ServiceProcess) -> bool:
    """Check that write requests are answered with 503 and a retry time."""
    answer = service.http.post(EXECUTION, json=REQUEST, headers={"Prefer": "respond-async"})
    assert answer.status_code in (201, 503), answer.text
    if answer.status_code == 503:
        assert answer.headers["content-type"] == "application/problem+json"
        assert int(answer.headers["Retry-After"]) > 0
        assert "database" in answer.json()["detail"]
    return answer.status_code == 503


def start_job(service: ServiceProcess) -> str:
    """Return the id of a job with a finished tile."""
    job = service.ask("large.tif", model="landslide-unet-3band/1")
    wait_for(lambda: service.job(job)["progress"] > 0, "no tile is finished")
    return job


def short_timeout(folder: Path) -> dict[str, str]:
    """Return settings with a short timeout for database locks."""
    return {"results": str(folder), "database": f"sqlite:///{folder / 'service.db'}?timeout=0.2"}


@contextmanager
def job_finished_while_locked(service: ServiceProcess, folder: Path) -> Iterator[str]:
    """Yield a job whose map was finished while the database is locked."""
    job = start_job(service)
    with locked(folder / "service.db"):
        wait_for((folder / "jobs" / job / RECORD).exists, "the map is not finished")
        yield job


@pytest.mark.slow
def test_finished_map_survives_long_database_lock(
    service_project: Path, tmp_path: Path, expected_checksums: dict[str, str]
) -> None:
    with run_service(service_project, short_timeout(tmp_path)) as service:
        with job_finished_while_locked(service, tmp_path) as job:
            assert is_refused_with_503(service)
            assert service.http.get("/health/live").status_code == 200
            time.sleep(2)  # ten times the busy timeout
            assert checksums(tmp_path / "jobs" / job / "map") == expected_checksums
        ended = service.ended(job)
        assert (ended["status"], ended["progress"]) == ("successful", 100), ended
        assert checksums(tmp_path / "jobs" / job / "map") == expected_checksums
        assert service.ended(service.ask("small.tif"))["status"] == "successful"


@pytest.mark.slow
def test_map_finished_during_lock_is_kept_after_restart(
    service_project: Path, tmp_path: Path, expected_checksums: dict[str, str]
) -> None:
    """The service is killed after the map is finished and before its end is stored."""
    settings = short_timeout(tmp_path)
    with run_service(service_project, settings) as service, job_finished_while_locked(service, tmp_path) as job:
        time.sleep(1)
        service.kill()
    made = (tmp_path / "jobs" / job / RECORD).stat().st_mtime_ns
    with run_service(service_project, settings) as again:
        assert again.ended(job)["status"] == "successful"
    assert (tmp_path / "jobs" / job / RECORD).stat().st_mtime_ns == made
    assert checksums(tmp_path / "jobs" / job / "map") == expected_checksums


@pytest.mark.slow
def test_restart_of_postgresql_fails_no_job(
    service_project: Path, tmp_path: Path, expected_checksums: dict[str, str]
) -> None:
    with (
        running_postgresql() as database,
        run_service(service_project, {"results": str(tmp_path), "database": database.url}) as service,
    ):
        job = start_job(service)
        waiting = service.ask("small.tif")
        database.kill()
        assert is_refused_with_503(service)
        assert service.http.get(f"/jobs/{job}").status_code == 503
        assert service.http.get("/health/ready").status_code == 503
        wait_for((tmp_path / "jobs" / job / RECORD).exists, "the map is not finished")
        time.sleep(1)
        database.start()
        wait_for(lambda: service.http.get("/health/ready").status_code == 200, "the database is not used again")
        for each in (job, waiting):
            assert service.ended(each)["status"] == "successful", service.job(each)
        assert checksums(tmp_path / "jobs" / job / "map") == expected_checksums
        database.kill()
        database.start()
        assert service.ended(wait_for(lambda: request_job(service), "no job is taken"))["status"] == "successful"


def request_job(service: ServiceProcess) -> str | None:
    """Return the id of a new job, or None while the database refuses it."""
    answer = service.http.post(EXECUTION, json=REQUEST, headers={"Prefer": "respond-async"})
    return answer.json()["jobID"] if answer.status_code == 201 else None


@pytest.mark.slow
def test_write_request_during_sqlite_lock_gets_503(tmp_path: Path) -> None:
    settings = make_settings(tmp_path, database=f"sqlite:///{tmp_path}/service.db?timeout=0.05")
    with run_app(settings) as (client, service):
        job = add_job(service, "a.tif", "successful")
        with locked(tmp_path / "service.db"):
            answer = client.delete(f"/jobs/{job}")
            assert (answer.status_code, answer.headers["Retry-After"]) == (503, "10")
            assert client.get(f"/jobs/{job}").status_code == 200  # readers do not wait for writers
        assert client.delete(f"/jobs/{job}").json()["status"] == "dismissed"


@pytest.mark.parametrize(
    ("error", "is_outage"),
    [
        (DATABASE_LOCKED, True),
        (database.PoolTimeoutError("no connection is free"), True),
        (DataError("INSERT", {}, Exception("invalid byte")), False),
        (IntegrityError("INSERT", {}, Exception("not unique")), False),
        (SQLAlchemyError("no such column"), False),
    ],
)
def test_is_outage_excludes_refused_values(error: SQLAlchemyError, is_outage: bool) -> None:
    assert database.is_outage(error) is is_outage


def failing(times: int, calls: list[int]) -> Callable[[], str]:
    """Return a function that fails a number of times with an outage."""

    def call() -> str:
        calls.append(1)
        if len(calls) <= times:
            raise DATABASE_LOCKED
        return "stored"

    return call


def test_retry_outages_ends_with_success_or_shutdown(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(database, "MIN_RETRY_DELAY_SECONDS", 0.001)
    stopping, calls = threading.Event(), []
    assert database.retry_outages(failing(5, calls), stopping) == "stored"
    assert len(calls) == 6
    stopping.set()
    with pytest.raises(database.JobStopped):
        database.retry_outages(failing(5, []), stopping)


def test_job_end_can_be_stored_twice(tmp_path: Path) -> None:
    with Database.open(f"sqlite:///{tmp_path}/service.db") as database:
        jobs = JobStore(database)
        jobs.create("a", "somebody", MapRequest(raster="a.tif"))
        assert jobs.end("a", "successful", "done")
        assert jobs.end("a", "successful", "done")
        assert not jobs.end("a", "failed", "no")


def test_clean_up_keeps_files_if_database_is_locked(tmp_path: Path) -> None:
    folders = JobFolders(tmp_path / "jobs")
    settings = Settings(data=tmp_path, results=tmp_path, results_days=1e-9)
    with Database.open(f"sqlite:///{tmp_path}/service.db?timeout=0.05") as database:
        jobs = JobStore(database)
        jobs.create("a", "somebody", MapRequest(raster="a.tif"))
        jobs.end("a", "successful", "done")
        folders.map_folder("a").mkdir(parents=True)
        with locked(tmp_path / "service.db"), pytest.raises(OperationalError):
            remove_expired(jobs, folders, settings)
        assert folders.map_folder("a").exists()
        assert remove_expired(jobs, folders, settings) == ["a"]
        assert not folders.map_folder("a").exists()
