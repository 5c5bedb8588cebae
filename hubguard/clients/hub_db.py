"""Reading the hub's own database: all servers and stale users for nearly nothing, and without ever being in its way.

A hub on SQLite can't write while somebody reads, and after five seconds of that it answers 403 to valid tokens: so every
transaction here takes a few milliseconds, and what was read is looked at after its end.
"""

from __future__ import annotations

import asyncio
import json
import time
from collections import defaultdict
from collections.abc import Callable, Iterable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from datetime import datetime, timezone
from pathlib import Path
from typing import Any, Protocol, TypeVar

import sqlalchemy as sa
from sqlalchemy.engine import Connection

from hubguard.clients.read_only import SILENT_S, ReadOnly
from hubguard.drift import Key, ORMCounts
from hubguard.model import Server, User

T = TypeVar("T")

REVISIONS: Mapping[str, str] = {
    "0eee8c825d24": "4.1",
    "4621fec11365": "5",
    "f460b0348206": "6",
}
"""The Alembic revisions of the hub's database that are read here, each with the JupyterHub that it came with."""

GIVE_UP_S = 2.0 * SILENT_S
"""A call that isn't through by then is given up: its thread may hang in a network file system that doesn't answer."""

USERS_AT_ONCE = 500
"""So many users are looked up by one statement; databases limit how many values a statement may have."""

# No ORM of the hub's and no types: a column is what the driver gives, and only those are named that are read.
_revision = sa.table("alembic_version", sa.column("version_num"))
_users = sa.table("users", *map(sa.column, ("id", "name", "admin", "created", "last_activity")))
_spawners = sa.table(
    "spawners", *map(sa.column, ("user_id", "server_id", "name", "started", "last_activity", "user_options", "state"))
)
_servers = sa.table("servers", *map(sa.column, ("id", "proto", "ip", "port")))
_services = sa.table("services", sa.column("id"), sa.column("_server_id"))
_groups = sa.table("groups", sa.column("id"), sa.column("name"))
_roles = sa.table("roles", sa.column("id"), sa.column("name"))
_user_groups = sa.table("user_group_map", sa.column("user_id"), sa.column("group_id"))
_user_roles = sa.table("user_role_map", sa.column("user_id"), sa.column("role_id"))
_group_roles = sa.table("group_role_map", sa.column("group_id"), sa.column("role_id"))
_service_roles = sa.table("service_role_map", sa.column("service_id"), sa.column("role_id"))
_tokens = sa.table("api_tokens", sa.column("expires_at"))
_codes = sa.table("oauth_codes", sa.column("expires_at"))

_RUNNING: sa.Select[Any] = (
    sa.select(
        _users.c.id,
        _users.c.name,
        _users.c.admin,
        _spawners.c.name,
        _spawners.c.started,
        _spawners.c.last_activity,
        _spawners.c.user_options,
    )
    .join_from(_spawners, _users, _spawners.c.user_id == _users.c.id)
    .join(_servers, _spawners.c.server_id == _servers.c.id)
    .where(_spawners.c.server_id.is_not(None))
)
_WHERE_THEY_ARE: sa.Select[Any] = _RUNNING.add_columns(
    _servers.c.proto, _servers.c.ip, _servers.c.port, _spawners.c.state
)
_INACTIVE: sa.Select[Any] = (
    sa.select(_users.c.id, _users.c.name, _users.c.admin, _users.c.created, _users.c.last_activity)
    .where(_users.c.id > sa.bindparam("after"))
    .where(
        _users.c.last_activity.is_(None) | (_users.c.last_activity < sa.bindparam("since", type_=sa.DateTime())),
    )
    .order_by(_users.c.id)
    .limit(USERS_AT_ONCE)
)
_THESE: sa.BindParameter[Any] = sa.bindparam("ids", expanding=True)
_GROUPS_OF = (
    sa.select(_user_groups.c.user_id, _groups.c.name)
    .join_from(_user_groups, _groups, _user_groups.c.group_id == _groups.c.id)
    .where(_user_groups.c.user_id.in_(_THESE))
)
_ROLES_OF = (
    sa.select(_user_roles.c.user_id, _roles.c.name)
    .join_from(_user_roles, _roles, _user_roles.c.role_id == _roles.c.id)
    .where(_user_roles.c.user_id.in_(_THESE))
)


def _count(rows: Any, *conditions: sa.ColumnElement[bool]) -> sa.Select[Any]:
    return sa.select(sa.func.count()).select_from(rows).where(*conditions)


def _leading_nowhere(rows: Any, *ends: tuple[Any, Any]) -> sa.Select[Any]:
    """How many of a map's rows have an end of which there is none, each end given as (the map's column, an id)."""
    for column, id_ in ends:
        rows = rows.outerjoin(id_.table, column == id_)
    return _count(rows, sa.or_(*(id_.is_(None) for _, id_ in ends)))


_ORM_COUNTS: Mapping[str, tuple[sa.Select[Any], ...]] = {
    # Outer joins, since "NOT EXISTS" looks through all spawners for each server: there is no index on their server_id.
    "servers_of_nobody": (
        _count(
            _servers.outerjoin(_spawners, _spawners.c.server_id == _servers.c.id).outerjoin(
                _services, _services.c._server_id == _servers.c.id
            ),
            _spawners.c.server_id.is_(None),
            _services.c.id.is_(None),
        ),
    ),
    "spawners_without_server": (
        _count(
            _spawners.outerjoin(_servers, _spawners.c.server_id == _servers.c.id),
            _spawners.c.server_id.is_not(None),
            _servers.c.id.is_(None),
        ),
    ),
    "expired_tokens": (_count(_tokens, _tokens.c.expires_at < sa.bindparam("now", type_=sa.DateTime())),),
    "expired_codes": (_count(_codes, _codes.c.expires_at < sa.bindparam("now_epoch", type_=sa.Integer())),),
    "memberships_of_nobody": tuple(
        _leading_nowhere(*rows)
        for rows in (
            (_user_groups, (_user_groups.c.user_id, _users.c.id), (_user_groups.c.group_id, _groups.c.id)),
            (_user_roles, (_user_roles.c.user_id, _users.c.id), (_user_roles.c.role_id, _roles.c.id)),
            (_group_roles, (_group_roles.c.group_id, _groups.c.id), (_group_roles.c.role_id, _roles.c.id)),
            (_service_roles, (_service_roles.c.service_id, _services.c.id), (_service_roles.c.role_id, _roles.c.id)),
        )
    ),
}
"""The statements that each field of ORMCounts is the sum of."""

_ALL_ADDRESSES = frozenset({"", "0.0.0.0", "::"})  # noqa: S104  # nothing is bound to them here


@dataclass(frozen=True, slots=True)
class HubState:
    """What the hub's database said at one moment.

    ``servers`` holds every server that has an address there, sorted by (user, name), with groups, roles and options. What
    is pending is in the hub's memory only, and a server has its address from the first moment of its start to the last of
    its stop: so each is given as ready and without a pending, and some may be starting or stopping. Ask the hub itself
    before acting on one. MySQL keeps whole seconds: there, ``started`` is up to a second away from what the hub's API tells.

    ``users_total`` is how many users the hub has, ``revision`` the Alembic revision of its tables, ``took_s`` how many
    seconds the reading took.

    ``targets`` is where the hub believes each server is reached, as scheme://host:port. It leaves out a server that listens
    on all addresses of a machine (which machine isn't written down: the hub takes its own host's name) or on a Unix socket,
    and while one still starts, what stands there needn't be its address yet. ``states`` is what each server's spawner keeps
    to find it again, where it keeps anything; it may hold secrets, and is in no repr.
    """

    servers: tuple[Server, ...]
    users_total: int
    revision: str
    took_s: float
    targets: Mapping[Key, str] = field(default_factory=dict, hash=False)
    states: Mapping[Key, Mapping[str, object]] = field(default_factory=dict, hash=False, repr=False)


class HubDB(Protocol):
    """The hub's database, for reading only."""

    async def read(self) -> HubState:
        """All servers and the number of users, as of one moment. Raises HubDBError."""

    async def inactive_users(self, since: datetime) -> tuple[User, ...]:
        """Every user who was never active, or not from ``since`` on, by name, with what runs for them (see HubState).

        It is read bit by bit, so one who becomes active meanwhile may be among them. Raises HubDBError.
        """

    async def orm_counts(self) -> ORMCounts:
        """How many rows lead nowhere or have expired. Each number is of a moment of its own. Raises HubDBError.

        A server's row is nobody's for a moment whenever one starts, and the hub itself removes what has expired from time
        to time: so a count is worth telling when it stays.
        """

    def close(self) -> None:
        """It isn't read any more."""


class SQLHubDB:
    """Implements HubDB for a hub on SQLite, PostgreSQL, MySQL or MariaDB, in a thread of its own, one call at a time.

    ``url`` is the hub's ``db_url``. A relative SQLite file is one below ``folder``: give the folder that the hub runs in
    (default: the current one). ``place`` names the database for people and holds no account, password or option. Nothing
    is connected to yet, and nothing stays connected between calls. Raises HubDBError for a URL that can't be used and for
    a missing driver.
    """

    def __init__(self, url: str, folder: Path = Path()) -> None:
        self._db = ReadOnly(url, folder)
        self.place = self._db.place
        self._thread = ThreadPoolExecutor(1, thread_name_prefix="hub-db")

    async def read(self) -> HubState:
        """See HubDB."""
        return await self._call(self._read)

    async def inactive_users(self, since: datetime) -> tuple[User, ...]:
        """See HubDB."""
        return await self._call(lambda: self._inactive_users(since.astimezone(timezone.utc)))

    async def orm_counts(self) -> ORMCounts:
        """See HubDB."""
        return await self._call(self._orm_counts)

    def close(self) -> None:
        """See HubDB. A call that is under way ends by itself."""
        self._thread.shutdown(wait=False, cancel_futures=True)

    async def _call(self, function: Callable[[], T]) -> T:
        call = asyncio.get_running_loop().run_in_executor(self._thread, function)
        try:
            return await asyncio.wait_for(call, GIVE_UP_S)
        except asyncio.TimeoutError:
            raise self._db.trouble(
                f"doesn't answer for {GIVE_UP_S:g} seconds", "Check its disk, or the way to its server."
            ) from None

    def _read(self) -> HubState:
        began_s = time.monotonic()
        with self._db.transaction() as connection:
            revision = self._known_revision(connection)
            users_total = connection.execute(sa.select(sa.func.count()).select_from(_users)).scalar_one()
            rows = connection.execute(_WHERE_THEY_ARE).all()
            memberships = _memberships(connection, {row[0] for row in rows})
        # The database is free again; all that follows is ours alone.
        servers = self._servers(rows, memberships)
        targets, states = {}, {}
        for _, user, _, name, _, _, _, proto, ip, port, state in rows:
            if target := _target(proto, ip, port):
                targets[user, name or ""] = target
            if kept := _object(state):
                states[user, name or ""] = kept
        return HubState(servers, users_total, revision, time.monotonic() - began_s, targets, states)

    def _orm_counts(self) -> ORMCounts:
        now = datetime.now(timezone.utc)
        values = {"now": now.replace(tzinfo=None), "now_epoch": int(now.timestamp())}
        counts: dict[str, int] = {}
        for name, statements in _ORM_COUNTS.items():
            # Each in a transaction of its own: in a large database, all of them together could keep a hub on SQLite waiting.
            with self._db.transaction() as connection:
                self._known_revision(connection)
                counts[name] = sum(connection.execute(counting, values).scalar_one() for counting in statements)
        return ORMCounts(**counts)

    def _inactive_users(self, since: datetime) -> tuple[User, ...]:
        with self._db.transaction() as connection:
            self._known_revision(connection)
            rows = connection.execute(_RUNNING).all()
            memberships = _memberships(connection, {row[0] for row in rows})
        servers: dict[str, list[Server]] = defaultdict(list)
        for server in self._servers(rows, memberships):
            servers[server.user].append(server)
        found: list[User] = []
        after = -1
        while True:
            with self._db.transaction() as connection:
                asked = {"after": after, "since": since.replace(tzinfo=None)}
                rows = connection.execute(_INACTIVE, asked).all()
                groups, roles = _memberships(connection, {row[0] for row in rows})
            for id_, name, admin, created, last_activity in rows:
                user = User(
                    name=self._name(name),
                    admin=bool(admin),
                    groups=groups[id_],
                    roles=roles[id_],
                    created=self._time(created),
                    last_activity=self._time(last_activity),
                    servers=tuple(servers[name]),
                )
                # Again, as times: SQLite has compared them as texts.
                if user.last_activity is None or user.last_activity < since:
                    found.append(user)
            if len(rows) < USERS_AT_ONCE:
                return tuple(sorted(found, key=lambda user: user.name))
            after = rows[-1][0]

    def _servers(self, rows: Sequence[Any], memberships: tuple[_Names, _Names]) -> tuple[Server, ...]:
        groups, roles = memberships
        found = (
            Server(
                user=self._name(user),
                name=name or "",
                ready=True,
                pending=None,
                started=self._time(started),
                last_activity=self._time(last_activity),
                admin=bool(admin),
                groups=groups[id_],
                roles=roles[id_],
                options=_object(options),
            )
            for id_, user, admin, name, started, last_activity, options, *_ in rows
        )
        return tuple(sorted(found, key=lambda server: server.key))

    def _known_revision(self, connection: Connection) -> str:
        """The revision of the hub's tables. Raises HubDBError for one that isn't known."""
        rows = connection.execute(sa.select(_revision.c.version_num)).all()
        revision = ", ".join(str(row[0]) for row in rows)
        if revision not in REVISIONS:
            raise self._db.trouble(
                f"has the revision {revision or '(none)'}, and HubGuard knows only those of JupyterHub "
                + " and ".join(REVISIONS.values()),
                "Upgrade HubGuard, or the hub's database if the hub is waiting for that.",
            )
        return revision

    def _name(self, name: Any) -> str:
        if not isinstance(name, str) or not name:
            raise self._db.trouble("holds a user without a name", "Nothing is concluded from it.")
        return name

    def _time(self, value: Any) -> datetime | None:
        """A time as the driver gives it, UTC-aware: the hub writes UTC, without saying so."""
        if value is None:
            return None
        try:
            at = value if isinstance(value, datetime) else datetime.fromisoformat(value)
        except (TypeError, ValueError):
            raise self._db.trouble(
                f"holds {str(value)[:40]!r} where a time belongs", "Nothing is concluded from it."
            ) from None
        return at.replace(tzinfo=timezone.utc) if at.tzinfo is None else at.astimezone(timezone.utc)


_Names = Mapping[int, tuple[str, ...]]


def _memberships(connection: Connection, ids: Iterable[int]) -> tuple[_Names, _Names]:
    """The groups and the roles of these users, in name order, by the user's id; an empty tuple for who has none."""
    ordered = sorted(ids)
    both: list[_Names] = []
    for statement in (_GROUPS_OF, _ROLES_OF):
        names: dict[int, list[str]] = {id_: [] for id_ in ordered}
        for first in range(0, len(ordered), USERS_AT_ONCE):
            for id_, name in connection.execute(statement, {"ids": ordered[first : first + USERS_AT_ONCE]}):
                names[id_].append(name)
        both.append({id_: tuple(sorted(of_user)) for id_, of_user in names.items()})
    return both[0], both[1]


def _object(text: str | None) -> Mapping[str, object] | None:
    """What the hub keeps as JSON; it writes nothing for an empty object, and None stands for what can't be read."""
    try:
        found = json.loads(text or "{}")
    except (ValueError, RecursionError):
        return None
    return found if isinstance(found, dict) else None


def _target(proto: object, ip: object, port: object) -> str | None:
    """scheme://host:port, or None where the row doesn't name one."""
    if proto not in ("http", "https") or not isinstance(ip, str) or ip in _ALL_ADDRESSES or not isinstance(port, int):
        return None
    return f"{proto}://[{ip}]:{port}" if ":" in ip else f"{proto}://{ip}:{port}"
