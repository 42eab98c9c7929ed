"""The entry point of Alembic, which runs migrations on a given connection.

`database` hands over the connection.
"""

from __future__ import annotations

from alembic import context

from talud.serving.database import VERSION_TABLE

context.configure(connection=context.config.attributes["connection"], version_table=VERSION_TABLE)
with context.begin_transaction():
    context.run_migrations()
