"""Alembic's entry: run the migrations on the connection that `database` hands over."""

from __future__ import annotations

from alembic import context

from talud.serving.database import VERSION_TABLE

context.configure(connection=context.config.attributes["connection"], version_table=VERSION_TABLE)
with context.begin_transaction():
    context.run_migrations()
