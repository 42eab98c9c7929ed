"""API keys and sessions of the review page.

The database stores only digests of secrets and tokens.
"""

from __future__ import annotations

import hashlib
import secrets
import uuid
from dataclasses import dataclass
from datetime import timedelta

from sqlalchemy import delete, select
from sqlalchemy.exc import IntegrityError

from talud.errors import ParamsError
from talud.serving.database import Database, utc_now
from talud.serving.tables import Key, PageSession, Scope

MAX_NAME_CHARACTERS = 80
EXPIRY_DAYS = 365  # default of a new key
SESSION_HOURS = 12  # then the page asks for the key again
LOCAL_KEY = "local"  # id and name of the key of all clients if keys are not required


@dataclass(frozen=True)
class KeyStore:
    """API keys in the database of a service."""

    database: Database

    def add(self, name: str, scope: Scope, expiry_days: float = EXPIRY_DAYS) -> str:
        """Create a key and return its secret, which is not stored.

        Raises:
            ParamsError: the name is in use, empty or too long.
        """
        made = utc_now()
        if not 0 < len(name.strip()) <= MAX_NAME_CHARACTERS:
            raise ParamsError(f"the name of a key must have 1 to {MAX_NAME_CHARACTERS} characters")
        secret = f"talud-{secrets.token_urlsafe(32)}"
        try:
            with self.database.transaction() as session:
                session.add(
                    Key(
                        id=str(uuid.uuid4()),
                        name=name,
                        digest=digest(secret),
                        scope=scope,
                        created=made,
                        expires=made + timedelta(days=expiry_days),
                    )
                )
        except IntegrityError as error:
            raise ParamsError(
                f"there is already a key named {name}; revoke it first, or choose another name"
            ) from error
        return secret

    def find(self, secret: str) -> Key | None:
        """Return the key with a secret, even an expired one."""
        with self.database.session() as session:
            return session.scalar(select(Key).where(Key.digest == digest(secret)))

    def all(self) -> tuple[Key, ...]:
        """Return all keys, sorted by name."""
        with self.database.session() as session:
            return tuple(session.scalars(select(Key).order_by(Key.name)))

    def revoke(self, name: str) -> None:
        """Revoke a key and end its sessions.

        Raises:
            ParamsError: there is no key with that name.
        """
        with self.database.transaction() as session:
            key = session.scalar(select(Key).where(Key.name == name))
            if key is None:
                names = ", ".join(each.name for each in self.all()) or "none"
                raise ParamsError(f"there is no key named {name}; the keys are: {names}")
            session.execute(delete(PageSession).where(PageSession.key_id == key.id))
            session.delete(key)


@dataclass(frozen=True)
class SessionStore:
    """Sessions in the database of a service."""

    database: Database

    def begin(self, key: Key) -> str:
        """Start a session for a key, and delete expired sessions.

        Returns:
            The token of the session, which is not stored.
        """
        token, moment = secrets.token_urlsafe(32), utc_now()
        with self.database.transaction() as session:
            session.execute(delete(PageSession).where(PageSession.expires <= moment))
            expires = moment + timedelta(hours=SESSION_HOURS)
            session.add(PageSession(digest=digest(token), key_id=key.id, expires=expires))
        return token

    def find_key(self, token: str) -> Key | None:
        """Return the key of a valid session, or None."""
        known = select(Key).join(PageSession, PageSession.key_id == Key.id)
        with self.database.session() as session:
            found = session.scalar(known.where(PageSession.digest == digest(token), PageSession.expires > utc_now()))
        return None if found is None or found.expired else found

    def end(self, token: str) -> None:
        """End a session."""
        with self.database.transaction() as session:
            session.execute(delete(PageSession).where(PageSession.digest == digest(token)))


def digest(secret: str) -> str:
    """Return the SHA-256 checksum of a secret in hexadecimal.

    A slow hash is not needed, because secrets of 32 random bytes cannot be guessed.
    """
    return hashlib.sha256(secret.encode()).hexdigest()
