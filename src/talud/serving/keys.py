"""API keys, and the sessions of the page.

The database holds digests of secrets and tokens, from which neither can be found.
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
EXPIRY_DAYS = 365  # of a new key, unless another number is given
SESSION_HOURS = 12  # after which the page asks for the key again
LOCAL_KEY = "local"  # the id and name of clients where keys are not required


@dataclass(frozen=True)
class KeyStore:
    """The keys of a service."""

    database: Database

    def add(self, name: str, scope: Scope, expiry_days: float = EXPIRY_DAYS) -> str:
        """Add a key and return its secret, which is stored nowhere.

        Raises:
            ParamsError: the name is taken, empty or too long.
        """
        made = utc_now()
        if not 0 < len(name.strip()) <= MAX_NAME_CHARACTERS:
            raise ParamsError(f"a key's name has 1 to {MAX_NAME_CHARACTERS} characters")
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
            raise ParamsError(f"there is a key named {name}; revoke it first, or take another name") from error
        return secret

    def find(self, secret: str) -> Key | None:
        """Return the key of a secret, even if it has expired, or None."""
        with self.database.session() as session:
            return session.scalar(select(Key).where(Key.digest == digest(secret)))

    def all(self) -> tuple[Key, ...]:
        """Return all keys, by name."""
        with self.database.session() as session:
            return tuple(session.scalars(select(Key).order_by(Key.name)))

    def revoke(self, name: str) -> None:
        """Revoke a key and end its sessions.

        Raises:
            ParamsError: there is none of that name.
        """
        with self.database.transaction() as session:
            key = session.scalar(select(Key).where(Key.name == name))
            if key is None:
                names = ", ".join(each.name for each in self.all()) or "none"
                raise ParamsError(f"there is no key named {name}; there are: {names}")
            session.execute(delete(PageSession).where(PageSession.key_id == key.id))
            session.delete(key)


@dataclass(frozen=True)
class SessionStore:
    """The sessions of a service."""

    database: Database

    def begin(self, key: Key) -> str:
        """Begin a session of a key, and remove all that have expired.

        Returns:
            The token, which is stored nowhere else.
        """
        token, moment = secrets.token_urlsafe(32), utc_now()
        with self.database.transaction() as session:
            session.execute(delete(PageSession).where(PageSession.expires <= moment))
            expires = moment + timedelta(hours=SESSION_HOURS)
            session.add(PageSession(digest=digest(token), key_id=key.id, expires=expires))
        return token

    def find_key(self, token: str) -> Key | None:
        """Return the key of a session; None if either has ended or expired."""
        known = select(Key).join(PageSession, PageSession.key_id == Key.id)
        with self.database.session() as session:
            found = session.scalar(known.where(PageSession.digest == digest(token), PageSession.expires > utc_now()))
        return None if found is None or found.expired else found

    def end(self, token: str) -> None:
        """End a session."""
        with self.database.transaction() as session:
            session.execute(delete(PageSession).where(PageSession.digest == digest(token)))


def digest(secret: str) -> str:
    """Return the SHA-256 of a secret in hex.

    A secret of 32 random bytes cannot be guessed, so a slow hash would protect nothing more.
    """
    return hashlib.sha256(secret.encode()).hexdigest()
