"""Whether the hub still takes over activity from the proxy: frozen and quiet look alike in the hub's times alone.

The test is traffic that the proxy has seen and the hub hasn't noticed yet. The hub has to take it over with its next
update; if most of what was waited for doesn't come, its feed is frozen.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from datetime import datetime, timedelta, timezone

from hubguard.model import Route, Server
from hubguard.snapshot.decide.activity import by_server

MOST_AWAITED = 200
"""Maximum runs that are watched: enough to decide, whatever the size of the hub."""

CLEAN_LOOKS = 2
"""Looks in a row that must find the feed alive before it counts as alive."""

GRACE_S = 30.0
"""Seconds that the hub may take over two of its intervals: its start, and a slow update."""

SAME = timedelta(seconds=1)
"""Times that differ by no more are the same: databases may drop fractions of a second."""

Run = tuple[str, str, datetime | None]
NEVER = datetime.min.replace(tzinfo=timezone.utc)


def limit_s(interval_s: float) -> float:
    """Seconds after which a hub that updates every ``interval_s`` has taken over any activity."""
    return 2 * interval_s + GRACE_S


@dataclass(frozen=True, slots=True)
class Awaited:
    """What is waited for on one run, and what came of it before.

    ``stamp`` is the proxy's time that the hub should take over, None while there is none; ``seen_at`` is when it was first
    seen, ``since_s`` the same on the feed's own clock. ``taken_s`` is when the hub was last seen to have taken one over, on
    that clock, None for never. ``odd``: the hub doesn't take this one over, while it does most others.
    """

    run: Run
    stamp: datetime | None
    seen_at: datetime
    since_s: float
    taken_s: float | None = None
    odd: bool = False


@dataclass(frozen=True, slots=True)
class Feed:
    """What is remembered of the feed. ``clock_s`` counts the seconds for which both hub and proxy were being watched.

    ``frozen_since`` is the time of the oldest activity that the hub has missed, None while the feed isn't taken for frozen;
    ``missed`` is how many runs miss some now, and ``clean`` how many looks in a row have found it alive since.
    """

    clock_s: float = 0.0
    awaited: tuple[Awaited, ...] = ()
    frozen_since: datetime | None = None
    missed: int = 0
    clean: int = 0

    def started_anew(self) -> Feed:
        """The same after hub or proxy came back: the hub's next update is a whole interval away.

        A frozen feed stays frozen until it is seen alive.
        """
        return replace(self, awaited=tuple(replace(entry, since_s=self.clock_s) for entry in self.awaited))

    def looked(
        self,
        servers: tuple[Server, ...],
        routes: Mapping[str, Route],
        now: datetime,
        passed_s: float,
        interval_s: float,
    ) -> Feed:
        """The same after a look at all servers and the proxy's whole table, ``passed_s`` after the last look."""
        limit = limit_s(interval_s)
        clock_s = self.clock_s + passed_s
        stamps = {key: r.last_activity for key, r in by_server(routes).items() if r.last_activity is not None}
        before = {entry.run: entry for entry in self.awaited}
        ready = [server for server in servers if server.ready]
        awaited = [
            entry
            for server in ready
            if (entry := _await(before.get(server.run), server, stamps.get(server.key), now, clock_s)) is not None
            and (entry.stamp is not None or (entry.taken_s is not None and clock_s - entry.taken_s < limit))
        ]
        overdue = [entry for entry in awaited if entry.stamp and not entry.odd and clock_s - entry.since_s >= limit]
        taken = [entry for entry in awaited if entry.taken_s is not None and clock_s - entry.taken_s < limit]
        if overdue and len(overdue) >= len(taken):
            since = min([entry.seen_at for entry in overdue] + ([self.frozen_since] if self.frozen_since else []))
            return Feed(clock_s, _bounded(awaited), since, len(overdue))
        if overdue:
            odd = {entry.run for entry in overdue}
            awaited = [replace(entry, odd=True) if entry.run in odd else entry for entry in awaited]
        kept = _bounded(awaited)
        if self.frozen_since is None:
            return Feed(clock_s, kept)
        # An empty table, or one without times, says nothing about a feed that was frozen.
        blind = bool(ready) and not any(server.key in stamps for server in ready)
        alive = not blind and (bool(taken) or not any(entry.stamp and not entry.odd for entry in awaited))
        clean = self.clean + 1 if alive else 0
        return Feed(clock_s, kept) if clean >= CLEAN_LOOKS else Feed(clock_s, kept, self.frozen_since, 0, clean)


def _await(
    old: Awaited | None, server: Server, stamp: datetime | None, now: datetime, clock_s: float
) -> Awaited | None:
    """What is waited for on ``server`` now, or None if there is nothing to remember."""
    hub = server.last_activity or NEVER
    taken_s, odd = (old.taken_s, old.odd) if old is not None else (None, False)
    if old is not None and old.stamp is not None:
        if hub - old.stamp >= -SAME:
            taken_s, odd = clock_s, False
        elif stamp is not None and stamp - old.stamp >= -SAME:
            return old
        # Else the route is gone, or was made again by a proxy with another clock: the hub can't take over what was there.
    if stamp is not None and stamp - hub > SAME:
        return Awaited(server.run, stamp, now, clock_s, taken_s, odd)
    return None if old is None else Awaited(server.run, None, now, clock_s, taken_s, odd)


def _bounded(awaited: list[Awaited]) -> tuple[Awaited, ...]:
    """The most telling ones: first what is waited for, longest first, then the odd ones, then what was taken over last."""

    def order(entry: Awaited) -> tuple[int, float, str, str]:
        if entry.stamp is not None:
            return (1 if entry.odd else 0, entry.since_s, *entry.run[:2])
        return (2, -(entry.taken_s or 0.0), *entry.run[:2])

    return tuple(sorted(awaited, key=order)[:MOST_AWAITED])
