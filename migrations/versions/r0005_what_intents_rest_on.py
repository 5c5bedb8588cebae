"""Intents say what they rest on: limit, rule, since when and by which evidence."""

import sqlalchemy as sa
from alembic import op

revision = "0005"
down_revision = "0004"
branch_labels = None
depends_on = None


def upgrade() -> None:
    op.add_column("hubguard_entry", sa.Column("grounds", sa.Text))
