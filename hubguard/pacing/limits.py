"""Pacing as pure arithmetic: how fast, how many at once, how soon again, and whether to ask at all.

Time is always passed in as ``now_s``, seconds of a monotonic clock, and chance as ``draw``, 0 <= draw < 1. Nothing here
waits, and nothing here is safe to share between threads.
"""

from __future__ import annotations

TINY_S = 1e-6
"""Seconds below which a wait counts as none: after months of uptime a clock is no finer, and a wait must come to its end."""


class Rate:
    """A rate limit: within any window of W seconds at most ``rate * W + burst`` are spent, and never more.

    This is the generic cell rate algorithm (ITU-T I.371, annex A, the virtual scheduling form): one number, the
    theoretical arrival time, says when the next one would come if all came evenly at ``rate``; they may come early by
    as much as ``burst - 1`` of them take. One is reserved first, and spent when it really goes out, however much later:
    until then it holds one of the burst, so that reservations that are spent all at once keep to the limit, too.

    It starts as if the burst had just been spent: one may go at once, the next an interval later. So starting again gives
    no burst either, as long as a start takes an interval (``1 / rate``) at least. A clock that jumps back stands still,
    as far as the limit goes: it gives no burst, and nobody waits longer for it.
    """

    def __init__(self, rate: float, burst: int, now_s: float) -> None:
        """``rate`` is per second and over 0; ``burst`` is at least 1. Raises ValueError for anything else."""
        if not 0 < rate < float("inf") or burst < 1:
            raise ValueError(f"a rate over 0 and a burst of 1 at least, not {rate} and {burst}")
        self.rate = rate
        self.burst = burst
        self._interval_s = 1.0 / rate
        self._reserved = 0
        self._due_s = now_s + (burst - 1) * self._interval_s
        self._seen_s = now_s

    def wait_s(self, now_s: float) -> float:
        """Seconds from now until one may be reserved, 0 when one may be now.

        Infinite while all of the burst is reserved: until one is spent or given back, nobody knows.
        """
        self._see(now_s)
        if self._reserved >= self.burst:
            return float("inf")
        wait_s = self._due_s + (self._reserved - (self.burst - 1)) * self._interval_s - now_s
        return wait_s if wait_s > TINY_S else 0.0

    def reserve(self, now_s: float) -> None:
        """Reserve one. Raises ValueError if ``wait_s(now_s)`` isn't 0."""
        if self.wait_s(now_s) > 0:
            raise ValueError("reserved before its time")
        self._reserved += 1

    def spend(self, now_s: float) -> None:
        """One that was reserved goes out now. Raises ValueError if none was."""
        self.give_back()
        self._see(now_s)
        self._due_s = max(now_s, self._due_s) + self._interval_s

    def give_back(self) -> None:
        """One that was reserved goes to others instead. Raises ValueError if none was."""
        if self._reserved < 1:
            raise ValueError("none is reserved")
        self._reserved -= 1

    def _see(self, now_s: float) -> None:
        if now_s < self._seen_s:
            self._due_s -= self._seen_s - now_s
        self._seen_s = now_s


class Concurrency:
    """How many may be in flight: halved when there is too much, one more when all of a full round went well (AIMD).

    ``limit`` stays between 1 and ``cap``. What was already out at the last halving says nothing new, so that
    one overload that fails ten requests at once counts once. Growth has to be earned: a round is as many successes as
    the limit is high, and in it the limit must have been what held requests back.
    """

    def __init__(self, cap: int) -> None:
        """It starts at ``cap``. Raises ValueError unless that is 1 at least."""
        if cap < 1:
            raise ValueError(f"a cap of 1 at least, not {cap}")
        self.cap = cap
        self.limit = cap
        self._changed_s = float("-inf")
        self._successes = 0
        self._was_full = False

    def succeeded(self, began_s: float, now_s: float, *, full: bool) -> None:
        """One request that began at ``began_s`` went well; ``full``: it took the last place there was."""
        if began_s < self._changed_s:
            return
        self._successes += 1
        self._was_full = self._was_full or full
        if self._successes < self.limit:
            return
        if self._was_full and self.limit < self.cap:
            self._change(self.limit + 1, now_s)
        self._successes, self._was_full = 0, False

    def overloaded(self, began_s: float, now_s: float) -> None:
        """One request that began at ``began_s`` met an overload: 429, 5xx, no answer, or one that came ever later."""
        if began_s >= self._changed_s:
            self._change(max(1, self.limit // 2), now_s)

    def restore(self, limit: int, now_s: float) -> None:
        """Continue from ``limit`` as it was before a restart, but never above where it is now."""
        if limit < self.limit:
            self._change(max(1, limit), now_s)

    def _change(self, limit: int, now_s: float) -> None:
        self.limit = limit
        self._changed_s = now_s
        self._successes, self._was_full = 0, False


class Spread:
    """Spreads what takes long over the time that it takes, so that it doesn't go out, and come back, in bursts.

    When several are in flight at once, each for as long as the last ones took, the time that one takes, divided by their
    number, is the distance between two (Little's law). Whoever keeps that distance, or almost, gets as many done, and others
    never meet ten at once.
    """

    SHARE = 0.9
    """Of that distance: less than all of it, so that it is the places that run out, and not the turns."""

    LONGEST_S = 1.0
    """Between two, however long each takes: what is to be stopped mustn't wait for what nobody feels."""

    WEIGHT = 0.2
    """Of the latest in the moving average of how long one takes."""

    FIRST_S = 1.0
    """Assumed for one until the first is done, so that the first of a batch don't go out in a heap either."""

    def __init__(self) -> None:
        self._takes_s: float | None = None
        self._last_s = float("-inf")
        self._turn_s = self._seen_s = float("-inf")

    def turn(self, now_s: float, limit: int) -> float:
        """The moment of the next turn, ``now_s`` or later, where ``limit`` may be in flight; nobody else has it.

        Turns are half a place further apart than the places allow, but a ninth of the speed at most. So each begins about
        half-way between two that end, and finds its place free.
        """
        takes_s = self.FIRST_S if self._takes_s is None else self._takes_s
        gap_s = min(self.LONGEST_S, takes_s / max(limit - 0.5, self.SHARE * limit))
        if now_s < self._seen_s:
            # A clock that jumps back makes nobody wait longer.
            self._turn_s -= self._seen_s - now_s
        self._seen_s = now_s
        self._turn_s = max(now_s, self._turn_s + gap_s)
        return self._turn_s

    def wait_s(self, now_s: float, limit: int) -> float:
        """Seconds until the next may go if ``limit`` may be in flight; 0 if it may go now, or none is done yet."""
        if self._takes_s is None:
            return 0.0
        gap_s = min(self.LONGEST_S, self.SHARE * self._takes_s / limit)
        wait_s = min(gap_s, self._last_s + gap_s - now_s)
        return wait_s if wait_s > TINY_S else 0.0

    def goes(self, now_s: float) -> None:
        """One goes now."""
        self._last_s = now_s

    def took(self, seconds: float) -> None:
        """One is done, and took that many seconds."""
        seconds = max(0.0, seconds)
        self._takes_s = seconds if self._takes_s is None else self._takes_s + self.WEIGHT * (seconds - self._takes_s)


class Latency:
    """Detects that answers of one kind take longer and longer, from two moving averages of how long they took.

    It is rising when the last few took over three times as long as usual, and half a second longer. Three times: what a
    load that grows in the ordinary way does to latency isn't a rise. Half a second: the hub has one event loop, so what we
    wait for it everybody waits for, and that is what a user feels; 10 ms that become 40 ms hurt nobody.

    What is usual follows slowly when answers take longer: a hub that is slower for good counts as usual after about 80
    answers, and isn't strangled forever. It follows at once when they take less.
    """

    FEW = 5
    """Answers in the short average, about: one that took 2 s alone isn't a rise."""

    MANY = 200
    """Answers in the long average, about."""

    TIMES = 3.0
    MORE_S = 0.5

    def __init__(self) -> None:
        self._short_s: float | None = None
        self._long_s = 0.0

    def rising(self, took_s: float) -> bool:
        """One more answer took ``took_s``. Whether that is part of a rise: a quick answer amid slow ones never is."""
        if self._short_s is None:
            self._short_s = self._long_s = took_s
        self._short_s += (took_s - self._short_s) / self.FEW
        self._long_s = min(self._short_s, self._long_s + (took_s - self._long_s) / self.MANY)
        return min(took_s, self._short_s) > max(self.TIMES * self._long_s, self._long_s + self.MORE_S)


def backoff_s(failures: int, draw: float, base_s: float, max_s: float) -> float:
    """Seconds to wait after that many failures in a row: 0 after none, else anywhere below a bound that doubles.

    The bound is ``base_s`` after the first failure and never over ``max_s``. Drawing from all of it ("full jitter")
    keeps those that failed together from coming back together; see Marc Brooker, "Exponential Backoff And Jitter", AWS
    Architecture Blog, 2015.
    """
    if failures < 1:
        return 0.0
    return draw * min(max_s, base_s * 2.0 ** min(failures - 1, 64))


def cycle_in_s(
    every_s: float, draw: float, now_s: float, hub_checks_at_s: float | None = None, hub_check_every_s: float = 0.0
) -> float:
    """Seconds from now until the next cycle: ``every_s`` plus or minus 10 %, and not while the hub does its own check.

    ``hub_checks_at_s`` is a moment, on the clock of ``now_s``, at which the hub checks its routes and takes over activity,
    None if unknown; it does so every ``hub_check_every_s``, 0 for never. The quiet zone reaches ``q`` = 5 s to
    both sides of each such moment, but no further than a tenth of either interval; what falls into it comes ``2 * q``
    later, which is behind it, and as spread as before. So the result is in ``[0.9 * every_s, 1.1 * every_s + 2 * q]``.
    """
    in_s = every_s * (0.9 + 0.2 * draw)
    if hub_checks_at_s is None or hub_check_every_s <= 0:
        return in_s
    quiet_s = min(5.0, every_s / 10, hub_check_every_s / 10)
    since_s = (now_s + in_s - hub_checks_at_s) % hub_check_every_s
    return in_s + 2 * quiet_s if min(since_s, hub_check_every_s - since_s) < quiet_s else in_s


class Breaker:
    """Stops asking whoever doesn't answer: closed (ask), open (don't), probing (one harmless request is out).

    It opens after ``failures`` overloads in a row. ``open_s`` later one probe may go; that one alone decides. It closes
    on an answer; otherwise it stays open for twice as long as before, up to ten times ``open_s``. What was sent before
    it opened can neither close it nor keep it open.

    ``in_a_row`` counts the overloads while it is closed; ``stays_s`` is how long it stays open between two probes.
    """

    LONGEST = 10
    """How many times ``open_s`` it may stay open between two probes."""

    def __init__(self, failures: int, open_s: float) -> None:
        """``failures`` is at least 1, ``open_s`` over 0. Raises ValueError for anything else."""
        if failures < 1 or not open_s > 0:
            raise ValueError(f"1 failure at least and a time over 0, not {failures} and {open_s}")
        self.state = "closed"
        self._threshold = failures
        self._open_s = open_s
        self.in_a_row = 0
        self._opened_s = 0.0
        self.stays_s = open_s

    def probe_in_s(self, now_s: float) -> float:
        """Seconds until a probe may go: 0 if one may go now. Meaningless unless it is open.

        A clock that jumps back makes nobody wait longer than the time it was opened for.
        """
        wait_s = min(self._opened_s + self.stays_s - now_s, self.stays_s)
        return wait_s if wait_s > TINY_S else 0.0

    def probe(self, now_s: float) -> None:
        """The probe goes out now. Raises ValueError unless it is open and due."""
        if self.state != "open" or self.probe_in_s(now_s) > 0:
            raise ValueError("no probe is due")
        self.state = "probing"

    def answered(self, *, probe: bool) -> None:
        """An answer came, whatever it said; ``probe``: it was the probe that was answered."""
        if self.state == "closed" or (probe and self.state == "probing"):
            self.state, self.in_a_row, self.stays_s = "closed", 0, self._open_s

    def overloaded(self, now_s: float, *, probe: bool) -> None:
        """No answer came, or 429 or 5xx."""
        if probe and self.state == "probing":
            self.stays_s = min(self.stays_s * 2, self._open_s * self.LONGEST)
            self.state, self._opened_s = "open", now_s
        elif self.state == "closed":
            self.in_a_row += 1
            if self.in_a_row >= self._threshold:
                self.state, self._opened_s = "open", now_s

    def abandoned(self, *, probe: bool) -> None:
        """The request was given up before it came to anything: another probe may go at once."""
        if probe and self.state == "probing":
            self.state = "open"

    def restore(self, *, opened: bool, failures: int, probe_in_s: float, stays_s: float, now_s: float) -> None:
        """Continue as one did before a restart: open with a probe due in ``probe_in_s``, or with ``failures`` in a row.

        It stays closed with those failures, however many: one more opens it. If this one isn't closed any more, it knows
        better, and nothing happens.
        """
        if self.state != "closed":
            return
        self.in_a_row = max(self.in_a_row, failures)
        if opened:
            self.stays_s = min(max(stays_s, self._open_s), self._open_s * self.LONGEST)
            self.state, self._opened_s = "open", now_s + min(max(probe_in_s, 0.0), self.stays_s) - self.stays_s
