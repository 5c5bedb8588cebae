"""The only code that changes the world outside: second look, intent, request, verification, outcome, for each action."""

from __future__ import annotations

import asyncio
import logging

from hubguard.act.lease import LeaseKeeper
from hubguard.clients.clock import Clock
from hubguard.clients.hub_api import HubAPI
from hubguard.decide.cull import CullPolicy, still_due
from hubguard.errors import (
    BudgetExhausted,
    HubError,
    HubRefused,
    HubUnreachable,
    JournalError,
    LeaseLost,
    Unrecordable,
)
from hubguard.model import NOT_TRIED, Action, Outcome, OutcomeKind, Plan, Server

log = logging.getLogger(__name__)

FIRST_REREAD_S = 0.5
LONGEST_REREAD_S = 8.0
"""Between two re-reads after a stop: most servers are gone within a second, slow ones take ten and more."""


LOOK_LASTS_S = 15.0
"""A second look counts for so long: a request that waits longer for its turn looks again."""

COMMIT_LASTS_S = 2.0
"""A request whose intent took longer to write down gives its turn back."""

LOOKS = 5
"""So many second looks at one server in one cycle, before it is left to the next."""


class Executor:
    """Carries out plans. ``verify_s`` is how long a stop may take until it counts as unverified."""

    def __init__(self, hub: HubAPI, keeper: LeaseKeeper, clock: Clock, *, verify_s: float) -> None:
        self._hub = hub
        self._keeper = keeper
        self._clock = clock
        self._verify_s = verify_s

    async def run(
        self, plan: Plan, policy: CullPolicy, actor: str, *, asked: bool, armed: bool | None, concurrency: int
    ) -> tuple[tuple[Action, Outcome], ...]:
        """Every action of ``plan`` with its outcome, in the plan's order; at most ``concurrency`` at a time.

        One failure never ends the rest. What ends it, with the rest skipped: the lease lost, acting put on hold, the
        journal unusable, the hub refusing the token, the breaker open, or the plan expired.
        """
        outcomes: dict[int, Outcome] = {}
        waiting = iter(enumerate(plan.actions))
        workers = max(1, min(concurrency, len(plan.actions)))
        ended: list[str] = []

        async def work() -> None:
            for index, action in waiting:
                if not ended and self._clock.now() >= plan.expires_at:
                    ended.append("the plan has expired: what it rests on is too old to act on")
                if ended:
                    outcomes[index] = Outcome(OutcomeKind.SKIPPED, f"{NOT_TRIED}: {ended[0]}")
                    continue
                outcomes[index], end = await self._one(action, policy, actor, asked=asked, armed=armed)
                if end and not ended:
                    ended.append(end)
                    log.warning("The rest of this cycle is skipped: %s", end)

        await asyncio.gather(*(work() for _ in range(workers)))
        return tuple((action, outcomes[index]) for index, action in enumerate(plan.actions))

    async def _one(
        self, action: Action, policy: CullPolicy, actor: str, *, asked: bool, armed: bool | None
    ) -> tuple[Outcome, str]:
        """The outcome of one action, and what ends the whole plan, or ""."""
        attempt = _Attempt(self._keeper, self._clock, action, actor, asked=asked, armed=armed)
        try:
            for _ in range(LOOKS):
                attempt.looked_at_s = self._clock.monotonic_s()
                server = await self._hub.get_server(action.user, action.name)
                stands_in_the_way = still_due(action, server, policy, self._clock.now())
                if stands_in_the_way is not None:
                    await self._keeper.skip(action, actor, stands_in_the_way)
                    return Outcome(OutcomeKind.SKIPPED, stands_in_the_way), ""
                try:
                    outcome, end = await self._send_and_verify(action, attempt)
                    break
                except _LookAgain:
                    continue
            else:
                return Outcome(OutcomeKind.SKIPPED, f"{NOT_TRIED}: its turn came too late after each look at it"), ""
        except Exception as error:
            if attempt.intent is None:
                return _nothing_sent(action, error)
            log.exception("The outcome for %s is unknown", action.label)
            outcome, end = Outcome(OutcomeKind.UNVERIFIED, f"a defect in HubGuard: {_named(error)}"), ""
        assert attempt.intent is not None
        try:
            await self._keeper.settle(attempt.intent, outcome)
        except JournalError as error:
            end = end or f"the journal can't record what was done: {error}"
        return outcome, end

    async def _send_and_verify(self, action: Action, attempt: _Attempt) -> tuple[Outcome, str]:
        """Raises whatever keeps the request from being sent."""
        remark, failed = "", False
        try:
            at_once = await self._hub.stop_server(
                action.user, action.name, remove=action.remove, confirm=attempt.confirm
            )
            remark = "" if at_once else "it stops slowly"
        except HubError as error:
            if attempt.intent is None:
                raise
            if isinstance(error, HubRefused):
                return Outcome(OutcomeKind.FAILED, str(error)), str(error)
            # Without an answer the request may have arrived: only a re-read tells, and none is sent again without one.
            failed = not isinstance(error, HubUnreachable)
            remark = str(error)
        return await self._verify(action, remark, failed=failed), ""

    async def _verify(self, action: Action, remark: str, *, failed: bool) -> Outcome:
        """Re-reads until the server is gone, was restarted, or ``verify_s`` has passed.

        With ``failed`` (the hub said no) a server that is still ready is a failure at once.
        """
        until_s = self._clock.monotonic_s() + self._verify_s
        wait_s, last = FIRST_REREAD_S, remark
        server: Server | None = None
        while True:
            try:
                server = await self._hub.get_server(action.user, action.name)
            except (HubError, BudgetExhausted) as error:
                last = f"it couldn't be read again: {error}"
            else:
                if server is None:
                    return Outcome(OutcomeKind.DONE, "gone at a re-read" + (f" ({remark})" if remark else ""))
                if server.started != action.started:
                    return Outcome(OutcomeKind.DONE, "that run is gone; the server was started again since")
                if server.ready and failed:
                    return Outcome(OutcomeKind.FAILED, f"still running: {remark}")
                last = "still running" if server.ready else f"pending: {server.pending or 'not ready'}"
            if self._clock.monotonic_s() + wait_s > until_s:
                break
            await self._clock.sleep(wait_s)
            wait_s = min(wait_s * 2, LONGEST_REREAD_S)
        if server is not None and server.ready:
            return Outcome(OutcomeKind.FAILED, f"still running {self._verify_s:g} s after the stop" + _also(remark))
        return Outcome(OutcomeKind.UNVERIFIED, f"not seen gone within {self._verify_s:g} s: {last}" + _also(remark))


class _LookAgain(Exception):
    """The second look has grown old while the request waited for its turn."""


class _Attempt:
    """What makes sure, at the moment a request goes out, that it rests on a fresh look and is written down."""

    def __init__(
        self, keeper: LeaseKeeper, clock: Clock, action: Action, actor: str, *, asked: bool, armed: bool | None
    ) -> None:
        self._keeper = keeper
        self._clock = clock
        self._action = action
        self._actor = actor
        self._asked = asked
        self._armed = armed
        self.looked_at_s = float("-inf")
        self.intent: int | None = None

    async def confirm(self) -> None:
        """The intent is committed under our lease. Raises _LookAgain, LeaseLost, ActingRefused or JournalError."""
        began_s = self._clock.monotonic_s()
        if began_s - self.looked_at_s > LOOK_LASTS_S:
            raise _LookAgain
        intent = await self._keeper.intend(self._action, self._actor, asked=self._asked, armed=self._armed)
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
    if isinstance(error, (JournalError, HubRefused, BudgetExhausted)):
        return Outcome(OutcomeKind.SKIPPED, f"{NOT_TRIED}: {error}"), str(error)
    if isinstance(error, HubError):
        return Outcome(OutcomeKind.SKIPPED, f"{NOT_TRIED}, since it couldn't be read again: {error}"), ""
    log.error("Nothing was sent for %s", action.label, exc_info=error)
    return Outcome(OutcomeKind.SKIPPED, f"{NOT_TRIED}, a defect in HubGuard: {_named(error)}"), ""


def _named(error: Exception) -> str:
    return f"{type(error).__name__}: {error}"


def _also(remark: str) -> str:
    return f"; {remark}" if remark else ""
