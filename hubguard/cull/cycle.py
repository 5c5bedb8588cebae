"""One cycle: observe, decide, act, record; and what one cycle remembers for the next. The only module that knows all four."""

from __future__ import annotations

import asyncio
import contextlib
import logging
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import asdict, replace
from datetime import datetime, timedelta

from hubguard.act.attempt import LOOK_LASTS_S
from hubguard.act.lease import Books, LeaseKeeper
from hubguard.config import Settings
from hubguard.cull.act import Executor
from hubguard.cull.decide import rules
from hubguard.cull.decide.judge import CullPolicy, Run, judge, judge_all, judge_users
from hubguard.cull.decide.judge import plan as plan_cull
from hubguard.cull.hook import Hooked
from hubguard.cull.model import CycleReport, Known, Plan, Reason, Standing, Verdict
from hubguard.errors import JournalError, ProxyError
from hubguard.hub.api import HubAPI
from hubguard.journal.model import Entry, Event, Exemption, Failures
from hubguard.model import (
    Action,
    ActionKind,
    Cause,
    Finding,
    FindingKind,
    Outcome,
    OutcomeKind,
    Server,
    Source,
    Tally,
    same_run,
)
from hubguard.pacing.budget import Budget
from hubguard.pacing.clock import Clock
from hubguard.pacing.model import PaceState
from hubguard.snapshot.cycle import NEWS, PACE, SETTLED_BY_DRIFT, WATCH, _answered, _is_deletion, _same_pace
from hubguard.snapshot.decide import activity
from hubguard.snapshot.decide.brake import Caution, Judgement, Look
from hubguard.snapshot.decide.brake import look as judge_the_world
from hubguard.snapshot.decide.memory import Watch
from hubguard.snapshot.model import Brake, Evidence, Seen, Snapshot
from hubguard.snapshot.observe import Observer

log = logging.getLogger(__name__)

HISTORY_S = 7 * 86400.0
"""How far back failures count for the back-off of a run; longer than the longest back-off there can be."""

RECENT_S = 3600.0
"""What counts as recent, where errors are compared with successes; and how long a stopped server may come back."""

OVERDUE_S = 1800.0
"""A server that has been due for so long, and three cycles at the least, is a finding: nobody noticed for 29 hours, once."""

REMEMBERED_NOTES = 5000
"""So many of the last notes are looked through after a start, so that a restart doesn't say everything once more."""


class Cycles:
    """Runs cycles, one at a time, and remembers between them. ``begun``: what the journal remembers is in force.

    After each cycle ``last`` is its report, ``brake`` what holds acting back, ``clock_from`` the end of the last outage,
    ``findings`` what an operator should look at, ``oldest_overdue`` the server that has been due for longest, ``tally`` and
    ``recent`` how actions ended, ``saw_all`` whether the hub answered in full, and ``last_good_at`` when a cycle last saw all
    and nothing but people kept it from doing what was due.

    ``looking``: users are being counted, and HubGuard's own deletions with them.

    ``under_way`` may be set to what gives the ids of intents that others of this guard are working on, and ``restores`` to
    what gives the times (from, to) in which a table that the proxy had lost was filled again.
    """

    def __init__(
        self,
        settings: Settings,
        hub: HubAPI,
        budget: Budget,
        observer: Observer,
        clock: Clock,
        *,
        hook: Hooked | None = None,
        generation: float = 0.0,
    ) -> None:
        self.policy = policy_of(settings)
        self.begun = False
        self.looking = False
        self.saw_all = True
        self.last: CycleReport | None = None
        self.last_good_at: datetime | None = None
        self.brake: Brake | None = None
        self.clock_from: datetime | None = None
        self.findings: tuple[Finding, ...] = ()
        self.oldest_overdue: Verdict | None = None
        self.tally = Tally()
        self.recent = Tally()
        self._settings = settings
        self._hub = hub
        self._budget = budget
        self._observer = observer
        self._clock = clock
        self._hook = hook
        self._generation = generation
        self._of_rules = rules.analyse(self.policy.rules)
        self._caution = Caution(
            plan_cap=settings.cull.plan_cap,
            population_fall=settings.cull.population_fall,
            outage_s=settings.cull.outage_s,
            hub_activity_interval_s=settings.cull.hub_activity_interval_s,
            pending_limit_s=settings.cull.pending_limit_s,
        )
        self.under_way: Callable[[], frozenset[int]] = frozenset
        self.restores: Callable[[], tuple[activity.Window, ...]] = tuple
        self._restores: tuple[activity.Window, ...] = ()
        self._one_at_a_time = asyncio.Lock()
        self._watch = Watch()
        self._seen: dict[tuple[str, str], Seen] = {}
        self._deleted_users = 0
        self._stopped: dict[Run, datetime] = {}
        self._came_back: dict[Run, Finding] = {}
        self._since: dict[tuple[FindingKind, str | None, str | None], datetime] = {}
        self._announced: set[Run] | None = None
        self._paced: tuple[PaceState, datetime | None] | None = None
        self._forgot_at: datetime | None = None

    @property
    def came_back(self) -> frozenset[Run]:
        """The runs (user, name, started) that a stop, taken by the hub, didn't end, and that are there still."""
        return frozenset(self._came_back)

    def count_deleted(self, users: int = 1) -> None:
        """HubGuard has deleted so many besides what its cycles do: that they are gone is nothing to hold back for."""
        self._deleted_users += users

    def begin_anew(self) -> None:
        """Before the next cycle, what the journal remembers is read: another guard may have acted since."""
        self.begun = False

    async def _begin(self, books: Books) -> None:
        """What the journal remembers of earlier cycles is in force: outages, the population, the budget's state."""
        journal = books.journal
        watch = await books.call(journal.recall, WATCH)
        if watch is not None:
            self._watch = Watch.from_dict(watch[0])
            self.clock_from = self._watch.clock_from
            done = await books.call(journal.entries, event=Event.OUTCOME, limit=REMEMBERED_NOTES)
            self._deleted_users = sum(_is_deletion(entry) and entry.at >= watch[1] for entry in done)
        paced = await books.call(journal.recall, PACE)
        if paced is not None:
            age_s = max(0.0, (self._clock.now() - paced[1]).total_seconds())
            with contextlib.suppress(TypeError, ValueError):
                # What another version has written is no reason not to begin.
                self._budget.restore(PaceState(**paced[0]), age_s)
        self._seen = dict(await books.call(journal.activity))
        self.begun = True

    async def run(
        self,
        books: Books,
        keeper: LeaseKeeper,
        actor: str,
        *,
        asked: bool,
        armed: bool | None,
        why_observing: str,
        dry_run: bool = False,
        policy: CullPolicy | None = None,
        rate: float | None = None,
        concurrency: int | None = None,
    ) -> CycleReport:
        """The report of one cycle; it waits for the one that is under way. Raises JournalError.

        ``armed`` is what the settings say (None: people do), ``why_observing`` why it isn't armed now, or "". ``policy``,
        ``rate`` and ``concurrency`` are for this cycle alone.
        """
        async with self._one_at_a_time:
            if not self.begun:
                await self._begin(books)
            with self._budget.lowered(rate=rate, concurrency=concurrency), self._while_looking():
                report = await self._run(
                    books,
                    keeper,
                    actor,
                    asked=asked,
                    armed=armed,
                    why_observing=why_observing,
                    dry_run=dry_run,
                    policy=policy or self.policy,
                    width=self._width(rate, concurrency),
                )
            if not dry_run and policy in {None, self.policy}:
                self.last = report
            return report

    @contextlib.contextmanager
    def _while_looking(self) -> Iterator[None]:
        self.looking = True
        try:
            yield
        finally:
            self.looking = False

    async def _run(
        self,
        books: Books,
        keeper: LeaseKeeper,
        actor: str,
        *,
        asked: bool,
        armed: bool | None,
        why_observing: str,
        dry_run: bool,
        policy: CullPolicy,
        width: int,
    ) -> CycleReport:
        journal = books.journal
        began_at = self._clock.now()
        # Read before the snapshot is taken: an intent that is open by now is older than what the snapshot shows.
        under_way = self.under_way()
        open_intents = [one for one in await books.call(journal.open_intents) if one.id not in under_way]
        snapshot = await self._observer.look(
            users=policy.users,
            inactive_since=_inactive_since(policy, began_at),
            # Only the hub's API tells what is in the middle of something.
            whole=asked or bool(open_intents) or self._one_is_stuck(began_at),
        )
        await self.remember_pace(books)
        now = self._clock.now()
        self.saw_all = snapshot.complete
        if snapshot.complete:
            await self._settle_what_was_left(books, open_intents, snapshot)
            await self._follow(books, snapshot)
        exemptions = await books.call(journal.exemptions, now)
        known = await self._known(books, snapshot, exemptions, now)
        stance = await books.call(journal.stance)
        look = Look(
            now=now,
            snapshot=snapshot,
            hub_answered=_answered(snapshot, Source.HUB_API) is True,
            proxy_answered=_answered(snapshot, Source.PROXY),
            generation=self._generation,
            deleted_users=self._deleted_users,
            resumed_at=await books.call(journal.resumed_at),
            skew_s=None if self._hub.skew_s is None else -self._hub.skew_s,
        )
        # Idle clocks may start anew by what this very look shows; only then is it known how much is due.
        clock_from = judge_the_world(self._watch, look, self._caution).clock_from
        known = {run: replace(one, clock_from=clock_from) for run, one in known.items()}
        verdicts = judge_all(snapshot.servers, policy, known, now)
        if self._hook is not None:
            known = await self._ask_hook(self._hook, verdicts, known, now)
            verdicts = judge_all(snapshot.servers, policy, known, now)
        user_verdicts = judge_users(snapshot.users or (), policy, exemptions, now, clock_from)
        plan = plan_cull(verdicts, policy, now, user_verdicts)
        judgement = judge_the_world(self._watch, replace(look, due=len(plan.actions) + plan.left_out), self._caution)
        if not dry_run:
            await self._take_over(books, judgement, look.deleted_users)
        self.looking = False
        skipped_why = _why_not_to_act(judgement.brake, stance.held, why_observing, asked=asked, dry_run=dry_run)
        outcomes: tuple[tuple[Action, Outcome], ...] = ()
        if skipped_why:
            if not dry_run:
                await self._announce(books, verdicts, skipped_why, complete=snapshot.complete)
        elif plan.actions:
            executor = Executor(
                self._hub,
                keeper,
                self._clock,
                _KnownNow(self._observer, books, self._hook, self._clock, known, policy, clock_from),
                verify_s=self._settings.cull.verify_s,
                running=len(snapshot.servers),
            )
            outcomes = await executor.run(plan, policy, actor, asked=asked, armed=armed, concurrency=width)
            await self._note_cycle(books, keeper, actor, plan, outcomes)
        self._count(outcomes)
        await self._forget_what_is_old(books)
        await self.remember_pace(books)
        ended_at = self._clock.now()
        report = CycleReport(began_at, ended_at, snapshot, verdicts, plan, outcomes, skipped_why, user_verdicts)
        if not dry_run:
            self.recent = await books.call(journal.tally, ended_at - timedelta(seconds=RECENT_S))
            self.oldest_overdue = oldest_overdue(report)
            if snapshot.complete and judgement.brake is None:
                self.last_good_at = ended_at
            await self._find(books, report, judgement, wanted=not (stance.held or why_observing))
        return report

    # -- observing ------------------------------------------------------------------------------------------------

    def _one_is_stuck(self, now: datetime) -> bool:
        """Whether a server was pending for too long by what is known. Only the hub's API tells whether it still is."""
        limit = timedelta(seconds=self.policy.pending_limit_s)
        return any(seen.pending_since is not None and now - seen.pending_since >= limit for seen in self._seen.values())

    async def _settle_what_was_left(self, books: Books, open_intents: Iterable[Entry], snapshot: Snapshot) -> None:
        """Intents without an outcome, left by a guard that ended in between, are settled by what the snapshot shows.

        A server that is in the middle of something stays open: its end isn't known yet. What only a look at all sources
        can tell is left to that.
        """
        seen = {server.key: server for server in snapshot.servers}
        for intent in open_intents:
            if intent.action in SETTLED_BY_DRIFT or intent.id in self.under_way():
                continue
            if intent.action == ActionKind.DELETE_USER.value:
                outcome = await self._what_became_of_user(intent)
                if outcome is None:
                    continue
            else:
                server = seen.get((intent.user or "", intent.server or ""))
                if server is None or not same_run(server.started, intent.started):
                    outcome = Outcome(OutcomeKind.DONE, "that run was found gone by a later look")
                elif server.pending is not None:
                    continue
                else:
                    outcome = Outcome(OutcomeKind.UNVERIFIED, "the guard ended before it knew; it is still running")
            settled = await books.call(books.journal.settle, intent.id, outcome, self._clock.now())
            if settled and intent.action == ActionKind.DELETE_USER.value and outcome.kind is OutcomeKind.DONE:
                self._deleted_users += 1

    async def _what_became_of_user(self, intent: Entry) -> Outcome | None:
        try:
            user = await self._hub.get_user(intent.user or "")
        except Exception as error:
            log.warning("What became of deleting %s isn't known yet: %s", intent.user, error)
            return None
        if user is None or not same_run(user.created, intent.started):
            return Outcome(OutcomeKind.DONE, "that user was found gone by a later look")
        return Outcome(OutcomeKind.UNVERIFIED, "the guard ended before it knew; the user is still there")

    async def _follow(self, books: Books, snapshot: Snapshot) -> None:
        looked_at = self.last.snapshot.taken_at if self.last is not None else None
        self._restores = activity.trusted(self._restores, self.restores(), looked_at)
        followed = activity.follow(self._seen, snapshot, self._restores)
        if followed:
            # The unchanged, too: what hasn't been seen for long is forgotten.
            await books.call(books.journal.see, followed.values(), snapshot.taken_at)
        # What isn't there any more the journal keeps; here it would only grow.
        self._seen = followed

    async def _known(
        self, books: Books, snapshot: Snapshot, exemptions: tuple[Exemption, ...], now: datetime
    ) -> dict[Run, Known]:
        since = now - timedelta(seconds=HISTORY_S)
        failures: Mapping[Run, Failures] = await books.call(books.journal.failures, since)
        routes = activity.by_server(snapshot.routes or {})
        known = {}
        for server in snapshot.servers:
            seen, route = self._seen.get(server.key), routes.get(server.key)
            # A proxy that has lost its table has lost traffic, too, that the hub may not have taken over yet.
            noted = seen.active_at if seen is not None and seen.evidence is Evidence.PROXY else None
            known[server.run] = Known(
                failures=failures.get(server.run),
                exemption=_exemption_of(server.user, server.name, exemptions, now),
                proxy_activity=_latest(route.last_activity if route else None, noted),
                active_at=seen.active_at if seen else None,
                pending_since=seen.pending_since if seen else None,
                restores=self._restores,
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

    async def remember_pace(self, books: Books) -> None:
        """What the budget has learned is in the journal, where it has changed: a restart goes on from there."""
        paced, now = self._budget.state(), self._clock.now()
        # When a probe is due is a moment; how long it is until then is another number each time.
        probe_at = now + timedelta(seconds=paced.probe_in_s)
        learned = (replace(paced, probe_in_s=0.0), probe_at if paced.breaker == "open" else None)
        if self._paced is None or not _same_pace(learned, self._paced):
            self._paced = learned
            with contextlib.suppress(JournalError):
                await books.call(books.journal.remember, PACE, asdict(paced), now)

    async def _take_over(self, books: Books, judgement: Judgement, deleted_users: int) -> None:
        if judgement.watch != self._watch:
            await books.call(books.journal.remember, WATCH, judgement.watch.to_dict(), self._clock.now())
        # Only now: the watch without the deletions, or they without it, would look like a loss.
        self._deleted_users -= deleted_users
        before, self.brake = self.brake, judgement.brake
        self._watch, self.clock_from = judgement.watch, judgement.clock_from
        reason = judgement.brake.reason if judgement.brake else None
        if reason is not (before.reason if before else None):
            now = self._clock.now()
            if judgement.brake is not None:
                log.warning("HubGuard holds back: %s. %s", judgement.brake.why, judgement.brake.ends)
                await books.call(books.journal.note, Event.BRAKED, "hubguard", 0, now, judgement.brake.why)
            elif before is not None:
                log.info("HubGuard no longer holds back (%s).", before.reason.value)
                await books.call(books.journal.note, Event.BRAKE_OVER, "hubguard", 0, now, before.why)

    async def _announce(self, books: Books, verdicts: tuple[Verdict, ...], why: str, *, complete: bool) -> None:
        """The journal says once for each run what would have been done to it."""
        if self._announced is None:
            told = await books.call(books.journal.entries, event=Event.ANNOUNCED, limit=REMEMBERED_NOTES)
            self._announced = {(entry.user or "", entry.server or "", entry.started) for entry in told}
        due = {verdict.server.run: verdict for verdict in verdicts if verdict.standing is Standing.STOP}
        news = [
            Action(verdict.server.user, verdict.server.name, verdict.server.started, None, verdict.reason.value)
            for run, verdict in due.items()
            if run not in self._announced
        ]
        if news:
            detail = f"would be stopped now, but {why}"
            await books.call(books.journal.announce, news, "hubguard", self._clock.now(), detail)
        # What wasn't seen this time, as with the hub down, has been said all the same.
        self._announced = set(due) if complete else self._announced | set(due)

    async def _note_cycle(
        self, books: Books, keeper: LeaseKeeper, actor: str, plan: Plan, outcomes: tuple[tuple[Action, Outcome], ...]
    ) -> None:
        counts = {kind: sum(outcome.kind is kind for _, outcome in outcomes) for kind in OutcomeKind}
        told = ", ".join(f"{count} {kind.value}" for kind, count in counts.items() if count)
        rest = f"; {plan.left_out} more wait for the next cycle" if plan.left_out else ""
        users = sum(action.kind is ActionKind.DELETE_USER for action in plan.actions)
        what = f"{len(plan.actions) - users} servers to stop" + (f", {users} users to delete" if users else "")
        fence = keeper.seen.fence if keeper.seen else 0
        with contextlib.suppress(JournalError):
            await books.call(books.journal.note, Event.CYCLE, actor, fence, self._clock.now(), f"{what}: {told}{rest}")

    async def _forget_what_is_old(self, books: Books) -> None:
        """Once a day, so that the journal doesn't grow for ever; piece by piece, so that the lease can be renewed between."""
        now, days = self._clock.now(), self._settings.guard.journal_days
        if self._forgot_at is None or now - self._forgot_at >= timedelta(days=1):
            self._forgot_at = now
            try:
                gone = await books.call(books.journal.forget, now - timedelta(days=days))
            except JournalError as error:
                # What this cycle did is told all the same.
                log.warning("The journal keeps what is old for another day: %s", error)
                return
            if gone:
                self._forgot_at = None  # there may be more, which waits for the next cycle
                log.info("The journal has forgotten %d entries older than %d days.", gone, days)

    def _count(self, outcomes: tuple[tuple[Action, Outcome], ...]) -> None:
        now = self._clock.now()
        by = {kind: sum(outcome.kind is kind for _, outcome in outcomes) for kind in OutcomeKind}
        self.tally = Tally(
            done=self.tally.done + by[OutcomeKind.DONE],
            skipped=self.tally.skipped + by[OutcomeKind.SKIPPED],
            failed=self.tally.failed + by[OutcomeKind.FAILED],
            unverified=self.tally.unverified + by[OutcomeKind.UNVERIFIED],
        )
        for action, outcome in outcomes:
            if outcome.kind is OutcomeKind.DONE and action.kind is ActionKind.DELETE_USER:
                self._deleted_users += 1
            elif outcome.kind is OutcomeKind.DONE and action.kind is ActionKind.STOP_SERVER:
                self._stopped[(action.user, action.name, action.started)] = now
        horizon = now - timedelta(seconds=RECENT_S)
        self._stopped = {run: at for run, at in self._stopped.items() if at > horizon}

    # -- findings -------------------------------------------------------------------------------------------------

    async def _find(self, books: Books, report: CycleReport, judgement: Judgement, *, wanted: bool) -> None:
        """``findings`` are those of this cycle. ``wanted``: people want what is due to be done."""
        now = report.ended_at
        self._follow_what_came_back(report)
        found = [Finding(FindingKind.RULE, now, text) for text in self._of_rules]
        found += judgement.findings
        found += self._came_back.values()
        found += [
            Finding(
                FindingKind.PENDING_STUCK, seen.pending_since, _stuck(verdict.server.label, seen), *verdict.server.key
            )
            for verdict in report.verdicts
            if (seen := self._seen.get(verdict.server.key)) is not None
            and seen.pending_since is not None
            and now - seen.pending_since >= timedelta(seconds=self.policy.pending_limit_s)
        ]
        due_at = self.oldest_overdue.due_at if self.oldest_overdue else None
        late = timedelta(seconds=max(OVERDUE_S, 3 * self._settings.cull.every_s))
        if wanted and due_at is not None and self.oldest_overdue is not None and now - due_at > late:
            label = self.oldest_overdue.server.label
            text = f"The server {label} has been due since {due_at:%Y-%m-%d %H:%M} UTC and still runs."
            found.append(Finding(FindingKind.NOT_CULLING, due_at, text, *self.oldest_overdue.server.key))
        began = {}
        for finding in found:
            key = (finding.kind, finding.user, finding.server)
            began[key] = min(finding.since, self._since.get(key, finding.since))
        news = [finding for finding in found if (finding.kind, finding.user, finding.server) not in self._since]
        for finding in news[:NEWS]:
            with contextlib.suppress(JournalError):
                await books.call(
                    books.journal.note,
                    Event.FINDING,
                    "hubguard",
                    0,
                    now,
                    finding.detail,
                    user=finding.user,
                    server=finding.server,
                )
        self._since = began
        self.findings = tuple(
            replace(finding, since=began[(finding.kind, finding.user, finding.server)]) for finding in found
        )

    def _follow_what_came_back(self, report: CycleReport) -> None:
        """Runs that were seen gone and are ready again, and those that a stop didn't end though the hub took it.

        They are told of for as long as that run is there.
        """
        found = dict(self._came_back)
        if report.snapshot.complete:
            there = {server.run for server in report.snapshot.servers}
            found = {run: finding for run, finding in found.items() if run in there}
        for server in report.snapshot.servers:
            at = self._stopped.get(server.run)
            if server.ready and at is not None and at < report.began_at:
                text = f"The server {server.label} was stopped and seen gone, and the same run is ready again."
                found[server.run] = Finding(FindingKind.CAME_BACK, at, text, *server.key)
        for action, outcome in report.outcomes:
            if outcome.cause in {Cause.CAME_BACK, Cause.CHANGED_NOTHING}:
                text = f"Stopping {action.label}: {outcome.detail}."
                run = (action.user, action.name, action.started)
                found[run] = Finding(FindingKind.CAME_BACK, report.ended_at, text, action.user, action.name)
            elif outcome.kind is OutcomeKind.DONE:
                found.pop((action.user, action.name, action.started), None)
        self._came_back = found

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
        books: Books,
        hook: Hooked | None,
        clock: Clock,
        known: Mapping[Run, Known],
        policy: CullPolicy,
        clock_from: datetime | None,
    ) -> None:
        self._observer = observer
        self._clock_from = clock_from
        self._books = books
        self._hook = hook
        self._clock = clock
        self._known = known
        self._policy = policy

    async def __call__(self, action: Action, server: Server | None) -> Known:
        known = self._known.get((action.user, action.name, action.started), Known())
        now = self._clock.now()
        journal = self._books.journal
        exemptions = await self._books.call(journal.exemptions, now, user=action.user)
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


def _stuck(label: str, seen: Seen) -> str:
    return f"The server {label} has been pending ({seen.pending}) since {seen.pending_since:%Y-%m-%d %H:%M} UTC."


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
