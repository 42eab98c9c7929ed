"""Tests of the database layout and its migrations.

They cover databases of earlier and newer releases, and those of several processes.
"""

from __future__ import annotations

import hashlib
import json
import os
import sqlite3
import stat
import subprocess
import sys
import tarfile
from collections.abc import Iterator
from contextlib import closing, contextmanager
from pathlib import Path

import pytest
from alembic.autogenerate import compare_metadata
from alembic.runtime.migration import MigrationContext
from fastapi.testclient import TestClient
from sqlalchemy import Connection, create_engine, text
from sqlalchemy.engine import make_url

from app_client import make_settings
from postgresql import postgresql
from talud.errors import OutputError
from talud.serving.app import create_app
from talud.serving.database import VERSION_TABLE, Database
from talud.serving.jobs import JobStore
from talud.serving.keys import KeyStore, SessionStore
from talud.serving.reviews import ReviewStore
from talud.serving.storage import UploadStore, lock_results
from talud.serving.tables import UNFINISHED, Table

RECORDED = Path(__file__).parent / "databases"  # written by services of earlier releases
JOB = "00000000-0000-4000-8000-00000000000{}"
DRAWN = "6f9b0a52-8d1c-4b7e-9a51-0c2f4f6a7d10"


def make_earlier_database(url: str, release: str = "before_migrations") -> None:
    """Create a database with keys, jobs and reviews of an earlier release."""
    engine = create_engine(url)
    script = (RECORDED / f"{release}_{engine.dialect.name}.sql").read_text()
    if engine.dialect.name == "sqlite":
        with closing(sqlite3.connect(engine.url.database)) as connection:
            connection.executescript(script)
    else:
        with engine.begin() as connection:
            connection.execution_options(no_parameters=True).exec_driver_sql(script)
    engine.dispose()


@contextmanager
def connect(url: str) -> Iterator[Connection]:
    """Yield a connection to a database without migrating it."""
    engine = create_engine(url)
    with engine.begin() as connection:
        yield connection
    engine.dispose()


@pytest.fixture(params=["sqlite", pytest.param("postgresql", marks=pytest.mark.slow)])
def url(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[str]:
    """Yield the URL of an empty database."""
    if request.param == "sqlite":
        yield f"sqlite:///{tmp_path}/service.db"
    else:
        with postgresql() as found:
            yield found


def test_database_before_migrations_is_upgraded_without_loss(url: str) -> None:
    make_earlier_database(url)
    with Database.open(url) as database:
        keys = {key.name: key for key in KeyStore(database).all()}
        assert {name: (key.scope, key.expires) for name, key in keys.items()} == {
            "Geological Survey": ("admin", None),
            "field office Medellín": ("run", None),
            "visitor": ("read", None),
        }
        assert keys["visitor"].created.isoformat() == "2026-11-04T09:30:15.123456+00:00"
        assert len({key.id for key in keys.values()}) == 3
        assert KeyStore(database).find("talud-secret-of-run") == keys["field office Medellín"]

        jobs = {job.id: job for job in JobStore(database).list()}
        assert [jobs[JOB.format(number)].status for number in range(4)] == [
            "successful", "failed", "dismissed", "successful",
        ]  # fmt: skip
        assert [jobs[JOB.format(number)].key_id for number in range(4)] == [
            keys["field office Medellín"].id, keys["Geological Survey"].id, None, "local",
        ]  # fmt: skip
        assert jobs[JOB.format(0)].request.raster == "basins/r0.tif"
        assert jobs[JOB.format(0)].request.threshold == 0.4

        store = ReviewStore(database)
        outputs = store.all(JOB.format(0))
        assert {name: (one.verdict, one.reviewer) for name, one in outputs.items()} == {
            "1": ("accepted", "Ana Ríos"), "2": ("rejected", "Luz"), DRAWN: ("accepted", "Ana Ríos"),
        }  # fmt: skip
        assert outputs[DRAWN].geometry.bounds == (400500, 649400, 400600, 649500)
        (change,) = store.history(JOB.format(0), DRAWN)
        for name in ("verdict", "reviewer", "reviewed", "geometry", "area", "key_id"):
            assert getattr(change, name) == getattr(outputs[DRAWN], name)
        assert store.all(JOB.format(2)) == {}  # the job was dismissed


@pytest.mark.slow
def test_service_uses_database_from_before_mapped_classes(url: str, tmp_path: Path) -> None:
    make_earlier_database(url, "before_mapped_classes")
    known = json.loads((RECORDED / "before_mapped_classes.json").read_text())[make_url(url).get_backend_name()]
    settings = make_settings(tmp_path, database=url, results_days=36_500)  # so that nothing expires
    (settings.results / known["upload"]).mkdir(parents=True)
    folder, job = settings.results / "jobs" / known["reviewed"] / "map", f"/jobs/{known['reviewed']}"
    with tarfile.open(RECORDED / "before_mapped_classes_map.tar.gz") as archive:
        archive.extractall(folder, filter="data")
    secret = known["secrets"]
    survey, office, visitor, revoked = (
        {"X-API-Key": secret[name]} for name in ("Geological Survey", "field office Medellín", "visitor", "revoked")
    )
    with (
        Database.open(url) as database,
        TestClient(create_app(settings, open_to_all=False), base_url="http://localhost") as client,
    ):
        stored = {found.id: found for found in JobStore(database).list()}
        listed = client.get("/jobs", headers=visitor).json()["jobs"]
        ended = {name: status for name, status in known["jobs"].items() if status not in UNFINISHED}
        assert {one["jobID"] for one in listed} == known["jobs"].keys() == stored.keys()
        assert ended.items() <= {one["jobID"]: one["status"] for one in listed}.items()
        assert stored[known["reviewed"]].request.options.minimum_area == 100
        assert stored[known["accepted"]].request.bands == ("red", "green", "blue")
        office_id = KeyStore(database).find(secret["field office Medellín"]).id
        assert stored[known["reviewed"]].key_id == office_id
        assert UploadStore(database, 10**9).owner(known["upload"].removeprefix("uploads/")) == office_id

        assert client.get("/jobs", headers=revoked).status_code == 401
        assert client.post("/session", json={"key": secret["Geological Survey"]}).json()["scope"] == "admin"
        client.cookies.clear()

        shown = client.get(f"{job}/polygons", headers=visitor).json()
        assert shown["counts"] == known["counts"]
        review = {one["id"]: one["properties"] for one in shown["features"] if one["properties"]["reviewed_by"]}
        assert {name: (one["verdict"], one["reviewed_by"], one["redrawn"]) for name, one in review.items()} == {
            "1": ("accepted", "Ana Ríos", False), "2": ("accepted", "Luz", False), "3": ("accepted", "Ana Ríos", True),
            known["drawn"]: ("accepted", "Ana Ríos", False),
        }  # fmt: skip

        def changes(polygon: str) -> list[tuple[str, str]]:
            answer = client.get(f"{job}/polygons/{polygon}/history", headers=visitor).json()
            return [(one["verdict"], one["reviewed_by"]) for one in answer["changes"]]

        rejected = {"verdict": "rejected", "reviewer": "Ana Ríos"}
        assert client.put(f"{job}/polygons/2", json=rejected, headers=office).status_code == 403  # Luz has another key
        assert client.put(f"{job}/polygons/1", json=rejected, headers=office).status_code == 200
        assert client.delete(f"{job}/polygons/{known['drawn']}", headers=survey).status_code == 204
        assert changes("1") == [("rejected", "Ana Ríos"), ("accepted", "Ana Ríos"), ("rejected", "Ana Ríos")]
        assert changes("4") == [("accepted", "Luz"), ("withdrawn", "Geological Survey")]
        assert changes(known["drawn"]) == [("accepted", "Ana Ríos"), ("withdrawn", "Geological Survey")]
        counted = client.get(f"{job}/polygons", headers=visitor).json()["counts"]
        assert (counted["accepted"], counted["rejected"], counted["drawn"]) == (2, 1, 0)


def test_upgraded_and_new_databases_have_equal_layouts(url: str) -> None:
    def differences() -> list[object]:
        with Database.open(url) as database, database.engine.connect() as connection:
            context = MigrationContext.configure(connection, opts={"version_table": VERSION_TABLE})
            return compare_metadata(context, Table.metadata)

    assert differences() == []
    with connect(url) as connection:
        for table in (*Table.metadata.tables, VERSION_TABLE):
            connection.execute(text(f"DROP TABLE {table}"))
    make_earlier_database(url)
    assert differences() == []
    assert differences() == []  # opened again


def test_database_of_newer_release_is_refused(url: str) -> None:
    with Database.open(url) as database:
        secret = KeyStore(database).add("survey", "run")
        with database.engine.begin() as connection:
            connection.execute(text(f"UPDATE {VERSION_TABLE} SET version_num = '9999'"))
    with pytest.raises(
        OutputError, match=r"created by a newer talud \(layout 9999, this release knows up to 0002\)"
    ) as raised:
        Database.open(url).__enter__()
    assert "\n" not in str(raised.value)
    with connect(url) as connection:
        digests = connection.execute(text("SELECT digest FROM keys")).scalars().all()
    assert digests == [hashlib.sha256(secret.encode()).hexdigest()]


@pytest.mark.slow
def test_database_is_upgraded_once_by_parallel_processes(url: str) -> None:
    make_earlier_database(url)
    code = (
        "import sys; from talud.serving.database import Database; from talud.serving.keys import KeyStore\n"
        "sys.stdin.readline()\n"
        "with Database.open(sys.argv[1]) as database: print(sorted(key.id for key in KeyStore(database).all()))"
    )
    command = [sys.executable, "-c", code, url]
    started = [
        subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
        for _ in range(4)
    ]
    for process in started:
        process.stdin.write("\n")
        process.stdin.flush()
    outputs = [process.communicate(timeout=60) for process in started]
    assert [process.returncode for process in started] == [0] * 4, outputs
    assert len({out for out, _ in outputs}) == 1
    with Database.open(url) as database:
        assert len(ReviewStore(database).history(JOB.format(0), "1")) == 1


def test_interrupted_upgrade_leaves_database_unchanged(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from alembic import op

    make_earlier_database(f"sqlite:///{tmp_path}/service.db")
    with closing(sqlite3.connect(tmp_path / "service.db")) as connection:
        before = list(connection.iterdump())

    def fail(*_: object, **__: object) -> None:
        raise OSError("no space left on device")

    with monkeypatch.context() as patch:
        patch.setattr(op, "drop_table", fail)
        with pytest.raises(OSError, match="no space left"):
            Database.open(f"sqlite:///{tmp_path}/service.db").__enter__()
    with closing(sqlite3.connect(tmp_path / "service.db")) as connection:
        assert list(connection.iterdump()) == before
    with Database.open(f"sqlite:///{tmp_path}/service.db") as database:
        assert len(KeyStore(database).all()) == 3


@pytest.mark.parametrize("umask", [0o000, 0o022, 0o027])
def test_database_and_results_are_readable_by_owner_only(tmp_path: Path, umask: int) -> None:
    results, before = tmp_path / "results", os.umask(umask)
    try:
        with lock_results(results), Database.open(f"sqlite:///{results}/service.db") as database:
            SessionStore(database).begin(KeyStore(database).find(KeyStore(database).add("survey", "run")))
            modes = {path.name: stat.S_IMODE(path.stat().st_mode) for path in results.glob("service.db*")}
    finally:
        os.umask(before)
    assert modes == {"service.db": 0o600, "service.db-wal": 0o600, "service.db-shm": 0o600}
    assert stat.S_IMODE(results.stat().st_mode) == 0o700


def test_permissions_of_earlier_release_are_restricted(tmp_path: Path) -> None:
    results = tmp_path / "results"
    results.mkdir(mode=0o755)
    make_earlier_database(f"sqlite:///{results}/service.db")
    (results / "service.db").chmod(0o644)
    with lock_results(results), Database.open(f"sqlite:///{results}/service.db"):
        assert stat.S_IMODE((results / "service.db").stat().st_mode) == 0o600
        assert stat.S_IMODE(results.stat().st_mode) == 0o700
    results.chmod(0o750)  # for the group of the workers
    with lock_results(results):
        assert stat.S_IMODE(results.stat().st_mode) == 0o750
