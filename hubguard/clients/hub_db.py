"""Reading the hub's own database: all servers and stale users for nearly nothing, and without ever being in its way.

Nothing here can write: SQLite files are opened read-only, other databases get read-only transactions. A hub on SQLite
can't write while somebody reads, and after five seconds of that it answers 403 to valid tokens: so every transaction here
is a few milliseconds long, and is broken off when it isn't.
"""

from __future__ import annotations

import asyncio
import json
import sqlite3
import time
from collections import defaultdict
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import datetime, timezone
from importlib.util import find_spec
from pathlib import Path
from typing import Any, Protocol, TypeVar
from urllib.parse import quote

import sqlalchemy as sa
from sqlalchemy import event
from sqlalchemy.engine import URL, Connection, Engine, make_url
from sqlalchemy.exc import ArgumentError, SQLAlchemyError
from sqlalchemy.pool import NullPool

from hubguard.errors import HubDBError
from hubguard.model import Server, User

T = TypeVar("T")

REVISIONS: Mapping[str, str] = {
    "0eee8c825d24": "4.1",
    "4621fec11365": "5",
    "f460b0348206": "6",
}
"""The Alembic revisions of the hub's database that are read here, each with the JupyterHub that it came with."""

LONGEST_S = 2.0
"""A transaction that isn't through by then is broken off."""

LOCK_TIMEOUT_S = 1.0
CONNECT_TIMEOUT_S = 5
# Longer than connecting and any transaction; a network file system that hangs can't be told from Python to stop.
GIVE_UP_S = 15.0

USERS_AT_ONCE = 500
"""So many users are looked up by one statement; databases limit how many values a statement may have."""

# No ORM of the hub's and no types: a column is what the driver gives, and only those are named that are read.
_revision = sa.table("alembic_version", sa.column("version_num"))
_users = sa.table("users", *map(sa.column, ("id", "name", "admin", "created", "last_activity")))
_spawners = sa.table(
    "spawners", *map(sa.column, ("user_id", "server_id", "name", "started", "last_activity", "user_options"))
)
_servers = sa.table("servers", sa.column("id"))
_groups = sa.table("groups", sa.column("id"), sa.column("name"))
_roles = sa.table("roles", sa.column("id"), sa.column("name"))
_user_groups = sa.table("user_group_map", sa.column("user_id"), sa.column("group_id"))
_user_roles = sa.table("user_role_map", sa.column("user_id"), sa.column("role_id"))

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

# What a database says, in lower case, and what that means for an operator.
_MEANINGS: tuple[tuple[tuple[str, ...], str, str], ...] = (
    (
        ("interrupted", "statement timeout", "max_statement_time", "maximum statement execution time"),
        f"took more than {LONGEST_S:g} seconds to read, and was let go so that the hub isn't held up",
        "Look for what slows its disk or its server down.",
    ),
    (
        ("database is locked", "lock wait timeout", "lock timeout"),
        "is locked by somebody else",
        "Look for a backup or another program that keeps it locked, if this goes on.",
    ),
    (
        # SQLite asks for a write where a hub that was killed has left a half-made one.
        ("readonly database", "read-only", "read only"),
        "can't be read without a write, and HubGuard never writes to it",
        "A hub that was killed may have left one unfinished: the hub itself clears it up when it uses its database.",
    ),
    (
        ("password authentication failed", "access denied", "permission denied", "no password supplied"),
        "doesn't let HubGuard in",
        "Check account, password and rights; reading is all that is needed.",
    ),
    (
        ("no such table", "no such column", "does not exist", "undefined", "doesn't exist", "unknown column"),
        "has no such table, column, database or account",
        "Is this the hub's database?",
    ),
    (
        ("file is not a database", "malformed", "file is encrypted"),
        "isn't a usable database",
        "Is this the hub's database?",
    ),
    (
        ("unable to open database file", "is a directory"),
        "can't be opened",
        "Let the account that HubGuard runs as read the file, and enter its folder.",
    ),
)


@dataclass(frozen=True, slots=True)
class HubState:
    """What the hub's database said at one moment.

    ``servers`` holds every server that has an address there, sorted by (user, name), with groups, roles and options. What
    is pending is in the hub's memory only, and a server has its address from the first moment of its start to the last of
    its stop: so each is given as ready and without a pending, and some may be starting or stopping. Ask the hub itself
    before acting on one.

    ``users_total`` is how many users the hub has, ``revision`` the Alembic revision of its tables, ``took_s`` how many
    seconds the reading took.
    """

    servers: tuple[Server, ...]
    users_total: int
    revision: str
    took_s: float


class HubDB(Protocol):
    """The hub's database, for reading only."""

    async def read(self) -> HubState:
        """All servers and the number of users, as of one moment. Raises HubDBError."""

    async def inactive_users(self, since: datetime) -> tuple[User, ...]:
        """Every user who was never active, or not from ``since`` on, by name, with what runs for them (see HubState).

        It is read bit by bit, so one who becomes active meanwhile may be among them. Raises HubDBError.
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
        self._url = _parse(url)
        self._file = _file(self._url, folder)
        self.place = _place(self._url, self._file)
        self._engine = self._make_engine()
        self._thread = ThreadPoolExecutor(1, thread_name_prefix="hub-db")

    async def read(self) -> HubState:
        """See HubDB."""
        return await self._call(self._read)

    async def inactive_users(self, since: datetime) -> tuple[User, ...]:
        """See HubDB."""
        return await self._call(lambda: self._inactive_users(since.astimezone(timezone.utc)))

    def close(self) -> None:
        """See HubDB. A call that is under way ends by itself."""
        self._thread.shutdown(wait=False, cancel_futures=True)

    async def _call(self, function: Callable[[], T]) -> T:
        call = asyncio.get_running_loop().run_in_executor(self._thread, function)
        try:
            return await asyncio.wait_for(call, GIVE_UP_S)
        except asyncio.TimeoutError:
            raise self._trouble(
                f"doesn't answer for {GIVE_UP_S:g} seconds", "Check its disk, or the way to its server."
            ) from None

    def _read(self) -> HubState:
        began_s = time.monotonic()
        with self._transaction() as connection:
            revision = self._known_revision(connection)
            users_total = connection.execute(sa.select(sa.func.count()).select_from(_users)).scalar_one()
            rows = connection.execute(_RUNNING).all()
            memberships = _memberships(connection, {row[0] for row in rows})
        # The database is free again; all that follows is ours alone.
        servers = self._servers(rows, memberships)
        return HubState(servers, users_total, revision, time.monotonic() - began_s)

    def _inactive_users(self, since: datetime) -> tuple[User, ...]:
        with self._transaction() as connection:
            self._known_revision(connection)
            rows = connection.execute(_RUNNING).all()
            memberships = _memberships(connection, {row[0] for row in rows})
        servers: dict[str, list[Server]] = defaultdict(list)
        for server in self._servers(rows, memberships):
            servers[server.user].append(server)
        found: list[User] = []
        after = -1
        while True:
            with self._transaction() as connection:
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
                options=_options(options),
            )
            for id_, user, admin, name, started, last_activity, options in rows
        )
        return tuple(sorted(found, key=lambda server: server.key))

    def _known_revision(self, connection: Connection) -> str:
        """The revision of the hub's tables. Raises HubDBError for one that isn't known."""
        rows = connection.execute(sa.select(_revision.c.version_num)).all()
        revision = ", ".join(str(row[0]) for row in rows)
        if revision not in REVISIONS:
            raise self._trouble(
                f"has the revision {revision or '(none)'}, and HubGuard knows only those of JupyterHub "
                + " and ".join(REVISIONS.values()),
                "Upgrade HubGuard, or the hub's database if the hub is waiting for that.",
            )
        return revision

    @contextmanager
    def _transaction(self) -> Iterator[Connection]:
        """One short transaction that can only read. All troubles come out as HubDBError."""
        if self._file is not None and not self._file.exists():
            raise self._trouble(
                "doesn't exist", "Check the path; a relative one is taken from the folder that the hub runs in."
            )
        try:
            with self._engine.begin() as connection:
                yield connection
        except (SQLAlchemyError, OSError, UnicodeError) as error:
            # "from None": the drivers' own errors may quote the whole connection string.
            raise self._explain(error) from None

    def _make_engine(self) -> Engine:
        url, options = self._url, _network_arguments(self._url)
        try:
            if self._file is not None:
                engine = sa.create_engine("sqlite://", creator=_read_only(self._file), poolclass=NullPool)
            else:
                # A connection is made for each transaction: the hub's database has none to spare for one that idles.
                engine = sa.create_engine(url, connect_args=options, poolclass=NullPool)
        except ModuleNotFoundError as error:
            raise self._trouble(
                f"needs a driver that isn't installed (no Python module {error.name})",
                "Install it beside HubGuard, or name another one in the URL, such as postgresql+psycopg or mysql+pymysql.",
            ) from None
        except (SQLAlchemyError, ImportError, TypeError, ValueError) as error:
            raise self._trouble(
                f"can't be used by way of {url.drivername} ({type(error).__name__})", "Check the URL."
            ) from None
        event.listen(engine, "begin", _begin)
        return engine

    def _name(self, name: Any) -> str:
        if not isinstance(name, str) or not name:
            raise self._trouble("holds a user without a name", "Nothing is concluded from it.")
        return name

    def _time(self, value: Any) -> datetime | None:
        """A time as the driver gives it, UTC-aware: the hub writes UTC, without saying so."""
        if value is None:
            return None
        try:
            at = value if isinstance(value, datetime) else datetime.fromisoformat(value)
        except (TypeError, ValueError):
            raise self._trouble(
                f"holds {str(value)[:40]!r} where a time belongs", "Nothing is concluded from it."
            ) from None
        return at.replace(tzinfo=timezone.utc) if at.tzinfo is None else at.astimezone(timezone.utc)

    def _explain(self, error: Exception) -> HubDBError:
        cause = getattr(error, "orig", None) or error
        said = str(cause).strip()
        for secret in (self._url.password, self._url.query.get("password")):
            if secret:
                said = said.replace(str(secret), "***")
        what, hint = _meaning(f"{said} {type(cause).__name__}".lower())
        first_line = said.splitlines()[0].rstrip(".") if said else type(cause).__name__
        return self._trouble(f"{what}: {first_line}", hint, detail=said)

    def _trouble(self, what: str, hint: str, *, detail: str = "") -> HubDBError:
        return HubDBError(
            f"The hub's database ({self.place}) {what}. It isn't read, and HubGuard knows only what the hub's API tells. "
            f"{hint}",
            detail=detail,
        )


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


def _options(text: str | None) -> Mapping[str, object] | None:
    """What a server was started with; the hub writes nothing for no options, and None stands for what can't be read."""
    try:
        options = json.loads(text or "{}")
    except ValueError:
        return None
    return options if isinstance(options, dict) else None


def _parse(text: str) -> URL:
    try:
        url = make_url(text)
        backend = url.get_backend_name()
    except (ArgumentError, ValueError):
        raise HubDBError(
            "HubGuard.hub_db_url isn't a database URL, so the hub's database isn't read, and HubGuard knows only what the "
            "hub's API tells. Write it like JupyterHub.db_url, for example sqlite:////srv/jupyterhub/jupyterhub.sqlite."
        ) from None
    if backend not in {"sqlite", "postgresql", "mysql", "mariadb"}:
        raise HubDBError(
            f"HubGuard.hub_db_url: HubGuard can't make sure that it only reads from {backend}, so the hub's database isn't "
            "read, and HubGuard knows only what the hub's API tells. It reads SQLite, PostgreSQL, MySQL and MariaDB."
        )
    if url.drivername == "postgresql":
        # What this name stands for depends on SQLAlchemy's version; a hub may come with either driver.
        url = url.set(drivername=f"postgresql+{'psycopg' if find_spec('psycopg') else 'psycopg2'}")
    return url


def _file(url: URL, folder: Path) -> Path | None:
    if url.get_backend_name() != "sqlite":
        return None
    name = url.database or ""
    if name in {"", ":memory:"} or name.startswith("file:"):
        raise HubDBError(
            f"HubGuard.hub_db_url: {name or ':memory:'} is no plain path to a file, so the hub's database isn't read, and "
            "HubGuard knows only what the hub's API tells. One in memory can't be read from outside; write others like "
            "sqlite:////srv/jupyterhub/jupyterhub.sqlite."
        )
    return (folder / name).absolute()


def _place(url: URL, file: Path | None) -> str:
    if file is not None:
        return f"SQLite, {file}"
    host = url.host or url.query.get("host") or "local socket"
    port = f":{url.port}" if url.port else ""
    return f"{url.get_backend_name()} at {host}{port}/{url.database or ''}"


def _read_only(file: Path) -> Callable[[], sqlite3.Connection]:
    """Opens the file for reading only, and never creates it."""

    def connect() -> sqlite3.Connection:
        connection = sqlite3.connect(
            f"file:{quote(str(file))}?mode=ro",
            uri=True,
            timeout=LOCK_TIMEOUT_S,
            isolation_level=None,  # transactions begin where we say
            check_same_thread=False,
        )
        ends_s = time.monotonic() + LONGEST_S
        connection.set_progress_handler(lambda: time.monotonic() > ends_s, 10_000)
        return connection

    return connect


def _begin(connection: Connection) -> None:
    """Nothing but reading is possible, all of it sees one moment, and the server itself breaks off what takes too long."""
    limit_ms = round(1000 * LONGEST_S)
    match connection.dialect.name:
        case "sqlite":
            statements: tuple[str, ...] = ("BEGIN",)
        case "postgresql":
            # For this transaction alone: behind a pooler, the connection is somebody else's afterwards.
            statements = (
                "SET TRANSACTION ISOLATION LEVEL REPEATABLE READ, READ ONLY",
                f"SET LOCAL statement_timeout = {limit_ms}",
                f"SET LOCAL idle_in_transaction_session_timeout = {limit_ms}",
            )
        case _:
            mariadb = getattr(connection.dialect, "is_mariadb", False)
            limit = f"max_statement_time = {LONGEST_S}" if mariadb else f"max_execution_time = {limit_ms}"
            statements = (f"SET SESSION {limit}", "START TRANSACTION WITH CONSISTENT SNAPSHOT, READ ONLY")
    for statement in statements:
        connection.exec_driver_sql(statement)


def _network_arguments(url: URL) -> dict[str, Any]:
    """What makes the driver give up on a server that went silent."""
    driver = url.get_driver_name()
    if driver in {"psycopg", "psycopg2"}:
        silent_ms = round(1000 * GIVE_UP_S)
        arguments: dict[str, Any] = {"connect_timeout": CONNECT_TIMEOUT_S, "tcp_user_timeout": silent_ms}
        # A statement that was prepared is on the wrong connection behind a pooler.
        return {**arguments, "prepare_threshold": None} if driver == "psycopg" else arguments
    if driver in {"pymysql", "mysqldb"}:
        return {"connect_timeout": CONNECT_TIMEOUT_S, "read_timeout": CONNECT_TIMEOUT_S, "charset": "utf8mb4"}
    return {}


def _meaning(said: str) -> tuple[str, str]:
    for marks, what, hint in _MEANINGS:
        if any(mark in said for mark in marks):
            return what, hint
    return "can't be reached or gave an error", "HubGuard tries again by itself."
