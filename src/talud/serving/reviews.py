"""Reviews of maps and their history."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

from sqlalchemy import ColumnElement, delete, select, true, update
from sqlalchemy.dialects import postgresql, sqlite
from sqlalchemy.orm import Session

from talud.serving.database import Database, utc_now
from talud.serving.problems import RESULT_NOT_READY, Problem
from talud.serving.tables import Job, Key, Review, ReviewChange


@dataclass(frozen=True)
class ReviewStore:
    """Reviews in the database of a service.

    A review is written by one statement, so that parallel reviews of a polygon do not mix, and recorded in the history
    in the same transaction. Only the key that wrote a review, and keys with the scope admin, may change it.
    """

    database: Database

    def all(self, job: str) -> dict[str, Review]:
        """Return the reviews of a job's map by polygon id, oldest first."""
        chosen = select(Review).where(Review.job == job).order_by(Review.reviewed, Review.polygon)
        with self.database.session() as session:
            return {review.polygon: review for review in session.scalars(chosen)}

    def get(self, job: str, polygon: str) -> Review | None:
        """Return the review of a polygon; None if there is none."""
        with self.database.session() as session:
            return session.get(Review, (job, polygon))

    def history(self, job: str, polygon: str) -> tuple[ReviewChange, ...]:
        """Return all changes of a polygon's review, oldest first."""
        chosen = select(ReviewChange).where(ReviewChange.job == job, ReviewChange.polygon == polygon)
        with self.database.session() as session:
            return tuple(session.scalars(chosen.order_by(ReviewChange.number)))

    def save(self, review: Review, key: Key) -> None:
        """Create or replace a review.

        Without an outline, an earlier outline is kept.

        Raises:
            Problem: another key has reviewed the polygon, or the map was deleted.
        """
        values = _values(review, key)
        insert = (postgresql if self.database.engine.dialect.name == "postgresql" else sqlite).insert(Review)
        written = insert.values(job=review.job, polygon=review.polygon, **values)
        written = written.on_conflict_do_update(
            index_elements=["job", "polygon"],
            set_={name: written.excluded[name] for name in values},
            where=_changeable(key),
        )
        with _locked(self.database, review.job) as session:
            # The number of rows of an INSERT is unknown on PostgreSQL.
            if session.scalar(written.returning(Review.polygon)) is None:
                raise _not_theirs(session, review.job, review.polygon)
            _record(session, review.job, review.polygon)

    def change(self, review: Review, key: Key) -> bool:
        """Replace an existing review; return False if there is none.

        Raises:
            Problem: another key has reviewed the polygon, or the map was deleted.
        """
        job, polygon = review.job, review.polygon
        changed = update(Review).where(Review.job == job, Review.polygon == polygon, _changeable(key))
        with _locked(self.database, job) as session:
            if session.execute(changed.values(**_values(review, key))).rowcount:  # type: ignore[attr-defined]
                _record(session, job, polygon)
                return True
            if session.get(Review, (job, polygon)):
                raise _not_theirs(session, job, polygon)
            return False

    def withdraw(self, job: str, polygon: str, key: Key) -> bool:
        """Delete a review; return False if there is none.

        Raises:
            Problem: another key has reviewed the polygon, or the map was deleted.
        """
        gone = delete(Review).where(Review.job == job, Review.polygon == polygon, _changeable(key))
        with _locked(self.database, job) as session:
            if session.execute(gone).rowcount:  # type: ignore[attr-defined]
                change = ReviewChange(
                    job=job, polygon=polygon, verdict="withdrawn", reviewer=key.name, reviewed=utc_now(), key_id=key.id
                )
                session.add(change)
                return True
            if session.get(Review, (job, polygon)):
                raise _not_theirs(session, job, polygon)
            return False


def _changeable(key: Key) -> ColumnElement[bool]:
    """Return the condition under which a key may change a review."""
    return true() if key.allows("admin") else Review.key_id == key.id


def _not_theirs(session: Session, job: str, polygon: str) -> Problem:
    reviewer = session.scalar(select(Review.reviewer).where(Review.job == job, Review.polygon == polygon))
    return Problem(
        403,
        f"{reviewer or 'another person'} reviewed landslide {polygon} with another key; only that key, or a key with "
        "the scope admin, can change the review",
    )


def _record(session: Session, job: str, polygon: str) -> None:
    """Add the current review of a polygon to its history."""
    review = session.get_one(Review, (job, polygon), populate_existing=True)
    names = ("job", "polygon", "verdict", "reviewer", "reviewed", "key_id", "geometry", "area")
    session.add(ReviewChange(**{name: getattr(review, name) for name in names}))


@contextmanager
def _locked(database: Database, job: str) -> Iterator[Session]:
    """Lock a job while a review of its map is written.

    Raises:
        Problem: the job was dismissed or deleted.
    """
    # SQLite has no row locks. This write locks both databases, and comes first as in `JobStore.dismiss`.
    held = update(Job).where(Job.id == job, Job.status != "dismissed").values(status=Job.status)
    with database.transaction() as session:
        if not session.execute(held).rowcount:  # type: ignore[attr-defined]
            raise Problem(404, "the job was dismissed, and its map was deleted", RESULT_NOT_READY)
        yield session


def _values(review: Review, key: Key) -> dict[str, Any]:
    values = {
        "verdict": review.verdict,
        "reviewer": review.reviewer,
        "reviewed": review.reviewed,
        "key_id": key.id,
    }
    return values if review.geometry is None else values | {"geometry": review.geometry, "area": review.area}
