"""Reading the hub's own database: all servers and stale users for nearly nothing, and without ever being in its way.

A hub on SQLite can't write while somebody reads, and after five seconds of that it answers 403 to valid tokens: so every
transaction here takes a few milliseconds, and what was read is looked at after its end.
"""

from __future__ import annotations

import asyncio
import time
from collections import defaultdict
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from datetime import datetime, timezone
from pathlib import Path
from typing import Any, Protocol, TypeVar

import sqlalchemy as sa
from typing_extensions import override

from hubguard.hub.accounts import read_accounts, read_undo_users, read_users_made
from hubguard.hub.nouns import Accounts, ORMCounts, UndoUser
from hubguard.hub.read_only import SILENT_S, ReadOnly
from hubguard.hub.tables import (
    HAS_NAME,
    REVISIONS,
    USERS_AT_ONCE,
    Names,
    as_object,
    as_times,
    codes,
    group_roles,
    groups,
    groups_and_roles,
    has_name,
    has_shares,
    known_revision,
    roles,
    servers,
    service_roles,
    services,
    share_codes,
    spawners,
    tokens,
    user_groups,
    user_roles,
    users,
)
from hubguard.model import Key, Server, User

__all__ = ["REVISIONS", "HubDB", "HubState", "SQLHubDB"]

T = TypeVar("T")

GIVE_UP_S = 2.0 * SILENT_S
"""Seconds after which a call is given up: its thread may hang in a network file system that doesn't answer."""

_RUNNING: sa.Select[Any] = (
    sa.select(
        users.c.id,
        users.c.name,
        users.c.admin,
        spawners.c.name,
        spawners.c.started,
        spawners.c.last_activity,
        spawners.c.user_options,
    )
    .join_from(spawners, users, spawners.c.user_id == users.c.id)
    .join(servers, spawners.c.server_id == servers.c.id)
    .where(spawners.c.server_id.is_not(None), HAS_NAME)
)
_WHERE_THEY_ARE: sa.Select[Any] = _RUNNING.add_columns(servers.c.proto, servers.c.ip, servers.c.port, spawners.c.state)
_INACTIVE: sa.Select[Any] = (
    sa.select(users.c.id, users.c.name, users.c.admin, users.c.created, users.c.last_activity)
    .where(users.c.id > sa.bindparam("after"), HAS_NAME)
    .where(
        users.c.last_activity.is_(None) | (users.c.last_activity < sa.bindparam("since", type_=sa.DateTime())),
    )
    .order_by(users.c.id)
    .limit(USERS_AT_ONCE)
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
            servers.outerjoin(spawners, spawners.c.server_id == servers.c.id).outerjoin(
                services, services.c._server_id == servers.c.id
            ),
            spawners.c.server_id.is_(None),
            services.c.id.is_(None),
        ),
    ),
    "spawners_without_server": (
        _count(
            spawners.outerjoin(servers, spawners.c.server_id == servers.c.id),
            spawners.c.server_id.is_not(None),
            servers.c.id.is_(None),
        ),
    ),
    "expired_tokens": (_count(tokens, tokens.c.expires_at < sa.bindparam("now", type_=sa.DateTime())),),
    "expired_share_codes": (_count(share_codes, share_codes.c.expires_at < sa.bindparam("now", type_=sa.DateTime())),),
    "expired_codes": (_count(codes, codes.c.expires_at < sa.bindparam("now_epoch", type_=sa.Integer())),),
    "memberships_of_nobody": tuple(
        _leading_nowhere(*rows)
        for rows in (
            (user_groups, (user_groups.c.user_id, users.c.id), (user_groups.c.group_id, groups.c.id)),
            (user_roles, (user_roles.c.user_id, users.c.id), (user_roles.c.role_id, roles.c.id)),
            (group_roles, (group_roles.c.group_id, groups.c.id), (group_roles.c.role_id, roles.c.id)),
            (service_roles, (service_roles.c.service_id, services.c.id), (service_roles.c.role_id, roles.c.id)),
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
    before acting on a server. A server with a time that can't be read is given with neither. MySQL keeps whole seconds:
    there, ``started`` is up to a second away from what the hub's API tells.

    ``users_total`` is how many users the hub has, ``revision`` the Alembic revision of its tables, ``took_s`` how many
    seconds the reading took.

    ``targets`` is where the hub believes each server is reached, as scheme://host:port. It leaves out a server that listens
    on all addresses of a machine (which machine isn't written down: the hub takes its own host's name) or on a Unix socket,
    and while one still starts, what stands there needn't be its address yet. ``states`` is what each server's spawner keeps
    to find it again, if it keeps anything; it may hold secrets, and is in no repr.
    """

    servers: tuple[Server, ...]
    users_total: int
    revision: str
    took_s: float
    targets: Mapping[Key, str] = field(default_factory=dict, hash=False)
    states: Mapping[Key, Mapping[str, object]] = field(default_factory=dict, hash=False, repr=False)


class HubDB(Protocol):
    """The hub's database, for reading only. ``place`` names it for people and holds no account, password or option."""

    place: str

    async def read(self) -> HubState:
        """All servers and the number of users, as of one moment. Raises HubDBError."""

    async def inactive_users(self, since: datetime) -> tuple[User, ...]:
        """Every user who was never active, or not from ``since`` on, by name, with what runs for them (see HubState).

        It is read bit by bit, so one who becomes active meanwhile may be among them. Who has a time that can't be read is
        left out. Raises HubDBError.
        """

    async def accounts(self, since: datetime | None, names: Sequence[str] | None = None) -> Accounts:
        """Users with all that hangs on them, except what is pending.

        ``since`` None: everybody; else who was never active, or not after it. ``names``: of these only; who isn't there is
        left out. A server counts as active from the first moment of its start to the last of its stop. Each user's parts
        may be of different moments, unless they are asked for by name; what may keep somebody is read last.

        Raises HubDBError.
        """

    async def users_made(self, names: Sequence[str]) -> dict[str, datetime | None]:
        """When each of these users was made, by name, as of one moment; who isn't there is left out. Raises HubDBError."""

    async def undo_users(self, names: Sequence[str]) -> tuple[UndoUser, ...]:
        """All there is to bring these users back, by name; who isn't there is left out. Raises HubDBError.

        ``rows`` has what the hub deletes with a user, of each table that has any: users, spawners, servers, oauth_clients
        (of their servers), api_tokens and oauth_codes (theirs, and everybody's for their servers), shares (of their servers,
        and with them), share_codes, user_group_map, user_role_map. A share between two of them stands at both.
        """

    async def orm_counts(self) -> ORMCounts:
        """How many rows lead nowhere or have expired. Each number is of a moment of its own. Raises HubDBError.

        A server's row is nobody's for a moment whenever one starts, and the hub itself removes what has expired from time
        to time: so a count is worth telling when it stays.
        """

    async def ping(self) -> None:
        """It answers a question of one row. Raises HubDBError."""

    async def count_tokens(self) -> tuple[int, int]:
        """How many API tokens and how many OAuth codes it holds, expired ones included. Raises HubDBError."""

    def close(self) -> None:
        """It isn't read any more."""


class SQLHubDB(HubDB):
    """Implements HubDB for a hub on SQLite, PostgreSQL, MySQL or MariaDB, in a thread of its own, one call at a time.

    ``url`` is the hub's ``db_url``. A relative SQLite file is one below ``folder``: give the folder that the hub runs in
    (default: the current one). ``arguments`` are for the driver of a database server, as the hub's ``connect_args``.
    Nothing is connected to yet, and nothing stays connected between calls. Raises HubDBError for a URL that can't be used
    and for a missing driver.
    """

    def __init__(self, url: str, folder: Path = Path(), *, arguments: Mapping[str, Any] | None = None) -> None:
        self._db = ReadOnly(url, folder, arguments=arguments)
        self.place = self._db.place
        self._thread = ThreadPoolExecutor(1, thread_name_prefix="hub-db")

    @override
    async def read(self) -> HubState:
        return await self._call(self._read)

    @override
    async def inactive_users(self, since: datetime) -> tuple[User, ...]:
        return await self._call(lambda: self._inactive_users(since.astimezone(timezone.utc)))

    @override
    async def accounts(self, since: datetime | None, names: Sequence[str] | None = None) -> Accounts:
        until = None if since is None else since.astimezone(timezone.utc)
        return await self._call(lambda: read_accounts(self._db, until, names))

    @override
    async def users_made(self, names: Sequence[str]) -> dict[str, datetime | None]:
        return await self._call(lambda: read_users_made(self._db, names))

    @override
    async def undo_users(self, names: Sequence[str]) -> tuple[UndoUser, ...]:
        return await self._call(lambda: read_undo_users(self._db, names))

    @override
    async def orm_counts(self) -> ORMCounts:
        return await self._call(self._orm_counts)

    @override
    async def ping(self) -> None:
        def ask() -> None:
            with self._db.transaction() as connection:
                known_revision(self._db, connection)

        await self._call(ask)

    @override
    async def count_tokens(self) -> tuple[int, int]:
        def count() -> tuple[int, int]:
            with self._db.transaction() as connection:
                known_revision(self._db, connection)
                return connection.execute(_count(tokens)).scalar_one(), connection.execute(_count(codes)).scalar_one()

        return await self._call(count)

    @override
    def close(self) -> None:
        """A call that is under way ends by itself."""
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
            revision = known_revision(self._db, connection)
            users_total = connection.execute(sa.select(sa.func.count()).select_from(users)).scalar_one()
            rows = connection.execute(_WHERE_THEY_ARE).all()
            memberships = groups_and_roles(connection, {row[0] for row in rows})
        # The database is free again; all that follows is ours alone.
        servers = self._servers(rows, memberships)
        targets, states = {}, {}
        for _, user, _, name, _, _, _, proto, ip, port, state in rows:
            if target := _target(proto, ip, port):
                targets[user, _server_name(name)] = target
            if kept := as_object(state):
                states[user, _server_name(name)] = kept
        return HubState(servers, users_total, revision, time.monotonic() - began_s, targets, states)

    def _orm_counts(self) -> ORMCounts:
        now = datetime.now(timezone.utc)
        values = {"now": now.replace(tzinfo=None), "now_epoch": int(now.timestamp())}
        counts: dict[str, int] = {}
        for name, statements in _ORM_COUNTS.items():
            # Each in a transaction of its own: in a large database, all of them together could keep a hub on SQLite waiting.
            with self._db.transaction() as connection:
                known_revision(self._db, connection)
                if name == "expired_share_codes" and not has_shares(connection):
                    continue
                counts[name] = sum(connection.execute(counting, values).scalar_one() for counting in statements)
        return ORMCounts(**counts)

    def _inactive_users(self, since: datetime) -> tuple[User, ...]:
        with self._db.transaction() as connection:
            known_revision(self._db, connection)
            rows = connection.execute(_RUNNING).all()
            memberships = groups_and_roles(connection, {row[0] for row in rows})
        servers: dict[str, list[Server]] = defaultdict(list)
        for server in self._servers(rows, memberships):
            servers[server.user].append(server)
        users: list[User] = []
        after = -1
        while True:
            with self._db.transaction() as connection:
                asked = {"after": after, "since": since.replace(tzinfo=None)}
                rows = connection.execute(_INACTIVE, asked).all()
                groups, roles = groups_and_roles(connection, {row[0] for row in rows})
            for id_, name, admin, *stored in rows:
                (created, last_activity), known = as_times(*stored)
                if not known or not has_name(name):
                    continue
                user = User(
                    name=name,
                    admin=bool(admin),
                    groups=groups[id_],
                    roles=roles[id_],
                    created=created,
                    last_activity=last_activity,
                    servers=tuple(servers[name]),
                )
                # Again, as times: SQLite has compared them as texts.
                if user.last_activity is None or user.last_activity < since:
                    users.append(user)
            if len(rows) < USERS_AT_ONCE:
                return tuple(sorted(users, key=lambda user: user.name))
            after = rows[-1][0]

    def _servers(self, rows: Sequence[Any], memberships: tuple[Names, Names]) -> tuple[Server, ...]:
        groups, roles = memberships
        servers = []
        for id_, user, admin, name, started, last_activity, options, *_ in rows:
            if not has_name(user):
                continue
            times, known = as_times(started, last_activity)
            server = Server(
                user=user,
                name=_server_name(name),
                ready=True,
                pending=None,
                # One time alone would be taken for the last use, which the other may be.
                started=times[0] if known else None,
                last_activity=times[1] if known else None,
                admin=bool(admin),
                groups=groups[id_],
                roles=roles[id_],
                options=as_object(options),
            )
            servers.append(server)
        return tuple(sorted(servers, key=lambda server: server.key))


def _server_name(name: object) -> str:
    return name if isinstance(name, str) else ""


def _target(proto: object, ip: object, port: object) -> str | None:
    """scheme://host:port, or None if the row doesn't name one."""
    if proto not in ("http", "https") or not isinstance(ip, str) or ip in _ALL_ADDRESSES or not isinstance(port, int):
        return None
    return f"{proto}://[{ip}]:{port}" if ":" in ip else f"{proto}://{ip}:{port}"
