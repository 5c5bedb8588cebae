"""A clock that stands still until everything waits, then jumps to the next moment at which something happens."""

from __future__ import annotations

import asyncio
import heapq
import itertools
from collections import deque
from collections.abc import Awaitable
from datetime import datetime, timedelta, timezone
from typing import TypeVar

T = TypeVar("T")

TURNS = 40
"""So many turns of the event loop count as "everything waits", even where something always wants another turn."""


class VirtualClock:
    """A Clock for code that does no real I/O. Run what is to be run with :meth:`run`; days take milliseconds."""

    def __init__(self, start: datetime = datetime(2024, 3, 5, 8, 0, tzinfo=timezone.utc)) -> None:
        self._start = start
        self._elapsed_s = 0.0
        self._sleepers: list[tuple[float, int, asyncio.Future[None]]] = []
        self._count = itertools.count()

    def now(self) -> datetime:
        return self._start + timedelta(seconds=self._elapsed_s)

    def monotonic_s(self) -> float:
        return self._elapsed_s

    async def sleep(self, seconds: float) -> None:
        if seconds <= 0:
            await asyncio.sleep(0)
            return
        woken = asyncio.get_running_loop().create_future()
        heapq.heappush(self._sleepers, (self._elapsed_s + seconds, next(self._count), woken))
        await woken

    async def run(self, awaitable: Awaitable[T]) -> T:
        """The result of ``awaitable``, with time passing as it needs. Fails where it waits for what never comes."""
        task = asyncio.ensure_future(awaitable)
        # What the loop would still run now. There is no public way to ask.
        ready: deque[object] = asyncio.get_running_loop()._ready  # type: ignore[attr-defined]
        try:
            while True:
                for _ in range(TURNS):
                    await asyncio.sleep(0)
                    if task.done():
                        return task.result()
                    if not ready:
                        break
                assert self._sleepers, "everything waits, and nothing will ever wake it"
                at_s, _, woken = heapq.heappop(self._sleepers)
                if not woken.done():
                    self._elapsed_s = max(self._elapsed_s, at_s)
                    woken.set_result(None)
        finally:
            if not task.done():
                task.cancel()
                await asyncio.gather(task, return_exceptions=True)
