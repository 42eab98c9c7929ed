"""Alembic's entry point, which migrates a database on an open connection.

`talud.serving.database` passes the connection.
"""

from __future__ import annotations

from alembic import context

from talud.serving.database import VERSION_TABLE

context.configure(connection=context.config.attributes["connection"], version_table=VERSION_TABLE)
with context.begin_transaction():
    context.run_migrations()
