"""Dataclasses as JSON and back, strictly."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass, field
from datetime import datetime, timedelta, timezone
from enum import Enum
from typing import Any

import pytest

from hubguard import wire


class Colour(str, Enum):
    RED = "red"
    BLUE = "blue"


@dataclass(frozen=True, slots=True)
class Part:
    name: str
    at: datetime | None = None
    size: float = 0.0
    on: bool = False


@dataclass(frozen=True, slots=True)
class Thing:
    parts: tuple[Part, ...]
    counts: Mapping[Colour, int] = field(hash=False, default_factory=dict)

    @property
    def total(self) -> int:
        return len(self.parts)


@dataclass(frozen=True, slots=True, kw_only=True)
class ThingShape(Thing):
    total: int = field()
    sentence: str


AT = datetime(2026, 12, 1, 18, 0, tzinfo=timezone.utc)


def test_a_value_comes_back_as_it_was() -> None:
    thing = Thing((Part("a\ud800 ż", AT + timedelta(microseconds=5), 1.5, on=True), Part("")), {Colour.RED: 2**70})

    assert wire.read(Thing, json.loads(json.dumps(wire.to_plain(thing))), "thing") == thing


def test_times_are_in_utc_with_a_z_whatever_their_zone() -> None:
    ahead = AT.astimezone(timezone(timedelta(hours=2)))

    assert wire.to_plain(Part("a", ahead))["at"] == "2026-12-01T18:00:00Z"
    for text in ("2026-12-01T18:00:00Z", "2026-12-01T20:00:00+02:00", "2026-12-01T18:00:00+00:00"):
        at = wire.read(Part, {"name": "a", "at": text}, "part").at
        assert at == AT
        assert at is not None
        assert at.utcoffset() == timedelta(0)


def test_whole_numbers_count_as_numbers() -> None:
    size = wire.read(Part, {"name": "a", "size": 2}, "part").size

    assert (size, type(size)) == (2.0, float)


@pytest.mark.parametrize(
    ("value", "says"),
    [
        (None, "thing: must be an object, not None"),
        ([], "thing: must be an object, not []"),
        ({}, "thing.parts: is missing"),
        ({"parts": {}}, "thing.parts: must be a list, not {}"),
        ({"parts": "ab"}, "thing.parts: must be a list, not 'ab'"),
        ({"parts": [], "more": 1}, "thing.more: is unknown"),
        ({"parts": [{"name": "a"}, {"name": 5}]}, "thing.parts[1].name: must be a text, not 5"),
        ({"parts": [{"name": "a", "at": 5}]}, "thing.parts[0].at: must be a time, not 5"),
        ({"parts": [{"name": "a", "at": "5"}]}, "thing.parts[0].at: must be a time such as"),
        ({"parts": [{"name": "a", "at": "2026-12-01T18:00:00"}]}, "thing.parts[0].at: must be a time with its zone"),
        ({"parts": [{"name": "a", "size": "1"}]}, "thing.parts[0].size: must be a number, not '1'"),
        ({"parts": [{"name": "a", "size": True}]}, "thing.parts[0].size: must be a number, not True"),
        ({"parts": [{"name": "a", "size": float("inf")}]}, "thing.parts[0].size: must be a finite number, not inf"),
        ({"parts": [{"name": "a", "on": 1}]}, "thing.parts[0].on: must be true or false, not 1"),
        ({"parts": [], "counts": []}, "thing.counts: must be an object, not []"),
        ({"parts": [], "counts": {"red": 1.0}}, "thing.counts.red: must be a whole number, not 1.0"),
        ({"parts": [], "counts": {"red": True}}, "thing.counts.red: must be a whole number, not True"),
        ({"parts": [], "counts": {"pink": 1}}, "thing.counts.pink: must be one of 'red', 'blue', not 'pink'"),
        ({"parts": ["x" * 99]}, f"thing.parts[0]: must be an object, not '{'x' * 59}…"),
    ],
)
def test_what_is_wrong_is_said_in_one_line_that_names_the_field(value: Any, says: str) -> None:
    with pytest.raises(wire.Malformed) as refused:
        wire.read(Thing, value, "thing")
    assert str(refused.value).startswith(says)
    assert "\n" not in str(refused.value)


def test_a_shape_has_the_fields_of_its_noun_and_words_besides() -> None:
    thing = Thing((Part("a"),))

    shape = wire.extended(ThingShape, thing, total=thing.total, sentence="One part.")

    assert wire.to_plain(shape) == {
        "parts": [{"name": "a", "at": None, "size": 0.0, "on": False}],
        "counts": {},
        "total": 1,
        "sentence": "One part.",
    }
    assert wire.extended(Thing, shape) == thing
