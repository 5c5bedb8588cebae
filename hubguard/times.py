"""Times as people write them, in forms, in requests and on the command line."""

from __future__ import annotations

import calendar
import re
from datetime import datetime, time, timedelta, timezone

_SECONDS = {"s": 1, "min": 60, "h": 3600, "d": 86400, "w": 7 * 86400}

_DATE = re.compile(r"\d{4}-\d\d-\d\d", re.ASCII)

_TIME = re.compile(r"\d{4}-\d\d-\d\d[T ]\d\d:\d\d(:\d\d(\.\d{3}(\d{3})?)?)?([Zz]|[+-]\d\d:\d\d)?", re.ASCII)
# Spelled out, since versions of Python differ in what else they take for a time.


def moment(text: str) -> datetime:
    """The time that ``text`` names, in UTC: ``2026-12-01T18:00``, with seconds and a zone if given (else UTC).

    A date alone stands for the last second of that day, so that what lasts until then lasts over the day. Raises ValueError.
    """
    if _DATE.fullmatch(text):
        return datetime.combine(datetime.fromisoformat(text), time(23, 59, 59), timezone.utc)
    if not _TIME.fullmatch(text):
        raise ValueError(f"{text!r} is no time such as 2026-12-01 or 2026-12-01T18:00")
    at = datetime.fromisoformat(re.sub("[Zz]$", "+00:00", text))
    try:
        return at.replace(tzinfo=timezone.utc) if at.tzinfo is None else at.astimezone(timezone.utc)
    except OverflowError:
        raise ValueError(f"{text!r} lies beyond the years that can be counted") from None


def span_s(text: str) -> float:
    """The seconds that ``text`` names: a number with one of s, min, h, d, w behind it. Raises ValueError."""
    match = re.fullmatch(r"(\d{1,9}(?:\.\d{1,3})?) ?(s|min|h|d|w)", text, re.ASCII)
    if match is None:
        raise ValueError(f"{text!r} is no span such as 90min, 12h, 7d or 2w")
    return float(match[1]) * _SECONDS[match[2]]


def ago_s(text: str, now: datetime) -> float:
    """The seconds from what ``text`` names to ``now``: a span such as ``180d`` or ``6months``, or a date (its start, UTC).

    A number needs its unit, except 0. Months are the calendar's. Raises ValueError, also for a date that is still to come.
    """
    if re.fullmatch(r"0+", text, re.ASCII):
        return 0.0
    if match := re.fullmatch(r"(\d{1,4}) ?months?", text, re.ASCII):
        return (now - _months_before(now, int(match[1]))).total_seconds()
    if _DATE.fullmatch(text):
        seconds = (now - _start(text)).total_seconds()
        if seconds < 0:
            raise ValueError(f"{text!r} is still to come")
        return float(int(seconds))
    return span_s(re.sub("m$", "min", text))


def point(text: str, now: datetime) -> datetime:
    """The moment that ``text`` names: a date (its start, UTC), a time such as ``2026-06-01T12:00``, or a span before ``now``.

    Raises ValueError.
    """
    if _DATE.fullmatch(text):
        return _start(text)
    if _TIME.fullmatch(text):
        return moment(text)
    try:
        return now - timedelta(seconds=ago_s(text, now))
    except OverflowError:
        raise ValueError(f"{text!r} lies beyond the years that can be counted") from None


def _start(text: str) -> datetime:
    return datetime.combine(datetime.fromisoformat(text), time(), timezone.utc)


def _months_before(at: datetime, months: int) -> datetime:
    years, month = divmod(at.year * 12 + at.month - 1 - months, 12)
    last = calendar.monthrange(years, month + 1)[1]
    return at.replace(year=years, month=month + 1, day=min(at.day, last))


HOUR_S = 3600.0


DAY_S = 86400.0


YEAR_S = 366 * DAY_S
