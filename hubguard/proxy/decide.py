"""How the proxy stands, by what a route of HubGuard's own, the canary, shows: there, wiped, gone, hanging or half deaf."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from datetime import datetime, timedelta
from enum import Enum

from hubguard.model import Key, Route
from hubguard.proxy.model import ProxyWatchStatus, WatchState

IN_A_ROW = 2
"""So many timeouts are a hang, and so many failures of the public port make it deaf: one may be a hiccup."""

WINDOWS = 1000
"""So many of the last restores are remembered: one an hour is six weeks of them."""

SAME_START = timedelta(seconds=2)
"""Two readings of one process's start differ by less: the system counts it from its own boot, in ticks."""


class Word(str, Enum):
    """What came of looking for the canary."""

    THERE = "there"
    MISSING = "missing"  # the API answers, and has no such route
    NO_ANSWER = "no-answer"  # it takes no connection, or ended it
    TIMEOUT = "timeout"
    UNUSABLE = "unusable"  # it answers, but not as a proxy that knows our token


@dataclass(frozen=True, slots=True)
class Sighting:
    """One look. ``detail`` says more of what isn't THERE. ``public`` is whether the public port answers, None: not tried.

    ``fresh``: a connection had ended since the last look. ``started_at`` is when the proxy was started, None: not known.
    """

    word: Word
    detail: str = ""
    public: bool | None = None
    fresh: bool = False
    started_at: datetime | None = None


@dataclass(frozen=True, slots=True)
class Watched:
    """What is known of the proxy by now. ``status`` is for all to see.

    ``there_at`` is when the canary was last seen. ``lost_from``: the table was lost at some time since then, and isn't known
    to be whole again; None otherwise. ``restores`` are the times (from, to), oldest first, in which lost tables were filled
    again. ``timeouts`` and ``deaf`` count looks in a row.
    """

    status: ProxyWatchStatus = field(default_factory=lambda: ProxyWatchStatus(WatchState.STARTING))
    there_at: datetime | None = None
    lost_from: datetime | None = None
    restores: tuple[tuple[datetime, datetime], ...] = ()
    timeouts: int = 0
    deaf: int = 0

    def windows(self, now: datetime) -> tuple[tuple[datetime, datetime], ...]:
        """``restores``, and the one that is under way."""
        return self.restores if self.lost_from is None else (*self.restores, (self.lost_from, now))


def step(before: Watched, seen: Sighting, now: datetime) -> Watched:
    """What is known after that look at ``now``. A canary that was never seen before can't be lost."""
    timeouts = before.timeouts + 1 if seen.word is Word.TIMEOUT else 0
    deaf = before.deaf if seen.public is None else 0 if seen.public else before.deaf + 1
    after = replace(before, timeouts=timeouts, deaf=deaf)
    if seen.word is Word.NO_ANSWER:
        return _become(after, WatchState.GONE, f"The proxy's API takes no connections ({seen.detail}).", now)
    if seen.word is Word.UNUSABLE:
        return _become(after, WatchState.OFF, seen.detail, now)
    if seen.word is Word.TIMEOUT:
        if timeouts < IN_A_ROW:
            return after
        why = f"The proxy's API takes connections and doesn't answer ({seen.detail})."
        return _become(after, WatchState.HANGS, why, now)
    if seen.word is Word.MISSING:
        return after if before.there_at is None else _lost(after, now)
    restarted = _restarted(before, seen)
    started_at = seen.started_at or before.status.proxy_started_at
    after = replace(after, there_at=now, status=replace(after.status, proxy_started_at=started_at))
    if after.lost_from is not None:
        return _become(after, WatchState.WIPED, _FILLING, now)
    if deaf >= IN_A_ROW:
        why = "The proxy's API answers, and its public port doesn't: nobody reaches hub or servers through it."
        return _become(after, WatchState.DEAF, why, now)
    if deaf:
        return after
    why = "It was restarted, and has kept its table." if restarted else ""
    if before.status.state is WatchState.FINE and not why:
        return after
    return _become(after, WatchState.FINE, why, now)


def missing(table: Mapping[str, Route], expected: Mapping[str, Key | None]) -> tuple[str, ...]:
    """The paths, in order, that ``table`` lacks of ``expected``, or has for another server; a key of None goes with any."""
    return tuple(
        sorted(
            path
            for path, key in expected.items()
            if (route := table.get(path)) is None or (key is not None and route.key != key)
        )
    )


def compared(before: Watched, lacking: tuple[str, ...], now: datetime) -> Watched:
    """What is known after the table was compared at ``now`` with what belongs into it: where nothing lacks, it is whole."""
    after = replace(before, status=replace(before.status, missing=lacking))
    if lacking or before.lost_from is None:
        return after
    after = _window_ends(after, before.lost_from, now)
    after = replace(after, status=replace(after.status, restored_at=now))
    return after if after.status.state is not WatchState.WIPED else _become(after, WatchState.FINE, "", now)


def given_up(before: Watched, now: datetime) -> Watched:
    """What is known when nobody waits any longer for the lost table to be whole."""
    if before.lost_from is None:
        return before
    after = _window_ends(before, before.lost_from, now)
    if after.status.state is not WatchState.WIPED:
        return after
    count = len(after.status.missing)
    why = f"It has lost its table, and {count} of the routes aren't back." if count else "It has lost its table."
    return _become(after, WatchState.FINE, why, now)


_LOST = "The proxy has lost its table of routes."
_FILLING = "The proxy has lost its table of routes, and the hub is to fill it again."


def told(before: Watched, why: str) -> Watched:
    """The same, with another sentence on why it stands so."""
    return replace(before, status=replace(before.status, why=why))


def _lost(before: Watched, now: datetime) -> Watched:
    lost_from = before.lost_from or before.there_at
    status = replace(before.status, wiped_at=now, restored_at=None, missing=())
    return _become(replace(before, lost_from=lost_from, status=status), WatchState.WIPED, _LOST, now)


def _restarted(before: Watched, seen: Sighting) -> bool:
    known = before.status.proxy_started_at
    if seen.started_at is not None and before.restores and seen.started_at <= before.restores[-1][1]:
        # The start is asked for once the table is whole again: this is the one by which it was lost.
        return False
    if seen.started_at is not None and known is not None:
        return abs(seen.started_at - known) > SAME_START
    # A connection may end for other reasons; that of a proxy that was gone has ended for this one.
    return seen.fresh and before.status.state is WatchState.GONE


def _window_ends(before: Watched, lost_from: datetime, now: datetime) -> Watched:
    # Another loss is a later one, whether or not the canary is seen in between.
    return replace(before, there_at=now, lost_from=None, restores=(*before.restores, (lost_from, now))[-WINDOWS:])


def _become(before: Watched, state: WatchState, why: str, now: datetime) -> Watched:
    since = before.status.since if before.status.state is state else now
    return replace(before, status=replace(before.status, state=state, since=since or now, why=why))
