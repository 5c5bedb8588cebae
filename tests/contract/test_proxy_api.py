"""One suite over all proxies: the one in memory that other tests trust, the hub's usual one, and the one from PyPI."""

from __future__ import annotations

import asyncio
import contextlib
import importlib.util
import os
import signal
import subprocess
import sys
from collections.abc import AsyncIterator, Callable
from datetime import datetime, timedelta, timezone
from urllib.parse import quote

import aiohttp
import pytest
from aiohttp import web
from aiohttp.test_utils import TestServer
from yarl import URL

from hubguard.clients.budget import Budget
from hubguard.clients.memory_proxy import MemoryProxy
from hubguard.clients.proxy_api import HTTPProxyAPI, ProxyAPI
from hubguard.clients.proxy_models import route_path
from hubguard.errors import (
    ProxyRefused,
    ProxyUnreachable,
)
from hubguard.testbed.population import AWKWARD_NAMES
from hubguard.testbed.processes import end, find_proxy_command, free_ports, listens

TOKEN = "5f0e3c9ab7d24611-never-to-be-seen"
NAMES = (*AWKWARD_NAMES, "plain", "UPPER", "%41", "a+b c", "__proto__", "constructor")


def python_proxy_command() -> list[str]:
    """The proxy from PyPI, by import: its command has the name of Node's. HUBGUARD_TEST_PROXY_PYTHON may have it instead."""
    python = os.environ.get("HUBGUARD_TEST_PROXY_PYTHON")
    if python is None and importlib.util.find_spec("configurable_http_proxy") is None:
        pytest.skip(
            "PyPI's configurable-http-proxy isn't here; name a Python that has it in HUBGUARD_TEST_PROXY_PYTHON"
        )
    return [python or sys.executable, "-c", "from configurable_http_proxy.cli import main; main()"]


COMMANDS: dict[str, Callable[[], list[str]]] = {"node": find_proxy_command, "python": python_proxy_command}


def plenty(**more) -> Budget:
    return Budget(**{"rate": 1000.0, "burst": 1000, "concurrency": 10, **more})


class RealProxy:
    """A proxy of ours with a little server behind it, driven as the hub and its users drive it."""

    def __init__(self, command: list[str]) -> None:
        self._command = command
        self._process: subprocess.Popen[bytes] | None = None
        self.port, self._api_port = free_ports(2)
        self.api_url = f"http://127.0.0.1:{self._api_port}"

    async def start(self) -> None:
        self._process = subprocess.Popen(
            [
                *self._command,
                *("--ip", "127.0.0.1", "--port", str(self.port)),
                *("--api-ip", "127.0.0.1", "--api-port", str(self._api_port)),
            ],
            env={**os.environ, "CONFIGPROXY_AUTH_TOKEN": TOKEN},
            stdin=subprocess.DEVNULL,
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
        )

        async def up() -> bool:
            assert self._process.poll() is None, "the proxy ended while starting"
            return listens(self.port) and listens(self._api_port)

        await until(up)

    async def end(self) -> None:
        await end(self._process, 3.0)
        self._process = None

    async def kill(self) -> None:
        await end(self._process, 0)
        self._process = None

    def freeze(self) -> None:
        self._process.send_signal(signal.SIGSTOP)

    def thaw(self) -> None:
        self._process.send_signal(signal.SIGCONT)


async def answer_ok(request: web.Request) -> web.Response:
    return web.Response(text="here")


class World:
    """A proxy, as the client that is tested sees it, and what the hub and users do to it."""

    def __init__(
        self,
        proxy: ProxyAPI,
        budget: Budget,
        target: str = "http://127.0.0.1:1",
        real: RealProxy | None = None,
        session: aiohttp.ClientSession | None = None,
    ) -> None:
        self.proxy = proxy
        self.budget = budget
        self.target = target
        self.real = real
        self._session = session

    async def add(self, path: str, user: str | None = None, server: str | None = None) -> None:
        """What the hub does: it quotes, and leaves the slash at the end away."""
        if self.real is None:
            self.proxy.add(path, self.target, user, server)
            return
        data = {"target": self.target}
        if user is not None:
            data |= {"jupyterhub": True, "user": user, "server_name": server}
        await self._api("POST", path, 201, json=data)

    async def seen(self, path: str) -> None:
        if self.real is None:
            self.proxy.seen(path)
            return
        url = URL(f"http://127.0.0.1:{self.real.port}{quote(path)}", encoded=True)
        async with self._session.get(url) as answer:
            assert answer.status == 200

    async def wipe(self) -> None:
        if self.real is None:
            self.proxy.wipe()
            return
        for path in await self.proxy.routes():
            await self._api("DELETE", path, 204)

    async def _api(self, method: str, path: str, status: int, **body) -> None:
        url = URL(f"{self.real.api_url}/api/routes{quote(path)}", encoded=True)
        headers = {"Authorization": f"token {TOKEN}"}
        async with self._session.request(method, url, headers=headers, **body) as answer:
            assert answer.status == status


@pytest.fixture(params=["memory", *COMMANDS])
async def world(request) -> AsyncIterator[World]:
    if request.param == "memory":
        budget = plenty()
        yield World(MemoryProxy(budget=budget), budget)
        return
    async with contextlib.AsyncExitStack() as stack:
        app = web.Application()
        app.router.add_route("*", r"/{path:[\s\S]*}", answer_ok)
        little = await stack.enter_async_context(TestServer(app, access_log=None))
        real = RealProxy(COMMANDS[request.param]())
        stack.push_async_callback(real.end)
        await real.start()
        budget = plenty()
        client = await stack.enter_async_context(HTTPProxyAPI(real.api_url, TOKEN, budget))
        session = await stack.enter_async_context(aiohttp.ClientSession())
        yield World(client, budget, str(little.make_url("/")).rstrip("/"), real, session)


def since(began: datetime, at: datetime | None) -> bool:
    assert at is not None
    return began - timedelta(milliseconds=2) <= at <= datetime.now(timezone.utc) + timedelta(milliseconds=2)


async def test_a_proxy_without_routes_has_an_empty_table(world):
    assert await world.proxy.routes() == {}
    assert await world.proxy.route("/user/nobody") is None
    assert await world.proxy.route("/") is None


async def test_a_route_is_found_by_its_path_whatever_the_names(world):
    began = datetime.now(timezone.utc)
    keys = {route_path("/a%20b/", user, name): (user, name) for user in NAMES for name in ("", "gpu", user)}
    assert len(keys) == 3 * len(NAMES)
    for path, key in keys.items():
        await world.add(path, *key)
    table = await world.proxy.routes()
    assert {path: route.key for path, route in table.items()} == keys
    for path, route in table.items():
        assert (route.path, route.target) == (path, world.target)
        assert since(began, route.last_activity)
        assert await world.proxy.route(path) == route


async def test_the_route_at_the_root_is_one_like_others(world):
    await world.add("/")
    await world.add("/user/ada", "ada", "")
    table = await world.proxy.routes()
    assert set(table) == {"/", "/user/ada"}
    assert table["/"].key is None
    assert await world.proxy.route("/") == table["/"]


async def test_a_route_below_or_above_another_is_not_that_other(world):
    await world.add("/user/ada", "ada", "")
    await world.add("/user/bob/gpu", "bob", "gpu")
    for path in ("/user/ada/gpu", "/user", "/user/bob", "/user/ad", "/user/ada/..", "/user/./ada", "//user/ada"):
        assert await world.proxy.route(path) is None, path


async def test_only_the_hubs_word_names_a_server(world):
    await world.add("/user/ada")
    assert (await world.proxy.route("/user/ada")).key is None


async def test_traffic_moves_that_one_route_on(world):
    await world.add("/user/ada", "ada", "")
    await world.add("/user/bob", "bob", "")
    before = await world.proxy.routes()
    await asyncio.sleep(0.01)
    began = datetime.now(timezone.utc)
    await world.seen("/user/ada")

    async def moved():
        return (await world.proxy.route("/user/ada")).last_activity > before["/user/ada"].last_activity

    await until(moved)
    after = await world.proxy.routes()
    assert since(began, after["/user/ada"].last_activity)
    assert after["/user/bob"] == before["/user/bob"]


async def test_a_route_that_is_added_anew_looks_as_if_just_used(world):
    await world.add("/user/ada", "ada", "")
    before = await world.proxy.route("/user/ada")
    await world.wipe()
    assert await world.proxy.route("/user/ada") is None
    assert await world.proxy.routes() == {}
    await asyncio.sleep(0.01)
    began = datetime.now(timezone.utc)
    await world.add("/user/ada", "ada", "")
    after = await world.proxy.route("/user/ada")
    assert after.last_activity > before.last_activity
    assert since(began, after.last_activity)


async def test_a_table_of_thousands_is_read_whole(world):
    expected = {}
    for number in range(0, 3000, 50):
        some = [f"user-{i:05}" for i in range(number, number + 50)]
        await asyncio.gather(*(world.add(f"/user/{name}", name, "") for name in some))
        expected |= {f"/user/{name}": (name, "") for name in some}
    table = await world.proxy.routes()
    assert {path: route.key for path, route in table.items()} == expected
    assert all(route.last_activity is not None for route in table.values())


async def test_every_request_passes_the_budget_and_leaves_its_place(world):
    await world.add("/user/ada", "ada", "")
    await world.proxy.routes()
    before = world.budget.use().requests
    await world.proxy.routes()
    await world.proxy.route("/user/ada")
    await world.proxy.route("/user/none")
    use = world.budget.use()
    assert (use.requests - before, use.in_flight, use.failures) == (3, 0, 0)


async def until(check) -> None:
    for _ in range(600):
        if await check():
            return
        await asyncio.sleep(0.02)
    raise AssertionError("it never comes true")


# what only the real ones can be wrong about


@pytest.fixture(params=list(COMMANDS))
async def real(request) -> AsyncIterator[RealProxy]:
    real = RealProxy(COMMANDS[request.param]())
    try:
        await real.start()
        yield real
    finally:
        real.thaw()
        await real.end()


async def test_a_wrong_token_is_refused_for_the_table_and_for_a_route(real):
    async with HTTPProxyAPI(real.api_url, "no-token-at-all", plenty()) as proxy:
        for call in (proxy.routes(), proxy.route("/user/ada")):
            with pytest.raises(ProxyRefused, match="403.*CONFIGPROXY_AUTH_TOKEN"):
                await call


async def test_a_proxy_that_is_dead_is_unreachable_and_one_that_is_back_is_not(real):
    async with HTTPProxyAPI(real.api_url, TOKEN, plenty(breaker_failures=1000)) as proxy:
        await proxy.routes()
        await real.kill()
        for _ in range(3):
            with pytest.raises(ProxyUnreachable, match="No answer from the proxy's API"):
                await proxy.routes()
            with pytest.raises(ProxyUnreachable, match="No answer"):
                await proxy.route("/user/ada")
        await real.start()
        assert await proxy.route("/user/ada") is None
        assert await proxy.routes() == {}


async def test_a_restart_between_two_reads_is_not_noticed(real):
    async with HTTPProxyAPI(real.api_url, TOKEN, plenty()) as proxy:
        assert await proxy.routes() == {}
        await real.kill()
        await real.start()
        assert await proxy.routes() == {}


async def test_a_proxy_that_hangs_is_given_up_after_the_timeout_and_asked_once(real):
    budget = plenty()
    async with HTTPProxyAPI(real.api_url, TOKEN, budget, request_timeout_s=0.3) as proxy:
        await proxy.routes()
        real.freeze()
        before = budget.use().requests
        for call in (proxy.routes(), proxy.route("/user/ada")):
            with pytest.raises(ProxyUnreachable, match=r"within 0\.3 s: it hangs"):
                await call
        assert budget.use().requests == before + 2
        real.thaw()
        assert await proxy.routes() == {}
