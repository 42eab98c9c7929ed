"""Jobs and their states, which survive the service."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from datetime import datetime
from typing import Any, Literal, get_args

from pydantic import ConfigDict, Field
from sqlalchemy import delete, func, not_, or_, select, update
from sqlalchemy.orm import Session

from talud.mapping.options import MapOptions, ResultOptions
from talud.serving import remote
from talud.serving.database import Database, JobRow, VerdictChangeRow, VerdictRow, now

Status = Literal["accepted", "running", "successful", "failed", "dismissed"]
STATUSES: tuple[Status, ...] = get_args(Status)
UNFINISHED: tuple[Status, ...] = ("accepted", "running")


class Request(ResultOptions):
    """What a job is to do, with all that was open in a client's words settled.

    Attributes:
        raster: as the client named it.
        model: name of the registered model; empty where it is yet to be chosen, for the raster is yet to be fetched.
        version: of it; a job keeps its version whatever becomes of the alias.
        bands: that may be read; None: all of the raster's.
        subscribers: status → URL that is told of it.
    """

    model_config = ConfigDict(extra="ignore")

    raster: str
    model: str = ""
    version: str = ""
    bands: tuple[str, ...] | None = None
    subscribers: dict[str, str] = Field(default_factory=dict)

    @property
    def options(self) -> MapOptions:
        """Return the options of the job's map."""
        return MapOptions(**self.model_dump(include=set(ResultOptions.model_fields)))

    @property
    def shown_raster(self) -> str:
        """Return the raster's name without a query, which may hold a signature."""
        return remote.without_secrets(self.raster) if self.raster.startswith(remote.SCHEMES) else self.raster


@dataclass(frozen=True)
class Job:
    """A job as it is.

    Attributes:
        id: a UUID.
        key: name of the API key that asked for it.
        key_id: its id; None where it was revoked before keys had ids.
        status: one of `STATUSES`.
        message: one line for a person.
        progress: percent of its tiles.
        request: what it does.
        created: when it was asked for.
        updated: when something of it changed last.
        started: when it was first begun.
        finished: when it ended.
    """

    id: str
    key: str
    key_id: str | None
    status: Status
    message: str
    progress: int
    request: Request
    created: datetime
    updated: datetime
    started: datetime | None
    finished: datetime | None


@dataclass(frozen=True)
class JobStore:
    """The jobs of a service."""

    database: Database

    def create(self, job: str, key: str, request: Request, key_id: str | None = None) -> Job:
        """A new job of that id, accepted."""
        moment = now()
        row = JobRow(
            id=job, key=key, key_id=key_id, status="accepted", message="waits for a worker", progress=0,
            inputs=request.model_dump(), created=moment, updated=moment,
        )  # fmt: skip
        with Session(self.database.engine, expire_on_commit=False) as session, session.begin():
            session.add(row)
        return _job(row)

    def get(self, job: str) -> Job | None:
        """The job of that id."""
        with Session(self.database.engine) as session:
            row = session.get(JobRow, job)
            return _job(row) if row else None

    def list(self, statuses: Sequence[str] = STATUSES, limit: int = 100, offset: int = 0) -> tuple[Job, ...]:
        """Jobs of some statuses, the newest first."""
        chosen = select(JobRow).where(JobRow.status.in_(statuses)).order_by(JobRow.created.desc(), JobRow.id)
        with Session(self.database.engine) as session:
            return tuple(_job(row) for row in session.scalars(chosen.limit(limit).offset(offset)))

    def count(self, statuses: Sequence[str], key_id: str | None = None) -> int:
        """Count the jobs with one of the statuses, of one key or of all keys."""
        chosen = select(func.count()).select_from(JobRow).where(JobRow.status.in_(statuses))
        with Session(self.database.engine) as session:
            return session.scalar(chosen if key_id is None else chosen.where(JobRow.key_id == key_id)) or 0

    def reviewed(self) -> set[str]:
        """The ids of jobs of whose maps somebody has said something."""
        with Session(self.database.engine) as session:
            return set(session.scalars(select(VerdictRow.job).distinct()))

    def claim(self, *, remote_raster: bool | None = None) -> Job | None:
        """Take the oldest job that waits, which runs from then on.

        Args:
            remote_raster: whether its raster is one of another machine; None: either.
        """
        oldest = select(JobRow.id).where(JobRow.status == "accepted").order_by(JobRow.created, JobRow.id).limit(1)
        if remote_raster is not None:
            raster = JobRow.inputs["raster"].as_string()
            is_remote = or_(*(raster.startswith(scheme) for scheme in remote.SCHEMES))
            oldest = oldest.where(is_remote if remote_raster else not_(is_remote))
        moment = now()
        running = {"status": "running", "message": "has begun", "updated": moment}
        started = func.coalesce(JobRow.started, moment)
        while True:
            with Session(self.database.engine) as session, session.begin():
                found = session.scalar(oldest)
                if found is None:
                    return None
                of = update(JobRow).where(JobRow.id == found, JobRow.status == "accepted")
                if session.execute(of.values(started=started, **running)).rowcount:  # type: ignore[attr-defined]
                    return _job(session.get_one(JobRow, found))

    def note(self, job: str, progress: int, message: str) -> None:
        """How far a running job has come."""
        self._change(job, ("running",), progress=progress, message=message)

    def wait_again(self, job: str, message: str) -> None:
        """A running job waits for a worker again: it goes on from its finished tiles."""
        self._change(job, ("running",), status="accepted", message=message)

    def settle(self, job: str, request: Request) -> None:
        """What a running job does is now settled."""
        self._change(job, ("running",), inputs=request.model_dump())

    def dismiss(self, job: str) -> None:
        """Dismiss a job at any stage, and delete the review of its map."""
        moment = now()
        values = {"status": "dismissed", "message": "dismissed", "finished": moment, "updated": moment}
        with Session(self.database.engine) as session, session.begin():
            session.execute(update(JobRow).where(JobRow.id == job).values(**values))
            _delete_review(session, job)

    def end(self, job: str, status: Status, message: str) -> bool:
        """End an unfinished job; return whether it has that status now.

        A repeated call gives the same answer: the first one may have reached the database although its answer was lost.
        """
        progress = {"progress": 100} if status == "successful" else {}
        if self._change(job, UNFINISHED, status=status, message=message, finished=now(), **progress):
            return True
        found = self.get(job)
        return found is not None and found.status == status

    def remove(self, job: str) -> None:
        """Delete a job, and the review of its map."""
        with Session(self.database.engine) as session, session.begin():
            session.execute(delete(JobRow).where(JobRow.id == job))
            _delete_review(session, job)

    def _change(self, job: str, of: Sequence[str], **values: Any) -> bool:
        changed = update(JobRow).where(JobRow.id == job, JobRow.status.in_(of)).values(updated=now(), **values)
        with Session(self.database.engine) as session, session.begin():
            return bool(session.execute(changed).rowcount)  # type: ignore[attr-defined]


def _delete_review(session: Session, job: str) -> None:
    """Delete the review of a job's map, with its history and reviewers' names."""
    for table in (VerdictRow, VerdictChangeRow):
        session.execute(delete(table).where(table.job == job))


def _job(row: JobRow) -> Job:
    return Job(
        row.id, row.key, row.key_id, row.status, row.message, row.progress, Request(**row.inputs),  # type: ignore[arg-type]
        row.created, row.updated, row.started, row.finished,
    )  # fmt: skip
