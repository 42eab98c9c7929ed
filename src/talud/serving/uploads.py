"""The owners of uploads, and the quota of each key."""

from __future__ import annotations

import threading
from collections.abc import Iterable
from dataclasses import dataclass, field

from sqlalchemy import delete, func, select

from talud.serving.database import Database
from talud.serving.problems import Problem
from talud.serving.tables import Key, UploadOwner


@dataclass(frozen=True)
class UploadStore:
    """The uploads of a service, by the key that brought them.

    Attributes:
        database: that keeps them.
        quota: bytes that the uploads of one key may take.
    """

    database: Database
    quota: int
    _claiming: threading.Lock = field(default_factory=threading.Lock)

    def claim(self, upload: str, key: Key, size: int) -> None:
        """Count `size` bytes in all for an upload, received or expected.

        Raises:
            Problem: the key's uploads would take more than its quota.
        """
        others = select(func.coalesce(func.sum(UploadOwner.bytes), 0))
        others = others.where(UploadOwner.key_id == key.id, UploadOwner.id != upload)
        # One service uses the database, so that its own lock is enough for uploads that arrive at once.
        with self._claiming, self.database.transaction() as session:
            taken = int(session.scalar(others) or 0)
            if taken + size > self.quota:
                raise Problem(
                    413,
                    f"the uploads of the key of {key.name} take {taken:,} bytes and may take {self.quota:,}; "
                    "DELETE /uploads/ID removes one",
                )
            session.merge(UploadOwner(id=upload, key_id=key.id, bytes=size))

    def owner(self, upload: str) -> str | None:
        """Return the id of the key that owns an upload; None if unknown."""
        with self.database.session() as session:
            row = session.get(UploadOwner, upload)
            return row.key_id if row else None

    def all(self) -> tuple[str, ...]:
        """Return the ids of all counted uploads."""
        with self.database.session() as session:
            return tuple(session.scalars(select(UploadOwner.id)))

    def forget(self, uploads: Iterable[str]) -> None:
        """Stop counting uploads."""
        with self.database.transaction() as session:
            session.execute(delete(UploadOwner).where(UploadOwner.id.in_(list(uploads))))
