"""The proxy watch: sees within seconds that the proxy has lost its table, and has the hub fill it again. Beside the cycle."""

from __future__ import annotations

import asyncio
import logging
import random
from collections.abc import Awaitable, Callable, Mapping
from dataclasses import replace
from datetime import datetime

from hubguard.errors import BudgetExhausted, HubGuardError, HubRefused, HubUnreachable, ProxyError
from hubguard.hub.api import HubAPI
from hubguard.model import Key, Outcome, OutcomeKind
from hubguard.pacing.budget import Budget, Destination
from hubguard.pacing.clock import Clock
from hubguard.pacing.limits import backoff_s
from hubguard.proxy.canary import Canary
from hubguard.proxy.client import ProxyAPI
from hubguard.proxy.decide import Sighting, Watched, Word, compared, given_up, missing, step, told
from hubguard.proxy.model import ProxyWatchStatus, WatchState

log = logging.getLogger(__name__)

EVERY_S = 1.5
"""From one look to the next, give or take a third. The end of the connection shows at once; only a wipe waits for a look."""

PUBLIC_EVERY = 5
"""Every so many looks the public port is asked, too; while it doesn't answer, each time."""

UNUSABLE_EVERY_S = 60.0
"""A proxy that doesn't know our token is tried again so often."""

CONNECT_EVERY_S, CONNECT_QUICKLY_S, CONNECT_SLOWLY_S = 0.1, 10.0, 2.0
"""A port that is gone is tried so often for the first 10 s, and so seldom later. It costs nobody anything."""

COMPARE_EVERY_S = 1.0
"""While routes are missing, the table is read again so often at first; each time 1.5 times as long, up to 15 s."""

ASK_TIMEOUT_S = 60.0
"""The hub may take so long to check its routes: it tries for half a minute where the proxy is down again."""

ASK_GAP_S, ASK_LONGEST_S = 2.0, 60.0
"""The hub is asked again so much later at the earliest; on average twice as long after each time, up to a minute. A proxy
that was started anew since is met after the gap alone, however often: what failed before was its own death's fault."""

REFUSED_EVERY_S = 600.0
"""A hub that refuses to check its routes is asked again so often: it takes another role, and a restart, to change that."""

ASKED_AT_ONCE, ASKED_EVERY_S = 20, 60.0
"""Of so many servers whose routes are missing the hub is asked, at each comparison, whether they run; of each so often."""

CALM_S = 60.0
"""After so long without a loss the next one is met at once again, as if there had been none before."""

GIVE_UP_S = 600.0
"""What is still missing by then, the hub doesn't know, or can't mend; drift tells of it."""

COMPARE_LONGEST_S = 15.0

LOST = "the proxy has lost its table of routes"
"""Why the hub is asked, for the journal."""

_DICE = random.SystemRandom()

Record = Callable[[str, Outcome | None], Awaitable[None]]


class ProxyWatch:
    """Watches one proxy from :meth:`run` on. ``status`` and ``restores`` may be read at any time.

    ``expected`` gives the paths that must be in the table, by what was known before it was lost, each with the server that
    it leads to, None for others; empty: not known. ``may_act`` tells whether the hub may be asked to check its routes now.
    ``record`` is awaited with what is about to be asked, and what that comes from, right before (what it raises keeps it
    from being sent), and with the outcome after.
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
        may_act: Callable[[], bool],
        record: Record,
        give_up_s: float = GIVE_UP_S,
        draw: Callable[[], float] = _DICE.random,
    ) -> None:
        self._canary = canary
        self._proxy = proxy
        self._hub = hub
        self._budget = budget
        self._clock = clock
        self._expected = expected
        self._may_act = may_act
        self._record = record
        self._give_up_s = give_up_s
        self._draw = draw
        self._watched = Watched()
        self._planted = False
        self._looks = 0
        self._start_known = False
        self._lost_s: float | None = None
        self._asking: asyncio.Task[None] | None = None
        self._answered = False
        self._asked = self._losses = self._starts = 0
        self._refused = ""
        self._ready: dict[Key, tuple[float, bool]] = {}
        self._asked_at_s = self._ask_at_s = self._compare_at_s = float("-inf")
        self._compare_every_s = COMPARE_EVERY_S
        self._whole_s = float("-inf")

    @property
    def status(self) -> ProxyWatchStatus:
        """How the proxy stands."""
        return self._watched.status

    @property
    def restores(self) -> tuple[tuple[datetime, datetime], ...]:
        """(from, to) of each time in which a lost table was filled again, oldest first, with the one that is under way."""
        return self._watched.windows(self._clock.now())

    async def run(self) -> None:
        """Watch until cancelled; then the canary is removed, where that is quick."""
        try:
            while True:
                seen = None
                try:
                    seen = await self._look()
                except Exception:
                    log.exception("The proxy watch met what it doesn't know; it goes on.")
                await self._pause(seen)
        finally:
            if self._asking is not None:
                # What it was asked, the hub does anyhow; that it was is in the journal.
                self._asking.cancel()
                await asyncio.gather(self._asking, return_exceptions=True)
            await self._canary.remove()

    # -- looking ----------------------------------------------------------------------------------------------------

    async def _look(self) -> Sighting | None:
        """Look once, and do what that asks for. None: nothing could be asked just now."""
        try:
            seen = await self._sighting()
        except BudgetExhausted:
            if await self._canary.listens():
                # Somebody else, or we, found it dead, or it hangs; the next look may go.
                self._budget.try_again(Destination.PROXY)
                return None
            seen = Sighting(Word.NO_ANSWER, "no connection")
        self._watched = step(self._watched, seen, self._clock.now())
        if seen.word is Word.MISSING and self._watched.lost_from is not None:
            seen = await self._met_loss(seen)
        if seen.word is Word.THERE and self._watched.lost_from is not None:
            await self._mend()
        elif self._clock.monotonic_s() - self._whole_s > CALM_S:
            self._asked = 0
        return seen

    async def _sighting(self) -> Sighting:
        state = self._watched.status.state
        if state is WatchState.GONE:
            if not await self._canary.listens():
                return Sighting(Word.NO_ANSWER, "no connection")
            # Its port is there again: a breaker that was opened meanwhile mustn't keep us away.
            self._budget.try_again(Destination.PROXY)
        elif state is WatchState.HANGS:
            self._budget.try_again(Destination.PROXY)
        if not self._planted:
            seen = await self._canary.plant()
            self._planted = seen.word is Word.THERE
        else:
            seen = await self._canary.check()
        self._start_known = self._start_known and seen.word is Word.THERE and not seen.fresh
        if seen.word is not Word.THERE:
            return seen
        public = started_at = None
        self._looks += 1
        if self._watched.deaf or self._looks % PUBLIC_EVERY == 0:
            public = await self._canary.public()
        if not self._start_known and self._watched.lost_from is None:
            # Where thousands of servers run, finding it out keeps the machine busy: not while they wait for their routes.
            self._start_known, started_at = True, await self._canary.started_at()
        return replace(seen, public=public, started_at=started_at)

    async def _met_loss(self, seen: Sighting) -> Sighting:
        """The canary is planted again, so that another loss shows, too."""
        now_s = self._clock.monotonic_s()
        if self._lost_s is None:
            self._lost_s = now_s
            log.warning("The proxy has lost its table of routes.")
        self._answered, self._compare_at_s, self._compare_every_s = False, now_s, COMPARE_EVERY_S
        self._losses += 1
        if seen.fresh:
            # A connection had ended: it was started anew. Two that take turns behind one address show no such end.
            self._starts += 1
            if not self._refused:
                self._asked, self._ask_at_s = 0, min(self._ask_at_s, self._asked_at_s + ASK_GAP_S)
        try:
            seen = await self._canary.plant()
        except BudgetExhausted:
            return seen
        self._watched = step(self._watched, seen, self._clock.now())
        return seen

    async def _pause(self, seen: Sighting | None) -> None:
        """Until the next look is due, the connection ends, or the hub has answered."""
        waits: list[asyncio.Future[None]] = [asyncio.ensure_future(self._clock.sleep(self._pause_s(seen)))]
        # One that ends each time it was used tells nothing by that.
        if seen is not None and seen.word is Word.THERE and not seen.fresh:
            waits.append(asyncio.ensure_future(self._canary.broken()))
        asking = [self._asking] if self._asking is not None else []
        try:
            await asyncio.wait([*waits, *asking], return_when=asyncio.FIRST_COMPLETED)
        finally:
            for wait in waits:
                wait.cancel()
            await asyncio.gather(*waits, return_exceptions=True)
        if self._asking is not None and self._asking.done():
            asked, self._asking = self._asking, None
            if (error := asked.exception()) is not None:
                log.error("Having the hub check its routes met what the proxy watch doesn't know.", exc_info=error)

    def _pause_s(self, seen: Sighting | None) -> float:
        status, jitter = self._watched.status, 2 / 3 + 2 / 3 * self._draw()
        if status.state is WatchState.GONE and status.since is not None:
            gone_s = (self._clock.now() - status.since).total_seconds()
            return CONNECT_EVERY_S if gone_s < CONNECT_QUICKLY_S else CONNECT_SLOWLY_S * jitter
        if seen is not None and seen.word is Word.UNUSABLE:
            return UNUSABLE_EVERY_S * jitter
        pause_s = EVERY_S * jitter
        if self._watched.lost_from is not None and self._asking is None:
            pause_s = min(pause_s, max(0.1, self._due_s() - self._clock.monotonic_s()))
        return pause_s

    def _due_s(self) -> float:
        """When the table is to be compared again, or the hub asked."""
        return min(self._compare_at_s, self._ask_at_s) if self._may_act() else self._compare_at_s

    # -- mending ----------------------------------------------------------------------------------------------------

    async def _mend(self) -> None:
        """The table was lost, and the proxy answers: see what is missing, and have the hub fill it where it is time."""
        if self._asking is not None:
            return
        may_act = self._may_act()
        if not may_act:
            self._watched = told(
                self._watched,
                "The proxy has lost its table of routes. HubGuard doesn't have the hub fill it now; the hub does so itself"
                " with its next check.",
            )
        now_s = self._clock.monotonic_s()
        if may_act and self._refused and now_s < self._ask_at_s:
            self._watched = told(
                self._watched,
                f"The proxy has lost its table of routes, and HubGuard may not have the hub fill it: {self._refused} The hub"
                " does so itself with its next check.",
            )
        if now_s >= self._compare_at_s and (self._answered or self._expected()):
            self._compare_at_s = now_s + self._compare_every_s
            self._compare_every_s = min(1.5 * self._compare_every_s, COMPARE_LONGEST_S)
            await self._compare()
        if self._watched.lost_from is None:
            return
        if self._lost_s is not None and now_s - self._lost_s >= self._give_up_s:
            self._watched = given_up(self._watched, self._clock.now())
            if self._refused:
                self._watched = told(self._watched, f"{self._watched.status.why} {self._refused}")
            self._over()
        elif may_act and now_s >= self._ask_at_s:
            self._asking = asyncio.ensure_future(self._ask())

    async def _compare(self) -> None:
        """``status`` tells what is missing, and that all is well again where nothing is."""
        losses = self._losses
        try:
            table = await self._proxy.routes()
        except (ProxyError, BudgetExhausted) as error:
            log.info("Whether the routes are back can't be seen: %s", error)
            return
        lacking = missing(table, self._expected())
        if self._answered and lacking:
            lacking = await self._of_those_that_run(lacking)
        if losses != self._losses:
            return  # that table is lost, too
        self._watched = compared(self._watched, lacking, self._clock.now())
        if self._watched.lost_from is None:
            log.warning("The proxy has its routes again.")
            self._over()

    async def _of_those_that_run(self, lacking: tuple[str, ...]) -> tuple[str, ...]:
        """Those of ``lacking`` that aren't of servers which, by the hub, were stopped since the last look."""
        expected, now_s = self._expected(), self._clock.monotonic_s()
        keys = [key for path in lacking if (key := expected.get(path)) is not None]
        due = [key for key in keys if key not in self._ready or now_s - self._ready[key][0] >= ASKED_EVERY_S]
        try:
            for key in due[:ASKED_AT_ONCE]:
                server = await self._hub.get_server(*key)
                self._ready[key] = (now_s, server is not None and server.ready)
        except HubGuardError as error:
            log.info("Whether the servers whose routes are missing still run can't be told: %s", error)
        stopped = {key for key, (_, ready) in self._ready.items() if not ready}
        return tuple(path for path in lacking if expected.get(path) not in stopped)

    def _over(self) -> None:
        self._lost_s, self._whole_s = None, self._clock.monotonic_s()
        self._ready.clear()

    async def _ask(self) -> None:
        """Have the hub check its routes, once, and see and record what came of it."""
        sent, starts = False, self._starts

        async def confirm() -> None:
            nonlocal sent
            if self._watched.status.state is not WatchState.WIPED or not self._may_act():
                # A hub that asks a proxy that is gone or hangs is held up by it for minutes.
                raise _NotNow("It is no longer the time to have the hub check its routes.")
            await self._record(LOST, None)
            sent = True

        try:
            try:
                await self._hub.check_routes(timeout_s=ASK_TIMEOUT_S, confirm=confirm)
            except BudgetExhausted:
                # Its breaker is open, and only a harmless request may show that it answers again.
                await self._hub.version()
                await self._hub.check_routes(timeout_s=ASK_TIMEOUT_S, confirm=confirm)
            self._answered, self._refused = True, ""
            await self._compare()
            await self._tell(self._outcome())
        except HubGuardError as error:
            log.warning("The hub couldn't be had to check its routes: %s", error)
            self._refused = str(error) if isinstance(error, HubRefused) else ""
            if sent:
                unknown = isinstance(error, HubUnreachable)
                kind = OutcomeKind.UNVERIFIED if unknown else OutcomeKind.FAILED
                await self._tell(Outcome(kind, str(error)))
        except BaseException:
            if sent:
                await self._tell(Outcome(OutcomeKind.UNVERIFIED, "the guard ended before it knew"))
            raise
        finally:
            self._asked += 1
            wait_s = ASK_GAP_S + backoff_s(self._asked, self._draw(), 2 * ASK_GAP_S, ASK_LONGEST_S)
            if self._refused:
                wait_s = REFUSED_EVERY_S
            elif starts != self._starts:
                self._asked, wait_s = 0, ASK_GAP_S
            self._asked_at_s = self._clock.monotonic_s()
            self._ask_at_s = self._asked_at_s + wait_s
            self._compare_at_s, self._compare_every_s = self._asked_at_s, COMPARE_EVERY_S

    def _outcome(self) -> Outcome:
        if self._watched.lost_from is None:
            return Outcome(OutcomeKind.DONE, "every route is back")
        lacking = self._watched.status.missing
        if lacking:
            return Outcome(OutcomeKind.FAILED, f"the hub has checked its routes, and {len(lacking)} are still missing")
        return Outcome(
            OutcomeKind.UNVERIFIED, "the hub has checked its routes, and the proxy doesn't show them just now"
        )

    async def _tell(self, outcome: Outcome) -> None:
        try:
            await self._record(LOST, outcome)
        except HubGuardError as error:
            log.warning("What came of having the hub check its routes isn't in the journal: %s", error)


class _NotNow(HubGuardError):
    """It was right when it was planned."""
