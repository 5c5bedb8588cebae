"""One cycle: observe, decide, act, record; and what one cycle remembers for the next. The only module that knows all four."""

from __future__ import annotations

import asyncio
import contextlib
import logging
from collections.abc import Iterable, Mapping
from dataclasses import replace
from datetime import datetime, timedelta

from hubguard.act.attempt import LOOK_LASTS_S
from hubguard.act.mandate import Mandate
from hubguard.config import Settings
from hubguard.cull.act import Executor
from hubguard.cull.decide import rules
from hubguard.cull.decide.judge import CullPolicy, judge, judge_all, judge_users
from hubguard.cull.decide.judge import plan as plan_cull
from hubguard.cull.hook import Hooked
from hubguard.cull.model import CycleReport, Known, Plan, Reason, Standing, Verdict
from hubguard.errors import JournalError, ProxyError
from hubguard.hub.api import HubAPI
from hubguard.journal.asynchronous import AsyncJournal
from hubguard.journal.model import Event, Exemption, Failures
from hubguard.model import (
    Action,
    ActionKind,
    Finding,
    FindingKind,
    Order,
    Outcome,
    OutcomeKind,
    Server,
    Tally,
)
from hubguard.pacing.budget import Budget
from hubguard.pacing.clock import Clock
from hubguard.snapshot.cycle import Findings, Snapshots
from hubguard.snapshot.decide import activity
from hubguard.snapshot.decide.brake import Caution
from hubguard.snapshot.model import Brake, Evidence, Run, Situation
from hubguard.snapshot.observe import Observer

log = logging.getLogger(__name__)

HISTORY_S = 7 * 86400.0
"""How far back failures count for the back-off of a run; longer than the longest back-off there can be."""

RECENT_S = 3600.0
"""What counts as recent, where errors are compared with successes."""

OVERDUE_S = 1800.0
"""A server that has been due for so long, and three cycles at the least, is a finding: nobody noticed for 29 hours, once."""

REMEMBERED_NOTES = 5000
"""So many of the last notes are looked through after a start, so that a restart doesn't say everything once more."""


class Cycles:
    """Runs cycles of culling, one at a time, and remembers between them.

    After each cycle ``last`` is its report, ``findings`` what an operator should look at, ``oldest_overdue`` the server that
    has been due for longest, ``tally`` and ``recent`` how actions ended, and ``last_good_at`` when a cycle last saw all and
    nothing but people kept it from doing what was due.
    """

    def __init__(
        self,
        settings: Settings,
        hub: HubAPI,
        budget: Budget,
        snapshots: Snapshots,
        mandate: Mandate,
        observer: Observer,
        clock: Clock,
        *,
        hook: Hooked | None = None,
    ) -> None:
        self.policy = policy_of(settings)
        self.last: CycleReport | None = None
        self.last_good_at: datetime | None = None
        self.oldest_overdue: Verdict | None = None
        self.tally = Tally()
        self.recent = Tally()
        self._settings = settings
        self._hub = hub
        self._budget = budget
        self._snapshots = snapshots
        self._mandate = mandate
        self._observer = observer
        self._clock = clock
        self._hook = hook
        self._of_rules = rules.analyse(self.policy.rules)
        self._findings = Findings()
        self._one_at_a_time = asyncio.Lock()
        self._announced: set[Run] | None = None

    @property
    def findings(self) -> tuple[Finding, ...]:
        """What an operator should look at, as of the last cycle."""
        return self._findings.now

    async def run(
        self,
        order: Order,
        *,
        dry_run: bool = False,
        policy: CullPolicy | None = None,
        rate: float | None = None,
        concurrency: int | None = None,
    ) -> CycleReport:
        """The report of one cycle; it waits for the one that is under way. Raises JournalError.

        ``policy``, ``rate`` and ``concurrency`` are for this cycle alone.
        """
        async with self._one_at_a_time:
            await self._snapshots.begin(self._mandate.journal)
            with self._budget.lowered(rate=rate, concurrency=concurrency):
                report = await self._run(
                    order,
                    dry_run=dry_run,
                    policy=policy or self.policy,
                    width=self._width(rate, concurrency),
                )
            if not dry_run and policy in {None, self.policy}:
                self.last = report
            return report

    async def _run(
        self,
        order: Order,
        *,
        dry_run: bool,
        policy: CullPolicy,
        width: int,
    ) -> CycleReport:
        journal, began_at, why_observing = self._mandate.journal, self._clock.now(), self._mandate.why_observing
        situation = await self._snapshots.look(
            journal, users=policy.users, inactive_since=_inactive_since(policy, began_at), whole=order.asked
        )
        now, snapshot = situation.at, situation.snapshot
        exemptions = await journal.exemptions(now)
        known = await self._known(journal, situation, exemptions)
        stance = await journal.stance()
        verdicts = judge_all(snapshot.servers, policy, known, now)
        if self._hook is not None:
            known = await self._ask_hook(self._hook, verdicts, known, now)
            verdicts = judge_all(snapshot.servers, policy, known, now)
        user_verdicts = judge_users(snapshot.users or (), policy, exemptions, now, situation.clock_from)
        plan = plan_cull(verdicts, policy, now, user_verdicts)
        judgement = await self._snapshots.judge(journal, due=len(plan.actions) + plan.left_out, keep=not dry_run)
        skipped_why = _why_not_to_act(judgement.brake, stance.held, why_observing, asked=order.asked, dry_run=dry_run)
        outcomes: tuple[tuple[Action, Outcome], ...] = ()
        if skipped_why:
            if not dry_run:
                await self._announce(journal, verdicts, skipped_why, complete=snapshot.complete)
        elif plan.actions:
            executor = Executor(
                self._hub,
                self._clock,
                policy,
                _KnownNow(self._observer, journal, self._hook, self._clock, known, policy, situation.clock_from),
                lambda action: self._mandate.attempt(action, order),
                self._mandate.settle,
                verify_s=self._settings.cull.verify_s,
                running=len(snapshot.servers),
            )
            outcomes = await executor.run(plan, concurrency=width)
            await self._note_cycle(journal, order.actor, plan, outcomes)
        self._count(outcomes)
        self._snapshots.learn(outcomes)
        if not dry_run:
            await self._snapshots.conclude(journal)
        ended_at = self._clock.now()
        report = CycleReport(began_at, ended_at, snapshot, verdicts, plan, outcomes, skipped_why, user_verdicts)
        if not dry_run:
            self.recent = await journal.tally(ended_at - timedelta(seconds=RECENT_S))
            self.oldest_overdue = oldest_overdue(report)
            if snapshot.complete and judgement.brake is None:
                self.last_good_at = ended_at
            await self._find(journal, report, wanted=not (stance.held or why_observing))
        return report

    # -- observing ------------------------------------------------------------------------------------------------

    async def _known(
        self, journal: AsyncJournal, situation: Situation, exemptions: tuple[Exemption, ...]
    ) -> dict[Run, Known]:
        since = situation.at - timedelta(seconds=HISTORY_S)
        failures: Mapping[Run, Failures] = await journal.failures(since)
        routes = activity.by_server(situation.snapshot.routes or {})
        known = {}
        for server in situation.snapshot.servers:
            seen, route = situation.seen.get(server.key), routes.get(server.key)
            # A proxy that has lost its table has lost traffic, too, that the hub may not have taken over yet.
            noted = seen.active_at if seen is not None and seen.evidence is Evidence.PROXY else None
            known[server.run] = Known(
                failures=failures.get(server.run),
                exemption=_exemption_of(server.user, server.name, exemptions, situation.at),
                proxy_activity=_latest(route.last_activity if route else None, noted),
                active_at=seen.active_at if seen else None,
                pending_since=seen.pending_since if seen else None,
                clock_from=situation.clock_from,
                restores=situation.restores,
            )
        return known

    async def _ask_hook(
        self, hook: Hooked, verdicts: Iterable[Verdict], known: Mapping[Run, Known], now: datetime
    ) -> dict[Run, Known]:
        concerned = [verdict for verdict in verdicts if _hook_decides(verdict)]
        answers = await hook.ask(concerned, now)
        told = dict(known)
        for verdict in concerned:
            said, error = answers[verdict.server.key]
            told[verdict.server.run] = replace(told[verdict.server.run], hook=said, hook_error=error)
        return told

    # -- recording ------------------------------------------------------------------------------------------------

    async def _announce(
        self, journal: AsyncJournal, verdicts: tuple[Verdict, ...], why: str, *, complete: bool
    ) -> None:
        """The journal says once for each run what would have been done to it."""
        if self._announced is None:
            told = await journal.entries(event=Event.ANNOUNCED, limit=REMEMBERED_NOTES)
            self._announced = {(entry.user or "", entry.server or "", entry.started) for entry in told}
        due = {verdict.server.run: verdict for verdict in verdicts if verdict.standing is Standing.STOP}
        news = [
            Action(verdict.server.user, verdict.server.name, verdict.server.started, None, verdict.reason.value)
            for run, verdict in due.items()
            if run not in self._announced
        ]
        if news:
            detail = f"would be stopped now, but {why}"
            await journal.announce(news, "hubguard", self._clock.now(), detail)
        # What wasn't seen this time, as with the hub down, has been said all the same.
        self._announced = set(due) if complete else self._announced | set(due)

    async def _note_cycle(
        self,
        journal: AsyncJournal,
        actor: str,
        plan: Plan,
        outcomes: tuple[tuple[Action, Outcome], ...],
    ) -> None:
        counts = {kind: sum(outcome.kind is kind for _, outcome in outcomes) for kind in OutcomeKind}
        told = ", ".join(f"{count} {kind.value}" for kind, count in counts.items() if count)
        rest = f"; {plan.left_out} more wait for the next cycle" if plan.left_out else ""
        users = sum(action.kind is ActionKind.DELETE_USER for action in plan.actions)
        what = f"{len(plan.actions) - users} servers to stop" + (f", {users} users to delete" if users else "")
        fence = self._mandate.fence
        with contextlib.suppress(JournalError):
            await journal.note(Event.CYCLE, actor, fence, self._clock.now(), f"{what}: {told}{rest}")

    def _count(self, outcomes: tuple[tuple[Action, Outcome], ...]) -> None:
        by = {kind: sum(outcome.kind is kind for _, outcome in outcomes) for kind in OutcomeKind}
        self.tally = Tally(
            done=self.tally.done + by[OutcomeKind.DONE],
            skipped=self.tally.skipped + by[OutcomeKind.SKIPPED],
            failed=self.tally.failed + by[OutcomeKind.FAILED],
            unverified=self.tally.unverified + by[OutcomeKind.UNVERIFIED],
        )

    # -- findings -------------------------------------------------------------------------------------------------

    async def _find(self, journal: AsyncJournal, report: CycleReport, *, wanted: bool) -> None:
        """``findings`` are those of this cycle. ``wanted``: people want what is due to be done."""
        now, late = report.ended_at, self.oldest_overdue
        found = [Finding(FindingKind.RULE, now, text) for text in self._of_rules]
        limit = timedelta(seconds=max(OVERDUE_S, 3 * self._settings.cull.every_s))
        if wanted and late is not None and late.due_at is not None and now - late.due_at > limit:
            text = f"The server {late.server.label} has been due since {late.due_at:%Y-%m-%d %H:%M} UTC and still runs."
            found.append(Finding(FindingKind.NOT_CULLING, late.due_at, text, *late.server.key))
        await self._findings.update(journal, found, now)

    def _width(self, rate: float | None, concurrency: int | None) -> int:
        """How many servers are worked on at once: not so many that a second look grows old while it waits for its turn."""
        use = self._budget.use()
        rate = min(rate or use.rate, use.rate)
        return max(1, min(concurrency or use.concurrency_cap, use.concurrency_cap, int(rate * LOOK_LASTS_S / 3)))


class _KnownNow:
    """What is known of a server at its second look: its exemptions, the proxy's table and the hook are asked again."""

    def __init__(
        self,
        observer: Observer,
        journal: AsyncJournal,
        hook: Hooked | None,
        clock: Clock,
        known: Mapping[Run, Known],
        policy: CullPolicy,
        clock_from: datetime | None,
    ) -> None:
        self._observer = observer
        self._clock_from = clock_from
        self._journal = journal
        self._hook = hook
        self._clock = clock
        self._known = known
        self._policy = policy

    async def __call__(self, action: Action, server: Server | None) -> Known:
        known = self._known.get((action.user, action.name, action.started), Known())
        now = self._clock.now()
        exemptions = await self._journal.exemptions(now, user=action.user)
        routes = await self._observer.routes()
        if routes is None:
            raise ProxyError("the proxy can't be read just now, so that nobody's use of their server can be seen")
        route = routes.get((action.user, action.name))
        known = replace(
            known,
            exemption=next(iter(exemptions), None)
            if action.kind is ActionKind.DELETE_USER
            else _exemption_of(action.user, action.name, exemptions, now),
            proxy_activity=_latest(route.last_activity if route else None, known.proxy_activity),
            clock_from=self._clock_from,
            hook=None,
            hook_error="",
        )
        if self._hook is not None and server is not None:
            verdict = judge(server, self._policy, replace(known, failures=None), now)
            if _hook_decides(verdict):
                said, error = (await self._hook.ask([verdict], now))[server.key]
                known = replace(known, hook=said, hook_error=error)
        return known


def policy_of(settings: Settings) -> CullPolicy:
    """What the settings want culled."""
    cull = settings.cull
    return CullPolicy(
        idle_timeout_s=cull.idle_timeout_s,
        max_age_s=cull.max_age_s,
        admin_servers=cull.admin_servers,
        default_servers=cull.default_servers,
        named_servers=cull.named_servers,
        remove_named_servers=cull.remove_named_servers,
        plan_cap=cull.plan_cap,
        retry_base_s=cull.retry_base_s,
        retry_max_s=cull.retry_max_s,
        rules=rules.parse(cull.rules)[0],
        users=cull.users,
        user_idle_timeout_s=cull.user_idle_timeout_s,
        user_max_age_s=cull.user_max_age_s,
        admin_users=cull.admin_users,
        pending_limit_s=cull.pending_limit_s,
        interrupt_spawns=cull.interrupt_spawns,
    )


def caution_of(settings: Settings) -> Caution:
    """The limits beyond which acting isn't safe."""
    cull = settings.cull
    return Caution(
        plan_cap=cull.plan_cap,
        population_fall=cull.population_fall,
        outage_s=cull.outage_s,
        hub_activity_interval_s=cull.hub_activity_interval_s,
        pending_limit_s=cull.pending_limit_s,
    )


def _hook_decides(verdict: Verdict) -> bool:
    """Whether the operator's function has the last word: on what is to be stopped, not on a start that is stuck."""
    return verdict.standing is Standing.STOP and verdict.reason is not Reason.STUCK


def oldest_overdue(report: CycleReport) -> Verdict | None:
    """The server that has been due for longest and wasn't stopped in this cycle; None where there is none.

    One that the operator's own function wants kept isn't late.
    """
    done = {
        (action.user, action.name, action.started)
        for action, outcome in report.outcomes
        if outcome.kind is OutcomeKind.DONE
    }
    late = [
        verdict
        for verdict in report.verdicts
        if verdict.standing in {Standing.STOP, Standing.WAIT}
        and verdict.due_at is not None
        and verdict.due_at < report.ended_at
        and verdict.known.hook is not False
        and verdict.server.run not in done
    ]
    return min(late, key=lambda verdict: verdict.due_at or report.ended_at, default=None)


def _latest(*times: datetime | None) -> datetime | None:
    return max((at for at in times if at is not None), default=None)


def _exemption_of(user: str, server: str, exemptions: Iterable[Exemption], now: datetime) -> Exemption | None:
    """The one that lasts longest of those that cover it."""
    covering = [exemption for exemption in exemptions if exemption.covers(user, server, now)]
    return max(covering, key=lambda exemption: exemption.until, default=None)


def _why_not_to_act(brake: Brake | None, held: bool, why_observing: str, *, asked: bool, dry_run: bool) -> str:
    if dry_run:
        return "this was a dry run"
    if held:
        return "acting is on hold"
    if brake is not None:
        return brake.why
    if why_observing and not asked:
        return f"HubGuard only observes: {why_observing}"
    return ""


def _inactive_since(policy: CullPolicy, now: datetime) -> datetime | None:
    """Users active later than this can't be due; None: any may be."""
    if policy.user_max_age_s > 0 or policy.user_idle_timeout_s <= 0:
        return None
    return now - timedelta(seconds=policy.user_idle_timeout_s)
