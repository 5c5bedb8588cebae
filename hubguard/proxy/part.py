"""The proxy watch as a part of the guard."""

from __future__ import annotations

import asyncio

from hubguard.act.mandate import Mandate
from hubguard.pacing.clock import Clock
from hubguard.proxy.cycle import ProxyWatch

LEASE_EVERY_S = 1.0
"""Seconds between asking whether this guard still holds the lease."""


class Watching:
    """Runs ``watch`` while this guard holds the lease: the guards of a hub have one canary between them."""

    name = "the proxy watch"

    def __init__(self, watch: ProxyWatch, mandate: Mandate, clock: Clock) -> None:
        self._watch = watch
        self._mandate = mandate
        self._clock = clock

    def begin_anew(self) -> None:
        """Nothing is remembered from one lease to the next."""

    async def turn(self) -> None:
        """Watch until the lease is lost."""
        watching = asyncio.ensure_future(self._watch.run())
        try:
            while self._mandate.holds_lease and not watching.done():
                await self._clock.sleep(LEASE_EVERY_S)
        finally:
            watching.cancel()
            (ended,) = await asyncio.gather(watching, return_exceptions=True)
        if isinstance(ended, Exception):
            raise ended

    async def wait(self) -> None:
        """Wait until the lease is looked at again."""
        await self._clock.sleep(LEASE_EVERY_S)

    async def close(self) -> None:
        """Nothing is under way beside a turn."""
