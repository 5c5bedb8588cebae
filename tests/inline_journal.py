"""The journal without its thread, for tests in virtual time: a call is over before anything else happens."""

from __future__ import annotations

import sqlite3
from collections.abc import Callable
from functools import cache
from typing import Any, TypeVar, cast

from sqlalchemy.engine import Connection

from hubguard.journal.asynchronous import AsyncJournal
from hubguard.journal.database import Database
from hubguard.journal.store import Journal, open_journal

T = TypeVar("T")


def _sqlite(connection: Connection) -> sqlite3.Connection:
    return cast(sqlite3.Connection, connection.connection.driver_connection)


@cache
def _migrated() -> sqlite3.Connection:
    """A journal in memory as a migration leaves it. Nobody writes to it: it is there to be copied."""
    copy = sqlite3.connect(":memory:", check_same_thread=False)
    journal = open_journal("sqlite://")
    with journal.reading() as connection:
        _sqlite(connection).backup(copy)
    journal.close()
    return copy


def journal_in_memory() -> Journal:
    """What ``open_journal("sqlite://")`` returns, without migrating it anew."""
    database = Database("sqlite://")
    with database.engine.connect() as connection:
        _migrated().backup(_sqlite(connection))
    return Journal(database)


class InlineJournal(AsyncJournal):
    """It is opened when it is first used."""

    def __init__(self, journal: Journal | None = None) -> None:
        super().__init__("sqlite://")
        self._store = journal

    @property
    def sync(self) -> Journal:
        if self._store is None:
            self._store = journal_in_memory()
        return self._store

    @property
    def journal(self) -> Journal:
        """For tests that read it."""
        return self.sync

    async def open(self) -> None:
        pass

    async def call(self, function: Callable[..., T], *args: Any, **kwargs: Any) -> T:
        return function(*args, **kwargs)

    def close(self) -> None:
        self.sync.close()
