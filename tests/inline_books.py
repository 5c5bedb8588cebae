"""The journal without its thread, for tests in virtual time: a call is over before anything else happens."""

from __future__ import annotations

from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from typing import Any, TypeVar

from hubguard.act.lease import Books
from hubguard.journal.store import Journal, open_journal

T = TypeVar("T")


class InlineBooks(Books):
    def __init__(self, journal: Journal) -> None:
        super().__init__(journal, ThreadPoolExecutor(1))

    @classmethod
    async def open(cls, url: str = "sqlite://") -> InlineBooks:
        return cls(open_journal(url))

    async def call(self, function: Callable[..., T], *args: Any, **kwargs: Any) -> T:
        return function(*args, **kwargs)

    def close(self) -> None:
        self.journal.close()
