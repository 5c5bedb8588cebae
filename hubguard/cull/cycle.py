"""One cycle: observe, decide, act, record; and what one cycle remembers for the next. The only module that knows all four."""

from __future__ import annotations

import asyncio
import contextlib
import logging
from collections.abc import Mapping, Sequence
from dataclasses import replace
from datetime import datetime, timedelta

from hubguard.act.attempt import LOOK_LASTS_S
from hubguard.act.mandate import Mandate
from hubguard.cull.act import Executor
from hubguard.cull.decide import rules
from hubguard.cull.decide.judge import (
    CullPolicy,
    decide,
    exemption_of,
    grounds,
    hook_decides,
    judge,
    known_of,
    latest,
)
from hubguard.cull.decide.reach import Reach
from hubguard.cull.hook import Hooked
from hubguard.cull.model import (
    CycleReport,
    Decision,
    Known,
    Plan,
    Protected,
    Reason,
    Standing,
    Surplus,
    Verdict,
    Wish,
)
from hubguard.cull.nobody import Nobodies
from hubguard.cull.settings import HubGuardCull
from hubguard.errors import BudgetExhausted, HubError, HubGuardError, JournalError, ProxyError
from hubguard.hub.api import HubAPI
from hubguard.hub.names import resolved, unknown, who
from hubguard.journal.asynchronous import AsyncJournal
from hubguard.journal.model import ArmedBy, Event, Stance
from hubguard.model import (
    Action,
    ActionKind,
    Cause,
    Finding,
    FindingKind,
    Order,
    Outcome,
    OutcomeKind,
    Server,
    Tally,
    server_label,
)
from hubguard.pacing.budget import Budget
from hubguard.pacing.clock import Clock
from hubguard.snapshot.cycle import Findings, Snapshots
from hubguard.snapshot.decide.brake import Caution
from hubguard.snapshot.model import Brake, Run, Situation
from hubguard.snapshot.observe import Observer
from hubguard.words import count

log = logging.getLogger(__name__)

HISTORY_S = 7 * 86400.0
"""Seconds for which failures count for the back-off of a run; longer than the longest back-off there can be."""

RECENT_S = 3600.0
"""Seconds that count as recent when errors are compared with successes."""

OVERDUE_S = 1800.0
"""Seconds (and at least three cycles) after which a server that is due becomes a finding: once, nobody noticed for 29
hours."""

NAMED_SERVERS_OFF_S = 3600.0
"""Seconds after which a hub that has named servers switched off is asked again to stop one. They are only switched on with
a restart of the hub, which an external guard doesn't notice."""

NAMED = 3
"""Maximum servers or users that a finding names."""

REMEMBERED_NOTES = 5000
"""Journal notes read at startup, so that a restart doesn't announce the same servers again."""

HOOK_ROUNDS = 10
"""Maximum rounds in a cycle in which the operator's function decides on servers that are due instead of others."""


class Cycles:
    """Runs cycles of culling, one at a time, and remembers between them.

    After each cycle ``last`` is its report, ``findings`` what an operator should look at, ``oldest_overdue`` the server that
    has been due for longest, ``tally`` and ``recent`` how actions ended, ``last_good_at`` when a cycle last saw all and
    nothing but people kept it from doing what was due, and ``saw_all_at_s`` when one last saw all (monotonic, None: never).
    ``under_way`` is the one that is being carried out, None between two.
    """

    def __init__(
        self,
        section: HubGuardCull,
        policy: CullPolicy,
        hub: HubAPI,
        budget: Budget,
        snapshots: Snapshots,
        mandate: Mandate,
        observer: Observer,
        clock: Clock,
        *,
        hook: Hooked | None = None,
    ) -> None:
        self.policy = policy
        self.last: CycleReport | None = None
        self.under_way: CycleReport | None = None
        self.last_good_at: datetime | None = None
        self.saw_all_at_s: float | None = None
        self.oldest_overdue: Verdict | None = None
        self.tally = Tally()
        self.recent = Tally()
        self._section = section
        self._hub = hub
        self._budget = budget
        self._snapshots = snapshots
        self._mandate = mandate
        self._observer = observer
        self._clock = clock
        self._hook = hook
        self._of_rules = rules.analyse(self.policy.rules)
        self._nobodies = Nobodies(hub, self.policy)
        self._about_nobody: list[Finding] = []
        self._findings = Findings()
        self._one_at_a_time = asyncio.Lock()
        self._announced: set[Run] | None = None
        self._switched_off_at: datetime | None = None

    @property
    def findings(self) -> tuple[Finding, ...]:
        """What an operator should look at, as of the last cycle."""
        return self._findings.now

    async def meant(self, user: str, server: str | None) -> tuple[str, str | None]:
        """Who and which server of theirs is meant by what somebody typed, by the hub, or else by what was seen of it.

        Raises UnknownUser, and HubGuardError if there is no such server, or neither source is available.
        """
        try:
            user = await who(self._hub, user)
            there = await self._hub.get_user(user, stopped=True) if server else None
        except (HubError, BudgetExhausted) as error:
            name = self.seen_as(user)
            if name is None:
                raise HubGuardError(
                    f"Nothing was changed: the hub can't be reached to look up the user {user}, and HubGuard has seen no"
                    f" server of theirs. {error}"
                ) from error
            return name, server
        if there is None or not server:
            return user, server
        names = [theirs.name for theirs in there.servers if theirs.name]
        if (name := resolved(server, names)) is None:
            raise HubGuardError(
                f"{unknown(server_label(user, server), [server_label(user, n) for n in names], 'server')}"
            )
        return user, name

    def seen_as(self, user: str) -> str | None:
        """Whose server HubGuard has seen that is meant by ``user``; None: nobody's."""
        return resolved(user, {name for name, _ in self._snapshots.seen} | {v.server.user for v in self._verdicts})

    @property
    def _verdicts(self) -> tuple[Verdict, ...]:
        newest = self.under_way or self.last
        return newest.verdicts if newest is not None else ()

    async def run(self, order: Order, wish: Wish) -> CycleReport:
        """The report of one cycle; it waits for the one that is under way. Raises JournalError."""
        limit_s, policy = wish.idle_timeout_s, self.policy
        if limit_s is not None:
            policy = replace(policy, idle_timeout_s=limit_s)
        async with self._one_at_a_time:
            await self._snapshots.begin(self._mandate.journal)
            try:
                with self._budget.lowered(rate=wish.rate, concurrency=wish.concurrency):
                    report = await self._run(order, policy, dry_run=wish.dry_run, width=self._width(wish))
            finally:
                self.under_way = None
            if not wish.dry_run and policy == self.policy:
                self.last = report
            return report

    async def _run(self, order: Order, policy: CullPolicy, *, dry_run: bool, width: int) -> CycleReport:
        journal, began_at, why_observing = self._mandate.journal, self._clock.now(), self._mandate.why_observing
        usual = policy == self.policy
        if not order.asked:
            policy = self._as_armed(policy)
            policy = replace(policy, named_servers_off=self._named_servers_off(began_at))
        situation = await self._snapshots.look(
            journal, users=policy.users, inactive_since=_inactive_since(policy, began_at), whole=order.asked
        )
        if situation.snapshot.complete:
            self.saw_all_at_s = self._clock.monotonic_s()
        decision, known = await self._decide(journal, situation, policy)
        judgement = await self._snapshots.judge(journal, due=decision.due, keep=not dry_run)
        stance = await journal.stance()
        why_not = _why_not_to_act(judgement.brake, stance, why_observing, asked=order.asked, dry_run=dry_run)
        report = CycleReport(
            began_at,
            self._clock.now(),
            situation.snapshot,
            decision.verdicts,
            decision.plan,
            skipped_why=why_not,
            user_verdicts=decision.user_verdicts,
        )
        if not dry_run and usual:
            self.under_way = report
            if situation.snapshot.complete and judgement.brake is None:
                self.last_good_at = report.ended_at
        if not why_not and decision.plan.actions:
            executor = Executor(
                self._hub,
                self._clock,
                policy,
                _KnownNow(
                    self._hub, self._observer, journal, self._hook, self._clock, known, policy, situation.clock_from
                ),
                lambda action: self._mandate.attempt(action, order),
                self._mandate.settle,
                self._budget.turn,
                verify_s=self._section.verify_s,
                running=len(situation.snapshot.servers),
            )
            outcomes = await executor.run(decision.plan, concurrency=width)
            await self._note_cycle(journal, order.actor, decision.plan, outcomes)
            report = replace(report, outcomes=outcomes)
        report = replace(report, ended_at=self._clock.now())
        if not dry_run:
            await self._record(journal, report, braked=judgement.brake is not None)
            if report.snapshot.complete:
                there = {server.user for server in report.snapshot.servers}
                exemptions = await journal.exemptions(report.ended_at)
                self._about_nobody = await self._nobodies.found(exemptions, there, report.ended_at)
            wanted = not (stance.held or why_observing)
            await self._findings.update(journal, self._found(report, policy, wanted=wanted), report.ended_at)
        return report

    def _named_servers_off(self, now: datetime) -> bool:
        at = self._switched_off_at
        return at is not None and timedelta() <= now - at < timedelta(seconds=NAMED_SERVERS_OFF_S)

    def _as_armed(self, policy: CullPolicy) -> CullPolicy:
        """``policy`` without what the idle culler never did whose entry alone arms this guard."""
        handover = self._mandate.handover
        if handover is None or self._mandate.armed_by is not ArmedBy.CULLER:
            return policy
        users = policy.users and handover.takeover.deletes_users
        return replace(policy, users=users, interrupt_spawns=False)

    async def _decide(
        self, journal: AsyncJournal, situation: Situation, policy: CullPolicy
    ) -> tuple[Decision, Mapping[Run, Known]]:
        """What to do, and what is known of each run. The operator's own function decides about what is due."""
        exemptions = await journal.exemptions(situation.at)
        failures = await journal.failures(situation.at - timedelta(seconds=HISTORY_S))
        known = known_of(situation, failures, exemptions)
        decision = decide(situation, policy, known, exemptions, failures)
        asked: set[Run] = set()
        for _ in range(HOOK_ROUNDS):
            # In place of a server that is one too many and that the function wants to keep, another is due.
            concerned = [verdict for verdict in decision.verdicts if hook_decides(verdict)]
            concerned = [verdict for verdict in concerned if verdict.server.run not in asked]
            if self._hook is None or not concerned:
                break
            answers = await self._hook.ask(concerned, situation.at)
            for verdict in concerned:
                said, error = answers[verdict.server.key]
                known[verdict.server.run] = replace(known[verdict.server.run], hook=said, hook_error=error)
            asked |= {verdict.server.run for verdict in concerned}
            decision = decide(situation, policy, known, exemptions, failures)
        return decision, {verdict.server.run: verdict.known for verdict in decision.verdicts}

    # -- recording ------------------------------------------------------------------------------------------------

    async def _record(self, journal: AsyncJournal, report: CycleReport, *, braked: bool) -> None:
        complete = report.snapshot.complete
        if report.skipped_why:
            await self._announce(journal, report.verdicts, report.skipped_why, complete=complete)
        self._count(report.outcomes)
        if any(outcome.cause is Cause.SWITCHED_OFF for _, outcome in report.outcomes):
            self._switched_off_at = report.ended_at
        self._snapshots.learn(report.outcomes)
        await self._snapshots.conclude(journal)
        self.recent = await journal.tally(report.ended_at - timedelta(seconds=RECENT_S))
        self.oldest_overdue = oldest_overdue(report)
        if complete and not braked:
            self.last_good_at = report.ended_at

    async def _announce(
        self, journal: AsyncJournal, verdicts: tuple[Verdict, ...], why: str, *, complete: bool
    ) -> None:
        """The journal says once for each run what would have been done to it."""
        if self._announced is None:
            announced = await journal.entries(event=Event.ANNOUNCED, limit=REMEMBERED_NOTES)
            self._announced = {(entry.user or "", entry.server or "", entry.started) for entry in announced}
        due = {verdict.server.run: verdict for verdict in verdicts if verdict.standing is Standing.STOP}
        news = [
            (
                Action(verdict.server.user, verdict.server.name, verdict.server.started, None, verdict.reason.value),
                grounds(verdict.server, self.policy, verdict.known, self._clock.now()),
            )
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
        result = ", ".join(f"{number} {kind.value}" for kind, number in counts.items() if number)
        rest = f"; {plan.left_out} more wait for the next cycle" if plan.left_out else ""
        users = sum(action.kind is ActionKind.DELETE_USER for action in plan.actions)
        what = f"{count(len(plan.actions) - users, 'server')} to stop" + (
            f", {count(users, 'user')} to delete" if users else ""
        )
        fence = self._mandate.fence
        with contextlib.suppress(JournalError):
            await journal.note(Event.CYCLE, actor, fence, self._clock.now(), f"{what}: {result}{rest}")

    def _count(self, outcomes: tuple[tuple[Action, Outcome], ...]) -> None:
        by = {kind: sum(outcome.kind is kind for _, outcome in outcomes) for kind in OutcomeKind}
        self.tally = Tally(
            done=self.tally.done + by[OutcomeKind.DONE],
            skipped=self.tally.skipped + by[OutcomeKind.SKIPPED],
            failed=self.tally.failed + by[OutcomeKind.FAILED],
            unverified=self.tally.unverified + by[OutcomeKind.UNVERIFIED],
            not_deleted=self.tally.not_deleted
            + sum(
                outcome.kind is OutcomeKind.FAILED and action.kind is ActionKind.DELETE_USER
                for action, outcome in outcomes
            ),
        )

    # -- findings -------------------------------------------------------------------------------------------------

    def _found(self, report: CycleReport, policy: CullPolicy, *, wanted: bool) -> list[Finding]:
        """The findings of this cycle. ``wanted``: people want what is due to be done."""
        now, late = report.ended_at, self.oldest_overdue
        of_rules = (*self._of_rules, *rules.doubts(self.policy.rules, now))
        findings = [*(Finding(FindingKind.RULE, now, text) for text in of_rules), *self._about_nobody]
        limit = timedelta(seconds=max(OVERDUE_S, 3 * self._section.every_s))
        if wanted and late is not None and late.due_at is not None and now - late.due_at > limit:
            text = f"The server {late.server.label} has been due since {late.due_at:%Y-%m-%d %H:%M} UTC and still runs."
            findings.append(Finding(FindingKind.NOT_CULLING, late.due_at, text, *late.server.key))
        if policy.users and policy.users_wait:
            findings.append(Finding(FindingKind.USERS_KEPT, now, policy.users_wait))
        return [*findings, *self._refused(report)]

    def _refused(self, report: CycleReport) -> list[Finding]:
        """What the hub refuses to do, or fails at, so that a person is needed; one finding for each kind."""
        now, found = report.ended_at, []
        skipped = {
            (action.user, action.name) for action, outcome in report.outcomes if outcome.cause is Cause.SWITCHED_OFF
        }
        stuck = [v.server.label for v in report.verdicts if v.reason is Reason.SWITCHED_OFF or v.server.key in skipped]
        if stuck:
            text = (
                f"{count(len(stuck), 'named server')} can't be stopped, because the hub has named servers switched off:"
                f" {_some(stuck)}. Set JupyterHub.allow_named_servers to True and restart the hub until they are stopped,"
                " or end what runs them yourself, for example with `docker` or `kubectl`; the hub then notices by itself."
            )
            found.append(Finding(FindingKind.NAMED_SERVERS_OFF, now, text))
        failed = {a.user: o.detail for a, o in report.outcomes if a.kind is ActionKind.DELETE_USER and _not_done(o)}
        users = sorted({v.user.name for v in report.user_verdicts if v.failures} | failed.keys())
        if users:
            text = (
                f"The hub fails to delete {count(len(users), 'user')}: {_some(users)}. HubGuard tries each again within a"
                " day. The hub's log says what fails; often it is delete_user of its authenticator."
            )
            found.append(Finding(FindingKind.NOT_DELETED, now, text))
        return found

    def _width(self, wish: Wish) -> int:
        """How many servers are worked on at once: not so many that a second look grows old while it waits for its turn."""
        use = self._budget.use()
        rate = min(wish.rate or use.rate, use.rate)
        return max(1, min(wish.concurrency or use.concurrency_cap, use.concurrency_cap, int(rate * LOOK_LASTS_S / 3)))


class _KnownNow:
    """What is known of a server at its second look: its exemptions, the proxy's table and the hook are read again.

    So is how many servers its user has, or all users together have, if that is why it is to be stopped.
    """

    def __init__(
        self,
        hub: HubAPI,
        observer: Observer,
        journal: AsyncJournal,
        hook: Hooked | None,
        clock: Clock,
        known: Mapping[Run, Known],
        policy: CullPolicy,
        clock_from: datetime | None,
    ) -> None:
        self._hub = hub
        self._observer = observer
        self._clock_from = clock_from
        self._journal = journal
        self._hook = hook
        self._clock = clock
        self._known = known
        self._policy = policy
        self._in_all = _InAll(hub, clock, policy)

    async def __call__(self, action: Action, server: Server | None) -> Known:
        known = self._known.get((action.user, action.name, action.started), Known())
        now = self._clock.now()
        exemptions = await self._journal.exemptions(now, user=action.user)
        routes = await self._observer.routes()
        if routes is None:
            raise ProxyError("the proxy can't be read now, so HubGuard can't see who uses their server")
        route = routes.get((action.user, action.name))
        known = replace(
            known,
            exemption=next(iter(exemptions), None)
            if action.kind is ActionKind.DELETE_USER
            else exemption_of(action.user, action.name, exemptions, now),
            proxy_activity=latest(route.last_activity if route else None, known.proxy_activity),
            clock_from=self._clock_from,
            hook=None,
            hook_error="",
            surplus=await self._still_surplus(known.surplus, action, now),
        )
        if self._hook is not None and server is not None:
            verdict = judge(server, self._policy, replace(known, failures=None), now)
            if hook_decides(verdict):
                said, error = (await self._hook.ask([verdict], now))[server.key]
                known = replace(known, hook=said, hook_error=error)
        return known

    async def _still_surplus(self, surplus: Surplus | None, action: Action, now: datetime) -> Surplus | None:
        if surplus is None:
            return None
        if surplus.in_all:
            return await self._in_all.still(surplus, (action.user, action.name, action.started))
        there = await self._hub.get_user(action.user)
        of_rule = [
            server
            for server in (there.servers if there is not None else ())
            if server.pending != "stop" and _decides(surplus.rule, server, self._policy, now)
        ]
        return replace(surplus, count=len(of_rule)) if len(of_rule) > surplus.most else None


RECOUNT_S = 10.0
"""Seconds for which a list of all servers counts when HubGuard counts again how many a rule decides on."""


class _InAll:
    """Counts again how many servers all users together have. Those that this cycle has let go no longer count."""

    def __init__(self, hub: HubAPI, clock: Clock, policy: CullPolicy) -> None:
        self._hub = hub
        self._clock = clock
        self._policy = policy
        self._reading = asyncio.Lock()
        self._read_at_s = float("-inf")
        self._there: tuple[Server, ...] = ()
        self._let_go: set[Run] = set()

    async def still(self, surplus: Surplus, run: Run) -> Surplus | None:
        """``surplus`` as it is now; None if the server of ``run`` is no longer one too many. Raises HubError."""
        async with self._reading:
            if self._clock.monotonic_s() - self._read_at_s > RECOUNT_S:
                self._there = await self._hub.list_servers()
                self._read_at_s = self._clock.monotonic_s()
        now = self._clock.now()
        count = sum(
            server.run not in self._let_go
            and server.pending != "stop"
            and _decides(surplus.rule, server, self._policy, now)
            for server in self._there
        )
        if count <= surplus.most:
            return None
        self._let_go.add(run)
        return replace(surplus, count=count)


def _some(names: Sequence[str]) -> str:
    rest = f" and {len(names) - NAMED:,} more" if len(names) > NAMED else ""
    return ", ".join(names[:NAMED]) + rest


def _not_done(outcome: Outcome) -> bool:
    return outcome.kind in {OutcomeKind.FAILED, OutcomeKind.UNVERIFIED}


def _decides(rule: str, server: Server, policy: CullPolicy, now: datetime) -> bool:
    first, certain = rules.first_match(policy.rules, server, now)
    return certain and first is not None and first.name == rule


def policy_of(
    section: HubGuardCull,
    protected: Protected | None = None,
    users_wait: str = "",
    reach: Reach | None = None,
    user_reach: Reach | None = None,
) -> CullPolicy:
    """What the settings want culled. ``users_wait`` is why nobody is deleted all the same, or ""."""
    return CullPolicy(
        idle_timeout_s=section.idle_timeout_s,
        max_age_s=section.max_age_s,
        admin_servers=section.admin_servers,
        default_servers=section.default_servers,
        named_servers=section.named_servers,
        remove_named_servers=section.remove_named_servers,
        plan_cap=section.plan_cap,
        retry_base_s=section.retry_base_s,
        retry_max_s=section.retry_max_s,
        rules=rules.parse(section.rules)[0],
        users=section.users,
        user_idle_timeout_s=section.user_idle_timeout_s,
        user_max_age_s=section.user_max_age_s,
        admin_users=section.admin_users,
        pending_limit_s=section.pending_limit_s,
        interrupt_spawns=section.interrupt_spawns,
        protected=protected or Protected(),
        users_wait=users_wait,
        reach=reach,
        user_reach=user_reach,
    )


def caution_of(section: HubGuardCull) -> Caution:
    """The limits beyond which acting isn't safe."""
    return Caution(
        plan_cap=section.plan_cap,
        population_fall=section.population_fall,
        outage_s=section.outage_s,
        hub_activity_interval_s=section.hub_activity_interval_s,
        pending_limit_s=section.pending_limit_s,
    )


def oldest_overdue(report: CycleReport) -> Verdict | None:
    """The server that has been due for longest and wasn't stopped in this cycle; None if there is none.

    One that the operator's own function wants kept isn't late, and neither is one that the hub lets nobody stop.
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
        and verdict.reason is not Reason.SWITCHED_OFF
        and verdict.server.run not in done
    ]
    return min(late, key=lambda verdict: verdict.due_at or report.ended_at, default=None)


def _why_not_to_act(brake: Brake | None, stance: Stance, why_observing: str, *, asked: bool, dry_run: bool) -> str:
    if dry_run:
        return "this was a dry run"
    if stance.held:
        return stance.clause
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
