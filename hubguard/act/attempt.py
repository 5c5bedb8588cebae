"""The only code that changes the world outside: second look, intent, request, verification, outcome, for each action."""

from __future__ import annotations

import logging
from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from typing import Protocol

from hubguard.errors import (
    BackendError,
    BudgetExhausted,
    HubError,
    HubGuardError,
    HubRefused,
    HubUnreachable,
    JournalError,
    LeaseLost,
    NamedServersOff,
    ProxyError,
    Unrecordable,
)
from hubguard.model import Action, Cause, Grounds, Order, Outcome, OutcomeKind
from hubguard.pacing.clock import Clock

log = logging.getLogger(__name__)

LOOK_LASTS_S = 15.0
"""Seconds for which a second look counts. A request that waits longer for its turn looks again."""

COMMIT_LASTS_S = 2.0
"""Maximum seconds to write an intent down. A request that waits longer gives its turn back."""

LOOKS = 5
"""Maximum second looks at one server in one cycle, before it waits for the next."""

UNVERIFIED_A_PLACE = 5
"""Maximum stops that wait for verification, for each one that may be sent at once. Most are verified within a second. If none
can be, the ones behind them don't wait for each, and the hub doesn't get all of them at once."""

STOPS_SLOWLY = "it stops slowly"


@dataclass(frozen=True, slots=True)
class Sent:
    """A request went out, or may have. ``remark`` is what to note about the answer, or "".

    ``failed``: the answer was no. ``refused``: the hub doesn't take our token. ``switched_off``: the hub does this for
    nobody, by its settings.
    """

    remark: str
    failed: bool
    refused: bool = False
    switched_off: bool = False


class _LookAgain(Exception):
    """The second look has grown old while the request waited for its turn."""


class Ledger(Protocol):
    """Where intents and outcomes are written, under the lease: the mandate."""

    async def intend(self, action: Action, order: Order, detail: str = "", grounds: Grounds | None = None) -> int:
        """The intent's id, on disk. Raises LeaseLost, ActingRefused or JournalError: then nothing may be sent."""

    async def settle(self, intent: int, outcome: Outcome) -> None:
        """The outcome of ``intent`` is on disk. Raises JournalError."""

    async def skip(self, action: Action, actor: str, detail: str) -> None:
        """The journal says that ``action`` wasn't done, and why. Raises JournalError."""

    def release(self, intent: int) -> None:
        """Nobody works on ``intent`` any more."""


class Attempt:
    """One try at an action. It makes sure that its request is based on a fresh look and is written down before it goes out.

    ``intent`` is the id of what was written down, None before. ``detail`` goes into the journal with it,
    and so do ``grounds``, which its second look may set.
    """

    def __init__(
        self,
        ledger: Ledger,
        clock: Clock,
        action: Action,
        order: Order,
        detail: str = "",
    ) -> None:
        self._ledger = ledger
        self._clock = clock
        self._action = action
        self._order = order
        self._detail = detail
        self._looked_at_s = float("-inf")
        self.intent: int | None = None
        self.grounds: Grounds | None = None

    async def make(
        self, second_look: Callable[[], Awaitable[str | None]], send: Callable[[], Awaitable[str]]
    ) -> Sent | tuple[Outcome, str]:
        """Sent if the request went out, or may have. Otherwise the outcome, and why the rest of the plan is skipped, or "".

        Raises nothing but a cancellation.

        ``second_look`` says why it isn't to be done after all, or None. ``send`` awaits :meth:`confirm` when its request is
        about to go out, sends it once, and returns what is worth noting about the answer, or "".
        """
        try:
            for _ in range(LOOKS):
                self._looked_at_s = self._clock.monotonic_s()
                stands_in_the_way = await second_look()
                if stands_in_the_way is not None:
                    await self._ledger.skip(self._action, self._order.actor, stands_in_the_way)
                    return Outcome(OutcomeKind.SKIPPED, stands_in_the_way), ""
                try:
                    return Sent(await send(), failed=False)
                except _LookAgain:
                    continue
            return Outcome(
                OutcomeKind.SKIPPED, "not tried: its turn came too late after each look at it", Cause.NOT_TRIED
            ), ""
        except Exception as error:
            if self.intent is None:
                return _nothing_sent(self._action, error)
            if isinstance(error, (HubError, BackendError)):
                # Without an answer the request may have arrived: only a re-read tells, and none is sent again without one.
                failed = not isinstance(error, HubUnreachable)
                return Sent(
                    str(error),
                    failed=failed,
                    refused=isinstance(error, HubRefused),
                    switched_off=isinstance(error, NamedServersOff),
                )
            log.exception("What came of acting on %s is unknown", self._action.label)
            return Sent(f"unexpected error (a bug in HubGuard): {named(error)}", failed=False)

    async def confirm(self) -> None:
        """The intent is committed under our lease. What it raises keeps the request from going out, and is for make."""
        began_s = self._clock.monotonic_s()
        if began_s - self._looked_at_s > LOOK_LASTS_S:
            raise _LookAgain
        intent = await self._ledger.intend(self._action, self._order, self._detail, self.grounds)
        if self._clock.monotonic_s() - began_s > COMMIT_LASTS_S:
            # The budget has let this request go a while ago. Those that a slow journal held up would go out all at once.
            await self._ledger.settle(intent, Outcome(OutcomeKind.SKIPPED, "the journal was too slow; looked at again"))
            raise _LookAgain
        self.intent = intent

    def close(self) -> None:
        """Nobody works on it any more. If its intent is still open, a later look settles it."""
        if self.intent is not None:
            self._ledger.release(self.intent)


def _nothing_sent(action: Action, error: Exception) -> tuple[Outcome, str]:
    if isinstance(error, LeaseLost):
        return Outcome(
            OutcomeKind.SKIPPED, f"not tried: {error}", Cause.NOT_TRIED
        ), "another guard is in charge of this hub"
    if isinstance(error, Unrecordable):
        return Outcome(OutcomeKind.SKIPPED, f"not tried: {error}", Cause.NOT_TRIED), ""
    if isinstance(error, (JournalError, HubRefused, BudgetExhausted, ProxyError)):
        return Outcome(OutcomeKind.SKIPPED, f"not tried: {error}", Cause.NOT_TRIED), str(error)
    if isinstance(error, HubGuardError):
        return Outcome(OutcomeKind.SKIPPED, f"not tried, since it couldn't be read again: {error}", Cause.NOT_TRIED), ""
    log.error("Nothing was sent for %s", action.label, exc_info=error)
    return Outcome(
        OutcomeKind.SKIPPED, f"not tried: unexpected error (a bug in HubGuard): {named(error)}", Cause.NOT_TRIED
    ), ""


def named(error: Exception) -> str:
    """The error with its class, for what nobody expects."""
    return f"{type(error).__name__}: {error}"
