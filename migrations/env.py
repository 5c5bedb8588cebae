"""Run by Alembic: upgrades over the connection that ``hubguard.journal.migrate`` hands over, inside its transaction."""

from __future__ import annotations

from alembic import context

from hubguard.journal import tables

context.configure(
    connection=context.config.attributes["connection"],
    target_metadata=tables.metadata,
    version_table=tables.VERSION_TABLE,
    compare_type=True,
    render_as_batch=True,
)
with context.begin_transaction():
    context.run_migrations()
