"""Migration 0001: the first layout of the database.

Databases from before the migrations already have this layout.
"""

from __future__ import annotations

import sqlalchemy as sa
from alembic import op

revision = "0001"
down_revision = None
_MOMENT = sa.DateTime(timezone=True)


def upgrade() -> None:
    """Create the tables of jobs, keys and verdicts where they are missing."""
    op.create_table(
        "jobs",
        sa.Column("id", sa.String(36), primary_key=True),
        sa.Column("key", sa.String(80), nullable=False),
        sa.Column("status", sa.String(12), nullable=False),
        sa.Column("message", sa.Text, nullable=False),
        sa.Column("progress", sa.Integer, nullable=False),
        sa.Column("inputs", sa.JSON, nullable=False),
        sa.Column("created", _MOMENT, nullable=False),
        sa.Column("updated", _MOMENT, nullable=False),
        sa.Column("started", _MOMENT),
        sa.Column("finished", _MOMENT),
        if_not_exists=True,
    )
    for column in ("created", "key", "status"):
        op.create_index(f"ix_jobs_{column}", "jobs", [column], if_not_exists=True)
    op.create_table(
        "keys",
        sa.Column("name", sa.String(80), primary_key=True),
        sa.Column("digest", sa.String(64), nullable=False, unique=True),
        sa.Column("scope", sa.String(8), nullable=False),
        sa.Column("created", _MOMENT, nullable=False),
        if_not_exists=True,
    )
    op.create_table(
        "verdicts",
        sa.Column("job", sa.String(36), primary_key=True),
        sa.Column("polygon", sa.String(36), primary_key=True),
        sa.Column("verdict", sa.String(10), nullable=False),
        sa.Column("reviewer", sa.String(80), nullable=False),
        sa.Column("reviewed", _MOMENT, nullable=False),
        sa.Column("geometry", sa.JSON),
        sa.Column("area", sa.Float),
        if_not_exists=True,
    )
