"""The tables of a hub's database, as far as they are read, and what their values mean."""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping
from datetime import datetime, timezone
from typing import Any

import sqlalchemy as sa
from sqlalchemy.engine import Connection

from hubguard.hub.read_only import ReadOnly

REVISIONS: Mapping[str, str] = {
    "0eee8c825d24": "4.1",
    "4621fec11365": "5",
    "f460b0348206": "6",
}
"""The Alembic revisions of the hub's database that are read here, each with the JupyterHub that it came with."""

USERS_AT_ONCE = 500
"""Maximum users that one statement looks up; databases limit how many values a statement may have."""

# No ORM of the hub's and no types: a column is what the driver gives, and only those are named that are read.
_revision = sa.table("alembic_version", sa.column("version_num"))
users = sa.table("users", *map(sa.column, ("id", "name", "admin", "created", "last_activity")))
HAS_NAME = users.c.name != ""
"""Leaves out users without a name, which the hub's tables allow: one odd row must not hide all others."""
spawners = sa.table(
    "spawners",
    *map(
        sa.column,
        (
            "id",
            "user_id",
            "server_id",
            "name",
            "started",
            "last_activity",
            "user_options",
            "state",
            "oauth_client_id",
        ),
    ),
)
servers = sa.table("servers", *map(sa.column, ("id", "proto", "ip", "port")))
services = sa.table("services", sa.column("id"), sa.column("_server_id"))
groups = sa.table("groups", sa.column("id"), sa.column("name"))
roles = sa.table("roles", sa.column("id"), sa.column("name"))
user_groups = sa.table("user_group_map", sa.column("user_id"), sa.column("group_id"))
user_roles = sa.table("user_role_map", sa.column("user_id"), sa.column("role_id"))
group_roles = sa.table("group_role_map", sa.column("group_id"), sa.column("role_id"))
service_roles = sa.table("service_role_map", sa.column("service_id"), sa.column("role_id"))
tokens = sa.table("api_tokens", *map(sa.column, ("id", "user_id", "client_id", "expires_at", "last_activity")))
codes = sa.table("oauth_codes", *map(sa.column, ("id", "user_id", "client_id", "expires_at")))
clients = sa.table("oauth_clients", sa.column("id"), sa.column("identifier"))
shares = sa.table("shares", *map(sa.column, ("id", "owner_id", "spawner_id", "user_id")))
share_codes = sa.table("share_codes", *map(sa.column, ("id", "owner_id", "spawner_id", "expires_at")))

_THESE: sa.BindParameter[Any] = sa.bindparam("ids", expanding=True)
_GROUPS_OF = (
    sa.select(user_groups.c.user_id, groups.c.name)
    .join_from(user_groups, groups, user_groups.c.group_id == groups.c.id)
    .where(user_groups.c.user_id.in_(_THESE))
)
_ROLES_OF = (
    sa.select(user_roles.c.user_id, roles.c.name)
    .join_from(user_roles, roles, user_roles.c.role_id == roles.c.id)
    .where(user_roles.c.user_id.in_(_THESE))
)
_ROLES_BY_GROUP = (
    sa.select(user_groups.c.user_id, roles.c.name)
    .join_from(user_groups, group_roles, user_groups.c.group_id == group_roles.c.group_id)
    .join(roles, group_roles.c.role_id == roles.c.id)
    .where(user_groups.c.user_id.in_(_THESE))
)

Names = Mapping[int, tuple[str, ...]]


def groups_and_roles(connection: Connection, ids: Iterable[int]) -> tuple[Names, Names]:
    """The groups and the roles of these users, in name order, by the user's id; an empty tuple for who has none.

    Roles that come through a group are among them.
    """
    ordered = sorted(ids)
    both: list[Names] = []
    for statement in (_GROUPS_OF, _ROLES_OF.union(_ROLES_BY_GROUP)):
        names: dict[int, set[str]] = {id_: set() for id_ in ordered}
        for first in range(0, len(ordered), USERS_AT_ONCE):
            for id_, name in connection.execute(statement, {"ids": ordered[first : first + USERS_AT_ONCE]}):
                if isinstance(name, str):  # the hub's tables allow groups without a name
                    names[id_].add(name)
        both.append({id_: tuple(sorted(of_user)) for id_, of_user in names.items()})
    return both[0], both[1]


def known_revision(db: ReadOnly, connection: Connection) -> str:
    """The revision of the hub's tables. Raises HubDBError for an unknown one."""
    rows = connection.execute(sa.select(_revision.c.version_num)).all()
    revision = ", ".join(str(row[0]) for row in rows)
    if revision not in REVISIONS:
        raise db.trouble(
            f"has the revision {revision or '(none)'}, and HubGuard knows only those of JupyterHub "
            + " and ".join(REVISIONS.values()),
            "Upgrade HubGuard, or the hub's database if the hub is waiting for that.",
        )
    return revision


def has_shares(connection: Connection) -> bool:
    """Whether there are tables of shares. A hub from 5.0 on makes them at its start, and not by a revision."""
    return sa.inspect(connection).has_table(shares.name)


def has_name(name: object) -> bool:
    """Whether that is a user's name: SQLite keeps bytes in a column of texts, too."""
    return isinstance(name, str) and name != ""


def as_times(*values: Any) -> tuple[list[datetime | None], bool]:
    """Times of one row as the driver returns them, UTC-aware (the hub writes UTC), and whether all of them can be read.

    One that can't be read is None like one that isn't there; nothing may be concluded from that None.
    """
    times: list[datetime | None] = []
    known = True
    for value in values:
        at = None
        try:
            if value is not None:
                at = value if isinstance(value, datetime) else datetime.fromisoformat(value)
                at = at.replace(tzinfo=timezone.utc) if at.tzinfo is None else at.astimezone(timezone.utc)
        except (TypeError, ValueError, OverflowError):
            at, known = None, False
        times.append(at)
    return times, known


def as_object(text: str | None) -> Mapping[str, object] | None:
    """What the hub keeps as JSON; it writes nothing for an empty object, and None stands for what can't be read."""
    try:
        value = json.loads(text or "{}")
    except (TypeError, ValueError, RecursionError):
        return None
    return value if isinstance(value, dict) else None
