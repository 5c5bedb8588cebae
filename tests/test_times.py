"""Times as people write them."""

from __future__ import annotations

from datetime import datetime, timezone

import pytest

from hubguard.times import DAY_S, ago_s

NOW = datetime(2026, 8, 31, 12, tzinfo=timezone.utc)


@pytest.mark.parametrize(
    ("text", "seconds"),
    [
        ("0", 0),
        ("90s", 90),
        ("5m", 300),
        ("5min", 300),
        ("1.5 h", 5400),
        ("180d", 180 * DAY_S),
        ("26w", 182 * DAY_S),
        ("6months", 184 * DAY_S),  # the last of February
        ("1 month", 31 * DAY_S),
        ("12months", 365 * DAY_S),
        ("2026-08-30", 1.5 * DAY_S),
        ("2026-08-31", 0.5 * DAY_S),
    ],
)
def test_how_long_ago_is_a_span_with_its_unit_or_a_date(text: str, seconds: float) -> None:
    assert ago_s(text, NOW) == seconds


@pytest.mark.parametrize("text", ["180", "1", "0.5", "-1d", "", "1y", "2026-09-01", "2026-02-30", "٣d"])
def test_what_has_no_unit_or_is_no_time_past_is_refused(text: str) -> None:
    with pytest.raises(ValueError, match=r"."):
        ago_s(text, NOW)
