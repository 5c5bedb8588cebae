"""Deletes one user, for culling or pruning: one request within an attempt, and the proof that the user is gone.

Culling and pruning decide each in its own way who is to go; what is done then is the same.
"""

from __future__ import annotations

import logging
from collections.abc import Awaitable, Callable
from datetime import datetime

from hubguard.act.attempt import Attempt, Sent
from hubguard.errors import BudgetExhausted, HubError, HubGuardError
from hubguard.hub.api import HubAPI
from hubguard.model import Outcome, OutcomeKind, same_run
from hubguard.pacing.clock import Clock

log = logging.getLogger(__name__)

REREAD_S, LONGEST_REREAD_S = 0.5, 8.0
"""Seconds between two re-reads of a user; they double up to the second number."""

HALF_WAY = (
    "the hub's authenticator may have forgotten the user already, so that they can't log in; delete them on the hub's admin"
    " page or with another plan"
)
"""5.5 and 6.1 run authenticator.delete_user before anything that can fail."""


class UserDeleter:
    """Deletes users, and reads each again for up to ``verify_s`` seconds. ``note_error`` is given each error of the hub."""

    def __init__(
        self,
        hub: HubAPI,
        clock: Clock,
        *,
        verify_s: float,
        note_error: Callable[[HubGuardError], None] = lambda _: None,
    ) -> None:
        self._hub = hub
        self._clock = clock
        self._verify_s = verify_s
        self._note_error = note_error

    async def send(self, user: str, attempt: Attempt) -> str:
        """Send the request once, when ``attempt`` has confirmed it; a remark on the answer, or "". Raises HubGuardError."""
        try:
            await self._hub.delete_user(user, confirm=attempt.confirm)
        except HubGuardError as error:
            self._note_error(error)
            raise
        return ""

    async def is_gone(self, user: str, created: datetime | None) -> bool | None:
        """Whether that very user is gone; None: unknown, the hub doesn't answer."""
        try:
            current = await self._hub.get_user(user)
        except (HubError, BudgetExhausted) as error:
            self._note_error(error)
            log.info("It is unknown yet whether %s is deleted: %s", user, error)
            return None
        return current is None or not same_run(current.created, created)

    async def verify(
        self,
        user: str,
        created: datetime | None,
        sent: Sent,
        *,
        proof: Callable[[], Awaitable[bool]] | None = None,
    ) -> Outcome:
        """What came of a request that went out, by re-reads: again and again while the hub doesn't answer.

        ``proof`` shows, without asking the hub, whether the user is gone; it is tried once, if the hub said that they are.
        """
        if sent.refused:
            return Outcome(OutcomeKind.FAILED, sent.remark)
        until_s, wait_s = self._clock.monotonic_s() + self._verify_s, REREAD_S
        if proof is not None and not sent.remark and await proof():
            return Outcome(OutcomeKind.DONE, "gone at a re-read")
        while True:
            unread: HubGuardError | None = None
            try:
                current = await self._hub.get_user(user)
            except (HubError, BudgetExhausted) as error:
                self._note_error(error)
                unread = error
            else:
                if current is None:
                    return Outcome(OutcomeKind.DONE, "gone at a re-read" + (f" ({sent.remark})" if sent.remark else ""))
                if not same_run(current.created, created):
                    return Outcome(OutcomeKind.DONE, "that user is gone, and another has taken the name")
                if sent.failed:
                    return Outcome(OutcomeKind.FAILED, f"still there: {sent.remark}; {HALF_WAY}")
            if self._clock.monotonic_s() + wait_s > until_s:
                break
            await self._clock.sleep(wait_s)
            wait_s = min(wait_s * 2, LONGEST_REREAD_S)
        if unread is not None:
            return Outcome(OutcomeKind.UNVERIFIED, f"it couldn't be read again: {unread}")
        return Outcome(OutcomeKind.FAILED, f"still there: {sent.remark or 'the hub said that it was deleted'}")
