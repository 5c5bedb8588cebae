"""One suite over what the hub's database tells of users: in memory, SQLite, PostgreSQL, and what a real hub deletes."""

from __future__ import annotations

import json
import sqlite3
import threading
from collections.abc import Iterator, Sequence
from contextlib import closing, contextmanager
from dataclasses import replace
from datetime import datetime, timedelta, timezone
from pathlib import Path
from typing import Any
from urllib.parse import quote

import pytest
import sqlalchemy as sa
from builders import EXACT_NOW as NOW
from builders import exactly_ago as ago
from conftest import HUB_PYTHON
from doubles.hub_db import MemoryHubDB

from hubguard.errors import HubDBError
from hubguard.hub import accounts as hub_accounts
from hubguard.hub import tables
from hubguard.hub.client import HTTPHubAPI
from hubguard.hub.database import HubDB, SQLHubDB
from hubguard.hub.nouns import Account, AccountServer, UndoServer, UndoUser
from hubguard.pacing.budget import Budget
from hubguard.prune import undo_file
from hubguard.prune.decide.stale import judge
from hubguard.prune.model import Protection, PruneReason, StaleCriteria, UndoHead, Use
from hubguard.prune.offline import restore_offline
from hubguard.prune.restore import Restorer
from hubguard.staging.hub import TestbedHub
from hubguard.staging.population import AWKWARD_NAMES, DAY_S, Population, SeededServer, SeededUser, made_up, with_owners
from hubguard.staging.seed import write

pytestmark = [pytest.mark.hub, pytest.mark.contract]

USED = datetime(2025, 1, 2, 3, 4, 5, tzinfo=timezone.utc)

POPULATION = with_owners(
    Population(
        (
            SeededUser("boss", admin=True, groups=("zoo", "admins"), idle_for_s=10.0),
            SeededUser("never"),
            SeededUser("gone", groups=("zoo",), idle_for_s=90 * DAY_S, created_s=400 * DAY_S),
            SeededUser("exactly", idle_for_s=30 * DAY_S),
            SeededUser("just-there", idle_for_s=30 * DAY_S - 1),
            *(SeededUser(name, idle_for_s=50 * DAY_S) for name in AWKWARD_NAMES),
        ),
        (
            SeededServer("boss", idle_for_s=30.0),
            SeededServer("boss", "gpu", idle_for_s=3600.0),
            SeededServer("gone", idle_for_s=90 * DAY_S, running=False, kept_state={"pvc_name": "claim-gone"}),
            SeededServer("gone", "käthe/2", idle_for_s=95 * DAY_S, running=False),
        ),
    )
)

# As a hub in use would have them: clients of servers, tokens and codes of their owners and of who was let in.
HANGING = (
    "INSERT INTO oauth_clients (id, identifier, description) VALUES (9001, 'server-of-gone', 'x'), (9002, 'boss-gpu', 'x')",
    "UPDATE spawners SET oauth_client_id = 'server-of-gone' WHERE name = '' AND user_id = {gone}",
    "UPDATE spawners SET oauth_client_id = 'boss-gpu' WHERE name = 'gpu'",
    "INSERT INTO api_tokens (id, user_id, hashed, prefix, client_id, last_activity, expires_at) VALUES"
    " (9001, {gone}, 'a', 'a', NULL, NULL, NULL), (9002, {gone}, 'b', 'b', NULL, '2025-01-02 03:04:05', NULL),"
    " (9003, {gone}, 'c', 'c', 'boss-gpu', '2024-12-31 23:59:59.999999', '2020-01-01 00:00:00'),"
    " (9004, {never}, 'd', 'd', 'server-of-gone', '2025-02-02 03:04:05', NULL),"
    " (9005, NULL, 'e', 'e', NULL, '2025-02-02 03:04:05', NULL)",
    "INSERT INTO oauth_codes (id, user_id, client_id, code, expires_at) VALUES"
    " (9001, {gone}, 'boss-gpu', 'a', 1), (9002, {never}, 'server-of-gone', 'b', 1), (9003, {never}, 'boss-gpu', 'c', 1)",
    "INSERT INTO shares (id, created_at, owner_id, spawner_id, user_id, group_id, scopes) VALUES"
    " (9001, '2025-01-01 00:00:00', {boss}, {gpu}, {gone}, NULL, '[]'),"
    " (9002, '2025-01-01 00:00:00', {gone}, {named}, {never}, NULL, '[]'),"
    " (9003, '2025-01-01 00:00:00', {gone}, {named}, NULL, 1, '[]'),"
    " (9004, '2025-01-01 00:00:00', {boss}, {gpu}, NULL, 1, '[]')",
    "INSERT INTO share_codes (id, created_at, hashed, prefix, owner_id, spawner_id, scopes) VALUES"
    " (9001, '2025-01-01 00:00:00', 'a', 'a', {gone}, {named}, '[]'),"
    " (9002, '2025-01-01 00:00:00', 'b', 'b', {boss}, {gpu}, '[]')",
)


async def people(db: HubDB, names: list[str]) -> tuple[UndoUser, ...]:
    """What brings these users back, without what others are called."""
    return tuple(user for user in await db.undo_users(names) if user.name)


def hang(url: str) -> None:
    with changing(url) as connection:
        ids = {row.name: row.id for row in connection.exec_driver_sql("SELECT name, id FROM users")}
        named = {row.name: row.id for row in connection.exec_driver_sql("SELECT name, id FROM spawners")}
        for statement in HANGING:
            connection.exec_driver_sql(statement.format(**ids, gpu=named["gpu"], named=named["käthe/2"]))


@contextmanager
def changing(url: str) -> Iterator[sa.Connection]:
    engine = sa.create_engine(url, poolclass=sa.NullPool)
    with engine.begin() as connection:
        yield connection


@contextmanager
def opened(url: str) -> Iterator[SQLHubDB]:
    db = SQLHubDB(url)
    try:
        yield db
    finally:
        db.close()


def made(url: str, population: Population = POPULATION) -> str:
    write(url, population, now=NOW)
    if population is POPULATION:
        hang(url)
    return url


def expected() -> dict[str, Account]:
    """Everybody by name, without ids."""
    hanging: dict[str, tuple[int, datetime | None, int]] = {
        "gone": (3, USED, 3),
        "never": (1, datetime(2025, 2, 2, 3, 4, 5, tzinfo=timezone.utc), 1),
        "boss": (0, None, 2),
    }
    accounts = {}
    for user in POPULATION.users:
        servers = (
            AccountServer(
                server.name, server.running, None, ago(server.idle_for_s), server.running or bool(server.kept_state)
            )
            for server in POPULATION.servers
            if server.user == user.name
        )
        tokens, used, shares = hanging.get(user.name, (0, None, 0))
        accounts[user.name] = Account(
            name=user.name,
            admin=user.admin,
            created=ago(user.created_s),
            last_activity=ago(user.idle_for_s),
            groups=tuple(sorted(user.groups)),
            roles=("admin", "user") if user.admin else ("user",),
            servers=tuple(sorted(servers, key=lambda server: server.name)),
            servers_whole=True,
            tokens=tokens,
            token_used_at=used,
            shares=shares,
        )
    return accounts


def without_id(account: Account) -> Account:
    values = {name: getattr(account, name) for name in account.__dataclass_fields__}
    return Account(**{**values, "id": None})


@pytest.fixture(params=["sqlite", "postgresql"])
def url(request: pytest.FixtureRequest, tmp_path: Path) -> str:
    """A database with POPULATION in it, and what hangs on them."""
    if request.param == "sqlite":
        return made(f"sqlite:///{tmp_path / 'jupyterhub.sqlite'}")
    return made(str(request.getfixturevalue("postgresql_url")))


@pytest.fixture(params=["memory", "sqlite", "postgresql"])
def db(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[HubDB]:
    """The same, as the client that is tested sees it."""
    if request.param == "memory":
        memory = MemoryHubDB()
        memory.have(*expected().values())
        memory.states = {("boss", ""): {"pid": 1}, ("boss", "gpu"): {"pid": 2}}
        memory.options = {
            (server.user, server.name): server.options for server in POPULATION.servers if not server.running
        }
        yield memory
        return
    url = f"sqlite:///{tmp_path / 'jupyterhub.sqlite'}"
    with opened(made(url if request.param == "sqlite" else str(request.getfixturevalue("postgresql_url")))) as db:
        yield db


# What both tell.


async def test_everybody_is_told_once_by_name_with_all_that_hangs_on_them(db: HubDB):
    found = await db.accounts(None)
    accounts = expected()
    assert [without_id(account) for account in found.accounts] == [accounts[name] for name in sorted(accounts)]
    assert len({account.id for account in found.accounts} - {None}) == len(accounts)
    assert found.users_total == len(accounts)
    assert found.revision in tables.REVISIONS


async def test_a_server_that_doesnt_run_is_told_too_and_is_not_active(db: HubDB):
    (gone,) = (await db.accounts(None, ["gone"])).accounts
    assert [(server.name, server.active, server.keeps_state) for server in gone.servers] == [
        ("", False, True),
        ("käthe/2", False, False),
    ]
    assert gone.servers_whole


async def test_who_was_active_at_that_very_moment_is_among_those_who_werent_after_it(db: HubDB):
    found = await db.accounts(NOW - timedelta(days=30))
    assert {account.name for account in found.accounts} == {"never", "gone", "exactly", *AWKWARD_NAMES}
    assert found.users_total == len(POPULATION.users)
    earlier = await db.accounts(NOW - timedelta(days=30, microseconds=1))
    assert {account.name for account in earlier.accounts} == {"never", "gone", *AWKWARD_NAMES}


async def test_a_time_in_another_zone_means_the_same_moment(db: HubDB):
    since = NOW - timedelta(days=30)
    elsewhere = since.astimezone(timezone(timedelta(hours=-11)))
    assert (await db.accounts(elsewhere)).accounts == (await db.accounts(since)).accounts


async def test_a_user_asked_for_by_name_reads_as_among_all(db: HubDB):
    everybody = (await db.accounts(None)).accounts
    for account in everybody:
        assert (await db.accounts(None, [account.name])).accounts == (account,)
    names = [account.name for account in reversed(everybody)]
    assert (await db.accounts(None, [*names, *names])).accounts == everybody


@pytest.mark.parametrize("name", ["nobody", "Gone", "gone ", "", "%", "' OR 1=1"])
async def test_a_name_that_nobody_has_is_left_out(db: HubDB, name: str):
    found = await db.accounts(None, [name, "boss"])
    assert [account.name for account in found.accounts] == ["boss"]
    assert [user.name for user in await people(db, [name, "boss"])] == ["boss"]


async def test_when_users_were_made_is_told_as_with_all_else_and_not_of_who_isnt_there(db: HubDB):
    accounts = (await db.accounts(None)).accounts
    names = [account.name for account in accounts]
    assert await db.users_made([*names, "nobody at all"]) == {account.name: account.created for account in accounts}
    assert await db.users_made([]) == {}


async def test_asking_for_nobody_tells_nobody_and_how_many_there_are(db: HubDB):
    found = await db.accounts(None, [])
    assert (found.accounts, found.users_total) == ((), len(POPULATION.users))
    assert await db.undo_users([]) == ()


async def test_both_a_time_and_names_must_fit(db: HubDB):
    found = await db.accounts(NOW - timedelta(days=30), ["gone", "boss"])
    assert [account.name for account in found.accounts] == ["gone"]


async def test_what_brings_a_user_back_is_told_by_name_with_groups_roles_and_every_server(db: HubDB):
    gone, never = await people(db, ["never", "gone"])
    assert (gone.name, gone.groups, gone.roles) == ("gone", ("zoo",), ("user",))
    options = POPULATION.servers[-1].options
    assert gone.servers == (UndoServer("", options), UndoServer("käthe/2", options))
    assert (never.name, never.groups, never.servers) == ("never", (), ())
    assert gone.rows is not None
    assert [row["name"] for row in gone.rows["users"]] == ["gone"]
    assert sorted(str(row["name"]) for row in gone.rows["spawners"]) == ["", "käthe/2"]


async def test_rows_are_in_no_repr(db: HubDB):
    (gone,) = await people(db, ["gone"])
    assert "rows" not in repr(gone)
    assert "claim-gone" not in repr(gone)


async def test_the_one_in_memory_can_be_made_to_fail():
    db = MemoryHubDB()
    db.fault = HubDBError("gone")
    for reading in (db.accounts(None), db.undo_users(["x"])):
        with pytest.raises(HubDBError):
            await reading
    assert db.calls == 2


async def test_the_one_in_memory_tells_who_was_changed_after_they_were_had():
    db = MemoryHubDB()
    db.have(Account("ann", False, NOW, None, ("a",), ("user",), (AccountServer("", False),), tokens=2, id=77))
    db.have(Account("ann", True, NOW, NOW, ("b",), ("user",), (AccountServer("", True),), tokens=0, id=78))
    (ann,) = (await db.accounts(None)).accounts
    assert (ann.admin, ann.groups, ann.tokens, ann.id) == (True, ("b",), 0, 78)
    assert [(server.name, server.active) for server in ann.servers] == [("", True)]
    del db.users["ann"]
    assert (await db.accounts(None)).accounts == ()


# What only real databases can do.


async def test_an_empty_hub_has_nobody(tmp_path: Path):
    with opened(made(f"sqlite:///{tmp_path / 'x.sqlite'}", Population())) as db:
        assert (await db.accounts(None)).accounts == ()
        assert await db.undo_users(["ann"]) == ()


async def test_nobody_is_missed_or_told_twice_where_pieces_end_with_the_table(url: str, monkeypatch):
    with opened(url) as db:
        whole = (await db.accounts(None)).accounts
        for rows in (1, 2, 3, 5, len(whole), len(whole) + 1):
            monkeypatch.setattr(hub_accounts, "_PIECES", {k: s.limit(rows) for k, s in hub_accounts._PIECES.items()})
            monkeypatch.setattr(hub_accounts, "ROWS_AT_ONCE", rows)
            monkeypatch.setattr(hub_accounts, "_ALL_USERS", hub_accounts._ALL_USERS.limit(rows))
            monkeypatch.setattr(hub_accounts, "USERS_AT_ONCE", rows)
            assert (await db.accounts(None)).accounts == whole
            assert (await db.accounts(None, [account.name for account in whole])).accounts == whole


async def test_a_server_that_names_an_address_that_isnt_there_counts_as_active(url: str):
    """It keeps its user: what leads nowhere is for somebody to look at, and nothing to delete by."""
    with changing(url) as connection:
        if connection.dialect.name == "postgresql":
            connection.exec_driver_sql("SET session_replication_role = replica")  # else it refuses
        connection.exec_driver_sql("UPDATE spawners SET server_id = 99999 WHERE name = 'käthe/2'")
    with opened(url) as db:
        (gone,) = (await db.accounts(None, ["gone"])).accounts
    assert [server.active for server in gone.servers] == [False, True]


@pytest.mark.parametrize(("text", "keeps"), [("{}", False), ("", False), (None, False), ("null", False), ("x", True)])
async def test_a_spawner_that_keeps_nothing_keeps_no_state_and_what_cant_be_read_counts_as_some(
    url: str, text: str | None, keeps: bool
):
    with changing(url) as connection:
        connection.execute(sa.text("UPDATE spawners SET state = :text WHERE name = 'käthe/2'"), {"text": text})
    with opened(url) as db:
        (gone,) = (await db.accounts(None, ["gone"])).accounts
        assert gone.servers[1].keeps_state is keeps


async def test_the_last_use_of_a_token_counts_whether_or_not_its_time_has_a_fraction(tmp_path: Path):
    url = made(f"sqlite:///{tmp_path / 'x.sqlite'}")
    with changing(url) as connection:
        connection.exec_driver_sql("UPDATE api_tokens SET last_activity = '2025-01-02 03:04:05.000001' WHERE id = 9001")
    with opened(url) as db:
        for names in (None, ["gone"]):
            found = {account.name: account for account in (await db.accounts(None, names)).accounts}
            assert found["gone"].token_used_at == USED + timedelta(microseconds=1)


@pytest.mark.parametrize("names", [None, ["gone"]])
async def test_a_hub_that_knows_no_shares_yet_has_none(url: str, names: list[str] | None):
    """A database of 4.1, or one that was upgraded for a hub that hasn't been started since."""
    with changing(url) as connection:
        connection.exec_driver_sql("DROP TABLE shares")
        connection.exec_driver_sql("DROP TABLE share_codes")
        connection.exec_driver_sql("UPDATE alembic_version SET version_num = '0eee8c825d24'")
    with opened(url) as db:
        found = {account.name: account for account in (await db.accounts(None, names)).accounts}
        assert found["gone"].shares == 0
        assert found["gone"].tokens == 3
        (gone,) = await people(db, ["gone"])
        assert gone.rows is not None
        assert not {"shares", "share_codes"} & gone.rows.keys()
        assert (await db.orm_counts()).expired_share_codes == 0


async def test_what_rows_of_theirs_point_to_is_named_and_users_whose_own_rows_are_there_arent(url: str):
    with opened(url) as db:
        ids = {account.name: account.id for account in (await db.accounts(None)).accounts}
        nobody, *some = await db.undo_users(["gone"])
        assert [user.name for user in some] == ["gone"]
        assert (nobody.name, nobody.groups, nobody.roles, nobody.servers) == ("", (), (), ())
        assert nobody.rows is not None
        named = {(str(row["table"]), row["id"]): row for row in nobody.rows[hub_accounts.NAMED]}
        assert len(named) == len(nobody.rows[hub_accounts.NAMED])
        told = {(table, row["name"]) for (table, _), row in named.items()}
        assert told == {
            ("spawners", "gpu"),
            ("users", "boss"),
            ("users", "never"),
            ("groups", "zoo"),
            ("groups", "admins"),
            ("roles", "user"),
        }
        (gpu,) = (row for (table, _), row in named.items() if table == "spawners")
        assert gpu["user_id"] == ids["boss"]
        both = await db.undo_users(["gone", "never"])
        named_with_both = {row["name"] for user in both if not user.name for row in (user.rows or {})["named"]}
        assert named_with_both == {"gpu", "boss", "zoo", "admins", "user"}


async def test_users_whose_rows_point_to_nothing_are_told_alone(url: str):
    with changing(url) as connection:
        for table in ("user_role_map", "user_group_map", "api_tokens", "shares", "share_codes", "oauth_codes"):
            connection.exec_driver_sql(f"DELETE FROM {table}")
    with opened(url) as db:
        assert [user.name for user in await db.undo_users(["gone", "never"])] == ["gone", "never"]


async def test_tables_of_a_revision_that_nobody_has_looked_at_are_not_read(url: str):
    with changing(url) as connection:
        connection.exec_driver_sql("UPDATE alembic_version SET version_num = 'abcdef012345'")
    with opened(url) as db:
        for reading in (db.accounts(None), db.accounts(None, ["gone"]), db.undo_users(["gone"])):
            with pytest.raises(HubDBError, match="knows only those"):
                await reading


async def test_a_token_that_was_never_used_hides_no_use_and_none_is_unknown_for_it(tmp_path: Path):
    url = made(f"sqlite:///{tmp_path / 'x.sqlite'}")
    with changing(url) as connection:
        own = "(SELECT id FROM users WHERE name = 'gone')"
        connection.exec_driver_sql(f"UPDATE api_tokens SET last_activity = NULL WHERE user_id = {own}")
        for id_, at in ((9101, "'2026-01-02 03:04:05.000000'"), (9102, "NULL")):
            connection.exec_driver_sql(
                "INSERT INTO api_tokens (id, user_id, hashed, prefix, client_id, last_activity)"
                f" VALUES ({id_}, {own}, 'h{id_}', 'p', 'jupyterhub', {at})"
            )
    with opened(url) as db:
        (gone,) = (await db.accounts(None, ["gone"])).accounts
    assert gone.times_known
    assert gone.token_used_at == datetime(2026, 1, 2, 3, 4, 5, tzinfo=timezone.utc)


@pytest.mark.parametrize(
    "column", ["users.last_activity", "users.created", "spawners.last_activity", "api_tokens.last_activity"]
)
@pytest.mark.parametrize("nonsense", ["'yesterday'", "17", "''"])
async def test_of_who_has_a_time_that_is_none_the_times_arent_known_and_others_are_told(
    tmp_path: Path, column: str, nonsense: str
):
    url = made(f"sqlite:///{tmp_path / 'x.sqlite'}")
    table, name = column.split(".")
    own = "name = 'gone'" if table == "users" else "user_id = (SELECT id FROM users WHERE name = 'gone')"
    with changing(url) as connection:
        first = f"SELECT min(rowid) FROM {table} WHERE {own}"
        connection.exec_driver_sql(f"UPDATE {table} SET {name} = {nonsense} WHERE rowid = ({first})")
    with opened(url) as db:
        accounts = (await db.accounts(None)).accounts
        (gone,) = (await db.accounts(None, ["gone"])).accounts
    assert len(accounts) == len(POPULATION.users)
    assert [account.name for account in accounts if not account.times_known] == ["gone"]
    assert not gone.times_known
    verdicts = judge([gone], StaleCriteria(1.0, 1.0), Protection(), (), {"gone": Use(active_at=USED)}, NOW)
    assert [verdict.reasons for verdict in verdicts] == [(PruneReason.NO_TIMES,)]


async def test_no_transaction_grows_with_the_hub(tmp_path: Path, monkeypatch):
    """Rows read within one, for a small hub and one three times as large."""
    largest = []
    for users in (6000, 18_000):
        url = made(f"sqlite:///{tmp_path / f'{users}.sqlite'}", made_up(users=users, running=users // 2, groups=20))
        read: list[int] = []
        connect = sqlite3.dbapi2.connect

        def counted(*args: Any, _connect: Any = connect, _read: list[int] = read, **kwargs: Any) -> sqlite3.Connection:
            connection: sqlite3.Connection = _connect(*args, **kwargs)
            _read.append(0)

            def count(_cursor: sqlite3.Cursor, row: Any) -> Any:
                _read[-1] += 1
                return row

            connection.row_factory = count
            return connection

        with monkeypatch.context() as watched, opened(url) as db:
            watched.setattr(sqlite3, "connect", counted)
            assert len((await db.accounts(None)).accounts) == users
        largest.append(max(read))
    assert largest[0] == largest[1] <= hub_accounts.ROWS_AT_ONCE


async def test_a_hub_writes_while_everybody_is_read_without_a_pause(tmp_path: Path):
    file = tmp_path / "jupyterhub.sqlite"
    url = made(f"sqlite:///{file}", made_up(users=5000, running=500, groups=5))
    done = threading.Event()
    commits: list[int] = []
    errors: list[Exception] = []

    def hub() -> None:
        with closing(sqlite3.dbapi2.connect(file, timeout=5)) as connection:
            while not done.is_set():
                try:
                    with connection:
                        connection.execute("UPDATE users SET admin = admin WHERE id % 10 = 3")
                    commits.append(1)
                except sqlite3.OperationalError as error:
                    errors.append(error)
                done.wait(0.01)

    writer = threading.Thread(target=hub)
    with opened(url) as db:
        names = [account.name for account in (await db.accounts(None)).accounts]
        writer.start()
        try:
            for _ in range(1000):
                assert len((await db.accounts(None)).accounts) == len(await people(db, names)) == 5000
                if len(commits) >= 20 or errors:
                    break
        finally:
            done.set()
            writer.join()
    assert errors == []
    assert len(commits) >= 20


# What a hub deletes with a user.


def everything(url: str) -> dict[str, list[str]]:
    """All rows of all tables, each as one text."""
    with changing(url) as connection:
        return {
            table: sorted(
                json.dumps(dict(row), default=_plain, sort_keys=True)
                for row in connection.execute(sa.text(f'SELECT * FROM "{table}"')).mappings()
            )
            for table in sa.inspect(connection).get_table_names()
        }


def _plain(value: object) -> str:
    return bytes(value).hex() if isinstance(value, (bytes, memoryview)) else str(value)


@pytest.mark.long
@pytest.mark.parametrize("kind", ["sqlite", "postgresql"])
async def test_the_undo_rows_are_exactly_what_a_hub_deletes_with_the_user(
    kind: str, request: pytest.FixtureRequest, testbed_hub
):
    url = None if kind == "sqlite" else request.getfixturevalue("postgresql_url")
    hub: TestbedHub = await testbed_hub(python=HUB_PYTHON, population=POPULATION, db_url=url)
    # Not before its start, at which it removes codes that have expired, and clients of servers that don't run.
    hang(hub.db_url)
    with opened(hub.db_url) as db:
        for name in ("gone", "never", "käthe"):
            before = everything(hub.db_url)
            (undo,) = await people(db, [name])
            assert (await hub.api("DELETE", f"users/{quote(name, safe='')}")).status == 204
            after = everything(hub.db_url)
            assert undo.rows is not None
            told = {
                table: sorted(json.dumps(dict(row), default=_plain, sort_keys=True) for row in rows)
                for table, rows in undo.rows.items()
            }
            lost = {table: sorted(set(rows) - set(after[table])) for table, rows in before.items()}
            assert {table: rows for table, rows in lost.items() if rows} == told
            if name == "gone":
                assert told.keys() == {
                    "users",
                    "spawners",
                    "oauth_clients",
                    "api_tokens",
                    "oauth_codes",
                    "shares",
                    "share_codes",
                    "user_group_map",
                    "user_role_map",
                }


FOR_A_SERVICE = (
    "INSERT INTO api_tokens (id, service_id, hashed, prefix, client_id) VALUES"
    " (9006, (SELECT id FROM services WHERE name = 'tester'), 'f', 'f', 'server-of-gone')",
)


@pytest.mark.long
@pytest.mark.parametrize("kind", ["sqlite", "postgresql"])
async def test_what_a_hub_deletes_comes_back_offline_row_by_row_from_a_file_of_these(
    kind: str, tmp_path: Path, request: pytest.FixtureRequest, testbed_hub
):
    """With shares with others, and tokens of others and of services for the server that went."""
    url = f"sqlite:///{tmp_path / 'x.sqlite'}" if kind == "sqlite" else request.getfixturevalue("postgresql_url")
    hub: TestbedHub = await testbed_hub(python=HUB_PYTHON, population=POPULATION, db_url=url)
    hang(url)
    with changing(url) as connection:
        for statement in FOR_A_SERVICE:
            connection.exec_driver_sql(statement)
    before, names = everything(url), ["gone", "never", "käthe"]
    head = UndoHead("d" * 64, NOW, "boss", url.partition(":")[0].partition("+")[0], "")
    with opened(url) as db:
        head = replace(head, revision=(await db.accounts(None, ["gone"])).revision)
        written = undo_file.write(tmp_path / "undo", head, await db.undo_users(names))
    for name in names:
        assert (await hub.api("DELETE", f"users/{quote(name, safe='')}")).status == 204
    # Stopped, it would end the servers of others, too.
    await hub.kill()
    assert everything(url) != before

    def later() -> datetime:
        return datetime.now(timezone.utc) + timedelta(hours=1)

    restored = restore_offline(
        url,
        tmp_path,
        written.path,
        with_tokens=True,
        now=later,
        hub_api_url=hub.api_url,
        acknowledged=["processes-not-seen"],
        sha256=written.sha256,
        from_other_database=True,
    )
    assert sorted(restored.restored) == sorted(names)
    assert not [note for note in restored.notes if "come back" in note]
    after = everything(url)
    # The hub writes down when its service's own token was used.
    for table in before.keys() - {"api_tokens", "services"}:
        assert after[table] == before[table], table
    tokens = [{row for row in found["api_tokens"] if '"id": 90' in row} for found in (before, after)]
    assert len(tokens[0]) == 6
    assert tokens[1] == tokens[0]


@pytest.mark.long
async def test_online_nobody_is_made_of_the_names_of_others(testbed_hub):
    hub: TestbedHub = await testbed_hub(python=HUB_PYTHON, population=POPULATION)
    hang(hub.db_url)
    with opened(hub.db_url) as db:
        users = await db.undo_users(["gone", "never"])
    assert "" in [user.name for user in users]
    asked: list[str] = []

    async def begin(names: Sequence[str]) -> None:
        asked.extend(names)

    async with HTTPHubAPI(hub.api_url, hub.token, Budget(rate=100.0, burst=10, concurrency=10)) as api:
        outcomes = await Restorer(api).restore(users, begin=begin)
    assert sorted(name for name, _ in outcomes) == sorted(asked) == ["gone", "never"]
