"""Asking one source, whatever comes of it."""

from __future__ import annotations

from collections.abc import Awaitable
from dataclasses import dataclass
from typing import Generic, TypeVar

from hubguard.errors import HubError, HubGuardError
from hubguard.model import Reading, Source
from hubguard.pacing.clock import Clock

T = TypeVar("T")


@dataclass(frozen=True)
class Read(Generic[T]):
    """What a source gave, or None, and how that went."""

    value: T | None
    reading: Reading


async def read(clock: Clock, source: Source, asking: Awaitable[T], detail: str = "") -> Read[T]:
    """What ``source`` returns, with ``detail`` on a reading that is complete. A HubGuardError makes it an incomplete one.

    ``reading.at`` is the time before it was asked, so that an age is never understated.
    """
    at, began_s = clock.now(), clock.monotonic_s()
    value, complete = None, True
    try:
        value = await asking
    except HubGuardError as error:
        complete, detail = False, str(error)
        if source in (Source.HUB_API, Source.HUB_ROUTES) and not isinstance(error, HubError):
            detail = f"the hub wasn't asked: {error}"
    return Read(value, Reading(source, at, complete, clock.monotonic_s() - began_s, detail))
