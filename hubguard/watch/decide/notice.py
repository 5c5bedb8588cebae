"""Which notices are sent next, together with which, and what follows from an answer."""

from __future__ import annotations

from collections.abc import Collection, Iterator, Sequence
from dataclasses import dataclass
from datetime import datetime, timedelta
from enum import Enum

from hubguard.times import DAY_S, HOUR_S
from hubguard.watch.model import AlertRow, Change, Severity, Silence

AT_ONCE_MOST = 5
"""Maximum notices that a receiver of people gets one by one. If more are due, they come as one digest."""

TOGETHER_MOST = 50
"""Maximum notices in one request. With texts cut to their limits that stays far below the 512 KB that receivers take."""

FIRST_BACK_OFF_S = 10.0
"""Seconds until the second try. Each further one waits twice as long."""

LONGEST_BACK_OFF_S = 900.0
"""Maximum seconds between two tries, unless the receiver asks for more."""

LONGEST_RETRY_AFTER_S = HOUR_S
"""Maximum seconds for which a receiver can put off the next try."""

TRY_FOR_S = DAY_S
"""Seconds after which a notice that can't be delivered is given up."""


class Together(Enum):
    """What a receiver takes in one request."""

    ONE = "one"  # each notice by itself, since each opens and closes something of its own
    DIGEST = "digest"  # people read it: one by one as long as they are few
    ALL = "all"  # a list


@dataclass(frozen=True, slots=True)
class Notice:
    """One change of one alert for one receiver, which waits to be sent.

    ``tries`` were begun so far. ``reached``: one of them may have reached the receiver.
    """

    id: int
    receiver: str
    change: Change
    alert: AlertRow
    made_at: datetime
    due_at: datetime
    tries: int = 0
    reached: bool = False


@dataclass(frozen=True, slots=True)
class Result:
    """What came of one request to a receiver; ``said`` is one line for people, without a secret.

    ``again``: it is worth another try, after ``retry_after_s`` at the earliest if the receiver asked for that. ``reached``:
    the notices may have arrived, whatever was answered.
    """

    delivered: bool
    said: str
    again: bool = False
    retry_after_s: float | None = None
    reached: bool = True


def batches(
    notices: Sequence[Notice], silences: Collection[Silence], together: Together, now: datetime
) -> tuple[tuple[Notice, ...], ...]:
    """What is sent to one receiver now, request by request, the most urgent first, then the oldest.

    ``notices`` are all that wait for it. One about an alert of which an older notice still waits is not due, so that the
    two never overtake each other. A raised alert that is silenced waits for the end of the silence; that an alert is
    resolved is sent nevertheless, since it closes what the receiver has open.
    """
    due: list[Notice] = []
    earlier: set[tuple[str, str]] = set()
    for notice in sorted(notices, key=lambda notice: notice.id):
        key = (notice.alert.rule, notice.alert.subject)
        silent = notice.change is Change.RAISED and _silenced(notice.alert, silences, now)
        if notice.due_at <= now and not silent and key not in earlier:
            due.append(notice)
        earlier.add(key)
    order = list(Severity)
    due.sort(key=lambda notice: (order.index(notice.alert.severity), notice.id))
    if together is Together.ONE or (together is Together.DIGEST and len(due) <= AT_ONCE_MOST):
        return tuple((notice,) for notice in due)
    return tuple(tuple(due[start : start + TOGETHER_MOST]) for start in range(0, len(due), TOGETHER_MOST))


def heard_of(alerts: Sequence[AlertRow], silences: Collection[Silence], now: datetime) -> Iterator[AlertRow]:
    """Those that a receiver which forgets is reminded of."""
    return (alert for alert in alerts if not _silenced(alert, silences, now))


def _silenced(alert: AlertRow, silences: Collection[Silence], now: datetime) -> bool:
    return any(silence.covers(alert.rule, alert.subject, now) for silence in silences)


def back_off_s(tries: int) -> float:
    """Seconds from the try of that number (the first is 1) to the next."""
    # Bounded before it is a power: a notice may have been tried for a day.
    return min(LONGEST_BACK_OFF_S, FIRST_BACK_OFF_S * 2.0 ** min(tries - 1, 10))


def waits_since(notice: Notice, silences: Collection[Silence]) -> datetime:
    """Since when it has been wanted: since it was made, or since the last silence over it ended."""
    ends = (
        min(silence.until, silence.ended_at or silence.until)
        for silence in silences
        if silence.rule in ("", notice.alert.rule) and silence.subject in (None, notice.alert.subject)
    )
    return max((notice.made_at, *ends))


def next_try_at(notice: Notice, result: Result, silences: Collection[Silence], now: datetime) -> datetime | None:
    """When a ``notice`` whose newest try failed is tried again; None: it is given up. ``notice.tries`` counts that try."""
    waited_s = (now - waits_since(notice, silences)).total_seconds()
    if not result.again or waited_s >= TRY_FOR_S:
        return None
    asked_s = min(LONGEST_RETRY_AFTER_S, result.retry_after_s or 0.0)
    return now + timedelta(seconds=max(back_off_s(notice.tries), asked_s))
