"""A snapshot's sources: the database where it does, and the hub's whole list every ten minutes all the same."""

from __future__ import annotations

from datetime import timedelta

from doubles.hub import MemoryHub
from doubles.hub_db import MemoryHubDB
from doubles.proxy import MemoryProxy
from virtual_time import VirtualClock

from hubguard.model import User
from hubguard.snapshot.observe import Observer


async def test_with_the_database_the_hub_is_asked_for_its_list_every_ten_minutes():
    clock = VirtualClock()
    hub, database = MemoryHub(clock=clock), MemoryHubDB(User("ann", False))
    observer = Observer(hub, clock, database=database)
    await clock.run(clock.sleep(10_000))
    listed = []
    for _ in range(25):
        before = len(hub.requests)
        await clock.run(observer.look())
        if any(request.call == "list" for request in hub.requests[before:]):
            listed.append(clock.now())
        await clock.run(clock.sleep(60))
    assert [later - listed[0] for later in listed] == [timedelta(), timedelta(minutes=10), timedelta(minutes=20)]


async def test_routes_that_were_read_in_the_last_two_seconds_are_not_read_again():
    clock = VirtualClock()
    proxy = MemoryProxy(clock=clock)
    observer = Observer(MemoryHub(clock=clock), clock, proxy=proxy)
    await clock.run(clock.sleep(1000))
    for after_s, asked in ((0, 1), (2.0, 1), (0.1, 2)):
        await clock.run(clock.sleep(after_s))
        assert await clock.run(observer.routes()) is not None
        assert len(proxy.requests) == asked
    proxy.kill()
    await clock.run(clock.sleep(3))
    assert await clock.run(observer.routes()) is None
    assert await Observer(MemoryHub(clock=clock), clock).routes() == {}
