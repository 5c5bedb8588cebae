"""How much acting is safe now: what HubGuard sees is compared with what it has seen before.

Each cycle :func:`look` takes what was seen and what is remembered. It returns a brake if acting on it may do harm, the
moment from which idle clocks count after an outage, and the memory for the next cycle. That memory is a value that goes
through JSON, so that it outlives the guard. Our own clock may jump: that keeps no brake on, and accepts nothing in a
person's name.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from datetime import datetime

from hubguard.model import Finding, FindingKind, Server, Source
from hubguard.snapshot.decide.activity import ALIVE, by_server
from hubguard.snapshot.decide.feed import Feed, limit_s
from hubguard.snapshot.decide.memory import Down, Population, Watch
from hubguard.snapshot.model import Brake, BrakeReason, Snapshot

AHEAD_S = 60.0
"""Maximum seconds that our clock may be ahead of the hub's. Everyone looks idle for that much longer than they are."""

ACCEPTABLE = frozenset({BrakeReason.POPULATION, BrakeReason.OVER_CAP})
"""What a person may let HubGuard continue with."""


Words = tuple[str, str]
"""Why HubGuard is braked, as a clause, and how that ends, as a sentence."""


@dataclass(frozen=True, slots=True)
class Caution:
    """The limits; the fields mean what the settings of ``HubGuardCull`` of the same names say."""

    plan_cap: int = 1000
    population_fall: float = 0.2
    outage_s: float = 120.0
    hub_activity_interval_s: float = 300.0
    pending_limit_s: float = 1800.0


@dataclass(frozen=True, slots=True)
class Look:
    """What one cycle saw, before it acts.

    ``hub_answered``: the hub's API gave an answer in this cycle. ``proxy_answered`` None means that HubGuard has no access
    to the proxy, or didn't read it because the hub didn't answer. ``generation`` is the start of the hub that runs us, in
    seconds since the epoch, 0 if we run by ourselves. ``deleted_users`` counts those that HubGuard has deleted since the
    last look. ``due`` is how many actions the plan would have without its cap. ``resumed_at`` is when a person last
    resumed, None for never. ``skew_s`` is by how much our clock is ahead of the hub's, None if unknown. ``all_new``: no user
    of the hub is older than the last look.
    """

    now: datetime
    snapshot: Snapshot
    hub_answered: bool
    proxy_answered: bool | None = None
    generation: float = 0.0
    deleted_users: int = 0
    due: int = 0
    resumed_at: datetime | None = None
    skew_s: float | None = None
    all_new: bool = False


@dataclass(frozen=True, slots=True)
class Judgement:
    """What a look comes to. ``brake`` is the most serious objection, None if nothing is in the way of acting.

    No idle clock counts from before ``clock_from``; None: there was no outage. ``watch`` is for the next look.
    """

    watch: Watch
    brake: Brake | None
    clock_from: datetime | None
    findings: tuple[Finding, ...] = ()


def look(watch: Watch, seen: Look, caution: Caution) -> Judgement:
    """How much acting is safe after this look. Of several objections the most serious one is the brake.

    A person who resumes accepts what they were shown, and nothing else: neither what a more serious brake has hidden
    from the start, nor what comes up later.
    """
    after = _remembered(watch, seen, caution)
    objections = _objections(after, seen, caution)
    first = next((reason for reason, words in objections.items() if words is not None), None)
    after = _with_what_is_shown(after, objections, first, seen)
    return Judgement(after, _brake(after, objections, first), after.clock_from, _findings(after, seen, caution))


def _with_what_is_shown(
    after: Watch, objections: Mapping[BrakeReason, Words | None], first: BrakeReason | None, seen: Look
) -> Watch:
    """``after`` with when each objection began, and the number of users that people are shown.

    Nobody can accept what they weren't shown, so an acceptable objection begins when it is the brake.
    """
    since = {
        reason: after.since.get(reason, seen.now)
        for reason, words in objections.items()
        if reason in after.since or (words is not None and (reason is first or reason not in ACCEPTABLE))
    }
    shown = seen.snapshot.users_total if first is BrakeReason.POPULATION else after.population.shown
    return replace(after, since=since, population=replace(after.population, shown=shown))


def _brake(after: Watch, objections: Mapping[BrakeReason, Words | None], first: BrakeReason | None) -> Brake | None:
    words = None if first is None else objections[first]
    if first is None or words is None:
        return None
    why, ends = words
    return Brake(first, after.since[first], why, ends, acceptable=first in ACCEPTABLE)


# -- what is remembered -------------------------------------------------------------------------------------------


def _remembered(watch: Watch, seen: Look, caution: Caution) -> Watch:
    """``watch`` after this look, except when objections began."""
    now, accepted = seen.now, _accepted(watch, seen)
    restarted = seen.hub_answered and watch.generation > 0 and seen.generation not in {0, watch.generation}
    recovered = _recovered(watch, seen, caution, restarted=restarted)
    gap_s = 0.0 if watch.looked_at is None else max(0.0, (now - watch.looked_at).total_seconds())
    over = accepted | ({BrakeReason.CHECKING} if restarted else set())
    return Watch(
        looked_at=now,
        gap_s=gap_s if seen.hub_answered else watch.gap_s,
        hub_seen_at=now if seen.hub_answered else watch.hub_seen_at,
        generation=seen.generation if seen.hub_answered else watch.generation,
        hub_down=_down(watch.hub_down, seen.hub_answered, now),
        proxy_down=_down(watch.proxy_down, seen.proxy_answered, now),
        clock_from=now if recovered else watch.clock_from and min(watch.clock_from, now),
        resumed_at=seen.resumed_at,
        since={reason: min(at, now) for reason, at in watch.since.items() if reason not in over},
        population=_population(watch, seen, caution, accepted=BrakeReason.POPULATION in accepted),
        cap_accepted=_cap_accepted(watch, seen, caution, accepted=BrakeReason.OVER_CAP in accepted),
        feed=_feed(watch, seen, caution, gap_s, anew=restarted or recovered),
    )


def _accepted(watch: Watch, seen: Look) -> set[BrakeReason]:
    """The objections that a person has just accepted by resuming after they were shown.

    Each time of resuming counts once, so that one from a clock that was ahead doesn't count again and again.
    """
    at = seen.resumed_at
    if at is None or at == watch.resumed_at:
        return set()
    # A time that lies ahead of now is from before our clock was put back, and can't be compared.
    return {
        reason
        for reason in ACCEPTABLE & watch.since.keys()
        if watch.since[reason] < at or watch.since[reason] > seen.now
    }


def _down(before: Down | None, answered: bool | None, now: datetime) -> Down | None:
    if answered is None:
        return before
    if answered:
        return None
    return Down(now, 1) if before is None else Down(min(before.since, now), before.looks + 1)


def _recovered(watch: Watch, seen: Look, caution: Caution, *, restarted: bool) -> bool:
    """Whether hub or proxy is just back from an outage.

    A time in which nobody looked is our own, and no outage, unless a new hub runs us by now: the old one took us with it.
    Then it was gone from when the next look was due until the new one started.
    """
    for down, answered in ((watch.hub_down, seen.hub_answered), (watch.proxy_down, seen.proxy_answered)):
        if answered and down is not None and down.is_outage(seen.now, caution.outage_s):
            return True
    if not restarted or watch.hub_seen_at is None:
        return False
    return seen.generation - watch.hub_seen_at.timestamp() - watch.gap_s >= caution.outage_s


def _population(watch: Watch, seen: Look, caution: Caution, *, accepted: bool) -> Population:
    population, total = watch.population.without(seen.deleted_users), seen.snapshot.users_total
    if seen.all_new:
        population = Population()
    if accepted:
        population = population.accepted()
    if total is None or population.has_fallen(total, caution.population_fall):
        return population
    return population.followed(total, seen.now)


def _cap_accepted(watch: Watch, seen: Look, caution: Caution, *, accepted: bool) -> bool:
    over = seen.due > caution.plan_cap or not _due_counts(seen)
    return over and (accepted or watch.cap_accepted)


def _feed(watch: Watch, seen: Look, caution: Caution, gap_s: float, *, anew: bool) -> Feed:
    interval_s = caution.hub_activity_interval_s
    if interval_s <= 0 or (seen.proxy_answered is None and seen.hub_answered):
        return Feed()
    feed = watch.feed.started_anew() if anew else watch.feed
    if seen.snapshot.routes is None or not _whole(seen):
        return feed
    # A gap much longer than the last one was a pause of ours or a jump of the clock: nobody watched the feed meanwhile.
    passed_s = min(gap_s, max(limit_s(interval_s) / 2, 2 * watch.gap_s))
    return feed.looked(seen.snapshot.servers, seen.snapshot.routes, seen.now, passed_s, interval_s)


# -- what is objected to --------------------------------------------------------------------------------------------


def _objections(after: Watch, seen: Look, caution: Caution) -> dict[BrakeReason, Words | None]:
    """The words (why, ends) of all that speaks against acting, most serious first.

    None: if it stood before, then it still does, but it doesn't brake now.
    """
    objections: dict[BrakeReason, Words | None] = {}
    if not _whole(seen):
        objections[BrakeReason.INCOMPLETE] = _incomplete(seen)
    if seen.skew_s is not None and seen.skew_s > AHEAD_S:
        objections[BrakeReason.CLOCK] = _ahead(seen.skew_s)
    if (count := _checking(seen)) != 0:
        began = after.since.get(BrakeReason.CHECKING, seen.now if count else None)
        short = began is not None and (seen.now - began).total_seconds() < caution.pending_limit_s
        objections[BrakeReason.CHECKING] = _still_checking(count) if short else None
    population, total = after.population, seen.snapshot.users_total
    if total is None:
        objections[BrakeReason.POPULATION] = None
    elif population.has_fallen(total, caution.population_fall):
        objections[BrakeReason.POPULATION] = fallen(population.reference or 0, total)
    down = after.proxy_down
    if seen.proxy_answered is False and down is not None and down.is_outage(seen.now, caution.outage_s):
        objections[BrakeReason.PROXY_DOWN] = _proxy_down(down.since)
    if after.feed.frozen_since is not None:
        objections[BrakeReason.FROZEN] = _frozen(after.feed.frozen_since)
    if not _due_counts(seen):
        objections[BrakeReason.OVER_CAP] = None
    elif seen.due > caution.plan_cap and not after.cap_accepted:
        objections[BrakeReason.OVER_CAP] = _over_cap(seen.due, caution.plan_cap)
    return objections


def _whole(seen: Look) -> bool:
    return seen.hub_answered and seen.snapshot.complete


def _checking(seen: Look) -> int | None:
    """How many servers a hub that has just started is still checking; None if only the hub's database was read."""
    reading = seen.snapshot.reading(Source.HUB_API)
    if not _whole(seen) or reading is None or reading.detail == ALIVE:
        return None
    return sum(server.pending == "check" for server in seen.snapshot.servers)


def _due_counts(seen: Look) -> bool:
    """Whether what is due was counted over servers whose state the hub knows."""
    return _whole(seen) and not _checking(seen)


def _incomplete(seen: Look) -> tuple[str, str]:
    reading = seen.snapshot.reading(Source.HUB_API)
    detail = (reading.detail if reading is not None and not reading.complete else "") or "the hub didn't answer"
    return (
        f"the server list is incomplete: {detail}",
        "It ends when the hub returns all its servers.",
    )


def _ahead(skew_s: float) -> tuple[str, str]:
    return (
        f"our clock is {skew_s:.0f} s ahead of the hub's, so everyone looks idle for longer than they are",
        "It ends when both clocks are right. Set them by NTP.",
    )


def _still_checking(count: int | None) -> tuple[str, str]:
    which = "its servers" if count is None else _number(count, "server")
    return (
        f"the hub has just started and is still checking {which}",
        "It ends when the hub is done, or when the check is stuck for too long.",
    )


def fallen(reference: int, total: int) -> Words:
    """What is said of a hub with ``total`` users that had ``reference`` of them."""
    return (
        f"the hub has {_number(total, 'user')} and had {reference:,}, and HubGuard didn't delete the others",
        "It ends when they are back. If they are meant to be gone, resume.",
    )


def _proxy_down(since: datetime) -> tuple[str, str]:
    return (
        f"the proxy hasn't answered since {_time(since)}, so HubGuard can't see who uses their server",
        "It ends when the proxy answers again. All idle times then restart. If HubGuard can't reach the proxy's API, set"
        " HubGuard.read_proxy to False.",
    )


def _frozen(since: datetime) -> tuple[str, str]:
    return (
        f"the hub hasn't recorded activity that the proxy saw at {_time(since)}, so active users look idle",
        "It ends when the hub records what the proxy saw. Restarting the hub usually helps.",
    )


def _over_cap(due: int, cap: int) -> tuple[str, str]:
    return (
        f"{due:,} actions are due at once, more than HubGuardCull.plan_cap allows ({cap:,})",
        f"It ends when no more than {cap:,} are due. If all of them are right, resume. Each cycle then does that many.",
    )


def _findings(after: Watch, seen: Look, caution: Caution) -> tuple[Finding, ...]:
    if (since := after.feed.frozen_since) is not None:
        return (Finding(FindingKind.ACTIVITY_FROZEN, since, _missed(after.feed.missed, since)),)
    limit = limit_s(caution.hub_activity_interval_s)
    ready = [server for server in seen.snapshot.servers if server.ready]
    if not ready or not _whole(seen) or caution.hub_activity_interval_s <= 0:
        return ()
    if _shows_traffic(ready, seen):
        return ()
    # Times that lie ahead are somebody's wrong clock, and don't show that anything advances.
    known = [t for s in ready for t in (s.last_activity, s.started) if t and (t - seen.now).total_seconds() <= AHEAD_S]
    newest = max(known, default=None)
    if newest is None or (seen.now - newest).total_seconds() <= limit:
        return ()
    detail = (
        f"The hub has recorded no activity on any server since {_time(newest)}. Either nobody was active, or the hub has"
        " stopped recording. To see which, give HubGuard access to the proxy's API."
    )
    return (Finding(FindingKind.CANT_TELL, newest, detail),)


def _shows_traffic(ready: list[Server], seen: Look) -> bool:
    """Whether the proxy shows traffic, or would if it answered and had its table."""
    if seen.snapshot.routes is None:
        return seen.proxy_answered is not None
    routes = by_server(seen.snapshot.routes)
    times = [routes[server.key].last_activity for server in ready if server.key in routes]
    return not times or any(times)


def _missed(count: int, since: datetime) -> str:
    if not count:
        return (
            f"The hub missed activity that the proxy saw at {_time(since)}. HubGuard needs two looks in a row to know whether"
            " it records activity again."
        )
    return (
        f"The proxy has seen activity on {_number(count, 'server')} that the hub hasn't recorded, the oldest from"
        f" {_time(since)}. Active users look idle. Look for errors in the hub's log and restart the hub. If its"
        " last_activity_interval is longer than HubGuardCull.hub_activity_interval_s, correct that setting."
    )


def _number(count: int, noun: str) -> str:
    return f"{count:,} {noun}" if count == 1 else f"{count:,} {noun}s"


def _time(at: datetime) -> str:
    return f"{at:%Y-%m-%d %H:%M} UTC"
