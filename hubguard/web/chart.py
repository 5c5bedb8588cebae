"""A chart as plain values: where lines, gaps, limits and ticks lie. The template only writes it down. It knows no feature."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from datetime import datetime, timezone
from enum import Enum
from itertools import groupby, pairwise
from typing import NamedTuple

WIDTH = 1000
"""Units that the plot is wide, in its own measure: it is stretched to whatever the page has."""

HEIGHT = 120
"""Pixels that the plot is high."""

MOST_POINTS = 180
"""Maximum points that a line is drawn through: more wouldn't be seen on a page."""

MOST_ROWS = 12
"""Maximum rows in the table behind a chart."""

MOST_TICKS = 5
"""Maximum times on the axis: on a phone no more can be read."""

LARGEST = 1e300
"""What is beyond, to either side, is drawn there."""

SMALLEST = 1e-9
"""A chart whose values are all nearer to 0 is drawn as one of zeros."""

_TIME_STEPS_S = tuple(
    float(step)
    for step in (
        *(1, 2, 5, 10, 15, 30, 60, 120, 300, 600, 900, 1800, 3600, 7200, 10800, 21600, 43200),
        *(86400 * days for days in (1, 2, 7, 14, 28, 56, 91, 182, 364)),
    )
)
"""Seconds between ticks of time that are easy to read."""

_LAST = datetime(9999, 1, 1, tzinfo=timezone.utc).timestamp()


class Point(NamedTuple):
    """A value over one step of time, which begins ``at`` (unix time): the lowest, the mean and the highest."""

    at: float
    low: float
    mean: float
    high: float


class Scale(str, Enum):
    """Which numbers are round."""

    DECIMAL = "decimal"  # 1, 2, 5, 10
    WHOLE = "whole"  # the same, never below 1
    BINARY = "binary"  # 1, 2, 4 … 512, of bytes, KiB, MiB
    TIME = "time"  # seconds, then whole minutes, hours and days


@dataclass(frozen=True, slots=True)
class Span:
    """A time to mark, from ``begin`` to ``end`` (unix time), and what it is."""

    begin: float
    end: float
    label: str


@dataclass(frozen=True, slots=True)
class Limit:
    """A value to draw a line at, and what it is."""

    value: float
    label: str = "limit"


class Tick(NamedTuple):
    """A mark on an axis: ``place`` in percent of the width, or in pixels from the top."""

    place: float
    label: str
    anchor: str = "middle"


class Mark(NamedTuple):
    """A marked span in percent of the width."""

    left: float
    width: float
    label: str


class Row(NamedTuple):
    """A row of the table: from when, and the three values in words; None if nothing was measured in that time."""

    at: datetime
    values: tuple[str, str, str] | None


@dataclass(frozen=True, slots=True)
class Chart:
    """A chart, laid out. ``line`` is the mean and ``band`` lies between lowest and highest, both as SVG paths over a plot of
    WIDTH by HEIGHT, "" if there is nothing to draw.

    ``limit`` is the place of the limit's line from the top and its label. ``empty``: nothing was measured in that time.
    """

    title: str
    description: str
    line: str
    band: str
    marks: tuple[Mark, ...]
    limit: Tick | None
    times: tuple[Tick, ...]
    values: tuple[Tick, ...]
    rows: tuple[Row, ...]
    empty: bool


def lay_out(
    title: str,
    points: Iterable[Point],
    since: float,
    until: float,
    say: Callable[[float], str],
    *,
    gap_s: float,
    scale: Scale = Scale.DECIMAL,
    limit: Limit | None = None,
    spans: Sequence[Span] = (),
) -> Chart:
    """The chart of ``points`` from ``since`` to ``until`` (unix time); ``say`` puts a value into words, with its unit.

    Where two points are more than ``gap_s`` seconds apart, data is missing, and the line is broken. Points outside the time,
    and those that aren't finite, are left out.
    """
    since = min(max(0.0, since), _LAST - 1)
    until = min(max(since + 1, until), _LAST)
    known = _known(points, since, until)
    if limit is not None and not math.isfinite(limit.value):
        limit = None
    runs = thin(split(known, gap_s), since, until)
    low, high, ticks = value_axis(known, limit, scale)

    def x_of(at: float) -> int:
        return round((at - since) / (until - since) * WIDTH)

    def y_of(value: float) -> int:
        return round((high - min(max(value, low), high)) / (high - low) * HEIGHT)

    return Chart(
        title,
        _describe(known, limit, spans, since, until, say),
        "".join(_line([(x_of(point.at), y_of(point.mean)) for point in run]) for run in runs),
        "".join(
            _outline(
                [(x_of(point.at), y_of(point.high)) for point in run],
                [(x_of(point.at), y_of(point.low)) for point in run],
            )
            for run in runs
        ),
        tuple(_marks(spans, since, until)),
        None if limit is None else Tick(y_of(limit.value), f"{limit.label} {say(limit.value)}"),
        time_axis(since, until),
        tuple(Tick(y_of(value), say(value)) for value in ticks),
        _rows(known, since, until, say) if known else (),
        empty=not known,
    )


def _known(points: Iterable[Point], since: float, until: float) -> tuple[Point, ...]:
    """Those that can be drawn, by time; of two at one moment the later one."""
    by_time = {
        point.at: Point(point.at, *(min(max(value, -LARGEST), LARGEST) for value in point[1:]))
        for point in points
        if since <= point.at <= until and all(map(math.isfinite, point))
    }
    return tuple(by_time[at] for at in sorted(by_time))


def thin(
    runs: Sequence[Sequence[Point]], since: float, until: float, most: int = MOST_POINTS
) -> tuple[tuple[Point, ...], ...]:
    """``runs`` with their points merged over equal parts of the time: at most ``most`` points, or one for each run."""
    if sum(map(len, runs)) <= most:
        return tuple(map(tuple, runs))
    parts = max(1, most - len(runs))

    def part_of(point: Point) -> int:
        return math.floor((point.at - since) / (until - since) * parts)

    return tuple(tuple(merge(tuple(some)) for _, some in groupby(run, part_of)) for run in runs)


def merge(points: Sequence[Point]) -> Point:
    """One point for all of them: lowest, mean and highest, from the first on."""
    return Point(
        points[0].at,
        min(point.low for point in points),
        math.fsum(point.mean / len(points) for point in points),
        max(point.high for point in points),
    )


def split(points: Sequence[Point], gap_s: float) -> list[list[Point]]:
    """``points``, oldest first, as runs without a gap of more than ``gap_s`` seconds."""
    runs: list[list[Point]] = [[points[0]]] if points else []
    for before, point in pairwise(points):
        if point.at - before.at > gap_s:
            runs.append([])
        runs[-1].append(point)
    return runs


# -- axes -----------------------------------------------------------------------------------------------------------


def value_axis(points: Sequence[Point], limit: Limit | None, scale: Scale) -> tuple[float, float, tuple[float, ...]]:
    """(lowest, highest, round numbers between) of an axis on which every point, the limit and 0 lie."""
    values = [0.0, *(point.low for point in points), *(point.high for point in points)]
    if limit is not None:
        values.append(min(max(limit.value, -LARGEST), LARGEST))
    low, high = min(values), max(values)
    if max(-low, high) < SMALLEST:
        low, high = 0.0, 1.0
    step = round_step((high - low) / 3, scale)
    first, last = math.floor(low / step), math.ceil(high / step)
    return first * step, last * step, tuple(number * step for number in range(first, last + 1))


def round_step(least: float, scale: Scale) -> float:
    """The smallest round number of that ``scale`` that is ``least`` or more; ``least`` is above 0."""
    if scale is Scale.WHOLE:
        return max(1.0, _decimal(least))
    if scale is Scale.TIME and least > 1:
        return next((step for step in _TIME_STEPS_S if step >= least), 86400 * _decimal(least / 86400))
    if scale is Scale.BINARY:
        return 2.0 ** math.ceil(math.log2(least))
    return _decimal(least)


def _decimal(least: float) -> float:
    unit = 10.0 ** math.floor(math.log10(least))
    return next((unit * digit for digit in (1, 2, 5) if unit * digit >= least), unit * 10)


def time_axis(since: float, until: float) -> tuple[Tick, ...]:
    """Ticks on whole minutes, hours or days of UTC, at most MOST_TICKS, in percent of the width."""
    span = until - since
    step = round_step(span / MOST_TICKS, Scale.TIME)
    first = math.ceil(since / step)
    ticks: list[Tick] = []
    for number in range(first, first + MOST_TICKS):
        at = number * step
        if at > until:
            break
        place = round(100 * (at - since) / span, 1)
        anchor = "start" if place < 8 else "end" if place > 92 else "middle"
        ticks.append(Tick(place, _time_words(at, step, span), anchor))
    return tuple(ticks)


def _time_words(at: float, step: float, span: float) -> str:
    moment = datetime.fromtimestamp(at, timezone.utc)
    day = f"{moment.day} {moment:%b}"
    if step >= 86400:
        return f"{day} {moment.year}" if span > 300 * 86400 else day
    if at % 86400 == 0:
        return day
    return f"{moment:%H:%M:%S}" if step < 60 else f"{moment:%H:%M}"


# -- paths ----------------------------------------------------------------------------------------------------------


def _line(places: Sequence[tuple[int, int]]) -> str:
    """A path through ``places``; a single one is a dot, drawn by the round end of a line without length."""
    (x, y), *rest = places
    return f"M{x} {y}" + ("L" + " ".join(f"{x} {y}" for x, y in rest) if rest else "h0")


def _outline(above: Sequence[tuple[int, int]], below: Sequence[tuple[int, int]]) -> str:
    """The area between two lines, "" if it has none."""
    if above == below or len(above) == 1:
        return ""
    around = [*above, *reversed(below)]
    return "M" + "L".join(f"{x} {y}" for x, y in around) + "Z"


def _marks(spans: Iterable[Span], since: float, until: float) -> Iterable[Mark]:
    for span in spans:
        begin, end = max(span.begin, since), min(span.end, until)
        if begin <= end:
            # A moment is still to be seen.
            width = max(0.4, 100 * (end - begin) / (until - since))
            left = min(100 * (begin - since) / (until - since), 100 - width)
            yield Mark(round(left, 2), round(width, 2), span.label)


# -- words ----------------------------------------------------------------------------------------------------------


def _describe(
    points: Sequence[Point],
    limit: Limit | None,
    spans: Sequence[Span],
    since: float,
    until: float,
    say: Callable[[float], str],
) -> str:
    """What who doesn't see the chart should know of it."""
    parts = [f"From {_stamp(since)} to {_stamp(until)} UTC."]
    if points:
        low, high = min(point.low for point in points), max(point.high for point in points)
        parts.append(f"Lowest {say(low)}, highest {say(high)}, last {say(points[-1].mean)}.")
    else:
        parts.append("Nothing was measured in this time.")
    if limit is not None:
        label = limit.label[:1].upper() + limit.label[1:]
        parts.append(f"{label} {say(limit.value)}.")
    for span in spans:
        if span.begin <= until and span.end >= since:
            label = span.label[:1].upper() + span.label[1:]
            parts.append(f"{label} from {_stamp(max(span.begin, since))} to {_stamp(min(span.end, until))} UTC.")
    return " ".join(parts)


def _rows(points: Sequence[Point], since: float, until: float, say: Callable[[float], str]) -> tuple[Row, ...]:
    """The table: equal parts of the time on round times, those without a value too."""
    step = round_step((until - since) / (MOST_ROWS - 1), Scale.TIME)
    parts: dict[int, list[Point]] = {number: [] for number in range(int(since // step), int(until // step) + 1)}
    for point in points:
        parts[int(point.at // step)].append(point)
    rows = []
    for number, some in parts.items():
        one = merge(some) if some else None
        words = None if one is None else (say(one.low), say(one.mean), say(one.high))
        rows.append(Row(datetime.fromtimestamp(max(since, number * step), timezone.utc), words))
    return tuple(rows)


def _stamp(at: float) -> str:
    return f"{datetime.fromtimestamp(at, timezone.utc):%Y-%m-%d %H:%M}"
