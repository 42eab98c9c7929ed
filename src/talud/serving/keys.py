"""API keys: who may read, run, or rule. What is stored is a digest, from which no key can be found."""

from __future__ import annotations

import hashlib
import secrets
import uuid
from dataclasses import dataclass
from datetime import datetime, timedelta
from typing import Literal, get_args

from sqlalchemy import delete, select
from sqlalchemy.exc import IntegrityError
from sqlalchemy.orm import Session

from talud.errors import ParamsError
from talud.serving.database import Database, KeyRow, SessionRow, now

Scope = Literal["read", "run", "admin"]  # each may do what those before it may
SCOPES: tuple[Scope, ...] = get_args(Scope)
LONGEST_NAME = 80
EXPIRY_DAYS = 365  # of a new key, unless another number is given
LOCAL = "local"  # the id and name of clients where keys are not required


@dataclass(frozen=True)
class Key:
    """An API key, without its secret.

    Attributes:
        id: a UUID, which no later key of the same name has.
        name: of who has it.
        scope: what it allows.
        created: when it was made.
        expires: when it stops opening anything; None: never.
    """

    id: str
    name: str
    scope: Scope
    created: datetime
    expires: datetime | None = None

    @property
    def expired(self) -> bool:
        """Return whether the key has expired."""
        return self.expires is not None and self.expires <= now()

    def allows(self, scope: Scope) -> bool:
        """Whether this key may do what takes a scope."""
        return SCOPES.index(self.scope) >= SCOPES.index(scope)


@dataclass(frozen=True)
class KeyStore:
    """The keys of a service."""

    database: Database

    def add(self, name: str, scope: Scope, expiry_days: float = EXPIRY_DAYS) -> str:
        """Make a key; what is returned is nowhere else.

        Raises:
            ParamsError: the name is taken, empty or too long.
        """
        made = now()
        if not 0 < len(name.strip()) <= LONGEST_NAME:
            raise ParamsError(f"a key's name has 1 to {LONGEST_NAME} characters")
        secret = f"talud-{secrets.token_urlsafe(32)}"
        try:
            with Session(self.database.engine) as session, session.begin():
                session.add(
                    KeyRow(
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
        with Session(self.database.engine) as session:
            row = session.scalar(select(KeyRow).where(KeyRow.digest == digest(secret)))
            return key_of_row(row) if row else None

    def all(self) -> tuple[Key, ...]:
        """All keys, by name."""
        with Session(self.database.engine) as session:
            return tuple(key_of_row(row) for row in session.scalars(select(KeyRow).order_by(KeyRow.name)))

    def revoke(self, name: str) -> None:
        """Revoke a key and end its sessions.

        Raises:
            ParamsError: there is none of that name.
        """
        with Session(self.database.engine) as session, session.begin():
            row = session.scalar(select(KeyRow).where(KeyRow.name == name))
            if row is None:
                names = ", ".join(key.name for key in self.all()) or "none"
                raise ParamsError(f"there is no key named {name}; there are: {names}")
            session.execute(delete(SessionRow).where(SessionRow.key_id == row.id))
            session.delete(row)


def key_of_row(row: KeyRow) -> Key:
    """Convert a row of the database to a key."""
    return Key(row.id, row.name, row.scope, row.created, row.expires)  # type: ignore[arg-type]


def digest(secret: str) -> str:
    """Return the SHA-256 of a secret in hex.

    A secret of 32 random bytes cannot be guessed, so a slow hash would protect nothing more.
    """
    return hashlib.sha256(secret.encode()).hexdigest()
