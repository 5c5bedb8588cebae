"""Pruning and restoring straight in a hub's database: what it leaves, what it brings back, and whom it leaves alone."""

from __future__ import annotations

import contextlib
import getpass
import itertools
import json
import os
import shutil
import signal
import socket
import sqlite3
import stat
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import closing
from dataclasses import asdict, replace
from datetime import datetime, timedelta, timezone
from importlib.util import find_spec
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import sqlalchemy as sa
from builders import DAY_S
from conftest import HUB_PYTHON
from offline_hubs import delete, dump, fill

from hubguard.errors import HubGuardError, OfflineRefused, UndoError
from hubguard.hub.accounts import read_undo_users
from hubguard.hub.nouns import UndoUser
from hubguard.hub.read_only import ReadOnly
from hubguard.prune import undo_file
from hubguard.prune.decide.plan import OFFLINE_STORAGE, digest_of, from_dict, to_dict
from hubguard.prune.model import Deletion, Protection, PrunePlan, StaleCriteria
from hubguard.prune.offline import Applied, Restored, apply_offline, in_use, plan_offline, restore_offline
from hubguard.prune.offline.in_use import HUB_NOT_ASKED, PROCESSES_NOT_SEEN, cautions
from hubguard.prune.offline.rows import these, undo_user

pytestmark = [pytest.mark.hub, pytest.mark.contract]

LAST_USED = datetime.now(timezone.utc).replace(tzinfo=None)
NOW = LAST_USED.replace(tzinfo=timezone.utc) + timedelta(hours=2)
"""Nothing was written for two hours."""

STALE = StaleCriteria(inactive_for_s=100 * DAY_S, never_active_for_s=100 * DAY_S)
UNSEEN = [HUB_NOT_ASKED.name, PROCESSES_NOT_SEEN]
CREDENTIALS = {"api_tokens", "oauth_codes", "share_codes"}
MARIADB = ("mariadbd", "mariadb-install-db")
NUMBERS = range(6)
HUBS = [
    ("sqlite", 0),
    *(pytest.param("sqlite", number, marks=pytest.mark.long) for number in NUMBERS[1:]),
    pytest.param("postgresql", 0, marks=pytest.mark.long),
    pytest.param("mariadb", 0, marks=pytest.mark.long),
]


@pytest.fixture(scope="session")
def filled(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with a SQLite database of each population, not to be touched."""
    folder = tmp_path_factory.mktemp("offline")
    fill(HUB_PYTHON, [(f"sqlite:///{folder / f'{number}.sqlite'}", number) for number in NUMBERS], LAST_USED)
    return folder


@pytest.fixture(scope="session")
def new_mariadb_database() -> Iterator[Callable[[], str]]:
    """Makes an empty database and gives its URL, on a MariaDB server of our own that listens on a socket file only."""
    server, install = (shutil.which(name, path=f"{os.environ['PATH']}:/usr/sbin") for name in MARIADB)
    if server is None or install is None:
        pytest.skip("MariaDB's server isn't installed: nothing is tried on it")
    asked = subprocess.run([HUB_PYTHON, "-c", "import pymysql"], capture_output=True, check=False)
    if asked.returncode or not find_spec("pymysql"):
        pytest.skip("pymysql isn't installed: nothing is tried on MariaDB")
    # A socket's path may have about a hundred characters, and pytest's own folders are long.
    folder = Path(tempfile.mkdtemp(prefix="hubguard-my-"))
    data, socket_file, account = f"--datadir={folder / 'data'}", folder / "socket", f"--user={getpass.getuser()}"
    try:
        made = subprocess.run(
            [install, "--no-defaults", data, account, "--auth-root-authentication-method=normal"],
            capture_output=True,
            text=True,
            check=False,
            timeout=120,
        )
        assert made.returncode == 0, made.stderr
        with subprocess.Popen(
            [server, "--no-defaults", data, account, "--skip-networking", f"--socket={socket_file}"],
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
        ) as process:
            try:
                address = sa.make_url("mysql+pymysql://root@localhost").set(query={"unix_socket": str(socket_file)})
                numbers = itertools.count(1)
                engine = sa.create_engine(address, poolclass=sa.NullPool)
                until_s = time.monotonic() + 60
                while not socket_file.exists() and process.poll() is None and time.monotonic() < until_s:
                    time.sleep(0.1)

                def make() -> str:
                    name = f"test_{next(numbers)}"
                    with engine.connect() as connection:
                        connection.exec_driver_sql(f"CREATE DATABASE {name} CHARACTER SET utf8mb4")
                    return address.set(database=name).render_as_string(hide_password=False)

                yield make
            finally:
                process.terminate()
    finally:
        shutil.rmtree(folder, ignore_errors=True)


@pytest.fixture
def new_hub(filled: Path, tmp_path: Path, request: pytest.FixtureRequest) -> Iterator[Callable[[str, int], str]]:
    """``new_hub(kind, number)`` is the URL of a database of its own with that population."""
    made = 0

    def make(kind: str = "sqlite", number: int = 0) -> str:
        nonlocal made
        made += 1
        if kind == "sqlite":
            folder = tmp_path / f"hub{made}"
            folder.mkdir()
            return f"sqlite:///{shutil.copy(filled / f'{number}.sqlite', folder / 'jupyterhub.sqlite')}"
        url = str(request.getfixturevalue(f"new_{kind}_database")())
        fill(HUB_PYTHON, [(url, number)], LAST_USED)
        return url

    return make


def plan_for(url: str, *, housekeeping: bool = False, criteria: StaleCriteria = STALE, **options: Any) -> PrunePlan:
    return plan_offline(
        url,
        Path(),
        criteria,
        options.pop("protection", Protection()),
        now=NOW,
        made_by="tester",
        life_s=DAY_S,
        cap=options.pop("cap", None),
        storage=OFFLINE_STORAGE,
        housekeeping=housekeeping,
        **options,
    )


def apply(url: str, plan: PrunePlan, undo_folder: Path, **options: Any) -> Applied:
    settings: dict[str, Any] = {
        "count": len(plan.deletions),
        "acknowledged": [*(caution.name for caution in plan.cautions), *UNSEEN],
        "protection": Protection(),
        "now": lambda: NOW,
        "actor": "tester",
        "hub_api_url": None,
        **options,
    }
    return apply_offline(url, Path(), plan, undo_folder=undo_folder, **settings)


def restore(url: str, applied: Applied, **options: Any) -> Restored:
    assert applied.undo_file is not None
    settings: dict[str, Any] = {
        "with_tokens": True,
        "now": lambda: NOW,
        "hub_api_url": None,
        "acknowledged": UNSEEN,
        "sha256": applied.undo_sha256,
        **options,
    }
    return restore_offline(url, Path(), applied.undo_file, **settings)


def execute(url: str, *statements: str) -> None:
    engine = sa.create_engine(url, poolclass=sa.NullPool)
    with engine.begin() as connection:
        for statement in statements:
            connection.exec_driver_sql(statement)


def ask(url: str, statement: str) -> list[tuple[Any, ...]]:
    engine = sa.create_engine(url, poolclass=sa.NullPool)
    with engine.connect() as connection:
        return [tuple(row) for row in connection.exec_driver_sql(statement)]


# -- what is left, and what comes back ------------------------------------------------------------------------------------


@pytest.mark.parametrize(("kind", "number"), HUBS)
def test_it_leaves_exactly_what_the_hubs_own_orm_leaves(
    new_hub: Callable[[str, int], str], tmp_path: Path, kind: str, number: int
) -> None:
    url, twin = new_hub(kind, number), new_hub(kind, number)
    plan = plan_for(url)
    applied = apply(url, plan, tmp_path / "undo")
    assert len(applied.deleted) > 3
    delete(HUB_PYTHON, twin, applied.deleted)
    left, expected = dump(url), dump(twin)
    for table in expected:
        assert left[table] == expected[table], table


@pytest.mark.parametrize("housekeeping", [True, False])
@pytest.mark.parametrize(("kind", "number"), HUBS)
def test_restoring_with_tokens_is_the_identity_table_by_table(
    new_hub: Callable[[str, int], str], tmp_path: Path, kind: str, number: int, housekeeping: bool
) -> None:
    url = new_hub(kind, number)
    before = dump(url)
    applied = apply(url, plan_for(url, housekeeping=housekeeping), tmp_path / "undo")
    assert applied.deleted
    assert dump(url) != before
    restored = restore(url, applied)
    assert set(restored.restored) == set(applied.deleted)
    assert restored.skipped == ()
    assert restored.rows == applied.rows
    after = dump(url)
    for table in before:
        assert after[table] == before[table], table
    again = restore(url, applied)
    assert again.restored == ()
    assert len(again.skipped) == len(applied.deleted)
    assert not again.rows
    assert dump(url) == before


def test_a_row_that_leads_nowhere_and_goes_with_its_user_is_counted_once(
    new_hub: Callable[[], str], tmp_path: Path
) -> None:
    url = new_hub()
    plan = plan_for(url, housekeeping=True)
    leaves = "(SELECT id FROM users WHERE name = '{}')".format(plan.deletions[0].user.replace("'", "''"))
    execute(url, f"INSERT INTO user_group_map (user_id, group_id) VALUES ({leaves}, 4711)")
    before = len(dump(url)["user_group_map"])
    applied = apply(url, plan, tmp_path / "undo")
    assert plan.deletions[0].user in applied.deleted
    assert applied.rows["user_group_map"] == before - len(dump(url)["user_group_map"])


def all_rows_of(plan: PrunePlan) -> int:
    assert plan.gain.rows is not None
    useless = asdict(plan.housekeeping).values() if plan.housekeeping is not None else ()
    return sum(plan.gain.rows.values()) + sum(useless)


@pytest.mark.parametrize("housekeeping", [True, False])
@pytest.mark.parametrize("number", NUMBERS)
def test_a_plan_says_exactly_which_rows_go(
    new_hub: Callable[[str, int], str], tmp_path: Path, number: int, housekeeping: bool
) -> None:
    url = new_hub("sqlite", number)
    plan = plan_for(url, housekeeping=housekeeping)
    applied = apply(url, plan, tmp_path / "undo")
    if not housekeeping:
        assert plan.gain.rows == applied.rows
    assert all_rows_of(plan) == sum(applied.rows.values()) > 0


def test_tables_that_no_hub_has_made_yet_are_empty(new_hub: Callable[[], str], tmp_path: Path) -> None:
    """An upgrade from 4.1 leaves a database without the tables of shares: the hub makes them at its next start."""
    url = new_hub()
    execute(url, "DROP TABLE share_codes", "DROP TABLE shares")
    before = dump(url)
    plan = plan_for(url, housekeeping=True)
    applied = apply(url, plan, tmp_path / "undo")
    assert applied.deleted
    assert all_rows_of(plan) == sum(applied.rows.values())
    assert set(restore(url, applied).restored) == set(applied.deleted)
    assert dump(url) == before
    execute(url, "DROP TABLE api_tokens")
    with pytest.raises(OfflineRefused, match="lacks the tables api_tokens") as refused:
        plan_for(url)
    assert "upgrade-db" not in str(refused.value)


def test_who_is_gone_when_a_plan_is_applied_isnt_said_to_be_kept(new_hub: Callable[[], str], tmp_path: Path) -> None:
    url = new_hub()
    plan = plan_for(url)
    apply(url, replace_users(plan, plan.deletions[:1]), tmp_path / "undo")
    again = apply(url, plan, tmp_path / "undo", now=lambda: NOW + timedelta(seconds=1))
    assert again.gone == (plan.deletions[0].user,)
    assert plan.deletions[0].user not in {name for name, _ in again.skipped}


def replace_users(plan: PrunePlan, deletions: tuple[Deletion, ...]) -> PrunePlan:
    made = replace(plan, deletions=deletions)
    return replace(made, digest=digest_of(made))


def test_a_role_that_came_through_a_group_comes_back_through_it_alone(
    new_hub: Callable[[], str], tmp_path: Path
) -> None:
    url = new_hub()
    execute(
        url,
        "INSERT INTO roles (name, description, scopes, managed_by_auth) VALUES ('by-group', '', '[]', 0)",
        "INSERT INTO group_role_map (group_id, role_id, managed_by_auth)"
        " SELECT groups.id, roles.id, 0 FROM groups, roles WHERE roles.name = 'by-group'",
    )
    before = ask(url, "SELECT * FROM user_role_map ORDER BY user_id, role_id")
    plan = plan_for(url)
    names = [deletion.user for deletion in plan.deletions]
    users = read_undo_users(ReadOnly(url, Path(), told_by="x"), names)
    assert any("by-group" in user.roles for user in users), "as a running guard writes them"
    applied = apply(url, plan, tmp_path / "undo")
    assert applied.undo_file is not None
    head, _ = undo_file.read(applied.undo_file)
    written = undo_file.write(tmp_path / "online", head, users)
    assert restore(url, replace(applied, undo_file=written.path, undo_sha256=None)).restored
    assert ask(url, "SELECT * FROM user_role_map ORDER BY user_id, role_id") == before


def test_no_undo_file_gives_anybody_the_role_of_an_admin(new_hub: Callable[[], str], tmp_path: Path) -> None:
    url = new_hub()
    applied = apply(url, plan_for(url), tmp_path / "undo")
    assert applied.undo_file is not None
    ((admin_id,),) = ask(url, "SELECT id FROM roles WHERE name = 'admin'")
    head, users = undo_file.read(applied.undo_file)
    forged = []
    for user in users:
        rows = dict(user.rows or {})
        if user.name:
            own = {"user_id": rows["users"][0]["id"], "role_id": admin_id, "managed_by_auth": False}
            rows["user_role_map"] = (*rows.get("user_role_map", ()), own)
        forged.append(replace(user, roles=(*user.roles, "admin") if user.name else (), rows=rows))
    written = undo_file.write(tmp_path / "forged", head, forged)
    restored = restore(url, replace(applied, undo_file=written.path, undo_sha256=None))
    assert restored.restored
    assert any("no undo file makes one" in note for note in restored.notes)
    admins = "SELECT users.name FROM users JOIN user_role_map ON user_id = users.id JOIN roles ON role_id = roles.id"
    assert not {name for (name,) in ask(url, f"{admins} WHERE roles.name = 'admin'")} & set(applied.deleted)


def test_only_tokens_and_codes_stay_away_unless_asked_for(new_hub: Callable[[], str], tmp_path: Path) -> None:
    url = new_hub()
    before = dump(url)
    applied = apply(url, plan_for(url), tmp_path / "undo")
    gone = dump(url)
    restore(url, applied, with_tokens=False)
    after = dump(url)
    for table in before:
        assert after[table] == (gone if table in CREDENTIALS else before)[table], table
    assert any(gone[table] != before[table] for table in CREDENTIALS)


# -- what has changed in the meantime -------------------------------------------------------------------------------------


def test_who_came_back_or_became_an_admin_or_runs_something_is_left_alone(
    new_hub: Callable[[], str], tmp_path: Path
) -> None:
    url = new_hub()
    plan = plan_for(url)
    first, second, third, fourth, *_others = (deletion.user.replace("'", "''") for deletion in plan.deletions)
    execute(
        url,
        f"UPDATE users SET last_activity = '{LAST_USED - timedelta(minutes=9)}' WHERE name = '{first}'",
        f"UPDATE users SET admin = 1 WHERE name = '{second}'",
        f"UPDATE users SET name = 'renamed' WHERE name = '{third}'",
        "INSERT INTO servers (id, port) VALUES (4000, 1)",
        f"INSERT INTO spawners (user_id, name, server_id) SELECT id, 'new', 4000 FROM users WHERE name = '{fourth}'",
    )
    before = dump(url)
    applied = apply(url, plan, tmp_path / "undo")
    kept = {deletion.user for deletion in plan.deletions[:4]} - {plan.deletions[2].user}
    assert {name for name, _ in applied.skipped} == kept
    assert applied.gone == (plan.deletions[2].user,)
    assert all(why for _, why in applied.skipped)
    assert sorted(applied.deleted) == sorted(d.user for d in plan.deletions[4:])
    restore(url, applied)
    assert dump(url) == before


def test_whoever_joined_a_group_that_the_plan_protected_is_kept_whatever_is_set_now(
    new_hub: Callable[[], str], tmp_path: Path
) -> None:
    url = new_hub()
    plan = plan_for(url, protection=Protection(groups=("tutors",)))
    joined = plan.deletions[0]
    execute(
        url,
        "INSERT INTO groups (id, name) VALUES (77, 'tutors')",
        f"INSERT INTO user_group_map (user_id, group_id) VALUES ({joined.id}, 77)",
    )
    applied = apply(url, plan, tmp_path / "undo")
    assert applied.skipped == ((joined.user, "the user is in a protected group"),)


def test_whoever_got_a_protected_role_through_a_group_since_the_plan_is_kept(
    new_hub: Callable[[], str], tmp_path: Path
) -> None:
    url = new_hub()
    plan = plan_for(url, protection=Protection(roles=("tutor",)))
    joined = plan.deletions[0]
    execute(
        url,
        "INSERT INTO groups (id, name) VALUES (77, 'tutors')",
        "INSERT INTO roles (id, name, description, scopes, managed_by_auth) VALUES (77, 'tutor', '', '[]', 0)",
        "INSERT INTO group_role_map (group_id, role_id, managed_by_auth) VALUES (77, 77, 0)",
        f"INSERT INTO user_group_map (user_id, group_id) VALUES ({joined.id}, 77)",
    )
    applied = apply(url, plan, tmp_path / "undo")
    assert applied.skipped == ((joined.user, "the user has a protected role"),)


def test_whose_time_became_unreadable_since_the_plan_is_kept_and_the_others_go(
    new_hub: Callable[[], str], tmp_path: Path
) -> None:
    url = new_hub()
    plan = plan_for(url)
    odd = plan.deletions[0]
    execute(url, f"UPDATE users SET last_activity = 'yesterday' WHERE id = {odd.id}")
    assert odd.user not in {deletion.user for deletion in plan_for(url).deletions}
    applied = apply(url, plan, tmp_path / "undo")
    assert applied.skipped == ((odd.user, "it is unknown when the user was active"),)
    assert set(applied.deleted) == {deletion.user for deletion in plan.deletions[1:]}


def test_a_second_time_the_same_plan_deletes_nobody(new_hub: Callable[[], str], tmp_path: Path) -> None:
    url = new_hub()
    plan = plan_for(url)
    apply(url, plan, tmp_path / "undo")
    left = dump(url)
    again = apply(url, plan, tmp_path / "undo", now=lambda: NOW + timedelta(seconds=1))
    assert again.deleted == ()
    assert again.undo_file is None
    assert again.backup is None
    assert dump(url) == left


def test_reused_numbers_give_nothing_of_one_user_to_another(new_hub: Callable[[], str], tmp_path: Path) -> None:
    url = new_hub()
    names = ask(url, "SELECT id, name FROM users")
    memberships = (
        "SELECT u.name, g.name FROM user_group_map m JOIN users u ON u.id = user_id JOIN groups g ON g.id = group_id"
    )
    shares = (
        "SELECT o.name, s.name, u.name, g.name FROM shares JOIN users o ON o.id = owner_id JOIN spawners s ON "
        "s.id = spawner_id AND s.user_id = o.id LEFT JOIN users u ON u.id = shares.user_id "
        "LEFT JOIN groups g ON g.id = group_id"
    )
    tokens = "SELECT hashed, u.name FROM api_tokens t LEFT JOIN users u ON u.id = t.user_id"
    before = [sorted(ask(url, question), key=str) for question in (memberships, shares, tokens)]
    applied = apply(url, plan_for(url), tmp_path / "undo")
    freed = [id_ for id_, name in names if name in applied.deleted]
    execute(
        url,
        *(f"INSERT INTO users (id, name, cookie_id) VALUES ({id_}, 'new-{id_}', 'new-{id_}')" for id_ in freed),
        *(f"INSERT INTO spawners (user_id, name) VALUES ({id_}, '')" for id_ in freed),
        "UPDATE groups SET id = id + 30",
        "UPDATE user_group_map SET group_id = group_id + 30",
        "UPDATE shares SET group_id = group_id + 30",
    )
    restored = restore(url, applied)
    assert set(restored.restored) == set(applied.deleted)
    assert [sorted(ask(url, question), key=str) for question in (memberships, shares, tokens)] == before
    assert ask(url, "SELECT count(*) FROM users") == [(len(names) + len(freed),)]
    again = dump(url)
    restore(url, applied)
    assert dump(url) == again


@pytest.mark.parametrize("theirs", [True, False])
def test_nobody_comes_back_to_what_a_stranger_of_their_number_has_left(
    new_hub: Callable[[], str], tmp_path: Path, theirs: bool
) -> None:
    """Who deletes users by bare SQL leaves rows that whoever gets their number next inherits: an admin's role, say."""
    url = new_hub()
    roles = "SELECT u.name, r.name FROM user_role_map m JOIN users u ON u.id = user_id JOIN roles r ON r.id = role_id"
    groups = (
        "SELECT u.name, g.name FROM user_group_map m JOIN users u ON u.id = user_id JOIN groups g ON g.id = group_id"
    )
    before = [sorted(ask(url, question)) for question in (roles, groups)]
    ids = {name: id_ for id_, name in ask(url, "SELECT id, name FROM users")}
    of_group = dict(ask(url, "SELECT user_id, group_id FROM user_group_map"))
    applied = apply(url, plan_for(url), tmp_path / "undo")
    member = next(ids[name] for name in applied.deleted if ids[name] in of_group)
    left = (
        f"INSERT INTO user_group_map (user_id, group_id) VALUES ({member}, {of_group[member]})"
        if theirs
        else f"INSERT INTO user_role_map (user_id, role_id, managed_by_auth)"
        f" SELECT {member}, id, 0 FROM roles WHERE name = 'admin'"
    )
    execute(url, left, f"INSERT INTO shares (owner_id, created_at) VALUES ({max(ids.values()) + 1}, '2025-01-01')")
    restored = restore(url, applied)
    assert set(restored.restored) == set(applied.deleted)
    assert [sorted(ask(url, question)) for question in (roles, groups)] == before
    now = {name: id_ for id_, name in ask(url, "SELECT id, name FROM users")}
    assert member not in now.values()
    assert max(ids.values()) + 1 not in now.values()


def test_memberships_that_the_undo_file_hasnt_keep_everybody_away(new_hub: Callable[[], str], tmp_path: Path) -> None:
    url = new_hub()
    applied = apply(url, plan_for(url), tmp_path / "undo")
    execute(
        url,
        "CREATE TRIGGER generous AFTER INSERT ON users BEGIN INSERT INTO user_role_map (user_id, role_id, managed_by_auth)"
        " SELECT new.id, id, 0 FROM roles WHERE name = 'admin'; END",
    )
    left = dump(url)
    with pytest.raises(OfflineRefused, match="other roles than the undo file"):
        restore(url, applied)
    assert dump(url) == left


def test_somebody_whom_the_database_doesnt_take_keeps_everybody_away(
    new_hub: Callable[[], str], tmp_path: Path
) -> None:
    url = new_hub()
    applied = apply(url, plan_for(url), tmp_path / "undo")
    execute(url, "CREATE TRIGGER mean AFTER INSERT ON users BEGIN UPDATE users SET name = 'x' WHERE id = new.id; END")
    left = dump(url)
    with pytest.raises(OfflineRefused):
        restore(url, applied)
    execute(
        url,
        "DROP TRIGGER mean",
        "CREATE TRIGGER mean AFTER INSERT ON users WHEN new.id = (SELECT max(id) FROM users)"
        " BEGIN DELETE FROM users WHERE id = new.id; END",
    )
    with pytest.raises(OfflineRefused, match="of the users that were put in"):
        restore(url, applied)
    execute(url, "DROP TRIGGER mean")
    assert dump(url) == left


def test_a_group_or_role_that_is_gone_is_told_and_not_made(new_hub: Callable[[], str], tmp_path: Path) -> None:
    url = new_hub()
    applied = apply(url, plan_for(url), tmp_path / "undo")
    execute(url, "DELETE FROM user_group_map WHERE group_id = 1", "DELETE FROM groups WHERE id = 1")
    restored = restore(url, applied)
    assert any("zoo" in note for note in restored.notes)
    assert ask(url, "SELECT name FROM groups WHERE name = 'zoo'") == []


def test_rows_that_led_nowhere_never_become_somebodys(new_hub: Callable[[], str], tmp_path: Path) -> None:
    url = new_hub()
    applied = apply(url, plan_for(url, housekeeping=True), tmp_path / "undo")
    execute(url, "INSERT INTO users (id, name, cookie_id) VALUES (5001, 'newcomer', 'n')")
    restored = restore(url, applied)
    assert ask(url, "SELECT * FROM user_role_map WHERE user_id = 5001") == []
    assert any("somebody's now" in note for note in restored.notes)


@pytest.mark.parametrize("anothers", [False, True])
def test_a_spawner_gets_its_lost_server_back_unless_that_number_is_another_servers_by_now(
    new_hub: Callable[[], str], tmp_path: Path, anothers: bool
) -> None:
    url = new_hub()
    plan = plan_for(url)
    gone = ", ".join(str(deletion.id) for deletion in plan.deletions)
    ((stays,),) = ask(url, f"SELECT min(id) FROM spawners WHERE user_id NOT IN ({gone})")
    execute(url, f"UPDATE spawners SET server_id = 6001 WHERE id = {stays}")
    applied = apply(url, plan_for(url, housekeeping=True), tmp_path / "undo")
    assert ask(url, f"SELECT server_id FROM spawners WHERE id = {stays}") == [(None,)]
    if anothers:
        execute(
            url, "INSERT INTO servers (id, proto, ip, port, base_url) VALUES (6001, 'http', '', 8888, '/user/other/')"
        )
    restore(url, applied)
    assert ask(url, f"SELECT server_id FROM spawners WHERE id = {stays}") == [(None if anothers else 6001,)]


# -- when it doesn't ------------------------------------------------------------------------------------------------------


def test_a_spawner_gets_its_lost_server_back_also_where_no_row_of_a_server_is_in_the_undo_file(
    new_hub: Callable[[], str], tmp_path: Path
) -> None:
    url = new_hub()
    execute(url, "DELETE FROM servers WHERE id >= 900")
    before = dump(url)["spawners"]
    applied = apply(url, plan_for(url, housekeeping=True), tmp_path / "undo")
    assert dump(url)["spawners"] != before
    restore(url, applied)
    assert dump(url)["spawners"] == before


def test_none_of_no_numbers_is_asked_for_in_words_that_every_database_takes() -> None:
    assert str(these(sa.column("id"), [])) == "id IN (NULL)"
    assert str(these(sa.column("id"), [7, 8])) == "id IN (7, 8)"


def test_a_row_of_anothers_that_hangs_on_a_user_is_none_of_their_servers() -> None:
    def spawner(user_id: int, name: str) -> dict[str, Any]:
        return {"user_id": user_id, "name": name, "user_options": None}

    found = {"users": [{"id": 1, "name": "ann"}], "spawners": [spawner(1, "gpu"), spawner(2, "bobs"), spawner(1, "")]}
    assert [server.name for server in undo_user(found, {}, {}).servers] == ["", "gpu"]


@pytest.mark.long
def test_a_plan_says_that_a_stranger_gets_the_highest_number_where_it_goes(
    new_hub: Callable[..., str], tmp_path: Path
) -> None:
    for kind, goes in (("sqlite", True), ("sqlite", False), ("postgresql", True)):
        url = new_hub(kind)
        names = dict(ask(url, "SELECT id, name FROM users"))
        stale = plan_for(url).deletions[0]
        number = max(names) + 1
        kept = "true" if kind == "postgresql" else "1"
        admin = "false" if goes and kind == "postgresql" else "0" if goes else kept
        execute(
            url,
            f"INSERT INTO users (id, name, admin, created, last_activity, cookie_id) SELECT {number}, 'last', {admin},"
            f" created, last_activity, 'last' FROM users WHERE id = {stale.id}",
        )
        told = any("{userid}" in sentence for sentence in plan_for(url).lost)
        assert told == (goes and kind == "sqlite")


def test_a_dry_run_tells_the_same_and_changes_nothing(new_hub: Callable[[], str], tmp_path: Path) -> None:
    url = new_hub()
    file = Path(sa.make_url(url).database or "")
    before, written_at = dump(url), file.stat().st_mtime_ns
    plan = plan_for(url, housekeeping=True)
    dry = apply(url, plan, tmp_path / "undo", dry_run=True)
    assert dump(url) == before
    assert file.stat().st_mtime_ns == written_at
    assert not (tmp_path / "undo").exists()
    assert list(file.parent.iterdir()) == [file]
    done = apply(url, plan, tmp_path / "undo")
    assert (dry.deleted, dry.rows) == (done.deleted, done.rows)
    left = dump(url)
    assert restore(url, done, dry_run=True).rows == done.rows
    assert dump(url) == left


def test_a_hub_may_be_started_during_a_dry_run(new_hub: Callable[[], str], tmp_path: Path) -> None:
    """A hub that finds its SQLite file locked ends at its start (6.1)."""
    url = new_hub()
    file = sa.make_url(url).database or ""
    plan = plan_for(url)
    tried = []

    def write(step: str) -> None:
        with closing(sqlite3.connect(file, timeout=0)) as hub:
            hub.execute("UPDATE users SET cookie_id = cookie_id")
            hub.commit()
        tried.append(step)

    dry = apply(url, plan, tmp_path / "undo", dry_run=True, progress=write)
    assert "Deleting" in tried
    assert dry.deleted
    done = apply(url, plan, tmp_path / "undo")
    restore(url, done, dry_run=True, progress=write)
    assert tried.count("Bringing back") == 1


def test_a_database_whose_copy_isnt_sound_is_left_as_it_is(new_hub: Callable[[], str], tmp_path: Path) -> None:
    url, undo = new_hub(), tmp_path / "undo"
    plan, file = plan_for(url), Path(sa.make_url(url).database or "")
    execute(url, "CREATE TABLE odd (x TEXT)", "CREATE INDEX odd_x ON odd (x)", "INSERT INTO odd VALUES ('a needle')")
    before, _, after = file.read_bytes().rpartition(b"a needle")
    file.write_bytes(before + b"a noodle" + after)
    os.utime(file, (LAST_USED.timestamp(), LAST_USED.timestamp()))
    refused(url, undo, "isn't sound, as its copy shows: .*odd_x", plan)


def test_whoever_writes_while_the_copy_is_made_keeps_everything_as_it_is(
    new_hub: Callable[[], str], tmp_path: Path
) -> None:
    """Their change would be in the database and not in the copy."""
    url, undo = new_hub(), tmp_path / "undo"
    file, plan = sa.make_url(url).database or "", plan_for(url)
    before = dump(url)

    def write(step: str) -> None:
        if step == "Copying the database":
            with closing(sqlite3.connect(file, timeout=0)) as hub:
                hub.execute("UPDATE users SET cookie_id = cookie_id")
                hub.commit()

    refused(url, undo, "was written to by somebody else just now", plan, progress=write)
    assert dump(url) == before
    assert apply(url, plan, undo).deleted


def test_the_copy_is_the_database_as_it_was_and_its_owners_alone(new_hub: Callable[[], str], tmp_path: Path) -> None:
    url = new_hub()
    before = dump(url)
    applied = apply(url, plan_for(url), tmp_path / "undo")
    assert applied.backup is not None
    assert applied.undo_file is not None
    assert dump(f"sqlite:///{applied.backup}") == before
    for file in (applied.backup, applied.undo_file):
        assert stat.S_IMODE(file.stat().st_mode) == 0o600


def refused(url: str, folder: Path, said: str, plan: PrunePlan | None = None, **options: Any) -> None:
    before = dump(url)
    with pytest.raises(HubGuardError, match=said):
        apply(url, plan or plan_for(url), folder, **options)
    assert dump(url) == before
    assert not list(folder.glob("*"))
    assert not list(Path(sa.make_url(url).database or "").parent.glob("*before-prune*"))


def test_a_plan_that_doesnt_fit_is_refused(new_hub: Callable[[], str], tmp_path: Path) -> None:
    url, other, undo = new_hub(), new_hub(), tmp_path / "undo"
    plan = plan_for(url)
    assert from_dict(to_dict(plan)) == plan
    refused(url, undo, "users, not", count=1)
    refused(url, undo, "expired", now=lambda: NOW + timedelta(days=2))
    refused(url, undo, "made for a running hub", replace(plan, offline=False))
    refused(other, undo, "isn't the one that the plan is for", plan)
    refused(url, undo, "acknowledge this by name", acknowledged=())
    (now,) = {"4621fec11365", "f460b0348206"} - {plan.revision}
    was = f"UPDATE alembic_version SET version_num = '{plan.revision}'"
    execute(url, f"UPDATE alembic_version SET version_num = '{now}'")
    for dry_run in (True, False):
        refused(url, undo, f"has the revision {now}, and the plan is for {plan.revision}", plan, dry_run=dry_run)
    execute(url, was, "DROP TABLE user_group_map")
    with pytest.raises(OfflineRefused, match="lacks the tables user_group_map, and HubGuard changes only"):
        apply(url, plan, undo)
    execute(other, "UPDATE alembic_version SET version_num = '0eee8c825d24'")
    with pytest.raises(OfflineRefused, match="0eee8c825d24.*JupyterHub 5 and JupyterHub 6"):
        plan_for(other)


def test_a_database_that_was_written_lately_is_refused_with_how_long_to_wait(
    new_hub: Callable[[], str], tmp_path: Path
) -> None:
    url, undo = new_hub(), tmp_path / "undo"
    file, plan = Path(sa.make_url(url).database or ""), plan_for(url)
    os.utime(file, (NOW.timestamp() - 300, NOW.timestamp() - 300))
    refused(url, undo, "wait 30 s", plan)
    os.utime(file, (NOW.timestamp() + 300, NOW.timestamp() + 300))
    refused(url, undo, "wait 630 s", plan)
    os.utime(file, (NOW.timestamp() + 331, NOW.timestamp() + 331))
    assert any("ahead of this machine's clock" in note for note in apply(url, plan, undo, dry_run=True).notes)
    os.utime(file, (NOW.timestamp() - 331, NOW.timestamp() - 331))
    execute(url, f"UPDATE api_tokens SET last_activity = '{(NOW - timedelta(seconds=10)).replace(tzinfo=None)}'")
    os.utime(file, (NOW.timestamp() - 331, NOW.timestamp() - 331))
    refused(url, undo, "api_tokens.last_activity, 10 s ago.*wait 320 s", plan)


def test_a_database_that_somebody_has_open_or_locked_is_refused(new_hub: Callable[[], str], tmp_path: Path) -> None:
    url, undo = new_hub(), tmp_path / "undo"
    file, plan = sa.make_url(url).database or "", plan_for(url)
    code = "import sys; held = open(sys.argv[1]); print(flush=True); sys.stdin.read()"
    with subprocess.Popen(
        [sys.executable, "-c", code, file], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    ) as holder:
        assert holder.stdout is not None
        assert holder.stdin is not None
        holder.stdout.readline()
        refused(url, undo, f"process {holder.pid} .*can't work beside it", plan)
        holder.stdin.close()
    with closing(sqlite3.connect(file, isolation_level=None)) as reader:
        reader.execute("BEGIN")
        reader.execute("SELECT count(*) FROM users").fetchone()
        refused(url, undo, "can't be locked", plan)
    assert apply(url, plan, undo).deleted


def test_whoever_has_the_very_file_open_is_seen_by_whatever_path(new_hub: Callable[[], str], tmp_path: Path) -> None:
    """A hub in a container has another path for the file that it serves from; so has one by another link."""
    url, undo = new_hub(), tmp_path / "undo"
    plan, other = plan_for(url), tmp_path / "of-the-hub.sqlite"
    os.link(sa.make_url(url).database or "", other)
    code = "import sys; held = open(sys.argv[1]); print(flush=True); sys.stdin.read()"
    with subprocess.Popen(
        [sys.executable, "-c", code, other], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    ) as holder:
        assert holder.stdout is not None
        assert holder.stdin is not None
        holder.stdout.readline()
        other.unlink()
        refused(url, undo, f"open in process {holder.pid} ", plan)
        holder.stdin.close()
    assert apply(url, plan, undo).deleted


def test_without_an_address_of_the_hub_that_has_to_be_acknowledged(new_hub: Callable[[], str], tmp_path: Path) -> None:
    url, undo = new_hub(), tmp_path / "undo"
    plan = plan_for(url)
    of_plan = [caution.name for caution in plan.cautions]
    refused(url, undo, "hub-not-asked: .*8081", plan, acknowledged=[*of_plan, PROCESSES_NOT_SEEN])
    assert cautions(url, Path(), hub_api_url=None)[0] == HUB_NOT_ASKED
    applied = apply(url, plan, undo)
    assert HUB_NOT_ASKED.why in applied.notes
    left = dump(url)
    with pytest.raises(OfflineRefused, match="hub-not-asked"):
        restore(url, applied, acknowledged=[PROCESSES_NOT_SEEN])
    assert dump(url) == left
    nowhere = "http://127.0.0.1:9/hub/api"
    assert restore(url, applied, also_at=[nowhere], acknowledged=[PROCESSES_NOT_SEEN]).restored


def test_processes_that_cant_be_looked_into_have_to_be_acknowledged(
    new_hub: Callable[[], str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    url, undo = new_hub(), tmp_path / "undo"
    plan = plan_for(url)
    known = [*(caution.name for caution in plan.cautions), HUB_NOT_ASKED.name]
    monkeypatch.setattr("hubguard.prune.offline.in_use._FIRST_NAMESPACE", "pid:[1]")
    refused(url, undo, "processes-not-seen: .*outside this container", plan, acknowledged=known)

    def closed(process: Any) -> list[str]:
        raise PermissionError

    monkeypatch.setattr("hubguard.prune.offline.in_use._open_in", closed)
    monkeypatch.setattr("os.geteuid", lambda: 1000)
    says = r"processes-not-seen: .*\d processes of other accounts \(\d+.*\).*: run this as root"
    refused(url, undo, says, plan, acknowledged=known)
    monkeypatch.setattr("os.geteuid", lambda: 0)
    says = r"processes-not-seen: .*\(\d+.*\).*: make sure yourself that no hub runs"
    refused(url, undo, says, plan, acknowledged=known)
    assert apply(url, plan, undo).deleted


@pytest.mark.parametrize(("count", "named"), [(1, "(0)"), (5, "(0, 1, 2, 3, 4)"), (6, "(0, 1, 2, 3, 4, …)")])
def test_five_processes_that_cant_be_looked_into_are_named_and_more_are_told(count: int, named: str) -> None:
    assert in_use._closed_words(range(count)) == f"{count} processes of other accounts {named}"


@pytest.mark.parametrize("stays", [False, True])
def test_a_connection_that_closes_within_two_seconds_uses_nothing(monkeypatch: pytest.MonkeyPatch, stays: bool) -> None:
    clock = {"s": 100.0}

    def sleep(seconds: float) -> None:
        clock["s"] += seconds

    class Others:
        def exec_driver_sql(self, statement: str) -> Any:
            there = [(4711, "ann", "psql", None, None)] if stays or clock["s"] < 101.5 else []
            return SimpleNamespace(all=lambda: there)

    monkeypatch.setattr(in_use, "time", SimpleNamespace(monotonic=lambda: clock["s"], sleep=sleep))
    database: Any = SimpleNamespace(kind="postgresql")
    found = in_use._others(database, Others())  # type: ignore[arg-type]
    assert found == (["process 4711, psql of the account ann from a local socket"] if stays else [])
    assert clock["s"] < 103


def test_nobody_waits_for_a_writer_where_all_who_could_be_are_seen(
    new_hub: Callable[[], str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    url, undo = new_hub(), tmp_path / "undo"
    plan, file = plan_for(url), Path(sa.make_url(url).database or "")
    execute(
        url, f"UPDATE users SET last_activity = '{NOW.replace(tzinfo=None)}' WHERE id = (SELECT max(id) FROM users)"
    )
    os.utime(file, (NOW.timestamp(), NOW.timestamp()))
    nowhere = "http://127.0.0.1:9/hub/api"
    holders: list[str] = []
    unseen = ["3 processes of other accounts"]
    monkeypatch.setattr("hubguard.prune.offline.in_use._holders", lambda file: (holders, unseen))
    refused(url, undo, "written recently", plan, also_at=[nowhere])
    unseen.clear()
    refused(url, undo, "written recently", plan)
    holders.append("process 7 (hub)")
    refused(url, undo, "process 7", plan, also_at=[nowhere])
    holders.clear()
    applied = apply(url, plan, undo, also_at=[nowhere])
    assert applied.deleted
    assert restore(url, applied, also_at=[nowhere]).restored, "nor for HubGuard's own writing"


def test_a_time_far_ahead_doesnt_hide_what_was_written_now(new_hub: Callable[[], str], tmp_path: Path) -> None:
    url, undo = new_hub(), tmp_path / "undo"
    file, plan = Path(sa.make_url(url).database or ""), plan_for(url)
    lately, ahead = (str((NOW + timedelta(seconds=by_s)).replace(tzinfo=None)) for by_s in (-10, 10**8))
    execute(
        url,
        f"UPDATE users SET last_activity = '{lately}' WHERE id = (SELECT min(id) FROM users)",
        f"UPDATE users SET last_activity = '{ahead}' WHERE id = (SELECT max(id) FROM users)",
    )
    os.utime(file, (LAST_USED.timestamp(), LAST_USED.timestamp()))
    refused(url, undo, "users.last_activity, 10 s ago", plan)


@pytest.mark.parametrize(
    ("answer", "in_use"),
    [
        ("HTTP/1.1 200 OK\r\nContent-Length: 0\r\n\r\n", True),
        ("HTTP/1.1 403 Forbidden\r\nContent-Length: 0\r\n\r\n", True),
        ("HTTP/1.1 503 Busy\r\nX-JupyterHub-Version: 6.1\r\nContent-Length: 0\r\n\r\n", True),
        ("HTTP/1.1 503 No hub\r\nContent-Length: 0\r\n\r\n", False),
        ("nonsense", True),
        ("", True),
        (None, False),
    ],
)
def test_a_hub_that_answers_in_any_way_is_running_and_a_proxy_without_one_isnt(
    new_hub: Callable[[], str], tmp_path: Path, answer: str | None, in_use: bool
) -> None:
    url = new_hub()
    plan = plan_for(url)
    with closing(socket.create_server(("127.0.0.1", 0))) as listener:
        address = f"http://127.0.0.1:{listener.getsockname()[1]}/hub/api"

        def serve() -> None:
            with contextlib.suppress(OSError):
                while True:
                    client, _ = listener.accept()
                    with client:
                        client.recv(4096)
                        client.sendall((answer or "").encode())

        if answer is None:
            listener.close()
        else:
            threading.Thread(target=serve, daemon=True).start()
        if in_use:
            refused(url, tmp_path / "undo", "The hub answers", plan, hub_api_url=address)
        else:
            assert apply(url, plan, tmp_path / "undo", hub_api_url=address).deleted
        with contextlib.suppress(OSError):
            listener.shutdown(socket.SHUT_RDWR)


@pytest.mark.long
def test_another_connection_to_postgresql_is_named_and_refused(new_hub: Callable[..., str], tmp_path: Path) -> None:
    url = new_hub("postgresql")
    plan = plan_for(url)
    engine = sa.create_engine(url, connect_args={"application_name": "my-hub"}, poolclass=sa.NullPool)
    with engine.connect() as connection:
        connection.exec_driver_sql("SELECT 1")
        refused(url, tmp_path / "undo", r"process \d+, my-hub of the account.*or disconnect", plan)


@pytest.mark.long
def test_a_connection_lost_at_the_commit_isnt_told_as_nothing_changed(
    new_hub: Callable[..., str], tmp_path: Path
) -> None:
    url = new_hub("postgresql")
    plan = plan_for(url)

    def lose(connection: sa.Connection) -> None:
        if connection.in_transaction() and list((tmp_path / "undo").glob("undo-*")):
            raise sa.exc.OperationalError("COMMIT", None, Exception("server closed the connection"))

    sa.event.listen(sa.Engine, "commit", lose)
    try:
        with pytest.raises(OfflineRefused, match="unknown whether it kept the changes") as raised:
            apply(url, plan, tmp_path / "undo")
    finally:
        sa.event.remove(sa.Engine, "commit", lose)
    assert "Nothing was changed" not in str(raised.value)


def test_an_undo_file_that_was_changed_brings_nobody_back(new_hub: Callable[[], str], tmp_path: Path) -> None:
    url = new_hub()
    applied = apply(url, plan_for(url), tmp_path / "undo")
    left = dump(url)
    assert applied.undo_file is not None
    applied.undo_file.write_bytes(applied.undo_file.read_bytes().replace(b"claim-", b"claim_", 1))
    with pytest.raises(UndoError):
        restore(url, applied)
    assert dump(url) == left


def test_an_undo_file_of_another_database_is_refused_unless_asked_for(
    new_hub: Callable[[], str], tmp_path: Path
) -> None:
    url, other = new_hub(), new_hub()
    applied = apply(url, plan_for(url), tmp_path / "undo")
    left = dump(other)
    with pytest.raises(OfflineRefused, match="isn't the one that the undo file was made of.*--from-other-database"):
        restore(other, applied)
    assert dump(other) == left
    told = restore(other, applied, from_other_database=True)
    assert set(told.restored) | {name for name, _ in told.skipped} == set(applied.deleted)


def test_a_server_comes_back_as_stopped_whatever_the_undo_file_says_it_ran_as(
    new_hub: Callable[[], str], tmp_path: Path
) -> None:
    """By now that row of the hub's servers may be somebody else's: the hub would take their server for this user's."""
    url = new_hub()
    applied = apply(url, plan_for(url), tmp_path / "undo")
    assert applied.undo_file is not None
    head, users = undo_file.read(applied.undo_file)
    forged = [
        user
        if user.rows is None or "spawners" not in user.rows
        else replace(
            user, rows={**user.rows, "spawners": tuple({**row, "server_id": 4000} for row in user.rows["spawners"])}
        )
        for user in users
    ]
    written = undo_file.write(tmp_path / "forged", head, forged)
    execute(url, "INSERT INTO servers (id, port) VALUES (4000, 1)")

    restored = restore(url, replace(applied, undo_file=written.path, undo_sha256=None))

    assert restored.rows["spawners"]
    assert ask(url, "SELECT count(*) FROM spawners WHERE server_id = 4000") == [(0,)]


def test_nobody_comes_back_as_an_admin(new_hub: Callable[[], str], tmp_path: Path) -> None:
    url = new_hub()
    applied = apply(url, plan_for(url), tmp_path / "undo")
    assert applied.undo_file is not None
    head, users = undo_file.read(applied.undo_file)
    forged = []
    for user in users:
        rows = dict(user.rows or {})
        rows["users"] = tuple({**row, "admin": True} for row in rows.get("users", ()))
        forged.append(replace(user, rows=rows))
    written = undo_file.write(tmp_path / "forged", head, forged)
    assert restore(url, replace(applied, undo_file=written.path, undo_sha256=None)).restored
    admins = {name for (name,) in ask(url, "SELECT name FROM users WHERE admin")}
    assert not admins & set(applied.deleted)


def forged(applied: Applied, folder: Path, change: Callable[[UndoUser, dict[str, Any]], list[UndoUser]]) -> Applied:
    """Its undo file, with what ``change`` makes of each user and their rows: every checksum in it is right."""
    assert applied.undo_file is not None
    head, users = undo_file.read(applied.undo_file)
    changed = [one for user in users for one in change(user, dict(user.rows or {}))]
    return replace(applied, undo_file=undo_file.write(folder / "forged", head, changed).path, undo_sha256=None)


def users_row(user: UndoUser, rows: dict[str, Any], **columns: Any) -> list[UndoUser]:
    return [replace(user, rows={**rows, "users": tuple({**row, **columns} for row in rows.get("users", ()))})]


def with_rows(user: UndoUser, rows: dict[str, Any], *, of_nobody: bool = False, **more: Any) -> list[UndoUser]:
    return [user if bool(user.name) == of_nobody else replace(user, rows={**rows, **more})]


@pytest.mark.parametrize(
    "change",
    [
        pytest.param(lambda user, _: [user, user] if user.name else [user], id="a user twice"),
        pytest.param(lambda user, rows: users_row(user, rows, name="stranger"), id="another's row"),
        pytest.param(
            lambda user, rows: with_rows(user, rows, users=({**rows.get("users", ({},))[0], "name": "x"},) * 2),
            id="two rows",
        ),
        *(
            pytest.param(lambda user, rows, id_=id_: users_row(user, rows, id=id_), id=f"the id {id_!r}")
            for id_ in (None, "7", 1.5, True, 2**70)
        ),
        pytest.param(lambda user, rows: users_row(user, rows, created="yesterday"), id="no time"),
        pytest.param(lambda user, rows: users_row(user, rows, state="\ud800"), id="no text"),
        pytest.param(lambda user, rows: with_rows(user, rows, users=({"name": user.name},)), id="no cookie"),
        pytest.param(lambda user, rows: with_rows(user, rows, user_role_map=({"user_id": 1},)), id="no role"),
        pytest.param(lambda user, rows: with_rows(user, rows, spawners=({"id": 1},)), id="a spawner of nobody's"),
        pytest.param(lambda user, rows: with_rows(user, rows, api_tokens=({"id": 1},)), id="a token without a hash"),
        pytest.param(
            lambda user, rows: with_rows(user, rows, of_nobody=True, named=({"table": "x", "id": 1, "name": "x"},)),
            id="a name in no table",
        ),
        pytest.param(
            lambda user, rows: with_rows(user, rows, of_nobody=True, named=({"table": "users", "name": "x"},)),
            id="a name without an id",
        ),
    ],
)
def test_rows_that_hubguard_never_writes_keep_everybody_away_whatever_the_checksum_says(
    new_hub: Callable[[], str], tmp_path: Path, change: Callable[[UndoUser, dict[str, Any]], list[UndoUser]]
) -> None:
    url = new_hub()
    applied = apply(url, plan_for(url), tmp_path / "undo")
    before = dump(url)
    with pytest.raises(UndoError, match="as HubGuard never writes it"):
        restore(url, forged(applied, tmp_path, change))
    assert dump(url) == before


def test_an_undo_file_that_nothing_vouches_for_gives_nobody_access_as_others(
    new_hub: Callable[[], str], tmp_path: Path
) -> None:
    """Tokens of people and services who are there, and shares of their servers."""
    url = new_hub()
    applied = apply(url, plan_for(url), tmp_path / "undo")
    ((victim_id, victim, spawner_id, spawner),) = ask(
        url,
        "SELECT users.id, users.name, spawners.id, spawners.name FROM users JOIN spawners ON user_id = users.id LIMIT 1",
    )
    ((service_id, service),) = ask(url, "SELECT id, name FROM services WHERE name = 'cull'")
    assert applied.undo_file is not None
    _, users = undo_file.read(applied.undo_file)
    token = next(row for user in users for row in (user.rows or {}).get("api_tokens", ()))
    evil = [
        {**token, "id": 8001, "hashed": "evil-1", "client_id": "jupyterhub", "user_id": victim_id, "service_id": None},
        {**token, "id": 8002, "hashed": "evil-2", "client_id": "jupyterhub", "user_id": None, "service_id": service_id},
    ]
    names = (
        {"table": "users", "id": victim_id, "name": victim},
        {"table": "services", "id": service_id, "name": service},
        {"table": "spawners", "id": spawner_id, "name": spawner, "user_id": victim_id},
    )
    share = {"id": 8003, "created_at": str(LAST_USED), "group_id": None, "scopes": "[]", "expires_at": None}
    share.update(owner_id=victim_id, spawner_id=spawner_id)

    def change(user: UndoUser, rows: dict[str, Any]) -> list[UndoUser]:
        if not user.name:
            more = {"named": (*rows.get("named", ()), *names), "api_tokens": (*rows.get("api_tokens", ()), *evil)}
            return with_rows(user, rows, of_nobody=True, **more)
        shares = ({**share, "user_id": rows["users"][0]["id"]},) * (user.name == applied.deleted[0])
        return with_rows(user, rows, api_tokens=(*rows.get("api_tokens", ()), *evil), shares=shares)

    restored = restore(url, forged(applied, tmp_path, change))

    assert restored.restored
    assert ask(url, "SELECT count(*) FROM api_tokens WHERE hashed LIKE 'evil-%'") == [(0,)]
    assert ask(url, "SELECT count(*) FROM shares WHERE id = 8003") == [(0,)]
    assert any("nothing vouches for the undo file" in note for note in restored.notes)


@pytest.mark.parametrize("map_", ["user_role_map", "group_role_map", "service_role_map"])
def test_no_undo_file_gives_a_role_to_anybody_who_is_there(
    new_hub: Callable[[], str], tmp_path: Path, map_: str
) -> None:
    """As a row that led nowhere, though both ends are there."""
    url = new_hub()
    applied = apply(url, plan_for(url), tmp_path / "undo")
    kind = map_.partition("_")[0]
    ((admin_id,),) = ask(url, "SELECT id FROM roles WHERE name = 'admin'")
    (id_, name), *_ = ask(
        url,
        f"SELECT id, name FROM {kind}s WHERE id NOT IN (SELECT {kind}_id FROM {map_} WHERE role_id = {admin_id})",
    )
    before = dump(url)[map_]
    names = ({"table": f"{kind}s", "id": id_, "name": name}, {"table": "roles", "id": admin_id, "name": "admin"})
    row = {f"{kind}_id": id_, "role_id": admin_id, "managed_by_auth": False}

    def change(user: UndoUser, rows: dict[str, Any]) -> list[UndoUser]:
        if user.name:
            return []
        return [replace(user, rows={**rows, "named": (*rows.get("named", ()), *names), map_: (row,)})]

    restore(url, forged(applied, tmp_path, change))

    assert dump(url)[map_] == before


def test_without_room_for_the_undo_file_nothing_is_deleted(new_hub: Callable[[], str], tmp_path: Path) -> None:
    url = new_hub()
    (tmp_path / "undo").write_text("not a folder")
    before, plan = dump(url), plan_for(url)
    with pytest.raises(UndoError):
        apply(url, plan, tmp_path / "undo")
    assert dump(url) == before
    assert not list(Path(sa.make_url(url).database or "").parent.glob("*before-prune*"))


def test_what_other_tables_say_stays_and_is_told(new_hub: Callable[[], str], tmp_path: Path) -> None:
    url = new_hub()
    execute(url, "CREATE TABLE users_info (username TEXT)", "CREATE TABLE mine (x TEXT)")
    plan = plan_for(url)
    assert any("users_info (NativeAuthenticator's" in sentence for sentence in plan.lost), "and told before"
    notes = " ".join(apply(url, plan, tmp_path / "undo").notes)
    assert "mine" in notes
    assert "users_info (NativeAuthenticator's" in notes
    assert "volumes" in notes


# -- killed on the way ----------------------------------------------------------------------------------------------------

KILLED = """
import os, signal, sys, json
from datetime import datetime
from pathlib import Path
import sqlalchemy as sa
from hubguard.prune.decide.plan import from_dict
from hubguard.prune.offline import apply_offline, restore_offline
from hubguard.prune.model import Protection

def events(left):
    def step(*_, **__):
        left[0] -= 1
        if left[0] == 0:
            os.kill(os.getpid(), signal.SIGKILL)
    for name in ("before_cursor_execute", "after_cursor_execute", "commit"):
        sa.event.listen(sa.Engine, name, step)
    for name in ("fsync", "link", "open", "unlink"):
        def wrapped(*args, _was=getattr(os, name), **options):
            step()
            return _was(*args, **options)
        setattr(os, name, wrapped)
    sys.addaudithook(lambda name, _: step() if name == "sqlite3.connect" else None)

order = json.load(sys.stdin)
now = datetime.fromisoformat(order["now"])
at = 0
while True:
    at += 1
    Path(order["file"]).write_bytes(Path(order["template"]).read_bytes())
    child = os.fork()
    if not child:
        left = [at]
        events(left)
        if order["undo"]:
            restore_offline(order["url"], Path(), Path(order["undo"]), with_tokens=True, now=lambda: now, hub_api_url=None,
                acknowledged=order["unseen"])
        else:
            plan = from_dict(order["plan"])
            apply_offline(order["url"], Path(), plan, count=len(plan.deletions), protection=Protection(),
                acknowledged=[*(c.name for c in plan.cautions), *order["unseen"]],
                undo_folder=Path(order["folder"]) / str(at), now=lambda: now, actor="x", hub_api_url=None)
        os._exit(0)
    _, status = os.waitpid(child, 0)
    print(status, flush=True)
    with sa.create_engine(order["url"], poolclass=sa.NullPool).connect() as connection:
        tables = sorted(sa.inspect(connection).get_table_names())
        rows = {t: sorted(str(r) for r in connection.exec_driver_sql(f'SELECT * FROM "{t}"').all()) for t in tables}
    print(json.dumps(rows), flush=True)
    whole = any(Path(order["folder"]).glob(f"{at}/undo-*.jsonl"))
    print(json.dumps(whole), flush=True)
    for leftover in Path(order["file"]).parent.glob("jupyterhub.sqlite*"):
        leftover.unlink()
    if status == 0:
        break
"""


@pytest.mark.long
@pytest.mark.parametrize("what", ["apply", "restore"])
def test_killed_at_any_step_the_database_is_as_before_or_as_after(
    new_hub: Callable[[], str], tmp_path: Path, what: str
) -> None:
    url = new_hub()
    file = Path(sa.make_url(url).database or "")
    plan = plan_for(url, housekeeping=True)
    undo = None
    if what == "restore":
        undo = str(apply(url, plan, tmp_path / "done").undo_file)
    template = Path(shutil.copy(file, tmp_path / "template.sqlite"))
    order = {
        "url": url,
        "file": str(file),
        "template": str(template),
        "folder": str(tmp_path),
        "now": NOW.isoformat(),
        "plan": to_dict(plan),
        "undo": undo,
        "unseen": UNSEEN,
    }
    ran = subprocess.run(
        [sys.executable, "-c", KILLED],
        input=json.dumps(order),
        capture_output=True,
        text=True,
        check=False,
        timeout=280,
    )
    assert ran.returncode == 0, ran.stderr
    lines = [json.loads(line) for line in ran.stdout.splitlines()]
    steps = [tuple(lines[first : first + 3]) for first in range(0, len(lines), 3)]
    before, after = steps[0][1], steps[-1][1]
    assert len(steps) > 30
    assert before != after
    assert {status for status, _, _ in steps[:-1]} == {signal.SIGKILL}
    assert steps[-1][0] == 0
    for _, rows, whole in steps:
        assert rows in (before, after)
        assert rows == before or what == "restore" or whole
