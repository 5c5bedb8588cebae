"""Repairs on a real hub with real processes: what is broken is put right and seen to be, and what is healthy stays."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from datetime import datetime, timezone

import aiohttp
import pytest

from hubguard.act.lease import Books, LeaseKeeper
from hubguard.act.repair import Repairer
from hubguard.act.verify import CHANGED_NOTHING
from hubguard.clients.backends.port import Place
from hubguard.clients.backends.process import ProcessBackends
from hubguard.clients.budget import Budget
from hubguard.clients.clock import SystemClock
from hubguard.clients.hub_api import HTTPHubAPI
from hubguard.decide.drift import DriftPolicy, follow, plan_repairs
from hubguard.drift import Drift, Key, World
from hubguard.model import ActionKind, DriftKind, Outcome, OutcomeKind, Reading, Source
from hubguard.testbed.hub import TestbedHub

POLICY = DriftPolicy(sightings=1, for_s=0.0, clear_after=1, pending_limit_s=3.0)
CONFIG = "c.JupyterHub.last_activity_interval = 0\nc.Spawner.poll_interval = 3600\n"


@dataclass
class Scene:
    """A guard's hands on a hub, without a guard."""

    hub: TestbedHub
    api: HTTPHubAPI
    backends: ProcessBackends
    books: Books
    keeper: LeaseKeeper
    verify_s: float = 15.0
    ghosts: set[tuple[str, str, datetime | None]] = field(default_factory=set)
    found: tuple[Drift, ...] = ()

    async def look(self, keys: Sequence[Key]) -> tuple[Drift, ...]:
        servers = {server.key: server for server in await self.api.list_servers()}
        routes = await self.api.list_routes()
        backends = await self.backends.look(())
        now = datetime.now(timezone.utc)
        sources = (Source.HUB_API, Source.HUB_ROUTES, Source.BACKEND)
        world = World(
            now,
            tuple(Reading(source, now, True, 0.0) for source in sources),
            servers,
            routes=routes,
            prefixes={},
            backends=backends,
            whole=self.backends.whole,
            ghosts=frozenset(self.ghosts),
        )
        self.found, _ = follow(self.found, world, POLICY)
        return tuple(d for d in self.found if not d.missed and (not keys or (d.user, d.server) in keys))

    async def see(self, kind: DriftKind) -> Drift:
        """That one difference, and no other, once it is there."""
        seen: tuple[Drift, ...] = ()

        async def there() -> bool:
            nonlocal seen
            seen = await self.look(())
            return any(drift.kind is kind for drift in seen)

        await self.hub.wait_for(there, f"a {kind.value}", 60)
        (drift,) = seen
        assert drift.kind is kind
        return drift

    async def repair(self, drift: Drift) -> Outcome:
        clock = SystemClock()
        told: list[Outcome] = []
        repairer = Repairer(
            self.api,
            self.backends,
            self.keeper,
            clock,
            self.look,
            verify_s=self.verify_s,
            told=lambda _, outcome: told.append(outcome),
        )
        plan = plan_repairs([drift], clock.now())
        ((_, outcome),) = await repairer.run(plan, "ann", asked=True, armed=None, concurrency=4, running=5)
        assert told == [outcome]
        assert not await self.books.call(self.books.journal.open_intents)
        return outcome


@asynccontextmanager
async def scene(config: str = "", *, external_proxy: bool = False) -> AsyncIterator[Scene]:
    clock = SystemClock()
    budget = Budget(rate=200.0, burst=20, concurrency=10)
    async with TestbedHub(config=CONFIG + config, external_proxy=external_proxy) as hub:
        books = await Books.open("sqlite://")
        keeper = LeaseKeeper(books, clock, holder="me", address="", generation=1.0, lease_s=3600.0)
        assert await keeper.keep()
        backends = ProcessBackends(Place(hub.api_url))
        async with HTTPHubAPI(hub.api_url, hub.token, budget) as api:
            await hub.start_server("healthy")
            try:
                yield Scene(hub, api, backends, books, keeper)
                # Nothing healthy was touched.
                async with aiohttp.ClientSession() as session, session.get(f"{hub.url}user/healthy/api") as answer:
                    assert answer.status == 200
            finally:
                await backends.close()
                books.close()


async def test_a_killed_server_is_stopped_a_lost_route_is_back_and_an_orphan_is_ended():
    async with scene() as here:
        await here.hub.start_server("ann")
        await here.hub.kill_server("ann")
        dead = await here.see(DriftKind.SERVER_DEAD)
        assert (await here.repair(dead)).kind is OutcomeKind.DONE
        assert await here.hub.server("ann") is None

        await here.hub.start_server("bo", on_stop="raises")
        await here.hub.api("DELETE", "users/bo/server")
        orphan = await here.see(DriftKind.SERVER_ORPHAN)
        assert orphan.backend is not None
        outcome = await here.repair(orphan)
        assert outcome.kind is OutcomeKind.DONE, outcome
        assert not await here.look(())


async def test_a_route_that_was_deleted_is_back_and_one_that_leads_nowhere_is_gone():
    async with scene(external_proxy=True) as here:
        headers = {"Authorization": f"token {here.hub.proxy_token}"}
        stale = {"target": "http://127.0.0.1:9", "jupyterhub": True, "user": "gone", "server_name": ""}
        async with aiohttp.ClientSession(headers=headers) as session:
            async with session.delete(f"{here.hub.proxy_api_url}/api/routes/user/healthy/") as answer:
                assert answer.status == 204
            async with session.post(f"{here.hub.proxy_api_url}/api/routes/user/gone/", json=stale) as answer:
                assert answer.status == 201
        drifts = await here.look(())
        assert {drift.kind for drift in drifts} == {DriftKind.ROUTE_MISSING, DriftKind.ROUTE_STALE}
        assert (await here.repair(drifts[0])).kind is OutcomeKind.DONE
        assert not await here.look(())


async def test_a_start_that_is_stuck_is_interrupted():
    async with scene("c.JupyterHub.tornado_settings = {'slow_spawn_timeout': 0.5}\n") as here:
        await here.hub.api("POST", "users/ann")
        starting = asyncio.ensure_future(here.hub.api("POST", "users/ann/server", json={"start_s": 3000}))
        stuck = await here.see(DriftKind.PENDING_STUCK)
        outcome = await here.repair(stuck)
        assert outcome.kind is OutcomeKind.DONE, outcome
        assert await here.hub.server("ann") is None
        await starting


@pytest.mark.long
async def test_a_server_that_died_while_the_proxy_was_down_is_a_ghost_once_a_stop_changed_nothing_and_can_be_cured():
    async with scene("c.Spawner.poll_interval = 1\n", external_proxy=True) as here:
        here.verify_s = 3.0
        await here.hub.start_server("ann", stop_s=0.5)
        await here.hub.kill_proxy()
        await here.hub.kill_server("ann")
        await asyncio.sleep(35)  # the hub tries for half a minute to delete the route, and then never again
        await here.hub.start_proxy()
        await here.hub.api("POST", "proxy")
        dead = await here.see(DriftKind.SERVER_DEAD)
        failed = await here.repair(dead)
        assert failed.kind is OutcomeKind.FAILED
        assert failed.detail.startswith(CHANGED_NOTHING)
        here.ghosts.add(("ann", "", dead.started))
        ghost = await here.see(DriftKind.SERVER_GHOST)
        outcome = await here.repair(ghost)
        assert outcome.kind is OutcomeKind.DONE, outcome
        assert await here.hub.server("ann") is None
        # The hub gives a start the options of the one before.
        user = await here.hub.api("GET", "users/ann", params={"include_stopped_servers": "1"})
        assert user.data["servers"][""]["user_options"] == {"stop_s": 0.5}
        entries = await here.books.call(here.books.journal.entries, event="intent")
        assert [entry.action for entry in reversed(entries)] == [
            ActionKind.STOP_SERVER.value,
            ActionKind.START_AND_STOP.value,
            ActionKind.STOP_SERVER.value,
        ]
        assert not await here.look(())
