"""What people and the schedule do with pruning: look, plan, apply, pause, cancel, restore."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable, Iterable
from datetime import datetime, timedelta

from hubguard.act.mandate import Mandate
from hubguard.errors import BudgetExhausted, HubError, HubGuardError
from hubguard.hub.api import HubAPI
from hubguard.hub.database import HubDB
from hubguard.hub.names import who
from hubguard.journal.model import Event
from hubguard.model import Finding, FindingKind
from hubguard.pacing.clock import Clock
from hubguard.prune.act import Pace
from hubguard.prune.decide import plan as prune_plan
from hubguard.prune.decide import stale as prune_stale
from hubguard.prune.model import (
    Caution,
    PruneItem,
    PrunePlan,
    PruneRun,
    PruneState,
    PruneStatus,
    PruneVerdict,
    RestoredRun,
    StaleCriteria,
    UsersReport,
)
from hubguard.prune.observe import AccountReader
from hubguard.prune.plans import Plans, why_held
from hubguard.prune.review import HubConfigFacts, Review
from hubguard.prune.runner import PruneRunner
from hubguard.prune.settings import HubGuardPrune
from hubguard.prune.store import AsyncPrunes
from hubguard.prune.undo import Undo
from hubguard.snapshot.cycle import Snapshots

log = logging.getLogger(__name__)

TICK_S = 5.0
"""Seconds between looks at a plan under way, which may wait for the hub or have been left by another guard."""

IDLE_TICK_S = 30.0
"""Seconds between looks while no plan is under way: has one been started, is one due by schedule."""

SCHEDULE = "prune"
"""Under this name the journal keeps when the last scheduled pruning was."""

UNDER_WAY = (PruneState.RUNNING, PruneState.PAUSED)


class PruneCycles:
    """Carries out one plan at a time, for people and by schedule.

    Every method raises HubGuardError with the reason if it can't. ``findings`` are what an operator should look at.
    """

    def __init__(
        self,
        settings: HubGuardPrune,
        hub: HubAPI,
        database: HubDB | None,
        snapshots: Snapshots,
        clock: Clock,
        chance: Callable[[], float],
        *,
        pace: Pace,
        journal_days: float,
        mandate: Mandate,
        facts: HubConfigFacts | None = None,
    ) -> None:
        self.findings: tuple[Finding, ...] = ()
        self._settings = settings
        self._snapshots = snapshots
        self._clock = clock
        self._journal = journal = mandate.journal
        self._mandate = mandate
        self._hub = hub
        self._beginning = asyncio.Lock()
        reader = AccountReader(hub, database, clock)
        self._review = Review(settings, hub, reader, clock, journal, facts or HubConfigFacts())
        self._plans = Plans(journal)
        self._undo = Undo(settings, hub, reader, clock, journal, mandate)
        self._runner = PruneRunner(
            settings, hub, self._review, self._plans, self._undo, snapshots, clock, chance, pace, mandate
        )
        self._under_way = True
        self._journal_days = journal_days
        self._forgot_at: datetime | None = None

    def status(self) -> PruneStatus:
        """What pruning knows of itself now. Never blocks, never raises."""
        progress = self._runner.progress
        return PruneStatus(progress.tally, progress.waiting, self.findings)

    # -- looking and planning -------------------------------------------------------------------------------------

    def default_criteria(self) -> StaleCriteria:
        """Return the criteria in the settings."""
        prune = self._settings
        return StaleCriteria(
            inactive_for_s=prune.inactive_for_s,
            never_active_for_s=prune.never_active_for_s,
            groups=tuple(prune.groups),
            roles=tuple(prune.roles),
            names=tuple(prune.names),
        )

    async def users(self, criteria: StaleCriteria | None = None, *, caller: str | None = None) -> UsersReport:
        """Judge everybody by ``criteria`` (None: the settings'), as read at most a few minutes ago. ``caller`` is kept."""
        criteria = prune_stale.checked(criteria or self.default_criteria())
        self._mandate.check()
        return await self._review.users(criteria, caller)

    async def user(
        self, name: str, criteria: StaleCriteria | None = None, *, caller: str | None = None
    ) -> PruneVerdict | None:
        """Read and judge that user now, by a name as people type it. Raises UnknownUser if the hub knows nobody by it."""
        criteria = prune_stale.checked(criteria or self.default_criteria())
        self._mandate.check()
        found = await self._review.user(name, criteria, caller)
        if found is None:
            found = await self._review.user(await who(self._hub, name), criteria, caller)
        return found

    async def plan(
        self, criteria: StaleCriteria, actor: str, *, caller: str | None = None, ignore_unknown: bool = False
    ) -> PrunePlan:
        """Make a plan by a reading of now, and keep it in the journal until it is used or expires. It does nothing.

        ``caller`` is the user who asks, None for a service. Raises HubGuardError if there is nobody to delete, or if a listed
        name is no user's, unless ``ignore_unknown``.
        """
        criteria = prune_stale.checked(criteria)
        self._mandate.check()
        plan = await self._review.plan(criteria, actor, caller, ignore_unknown=ignore_unknown)
        if not plan.deletions:
            raise HubGuardError("No plan made: no user is stale by these criteria.")
        await self._plans.keep(plan)
        return plan

    async def runs(self, *, limit: int = 100, user: str = "") -> tuple[PruneRun, ...]:
        """Return the last plans and what came of them, newest first; with ``user``, those that have a user of that name."""
        return tuple(map(self._runner.progress.with_pace, await self._plans.runs(limit, user)))

    async def run(self, digest: str) -> PruneRun:
        """Return how the plan of that digest stands. Raises HubGuardError if there is none."""
        return self._runner.progress.with_pace(await self._plans.run(digest))

    async def plan_of(self, digest: str) -> PrunePlan:
        """Return the plan of that digest. Raises HubGuardError if there is none."""
        return await self._plans.plan(digest)

    async def items(
        self, digest: str, *, state: str | None = None, offset: int = 0, limit: int | None = None
    ) -> tuple[PruneItem, ...]:
        """Return the deletions of a plan in its order, each with its outcome; with ``state``, only those."""
        return await self._plans.items(digest, state, offset, limit)

    # -- beginning, pausing, ending, bringing back ----------------------------------------------------------------

    async def apply(
        self, digest: str, count: int, actor: str, why: str, *, acknowledged: tuple[str, ...] = ()
    ) -> PruneRun:
        """Begin to carry out that plan. ``count`` is its number of users, as a check; ``acknowledged`` names its cautions.

        The undo file is on disk when this returns. Raises HubGuardError with the reason if the plan isn't begun: it is
        unknown, expired or was begun before, the count is wrong, a caution isn't acknowledged (one that arose since
        the plan was made, too), acting is on hold, HubGuard is braked, or the undo file can't be written.
        """
        self._mandate.check()
        async with self._beginning:
            known = await AsyncPrunes(self._journal).prune_run(digest)
            plan = None if known is None else await self._plans.plan(digest)
            refusal = prune_plan.refusal(plan, count=count, now=self._clock.now(), acknowledged=acknowledged)
            if refusal is not None:
                raise HubGuardError(refusal)
            assert plan is not None
            assert known is not None
            if plan.offline:
                raise HubGuardError(
                    "Plan not applied: it is for a stopped hub (offline). Make a new plan for this hub."
                )
            if known.state is not PruneState.PLANNED:
                raise HubGuardError(f"Plan not applied: it was started before and is {known.state.value}.")
            await self._refuse_while_held()
            if (brake := self._snapshots.brake) is not None:
                raise HubGuardError(f"Plan not applied. {brake.sentence}")
            cautions = await self._review.cautions()
            if (missing := prune_plan.unacknowledged(cautions, acknowledged)) is not None:
                raise HubGuardError(
                    "Plan not applied: the hub has changed since the plan was made. Make a new plan, which asks you to"
                    f" acknowledge this: {missing}"
                )
            acknowledged = _of(acknowledged, (*plan.cautions, *cautions))
            return await self._begin(plan, actor, why, acknowledged)

    async def _begin(self, plan: PrunePlan, actor: str, why: str, acknowledged: tuple[str, ...] = ()) -> PruneRun:
        """The undo file is on disk, and the plan under way. Raises HubGuardError, and then nothing is done."""
        for other in await AsyncPrunes(self._journal).prunes_under_way():
            if other.state is PruneState.RUNNING:
                raise HubGuardError(
                    f"Plan not started: plan {other.digest[:12]} is running. Wait for it, pause it or cancel it."
                )
        written = await self._undo.write(plan)
        now = self._clock.now()
        run = await AsyncPrunes(self._journal).begin_prune(
            plan.digest,
            actor,
            why,
            str(written.path),
            written.sha256,
            now,
            acknowledged=acknowledged,
        )
        if run is None:
            # Nothing needs it, and it holds what nobody should keep without need.
            await asyncio.to_thread(written.path.unlink, missing_ok=True)
            raise HubGuardError(
                "Plan not started: somebody else started it or another plan just now. Check its status."
            )
        log.info("Plan %s, to delete %d users, starts for %s (%s).", plan.digest[:12], run.count, actor, why)
        self._runner.start(plan, run)
        return run

    async def pause(self, digest: str, actor: str, why: str) -> PruneRun:
        """Delete nobody more by that plan until it is resumed; the deletion under way is finished."""
        run = await self._turn(digest, (PruneState.RUNNING,), PruneState.PAUSED, actor, _by("paused", actor, why))
        return self._runner.progress.with_pace(run)

    async def resume(self, digest: str, actor: str, why: str, *, acknowledged: tuple[str, ...] = ()) -> PruneRun:
        """Continue a paused plan where it stopped.

        ``acknowledged`` names the cautions that have arisen since it was begun, as by another spawner. Raises HubGuardError
        if one isn't acknowledged; the plan stays paused.
        """
        self._mandate.check()
        run, plan = await self._plans.run(digest), await self._plans.plan(digest)
        await self._refuse_while_held()
        if run.state is PruneState.PAUSED:
            cautions = await self._review.cautions()
            known = self._runner.acknowledged(run).union(acknowledged)
            if (missing := prune_plan.unacknowledged(cautions, known)) is not None:
                raise HubGuardError(
                    f"Plan not resumed: the hub has changed since it started. Acknowledge this by name first: {missing}"
                )
            acknowledged = _of(acknowledged, (*plan.cautions, *cautions))
            await self._find_out(run, plan)
        run = await self._turn(digest, (PruneState.PAUSED,), PruneState.RUNNING, actor, "", acknowledged)
        self._runner.start(plan, run)
        return run

    async def cancel(self, digest: str, actor: str, why: str) -> PruneRun:
        """Delete nobody more by that plan, for good."""
        states = (PruneState.PLANNED, *UNDER_WAY)
        run = await self._turn(digest, states, PruneState.CANCELLED, actor, _by("cancelled", actor, why))
        await self._find_out(run)
        return await self._plans.run(digest)

    async def _find_out(self, run: PruneRun, plan: PrunePlan | None = None) -> None:
        """Settle the users who are gone; if the hub doesn't answer, HubGuard asks again later.

        With ``plan``, which goes on, so are those that somebody else deleted.
        """
        try:
            if not self._runner.works_on(run.digest):
                await self._runner.aftermath.settle(run)
                if plan is not None:
                    await self._runner.settle_gone(plan)
        except (HubError, BudgetExhausted) as error:
            log.info("It is unknown yet what became of users of plan %s: %s", run.digest[:12], error)

    async def _turn(
        self,
        digest: str,
        from_states: tuple[PruneState, ...],
        to: PruneState,
        actor: str,
        why: str,
        acknowledged: tuple[str, ...] = (),
    ) -> PruneRun:
        now = self._clock.now()
        run = await AsyncPrunes(self._journal).turn_prune(
            digest, from_states, to, actor, why, now, acknowledged=acknowledged
        )
        self._runner.turned()
        if run is None:
            stands = await self._plans.run(digest)
            if to is PruneState.RUNNING and stands.state in from_states:
                raise HubGuardError("Plan not resumed: another plan is running. Wait for it, or pause it.")
            raise HubGuardError(f"Nothing changed: the plan is {stands.state.value}, so it can't become {to.value}.")
        return run

    async def _refuse_while_held(self) -> None:
        if not self._settings.delete_users:
            raise HubGuardError(
                "Nothing was done: HubGuardPrune.delete_users is False, so HubGuard deletes nobody. Set it before"
                " HubGuard's include and restart the hub."
            )
        if held := await why_held(self._journal):
            raise HubGuardError(f"Nothing was done. {held} Resume acting first.")

    async def restore(
        self, digest: str, count: int, actor: str, why: str, *, token: str, sha256: str | None = None
    ) -> RestoredRun:
        """Restore the users that the plan deleted, from its undo file, with the rights of the asker's ``token``.

        ``count`` is how many it deleted, as a check; ``sha256`` is the checksum of their undo file, if they have one. It is
        done when this returns. Users who exist again are left as they are, so asking twice does no harm.
        """
        self._mandate.check()
        async with self._beginning:
            run, plan = await self._plans.run(digest), await self._plans.plan(digest)
            if run.state in (PruneState.PAUSED, PruneState.CANCELLED) and self._runner.works_on(digest):
                raise HubGuardError(
                    "Nobody was restored: the users being deleted when the plan was stopped aren't finished yet. Try again"
                    " in a minute."
                )
            if not self._runner.works_on(digest):
                await self._runner.aftermath.settle(run)
            run = await self._plans.run(digest)
            try:
                return await self._undo.restore(plan, run, count, actor, why, token=token, sha256=sha256)
            finally:
                self._review.forget()

    # -- again and again ------------------------------------------------------------------------------------------

    def begin_anew(self) -> None:
        """Look at the plans under way as if for the first time: another guard may have worked on them."""
        self._runner.begin_anew()
        self._under_way = True

    async def close(self) -> None:
        """What is under way is left as it is: whoever holds the lease next goes on with it."""
        await self._runner.close()

    @property
    def next_in_s(self) -> float:
        """Seconds until the next :meth:`tick`: sooner while a plan is under way, which may wait for the hub."""
        return TICK_S if self._under_way or self._runner.busy else IDLE_TICK_S

    name = "pruning"

    async def wait(self) -> None:
        """Wait until the next :meth:`turn` is due."""
        await self._clock.sleep(self.next_in_s)

    async def turn(self) -> None:
        """Go on with what is under way, and begin what is due by schedule. Raises HubGuardError."""
        # Only a cycle shows whether to brake.
        if self._runner.busy or self._snapshots.last is None:
            return
        self._mandate.check()
        self._under_way = await self._runner.go_on()
        if not self._under_way:
            await self._runner.aftermath.settle_some()
            await self._forget_what_is_old()
            await self._prune_by_schedule()

    async def _forget_what_is_old(self) -> None:
        now = self._clock.now()
        if self._forgot_at is None or now - self._forgot_at >= timedelta(days=1):
            self._forgot_at = now
            await AsyncPrunes(self._journal).forget(now - timedelta(days=self._journal_days))

    async def _prune_by_schedule(self) -> None:
        every_s, now = self._settings.every_s, self._clock.now()
        if every_s <= 0 or not self._mandate.armed_for_all or not self._settings.delete_users:
            return
        last = await self._journal.recall(SCHEDULE)
        if last is not None and timedelta() <= now - last[1] < timedelta(seconds=every_s):
            return
        if self._snapshots.last is None or await why_held(self._journal):
            return
        # Before it begins: one that ends in a defect isn't tried over and over.
        await self._journal.remember(SCHEDULE, {}, now)
        if (brake := self._snapshots.brake) is not None:
            await self._skip_schedule(brake.cause)
            return
        if paused := await AsyncPrunes(self._journal).prunes_under_way():
            first = paused[0]
            await self._skip_schedule(
                f"Plan {first.digest[:12]} is paused ({first.why or 'no reason given'}), and a new plan would delete the same"
                " users. Resume or cancel it; the schedule goes on after that.",
            )
            return
        criteria = prune_stale.checked(self.default_criteria())
        plan = await self._review.plan(criteria, "hubguard", None, cap=self._settings.run_cap)
        if not plan.deletions:
            self.findings = ()
            return
        await self._plans.keep(plan, scheduled=True, why="by schedule")
        stale = len(plan.deletions) + plan.left_out
        why = prune_plan.held(stale, plan.gain.users_before, self._settings.share_cap)
        if why is None:
            acknowledged = tuple(self._settings.acknowledged)
            why = prune_plan.refusal(plan, count=len(plan.deletions), now=self._clock.now(), acknowledged=acknowledged)
        if why is not None:
            await self._skip_schedule(why)
            return
        self.findings = ()
        async with self._beginning:
            await self._begin(plan, "hubguard", "by schedule")

    async def _skip_schedule(self, why: str) -> None:
        now = self._clock.now()
        detail = f"Scheduled pruning skipped. {why}"
        since = self.findings[0].since if self.findings else now
        self.findings = (Finding(FindingKind.PRUNE_HELD, since, detail),)
        log.warning("%s", detail)
        await self._journal.note(Event.FINDING, "hubguard", 0, now, detail)


def _of(acknowledged: Iterable[str], cautions: Iterable[Caution]) -> tuple[str, ...]:
    """The names among ``acknowledged`` that one of ``cautions`` has: nobody acknowledges what they haven't seen."""
    return tuple(sorted({*acknowledged} & {caution.name for caution in cautions}))


def _by(what: str, actor: str, why: str) -> str:
    return f"{what} by {actor}" + (f": {why}" if why else "")
