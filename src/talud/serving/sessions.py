"""Sessions of the page.

A cookie holds a random token; the database holds its digest, its key and its expiry.
"""

from __future__ import annotations

import secrets
from dataclasses import dataclass
from datetime import timedelta

from sqlalchemy import delete, select
from sqlalchemy.orm import Session

from talud.serving.database import Database, KeyRow, SessionRow, now
from talud.serving.keys import Key, digest, key_of_row

SESSION_HOURS = 12  # after which the page asks for the key again


@dataclass(frozen=True)
class SessionStore:
    """The sessions of a service."""

    database: Database

    def begin(self, key: Key) -> str:
        """Begin a session of a key, and remove all that have expired.

        Returns:
            The token, which is stored nowhere else.
        """
        token, moment = secrets.token_urlsafe(32), now()
        with Session(self.database.engine) as session, session.begin():
            session.execute(delete(SessionRow).where(SessionRow.expires <= moment))
            expires = moment + timedelta(hours=SESSION_HOURS)
            session.add(SessionRow(digest=digest(token), key_id=key.id, expires=expires))
        return token

    def key(self, token: str) -> Key | None:
        """Return the key of a session; None if either has ended or expired."""
        known = select(KeyRow).join(SessionRow, SessionRow.key_id == KeyRow.id)
        with Session(self.database.engine) as session:
            row = session.scalar(known.where(SessionRow.digest == digest(token), SessionRow.expires > now()))
            found = key_of_row(row) if row else None
        return None if found is None or found.expired else found

    def end(self, token: str) -> None:
        """End a session."""
        with Session(self.database.engine) as session, session.begin():
            session.execute(delete(SessionRow).where(SessionRow.digest == digest(token)))
