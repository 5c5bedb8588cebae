"""One suite over the hub's database: the one in memory that other tests trust, SQLite, PostgreSQL, and a running hub's."""

from __future__ import annotations

import asyncio
import os
import sqlite3
import subprocess
import sys
import threading
import traceback
from collections.abc import AsyncIterator, Iterator
from contextlib import closing, contextmanager
from dataclasses import replace
from datetime import datetime, timedelta, timezone
from pathlib import Path
from typing import Any

import pytest
import pytest_asyncio
import sqlalchemy as sa
from builders import DAY_S
from builders import EXACT_NOW as NOW
from builders import exactly_ago as ago
from conftest import HUB_PYTHON
from doubles.hub_db import MemoryHubDB
from real_hub import RealHub

from hubguard.errors import HubDBError
from hubguard.hub import database, read_only, tables
from hubguard.hub.database import HubDB, SQLHubDB
from hubguard.hub.models import read_time
from hubguard.hub.nouns import ORMCounts
from hubguard.model import Server, User
from hubguard.staging.hub import TestbedHub
from hubguard.staging.population import AWKWARD_NAMES, Population, SeededServer, SeededUser, made_up, with_owners
from hubguard.staging.seed import write

pytestmark = [pytest.mark.hub, pytest.mark.contract]


POPULATION = with_owners(
    Population(
        (
            SeededUser("boss", admin=True, groups=("zoo", "admins", "käthe's"), idle_for_s=10.0),
            SeededUser("never"),
            SeededUser("newcomer", created_s=60.0),
            SeededUser("gone", groups=("zoo",), idle_for_s=90 * DAY_S, created_s=400 * DAY_S),
            SeededUser("sleeper", idle_for_s=40 * DAY_S),
            SeededUser("just-gone", idle_for_s=30 * DAY_S + 1),
            SeededUser("exactly", idle_for_s=30 * DAY_S),
            SeededUser("just-there", idle_for_s=30 * DAY_S - 1),
        ),
        (
            *(SeededServer(name, idle_for_s=7200.0 + number) for number, name in enumerate(AWKWARD_NAMES)),
            *(SeededServer("namer", name, idle_for_s=60.0) for name in (*AWKWARD_NAMES, "plain")),
            SeededServer("boss", idle_for_s=30.0, stop_s=2.5),
            SeededServer("boss", "gpu", idle_for_s=3600.0, on_stop="raises"),
            SeededServer("never-seen", idle_for_s=None, age_s=600.0),
            SeededServer("sleeper", "forgotten", idle_for_s=40 * DAY_S),
            SeededServer("gone", idle_for_s=90 * DAY_S, running=False),
        ),
    )
)


def expected_users(population: Population = POPULATION) -> dict[str, User]:
    """Who is to be found, by name."""
    users = {}
    for user in population.users:
        groups = tuple(sorted(user.groups))
        roles = ("admin", "user") if user.admin else ("user",)
        servers = (
            Server(
                user.name,
                server.name,
                True,
                None,
                ago(server.started_s),
                ago(server.idle_for_s),
                admin=user.admin,
                groups=groups,
                roles=roles,
                options=server.options,
            )
            for server in population.servers
            if server.user == user.name and server.running
        )
        users[user.name] = User(
            user.name,
            user.admin,
            groups,
            roles,
            ago(user.created_s),
            ago(user.idle_for_s),
            tuple(sorted(servers, key=lambda server: server.name)),
        )
    return users


def expected_targets() -> dict[tuple[str, str], str]:
    return {(server.user, server.name): "http://127.0.0.1:1" for server in POPULATION.servers if server.running}


def expected_states() -> dict[tuple[str, str], dict[str, object]]:
    return {
        (server.user, server.name): {"seeded": True, "shared": server.shared}
        for server in POPULATION.servers
        if server.running
    }


def sqlite_url(folder: Path, population: Population = POPULATION) -> str:
    url = f"sqlite:///{folder / 'jupyterhub.sqlite'}"
    write(url, population, now=NOW)
    return url


@contextmanager
def opened(url: str, folder: Path = Path()) -> Iterator[SQLHubDB]:
    db = SQLHubDB(url, folder)
    try:
        yield db
    finally:
        db.close()


@contextmanager
def changing(url: str) -> Iterator[sa.Connection]:
    """As the hub would change its database."""
    engine = sa.create_engine(url, poolclass=sa.NullPool)
    with engine.begin() as connection:
        yield connection


@pytest.fixture(params=["sqlite", "postgresql"])
def url(request: pytest.FixtureRequest, tmp_path: Path) -> str:
    """A database with POPULATION in it."""
    if request.param == "sqlite":
        return sqlite_url(tmp_path)
    postgresql = str(request.getfixturevalue("postgresql_url"))
    write(postgresql, POPULATION, now=NOW)
    return postgresql


@pytest.fixture(params=["memory", "sqlite", "postgresql"])
def db(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[HubDB]:
    """A database with POPULATION in it, as the client that is tested sees it."""
    if request.param == "memory":
        # As another client would have them: unsorted, and with things that no database knows.
        memory = MemoryHubDB(*reversed([_as_the_hub_itself_knows(user) for user in expected_users().values()]))
        memory.targets, memory.states = expected_targets(), expected_states()
        memory.targets["gone", ""] = "http://127.0.0.1:1"  # it doesn't run
        yield memory
        return
    if request.param == "sqlite":
        url = sqlite_url(tmp_path)
    else:
        url = str(request.getfixturevalue("postgresql_url"))
        write(url, POPULATION, now=NOW)
    with opened(url) as db:
        yield db


def _as_the_hub_itself_knows(user: User) -> User:
    servers = (replace(server, ready=False, pending="spawn", groups=None, admin=False) for server in user.servers)
    return replace(
        user,
        groups=tuple(reversed(user.groups or ())),
        roles=tuple(reversed(user.roles or ())),
        servers=tuple(reversed(list(servers))),
    )


# What both tell.


async def test_every_running_server_is_told_once_in_order_with_all_that_is_known_of_it(db: HubDB):
    state = await db.read()
    expected = sorted((s for user in expected_users().values() for s in user.servers), key=lambda server: server.key)
    assert len(expected) == 2 * len(AWKWARD_NAMES) + 5
    assert list(state.servers) == expected


async def test_a_database_cant_tell_what_is_pending_so_every_server_is_given_as_ready(db: HubDB):
    state = await db.read()
    assert {(server.ready, server.pending) for server in state.servers} == {(True, None)}


async def test_everybody_is_counted_and_not_only_who_has_a_server(db: HubDB):
    assert (await db.read()).users_total == len(POPULATION.users)


async def test_the_revision_is_told_and_is_one_that_is_known(db: HubDB):
    assert (await db.read()).revision in tables.REVISIONS


async def test_who_was_never_active_or_not_since_then_is_inactive_by_name_with_all_that_is_known(db: HubDB):
    since = NOW - timedelta(days=30)
    inactive = await db.inactive_users(since)
    names = [user.name for user in inactive]
    assert names == sorted(["never", "newcomer", "never-seen", "gone", "sleeper", "just-gone"])
    users = expected_users()
    assert list(inactive) == [users[name] for name in names]
    assert [server.name for user in inactive for server in user.servers] == ["", "forgotten"]


@pytest.mark.parametrize("column", ["admin", "created", "last_activity"])
async def test_a_null_in_a_user_and_a_user_without_a_name_cost_no_others(url: str, column: str):
    with changing(url) as connection:
        connection.exec_driver_sql(f"UPDATE users SET {column} = NULL WHERE name = 'boss'")
        connection.exec_driver_sql("UPDATE users SET name = NULL WHERE name = 'sleeper'")
        connection.exec_driver_sql("UPDATE spawners SET started = NULL, last_activity = NULL")
    with opened(url) as db:
        state, inactive = await db.read(), await db.inactive_users(NOW)
        accounts = (await db.accounts(None)).accounts
    assert "boss" in {server.user for server in state.servers}
    names = {user.name for user in inactive}
    assert "gone" in names
    assert None not in names
    assert {"boss", "gone"} <= {account.name for account in accounts}
    assert "sleeper" not in {account.name for account in accounts}


async def test_a_time_in_another_zone_means_the_same_moment(db: HubDB):
    since = NOW - timedelta(days=30)
    elsewhere = since.astimezone(timezone(timedelta(hours=14)))
    assert await db.inactive_users(elsewhere) == await db.inactive_users(since)


async def test_nobody_but_who_never_came_was_inactive_before_all_times(db: HubDB):
    inactive = await db.inactive_users(NOW - timedelta(days=9000))
    assert {user.last_activity for user in inactive} == {None}
    assert len(inactive) == 3


async def test_where_each_server_is_reached_and_what_its_spawner_keeps_is_told_of_those_that_run(db: HubDB):
    state = await db.read()
    assert state.targets == expected_targets()
    assert state.states == expected_states()
    assert ("gone", "") not in state.targets


async def test_what_a_spawner_keeps_is_in_no_repr(db: HubDB):
    state = await db.read()
    assert state.states["boss", ""]["seeded"]
    assert "seeded" not in repr(state)


async def test_a_sound_database_has_no_row_that_leads_nowhere(db: HubDB):
    assert await db.orm_counts() == ORMCounts()


async def test_the_readings_of_the_one_in_memory_can_be_made_to_fail():
    db = MemoryHubDB()
    db.fault = HubDBError("gone")
    for reading in (db.read(), db.inactive_users(NOW), db.orm_counts()):
        with pytest.raises(HubDBError):
            await reading
    db.fault = None
    assert (await db.read()).servers == ()
    assert db.calls == 4


# What only real databases can do.


async def test_an_empty_hub_has_nobody_and_nothing(tmp_path: Path):
    with opened(sqlite_url(tmp_path, Population())) as db:
        state = await db.read()
        assert (state.servers, state.users_total) == ((), 0)
        assert await db.inactive_users(NOW) == ()


async def test_what_changes_is_seen_by_the_next_reading(url: str):
    with opened(url) as db:
        before = await db.read()
        with changing(url) as connection:
            connection.exec_driver_sql("UPDATE spawners SET server_id = NULL WHERE name = 'gpu'")
        after = await db.read()
    assert {server.key for server in before.servers} - {server.key for server in after.servers} == {("boss", "gpu")}


async def test_more_inactive_users_than_fit_one_statement_are_all_told(url: str):
    many = 2 * tables.USERS_AT_ONCE
    rows = [{"i": 10_000 + 7 * i, "n": f"stale-{i}", "c": f"cookie-{i}"} for i in range(many)]
    with opened(url) as db:
        found = len(await db.inactive_users(NOW))
        with changing(url) as connection:
            connection.execute(sa.text("INSERT INTO users (id, name, cookie_id) VALUES (:i, :n, :c)"), rows)
        inactive = await db.inactive_users(NOW)
    assert len(inactive) == len({user.name for user in inactive}) == found + many


async def test_more_running_servers_than_fit_one_statement_are_all_told_with_their_groups(tmp_path: Path):
    population = made_up(users=2 * tables.USERS_AT_ONCE + 1, running=2 * tables.USERS_AT_ONCE + 1, groups=3)
    with opened(sqlite_url(tmp_path, population)) as db:
        state = await db.read()
    assert {server.user: server.groups for server in state.servers} == {
        user.name: tuple(sorted(user.groups)) for user in population.users
    }
    assert len(state.servers) == len(population.users)


async def test_a_server_that_nobody_owns_or_that_has_lost_its_address_is_none(tmp_path: Path):
    url = sqlite_url(tmp_path)
    with opened(url) as db:
        before = {server.key for server in (await db.read()).servers}
        with changing(url) as connection:
            # The hub's own connections would not let this happen; a repair by hand, or an old hub, has.
            connection.exec_driver_sql("UPDATE spawners SET server_id = 99999 WHERE name = 'gpu'")
            connection.exec_driver_sql("UPDATE spawners SET user_id = 99999 WHERE name = 'forgotten'")
        after = {server.key for server in (await db.read()).servers}
    assert before - after == {("boss", "gpu"), ("sleeper", "forgotten")}


@pytest.mark.parametrize(
    ("row", "target"),
    [
        ("ip = '10.1.2.3', port = 8888", "http://10.1.2.3:8888"),
        ("ip = 'jupyter-ann.hub.svc', port = 8888, proto = 'https'", "https://jupyter-ann.hub.svc:8888"),
        ("ip = 'fd00::7', port = 8888", "http://[fd00::7]:8888"),
        # The hub takes its own host's name for these, which isn't in its database.
        ("ip = ''", None),
        ("ip = '0.0.0.0'", None),
        ("ip = '::'", None),
        ("ip = NULL", None),
        ("port = NULL", None),
        ("proto = 'http+unix'", None),
    ],
)
async def test_a_server_is_reached_where_its_row_says_or_it_isnt_told(url: str, row: str, target: str | None):
    with changing(url) as connection:
        which = "SELECT server_id FROM spawners WHERE name = 'gpu'"
        connection.exec_driver_sql(f"UPDATE servers SET {row} WHERE id IN ({which})")
    with opened(url) as db:
        state = await db.read()
    expected = expected_targets() | {("boss", "gpu"): target}
    assert state.targets == {key: target for key, target in expected.items() if target}
    assert len(state.servers) == len(expected)


@pytest.mark.parametrize("text", ["", "{}", "null", "[1]", "nonsense", "[" * 100_000, None])
async def test_a_spawner_that_keeps_nothing_or_nonsense_has_no_state(url: str, text: str | None):
    with changing(url) as connection:
        connection.execute(sa.text("UPDATE spawners SET state = :text WHERE name = 'gpu'"), {"text": text})
    with opened(url) as db:
        state = await db.read()
    assert ("boss", "gpu") not in state.states
    assert len(state.states) == len(state.servers) - 1


# Each plants rows, and says how many of a kind there are then. Where the database minds (PostgreSQL, or SQLite as the hub
# opens it), such rows come of repairs by hand, of restored backups and of old hubs.
STRAYS = {
    "a server that neither a spawner nor a service names": (
        ["INSERT INTO servers (id, proto, ip, port) VALUES (9001, 'http', '', 1), (9002, 'http', '', 2)"],
        ORMCounts(servers_of_nobody=2),
    ),
    "a server that a service names": (
        [
            "INSERT INTO servers (id, proto, ip, port) VALUES (9001, 'http', '', 1)",
            "INSERT INTO services (id, name, _server_id{timeout}) VALUES (9001, 'served', 9001{thirty})",
        ],
        ORMCounts(),
    ),
    "a spawner that names no server that there is": (
        ["UPDATE spawners SET server_id = 99999 WHERE name = 'gpu'", "DELETE FROM servers WHERE id = 99999"],
        ORMCounts(servers_of_nobody=1, spawners_without_server=1),
    ),
    "tokens that have expired, and others": (
        [
            "INSERT INTO api_tokens (id, hashed, prefix, expires_at) VALUES"
            " (9001, 'a', 'a', '2020-01-02 03:04:05'), (9002, 'b', 'b', '2020-01-02 03:04:05.678901'),"
            " (9003, 'c', 'c', '2999-01-02 03:04:05.678901'), (9004, 'd', 'd', NULL)"
        ],
        ORMCounts(expired_tokens=2),
    ),
    "codes that have expired, and others": (
        [
            "INSERT INTO oauth_codes (id, code, expires_at) VALUES (9001, 'a', 1), (9002, 'b', 2147483647), (9003, 'c', NULL)"
        ],
        ORMCounts(expired_codes=1),
    ),
    "share codes that have expired, and others": (
        [
            "INSERT INTO share_codes (id, hashed, created_at, expires_at) VALUES"
            " (9001, 'a', '2020-01-02 03:04:05', '2020-01-02 03:04:05.678901'),"
            " (9002, 'b', '2020-01-02 03:04:05', '2999-01-02 03:04:05'), (9003, 'c', '2020-01-02 03:04:05', NULL)"
        ],
        ORMCounts(expired_share_codes=1),
    ),
    "members of groups, where the user, the group or both are gone": (
        ["INSERT INTO user_group_map (user_id, group_id) VALUES (99999, 1), (1, 99999), (99998, 99998)"],
        ORMCounts(memberships_of_nobody=3),
    ),
    "roles of users, groups and services that are gone, and roles that are gone": (
        [
            "INSERT INTO user_role_map (user_id, role_id, managed_by_auth) VALUES (99999, 1, false), (1, 99999, false)",
            "INSERT INTO group_role_map (group_id, role_id, managed_by_auth) VALUES (99999, 1, false)",
            "INSERT INTO service_role_map (service_id, role_id, managed_by_auth) VALUES (99999, 1, false)",
        ],
        ORMCounts(memberships_of_nobody=4),
    ),
}


@pytest.mark.parametrize("stray", STRAYS)
async def test_rows_that_lead_nowhere_or_have_expired_are_counted_by_kind(url: str, stray: str):
    statements, counts = STRAYS[stray]
    with changing(url) as connection:
        if connection.dialect.name == "postgresql":
            connection.exec_driver_sql("SET session_replication_role = replica")  # else it refuses them
        timed = "timeout" in {column["name"] for column in sa.inspect(connection).get_columns("services")}
        for statement in statements:
            filled = statement.format(timeout=", timeout", thirty=", 30") if timed else statement
            connection.exec_driver_sql(filled.replace("{timeout}", "").replace("{thirty}", ""))
    with opened(url) as db:
        assert await db.orm_counts() == counts
        assert (await db.read()).users_total == len(POPULATION.users)


async def test_a_time_may_come_without_a_fraction(tmp_path: Path):
    url = sqlite_url(tmp_path)
    with changing(url) as connection:
        connection.exec_driver_sql("UPDATE spawners SET last_activity = '2025-01-02 03:04:05' WHERE name = 'gpu'")
        connection.exec_driver_sql("UPDATE users SET last_activity = '2025-01-02 03:04:05' WHERE name = 'exactly'")
    at = datetime(2025, 1, 2, 3, 4, 5, tzinfo=timezone.utc)
    with opened(url) as db:
        assert at in {server.last_activity for server in (await db.read()).servers if server.name == "gpu"}
        # As texts, that is before the same second with ".000000"; as times it is not.
        assert "exactly" not in {user.name for user in await db.inactive_users(at)}
        assert "exactly" in {user.name for user in await db.inactive_users(at + timedelta(microseconds=1))}


NONSENSE = ["yesterday", 17, "", b"\xff", "0001-01-01T00:00:00+14:00"]


@pytest.mark.parametrize("nonsense", NONSENSE)
@pytest.mark.parametrize("column", ["started", "last_activity"])
async def test_a_server_with_a_time_that_is_none_has_neither_and_costs_no_others(
    tmp_path: Path, column: str, nonsense: object
):
    """The other time alone would be taken for its last use."""
    url = sqlite_url(tmp_path)
    with opened(url) as db:
        before = (await db.read()).servers
        with changing(url) as connection:
            connection.execute(sa.text(f"UPDATE spawners SET {column} = :t WHERE name = 'gpu'"), {"t": nonsense})
        after = (await db.read()).servers
    odd = [replace(s, started=None, last_activity=None) if s.name == "gpu" else s for s in before]
    assert list(after) == odd


@pytest.mark.parametrize("nonsense", NONSENSE)
@pytest.mark.parametrize("column", ["created", "last_activity"])
async def test_a_user_with_a_time_that_is_none_isnt_inactive_and_costs_no_others(
    tmp_path: Path, column: str, nonsense: object
):
    url = sqlite_url(tmp_path)
    with opened(url) as db:
        before = await db.inactive_users(NOW)
        with changing(url) as connection:
            connection.execute(sa.text(f"UPDATE users SET {column} = :t WHERE name = 'gone'"), {"t": nonsense})
        after = await db.inactive_users(NOW)
    assert list(after) == [user for user in before if user.name != "gone"]


async def test_names_that_are_no_texts_cost_no_others(tmp_path: Path):
    url = sqlite_url(tmp_path)
    with changing(url) as connection:
        connection.execute(sa.text("UPDATE users SET name = :n WHERE name = 'sleeper'"), {"n": b"\xff"})
        connection.execute(sa.text("INSERT INTO groups (id, name) VALUES (9001, NULL), (9002, :n)"), {"n": b"\xff"})
        connection.exec_driver_sql(
            "INSERT INTO user_group_map (user_id, group_id)"
            " SELECT users.id, groups.id FROM users, groups WHERE users.name = 'boss' AND groups.id > 9000"
        )
    with opened(url) as db:
        servers, inactive = (await db.read()).servers, await db.inactive_users(NOW)
        accounts = (await db.accounts(None)).accounts
    assert "boss" in {server.user for server in servers}
    assert "gone" in {user.name for user in inactive}
    assert {"boss", "gone"} <= {account.name for account in accounts}
    assert all(isinstance(account.name, str) for account in accounts)


@pytest.mark.parametrize(("stored", "told"), [(None, {}), ("{", None), ("[1]", None), ('{"a": [1]}', {"a": [1]})])
async def test_options_that_make_no_sense_are_unknown_and_none_at_all_are_empty(url: str, stored, told):
    with changing(url) as connection:
        connection.execute(sa.text("UPDATE spawners SET user_options = :o WHERE name = 'gpu'"), {"o": stored})
    with opened(url) as db:
        assert [server.options for server in (await db.read()).servers if server.name == "gpu"] == [told]


# It can't write, whatever it is told.


@contextmanager
def instead_of_reading(statement: str) -> Iterator[None]:
    """Every SELECT that anybody sends is replaced by ``statement``."""

    def replace_it(_connection, _cursor, sent: str, parameters, _context, _many):
        return (statement, ()) if sent.lstrip().startswith("SELECT alembic") else (sent, parameters)

    sa.event.listen(sa.Engine, "before_cursor_execute", replace_it, retval=True)
    try:
        yield
    finally:
        sa.event.remove(sa.Engine, "before_cursor_execute", replace_it)


@pytest.mark.parametrize(
    "statement",
    ["DELETE FROM users", "UPDATE users SET name = 'x'", "CREATE TABLE t (i INTEGER)", "DROP TABLE spawners"],
)
async def test_the_database_itself_refuses_every_write_of_ours(url: str, statement: str):
    with opened(url) as db:
        before = await db.read()
        with (
            instead_of_reading(statement),
            pytest.raises(HubDBError, match=r"readonly database|read-only transaction"),
        ):
            await db.read()
        after = await db.read()
    assert (after.servers, after.users_total) == (before.servers, before.users_total)
    with changing(url) as connection:
        assert "t" not in sa.inspect(connection).get_table_names()


async def test_a_file_that_is_missing_is_told_of_and_never_made(tmp_path: Path):
    with opened(f"sqlite:///{tmp_path / 'jupyterhub.sqlite'}") as db:
        with pytest.raises(HubDBError, match="doesn't exist"):
            await db.read()
        # Nor when it goes between our look and the opening.
        (tmp_path / "jupyterhub.sqlite").symlink_to(tmp_path / "moved")
        connect = read_only._opener(tmp_path / "jupyterhub.sqlite")
        with pytest.raises(sqlite3.OperationalError, match="unable to open"):
            connect()
    assert [path.name for path in tmp_path.iterdir()] == ["jupyterhub.sqlite"]


async def test_reading_leaves_the_file_and_its_folder_as_they_were(tmp_path: Path):
    url = sqlite_url(tmp_path)
    file = tmp_path / "jupyterhub.sqlite"
    before = file.read_bytes(), file.stat().st_mtime_ns, os.listdir(tmp_path)
    with opened(url) as db:
        await db.read()
        await db.inactive_users(NOW)
    assert (file.read_bytes(), file.stat().st_mtime_ns, os.listdir(tmp_path)) == before


# It is never in the hub's way.


class Watch:
    """What went over our connections to SQLite: the statements of each transaction, and how many rows they gave."""

    def __init__(self) -> None:
        self.transactions: list[list[str]] = []
        self.rows_each: list[int] = []

    def connect(self, *args: Any, **kwargs: Any) -> sqlite3.Connection:
        connection = sqlite3.dbapi2.connect(*args, **kwargs)
        statements: list[str] = []
        number = len(self.transactions)
        self.transactions.append(statements)
        self.rows_each.append(0)

        def count(_cursor: sqlite3.Cursor, row: Any) -> Any:
            self.rows_each[number] += 1
            return row

        connection.set_trace_callback(statements.append)
        connection.row_factory = count
        return connection


@pytest.fixture
def watch(monkeypatch: pytest.MonkeyPatch) -> Watch:
    watch = Watch()
    # SQLAlchemy takes it from sqlite3.dbapi2: this one is only ours.
    monkeypatch.setattr(sqlite3, "connect", watch.connect)
    return watch


async def rows_of_one_reading(url: str, watch: Watch) -> int:
    with opened(url) as db:
        await db.read()
        before = sum(watch.rows_each)
        await db.read()
    return sum(watch.rows_each) - before


async def test_a_reading_fetches_what_runs_and_not_who_is_registered(tmp_path: Path, watch: Watch):
    rows = {}
    for users, running in ((1000, 1000), (50_000, 1000), (1000, 500)):
        folder = tmp_path / f"{users}-{running}"
        folder.mkdir()
        url = sqlite_url(folder, made_up(users=users, running=running, groups=20))
        rows[users, running] = await rows_of_one_reading(url, watch)
    assert rows[50_000, 1000] == rows[1000, 1000]
    assert 1.8 < rows[1000, 1000] / rows[1000, 500] < 2.2


async def test_every_transaction_begins_for_reading_and_ends(tmp_path: Path, watch: Watch):
    with opened(sqlite_url(tmp_path)) as db:
        await db.read()
        await db.inactive_users(NOW)
    assert watch.transactions
    for statements in watch.transactions:
        begun = statements.index("BEGIN")
        # SQLAlchemy asks the very first connection what it is like.
        assert {statement.split()[0] for statement in statements[:begun]} <= {"PRAGMA"}
        assert {statement.split()[0] for statement in statements[begun + 1 : -1]} == {"SELECT"}
        assert statements[-1] in {"COMMIT", "ROLLBACK"}


async def test_stale_users_are_read_in_transactions_that_dont_grow_with_their_number(tmp_path: Path, watch: Watch):
    largest, transactions = [], []
    for number in (3 * tables.USERS_AT_ONCE, 9 * tables.USERS_AT_ONCE):
        folder = tmp_path / str(number)
        folder.mkdir()
        population = Population(tuple(SeededUser(f"user-{i}", groups=("a", "b")) for i in range(number)))
        with opened(sqlite_url(folder, population)) as db:
            del watch.rows_each[:], watch.transactions[:]
            assert len(await db.inactive_users(NOW)) == number
        largest.append(max(watch.rows_each))
        transactions.append(len(watch.rows_each))
    assert largest[0] == largest[1] == 4 * tables.USERS_AT_ONCE
    assert transactions == [1 + 3 + 1, 1 + 9 + 1]


async def test_the_database_is_free_again_before_anything_is_made_of_what_was_read(tmp_path: Path, monkeypatch):
    url = sqlite_url(tmp_path)
    written = []

    def write_first(text: str) -> object:
        with closing(sqlite3.dbapi2.connect(tmp_path / "jupyterhub.sqlite", timeout=0)) as hub, hub:
            written.append(hub.execute("UPDATE users SET admin = admin").rowcount)
        return {}

    with opened(url) as db:
        monkeypatch.setattr(tables.json, "loads", write_first)
        await db.read()
        monkeypatch.undo()
    # The options and the state of each server.
    assert written == [len(POPULATION.users)] * 2 * len([server for server in POPULATION.servers if server.running])


async def test_a_hub_writes_while_it_is_read_without_a_pause(tmp_path: Path):
    url = sqlite_url(tmp_path, made_up(users=5000, running=500, groups=5))
    done = threading.Event()
    commits, errors = [], []

    def hub() -> None:
        with closing(sqlite3.dbapi2.connect(tmp_path / "jupyterhub.sqlite", timeout=5)) as connection:
            while not done.is_set():
                try:
                    with connection:
                        connection.execute("UPDATE users SET last_activity = ? WHERE id % 10 = 3", (str(len(commits)),))
                    commits.append(1)
                except sqlite3.OperationalError as error:
                    errors.append(error)
                done.wait(0.01)

    writer = threading.Thread(target=hub)
    with opened(url) as db:
        writer.start()
        try:
            seen = [len((await db.read()).servers) for _ in range(30)]
            while len(commits) < 30 and not errors:
                await db.read()
        finally:
            done.set()
            writer.join()
    assert errors == []
    assert seen == [500] * 30


@pytest.mark.parametrize("reading", [HubDB.read, lambda db: db.inactive_users(NOW)])
async def test_a_reading_that_takes_too_long_is_broken_off_and_the_hub_can_write(tmp_path: Path, monkeypatch, reading):
    url = sqlite_url(tmp_path, made_up(users=5000, running=100))
    monkeypatch.setattr(read_only, "LONGEST_S", -1.0)
    with opened(url) as db, pytest.raises(HubDBError, match="let go so that the hub isn't held up"):
        await (db.read() if reading is HubDB.read else reading(db))
    with closing(sqlite3.dbapi2.connect(tmp_path / "jupyterhub.sqlite", timeout=0)) as hub, hub:
        hub.execute("DELETE FROM users")


async def test_postgresql_breaks_off_a_reading_that_takes_too_long(postgresql_url: str, monkeypatch):
    write(postgresql_url, POPULATION, now=NOW)
    monkeypatch.setattr(read_only, "LONGEST_S", 0.05)
    with opened(postgresql_url) as db:
        with instead_of_reading("SELECT pg_sleep(60)"), pytest.raises(HubDBError, match="let go so that"):
            await db.read()
        assert (await db.read()).servers


async def test_nothing_stays_connected_between_readings(postgresql_url: str):
    write(postgresql_url, POPULATION, now=NOW)
    others = "SELECT count(*) FROM pg_stat_activity WHERE datname = current_database() AND pid <> pg_backend_pid()"
    with opened(postgresql_url) as db:
        await db.read()
        await db.inactive_users(NOW)
        for _ in range(100):  # the server notices a moment later
            with changing(postgresql_url) as connection:
                left = connection.exec_driver_sql(others).scalar()
            if not left:
                break
            await asyncio.sleep(0.05)
    assert left == 0


# When it can't be read, it says why, and never a password.


async def test_a_database_that_somebody_keeps_locked_is_told_of_and_read_again_afterwards(tmp_path: Path, monkeypatch):
    url = sqlite_url(tmp_path)
    monkeypatch.setattr(read_only, "LOCK_TIMEOUT_S", 0.05)
    with opened(url) as db:
        with closing(sqlite3.dbapi2.connect(tmp_path / "jupyterhub.sqlite")) as backup:
            backup.execute("BEGIN EXCLUSIVE")
            with pytest.raises(HubDBError, match="locked by somebody else"):
                await db.read()
            backup.rollback()
        assert (await db.read()).servers


async def test_what_a_killed_hub_has_left_half_written_is_left_to_the_hub(tmp_path: Path):
    url = sqlite_url(tmp_path)
    file = tmp_path / "jupyterhub.sqlite"
    half_write = (
        "import os, sqlite3, sys; c = sqlite3.connect(sys.argv[1]); c.execute('PRAGMA cache_size = 1');"
        "c.execute('BEGIN IMMEDIATE'); c.execute('UPDATE spawners SET state = hex(randomblob(5000))'); os._exit(9)"
    )
    assert subprocess.run([sys.executable, "-c", half_write, str(file)], check=False).returncode == 9
    journal = tmp_path / "jupyterhub.sqlite-journal"
    assert journal.stat().st_size > 0
    before = journal.read_bytes()
    with opened(url) as db:
        with pytest.raises(HubDBError, match="the hub itself clears it up"):
            await db.read()
        assert journal.read_bytes() == before
        with changing(url) as connection:  # the hub is back
            connection.exec_driver_sql("UPDATE users SET admin = admin")
        assert {server.options and server.options["stop_s"] for server in (await db.read()).servers} == {0.0, 2.5}


@pytest.mark.parametrize("revision", ["ffffffffffff", "651f5419b74d", None])
async def test_tables_of_a_revision_that_nobody_has_looked_at_are_not_read(url: str, revision: str | None):
    with changing(url) as connection:
        connection.exec_driver_sql("DELETE FROM alembic_version")
        if revision:
            connection.exec_driver_sql(f"INSERT INTO alembic_version VALUES ('{revision}')")
    with opened(url) as db:
        for reading in (db.read(), db.inactive_users(NOW), db.orm_counts()):
            with pytest.raises(
                HubDBError, match=f"revision {revision or '.none.'}.* 4.1 and 5 and 6.*Upgrade HubGuard"
            ):
                await reading


async def test_a_database_of_something_else_is_not_taken_for_a_hubs(tmp_path: Path, postgresql_url: str):
    (tmp_path / "jupyterhub.sqlite").touch()
    (tmp_path / "notes.sqlite").write_text("Remember the milk. " * 100)
    for name in ("jupyterhub.sqlite", "notes.sqlite"):
        with (
            opened(f"sqlite:///{tmp_path / name}") as db,
            pytest.raises(HubDBError, match="Is this the hub's database"),
        ):
            await db.read()
    with opened(postgresql_url) as db, pytest.raises(HubDBError, match="Is this the hub's database"):
        await db.read()


@pytest.mark.parametrize(
    ("url", "match"),
    [
        ("postgresql+psycopg://anna:s3cret@127.0.0.1:1/hub", "can't be reached"),
        ("postgresql+psycopg://anna:s3cret@127.0.0.1:1/hub?password=s3cret", "can't be reached"),
        ("postgresql+psycopg:///hub?host=/nowhere&user=anna&password=s3cret", "can't be reached"),
        ("mysql+nodriver://anna:s3cret@127.0.0.1:1/hub", "can't be used"),
        ("mssql+pyodbc://anna:s3cret@127.0.0.1:1/hub", "only reads from mssql"),
        ("postgresql//anna:s3cret@127.0.0.1/hub", "isn't a database URL"),
        ("postgresql://anna:s3cret@127.0.0.1:port/hub", "isn't a database URL"),
        ("", "isn't a database URL"),
        ("sqlite://", "no plain path"),
        ("sqlite:///:memory:", "no plain path"),
        ("sqlite:///file:hub.sqlite?uri=true", "no plain path"),
    ],
)
async def test_what_cant_be_connected_to_is_told_without_the_password(url: str, match: str):
    with pytest.raises(HubDBError, match=match) as raised, opened(url) as db:
        await db.read()
    told = "".join(traceback.format_exception(raised.value)) + raised.value.detail
    assert "s3cret" not in told
    assert "HubGuard knows only what the hub's API shows" in told


async def test_a_password_that_the_database_itself_repeats_is_taken_out(postgresql_url: str):
    write(postgresql_url, POPULATION, now=NOW)
    for url in (
        sa.make_url(postgresql_url).set(password="s3cret"),
        sa.make_url(postgresql_url).update_query_dict({"password": "s3cret"}),
    ):
        with (
            opened(url.render_as_string(hide_password=False)) as db,
            instead_of_reading("SELECT CAST('s3cret' AS int)"),
            pytest.raises(HubDBError, match=r"integer.*\*\*\*") as raised,
        ):
            await db.read()
        assert "s3cret" not in "".join(traceback.format_exception(raised.value)) + raised.value.detail


async def test_a_missing_driver_is_named_and_what_to_install(monkeypatch):
    monkeypatch.setitem(sys.modules, "pymysql", None)
    with pytest.raises(HubDBError, match=r"isn't installed \(no Python module pymysql\)"):
        SQLHubDB("mysql+pymysql://anna:s3cret@127.0.0.1/hub")


async def test_a_file_that_never_answers_is_given_up_and_the_next_reading_too(tmp_path: Path, monkeypatch):
    url = sqlite_url(tmp_path)
    thaw = threading.Event()

    def hang(*args: Any, **kwargs: Any) -> sqlite3.Connection:
        thaw.wait(60)
        return sqlite3.dbapi2.connect(*args, **kwargs)

    monkeypatch.setattr(sqlite3, "connect", hang)
    with opened(url) as db:
        try:
            with monkeypatch.context() as hurried:
                hurried.setattr(database, "GIVE_UP_S", 0.05)
                for _ in range(2):
                    with pytest.raises(HubDBError, match="doesn't answer for"):
                        await db.read()
        finally:
            thaw.set()
        assert (await db.read()).servers


async def test_a_relative_file_is_one_below_the_folder_of_the_hub(tmp_path: Path, monkeypatch):
    sqlite_url(tmp_path)
    elsewhere = tmp_path / "elsewhere"
    elsewhere.mkdir()
    monkeypatch.chdir(elsewhere)
    with opened("sqlite:///jupyterhub.sqlite", tmp_path) as db:
        assert (await db.read()).servers
    with opened("sqlite:///../jupyterhub.sqlite") as db:
        monkeypatch.chdir("/")  # it is the folder of the moment in which it was made
        assert (await db.read()).servers
    nowhere = pytest.raises(HubDBError, match=r"elsewhere/jupyterhub\.sqlite.*doesn't exist")
    with opened("sqlite:///jupyterhub.sqlite", elsewhere) as db, nowhere:
        await db.read()


async def test_a_path_may_hold_what_means_something_in_an_address(tmp_path: Path):
    folder = tmp_path / "a?mode=rwc&b#c%20d käthe"
    folder.mkdir()
    write(f"sqlite:///{tmp_path / 'plain.sqlite'}", POPULATION, now=NOW)
    (tmp_path / "plain.sqlite").rename(folder / "jupyterhub.sqlite")
    with opened("sqlite:///jupyterhub.sqlite", folder) as db:
        assert (await db.read()).servers


def test_reading_it_doesnt_load_the_hub():
    loaded = "import sys, hubguard.hub.database; sys.exit(any(name.startswith('jupyterhub') for name in sys.modules))"
    assert subprocess.run([sys.executable, "-c", loaded], check=False).returncode == 0


# The database of a hub that runs.


of_the_hub = pytest.mark.asyncio(loop_scope="module")


@pytest_asyncio.fixture(loop_scope="module", scope="module", params=["sqlite", "postgresql"])
async def hub(request: pytest.FixtureRequest) -> AsyncIterator[TestbedHub]:
    url = None if request.param == "sqlite" else request.getfixturevalue("new_postgresql_database")()
    config = 'c.JupyterHub.tornado_settings = {"slow_spawn_timeout": 0.2}'
    async with RealHub(python=HUB_PYTHON, population=POPULATION, db_url=url, config=config) as hub:
        yield hub


@of_the_hub
async def test_a_running_hub_and_its_database_tell_the_same(hub: TestbedHub):
    await hub.start_server("newcomer", "second", stop_s=0.5)
    await hub.api("DELETE", "users/boss/server")
    answer = await hub.api(
        "GET", "users", params={"limit": 200}, headers={"Accept": "application/jupyterhub-pagination+json"}
    )
    with opened(hub.db_url) as db:
        state = await db.read()
        stale = await db.inactive_users(datetime.now(timezone.utc) + timedelta(days=1))
    listed = sorted(
        (
            Server(
                user["name"],
                name,
                server["ready"],
                server["pending"],
                read_time(server["started"], "start"),
                read_time(server["last_activity"], "activity"),
                admin=user["admin"],
                groups=tuple(sorted(user["groups"])),
                roles=tuple(sorted(user["roles"])),
                options=server["user_options"],
            )
            for user in answer.data["items"]
            for name, server in user["servers"].items()
        ),
        key=lambda server: server.key,
    )
    assert ("newcomer", "second") in {server.key for server in listed}
    assert ("boss", "") not in {server.key for server in listed}
    assert list(state.servers) == listed
    assert state.users_total == answer.data["_pagination"]["total"]
    assert [(user.name, user.last_activity, user.groups, user.roles) for user in stale] == sorted(
        (
            user["name"],
            read_time(user["last_activity"], "activity"),
            tuple(sorted(user["groups"])),
            tuple(sorted(user["roles"])),
        )
        for user in answer.data["items"]
    )


@of_the_hub
async def test_a_server_that_still_starts_looks_ready_in_the_database(hub: TestbedHub):
    """Why nobody may act on the database's word alone."""
    answer = await hub.api("POST", "users/newcomer/server", json={"start_s": 600.0})
    assert answer.status == 202
    with opened(hub.db_url) as db:
        told = [server for server in (await db.read()).servers if server.key == ("newcomer", "")]
    itself = await hub.server("newcomer")
    assert itself is not None
    assert (itself["ready"], itself["pending"]) == (False, "spawn")
    assert [(server.ready, server.pending) for server in told] == [(True, None)]
    assert (await hub.api("DELETE", "users/newcomer/server")).status == 204


@of_the_hub
async def test_a_hub_serves_and_writes_while_its_database_is_read_without_a_pause(hub: TestbedHub):
    done = asyncio.Event()
    readings = 0

    async def read() -> None:
        nonlocal readings
        while not done.is_set():
            await db.read()
            await db.inactive_users(datetime.now(timezone.utc))
            readings += 1

    with opened(hub.db_url) as db:
        reading = asyncio.create_task(read())
        try:
            for i in range(10):
                assert (await hub.api("POST", f"users/new-{i}")).status == 201
                at = datetime.now(timezone.utc).isoformat()
                answer = await hub.api("POST", f"users/new-{i}/activity", json={"last_activity": at})
                assert answer.status == 200, answer
            await hub.start_server("new-1")
            assert (await hub.api("DELETE", "users/new-1/server")).status in {202, 204}
        finally:
            done.set()
            await reading
        assert {f"new-{i}" for i in range(10)} <= {
            user.name for user in await db.inactive_users(NOW + 9**4 * timedelta(1))
        }
    assert readings > 0
    assert "database is locked" not in hub.log_text()
