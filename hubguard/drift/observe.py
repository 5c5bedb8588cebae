"""One look at every source that knows servers or routes."""

from __future__ import annotations

import asyncio
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import replace
from urllib.parse import unquote

from hubguard.backends.model import Backend
from hubguard.backends.port import Backends, Expected
from hubguard.drift.decide.follow import suspects
from hubguard.drift.model import World
from hubguard.errors import BackendError, HubGuardError
from hubguard.hub.api import HubAPI
from hubguard.hub.database import HubDB, HubState
from hubguard.hub.http import printable
from hubguard.hub.names import addressable
from hubguard.hub.nouns import ORMCounts
from hubguard.hub.reading import Read, read
from hubguard.model import Key, Reading, Route, Server, Source
from hubguard.pacing.clock import Clock
from hubguard.proxy.client import ProxyAPI
from hubguard.snapshot.decide.activity import ALIVE
from hubguard.snapshot.model import Snapshot

ASKED_ONE_BY_ONE = 20
"""Maximum servers that the hub is asked about one by one. A list of 200 users costs it as much as ten single requests."""

RECENT_S = 90.0
"""Maximum age in seconds of a list of servers that says which ones to ask about. What it says of them is read again."""

SELDOM_S = 600.0
"""Seconds between reads of the hub's services and of dangling rows in its database; RECENT_S after a failure."""

BACKENDS_S = 60.0
"""Maximum seconds for a look at the backends. Our own take at most 30 s; others may have no limit."""


class WorldObserver:
    """Looks at all sources of one hub. ``database``, ``proxy`` and ``backends`` are None if they can't be read.

    Without ``proxy``, the table is read through the hub. ``base_url`` is the hub's, with a slash at both ends.
    ``subdomains``: each user and service has a host of its own; the hub doesn't report those of its services.
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
        subdomains: bool = False,
    ) -> None:
        self._hub = hub
        self._clock = clock
        self._database = database
        self._proxy = proxy
        self._backends = backends
        self._base_url = base_url
        self._subdomains = subdomains
        self._hub_route = "/" if subdomains else None
        self._prefixes: Mapping[str, str] | None = None
        self._prefixes_due_s = float("-inf")
        self._orm: ORMCounts | None = None
        self._orm_due_s = float("-inf")
        self._listed: tuple[Reading, tuple[Server, ...]] | None = None
        self._given_up: set[asyncio.Future[tuple[tuple[Backend, ...], bool]]] = set()

    async def look(
        self, recent: Snapshot | None, also: Iterable[Key] = (), *, only: bool = False, routes_only: bool = False
    ) -> World:
        """What all sources say now. Never raises for a source that fails: its reading is incomplete and says why.

        ``recent`` is a snapshot that spares the hub a list; without it the hub is asked for one, unless it recently was.
        Servers about which the other sources seem to differ, those that are pending, and those in ``also`` are read from the
        hub again, after all other sources. ``only``: nothing but ``also`` matters, so only their backends are looked at.
        ``routes_only``: backends don't matter and aren't looked at.
        """
        at = self._clock.now()
        keys = set(also)
        of_database, of_routes = await asyncio.gather(self._read_database(), self._read_routes())
        readings = [answer.reading for answer in (of_database, of_routes) if answer is not None]
        state = of_database.value if of_database is not None else None
        words, unsure, of_hub = await self._words(state, recent)
        if recent is not None and not only:
            # Whatever its database says: only the hub's API knows what is pending.
            keys.update(server.key for server in recent.servers if server.pending is not None)
        targets = state.targets if state is not None else _by_route(of_routes.value)
        states = state.states if state is not None else {}
        expected = [
            Expected(*key, started=server.started, target=targets.get(key), state=states.get(key))
            for key, server in (words or {}).items()
            if server.ready and (key in keys or not only)
        ]
        self._learn_hub_route(of_routes.value)
        backends, whole = None, False
        if self._backends is not None and not routes_only:
            answer = await read(self._clock, Source.BACKEND, self._ask_backends(self._backends, expected))
            readings.append(answer.reading)
            if answer.value is not None:
                backends, whole = answer.value
        world = World(
            at=at,
            readings=(of_hub, *readings),
            servers=words,
            unsure=unsure,
            routes=of_routes.value,
            targets=state.targets if state is not None else None,
            prefixes=await self._service_prefixes(of_hub, of_routes.value),
            base_url=self._base_url,
            hub_route=self._hub_route,
            backends=backends,
            whole=whole,
            orm=await self._orm_counts(state),
        )
        if words is None or not of_hub.complete:
            # A hub in trouble isn't asked about each server: nothing could be concluded.
            return world
        world = await self._ask_the_hub(world, sorted(keys if only else keys | set(suspects(world))))
        return _with_unasked(world, expected, keys if only else set(world.servers or ()))

    async def _words(
        self, state: HubState | None, recent: Snapshot | None
    ) -> tuple[dict[Key, Server] | None, frozenset[Key], Reading]:
        """What the hub says of its servers, for which of them that isn't sure, and the reading of its API.

        If its servers are known from elsewhere, the hub is only asked whether it is there: its word from a minute ago can't
        show what is missing elsewhere now.
        """
        known = state.servers if state is not None else self._listed_lately(recent)
        if known is not None:
            alive = await read(self._clock, Source.HUB_API, self._hub.version(), ALIVE)
            servers = {server.key: server for server in known}
            return servers, frozenset(servers), alive.reading
        whole = await self._list()
        if whole.value is None:
            return None, frozenset(), whole.reading
        servers = {server.key: server for server in whole.value}
        # Backends are read after it: a server that stops meanwhile isn't dead.
        return servers, frozenset(key for key, server in servers.items() if server.pending is None), whole.reading

    def _listed_lately(self, recent: Snapshot | None) -> tuple[Server, ...] | None:
        """The last list of the hub's servers, whoever asked for it, if it is recent enough."""
        lists = [] if self._listed is None else [self._listed]
        answer = recent.reading(Source.HUB_API) if recent is not None else None
        if recent is not None and answer is not None and answer.complete and answer.detail != ALIVE:
            lists.append((answer, recent.servers))
        # A list from the future is from before our clock was put back, nobody knows by how much.
        ages = [((self._clock.now() - reading.at).total_seconds(), servers) for reading, servers in lists]
        young = [(age_s, servers) for age_s, servers in ages if 0 <= age_s <= RECENT_S]
        return min(young, key=lambda pair: pair[0])[1] if young else None

    async def _list(self) -> Read[tuple[Server, ...]]:
        whole = await read(self._clock, Source.HUB_API, self._hub.list_servers())
        if whole.value is not None:
            self._listed = (whole.reading, whole.value)
        return whole

    async def _ask_the_hub(self, world: World, keys: list[Key]) -> World:
        """``world`` with the hub's word on these servers read now. A server for which it doesn't answer is unsure."""
        nameless = {key for key in keys if not (addressable(key[0]) and addressable(key[1]))}
        world = replace(world, unsure=world.unsure | nameless)
        keys = [key for key in keys if key not in nameless]
        if not keys:
            return world
        assert world.servers is not None
        if len(keys) > ASKED_ONE_BY_ONE:
            whole = await self._list()
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

    async def _ask_backends(self, backends: Backends, expected: Sequence[Expected]) -> tuple[tuple[Backend, ...], bool]:
        """The backends, and whether these are all. Raises BackendError, whatever they do, within BACKENDS_S."""
        if self._given_up:
            raise BackendError("The last look at the backends still hangs, so there is no other.")
        asking = asyncio.ensure_future(_look_at(backends, expected))
        patience = asyncio.ensure_future(self._clock.sleep(BACKENDS_S))
        try:
            await asyncio.wait({asking, patience}, return_when=asyncio.FIRST_COMPLETED)
        finally:
            patience.cancel()
            if not asking.done():
                self._given_up.add(asking)
                asking.add_done_callback(self._ended_after_all)
                asking.cancel()
        if not asking.done():
            raise BackendError(f"The look at the backends took over {BACKENDS_S:g} s and was given up.")
        if asking.cancelled():
            raise BackendError("The look at the backends was cancelled.")
        return asking.result()

    def _ended_after_all(self, asking: asyncio.Future[tuple[tuple[Backend, ...], bool]]) -> None:
        self._given_up.discard(asking)
        if not asking.cancelled():
            asking.exception()  # nobody waits for it any more

    async def _service_prefixes(self, of_hub: Reading, routes: Mapping[str, Route] | None) -> Mapping[str, str] | None:
        """The prefixes by name; None if the hub doesn't report them. Services come and go with a restart of the hub.

        So if only a service has no route, the hub is asked again: the service may be gone.
        """
        if self._subdomains:
            return None
        lacks = (
            self._prefixes is not None and routes is not None and (self._hub_route or _path(self._base_url)) in routes
        )
        lacks = lacks and not all(_path(prefix) in (routes or {}) for prefix in (self._prefixes or {}).values())
        now_s = self._clock.monotonic_s()
        if of_hub.complete and (lacks or now_s >= self._prefixes_due_s):
            answer = await read(self._clock, Source.HUB_API, self._hub.service_prefixes())
            self._prefixes = answer.value
            self._prefixes_due_s = now_s + (SELDOM_S if answer.value is not None else RECENT_S)
        return self._prefixes

    def _learn_hub_route(self, routes: Mapping[str, Route] | None) -> None:
        """Keep where the hub's own route is, so that it is missed there: JupyterHub.hub_routespec may name any path."""
        paths = [path for path, route in (routes or {}).items() if route.hub]
        if paths and self._hub_route not in paths:
            self._hub_route = min(paths)

    async def _orm_counts(self, state: HubState | None) -> ORMCounts | None:
        now_s = self._clock.monotonic_s()
        if self._database is not None and state is not None and now_s >= self._orm_due_s:
            answer = await read(self._clock, Source.HUB_DB, self._database.orm_counts())
            self._orm = answer.value
            self._orm_due_s = now_s + (SELDOM_S if answer.value is not None else RECENT_S)
        return self._orm


async def _look_at(backends: Backends, expected: Sequence[Expected]) -> tuple[tuple[Backend, ...], bool]:
    try:
        answer, whole = tuple(await backends.look(expected)), bool(backends.whole)
    except HubGuardError:
        raise
    except Exception as error:  # it may be anybody's
        what = f"{type(error).__name__}: {printable(str(error))}"
        raise BackendError(f"The look at the backends failed in an unexpected error: {what}") from error
    strange = [item for item in answer if not isinstance(item, Backend)]
    if strange:
        what = printable(type(strange[0]).__name__)
        raise BackendError(f"The look at the backends returned a {what} instead of a Backend.")
    return answer, whole


def _path(prefix: str) -> str:
    """The table's form of that path of a URL."""
    return "/" + unquote(prefix).strip("/")


def _by_route(routes: Mapping[str, Route] | None) -> dict[Key, str]:
    """Where each server is reached, by its route, without the hub's database."""
    return {route.key: route.target for route in (routes or {}).values() if route.key is not None}


def _with_unasked(world: World, expected: Sequence[Expected], among: Iterable[Key]) -> World:
    """``world`` with an unknown backend for each of these servers that became ready after the look at the backends.

    That look was for an older list, and a backend that nobody looked for isn't gone.
    """
    if world.backends is None or world.servers is None:
        return world
    asked = {(server.user, server.server) for server in expected} | {backend.key for backend in world.backends}
    late = [key for key in sorted(among) if key in world.servers and world.servers[key].ready and key not in asked]
    unasked = [
        Backend("unknown", f"of {user}/{name}", user, name, None, "not looked for", detail="by then it wasn't ready")
        for user, name in late
    ]
    return replace(world, backends=(*world.backends, *unasked)) if unasked else world


def _with(world: World, of_hub: Reading, **changes: object) -> World:
    readings = tuple(of_hub if reading.source is Source.HUB_API else reading for reading in world.readings)
    return replace(world, readings=readings, **changes)  # type: ignore[arg-type]


def _as_mapping(table: Read[dict[str, Route]]) -> Read[Mapping[str, Route]]:
    return Read(table.value, table.reading)
