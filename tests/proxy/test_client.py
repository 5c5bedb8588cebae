"""One suite over all proxies: the one in memory that other tests trust, the hub's usual one, and the one from PyPI."""

from __future__ import annotations

import asyncio
import contextlib
import traceback
from collections.abc import AsyncIterator
from datetime import datetime, timedelta, timezone
from urllib.parse import quote

import aiohttp
import pytest
from aiohttp import web
from aiohttp.test_utils import TestServer
from conftest import HUB_PYTHON
from doubles.paths import route_path
from doubles.proxy import MemoryProxy
from real_hub import RealHub
from real_proxy import COMMANDS, TOKEN, RealProxy
from virtual_time import VirtualClock
from yarl import URL

from hubguard.errors import (
    BudgetExhausted,
    ConfigError,
    HubGarbled,
    ProxyError,
    ProxyFailed,
    ProxyGarbled,
    ProxyRefused,
    ProxyUnreachable,
)
from hubguard.hub.routes import read_hub_routes, read_route, read_routes
from hubguard.model import Route
from hubguard.pacing.budget import Budget, Lane
from hubguard.proxy import client as proxy_client
from hubguard.proxy.client import HTTPProxyAPI, ProxyAPI
from hubguard.staging.population import AWKWARD_NAMES, Population, SeededServer

pytestmark = pytest.mark.contract

NAMES = (*AWKWARD_NAMES, "plain", "UPPER", "%41", "a+b c", "__proto__", "constructor")


def plenty(**more) -> Budget:
    return Budget(**{"rate": 1000.0, "burst": 1000, "concurrency": 10, **more})


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


@pytest.mark.long
@pytest.mark.parametrize("prefix", ["/", "/a%20b/"])
async def test_the_hub_puts_a_server_where_its_path_says_whatever_the_names(prefix):
    servers = [SeededServer(name) for name in NAMES]
    servers += [SeededServer("namer", name) for name in NAMES]
    population = Population((), tuple(servers))
    async with RealHub(python=HUB_PYTHON, population=population, hub_prefix=prefix, external_proxy=True) as hub:
        expected = {route_path(prefix, server.user, server.name): (server.user, server.name) for server in servers}
        async with HTTPProxyAPI(hub.proxy_api_url, hub.proxy_token, plenty()) as proxy:
            table = await proxy.routes()
            assert {path: route.key for path, route in table.items() if route.key} == expected
            for path in expected:
                assert await proxy.route(path) == table[path]
        seen_by_hub, following = {}, {"offset": 0}
        while following is not None:
            query = {"offset": following["offset"], "limit": 20}
            headers = {"Accept": "application/jupyterhub-pagination+json"}
            page = (await hub.api("GET", "proxy", params=query, headers=headers)).data
            seen_by_hub |= read_hub_routes(page["items"])
            following = page["_pagination"]["next"]
        assert seen_by_hub == {path: route for path, route in table.items() if path in seen_by_hub}
        assert {path for path, route in table.items() if route.key} <= set(seen_by_hub)


# what answers isn't always a proxy


class Fake:
    """A server that answers what the test says, and counts how often it was asked."""

    def __init__(self) -> None:
        self.asked: list[str] = []
        self.answers: list[web.Response | None] = []

    def says(self, *answers: tuple[int, str] | None) -> None:
        """These one after the other, and the last for ever; None: the connection is closed without an answer."""
        self.answers = [a and web.Response(status=a[0], text=a[1]) for a in answers]

    async def handle(self, request: web.Request) -> web.StreamResponse:
        self.asked.append(request.raw_path)
        given = self.answers[min(len(self.asked), len(self.answers)) - 1]
        if given is None:
            request.transport.abort()
        given = given or web.Response()
        headers = {"Location": "/elsewhere"} if 300 <= given.status < 400 else None
        return web.Response(status=given.status, body=given.body, headers=headers)


@pytest.fixture
async def fake() -> AsyncIterator[Fake]:
    fake = Fake()
    app = web.Application()
    app.router.add_route("*", r"/{path:[\s\S]*}", fake.handle)
    async with TestServer(app, access_log=None) as server:
        fake.url = str(server.make_url("/")).rstrip("/")
        yield fake


async def fails(proxy: HTTPProxyAPI, kind: type[ProxyError], match: str, path: str | None = None) -> ProxyError:
    """The error of reading the table or a route, after making sure that it tells nobody the token."""
    with pytest.raises(kind, match=match) as raised:
        await (proxy.routes() if path is None else proxy.route(path))
    error = raised.value
    shown = traceback.TracebackException.from_exception(error, capture_locals=True)
    for text in (str(error), repr(error), error.detail, "".join(shown.format()), repr(proxy), repr(error.__context__)):
        assert TOKEN not in text
    assert "\n" not in str(error)
    assert len(str(error)) < 800
    return error


GARBLED = [
    "",
    "<html>Welcome</html>",
    "[]",
    "null",
    '"/user/ada"',
    '{"/user/ada": null}',
    '{"/user/ada": {}}',
    '{"/user/ada": {"target": 7}}',
    '{"/user/ada": {"target": ""}}',
    '{"user/ada": {"target": "http://x"}}',
    '{"/user/ada": {"target": "http://x", "last_activity": "yesterday"}}',
    '{"/user/ada": {"target": "http://x", "last_activity": 1700000000}}',
    '{"/user/ada": {"target": "http://x", "jupyterhub": true, "user": 7}}',
    '{"/user/ada": {"target": "http://x", "jupyterhub": true, "user": ""}}',
    '{"/user/ada": {"target": "http://x", "jupyterhub": true, "user": "ada", "server_name": null}}',
    "{" * 100_000,
    f'echo: "Authorization: token {TOKEN}"',
]


@pytest.mark.parametrize("text", GARBLED)
async def test_a_table_that_makes_no_sense_is_no_table(fake, text):
    fake.says((200, text))
    async with HTTPProxyAPI(fake.url, TOKEN, plenty()) as proxy:
        await fails(proxy, ProxyGarbled, "Is its API's URL right|the URL of its API")
    assert len(fake.asked) == 1


@pytest.mark.parametrize(
    "text", ["", "null", "[]", "{}", '{"target": null}', '{"target": "http://x", "last_activity": ""}']
)
async def test_a_route_that_makes_no_sense_is_neither_there_nor_missing(fake, text):
    fake.says((200, "{}"), (200, text))
    async with HTTPProxyAPI(fake.url, TOKEN, plenty()) as proxy:
        await proxy.routes()
        await fails(proxy, ProxyGarbled, "API", "/user/ada")


async def test_a_404_of_something_that_never_gave_a_table_does_not_mean_that_a_route_is_missing(fake):
    fake.says((404, "no such page"))
    async with HTTPProxyAPI(fake.url, TOKEN, plenty()) as proxy:
        await fails(proxy, ProxyGarbled, "knows of none", "/user/ada")
        await fails(proxy, ProxyGarbled, "knows of none")


@pytest.mark.parametrize("status", [301, 302, 400, 405, 500, 502, 503, 504])
async def test_another_status_is_told_and_only_a_failing_proxy_counts_as_overloaded(fake, status):
    fake.says((status, "secret of somebody"))
    async with HTTPProxyAPI(fake.url, TOKEN, plenty(breaker_failures=2)) as proxy:
        for _ in range(2):
            error = await fails(proxy, ProxyFailed, str(status))
            assert error.status == status
        if status >= 500:
            with pytest.raises(BudgetExhausted):
                await proxy.routes()
            assert len(fake.asked) == 2
        else:
            await fails(proxy, ProxyFailed, str(status))
    assert not any("elsewhere" in path for path in fake.asked)


async def test_a_proxy_that_is_down_does_not_keep_the_hub_from_being_asked(unused_tcp_port):
    budget = plenty(breaker_failures=2)
    async with HTTPProxyAPI(f"http://127.0.0.1:{unused_tcp_port}", TOKEN, budget) as proxy:
        for _ in range(2):
            await fails(proxy, ProxyUnreachable, "No answer")
        with pytest.raises(BudgetExhausted):
            await proxy.routes()
    async with budget.slot(Lane.ACT, safe=False) as slot:
        slot.succeeded()


async def test_a_connection_that_breaks_is_tried_once_more_through_the_budget(fake):
    budget = plenty()
    async with HTTPProxyAPI(fake.url, TOKEN, budget) as proxy:
        fake.says(None, (200, "{}"))
        assert await proxy.routes() == {}
        assert len(fake.asked) == budget.use().requests == 2
        fake.asked.clear()
        fake.says(None)
        await fails(proxy, ProxyUnreachable, "No answer")
        assert len(fake.asked) == 2
        assert budget.use().requests == 4


async def test_what_was_wrong_is_told_where_the_budget_has_no_second_try(fake):
    fake.says(None)
    async with HTTPProxyAPI(fake.url, TOKEN, plenty(breaker_failures=1)) as proxy:
        await fails(proxy, ProxyUnreachable, "No answer")
        with pytest.raises(BudgetExhausted):
            await proxy.routes()
    assert len(fake.asked) == 1


async def test_an_answer_without_end_is_given_up(fake, monkeypatch):
    monkeypatch.setattr(proxy_client, "LARGEST_ANSWER", 1000)
    fake.says((200, " " * 1001))
    async with HTTPProxyAPI(fake.url, TOKEN, plenty()) as proxy:
        await fails(proxy, ProxyGarbled, "larger than")


async def test_a_cancelled_read_leaves_its_place():
    async def never(request: web.Request) -> web.Response:
        asked.set()
        await asyncio.sleep(3600)
        return web.Response()

    asked = asyncio.Event()
    app = web.Application()
    app.router.add_get("/api/routes", never)
    async with TestServer(app, access_log=None) as server:
        budget = plenty()
        async with HTTPProxyAPI(str(server.make_url("/")), TOKEN, budget) as proxy:
            reading = asyncio.ensure_future(proxy.routes())
            await asked.wait()
            reading.cancel()
            with pytest.raises(asyncio.CancelledError):
                await reading
            assert (budget.use().in_flight, budget.use().failures) == (0, 0)


@pytest.mark.parametrize(
    "url",
    ["", "127.0.0.1:8001", "ftp://host", "http://", "http://host:0", "http://host:x", "http://u:p@host", "http://h?x"],
)
def test_what_is_no_url_is_named_as_the_setting_that_is_wrong(url):
    with pytest.raises(ConfigError, match="CONFIGPROXY_API_URL"):
        HTTPProxyAPI(url, TOKEN, plenty())


@pytest.mark.parametrize("token", ["", "two words", "line\nbreak", "käse"])
def test_what_is_no_token_is_refused_and_not_told(token):
    with pytest.raises(ConfigError, match="CONFIGPROXY_AUTH_TOKEN") as raised:
        HTTPProxyAPI("http://127.0.0.1:8001", token, plenty())
    assert not token or token not in str(raised.value)


# reading what they say


@pytest.mark.parametrize(
    ("text", "micros"),
    [("2024-03-05T08:01:02.345Z", 345000), ("2024-03-05T08:01:02.345678", 345678), ("2024-03-05T08:01:02", 0)],
)
def test_times_of_both_proxies_are_utc(text, micros):
    route = read_route({"target": "http://x", "last_activity": text}, "/x")
    assert route.last_activity == datetime(2024, 3, 5, 8, 1, 2, micros, tzinfo=timezone.utc)
    assert route.last_activity.utcoffset() == timedelta(0)


def test_what_is_not_told_is_none():
    model = {"target": "http://x", "jupyterhub": True, "user": "ada", "server_name": "", "last_activity": None}
    assert read_routes({"/user/ada": model}) == {"/user/ada": Route("/user/ada", "http://x", "ada", "", None)}
    assert read_route({"target": "http://x", "hub": True, "jupyterhub": True}, "/") == Route("/", "http://x", hub=True)


def test_the_hubs_view_reads_like_the_proxys():
    data = {"user": "sl/ash é", "server_name": "", "last_activity": "2024-03-05T08:01:02.345Z"}
    items = {
        "/": {"routespec": "/", "target": "http://h", "data": {"hub": True}},
        "/a%20b/user/sl/ash%20%C3%A9/": {"target": "http://x", "data": data},
        "ada.example.org/user/ada/": {"target": "http://y", "data": {"user": "ada", "server_name": "gpu"}},
    }
    at = datetime(2024, 3, 5, 8, 1, 2, 345000, tzinfo=timezone.utc)
    assert read_hub_routes(items) == {
        "/": Route("/", "http://h", hub=True),
        "/a b/user/sl/ash é": Route("/a b/user/sl/ash é", "http://x", "sl/ash é", "", at),
        "/ada.example.org/user/ada": Route("/ada.example.org/user/ada", "http://y", "ada", "gpu"),
    }


@pytest.mark.parametrize("items", [[], None, {"/x/": None}, {"/x/": {"target": "t"}}, {"/x/": {"data": {}}}])
def test_a_view_of_the_hubs_that_makes_no_sense_is_no_table(items):
    with pytest.raises(HubGarbled, match="makes no sense"):
        read_hub_routes(items)


@pytest.mark.parametrize(
    ("base_url", "user", "name", "path"),
    [
        ("/", "ada", "", "/user/ada"),
        ("/", "ada", "gpu", "/user/ada/gpu"),
        ("/hub one/", "ada", "", "/hub one/user/ada"),
        ("/a%20b", "sl/ash", "50%25", "/a b/user/sl/ash/50%25"),
    ],
)
def test_the_path_of_a_server(base_url, user, name, path):
    assert route_path(base_url, user, name) == path


# what tests may do with the double


async def test_the_double_fails_as_told_and_keeps_what_it_was_asked():
    clock = VirtualClock()
    budget = plenty(clock=clock)
    proxy = MemoryProxy(clock=clock, budget=budget, takes_s=2.0)
    path = proxy.add_server("ada", "gpu")
    proxy.fault = lambda request: ProxyUnreachable("away") if request.path else None
    table = await clock.run(proxy.routes())
    assert table[path].key == ("ada", "gpu")
    with pytest.raises(ProxyUnreachable):
        await clock.run(proxy.route(path))
    assert [(request.at_s, request.path) for request in proxy.requests] == [(0.0, None), (2.0, path)]
    assert (budget.use().requests, budget.use().failures) == (2, 1)


async def test_a_table_that_was_given_out_does_not_change_any_more():
    proxy = MemoryProxy()
    path = proxy.add_server("ada")
    table = await proxy.routes()
    proxy.wipe()
    assert set(table) == {path}
