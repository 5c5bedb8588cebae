"""What tokens and logins cost the hub, and that nobody can make it look troubled by sending what is made up."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import AsyncIterator
from contextlib import AbstractAsyncContextManager
from typing import cast
from urllib.parse import parse_qs, urlsplit

import aiohttp
import pytest
from aiohttp import web
from doubles.guard import PlacedGuard, guard_with, made_up
from tornado.httpserver import HTTPServer
from tornado.netutil import bind_sockets

from hubguard.dashboard.routes import make_application
from hubguard.errors import HubUnreachable
from hubguard.guard import Guard
from hubguard.pacing.budget import Budget, Lane
from hubguard.web import auth
from hubguard.web.auth import HubLogin
from hubguard.web.lookups import DENIALS_FREE, LOGINS_AT_ONCE, WAITING_PER_PEER, Standing

pytestmark = [pytest.mark.hub, pytest.mark.contract]

PREFIX = "/services/hubguard/"
ACCESS = "access:services!service=hubguard"
ADMIN = {
    "name": "ann",
    "kind": "user",
    "admin": True,
    "scopes": [ACCESS, "list:users", "read:servers", "delete:servers"],
}
OUR_TOKEN = "our-own-token-of-the-service"


class FakeHub:
    """The part of a hub that tells who someone is. ``fault`` is a status that it answers everything with, or None."""

    def __init__(self) -> None:
        self.models = {
            "ann-token": ADMIN,
            "login-token": ADMIN,
            "report": {"name": "report", "kind": "service", "scopes": [ACCESS, "custom:hubguard:act"]},
        }
        self.asked: list[str] = []
        self.fault: int | None = None
        self.delay_s = 0.0
        self.at_once = self.most_at_once = 0

    async def user(self, request: web.Request) -> web.Response:
        self.asked.append("user")
        if self.fault:
            return web.json_response({"message": "no"}, status=self.fault)
        model = self.models.get(request.headers["Authorization"].partition(" ")[2])
        return web.json_response(model) if model else web.json_response({"status": 403, "message": "who?"}, status=403)

    async def token(self, request: web.Request) -> web.Response:
        self.asked.append("token")
        self.at_once += 1
        self.most_at_once = max(self.most_at_once, self.at_once)
        await asyncio.sleep(self.delay_s)
        self.at_once -= 1
        if self.fault:
            return web.json_response({"message": "no"}, status=self.fault)
        form = await request.post()
        if form["code"] != "good" or form["client_secret"] != OUR_TOKEN:
            return web.json_response({"error": "invalid_grant"}, status=400)
        return web.json_response({"access_token": "login-token"})


class Site:
    def __init__(self, guard: PlacedGuard, hub: FakeHub, login: HubLogin, budget: Budget, url: str) -> None:
        self.guard, self.hub, self.login, self.budget, self.url = guard, hub, login, budget, url
        self.browser = aiohttp.ClientSession(cookie_jar=aiohttp.CookieJar(unsafe=True))

    async def ask(self, path: str, token: str | None = None, *, method: str = "GET") -> tuple[int, str, str]:
        """(status, where to, text)."""
        headers = {"Authorization": f"token {token}"} if token is not None else {}
        url = aiohttp.client.URL(self.url + path, encoded=True)
        async with self.browser.request(method, url, headers=headers, allow_redirects=False) as answer:
            return answer.status, answer.headers.get("Location", ""), await answer.text()

    async def log_in(self, code: str = "good") -> tuple[int, str, str]:
        """Open a page, and come back from the hub's login with ``code``."""
        status, where, _ = await self.ask("servers")
        assert status == 302, where
        state = parse_qs(urlsplit(where).query)["state"][0]
        return await self.ask(f"oauth_callback?code={code}&state={state}")


@pytest.fixture
async def site(monkeypatch: pytest.MonkeyPatch) -> AsyncIterator[Site]:
    for name in ("JUPYTERHUB_SERVICE_PREFIX", "JUPYTERHUB_API_URL", "JUPYTERHUB_API_TOKEN", "JUPYTERHUB_BASE_URL"):
        monkeypatch.delenv(name, raising=False)
    hub = FakeHub()
    app = web.Application()
    app.router.add_get("/hub/api/user", hub.user)
    app.router.add_post("/hub/api/oauth2/token", hub.token)
    runner = web.AppRunner(app)
    await runner.setup()
    await web.TCPSite(runner, "127.0.0.1", 0).start()
    api_url = f"http://127.0.0.1:{runner.addresses[0][1]}/hub/api"
    budget = Budget(rate=1000, burst=1000, concurrency=10, breaker_failures=5)
    login = HubLogin(
        api_url=api_url,
        token=OUR_TOKEN,
        prefix=PREFIX,
        hub_prefix="/hub/",
        lane=lambda: budget.slot(Lane.RESERVED, safe=True),
    )
    guard = guard_with(made_up(20))
    sockets = bind_sockets(0, "127.0.0.1")
    server = HTTPServer(make_application(cast(Guard, guard), login, prefix=PREFIX, hub_prefix="/hub/"))
    server.add_sockets(sockets)
    made = Site(guard, hub, login, budget, f"http://127.0.0.1:{sockets[0].getsockname()[1]}{PREFIX}")
    yield made
    await made.browser.close()
    server.stop()
    await server.close_all_connections()
    await runner.cleanup()


# -- tokens ----------------------------------------------------------------------------------------------------------


async def test_a_service_is_named_as_one(site: Site) -> None:
    assert (await site.ask("api/v1/hold", "report", method="POST"))[0] == 200
    assert site.guard.asked[0][:2] == ("held", "service report")


async def test_a_token_in_the_address_is_not_taken(site: Site) -> None:
    status, _, _ = await site.ask("api/v1/hold?token=ann-token", method="POST")
    assert status in {401, 403}
    assert site.guard.asked == []


@pytest.mark.parametrize("token", ["é" * 3, "x" * 5000, "a b", "", "\t", "0" * 40_000])
async def test_a_token_that_cannot_be_one_never_reaches_the_hub(site: Site, token: str) -> None:
    assert (await site.ask("api/v1/status", token))[0] in {400, 401}
    assert site.hub.asked == []


async def test_made_up_tokens_do_not_look_like_a_hub_in_trouble(site: Site) -> None:
    for i in range(20):
        assert (await site.ask("api/v1/status", f"made-up-{i}"))[0] == 401
    assert site.budget.use().breaker == "closed"
    assert site.budget.use().failures == 0


async def test_tokens_stay_out_of_errors_and_logs(site: Site, caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.DEBUG)
    site.hub.fault = 500
    _, _, text = await site.ask("api/v1/status", "ann-token")
    with pytest.raises(HubUnreachable) as failed:
        await site.login._ask("ann-token")
    site.hub.fault = None
    await site.log_in("secret-code")
    told = text + caplog.text + repr(failed.value) + repr(failed.value.__cause__) + repr(site.login)
    for secret in ("ann-token", OUR_TOKEN, "login-token", "secret-code"):
        assert secret not in told


async def test_neither_session_ids_nor_states_of_a_login_are_logged(
    site: Site, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.DEBUG)
    site.browser.cookie_jar.update_cookies({"jupyterhub-session-id": "her-session-id"})
    _, where, _ = await site.ask("servers")
    state = parse_qs(urlsplit(where).query)["state"][0]
    assert (await site.ask("oauth_callback?code=good&state=another"))[0] == 403
    assert state not in caplog.text
    _, where, _ = await site.ask("servers")
    state = parse_qs(urlsplit(where).query)["state"][0]
    assert (await site.ask(f"oauth_callback?code=good&state={state}"))[0] == 302
    assert (await site.ask("servers"))[0] == 200
    assert "her-session-id" not in caplog.text
    assert state not in caplog.text


async def test_a_made_up_token_adds_no_warning_to_the_log(site: Site, caplog: pytest.LogCaptureFixture) -> None:
    for i in range(5):
        await site.ask("api/v1/status", f"made-up-{i}")
    assert [record for record in caplog.records if record.levelno >= logging.WARNING] == []


async def test_every_cookie_of_a_login_says_which_sites_may_send_it(
    site: Site, monkeypatch: pytest.MonkeyPatch
) -> None:
    set_by: list[str] = []
    _, where, _ = await site.ask("servers")
    state = parse_qs(urlsplit(where).query)["state"][0]
    for path in ("servers", f"oauth_callback?code=good&state={state}"):
        async with site.browser.get(site.url + path, allow_redirects=False) as answer:
            set_by += answer.headers.getall("Set-Cookie")
    assert len(set_by) >= 3
    assert all("SameSite=Lax" in cookie for cookie in set_by)
    monkeypatch.setattr(site.login.hub_auth, "cookie_options", {"SameSite": "None", "Secure": True})
    site.browser.cookie_jar.clear()
    async with site.browser.get(f"{site.url}servers", allow_redirects=False) as answer:
        assert "SameSite=None" in answer.headers["Set-Cookie"]


# -- logins ------------------------------------------------------------------------------------------------------------


async def test_a_login_comes_back_to_the_page_that_was_asked_for(site: Site) -> None:
    status, where, text = await site.log_in()
    assert (status, where) == (302, f"{PREFIX}servers"), text
    status, _, text = await site.ask("servers")
    assert (status, "student-" in text) == (200, True)


async def test_every_request_of_a_login_passes_the_budget(site: Site) -> None:
    await site.log_in()
    await site.ask("servers")
    assert "token" in site.hub.asked
    assert site.budget.use().requests == len(site.hub.asked)


async def test_a_login_that_the_hub_refuses_is_said_and_does_not_look_like_a_hub_in_trouble(site: Site) -> None:
    for _ in range(10):
        status, _, text = await site.log_in("made-up")
        assert status == 400
        assert text.startswith("The hub refuses this login")
    assert site.budget.use().breaker == "closed"
    assert site.budget.use().failures == 0


async def test_what_is_wrong_between_hubguard_and_the_hub_is_for_its_log_and_not_for_who_logs_in(
    site: Site, monkeypatch: pytest.MonkeyPatch
) -> None:
    async def nobody(*_: object, **__: object) -> None:
        return None

    monkeypatch.setattr(site.login.hub_auth, "user_for_token", nobody)
    status, _, text = await site.log_in()
    assert status == 500
    assert text.startswith("The login didn't work; HubGuard's log says more. To log in once more, open ")


async def test_logins_that_nobody_finishes_take_little_memory(site: Site, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(auth, "LOGINS_MOST", 5)
    for i in range(20):
        site.browser.cookie_jar.clear()
        assert (await site.ask(f"servers?q={i}{'x' * 30_000}"))[0] == 302
    states = site.login.hub_auth._oauth_states
    assert len(states) == 5
    assert len(repr(states.values)) < 5_000


async def test_a_login_from_an_endless_address_comes_back_to_the_overview(site: Site) -> None:
    _, where, _ = await site.ask(f"servers?q={'x' * 30_000}")
    state = parse_qs(urlsplit(where).query)["state"][0]
    status, where, _ = await site.ask(f"oauth_callback?code=good&state={state}")
    assert (status, where) == (302, PREFIX)


async def test_logins_with_made_up_codes_get_no_more_of_the_hub_than_made_up_tokens(site: Site) -> None:
    site.hub.delay_s = 0.1

    async def made_up_login() -> int:
        async with aiohttp.ClientSession(cookie_jar=aiohttp.CookieJar(unsafe=True)) as browser:
            async with browser.get(f"{site.url}servers", allow_redirects=False) as answer:
                state = parse_qs(urlsplit(answer.headers["Location"]).query)["state"][0]
            async with browser.get(f"{site.url}oauth_callback?code=no&state={state}", allow_redirects=False) as answer:
                return answer.status

    told = await asyncio.gather(*(made_up_login() for _ in range(15)))
    assert set(told) == {400}
    assert site.hub.most_at_once == LOGINS_AT_ONCE


async def test_made_up_tokens_from_the_same_ingress_keep_nobody_from_logging_in(site: Site) -> None:
    """Behind an ingress, everyone comes from one address; a few made-up tokens a second made logins end in 503."""
    for _ in range(3 * DENIALS_FREE):
        site.login.lookups.denied("127.0.0.1")

    async def wait() -> None:
        async with site.login.lookups.turn("127.0.0.1", Standing.STRANGER):
            pass

    flood = [asyncio.ensure_future(wait()) for _ in range(WAITING_PER_PEER)]
    status, where, text = await site.log_in()
    assert (status, where) == (302, f"{PREFIX}servers"), text
    assert (await site.ask("servers"))[0] == 200
    assert not any(waiting.done() for waiting in flood)
    for waiting in flood:
        waiting.cancel()


async def test_a_way_back_of_a_login_that_nobody_began_has_no_place_of_its_own(site: Site) -> None:
    seen: list[Standing] = []
    turn = site.login.lookups.turn

    def noted(peer: str, standing: Standing) -> AbstractAsyncContextManager[None]:
        seen.append(standing)
        return turn(peer, standing)

    site.login.lookups.turn = noted  # type: ignore[method-assign]
    await site.ask("oauth_callback?code=x&state=x")
    await site.ask("oauth_callback?code=x")
    assert seen == [Standing.STRANGER] * 2
    await site.log_in()
    assert seen[2:] == [Standing.LOGIN]


async def test_a_login_with_the_hub_down_says_so(site: Site) -> None:
    site.hub.fault = 502
    status, _, text = await site.log_in()
    assert (status, "HubGuard can't check who you are" in text) == (503, True)


async def test_a_login_that_somebody_else_began_is_refused(site: Site) -> None:
    _, where, _ = await site.ask("servers")
    state = parse_qs(urlsplit(where).query)["state"][0]
    site.browser.cookie_jar.clear()
    status, _, _ = await site.ask(f"oauth_callback?code=good&state={state}")
    assert status == 403
    assert "token" not in site.hub.asked


@pytest.mark.parametrize("query", ["", "?code=good", "?code=good&state=x", "?error=x&error_description=<b>no</b>"])
async def test_an_odd_way_back_from_the_hub_is_one_plain_line_and_hardened(site: Site, query: str) -> None:
    async with site.browser.get(f"{site.url}oauth_callback{query}", allow_redirects=False) as answer:
        assert answer.status in {400, 403}
        assert answer.content_type == "text/plain"
        assert answer.headers["X-Content-Type-Options"] == "nosniff"
        assert "default-src 'none'" in answer.headers["Content-Security-Policy"]
        assert answer.headers["Cache-Control"] == "no-store"
        assert len((await answer.text()).splitlines()) == 1


async def test_a_login_leads_nowhere_else_than_to_our_pages(site: Site) -> None:
    for path in ("//evil.example/x", "servers?next=https://evil.example"):
        site.browser.cookie_jar.clear()
        status, where, _ = await site.ask(path)
        if status == 302:
            state = parse_qs(urlsplit(where).query)["state"][0]
            _, where, _ = await site.ask(f"oauth_callback?code=good&state={state}")
            assert urlsplit(where).netloc == ""
            assert where.startswith(PREFIX)
