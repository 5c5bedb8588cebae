"""The testbed keeps what it promises, on a real hub with a real proxy: the tests built on it are worth as much."""

from __future__ import annotations

import asyncio
import os
import shutil
import signal
import subprocess
import sys
from collections.abc import Awaitable, Callable
from pathlib import Path
from urllib.parse import quote

import aiohttp
import psutil
import pytest
import pytest_asyncio
from real_hub import RealHub
from real_proxy import node_proxy_command

from hubguard.errors import HubGuardError
from hubguard.staging.hub import TestbedHub
from hubguard.staging.population import AWKWARD_NAMES, Population, SeededServer, made_up
from hubguard.staging.processes import find_proxy_command, free_ports
from hubguard.staging.seed import seed
from hubguard.staging.spawner import Little, born, launch

pytestmark = pytest.mark.any_hub

Hubs = Callable[..., Awaitable[TestbedHub]]

SLOW = "c.JupyterHub.tornado_settings = {'slow_stop_timeout': 0.5, 'slow_spawn_timeout': 0}\n"
ODD = {"raiser": "raises", "hanger": "hangs", "stubborn": "poll-raises"}


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def hub(shared_hub: Hubs) -> TestbedHub:
    """For all tests that kill neither hub nor proxy: each has its own users."""
    servers = [SeededServer("killed", shared=False), SeededServer("one"), SeededServer("two"), SeededServer("below")]
    servers += [SeededServer(user, shared=False, on_stop=way) for user, way in ODD.items()]
    config = SLOW + "c.Spawner.poll_interval = 1\nc.ConfigurableHTTPProxy.check_running_interval = 1\n"
    return await shared_hub(hub_prefix="/jupyter/", population=Population((), tuple(servers)), config=config)


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def outside(shared_hub: Hubs) -> TestbedHub:
    """With a proxy of its own, for those who kill one of the two and start it again."""
    servers = (SeededServer("own", shared=False), SeededServer("one"), SeededServer("two"))
    return await shared_hub(population=Population((), servers), external_proxy=True)


async def stop(hub: TestbedHub, user: str, name: str = "") -> int:
    path = f"users/{quote(user, safe='')}/" + (f"servers/{quote(name, safe='')}" if name else "server")
    return (await hub.api("DELETE", path)).status


async def gone(hub: TestbedHub, user: str, name: str = "") -> None:
    async def is_gone() -> bool:
        return await hub.server(user, name) is None

    await hub.wait_for(is_gone, f"{user}'s server to be gone")


async def process_of(hub: TestbedHub, user: str, name: str = "") -> Little:
    server = await hub.server(user, name)
    assert server is not None
    return Little(server["state"]["pid"], server["state"]["born"], server["state"]["port"])


def URL_of(hub: TestbedHub, server: dict[str, str]) -> aiohttp.client.URL:
    return aiohttp.client.URL(hub.url.rstrip("/") + server["url"], encoded=True)


async def test_a_hub_comes_up_with_what_was_seeded_whatever_the_names_serves_its_users_and_leaves_nothing() -> None:
    servers = [SeededServer(name, idle_for_s=600) for name in AWKWARD_NAMES]
    servers += [SeededServer("own", shared=False, idle_for_s=30), SeededServer("own", "named", shared=False)]
    async with RealHub(population=Population((), tuple(servers))) as hub:
        found = await hub.servers()
        assert set(found) == {(server.user, server.name) for server in servers}
        assert all(server["ready"] for server in found.values())
        async with aiohttp.ClientSession() as session:
            for server in found.values():
                async with session.get(URL_of(hub, server)) as answer:
                    assert answer.status == 200
        assert len(hub.leftovers()) == 5  # hub, proxy, two servers, the shared endpoint
        async with aiohttp.ClientSession() as session:
            await hub.login(session)
            async with session.get(f"{hub.url}hub/admin") as page:
                assert page.status == 200
        await hub.start_server("ann")
        await hub.start_server("ann", "second", shared=True)
        for path in ("user/ann/api/status", "user/ann/second/"):
            async with aiohttp.ClientSession() as session, session.get(hub.url + path) as answer:
                assert (answer.status, (await answer.json())["path"]) == (200, f"/{path}")
        assert len(hub.leftovers()) == 6
        # A name with a slash can't be reached through every proxy or hub, but all of them can be stopped.
        for name in AWKWARD_NAMES:
            assert await stop(hub, name) == 204, name
            await gone(hub, name)
        assert set(await hub.servers()) == {("own", ""), ("own", "named"), ("ann", ""), ("ann", "second")}
    assert hub.leftovers() == []
    assert not hub.folder.exists()


@pytest.mark.long
async def test_nothing_survives_a_killed_hub_not_even_its_managed_services(testbed_hub: Hubs) -> None:
    service = [
        sys.executable,
        "-c",
        "import signal, time; signal.signal(signal.SIGTERM, signal.SIG_IGN); time.sleep(600)",
    ]
    hub = await testbed_hub(config=f"c.JupyterHub.services.append({{'name': 'stubborn', 'command': {service!r}}})")
    await hub.start_server("ann")
    await hub.kill()
    assert hub.pid is None
    assert len(hub.leftovers()) == 3  # proxy, service, server
    left = [psutil.Process(pid) for pid in hub.leftovers()]
    await hub.aclose()
    assert not any(process.is_running() and process.status() != psutil.STATUS_ZOMBIE for process in left)


async def test_a_hub_that_cannot_start_says_why_and_leaves_nothing() -> None:
    hub = RealHub(
        config="c.JupyterHub.load_roles = [{'name': 'admin', 'scopes': ['self']}]\nraise SystemExit('broken')"
    )
    with pytest.raises(HubGuardError, match="ended with exit code") as caught:
        await hub.__aenter__()
    assert "broken" in caught.value.detail
    assert hub.token not in str(caught.value)
    assert hub.leftovers() == []
    assert not hub.folder.exists()


async def test_a_population_that_cannot_be_seeded_is_told_and_leaves_nothing(tmp_path: Path) -> None:
    hub = TestbedHub(db_url="sqlite:////nowhere/at/all.sqlite", population=Population((), (SeededServer("ann"),)))
    with pytest.raises(HubGuardError, match="couldn't be seeded: The hub's database"):
        await hub.__aenter__()
    assert not hub.folder.exists()


@pytest.mark.long
async def test_servers_are_found_again_after_the_hub_was_killed(outside: TestbedHub) -> None:
    hub = outside
    await hub.start_server("late", shared=True)
    before = {key: server["state"] for key, server in (await hub.servers()).items()}
    await hub.kill()
    await hub.start()
    assert {key: server["state"] for key, server in (await hub.servers()).items()} == before
    # The endpoint is still known, and ends with the last that used it.
    own = await process_of(hub, "own")
    endpoint = await process_of(hub, "one")
    for user in ("one", "two"):
        assert await stop(hub, user) == 204
    assert endpoint.alive
    assert await stop(hub, "late") == 204
    assert not endpoint.alive
    assert own.alive


@pytest.mark.long
async def test_a_server_killed_from_outside_is_dead_and_its_neighbours_are_not(hub: TestbedHub) -> None:
    async def left() -> set[str]:
        return {user for user, _ in await hub.servers()} & {"killed", "one", "two"}

    await hub.kill_server("killed")
    await hub.kill_server("one")
    await gone(hub, "killed")
    await gone(hub, "one")
    assert await left() == {"two"}
    await hub.start_server("one", shared=True)
    assert await left() == {"one", "two"}


@pytest.mark.long
async def test_a_stop_that_raises_leaves_an_orphan_that_the_hub_has_forgotten(hub: TestbedHub) -> None:
    orphan = await process_of(hub, "raiser")
    assert await stop(hub, "raiser") == 204
    await gone(hub, "raiser")
    assert orphan.alive


@pytest.mark.long
async def test_a_poll_that_raises_is_a_500_and_a_server_that_stays(hub: TestbedHub) -> None:
    for _ in range(2):
        assert await stop(hub, "stubborn") == 500
        server = await hub.server("stubborn")
        assert server is not None
        assert server["ready"]
    await hub.kill()
    await hub.start()
    assert ("stubborn", "") in await hub.servers()


@pytest.mark.long
async def test_a_stop_that_hangs_is_pending_until_the_process_is_killed(hub: TestbedHub) -> None:
    process = await process_of(hub, "hanger")
    assert await stop(hub, "hanger") == 202
    server = await hub.server("hanger")
    assert server is not None
    assert (server["pending"], server["ready"]) == ("stop", False)
    process.send(signal.SIGKILL)
    await gone(hub, "hanger")


@pytest.mark.long
async def test_slow_starts_and_stops_are_pending_meanwhile(hub: TestbedHub) -> None:
    await hub.api("POST", "users/ann")
    assert (await hub.api("POST", "users/ann/server", json={"start_s": 1.5, "stop_s": 1.0})).status == 202
    server = await hub.server("ann")
    assert server is not None
    assert server["pending"] == "spawn"

    async def ready() -> bool:
        server = await hub.server("ann")
        return bool(server and server["ready"])

    await hub.wait_for(ready, "ann's server")
    assert await stop(hub, "ann") == 202
    await gone(hub, "ann")


@pytest.mark.long
async def test_a_start_that_is_interrupted_leaves_no_process(hub: TestbedHub) -> None:
    before = set(hub.leftovers())
    for i in range(4):
        user = f"user-{i}"
        await hub.api("POST", f"users/{user}")
        assert (await hub.api("POST", f"users/{user}/server", json={})).status in (201, 202)
    await asyncio.gather(*(stop(hub, f"user-{i}") for i in range(4)))

    async def none_left() -> bool:
        return set(hub.leftovers()) <= before

    await hub.wait_for(none_left, "the interrupted starts to be cleaned up")


@pytest.mark.long
async def test_a_killed_proxy_of_the_hubs_own_comes_back(hub: TestbedHub) -> None:
    first = hub.proxy_pid
    assert hub.proxy_token is None
    await hub.kill_proxy()

    async def back() -> bool:
        return hub.proxy_pid not in (None, first) and await serves(hub)

    await hub.wait_for(back, "the hub to start its proxy again")


async def test_a_killed_external_proxy_stays_dead_and_has_lost_its_routes_when_started(outside: TestbedHub) -> None:
    hub = outside
    assert "/user/own" in await routes(hub)
    await hub.kill_proxy()
    assert hub.proxy_pid is None
    assert not await serves(hub)
    await hub.start_proxy()
    assert "/user/own" not in await routes(hub)
    assert await serves(hub)


async def routes(hub: TestbedHub) -> set[str]:
    headers = {"Authorization": f"token {hub.proxy_token}"}
    async with (
        aiohttp.ClientSession() as session,
        session.get(f"{hub.proxy_api_url}/api/routes", headers=headers) as got,
    ):
        return set(await got.json())


async def serves(hub: TestbedHub) -> bool:
    try:
        async with aiohttp.ClientSession() as session, session.get(f"{hub.url}hub/api") as answer:
            return answer.status == 200
    except aiohttp.ClientError:
        return False


@pytest.mark.long
async def test_a_hub_starts_on_a_seeded_postgresql_and_goes_on_counting(testbed_hub: Hubs, postgresql_url: str) -> None:
    population = made_up(users=40, running=6, groups=3, named=1, awkward=True)
    hub = await testbed_hub(db_url=postgresql_url, population=population)
    assert len(await hub.servers()) == 6
    assert (await hub.api("POST", "groups/another")).status == 201
    await hub.start_server("late")
    assert len(await hub.servers()) == 7
    with pytest.raises(HubGuardError, match="in use"):
        await asyncio.to_thread(seed, postgresql_url, users=1)


@pytest.mark.long
async def test_a_hub_below_a_prefix_serves_seeded_servers_there(hub: TestbedHub) -> None:
    server = await hub.server("below")
    assert server is not None
    assert server["url"] == "/jupyter/user/below/"
    async with aiohttp.ClientSession() as session:
        await hub.login(session)
        async with session.get(f"{hub.url}user/below/") as answer:
            assert answer.status == 200


def test_a_pid_that_means_another_process_by_now_is_neither_ours_nor_killed(tmp_path: Path) -> None:
    little, process = launch("ann", str(tmp_path))
    with process:
        stranger = Little(little.pid, "1", little.port)
        assert not stranger.alive
        stranger.send(signal.SIGKILL)
        assert little.alive
        assert born(little.pid) == little.born
        little.send(signal.SIGTERM)
        process.wait(10)
    assert born(little.pid) is None
    little.send(signal.SIGKILL)  # and a pid that is gone raises nothing


def test_a_zombie_counts_as_gone(tmp_path: Path) -> None:
    little, process = launch("ann", str(tmp_path))
    with process:
        os.kill(little.pid, signal.SIGKILL)
        os.waitid(os.P_PID, little.pid, os.WEXITED | os.WNOWAIT)
        assert not little.alive


def test_free_ports_are_free_and_different() -> None:
    assert len(set(free_ports(20))) == 20


def test_the_proxy_command_is_node_itself_and_says_how_to_get_it_where_missing(monkeypatch: pytest.MonkeyPatch) -> None:
    command = node_proxy_command()
    shown = subprocess.run([*command, "--version"], capture_output=True, text=True, check=True)
    assert shown.stdout[:1].isdigit()
    assert Path(command[0]).read_bytes()[:2] != b"#!", "a wrapper script forwards no signals"
    monkeypatch.setattr(sys, "prefix", "/nowhere")
    monkeypatch.setattr(shutil, "which", lambda name: None)
    with pytest.raises(HubGuardError, match="npm install --prefix"):
        find_proxy_command()
