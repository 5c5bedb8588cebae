"""One look at everything that has a word on the servers and routes, for telling where they differ."""

from __future__ import annotations

import asyncio
from collections.abc import Iterable, Mapping
from dataclasses import replace

from hubguard.clients.backends.port import Backends, Expected
from hubguard.clients.clock import Clock
from hubguard.clients.hub_api import HubAPI
from hubguard.clients.hub_db import HubDB, HubState
from hubguard.clients.proxy_api import ProxyAPI
from hubguard.decide.activity import ALIVE
from hubguard.decide.drift import suspects
from hubguard.drift import Key, ORMCounts, World
from hubguard.model import Reading, Route, Server, Snapshot, Source
from hubguard.observe.reading import Read, read

ASKED_ONE_BY_ONE = 20
"""The hub is asked for so many servers one by one. A list of 200 users holds it up as long as ten single questions do."""

RECENT_S = 90.0
"""A list of the hub's servers that is no older tells whom to ask it for; what it says of them is read anew."""

SELDOM_S = 600.0
"""The hub's services, and what dangles in its database, are read so often."""


class WorldObserver:
    """Looks at all sources of one hub. ``database``, ``proxy`` and ``backends`` are None where they can't be read.

    Without ``proxy`` the hub tells the table as it sees it. ``base_url`` is the hub's, with a slash at both ends.
    """

    def __init__(
        self,
        hub: HubAPI,
        clock: Clock,
        *,
        database: HubDB | None = None,
        proxy: ProxyAPI | None = None,
        backends: Backends | None = None,
        base_url: str = "/",
    ) -> None:
        self._hub = hub
        self._clock = clock
        self._database = database
        self._proxy = proxy
        self._backends = backends
        self._base_url = base_url
        self._prefixes: Mapping[str, str] | None = None
        self._prefixes_at_s = float("-inf")
        self._orm: ORMCounts | None = None
        self._orm_at_s = float("-inf")

    async def look(self, recent: Snapshot | None, also: Iterable[Key] = (), *, only: bool = False) -> World:
        """What all sources say now. Never raises for one that fails: its reading is then incomplete and says why.

        ``recent`` is a snapshot that spares the hub a list; None: it is asked for one. What it says of the servers over which
        the others seem to differ, and of ``also``, is read from the hub anew, after all other sources. ``only``: nothing but
        ``also`` matters, so that backends are asked for these alone where each has to be asked for.
        """
        at = self._clock.now()
        keys = set(also)
        of_database, of_routes = await asyncio.gather(self._read_database(), self._read_routes())
        readings = [one.reading for one in (of_database, of_routes) if one is not None]
        state = of_database.value if of_database is not None else None
        words, unsure, of_hub = await self._words(state, recent)
        targets = state.targets if state is not None else _by_route(of_routes.value)
        states = state.states if state is not None else {}
        expected = [
            Expected(*key, started=server.started, target=targets.get(key), state=states.get(key))
            for key, server in (words or {}).items()
            if server.ready and (key in keys or not only)
        ]
        backends, whole = None, False
        if self._backends is not None:
            told = await read(self._clock, Source.BACKEND, self._backends.look(expected))
            readings.append(told.reading)
            backends, whole = told.value, self._backends.whole
        world = World(
            at=at,
            readings=(of_hub, *readings),
            servers=words,
            unsure=unsure,
            routes=of_routes.value,
            targets=state.targets if state is not None else None,
            prefixes=await self._service_prefixes(),
            base_url=self._base_url,
            backends=backends,
            whole=whole,
            orm=await self._orm_counts(),
        )
        if words is None:
            return world
        return await self._ask_the_hub(world, sorted(keys if only else keys | set(suspects(world))))

    async def _words(
        self, state: HubState | None, recent: Snapshot | None
    ) -> tuple[dict[Key, Server] | None, frozenset[Key], Reading]:
        """What the hub says of its servers, for which of them that isn't sure, and the reading of its API."""
        if state is not None:
            alive = await read(self._clock, Source.HUB_API, self._hub.version(), ALIVE)
            servers = {server.key: server for server in state.servers}
            return servers, frozenset(servers), alive.reading
        listed = recent.reading(Source.HUB_API) if recent is not None else None
        if (
            recent is not None
            and listed is not None
            and listed.complete
            and listed.detail != ALIVE
            and (self._clock.now() - listed.at).total_seconds() <= RECENT_S
        ):
            servers = {server.key: server for server in recent.servers}
            return servers, frozenset(servers), listed
        whole = await read(self._clock, Source.HUB_API, self._hub.list_servers())
        if whole.value is None:
            return None, frozenset(), whole.reading
        return {server.key: server for server in whole.value}, frozenset(), whole.reading

    async def _ask_the_hub(self, world: World, keys: list[Key]) -> World:
        """``world`` with the hub's word on these servers read now. Where it doesn't answer for one, that one is unsure."""
        if not keys:
            return world
        assert world.servers is not None
        if len(keys) > ASKED_ONE_BY_ONE:
            whole = await read(self._clock, Source.HUB_API, self._hub.list_servers())
            if whole.value is None:
                return _with(world, whole.reading, unsure=frozenset({*world.servers, *keys}))
            return _with(
                world, whole.reading, servers={server.key: server for server in whole.value}, unsure=frozenset()
            )
        answers = await asyncio.gather(*(read(self._clock, Source.HUB_API, self._hub.get_server(*key)) for key in keys))
        servers, unsure = dict(world.servers), set(world.unsure)
        for key, answer in zip(keys, answers, strict=True):
            if not answer.reading.complete:
                unsure.add(key)
                continue
            unsure.discard(key)
            if answer.value is None:
                servers.pop(key, None)
            else:
                servers[key] = answer.value
        failed = [answer.reading for answer in answers if not answer.reading.complete]
        earliest = min(answers, key=lambda answer: answer.reading.at).reading
        return _with(world, failed[0] if failed else earliest, servers=servers, unsure=frozenset(unsure))

    async def _read_database(self) -> Read[HubState] | None:
        if self._database is None:
            return None
        return await read(self._clock, Source.HUB_DB, self._database.read())

    async def _read_routes(self) -> Read[Mapping[str, Route]]:
        if self._proxy is not None:
            return _as_mapping(await read(self._clock, Source.PROXY, self._proxy.routes()))
        return _as_mapping(await read(self._clock, Source.HUB_ROUTES, self._hub.list_routes()))

    async def _service_prefixes(self) -> Mapping[str, str] | None:
        """By name; None where the hub hasn't told them yet. A service that comes or goes takes a restart of the hub."""
        if self._clock.monotonic_s() - self._prefixes_at_s >= SELDOM_S:
            told = await read(self._clock, Source.HUB_API, self._hub.service_prefixes())
            if told.value is not None:
                self._prefixes, self._prefixes_at_s = told.value, self._clock.monotonic_s()
        return self._prefixes

    async def _orm_counts(self) -> ORMCounts | None:
        if self._database is not None and self._clock.monotonic_s() - self._orm_at_s >= SELDOM_S:
            told = await read(self._clock, Source.HUB_DB, self._database.orm_counts())
            if told.value is not None:
                self._orm, self._orm_at_s = told.value, self._clock.monotonic_s()
        return self._orm


def _by_route(routes: Mapping[str, Route] | None) -> dict[Key, str]:
    """Where each server is reached, by its route: for want of the hub's database."""
    return {route.key: route.target for route in (routes or {}).values() if route.key is not None}


def _with(world: World, of_hub: Reading, **changes: object) -> World:
    readings = tuple(of_hub if one.source is Source.HUB_API else one for one in world.readings)
    return replace(world, readings=readings, **changes)  # type: ignore[arg-type]


def _as_mapping(table: Read[dict[str, Route]]) -> Read[Mapping[str, Route]]:
    return Read(table.value, table.reading)
