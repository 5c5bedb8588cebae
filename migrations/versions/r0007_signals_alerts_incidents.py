"""Signals, alerts, silences, notices and incidents."""

import sqlalchemy as sa
from alembic import op
from sqlalchemy.dialects import mysql

revision = "0007"
down_revision = "0006"
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
        "hubguard_signal",
        sa.Column("step_s", sa.Integer, primary_key=True, autoincrement=False),
        sa.Column("at", moment, primary_key=True),
        sa.Column("samples", long_text, nullable=False),
        **ON_MYSQL,
    )
    op.create_table(
        "hubguard_alert",
        sa.Column("id", big_id, primary_key=True, autoincrement=True),
        sa.Column("rule", sa.String(64), nullable=False),
        sa.Column("subject", name, nullable=False),
        sa.Column("severity", sa.String(16), nullable=False),
        sa.Column("raised_at", moment, nullable=False),
        sa.Column("resolved_at", moment),
        sa.Column("value", sa.Double, nullable=False),
        sa.Column("worst", sa.Double, nullable=False),
        sa.Column("sentence", sa.Text, nullable=False),
        sa.Column("verdict", sa.Text, nullable=False),
        sa.Column("incident_id", big_id),
        sqlite_autoincrement=True,
        **ON_MYSQL,
    )
    op.create_index("hubguard_alert_resolved", "hubguard_alert", ["resolved_at"])
    op.create_index("hubguard_alert_raised", "hubguard_alert", ["raised_at"])
    op.create_index("hubguard_alert_incident", "hubguard_alert", ["incident_id"])
    op.create_table(
        "hubguard_silence",
        sa.Column("id", big_id, primary_key=True, autoincrement=True),
        sa.Column("rule", sa.String(64), nullable=False),
        sa.Column("subject", name),
        sa.Column("silent_until", moment, nullable=False),
        sa.Column("actor", name, nullable=False),
        sa.Column("why", sa.Text, nullable=False),
        sa.Column("made_at", moment, nullable=False),
        sa.Column("ended_at", moment),
        sqlite_autoincrement=True,
        **ON_MYSQL,
    )
    op.create_index("hubguard_silence_until", "hubguard_silence", ["silent_until"])
    op.create_table(
        "hubguard_notice",
        sa.Column("id", big_id, primary_key=True, autoincrement=True),
        sa.Column("receiver", sa.String(64), nullable=False),
        sa.Column("alert_id", big_id, nullable=False),
        sa.Column("change", sa.String(16), nullable=False),
        sa.Column("made_at", moment, nullable=False),
        sa.Column("due_at", moment, nullable=False),
        sa.Column("tries", sa.Integer, nullable=False),
        sa.Column("trouble", sa.Text, nullable=False),
        sa.Column("ended_at", moment),
        sa.Column("given_up", sa.Boolean, nullable=False),
        sa.Column("reached", sa.Boolean, nullable=False),
        sqlite_autoincrement=True,
        **ON_MYSQL,
    )
    op.create_index("hubguard_notice_due", "hubguard_notice", ["ended_at", "due_at"])
    op.create_index("hubguard_notice_alert", "hubguard_notice", ["alert_id", "receiver"])
    op.create_table(
        "hubguard_incident",
        sa.Column("id", big_id, primary_key=True, autoincrement=True),
        sa.Column("title", sa.Text, nullable=False),
        sa.Column("opened_at", moment, nullable=False),
        sa.Column("opened_by", name, nullable=False),
        sa.Column("severity", sa.String(16)),
        sa.Column("closed_at", moment),
        sa.Column("closed_by", name),
        sqlite_autoincrement=True,
        **ON_MYSQL,
    )
    op.create_index("hubguard_incident_opened", "hubguard_incident", ["opened_at"])
    op.create_table(
        "hubguard_incident_note",
        sa.Column("id", big_id, primary_key=True, autoincrement=True),
        sa.Column("incident_id", big_id, nullable=False),
        sa.Column("at", moment, nullable=False),
        sa.Column("actor", name, nullable=False),
        sa.Column("text", sa.Text, nullable=False),
        sqlite_autoincrement=True,
        **ON_MYSQL,
    )
    op.create_index("hubguard_incident_note_of", "hubguard_incident_note", ["incident_id", "id"])
