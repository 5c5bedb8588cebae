"""Pacing as pure arithmetic: how fast, how many at once, how soon again, and whether to ask at all.

Time is always passed in as ``now_s``, seconds of a monotonic clock, and chance as ``draw``, 0 <= draw < 1. Nothing here
waits, and nothing here is safe to share between threads.
"""

from __future__ import annotations

TINY_S = 1e-6
"""Waits shorter than this are none: after months of uptime a clock tells no finer, and a wait must come to its end."""


class Rate:
    """A rate limit: within any window of W seconds at most ``rate * W + burst`` are taken, and never more.

    This is the generic cell rate algorithm (ITU-T I.371, annex A, the virtual scheduling form): one number, the
    theoretical arrival time, tells when the next one would come if all came evenly at ``rate``; they may come early by
    as much as ``burst - 1`` of them take. A clock that jumps back stands still, as far as the limit goes: it gives no
    burst, and nobody waits longer for it.
    """

    def __init__(self, rate: float, burst: int) -> None:
        """``rate`` is per second and over 0; ``burst`` is at least 1. Raises ValueError for anything else."""
        if not 0 < rate < float("inf") or burst < 1:
            raise ValueError(f"a rate over 0 and a burst of 1 at least, not {rate} and {burst}")
        self.rate = rate
        self.burst = burst
        self._interval_s = 1.0 / rate
        self._due_s: float | None = None
        self._seen_s = 0.0

    def wait_s(self, now_s: float) -> float:
        """Seconds from now until one may be taken; 0 when one may be taken now."""
        self._see(now_s)
        if self._due_s is None:
            return 0.0
        wait_s = self._due_s - (self.burst - 1) * self._interval_s - now_s
        return wait_s if wait_s > TINY_S else 0.0

    def take(self, now_s: float) -> None:
        """Take one. Raises ValueError where ``wait_s(now_s)`` isn't 0."""
        if self.wait_s(now_s) > 0:
            raise ValueError("taken before its time")
        self._due_s = (now_s if self._due_s is None else max(now_s, self._due_s)) + self._interval_s

    def _see(self, now_s: float) -> None:
        if self._due_s is not None and now_s < self._seen_s:
            self._due_s -= self._seen_s - now_s
        self._seen_s = now_s


class Concurrency:
    """How many may be in flight: halved when there is too much, one more when all of a full round went well (AIMD).

    ``limit`` stays between ``floor`` and ``cap``. What was already out at the last halving tells nothing new, so that
    one overload that fails ten requests at once counts once. Growth has to be earned: a round is as many successes as
    the limit is high, and in it the limit must have been what held requests back.
    """

    def __init__(self, cap: int, floor: int = 1) -> None:
        """It starts at ``cap``. Raises ValueError unless ``1 <= floor <= cap``."""
        if not 1 <= floor <= cap:
            raise ValueError(f"a floor of 1 at least and a cap not below it, not {floor} and {cap}")
        self.cap = cap
        self.floor = floor
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
        """One request that began at ``began_s`` met an overload: 429, 5xx, or no answer."""
        if began_s >= self._changed_s:
            self._change(max(self.floor, self.limit // 2), now_s)

    def _change(self, limit: int, now_s: float) -> None:
        self.limit = limit
        self._changed_s = now_s
        self._successes, self._was_full = 0, False


def backoff_s(failures: int, draw: float, base_s: float, max_s: float) -> float:
    """Seconds to wait after that many failures in a row: 0 after none, else anywhere below a bound that doubles.

    The bound is ``base_s`` after the first failure and never over ``max_s``. Drawing from all of it ("full jitter")
    keeps those that failed together from coming back together; see Marc Brooker, "Exponential Backoff And Jitter", AWS
    Architecture Blog, 2015.
    """
    if failures < 1:
        return 0.0
    return draw * min(max_s, base_s * 2.0 ** min(failures - 1, 64))


class Breaker:
    """Stops asking a hub that doesn't answer: closed (ask), open (don't), probing (one harmless request is out).

    It opens after ``failures`` overloads in a row. ``open_s`` later one probe may go; that one alone decides. It closes
    on an answer; otherwise it stays open for twice as long as before, up to ten times ``open_s``. What was sent before
    it opened can neither close it nor keep it open.
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
        self._in_a_row = 0
        self._opened_s = 0.0
        self._stays_s = open_s

    def probe_in_s(self, now_s: float) -> float:
        """Seconds until a probe may go: 0 when one may go now. Without meaning unless it is open.

        A clock that jumps back makes nobody wait longer than the time it was opened for.
        """
        wait_s = min(self._opened_s + self._stays_s - now_s, self._stays_s)
        return wait_s if wait_s > TINY_S else 0.0

    def probe(self, now_s: float) -> None:
        """The probe goes out now. Raises ValueError unless it is open and due."""
        if self.state != "open" or self.probe_in_s(now_s) > 0:
            raise ValueError("no probe is due")
        self.state = "probing"

    def answered(self, *, probe: bool) -> None:
        """The hub answered, whatever it said; ``probe``: it was the probe that it answered."""
        if self.state == "closed" or (probe and self.state == "probing"):
            self.state, self._in_a_row, self._stays_s = "closed", 0, self._open_s

    def overloaded(self, now_s: float, *, probe: bool) -> None:
        """The hub didn't answer, or answered 429 or 5xx."""
        if probe and self.state == "probing":
            self._stays_s = min(self._stays_s * 2, self._open_s * self.LONGEST)
            self.state, self._opened_s = "open", now_s
        elif self.state == "closed":
            self._in_a_row += 1
            if self._in_a_row >= self._threshold:
                self.state, self._opened_s = "open", now_s

    def abandoned(self, *, probe: bool) -> None:
        """The request was given up before it came to anything: another probe may go at once."""
        if probe and self.state == "probing":
            self.state = "open"
