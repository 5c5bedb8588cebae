"""Several who ask at once share a reading, and each gets one that was begun after they had asked."""

from __future__ import annotations

import asyncio
from collections.abc import Mapping, Sequence

import pytest

from hubguard.prune.observe import Together


class Readings:
    """Reads when it is let; every reading tells what its number was."""

    def __init__(self) -> None:
        self.asked: list[tuple[str, ...]] = []
        self.let = asyncio.Semaphore(0)
        self.fault: Exception | None = None

    async def read(self, names: Sequence[str]) -> Mapping[str, int]:
        self.asked.append(tuple(names))
        number = len(self.asked)
        await self.let.acquire()
        if self.fault is not None:
            raise self.fault
        return dict.fromkeys((name for name in names if name != "nobody"), number)


async def _asks(together: Together[int], *names: str) -> list[asyncio.Task[int | None]]:
    tasks = [asyncio.ensure_future(together.ask(name)) for name in names]
    await asyncio.sleep(0)
    await asyncio.sleep(0)
    return tasks


async def test_who_asks_while_a_reading_goes_on_gets_the_next_one_and_never_that():
    readings = Readings()
    together = Together(readings.read)
    (first,) = await _asks(together, "ada")
    later = await _asks(together, "ada", "bob", "nobody")
    readings.let.release()
    assert await first == 1
    readings.let.release()
    assert await asyncio.gather(*later) == [2, 2, None]
    assert readings.asked == [("ada",), ("ada", "bob", "nobody")]


async def test_a_reading_that_fails_fails_for_those_who_asked_for_it_and_for_no_others():
    readings = Readings()
    together = Together(readings.read)
    readings.fault = ValueError("no")
    tasks = await _asks(together, "ada", "bob")
    readings.let.release()
    for task in tasks:
        with pytest.raises(ValueError, match="no"):
            await task
    readings.fault = None
    readings.let.release()
    assert await together.ask("ada") == 2


async def test_who_gives_up_leaves_the_others_their_answer():
    readings = Readings()
    together = Together(readings.read)
    gone, stays = await _asks(together, "ada", "bob")
    gone.cancel()
    readings.let.release()
    assert await stays == 1
    assert gone.cancelled() or isinstance((await asyncio.gather(gone, return_exceptions=True))[0], BaseException)
