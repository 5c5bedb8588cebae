"""The right to act on the hub: a fenced lease in the journal, kept alive, and the only way to record an intent.

A guard that can't renew stops acting by itself when its lease runs out; one that was pushed aside by the guard of a newer
hub learns of it at its next renewal or intent, whichever comes first, since both carry the fence.
"""

from __future__ import annotations

import logging
from datetime import datetime
from typing import Any

from hubguard.errors import JournalError, LeaseLost
from hubguard.journal.asynchronous import AsyncJournal
from hubguard.journal.model import Event, Lease
from hubguard.model import Action, Grounds, Outcome
from hubguard.pacing.clock import Clock

HUB = "hub"
"""The lease's name. One journal database serves one hub, since a hub has no identity that two guards would agree on."""

log = logging.getLogger(__name__)


def about(action: Action) -> dict[str, Any]:
    """What a journal entry says about the server and the run that ``action`` is for, as keywords of ``Journal.note``."""
    return {
        "user": action.user,
        "server": action.name,
        "started": action.started,
        "action": action.kind.value,
        "reason": action.reason,
        "plan": action.plan,
    }


class LeaseKeeper:
    """Takes the lease, keeps it, and vouches for it with every intent.

    ``holder`` names this guard uniquely, ``address`` is where its API is reached, ``generation`` is the start time of the
    hub that runs it (0 for an external guard): a greater one takes the lease over at once.
    """

    def __init__(
        self, journal: AsyncJournal, clock: Clock, *, holder: str, address: str, generation: float, lease_s: float
    ) -> None:
        self._journal = journal
        self._clock = clock
        self.holder = holder
        self._address = address
        self._generation = generation
        self._lease_s = lease_s
        self._lease: Lease | None = None
        self._sure_until_s = float("-inf")
        self._others: Lease | None = None
        self._others_since_s = 0.0
        self.seen: Lease | None = None
        self.superseded = False

    @property
    def lease(self) -> Lease | None:
        """Our lease while we may act on it, else None. Counted on the monotonic clock: a jump of the date changes nothing."""
        return self._lease if self._clock.monotonic_s() < self._sure_until_s else None

    async def keep(self) -> bool:
        """Take or renew the lease once; True when it is ours now. Call it at least three times per ``lease_s``.

        ``seen`` is the lease as the journal has it, ours or not. ``superseded`` turns True, for good, when the guard of a
        newer hub has taken it. Raises JournalError when the journal can't be used; what we held then simply runs out.
        """
        now, asked_s = self._clock.now(), self._clock.monotonic_s()
        lease: Lease | None = None
        if self._lease is not None:
            try:
                lease = await self._journal.renew_lease(HUB, self._lease, now, self._lease_s)
            except LeaseLost:
                self._drop()
        if lease is None:
            lease = await self._journal.take_lease(
                HUB, self.holder, self._address, self._generation, now, self._lease_s
            )
        if lease is None:
            self.seen = await self._journal.lease(HUB)
            if self.seen is not None and self._generation and self.seen.generation > self._generation:
                self.superseded = True
            await self._watch_the_other(now, asked_s)
            return False
        self._lease = self.seen = lease
        self._sure_until_s = asked_s + self._lease_s
        return True

    async def _watch_the_other(self, now: datetime, now_s: float) -> None:
        """A lease that its holder hasn't renewed for twice as long as it lasts is free, whatever date it is good until.

        Its holder, counting as we do, has long ceased to act on it. The date was from a clock that was ahead.
        """
        if self.seen is None or self.seen != self._others:
            self._others, self._others_since_s = self.seen, now_s
        elif now_s - self._others_since_s >= 2 * self._lease_s:
            log.warning("The guard %s has been silent for too long and loses the lease.", self.seen.holder)
            await self._journal.release_lease(HUB, self.seen, now)

    async def give_up(self) -> None:
        """The lease isn't ours any more, and the next guard needn't wait. Never raises."""
        lease, self._lease = self._lease, None
        self._sure_until_s = float("-inf")
        if lease is not None:
            try:
                await self._journal.release_lease(HUB, lease, self._clock.now())
            except JournalError as error:
                log.warning("The lease was not released, the next guard waits until it runs out: %s", error)

    async def intend(
        self,
        action: Action,
        actor: str,
        *,
        asked: bool,
        armed: bool | None,
        by_default: bool = False,
        detail: str = "",
        grounds: Grounds | None = None,
    ) -> int:
        """The intent's id, committed under our lease. The keywords are as in :meth:`Journal.intend`.

        Raises LeaseLost, ActingRefused or JournalError: then nothing may be sent.
        """
        lease = self.lease
        if lease is None:
            raise LeaseLost("This guard doesn't hold the lease, so it may not act.")
        try:
            return await self._journal.intend(
                HUB,
                lease,
                action,
                actor,
                self._clock.now(),
                asked=asked,
                armed=armed,
                by_default=by_default,
                detail=detail,
                grounds=grounds,
            )
        except LeaseLost:
            self._drop()
            raise

    async def settle(self, intent: int, outcome: Outcome) -> None:
        """The outcome of ``intent`` is recorded. Raises JournalError; the intent then stays open, and is settled later."""
        await self._journal.settle(intent, outcome, self._clock.now())

    async def skip(self, action: Action, actor: str, detail: str) -> None:
        """It is recorded that ``action`` wasn't done, and why. Raises JournalError."""
        await self._journal.note(
            Event.NOTE,
            actor,
            self._lease.fence if self._lease else 0,
            self._clock.now(),
            f"left alone at the second look: {detail}",
            **about(action),
        )

    def _drop(self) -> None:
        self._lease = None
        self._sure_until_s = float("-inf")

    @property
    def expires_at(self) -> datetime | None:
        """When the lease in the journal runs out unless renewed; None if nobody has ever held it."""
        return self.seen.expires_at if self.seen else None
