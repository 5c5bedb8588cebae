"""Whether the hub's database really answers, and how many tokens and codes it holds."""

from __future__ import annotations

import asyncio
from collections.abc import Mapping

from typing_extensions import override

from hubguard.errors import HubDBError
from hubguard.hub.database import HubDB
from hubguard.pacing.clock import Clock
from hubguard.watch.decide.signals import OFTEN_S
from hubguard.watch.model import SignalSource
from hubguard.watch.observe.port import NotSetUp, Reader, SourceUnavailable

COUNTS_EVERY = 6
"""Readings between two counts of rows: counting reads an index from end to end."""

SILENT_S = 5.0
"""Seconds after which a database that says nothing counts as down: less than a source has to be read in."""


class DatabaseReader(Reader):
    """Asks the hub's database a question that it answers from memory; None: HubGuard doesn't know it."""

    source = SignalSource.HUB_DB
    every_s = OFTEN_S

    def __init__(self, database: HubDB | None, clock: Clock) -> None:
        self._database = database
        self._clock = clock
        self._answered = False
        self._readings = 0

    @override
    async def read(self) -> Mapping[str, float]:
        """A database that never answered may be another one than the hub's: it isn't down, it can't be read."""
        if self._database is None:
            raise NotSetUp(
                "HubGuard doesn't read the hub's database. Set c.HubGuard.hub_db_url = 'hub' to have it watched."
            )
        began_s = self._clock.monotonic_s()
        try:
            await asyncio.wait_for(self._database.ping(), SILENT_S)
        except (HubDBError, asyncio.TimeoutError) as error:
            if self._answered:
                return {"database_up": 0.0}
            silent = f"The hub's database hasn't answered within {SILENT_S:g} s."
            raise SourceUnavailable(str(error) or silent) from None
        self._answered = True
        values = {"database_up": 1.0, "database_latency_seconds": self._clock.monotonic_s() - began_s}
        if self._readings % COUNTS_EVERY == 0:
            tokens, codes = await self._database.count_tokens()
            values |= {"tokens": float(tokens), "oauth_codes": float(codes)}
        self._readings += 1
        return values

    @override
    async def close(self) -> None:
        """The database isn't ours to close."""
