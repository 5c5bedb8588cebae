"""Plans to remove users, and the outcome for each user."""

import sqlalchemy as sa
from alembic import op
from sqlalchemy.dialects import mysql

revision = "0003"
down_revision = "0002"
branch_labels = None
depends_on = None

# Repeated here, not imported: what this revision creates must stay the same when the declared tables change.
ON_MYSQL = {
    **{"mysql_engine": "InnoDB", "mysql_charset": "utf8mb4"},
    **{"mariadb_engine": "InnoDB", "mariadb_charset": "utf8mb4"},
}
moment = sa.DateTime().with_variant(mysql.DATETIME(fsp=6), "mysql", "mariadb")
name = sa.String(255).with_variant(mysql.VARCHAR(255, charset="utf8mb4", collation="utf8mb4_bin"), "mysql", "mariadb")
very_long_text = sa.Text().with_variant(mysql.LONGTEXT(), "mysql", "mariadb")


def upgrade() -> None:
    op.create_table(
        "hubguard_prune",
        sa.Column("digest", sa.String(64), primary_key=True),
        sa.Column("plan", very_long_text, nullable=False),
        sa.Column("state", sa.String(16), nullable=False),
        sa.Column("actor", name, nullable=False),
        sa.Column("asked_why", sa.Text, nullable=False),
        sa.Column("why", sa.Text, nullable=False),
        sa.Column("scheduled", sa.Boolean, nullable=False),
        sa.Column("user_count", sa.Integer, nullable=False),
        sa.Column("made_at", moment, nullable=False),
        sa.Column("expires_at", moment, nullable=False),
        sa.Column("turned_at", moment, nullable=False),
        sa.Column("began_at", moment),
        sa.Column("ended_at", moment),
        sa.Column("undo_file", sa.Text),
        sa.Column("undo_sha256", sa.String(64)),
        sa.Column("restored", sa.Integer, nullable=False),
        sa.Column("restored_at", moment),
        sa.Column("acknowledged", sa.Text, nullable=False),
        **ON_MYSQL,
    )
    op.create_index("hubguard_prune_state", "hubguard_prune", ["state"])
    op.create_index("hubguard_prune_made", "hubguard_prune", ["made_at"])
    op.create_table(
        "hubguard_prune_item",
        sa.Column("digest", sa.String(64), primary_key=True),
        sa.Column("position", sa.Integer, primary_key=True, autoincrement=False),
        sa.Column("outcome", sa.String(16), nullable=False),
        sa.Column("detail", sa.Text, nullable=False),
        sa.Column("at", moment, nullable=False),
        **ON_MYSQL,
    )
    op.create_index("hubguard_prune_item_outcome", "hubguard_prune_item", ["digest", "outcome", "position"])
