"""Carrying out one plan at a time: starting it, waiting for the hub, resuming after a restart, and how it ends."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable
from datetime import timedelta

from hubguard.act.attempt import Attempt
from hubguard.act.mandate import Mandate
from hubguard.errors import HubGuardError, JournalError, UndoError
from hubguard.hub.api import HubAPI
from hubguard.model import Action, Cause, Order, Outcome, OutcomeKind
from hubguard.pacing.clock import Clock
from hubguard.pacing.limits import backoff_s
from hubguard.prune.act import NOT_OURS, Pace, Pruner
from hubguard.prune.aftermath import Aftermath
from hubguard.prune.model import PrunePlan, PruneRun, PruneState
from hubguard.prune.plans import Plans
from hubguard.prune.progress import Progress
from hubguard.prune.record import Record
from hubguard.prune.review import Review
from hubguard.prune.settings import HubGuardPrune
from hubguard.prune.standing import End, Ends, Standing
from hubguard.prune.store import AsyncPrunes
from hubguard.prune.undo import Undo
from hubguard.snapshot.cycle import Snapshots

log = logging.getLogger(__name__)

AWAY_S = 3600.0
"""Seconds of absence after which HubGuard doesn't resume a plan by itself: whoever watched it has turned to other things."""

WAIT_S, LONGEST_WAIT_S = 5.0, 60.0
"""Seconds before a plan that waits for the hub goes on, and the most that is added. A harmless read finds out whether the hub
answers."""


class PruneRunner:
    """Carries out the plan that is under way, for one guard."""

    def __init__(
        self,
        settings: HubGuardPrune,
        hub: HubAPI,
        review: Review,
        plans: Plans,
        undo: Undo,
        snapshots: Snapshots,
        clock: Clock,
        chance: Callable[[], float],
        pace: Pace,
        mandate: Mandate,
    ) -> None:
        self.progress = Progress(clock, snapshots.count_deleted)
        self.aftermath = Aftermath(hub, plans, self.progress, clock, mandate.journal)
        self._settings = settings
        self._hub = hub
        self._review = review
        self._plans = plans
        self._undo = undo
        self._snapshots = snapshots
        self._clock = clock
        self._chance = chance
        self._pace = pace
        self._mandate = mandate
        self._prunes = AsyncPrunes(mandate.journal)
        self._pruner: Pruner | None = None
        self._standing: Standing | None = None
        self._task: asyncio.Task[None] | None = None
        self._failures, self._not_before_s = 0, float("-inf")
        self._taken_over = True
        # By plan, how often each user was tried in vain; a person who resumes the plan has it start from none.
        self._tries: dict[str, dict[int, int]] = {}

    @property
    def busy(self) -> bool:
        """Whether a plan is being worked on at this moment."""
        return self._task is not None and not self._task.done()

    def works_on(self, digest: str) -> bool:
        """Whether a user of that plan may be being deleted at this moment."""
        return self.busy and self.progress.digest == digest

    def acknowledged(self, run: PruneRun) -> frozenset[str]:
        """The names of the cautions acknowledged for that plan: by people, or by the settings if it is scheduled."""
        return frozenset((*run.acknowledged, *(self._settings.acknowledged if run.scheduled else ())))

    # -- starting and resuming ------------------------------------------------------------------------------------

    def start(self, plan: PrunePlan, run: PruneRun) -> None:
        """Carry out that plan now, since a person or the schedule wants it.

        If it is still being worked on, after a short pause, nothing that was read before counts.
        """
        self._failures, self._not_before_s = 0, float("-inf")
        self._tries.pop(plan.digest, None)
        if self.busy:
            self._review.look_anew()
        else:
            self._work_on(plan, run)

    def turned(self) -> None:
        """Somebody has paused or cancelled a plan: its state is read again before anybody else is deleted."""
        if self._standing is not None:
            self._standing.turned()

    def begin_anew(self) -> None:
        """Look at the plans under way as if for the first time: another guard may have worked on them."""
        self._taken_over = True
        self.aftermath.forget()

    async def settle_gone(self, plan: PrunePlan) -> None:
        """Users of that plan that somebody else has deleted don't wait for their turn any more. Raises HubGuardError."""
        settled = {user.position for user in await self._prunes.pruned(plan.digest)}
        waiting = {deletion.user: at for at, deletion in enumerate(plan.deletions) if at not in settled}
        outcome = Outcome(OutcomeKind.SKIPPED, NOT_OURS, Cause.GONE)
        for name in sorted(await self._review.missing(plan, tuple(waiting))):
            if await self._prunes.settle_pruned(plan.digest, waiting[name], outcome, self._clock.now()):
                self.progress.count(outcome)

    async def go_on(self) -> bool:
        """Work on the plan under way, unless it still waits for the hub; whether there is one. Raises HubGuardError."""
        if self.busy:
            return True
        under_way = await self._prunes.prunes_under_way()
        self.progress.waiting = sum(run.count - run.settled for run in under_way)
        running = next((run for run in under_way if run.state is PruneState.RUNNING), None)
        taken_over, self._taken_over = self._taken_over, False
        if running is None:
            return False
        if taken_over and (why := await self._why_not_by_itself(running)):
            await self._pause(running.digest, why)
        elif self._clock.monotonic_s() >= self._not_before_s:
            plan = await self._plans.plan(running.digest)
            if not self.busy:
                self._work_on(plan, running)
        return True

    async def _why_not_by_itself(self, run: PruneRun) -> str:
        """Why a person must resume a plan that another guard left, or this one in an earlier life; or ""."""
        now, life_s = self._clock.now(), self._settings.plan_life_s
        turned_at = await self._prunes.prune_turned_at(run.digest)
        if turned_at is not None and now - turned_at > timedelta(seconds=AWAY_S):
            return f"HubGuard was away since {turned_at:%Y-%m-%d %H:%M} UTC. Resume the plan if you still want it."
        if run.began_at is not None and now - run.began_at > timedelta(seconds=life_s):
            return f"HubGuard restarted, and the plan started over {life_s:g} s ago. Resume it if you still want it."
        return ""

    async def close(self) -> None:
        """Stop working. The plan stays as it is, and whoever holds the lease next goes on with it."""
        if self._task is not None:
            self._task.cancel()
            await asyncio.gather(self._task, return_exceptions=True)

    # -- working --------------------------------------------------------------------------------------------------

    def _work_on(self, plan: PrunePlan, run: PruneRun) -> None:
        self.progress.begin(run)
        self.aftermath.forget(plan.digest)
        self._standing = Standing(
            plan,
            self.acknowledged(run),
            self._mandate,
            self._review,
            self._snapshots,
            self._settings,
            self._clock,
        )
        self._task = asyncio.get_running_loop().create_task(self._carry_out(self._standing, run))

    async def _carry_out(self, standing: Standing, run: PruneRun) -> None:
        try:
            end = await self._work(standing, run)
        except UndoError as error:
            end = End(Ends.PAUSES, str(error))
        except HubGuardError as error:
            end = End(Ends.WAITS, str(error))
        except Exception:
            log.exception("Plan %s met an unexpected error (a bug in HubGuard)", run.digest[:12])
            end = End(Ends.WAITS, "unexpected error (a bug in HubGuard), see HubGuard's log. HubGuard tries again")
        finally:
            self._pruner = None
        try:
            await self._conclude(run.digest, end)
        except JournalError as error:
            log.warning("The journal doesn't say yet how plan %s stands: %s", run.digest[:12], error)

    async def _work(self, standing: Standing, run: PruneRun) -> End:
        # The hub may have another spawner since the plan was made, or since this guard last worked on it.
        standing.hub_was_away()
        if (end := await standing.new_risks()) is not None:
            return end
        undo = await self._undo.facts(run)
        record = Record(
            self._mandate,
            self._clock,
            standing.plan,
            run,
            tries=self._tries.setdefault(run.digest, {}),
            progress=self.progress,
        )
        if run.why:
            await self._prunes.say_of_prune(run.digest, "")

        def attempt_for(action: Action) -> Attempt:
            return self._mandate.attempt(action, Order(run.actor, asked=not run.scheduled))

        self._pruner = Pruner(
            self._hub,
            self._review,
            standing,
            record,
            attempt_for,
            undo,
            self._pace,
            self._clock,
            self._chance,
        )
        return await self._pruner.work()

    # -- ending ---------------------------------------------------------------------------------------------------

    async def _conclude(self, digest: str, end: End) -> None:
        if end.how is Ends.DONE:
            await self._turn(digest, PruneState.DONE, "")
            self._tries.pop(digest, None)
            self._review.forget()
        elif end.how is Ends.PAUSES:
            await self._pause(digest, end.why)
        elif end.how is Ends.WAITS:
            self._failures += 1
            wait_s = WAIT_S + backoff_s(self._failures, self._chance(), WAIT_S, LONGEST_WAIT_S)
            self._not_before_s = self._clock.monotonic_s() + wait_s
            log.info("Plan %s waits: %s", digest[:12], end.why)
            await self._prunes.say_of_prune(digest, end.why)

    async def _pause(self, digest: str, why: str) -> None:
        log.warning("Plan %s is paused: %s", digest[:12], why)
        await self._turn(digest, PruneState.PAUSED, why)

    async def _turn(self, digest: str, to: PruneState, why: str) -> None:
        """Unless a person has turned it before."""
        now = self._clock.now()
        await self._prunes.turn_prune(digest, (PruneState.RUNNING,), to, "hubguard", why, now)
