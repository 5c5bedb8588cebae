"""Users, groups, servers and tokens, written straight into a hub's database before the hub starts.

Uses the tables of the JupyterHub that is installed where this runs; ``python -m hubguard.staging.seed`` does the same
in another interpreter, from JSON on standard input. Running servers belong to LittleSpawner, which starts their
processes when the hub looks for them.
"""

from __future__ import annotations

import json
import os
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from datetime import datetime, timedelta, timezone
from pathlib import Path
from typing import Any

import jupyterhub
from alembic.runtime.migration import MigrationContext
from alembic.script import ScriptDirectory
from jupyterhub import dbutil, orm, roles
from jupyterhub.utils import url_escape_path, url_path_join
from sqlalchemy import Connection, Engine, create_engine, func, inspect, select, text
from sqlalchemy.exc import SQLAlchemyError
from sqlalchemy.orm import Session

from hubguard.errors import HubGuardError
from hubguard.staging.population import Population, SeededServer, SeededUser, made_up, with_owners

CLIENT = "jupyterhub"
"""The OAuth client that the tokens belong to which users make themselves."""


@dataclass(frozen=True, slots=True)
class Seeded:
    """What has been written, counted; ``took_s`` in seconds."""

    users: int
    groups: int
    running: int
    named: int
    hub_version: str
    took_s: float

    def __str__(self) -> str:
        return (
            f"{self.users} users in {self.groups} groups with {self.running} running servers, for JupyterHub "
            f"{self.hub_version}, in {self.took_s:.1f} s ({self.named} servers are named). Their spawner is "
            "hubguard.staging.spawner.LittleSpawner: set it as the hub's spawner_class."
        )


def seed(
    hub_db_url: str,
    *,
    users: int,
    running: int = 0,
    groups: int = 0,
    named: int = 0,
    awkward: bool = False,
    number: int = 0,
    hub_prefix: str = "/",
) -> Seeded:
    """Write a made-up population (see :func:`made_up`) into a hub's database (see :func:`write`)."""
    return write(
        hub_db_url,
        made_up(users=users, running=running, groups=groups, named=named, awkward=awkward, number=number),
        hub_prefix=hub_prefix,
    )


def write(hub_db_url: str, population: Population, *, hub_prefix: str = "/", now: datetime | None = None) -> Seeded:
    """Write ``population`` into the database at ``hub_db_url``, all of it or nothing.

    An empty database gets the tables and the revision that the hub would have given it, so that the hub starts on it
    without an upgrade. ``hub_prefix`` is the hub's base_url. ``now`` (default: the present) is what ages are counted
    from. Raises HubGuardError where the database holds users, is in use, is of another JupyterHub's revision, or can't
    be written.
    """
    began = time.monotonic()
    population = with_owners(population)
    try:
        engine = create_engine(hub_db_url)
    except (SQLAlchemyError, ImportError) as error:
        raise HubGuardError(
            "The hub's database URL can't be used: it is no SQLAlchemy URL, or its driver isn't installed.",
            detail=type(error).__name__,
        ) from None
    try:
        _refuse_in_use(engine)
        with engine.begin() as connection:
            _prepare(connection)
            _fill(connection, population, hub_prefix, now or datetime.now(timezone.utc))
    except SQLAlchemyError as error:
        # Its own words may hold rows, never the password; the first line of the driver's is enough.
        cause = str(getattr(error, "orig", None) or error).strip().partition("\n")[0]
        raise HubGuardError(
            f"The hub's database {engine.url.render_as_string()} couldn't be written ({cause}); nothing was seeded."
        ) from None
    finally:
        engine.dispose()
    return Seeded(
        users=len(population.users),
        groups=len({group for user in population.users for group in user.groups}),
        running=sum(server.running for server in population.servers),
        named=sum(bool(server.name) for server in population.servers),
        hub_version=jupyterhub.__version__,
        took_s=time.monotonic() - began,
    )


def _refuse_in_use(engine: Engine) -> None:
    """Raise HubGuardError if somebody else has the database open, as far as the database shows it."""
    in_use = False
    if engine.dialect.name == "postgresql":
        with engine.connect() as connection:
            others = (
                "SELECT count(*) FROM pg_stat_activity WHERE datname = current_database() AND pid <> pg_backend_pid()"
            )
            in_use = bool(connection.execute(text(others)).scalar())
    elif engine.dialect.name == "sqlite" and engine.url.database and Path(engine.url.database).exists():
        file = os.path.realpath(engine.url.database)
        in_use = any(
            _opens(process, file) for process in Path("/proc").glob("[0-9]*") if process.name != str(os.getpid())
        )
    if in_use:
        raise HubGuardError(
            f"The hub's database {engine.url.render_as_string()} is in use, and a running hub wouldn't notice what is "
            "written now. Stop the hub, or whatever has it open, and seed again; nothing was changed."
        )


def _opens(process: Path, file: str) -> bool:
    try:
        return any(os.readlink(fd) == file for fd in (process / "fd").iterdir())
    except OSError:  # it is gone, or another user's
        return False


def _prepare(connection: Connection) -> None:
    """Leave the hub's tables, at this JupyterHub's revision and without users. Raises HubGuardError for any other."""
    context = MigrationContext.configure(connection)
    script = ScriptDirectory(dbutil.ALEMBIC_DIR)
    tables = set(inspect(connection).get_table_names())
    if tables & set(orm.Base.metadata.tables):
        if context.get_current_revision() != script.get_current_head():
            raise HubGuardError(
                f"The hub's database is of revision {context.get_current_revision()}, and JupyterHub "
                f"{jupyterhub.__version__} has {script.get_current_head()}. Run `jupyterhub upgrade-db` first, or take "
                "an empty database; nothing was changed."
            )
        if there := connection.scalar(select(func.count()).select_from(orm.User.__table__)):
            raise HubGuardError(
                f"The hub's database holds {there} users already, and seeding is for throwaway hubs only. Take an "
                "empty database; nothing was changed."
            )
    elif "alembic_version" not in tables or context.get_current_revision() is None:
        context.stamp(script, "head")
    else:
        raise HubGuardError(
            "The database belongs to another program: it has an Alembic revision and none of JupyterHub's tables. Take "
            "an empty database; nothing was changed."
        )
    orm.Base.metadata.create_all(connection)


def _fill(connection: Connection, population: Population, hub_prefix: str, now: datetime) -> None:
    at = now.astimezone(timezone.utc).replace(tzinfo=None)  # the hub's times are naive UTC

    def ago(seconds: float | None) -> datetime | None:
        return None if seconds is None else at - timedelta(seconds=seconds)

    with Session(bind=connection, join_transaction_mode="create_savepoint") as session:
        for role in roles.get_default_roles():  # type: ignore[no-untyped-call]
            roles.create_role(session, role)  # type: ignore[no-untyped-call]
        role_ids = {str(role.name): int(role.id) for role in session.scalars(select(orm.Role))}

    user_ids = {user.name: i for i, user in enumerate(population.users, 1)}
    group_ids = {name: i for i, name in enumerate(sorted({g for user in population.users for g in user.groups}), 1)}
    _insert(
        connection,
        "users",
        [
            {
                "id": user_ids[user.name],
                "name": user.name,
                "admin": user.admin,
                "created": ago(user.created_s),
                "last_activity": ago(user.idle_for_s),
            }
            for user in population.users
        ],
    )
    _insert(connection, "groups", [{"id": i, "name": name} for name, i in group_ids.items()])
    _insert(
        connection,
        "user_group_map",
        [{"user_id": user_ids[u.name], "group_id": group_ids[g]} for u in population.users for g in u.groups],
    )
    _insert(
        connection,
        "user_role_map",
        [
            {"user_id": user_ids[user.name], "role_id": role_ids[role]}
            for user in population.users
            for role in (("user", "admin") if user.admin else ("user",))
        ],
    )
    running = [server for server in population.servers if server.running]
    server_ids = {(server.user, server.name): i for i, server in enumerate(running, 1)}
    _insert(
        connection,
        "servers",
        [
            {
                "id": server_ids[server.user, server.name],
                "ip": "127.0.0.1",
                "port": 1,  # the spawner tells the hub the real one
                "base_url": _base_url(hub_prefix, server),
            }
            for server in running
        ],
    )
    _insert(
        connection,
        "spawners",
        [
            {
                "id": i,
                "user_id": user_ids[server.user],
                "server_id": server_ids.get((server.user, server.name)),
                "name": server.name,
                "state": {"seeded": True, "shared": server.shared} if server.running else dict(server.kept_state),
                "started": ago(server.started_s) if server.running else None,
                "last_activity": ago(server.idle_for_s),
                "user_options": server.options,
            }
            for i, server in enumerate(population.servers, 1)
        ],
    )
    _fill_tokens(connection, population, user_ids, ago)
    _fill_shares(connection, population, user_ids, at)


def _fill_tokens(
    connection: Connection,
    population: Population,
    user_ids: Mapping[str, int],
    ago: Callable[[float | None], datetime | None],
) -> None:
    owners = [user for user in population.users for _ in range(user.tokens)]
    if not owners:
        return
    # As the hub does when it starts; a token without a client would be none that it ever made.
    _insert(connection, "oauth_clients", [{"id": 1, "identifier": CLIENT, "description": "JupyterHub", "secret": ""}])
    used = {user.name: ago(user.token_used_s) for user in population.users}
    _insert(
        connection,
        "api_tokens",
        [
            {
                "id": i,
                "user_id": user_ids[user.name],
                "client_id": CLIENT,
                "hashed": f"sha512:1:{i:016x}:nobody-has-this-token",
                "prefix": f"{i:04x}"[-4:],
                "created": ago(user.created_s),
                "last_activity": used.pop(user.name, None),
                "note": "seeded",
                "scopes": ["inherit"],
            }
            for i, user in enumerate(owners, 1)
        ],
    )


def _fill_shares(connection: Connection, population: Population, user_ids: Mapping[str, int], at: datetime) -> None:
    spawner_ids = {server.user: i for i, server in enumerate(population.servers, 1) if not server.name}
    shares = [(user.name, other) for user in population.users for other in user.shared_with]
    _insert(
        connection,
        "shares",
        [
            {
                "id": i,
                "created_at": at,
                "owner_id": user_ids[owner],
                "user_id": user_ids[other],
                "spawner_id": spawner_ids[owner],
                "scopes": [f"access:servers!server={owner}/"],
            }
            for i, (owner, other) in enumerate(shares, 1)
        ],
    )


def _base_url(hub_prefix: str, server: SeededServer) -> str:
    parts = (url_escape_path(part) for part in (server.user, server.name))  # type: ignore[no-untyped-call]
    return str(url_path_join(hub_prefix, "user", *parts, "/"))  # type: ignore[no-untyped-call]


def _insert(connection: Connection, table_name: str, rows: Sequence[Mapping[str, Any]]) -> None:
    """Insert ``rows`` in bulk, and let the database go on counting after them."""
    if not rows:
        return
    table = orm.Base.metadata.tables[table_name]
    connection.execute(table.insert(), list(rows))
    if connection.dialect.name == "postgresql" and "id" in table.c:
        sequence = func.pg_get_serial_sequence(table_name, "id")
        connection.execute(select(func.setval(sequence, len(rows))))


@dataclass(frozen=True, slots=True)
class _Order:
    """What the main program is asked to do, as JSON on its standard input."""

    hub_db_url: str
    hub_prefix: str
    users: list[dict[str, Any]] = field(default_factory=list)
    servers: list[dict[str, Any]] = field(default_factory=list)


def order(hub_db_url: str, population: Population, hub_prefix: str) -> str:
    """The JSON with which ``python -m hubguard.staging.seed`` writes ``population``; holds the URL's password."""
    return json.dumps(
        asdict(
            _Order(
                hub_db_url,
                hub_prefix,
                [asdict(user) for user in population.users],
                [asdict(server) for server in population.servers],
            )
        )
    )


def main() -> int:
    """Carry out the order on standard input; 0, or 1 with one line on standard error."""
    wanted = _Order(**json.load(sys.stdin))
    lists = ("groups", "shared_with")
    users = (SeededUser(**{**user, **{name: tuple(user[name]) for name in lists}}) for user in wanted.users)
    population = Population(tuple(users), tuple(SeededServer(**server) for server in wanted.servers))
    try:
        written = write(wanted.hub_db_url, population, hub_prefix=wanted.hub_prefix)
    except HubGuardError as error:
        sys.stderr.write(f"{error}\n")
        return 1
    sys.stdout.write(json.dumps(asdict(written)) + "\n")
    return 0


if __name__ == "__main__":
    sys.exit(main())
