"""In which order lookups at the hub are made, and how many: with a clock of the test's own."""

from __future__ import annotations

import asyncio

import pytest

from hubguard.web import lookups
from hubguard.web.lookups import (
    DENIALS_FREE,
    KNOWN_AT_ONCE,
    LOGINS_AT_ONCE,
    PEERS_MOST,
    STRANGERS_AT_ONCE,
    WAITING_MOST,
    WAITING_PER_PEER,
    Lookups,
    Standing,
    TooMany,
)


class Tried:
    """Lookups that each last until the test lets them end."""

    def __init__(self) -> None:
        self.at_s = 0.0
        self.lookups = Lookups(lambda: self.at_s)
        self.begun: list[str] = []
        self.end = asyncio.Semaphore(0)

    def ask(self, name: str, peer: str = "", standing: Standing = Standing.STRANGER) -> asyncio.Task[None]:
        async def one() -> None:
            async with self.lookups.turn(peer or name, standing):
                self.begun.append(name)
                await self.end.acquire()

        return asyncio.ensure_future(one())

    async def settle(self) -> None:
        for _ in range(20):
            await asyncio.sleep(0)

    async def finish(self, *tasks: asyncio.Task[None]) -> list[BaseException | None]:
        for _ in tasks:
            self.end.release()
        return await asyncio.gather(*tasks, return_exceptions=True)


@pytest.fixture
async def tried() -> Tried:
    return Tried()


async def test_known_callers_have_places_of_their_own(tried: Tried) -> None:
    strangers = [tried.ask(f"s{i}") for i in range(10)]
    known = [tried.ask(f"k{i}", standing=Standing.KNOWN) for i in range(6)]
    await tried.settle()
    assert tried.begun == ["s0", "s1", *(f"k{i}" for i in range(KNOWN_AT_ONCE))]
    await tried.finish(*strangers, *known)
    assert len(tried.begun) == 16


async def test_an_address_whose_tokens_the_hub_does_not_know_comes_last(tried: Tried) -> None:
    busy = [tried.ask("busy1"), tried.ask("busy2")]
    tried.lookups.denied("bad")
    waiting = [tried.ask("bad"), tried.ask("good"), tried.ask("signed", standing=Standing.SIGNED)]
    await tried.settle()
    await tried.finish(*busy, *waiting)
    assert tried.begun[2:] == ["signed", "good", "bad"]


async def test_made_up_tokens_keep_nobody_at_the_same_address_from_logging_in(tried: Tried) -> None:
    for _ in range(3 * DENIALS_FREE):
        tried.lookups.denied("ingress")
    flood = [tried.ask(f"f{i}", "ingress") for i in range(WAITING_PER_PEER)]
    logins = [tried.ask(f"login{i}", "ingress", Standing.LOGIN) for i in range(12)]
    signed = tried.ask("signed", "ingress", Standing.SIGNED)
    await tried.settle()
    assert tried.begun == ["login0", "login1", "signed"]
    told = await tried.finish(*logins, signed)
    assert told == [None] * 13
    for asked in flood:
        asked.cancel()


async def test_one_address_cannot_fill_the_places_of_logins_of_all(tried: Tried) -> None:
    flood = [tried.ask(f"f{i}", "bad", Standing.LOGIN) for i in range(50)]
    other = tried.ask("good", "elsewhere", Standing.LOGIN)
    await tried.settle()
    told = await tried.finish(*flood, other)
    assert [type(one) for one in told].count(TooMany) == 50 - LOGINS_AT_ONCE - WAITING_PER_PEER
    assert told[-1] is None


async def test_an_address_with_many_unknown_tokens_goes_on_slowly(
    tried: Tried, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(lookups, "_LOOK_AGAIN_S", 0.01)
    for _ in range(DENIALS_FREE):
        tried.lookups.denied("bad")
    asked = tried.ask("bad")
    await asyncio.sleep(0.05)
    assert tried.begun == []
    tried.at_s = 2.1
    await asyncio.sleep(0.05)
    assert tried.begun == ["bad"]
    await tried.finish(asked)


async def test_one_address_cannot_fill_the_queue(tried: Tried) -> None:
    flood = [tried.ask(f"f{i}", peer="bad") for i in range(100)]
    other = tried.ask("good")
    await tried.settle()
    told = await tried.finish(*flood, other)
    assert [type(one) for one in told].count(TooMany) == 100 - STRANGERS_AT_ONCE - WAITING_PER_PEER
    assert "good" in tried.begun


async def test_a_full_queue_turns_away_who_is_worst_and_not_who_is_last(tried: Tried) -> None:
    busy = [tried.ask("busy1"), tried.ask("busy2")]
    tried.lookups.denied("bad")
    bad = tried.ask("bad")
    many = [tried.ask(f"m{i}") for i in range(WAITING_MOST + 1)]
    await tried.settle()
    told = await tried.finish(*busy, bad, *many)
    assert isinstance(told[2], TooMany)
    assert isinstance(told[-1], TooMany)
    assert len(tried.begun) == 2 + WAITING_MOST


async def test_nobody_waits_for_ever(tried: Tried, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(lookups, "LONGEST_WAIT_S", 0.05)
    busy = [tried.ask("busy1"), tried.ask("busy2")]
    await tried.settle()
    with pytest.raises(TooMany):
        await tried.ask("late")
    await tried.finish(*busy)


async def test_who_gives_up_leaves_its_place_to_the_next(tried: Tried) -> None:
    busy = [tried.ask("busy1"), tried.ask("busy2")]
    gone, last = tried.ask("gone"), tried.ask("last")
    await tried.settle()
    gone.cancel()
    busy[0].cancel()
    await tried.settle()
    assert tried.begun == ["busy1", "busy2", "last"]
    await tried.finish(busy[1], last)
    after = [tried.ask("a"), tried.ask("b")]
    await tried.settle()
    assert tried.begun[3:] == ["a", "b"]
    await tried.finish(*after)


async def test_addresses_are_forgotten_when_there_are_too_many(tried: Tried) -> None:
    for i in range(PEERS_MOST):
        tried.lookups.denied(f"p{i}")
    tried.at_s = 3600.0
    tried.lookups.denied("bad")
    assert len(tried.lookups._denials) == 1
