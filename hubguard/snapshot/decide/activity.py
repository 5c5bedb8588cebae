"""What real use of servers HubGuard has seen, apart from what only looks like use in the hub's own times."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import replace
from datetime import datetime, timedelta

from hubguard.model import Key, Route, Server, Source, same_run
from hubguard.snapshot.model import Evidence, Seen, Snapshot

SAME = timedelta(seconds=1)
"""A hub that takes over a route's time may round it by less than this."""


LATEST_LOOK = timedelta(minutes=10)
"""Seconds, longer than any two looks are apart. If there was no look for longer before a table was lost, use went unseen."""

Window = tuple[datetime, datetime]
"""(from, to) of a time in which a proxy's lost table was filled again."""


def trusted(before: Iterable[Window], restores: Iterable[Window], looked_at: datetime | None) -> tuple[Window, ...]:
    """Those of ``restores`` whose times may be discounted, in order: ``before`` were by then, the others are new.

    A new one may if the last look on record, at ``looked_at``, was made shortly before it began: all use up to then is on
    record. None: there was no look.
    """
    known = {begins for begins, _ in before}
    return tuple(
        window
        for window in sorted(restores)
        if window[0] in known or (looked_at is not None and window[0] - looked_at <= LATEST_LOOK)
    )


def by_restore(at: datetime, active_at: datetime | None, restores: Iterable[Window]) -> bool:
    """Whether a time of hub or proxy comes from a table that was filled again, with an earlier record to continue from.

    Filling a table stamps every route in it with that moment, and the hub takes that over.
    """
    return active_at is not None and any(
        begins - SAME <= at <= ends + SAME and active_at < begins for begins, ends in restores
    )


def follow(
    before: Mapping[tuple[str, str], Seen], snapshot: Snapshot, restores: tuple[Window, ...] = ()
) -> dict[tuple[str, str], Seen]:
    """What is now known of each server in ``snapshot``, by (user, name); ``before`` is what was known.

    Times of hub and proxy from within ``restores`` don't count as use if there is a record from before.

    A route that is there again after it was missing has its own time for that, and the hub takes it over with its next
    update (tried on 5.5 and 6.1): neither counts as use. Only the hub's API shows whether a server is pending; if the
    snapshot is from the hub's database, what was known of it stays. Times after the snapshot's own count as its own.
    """
    routes = None if snapshot.routes is None else by_server(snapshot.routes)
    api = snapshot.reading(Source.HUB_API)
    pending_known = api is not None and api.complete and api.detail != ALIVE
    by_server_key = {}
    for server in snapshot.servers:
        known = before.get(server.key)
        if known is None or not same_run(known.started, server.started):
            known = Seen(server.user, server.name, server.started)
        by_server_key[server.key] = _followed(
            known, server, routes, snapshot.taken_at, restores, pending_known=pending_known
        )
    return by_server_key


def pending_from(seen: Mapping[Key, Seen], hub_from: datetime | None) -> dict[Key, Seen]:
    """The same, but nothing has been pending since before ``hub_from``: a hub keeps in memory only what is pending."""
    if hub_from is None:
        return dict(seen)
    return {
        key: replace(known, pending_since=hub_from)
        if known.pending_since is not None and known.pending_since < hub_from
        else known
        for key, known in seen.items()
    }


ALIVE = "only asked whether it is there"
"""The detail of a complete reading of the hub's API that didn't list its servers, because its database did."""


def by_server(routes: Mapping[str, Route]) -> dict[tuple[str, str], Route]:
    """The routes that lead to servers, by (user, name)."""
    return {route.key: route for route in routes.values() if route.key is not None}


def _followed(
    known: Seen,
    server: Server,
    routes: Mapping[tuple[str, str], Route] | None,
    now: datetime,
    restores: tuple[Window, ...],
    *,
    pending_known: bool,
) -> Seen:
    missing, readded_at = known.route_missing, known.readded_at
    route = None
    if routes is not None:
        route = routes.get(server.key)
        if missing and route is not None:
            readded_at = route.last_activity
        missing = route is None and server.ready
    active_at, by = known.active_at, known.evidence
    for at, evidence in (
        (server.last_activity, Evidence.HUB),
        (route.last_activity if route else None, Evidence.PROXY),
        (server.started, Evidence.START),
    ):
        if at is None or (readded_at is not None and abs(at - readded_at) <= SAME):
            continue
        if evidence is not Evidence.START and by_restore(at, known.active_at, restores):
            readded_at = at
            continue
        if active_at is None or min(at, now) > active_at:
            active_at, by = min(at, now), evidence
    pending, pending_since = known.pending, known.pending_since
    if pending_known:
        if server.pending is None:
            pending_since = None
        elif pending != server.pending or pending_since is None:
            pending_since = now
        pending = server.pending
    return Seen(
        user=server.user,
        server=server.name,
        started=server.started,
        active_at=active_at,
        evidence=by,
        pending=pending,
        pending_since=pending_since,
        readded_at=readded_at,
        route_missing=missing,
    )
