"""Connection to the service's SQLite or PostgreSQL database, and its migrations."""

from __future__ import annotations

import logging
import os
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from datetime import UTC, datetime
from importlib.resources import files
from pathlib import Path
from typing import TypeVar

from alembic import command
from alembic.config import Config
from alembic.runtime.migration import MigrationContext
from alembic.script import ScriptDirectory
from sqlalchemy import Connection, Engine, create_engine, event
from sqlalchemy.engine import URL, make_url
from sqlalchemy.exc import DataError, DBAPIError, IntegrityError, SQLAlchemyError
from sqlalchemy.exc import TimeoutError as PoolTimeoutError
from sqlalchemy.orm import Session

from talud.errors import OutputError, ParamsError
from talud.files import translate_write_errors
from talud.text import first_line

VERSION_TABLE = "talud_service_version"  # not alembic_version, which MLflow may use in the same database
_MIGRATION_LOCKS = {  # statements that lock the database until the end of the transaction
    "sqlite": "BEGIN IMMEDIATE",
    "postgresql": "SELECT pg_advisory_xact_lock(7426583)",
}

LOCK_TIMEOUT_SECONDS = 10  # for a lock in SQLite, or a connection to PostgreSQL


class Database:
    """Open database.

    Attributes:
        engine: SQLAlchemy engine.
    """

    def __init__(self, engine: Engine) -> None:
        self.engine = engine

    def session(self) -> Session:
        """Return a session whose objects outlive it."""
        return Session(self.engine, expire_on_commit=False)

    @contextmanager
    def transaction(self) -> Iterator[Session]:
        """Yield a session, and commit it after the block."""
        with self.session() as session, session.begin():
            yield session

    @classmethod
    @contextmanager
    def open(cls, url: str) -> Iterator[Database]:
        """Open a database, and migrate it to the current layout.

        Raises:
            ParamsError: the URL is invalid, or its driver is missing.
            OutputError: the database cannot be opened or written to, or was created by a newer release.
        """
        try:
            place = make_url(url)
            if (
                place.get_backend_name() == "sqlite"
                and place.database
                and not place.database.startswith((":", "file:"))
            ):
                _make_private(Path(place.database))
            engine = create_engine(place, pool_pre_ping=True, connect_args=_timeout_option(place))
        except (SQLAlchemyError, ImportError) as error:
            raise ParamsError(f"the URL of the database is invalid: {first_line(error)}") from error
        if engine.dialect.name == "sqlite":
            event.listen(engine, "connect", _set_sqlite_pragmas)
        try:
            try:
                _migrate(engine, place.render_as_string())
            except SQLAlchemyError as error:
                raise OutputError(f"{place.render_as_string()}: cannot be opened: {first_line(error)}") from error
            yield cls(engine)
        finally:
            engine.dispose()


def _make_private(file: Path) -> None:
    """Create an SQLite file if missing, and restrict access to its owner.

    The restriction includes the files `-wal` and `-shm` next to it.

    Raises:
        OutputError: the file cannot be created.
    """
    with translate_write_errors(file):
        file.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
        os.close(os.open(file, os.O_RDWR | os.O_CREAT, 0o600))
        for each in (file, file.with_name(f"{file.name}-wal"), file.with_name(f"{file.name}-shm")):
            if each.exists() and each.stat().st_uid == os.getuid():
                each.chmod(0o600)


def _migrate(engine: Engine, place: str) -> None:
    """Migrate a database to the current layout.

    If several processes start at once, one of them migrates while the others wait.

    Raises:
        OutputError: the database was created by a newer release.
    """
    scripts = ScriptDirectory(str(files("talud.serving") / "migrations"))
    head = scripts.get_current_head()
    # With autocommit, because the driver of SQLite starts transactions too late and ends them too early.
    options = {"isolation_level": "AUTOCOMMIT"} if engine.dialect.name == "sqlite" else {}
    with engine.execution_options(**options).connect() as connection:
        revision = _revision(connection)
        if revision == head:
            return
        if revision and revision not in {script.revision for script in scripts.walk_revisions()}:
            raise OutputError(
                f"{place}: was created by a newer talud (layout {revision}, this release knows up to {head}); install "
                "that release, or restore an earlier backup"
            )
        connection.rollback()
        connection.exec_driver_sql(_MIGRATION_LOCKS.get(engine.dialect.name, "SELECT 1"))
        config = Config(attributes={"connection": connection})
        config.set_main_option("script_location", str(files("talud.serving") / "migrations"))
        config.set_main_option("path_separator", "os")
        command.upgrade(config, "head")
        connection.commit()


def _revision(connection: Connection) -> str | None:
    return MigrationContext.configure(connection, opts={"version_table": VERSION_TABLE}).get_current_revision()


def utc_now() -> datetime:
    """Return the current time in UTC."""
    return datetime.now(UTC)


def _timeout_option(url: URL) -> dict[str, int]:
    """Return the driver's timeout option, unless the URL sets it."""
    option = "timeout" if url.get_backend_name() == "sqlite" else "connect_timeout"
    return {} if option in url.query else {option: LOCK_TIMEOUT_SECONDS}


def _set_sqlite_pragmas(connection: object, _record: object) -> None:
    """Set SQLite's journal mode, so that readers never wait."""
    cursor = connection.cursor()  # type: ignore[attr-defined]
    for pragma in ("journal_mode=WAL", "synchronous=NORMAL"):
        cursor.execute(f"PRAGMA {pragma}")
    cursor.close()


MIN_RETRY_DELAY_SECONDS = 0.5
MAX_RETRY_DELAY_SECONDS = 10.0
RETRY_AFTER_SECONDS = 10  # sent to clients whose request failed because of an outage

Result = TypeVar("Result")
_LOG = logging.getLogger("talud.service")


class JobStopped(Exception):  # noqa: N818 - not an error
    """End of a job that was dismissed or whose service stops."""


def is_outage(error: SQLAlchemyError) -> bool:
    """Check if an error is a temporary outage of the database.

    Refused values are not an outage, because the same call would fail again.
    """
    return isinstance(error, DBAPIError | PoolTimeoutError) and not isinstance(error, DataError | IntegrityError)


def retry_outages(call: Callable[[], Result], stopping: threading.Event) -> Result:
    """Call the database, and retry during an outage.

    Args:
        call: function to call; it may be repeated although its first commit reached the database.
        stopping: event that ends the retries.

    Raises:
        JobStopped: the service ends before the database answers.
        SQLAlchemyError: the call fails for a reason other than an outage.
    """
    pause, since = MIN_RETRY_DELAY_SECONDS, None
    while True:
        try:
            result = call()
        except SQLAlchemyError as error:
            if not is_outage(error):
                raise
            if since is None:
                since = time.monotonic()
                _LOG.warning("the database does not answer; retrying: %s", first_line(error))
        else:
            if since is not None:
                _LOG.warning("the database answers again, after %.0f s", time.monotonic() - since)
            return result
        if stopping.wait(pause):
            raise JobStopped
        pause = min(2 * pause, MAX_RETRY_DELAY_SECONDS)
