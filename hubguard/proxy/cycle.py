"""The proxy watch: notices within seconds that the proxy has lost its table, and asks the hub to fill it again."""

from __future__ import annotations

import asyncio
import logging
import random
from collections.abc import Callable, Mapping
from dataclasses import replace
from datetime import datetime

from hubguard.errors import BudgetExhausted, HubGuardError, HubRefused, HubUnreachable, ProxyError
from hubguard.hub.api import HubAPI
from hubguard.model import Key, Outcome, OutcomeKind
from hubguard.pacing.budget import Budget, Destination
from hubguard.pacing.clock import Clock
from hubguard.proxy.act import RouteChecks
from hubguard.proxy.canary import Canary
from hubguard.proxy.client import ProxyAPI
from hubguard.proxy.decide import (
    LOOK_EVERY_S,
    Asked,
    Command,
    Compared,
    Do,
    Now,
    Sighting,
    State,
    Verdict,
    missing,
    step,
)
from hubguard.proxy.model import ProxyWatchStatus, WatchState

log = logging.getLogger(__name__)

PUBLIC_EVERY = 5
"""Looks between two requests to the public port; while it doesn't answer, each look sends one."""

ASK_TIMEOUT_S = 60.0
"""Maximum seconds for the hub to check its routes: it tries for half a minute when the proxy is down again."""

ASKED_AT_ONCE, ASKED_EVERY_S = 20, 60.0
"""Maximum servers with missing routes that each comparison reads from the hub, and seconds between two readings of one."""

GIVE_UP_S = 600.0
"""Seconds after which a lost table is no longer waited for: the hub can't mend what is still missing. Drift shows it."""

LOST = "the proxy has lost its table of routes"
"""Why the hub is asked, for the journal."""

_DICE = random.SystemRandom()


class ProxyWatch:
    """Watches one proxy while :meth:`run` runs. ``status`` and ``restores`` may be read at any time.

    It carries out what :func:`hubguard.proxy.decide.step` decides, which also owns the timers.
    ``expected`` returns the paths that belong in the table, each with its server, None for others; empty: unknown.
    ``checks`` says whether the hub may be asked to check its routes now, and keeps the journal.
    """

    def __init__(
        self,
        canary: Canary,
        proxy: ProxyAPI,
        hub: HubAPI,
        budget: Budget,
        clock: Clock,
        *,
        expected: Callable[[], Mapping[str, Key | None]],
        checks: RouteChecks,
        give_up_s: float = GIVE_UP_S,
        draw: Callable[[], float] = _DICE.random,
    ) -> None:
        self._canary = canary
        self._proxy = proxy
        self._hub = hub
        self._budget = budget
        self._clock = clock
        self._expected = expected
        self._checks = checks
        self._give_up_s = give_up_s
        self._draw = draw
        self._state = State()
        self._planted = False
        self._looks = 0
        self._start_known = False
        self._asking: asyncio.Task[None] | None = None
        self._runs: dict[Key, tuple[float, bool]] = {}

    @property
    def status(self) -> ProxyWatchStatus:
        """How the proxy is."""
        return self._state.watched.status

    @property
    def restores(self) -> tuple[tuple[datetime, datetime], ...]:
        """(from, to) of each time in which a lost table was filled again, oldest first, with the one under way."""
        return self._state.watched.windows(self._clock.now())

    async def run(self) -> None:
        """Watch until cancelled; then remove the canary, if that is quick."""
        try:
            while True:
                due = Command(Do.WAIT, LOOK_EVERY_S)
                try:
                    self._collect()
                    due = await self._look()
                except Exception:
                    log.exception("Unexpected error in the proxy watch (a bug in HubGuard); it continues.")
                await self._pause(due)
        finally:
            if self._asking is not None:
                # The hub does what it was asked anyhow; the journal says that it was.
                self._asking.cancel()
                await asyncio.gather(self._asking, return_exceptions=True)
            await self._canary.remove()

    def _step(self, event: Sighting | Compared | Asked | None) -> Command:
        before, asking = self._state, self._asking is not None
        lost = before.watched.lost_from is not None
        self._state, command = step(
            before,
            event,
            Now(
                at=self._clock.now(),
                s=self._clock.monotonic_s(),
                draw=self._draw(),
                may_act=lost and self._checks.may_act(),
                asking=asking,
                knows_routes=lost and bool(self._expected()),
                give_up_s=self._give_up_s,
            ),
        )
        if before.restoring.lost_s is None and self._state.restoring.lost_s is not None:
            log.warning("The proxy has lost its table of routes.")
        if self._state.restoring.lost_s is None:
            self._runs.clear()
            if before.restoring.lost_s is not None and self.status.restored_at is not None:
                log.warning("The proxy has its routes again.")
        return command

    async def _look(self) -> Command:
        """Look once, and do what that asks for. Returns when to look again."""
        try:
            seen: Sighting | None = await self._sighting()
        except BudgetExhausted:
            seen = Sighting(Verdict.NO_ANSWER, "no connection")
            if await self._canary.listens():
                # Somebody else, or the watch, found it dead, or it hangs; the next look may go.
                self._budget.try_again(Destination.PROXY)
                seen = None
        command = self._step(seen)
        while command.do in (Do.PLANT, Do.COMPARE):
            command = self._step(await (self._plant() if command.do is Do.PLANT else self._compare()))
        if command.do is Do.ASK_HUB:
            self._asking = asyncio.ensure_future(self._ask())
        return command

    async def _sighting(self) -> Sighting:
        watched = self._state.watched
        if watched.status.state is WatchState.GONE:
            if not await self._canary.listens():
                return Sighting(Verdict.NO_ANSWER, "no connection")
            # Its port is there again: a breaker that opened meanwhile mustn't keep the watch away.
            self._budget.try_again(Destination.PROXY)
        elif watched.status.state is WatchState.HANGS:
            self._budget.try_again(Destination.PROXY)
        if not self._planted:
            seen = await self._canary.plant()
            self._planted = seen.verdict is Verdict.THERE
        else:
            seen = await self._canary.check()
        self._start_known = self._start_known and seen.verdict is Verdict.THERE and not seen.fresh
        if seen.verdict is not Verdict.THERE:
            return seen
        public = started_at = None
        self._looks += 1
        if watched.deaf or self._looks % PUBLIC_EVERY == 0:
            public = await self._canary.public()
        if not self._start_known and watched.lost_from is None:
            # With thousands of servers, finding it out keeps the machine busy: not while they wait for their routes.
            self._start_known, started_at = True, await self._canary.started_at()
        return replace(seen, public=public, started_at=started_at)

    async def _plant(self) -> Sighting | None:
        try:
            return await self._canary.plant()
        except BudgetExhausted:
            return None

    async def _compare(self) -> Compared:
        """What the table lacks, except for servers that, by the hub, were stopped since the last look."""
        losses = self._state.restoring.losses
        try:
            table = await self._proxy.routes()
        except (ProxyError, BudgetExhausted) as error:
            log.info("The proxy's table can't be read, so it is unknown whether the routes are back: %s", error)
            return Compared(None, losses)
        lacking = missing(table, self._expected())
        if self._state.restoring.answered and lacking:
            lacking = await self._of_those_that_run(lacking)
        return Compared(lacking, losses)

    async def _of_those_that_run(self, lacking: tuple[str, ...]) -> tuple[str, ...]:
        expected, now_s = self._expected(), self._clock.monotonic_s()
        keys = [key for path in lacking if (key := expected.get(path)) is not None]
        due = [key for key in keys if key not in self._runs or now_s - self._runs[key][0] >= ASKED_EVERY_S]
        try:
            for key in due[:ASKED_AT_ONCE]:
                server = await self._hub.get_server(*key)
                self._runs[key] = (now_s, server is not None and server.ready)
        except HubGuardError as error:
            log.info("It is unknown whether the servers with missing routes still run: %s", error)
        stopped = {key for key, (_, runs) in self._runs.items() if not runs}
        return tuple(path for path in lacking if expected.get(path) not in stopped)

    async def _pause(self, due: Command) -> None:
        """Until the next look is due, the connection ends, or the hub has answered."""
        waits: list[asyncio.Future[None]] = [asyncio.ensure_future(self._clock.sleep(due.wait_s))]
        if due.watch_connection:
            waits.append(asyncio.ensure_future(self._canary.broken()))
        asking = [self._asking] if self._asking is not None else []
        try:
            await asyncio.wait([*waits, *asking], return_when=asyncio.FIRST_COMPLETED)
        finally:
            for wait in waits:
                wait.cancel()
            await asyncio.gather(*waits, return_exceptions=True)

    # -- asking the hub ---------------------------------------------------------------------------------------------

    async def _ask(self) -> None:
        """Ask the hub to check its routes, once, and journal what came of it."""
        request = _Request(self._may_ask, self._checks)
        starts = self._state.restoring.starts
        try:
            await self._check_routes(request)
            self._step(Asked(starts, answered=True))
            self._step(await self._compare())
            request.outcome = self._outcome()
        except HubGuardError as error:
            log.warning("The hub couldn't be asked to check its routes: %s", error)
            self._step(Asked(starts, refused=str(error) if isinstance(error, HubRefused) else ""))
            unknown = isinstance(error, HubUnreachable)
            request.outcome = Outcome(OutcomeKind.UNVERIFIED if unknown else OutcomeKind.FAILED, str(error))
        finally:
            await request.settle()

    async def _check_routes(self, request: _Request) -> None:
        try:
            await self._hub.check_routes(timeout_s=ASK_TIMEOUT_S, confirm=request.confirm)
        except BudgetExhausted:
            # Its breaker is open, and only a harmless request may show that it answers again.
            await self._hub.version()
            await self._hub.check_routes(timeout_s=ASK_TIMEOUT_S, confirm=request.confirm)

    def _may_ask(self) -> bool:
        # A hub that asks a proxy that is gone or hangs is held up by it for minutes.
        return self.status.state is WatchState.WIPED and self._checks.may_act()

    def _collect(self) -> None:
        """Take note of a request to the hub that has ended."""
        if self._asking is None or not self._asking.done():
            return
        asked, self._asking = self._asking, None
        if (error := asked.exception()) is not None:
            log.error("Unexpected error while asking the hub to check its routes (a bug in HubGuard).", exc_info=error)
            self._step(Asked(self._state.restoring.starts))

    def _outcome(self) -> Outcome:
        if self._state.watched.lost_from is None:
            return Outcome(OutcomeKind.DONE, "every route is back")
        lacking = self.status.missing
        if lacking:
            return Outcome(OutcomeKind.FAILED, f"the hub has checked its routes, and {len(lacking)} are still missing")
        return Outcome(
            OutcomeKind.UNVERIFIED, "the hub has checked its routes, and the proxy's table can't be read now"
        )


class _Request:
    """One request to the hub, from its intent in the journal to its outcome there."""

    def __init__(self, may_ask: Callable[[], bool], checks: RouteChecks) -> None:
        self.outcome = Outcome(OutcomeKind.UNVERIFIED, "the guard ended before the outcome was known")
        self._may_ask = may_ask
        self._checks = checks
        self._sent = False

    async def confirm(self) -> None:
        """Commit the intent; awaited when the request is about to go out. What this raises keeps it from being sent."""
        if not self._may_ask():
            raise _NotNow("It is no longer the time to ask the hub to check its routes.")
        await self._checks.record(LOST, None)
        self._sent = True

    async def settle(self) -> None:
        """Commit the outcome, if there is an intent."""
        if not self._sent:
            return
        try:
            await self._checks.record(LOST, self.outcome)
        except HubGuardError as error:
            log.warning("The journal lacks the outcome of asking the hub to check its routes: %s", error)


class _NotNow(HubGuardError):
    """It was right when it was planned."""
