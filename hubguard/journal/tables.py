"""The tables, as they are declared. The migrations lead to exactly these; a test compares the two."""

from __future__ import annotations

from datetime import datetime, timezone
from typing import Any

import sqlalchemy as sa
from sqlalchemy.dialects import mysql
from sqlalchemy.engine import Dialect
from sqlalchemy.types import TypeDecorator, TypeEngine

PREFIX = "hubguard_"
VERSION_TABLE = "hubguard_version"
NAME_LENGTH = 255
"""Maximum characters of a name, as in the hub's tables."""
PENDING_LENGTH = 64
"""Maximum characters of what a server is pending for."""


class UTCDateTime(TypeDecorator[datetime]):
    """A moment with microseconds: stored as naive UTC, read back UTC-aware. A naive one is refused."""

    impl = sa.DateTime
    cache_ok = True

    def load_dialect_impl(self, dialect: Dialect) -> TypeEngine[Any]:
        """MySQL drops the microseconds unless the column asks for them."""
        if dialect.name in ("mysql", "mariadb"):
            return dialect.type_descriptor(mysql.DATETIME(fsp=6))
        return dialect.type_descriptor(sa.DateTime())

    def process_bind_param(self, value: datetime | None, dialect: Dialect) -> datetime | None:
        """To naive UTC."""
        if value is None:
            return None
        if value.tzinfo is None:
            raise ValueError("the journal takes datetimes with a time zone only")
        return value.astimezone(timezone.utc).replace(tzinfo=None)

    def process_result_value(self, value: datetime | None, dialect: Dialect) -> datetime | None:
        """To aware UTC."""
        return None if value is None else value.replace(tzinfo=timezone.utc)


def holds(name: str) -> bool:
    """Whether every database can hold that name as it is."""
    try:
        name.encode()
    except UnicodeEncodeError:
        return False
    return len(name) <= NAME_LENGTH and "\0" not in name


class Name(TypeDecorator[str]):
    """A name that is compared as it is, letter by letter: at most 255 characters, of any script.

    Binding one that is longer, holds a NUL or isn't valid Unicode raises ValueError: databases differ in what they make
    of those, and a name that was cut is another name.
    """

    impl = sa.String(NAME_LENGTH)
    cache_ok = True

    def load_dialect_impl(self, dialect: Dialect) -> TypeEngine[Any]:
        """MySQL would take ``Ann`` for ``ann`` without a binary collation."""
        if dialect.name in ("mysql", "mariadb"):
            return dialect.type_descriptor(mysql.VARCHAR(NAME_LENGTH, charset="utf8mb4", collation="utf8mb4_bin"))
        return dialect.type_descriptor(sa.String(NAME_LENGTH))

    def process_bind_param(self, value: str | None, dialect: Dialect) -> str | None:
        """The same name, when every database can hold it."""
        if value is not None and not holds(value):
            raise ValueError(
                f"not a name that the journal can hold (over {NAME_LENGTH} characters, a NUL in it or not Unicode)"
            )
        return value


BigId = sa.BigInteger().with_variant(sa.Integer(), "sqlite")
ON_MYSQL: dict[str, Any] = {
    **{"mysql_engine": "InnoDB", "mysql_charset": "utf8mb4"},
    **{"mariadb_engine": "InnoDB", "mariadb_charset": "utf8mb4"},
}

metadata = sa.MetaData()

# One row a hub. holder "" means that nobody holds it; the fence stays, so that it only ever rises.
lease = sa.Table(
    "hubguard_lease",
    metadata,
    sa.Column("hub", Name, primary_key=True),
    sa.Column("holder", Name, nullable=False),
    sa.Column("address", sa.Text, nullable=False),
    sa.Column("fence", sa.BigInteger, nullable=False),
    sa.Column("generation", sa.Double, nullable=False),
    sa.Column("taken_at", UTCDateTime, nullable=False),
    sa.Column("expires_at", UTCDateTime, nullable=False),
    **ON_MYSQL,
)

# One row, with id 1, put there by the first migration: a row that always exists can be locked.
stance = sa.Table(
    "hubguard_stance",
    metadata,
    sa.Column("id", sa.Integer, primary_key=True, autoincrement=False),
    sa.Column("armed", sa.Boolean),
    sa.Column("armed_by", Name),
    sa.Column("armed_at", UTCDateTime),
    sa.Column("armed_why", sa.Text),
    sa.Column("held", sa.Boolean, nullable=False),
    sa.Column("held_by", Name),
    sa.Column("held_at", UTCDateTime),
    sa.Column("held_why", sa.Text),
    **ON_MYSQL,
)

# Rows are added and, when they are old, forgotten; none is ever changed.
entry = sa.Table(
    "hubguard_entry",
    metadata,
    sa.Column("id", BigId, primary_key=True, autoincrement=True),
    sa.Column("at", UTCDateTime, nullable=False),
    sa.Column("event", sa.String(16), nullable=False),
    sa.Column("actor", Name, nullable=False),
    sa.Column("fence", sa.BigInteger, nullable=False),
    sa.Column("user_name", Name),
    sa.Column("server_name", Name),
    sa.Column("started", UTCDateTime),
    sa.Column("action", sa.String(64)),
    sa.Column("reason", sa.String(64)),
    sa.Column("outcome", sa.String(16)),
    sa.Column("detail", sa.Text, nullable=False),
    sa.Column("refers_to", sa.BigInteger),
    # A JSON object.
    sa.Column("grounds", sa.Text),
    # The digest of the plan that it belongs to.
    sa.Column("plan", sa.String(64)),
    # An intent has one outcome.
    sa.Index("hubguard_entry_refers_to", "refers_to", unique=True),
    # What became of one server, newest last; also whether a run was stopped after it had failed.
    sa.Index("hubguard_entry_server", "user_name", "server_name", "id"),
    # The failed ones of late, among many that went well.
    sa.Index("hubguard_entry_outcome", "outcome", "at"),
    # One kind of event, newest last.
    sa.Index("hubguard_entry_event", "event", "id"),
    # One plan, newest last.
    sa.Index("hubguard_entry_plan", "plan", "id"),
    # What is old.
    sa.Index("hubguard_entry_at", "at"),
    # An id that was forgotten is never given again: outcomes and page positions refer to ids.
    sqlite_autoincrement=True,
    **ON_MYSQL,
)

# Rows are added, ended, and forgotten when they have long been over. server_name NULL means all of the user's servers.
exemption = sa.Table(
    "hubguard_exemption",
    metadata,
    sa.Column("id", BigId, primary_key=True, autoincrement=True),
    sa.Column("user_name", Name, nullable=False),
    sa.Column("server_name", Name),
    sa.Column("kept_until", UTCDateTime, nullable=False),
    sa.Column("actor", Name, nullable=False),
    sa.Column("why", sa.Text, nullable=False),
    sa.Column("made_at", UTCDateTime, nullable=False),
    sa.Column("ended_at", UTCDateTime),
    sa.Column("ended_by", Name),
    # Those in force, among many that are over; and what is old.
    sa.Index("hubguard_exemption_until", "kept_until"),
    sa.Index("hubguard_exemption_user", "user_name"),
    # An exemption that was forgotten leaves its id in the entries about it.
    sqlite_autoincrement=True,
    **ON_MYSQL,
)

# One row a server that was ever seen, until it has been gone for long.
activity = sa.Table(
    "hubguard_activity",
    metadata,
    sa.Column("user_name", Name, primary_key=True),
    sa.Column("server_name", Name, primary_key=True),
    sa.Column("started", UTCDateTime),
    sa.Column("active_at", UTCDateTime),
    sa.Column("evidence", sa.String(16)),
    sa.Column("pending", sa.String(PENDING_LENGTH)),
    sa.Column("pending_since", UTCDateTime),
    sa.Column("readded_at", UTCDateTime),
    sa.Column("route_missing", sa.Boolean, nullable=False),
    sa.Column("seen_at", UTCDateTime, nullable=False),
    sa.Index("hubguard_activity_seen", "seen_at"),
    **ON_MYSQL,
)

# One row a key; value is a JSON object.
memory = sa.Table(
    "hubguard_memory",
    metadata,
    sa.Column("key", Name, primary_key=True),
    sa.Column("value", sa.Text().with_variant(mysql.MEDIUMTEXT(), "mysql", "mariadb"), nullable=False),
    sa.Column("at", UTCDateTime, nullable=False),
    **ON_MYSQL,
)

# One row a plan to remove users. state changes by conditional updates; turned_at is when it last did.
prune = sa.Table(
    "hubguard_prune",
    metadata,
    sa.Column("digest", sa.String(64), primary_key=True),
    # A plan for 50,000 users is some 15 MB.
    sa.Column("plan", sa.Text().with_variant(mysql.LONGTEXT(), "mysql", "mariadb"), nullable=False),
    sa.Column("state", sa.String(16), nullable=False),
    sa.Column("actor", Name, nullable=False),
    sa.Column("asked_why", sa.Text, nullable=False),
    sa.Column("why", sa.Text, nullable=False),
    sa.Column("scheduled", sa.Boolean, nullable=False),
    sa.Column("user_count", sa.Integer, nullable=False),
    sa.Column("made_at", UTCDateTime, nullable=False),
    sa.Column("expires_at", UTCDateTime, nullable=False),
    sa.Column("turned_at", UTCDateTime, nullable=False),
    sa.Column("began_at", UTCDateTime),
    sa.Column("ended_at", UTCDateTime),
    sa.Column("undo_file", sa.Text),
    sa.Column("undo_sha256", sa.String(64)),
    sa.Column("restored", sa.Integer, nullable=False),
    sa.Column("restored_at", UTCDateTime),
    # A JSON array of names, in order.
    sa.Column("acknowledged", sa.Text, nullable=False),
    # Those under way.
    sa.Index("hubguard_prune_state", "state"),
    # The newest.
    sa.Index("hubguard_prune_made", "made_at"),
    **ON_MYSQL,
)

# One row a user of a plan who is settled; who waits for their turn has none. position is that in the plan.
prune_item = sa.Table(
    "hubguard_prune_item",
    metadata,
    sa.Column("digest", sa.String(64), primary_key=True),
    sa.Column("position", sa.Integer, primary_key=True, autoincrement=False),
    sa.Column("outcome", sa.String(16), nullable=False),
    sa.Column("detail", sa.Text, nullable=False),
    sa.Column("at", UTCDateTime, nullable=False),
    # How many ended how, and which.
    sa.Index("hubguard_prune_item_outcome", "digest", "outcome", "position"),
    **ON_MYSQL,
)

# One row a step of time at each level (step_s); values is a JSON object of [low, mean, high] by the signal's key.
signal = sa.Table(
    "hubguard_signal",
    metadata,
    sa.Column("step_s", sa.Integer, primary_key=True, autoincrement=False),
    sa.Column("at", UTCDateTime, primary_key=True),
    sa.Column("samples", sa.Text().with_variant(mysql.MEDIUMTEXT(), "mysql", "mariadb"), nullable=False),
    **ON_MYSQL,
)

# One row an alert that was raised; resolved_at NULL: it isn't resolved.
alert = sa.Table(
    "hubguard_alert",
    metadata,
    sa.Column("id", BigId, primary_key=True, autoincrement=True),
    sa.Column("rule", sa.String(64), nullable=False),
    sa.Column("subject", Name, nullable=False),
    sa.Column("severity", sa.String(16), nullable=False),
    sa.Column("raised_at", UTCDateTime, nullable=False),
    sa.Column("resolved_at", UTCDateTime),
    sa.Column("value", sa.Double, nullable=False),
    sa.Column("worst", sa.Double, nullable=False),
    sa.Column("sentence", sa.Text, nullable=False),
    sa.Column("verdict", sa.Text, nullable=False),
    sa.Column("incident_id", BigId),
    # Those that aren't resolved, and what was resolved of late.
    sa.Index("hubguard_alert_resolved", "resolved_at"),
    sa.Index("hubguard_alert_raised", "raised_at"),
    sa.Index("hubguard_alert_incident", "incident_id"),
    sqlite_autoincrement=True,
    **ON_MYSQL,
)

# Rows are added, ended, and forgotten. rule "" means every rule, subject NULL every subject.
silence = sa.Table(
    "hubguard_silence",
    metadata,
    sa.Column("id", BigId, primary_key=True, autoincrement=True),
    sa.Column("rule", sa.String(64), nullable=False),
    sa.Column("subject", Name),
    sa.Column("silent_until", UTCDateTime, nullable=False),
    sa.Column("actor", Name, nullable=False),
    sa.Column("why", sa.Text, nullable=False),
    sa.Column("made_at", UTCDateTime, nullable=False),
    sa.Column("ended_at", UTCDateTime),
    sa.Index("hubguard_silence_until", "silent_until"),
    sqlite_autoincrement=True,
    **ON_MYSQL,
)

# One row a notice to one receiver, until it is forgotten; ended_at is when it was sent or given up (given_up says which);
# reached: it may have arrived.
notice = sa.Table(
    "hubguard_notice",
    metadata,
    sa.Column("id", BigId, primary_key=True, autoincrement=True),
    sa.Column("receiver", sa.String(64), nullable=False),
    sa.Column("alert_id", BigId, nullable=False),
    sa.Column("change", sa.String(16), nullable=False),
    sa.Column("made_at", UTCDateTime, nullable=False),
    sa.Column("due_at", UTCDateTime, nullable=False),
    sa.Column("tries", sa.Integer, nullable=False),
    sa.Column("trouble", sa.Text, nullable=False),
    sa.Column("ended_at", UTCDateTime),
    sa.Column("given_up", sa.Boolean, nullable=False),
    sa.Column("reached", sa.Boolean, nullable=False),
    # What waits, by when it is due.
    sa.Index("hubguard_notice_due", "ended_at", "due_at"),
    sa.Index("hubguard_notice_alert", "alert_id", "receiver"),
    sqlite_autoincrement=True,
    **ON_MYSQL,
)

# closed_at NULL: it goes on.
incident = sa.Table(
    "hubguard_incident",
    metadata,
    sa.Column("id", BigId, primary_key=True, autoincrement=True),
    sa.Column("title", sa.Text, nullable=False),
    sa.Column("opened_at", UTCDateTime, nullable=False),
    sa.Column("opened_by", Name, nullable=False),
    sa.Column("severity", sa.String(16)),
    sa.Column("closed_at", UTCDateTime),
    sa.Column("closed_by", Name),
    sa.Index("hubguard_incident_opened", "opened_at"),
    sqlite_autoincrement=True,
    **ON_MYSQL,
)

incident_note = sa.Table(
    "hubguard_incident_note",
    metadata,
    sa.Column("id", BigId, primary_key=True, autoincrement=True),
    sa.Column("incident_id", BigId, nullable=False),
    sa.Column("at", UTCDateTime, nullable=False),
    sa.Column("actor", Name, nullable=False),
    sa.Column("text", sa.Text, nullable=False),
    sa.Index("hubguard_incident_note_of", "incident_id", "id"),
    sqlite_autoincrement=True,
    **ON_MYSQL,
)
