"""The state of the proxy, by what a route of HubGuard's own, the canary, shows: there, wiped, gone, hanging or half deaf."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from datetime import datetime, timedelta
from enum import Enum

from hubguard.model import Key, Route
from hubguard.pacing.limits import backoff_s
from hubguard.proxy.model import ProxyWatchStatus, WatchState

IN_A_ROW = 2
"""Timeouts that make a hang, and failures of the public port that make the proxy deaf: one may be a hiccup."""

WINDOWS = 1000
"""Maximum number of restores that are remembered: one an hour is six weeks of them."""

SAME_START = timedelta(seconds=2)
"""Maximum difference between two readings of one process's start: the system counts it from its own boot, in ticks."""

LOOK_EVERY_S = 1.5
"""Seconds between looks, plus or minus a third. The end of the connection shows at once; only a wipe waits for a look."""

UNUSABLE_EVERY_S = 5.0
"""Seconds between looks at a proxy that doesn't know our token, plus or minus a third."""

CONNECT_EVERY_S, CONNECT_QUICKLY_S, CONNECT_SLOWLY_S = 0.1, 10.0, 2.0
"""Seconds between connections to a port that is gone: in the first 10 seconds, and later. They cost nobody anything."""

COMPARE_EVERY_S, COMPARE_LONGEST_S = 1.0, 15.0
"""Seconds between readings of the table while routes are missing: at first, each time 1.5 times as long, and at most."""

ASK_GAP_S, ASK_LONGEST_S = 2.0, 60.0
"""Minimum seconds between requests to the hub; on average twice as long after each, up to a minute. A proxy that restarted
since then waits for the minimum alone, however often: what failed before was its own death's fault."""

REFUSED_EVERY_S = 600.0
"""Seconds between requests to a hub that refuses to check its routes: only another role, and a restart, change that."""

CALM_S = 60.0
"""Seconds without a loss after which the next one is met at once again, as if there had been none before."""


class Verdict(str, Enum):
    """What came of looking for the canary."""

    THERE = "there"
    MISSING = "missing"  # the API answers, and has no such route
    NO_ANSWER = "no-answer"  # it takes no connection, or ended it
    TIMEOUT = "timeout"
    UNUSABLE = "unusable"  # it answers, but not as a proxy that knows our token


@dataclass(frozen=True, slots=True)
class Sighting:
    """One look. ``detail`` explains a verdict other than THERE. ``public``: the public port answers; None: not tried.

    ``fresh``: a connection had ended since the last look. ``started_at`` is when the proxy was started; None: unknown.
    """

    verdict: Verdict
    detail: str = ""
    public: bool | None = None
    fresh: bool = False
    started_at: datetime | None = None


@dataclass(frozen=True, slots=True)
class Compared:
    """The table was read after that number of ``losses``, and lacks these paths; None: it couldn't be read."""

    lacking: tuple[str, ...] | None
    losses: int


@dataclass(frozen=True, slots=True)
class Asked:
    """The hub was asked to check its routes, after that number of ``starts`` of the proxy.

    ``answered``: it has checked them. ``refused`` is the hub's refusal, "" for any other failure.
    """

    starts: int
    answered: bool = False
    refused: str = ""


class Do(Enum):
    """What to do next."""

    WAIT = "wait"
    PLANT = "plant"  # the canary again, so that another loss shows, too
    COMPARE = "compare"  # the table with the routes that belong in it
    ASK_HUB = "ask the hub"  # to check its routes


@dataclass(frozen=True, slots=True)
class Command:
    """What to do next. After WAIT and ASK_HUB, the next look is due in ``wait_s`` seconds.

    With ``watch_connection``, it is due as soon as the canary's connection ends, too.
    """

    do: Do
    wait_s: float = 0.0
    watch_connection: bool = False


@dataclass(frozen=True, slots=True)
class Now:
    """The time, on the wall and in seconds that only grow; chance (0 <= ``draw`` < 1); and what the guard allows.

    ``may_act``: the hub may be asked. ``asking``: a request to it is under way. ``knows_routes``: it is known which routes
    belong in the table. After ``give_up_s`` a lost table is no longer waited for.
    """

    at: datetime
    s: float
    draw: float
    may_act: bool
    asking: bool
    knows_routes: bool
    give_up_s: float


@dataclass(frozen=True, slots=True)
class Watched:
    """What is known of the proxy. ``status`` is for all to see.

    ``there_at`` is when the canary was last seen. ``lost_from``: the table was lost at some time since then, and may not be
    whole again yet; None otherwise. ``restores`` are the times (from, to), oldest first, in which lost tables were filled
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


@dataclass(frozen=True, slots=True)
class Restoring:
    """How far the restoring of a lost table is. Times are in seconds that only grow.

    ``losses`` counts losses, and ``starts`` those by a proxy that had restarted. ``asked`` counts requests to the hub in a
    row. ``answered``: the hub has checked its routes since the last loss. ``refused`` is its refusal to do so.
    """

    lost_s: float | None = None
    whole_s: float = float("-inf")
    losses: int = 0
    starts: int = 0
    asked: int = 0
    answered: bool = False
    refused: str = ""
    asked_at_s: float = float("-inf")
    ask_at_s: float = float("-inf")
    compare_at_s: float = float("-inf")
    compare_every_s: float = COMPARE_EVERY_S


@dataclass(frozen=True, slots=True)
class State:
    """All that the watch knows. ``seen`` is the last look; None: nothing could be asked."""

    watched: Watched = field(default_factory=Watched)
    restoring: Restoring = field(default_factory=Restoring)
    seen: Sighting | None = None


def step(state: State, event: Sighting | Compared | Asked | None, now: Now) -> tuple[State, Command]:
    """What is known after ``event``, and what to do next. None: there was no look, since nothing could be asked."""
    if isinstance(event, Asked):
        state = replace(state, restoring=_asked(state.restoring, event, now))
    elif isinstance(event, Compared):
        if event.lacking is not None and event.losses == state.restoring.losses:  # else that table is lost, too
            state = replace(state, watched=compared(state.watched, event.lacking, now.at))
        if state.watched.lost_from is None:
            state = replace(state, restoring=_over(state.restoring, now))
        else:
            return _restore(state, now, compare=False)
    else:
        watched = state.watched if event is None else looked(state.watched, event, now.at)
        state = replace(state, watched=watched, seen=event)
        verdict = None if event is None or watched.lost_from is None else event.verdict
        if event is not None and verdict is Verdict.MISSING:
            return replace(state, restoring=_met_loss(state.restoring, event, now)), Command(Do.PLANT)
        if verdict is Verdict.THERE:
            return _restore(state, now, compare=True)
        if now.s - state.restoring.whole_s > CALM_S:
            state = replace(state, restoring=replace(state.restoring, asked=0))
    return state, _wait(state, now)


def looked(before: Watched, seen: Sighting, now: datetime) -> Watched:
    """What is known after that look at ``now``. A canary that was never seen before can't be lost."""
    timeouts = before.timeouts + 1 if seen.verdict is Verdict.TIMEOUT else 0
    deaf = before.deaf if seen.public is None else 0 if seen.public else before.deaf + 1
    after = replace(before, timeouts=timeouts, deaf=deaf)
    if seen.verdict is Verdict.NO_ANSWER:
        return _become(after, WatchState.GONE, f"The proxy's API takes no connections ({seen.detail}).", now)
    if seen.verdict is Verdict.UNUSABLE:
        return _become(after, WatchState.UNUSABLE, seen.detail, now)
    if seen.verdict is Verdict.TIMEOUT:
        if timeouts < IN_A_ROW:
            return after
        why = f"The proxy's API takes connections and doesn't answer ({seen.detail})."
        return _become(after, WatchState.HANGS, why, now)
    if seen.verdict is Verdict.MISSING:
        return after if before.there_at is None else _lost(after, now)
    restarted = _restarted(before, seen)
    started_at = seen.started_at or before.status.proxy_started_at
    after = replace(after, there_at=now, status=replace(after.status, proxy_started_at=started_at))
    if after.lost_from is not None:
        return _become(after, WatchState.WIPED, _FILLING, now)
    if deaf >= IN_A_ROW:
        why = "The proxy's API answers, but its public port doesn't, or another program has that port. Users reach nothing."
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
    """What is known after the table was compared at ``now`` with what belongs in it: if nothing is missing, it is whole."""
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


_NOT_NOW = (
    "The proxy has lost its table of routes. HubGuard doesn't ask the hub to restore it now; the hub does so by itself with"
    " its next check."
)
_REFUSED = (
    "The proxy has lost its table of routes, and the hub refuses to restore it for HubGuard: {} The hub does so by itself"
    " with its next check."
)


def _restore(state: State, now: Now, *, compare: bool) -> tuple[State, Command]:
    """The table was lost, and the proxy answers: see what is missing, and ask the hub when it is time."""
    watched, restoring = state.watched, state.restoring
    if now.asking:
        return state, _wait(state, now)
    if not now.may_act:
        watched = _explained(watched, _NOT_NOW)
    elif restoring.refused and now.s < restoring.ask_at_s:
        watched = _explained(watched, _REFUSED.format(restoring.refused))
    state = replace(state, watched=watched)
    if compare and now.s >= restoring.compare_at_s and (restoring.answered or now.knows_routes):
        every_s = restoring.compare_every_s
        restoring = replace(
            restoring, compare_at_s=now.s + every_s, compare_every_s=min(1.5 * every_s, COMPARE_LONGEST_S)
        )
        return replace(state, restoring=restoring), Command(Do.COMPARE)
    if restoring.lost_s is not None and now.s - restoring.lost_s >= now.give_up_s:
        watched = given_up(watched, now.at)
        if restoring.refused:
            watched = _explained(watched, f"{watched.status.why} {restoring.refused}")
        state = replace(state, watched=watched, restoring=_over(restoring, now))
    elif now.may_act and now.s >= restoring.ask_at_s:
        return state, replace(_wait(state, replace(now, asking=True)), do=Do.ASK_HUB)
    return state, _wait(state, now)


def _met_loss(before: Restoring, seen: Sighting, now: Now) -> Restoring:
    after = replace(
        before,
        lost_s=now.s if before.lost_s is None else before.lost_s,
        losses=before.losses + 1,
        answered=False,
        compare_at_s=now.s,
        compare_every_s=COMPARE_EVERY_S,
    )
    if not seen.fresh:
        return after
    # A connection had ended: the proxy restarted. Two that take turns behind one address show no such end.
    after = replace(after, starts=before.starts + 1)
    if before.refused:
        return after
    return replace(after, asked=0, ask_at_s=min(before.ask_at_s, before.asked_at_s + ASK_GAP_S))


def _asked(before: Restoring, event: Asked, now: Now) -> Restoring:
    asked = before.asked + 1
    if event.refused:
        wait_s = REFUSED_EVERY_S
    elif event.starts != before.starts:
        asked, wait_s = 0, ASK_GAP_S
    else:
        wait_s = ASK_GAP_S + backoff_s(asked, now.draw, 2 * ASK_GAP_S, ASK_LONGEST_S)
    return replace(
        before,
        asked=asked,
        answered=before.answered or event.answered,
        refused=event.refused,
        asked_at_s=now.s,
        ask_at_s=now.s + wait_s,
        compare_at_s=now.s,
        compare_every_s=COMPARE_EVERY_S,
    )


def _over(before: Restoring, now: Now) -> Restoring:
    return replace(before, lost_s=None, whole_s=now.s)


def _wait(state: State, now: Now) -> Command:
    """Until the next look is due."""
    status, seen, jitter = state.watched.status, state.seen, 2 / 3 + 2 / 3 * now.draw
    # A connection that ends each time it was used shows nothing by that.
    watch_connection = seen is not None and seen.verdict is Verdict.THERE and not seen.fresh
    if status.state is WatchState.GONE and status.since is not None:
        quickly = (now.at - status.since).total_seconds() < CONNECT_QUICKLY_S
        wait_s = CONNECT_EVERY_S if quickly else CONNECT_SLOWLY_S * jitter
    elif seen is not None and seen.verdict is Verdict.UNUSABLE:
        wait_s = UNUSABLE_EVERY_S * jitter
    else:
        wait_s = LOOK_EVERY_S * jitter
        if state.watched.lost_from is not None and not now.asking:
            restoring = state.restoring
            due_s = min(restoring.compare_at_s, restoring.ask_at_s) if now.may_act else restoring.compare_at_s
            wait_s = min(wait_s, max(0.1, due_s - now.s))
    return Command(Do.WAIT, wait_s, watch_connection)


def _explained(before: Watched, why: str) -> Watched:
    return replace(before, status=replace(before.status, why=why))
