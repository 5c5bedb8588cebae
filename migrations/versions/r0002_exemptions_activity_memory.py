"""Exemptions, the real use that was seen, and what a guard remembers across its restarts."""

import sqlalchemy as sa
from alembic import op
from sqlalchemy.dialects import mysql

revision = "0002"
down_revision = "0001"
branch_labels = None
depends_on = None

# Repeated here, not imported: what this revision creates must stay the same when the declared tables change.
ON_MYSQL = {
    **{"mysql_engine": "InnoDB", "mysql_charset": "utf8mb4"},
    **{"mariadb_engine": "InnoDB", "mariadb_charset": "utf8mb4"},
}
big_id = sa.BigInteger().with_variant(sa.Integer(), "sqlite")
moment = sa.DateTime().with_variant(mysql.DATETIME(fsp=6), "mysql", "mariadb")
name = sa.String(255).with_variant(mysql.VARCHAR(255, charset="utf8mb4", collation="utf8mb4_bin"), "mysql", "mariadb")
long_text = sa.Text().with_variant(mysql.MEDIUMTEXT(), "mysql", "mariadb")


def upgrade() -> None:
    op.create_table(
        "hubguard_exemption",
        sa.Column("id", big_id, primary_key=True, autoincrement=True),
        sa.Column("user_name", name, nullable=False),
        sa.Column("server_name", name),
        sa.Column("kept_until", moment, nullable=False),
        sa.Column("actor", name, nullable=False),
        sa.Column("why", sa.Text, nullable=False),
        sa.Column("made_at", moment, nullable=False),
        sa.Column("ended_at", moment),
        sa.Column("ended_by", name),
        sqlite_autoincrement=True,
        **ON_MYSQL,
    )
    op.create_index("hubguard_exemption_until", "hubguard_exemption", ["kept_until"])
    op.create_index("hubguard_exemption_user", "hubguard_exemption", ["user_name"])
    op.create_table(
        "hubguard_activity",
        sa.Column("user_name", name, primary_key=True),
        sa.Column("server_name", name, primary_key=True),
        sa.Column("started", moment),
        sa.Column("active_at", moment),
        sa.Column("evidence", sa.String(16)),
        sa.Column("pending", sa.String(64)),
        sa.Column("pending_since", moment),
        sa.Column("readded_at", moment),
        sa.Column("route_missing", sa.Boolean, nullable=False),
        sa.Column("seen_at", moment, nullable=False),
        **ON_MYSQL,
    )
    op.create_index("hubguard_activity_seen", "hubguard_activity", ["seen_at"])
    op.create_table(
        "hubguard_memory",
        sa.Column("key", name, primary_key=True),
        sa.Column("value", long_text, nullable=False),
        sa.Column("at", moment, nullable=False),
        **ON_MYSQL,
    )
