"""The journal without its thread, for tests in virtual time: a call is over before anything else happens."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, TypeVar

from hubguard.journal.asynchronous import AsyncJournal
from hubguard.journal.store import Journal, open_journal

T = TypeVar("T")


class InlineJournal(AsyncJournal):
    def __init__(self, journal: Journal | None = None) -> None:
        super().__init__("sqlite://")
        self.journal = journal or open_journal("sqlite://")
        self._store = self.journal

    async def open(self) -> None:
        pass

    async def call(self, function: Callable[..., T], *args: Any, **kwargs: Any) -> T:
        return function(*args, **kwargs)

    def close(self) -> None:
        self.journal.close()
