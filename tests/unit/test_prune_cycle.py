"""Pruning in virtual time: a hub and its database in memory, a journal, and everything that can happen to a plan."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import AsyncIterator, Awaitable, Callable
from dataclasses import dataclass, replace
from datetime import timedelta
from pathlib import Path

import pytest
from inline_books import InlineBooks
from virtual_time import VirtualClock

from hubguard import config
from hubguard.clients import undo_file
from hubguard.clients.budget import Budget
from hubguard.clients.memory_hub import MemoryHub
from hubguard.clients.memory_hub_db import MemoryHubDB
from hubguard.loop import Guard
from hubguard.model import OutcomeKind, User
from hubguard.prune import PruneState, StaleCriteria
from hubguard.prune_cycle import Told

DAY_S = 86400.0
STALE = StaleCriteria(inactive_for_s=180 * DAY_S, never_active_for_s=180 * DAY_S)
TOLD = Told(frozenset(), ("jupyterhub.spawner.LocalProcessSpawner",), {}, False)
PACE = {"rate": 1000.0, "burst": 100, "concurrency": 8}


@dataclass
class World:
    clock: VirtualClock
    hub: MemoryHub
    database: MemoryHubDB | None
    books: InlineBooks
    guard: Guard

    @property
    def pruning(self):
        return self.guard.pruning

    def user(self, name: str, idle_days: float | None = 400, **fields: object) -> None:
        now = self.clock.now()
        seen = None if idle_days is None else now - timedelta(days=idle_days)
        user = User(name, False, (), ("user",), now - timedelta(days=500), seen)
        user = replace(user, **fields)
        self.hub.add_user(user)

    def asked_to_delete(self) -> list[str]:
        return [request.user for request in self.hub.requests if request.call == "delete"]

    def there(self) -> set[str]:
        return set(self.hub._users)

    def entries(self, event: str) -> list:
        return list(reversed(self.books.journal.entries(event=event, limit=10000)))

    @contextlib.asynccontextmanager
    async def living(self) -> AsyncIterator[None]:
        """The guard lives while the block lasts. Use it within :meth:`run`."""
        task = asyncio.ensure_future(self.guard.run())
        try:
            while self.guard.status().last_cycle is None:
                await self.clock.sleep(1)
            yield
            assert not task.done(), task.exception()
        finally:
            task.cancel()
            await asyncio.gather(task, return_exceptions=True)

    async def until(self, digest: str, *states: PruneState, for_s: float = 3600.0):
        until_s = self.clock.monotonic_s() + for_s
        while (run := await self.pruning.run(digest)).state not in states:
            assert self.clock.monotonic_s() < until_s, run
            await self.clock.sleep(1)
        return run

    async def apply(self, criteria: StaleCriteria = STALE):
        plan = await self.pruning.plan(criteria, "ada")
        await self.pruning.apply(plan.digest, len(plan.deletions), "ada", "the term is over")
        return plan


MakeWorld = Callable[..., Awaitable[World]]


class FollowingDB(MemoryHubDB):
    """Tells what the hub in memory has."""

    def __init__(self, hub: MemoryHub) -> None:
        super().__init__()
        self._hub = hub

    def _asked(self) -> None:
        super()._asked()
        self.users = dict(self._hub._shown_users())


@pytest.fixture
async def world(tmp_path: Path) -> MakeWorld:
    async def make(
        *,
        books: InlineBooks | None = None,
        clock: VirtualClock | None = None,
        hub: MemoryHub | None = None,
        with_database: bool = True,
        told: Told | None = TOLD,
        prune: dict[str, object] | None = None,
        layers: dict[str, dict[str, object]] | None = None,
        **options: object,
    ) -> World:
        settings = config.load(
            {"HubGuard": {"armed": True}, "HubGuardBudget": PACE},
            {"HubGuardPrune": {"delete_users": True, "undo_folder": str(tmp_path / "undo"), **(prune or {})}},
            layers or {},
            environ={},
        )
        assert not settings.errors
        clock = clock or VirtualClock()
        budget = Budget(rate=1000.0, burst=100, concurrency=8, clock=clock)
        hub = hub or MemoryHub(clock=clock, budget=budget)
        hub.scopes = frozenset({*hub.scopes, "read:tokens"})
        books = books or await InlineBooks.open()
        books.close = lambda: None  # type: ignore[method-assign]  # it is read after the guard has ended

        async def open_books() -> InlineBooks:
            return books

        database = FollowingDB(hub) if with_database else None
        guard = Guard(
            settings, hub, budget, open_books, clock, lambda: 0.5, holder=str(options.pop("holder", "here")),
            address="http://here/", generation=0.0, database=database, told=told, **options,
        )  # fmt: skip
        return World(clock, hub, database, books, guard)

    return make


@pytest.mark.parametrize("with_database", [True, False])
async def test_a_plan_that_is_applied_deletes_its_users_and_nobody_else(world: MakeWorld, with_database: bool):
    w = await world(with_database=with_database)
    for name in ("ann", "bob/é#?%", "carl"):
        w.user(name)
    w.user("busy", 3)
    w.user("boss", admin=True)

    async def life() -> None:
        async with w.living():
            plan = await w.apply()
            assert [deletion.user for deletion in plan.deletions] == ["ann", "bob/é#?%", "carl"]
            run = await w.until(plan.digest, PruneState.DONE)
            assert (run.done, run.skipped, run.failed, run.unverified) == (3, 0, 0, 0)
            assert run.actor == "ada"
            head, users = undo_file.read(Path(run.undo_file), sha256=run.undo_sha256)
            assert head.digest == plan.digest
            assert [user.name for user in users] == ["ann", "bob/é#?%", "carl"]
            assert all((user.rows is not None) is with_database for user in users)
            items = await w.pruning.items(plan.digest)
            assert {item.state for item in items} == {"done"}
            assert w.guard.status().pruned.done == 3
            assert w.guard.status().prune_waiting == 0

    await w.clock.run(life())
    assert w.there() == {"busy", "boss"}
    assert sorted(w.asked_to_delete()) == ["ann", "bob/é#?%", "carl"]
    intents, outcomes = w.entries("intent"), w.entries("outcome")
    assert [entry.outcome for entry in outcomes] == [OutcomeKind.DONE] * 3
    assert {entry.refers_to for entry in outcomes} == {entry.id for entry in intents}
    assert {entry.reason for entry in intents} == {"inactive"}
