"""One look at the world: every source read once, each with its own age and completeness."""

from __future__ import annotations

import asyncio
from collections.abc import Mapping
from dataclasses import replace
from datetime import datetime

from hubguard.hub.api import HubAPI
from hubguard.hub.database import HubDB
from hubguard.hub.reading import read
from hubguard.model import Reading, Route, Server, Source, User, same_run
from hubguard.pacing.clock import Clock
from hubguard.proxy.client import ProxyAPI
from hubguard.snapshot.decide.activity import ALIVE, by_server
from hubguard.snapshot.model import Snapshot

WHOLE_S = 600.0
"""Seconds between whole lists from the API when the hub's database is read: only the API shows what is pending."""

ROUTES_LAST_S = 2.0
"""Seconds for which the proxy's table serves second looks. Reading 10,000 routes takes it 15 ms."""


class Observer:
    """Takes snapshots of one hub. ``database`` and ``proxy`` are None if no setting gives access to them."""

    def __init__(
        self, hub: HubAPI, clock: Clock, *, database: HubDB | None = None, proxy: ProxyAPI | None = None
    ) -> None:
        self._hub = hub
        self._clock = clock
        self._database = database
        self._proxy = proxy
        self._whole_at_s = float("-inf")
        self._starts: dict[tuple[str, str], datetime] = {}
        self._routes: Mapping[tuple[str, str], Route] | None = None
        self._routes_at_s = float("-inf")
        self._reading_routes = asyncio.Lock()

    async def look(
        self, *, inactive_since: datetime | None = None, users: bool = False, whole: bool = False
    ) -> Snapshot:
        """A snapshot of the servers that the hub calls active, and with ``users`` of those inactive since then (or all).

        Never raises for a source that fails: its reading is then incomplete and says why, and its part of the snapshot is
        empty or None. ``readings[...].at`` is the time before the source was read, so that an age is never understated.
        ``whole``: the list is read from the hub's API even if its database would do.
        """
        taken_at = self._clock.now()
        servers: tuple[Server, ...] = ()
        users_total: int | None = None
        readings = []
        from_database = None
        if self._database is not None:
            from_database = await read(self._clock, Source.HUB_DB, self._database.read())
            readings.append(from_database.reading)
        if from_database is not None and from_database.value is not None and not (whole or self._whole_is_due()):
            servers, users_total = from_database.value.servers, from_database.value.users_total
            alive = await read(self._clock, Source.HUB_API, self._hub.version(), ALIVE)
            readings.append(alive.reading)
        else:
            listed = await read(self._clock, Source.HUB_API, self._listed())
            readings.append(listed.reading)
            if listed.value is not None:
                servers, users_total = listed.value
                self._whole_at_s = self._clock.monotonic_s()
        servers = self._as_first_seen(servers)
        inactive: tuple[User, ...] | None = None
        if users and all(reading.complete for reading in readings if reading.source is Source.HUB_API):
            inactive, failed = await self._inactive(inactive_since)
            readings = [failed if failed and reading.source is Source.HUB_API else reading for reading in readings]
        routes = None
        if self._proxy is not None:
            of_proxy = await read(self._clock, Source.PROXY, self._proxy.routes())
            readings.append(of_proxy.reading)
            routes = of_proxy.value
            self._keep(routes)
        return Snapshot(taken_at, servers, tuple(readings), users_total, inactive, routes)

    def _as_first_seen(self, servers: tuple[Server, ...]) -> tuple[Server, ...]:
        """Each with its start as first reported: a run is known by that, whichever source reports it."""
        same = []
        for server in servers:
            first = self._starts.get(server.key)
            if first is not None and first != server.started and same_run(first, server.started):
                server = replace(server, started=first)  # noqa: PLW2901
            same.append(server)
        if servers:
            self._starts = {server.key: server.started for server in same if server.started is not None}
        return tuple(same)

    async def _inactive(self, since: datetime | None) -> tuple[tuple[User, ...] | None, Reading | None]:
        """Those users, or None and the reading that says why; from the hub's database if it can be read."""
        if self._database is not None:
            answer = await read(self._clock, Source.HUB_DB, self._database.inactive_users(since or self._clock.now()))
            if answer.value is not None:
                return answer.value, None
        listed = await read(self._clock, Source.HUB_API, self._hub.list_users(inactive_since=since))
        return listed.value, None if listed.reading.complete else listed.reading

    async def routes(self) -> Mapping[tuple[str, str], Route] | None:
        """The proxy's routes by (user, name) of the server, as of two seconds ago at most; None if they can't be read.

        Without access to the proxy, there are none.
        """
        if self._proxy is None:
            return {}
        async with self._reading_routes:
            if self._clock.monotonic_s() - self._routes_at_s > ROUTES_LAST_S:
                self._keep((await read(self._clock, Source.PROXY, self._proxy.routes())).value)
            return self._routes

    def _keep(self, routes: Mapping[str, Route] | None) -> None:
        self._routes = None if routes is None else by_server(routes)
        self._routes_at_s = self._clock.monotonic_s()

    def _whole_is_due(self) -> bool:
        return self._clock.monotonic_s() - self._whole_at_s >= WHOLE_S

    async def _listed(self) -> tuple[tuple[Server, ...], int]:
        return await self._hub.list_servers(), await self._hub.count_users()
