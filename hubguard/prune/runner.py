"""Carrying plans out, one at a time: beginning, waiting for the hub, going on after a restart, and how it ends."""

from __future__ import annotations

import asyncio
import logging
from collections import deque
from collections.abc import Callable, Collection
from dataclasses import replace
from datetime import datetime, timedelta

from hubguard.act.lease import Books, LeaseKeeper
from hubguard.config import Settings
from hubguard.errors import BudgetExhausted, HubError, HubGuardError, JournalError, UndoError
from hubguard.hub.api import HubAPI
from hubguard.journal.model import Event
from hubguard.model import Outcome, OutcomeKind, Tally, same_run
from hubguard.pacing.clock import Clock
from hubguard.pacing.limits import backoff_s
from hubguard.prune.act import End, Ends, Pruner
from hubguard.prune.decide import plan as prune_plan
from hubguard.prune.model import PrunePlan, PruneRun, PruneState
from hubguard.prune.plans import Plans, why_held
from hubguard.prune.review import Review
from hubguard.prune.undo import Undo
from hubguard.snapshot.cycle import Snapshots
from hubguard.snapshot.model import BrakeReason

log = logging.getLogger(__name__)

AWAY_S = 3600.0
"""Whoever looked at a plan has turned to other things when HubGuard comes back after so long: a person lets it go on."""

WAIT_S, LONGEST_WAIT_S = 5.0, 60.0
"""Before a plan that waits for the hub goes on: in between, one harmless read finds out whether it answers."""

FIND_OUT_S = 30.0
"""So often users are looked at whom a plan that isn't carried out any more may have deleted all the same."""

PLANS_LOOKED_AT, FOUND_OUT_AT_ONCE = 20, 20
"""For that so many plans, the newest, and so many users of each."""

LATELY_S = 60.0
"""The rate is that of so many seconds."""

STANDS_S = 0.5
"""That a plan is under way, and acting not on hold, is read so often at full pace. Whoever pauses it does so here, and a hold
refuses every intent."""

LOOKING_S = 0.2
"""While a cycle counts users, nobody is deleted; asked after so often whether it is through."""

TRANSIENT = frozenset({BrakeReason.INCOMPLETE, BrakeReason.CHECKING, BrakeReason.PROXY_DOWN})
"""These end by themselves, as an outage does, so that a plan waits for that rather than for a person."""


class PruneRunner:
    """Carries out the plan that is under way, for one guard.

    ``armed`` is what the settings say about acting (None: people do). ``tally`` tells how users of plans were settled in this
    guard's life, ``waiting`` how many of the plans under way aren't.
    """

    def __init__(
        self,
        settings: Settings,
        hub: HubAPI,
        review: Review,
        plans: Plans,
        undo: Undo,
        snapshots: Snapshots,
        clock: Clock,
        chance: Callable[[], float],
        *,
        armed: Callable[[], bool | None],
    ) -> None:
        self.tally = Tally()
        self.waiting = 0
        self._settings = settings
        self._hub = hub
        self._review = review
        self._plans = plans
        self._undo = undo
        self._snapshots = snapshots
        self._clock = clock
        self._chance = chance
        self._armed = armed
        self._pruner: Pruner | None = None
        self._task: asyncio.Task[None] | None = None
        self._of_task = ""
        self._settled_at_s: deque[float] = deque()
        self._failures = 0
        self._not_before_s = float("-inf")
        self._stands_until_s = float("-inf")
        # How often the hub was away, and after which of these times it was last asked what is risked.
        self._away, self._risks_known_of = 0, -1
        self._turns = 0
        self._anew = True
        # By plan, how often each user was tried in vain; a person who lets it go on has it count anew.
        self._tries: dict[str, dict[int, int]] = {}
        # By plan: users of whom it isn't known whether they were deleted.
        self._unsure: dict[str, list[int]] = {}
        self._find_out_at_s = float("-inf")

    @property
    def busy(self) -> bool:
        """Whether a plan is being worked on at this moment."""
        return self._task is not None and not self._task.done()

    def under_way(self) -> frozenset[int]:
        """The ids of the intents that are being worked on here."""
        return self._pruner.under_way if self._pruner is not None else frozenset()

    def with_pace(self, run: PruneRun) -> PruneRun:
        """``run`` with its rate and the time left, where it is carried out here."""
        if run.state is not PruneState.RUNNING or run.digest != self._of_task:
            return run
        now_s = self._clock.monotonic_s()
        while self._settled_at_s and self._settled_at_s[0] < now_s - LATELY_S:
            self._settled_at_s.popleft()
        if len(self._settled_at_s) < 2:
            return run
        per_s = len(self._settled_at_s) / max(1.0, now_s - self._settled_at_s[0])
        return replace(run, per_s=per_s, left_s=(run.count - run.settled) / per_s)

    # -- beginning and going on -----------------------------------------------------------------------------------

    def start(self, books: Books, keeper: LeaseKeeper, plan: PrunePlan, run: PruneRun) -> None:
        """A person or the schedule wants it now: it is under way, or the next :meth:`go_on` finds it without waiting.

        Where it still is, since it was paused for a moment only, nothing that was read before now counts all the same.
        """
        self._failures, self._not_before_s = 0, float("-inf")
        self._tries.pop(plan.digest, None)
        if self.busy:
            self._review.look_anew()
        else:
            self._work_on(books, keeper, plan, run)

    def turned(self) -> None:
        """Somebody has paused or cancelled a plan: how it stands is read anew before anybody else is deleted."""
        self._turns += 1
        self._stands_until_s = float("-inf")

    def begin_anew(self) -> None:
        """What the journal tells of plans under way is looked at anew: another guard may have been at work since."""
        self._anew = True
        self._unsure.clear()

    async def go_on(self, books: Books, keeper: LeaseKeeper) -> bool:
        """Whether a plan is under way. It is worked on then, unless it still waits for the hub. Raises HubGuardError."""
        if self.busy:
            return True
        under_way = await books.call(books.journal.prunes_under_way)
        self.waiting = sum(run.count - run.settled for run in under_way)
        running = next((run for run in under_way if run.state is PruneState.RUNNING), None)
        anew, self._anew = self._anew, False
        if running is None:
            return False
        if anew and (why := await self._too_long_ago(books, running)):
            await self._pause(books, running.digest, why)
        elif self._clock.monotonic_s() >= self._not_before_s:
            plan = await self._plans.plan(running.digest)
            if not self.busy:
                self._work_on(books, keeper, plan, running)
        return True

    async def _too_long_ago(self, books: Books, run: PruneRun) -> str:
        """Why a person should look before a plan goes on that another guard, or we in an earlier life, has left; or ""."""
        now = self._clock.now()
        turned_at = await books.call(books.journal.prune_turned_at, run.digest)
        if turned_at is not None and now - turned_at > timedelta(seconds=AWAY_S):
            return f"HubGuard was away since {turned_at:%Y-%m-%d %H:%M} UTC. Resume it if it is still wanted."
        life_s = self._settings.prune.plan_life_s
        if run.began_at is not None and now - run.began_at > timedelta(seconds=life_s):
            return f"HubGuard was restarted, and the plan was begun over {life_s:g} s ago. Resume it if it is still wanted."
        return ""

    # -- who has gone after all -----------------------------------------------------------------------------------

    def works_on(self, digest: str) -> bool:
        """Whether somebody of that plan may be being deleted at this moment."""
        return self.busy and self._of_task == digest

    async def find_out(self, books: Books, run: PruneRun) -> None:
        """Users of that plan whom it was about to delete, and who are gone by now, are settled as deleted.

        A guard that ended in between, or a hub that took longer than anybody waited, leaves such behind; who was skipped
        stays so. Nothing while the plan is worked on here. Raises HubGuardError where the hub doesn't tell of one of them.
        """
        if run.began_at is None or self.works_on(run.digest):
            return
        plan = await self._plans.plan(run.digest)
        self._unsure.pop(run.digest, None)
        for position in await self._unsure_of(books, plan, run.began_at):
            await self._is_settled(books, plan, position)

    async def _is_settled(self, books: Books, plan: PrunePlan, position: int) -> bool:
        deletion = plan.deletions[position]
        user = await self._hub.get_user(deletion.user)
        if user is not None and same_run(user.created, deletion.created):
            return False
        outcome, now = Outcome(OutcomeKind.DONE, "that user was found gone by a later look"), self._clock.now()
        if await books.call(books.journal.settle_pruned, plan.digest, position, outcome, now):
            self._settled(outcome)
            detail = f"plan {plan.digest[:12]} has deleted {deletion.user} after all: a later look found them gone"
            await books.call(books.journal.note, Event.NOTE, "hubguard", 0, now, detail)
        return True

    async def _unsure_of(self, books: Books, plan: PrunePlan, began_at: datetime) -> list[int]:
        settled = {one.position: one.outcome.kind for one in await books.call(books.journal.pruned, plan.digest)}
        asked: dict[str, list[datetime | None]] = {}
        for user, created in await books.call(books.journal.deletions_intended, began_at):
            asked.setdefault(user, []).append(created)
        return [
            position
            for position, deletion in enumerate(plan.deletions)
            if settled.get(position) not in (OutcomeKind.DONE, OutcomeKind.SKIPPED)
            and any(same_run(deletion.created, created) for created in asked.get(deletion.user, ()))
        ]

    async def find_out_lately(self, books: Books) -> None:
        """So for plans that are paused or were over lately, a few users of each, every now and then. Raises JournalError."""
        now_s = self._clock.monotonic_s()
        if now_s < self._find_out_at_s:
            return
        self._find_out_at_s = now_s + FIND_OUT_S
        lately = self._clock.now() - timedelta(seconds=AWAY_S)
        runs = {run.digest: run for run in await self._plans.runs(PLANS_LOOKED_AT)}
        runs |= {run.digest: run for run in await books.call(books.journal.prunes_under_way)}
        for run in runs.values():
            over = run.ended_at is not None and run.ended_at >= lately
            if run.began_at is not None and (run.state is PruneState.PAUSED or over):
                try:
                    await self._find_out_some(books, run, run.began_at)
                except (HubError, BudgetExhausted) as error:
                    log.info("What became of users of plan %s isn't known yet: %s", run.digest[:12], error)
                    return

    async def _find_out_some(self, books: Books, run: PruneRun, began_at: datetime) -> None:
        plan = await self._plans.plan(run.digest)
        if run.digest not in self._unsure:
            self._unsure[run.digest] = await self._unsure_of(books, plan, began_at)
        unsure = self._unsure[run.digest]
        for position in unsure[:FOUND_OUT_AT_ONCE]:
            settled = await self._is_settled(books, plan, position)
            # Whoever is still there is looked at again when all others were.
            unsure.remove(position)
            if not settled:
                unsure.append(position)

    async def close(self) -> None:
        """What is under way is left as it is: whoever holds the lease next goes on with it."""
        if self._task is not None:
            self._task.cancel()
            await asyncio.gather(self._task, return_exceptions=True)

    # -- working --------------------------------------------------------------------------------------------------

    def _work_on(self, books: Books, keeper: LeaseKeeper, plan: PrunePlan, run: PruneRun) -> None:
        self._settled_at_s.clear()
        self._unsure.pop(plan.digest, None)
        self._of_task = plan.digest
        self.waiting = run.count - run.settled
        self._task = asyncio.get_running_loop().create_task(self._carry_out(books, keeper, plan, run))

    async def _carry_out(self, books: Books, keeper: LeaseKeeper, plan: PrunePlan, run: PruneRun) -> None:
        try:
            end = await self._work(books, keeper, plan, run)
        except UndoError as error:
            end = End(Ends.PAUSES, str(error))
        except HubGuardError as error:
            end = End(Ends.WAITS, str(error))
        except Exception:
            log.exception("Plan %s came upon a defect of HubGuard", plan.digest[:12])
            end = End(Ends.WAITS, "a defect in HubGuard; its log tells more. It is tried again")
        finally:
            self._pruner = None
        try:
            await self._conclude(books, plan, end)
        except JournalError as error:
            log.warning("The journal doesn't tell yet how plan %s stands: %s", plan.digest[:12], error)

    def acknowledged(self, run: PruneRun) -> frozenset[str]:
        """The names of the cautions that are acknowledged for that plan: by people, or the settings of now if scheduled."""
        return frozenset((*run.acknowledged, *(self._settings.prune.acknowledged if run.scheduled else ())))

    async def _work(self, books: Books, keeper: LeaseKeeper, plan: PrunePlan, run: PruneRun) -> End:
        settings, acknowledged = self._settings, self.acknowledged(run)
        # The hub may have another spawner since the plan was made, or since we were here last.
        self._hub_was_away()
        if (end := await self._risks_more(acknowledged)) is not None:
            return end
        in_undo = await self._undo.saved(run)
        open_intents = await books.call(books.journal.open_intents)
        if run.why:
            await books.call(books.journal.say_of_prune, plan.digest, "")
        self._pruner = Pruner(
            self._hub,
            books,
            keeper,
            self._clock,
            self._chance,
            lambda deletion: self._review.second_look(plan, deletion, acknowledged, in_undo.get(deletion.user)),
            self._review.is_gone,
            lambda: self._may_go(books, keeper, plan.digest, acknowledged),
            self._hub_was_away,
            plan=plan,
            run=run,
            in_undo=in_undo,
            told=self._settled,
            rate=settings.prune.rate,
            concurrency=settings.budget.concurrency,
            verify_s=settings.cull.verify_s,
            armed=self._armed(),
            failures=self._tries.setdefault(plan.digest, {}),
        )
        return await self._pruner.work(open_intents)

    def _hub_was_away(self) -> None:
        """Nothing that it told before counts when it is back."""
        self._review.look_anew()
        self._away += 1

    async def _risks_more(self, acknowledged: Collection[str]) -> End | None:
        """How it ends where the hub of now takes an acknowledgement that isn't there. Raises HubError."""
        away = self._away
        missing = prune_plan.unacknowledged(await self._review.cautions(), acknowledged)
        if missing is None:
            self._risks_known_of = away
            return None
        return End(
            Ends.PAUSES,
            f"since it was begun, the hub has changed. To go on, acknowledge this by name when you resume it. {missing}",
        )

    async def _may_go(
        self, books: Books, keeper: LeaseKeeper, digest: str, acknowledged: Collection[str]
    ) -> End | None:
        while self._snapshots.counting:
            await self._clock.sleep(LOOKING_S)
        if keeper.lease is None:
            return End(Ends.LEFT)
        if not self._settings.prune.delete_users:
            return End(Ends.PAUSES, "HubGuardPrune.delete_users is False, so HubGuard deletes nobody.")
        if self._risks_known_of != self._away:
            try:
                if (end := await self._risks_more(acknowledged)) is not None:
                    return end
            except (HubError, BudgetExhausted) as error:
                return End(Ends.WAITS, str(error))
        # Last of all: who pauses it while the hub is asked does so here, too.
        if self._clock.monotonic_s() >= self._stands_until_s:
            turns = self._turns
            if await books.call(books.journal.prune_state, digest) is not PruneState.RUNNING:
                return End(Ends.LEFT)
            if (held := await why_held(books)) is not None:
                return End(Ends.PAUSES, f"{held}. Resume acting, then this plan.")
            if turns == self._turns:
                self._stands_until_s = self._clock.monotonic_s() + STANDS_S
        brake = self._snapshots.brake
        if brake is None:
            return None
        why = f"HubGuard holds back, since {brake.why.rstrip('.')}. {brake.ends}"
        return End(Ends.WAITS if brake.reason in TRANSIENT else Ends.PAUSES, why)

    def _settled(self, outcome: Outcome) -> None:
        self._settled_at_s.append(self._clock.monotonic_s())
        self._failures = 0
        self.waiting = max(0, self.waiting - 1)
        count = getattr(self.tally, outcome.kind.value) + 1
        self.tally = replace(self.tally, **{outcome.kind.value: count})
        if outcome.kind is OutcomeKind.DONE:
            self._snapshots.count_deleted()

    # -- ending ---------------------------------------------------------------------------------------------------

    async def _conclude(self, books: Books, plan: PrunePlan, end: End) -> None:
        if end.how is Ends.DONE:
            await self._turn(books, plan.digest, PruneState.DONE, "")
            self._tries.pop(plan.digest, None)
            self._review.forget()
        elif end.how is Ends.PAUSES:
            await self._pause(books, plan.digest, end.why)
        elif end.how is Ends.WAITS:
            self._failures += 1
            wait_s = WAIT_S + backoff_s(self._failures, self._chance(), WAIT_S, LONGEST_WAIT_S)
            self._not_before_s = self._clock.monotonic_s() + wait_s
            log.info("Plan %s waits: %s", plan.digest[:12], end.why)
            await books.call(books.journal.say_of_prune, plan.digest, end.why)

    async def _pause(self, books: Books, digest: str, why: str) -> None:
        log.warning("Plan %s is paused: %s", digest[:12], why)
        await self._turn(books, digest, PruneState.PAUSED, why)

    async def _turn(self, books: Books, digest: str, to: PruneState, why: str) -> None:
        """Unless a person has turned it before."""
        now = self._clock.now()
        await books.call(books.journal.turn_prune, digest, (PruneState.RUNNING,), to, "hubguard", why, now)
