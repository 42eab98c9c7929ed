"""Jobs and their statuses in the service's database."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from sqlalchemy import JSON, delete, func, not_, or_, select, type_coerce, update
from sqlalchemy.orm import Session

from talud.serving import remote
from talud.serving.database import Database, utc_now
from talud.serving.tables import STATUSES, UNFINISHED, Job, MapRequest, Review, ReviewChange, Status


@dataclass(frozen=True)
class JobStore:
    """Jobs of a service."""

    database: Database

    def create(self, job: str, key: str, request: MapRequest, key_id: str | None = None) -> Job:
        """Add an accepted job and return it."""
        moment = utc_now()
        made = Job(
            id=job, key=key, key_id=key_id, status="accepted", message="waiting for a worker", progress=0,
            request=request, created=moment, updated=moment,
        )  # fmt: skip
        with self.database.transaction() as session:
            session.add(made)
        return made

    def get(self, job: str) -> Job | None:
        """Return a job by its id; None if unknown."""
        with self.database.session() as session:
            return session.get(Job, job)

    def list(self, statuses: Sequence[str] = STATUSES, limit: int = 100, offset: int = 0) -> tuple[Job, ...]:
        """Return the jobs with one of the statuses, newest first."""
        chosen = select(Job).where(Job.status.in_(statuses)).order_by(Job.created.desc(), Job.id)
        with self.database.session() as session:
            return tuple(session.scalars(chosen.limit(limit).offset(offset)))

    def count(self, statuses: Sequence[str], key_id: str | None = None) -> int:
        """Count the jobs with one of the statuses.

        The count includes all keys, or one key if its id is given.
        """
        chosen = select(func.count()).select_from(Job).where(Job.status.in_(statuses))
        with self.database.session() as session:
            return session.scalar(chosen if key_id is None else chosen.where(Job.key_id == key_id)) or 0

    def reviewed_ids(self) -> set[str]:
        """Return the ids of all jobs with reviews."""
        with self.database.session() as session:
            return set(session.scalars(select(Review.job).distinct()))

    def claim(self, *, remote_raster: bool | None = None) -> Job | None:
        """Mark the oldest waiting job as running and return it.

        Args:
            remote_raster: True: only jobs with a remote raster; False: only with a local one; None: any job.
        """
        oldest = select(Job.id).where(Job.status == "accepted").order_by(Job.created, Job.id).limit(1)
        if remote_raster is not None:
            raster = type_coerce(Job.request, JSON)["raster"].as_string()
            is_remote = or_(*(raster.startswith(scheme) for scheme in remote.SCHEMES))
            oldest = oldest.where(is_remote if remote_raster else not_(is_remote))
        moment = utc_now()
        running = {"status": "running", "message": "started", "updated": moment}
        started = func.coalesce(Job.started, moment)
        while True:
            with self.database.transaction() as session:
                oldest_id = session.scalar(oldest)
                if oldest_id is None:
                    return None
                claimed = update(Job).where(Job.id == oldest_id, Job.status == "accepted")
                if session.execute(claimed.values(started=started, **running)).rowcount:  # type: ignore[attr-defined]
                    return session.get_one(Job, oldest_id)

    def save_progress(self, job: str, progress: int, message: str) -> None:
        """Store the progress of a running job."""
        self._change(job, ("running",), progress=progress, message=message)

    def requeue(self, job: str, message: str) -> None:
        """Requeue a running job; it resumes from its finished tiles."""
        self._change(job, ("running",), status="accepted", message=message)

    def save_request(self, job: str, request: MapRequest) -> None:
        """Store the resolved request of a running job."""
        self._change(job, ("running",), request=request)

    def dismiss(self, job: str) -> None:
        """Mark a job as dismissed, and delete the review of its map."""
        moment = utc_now()
        values = {"status": "dismissed", "message": "dismissed", "finished": moment, "updated": moment}
        with self.database.transaction() as session:
            session.execute(update(Job).where(Job.id == job).values(**values))
            _delete_review(session, job)

    def end(self, job: str, status: Status, message: str) -> bool:
        """End an unfinished job, and return whether it has that status now.

        A repeated call returns the same value: the first call may have been stored although its reply was lost.
        """
        progress = {"progress": 100} if status == "successful" else {}
        if self._change(job, UNFINISHED, status=status, message=message, finished=utc_now(), **progress):
            return True
        found = self.get(job)
        return found is not None and found.status == status

    def remove(self, job: str) -> None:
        """Delete a job, and the review of its map."""
        with self.database.transaction() as session:
            session.execute(delete(Job).where(Job.id == job))
            _delete_review(session, job)

    def _change(self, job: str, statuses: Sequence[str], **values: Any) -> bool:
        changed = update(Job).where(Job.id == job, Job.status.in_(statuses)).values(updated=utc_now(), **values)
        with self.database.transaction() as session:
            return bool(session.execute(changed).rowcount)  # type: ignore[attr-defined]


def _delete_review(session: Session, job: str) -> None:
    """Delete the review of a job's map and its history."""
    for table in (Review, ReviewChange):
        session.execute(delete(table).where(table.job == job))
