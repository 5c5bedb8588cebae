"""Charts as values: everything lies in the plot, gaps stay gaps, and axes are readable, whatever is measured."""

from __future__ import annotations

import math
import re
from datetime import datetime, timezone
from html.parser import HTMLParser

import pytest
from hypothesis import given
from hypothesis import strategies as st
from jinja2 import Environment, FileSystemLoader, StrictUndefined

from hubguard.dashboard.routes import HERE
from hubguard.web.chart import (
    HEIGHT,
    MOST_POINTS,
    MOST_ROWS,
    MOST_TICKS,
    WIDTH,
    Chart,
    Limit,
    Point,
    Scale,
    Span,
    lay_out,
    round_step,
    split,
    thin,
    time_axis,
)

NOON = datetime(2026, 12, 1, 12, tzinfo=timezone.utc).timestamp()
HOUR = 3600.0


def at(minute: float, value: float) -> Point:
    return Point(NOON + 60 * minute, value, value, value)


def chart_of(
    *points: Point, scale: Scale = Scale.DECIMAL, limit: Limit | None = None, spans: tuple[Span, ...] = ()
) -> Chart:
    """A chart of the hour from noon, measured every minute."""
    return lay_out(
        "Hub's memory", points, NOON, NOON + HOUR, "{:.3g}".format, gap_s=90, scale=scale, limit=limit, spans=spans
    )


def places(path: str) -> list[tuple[int, int]]:
    """The places that a path leads through."""
    return [(int(x), int(y)) for x, y in re.findall(r"(-?\d+) (-?\d+)", path)]


def runs(path: str) -> list[list[tuple[int, int]]]:
    return [places(run) for run in path.split("M")[1:]]


# -- where things lie -----------------------------------------------------------------------------------------------


def test_a_rising_line_leads_from_bottom_left_to_top_right() -> None:
    chart = chart_of(*(at(minute, minute) for minute in range(61)))
    (line,) = runs(chart.line)
    assert line[0] == (0, HEIGHT)
    assert line[-1] == (WIDTH, 0)
    assert len(line) == 61


def test_missing_data_is_a_gap_and_never_a_zero() -> None:
    chart = chart_of(at(0, 5), at(1, 5), at(20, 5), at(21, 5))
    first, second = runs(chart.line)
    assert first[-1][0] < second[0][0]
    assert {y for _, y in first + second} == {first[0][1]}
    assert HEIGHT not in {y for _, y in first + second}


def test_one_missed_minute_is_a_gap_and_a_late_reading_is_none() -> None:
    assert len(runs(chart_of(at(0, 1), at(1, 1), at(3, 1)).line)) == 2
    assert len(runs(chart_of(at(0, 1), at(1, 1), at(2.4, 1)).line)) == 1


def test_a_single_reading_is_a_dot() -> None:
    chart = chart_of(at(30, 2))
    assert re.fullmatch(r"M500 \d+h0", chart.line)
    assert chart.band == ""


def test_nothing_measured_is_said_and_not_drawn() -> None:
    chart = chart_of()
    assert (chart.empty, chart.line, chart.band, chart.rows) == (True, "", "", ())
    assert "Nothing was measured" in chart.description


def test_the_band_lies_between_lowest_and_highest() -> None:
    chart = chart_of(Point(NOON, 1, 2, 3), Point(NOON + 60, 1, 2, 3), scale=Scale.WHOLE)
    assert places(chart.band) == [(0, 0), (17, 0), (17, 80), (0, 80)]
    assert places(chart.line) == [(0, 40), (17, 40)]


def test_readings_that_are_all_one_value_have_no_band() -> None:
    assert chart_of(at(0, 3), at(1, 3)).band == ""


def test_the_limit_lies_on_the_axis_even_if_the_values_are_far_below() -> None:
    chart = chart_of(at(0, 1), limit=Limit(100.0, "limit"))
    assert chart.limit is not None
    assert chart.limit.place == 0
    assert chart.limit.label == "limit 100"
    assert places(chart.line)[0][1] == HEIGHT - 1


def test_a_marked_time_is_cut_to_the_chart_and_a_moment_is_still_seen() -> None:
    spans = (Span(NOON - HOUR, NOON + HOUR / 4, "firing"), Span(NOON + HOUR, NOON + HOUR, "firing"), Span(0, 1, "old"))
    first, moment = chart_of(at(0, 1), spans=spans).marks
    assert (first.left, first.width) == (0, 25)
    assert moment.width > 0
    assert moment.left + moment.width <= 100


def test_what_isnt_a_number_is_left_out() -> None:
    chart = chart_of(at(0, math.nan), at(1, math.inf), at(2, 4), limit=Limit(math.nan))
    assert len(places(chart.line)) == 1
    assert chart.limit is None


FLOATS = st.floats(allow_nan=True, allow_infinity=True)
POINTS = st.lists(
    st.builds(
        lambda at, values: Point(at, *sorted(values)),
        st.floats(NOON - 100, NOON + HOUR + 100),
        st.tuples(FLOATS, FLOATS, FLOATS),
    ),
    max_size=400,
)


@given(points=POINTS, limit=st.none() | FLOATS, scale=st.sampled_from(Scale))
def test_everything_lies_in_the_plot_and_time_runs_to_the_right(
    points: list[Point], limit: float | None, scale: Scale
) -> None:
    chart = chart_of(*points, scale=scale, limit=None if limit is None else Limit(limit))
    for path in (chart.line, chart.band):
        assert "nan" not in path
        assert "e" not in path
        assert all(0 <= x <= WIDTH and 0 <= y <= HEIGHT for x, y in places(path))
    for run in runs(chart.line):
        assert [x for x, _ in run] == sorted(x for x, _ in run)
    assert 2 <= len(chart.values) <= 6
    assert all(0 <= tick.place <= HEIGHT for tick in chart.values)
    assert len({tick.place for tick in chart.values}) == len(chart.values)
    assert chart.limit is None or 0 <= chart.limit.place <= HEIGHT
    assert len(chart.rows) <= MOST_ROWS + 1


@given(POINTS, st.floats(1, 600))
def test_a_thinned_line_keeps_its_gaps_and_its_extremes(points: list[Point], gap_s: float) -> None:
    known = sorted({point.at: point for point in points if all(map(math.isfinite, point))}.values())
    whole = split(known, gap_s)
    few = thin(whole, NOON - 100, NOON + HOUR + 100, 20)
    assert len(few) == len(whole)
    assert sum(map(len, few)) <= max(20, len(whole) + 1)
    for run, thinned in zip(whole, few, strict=True):
        assert thinned[0].at == run[0].at
        assert min(point.low for point in thinned) == min(point.low for point in run)
        assert max(point.high for point in thinned) == max(point.high for point in run)


def test_a_month_of_readings_is_drawn_through_few_points() -> None:
    points = [Point(NOON + i, i % 7, i % 7 + 1, i % 7 + 2) for i in range(3600)]
    chart = lay_out("x", points, NOON, NOON + HOUR, str, gap_s=5)
    assert MOST_POINTS / 2 < len(places(chart.line)) <= MOST_POINTS


# -- axes -----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("least", "scale", "step"),
    [
        (0.3, Scale.DECIMAL, 0.5),
        (0.3, Scale.WHOLE, 1),
        (7, Scale.WHOLE, 10),
        (20, Scale.TIME, 30),
        (0.03, Scale.TIME, 0.05),
        (4000, Scale.TIME, 7200),
        (0.9 * 2**30, Scale.BINARY, 2**30),
        (1.1 * 2**30, Scale.BINARY, 2 * 2**30),
        (300 * 2**20, Scale.BINARY, 512 * 2**20),
    ],
)
def test_steps_are_round_in_what_is_counted(least: float, scale: Scale, step: float) -> None:
    assert round_step(least, scale) == pytest.approx(step)


@pytest.mark.parametrize(
    ("span_s", "labels"),
    [
        (3 * HOUR, ["12:00", "13:00", "14:00", "15:00"]),
        (300, ["12:00", "12:01", "12:02", "12:03", "12:04"]),
        (24 * HOUR, ["12:00", "18:00", "2 Dec", "06:00", "12:00"]),
        (7 * 24 * HOUR, ["3 Dec", "5 Dec", "7 Dec"]),
        (400 * 24 * HOUR, ["21 Jan 2027", "22 Apr 2027", "22 Jul 2027", "21 Oct 2027"]),
    ],
)
def test_times_stand_on_whole_minutes_hours_and_days(span_s: float, labels: list[str]) -> None:
    assert [tick.label for tick in time_axis(NOON, NOON + span_s)] == labels


@given(st.floats(0, 2e11), st.floats(1, 1e9))
def test_an_axis_of_any_time_has_few_ticks_within_it(since: float, span: float) -> None:
    ticks = lay_out("x", (), since, since + span, str, gap_s=1).times
    assert len(ticks) <= MOST_TICKS
    assert all(0 <= tick.place <= 100 for tick in ticks)


# -- what it says ---------------------------------------------------------------------------------------------------


def test_what_the_chart_shows_is_said_in_words() -> None:
    chart = chart_of(at(0, 1), at(5, 3), limit=Limit(2, "limit"), spans=(Span(NOON + 300, NOON + 600, "firing"),))
    assert chart.description == (
        "From 2026-12-01 12:00 to 2026-12-01 13:00 UTC. Lowest 1, highest 3, last 3. Limit 2. "
        "Firing from 2026-12-01 12:05 to 2026-12-01 12:10 UTC."
    )


def test_the_table_has_round_times_and_says_where_nothing_was_measured() -> None:
    chart = chart_of(at(0, 1), at(1, 3), at(31, 5))
    assert len(chart.rows) <= MOST_ROWS + 1
    assert chart.rows[0].values == ("1", "2", "3")
    assert chart.rows[1].values is None
    assert all(row.at.minute % 10 == 0 for row in chart.rows)


HOSTILE = '"><script>alert(1)</script><s>&amp;{{7*7}}'


class Texts(HTMLParser):
    def __init__(self, html: str) -> None:
        super().__init__()
        self.tags: set[str] = set()
        self.attributes: set[str] = set()
        self.text = ""
        self.feed(html)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.add(tag)
        self.attributes |= {name for name, _ in attrs}

    def handle_data(self, data: str) -> None:
        self.text += data


def test_a_title_that_wants_to_be_markup_stays_text() -> None:
    chart = lay_out(
        HOSTILE,
        [at(0, 1), at(1, 2)],
        NOON,
        NOON + HOUR,
        lambda value: HOSTILE,
        gap_s=90,
        limit=Limit(1, HOSTILE),
        spans=(Span(NOON, NOON + 60, HOSTILE),),
    )
    env = Environment(loader=FileSystemLoader(HERE / "templates"), autoescape=True, undefined=StrictUndefined)
    html = env.from_string('{% from "chart.html" import draw %}{{ draw(chart, "c1") }}').render(chart=chart)
    page = Texts(html)
    assert not {"script", "s", "style"} & page.tags
    assert not {name for name in page.attributes if name == "style" or name.startswith("on")}
    assert HOSTILE in page.text
    assert "49" not in re.sub(r"\d{3,}", "", page.text)
    assert {"title", "desc", "table", "details"} <= page.tags
