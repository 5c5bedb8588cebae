"""Announcements are events of their own, and the checksum of an offline undo file is data: both stood in sentences."""

import json
import re

import sqlalchemy as sa
from alembic import op

revision = "0004"
down_revision = "0003"
branch_labels = None
depends_on = None

# Said again here rather than imported: what this revision reads must stay the same when the sentences change.
entry = sa.table(
    "hubguard_entry", sa.column("event", sa.String), sa.column("detail", sa.Text), sa.column("at", sa.DateTime)
)
memory = sa.table(
    "hubguard_memory", sa.column("key", sa.String), sa.column("value", sa.Text), sa.column("at", sa.DateTime)
)
NOTED = re.compile(r"undo file (?:.*/)?([^/]+) \(SHA-256 ([0-9a-f]{64})\)")


def upgrade() -> None:
    announced = sa.and_(entry.c.event == "note", entry.c.detail.like("would be stopped now%"))
    op.execute(sa.update(entry).where(announced).values(event="announced"))
    if op.get_context().as_sql:
        return
    connection = op.get_bind()
    noted = sa.and_(entry.c.event == "note", entry.c.detail.like("The offline plan %(SHA-256 %"))
    found = {}
    for row in connection.execute(sa.select(entry.c.detail, entry.c.at).where(noted)).all():
        if match := NOTED.search(row.detail):
            found[f"undo-file {match[1]}"[:255]] = {"value": json.dumps({"sha256": match[2]}), "at": row.at}
    if found:
        connection.execute(sa.insert(memory), [{"key": key, **values} for key, values in found.items()])
