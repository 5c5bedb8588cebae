"""Reading users again right before they are deleted: by the database alone only while that is proved to follow the hub."""

from __future__ import annotations

import asyncio
from dataclasses import replace
from datetime import timedelta

import pytest
from doubles.hub import MemoryHub
from following_db import FollowingDB
from virtual_time import VirtualClock

from hubguard.errors import HubDBError, OtherHubsDB
from hubguard.hub.nouns import Account, AccountServer
from hubguard.model import Server, User
from hubguard.prune.observe import AccountReader

AHEAD_S = 1.0
PROVED_S = 3.0

NAMES = ["ann", "bob", "carl", "dora"]


class World:
    """Four users whom nobody has seen for long, and the reader that looks at them."""

    def __init__(self) -> None:
        self.clock = VirtualClock()
        self.hub = MemoryHub(clock=self.clock)
        now = self.clock.now()
        for name in NAMES:
            self.hub.add_user(
                User(name, False, (), ("user",), now - timedelta(days=500), now - timedelta(days=400), ())
            )
        self.database = FollowingDB(self.hub)
        self.reader = AccountReader(self.hub, self.database, self.clock)

    def asked(self) -> list[str]:
        """Whom the hub was asked for."""
        return [request.user for request in self.hub.requests if request.call == "get-user"]

    async def deleted(self, name: str) -> bool:
        """The hub deletes that user; whether the database proves it."""
        user = self.hub._users[name]
        await self.hub.delete_user(name)
        return await self.reader.is_gone(name, user.created)


@pytest.fixture
def world() -> World:
    return World()


async def test_the_hub_is_asked_until_the_database_has_shown_that_it_follows(world: World):
    async def steps() -> None:
        assert await world.reader.again("ann", NAMES[1:]) is not None
        assert world.asked() == ["ann"]
        assert await world.deleted("ann")
        found = await world.reader.again("bob", NAMES[2:])
        assert found is not None
        assert found.name == "bob"
        assert world.asked() == ["ann"], "the hub makes a row for whoever is read"
        await world.clock.sleep(PROVED_S + 0.1)
        assert await world.reader.again("carl", NAMES[3:]) is not None
        assert world.asked() == ["ann", "carl"], "the proof has grown old"

    await world.clock.run(steps())


async def test_a_database_that_lags_behind_a_deletion_is_not_trusted_alone_any_more(world: World):
    async def steps() -> None:
        assert await world.deleted("ann")
        world.database.lags = True
        assert not await world.deleted("bob")
        world.hub.add(Server("carl", "lab", True, None, world.clock.now(), world.clock.now()))
        found = await world.reader.again("carl", ["dora"])
        assert found is not None
        assert [server.name for server in found.servers if server.active] == ["lab"]
        assert world.asked() == ["carl"]

    await world.clock.run(steps())


async def test_a_database_that_cant_be_read_is_no_proof(world: World):
    async def steps() -> None:
        assert await world.deleted("ann")
        world.database.fault = HubDBError("is locked")
        assert not await world.deleted("bob")
        world.database.fault = None
        await world.reader.again("carl", ["dora"])
        assert world.asked() == ["carl"]

    await world.clock.run(steps())


async def test_a_copy_that_is_behind_is_no_proof_though_another_one_was(world: World):
    """Behind a pooler, each reading may be answered by another server."""

    async def steps() -> None:
        assert await world.deleted("ann")
        # This one hasn't heard of it, nor of what is there since.
        world.database.lags = True
        world.database.users["ann"] = replace(world.database.users["bob"], name="ann")
        world.hub.add_user(replace(world.hub._users["bob"], last_activity=world.clock.now()))
        found = await world.reader.again("bob", ["carl", "dora"])
        assert found is not None
        assert found.last_activity == world.clock.now()
        assert world.asked() == ["bob"]

    await world.clock.run(steps())


async def test_rows_of_before_the_proof_dont_stand_alone_after_it(world: World):
    async def steps() -> None:
        world.database.lags = True
        world.database.users = dict(world.hub._shown_users())
        world.hub.add_user(replace(world.hub._users["bob"], last_activity=world.clock.now()))
        await world.reader.again("ann", ["bob", "carl"])
        world.database.lags = False
        assert await world.deleted("ann")
        found = await world.reader.again("bob", ["carl"])
        assert found is not None
        assert found.last_activity == world.clock.now()

    await world.clock.run(steps())


async def test_what_is_being_read_when_somebody_looks_anew_doesnt_count_afterwards(world: World):
    class Slow(FollowingDB):
        async def accounts(self, since, names=None):
            found = await super().accounts(since, names)
            await world.clock.sleep(0.1)
            return found

    world.reader = AccountReader(world.hub, Slow(world.hub), world.clock)

    async def steps() -> None:
        assert await world.deleted("ann")
        reading = asyncio.ensure_future(world.reader.again("bob", ["carl"]))
        await world.clock.sleep(0.05)
        world.hub.add_user(replace(world.hub._users["bob"], groups=("lab",)))
        world.hub.add_user(replace(world.hub._users["carl"], groups=("lab",)))
        world.reader.look_anew()
        for found in (await reading, await world.reader.again("carl", [])):
            assert found is not None
            assert found.groups == ("lab",)

    await world.clock.run(steps())


async def test_who_has_a_named_server_is_asked_for_at_the_hub_too(world: World):
    """A stop takes its address from the row before the hub has done with it."""
    world.database.belongings["bob"] = Account("bob", False, None, None, servers=(AccountServer("gpu", False),))

    async def steps() -> None:
        assert await world.deleted("ann")
        assert await world.reader.again("bob", ["carl"]) is not None
        assert await world.reader.again("carl", []) is not None
        assert world.asked() == ["bob"]

    await world.clock.run(steps())


async def test_what_happens_between_the_first_and_the_next_reading_is_seen_within_a_second(world: World):
    async def steps() -> None:
        assert await world.deleted("ann")
        await world.reader.again("bob", ["carl", "dora"])
        world.hub.add_user(replace(world.hub._users["carl"], last_activity=world.clock.now()))
        readings = world.database.calls
        await world.clock.sleep(AHEAD_S / 2)
        await world.reader.again("dora", [])
        assert world.database.calls == readings, "it was read ahead"
        await world.clock.sleep(AHEAD_S / 2 + 0.1)
        found = await world.reader.again("carl", ["dora"])
        assert found is not None
        assert found.last_activity is not None
        assert (world.clock.now() - found.last_activity).total_seconds() < 2 * AHEAD_S

    await world.clock.run(steps())


async def test_whoever_looks_anew_gets_nothing_that_was_read_or_proved_before(world: World):
    async def steps() -> None:
        assert await world.deleted("ann")
        await world.reader.again("bob", ["carl", "dora"])
        world.hub.add_user(replace(world.hub._users["carl"], groups=("lab",)))
        world.reader.look_anew()
        found = await world.reader.again("carl", ["dora"])
        assert found is not None
        assert found.groups == ("lab",)
        assert world.asked() == ["carl"]

    await world.clock.run(steps())


async def test_a_name_that_is_gone_is_told_as_gone_by_either(world: World):
    async def steps() -> None:
        await world.hub.delete_user("bob")
        assert await world.reader.again("bob", ["carl"]) is None
        assert await world.deleted("ann")
        del world.hub._users["carl"]
        assert await world.reader.again("carl", ["dora"]) is None
        assert world.asked() == ["bob", "carl"]

    await world.clock.run(steps())


async def test_a_proof_that_has_grown_old_while_the_reading_waited_is_none(world: World):
    class Queued(FollowingDB):
        async def accounts(self, since, names=None):
            await world.clock.sleep(PROVED_S + 0.1)
            return await super().accounts(since, names)

    world.reader = AccountReader(world.hub, Queued(world.hub), world.clock)

    async def steps() -> None:
        assert await world.deleted("ann")
        await world.reader.again("bob", [])
        assert world.asked() == ["bob"]

    await world.clock.run(steps())


async def test_a_database_of_another_hub_is_named_as_that(world: World):
    async def steps() -> None:
        world.database.lags = True
        world.database.users = {}
        with pytest.raises(OtherHubsDB, match="isn't this hub's"):
            await world.reader.again("bob", [])

    await world.clock.run(steps())
