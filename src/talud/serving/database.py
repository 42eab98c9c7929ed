"""The service's database: SQLite by default, PostgreSQL by its URL."""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import UTC, datetime
from importlib.resources import files
from pathlib import Path

from alembic import command
from alembic.config import Config
from alembic.runtime.migration import MigrationContext
from alembic.script import ScriptDirectory
from sqlalchemy import (
    JSON,
    BigInteger,
    Connection,
    DateTime,
    Engine,
    Float,
    Integer,
    String,
    Text,
    TypeDecorator,
    create_engine,
    event,
)
from sqlalchemy.engine import URL, Dialect, make_url
from sqlalchemy.exc import SQLAlchemyError
from sqlalchemy.orm import DeclarativeBase, Mapped, MappedAsDataclass, mapped_column

from talud.errors import OutputError, ParamsError
from talud.files import writing
from talud.serving import migrations
from talud.text import first_line

VERSION_TABLE = "talud_service_version"  # MLflow, too, keeps an alembic_version
_LOCK = {
    "sqlite": "BEGIN IMMEDIATE",
    "postgresql": "SELECT pg_advisory_xact_lock(7426583)",
}  # until the transaction ends

PATIENCE_SECONDS = 10  # for a lock of SQLite, or a connection to PostgreSQL


class Moment(TypeDecorator[datetime]):
    """A time in UTC, which SQLite would give back without its zone."""

    impl = DateTime(timezone=True)
    cache_ok = True

    def process_result_value(self, value: datetime | None, _: Dialect) -> datetime | None:
        """The time, in UTC."""
        return value if value is None else value.replace(tzinfo=UTC) if value.tzinfo is None else value.astimezone(UTC)


class Table(MappedAsDataclass, DeclarativeBase, kw_only=True):
    """What all tables of the service have in common."""


class JobRow(Table):
    """A job (see `jobs.Job`)."""

    __tablename__ = "jobs"

    id: Mapped[str] = mapped_column(String(36), primary_key=True)
    key: Mapped[str] = mapped_column(String(80), index=True)
    status: Mapped[str] = mapped_column(String(12), index=True)
    message: Mapped[str] = mapped_column(Text)
    progress: Mapped[int] = mapped_column(Integer)
    inputs: Mapped[dict[str, object]] = mapped_column(JSON)
    created: Mapped[datetime] = mapped_column(Moment, index=True)
    updated: Mapped[datetime] = mapped_column(Moment)
    started: Mapped[datetime | None] = mapped_column(Moment, default=None)
    finished: Mapped[datetime | None] = mapped_column(Moment, default=None)
    key_id: Mapped[str | None] = mapped_column(String(36), index=True, default=None)


class KeyRow(Table):
    """An API key (see `keys.Key`)."""

    __tablename__ = "keys"

    id: Mapped[str] = mapped_column(String(36), primary_key=True)
    name: Mapped[str] = mapped_column(String(80), unique=True)
    digest: Mapped[str] = mapped_column(String(64), unique=True)
    scope: Mapped[str] = mapped_column(String(8))
    created: Mapped[datetime] = mapped_column(Moment)
    expires: Mapped[datetime | None] = mapped_column(Moment, default=None)


class SessionRow(Table):
    """A session of the page (see `sessions`)."""

    __tablename__ = "sessions"

    digest: Mapped[str] = mapped_column(String(64), primary_key=True)
    key_id: Mapped[str] = mapped_column(String(36), index=True)
    expires: Mapped[datetime] = mapped_column(Moment)


class UploadRow(Table):
    """The owner of an upload, and its size in bytes (see `uploads`)."""

    __tablename__ = "uploads"

    id: Mapped[str] = mapped_column(String(36), primary_key=True)
    key_id: Mapped[str] = mapped_column(String(36), index=True)
    bytes: Mapped[int] = mapped_column(BigInteger)


class _Said(MappedAsDataclass, kw_only=True):
    """A reviewer's verdict on a polygon.

    `geometry` is GeoJSON in the raster's CRS, if the reviewer drew an outline.
    """

    verdict: Mapped[str] = mapped_column(String(10))
    reviewer: Mapped[str] = mapped_column(String(80))
    reviewed: Mapped[datetime] = mapped_column(Moment)
    key_id: Mapped[str | None] = mapped_column(String(36), default=None)
    geometry: Mapped[dict[str, object] | None] = mapped_column(JSON, default=None)
    area: Mapped[float | None] = mapped_column(Float, default=None)


class VerdictRow(_Said, Table):
    """The present verdict on a polygon (see `verdicts`)."""

    __tablename__ = "verdicts"

    job: Mapped[str] = mapped_column(String(36), primary_key=True)
    polygon: Mapped[str] = mapped_column(String(36), primary_key=True)


class VerdictChangeRow(_Said, Table):
    """One change of a verdict.

    Rows are never changed, and are removed only with their job.
    """

    __tablename__ = "verdict_changes"

    number: Mapped[int] = mapped_column(Integer, primary_key=True, init=False)
    job: Mapped[str] = mapped_column(String(36), index=True)
    polygon: Mapped[str] = mapped_column(String(36))


class Database:
    """An open database.

    Attributes:
        engine: SQLAlchemy's.
    """

    def __init__(self, engine: Engine) -> None:
        self.engine = engine

    @classmethod
    @contextmanager
    def opened(cls, url: str) -> Iterator[Database]:
        """Open the database at a URL and migrate it to the present layout.

        Raises:
            ParamsError: the URL is none, or its driver is missing.
            OutputError: the database cannot be reached or written to, or is of a newer talud.
        """
        try:
            place = make_url(url)
            if (
                place.get_backend_name() == "sqlite"
                and place.database
                and not place.database.startswith((":", "file:"))
            ):
                _make_private(Path(place.database))
            engine = create_engine(place, pool_pre_ping=True, connect_args=_patience(place))
        except (SQLAlchemyError, ImportError) as error:
            raise ParamsError(f"the database's URL cannot be used: {first_line(error)}") from error
        if engine.dialect.name == "sqlite":
            event.listen(engine, "connect", _patient)
        try:
            try:
                _migrate(engine, place.render_as_string())
            except SQLAlchemyError as error:
                raise OutputError(f"{place.render_as_string()}: cannot be opened: {first_line(error)}") from error
            yield cls(engine)
        finally:
            engine.dispose()


def _make_private(file: Path) -> None:
    """Create a missing SQLite file, and make it private whatever the umask.

    This includes the files beside it.

    Raises:
        OutputError: it cannot be made.
    """
    with writing(file):
        file.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
        os.close(os.open(file, os.O_RDWR | os.O_CREAT, 0o600))
        for each in (file, file.with_name(f"{file.name}-wal"), file.with_name(f"{file.name}-shm")):
            if each.exists() and each.stat().st_uid == os.getuid():
                each.chmod(0o600)


def _migrate(engine: Engine, place: str) -> None:
    """Migrate a database to the present layout.

    If several processes start at once, one migrates and the others wait.

    Raises:
        OutputError: it was made by a newer talud.
    """
    scripts = ScriptDirectory(str(files(migrations)))
    head = scripts.get_current_head()
    # SQLite's driver would begin a transaction too late, and end it too early.
    options = {"isolation_level": "AUTOCOMMIT"} if engine.dialect.name == "sqlite" else {}
    with engine.execution_options(**options).connect() as connection:
        revision = _revision(connection)
        if revision == head:
            return
        if revision and revision not in {script.revision for script in scripts.walk_revisions()}:
            raise OutputError(
                f"{place}: was made by a newer talud (layout {revision}, this one knows up to {head}); install that "
                "one again, or restore an earlier backup"
            )
        connection.rollback()
        connection.exec_driver_sql(_LOCK.get(engine.dialect.name, "SELECT 1"))
        config = Config(attributes={"connection": connection})
        config.set_main_option("script_location", str(files(migrations)))
        config.set_main_option("path_separator", "os")
        command.upgrade(config, "head")
        connection.commit()


def _revision(connection: Connection) -> str | None:
    return MigrationContext.configure(connection, opts={"version_table": VERSION_TABLE}).get_current_revision()


def now() -> datetime:
    """The time, in UTC."""
    return datetime.now(UTC)


def _patience(url: URL) -> dict[str, int]:
    """Return the timeout for a lock or a connection, unless the URL sets it."""
    option = "timeout" if url.get_backend_name() == "sqlite" else "connect_timeout"
    return {} if option in url.query else {option: PATIENCE_SECONDS}


def _patient(connection: object, _record: object) -> None:
    """Set up a SQLite file so that readers do not wait for a writer."""
    cursor = connection.cursor()  # type: ignore[attr-defined]
    for pragma in ("journal_mode=WAL", "synchronous=NORMAL"):
        cursor.execute(f"PRAGMA {pragma}")
    cursor.close()
