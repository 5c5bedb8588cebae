"""Notifying as a part of the guard: each receiver gets what waits for it, whatever becomes of the others."""

from __future__ import annotations

import asyncio
import logging
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from datetime import datetime, timedelta
from functools import partial

from hubguard.act.mandate import Mandate
from hubguard.errors import HubGuardError
from hubguard.model import Finding, FindingKind
from hubguard.pacing.clock import Clock
from hubguard.watch.decide.alert import Rule
from hubguard.watch.decide.message import Message, message_of
from hubguard.watch.decide.notice import (
    TOGETHER_MOST,
    TRY_FOR_S,
    Notice,
    Result,
    back_off_s,
    batches,
    heard_of,
    next_try_at,
)
from hubguard.watch.model import AlertRow, Change, Silence
from hubguard.watch.notify.choose import Named
from hubguard.watch.store.notices import AsyncNotices

log = logging.getLogger(__name__)

EVERY_S = 5.0
"""Seconds between two looks for notices that are due."""

SEND_S = 60.0
"""Maximum seconds for one request to a receiver, whatever limits it has of its own."""

ANSWER_S = 90.0
"""Seconds after which a request that was begun and has no known answer counts as lost: its guard has ended."""

OUTCOMES = ("sent", "failed", "given-up")
"""How a try of a notice can end."""


@dataclass(frozen=True, slots=True)
class NoticesStatus:
    """What notifying knows now. ``counts`` are the notices by receiver and outcome, since this guard started.

    ``findings`` are the receivers that fail at the moment, or that the settings have wrong.
    """

    counts: Mapping[tuple[str, str], int] = field(default_factory=dict)
    findings: tuple[Finding, ...] = ()


class Notices:
    """Sends the notices that wait in the journal's database, and tries those again that failed, for a day.

    ``link`` is the page of alerts, and ``source`` the hub's host for receivers that have several hubs; "" if unknown.
    """

    name = "notifying"

    def __init__(
        self,
        receivers: Sequence[Named],
        rules: Sequence[Rule],
        mandate: Mandate,
        clock: Clock,
        *,
        link: str = "",
        source: str = "",
    ) -> None:
        self._receivers = {named.name: named for named in receivers}
        self._rules = {rule.name: rule for rule in rules}
        self._store = AsyncNotices(mandate.journal)
        self._mandate = mandate
        self._clock = clock
        self._link = link
        self._source = source
        self._counts: Counter[tuple[str, str]] = Counter(
            {(name, how): 0 for name in self._receivers for how in OUTCOMES}
        )
        self._failing: dict[str, Finding] = {}
        self._reminded_s: dict[str, float] = {}
        self._under_way: dict[str, asyncio.Task[None]] = {}

    def status(self) -> NoticesStatus:
        """What notifying knows now. Never blocks, never raises."""
        return NoticesStatus(dict(self._counts), tuple(self._failing.values()))

    # -- as a part of the guard -----------------------------------------------------------------------------------

    def begin_anew(self) -> None:
        """Nothing is remembered from one lease to the next: all that waits is in the journal's database."""

    async def turn(self) -> None:
        """Start sending to each receiver for which something is due, unless it is still being sent to."""
        idle = [name for name in self._receivers if name not in self._under_way]
        if not idle:
            return
        now = self._clock.now()
        waiting = await self._store.waiting(idle)
        silences = await self._store.silences_since(now - timedelta(seconds=TRY_FOR_S))
        for name in idle:
            named = self._receivers[name]
            own = [notice for notice in waiting if notice.receiver == name]
            due = batches(own, silences, named.receiver.together, now)
            remind = self._is_to_be_reminded(named)
            if due or remind:
                task = asyncio.ensure_future(self._serve(named, due, silences, remind=remind))
                self._under_way[name] = task
                task.add_done_callback(partial(self._has_ended, name))

    async def wait(self) -> None:
        """Wait until the next look is due."""
        await self._clock.sleep(EVERY_S)

    async def close(self) -> None:
        """Give up the requests under way, and close all connections. What wasn't answered is sent by the next guard."""
        tasks = list(self._under_way.values())
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)
        for named in self._receivers.values():
            await named.receiver.close()

    def _has_ended(self, name: str, task: asyncio.Task[None]) -> None:
        del self._under_way[name]

    # -- one receiver -----------------------------------------------------------------------------------------------

    async def _serve(
        self, named: Named, due: Sequence[Sequence[Notice]], silences: Sequence[Silence], *, remind: bool
    ) -> None:
        """Send what is due, until the receiver fails. Raises nothing: it is a task of its own."""
        try:
            for batch in due:
                if not self._mandate.holds_lease or not await self._deliver(named, batch, silences):
                    return
                await self._clock.sleep(named.receiver.spacing_s)
            if remind:
                await self._remind(named, silences)
        except HubGuardError as error:
            log.warning("Nothing more is sent to %s for now: %s", named.name, error)
        except Exception:
            log.exception("Unexpected error in notifying %s (a bug in HubGuard). It is tried again.", named.name)

    async def _deliver(self, named: Named, batch: Sequence[Notice], silences: Sequence[Silence]) -> bool:
        """Send ``batch`` in one request; whether the receiver can be sent more."""
        tries = max(notice.tries for notice in batch) + 1
        again_at = self._clock.now() + timedelta(seconds=max(ANSWER_S, back_off_s(tries)))
        claimed = await self._store.claim(batch, again_at)
        if not claimed:
            return True
        messages = [self._message(notice.alert, notice.change) for notice in claimed]
        result = await self._send(named, messages)
        now = self._clock.now()
        if result.delivered:
            await self._store.end(claimed, now)
            self._count(named, "sent", claimed)
            self._works(named)
            return True
        await self._put_off(named, claimed, result, silences, now)
        self._fails(named, result, now)
        # What it refuses for good says nothing of the others.
        return not result.again

    async def _put_off(
        self, named: Named, claimed: Sequence[Notice], result: Result, silences: Sequence[Silence], now: datetime
    ) -> None:
        by_next: dict[datetime | None, list[Notice]] = {}
        for notice in claimed:
            by_next.setdefault(next_try_at(notice, result, silences, now), []).append(notice)
        for again_at, notices in by_next.items():
            if again_at is None:
                log.error("Notices to %s are given up: %s", named.name, result.said)
                fence = self._mandate.fence
                await self._store.give_up(notices, result.said, now, fence, reached=result.reached)
                self._count(named, "given-up", notices)
            else:
                await self._store.put_off(notices, again_at, result.said, reached=result.reached)
                self._count(named, "failed", notices)

    async def _remind(self, named: Named, silences: Sequence[Silence]) -> None:
        """Send every alert again that lasts and that the receiver has heard of."""
        self._reminded_s[named.name] = self._clock.monotonic_s()
        now = self._clock.now()
        alerts = list(heard_of(await self._store.firing(named.name), silences, now))
        for start in range(0, len(alerts), TOGETHER_MOST):
            some = alerts[start : start + TOGETHER_MOST]
            result = await self._send(named, [self._message(alert, Change.RAISED) for alert in some])
            if not result.delivered:
                self._fails(named, result, self._clock.now())
                return
            self._works(named)

    def _is_to_be_reminded(self, named: Named) -> bool:
        every_s, last_s = named.receiver.repeat_s, self._reminded_s.get(named.name)
        return every_s is not None and (last_s is None or self._clock.monotonic_s() - last_s >= every_s)

    async def _send(self, named: Named, messages: Sequence[Message]) -> Result:
        try:
            return await asyncio.wait_for(named.receiver.send(messages), SEND_S)
        except asyncio.TimeoutError:
            return Result(delivered=False, said=f"no answer within {SEND_S:g} s", again=True)
        except Exception:
            log.exception("Unexpected error while sending to %s (a bug in HubGuard)", named.name)
            return Result(delivered=False, said="Unexpected error (a bug in HubGuard). See the log.", again=True)

    def _message(self, alert: AlertRow, change: Change) -> Message:
        return message_of(alert, change, self._rules, self._link, self._source)

    def _count(self, named: Named, outcome: str, notices: Sequence[Notice]) -> None:
        self._counts[named.name, outcome] += len(notices)

    def _works(self, named: Named) -> None:
        if self._failing.pop(named.name, None) is not None:
            log.info("Notices reach %s again.", named.name)

    def _fails(self, named: Named, result: Result, now: datetime) -> None:
        before = self._failing.get(named.name)
        detail = f"Notices don't reach {named.name}: {result.said}."
        if before is None or before.detail != detail:
            log.warning("%s", detail)
        self._failing[named.name] = Finding(FindingKind.RECEIVER, before.since if before else now, detail)
