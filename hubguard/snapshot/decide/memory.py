"""What HubGuard remembers from one look to the next: values, and their way to JSON and back."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, field, fields, is_dataclass
from datetime import datetime
from typing import Any, TypeVar

from hubguard.snapshot.decide.feed import Awaited, Feed
from hubguard.snapshot.model import BrakeReason

T = TypeVar("T")

FEWEST_GONE = 10
"""Minimum number of users whose disappearance counts as a fall of the population, whatever their share."""

TURN_S = 3600.0
"""Seconds of a span. The number of users is compared with the highest of the last one to two spans."""


@dataclass(frozen=True, slots=True)
class Down:
    """Something hasn't answered since ``since``, in ``looks`` looks in a row."""

    since: datetime
    looks: int

    def is_outage(self, now: datetime, outage_s: float) -> bool:
        """Whether it is an outage by ``now``. One failed look never is: it may have been one slow answer."""
        return self.looks >= 2 and (now - self.since).total_seconds() >= outage_s


@dataclass(frozen=True, slots=True)
class Population:
    """How many users there were: the highest number since ``turned_at``, and of the span before that; None: unknown.

    ``shown`` is the number that people were last shown as too low, None while none is.
    """

    peak: int | None = None
    earlier: int | None = None
    turned_at: datetime | None = None
    shown: int | None = None

    @property
    def reference(self) -> int | None:
        """What the number of users is compared with."""
        return max((n for n in (self.peak, self.earlier) if n is not None), default=None)

    def without(self, deleted: int) -> Population:
        """The same after HubGuard has deleted ``deleted`` users."""
        peak, earlier, shown = (
            None if number is None else max(0, number - deleted) for number in (self.peak, self.earlier, self.shown)
        )
        return Population(peak, earlier, self.turned_at, shown)

    def accepted(self) -> Population:
        """The same after a person has accepted the number that was shown."""
        return self if self.shown is None else Population(self.shown, None, self.turned_at)

    def has_fallen(self, total: int, share: float) -> bool:
        """Whether ``total`` is lower than the reference by ``share`` of it, and by ten at least."""
        reference = self.reference
        gone = 0 if reference is None else reference - total
        return gone >= FEWEST_GONE and gone >= share * (reference or 0) - 1e-9

    def followed(self, total: int, now: datetime) -> Population:
        """The same after ``total`` was taken as it is: rises count at once, falls once two spans have passed."""
        if self.turned_at is None or now < self.turned_at:
            return Population(max(total, self.peak or 0), self.earlier, now)
        peak = max(total, self.peak or 0)
        if (now - self.turned_at).total_seconds() >= TURN_S:
            return Population(total, peak, now)
        return Population(peak, self.earlier, self.turned_at)


@dataclass(frozen=True, slots=True)
class Watch:
    """What HubGuard remembers from one look to the next; ``Watch()`` before the first.

    ``gap_s`` is the time between looks, as of the last one that the hub answered, and ``hub_seen_at`` the time of that.
    ``since`` is when each objection was first raised. ``cap_accepted``: a person has let the plan be larger than its cap.
    """

    looked_at: datetime | None = None
    gap_s: float = 0.0
    hub_seen_at: datetime | None = None
    generation: float = 0.0
    hub_down: Down | None = None
    proxy_down: Down | None = None
    clock_from: datetime | None = None
    resumed_at: datetime | None = None
    since: Mapping[BrakeReason, datetime] = field(default_factory=dict, hash=False)
    population: Population = field(default_factory=Population)
    cap_accepted: bool = False
    feed: Feed = field(default_factory=Feed)

    def to_dict(self) -> dict[str, object]:
        """The same as JSON can hold it."""
        return {part.name: _plain(getattr(self, part.name)) for part in fields(self)}

    @staticmethod
    def from_dict(data: Mapping[str, object]) -> Watch:
        """What :meth:`to_dict` returned, after JSON. Anything else is ``Watch()``: HubGuard begins to watch again."""
        try:
            return _watch(data)
        except (KeyError, TypeError, ValueError, AttributeError):
            return Watch()


def _plain(value: object) -> object:
    if isinstance(value, datetime):
        return value.isoformat()
    if is_dataclass(value) and not isinstance(value, type):
        return {part.name: _plain(getattr(value, part.name)) for part in fields(value)}
    if isinstance(value, Mapping):
        return {key.value: _plain(inner) for key, inner in value.items()}
    if isinstance(value, tuple):
        return [_plain(inner) for inner in value]
    return value


def _watch(data: Mapping[str, Any]) -> Watch:
    population, feed = data["population"], data["feed"]
    return Watch(
        looked_at=_at(data["looked_at"]),
        gap_s=_seconds(data["gap_s"]),
        hub_seen_at=_at(data["hub_seen_at"]),
        generation=_seconds(data["generation"]),
        hub_down=_read_down(data["hub_down"]),
        proxy_down=_read_down(data["proxy_down"]),
        clock_from=_at(data["clock_from"]),
        resumed_at=_at(data["resumed_at"]),
        since={BrakeReason(reason): _surely(at) for reason, at in data["since"].items()},
        population=Population(
            _count(population["peak"]),
            _count(population["earlier"]),
            _at(population["turned_at"]),
            _count(population["shown"]),
        ),
        cap_accepted=_is(bool, data["cap_accepted"]),
        feed=Feed(
            _seconds(feed["clock_s"]),
            tuple(_read_awaited(entry) for entry in feed["awaited"]),
            _at(feed["frozen_since"]),
            _count(feed["missed"]) or 0,
            _count(feed["clean"]) or 0,
        ),
    )


def _read_awaited(data: Mapping[str, Any]) -> Awaited:
    user, name, started = data["run"]
    return Awaited(
        (_is(str, user), _is(str, name), _at(started)),
        _at(data["stamp"]),
        _surely(data["seen_at"]),
        _seconds(data["since_s"]),
        None if data["taken_s"] is None else _seconds(data["taken_s"]),
        _is(bool, data["odd"]),
    )


def _read_down(data: Mapping[str, Any] | None) -> Down | None:
    return None if data is None else Down(_surely(data["since"]), _count(data["looks"]) or 0)


def _at(text: str | None) -> datetime | None:
    return None if text is None else _surely(text)


def _surely(text: str) -> datetime:
    at = datetime.fromisoformat(text)
    if at.tzinfo is None:
        raise ValueError("a time without its zone")
    return at


def _seconds(value: object) -> float:
    if isinstance(value, bool) or not isinstance(value, (int, float)) or not math.isfinite(value):
        raise ValueError("no number of seconds")
    return float(value)


def _count(value: object) -> int | None:
    if value is not None and (isinstance(value, bool) or not isinstance(value, int) or value < 0):
        raise ValueError("no count")
    return value


def _is(kind: type[T], value: object) -> T:
    if not isinstance(value, kind):
        raise ValueError(f"no {kind.__name__}")
    return value
