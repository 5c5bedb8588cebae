"""What drift remembers: samples of what earlier versions wrote, and whatever else may stand there."""

from __future__ import annotations

import json
from datetime import datetime, timezone

import pytest

from hubguard.drift.model import Drift, DriftKind
from hubguard.drift.store import DriftMemory

NOW = datetime(2026, 3, 1, 12, 0, tzinfo=timezone.utc)

WRITTEN_BY_0_1 = """
{"drifts": [
  {"kind": "server-dead", "user": "ann", "server": "gpu", "subject": "", "expected": "ready", "observed": "pid 4711: gone",
   "since": "2026-03-01T11:00:00.250000+00:00", "seen_at": "2026-03-01T11:59:30+00:00",
   "started": "2026-03-01T08:00:00+00:00", "sightings": 7, "looks": 8, "missed": 1,
   "raised_at": "2026-03-01T11:00:30+00:00"},
  {"kind": "hub-route-missing", "user": null, "server": null, "subject": "", "expected": "the hub's own route /",
   "observed": "no route", "since": "2026-03-01T11:59:30+00:00", "seen_at": "2026-03-01T11:59:30+00:00", "started": null,
   "sightings": 1, "looks": 1, "missed": 0, "raised_at": null}],
 "ghosts": [["bob", "", "2026-03-01T09:00:00+00:00", "2026-03-01T11:30:00+00:00"],
            ["eve", "", null, "2026-03-01T11:31:00+00:00"]],
 "outlived": [["zed", "work", "2026-03-01T11:45:00+00:00", "pid 4712 lives on"]]}
"""


def at(hour: int, minute: int, second: float = 0.0) -> datetime:
    whole = int(second)
    return datetime(2026, 3, 1, hour, minute, whole, int((second - whole) * 1e6), tzinfo=timezone.utc)


REMEMBERED = DriftMemory(
    (
        Drift(
            DriftKind.SERVER_DEAD, "ann", "gpu", "ready", "pid 4711: gone", at(11, 0, 0.25), at(11, 59, 30),
            started=at(8, 0), sightings=7, looks=8, missed=1, raised_at=at(11, 0, 30),
        ),
        Drift(DriftKind.HUB_ROUTE_MISSING, None, None, "the hub's own route /", "no route", at(11, 59, 30), at(11, 59, 30)),
    ),
    {("bob", "", at(9, 0)): at(11, 30), ("eve", "", None): at(11, 31)},
    {("zed", "work"): (at(11, 45), "pid 4712 lives on")},
)  # fmt: skip


def test_what_version_0_1_wrote_is_read() -> None:
    assert DriftMemory.from_dict(json.loads(WRITTEN_BY_0_1), NOW) == REMEMBERED


def test_what_is_written_is_read_again_the_same() -> None:
    written = json.loads(json.dumps(REMEMBERED.to_dict()))
    assert DriftMemory.from_dict(written, NOW) == REMEMBERED


def test_words_are_shortened_and_times_of_ghosts_and_backends_never_lie_ahead() -> None:
    long = Drift(DriftKind.SERVER_DEAD, "ann", "", "e" * 500, "o" * 500, NOW, NOW)
    (drift,) = DriftMemory.from_dict(DriftMemory((long,)).to_dict(), NOW).drifts
    assert (drift.expected, drift.observed) == ("e" * 200, "o" * 200)
    earlier = DriftMemory.from_dict(REMEMBERED.to_dict(), at(10, 0))
    assert set(earlier.ghosts.values()) == {at(10, 0)}
    assert earlier.outlived == {("zed", "work"): (at(10, 0), "pid 4712 lives on")}


SAMPLE = json.loads(WRITTEN_BY_0_1)["drifts"][0]


@pytest.mark.parametrize("name", list(SAMPLE))
@pytest.mark.parametrize("value", [[1], {}, True, -1, 1.5, "\0", "2026-03-01T11:00:00", "9999-12-31T23:59:59-23:59"])
def test_a_row_that_cannot_be_read_is_left_out_and_its_neighbours_stay(name: str, value: object) -> None:
    if isinstance(value, str) and name in {"user", "server", "subject", "expected", "observed"}:
        value = 5
    rows = [SAMPLE, SAMPLE | {name: value}, {key: SAMPLE[key] for key in SAMPLE if key != name}, SAMPLE]
    memory = DriftMemory.from_dict({"drifts": rows, "ghosts": 3, "outlived": [None, [], ["a", "b", None, ""]]}, NOW)
    assert memory == DriftMemory(REMEMBERED.drifts[:1] * 2)


def test_no_more_than_a_thousand_are_read() -> None:
    assert len(DriftMemory.from_dict({"drifts": [SAMPLE] * 5000}, NOW).drifts) == 1000
