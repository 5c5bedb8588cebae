"""One answer of one source: how old it is, and what is kept of one that failed."""

from __future__ import annotations

from datetime import timedelta

import pytest
from virtual_time import VirtualClock

from hubguard.errors import BudgetExhausted, HubDBError, HubGuardError, HubUnreachable
from hubguard.hub.reading import Read, read
from hubguard.model import Reading, Source


async def taken(source: Source, error: Exception | None = None) -> tuple[VirtualClock, Read[str]]:
    """An answer, or its failure, that takes eight seconds."""
    clock = VirtualClock()

    async def answer() -> str:
        await clock.sleep(8.0)
        if error is not None:
            raise error
        return "all of it"

    return clock, await clock.run(read(clock, source, answer(), "whole"))


async def test_an_answer_is_as_old_as_its_question():
    clock, seen = await taken(Source.HUB_API)
    assert clock.monotonic_s() == 8.0
    assert seen == Read("all of it", Reading(Source.HUB_API, clock.now() - timedelta(seconds=8), True, 8.0, "whole"))


@pytest.mark.parametrize(
    ("source", "error", "detail"),
    [
        (Source.HUB_API, HubUnreachable("no answer"), "no answer"),
        (Source.HUB_ROUTES, BudgetExhausted("the breaker is open"), "the hub wasn't asked: the breaker is open"),
        (Source.HUB_DB, HubDBError("it is locked"), "it is locked"),
    ],
)
async def test_a_failure_is_an_incomplete_reading_that_says_why(source: Source, error: HubGuardError, detail: str):
    clock, seen = await taken(source, error)
    assert seen == Read(None, Reading(source, clock.now() - timedelta(seconds=8), False, 8.0, detail))


async def test_a_defect_is_no_reading():
    with pytest.raises(ZeroDivisionError):
        await taken(Source.HUB_API, ZeroDivisionError())
