"""API keys: who may read, run, or rule. What is stored is a digest, from which no key can be found."""

from __future__ import annotations

import hashlib
import secrets
from dataclasses import dataclass
from datetime import datetime
from typing import Literal, get_args

from sqlalchemy import delete, select
from sqlalchemy.exc import IntegrityError
from sqlalchemy.orm import Session

from talud.errors import ParamsError
from talud.serving.database import Database, KeyRow, now

Scope = Literal["read", "run", "admin"]  # each may do what those before it may
SCOPES: tuple[Scope, ...] = get_args(Scope)
LONGEST_NAME = 80


@dataclass(frozen=True)
class Key:
    """An API key, without its secret.

    Attributes:
        name: of who has it.
        scope: what it allows.
        created: when it was made.
    """

    name: str
    scope: Scope
    created: datetime

    def allows(self, scope: Scope) -> bool:
        """Whether this key may do what takes a scope."""
        return SCOPES.index(self.scope) >= SCOPES.index(scope)


@dataclass(frozen=True)
class KeyStore:
    """The keys of a service."""

    database: Database

    def add(self, name: str, scope: Scope) -> str:
        """Make a key; what is returned is nowhere else.

        Raises:
            ParamsError: the name is taken, empty or too long.
        """
        if not 0 < len(name.strip()) <= LONGEST_NAME:
            raise ParamsError(f"a key's name has 1 to {LONGEST_NAME} characters")
        secret = f"talud-{secrets.token_urlsafe(32)}"
        try:
            with Session(self.database.engine) as session, session.begin():
                session.add(KeyRow(name=name, digest=_digest(secret), scope=scope, created=now()))
        except IntegrityError as error:
            raise ParamsError(f"there is a key named {name}; revoke it first, or take another name") from error
        return secret

    def find(self, secret: str) -> Key | None:
        """The key of that secret."""
        with Session(self.database.engine) as session:
            row = session.scalar(select(KeyRow).where(KeyRow.digest == _digest(secret)))
            return _key(row) if row else None

    def all(self) -> tuple[Key, ...]:
        """All keys, by name."""
        with Session(self.database.engine) as session:
            return tuple(_key(row) for row in session.scalars(select(KeyRow).order_by(KeyRow.name)))

    def revoke(self, name: str) -> None:
        """Take a key away; it opens nothing from then on.

        Raises:
            ParamsError: there is none of that name.
        """
        with Session(self.database.engine) as session, session.begin():
            if not session.execute(delete(KeyRow).where(KeyRow.name == name)).rowcount:  # type: ignore[attr-defined]
                names = ", ".join(key.name for key in self.all()) or "none"
                raise ParamsError(f"there is no key named {name}; there are: {names}")


def _key(row: KeyRow) -> Key:
    return Key(row.name, row.scope, row.created)  # type: ignore[arg-type]


def _digest(secret: str) -> str:
    """SHA-256: a secret of 32 random bytes cannot be guessed, so a slow hash would protect nothing more."""
    return hashlib.sha256(secret.encode()).hexdigest()
