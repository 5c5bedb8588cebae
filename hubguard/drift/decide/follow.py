"""When a difference between the sources is drift.

One look shows differences (``compare``). :func:`follow` takes them from look to look, and raises those that last.
"""

from __future__ import annotations

from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from datetime import datetime, timedelta

from hubguard.drift.decide.compare import Comparison, Difference, DriftKey
from hubguard.drift.model import Drift, DriftKind, World
from hubguard.model import Key, same_run

MOST = 5000
"""Maximum differences of one kind that are followed. A wiped table of 50,000 routes is one thing to repair."""

SAME_BY_WORDS = frozenset({DriftKind.ROUTE_STALE, DriftKind.ROUTE_WRONG_TARGET})
"""Kinds without a run. A route that leads elsewhere than in the last look is another difference."""

GAPS = 4
"""Maximum time between two looks, in usual intervals, through which something counts as pending. If the hub was away for
longer, the clock jumped or a guard hung, nobody saw it last."""

ONE_IN_TWO_WORDS = {
    DriftKind.SERVER_DEAD: DriftKind.SERVER_GHOST,
    DriftKind.SERVER_GHOST: DriftKind.SERVER_DEAD,
}


@dataclass(frozen=True, slots=True)
class DriftPolicy:
    """The limits, and the seconds between looks. The fields are those of ``HubGuardDrift`` and ``HubGuardCull``."""

    sightings: int
    for_s: float
    clear_after: int
    pending_limit_s: float
    every_s: float = 30.0


def suspects(world: World) -> tuple[Key, ...]:
    """The servers about which the hub must be asked again before anything is concluded, sorted.

    These are the servers in ``world.unsure`` about which the sources seem to differ, and those with a route or a live backend
    that the hub doesn't list or calls pending: it may have them by now. If there are many, reading the whole list is cheaper.
    Also ask about every server whose drift is followed, or a resolved difference would never be noticed.
    """
    seen = Comparison(world, 0.0, asking=True)
    servers = world.servers or {}
    keys = set()
    for difference in seen.differences().values():
        if difference.user is not None and difference.kind is not DriftKind.PENDING_STUCK:
            key = (difference.user, difference.server or "")
            if key in world.unsure or key not in servers or not servers[key].ready:
                keys.add(key)
    for key, server in servers.items():
        if server.pending is not None and (
            seen.routes_of(key) or any(backend.alive for backend in seen.backends_of(key))
        ):
            keys.add(key)
    return tuple(sorted(keys))


def follow(
    before: Sequence[Drift], world: World, policy: DriftPolicy, repaired: Collection[str] = ()
) -> tuple[tuple[Drift, ...], tuple[Drift, ...]]:
    """The differences that continue after this look, and those that end: each the raised first, by ``since``, then the rest.

    ``before`` is the first tuple that this returned for the previous look, () at first. It holds more than people are shown
    (:func:`shown`). What ends has its last sighting; ``raised_at`` is None if it was never raised.

    A look counts for a difference if every source it needs was read in full after its last sighting, and the hub's word on
    the server is sure and not that it is pending. A suspected difference ends with its first miss, a raised one after
    ``policy.clear_after`` misses in a row, or after one if its id is among ``repaired``, which a re-read has shown to be
    repaired. Another run is another difference. A server-dead that becomes a server-ghost keeps
    its counts; so does an orphan that is first reported by the spawner, then seen among the backends.

    With () as ``before``, the first tuple is all that differs now. At most 5,000 differences of one kind are followed; their
    evidence says out of how many.
    """
    seen = Comparison(world, policy.pending_limit_s)
    known = {drift.key: _not_ahead(drift, world.at) for drift in before}
    differences, evidence = _kept(seen.differences(), known)
    going, ended, taken_over = [], [], set()
    for key, difference in differences.items():
        drift = known.get(key)
        if drift is None and (other := _predecessor(difference, known, differences)) is not None:
            taken_over.add(other.key)
            drift = replace(other, kind=difference.kind, subject=difference.subject)
            drift = replace(drift, raised_at=world.at if other.raised_at else None)
        following = _Following(seen, policy, difference, evidence.get(difference.kind, ()))
        if drift is not None and not following.is_of(drift):
            ended.append(drift)
            drift = None
        going.append(following.begun() if drift is None else following.gone_on(drift))
    for key, drift in known.items():
        if key in differences or key in taken_over:
            continue
        after = _missed(drift, seen, 1 if drift.id in repaired else policy.clear_after)
        (ended if after is None else going).append(after or drift)
    return _in_order(_without_doubles(going)), shown(_in_order(ended))


def shown(drifts: Sequence[Drift]) -> tuple[Drift, ...]:
    """Those of :func:`follow` that people are shown, in the same order.

    A pending server is followed from the first look, but suspected only after half of its limit. Until then it has no
    sightings and is left out here.
    """
    return tuple(drift for drift in drifts if drift.sightings)


@dataclass(frozen=True, slots=True)
class _Following:
    """A difference that this look shows, and how it continues from what was known of it."""

    seen: Comparison
    policy: DriftPolicy
    difference: Difference
    remark: tuple[str, ...]

    def is_of(self, drift: Drift) -> bool:
        """Whether ``drift``, which has its key, is of the same run and, while it is only suspected, of the same place."""
        if drift.kind is DriftKind.SERVER_ORPHAN:
            # It is its backend, whatever runs beside it by now.
            return True
        if not same_run(drift.started, self.difference.started):
            return False
        return (
            drift.raised_at is not None
            or drift.kind not in SAME_BY_WORDS
            or self.difference.words()[1] == drift.observed
        )

    def begun(self) -> Drift:
        """The difference as a Drift after its first sighting."""
        difference, at = self.difference, self.seen.at
        since = at if difference.since is None else min(difference.since, at)
        key = (difference.kind, difference.user, difference.server)
        return self._judged(Drift(*key, "", "", since, at, difference.subject, difference.started, sightings=0))

    def gone_on(self, drift: Drift) -> Drift:
        """``drift`` after this look; unchanged if the look doesn't count."""
        needed = self.seen.readings(drift.kind, drift.subject) or ()
        if any(reading.at <= drift.seen_at for reading in needed):
            return drift
        since = drift.since
        if drift.kind is DriftKind.PENDING_STUCK:
            # All others need their sightings, too.
            unseen = self.seen.at - drift.seen_at > timedelta(seconds=GAPS * self.policy.every_s)
            since = self.seen.at if unseen else max(since, self.seen.world.pending_from or since)
        return self._judged(replace(drift, since=since, looks=drift.looks + (drift.sightings > 0)))

    def _judged(self, drift: Drift) -> Drift:
        at, policy = self.seen.at, self.policy
        needed = self.seen.readings(drift.kind, drift.subject) or ()
        lasted_s = (at - drift.since).total_seconds()
        pending = drift.kind is DriftKind.PENDING_STUCK
        sightings = drift.sightings + (not pending or lasted_s >= policy.pending_limit_s / 2)
        raised_at = drift.raised_at
        long_enough = lasted_s >= (policy.pending_limit_s if pending else policy.for_s)
        if self.difference.surely or (not self.difference.heard and sightings >= policy.sightings and long_enough):
            raised_at = raised_at or at
        expected, observed, evidence = self.difference.words()
        return replace(
            drift,
            expected=expected,
            observed=observed,
            evidence=evidence + self.remark,
            # A look may be dated when it begins, before its sources are read.
            seen_at=max([at, *(reading.at for reading in needed)]),
            started=self.difference.started,
            sightings=sightings,
            missed=0,
            raised_at=raised_at,
            backend=self.difference.backend,
        )


def _missed(drift: Drift, seen: Comparison, clear_after: int) -> Drift | None:
    """``drift``, which this look doesn't show, after it; None if it has ended."""
    needed = seen.readings(drift.kind, drift.subject)
    if needed is None or not any(reading.at > drift.seen_at for reading in needed):
        return drift
    run = None
    if drift.started is not None and drift.user is not None and drift.kind is not DriftKind.SERVER_ORPHAN:
        run = seen.run_now((drift.user, drift.server or ""))
    if run is not None and not same_run(run[0], drift.started):
        return None
    if not seen.can_tell(drift):
        return drift
    missed = drift.missed + 1
    if drift.raised_at is None or missed >= clear_after:
        return None
    return replace(drift, looks=drift.looks + 1, missed=missed)


def _kept(
    differences: Mapping[DriftKey, Difference], known: Mapping[DriftKey, Drift]
) -> tuple[dict[DriftKey, Difference], dict[DriftKind, tuple[str, ...]]]:
    """At most MOST of each kind, the known ones first, and a remark for each kind of which some were left out."""
    by_kind: dict[DriftKind, list[DriftKey]] = {}
    for key in differences:
        by_kind.setdefault(key[0], []).append(key)
    kept: dict[DriftKey, Difference] = {}
    remarks: dict[DriftKind, tuple[str, ...]] = {}
    for kind, keys in by_kind.items():
        if len(keys) > MOST:
            remarks[kind] = (f"{MOST:,} of {len(keys):,} such differences are followed",)
            keys = sorted(keys, key=lambda key: (key not in known, *_order(key)))[:MOST]  # noqa: PLW2901
        kept.update((key, differences[key]) for key in keys)
    return kept, remarks


def _predecessor(
    difference: Difference, known: Mapping[DriftKey, Drift], others: Mapping[DriftKey, Difference]
) -> Drift | None:
    """What was known of ``difference`` under another key."""
    kind, user, server, subject = difference.key
    if kind in ONE_IN_TWO_WORDS:
        other = known.get((ONE_IN_TWO_WORDS[kind], user, server, subject))
        return other if other is not None and same_run(other.started, difference.started) else None
    if kind is DriftKind.SERVER_ORPHAN and subject and (kind, user, server, "") not in others:
        return known.get((kind, user, server, ""))
    return None


def _without_doubles(drifts: list[Drift]) -> list[Drift]:
    """Leave out an orphan that only the spawner reported if the backends show which one it is."""
    named = {(drift.user, drift.server) for drift in drifts if drift.kind is DriftKind.SERVER_ORPHAN and drift.subject}
    return [
        drift
        for drift in drifts
        if drift.kind is not DriftKind.SERVER_ORPHAN or drift.subject or (drift.user, drift.server) not in named
    ]


def _not_ahead(drift: Drift, now: datetime) -> Drift:
    """The same; if our clock was put back, as if last seen just now. Else nothing would count until it has caught up."""
    if drift.seen_at <= now:
        return drift
    return replace(drift, since=min(drift.since, now), seen_at=now)


def _in_order(drifts: Iterable[Drift]) -> tuple[Drift, ...]:
    return tuple(sorted(drifts, key=lambda drift: (drift.raised_at is None, drift.since, *_order(drift.key))))


def _order(key: DriftKey) -> tuple[str, str, str, str]:
    kind, user, server, subject = key
    return (kind.value, user or "", server or "", subject)
