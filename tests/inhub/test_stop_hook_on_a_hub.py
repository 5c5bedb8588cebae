"""The look after each stop, in real hubs whose spawners misbehave. HubGuard's process and page are stand-ins."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from typing import Any

import pytest
from aiohttp import web
from guarded import INCLUDE, servers
from stand_ins import stand_in

from hubguard.staging.hub import TestbedHub
from hubguard.staging.population import Population, SeededServer

MakeHub = Callable[..., Awaitable[TestbedHub]]

SLOW_STOP = 'c.JupyterHub.tornado_settings = {"slow_stop_timeout": 1.5}\n'
"""A stop that takes longer than this many seconds is answered 202, one that doesn't 204."""

NOTING = """
def note(word):
    def hook(spawner):
        with open("hooks", "a") as file:
            file.write(f"{word} {spawner.user.name}\\n")
    return hook
"""


class Page:
    """What the hub told at HubGuard's address. Where it ``hangs``, nothing is ever answered."""

    def __init__(self, hangs: bool) -> None:
        self.hangs = hangs
        self.told: list[dict[str, Any]] = []
        self.tokens: set[str] = set()

    async def outlived(self, request: web.Request) -> web.Response:
        self.told.append(await request.json())
        self.tokens.add(request.headers["Authorization"].removeprefix("token "))
        if self.hangs:
            await asyncio.sleep(600)
        return web.Response(status=204)

    async def of(self, hub: TestbedHub, *users: str) -> list[dict[str, Any]]:
        """All that was told, once that is of each of ``users``."""

        async def there() -> bool:
            return {told["user"] for told in self.told} >= set(users)

        await hub.wait_for(there, f"the hub to tell of {users}")
        return self.told


@asynccontextmanager
async def page(*, hangs: bool = False) -> AsyncIterator[tuple[Page, str]]:
    """The page, and the config lines of a hub that takes it for HubGuard's."""
    made = Page(hangs)
    app = web.Application()
    app.router.add_post("/services/hubguard/api/v1/outlived", made.outlived)
    runner = web.AppRunner(app, shutdown_timeout=0.1)
    await runner.setup()
    try:
        site = web.TCPSite(runner, "127.0.0.1", 0)
        await site.start()
        url = f"http://127.0.0.1:{runner.addresses[0][1]}"
        yield made, f"c.HubGuard.url = {url!r}\n{INCLUDE}{stand_in('import time; time.sleep(600)')}"
    finally:
        await runner.cleanup()


async def stop(hub: TestbedHub, user: str) -> int:
    """The hub's answer to a stop of the default server of ``user``."""
    return (await hub.api("DELETE", f"users/{user}/server")).status


async def test_orphans_are_reported_within_their_stop_and_sound_stops_are_not(testbed_hub: MakeHub):
    """Those that were there when the hub started among them; and an operator's hook, set after the include, runs once."""
    population = Population(
        servers=(SeededServer("restored", idle_for_s=60.0, on_stop="raises"), SeededServer("sound", shared=False))
    )
    async with page() as (told, config):
        hub = await testbed_hub(
            population=population, config=f"{config}{NOTING}c.LittleSpawner.post_stop_hook = note('theirs')\n"
        )
        await hub.start_server("ada", on_stop="raises")
        for user in ("sound", "ada", "restored"):
            assert await stop(hub, user) == 204
        found = await told.of(hub, "ada", "restored")
        assert sorted((one["user"], one["server"]) for one in found) == [("ada", ""), ("restored", "")]
        assert found[0]["detail"] == "LittleSpawner.poll() still found it after the stop"
        (token,) = told.tokens
        assert (await hub.api("GET", "user", token=token)).data["name"] == "hubguard"
        assert (hub.folder / "hooks").read_text().splitlines() == ["theirs sound", "theirs ada", "theirs restored"]


@pytest.mark.long
@pytest.mark.parametrize(
    ("hooks", "said"),
    [
        ("{include}c.Spawner.post_stop_hook = note('spawner')\n", ["spawner ada"]),
        ("c.Spawner.post_stop_hook = note('spawner')\n{include}", ["spawner ada"]),
        # The nearer class has the say, as ever.
        (
            "c.Spawner.post_stop_hook = note('spawner')\n{include}c.LittleSpawner.post_stop_hook = note('little')\n",
            ["little ada"],
        ),
        (
            "{include}"
            "async def one(spawner):\n    note('one')(spawner)\n    raise RuntimeError('theirs')\n"
            "def pre(spawner):\n    spawner.post_stop_hook = one\n"
            "c.Spawner.pre_spawn_hook = pre\n",
            ["one ada"],
        ),
        (
            "{include}"
            "from hubguard.staging.spawner import LittleSpawner\nfrom traitlets import default\n"
            "class Campus(LittleSpawner):\n"
            "    @default('post_stop_hook')\n"
            "    def _hook(self):\n        return note('campus')\n"
            "c.JupyterHub.spawner_class = Campus\n",
            ["campus ada"],
        ),
    ],
)
async def test_a_hook_runs_once_wherever_it_is_set(testbed_hub: MakeHub, hooks: str, said: list[str]):
    async with page() as (told, config):
        hub = await testbed_hub(config=NOTING + hooks.format(include=config))
        await hub.start_server("ada", on_stop="raises")
        assert await stop(hub, "ada") == 204
        assert [one["user"] for one in await told.of(hub, "ada")] == ["ada"]
        assert (hub.folder / "hooks").read_text().splitlines() == said


@pytest.mark.long
async def test_a_page_that_hangs_or_is_down_slows_no_stop(testbed_hub: MakeHub):
    async with page(hangs=True) as (told, config):
        hub = await testbed_hub(config=config + SLOW_STOP, population=servers(ada=60.0, bob=60.0))
        await hub.start_server("eve", on_stop="raises")
        await hub.start_server("fay", on_stop="raises")
        assert await stop(hub, "eve") == 204
        await told.of(hub, "eve")
    assert await stop(hub, "fay") == 204
    assert await stop(hub, "ada") == 204
    assert [one["user"] for one in told.told] == ["eve"]


HANGING = """
import asyncio
from hubguard.staging.spawner import LittleSpawner
class HangingSpawner(LittleSpawner):
    ended = False
    async def stop(self, now=False):
        await super().stop(now)
        self.ended = True
    async def poll(self):
        if self.ended:
            with open("polls", "a") as file:
                file.write(f"{self.user.name}\\n")
            await asyncio.sleep(600)
        return await super().poll()
c.JupyterHub.spawner_class = HangingSpawner
c.HangingSpawner.folder = c.LittleSpawner.folder
"""


@pytest.mark.long
async def test_a_poll_that_hangs_is_waited_for_no_longer_than_its_bound(testbed_hub: MakeHub):
    async with page() as (told, config):
        hub = await testbed_hub(config=config + HANGING)  # a slow stop: ten seconds; the bound: two
        await hub.start_server("ada")
        assert await stop(hub, "ada") == 204
        assert await hub.server("ada") is None
        assert (hub.folder / "polls").read_text().splitlines() == ["ada"]
        assert told.told == []
        await hub.start_server("ada")  # the poll of the run before has no hold on it
