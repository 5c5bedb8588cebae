"""Entries name the plan that they belong to, which stood in sentences."""

import sqlalchemy as sa
from alembic import op

revision = "0006"
down_revision = "0005"
branch_labels = None
depends_on = None

AT_ONCE = 500

entry = sa.table(
    "hubguard_entry",
    sa.column("id", sa.BigInteger),
    sa.column("event", sa.String),
    sa.column("detail", sa.Text),
    sa.column("refers_to", sa.BigInteger),
    sa.column("plan", sa.String),
)
prune = sa.table("hubguard_prune", sa.column("digest", sa.String))


def upgrade() -> None:
    op.add_column("hubguard_entry", sa.Column("plan", sa.String(64)))
    op.create_index("hubguard_entry_plan", "hubguard_entry", ["plan", "id"])
    if op.get_context().as_sql:
        return
    connection = op.get_bind()
    for digest in connection.execute(sa.select(prune.c.digest)).scalars().all():
        # Said again here rather than imported: what this revision reads must stay the same when the sentences change.
        named = sa.and_(entry.c.event.in_(["intent", "note"]), entry.c.detail.like(f"plan {digest[:12]}%"))
        ids = connection.execute(sa.select(entry.c.id).where(named)).scalars().all()
        for first in range(0, len(ids), AT_ONCE):
            some = ids[first : first + AT_ONCE]
            of_plan = sa.or_(entry.c.id.in_(some), entry.c.refers_to.in_(some))
            connection.execute(sa.update(entry).where(of_plan).values(plan=digest))
