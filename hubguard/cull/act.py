"""Carries out a plan of culling: each action in turn, within the budget, with a second look and verification."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Awaitable, Callable, Coroutine, Iterator
from typing import Any

from hubguard.act.attempt import STOPS_SLOWLY, UNVERIFIED_A_PLACE, Attempt, Sent, named
from hubguard.act.delete import UserDeleter
from hubguard.act.verify import Verifier
from hubguard.cull.decide.judge import SPARED, CullPolicy, grounds, grounds_of_user, still_due, user_still_due
from hubguard.cull.model import Known, Plan, Reason
from hubguard.errors import JournalError
from hubguard.hub.api import HubAPI
from hubguard.model import Action, ActionKind, Cause, Outcome, OutcomeKind, Server
from hubguard.pacing.clock import Clock

log = logging.getLogger(__name__)

KnownNow = Callable[[Action, Server | None], Awaitable[Known]]
"""What is known of the server of an action, beyond what the hub has just said of it (None: for a user, or it's gone)."""


class Executor:
    """Carries out plans. ``verify_s`` is how many seconds a stop may take until it counts as unverified.

    ``known_now`` is asked at each second look, ``attempt_for`` makes an attempt at an action, ``settle`` records what came
    of an intent. ``turn`` returns when the next action is to begin. ``running`` is about how many servers the hub has.
    """

    def __init__(
        self,
        hub: HubAPI,
        clock: Clock,
        policy: CullPolicy,
        known_now: KnownNow,
        attempt_for: Callable[[Action], Attempt],
        settle: Callable[[int, Outcome], Awaitable[None]],
        turn: Callable[[], Awaitable[None]],
        *,
        verify_s: float,
        running: int,
    ) -> None:
        self._hub = hub
        self._clock = clock
        self._policy = policy
        self._known_now = known_now
        self._attempt_for = attempt_for
        self._settle = settle
        self._turn = turn
        self._attempts: list[Attempt] = []
        self._switched_off = False
        self._verifier = Verifier(hub, clock, verify_s=verify_s, running=running)
        self._deleter = UserDeleter(hub, clock, verify_s=verify_s)

    async def run(self, plan: Plan, *, concurrency: int) -> tuple[tuple[Action, Outcome], ...]:
        """Every action of ``plan`` with its outcome, in the plan's order; at most ``concurrency`` at a time.

        A stop that was answered makes room for the next one while it is being verified. One failure never ends the rest.
        What ends it, with the rest skipped: the lease lost, acting put on hold, the journal unusable, the hub refusing the
        token, the breaker open, the proxy not answering, or the plan expired. A user is only deleted when all servers of the
        plan are settled.
        """
        work = _Work()
        try:
            for of_users in (False, True):
                waiting = iter(
                    [
                        (index, action)
                        for index, action in enumerate(plan.actions)
                        if (action.kind is ActionKind.DELETE_USER) is of_users
                    ]
                )
                room = asyncio.Semaphore(concurrency * UNVERIFIED_A_PLACE)
                places = max(1, min(concurrency, len(plan.actions)))
                await asyncio.gather(*(self._work(waiting, room, work, plan) for _ in range(places)))
                await work.all_verified()
        finally:
            work.cancel()
            self._verifier.close()
            for attempt in self._attempts:
                attempt.close()
            self._attempts.clear()
        return tuple((action, work.outcomes[index]) for index, action in enumerate(plan.actions))

    async def _work(
        self, waiting: Iterator[tuple[int, Action]], room: asyncio.Semaphore, work: _Work, plan: Plan
    ) -> None:
        for index, action in waiting:
            await room.acquire()
            handed_over = False
            try:
                if not work.ended:
                    # Before the second look, which is then as fresh as can be, and comes when the hub isn't busy with a stop.
                    await self._turn()
                if self._clock.now() >= plan.expires_at:
                    work.end("the plan has expired: its data is too old to act on")
                if work.ended:
                    work.outcomes[index] = Outcome(OutcomeKind.SKIPPED, f"not tried: {work.ended}", Cause.NOT_TRIED)
                    continue
                attempt = self._attempt_for(action)
                self._attempts.append(attempt)
                sent = await self._look_and_send(action, attempt)
                if isinstance(sent, Sent):
                    self._switched_off = self._switched_off or sent.switched_off
                    work.end(sent.remark if sent.refused else "")
                    work.verify(index, self._verify(action, attempt, sent), room)
                    handed_over = True
                else:
                    work.outcomes[index], end = sent
                    work.end(end)
            finally:
                if not handed_over:
                    room.release()

    async def _look_and_send(self, action: Action, attempt: Attempt) -> Sent | tuple[Outcome, str]:
        return await attempt.make(lambda: self._second_look(action, attempt), lambda: self._send(action, attempt))

    async def _second_look(self, action: Action, attempt: Attempt) -> str | None:
        """Why not, after all; None when it is still to be done, and then ``attempt`` has the grounds."""
        if action.kind is ActionKind.DELETE_USER:
            user = await self._hub.get_user(action.user)
            known = await self._known_now(action, None)
            exemptions = () if known.exemption is None else (known.exemption,)
            now = self._clock.now()
            if user is not None:
                attempt.grounds = grounds_of_user(user, self._policy, now, known.clock_from)
            return user_still_due(action, user, self._policy, exemptions, now, known.clock_from)
        if action.name and self._switched_off:
            return SPARED[Reason.SWITCHED_OFF]
        server = await self._hub.get_server(action.user, action.name)
        known = await self._known_now(action, server)
        now = self._clock.now()
        if server is not None:
            attempt.grounds = grounds(server, self._policy, known, now)
        return still_due(action, server, self._policy, known, now)

    async def _send(self, action: Action, attempt: Attempt) -> str:
        if action.kind is ActionKind.DELETE_USER:
            return await self._deleter.send(action.user, attempt)
        at_once = await self._hub.stop_server(action.user, action.name, remove=action.remove, confirm=attempt.confirm)
        return "" if at_once else STOPS_SLOWLY

    async def _verify(self, action: Action, attempt: Attempt, sent: Sent) -> tuple[Outcome, str]:
        """The outcome, recorded, and what ends the whole plan, or ""."""
        end = ""
        try:
            if sent.refused:
                outcome = Outcome(OutcomeKind.FAILED, sent.remark)
            elif sent.switched_off:
                outcome = Outcome(OutcomeKind.SKIPPED, sent.remark, Cause.SWITCHED_OFF)
            elif action.kind is ActionKind.DELETE_USER:
                outcome = await self._deleter.verify(action.user, action.started, sent)
            else:
                outcome = await self._verifier.outcome(action, sent.remark, failed=sent.failed)
        except Exception as error:
            log.exception("The outcome for %s is unknown", action.label)
            outcome = Outcome(OutcomeKind.UNVERIFIED, f"unexpected error (a bug in HubGuard): {named(error)}")
        assert attempt.intent is not None
        try:
            await self._settle(attempt.intent, outcome)
        except JournalError as error:
            end = f"the journal can't record what was done: {error}"
        return outcome, end


class _Work:
    """The outcomes so far, by position in the plan; what is being verified; and what ends the rest, or ""."""

    def __init__(self) -> None:
        self.outcomes: dict[int, Outcome] = {}
        self.ended = ""
        self._verifying: set[asyncio.Task[None]] = set()

    def end(self, why: str) -> None:
        if why and not self.ended:
            self.ended = why
            log.warning("The rest of this cycle is skipped: %s", why)

    def verify(
        self, index: int, verification: Coroutine[Any, Any, tuple[Outcome, str]], room: asyncio.Semaphore
    ) -> None:
        async def finish() -> None:
            try:
                self.outcomes[index], end = await verification
                self.end(end)
            finally:
                room.release()

        self._verifying.add(asyncio.get_running_loop().create_task(finish()))

    async def all_verified(self) -> None:
        verifying, self._verifying = self._verifying, set()
        try:
            await asyncio.gather(*verifying)
        except BaseException:
            self._verifying = verifying
            raise

    def cancel(self) -> None:
        """What is still being verified is left: its intent stays open, and the next snapshot settles it."""
        for task in self._verifying:
            task.cancel()
