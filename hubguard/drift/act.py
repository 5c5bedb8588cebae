"""Carries out repairs. Each has a second look, an intent, a request, a verification and an outcome."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Awaitable, Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from datetime import datetime

from hubguard.act.attempt import STOPS_SLOWLY, UNVERIFIED_A_PLACE, Attempt, Sent, named
from hubguard.act.mandate import Mandate
from hubguard.act.verify import FIRST_REREAD_S, LONGEST_REREAD_S, Verifier
from hubguard.backends.model import Backend
from hubguard.backends.port import Backends, Expected
from hubguard.drift.decide.compare import SURELY_STOPPED_S
from hubguard.drift.decide.repair import began_before, still_there
from hubguard.drift.model import ROUTE_KINDS, Drift, DriftKind, Repair, RepairPlan
from hubguard.errors import HubGuardError, JournalError
from hubguard.hub.api import HubAPI
from hubguard.journal.model import Entry
from hubguard.model import Action, ActionKind, Cause, Key, Order, Outcome, OutcomeKind, Server, same_run
from hubguard.pacing.clock import Clock

log = logging.getLogger(__name__)

CHECK_ROUTES_S = 60.0
"""Maximum seconds for the hub to check its routes. If it can't reach the proxy, it answers after half a minute (6.1)."""

SETTLED_S = 5.0
"""Seconds for which routes are read again. The hub answers once it has set them all."""

START_S = 120.0
"""Maximum seconds for a start. The hub gives up after ``start_timeout`` and ``http_timeout``, 60 and 30 s by default."""

NAMED = 5
"""Maximum routes that an outcome names. The page shows all."""

Look = Callable[[Sequence[Key]], Awaitable[tuple[Drift, ...]]]
"""Reads the sources again and returns the differences of these servers, or those of all routes if there are none.

Raises HubGuardError if a source can't be read in full: a difference that it doesn't return counts as resolved.
"""


class Repairer:
    """Carries out plans of repairs, one plan at a time.

    ``backends`` is None if none can be seen. ``verify_s`` is the seconds after which a repair counts as unverified.
    ``on_outcome`` is called with each repair and its outcome.
    """

    def __init__(
        self,
        hub: HubAPI,
        backends: Backends | None,
        mandate: Mandate,
        clock: Clock,
        look: Look,
        *,
        verify_s: float,
        on_outcome: Callable[[Repair, Outcome], None],
    ) -> None:
        self._hub = hub
        self._backends = backends
        self._mandate = mandate
        self._clock = clock
        self._look = look
        self._verify_s = verify_s
        self._on_outcome = on_outcome
        self._one_plan_at_a_time = asyncio.Lock()
        self._attempts: list[Attempt] = []

    def abandon(self) -> None:
        """Give up what is being carried out. A later look settles it."""
        for attempt in self._attempts:
            attempt.close()
        self._attempts.clear()

    async def run(
        self, plan: RepairPlan, order: Order, *, concurrency: int, running: int
    ) -> tuple[tuple[Repair, Outcome], ...]:
        """Carry out ``plan``, at most ``concurrency`` repairs at a time, and return each with its outcome, in its order.

        Routes are checked first, and alone. Repairs of one server come one after the other, and so do all starts. A failure
        doesn't end the rest, except for starts: each failed one brings the hub nearer to ``consecutive_failure_limit``, at
        which it exits. The rest is skipped when the lease is lost, acting is put on hold, the journal fails, the hub refuses
        to be read, the breaker opens, the proxy doesn't answer, or the plan expires. ``running`` is about how many servers
        the hub has.
        """
        async with self._one_plan_at_a_time:
            verifier = Verifier(self._hub, self._clock, verify_s=self._verify_s, running=running)
            work = _Work(plan, order, verifier, concurrency)
            tasks: list[asyncio.Task[None]] = []
            try:
                for of_routes in (True, False):
                    queues: dict[Key, list[int]] = {}
                    for index, repair in enumerate(plan.repairs):
                        if (repair.action.kind is ActionKind.CHECK_ROUTES) is of_routes:
                            queues.setdefault((repair.action.user, repair.action.name), []).append(index)
                    tasks = [asyncio.ensure_future(self._one_after_another(queue, work)) for queue in queues.values()]
                    await asyncio.gather(*tasks)
            finally:
                for task in tasks:
                    task.cancel()
                verifier.close()
                await asyncio.gather(*tasks, return_exceptions=True)
                self.abandon()
            return tuple((repair, work.outcomes[index]) for index, repair in enumerate(plan.repairs))

    async def settle_left(self, open_intents: Sequence[Entry]) -> None:
        """Settle by a fresh look the intents that a guard left behind, as far as it shows their outcome. Raises JournalError.

        Stops and interrupted starts are settled with those of culling: one read of the server shows their outcome.
        """
        for intent in open_intents:
            if intent.id in self._mandate.intents_under_way:
                continue
            try:
                outcome = await self._what_became_of(intent)
            except JournalError:
                raise
            except HubGuardError as error:
                log.warning("Outcome of a repair (%s) unknown so far: %s", intent.action, error)
                continue
            if outcome is not None:
                await self._mandate.settle(intent.id, outcome)

    async def _what_became_of(self, intent: Entry) -> Outcome | None:
        """The outcome of ``intent``; None if it is unknown so far, or isn't drift's to settle."""
        key = (intent.user or "", intent.server or "")
        if intent.action == ActionKind.CHECK_ROUTES.value:
            wrong = [drift for drift in await self._look(()) if drift.kind in ROUTE_KINDS]
            return _left(f"{len(wrong)} routes are wrong" if wrong else "")
        if intent.action == ActionKind.END_BACKEND.value:
            meant = [orphan for orphan in await self._orphans(key) if _may_mean(intent, orphan.backend)]
            return _left(f"{_name_of(meant[0])} is alive" if meant else "")
        if intent.action == ActionKind.START_AND_STOP.value:
            server = await self._hub.get_server(*key)
            if server is None:
                return _left("")
            if server.pending is not None:
                return None
            again = not same_run(server.started, intent.started)
            return _left("it was started again and runs; stop it yourself" if again else "the hub still calls it ready")
        return None

    async def _one_after_another(self, queue: Sequence[int], work: _Work) -> None:
        for index in queue:
            work.outcomes[index] = await self._repair(work.plan.repairs[index], work)
            self._on_outcome(work.plan.repairs[index], work.outcomes[index])

    async def _repair(self, repair: Repair, work: _Work) -> Outcome:
        if repair.action.kind is not ActionKind.START_AND_STOP:
            return await self._look_send_verify(repair, work)
        async with work.one_start:
            if work.start_failed:
                return Outcome(OutcomeKind.SKIPPED, f"not tried: {work.start_failed}", Cause.NOT_TRIED)
            return await self._look_send_verify(repair, work)

    async def _look_send_verify(self, repair: Repair, work: _Work) -> Outcome:
        async with work.room:
            attempt = self._attempt(repair.action, work, repair)
            async with work.places:
                if self._clock.now() >= work.plan.expires_at:
                    work.end("the plan has expired")
                if work.ended:
                    return await self._skipped(repair, work)
                sent = await attempt.make(lambda: self._second_look(repair, work), lambda: self._send(repair, attempt))
            if not isinstance(sent, Sent):
                outcome, end = sent
                work.end(end)
                return outcome
            try:
                outcome = await self._verify(repair, sent, work)
            except Exception as error:
                log.exception("The outcome of a repair for %s is unknown", repair.action.label)
                outcome = Outcome(OutcomeKind.UNVERIFIED, f"unexpected error (a bug in HubGuard): {named(error)}")
            await self._settle(attempt, outcome, work)
            return outcome

    def _attempt(self, action: Action, work: _Work, repair: Repair) -> Attempt:
        detail = f"for the drift {', '.join(repair.drifts[:NAMED])}"
        if repair.backend is not None:
            detail = f"{repair.backend.name} {_id_in_journal(repair.backend)} {repair.backend.proof}), {detail}"
        attempt = self._mandate.attempt(action, work.order, detail)
        self._attempts.append(attempt)
        return attempt

    async def _skipped(self, repair: Repair, work: _Work) -> Outcome:
        outcome = Outcome(OutcomeKind.SKIPPED, f"not tried: {work.ended}", Cause.NOT_TRIED)
        try:
            await self._mandate.skip(repair.action, work.order.actor, work.ended)
        except JournalError as error:
            log.warning("A skipped repair isn't in the journal: %s", error)
        return outcome

    async def _settle(self, attempt: Attempt, outcome: Outcome, work: _Work) -> None:
        assert attempt.intent is not None
        try:
            await self._mandate.settle(attempt.intent, outcome)
        except JournalError as error:
            work.end(f"the journal can't record what was done: {error}")

    # -- second look ----------------------------------------------------------------------------------------------

    async def _second_look(self, repair: Repair, work: _Work) -> str | None:
        """Why the repair is no longer due, or None if it is. ``work`` then knows the orphans that are there before it."""
        action = repair.action
        if action.kind is ActionKind.CHECK_ROUTES:
            return still_there(repair, await self._look(())) or None
        seen = await self._look([(action.user, action.name)])
        work.orphans.update(
            orphan.backend.id for orphan in _orphans_of((action.user, action.name), seen) if orphan.backend
        )
        gone = still_there(repair, seen)
        if gone:
            return gone
        # Last: between this read and the request there is only its turn.
        server = await self._hub.get_server(action.user, action.name)
        if action.kind is ActionKind.END_BACKEND:
            return await self._not_to_be_ended(repair.backend, server)
        if server is None:
            return "the hub no longer has it"
        if not same_run(server.started, action.started):
            return "it was restarted in the meantime"
        if action.kind is ActionKind.INTERRUPT_SPAWN:
            return None if server.pending == "spawn" else "its start is no longer pending"
        if server.pending is not None:
            return f"the hub is busy with it (pending: {server.pending})"
        return None if server.ready else "the hub no longer calls it ready"

    async def _not_to_be_ended(self, backend: Backend | None, server: Server | None) -> str | None:
        if backend is None or self._backends is None:
            return "no backend to end is known"
        if not backend.proof:
            return f"can't confirm that {backend.name} belongs to this hub; by hand: {_command(backend)}"
        if server is None:
            return None
        # Some spawners reuse what is left of the last run. Only the run's own backend beside it shows that it isn't in use.
        may_belong = f"the hub has that server again, and {backend.name} may belong to it; by hand: {_command(backend)}"
        if not server.ready or server.started is None or not began_before(backend, server.started):
            return may_belong
        seen = await self._backends.look([Expected(*backend.key, started=server.started)])
        if not any(_runs(other, backend, server.started) for other in seen):
            return may_belong
        now = await self._hub.get_server(*backend.key)
        same = now is not None and now.ready and same_run(now.started, server.started)
        return None if now is None or same else may_belong

    # -- requests -------------------------------------------------------------------------------------------------

    async def _send(self, repair: Repair, attempt: Attempt) -> str:
        action = repair.action
        if action.kind is ActionKind.CHECK_ROUTES:
            await self._hub.check_routes(timeout_s=CHECK_ROUTES_S, confirm=attempt.confirm)
            return ""
        if action.kind is ActionKind.START_AND_STOP:
            await self._hub.start_server(action.user, action.name, confirm=attempt.confirm)
            return ""
        if action.kind is ActionKind.END_BACKEND:
            assert self._backends is not None
            assert repair.backend is not None
            await attempt.confirm()
            await self._backends.end(repair.backend)
            return ""
        return await self._send_stop(action, attempt)

    async def _send_stop(self, action: Action, attempt: Attempt) -> str:
        at_once = await self._hub.stop_server(action.user, action.name, confirm=attempt.confirm)
        return "" if at_once else STOPS_SLOWLY

    # -- verification ---------------------------------------------------------------------------------------------

    async def _verify(self, repair: Repair, sent: Sent, work: _Work) -> Outcome:
        action = repair.action
        if sent.refused:
            outcome = Outcome(OutcomeKind.FAILED, sent.remark)
        elif action.kind is ActionKind.CHECK_ROUTES:
            outcome = await self._verify_routes(repair, sent)
        elif action.kind is ActionKind.END_BACKEND:
            outcome = await self._verify_end(repair, sent)
        elif action.kind is ActionKind.START_AND_STOP:
            outcome = await self._stop_again(repair, sent, work)
        else:
            outcome = await work.verifier.outcome(action, sent.remark, failed=sent.failed)
            outcome = await self._without_orphan(action, outcome, work)
        if outcome.kind in {OutcomeKind.FAILED, OutcomeKind.UNVERIFIED}:
            by_hand = _command(repair.backend) if repair.backend is not None else _BY_HAND[action.kind]
            detail = f"{outcome.detail}. Tried: {_TRIED[action.kind]}. By hand: {by_hand}."
            return replace(outcome, detail=detail)
        return outcome

    async def _verify_routes(self, repair: Repair, sent: Sent) -> Outcome:
        wrong: Sequence[Drift] = ()
        unread = ""
        rereads = _Rereads(self._clock, 0.0 if sent.failed else SETTLED_S)
        while await rereads.next():
            try:
                wrong = [drift for drift in await self._look(()) if drift.id in repair.drifts]
            except HubGuardError as error:
                unread = str(error)
                continue
            unread = ""
            if not wrong:
                return Outcome(OutcomeKind.DONE, "all routes are right at a re-read" + _also(sent.remark))
        if unread:
            return Outcome(OutcomeKind.UNVERIFIED, f"the routes can't be read again: {unread}" + _also(sent.remark))
        rest = f" and {len(wrong) - NAMED} more" if len(wrong) > NAMED else ""
        names = ", ".join(f"{drift.kind.value} {_subject(drift)}" for drift in wrong[:NAMED])
        count = f"{len(wrong)} of {len(repair.drifts)}"
        return Outcome(OutcomeKind.FAILED, f"{count} are still wrong: {names}{rest}" + _also(sent.remark))

    async def _verify_end(self, repair: Repair, sent: Sent) -> Outcome:
        backend, backends = repair.backend, self._backends
        assert backend is not None
        assert backends is not None
        alive: bool | None = None
        seen = ""
        rereads = _Rereads(self._clock, 0.0 if sent.failed else self._verify_s)
        while await rereads.next():
            try:
                alive, seen = _is_alive(backend, await backends.look([Expected(*backend.key)]), backends.whole)
            except HubGuardError as error:
                alive, seen = None, str(error)
            if alive is False:
                return Outcome(OutcomeKind.DONE, f"{backend.name} is gone at a re-read" + _also(sent.remark))
        if alive is None:
            return Outcome(
                OutcomeKind.UNVERIFIED, f"can't tell whether {backend.name} is gone: {seen}" + _also(sent.remark)
            )
        return Outcome(OutcomeKind.FAILED, f"{backend.name} is still alive{_also(seen)}" + _also(sent.remark))

    async def _stop_again(self, repair: Repair, sent: Sent, work: _Work) -> Outcome:
        """Stop a server that was started again, once it runs or when it hasn't come up in time."""
        action = repair.action
        server, unread = await self._started(action, failed=sent.failed)
        as_before = server is not None and server.pending is None and same_run(server.started, action.started)
        if server is None or not (server.ready or as_before):
            work.start_failed = (
                f"the start of {action.label} failed, and after several failed starts a hub may exit"
                " (consecutive_failure_limit)"
            )
        if unread:
            return Outcome(OutcomeKind.UNVERIFIED, f"it can't be read again: {unread}" + _also(sent.remark))
        if server is None:
            detail = "the start failed, and the hub let go of it" + _also(sent.remark)
            return await self._without_orphan(action, Outcome(OutcomeKind.DONE, detail), work)
        if as_before:
            return Outcome(OutcomeKind.FAILED, "the start changed nothing" + _also(sent.remark))
        if server.pending not in {None, "spawn"}:
            return Outcome(OutcomeKind.UNVERIFIED, f"pending: {server.pending}" + _also(sent.remark))
        stop = Action(
            action.user,
            action.name,
            server.started,
            server.last_activity,
            action.reason,
            kind=ActionKind.STOP_SERVER if server.ready else ActionKind.INTERRUPT_SPAWN,
        )
        attempt = self._attempt(stop, work, repair)
        stopped = await attempt.make(lambda: self._still_that_run(stop), lambda: self._send_stop(stop, attempt))
        if not isinstance(stopped, Sent):
            work.end(stopped[1])
            return Outcome(OutcomeKind.FAILED, f"it was started again, runs, and wasn't stopped: {stopped[0].detail}")
        if stopped.refused:
            outcome = Outcome(OutcomeKind.FAILED, stopped.remark)
        else:
            outcome = await work.verifier.outcome(stop, stopped.remark, failed=stopped.failed)
            outcome = await self._without_orphan(stop, outcome, work)
        await self._settle(attempt, outcome, work)
        return Outcome(outcome.kind, f"started again, then stopped: {outcome.detail}")

    async def _started(self, ghost: Action, *, failed: bool) -> tuple[Server | None, str]:
        """The server of ``ghost`` once it has come up again, or as it is after START_S; and why it can't be read, or "".

        With ``failed`` (the hub said no), a server that is ready as before is returned at once.
        """
        server, unread = None, ""
        rereads = _Rereads(self._clock, START_S)
        while await rereads.next():
            try:
                server, unread = await self._hub.get_server(ghost.user, ghost.name), ""
            except HubGuardError as error:
                server, unread = None, str(error)
                continue
            if server is None or (server.ready and (failed or not same_run(server.started, ghost.started))):
                break
        return server, unread

    async def _still_that_run(self, stop: Action) -> str | None:
        server = await self._hub.get_server(stop.user, stop.name)
        if server is None:
            return "it is no longer running"
        if not same_run(server.started, stop.started):
            return "it was restarted in the meantime"
        return None

    async def _without_orphan(self, action: Action, outcome: Outcome, work: _Work) -> Outcome:
        """``outcome``, or that the hub let go of a server whose backend lives on."""
        if outcome.kind is not OutcomeKind.DONE:
            return outcome
        orphan: Drift | None = None
        rereads = _Rereads(self._clock, max(self._verify_s, SURELY_STOPPED_S))
        while await rereads.next():
            try:
                orphans = await self._orphans((action.user, action.name))
            except HubGuardError as error:
                return Outcome(OutcomeKind.DONE, f"{outcome.detail}; its backend can't be read again: {error}")
            orphan = next((left for left in orphans if not _was_left_before(left.backend, action.started, work)), None)
            if orphan is None:
                return outcome
        if orphan is not None and orphan.backend is None:
            # Backends of this kind can't be listed, and many a spawner finds one that is only ending.
            detail = (
                "its spawner still found its backend right after the stop, which may only have needed a moment longer"
            )
            return Outcome(OutcomeKind.DONE, f"{outcome.detail}; {detail}")
        return Outcome(
            OutcomeKind.FAILED, f"the hub let go of it, but {_name_of(orphan)} still runs: it is an orphan now"
        )

    async def _orphans(self, key: Key) -> list[Drift]:
        return _orphans_of(key, await self._look([key]))


class _Rereads:
    """The moments of re-reads: the first at once, then further and further apart, for ``for_s`` seconds."""

    def __init__(self, clock: Clock, for_s: float) -> None:
        self._clock = clock
        self._until_s = clock.monotonic_s() + for_s
        self._wait_s = 0.0

    async def next(self) -> bool:
        """Wait for the next and return True, or return False if there is none."""
        if self._wait_s and self._clock.monotonic_s() + self._wait_s > self._until_s:
            return False
        await self._clock.sleep(self._wait_s)
        self._wait_s = min(self._wait_s * 2, LONGEST_REREAD_S) or FIRST_REREAD_S
        return True


@dataclass(slots=True)
class _Work:
    """A plan that is being carried out. ``ended`` is why the rest is skipped, ``start_failed`` why its starts are, or "".

    ``orphans`` are the ids of the backends that were orphans at a second look, so that no request of this plan left them.
    """

    plan: RepairPlan
    order: Order
    verifier: Verifier
    concurrency: int
    outcomes: dict[int, Outcome] = field(default_factory=dict)
    ended: str = ""
    start_failed: str = ""
    orphans: set[str] = field(default_factory=set)
    one_start: asyncio.Lock = field(default_factory=asyncio.Lock)
    places: asyncio.Semaphore = field(init=False)
    room: asyncio.Semaphore = field(init=False)

    def __post_init__(self) -> None:
        # While one that was sent is being verified, the next may be sent.
        self.places = asyncio.Semaphore(self.concurrency)
        self.room = asyncio.Semaphore(self.concurrency * UNVERIFIED_A_PLACE)

    def end(self, why: str) -> None:
        if why and not self.ended:
            self.ended = why
            log.warning("The rest of these repairs is skipped: %s", why)


_TRIED: Mapping[ActionKind, str] = {
    ActionKind.CHECK_ROUTES: "the hub was asked to check its routes",
    ActionKind.STOP_SERVER: "the hub was asked to stop it",
    ActionKind.INTERRUPT_SPAWN: "the hub was asked to stop it, which interrupts its start",
    ActionKind.START_AND_STOP: "the hub was asked to start it with its last options, then to stop it",
    ActionKind.END_BACKEND: "it was asked to end",
}

_BY_HAND: Mapping[ActionKind, str] = {
    ActionKind.CHECK_ROUTES: (
        "find in the hub's log why it can't set them (does it reach the proxy's API?) and POST to /hub/api/proxy; if that"
        " doesn't help, restart the proxy, then the hub"
    ),
    ActionKind.STOP_SERVER: "start it and stop it, or restart the hub, which checks each server when it starts",
    ActionKind.INTERRUPT_SPAWN: (
        "restart the hub, which keeps pending starts in memory only; then check whether its backend is still there"
    ),
    ActionKind.START_AND_STOP: (
        "restart the hub, which checks each server when it starts; if that doesn't help, stop the hub, set server_id of"
        " its row in the table spawners to NULL, and start the hub"
    ),
    ActionKind.END_BACKEND: "end it where it runs, for example with `docker` or `kubectl`",
}


def _command(backend: Backend) -> str:
    return backend.command or _BY_HAND[ActionKind.END_BACKEND]


def _is_alive(backend: Backend, seen: Sequence[Backend], whole: bool) -> tuple[bool | None, str]:
    """Whether that very backend is alive by this look, None if unknown, and why or how."""
    same = next((other for other in seen if other.id == backend.id), None)
    if same is not None:
        return same.alive, same.detail
    if whole or any(other.key == backend.key and other.alive is False for other in seen):
        return False, ""
    return None, "it isn't listed, and the list is incomplete"


def _runs(backend: Backend, other: Backend, run: datetime) -> bool:
    """Whether ``backend`` is alive, isn't ``other``, and belongs to the server's run that was started then."""
    alive = backend.alive is True and backend.key == other.key and backend.id != other.id
    return alive and backend.started is not None and not began_before(backend, run)


def _left(still: str) -> Outcome:
    if still:
        return Outcome(OutcomeKind.UNVERIFIED, f"the guard ended before the outcome was known; {still}")
    return Outcome(OutcomeKind.DONE, "found repaired by a later look")


def _subject(drift: Drift) -> str:
    if drift.subject:
        return drift.subject
    return f"{drift.user}/{drift.server}" if drift.server else drift.user or "of the hub"


def _orphans_of(key: Key, drifts: Sequence[Drift]) -> list[Drift]:
    """That server's orphans among ``drifts``: a look returns those of others, too."""
    return [
        drift for drift in drifts if drift.kind is DriftKind.SERVER_ORPHAN and (drift.user, drift.server or "") == key
    ]


def _was_left_before(backend: Backend | None, run: datetime | None, work: _Work) -> bool:
    """Whether ``backend`` surely was an orphan before the stop of that ``run``. None is one that nothing can list."""
    if backend is None:
        return False
    return backend.id in work.orphans or (run is not None and began_before(backend, run))


def _id_in_journal(backend: Backend) -> str:
    return f"({backend.id};"


def _may_mean(intent: Entry, backend: Backend | None) -> bool:
    """Whether ``intent`` may have been to end ``backend``: surely not if its detail names another."""
    return backend is None or not intent.detail or _id_in_journal(backend) in intent.detail


def _name_of(orphan: Drift | None) -> str:
    return orphan.backend.name if orphan is not None and orphan.backend is not None else "its backend"


def _also(remark: str) -> str:
    return f"; {remark}" if remark else ""
