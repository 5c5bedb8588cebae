"""Looks at the hub for everyone, remembers what it saw, and judges whether acting is safe. It changes nothing outside."""

from __future__ import annotations

import contextlib
import logging
from collections.abc import Callable, Iterable, Mapping
from dataclasses import asdict, replace
from datetime import datetime, timedelta

from hubguard.act.mandate import Mandate
from hubguard.errors import BudgetExhausted, HubError, JournalError
from hubguard.hub.api import HubAPI
from hubguard.journal.asynchronous import AsyncJournal
from hubguard.journal.model import Entry, Event
from hubguard.model import (
    Action,
    ActionKind,
    Cause,
    Finding,
    FindingKind,
    Key,
    Outcome,
    OutcomeKind,
    Source,
    same_run,
    server_label,
)
from hubguard.pacing.budget import Budget
from hubguard.pacing.clock import Clock
from hubguard.pacing.model import PaceState
from hubguard.snapshot.decide import activity
from hubguard.snapshot.decide.brake import Caution, Judgement, Look, fallen
from hubguard.snapshot.decide.brake import look as judge_the_world
from hubguard.snapshot.decide.memory import Watch
from hubguard.snapshot.model import Brake, BrakeReason, Run, Seen, Situation, Snapshot
from hubguard.snapshot.observe import Observer
from hubguard.snapshot.store import AsyncActivity

log = logging.getLogger(__name__)

NEWS = 100
"""Maximum new findings noted in the journal at once. Pages show them all."""

COMES_BACK_S = 3600.0
"""Seconds after a stop in which the same run, ready again, counts as having come back."""

REMEMBERED_NOTES = 5000
"""Journal notes read at startup, so that a restart doesn't announce the same servers or miss a deletion again."""

SAME_START_S = 2.0
"""Seconds by which a user may seem older than the start of the hub that made them. Some databases keep whole seconds."""

TOLD_S = 86400.0
"""Seconds for which a new database of the hub is a finding."""

SETTLED_BY_DRIFT = frozenset(
    kind.value for kind in (ActionKind.CHECK_ROUTES, ActionKind.START_AND_STOP, ActionKind.END_BACKEND)
)
"""Only a look at all sources settles these."""

WATCH, PACE = "watch", "pace"
"""The journal's names for what the brake and the budget remember."""


class Findings:
    """The findings of one part. ``now`` has them; each begins when it was first found, and is noted in the journal once."""

    def __init__(self) -> None:
        self.now: tuple[Finding, ...] = ()
        self._since: dict[tuple[FindingKind, str | None, str | None], datetime] = {}

    async def update(self, journal: AsyncJournal, findings: Iterable[Finding], at: datetime) -> None:
        """``now`` is what was found, and the journal has what is new. A journal that can't be used loses only its notes."""
        findings = tuple(findings)
        since: dict[tuple[FindingKind, str | None, str | None], datetime] = {}
        for finding in findings:
            since[_key(finding)] = min(finding.since, self._since.get(_key(finding), finding.since))
        news = [finding for finding in findings if _key(finding) not in self._since]
        for finding in news[:NEWS]:
            user, server = finding.user, finding.server
            with contextlib.suppress(JournalError):
                await journal.note(Event.FINDING, "hubguard", 0, at, finding.detail, user=user, server=server)
        self._since = since
        self.now = tuple(replace(finding, since=since[_key(finding)]) for finding in findings)


class Snapshots:
    """Takes one snapshot at a time: :meth:`look`, then :meth:`judge`, and :meth:`conclude` after what was done about it.

    ``last`` is the last snapshot that was judged. ``saw_all``: the hub answered the last look in full. ``seen`` is what is
    known of each server that was there. ``counting``: users are being counted, so nobody else may be deleted, from the start
    of a look until it is judged.

    ``restores`` returns the times (from, to) in which a table that the proxy had lost was filled again, oldest first.
    ``generation`` is the start of the hub that runs this guard.
    """

    def __init__(
        self,
        hub: HubAPI,
        budget: Budget,
        observer: Observer,
        clock: Clock,
        caution: Caution,
        *,
        generation: float = 0.0,
        journal_days: int = 365,
        mandate: Mandate,
        restores: Callable[[], tuple[activity.Window, ...]] = tuple,
    ) -> None:
        self.begun = False
        self.counting = False
        self.last: Snapshot | None = None
        self.saw_all = True
        self.seen: Mapping[Key, Seen] = {}
        self._hub = hub
        self._budget = budget
        self._observer = observer
        self._clock = clock
        self._caution = caution
        self._generation = generation
        self._journal_days = journal_days
        self._mandate = mandate
        self._filled_again = restores
        self._restores: tuple[activity.Window, ...] = ()
        self._looked: Look | None = None
        self._judged = Judgement(Watch(), None, None)
        self._deleted_users = 0
        self._stopped: dict[Run, datetime] = {}
        self._came_back: dict[Run, Finding] = {}
        self._findings = Findings()
        self._paced: tuple[PaceState, datetime | None] | None = None
        self._forgot_at: datetime | None = None
        self._new_database: Finding | None = None

    @property
    def brake(self) -> Brake | None:
        """Why HubGuard may not act by itself, as of the last look that was judged."""
        return self._judged.brake

    @property
    def clock_from(self) -> datetime | None:
        """The end of the last outage; no idle clock counts from before it."""
        return self._judged.clock_from

    @property
    def findings(self) -> tuple[Finding, ...]:
        """What an operator should look at, as of the last look."""
        return self._findings.now

    @property
    def came_back(self) -> frozenset[Run]:
        """The runs that a stop didn't end, although the hub accepted it, and that are still there."""
        return frozenset(self._came_back)

    @property
    def used_at(self) -> dict[Key, datetime]:
        """The last real use of each server that was there at the last look; without those never seen in use."""
        return {key: seen.active_at for key, seen in self.seen.items() if seen.active_at is not None}

    def why_fallen(self, users_total: int) -> str:
        """Why a look that finds this number of users would brake, as a sentence; "" if it wouldn't."""
        population = self._judged.watch.population.without(self._deleted_users)
        if not population.has_fallen(users_total, self._caution.population_fall):
            return ""
        why, ends = fallen(population.reference or 0, users_total)
        return Brake(BrakeReason.POPULATION, self._clock.now(), why, ends).sentence

    def count_deleted(self, users: int = 1) -> None:
        """Subtract ``users`` deleted users, so that the brake doesn't take them for a loss."""
        self._deleted_users += users

    def begin_anew(self) -> None:
        """Before the next look, what the journal remembers is read again: another guard may have acted since."""
        self.begun = False

    async def begin(self, journal: AsyncJournal) -> None:
        """What the journal remembers of earlier looks is in force: outages, the population, the budget's state."""
        if self.begun:
            return
        watch = await journal.recall(WATCH)
        if watch is not None:
            remembered = Watch.from_dict(watch[0])
            self._judged = replace(self._judged, watch=remembered, clock_from=remembered.clock_from)
            done = await journal.entries(event=Event.OUTCOME, limit=REMEMBERED_NOTES)
            self._deleted_users = sum(_is_deletion(entry) and entry.at >= watch[1] for entry in done)
        paced = await journal.recall(PACE)
        if paced is not None:
            age_s = max(0.0, (self._clock.now() - paced[1]).total_seconds())
            with contextlib.suppress(TypeError, ValueError):
                # What another version has written is no reason not to begin.
                self._budget.restore(PaceState(**paced[0]), age_s)
        self.seen = dict(await AsyncActivity(journal).activity())
        self.begun = True

    # -- looking --------------------------------------------------------------------------------------------------

    async def look(
        self, journal: AsyncJournal, *, users: bool = False, inactive_since: datetime | None = None, whole: bool = False
    ) -> Situation:
        """A new snapshot, and what is known beside it; to be judged next. Raises JournalError.

        ``users``: also those who were last active before ``inactive_since``, or all. ``whole``: the list is read from
        the hub's API even if its database would do.
        """
        await self.begin(journal)
        self.counting = True
        try:
            return await self._look(journal, users=users, inactive_since=inactive_since, whole=whole)
        except BaseException:
            self.counting = False
            raise

    async def _look(
        self, journal: AsyncJournal, *, users: bool, inactive_since: datetime | None, whole: bool
    ) -> Situation:
        # Read before the snapshot is taken: an intent that is open by now is older than what the snapshot shows.
        under_way = self._mandate.intents_under_way
        open_intents = [intent for intent in await journal.open_intents() if intent.id not in under_way]
        snapshot = await self._observer.look(
            users=users,
            inactive_since=inactive_since,
            # Only the hub's API shows what is pending.
            whole=whole
            or bool(open_intents)
            or bool(self._stuck(self._clock.now()))
            or BrakeReason.CHECKING in self._judged.watch.since,
        )
        await self.remember_pace(journal)
        self.saw_all = snapshot.complete
        if snapshot.complete:
            await self._settle_what_was_left(journal, open_intents, snapshot)
            await self._follow(journal, snapshot)
        all_new = await self._all_are_new(snapshot)
        resumed_at = await journal.resumed_at()
        self._looked = Look(
            now=self._clock.now(),
            snapshot=snapshot,
            hub_answered=_answered(snapshot, Source.HUB_API) is True,
            proxy_answered=_answered(snapshot, Source.PROXY),
            generation=self._generation,
            deleted_users=self._deleted_users,
            resumed_at=resumed_at,
            skew_s=None if self._hub.skew_s is None else -self._hub.skew_s,
            all_new=all_new,
        )
        # This very look may show that idle clocks start again; only then it is known how much is due.
        clock_from = judge_the_world(self._judged.watch, self._looked, self._caution).clock_from
        self.seen = activity.pending_from(self.seen, clock_from)
        return Situation(self._looked.now, snapshot, self.seen, self._restores, clock_from)

    async def _all_are_new(self, snapshot: Snapshot) -> bool:
        """Whether most users are gone since the last look and all others came after it, so the database is new.

        Then nobody is missed, and no server of theirs is judged by what was before.
        """
        watch, total = self._judged.watch, snapshot.users_total
        fallen = watch.population.without(self._deleted_users)
        if not snapshot.complete or total is None or not fallen.has_fallen(total, self._caution.population_fall):
            return False
        try:
            first = await self._hub.first_user()
        except (HubError, BudgetExhausted) as error:
            log.info("Whether all users of the hub are new is unknown: %s", error)
            return False
        if first is None or first.created is None:
            return False
        before = [watch.hub_seen_at.timestamp()] if watch.hub_seen_at is not None else []
        if watch.generation and self._generation != watch.generation:
            before.append(self._generation - SAME_START_S)
        if not before or first.created.timestamp() <= min(before):
            return False
        text = (
            f"All {total:,} users of the hub are new since {first.created:%Y-%m-%d %H:%M} UTC, and {fallen.reference or 0:,}"
            " were there before: the hub's database was replaced, or is kept in memory and starts empty with each start of"
            " the hub (JupyterHub.db_url). HubGuard continues with the users that are there now. Servers from before show as"
            " orphans where backends can be listed."
        )
        self._new_database = Finding(FindingKind.NEW_DATABASE, snapshot.taken_at, text)
        log.warning("%s", text)
        return True

    def _stuck(self, now: datetime) -> tuple[Seen, ...]:
        """What was pending for too long when it was last seen. Only the hub's API shows whether it still is."""
        limit = timedelta(seconds=self._caution.pending_limit_s)
        return tuple(
            seen for seen in self.seen.values() if seen.pending_since is not None and now - seen.pending_since >= limit
        )

    async def _settle_what_was_left(
        self, journal: AsyncJournal, open_intents: Iterable[Entry], snapshot: Snapshot
    ) -> None:
        """Intents without an outcome, left by a guard that ended in between, are settled by what the snapshot shows.

        An intent for a server that is pending stays open: its outcome is unknown yet. What only a look at all sources can
        show is left to that.
        """
        servers = {server.key: server for server in snapshot.servers}
        for intent in open_intents:
            if intent.action in SETTLED_BY_DRIFT or intent.id in self._mandate.intents_under_way:
                continue
            if intent.action == ActionKind.DELETE_USER.value:
                outcome = await self._what_became_of_user(intent)
                if outcome is None:
                    continue
            else:
                server = servers.get((intent.user or "", intent.server or ""))
                if server is None or not same_run(server.started, intent.started):
                    outcome = Outcome(OutcomeKind.DONE, "that run was found gone by a later look")
                elif server.pending is not None:
                    continue
                else:
                    outcome = Outcome(
                        OutcomeKind.UNVERIFIED, "the guard ended before the outcome was known; it is still running"
                    )
            settled = await journal.settle(intent.id, outcome, self._clock.now())
            if settled and intent.action == ActionKind.DELETE_USER.value and outcome.kind is OutcomeKind.DONE:
                self.count_deleted()

    async def _what_became_of_user(self, intent: Entry) -> Outcome | None:
        try:
            user = await self._hub.get_user(intent.user or "")
        except Exception as error:
            log.warning("It is unknown yet whether %s is deleted: %s", intent.user, error)
            return None
        if user is None or not same_run(user.created, intent.started):
            return Outcome(OutcomeKind.DONE, "that user was found gone by a later look")
        return Outcome(OutcomeKind.UNVERIFIED, "the guard ended before the outcome was known; the user is still there")

    async def _follow(self, journal: AsyncJournal, snapshot: Snapshot) -> None:
        looked_at = self.last.taken_at if self.last is not None else None
        self._restores = activity.trusted(self._restores, self._filled_again(), looked_at)
        followed = activity.follow(self.seen, snapshot, self._restores)
        if followed:
            # The unchanged, too: what hasn't been seen for long is forgotten.
            await AsyncActivity(journal).see(followed.values(), snapshot.taken_at)
        # What isn't there any more the journal keeps; here it would only grow.
        self.seen = followed

    # -- judging --------------------------------------------------------------------------------------------------

    async def judge(self, journal: AsyncJournal, *, due: int, keep: bool = True) -> Judgement:
        """Whether acting is safe after the last look, with ``due`` actions due. Raises JournalError.

        Without ``keep`` nothing of it is remembered.
        """
        assert self._looked is not None
        try:
            judgement = judge_the_world(self._judged.watch, replace(self._looked, due=due), self._caution)
            if keep:
                await self._take_over(journal, judgement, self._looked)
            return judgement
        finally:
            self.counting = False

    async def _take_over(self, journal: AsyncJournal, judgement: Judgement, looked: Look) -> None:
        if judgement.watch != self._judged.watch:
            await journal.remember(WATCH, judgement.watch.to_dict(), self._clock.now())
        # Only now: the watch without the deletions, or they without it, would look like a loss.
        self._deleted_users -= looked.deleted_users
        before, self._judged, self.last = self.brake, judgement, looked.snapshot
        self._follow_what_came_back(looked.snapshot)
        reason = judgement.brake.reason if judgement.brake else None
        if reason is not (before.reason if before else None):
            now = self._clock.now()
            if judgement.brake is not None:
                log.warning("%s", judgement.brake.sentence)
                await journal.note(Event.BRAKED, "hubguard", 0, now, judgement.brake.why)
            elif before is not None:
                log.info("HubGuard is no longer braked (%s).", before.reason.value)
                await journal.note(Event.BRAKE_OVER, "hubguard", 0, now, before.why)

    # -- what came of it ------------------------------------------------------------------------------------------

    def learn(self, outcomes: Iterable[tuple[Action, Outcome]]) -> None:
        """What was done on the last look: users who are gone by our own hand, and runs that were stopped, or weren't."""
        now = self._clock.now()
        for action, outcome in outcomes:
            run = (action.user, action.name, action.started)
            if outcome.kind is OutcomeKind.DONE:
                if action.kind is ActionKind.DELETE_USER:
                    self.count_deleted()
                elif action.kind is ActionKind.STOP_SERVER:
                    self._stopped[run] = now
                self._came_back.pop(run, None)
            elif outcome.cause in {Cause.CAME_BACK, Cause.CHANGED_NOTHING}:
                text = f"Stopping {action.label}: {outcome.detail}."
                self._came_back[run] = Finding(FindingKind.CAME_BACK, now, text, action.user, action.name)

    async def conclude(self, journal: AsyncJournal) -> None:
        """``findings`` are those of the last look and of what was done on it; what is old is forgotten. Raises nothing."""
        await self._forget_what_is_old(journal)
        await self.remember_pace(journal)
        now = self._clock.now()
        stuck = [
            Finding(FindingKind.PENDING_STUCK, seen.pending_since or now, _how_stuck(seen), seen.user, seen.server)
            for seen in self._stuck(now)
        ]
        replaced = self._new_database
        if replaced is not None and now - replaced.since > timedelta(seconds=TOLD_S):
            replaced = self._new_database = None
        of_hub = (*self._judged.findings, *((replaced,) if replaced is not None else ()))
        await self._findings.update(journal, (*of_hub, *self._came_back.values(), *stuck), now)

    def _follow_what_came_back(self, snapshot: Snapshot) -> None:
        """Runs that were seen gone and are ready again count as having come back for as long as they are there."""
        horizon = self._clock.now() - timedelta(seconds=COMES_BACK_S)
        self._stopped = {run: at for run, at in self._stopped.items() if at > horizon}
        if snapshot.complete:
            there = {server.run for server in snapshot.servers}
            self._came_back = {run: finding for run, finding in self._came_back.items() if run in there}
        for server in snapshot.servers:
            at = self._stopped.get(server.run)
            if server.ready and at is not None and at < snapshot.taken_at:
                text = f"The server {server.label} was stopped and seen gone, and the same run is ready again."
                self._came_back[server.run] = Finding(FindingKind.CAME_BACK, at, text, *server.key)

    # -- remembering ----------------------------------------------------------------------------------------------

    async def remember_pace(self, journal: AsyncJournal) -> None:
        """What the budget has learned is in the journal, if it has changed: a restart continues from there."""
        paced, now = self._budget.state(), self._clock.now()
        # When a probe is due is a moment; how long it is until then is another number each time.
        probe_at = now + timedelta(seconds=paced.probe_in_s)
        learned = (replace(paced, probe_in_s=0.0), probe_at if paced.breaker == "open" else None)
        if self._paced is None or not _same_pace(learned, self._paced):
            self._paced = learned
            with contextlib.suppress(JournalError):
                await journal.remember(PACE, asdict(paced), now)

    async def _forget_what_is_old(self, journal: AsyncJournal) -> None:
        """Once a day, so that the journal doesn't grow forever; piece by piece, so that the lease can be renewed between."""
        now, days = self._clock.now(), self._journal_days
        if self._forgot_at is None or now - self._forgot_at >= timedelta(days=1):
            self._forgot_at = now
            try:
                before = now - timedelta(days=days)
                gone = await journal.forget(before)
                await AsyncActivity(journal).forget(before)
            except JournalError as error:
                # What this cycle did is reported all the same.
                log.warning("The journal keeps what is old for another day: %s", error)
                return
            if gone:
                self._forgot_at = None  # there may be more, which waits for the next cycle
                log.info("The journal has forgotten %d entries older than %d days.", gone, days)


def _key(finding: Finding) -> tuple[FindingKind, str | None, str | None]:
    return (finding.kind, finding.user, finding.server)


def _how_stuck(seen: Seen) -> str:
    label = server_label(seen.user, seen.server)
    return f"The server {label} has been pending ({seen.pending}) since {seen.pending_since:%Y-%m-%d %H:%M} UTC."


def _is_deletion(entry: Entry) -> bool:
    return entry.action == ActionKind.DELETE_USER.value and entry.outcome is OutcomeKind.DONE


def _answered(snapshot: Snapshot, source: Source) -> bool | None:
    reading = snapshot.reading(source)
    return None if reading is None else reading.complete


def _same_pace(learned: tuple[PaceState, datetime | None], before: tuple[PaceState, datetime | None]) -> bool:
    if learned[0] != before[0] or learned[1] is None or before[1] is None:
        return learned == before
    return abs(learned[1] - before[1]) < timedelta(seconds=1)
