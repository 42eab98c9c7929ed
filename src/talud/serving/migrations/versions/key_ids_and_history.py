"""Migration 0002: key ids and expiry, sessions, upload owners, review history."""

from __future__ import annotations

import uuid
from typing import Any

import sqlalchemy as sa
from alembic import op

revision = "0002"
down_revision = "0001"
_MOMENT = sa.DateTime(timezone=True)


def upgrade() -> None:
    """Add key ids, and the tables of sessions, uploads and review changes.

    Jobs refer to their owners by key id.
    """
    _give_keys_ids()
    op.add_column("jobs", sa.Column("key_id", sa.String(36)))
    op.create_index("ix_jobs_key_id", "jobs", ["key_id"])
    op.execute("UPDATE jobs SET key_id = (SELECT id FROM keys WHERE keys.name = jobs.key)")
    op.execute("UPDATE jobs SET key_id = 'local' WHERE key = 'local' AND key_id IS NULL")
    op.create_table(
        "sessions",
        sa.Column("digest", sa.String(64), primary_key=True),
        sa.Column("key_id", sa.String(36), nullable=False, index=True),
        sa.Column("expires", _MOMENT, nullable=False),
    )
    op.create_table(
        "uploads",
        sa.Column("id", sa.String(36), primary_key=True),
        sa.Column("key_id", sa.String(36), nullable=False, index=True),
        sa.Column("bytes", sa.BigInteger, nullable=False),
    )
    _keep_history()


def _give_keys_ids() -> None:
    columns: list[sa.Column[Any]] = [
        sa.Column("id", sa.String(36), primary_key=True),
        sa.Column("name", sa.String(80), nullable=False, unique=True),
        sa.Column("digest", sa.String(64), nullable=False, unique=True),
        sa.Column("scope", sa.String(8), nullable=False),
        sa.Column("created", _MOMENT, nullable=False),
        sa.Column("expires", _MOMENT),
    ]
    made = op.create_table("keys_with_ids", *columns)
    old = sa.table("keys", sa.column("name"), sa.column("digest"), sa.column("scope"), sa.column("created", _MOMENT))
    rows = op.get_bind().execute(sa.select(old)).mappings().all()
    op.bulk_insert(made, [{**row, "id": str(uuid.uuid4()), "expires": None} for row in rows])
    op.drop_table("keys")
    op.rename_table("keys_with_ids", "keys")


def _keep_history() -> None:
    """Add the history of reviews, starting with the current verdicts.

    Verdicts on dismissed maps are deleted.
    """
    op.execute("DELETE FROM verdicts WHERE job IN (SELECT id FROM jobs WHERE status = 'dismissed')")
    op.add_column("verdicts", sa.Column("key_id", sa.String(36)))
    op.create_table(
        "verdict_changes",
        sa.Column("number", sa.Integer, primary_key=True),
        sa.Column("job", sa.String(36), nullable=False, index=True),
        sa.Column("polygon", sa.String(36), nullable=False),
        sa.Column("verdict", sa.String(10), nullable=False),
        sa.Column("reviewer", sa.String(80), nullable=False),
        sa.Column("key_id", sa.String(36)),
        sa.Column("reviewed", _MOMENT, nullable=False),
        sa.Column("geometry", sa.JSON),
        sa.Column("area", sa.Float),
    )
    names = "job, polygon, verdict, reviewer, reviewed, geometry, area"
    op.execute(f"INSERT INTO verdict_changes ({names}) SELECT {names} FROM verdicts ORDER BY reviewed, polygon")
