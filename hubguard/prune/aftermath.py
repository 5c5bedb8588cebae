"""Users that a plan deleted without anybody noticing: found gone later, and settled as deleted."""

from __future__ import annotations

import logging
from datetime import datetime, timedelta

from hubguard.errors import BudgetExhausted, HubError
from hubguard.hub.api import HubAPI
from hubguard.journal.asynchronous import AsyncJournal
from hubguard.journal.model import Event
from hubguard.model import Outcome, OutcomeKind, same_run
from hubguard.pacing.clock import Clock
from hubguard.prune.model import PrunePlan, PruneRun, PruneState
from hubguard.prune.plans import Plans
from hubguard.prune.progress import Progress
from hubguard.prune.store import AsyncPrunes

log = logging.getLogger(__name__)

LOOK_EVERY_S = 30.0
"""Seconds between looks at users that an ended plan may have deleted."""

ENDED_WITHIN_S = 3600.0
"""Seconds after its end for which such users of a plan are looked for."""

PLANS_LOOKED_AT, USERS_AT_ONCE = 20, 20
"""Maximum plans, the newest first, and users of each in one look."""


class Aftermath:
    """Finds out what became of users that a plan was about to delete.

    A guard that ended in between, or a hub that took longer than anybody waited, leaves such users behind. Who was skipped
    stays so.
    """

    def __init__(self, hub: HubAPI, plans: Plans, progress: Progress, clock: Clock, journal: AsyncJournal) -> None:
        self._hub = hub
        self._plans = plans
        self._progress = progress
        self._clock = clock
        self._journal = journal
        self._look_at_s = float("-inf")
        # By plan: positions of users who may have been deleted.
        self._unknown: dict[str, list[int]] = {}

    def forget(self, digest: str | None = None) -> None:
        """Read again from the journal who is unknown, of that plan or of all."""
        if digest is None:
            self._unknown.clear()
        else:
            self._unknown.pop(digest, None)

    async def settle(self, run: PruneRun) -> None:
        """Settle every user that the plan was about to delete and who is gone. Raises HubGuardError."""
        if run.began_at is None:
            return
        plan = await self._plans.plan(run.digest)
        self.forget(run.digest)
        for position in await self._unknown_of(plan):
            await self._settle_if_gone(plan, position)

    async def settle_some(self) -> None:
        """Now and then, settle a few users of plans that are paused or ended recently. Raises JournalError."""
        now_s = self._clock.monotonic_s()
        if now_s < self._look_at_s:
            return
        self._look_at_s = now_s + LOOK_EVERY_S
        ended_since = self._clock.now() - timedelta(seconds=ENDED_WITHIN_S)
        runs = {run.digest: run for run in await self._plans.runs(PLANS_LOOKED_AT)}
        runs |= {run.digest: run for run in await AsyncPrunes(self._journal).prunes_under_way()}
        for run in runs.values():
            ended = run.ended_at is not None and run.ended_at >= ended_since
            if run.began_at is not None and (run.state is PruneState.PAUSED or ended):
                try:
                    await self._settle_some_of(run)
                except (HubError, BudgetExhausted) as error:
                    log.info("It is unknown yet what became of users of plan %s: %s", run.digest[:12], error)
                    return

    async def _settle_some_of(self, run: PruneRun) -> None:
        plan = await self._plans.plan(run.digest)
        if run.digest not in self._unknown:
            self._unknown[run.digest] = await self._unknown_of(plan)
        unknown = self._unknown[run.digest]
        for position in unknown[:USERS_AT_ONCE]:
            gone = await self._settle_if_gone(plan, position)
            # Whoever is still there is looked at again when all others were.
            unknown.remove(position)
            if not gone:
                unknown.append(position)

    async def _settle_if_gone(self, plan: PrunePlan, position: int) -> bool:
        deletion = plan.deletions[position]
        user = await self._hub.get_user(deletion.user)
        if user is not None and same_run(user.created, deletion.created):
            return False
        outcome, now = Outcome(OutcomeKind.DONE, "a later look found that user gone"), self._clock.now()
        if await AsyncPrunes(self._journal).settle_pruned(plan.digest, position, outcome, now):
            self._progress.count(outcome)
            detail = f"plan {plan.digest[:12]} did delete {deletion.user}: a later look found them gone"
            await self._journal.note(Event.NOTE, "hubguard", 0, now, detail, plan=plan.digest)
        return True

    async def _unknown_of(self, plan: PrunePlan) -> list[int]:
        settled = {user.position: user.outcome.kind for user in await AsyncPrunes(self._journal).pruned(plan.digest)}
        intended: dict[str, list[datetime | None]] = {}
        for user, created in await AsyncPrunes(self._journal).deletions_intended(plan.digest):
            intended.setdefault(user, []).append(created)
        return [
            position
            for position, deletion in enumerate(plan.deletions)
            if settled.get(position) not in (OutcomeKind.DONE, OutcomeKind.SKIPPED)
            and any(same_run(deletion.created, created) for created in intended.get(deletion.user, ()))
        ]
