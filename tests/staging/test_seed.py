"""Seeding a hub's database: what is written is what was asked for, and nothing that lives is ever written to."""

from __future__ import annotations

import json
import sqlite3
import sys
from pathlib import Path

import pytest
from builders import NOW

from hubguard.errors import HubGuardError
from hubguard.staging import seed as staging_seed
from hubguard.staging.population import AWKWARD_NAMES, DAY_S, Population, SeededServer, SeededUser, made_up
from hubguard.staging.seed import order, seed, write

pytestmark = pytest.mark.hub


@pytest.fixture
def url(tmp_path: Path) -> str:
    return f"sqlite:///{tmp_path / 'hub.sqlite'}"


def rows(url: str, query: str) -> list[tuple[object, ...]]:
    connection = sqlite3.connect(url.removeprefix("sqlite:///"))
    try:
        return connection.execute(query).fetchall()
    finally:
        connection.close()


def schema(url: str) -> set[tuple[object, ...]]:
    return set(rows(url, "SELECT type, name, sql FROM sqlite_master"))


@pytest.mark.long
def test_a_seeded_database_has_the_tables_and_the_revision_that_the_hub_makes(url: str, tmp_path: Path) -> None:
    import subprocess

    other = f"sqlite:///{tmp_path / 'other.sqlite'}"
    made_by_the_hub = f"from jupyterhub import orm; orm.new_session_factory({other!r})"
    subprocess.run([sys.executable, "-c", made_by_the_hub], check=True, capture_output=True)
    write(url, Population())
    assert schema(url) == schema(other)
    revision = "SELECT version_num FROM alembic_version"
    assert rows(url, revision) == rows(other, revision)


def test_ten_thousand_users_are_written_and_counted(url: str) -> None:
    done = seed(url, users=10_000, running=3000, groups=20, named=100)
    assert (done.users, done.groups, done.running, done.named) == (10_000, 20, 3000, 100)
    assert rows(url, "SELECT count(*) FROM users") == [(10_000,)]
    assert rows(url, "SELECT count(*) FROM servers") == [(3000,)]
    assert rows(url, "SELECT count(*) FROM spawners WHERE server_id IS NOT NULL AND name <> ''") == [(100,)]
    assert rows(url, "SELECT count(DISTINCT server_id) FROM spawners") == [(3000,)]


def test_the_same_number_makes_the_same_population_and_another_makes_another() -> None:
    def made(number: int) -> Population:
        return made_up(users=300, running=40, groups=5, named=7, number=number)

    assert made(1) == made(1)
    assert made(1) != made(2)


def test_ages_are_counted_back_from_now_in_naive_utc(url: str) -> None:
    server = SeededServer("ann", idle_for_s=120, age_s=600)
    write(url, Population((SeededUser("ann", created_s=DAY_S),), (server,)), now=NOW)
    assert rows(url, "SELECT started, last_activity FROM spawners") == [
        ("2026-11-21 11:50:00.000000", "2026-11-21 11:58:00.000000")
    ]
    assert rows(url, "SELECT created, last_activity FROM users") == [
        ("2026-11-20 12:00:00.000000", "2026-11-21 11:58:00.000000")
    ]


def test_never_active_is_unknown_and_not_long_ago(url: str) -> None:
    write(url, Population((SeededUser("ann"),), (SeededServer("bob", idle_for_s=None),)))
    assert rows(url, "SELECT last_activity FROM users") == [(None,), (None,)]
    assert rows(url, "SELECT last_activity FROM spawners") == [(None,)]


def test_admins_and_groups_are_what_the_hub_would_have_made_of_them(url: str) -> None:
    write(
        url, Population((SeededUser("ann", admin=True, groups=("staff", "2026")), SeededUser("bob", groups=("2026",))))
    )
    assert rows(
        url,
        "SELECT u.name, r.name FROM users u JOIN user_role_map m ON m.user_id = u.id JOIN roles r ON r.id = m.role_id"
        " ORDER BY 1, 2",
    ) == [("ann", "admin"), ("ann", "user"), ("bob", "user")]
    assert rows(
        url,
        "SELECT u.name, g.name FROM users u JOIN user_group_map m ON m.user_id = u.id JOIN groups g ON g.id = m.group_id"
        " ORDER BY 1, 2",
    ) == [("ann", "2026"), ("ann", "staff"), ("bob", "2026")]


def test_awkward_names_arrive_as_they_are_and_quoted_in_the_url(url: str) -> None:
    population = Population((), tuple(SeededServer(name) for name in AWKWARD_NAMES))
    write(url, population, hub_prefix="/jupyter/")
    assert {name for (name,) in rows(url, "SELECT name FROM users")} == set(AWKWARD_NAMES)
    prefixes = [str(prefix) for (prefix,) in rows(url, "SELECT base_url FROM servers")]
    assert len(set(prefixes)) == len(AWKWARD_NAMES)
    for prefix in prefixes:
        assert prefix.startswith("/jupyter/user/")
        assert prefix.endswith("/")
        assert prefix.count("/") == 4, "a slash in a name is not a slash in the path"
        assert prefix.isascii()
        assert not set(prefix) & set('?#"< ')


def test_behaviour_reaches_the_spawner_as_user_options(url: str) -> None:
    write(url, Population((), (SeededServer("ann", on_stop="raises", stop_s=2.5, shared=False),)))
    [(options, state)] = rows(url, "SELECT user_options, state FROM spawners")
    assert json.loads(str(options)) == {"shared": False, "start_s": 0.0, "stop_s": 2.5, "on_stop": "raises"}
    assert json.loads(str(state)) == {"seeded": True, "shared": False}


def test_a_database_with_users_is_refused_and_left_as_it_is(url: str) -> None:
    seed(url, users=3)
    before = rows(url, "SELECT * FROM users")
    with pytest.raises(HubGuardError, match="holds 3 users already"):
        seed(url, users=5)
    assert rows(url, "SELECT * FROM users") == before


@pytest.mark.skipif(sys.platform != "linux", reason="who has a file open is told by /proc")
def test_a_database_that_somebody_has_open_is_refused(url: str) -> None:
    import subprocess

    write(url, Population())
    file = url.removeprefix("sqlite:///")
    hold = f"import sqlite3, sys; c = sqlite3.connect({file!r}); c.execute('SELECT * FROM users'); print(flush=True); input()"
    with subprocess.Popen([sys.executable, "-c", hold], stdin=subprocess.PIPE, stdout=subprocess.PIPE) as holder:
        assert holder.stdout is not None
        holder.stdout.readline()
        with pytest.raises(HubGuardError, match="in use"):
            seed(url, users=5)
        holder.communicate(b"\n")
    assert rows(url, "SELECT count(*) FROM users") == [(0,)]
    assert seed(url, users=5).users == 5


def test_another_revision_is_refused_with_the_way_out(url: str) -> None:
    write(url, Population())
    connection = sqlite3.connect(url.removeprefix("sqlite:///"))
    connection.execute("UPDATE alembic_version SET version_num = '4621fec11365x'")
    connection.commit()
    connection.close()
    with pytest.raises(HubGuardError, match="jupyterhub upgrade-db"):
        seed(url, users=5)
    assert rows(url, "SELECT count(*) FROM users") == [(0,)]


def test_another_programs_database_is_refused(url: str) -> None:
    connection = sqlite3.connect(url.removeprefix("sqlite:///"))
    connection.executescript(
        "CREATE TABLE alembic_version (version_num VARCHAR(32)); INSERT INTO alembic_version VALUES ('abc');"
    )
    connection.close()
    with pytest.raises(HubGuardError, match="belongs to another program"):
        seed(url, users=5)
    assert len(schema(url)) == 1


@pytest.mark.parametrize(
    "wrong",
    [
        {"users": -1},
        {"users": 1, "running": 2},
        {"users": 5, "running": 2, "named": 3},
        {"users": 0, "running": 1, "named": 1},
    ],
)
def test_numbers_that_do_not_fit_are_refused_before_anything_is_touched(tmp_path: Path, wrong: dict[str, int]) -> None:
    with pytest.raises(HubGuardError):
        seed(f"sqlite:///{tmp_path / 'hub.sqlite'}", **wrong)
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    "population",
    [Population((SeededUser("ann"), SeededUser("ann"))), Population((), (SeededServer("ann"), SeededServer("ann")))],
)
def test_doubles_are_refused(url: str, population: Population) -> None:
    with pytest.raises(HubGuardError, match="listed twice"):
        write(url, population)


@pytest.mark.parametrize("wrong", ["", "nonsense", "nosuchdb://x/y", "sqlite:////nowhere/at/all/hub.sqlite"])
def test_an_unusable_url_is_one_clear_line(wrong: str) -> None:
    with pytest.raises(HubGuardError) as caught:
        seed(wrong, users=1)
    assert "\n" not in str(caught.value)
    assert "database" in str(caught.value)


def test_a_password_is_never_told() -> None:
    with pytest.raises(HubGuardError) as caught:
        seed("postgresql+psycopg://hub:hunter2@127.0.0.1:1/hub", users=1)
    assert "hunter2" not in str(caught.value) + caught.value.detail


def test_the_order_for_another_interpreter_says_all_of_it(
    url: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    import io

    population = Population((SeededUser("ann", groups=("g",)),), (SeededServer("ann", on_stop="hangs"),))
    monkeypatch.setattr(sys, "stdin", io.StringIO(order(url, population, "/p/")))
    assert staging_seed.main() == 0
    assert json.loads(capsys.readouterr().out)["running"] == 1
    assert rows(url, "SELECT base_url FROM servers") == [("/p/user/ann/",)]
    monkeypatch.setattr(sys, "stdin", io.StringIO(order(url, population, "/p/")))
    assert staging_seed.main() == 1
    assert "holds 1 users" in capsys.readouterr().err


def test_tokens_shares_and_what_spawners_keep_are_written_as_a_hub_would_have_them(url: str) -> None:
    volume = {"pvc_name": "claim-ann"}
    people = (
        SeededUser("ann", created_s=DAY_S, tokens=2, token_used_s=60, shared_with=("bob",)),
        SeededUser("bob", tokens=1),
    )
    servers = (SeededServer("ann", idle_for_s=DAY_S, running=False, kept_state=volume),)
    write(url, Population(people, servers), now=NOW)
    assert rows(url, "SELECT user_id, client_id, last_activity FROM api_tokens ORDER BY id") == [
        (1, "jupyterhub", "2026-11-21 11:59:00.000000"),
        (1, "jupyterhub", None),
        (2, "jupyterhub", None),
    ]
    assert rows(url, "SELECT count(DISTINCT hashed) FROM api_tokens") == [(3,)]
    assert rows(url, "SELECT identifier FROM oauth_clients") == [("jupyterhub",)]
    assert rows(url, "SELECT owner_id, user_id, spawner_id, scopes FROM shares") == [
        (1, 2, 1, '["access:servers!server=ann/"]')
    ]
    ((state,),) = rows(url, "SELECT state FROM spawners")
    assert json.loads(str(state)) == volume
