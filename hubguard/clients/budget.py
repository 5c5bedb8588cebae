"""The budget: the one thing that every request to the hub passes, whichever part sends it.

It guarantees, whatever fails: never more than ``rate * W + burst`` requests begin within any window of W seconds; never
more than ``concurrency`` are in flight; a fifth of the rate, and one place in flight at least, is left to what isn't
acting; and while the breaker is open, nothing goes out but one harmless probe at a time.
"""

from __future__ import annotations

import asyncio
import contextlib
import math
from collections import deque
from collections.abc import Iterator
from contextvars import ContextVar
from enum import Enum
from types import TracebackType

from hubguard.clients.clock import Clock, SystemClock
from hubguard.errors import BudgetExhausted
from hubguard.limits import Breaker, Concurrency, Rate
from hubguard.model import BudgetUse

RESERVED_SHARE = 0.2
"""The part of rate, burst and places that acting leaves alone."""

LONGEST_PAUSE_S = 600.0
"""A Retry-After counts up to here: a wrong header mustn't silence HubGuard for a day."""


_lowered_to: ContextVar[tuple[_Stage, ...]] = ContextVar("_lowered_to", default=())


class Lane(str, Enum):
    """What a request is for."""

    ACT = "act"  # changes something at the hub
    RESERVED = "reserved"  # second look, verification, looking for people


class Slot:
    """The right to send one request, from ``async with budget.slot(...)``; it ends with the block.

    Say in the block what came of the request; only the first word counts. A block that ends without a word was given up:
    it tells nothing about the hub.
    """

    def __init__(self, budget: Budget, lane: Lane, *, safe: bool) -> None:
        self._budget = budget
        self._lane = lane
        self._safe = safe
        self._number = 0
        self._asked_s = self._began_s = 0.0
        self._full = self._probe = self._settled = False
        self._limits = (budget._whole, *_lowered_to.get())
        self._stages: tuple[_Stage, ...] = ()
        self._granted: asyncio.Future[None]

    async def __aenter__(self) -> Slot:
        await self._budget._enter(self)
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._budget._leave(self)

    def succeeded(self) -> None:
        """The hub did, or told, what it was asked."""
        self._budget._settle(self, ok=True, overload=False)

    def failed(self, *, overload: bool) -> None:
        """It didn't. ``overload``: by 429, 5xx or silence, which slows all down; else the hub answered with a plain no."""
        self._budget._settle(self, ok=False, overload=overload)

    def retry_after(self, seconds: float) -> None:
        """The hub wants to be left alone for ``seconds``: no lane sends anything until then, but 600 s at most."""
        self._budget._pause(seconds)


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
        """``rate`` in requests per second. Raises ValueError for numbers that make no sense."""
        self._clock = clock or SystemClock()
        self._whole = _Stage(rate, burst, concurrency)
        self._share = Rate(rate * RESERVED_SHARE, max(1, int(burst * RESERVED_SHARE)))
        self._breaker = Breaker(breaker_failures, breaker_open_s)
        self._waiting: dict[Lane, deque[Slot]] = {lane: deque() for lane in Lane}
        self._paused_until_s = -math.inf
        self._alarm: asyncio.Task[None] | None = None
        self._alarm_at_s = math.inf
        self._asked = self._requests = self._failures = 0
        self._waited_s = 0.0

    def slot(self, lane: Lane, *, safe: bool) -> Slot:
        """``async with budget.slot(lane, safe=...) as slot``: waits for its turn, then holds a place until the block ends.

        ``safe``: it changes nothing, and may be sent to find out whether the hub answers again. Entering raises
        BudgetExhausted where the breaker is open: always for what isn't safe, and for what is until a probe is due.
        """
        return Slot(self, lane, safe=safe)

    @contextlib.contextmanager
    def lowered(self, *, rate: float | None = None, concurrency: int | None = None) -> Iterator[None]:
        """While the block lasts, its requests also keep to this ``rate`` (per second) and ``concurrency``; None: as is.

        Its requests are those of this task, and of tasks that it starts in the block; others go on as before, and nobody
        waits behind them. It only ever lowers. At most one second's worth of ``rate`` goes out at once.
        """
        whole = self._whole
        rate = whole.total.rate if rate is None else min(rate, whole.total.rate)
        concurrency = whole.places.cap if concurrency is None else min(concurrency, whole.places.cap)
        stage = _Stage(rate, max(1, min(whole.total.burst, math.ceil(rate))), concurrency)
        before = _lowered_to.set((*_lowered_to.get(), stage))
        try:
            yield
        finally:
            _lowered_to.reset(before)
            stage.over = True
            self._dispatch()

    def use(self) -> BudgetUse:
        """How it stands now."""
        whole = self._whole
        return BudgetUse(
            in_flight=sum(whole.in_flight.values()),
            concurrency=whole.places.limit,
            concurrency_cap=whole.places.cap,
            rate=whole.total.rate,
            burst=whole.total.burst,
            breaker=self._breaker.state,
            requests=self._requests,
            failures=self._failures,
            waited_s=self._waited_s,
        )

    async def _enter(self, slot: Slot) -> None:
        slot._granted = asyncio.get_running_loop().create_future()
        slot._asked_s = self._clock.monotonic_s()
        slot._number = self._asked = self._asked + 1
        self._waiting[slot._lane].append(slot)
        self._dispatch()
        try:
            await slot._granted
        except asyncio.CancelledError:
            if slot._granted.cancelled():
                self._waiting[slot._lane].remove(slot)
                self._dispatch()
            elif slot._granted.exception() is None:
                # It was granted in the very turn in which the waiter was cancelled.
                self._leave(slot)
            raise

    def _leave(self, slot: Slot) -> None:
        for stage in slot._stages:
            stage.in_flight[slot._lane] -= 1
        if not slot._settled:
            slot._settled = True
            self._breaker.abandoned(probe=slot._probe)
        self._dispatch()

    def _settle(self, slot: Slot, *, ok: bool, overload: bool) -> None:
        if slot._settled:
            return
        slot._settled = True
        now_s = self._clock.monotonic_s()
        self._failures += not ok
        if overload:
            self._whole.places.overloaded(slot._began_s, now_s)
            self._breaker.overloaded(now_s, probe=slot._probe)
        else:
            self._breaker.answered(probe=slot._probe)
            if ok:
                self._whole.places.succeeded(slot._began_s, now_s, full=slot._full)
        self._dispatch()

    def _pause(self, seconds: float) -> None:
        until_s = self._clock.monotonic_s() + min(max(seconds, 0.0), LONGEST_PAUSE_S)
        self._paused_until_s = max(self._paused_until_s, until_s)
        self._dispatch()

    def _dispatch(self) -> None:
        """Let everyone go who may go now, turn away who has nothing to wait for, and wake up when that changes."""
        now_s = self._clock.monotonic_s()
        self._paused_until_s = min(self._paused_until_s, now_s + LONGEST_PAUSE_S)
        self._turn_away(now_s)
        wait_s = math.inf
        while self._breaker.state != "probing" and (heads := self._heads(now_s)):
            wait_s = self._paused_until_s - now_s
            if wait_s > 0:
                break
            waits = [max(stage.wait_s(slot._lane, now_s) for stage in _in_force(slot)) for slot in heads]
            wait_s = min(waits)
            if wait_s > 0:
                break
            self._grant(heads[waits.index(0)], now_s)
            wait_s = math.inf
        self._wake_in(wait_s, now_s)

    def _heads(self, now_s: float) -> list[Slot]:
        """Who is next in each lane, of those with the same limits; the one that goes before the others first."""
        heads: dict[tuple[Lane, tuple[_Stage, ...]], Slot] = {}
        for lane, queue in self._waiting.items():
            for slot in queue:
                # The cancelled are passed over: they remove themselves in a moment.
                if not slot._granted.done():
                    heads.setdefault((lane, _in_force(slot)), slot)
        reserved_first = self._share.wait_s(now_s) == 0
        return sorted(
            heads.values(), key=lambda slot: (reserved_first and slot._lane is not Lane.RESERVED, slot._number)
        )

    def _turn_away(self, now_s: float) -> None:
        if self._breaker.state == "closed":
            return
        probe_in_s = self._breaker.probe_in_s(now_s) if self._breaker.state == "open" else 0.0
        when = f"in {math.ceil(probe_in_s)} s at the earliest" if probe_in_s else "first"
        for queue in self._waiting.values():
            for slot in [slot for slot in queue if not slot._granted.done()]:
                if probe_in_s > 0 or not slot._safe:
                    queue.remove(slot)
                    slot._granted.set_exception(
                        BudgetExhausted(
                            "The hub failed several times in a row, so it is left alone for now;"
                            f" one harmless request tries it again {when}."
                        )
                    )

    def _grant(self, slot: Slot, now_s: float) -> None:
        self._waiting[slot._lane].remove(slot)
        slot._stages = _in_force(slot)
        for stage in slot._stages:
            stage.take(slot._lane, now_s)
        if slot._lane is Lane.RESERVED and self._share.wait_s(now_s) == 0:
            self._share.take(now_s)
        slot._full = not self._whole.has_place(slot._lane)
        slot._began_s = now_s
        if self._breaker.state == "open":
            self._breaker.probe(now_s)
            slot._probe = True
            self._turn_away(now_s)
        self._requests += 1
        self._waited_s += max(0.0, now_s - slot._asked_s)
        slot._granted.set_result(None)

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


class _Stage:
    """One set of limits: all together, and acting within four fifths of it."""

    def __init__(self, rate: float, burst: int, concurrency: int) -> None:
        self.total = Rate(rate, burst)
        self.acting = Rate(rate * (1 - RESERVED_SHARE), max(1, int(burst * (1 - RESERVED_SHARE))))
        # Two, where there are two: with one alone, a slow stop would keep its own verification waiting.
        self.places = Concurrency(concurrency, floor=min(2, concurrency))
        self.in_flight = dict.fromkeys(Lane, 0)
        self.over = False

    def has_place(self, lane: Lane) -> bool:
        limit = self.places.limit
        kept_free = max(1, int(limit * RESERVED_SHARE))
        if lane is Lane.ACT and self.in_flight[lane] >= max(1, limit - kept_free):
            return False
        return sum(self.in_flight.values()) < limit

    def wait_s(self, lane: Lane, now_s: float) -> float:
        """Seconds until ``lane`` may send, infinite until someone is done."""
        if not self.has_place(lane):
            return math.inf
        wait_s = self.total.wait_s(now_s)
        return max(wait_s, self.acting.wait_s(now_s)) if lane is Lane.ACT else wait_s

    def take(self, lane: Lane, now_s: float) -> None:
        self.total.take(now_s)
        if lane is Lane.ACT:
            self.acting.take(now_s)
        self.in_flight[lane] += 1


def _in_force(slot: Slot) -> tuple[_Stage, ...]:
    """The limits that hold for that request now: all together's, and those that its task was lowered to."""
    return tuple(stage for stage in slot._limits if not stage.over)
