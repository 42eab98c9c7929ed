"""Connection to the service's database, its migrations, and its outages.

It is SQLite by default, and PostgreSQL by its URL.
"""

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

VERSION_TABLE = "talud_service_version"  # MLflow, too, keeps an alembic_version
_MIGRATION_LOCKS = {
    "sqlite": "BEGIN IMMEDIATE",
    "postgresql": "SELECT pg_advisory_xact_lock(7426583)",
}  # until the transaction ends

LOCK_TIMEOUT_SECONDS = 10  # for a lock of SQLite, or a connection to PostgreSQL


class Database:
    """An open database.

    Attributes:
        engine: SQLAlchemy engine.
    """

    def __init__(self, engine: Engine) -> None:
        self.engine = engine

    def session(self) -> Session:
        """Return a session whose objects can be used after its end."""
        return Session(self.engine, expire_on_commit=False)

    @contextmanager
    def transaction(self) -> Iterator[Session]:
        """Yield a session that is committed at the end of the block."""
        with self.session() as session, session.begin():
            yield session

    @classmethod
    @contextmanager
    def open(cls, url: str) -> Iterator[Database]:
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
            engine = create_engine(place, pool_pre_ping=True, connect_args=_timeout_option(place))
        except (SQLAlchemyError, ImportError) as error:
            raise ParamsError(f"the database's URL cannot be used: {first_line(error)}") from error
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
    """Create a missing SQLite file, and make it private whatever the umask.

    This includes the files beside it.

    Raises:
        OutputError: it cannot be made.
    """
    with translate_write_errors(file):
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
    scripts = ScriptDirectory(str(files("talud.serving") / "migrations"))
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
        connection.exec_driver_sql(_MIGRATION_LOCKS.get(engine.dialect.name, "SELECT 1"))
        config = Config(attributes={"connection": connection})
        config.set_main_option("script_location", str(files("talud.serving") / "migrations"))
        config.set_main_option("path_separator", "os")
        command.upgrade(config, "head")
        connection.commit()


def _revision(connection: Connection) -> str | None:
    return MigrationContext.configure(connection, opts={"version_table": VERSION_TABLE}).get_current_revision()


def utc_now() -> datetime:
    """The time, in UTC."""
    return datetime.now(UTC)


def _timeout_option(url: URL) -> dict[str, int]:
    """Return the timeout for a lock or a connection, unless the URL sets it."""
    option = "timeout" if url.get_backend_name() == "sqlite" else "connect_timeout"
    return {} if option in url.query else {option: LOCK_TIMEOUT_SECONDS}


def _set_sqlite_pragmas(connection: object, _record: object) -> None:
    """Set up a SQLite file so that readers do not wait for a writer."""
    cursor = connection.cursor()  # type: ignore[attr-defined]
    for pragma in ("journal_mode=WAL", "synchronous=NORMAL"):
        cursor.execute(f"PRAGMA {pragma}")
    cursor.close()


MIN_RETRY_DELAY_SECONDS = 0.5
MAX_RETRY_DELAY_SECONDS = 10.0
RETRY_AFTER_SECONDS = 10  # of a request that is refused because of an outage

Result = TypeVar("Result")
_LOG = logging.getLogger("talud.service")


class JobStopped(Exception):  # noqa: N818 - no error
    """An exception that ends a job which was dismissed or whose service ends."""


def is_outage(error: SQLAlchemyError) -> bool:
    """Check whether an error is an outage: locked, full, away or restarted.

    Values that it refuses are no outage: the same call would fail again.
    """
    return isinstance(error, DBAPIError | PoolTimeoutError) and not isinstance(error, DataError | IntegrityError)


def retry_outages(call: Callable[[], Result], stopping: threading.Event) -> Result:
    """Retry a call of the database with growing pauses until it succeeds.

    Args:
        call: the call, which may be made more than once although its first commit reached the database.
        stopping: the event after which nothing is repeated.

    Raises:
        JobStopped: the service ends before the database answers.
        SQLAlchemyError: the call fails for another reason than an outage.
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
                _LOG.warning("the database does not answer; trying again: %s", first_line(error))
        else:
            if since is not None:
                _LOG.warning("the database answers again, after %.0f s", time.monotonic() - since)
            return result
        if stopping.wait(pause):
            raise JobStopped
        pause = min(2 * pause, MAX_RETRY_DELAY_SECONDS)
