"""The service's database: SQLite by default, PostgreSQL by its URL."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from datetime import UTC, datetime
from pathlib import Path

from sqlalchemy import JSON, DateTime, Engine, Float, Integer, String, Text, TypeDecorator, create_engine, event
from sqlalchemy.engine import URL, Dialect, make_url
from sqlalchemy.exc import SQLAlchemyError
from sqlalchemy.orm import DeclarativeBase, Mapped, MappedAsDataclass, mapped_column

from talud.errors import OutputError, ParamsError

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


class KeyRow(Table):
    """An API key (see `keys.Key`)."""

    __tablename__ = "keys"

    name: Mapped[str] = mapped_column(String(80), primary_key=True)
    digest: Mapped[str] = mapped_column(String(64), unique=True)
    scope: Mapped[str] = mapped_column(String(8))
    created: Mapped[datetime] = mapped_column(Moment)


class VerdictRow(Table):
    """What a reviewer says of a polygon (see `verdicts`); `geometry` is GeoJSON in the raster's CRS, where drawn."""

    __tablename__ = "verdicts"

    job: Mapped[str] = mapped_column(String(36), primary_key=True)
    polygon: Mapped[str] = mapped_column(String(36), primary_key=True)
    verdict: Mapped[str] = mapped_column(String(10))
    reviewer: Mapped[str] = mapped_column(String(80))
    reviewed: Mapped[datetime] = mapped_column(Moment)
    geometry: Mapped[dict[str, object] | None] = mapped_column(JSON, default=None)
    area: Mapped[float | None] = mapped_column(Float, default=None)


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
        """The database at a URL, with all tables.

        Raises:
            ParamsError: the URL is none, or its driver is missing.
            OutputError: the database cannot be reached or written to.
        """
        try:
            place = make_url(url)
            if place.get_backend_name() == "sqlite" and place.database:
                Path(place.database).parent.mkdir(parents=True, exist_ok=True)
            engine = create_engine(place, pool_pre_ping=True, connect_args=_patience(place))
        except (SQLAlchemyError, ImportError) as error:
            raise ParamsError(f"the database's URL cannot be used: {_first_line(error)}") from error
        if engine.dialect.name == "sqlite":
            event.listen(engine, "connect", _patient)
        try:
            Table.metadata.create_all(engine)
        except SQLAlchemyError as error:
            raise OutputError(f"{place.render_as_string()}: cannot be opened: {_first_line(error)}") from error
        try:
            yield cls(engine)
        finally:
            engine.dispose()


def now() -> datetime:
    """The time, in UTC."""
    return datetime.now(UTC)


def _patience(url: URL) -> dict[str, int]:
    """Return how long the database is waited for, unless its URL says it: for a lock, or for a connection."""
    option = "timeout" if url.get_backend_name() == "sqlite" else "connect_timeout"
    return {} if option in url.query else {option: PATIENCE_SECONDS}


def _patient(connection: object, _record: object) -> None:
    """Let readers of a SQLite file not wait for a writer."""
    cursor = connection.cursor()  # type: ignore[attr-defined]
    for pragma in ("journal_mode=WAL", "synchronous=NORMAL"):
        cursor.execute(f"PRAGMA {pragma}")
    cursor.close()


def _first_line(error: BaseException) -> str:
    return (str(error).strip() or type(error).__name__).splitlines()[0]
