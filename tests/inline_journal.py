"""The journal without its thread, for tests in virtual time: a call is over before anything else happens."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, TypeVar

from hubguard.journal.asynchronous import AsyncJournal
from hubguard.journal.store import Journal, open_journal

T = TypeVar("T")


class InlineJournal(AsyncJournal):
    """It is opened when it is first used."""

    def __init__(self, journal: Journal | None = None) -> None:
        super().__init__("sqlite://")
        self._store = journal

    @property
    def sync(self) -> Journal:
        if self._store is None:
            self._store = open_journal(self._url)
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
