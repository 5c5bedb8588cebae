"""Plans repairs and carries them out, one plan at a time, asked for or by policy."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable, Collection, Coroutine
from dataclasses import dataclass, replace
from datetime import datetime, timedelta
from typing import Any

from hubguard.act.mandate import Mandate
from hubguard.backends.port import Backends
from hubguard.drift.act import Repairer
from hubguard.drift.decide import follow
from hubguard.drift.decide.repair import DOUBTED_FOR_S, doubted, plan_repairs, remedy
from hubguard.drift.looks import Looks, in_a_line
from hubguard.drift.model import REMEDIES, ROUTE_KINDS, Drift, DriftKind, Repair, Repaired, RepairPlan
from hubguard.errors import HubGuardError
from hubguard.hub.api import HubAPI
from hubguard.journal.model import Event
from hubguard.model import ActionKind, Cause, Order, Outcome, OutcomeKind
from hubguard.pacing.clock import Clock
from hubguard.pacing.limits import backoff_s
from hubguard.proxy.model import ProxyWatchStatus, WatchState
from hubguard.snapshot.cycle import SETTLED_BY_DRIFT, Snapshots
from hubguard.words import count as counted

log = logging.getLogger(__name__)

LAST_REPAIRS = 200
"""Maximum repairs in the report."""

PLANS = 20
"""Maximum plans that wait to be carried out. A new one replaces the oldest."""

OVERTIME_S = 600.0
"""Seconds after a plan's expiry at which repairs that are still under way are given up as hung."""

ENDS_S = 1.0
"""Seconds that a cancelled repair gets to end. One that hasn't ended by then never will."""

NOT_KNOWN = Outcome(
    OutcomeKind.UNVERIFIED,
    "HubGuard ended before the outcome was known. The intent is in the journal, and the next looks settle it",
)


@dataclass(frozen=True, slots=True)
class Limits:
    """Limits that looks and repairs share with culling: seconds, and how many requests at once."""

    pending_limit_s: float
    concurrency: int
    verify_s: float
    retry_base_s: float
    retry_max_s: float


@dataclass(frozen=True, slots=True)
class _Failed:
    """How often in a row repairing a difference by policy has failed, and when to try again."""

    count: int
    next_at: datetime


class Repairs:
    """Plans repairs and carries them out, one plan at a time.

    ``kinds`` are repaired without being asked. ``watch`` returns how the proxy is. ``done`` are the last repairs, newest
    first; those under way have no outcome.
    """

    def __init__(
        self,
        looks: Looks,
        hub: HubAPI,
        backends: Backends | None,
        snapshots: Snapshots,
        mandate: Mandate,
        clock: Clock,
        chance: Callable[[], float],
        watch: Callable[[], ProxyWatchStatus],
        kinds: Collection[DriftKind],
        limits: Limits,
    ) -> None:
        self.done: tuple[Repaired, ...] = ()
        self.kinds = frozenset(kinds)
        self.busy = False
        self._looks = looks
        self._hub = hub
        self._backends = backends
        self._snapshots = snapshots
        self._mandate = mandate
        self._clock = clock
        self._chance = chance
        self._watch = watch
        self._limits = limits
        self._settling = asyncio.Lock()
        self._tasks: set[asyncio.Task[None]] = set()
        self._plans: dict[str, RepairPlan] = {}
        self._begun: dict[str, str] = {}
        self._by_policy: dict[str, tuple[datetime, DriftKind]] = {}
        self._failed: dict[str, _Failed] = {}
        self._repairer: Repairer | None = None

    @property
    def doubted(self) -> tuple[DriftKind, ...]:
        """The kinds of which more are there at once, or were repaired automatically, than is likely."""
        horizon = self._clock.now() - timedelta(seconds=DOUBTED_FOR_S)
        self._by_policy = {id: (at, kind) for id, (at, kind) in self._by_policy.items() if at > horizon}
        shown = follow.shown(self._looks.drifts)
        there = {drift.id for drift in shown}
        ended = [kind for id, (_, kind) in self._by_policy.items() if id not in there]
        return doubted(shown, self._looks.server_count, ended)

    async def close(self) -> None:
        """Give up what is under way. Its intents stay open, and the next look of any guard settles them."""
        for task in self._tasks:
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)

    # -- plans ----------------------------------------------------------------------------------------------------

    def plan(self, *, ids: tuple[str, ...] = (), kinds: tuple[DriftKind, ...] = ()) -> RepairPlan:
        """A plan for these raised differences, and for all of these kinds. Raises HubGuardError if one can't be repaired."""
        known = {drift.id: drift for drift in self._looks.drifts}
        for id in ids:
            drift = known.get(id)
            if drift is None:
                raise HubGuardError(f"No difference {id}: it was resolved, or never existed. Reload the list.")
            if drift.raised_at is None:
                raise HubGuardError(f"{in_a_line(drift)}: only suspected so far. Wait for the next looks.")
            if drift.kind not in REMEDIES:
                raise HubGuardError(f"{drift.kind.value} is only reported: HubGuard can't repair it.")
            if remedy(drift) is None:
                raise HubGuardError(f"{in_a_line(drift)}: HubGuard can't repair this one. {_why_not(drift)}")
        for kind in kinds:
            if kind not in REMEDIES:
                raise HubGuardError(f"{kind.value} is only reported: HubGuard can't repair it.")
        wanted = [drift for drift in known.values() if drift.raised_at and (drift.id in ids or drift.kind in kinds)]
        plan = plan_repairs(wanted, self._clock.now())
        if not plan.repairs:
            raise HubGuardError("Nothing to repair: none of these differences is raised and can be repaired.")
        self._plans.pop(plan.digest, None)
        self._plans[plan.digest] = plan
        while len(self._plans) > PLANS:
            del self._plans[next(iter(self._plans))]
        return plan

    def only_routes(self, digest: str) -> bool:
        """Whether the plan of that digest only has the hub check its routes."""
        plan = self._plans.get(digest)
        return plan is not None and all(repair.action.kind is ActionKind.CHECK_ROUTES for repair in plan.repairs)

    def begin(
        self,
        digest: str,
        count: int,
        order: Order,
    ) -> RepairPlan:
        """Begin to carry out the plan of that digest. The caller has checked hold and brake. Raises HubGuardError."""
        plan = self._plans.get(digest)
        if plan is None and digest in self._begun:
            raise HubGuardError(f"Nothing was done: {self._begun[digest]} has begun this plan already.")
        if plan is None or self._clock.now() >= plan.expires_at:
            raise HubGuardError("Nothing was done: no such plan, or it has expired. Plan again.")
        if count != len(plan.repairs):
            raise HubGuardError(f"Nothing was done: the plan has {counted(len(plan.repairs), 'repair')}, not {count}.")
        if self.busy:
            raise HubGuardError("Nothing was done: other repairs are under way. Try again when they have ended.")
        del self._plans[digest]
        self._begun[digest] = f"{order.actor}, at {self._clock.now():%H:%M} UTC,"
        while len(self._begun) > PLANS:
            del self._begun[next(iter(self._begun))]
        self._begin(plan, order)
        return plan

    def begin_by_policy(self) -> None:
        """Begin what the policy repairs without being asked, except what is backing off."""
        self._forget_failures()
        if self.busy or not self._mandate.holds_lease:
            return
        if self._watch().state in (WatchState.GONE, WatchState.HANGS, WatchState.WIPED):
            # The watch has the hub fill the table as soon as the proxy answers. Before, the hub could only wait for it, and a
            # server that is stopped without its proxy becomes a ghost (5.5, 6.1).
            return
        now = self._clock.now()
        ours = [
            drift
            for drift in self._looks.drifts
            if drift.raised_at is not None and drift.kind in self.kinds and drift.missed == 0
        ]
        ready = [drift for drift in ours if drift.id not in self._failed or now >= self._failed[drift.id].next_at]
        due = []
        if any(drift.kind in ROUTE_KINDS for drift in ready):
            # One check is for all of them: were each checked when its own time has come, there would be no backing off.
            due = [drift for drift in ours if drift.kind in ROUTE_KINDS]
        if self._snapshots.brake is None:
            # A brake is about destructive acts. Checking routes destroys nothing, and after an outage it is what helps.
            due += [drift for drift in ready if drift.kind not in ROUTE_KINDS and drift.kind not in self.doubted]
        plan = plan_repairs(due, now)
        if plan.repairs:
            self._by_policy.update({drift.id: (now, drift.kind) for drift in due if drift.kind not in ROUTE_KINDS})
            self._begin(plan, Order("hubguard", "by policy"))

    def _forget_failures(self) -> None:
        followed = {drift.id for drift in self._looks.drifts}
        self._failed = {id: failed for id, failed in self._failed.items() if id in followed}

    # -- carrying out ---------------------------------------------------------------------------------------------

    def _begin(
        self,
        plan: RepairPlan,
        order: Order,
    ) -> None:
        """Carry out ``plan`` in a task of its own, so that looks go on beside it."""
        self.busy = True
        began_at = self._clock.now()
        for repair in plan.repairs:
            self._put(Repaired(repair, order.actor, began_at))
        log.info("%s by %s (%s).", counted(len(plan.repairs), "repair"), order.actor, order.why)
        task = asyncio.get_running_loop().create_task(self._carry_out(plan, order))
        self._tasks.add(task)
        task.add_done_callback(self._task_ended)

    def _task_ended(self, task: asyncio.Task[None]) -> None:
        self._tasks.discard(task)
        if not self._tasks:
            # A task that is cancelled before its first step never reaches its own end.
            self._end(NOT_KNOWN)

    def _end(self, unknown: Outcome) -> None:
        """Nothing is under way any more. ``unknown`` is the outcome of each repair that has none yet."""
        self.busy = False
        for repaired in [repaired for repaired in self.done if repaired.ended_at is None]:
            self._put(replace(repaired, ended_at=self._clock.now(), outcome=unknown), instead_of=repaired)

    async def _carry_out(
        self,
        plan: RepairPlan,
        order: Order,
    ) -> None:
        unknown = NOT_KNOWN
        try:
            if order.asked:
                fence = self._mandate.fence
                note = f"asked for {counted(len(plan.repairs), 'repair')}: {order.why}"
                await self._mandate.journal.note(Event.NOTE, order.actor, fence, self._clock.now(), note)
            repairing = self._the_repairer().run(
                plan,
                order,
                concurrency=self._limits.concurrency,
                running=self._looks.server_count,
            )
            await self._within(repairing, (plan.expires_at - self._clock.now()).total_seconds() + OVERTIME_S)
        except HubGuardError as error:
            log.warning("Repairs ended early: %s", error)
            unknown = Outcome(OutcomeKind.UNVERIFIED, f"repairs ended early: {error}")
        except Exception:
            log.exception("Repairs ended in an unexpected error (a bug in HubGuard)")
        finally:
            self._end(unknown)
        try:
            await self._looks.look(self._mandate.journal)
        except HubGuardError as error:
            log.warning("No look for drift after repairs: %s", error)
        except Exception:
            log.exception("The look after repairs ended in an unexpected error (a bug in HubGuard)")

    async def _within(self, working: Coroutine[Any, Any, object], longest_s: float) -> None:
        """Await ``working``, at most this long: a backend may be anybody's software, and may never answer."""
        task = asyncio.ensure_future(working)
        patience = asyncio.ensure_future(self._clock.sleep(longest_s))
        try:
            await asyncio.wait({task, patience}, return_when=asyncio.FIRST_COMPLETED)
        finally:
            patience.cancel()
            if hangs := not task.done():
                task.cancel()
                # So that nothing is written after the journal is closed. A task that ignores it is left behind.
                await asyncio.wait({task}, timeout=ENDS_S)
        if hangs:
            if self._repairer is not None:
                self._repairer.abandon()
            self._repairer = None
            raise HubGuardError(f"they hung and were given up after {longest_s:g} s")
        task.result()

    def _the_repairer(self) -> Repairer:
        if self._repairer is None:
            self._repairer = Repairer(
                self._hub,
                self._backends,
                self._mandate,
                self._clock,
                self._looks.look_at,
                verify_s=self._limits.verify_s,
                on_outcome=self._conclude,
            )
        return self._repairer

    async def settle_what_was_left(self) -> None:
        """Settle by a look the intents that an earlier guard left open. Raises JournalError."""
        async with self._settling:
            left = [
                entry
                for entry in await self._mandate.journal.open_intents()
                if entry.action in SETTLED_BY_DRIFT and entry.id not in self._mandate.intents_under_way
            ]
            if left:
                await self._the_repairer().settle_left(left)

    def _conclude(self, repair: Repair, outcome: Outcome) -> None:
        """Record the outcome of one repair, and when to try again."""
        now = self._clock.now()
        for repaired in self.done:
            if repaired.repair == repair and repaired.ended_at is None:
                self._put(replace(repaired, ended_at=now, outcome=outcome), instead_of=repaired)
                break
        action = repair.action
        if outcome.cause is Cause.CHANGED_NOTHING:
            self._looks.note_ghost(action.user, action.name, action.started)
        if outcome.kind is OutcomeKind.DONE:
            self._looks.note_repaired(repair.drifts)
        # One draw for all differences of a repair: they failed together, and one request is for all of them.
        draw = self._chance()
        for id in repair.drifts:
            if outcome.kind is OutcomeKind.DONE:
                self._failed.pop(id, None)
            else:
                count = self._failed[id].count + 1 if id in self._failed else 1
                wait_s = backoff_s(count, draw, self._limits.retry_base_s, self._limits.retry_max_s)
                self._failed[id] = _Failed(count, now + timedelta(seconds=wait_s))

    def _put(self, repaired: Repaired, instead_of: Repaired | None = None) -> None:
        others = tuple(other for other in self.done if other is not instead_of)
        self.done = (repaired, *others)[:LAST_REPAIRS]


def _why_not(drift: Drift) -> str:
    if drift.kind is not DriftKind.SERVER_ORPHAN:
        return "Only a pending start can be interrupted."
    if drift.backend is None:
        return "HubGuard can't see it. End it yourself where the hub starts its servers."
    if drift.backend.proof:
        return f"{drift.backend.name} may be what runs the server now. Check it yourself."
    return f"HubGuard can't confirm that {drift.backend.name} belongs to this hub. Check it yourself."
