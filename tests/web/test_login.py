"""Who is it? The real login against a hub that vouches, denies, dawdles, talks nonsense or is gone."""

from __future__ import annotations

import asyncio
import traceback
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from typing import Any

import pytest
from aiohttp import web
from tornado.httputil import HTTPConnection, HTTPHeaders, HTTPServerRequest, RequestStartLine
from tornado.web import Application, RequestHandler, create_signed_value

from hubguard.errors import HubUnreachable
from hubguard.pacing.budget import Budget, Lane
from hubguard.staging.hub import free_ports
from hubguard.web import auth
from hubguard.web.auth import Caller, HubLogin, rights
from hubguard.web.lookups import STRANGERS_AT_ONCE, WAITING_PER_PEER, TooMany

pytestmark = [pytest.mark.hub, pytest.mark.contract]

SECRET = b"s" * 32
ANN = {"kind": "user", "name": "ann", "admin": True, "scopes": ["access:services!service=hubguard", "delete:servers"]}

UNKNOWN = {"status": 403, "message": "Forbidden"}


class Hub:
    """The one address of a hub that the login needs."""

    def __init__(self) -> None:
        self.answer: Any = ANN
        self.status = 200
        self.delay_s = 0.0
        self.asked: list[str] = []
        self.at_once = self.most_at_once = 0
        self.url = ""

    async def user(self, request: web.Request) -> web.Response:
        self.asked.append(request.headers["Authorization"])
        self.at_once += 1
        self.most_at_once = max(self.most_at_once, self.at_once)
        try:
            await asyncio.sleep(self.delay_s)
        finally:
            self.at_once -= 1
        if isinstance(self.answer, str):
            return web.Response(status=self.status, text=self.answer)
        return web.json_response(self.answer, status=self.status)


@asynccontextmanager
async def serving(hub: Hub, port: int = 0) -> AsyncIterator[int]:
    app = web.Application()
    app.router.add_get("/hub/api/user", hub.user)
    runner = web.AppRunner(app, shutdown_timeout=0.1)
    await runner.setup()
    site = web.TCPSite(runner, "127.0.0.1", port, reuse_address=True)
    await site.start()
    try:
        yield runner.addresses[0][1]
    finally:
        await runner.cleanup()


@pytest.fixture
async def hub() -> AsyncIterator[Hub]:
    made = Hub()
    async with serving(made) as port:
        made.url = f"http://127.0.0.1:{port}/hub/api"
        yield made


def login_at(url: str, **settings: Any) -> HubLogin:
    return HubLogin(api_url=url, token="ours-0123456789", prefix="/services/hubguard/", hub_prefix="/hub/", **settings)


@pytest.fixture
def login(hub: Hub) -> HubLogin:
    return login_at(hub.url)


class _From:
    def __init__(self, address: str) -> None:
        self.address = (address, 40_000)


class _Wire(HTTPConnection):
    def __init__(self, address: str = "127.0.0.1") -> None:
        self.context = _From(address)

    def set_close_callback(self, callback: Callable[[], None] | None) -> None:
        pass


def request(token: str | None = None, cookie: str | None = None, session: str = "s1", **headers: str) -> RequestHandler:
    sent = HTTPHeaders(headers)
    if token:
        sent["Authorization"] = f"token {token}"
    cookies = [f"jupyterhub-session-id={session}"]
    if cookie:
        signed = create_signed_value(SECRET, "service-hubguard", cookie).decode()
        cookies.append(f"service-hubguard={signed}")
    sent["Cookie"] = "; ".join(cookies)
    sent["Host"] = "hub.example.org"
    line = RequestStartLine("GET", "/services/hubguard/servers?q=a", "HTTP/1.1")
    made = HTTPServerRequest(start_line=line, headers=sent, connection=_Wire())
    return RequestHandler(Application(cookie_secret=SECRET), made)


async def test_a_token_is_vouched_for_by_the_hub_and_its_scopes_are_the_callers(login: HubLogin, hub: Hub) -> None:
    caller = await login.caller(request("hers"), fresh=False)
    assert caller == Caller("ann", "user", frozenset(ANN["scopes"]), admin=True)
    assert rights(caller.scopes).act
    assert hub.asked == ["token hers"]


async def test_who_was_just_told_is_not_asked_for_again_but_for_changes(login: HubLogin, hub: Hub) -> None:
    for _ in range(5):
        await login.caller(request("hers"), fresh=False)
    assert len(hub.asked) == 1
    await login.caller(request("hers"), fresh=True)
    assert len(hub.asked) == 2


async def test_rights_that_were_taken_away_are_gone_with_the_next_change_that_is_tried(
    login: HubLogin, hub: Hub
) -> None:
    await login.caller(request("hers"), fresh=False)
    hub.status, hub.answer = 403, UNKNOWN
    assert await login.caller(request("hers"), fresh=True) is None
    assert await login.caller(request("hers"), fresh=False) is None


async def test_another_session_of_the_browser_is_another_question(login: HubLogin, hub: Hub) -> None:
    """A logout at the hub ends the session; what was known under it no longer counts."""
    await login.caller(request(cookie="hers"), fresh=False)
    hub.status, hub.answer = 403, UNKNOWN
    assert await login.caller(request(cookie="hers", session="s2"), fresh=False) is None


async def test_without_access_to_the_service_no_scope_counts(login: HubLogin, hub: Hub) -> None:
    for access in ([], ["access:services!service=other"], ["access:servers"]):
        hub.answer = {**ANN, "scopes": [*access, "admin:servers", "custom:hubguard:act"]}
        caller = await login.caller(request(f"hers{access}"), fresh=False)
        assert caller is not None
        assert caller.scopes == frozenset()
    hub.answer = {**ANN, "scopes": ["access:services", "custom:hubguard:act"]}
    caller = await login.caller(request("all"), fresh=False)
    assert caller is not None
    assert rights(caller.scopes).act


async def test_with_the_hub_gone_a_known_login_reads_on_and_changes_nothing(
    hub: Hub, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(auth, "KNOWN_S", 0.0)
    login = login_at(hub.url)
    await login.caller(request("hers"), fresh=False)
    login.hub_auth.api_url = f"http://127.0.0.1:{free_ports(1)[0]}/hub/api"
    caller = await login.caller(request("hers"), fresh=False)
    assert caller is not None
    assert caller.name == "ann"
    with pytest.raises(HubUnreachable):
        await login.caller(request("hers"), fresh=True)
    with pytest.raises(HubUnreachable):
        await login.caller(request("nobody-knows"), fresh=False)
    monkeypatch.setattr(auth, "HUB_DOWN_S", 0.0)
    with pytest.raises(HubUnreachable):
        await login.caller(request("hers"), fresh=False)


@pytest.mark.parametrize(
    ("status", "answer"),
    [
        (500, "oops"),
        (503, "busy"),
        (429, "slow down"),
        (404, "?"),
        (200, "not json"),
        (200, "null"),
        (302, ""),
        (302, "null"),
        (400, "{}"),
        (403, "<html>blocked by the firewall</html>"),
        (403, '{"error": "blocked"}'),
        (403, '{"status": 404, "message": "Not Found"}'),
    ],
)
async def test_an_answer_that_is_none_names_nobody(login: HubLogin, hub: Hub, status: int, answer: str) -> None:
    hub.status, hub.answer = status, answer
    with pytest.raises(HubUnreachable):
        await login.caller(request("hers"), fresh=False)


@pytest.mark.parametrize(
    "answer",
    [
        [],
        {},
        {"name": None},
        {"name": 5, "scopes": ["admin:servers"]},
        7,
        None,
        {"name": "ann"},
        {"name": "ann", "scopes": 5},
    ],
)
async def test_json_that_names_nobody_does_not_make_a_valid_token_unknown(
    login: HubLogin, hub: Hub, answer: Any
) -> None:
    await login.caller(request("hers"), fresh=False)
    hub.answer = answer
    with pytest.raises(HubUnreachable):
        await login.caller(request("hers"), fresh=True)
    assert (await login.caller(request("hers"), fresh=False)) is not None


async def test_a_hub_that_hangs_is_given_up(login: HubLogin, hub: Hub, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(auth, "LOOKUP_S", 0.1)
    hub.delay_s = 5
    with pytest.raises(HubUnreachable):
        await login.caller(request("hers"), fresh=False)


async def test_a_flood_of_made_up_tokens_gets_little_of_the_budget(hub: Hub) -> None:
    hub.status, hub.answer, hub.delay_s = 403, UNKNOWN, 0.01
    budget = Budget(rate=1000, burst=1000, concurrency=50)
    login = login_at(hub.url, lane=lambda: budget.slot(Lane.RESERVED, safe=True))
    asked: list[Awaitable[Caller | None]] = [login.caller(request(f"made-up-{i}"), fresh=False) for i in range(30)]
    told = await asyncio.gather(*asked, return_exceptions=True)
    assert {None} < {one if one is None else type(one) for one in told} <= {None, TooMany}
    assert hub.most_at_once <= STRANGERS_AT_ONCE
    assert budget.use().requests == told.count(None) == STRANGERS_AT_ONCE + WAITING_PER_PEER
    assert budget.use().failures == 0


async def test_during_a_flood_of_made_up_tokens_a_known_caller_acts_at_once(hub: Hub) -> None:
    login = login_at(hub.url)
    await login.caller(request("hers"), fresh=False)
    hub.delay_s = 0.3
    flood = [asyncio.ensure_future(login.caller(request(f"made-up-{i}"), fresh=False)) for i in range(15)]
    await asyncio.sleep(0.05)
    assert await login.caller(request("hers"), fresh=True) is not None
    assert sum(one.done() for one in flood) <= 2 * STRANGERS_AT_ONCE
    await asyncio.gather(*flood)


async def test_a_signed_login_goes_before_made_up_tokens_even_after_a_restart(hub: Hub) -> None:
    login = login_at(hub.url)
    hub.delay_s = 0.3
    flood = [asyncio.ensure_future(login.caller(request(f"made-up-{i}"), fresh=False)) for i in range(15)]
    await asyncio.sleep(0.05)
    assert await login.caller(request(cookie="hers"), fresh=True) is not None
    assert sum(one.done() for one in flood) <= 3 * STRANGERS_AT_ONCE
    await asyncio.gather(*flood)


async def test_a_token_that_many_requests_bring_at_once_is_asked_about_once(login: HubLogin, hub: Hub) -> None:
    hub.delay_s = 0.05
    told = await asyncio.gather(*(login.caller(request("hers"), fresh=False) for _ in range(10)))
    assert {one and one.name for one in told} == {"ann"}
    assert len(hub.asked) <= STRANGERS_AT_ONCE


async def test_an_open_breaker_is_a_hub_that_does_not_answer(hub: Hub) -> None:
    budget = Budget(rate=1000, burst=1000, concurrency=5, breaker_failures=2, breaker_open_s=600)
    login = login_at(hub.url, lane=lambda: budget.slot(Lane.RESERVED, safe=True))
    hub.status = 500
    for _ in range(5):
        with pytest.raises(HubUnreachable):
            await login.caller(request("hers"), fresh=True)
    assert len(hub.asked) < 5


async def test_a_cookie_that_nobody_signed_is_nothing(login: HubLogin, hub: Hub) -> None:
    handler = request(Cookie="x")
    handler.request.headers["Cookie"] = "service-hubguard=hers; jupyterhub-session-id=s"
    assert login.session(handler) is None
    assert await login.caller(handler, fresh=False) is None
    assert hub.asked == []


def test_a_token_in_the_header_is_no_session_even_beside_a_cookie(login: HubLogin) -> None:
    assert login.session(request(cookie="hers")) == "hers"
    assert login.session(request("other", cookie="hers")) is None
    assert login.session(request()) is None


def test_the_way_to_the_login_comes_back_to_our_own_callback_whatever_the_environment_says(
    hub: Hub, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("JUPYTERHUB_OAUTH_CALLBACK_URL", "/services/other/oauth_callback")
    monkeypatch.setenv("JUPYTERHUB_CLIENT_ID", "service-other")
    url = login_at(hub.url).login_url(request())
    assert url.startswith("/hub/api/oauth2/authorize?")
    assert "client_id=service-hubguard&redirect_uri=%2Fservices%2Fhubguard%2Foauth_callback" in url
    assert "state=" in url


async def test_tokens_are_neither_logged_nor_in_errors(
    login: HubLogin, hub: Hub, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(0)
    for status, answer in ((200, ANN), (403, UNKNOWN), (500, "oops"), (200, "not json")):
        hub.status, hub.answer = status, answer
        for handler in (request("sesame"), request(cookie="sesame")):
            if isinstance(answer, dict):
                await login.caller(handler, fresh=True)
                continue
            with pytest.raises(HubUnreachable) as raised:
                await login.caller(handler, fresh=True)
            told = "".join(traceback.format_exception(raised.value))
            assert "sesame" not in told.replace('request("sesame")', "")
    assert "sesame" not in caplog.text
    assert "ours-0123456789" not in caplog.text


@pytest.mark.parametrize(
    ("connected", "forwarded", "peer"),
    [
        ("127.0.0.1", "203.0.113.7", "203.0.113.7"),
        ("127.0.0.1", "made up, 203.0.113.7", "203.0.113.7"),
        ("::1", "2001:db8::7", "2001:db8::7"),
        ("::ffff:127.0.0.1", "203.0.113.7", "203.0.113.7"),
        ("127.0.0.1", "", "127.0.0.1"),
        ("10.1.2.3", "203.0.113.7", "10.1.2.3"),
        ("10.1.2.3", "127.0.0.1", "10.1.2.3"),
        ("::ffff:10.1.2.3", "203.0.113.7", "::ffff:10.1.2.3"),
    ],
)
def test_who_connects_from_another_machine_cannot_choose_its_address(connected: str, forwarded: str, peer: str) -> None:
    handler = request("x", **{"X-Forwarded-For": forwarded, "X-Real-Ip": "192.0.2.1"})
    handler.request.connection = _Wire(connected)
    handler.request.remote_ip = "192.0.2.1"
    assert auth._peer(handler) == peer
