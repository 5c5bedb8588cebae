"""What the journal keeps for pruning: plans, what came of each, and whether somebody has put acting on hold."""

from __future__ import annotations

import asyncio
import json
from collections.abc import Callable

from hubguard.act.lease import Books
from hubguard.errors import HubGuardError, JournalError
from hubguard.journal.model import Stance
from hubguard.prune.decide import plan as prune_plan
from hubguard.prune.model import PruneItem, PrunePlan, PruneRun

PLANS_KEPT = 4
"""So many plans are kept as they were read from the journal: one for 50,000 users takes half a second to read."""


class Plans:
    """The plans of one journal. ``books`` gives it, and raises HubGuardError where it can't be used now, as all this does."""

    def __init__(self, books: Callable[[], Books]) -> None:
        self._books = books
        self._read: dict[str, PrunePlan] = {}

    async def keep(self, plan: PrunePlan, *, scheduled: bool = False, why: str = "") -> PruneRun:
        """The journal has it from now on."""
        text = await asyncio.to_thread(lambda: json.dumps(prune_plan.to_dict(plan), separators=(",", ":")))
        books = self._books()
        run = await books.call(books.journal.keep_plan, plan, text, scheduled=scheduled, why=why)
        self._remember(plan)
        return run

    async def plan(self, digest: str) -> PrunePlan:
        """The plan of that digest."""
        plan = self._read.get(digest) or await self._read_plan(digest)
        self._remember(plan)
        return plan

    async def _read_plan(self, digest: str) -> PrunePlan:
        books = self._books()
        text = await books.call(books.journal.plan_text, digest)
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

    async def runs(self, limit: int) -> tuple[PruneRun, ...]:
        """How the last ``limit`` plans stand, newest first."""
        books = self._books()
        return await books.call(books.journal.prune_runs, limit=limit)

    async def run(self, digest: str) -> PruneRun:
        """How the plan of that digest stands."""
        books = self._books()
        run = await books.call(books.journal.prune_run, digest)
        if run is None:
            raise _no_plan(digest)
        return run

    async def items(self, digest: str, state: str | None, offset: int, limit: int | None) -> tuple[PruneItem, ...]:
        """Its deletions, as PrunePort has them."""
        plan, books = await self.plan(digest), self._books()
        first, end = (offset, None if limit is None else offset + limit) if state is None else (0, None)
        settled = {one.position: one for one in await books.call(books.journal.pruned, digest, first, end)}
        wanted = []
        for position, deletion in enumerate(plan.deletions[first:end], first):
            one = settled.get(position)
            item = PruneItem(position, deletion, one.outcome if one else None, one.at if one else None)
            if state is None or item.state == state:
                wanted.append(item)
        if state is not None:
            wanted = wanted[offset : None if limit is None else offset + limit]
        return tuple(wanted)


async def why_held(books: Books) -> str | None:
    """Who has put acting on hold, and why, as a sentence without its end; None where nobody has. Raises JournalError."""
    stance: Stance = await books.call(books.journal.stance)
    if not stance.held:
        return None
    return f"{stance.held_by or 'Someone'} has put acting on hold: {stance.held_why or 'no reason given'}"


def _no_plan(digest: str) -> HubGuardError:
    return HubGuardError(
        f"There is no plan {digest[:12]} (any more): it was never made here, or has been forgotten. Make it again."
    )
