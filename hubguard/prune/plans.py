"""What the journal keeps for pruning: plans, their outcomes, and whether acting is on hold."""

from __future__ import annotations

import asyncio
import json

from hubguard.errors import HubGuardError, JournalError
from hubguard.journal.asynchronous import AsyncJournal
from hubguard.journal.model import Stance
from hubguard.prune.decide import plan as prune_plan
from hubguard.prune.model import PruneItem, PrunePlan, PruneRun
from hubguard.prune.store import AsyncPrunes

PLANS_KEPT = 4
"""Plans kept in memory after they were read from the journal: one for 50,000 users takes half a second to read."""


class Plans:
    """The plans in one journal. Every method raises JournalError if the journal can't be used."""

    def __init__(self, journal: AsyncJournal) -> None:
        self._store = AsyncPrunes(journal)
        self._read: dict[str, PrunePlan] = {}

    async def keep(self, plan: PrunePlan, *, scheduled: bool = False, why: str = "") -> PruneRun:
        """The journal has it from now on."""
        text = await asyncio.to_thread(lambda: json.dumps(prune_plan.to_dict(plan), separators=(",", ":")))
        run = await self._store.keep_plan(plan, text, scheduled=scheduled, why=why)
        self._remember(plan)
        return run

    async def plan(self, digest: str) -> PrunePlan:
        """The plan of that digest."""
        plan = self._read.get(digest) or await self._read_plan(digest)
        self._remember(plan)
        return plan

    async def _read_plan(self, digest: str) -> PrunePlan:
        text = await self._store.plan_text(digest)
        if text is None:
            raise _no_plan(digest)
        try:
            return await asyncio.to_thread(lambda: prune_plan.from_dict(json.loads(text)))
        except (ValueError, RecursionError) as error:
            raise JournalError(
                f"Plan {digest[:12]} in the journal isn't what it was ({error}), so it isn't carried out. Make a new one."
            ) from None

    def _remember(self, plan: PrunePlan) -> None:
        self._read.pop(plan.digest, None)
        self._read[plan.digest] = plan
        while len(self._read) > PLANS_KEPT:
            del self._read[next(iter(self._read))]

    async def runs(self, limit: int, user: str = "") -> tuple[PruneRun, ...]:
        """How the last ``limit`` plans stand, newest first; with ``user``, those that have a user of that name."""
        return await self._store.prune_runs(limit=limit, user=user)

    async def run(self, digest: str) -> PruneRun:
        """The state of the plan with that digest."""
        run = await self._store.prune_run(digest)
        if run is None:
            raise _no_plan(digest)
        return run

    async def items(self, digest: str, state: str | None, offset: int, limit: int | None) -> tuple[PruneItem, ...]:
        """Its deletions in order, each with its outcome; with ``state``, only those."""
        plan = await self.plan(digest)
        first, end = (offset, None if limit is None else offset + limit) if state is None else (0, None)
        settled = {record.position: record for record in await self._store.pruned(digest, first, end)}
        wanted = []
        for position, deletion in enumerate(plan.deletions[first:end], first):
            record = settled.get(position)
            item = PruneItem(
                position,
                deletion,
                record.outcome if record else None,
                record.at if record else None,
            )
            if state is None or item.state == state:
                wanted.append(item)
        if state is not None:
            wanted = wanted[offset : None if limit is None else offset + limit]
        return tuple(wanted)


async def why_held(journal: AsyncJournal) -> str:
    """Who has put acting on hold and why, as a sentence; "" if nobody has. Raises JournalError."""
    stance: Stance = await journal.stance()
    return stance.sentence


def _no_plan(digest: str) -> HubGuardError:
    return HubGuardError(f"There is no plan {digest[:12]}: it was never made here or is forgotten. Make it again.")
