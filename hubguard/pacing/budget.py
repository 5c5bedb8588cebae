"""The budget: the one thing that every request to the hub and the proxy passes, whichever part sends it.

It guarantees, whatever fails: never more than ``rate * W + burst`` requests go out within any window of W seconds, to hub
and proxy together, and a guard that is started again has no burst; at each of them never more than ``concurrency`` that act
are in flight, and a fifth more in all; so a fifth of the rate, and one place in flight at least, is left to what isn't
acting; and once a breaker is open, nobody is let go but one harmless probe at a time.
"""

from __future__ import annotations

import asyncio
import contextlib
import math
from collections import defaultdict, deque
from collections.abc import Iterator
from contextvars import ContextVar
from dataclasses import dataclass, field
from enum import Enum
from types import TracebackType

from hubguard.errors import BudgetExhausted
from hubguard.pacing.clock import Clock, SystemClock
from hubguard.pacing.limits import Breaker, Concurrency, Latency, Rate, Spread
from hubguard.pacing.model import BudgetUse, PaceState

RESERVED_SHARE = 0.2
"""Share of rate and burst that acting leaves alone; the same share of places comes on top of those for acting."""

LONGEST_PAUSE_S = 600.0
"""Maximum seconds of a Retry-After: a wrong header mustn't silence HubGuard for a day."""


_lowered_to: ContextVar[tuple[_Stage, ...]] = ContextVar("_lowered_to", default=())


class Lane(str, Enum):
    """What a request is for."""

    ACT = "act"  # changes something
    RESERVED = "reserved"  # second look, verification, looking for people


class Destination(str, Enum):
    """The system that a request is sent to. All share one rate; each has its own slots, breaker and Retry-After."""

    HUB = "hub"
    PROXY = "proxy"


@dataclass(eq=False)
class _Turn:
    """One request on its way through the budget. ``full``: it took the last place; ``probe``: it tries an open breaker."""

    lane: Lane
    safe: bool
    to: Destination
    kind: str | None
    limits: tuple[_Stage, ...]
    number: int = field(default=0, init=False)
    asked_s: float = field(default=0.0, init=False)
    began_s: float = field(default=0.0, init=False)
    full: bool = field(default=False, init=False)
    probe: bool = field(default=False, init=False)
    settled: bool = field(default=False, init=False)
    stages: tuple[_Stage, ...] = field(default=(), init=False)
    reserved: tuple[Rate, ...] = field(default=(), init=False)
    granted: asyncio.Future[None] = field(init=False)

    @property
    def in_force(self) -> tuple[_Stage, ...]:
        """The limits that hold for it now: all together's, and those that its task was lowered to."""
        return tuple(stage for stage in self.limits if not stage.over)


class Slot:
    """The right to send one request, from ``async with budget.slot(...)``; it ends with the block.

    Say in the block when the request goes out, and what came of it; only the first word counts. A block that ends without
    a word on what came of it was given up: it says nothing about the hub.
    """

    def __init__(self, budget: Budget, turn: _Turn) -> None:
        self._budget = budget
        self._turn = turn

    async def __aenter__(self) -> Slot:
        await self._budget._enter(self._turn)
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._budget._leave(self._turn)

    def begins(self) -> None:
        """The request goes out now. The rate counts it from here, and its latency, too.

        Until then it holds one of the burst; a block that ends without it gives that back. Whoever says what came of a
        request has sent it.
        """
        self._budget._begin(self._turn)

    def succeeded(self) -> None:
        """The other side did, or returned, what it was asked for."""
        self._budget._settle(self._turn, ok=True, overload=False)

    def failed(self, *, overload: bool) -> None:
        """It didn't. ``overload``: by 429, 5xx or silence, which slows everything down; else by a plain no."""
        self._budget._settle(self._turn, ok=False, overload=overload)

    def retry_after(self, seconds: float) -> None:
        """The other side wants to be left alone for ``seconds``: nothing is sent to it until then, up to 600 s."""
        self._budget._pause(self._turn.to, seconds)


class Budget:
    """Paces requests. All of a guard's requests go through one of these, in one event loop.

    In each lane, whoever asked first goes first. Between lanes, the reserved lane goes first within its share, and by
    age beyond it. Waiting may be cancelled at any time.
    """

    def __init__(
        self,
        *,
        rate: float,
        burst: int,
        concurrency: int,
        breaker_failures: int = 5,
        breaker_open_s: float = 15.0,
        clock: Clock | None = None,
    ) -> None:
        """``rate`` in requests per second. Raises ValueError for numbers that make no sense.

        It starts as if the burst had just been spent: one request may go at once, the next ``1 / rate`` later.
        """
        self._clock = clock or SystemClock()
        now_s = self._clock.monotonic_s()
        self._whole = _Stage(rate, burst, concurrency, now_s)
        self._share = Rate(rate * RESERVED_SHARE, max(1, int(burst * RESERVED_SHARE)), now_s)
        self._sides = {to: _Side(Breaker(breaker_failures, breaker_open_s)) for to in Destination}
        self._waiting: dict[Lane, deque[_Turn]] = {lane: deque() for lane in Lane}
        self._alarm: asyncio.Task[None] | None = None
        self._alarm_at_s = math.inf
        self._asked = self._requests = self._failures = 0
        self._waited_s = 0.0

    def slot(self, lane: Lane, *, safe: bool, to: Destination = Destination.HUB, kind: str | None = None) -> Slot:
        """``async with budget.slot(lane, safe=...) as slot``: waits for its turn, then holds a place until the block ends.

        ``safe``: it changes nothing, and may be sent to find out whether ``to`` answers again. Entering raises
        BudgetExhausted if its breaker is open: always for what isn't safe, and for what is until a probe is due.
        ``kind`` names requests that usually take equally long: when these take longer and longer, that halves the
        concurrency as an overload does. None: how long it takes means nothing.
        """
        return Slot(self, _Turn(lane, safe, to, kind, (self._whole, *_lowered_to.get())))

    @contextlib.contextmanager
    def lowered(self, *, rate: float | None = None, concurrency: int | None = None) -> Iterator[None]:
        """While the block lasts, its requests also keep to this ``rate`` (per second) and ``concurrency``; None: as is.

        Its requests are those of this task, and of tasks that it starts in the block; others continue as before, and nobody
        waits behind them. It only ever lowers. At most one second's worth of ``rate`` goes out at once.
        """
        whole = self._whole
        cap = whole.places[Destination.HUB].cap
        rate = whole.total.rate if rate is None else min(rate, whole.total.rate)
        concurrency = cap if concurrency is None else min(concurrency, cap)
        burst = max(1, min(whole.total.burst, math.ceil(rate)))
        stage = _Stage(rate, burst, concurrency, self._clock.monotonic_s())
        before = _lowered_to.set((*_lowered_to.get(), stage))
        try:
            yield
        finally:
            _lowered_to.reset(before)
            stage.over = True
            self._dispatch()

    async def turn(self) -> None:
        """Returns when the next act is to begin with all that belongs to it, so that acts are spread over the time they take.

        Whoever has many acts to do awaits this before each of them; it reserves nothing of the limits.
        """
        stages = [stage for stage in (self._whole, *_lowered_to.get()) if not stage.over]
        now_s = self._clock.monotonic_s()
        at_s = max(stage.spread.turn(now_s, stage.places[Destination.HUB].limit) for stage in stages)
        await self._clock.sleep(at_s - now_s)

    def use(self) -> BudgetUse:
        """The state of the budget now."""
        whole = self._whole
        return BudgetUse(
            in_flight=sum(whole.in_flight.values()),
            concurrency=whole.places[Destination.HUB].limit,
            concurrency_cap=whole.places[Destination.HUB].cap,
            rate=whole.total.rate,
            burst=whole.total.burst,
            breaker=self._sides[Destination.HUB].breaker.state,
            requests=self._requests,
            failures=self._failures,
            waited_s=self._waited_s,
        )

    def state(self) -> PaceState:
        """What :meth:`restore` needs to continue from here in another process."""
        side = self._sides[Destination.HUB]
        breaker = side.breaker
        probe_in_s = {
            "closed": 0.0,
            "open": side.probe_in_s(self._clock.monotonic_s()),
            # One is out. Should nobody be left to hear its answer, it counts as not answered.
            "probing": breaker.stays_s,
        }[breaker.state]
        return PaceState(
            concurrency=self._whole.places[Destination.HUB].limit,
            breaker="closed" if breaker.state == "closed" else "open",
            failures=breaker.in_a_row,
            probe_in_s=probe_in_s,
            stays_open_s=breaker.stays_s,
        )

    def restore(self, state: PaceState, age_s: float) -> None:
        """Continue as another budget was ``age_s`` seconds ago. An open breaker stays open for what is left of its time.

        This only ever slows down: what this one has learned by itself already isn't forgotten for it.
        """
        now_s = self._clock.monotonic_s()
        self._whole.places[Destination.HUB].restore(state.concurrency, now_s)
        self._sides[Destination.HUB].breaker.restore(
            opened=state.breaker == "open",
            failures=state.failures,
            probe_in_s=state.probe_in_s - max(age_s, 0.0),
            stays_s=state.stays_open_s,
            now_s=now_s,
        )
        self._dispatch()

    def try_again(self, to: Destination) -> None:
        """Somebody has evidence that ``to`` is back: if its breaker is open, one probe may go now, and decides.

        It is evidence until a request that went out later fails; a destination that is left alone by Retry-After stays so.
        """
        self._sides[to].back_at_s = self._clock.monotonic_s()
        self._dispatch()

    async def _enter(self, turn: _Turn) -> None:
        turn.granted = asyncio.get_running_loop().create_future()
        turn.asked_s = self._clock.monotonic_s()
        turn.number = self._asked = self._asked + 1
        self._waiting[turn.lane].append(turn)
        self._dispatch()
        try:
            await turn.granted
        except asyncio.CancelledError:
            if turn.granted.cancelled():
                self._waiting[turn.lane].remove(turn)
                self._dispatch()
            elif turn.granted.exception() is None:
                # It was granted in the very turn in which the waiter was cancelled.
                self._leave(turn)
            raise

    def _leave(self, turn: _Turn) -> None:
        for stage in turn.stages:
            stage.in_flight[turn.to, turn.lane] -= 1
        for rate in turn.reserved:
            rate.give_back()
        turn.reserved = ()
        if not turn.settled:
            turn.settled = True
            self._sides[turn.to].breaker.abandoned(probe=turn.probe)
        self._dispatch()

    def _begin(self, turn: _Turn) -> None:
        if not turn.reserved:
            return
        turn.began_s = self._clock.monotonic_s()
        for rate in turn.reserved:
            rate.spend(turn.began_s)
        turn.reserved = ()
        self._requests += 1
        self._dispatch()

    def _settle(self, turn: _Turn, *, ok: bool, overload: bool) -> None:
        if turn.settled:
            return
        self._begin(turn)
        turn.settled = True
        now_s = self._clock.monotonic_s()
        side, places = self._sides[turn.to], self._whole.places[turn.to]
        self._failures += not ok
        if turn.lane is Lane.ACT:
            for stage in turn.stages:
                stage.spread.took(now_s - turn.began_s)
        if overload:
            places.overloaded(turn.began_s, now_s)
            side.breaker.overloaded(now_s, probe=turn.probe)
            if turn.began_s >= side.back_at_s:
                side.back_at_s = math.inf
        else:
            side.breaker.answered(probe=turn.probe)
            if ok and turn.kind is not None and side.latencies[turn.kind].rising(now_s - turn.began_s):
                places.overloaded(turn.began_s, now_s)
            elif ok:
                places.succeeded(turn.began_s, now_s, full=turn.full)
        self._dispatch()

    def _pause(self, to: Destination, seconds: float) -> None:
        side = self._sides[to]
        until_s = self._clock.monotonic_s() + min(max(seconds, 0.0), LONGEST_PAUSE_S)
        side.paused_until_s = max(side.paused_until_s, until_s)
        self._dispatch()

    def _dispatch(self) -> None:
        """Let everyone go who may go now, turn away who has nothing to wait for, and wake up when that changes."""
        now_s = self._clock.monotonic_s()
        for to, side in self._sides.items():
            side.paused_until_s = min(side.paused_until_s, now_s + LONGEST_PAUSE_S)
            self._turn_away(to, now_s)
        wait_s = math.inf
        while heads := self._heads(now_s):
            waits = [self._wait_s(turn, now_s) for turn in heads]
            wait_s = min(waits)
            if wait_s > 0:
                break
            self._grant(heads[waits.index(0)], now_s)
            wait_s = math.inf
        self._wake_in(wait_s, now_s)

    def _wait_s(self, turn: _Turn, now_s: float) -> float:
        """Seconds until that one may go, as far as is known; infinite until somebody else is done."""
        side = self._sides[turn.to]
        if side.breaker.state == "probing":
            return math.inf
        return max(side.paused_until_s - now_s, *(stage.wait_s(turn, now_s) for stage in turn.in_force))

    def _heads(self, now_s: float) -> list[_Turn]:
        """Who is next in each lane, of those with the same way and limits; the one that goes before the others first."""
        heads: dict[tuple[Lane, Destination, tuple[_Stage, ...]], _Turn] = {}
        for lane, queue in self._waiting.items():
            for turn in queue:
                # The cancelled are passed over: they remove themselves in a moment.
                if not turn.granted.done():
                    heads.setdefault((lane, turn.to, turn.in_force), turn)
        reserved_first = self._share.wait_s(now_s) == 0
        return sorted(heads.values(), key=lambda turn: (reserved_first and turn.lane is not Lane.RESERVED, turn.number))

    def _turn_away(self, to: Destination, now_s: float) -> None:
        side = self._sides[to]
        if side.breaker.state == "closed":
            return
        probe_in_s = side.probe_in_s(now_s) if side.breaker.state == "open" else 0.0
        when = f"in {math.ceil(probe_in_s)} s at the earliest" if probe_in_s else "first"
        for queue in self._waiting.values():
            for turn in [turn for turn in queue if turn.to is to and not turn.granted.done()]:
                if probe_in_s > 0 or not turn.safe:
                    queue.remove(turn)
                    turn.granted.set_exception(
                        BudgetExhausted(
                            f"The {to.value} failed several times in a row, so it is left alone for now;"
                            f" one harmless request tries it again {when}."
                        )
                    )

    def _grant(self, turn: _Turn, now_s: float) -> None:
        self._waiting[turn.lane].remove(turn)
        turn.stages = turn.in_force
        rates = [rate for stage in turn.stages for rate in stage.rates(turn.lane)]
        if turn.lane is Lane.RESERVED and self._share.wait_s(now_s) == 0:
            rates.append(self._share)
        for rate in rates:
            rate.reserve(now_s)
        turn.reserved = tuple(rates)
        for stage in turn.stages:
            stage.in_flight[turn.to, turn.lane] += 1
            if turn.lane is Lane.ACT:
                stage.spread.goes(now_s)
        turn.full = not self._whole.has_place(turn)
        side = self._sides[turn.to]
        if side.breaker.state == "open":
            side.breaker.probe(now_s + side.breaker.probe_in_s(now_s))
            turn.probe = True
            self._turn_away(turn.to, now_s)
        self._waited_s += max(0.0, now_s - turn.asked_s)
        turn.granted.set_result(None)

    def _wake_in(self, wait_s: float, now_s: float) -> None:
        at_s = now_s + wait_s
        if self._alarm is not None and at_s < math.inf and now_s < self._alarm_at_s <= at_s:
            return  # it rings early enough, and looks again
        if self._alarm is not None:
            self._alarm.cancel()
            self._alarm = None
        if at_s < math.inf:
            self._alarm_at_s = at_s
            self._alarm = asyncio.get_running_loop().create_task(self._ring(wait_s))

    async def _ring(self, wait_s: float) -> None:
        await self._clock.sleep(wait_s)
        self._alarm = None
        self._dispatch()


class _Side:
    """What a destination has to itself: its breaker, until when it wants to be left alone, and how fast it usually is.

    ``back_at_s`` is when somebody had evidence that it is back, and infinite if there is none.
    """

    def __init__(self, breaker: Breaker) -> None:
        self.breaker = breaker
        self.paused_until_s = -math.inf
        self.back_at_s = math.inf
        self.latencies: defaultdict[str, Latency] = defaultdict(Latency)

    def probe_in_s(self, now_s: float) -> float:
        """Seconds until the open breaker lets a probe go; 0 if it may go now."""
        return self.breaker.probe_in_s(now_s) if self.back_at_s == math.inf else 0.0


class _Stage:
    """One set of limits: the rate of all together, acting within four fifths of it, and the places at each destination.

    Acting is spread over the time that it takes.
    """

    def __init__(self, rate: float, burst: int, concurrency: int, now_s: float) -> None:
        self.total = Rate(rate, burst, now_s)
        self.acting = Rate(rate * (1 - RESERVED_SHARE), max(1, int(burst * (1 - RESERVED_SHARE))), now_s)
        self.places = {to: Concurrency(concurrency) for to in Destination}
        self.in_flight = {(to, lane): 0 for to in Destination for lane in Lane}
        self.spread = Spread()
        self.over = False

    def rates(self, lane: Lane) -> tuple[Rate, ...]:
        return (self.total, self.acting) if lane is Lane.ACT else (self.total,)

    def has_place(self, turn: _Turn) -> bool:
        limit = self.places[turn.to].limit
        if turn.lane is Lane.ACT and self.in_flight[turn.to, turn.lane] >= limit:
            return False
        return sum(self.in_flight[turn.to, lane] for lane in Lane) < limit + max(1, int(limit * RESERVED_SHARE))

    def wait_s(self, turn: _Turn, now_s: float) -> float:
        """Seconds until that one may go, infinite until someone is done."""
        if not self.has_place(turn):
            return math.inf
        wait_s = max(rate.wait_s(now_s) for rate in self.rates(turn.lane))
        if turn.lane is Lane.ACT:
            wait_s = max(wait_s, self.spread.wait_s(now_s, self.places[turn.to].limit))
        return wait_s
