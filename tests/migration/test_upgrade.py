"""Upgrading leads to the declared tables, whoever opens the journal at once, and never touches what isn't HubGuard's."""

from __future__ import annotations

import os
import subprocess
import sys
import threading
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
import sqlalchemy as sa
from alembic import command
from alembic.autogenerate import compare_metadata
from alembic.operations import Operations
from alembic.runtime.migration import MigrationContext
from alembic.script import ScriptDirectory
from sqlalchemy.schema import CreateIndex, CreateTable

from hubguard.errors import JournalError
from hubguard.journal import migrate, tables
from hubguard.journal.database import Database
from hubguard.journal.model import Event
from hubguard.journal.store import open_journal
from hubguard.prune.store import PruneStore
from hubguard.snapshot.store import ActivityStore

pytestmark = pytest.mark.contract


def engine(url: str) -> sa.Engine:
    return sa.create_engine(url, poolclass=sa.NullPool)


def table_names(url: str) -> set[str]:
    with engine(url).connect() as connection:
        return set(sa.inspect(connection).get_table_names())


def run_sql(url: str, *statements: str) -> None:
    with engine(url).begin() as connection:
        for statement in statements:
            connection.exec_driver_sql(statement)


def test_upgrading_an_empty_database_gives_exactly_the_declared_tables(database_url: str) -> None:
    database = Database(database_url)
    migrate.upgrade(database)
    with database.reading() as connection:
        options = {"version_table": tables.VERSION_TABLE, "compare_type": True}
        context = MigrationContext.configure(connection, opts=options)
        assert compare_metadata(context, tables.metadata) == []
        assert set(sa.inspect(connection).get_table_names()) == {*tables.metadata.tables, tables.VERSION_TABLE}
    database.close()


def test_every_table_of_ours_can_be_told_from_others_by_its_name() -> None:
    assert all(name.startswith(tables.PREFIX) for name in [*tables.metadata.tables, tables.VERSION_TABLE])


@pytest.mark.parametrize("name", ["mysql", "mariadb"])
def test_mysql_is_given_the_declared_tables_too(monkeypatch: pytest.MonkeyPatch, name: str) -> None:
    """No MySQL is at hand: at least what it would be told is the same from the migrations and from the declared tables.

    So is MariaDB under its own name, by which SQLAlchemy takes other options than for MySQL.
    """
    dialect = sa.make_url(f"{name}+pymysql://host/journal").get_dialect()()
    assert dialect.name == name
    declared = [str(CreateTable(table).compile(dialect=dialect)) for table in tables.metadata.tables.values()]
    assert [one for one in declared if "ENGINE=InnoDB" not in one or "CHARSET=utf8mb4" not in one] == []
    indexes = [index for table in tables.metadata.tables.values() for index in table.indexes]
    declared += [str(CreateIndex(index).compile(dialect=dialect)) for index in indexes]

    told: list[str] = []
    context = MigrationContext.configure(dialect_name=name, opts={"as_sql": True})
    monkeypatch.setattr(context.impl, "static_output", told.append)
    scripts = ScriptDirectory.from_config(migrate.alembic_config())
    with Operations.context(context):
        for script in reversed(list(scripts.walk_revisions())):
            script.module.upgrade()

    def plain(statements: list[str], wanted: str = "CREATE") -> list[str]:
        flat = [" ".join(one.split()).rstrip("; ") for one in statements]
        return [one for one in flat if one.startswith(wanted)]

    made = plain(told)
    for change in plain(told, "ALTER TABLE"):
        table, column = change.removeprefix("ALTER TABLE ").split(" ADD COLUMN ")
        # A column that came later is the last one.
        made = [
            one.replace(", PRIMARY KEY", f", {column}, PRIMARY KEY")
            if one.startswith(f"CREATE TABLE {table} ")
            else one
            for one in made
        ]
    assert set(made) == set(plain(declared))
    assert any("DATETIME(6)" in one and "utf8mb4_bin" in one for one in declared)


def test_opening_again_changes_nothing_and_keeps_what_was_recorded(database_url: str) -> None:
    from datetime import datetime, timezone

    first = open_journal(database_url)
    first.hold("ann", "exam", datetime(2025, 3, 1, tzinfo=timezone.utc))
    first.close()
    second = open_journal(database_url)
    assert second.stance().held
    assert len(second.entries()) == 1
    second.close()


def test_eight_threads_that_open_an_empty_journal_at_once_all_get_it(database_url: str) -> None:
    gate = threading.Barrier(8)

    def opens() -> bool:
        gate.wait(30)
        journal = open_journal(database_url)
        held = journal.stance().held
        journal.close()
        return held

    with ThreadPoolExecutor(8) as pool:
        assert [job.result() for job in [pool.submit(opens) for _ in range(8)]] == [False] * 8
    with engine(database_url).connect() as connection:
        assert len(connection.exec_driver_sql("SELECT * FROM hubguard_version").all()) == 1
        assert len(connection.exec_driver_sql("SELECT * FROM hubguard_stance").all()) == 1


def test_eight_threads_that_open_journals_of_their_own_at_once_do_not_mix_them_up() -> None:
    """Alembic keeps the upgrade that is under way in its module: two at once would write into each other's database."""
    gate = threading.Barrier(8)

    def opens() -> int:
        gate.wait(30)
        journal = open_journal("sqlite://")
        entries = len(journal.entries())
        journal.close()
        return entries

    with ThreadPoolExecutor(8) as pool:
        assert [job.result() for job in [pool.submit(opens) for _ in range(8)]] == [0] * 8


OPEN = """
import sys
from hubguard.journal.model import Event
from hubguard.journal.store import open_journal
print("ready", flush=True)
sys.stdin.readline()
journal = open_journal(sys.argv[1])
print(journal.stance().held)
journal.close()
"""


def test_processes_that_open_an_empty_journal_at_once_all_get_it(database_url: str) -> None:
    command = [sys.executable, "-W", "error", "-c", OPEN, database_url]
    pipes = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE, "stderr": subprocess.PIPE, "text": True}
    openers = [subprocess.Popen(command, **pipes) for _ in range(3)]  # type: ignore[call-overload]
    try:
        for opener in openers:
            assert opener.stdout.readline() == "ready\n"
        for opener in openers:
            opener.stdin.write("\n")
            opener.stdin.flush()
        answers = [opener.communicate(timeout=60) for opener in openers]
    finally:
        for opener in openers:
            if opener.poll() is None:
                opener.kill()
                opener.communicate()
    assert answers == [("False\n", "")] * 3


def test_an_upgrade_that_fails_halfway_leaves_the_database_empty(
    database_url: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fails(_conn: object, _cursor: object, statement: str, *_: object) -> None:
        if "hubguard_entry_outcome" in statement:
            raise sa.exc.OperationalError(statement, {}, Exception("database or disk is full"))

    sa.event.listen(sa.Engine, "before_cursor_execute", fails)
    try:
        with pytest.raises(JournalError, match="is full"):
            open_journal(database_url)
    finally:
        sa.event.remove(sa.Engine, "before_cursor_execute", fails)
    assert table_names(database_url) == set()
    open_journal(database_url).close()


def at_revision(url: str, revision: str) -> None:
    """The database is as an older HubGuard has left it."""
    database = Database(url)
    database.make_file()
    config = migrate.alembic_config()
    with database.writing() as connection:
        config.attributes["connection"] = connection
        command.upgrade(config, revision)
    database.close()


OLD_ENTRY = (
    "INSERT INTO hubguard_entry (at, event, actor, fence, detail) "
    "VALUES ('2025-03-01 12:00:00.000000', 'held', 'ann', 0, 'exam')"
)


def test_upgrading_the_first_tables_keeps_what_they_hold_and_adds_the_rest(database_url: str) -> None:
    at_revision(database_url, "0001")
    run_sql(database_url, OLD_ENTRY, "UPDATE hubguard_stance SET armed = (1 = 1), armed_by = 'bo'")
    assert table_names(database_url) < {*tables.metadata.tables, tables.VERSION_TABLE}
    journal = open_journal(database_url)
    assert [(entry.actor, entry.detail) for entry in journal.entries()] == [("ann", "exam")]
    assert (journal.stance().armed, journal.stance().armed_by) == (True, "bo")
    assert (
        ActivityStore(journal).activity(),
        journal.recall("pace"),
        PruneStore(journal).prune_runs(),
    ) == ({}, None, ())
    journal.close()
    assert table_names(database_url) == {*tables.metadata.tables, tables.VERSION_TABLE}


def note_of_0003(at: str, detail: str) -> str:
    return (
        "INSERT INTO hubguard_entry (at, event, actor, fence, user_name, server_name, detail) "
        f"VALUES ('{at}', 'note', 'hubguard', 1, 'ann', '', '{detail}')"
    )


def test_what_earlier_versions_wrote_into_sentences_is_data_afterwards(database_url: str) -> None:
    at_revision(database_url, "0003")
    announced = "would be stopped now, but HubGuard only observes: nobody has armed it"
    undo = "undo file /srv/undo/undo-2026.jsonl (SHA-256 " + "ab" * 32 + ")"
    run_sql(
        database_url,
        note_of_0003("2026-03-01 12:00:00.000000", announced),
        note_of_0003("2026-03-01 12:00:01.000000", f"The offline plan 0123: 3 deleted, 1 kept, {undo}"),
        note_of_0003("2026-03-01 12:00:02.000000", "left alone at the second look: it would be stopped now"),
    )
    journal = open_journal(database_url)
    events = [entry.event for entry in reversed(journal.entries())]
    assert events == [Event.ANNOUNCED, Event.NOTE, Event.NOTE]
    assert journal.entries(event=Event.ANNOUNCED)[0].detail == announced
    remembered = journal.recall("undo-file undo-2026.jsonl")
    assert remembered is not None
    assert remembered[0] == {"sha256": "ab" * 32}
    journal.close()


def test_entries_of_plans_that_earlier_versions_wrote_name_their_plan_afterwards(database_url: str) -> None:
    at_revision(database_url, "0005")
    digest, at = "ab" * 32, "2026-03-01 12:00:00.000000"
    columns = "(at, event, actor, fence, user_name, server_name, detail, refers_to)"
    run_sql(
        database_url,
        "INSERT INTO hubguard_prune (digest, plan, state, actor, asked_why, why, scheduled, user_count, made_at, expires_at,"
        f" turned_at, restored, acknowledged) VALUES ('{digest}', '', 'paused', 'ada', '', '', (1 = 0), 1, '{at}', '{at}',"
        f" '{at}', 0, '[]')",
        f"INSERT INTO hubguard_entry {columns} VALUES ('{at}', 'intent', 'ada', 1, 'ann', '', 'plan {digest[:12]}', NULL)",
        f"INSERT INTO hubguard_entry {columns} VALUES ('{at}', 'outcome', 'ada', 1, 'ann', '', 'gone', 1)",
        f"INSERT INTO hubguard_entry {columns} VALUES ('{at}', 'intent', 'ada', 1, 'bob', '', 'plan {'c' * 12}', NULL)",
    )
    journal = open_journal(database_url)
    assert [entry.plan for entry in journal.entries()] == [None, digest, digest]
    assert [entry.user for entry in journal.entries(plan=digest[:12])] == ["ann", "ann"]
    journal.close()


def test_an_upgrade_of_the_first_tables_that_fails_halfway_leaves_them_to_the_older_version(
    database_url: str,
) -> None:
    at_revision(database_url, "0001")
    run_sql(database_url, OLD_ENTRY)
    before = table_names(database_url)

    def fails(_conn: object, _cursor: object, statement: str, *_: object) -> None:
        if "CREATE TABLE hubguard_memory" in statement:
            raise sa.exc.OperationalError(statement, {}, Exception("database or disk is full"))

    sa.event.listen(sa.Engine, "before_cursor_execute", fails)
    try:
        with pytest.raises(JournalError, match="is full"):
            open_journal(database_url)
    finally:
        sa.event.remove(sa.Engine, "before_cursor_execute", fails)
    assert table_names(database_url) == before
    assert migrate.revisions(database_url)[0] == "0001"
    journal = open_journal(database_url)
    assert len(journal.entries()) == 1
    journal.close()


def test_a_database_of_a_newer_revision_is_refused_naming_both_and_left_alone(database_url: str) -> None:
    open_journal(database_url).close()
    run_sql(database_url, "UPDATE hubguard_version SET version_num = '9999'")
    newest = migrate.newest_revision()
    with pytest.raises(JournalError, match=f"is at revision 9999, .*knows none after {newest}") as error:
        open_journal(database_url)
    assert "\n" not in str(error.value)
    assert migrate.revisions(database_url) == ("9999", newest)


def test_a_hubs_own_database_is_refused_and_not_changed_by_a_byte(tmp_path: Path) -> None:
    from jupyterhub import orm

    path = tmp_path / "jupyterhub.sqlite"
    orm.new_session_factory(f"sqlite:///{path}").kw["bind"].dispose()
    before, when = path.read_bytes(), path.stat().st_mtime_ns
    with pytest.raises(JournalError, match="is the database of a JupyterHub"):
        open_journal(f"sqlite:///{path}")
    assert (path.read_bytes(), path.stat().st_mtime_ns) == (before, when)
    assert os.listdir(tmp_path) == ["jupyterhub.sqlite"]


@pytest.mark.parametrize(
    "statements",
    [
        ["CREATE TABLE users (id INTEGER)", "CREATE TABLE spawners (id INTEGER)"],
        ["CREATE TABLE spawners (id INTEGER)", "CREATE TABLE api_tokens (id INTEGER)"],
        [
            "CREATE TABLE alembic_version (version_num VARCHAR(32))",
            "INSERT INTO alembic_version VALUES ('4621fec11365')",
        ],
    ],
)
def test_whatever_looks_like_a_hubs_database_is_refused(database_url: str, statements: list[str]) -> None:
    run_sql(database_url, *statements)
    before = table_names(database_url)
    with pytest.raises(JournalError, match="is the database of a JupyterHub"):
        open_journal(database_url)
    assert table_names(database_url) == before


def test_a_file_of_another_program_is_refused_and_left_alone(tmp_path: Path) -> None:
    url = f"sqlite:///{tmp_path}/books.sqlite"
    run_sql(url, "CREATE TABLE books (id INTEGER)")
    with pytest.raises(JournalError, match="belongs to another program .*books"):
        open_journal(url)
    assert table_names(url) == {"books"}


def test_a_postgresql_database_is_shared_with_another_program_that_uses_alembic_and_has_users(
    postgresql_url: str,
) -> None:
    run_sql(
        postgresql_url,
        "CREATE TABLE users (id INTEGER)",
        "CREATE TABLE alembic_version (version_num VARCHAR(32))",
        "INSERT INTO alembic_version VALUES ('abcdef')",
    )
    open_journal(postgresql_url).close()
    assert {"users", "alembic_version", *tables.metadata.tables} <= table_names(postgresql_url)
    with engine(postgresql_url).connect() as connection:
        assert connection.exec_driver_sql("SELECT version_num FROM alembic_version").scalar() == "abcdef"


def test_tables_of_ours_without_a_revision_are_refused_rather_than_guessed_at(database_url: str) -> None:
    open_journal(database_url).close()
    run_sql(database_url, "DROP TABLE hubguard_version")
    before = table_names(database_url)
    with pytest.raises(JournalError, match="no revision"):
        open_journal(database_url)
    assert table_names(database_url) == before


def test_asking_for_the_revision_makes_no_file(tmp_path: Path) -> None:
    assert migrate.revisions(f"sqlite:///{tmp_path}/none.sqlite") == (None, migrate.newest_revision())
    assert os.listdir(tmp_path) == []


def test_asking_for_the_revision_tells_what_an_upgrade_has_reached(database_url: str) -> None:
    assert migrate.revisions(database_url) == (None, migrate.newest_revision())
    open_journal(database_url).close()
    assert migrate.revisions(database_url) == (migrate.newest_revision(), migrate.newest_revision())


def test_no_revision_offers_a_way_back() -> None:
    """A downgrade would drop what was recorded. Restoring a backup is the way back."""
    revisions = list(ScriptDirectory.from_config(migrate.alembic_config()).walk_revisions())
    assert revisions
    assert [script.revision for script in revisions if hasattr(script.module, "downgrade")] == []


def test_the_migrations_are_found_by_an_absolute_path_even_where_only_the_checkout_is_there(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    installed = migrate.migrations_folder()
    monkeypatch.setattr(migrate, "find_spec", lambda name: None)
    checkout = migrate.migrations_folder()
    for folder in (installed, checkout):
        assert folder.is_absolute()
        assert (folder / "env.py").is_file()
