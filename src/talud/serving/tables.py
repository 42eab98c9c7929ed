"""Tables of the service's database, as mapped classes."""

from __future__ import annotations

from datetime import UTC, datetime
from typing import Any, Literal, get_args

import shapely
from pydantic import ConfigDict, Field
from shapely.geometry.base import BaseGeometry
from sqlalchemy import JSON, BigInteger, DateTime, Float, Integer, String, Text, TypeDecorator
from sqlalchemy.engine import Dialect
from sqlalchemy.orm import DeclarativeBase, Mapped, MappedAsDataclass, mapped_column

from talud.mapping.options import MapOptions, ResultOptions
from talud.serving import remote

Status = Literal["accepted", "running", "successful", "failed", "dismissed"]
STATUSES: tuple[Status, ...] = get_args(Status)
UNFINISHED: tuple[Status, ...] = ("accepted", "running")
Scope = Literal["read", "run", "admin"]  # each includes those before it
SCOPES: tuple[Scope, ...] = get_args(Scope)
Verdict = Literal["unreviewed", "accepted", "rejected"]
Outline = shapely.Polygon | shapely.MultiPolygon


class MapRequest(ResultOptions):
    """Request for a map, with the chosen model.

    Attributes:
        raster: reference to the raster, as given by the client.
        model: name of the registered model; empty until a remote raster is downloaded.
        version: version of the model; it does not change when the alias moves.
        bands: names of the bands that may be used; None: all bands of the raster.
        subscribers: callback URLs by event.
    """

    model_config = ConfigDict(extra="ignore")

    raster: str
    model: str = ""
    version: str = ""
    bands: tuple[str, ...] | None = None
    subscribers: dict[str, str] = Field(default_factory=dict)

    @property
    def options(self) -> MapOptions:
        """Options of the map."""
        return MapOptions(**self.model_dump(include=set(ResultOptions.model_fields)))

    @property
    def raster_without_secrets(self) -> str:
        """Reference to the raster without the query of its URL."""
        return remote.without_secrets(self.raster) if self.raster.startswith(remote.SCHEMES) else self.raster


class UtcDateTime(TypeDecorator[datetime]):
    """Column type of a time in UTC."""

    impl = DateTime(timezone=True)
    cache_ok = True

    def process_result_value(self, value: datetime | None, dialect: Dialect) -> datetime | None:  # noqa: ARG002
        """Return the time in UTC."""
        return value if value is None else value.replace(tzinfo=UTC) if value.tzinfo is None else value.astimezone(UTC)


class RequestJson(TypeDecorator[MapRequest]):
    """Column type of a request, stored as JSON."""

    impl = JSON
    cache_ok = True

    def process_bind_param(self, value: MapRequest | None, dialect: Dialect) -> object:  # noqa: ARG002
        """Return the JSON of a request."""
        return None if value is None else value.model_dump()

    def process_result_value(self, value: object, dialect: Dialect) -> MapRequest | None:  # noqa: ARG002
        """Return the request of a JSON document."""
        return None if value is None else MapRequest.model_validate(value)


class GeoJson(TypeDecorator[Outline]):
    """Column type of an outline in the CRS of its map, stored as GeoJSON."""

    impl = JSON(none_as_null=True)
    cache_ok = True

    def process_bind_param(self, value: BaseGeometry | None, dialect: Dialect) -> object:  # noqa: ARG002
        """Return the GeoJSON of an outline."""
        return None if value is None else shapely.geometry.mapping(value)

    def process_result_value(self, value: Any, dialect: Dialect) -> Outline | None:  # noqa: ARG002
        """Return the outline of a GeoJSON document."""
        if value is None:
            return None
        outline: Outline = shapely.geometry.shape(value)  # type: ignore[assignment]
        return outline


class Table(MappedAsDataclass, DeclarativeBase, kw_only=True):
    """Base class of all tables."""


class Job(Table):
    """Request for a map and its progress.

    Attributes:
        id: UUID.
        key: name of the API key that requested the job.
        status: one of `STATUSES`.
        message: one-line message for users.
        progress: percentage of finished tiles.
        request: request of the client.
        created: time of the request.
        updated: time of the last change.
        started: time of the first start.
        finished: time of the end.
        key_id: id of the API key; None if it was revoked before keys had ids.
    """

    __tablename__ = "jobs"

    id: Mapped[str] = mapped_column(String(36), primary_key=True)
    key: Mapped[str] = mapped_column(String(80), index=True)
    status: Mapped[Status] = mapped_column(String(12), index=True)
    message: Mapped[str] = mapped_column(Text)
    progress: Mapped[int] = mapped_column(Integer)
    request: Mapped[MapRequest] = mapped_column("inputs", RequestJson)
    created: Mapped[datetime] = mapped_column(UtcDateTime, index=True)
    updated: Mapped[datetime] = mapped_column(UtcDateTime)
    started: Mapped[datetime | None] = mapped_column(UtcDateTime, default=None)
    finished: Mapped[datetime | None] = mapped_column(UtcDateTime, default=None)
    key_id: Mapped[str | None] = mapped_column(String(36), index=True, default=None)


class Key(Table):
    """API key without its secret.

    Attributes:
        id: UUID; a new key with the name of a revoked one has another id.
        name: name of its holder.
        digest: SHA-256 of the secret; empty where keys are not required.
        scope: permissions of the key.
        created: time of creation.
        expires: time of expiry; None: never.
    """

    __tablename__ = "keys"

    id: Mapped[str] = mapped_column(String(36), primary_key=True)
    name: Mapped[str] = mapped_column(String(80), unique=True)
    digest: Mapped[str] = mapped_column(String(64), unique=True, repr=False)
    scope: Mapped[Scope] = mapped_column(String(8))
    created: Mapped[datetime] = mapped_column(UtcDateTime)
    expires: Mapped[datetime | None] = mapped_column(UtcDateTime, default=None)

    @property
    def expired(self) -> bool:
        """True if the key has expired."""
        return self.expires is not None and self.expires <= datetime.now(UTC)

    def allows(self, scope: Scope) -> bool:
        """Check if the key includes a scope."""
        return SCOPES.index(self.scope) >= SCOPES.index(scope)


class PageSession(Table):
    """Session of the review page.

    Attributes:
        digest: SHA-256 of the token in the cookie.
        key_id: id of the key with which the session began.
        expires: time of expiry.
    """

    __tablename__ = "sessions"

    digest: Mapped[str] = mapped_column(String(64), primary_key=True, repr=False)
    key_id: Mapped[str] = mapped_column(String(36), index=True)
    expires: Mapped[datetime] = mapped_column(UtcDateTime)


class UploadOwner(Table):
    """Owner and size of an upload.

    Attributes:
        id: UUID of the upload.
        key_id: id of the API key of the upload.
        bytes: size of the file in bytes.
    """

    __tablename__ = "uploads"

    id: Mapped[str] = mapped_column(String(36), primary_key=True)
    key_id: Mapped[str] = mapped_column(String(36), index=True)
    bytes: Mapped[int] = mapped_column(BigInteger)


class _ReviewColumns(MappedAsDataclass, kw_only=True):
    """Columns of a review and of its history."""

    verdict: Mapped[Verdict | Literal["withdrawn"]] = mapped_column(String(10))
    reviewer: Mapped[str] = mapped_column(String(80))
    reviewed: Mapped[datetime] = mapped_column(UtcDateTime)
    key_id: Mapped[str | None] = mapped_column(String(36), default=None)
    geometry: Mapped[Outline | None] = mapped_column(GeoJson, default=None)
    area: Mapped[float | None] = mapped_column(Float, default=None)


class Review(_ReviewColumns, Table):
    """Review of a polygon.

    Attributes:
        job: id of the map's job.
        polygon: id of the polygon.
        verdict: verdict of the reviewer.
        reviewer: name of the reviewer.
        reviewed: time of the review.
        key_id: id of the API key of the review; None if it was made before keys had ids.
        geometry: outline drawn by the reviewer, in the CRS of the map.
        area: area of that outline, in m².
    """

    __tablename__ = "verdicts"

    job: Mapped[str] = mapped_column(String(36), primary_key=True)
    polygon: Mapped[str] = mapped_column(String(36), primary_key=True)


class ReviewChange(_ReviewColumns, Table):
    """Entry in the history of a review.

    Entries are only added, and are deleted with their job.

    Attributes:
        number: position in the history.
        job: id of the map's job.
        polygon: id of the polygon.
    """

    __tablename__ = "verdict_changes"

    number: Mapped[int] = mapped_column(Integer, primary_key=True, init=False)
    job: Mapped[str] = mapped_column(String(36), index=True)
    polygon: Mapped[str] = mapped_column(String(36))
