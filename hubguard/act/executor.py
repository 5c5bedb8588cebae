"""The only code that changes the world outside: second look, intent, request, verification, outcome, for each action."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Awaitable, Callable, Coroutine, Iterator
from dataclasses import dataclass
from typing import Any

from hubguard.act.lease import LeaseKeeper
from hubguard.act.verify import Verifier
from hubguard.clients.clock import Clock
from hubguard.clients.hub_api import HubAPI
from hubguard.decide.cull import CullPolicy, still_due, user_still_due
from hubguard.errors import (
    BackendError,
    BudgetExhausted,
    HubError,
    HubGuardError,
    HubRefused,
    HubUnreachable,
    JournalError,
    LeaseLost,
    ProxyError,
    Unrecordable,
)
from hubguard.model import NOT_TRIED, Action, ActionKind, Known, Outcome, OutcomeKind, Plan, Server, same_run

log = logging.getLogger(__name__)

LOOK_LASTS_S = 15.0
"""A second look counts for so long: a request that waits longer for its turn looks again."""

COMMIT_LASTS_S = 2.0
"""A request whose intent took longer to write down gives its turn back."""

LOOKS = 5
"""So many second looks at one server in one cycle, before it is left to the next."""

UNVERIFIED_A_PLACE = 5
"""How many stops may be under way, not yet verified, for each one that may be sent at once. Most are verified within a
second; where none can be, those behind them needn't wait for each of them, and the hub isn't given all of them at once."""

STOPS_SLOWLY = "it stops slowly"

KnownNow = Callable[[Action, Server | None], Awaitable[Known]]
"""What is known now of the server of an action, beyond what the hub has just said of it (None: for a user, or it's gone)."""


class Executor:
    """Carries out plans. ``verify_s`` is how long a stop may take until it counts as unverified.

    ``known_now`` is asked at each second look; ``running`` is about how many servers the hub has.
    """

    def __init__(
        self,
        hub: HubAPI,
        keeper: LeaseKeeper,
        clock: Clock,
        known_now: KnownNow,
        *,
        verify_s: float,
        running: int,
    ) -> None:
        self._hub = hub
        self._keeper = keeper
        self._clock = clock
        self._known_now = known_now
        self._verify_s = verify_s
        self._running = running

    async def run(
        self, plan: Plan, policy: CullPolicy, actor: str, *, asked: bool, armed: bool | None, concurrency: int
    ) -> tuple[tuple[Action, Outcome], ...]:
        """Every action of ``plan`` with its outcome, in the plan's order; at most ``concurrency`` at a time.

        A stop that was answered makes room for the next one while it is being verified. One failure never ends the rest.
        What ends it, with the rest skipped: the lease lost, acting put on hold, the journal unusable, the hub refusing the
        token, the breaker open, the proxy not answering, or the plan expired. A user is only deleted when all servers of the
        plan are settled.
        """
        work = _Work()
        verifier = Verifier(self._hub, self._clock, verify_s=self._verify_s, running=self._running)
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
                workers = [
                    self._work(waiting, room, work, verifier, plan, policy, actor, asked=asked, armed=armed)
                    for _ in range(max(1, min(concurrency, len(plan.actions))))
                ]
                await asyncio.gather(*workers)
                await work.all_verified()
        finally:
            work.cancel()
            verifier.close()
        return tuple((action, work.outcomes[index]) for index, action in enumerate(plan.actions))

    async def _work(
        self,
        waiting: Iterator[tuple[int, Action]],
        room: asyncio.Semaphore,
        work: _Work,
        verifier: Verifier,
        plan: Plan,
        policy: CullPolicy,
        actor: str,
        *,
        asked: bool,
        armed: bool | None,
    ) -> None:
        for index, action in waiting:
            await room.acquire()
            handed_over = False
            try:
                if self._clock.now() >= plan.expires_at:
                    work.end("the plan has expired: what it rests on is too old to act on")
                if work.ended:
                    work.outcomes[index] = Outcome(OutcomeKind.SKIPPED, f"{NOT_TRIED}: {work.ended}")
                    continue
                attempt = Attempt(self._keeper, self._clock, action, actor, asked=asked, armed=armed)
                sent = await self._look_and_send(action, attempt, policy)
                if isinstance(sent, Sent):
                    work.end(sent.remark if sent.refused else "")
                    work.verify(index, self._verify(action, attempt, sent, verifier), room)
                    handed_over = True
                else:
                    work.outcomes[index], end = sent
                    work.end(end)
            finally:
                if not handed_over:
                    room.release()

    async def _look_and_send(self, action: Action, attempt: Attempt, policy: CullPolicy) -> Sent | tuple[Outcome, str]:
        return await attempt.make(
            lambda: self._second_look(action, policy), lambda: self._send(action, attempt.confirm)
        )

    async def _second_look(self, action: Action, policy: CullPolicy) -> str | None:
        """Why not, after all; None when it is still to be done."""
        if action.kind is ActionKind.DELETE_USER:
            user = await self._hub.get_user(action.user)
            known = await self._known_now(action, None)
            exemptions = () if known.exemption is None else (known.exemption,)
            return user_still_due(action, user, policy, exemptions, self._clock.now(), known.clock_from)
        server = await self._hub.get_server(action.user, action.name)
        known = await self._known_now(action, server)
        return still_due(action, server, policy, known, self._clock.now())

    async def _send(self, action: Action, confirm: Callable[[], Awaitable[None]]) -> str:
        if action.kind is ActionKind.DELETE_USER:
            await self._hub.delete_user(action.user, confirm=confirm)
            return ""
        at_once = await self._hub.stop_server(action.user, action.name, remove=action.remove, confirm=confirm)
        return "" if at_once else STOPS_SLOWLY

    async def _verify(self, action: Action, attempt: Attempt, sent: Sent, verifier: Verifier) -> tuple[Outcome, str]:
        """The outcome, recorded, and what ends the whole plan, or ""."""
        end = ""
        try:
            if sent.refused:
                outcome = Outcome(OutcomeKind.FAILED, sent.remark)
            elif action.kind is ActionKind.DELETE_USER:
                outcome = await self._verify_user(action, sent)
            else:
                outcome = await verifier.outcome(action, sent.remark, failed=sent.failed)
        except Exception as error:
            log.exception("The outcome for %s is unknown", action.label)
            outcome = Outcome(OutcomeKind.UNVERIFIED, f"a defect in HubGuard: {named(error)}")
        assert attempt.intent is not None
        try:
            await self._keeper.settle(attempt.intent, outcome)
        except JournalError as error:
            end = f"the journal can't record what was done: {error}"
        return outcome, end

    async def _verify_user(self, action: Action, sent: Sent) -> Outcome:
        """A hub deletes a user before it answers, so that one read tells; it may have failed half way."""
        try:
            user = await self._hub.get_user(action.user)
        except (HubError, BudgetExhausted) as error:
            return Outcome(OutcomeKind.UNVERIFIED, f"it couldn't be read again: {error}")
        if user is None:
            return Outcome(OutcomeKind.DONE, "gone at a re-read" + (f" ({sent.remark})" if sent.remark else ""))
        if not same_run(user.created, action.started):
            return Outcome(OutcomeKind.DONE, "that user is gone; one of the same name is there since")
        return Outcome(OutcomeKind.FAILED, f"still there: {sent.remark or 'the hub said that it was deleted'}")


@dataclass(frozen=True, slots=True)
class Sent:
    """A request went out, or may have. ``failed``: it was answered no. ``refused``: the hub doesn't take our token."""

    remark: str
    failed: bool
    refused: bool = False


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


class _LookAgain(Exception):
    """The second look has grown old while the request waited for its turn."""


class Attempt:
    """One try at an action. It makes sure that its request rests on a fresh look and is written down before it goes out.

    ``intent`` is the id of what was written down, None before. ``detail`` goes into the journal with it.
    """

    def __init__(
        self,
        keeper: LeaseKeeper,
        clock: Clock,
        action: Action,
        actor: str,
        *,
        asked: bool,
        armed: bool | None,
        detail: str = "",
    ) -> None:
        self._keeper = keeper
        self._clock = clock
        self._action = action
        self._actor = actor
        self._asked = asked
        self._armed = armed
        self._detail = detail
        self._looked_at_s = float("-inf")
        self.intent: int | None = None

    async def make(
        self, second_look: Callable[[], Awaitable[str | None]], send: Callable[[], Awaitable[str]]
    ) -> Sent | tuple[Outcome, str]:
        """What was sent, or the outcome of what wasn't with what ends the whole plan, or "". Never raises Exceptions.

        ``second_look`` says why it isn't to be done after all, or None. ``send`` awaits :meth:`confirm` when its request is
        about to go out, sends it once, and returns what is worth telling of the answer, or "".
        """
        try:
            for _ in range(LOOKS):
                self._looked_at_s = self._clock.monotonic_s()
                stands_in_the_way = await second_look()
                if stands_in_the_way is not None:
                    await self._keeper.skip(self._action, self._actor, stands_in_the_way)
                    return Outcome(OutcomeKind.SKIPPED, stands_in_the_way), ""
                try:
                    return Sent(await send(), failed=False)
                except _LookAgain:
                    continue
            return Outcome(OutcomeKind.SKIPPED, f"{NOT_TRIED}: its turn came too late after each look at it"), ""
        except Exception as error:
            if self.intent is None:
                return _nothing_sent(self._action, error)
            if isinstance(error, (HubError, BackendError)):
                # Without an answer the request may have arrived: only a re-read tells, and none is sent again without one.
                failed = not isinstance(error, HubUnreachable)
                return Sent(str(error), failed=failed, refused=isinstance(error, HubRefused))
            log.exception("What came of acting on %s is unknown", self._action.label)
            return Sent(f"a defect in HubGuard: {named(error)}", failed=False)

    async def confirm(self) -> None:
        """The intent is committed under our lease. What it raises keeps the request from going out, and is for make."""
        began_s = self._clock.monotonic_s()
        if began_s - self._looked_at_s > LOOK_LASTS_S:
            raise _LookAgain
        intent = await self._keeper.intend(
            self._action, self._actor, asked=self._asked, armed=self._armed, detail=self._detail
        )
        if self._clock.monotonic_s() - began_s > COMMIT_LASTS_S:
            # The budget has let this request go a while ago. Those that a slow journal held up would go out all at once.
            await self._keeper.settle(intent, Outcome(OutcomeKind.SKIPPED, "the journal was too slow; looked at again"))
            raise _LookAgain
        self.intent = intent


def _nothing_sent(action: Action, error: Exception) -> tuple[Outcome, str]:
    if isinstance(error, LeaseLost):
        return Outcome(OutcomeKind.SKIPPED, f"{NOT_TRIED}: {error}"), "another guard holds the lease"
    if isinstance(error, Unrecordable):
        return Outcome(OutcomeKind.SKIPPED, f"{NOT_TRIED}: {error}"), ""
    if isinstance(error, (JournalError, HubRefused, BudgetExhausted, ProxyError)):
        return Outcome(OutcomeKind.SKIPPED, f"{NOT_TRIED}: {error}"), str(error)
    if isinstance(error, HubGuardError):
        return Outcome(OutcomeKind.SKIPPED, f"{NOT_TRIED}, since it couldn't be read again: {error}"), ""
    log.error("Nothing was sent for %s", action.label, exc_info=error)
    return Outcome(OutcomeKind.SKIPPED, f"{NOT_TRIED}, a defect in HubGuard: {named(error)}"), ""


def named(error: Exception) -> str:
    """The error with its class, for what nobody expects."""
    return f"{type(error).__name__}: {error}"
