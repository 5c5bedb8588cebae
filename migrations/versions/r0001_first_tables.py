"""The first tables: lease, stance and journal."""

import sqlalchemy as sa
from alembic import op
from sqlalchemy.dialects import mysql

revision = "0001"
down_revision = None
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


def upgrade() -> None:
    op.create_table(
        "hubguard_lease",
        sa.Column("hub", name, primary_key=True),
        sa.Column("holder", name, nullable=False),
        sa.Column("address", sa.Text, nullable=False),
        sa.Column("fence", sa.BigInteger, nullable=False),
        sa.Column("generation", sa.Double, nullable=False),
        sa.Column("taken_at", moment, nullable=False),
        sa.Column("expires_at", moment, nullable=False),
        **ON_MYSQL,
    )
    stance = op.create_table(
        "hubguard_stance",
        sa.Column("id", sa.Integer, primary_key=True, autoincrement=False),
        sa.Column("armed", sa.Boolean),
        sa.Column("armed_by", name),
        sa.Column("armed_at", moment),
        sa.Column("armed_why", sa.Text),
        sa.Column("held", sa.Boolean, nullable=False),
        sa.Column("held_by", name),
        sa.Column("held_at", moment),
        sa.Column("held_why", sa.Text),
        **ON_MYSQL,
    )
    op.bulk_insert(stance, [{"id": 1, "held": False}])
    op.create_table(
        "hubguard_entry",
        sa.Column("id", big_id, primary_key=True, autoincrement=True),
        sa.Column("at", moment, nullable=False),
        sa.Column("event", sa.String(16), nullable=False),
        sa.Column("actor", name, nullable=False),
        sa.Column("fence", sa.BigInteger, nullable=False),
        sa.Column("user_name", name),
        sa.Column("server_name", name),
        sa.Column("started", moment),
        sa.Column("action", sa.String(64)),
        sa.Column("reason", sa.String(64)),
        sa.Column("outcome", sa.String(16)),
        sa.Column("detail", sa.Text, nullable=False),
        sa.Column("refers_to", sa.BigInteger),
        sqlite_autoincrement=True,
        **ON_MYSQL,
    )
    op.create_index("hubguard_entry_refers_to", "hubguard_entry", ["refers_to"], unique=True)
    op.create_index("hubguard_entry_server", "hubguard_entry", ["user_name", "server_name", "id"])
    op.create_index("hubguard_entry_outcome", "hubguard_entry", ["outcome", "at"])
    op.create_index("hubguard_entry_event", "hubguard_entry", ["event", "id"])
    op.create_index("hubguard_entry_at", "hubguard_entry", ["at"])
