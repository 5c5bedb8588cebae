"""A database that freezes: trouble shows within seconds, and what was said to have failed doesn't happen later."""

from __future__ import annotations

import asyncio
import sqlite3
import threading
import time
from datetime import datetime, timezone
from pathlib import Path

import pytest
import sqlalchemy as sa
from databases import PostgreSQL

from hubguard.errors import HubDBError, InDoubt, JournalError, LeaseLost
from hubguard.hub import read_only
from hubguard.hub.read_only import ReadOnly
from hubguard.journal import asynchronous, database
from hubguard.journal.asynchronous import AsyncJournal
from hubguard.journal.store import open_journal

NOW = datetime(2026, 11, 21, 12, 0, 0, tzinfo=timezone.utc)

pytestmark = pytest.mark.contract


@pytest.fixture(autouse=True)
def _in_a_hurry(monkeypatch: pytest.MonkeyPatch) -> None:
    """The limits are checked for their sum below; waiting for them takes a tenth of the time here."""
    monkeypatch.setattr(database, "SILENT_S", database.SILENT_S / 10)
    for name in ("QUEUE_S", "CALL_S", "SLOW_S", "TRY_AGAIN_S", "BEAT_S"):
        monkeypatch.setattr(asynchronous, name, getattr(asynchronous, name) / 10)


def test_all_limits_together_show_trouble_within_ten_seconds(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.undo()
    assert asynchronous.BEAT_S + database.SILENT_S < asynchronous.CALL_S < 10
    assert database.CONNECT_TIMEOUT_S < database.SILENT_S
    assert database.STATEMENT_TIMEOUT_S < database.SILENT_S
    assert read_only.LONGEST_S + read_only.CONNECT_TIMEOUT_S < 10


async def answers(journal: AsyncJournal) -> None:
    """Returns when the journal has found out that its database answers again."""
    for _ in range(200):
        try:
            await journal.stance()
            return
        except JournalError:
            await asyncio.sleep(0.05)
    raise AssertionError(journal.silent)


async def test_a_hold_that_was_said_to_have_failed_does_not_happen_when_the_database_thaws(
    postgresql: PostgreSQL,
) -> None:
    journal = AsyncJournal(postgresql.url)
    await journal.open()
    try:
        with postgresql.frozen():
            for _ in range(3):
                with pytest.raises(JournalError):
                    await journal.hold("ann", "exam", NOW)
        await answers(journal)
        await asyncio.sleep(0.2)
        assert not (await journal.stance()).held
        assert await journal.entries() == ()
        assert (await journal.hold("ann", "exam", NOW)).held
    finally:
        journal.close()


async def test_with_a_frozen_database_everybody_is_answered_and_most_at_once(postgresql: PostgreSQL) -> None:
    journal = AsyncJournal(postgresql.url)
    await journal.open()
    try:
        with postgresql.frozen():
            told = await asyncio.gather(*(journal.entries() for _ in range(20)), return_exceptions=True)
            assert all(isinstance(one, JournalError) for one in told)
            assert journal.silent
            with pytest.raises(JournalError, match="postgresql at"):
                await journal.entries()
        await answers(journal)
        assert journal.silent == ""
    finally:
        journal.close()


async def test_a_database_that_freezes_while_nobody_asks_is_noticed(postgresql: PostgreSQL) -> None:
    journal = AsyncJournal(postgresql.url)
    await journal.open()
    try:
        with postgresql.frozen():
            for _ in range(200):
                if journal.silent:
                    break
                await asyncio.sleep(0.05)
            assert journal.silent
        for _ in range(200):
            if not journal.silent:
                break
            await asyncio.sleep(0.05)
        assert journal.silent == ""
    finally:
        journal.close()


def test_a_change_in_the_midst_of_which_the_database_freezes_is_undone(postgresql: PostgreSQL) -> None:
    journal = open_journal(postgresql.url)
    try:
        with pytest.raises(JournalError) as raised, journal.writing() as connection:  # noqa: PT012  # it may be the last
            connection.execute(sa.text("UPDATE hubguard_stance SET held = true"))
            with postgresql.frozen():
                connection.execute(sa.text("UPDATE hubguard_stance SET held_by = 'ann'"))
        assert not isinstance(raised.value, InDoubt)
        assert not journal.stance().held
    finally:
        journal.close()


def test_a_commit_without_an_answer_is_said_to_be_in_doubt(postgresql: PostgreSQL) -> None:
    journal = open_journal(postgresql.url)
    stop = postgresql.frozen()
    try:
        with pytest.raises(InDoubt, match="may or may not"), journal.writing() as connection:  # noqa: PT012  # the commit
            connection.execute(sa.text("UPDATE hubguard_stance SET held = true"))
            stop.__enter__()
    finally:
        stop.__exit__(None, None, None)
        journal.close()


def test_reading_the_hubs_database_ends_when_it_freezes(
    postgresql: PostgreSQL, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(read_only, "LONGEST_S", 0.5)
    monkeypatch.setattr(read_only, "CONNECT_TIMEOUT_S", 0.5)
    reader = ReadOnly(postgresql.url, Path())
    with pytest.raises(HubDBError), reader.transaction() as connection:  # noqa: PT012  # the first must work
        connection.execute(sa.text("SELECT 1"))
        with postgresql.frozen():
            connection.execute(sa.text("SELECT 1"))
    with pytest.raises(HubDBError), reader.transaction():  # who waited for it is told at once
        raise AssertionError
    monkeypatch.setattr(reader, "_try_again_at_s", 0.0)
    with reader.transaction() as connection:
        assert connection.execute(sa.text("SELECT 1")).scalar_one() == 1


async def test_a_sqlite_file_that_somebody_locks_is_told_and_nothing_happens_later(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(database, "LOCK_TIMEOUT_S", 0.3)
    journal = AsyncJournal(f"sqlite:///{tmp_path / 'journal.sqlite'}")
    await journal.open()
    other = sqlite3.connect(tmp_path / "journal.sqlite", isolation_level=None)
    try:
        other.execute("BEGIN EXCLUSIVE")
        with pytest.raises(JournalError, match="locked"):
            await journal.hold("ann", "exam", NOW)
        other.execute("ROLLBACK")
        await answers(journal)
        assert not (await journal.stance()).held
    finally:
        other.close()
        journal.close()


async def test_what_still_waits_for_its_turn_when_it_is_given_up_is_never_begun(tmp_path: Path) -> None:
    journal = AsyncJournal(f"sqlite:///{tmp_path / 'journal.sqlite'}")
    await journal.open()
    go, begun = threading.Event(), threading.Event()

    def hang() -> None:
        begun.set()
        go.wait(20)

    try:
        hanging = asyncio.ensure_future(journal.call(hang))
        await asyncio.to_thread(begun.wait, 20)
        with pytest.raises(JournalError, match="Nothing was recorded"):
            await journal.hold("ann", "exam", NOW)
        assert journal.silent == ""
        with pytest.raises(InDoubt, match="may or may not"):
            await hanging
        go.set()
        await answers(journal)
        assert not (await journal.stance()).held
    finally:
        go.set()
        journal.close()


async def test_a_slow_refusal_of_the_journal_is_no_trouble_of_its_database(tmp_path: Path) -> None:
    journal = AsyncJournal(f"sqlite:///{tmp_path / 'journal.sqlite'}")
    await journal.open()

    def refuse() -> None:
        time.sleep(0.3)
        raise LeaseLost("another guard has it")

    try:
        with pytest.raises(LeaseLost):
            await journal.call(refuse)
        assert journal.silent == ""
    finally:
        journal.close()
