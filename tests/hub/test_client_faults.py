"""The client against hubs that refuse, hang, break off or talk nonsense."""

from __future__ import annotations

import asyncio
import contextlib
import json
import logging
import random
import traceback
from collections.abc import AsyncIterator, Callable
from datetime import datetime, timedelta, timezone
from email.utils import format_datetime

import pytest
from aiohttp import web
from aiohttp.test_utils import TestServer

from hubguard.errors import (
    BudgetExhausted,
    ConfigError,
    HubBusy,
    HubError,
    HubFailed,
    HubGarbled,
    HubRefused,
    HubUnreachable,
    NamedServersOff,
    UserNotDeleted,
)
from hubguard.hub import client as hub_client
from hubguard.hub import models
from hubguard.hub.client import HTTPHubAPI, internal_ssl_context
from hubguard.pacing.budget import Budget

pytestmark = pytest.mark.contract

TOKEN = "9a7c51b3e0d24f1e-never-to-be-seen"

CALLS: dict[str, Callable[[HTTPHubAPI], object]] = {
    "list": lambda hub: hub.list_servers(),
    "get": lambda hub: hub.get_server("ada", ""),
    "stop": lambda hub: hub.stop_server("ada", ""),
    "count": lambda hub: hub.count_users(),
    "first": lambda hub: hub.first_user(),
    "users": lambda hub: hub.list_users(inactive_since=None),
    "inactive": lambda hub: hub.list_users(inactive_since=datetime(2024, 3, 5, tzinfo=timezone.utc)),
    "user": lambda hub: hub.get_user("ada"),
    "start": lambda hub: hub.start_server("ada", ""),
    "prefixes": lambda hub: hub.service_prefixes(),
    "routes": lambda hub: hub.list_routes(),
    "delete": lambda hub: hub.delete_user("ada"),
    "tokens": lambda hub: hub.tokens_of("ada"),
    "create": lambda hub: hub.create_user("ada"),
    "group": lambda hub: hub.add_to_group("staff", ["ada"]),
    "make": lambda hub: hub.create_server("ada", "gpu", {}),
    "version": lambda hub: hub.version(),
    "whoami": lambda hub: hub.whoami(),
}
ACTING = (
    "stop",
    "start",
    "delete",
    "create",
    "group",
    "make",
)  # what changes something is sent once, whatever comes of it
CONFLICTS = (("create", 409), ("make", 409))
TYPICAL = ("list", "get", "stop")
"""A paged read, a single one and an act. All calls pass the same exchange, so the product with the others is long."""


def usual(call: str, *more: object) -> object:
    """The call as a parameter, in the long tier unless it is typical."""
    return pytest.param(call, *more, marks=[] if call in TYPICAL else pytest.mark.long)


every_call = pytest.mark.parametrize("call", [usual(call) for call in CALLS])


class Fake:
    """A server that answers what the test says, and keeps what it was asked."""

    def __init__(self) -> None:
        self.asked: list[web.Request] = []
        self.was_asked = asyncio.Event()
        self.answer: Callable[[web.Request], object] = lambda request: web.Response(status=500)

    async def handle(self, request: web.Request) -> web.StreamResponse:
        await request.read()
        self.asked.append(request)
        self.was_asked.set()
        answer = self.answer(request)
        return await answer if asyncio.iscoroutine(answer) else answer

    def says(self, status=200, *, json=None, text=None, headers=None) -> None:
        if json is None:
            self.answer = lambda request: web.Response(status=status, text=text, headers=headers)
        else:
            self.answer = lambda request: web.json_response(json, status=status, headers=headers)


@pytest.fixture
async def fake() -> AsyncIterator[Fake]:
    fake = Fake()
    app = web.Application()
    app.router.add_route("*", r"/{path:[\s\S]*}", fake.handle)
    async with TestServer(app, access_log=None) as server:
        fake.url = str(server.make_url("/hub/api")).rstrip("/")
        yield fake


@contextlib.asynccontextmanager
async def client(url: str, **settings) -> AsyncIterator[HTTPHubAPI]:
    numbers = {"rate": 1000.0, "burst": 1000, "concurrency": 10, "breaker_failures": 1000}
    budget = Budget(**{**numbers, **settings.pop("budget", {})})
    async with HTTPHubAPI(url, TOKEN, budget, **settings) as hub:
        hub.budget = budget
        yield hub


async def fails(hub: HTTPHubAPI, call: str, kind: type[HubError], match: str) -> HubError:
    """The error of that call, after making sure that it tells nobody the token."""
    with pytest.raises(kind, match=match) as raised:
        await CALLS[call](hub)
    error = raised.value
    shown = traceback.TracebackException.from_exception(error, capture_locals=True)
    for text in (
        str(error),
        repr(error),
        error.detail,
        "".join(shown.format()),
        "".join(traceback.format_exception(error)),
        repr(hub),
        repr(error.__context__),
        repr(error.__cause__),
    ):
        assert TOKEN not in text
    assert "\n" not in str(error)
    assert len(str(error)) < 800
    return error


def user(name="ada", servers=None, **more):
    return {"name": name, "admin": False, "servers": {} if servers is None else servers, **more}


def server(name="", **more):
    times = {"started": "2024-03-05T07:00:00Z", "last_activity": "2024-03-05T07:30:00.123456Z"}
    return {"name": name, "ready": True, "pending": None, **times, **more}


def page(items, offset=0, limit=200, total=None, next_offset=None):
    following = None if next_offset is None else {"offset": next_offset, "limit": limit, "url": "http://elsewhere/"}
    total = len(items) if total is None else total
    return {
        "items": items,
        "_pagination": {"offset": offset, "limit": limit, "total": total, "next": following},
    }


# services, and the spawner's class


@pytest.mark.parametrize(
    ("told", "prefixes"),
    [
        ({"pages": {"name": "pages", "prefix": "/a%20b/services/k%C3%A4the/"}}, {"pages": "/a b/services/käthe"}),
        ({"pages": {"name": "pages", "prefix": "/"}}, {"pages": "/"}),
        ({"culler": {"name": "culler", "prefix": ""}, "pages": {"prefix": "/p/"}}, {"pages": "/p"}),
    ],
)
async def test_the_path_of_a_service_is_as_in_the_proxys_table(fake, told, prefixes):
    fake.says(json=told)
    async with client(fake.url) as hub:
        assert await hub.service_prefixes() == prefixes


@pytest.mark.parametrize("prefix", [None, 7, ["/"], "services/pages", "http://elsewhere/"])
async def test_a_path_that_is_none_spoils_the_whole_answer(fake, prefix):
    fake.says(json={"pages": {"name": "pages", "prefix": prefix}, "fine": {"name": "fine", "prefix": "/fine/"}})
    async with client(fake.url) as hub:
        await fails(hub, "prefixes", HubGarbled, "pages")


async def test_a_service_whose_path_is_hidden_means_a_missing_scope_and_not_that_it_has_none(fake):
    fake.says(json={"pages": {"name": "pages", "kind": "service", "admin": False}})
    async with client(fake.url) as hub:
        await fails(hub, "prefixes", HubRefused, "read:services")


async def test_the_spawners_class_is_unknown_where_we_may_not_ask_and_never_guessed(fake):
    async with client(fake.url) as hub:
        fake.says(json={"version": "6.1.1", "spawner": {"class": "kubespawner.KubeSpawner", "version": "7"}})
        assert await hub.spawner_class() == "kubespawner.KubeSpawner"
        fake.says(403, json={"status": 403, "message": "read:hub"})
        assert await hub.spawner_class() is None
        for nonsense in (
            {"version": "6.1.1"},
            {"spawner": None},
            {"spawner": {"class": ""}},
            {"spawner": {"class": 7}},
            [],
        ):
            fake.says(json=nonsense)
            with pytest.raises(HubGarbled):
                await hub.spawner_class()
        fake.says(500, json={"status": 500})
        with pytest.raises(HubFailed):
            await hub.spawner_class()


# what is refused


@pytest.mark.parametrize("call", CALLS)
@pytest.mark.parametrize("status", [pytest.param(401, marks=pytest.mark.long), 403])
async def test_a_refusal_names_the_scope_and_is_not_repeated(fake, call, status):
    fake.says(status, json={"status": status, "message": f"Missing or invalid credentials: {TOKEN}"})
    async with client(fake.url) as hub:
        error = await fails(hub, call, HubRefused, "refused.*invalid credentials")
    scopes = {
        **dict.fromkeys(("list", "count", "users", "inactive"), "list:users and read:servers"),
        **{"get": "read:servers", "user": "read:users", "stop": "delete:servers", "delete": "delete:users"},
        **{"routes": "scope proxy", "start": "scope servers", "prefixes": "list:services and read:services"},
    }
    assert scopes.get(call, "") in str(error)
    assert len(fake.asked) == 1


@pytest.mark.parametrize("call", ["list", "get", "users", "user"])
async def test_a_user_without_servers_to_be_seen_means_a_missing_scope_and_not_nothing_running(fake, call):
    bare = {"name": "ada", "admin": False}
    fake.says(json=page([bare]) if call in ("list", "users") else bare)
    async with client(fake.url) as hub:
        await fails(hub, call, HubRefused, "read:servers")


@pytest.mark.parametrize("call", ["users", "inactive", "user"])
async def test_a_user_whose_activity_is_not_told_means_a_missing_scope_and_not_that_they_never_came(fake, call):
    fake.says(json=user() if call == "user" else page([user("bob", last_activity=None), user()]))
    async with client(fake.url) as hub:
        await fails(hub, call, HubRefused, "last activity of ada.*read:users:activity")
        assert await hub.get_server("ada", "") is None if call == "user" else await hub.list_servers() == ()


# what is busy or fails


@pytest.mark.parametrize("status", [429, 503])
@pytest.mark.parametrize(
    ("header", "seconds"), [("7", 7.0), ("0.5", 0.5), ("-3", 0.0), (None, None), ("soon", None), ("inf", None)]
)
async def test_a_busy_hub_says_when_to_come_back(fake, status, header, seconds):
    fake.says(status, headers={"Retry-After": header} if header else None)
    async with client(fake.url) as hub:
        error = await fails(hub, "stop", HubBusy, "too busy")
        assert error.retry_after_s == seconds
        assert hub.budget.use().concurrency == 5
    assert len(fake.asked) == 1


async def test_a_date_to_come_back_at_counts_from_now(fake):
    until = datetime.now(timezone.utc) + timedelta(seconds=100)
    fake.says(429, headers={"Retry-After": format_datetime(until, usegmt=True)})
    async with client(fake.url) as hub:
        error = await fails(hub, "stop", HubBusy, "too busy")
    assert 90 < error.retry_after_s <= 100


async def test_nothing_else_is_sent_before_a_busy_hub_may_be_asked_again(fake):
    fake.says(429, headers={"Retry-After": "300"})
    async with client(fake.url) as hub:
        await fails(hub, "stop", HubBusy, "too busy")
        with pytest.raises(asyncio.TimeoutError):
            await asyncio.wait_for(hub.version(), 0.05)
    assert len(fake.asked) == 1


@every_call
async def test_a_read_is_tried_three_times_while_the_hub_is_busy_and_a_stop_once(fake, call):
    fake.says(503)
    async with client(fake.url) as hub:
        await fails(hub, call, HubBusy, "too busy")
        assert hub.budget.use().requests == (1 if call in ACTING else 3)
    assert len(fake.asked) == (1 if call in ACTING else 3)


async def test_a_read_that_works_at_the_third_try_works(fake):
    fake.answer = lambda request: (
        web.json_response({"version": "6.1.1"}) if len(fake.asked) == 3 else web.Response(status=503)
    )
    async with client(fake.url) as hub:
        assert await hub.version() == "6.1.1"


@pytest.mark.parametrize(
    ("call", "status"),
    # To these, a 409 says that it is there already.
    [usual(call, status) for status in (400, 409, 500, 502, 504) for call in CALLS if (call, status) not in CONFLICTS],
)
async def test_any_other_failure_has_its_status_and_the_hubs_own_words(fake, call, status):
    fake.says(status, json={"status": status, "message": "Named servers are <b>not</b>\nenabled."})
    async with client(fake.url) as hub:
        error = await fails(hub, call, HubFailed, "<b>not</b> enabled")
        assert error.status == status
        of_a_well_hub = status < 500 or (call, status) == ("delete", 500)
        assert hub.budget.use().concurrency == (10 if of_a_well_hub else 5)
    assert len(fake.asked) == 1


@pytest.mark.parametrize("call", [usual("stop"), usual("start")])
async def test_a_hub_that_has_named_servers_switched_off_says_so_in_a_way_that_can_be_told(fake, call):
    fake.says(400, json={"status": 400, "message": "Named servers are not enabled."})
    async with client(fake.url) as hub:
        error = await fails(hub, call, NamedServersOff, "switched off .JupyterHub.allow_named_servers")
    assert error.status == 400
    assert len(fake.asked) == 1


async def test_an_authenticator_that_fails_to_delete_users_opens_no_breaker(fake):
    fake.says(500, json={"status": 500, "message": "Internal Server Error"})
    async with client(fake.url, budget={"breaker_failures": 3}) as hub:
        for _ in range(9):
            await fails(hub, "delete", UserNotDeleted, "see the hub's log")
        fake.says(503)
        await fails(hub, "delete", HubBusy, "too busy")
    assert len(fake.asked) == 10


async def test_the_breaker_opens_on_a_failing_hub_and_then_sends_nothing(fake):
    fake.says(500)
    async with client(fake.url, budget={"breaker_failures": 3}) as hub:
        for _ in range(3):
            await fails(hub, "get", HubFailed, "500")
        with pytest.raises(BudgetExhausted, match="left alone"):
            await hub.stop_server("ada", "")
    assert len(fake.asked) == 3


async def test_a_read_that_the_breaker_cuts_short_tells_what_was_wrong_with_the_hub(fake):
    fake.says(503)
    async with client(fake.url, budget={"breaker_failures": 2}) as hub:
        await fails(hub, "list", HubBusy, "too busy")
    assert len(fake.asked) == 2


@every_call
async def test_a_redirect_is_not_followed(fake, call):
    fake.says(302, headers={"Location": f"{fake.url}/login"})
    async with client(fake.url) as hub:
        error = await fails(hub, call, HubFailed, "Redirects aren't followed")
        assert error.status == 302
    assert len(fake.asked) == 1


# silence


@every_call
async def test_a_hub_that_is_not_there_is_unreachable(call, unused_tcp_port):
    async with client(f"http://127.0.0.1:{unused_tcp_port}/hub/api") as hub:
        await fails(hub, call, HubUnreachable, "no answer from http://127.0.0.1")
        assert hub.budget.use().requests == (1 if call in ACTING else 3)


@every_call
async def test_a_broken_connection_repeats_a_read_through_the_budget_and_never_a_stop(call):
    async with broken_off(b"") as (url, asked), client(url) as hub:
        await fails(hub, call, HubUnreachable, "no answer")
        assert len(asked) == hub.budget.use().requests == (1 if call in ACTING else 3)


@pytest.mark.parametrize("call", ACTING)
async def test_what_acts_on_a_kept_connection_that_breaks_is_not_sent_twice(fake, call):
    fake.answer = lambda request: web.json_response({"version": "6"}) if request.method == "GET" else _abort(request)
    async with client(fake.url) as hub:
        await hub.version()
        await fails(hub, call, HubUnreachable, "no answer")
    method = {"start": "POST", "create": "POST", "group": "POST", "make": "PUT"}.get(call, "DELETE")
    assert [request.method for request in fake.asked] == ["GET", method]


@every_call
async def test_an_answer_that_breaks_off_in_the_middle_is_no_answer(call):
    start = b'HTTP/1.1 200 OK\r\nContent-Type: application/json\r\nContent-Length: 1000\r\n\r\n{"version'
    async with broken_off(start) as (url, _), client(url) as hub:
        await fails(hub, call, HubUnreachable, "no answer")


@every_call
@pytest.mark.parametrize(
    "nonsense",
    [
        b"SSH-2.0-OpenSSH_9.2\r\n",
        b"HTTP/1.1 200 OK\r\nX: " + b"x" * 100_000 + b"\r\n\r\n",
        b"HTTP/1.1 200 OK\r\nContent-Encoding: gzip\r\nContent-Length: 4\r\n\r\nabcd",
        b"\x00\xff\x00",
    ],
    ids=["ssh", "endless header", "no gzip", "bytes"],
)
async def test_what_is_no_http_is_no_answer(call, nonsense):
    async with broken_off(nonsense) as (url, _), client(url) as hub:
        await fails(hub, call, HubUnreachable, "no answer")


@every_call
async def test_a_hub_that_hangs_is_given_up_and_not_asked_again_at_once(fake, call):
    released = asyncio.Event()

    async def hang(request):
        await released.wait()
        return web.Response()

    fake.answer = hang
    async with client(fake.url, request_timeout_s=0.1) as hub:
        await fails(hub, call, HubUnreachable, r"within 0.1 s")
        assert hub.budget.use().concurrency == 5
    assert len(fake.asked) == 1
    released.set()


async def test_an_answer_that_trickles_in_for_ever_is_given_up(fake):
    async def trickle(request):
        response = web.StreamResponse()
        await response.prepare(request)
        with contextlib.suppress(ConnectionError):
            while True:
                await response.write(b" ")
                await asyncio.sleep(0.01)
        return response

    fake.answer = trickle
    async with client(fake.url, request_timeout_s=0.2) as hub:
        await fails(hub, "version", HubUnreachable, r"within 0.2 s")


async def test_waiting_for_the_budget_is_not_the_requests_time(fake):
    fake.says(json={"version": "6.1.1"})
    async with client(fake.url, request_timeout_s=0.2, budget={"rate": 10.0, "burst": 1}) as hub:
        assert await asyncio.gather(*(hub.version() for _ in range(5))) == ["6.1.1"] * 5


async def test_a_call_that_is_cancelled_gives_its_place_back(fake):
    fake.answer = lambda request: _hang()
    async with client(fake.url) as hub:
        task = asyncio.create_task(hub.version())
        await fake.was_asked.wait()
        assert hub.budget.use().in_flight == 1
        task.cancel()
        await asyncio.gather(task, return_exceptions=True)
        assert hub.budget.use().in_flight == 0


# nonsense


GARBAGE = ["<html>Welcome</html>", "", "null", "[]", "{}", '"text"', "17", "[" * 100_000, "\x00", "{'a': 1}", "true"]


@every_call
@pytest.mark.parametrize("body", GARBAGE, ids=range(len(GARBAGE)))
async def test_an_answer_that_is_no_hubs_is_garbled_and_nothing_is_concluded(fake, call, body):
    fake.says(200, text=body)
    async with client(fake.url) as hub:
        if (call, body) == ("prefixes", "{}"):  # a hub without services says so
            assert await hub.service_prefixes() == {}
        else:
            await fails(hub, call, HubGarbled, ".")
    assert len(fake.asked) == 1


@every_call
async def test_a_server_that_echoes_our_request_does_not_get_the_token_into_an_error(fake, call):
    fake.answer = lambda request: web.json_response({"headers": dict(request.headers)})
    async with client(fake.url) as hub:
        await fails(hub, call, HubGarbled, ".")


async def test_an_answer_too_large_for_any_hub_is_not_read_to_its_end(fake, monkeypatch):
    monkeypatch.setattr(hub_client, "LARGEST_ANSWER", 100_000)
    fake.says(text=json.dumps({"version": "x" * 200_000}))
    async with client(fake.url) as hub:
        await fails(hub, "version", HubGarbled, "larger than")


@pytest.mark.parametrize("call", ["get", "stop", "user", "delete"])
@pytest.mark.parametrize("body", ["<html>404 Not Found (nginx)</html>", "{}", '{"detail": "Not Found"}', ""])
async def test_a_404_that_is_not_the_hubs_makes_nobody_look_gone(fake, call, body):
    fake.says(404, text=body)
    async with client(fake.url) as hub:
        await fails(hub, call, HubGarbled, "isn't a hub")


@pytest.mark.parametrize("call", ["create", "make"])
@pytest.mark.parametrize("body", ["<html>409 Conflict</html>", "{}", '{"detail": "Conflict"}', ""])
async def test_a_409_that_is_not_the_hubs_makes_nothing_look_there_already(fake, call, body):
    fake.says(409, text=body)
    async with client(fake.url) as hub:
        await fails(hub, call, HubGarbled, "isn't a hub")


async def test_the_hubs_own_409_means_there_already(fake):
    fake.says(409, json={"status": 409, "message": "User ada already exists"})
    async with client(fake.url) as hub:
        assert await hub.create_user("ada") is False
        await hub.create_server("ada", "gpu", None)


async def test_the_hubs_own_404_means_gone(fake):
    fake.says(404, json={"status": 404, "message": "Not Found"})
    async with client(fake.url) as hub:
        assert await hub.get_server("ada", "") is None
        assert await hub.stop_server("ada", "") is True
        assert await hub.get_user("ada") is None
        await hub.delete_user("ada")
        assert hub.budget.use().failures == 0
        await fails(hub, "list", HubFailed, "404")


@pytest.mark.parametrize(
    "broken",
    [
        server(ready="yes"),
        server(ready=None),
        server(pending=True),
        server(pending=""),
        server(name="other"),
        server(last_activity="yesterday"),
        server(last_activity=1709623800),
        server(started="2024-13-05T07:00:00Z"),
        server(started="0001-01-01T00:00:00+23:59"),
        server(started="2024-03-05T07:00:00.Z"),
        server(user_options=["gpu"]),
        server(user_options="gpu"),
        server(started="٢٠٢٤-03-05T07:00:00Z"),
        "running",
        None,
        [],
    ],
)
async def test_a_server_that_makes_no_sense_spoils_the_whole_answer(fake, broken):
    async with client(fake.url) as hub:
        fake.says(json=page([user("bob", {"": server()}), user("ada", {"": broken})]))
        await fails(hub, "list", HubGarbled, "ada")
        fake.says(json=user("ada", {"": broken}))
        await fails(hub, "get", HubGarbled, "ada")


@pytest.mark.parametrize(
    "broken",
    [
        {"servers": []},
        {"servers": None},
        {"admin": 1},
        {"name": "bob"},
        {"name": 7},
        *(
            {key: names}
            for key in ("groups", "roles")
            for names in (None, "staff", {"staff": 1}, ["staff", None], [["a"]])
        ),
        {"created": "once"},
        {"last_activity": 17},
    ],
)
@pytest.mark.parametrize("call", ["get", "user"])
async def test_a_user_that_makes_no_sense_spoils_the_answer(fake, call, broken):
    fake.says(json={**user("ada", {"": server()}, last_activity=None), **broken})
    async with client(fake.url) as hub:
        await fails(hub, call, HubGarbled, "ada")


@pytest.mark.parametrize(
    ("call", "status"),
    [("stop", 200), ("stop", 201), ("stop", 206), ("delete", 200), ("delete", 202), ("start", 200), ("start", 204)],
)
async def test_what_acts_is_not_taken_for_done_by_any_other_success(fake, call, status):
    fake.says(status, text="OK")
    async with client(fake.url) as hub:
        await fails(hub, call, HubGarbled, "never does")


async def test_options_that_are_missing_or_null_are_unknown(fake):
    fake.says(json=user("ada", {"": server(), "x": server("x", user_options=None), "y": server("y", user_options={})}))
    async with client(fake.url) as hub:
        assert [(await hub.get_server("ada", name)).options for name in ("", "x", "y")] == [None, None, {}]


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("2024-03-05T07:30:00.123456Z", datetime(2024, 3, 5, 7, 30, 0, 123456, tzinfo=timezone.utc)),
        ("2024-03-05T07:30:00Z", datetime(2024, 3, 5, 7, 30, tzinfo=timezone.utc)),
        ("2024-03-05T07:30:00", datetime(2024, 3, 5, 7, 30, tzinfo=timezone.utc)),
        ("2024-03-05 07:30:00.5", datetime(2024, 3, 5, 7, 30, 0, 500000, tzinfo=timezone.utc)),
        ("2024-03-05T07:30:00.123456789Z", datetime(2024, 3, 5, 7, 30, 0, 123456, tzinfo=timezone.utc)),
        ("2024-03-05T09:30:00+02:00", datetime(2024, 3, 5, 7, 30, tzinfo=timezone.utc)),
        ("2024-03-05T00:00:00-0730", datetime(2024, 3, 5, 7, 30, tzinfo=timezone.utc)),
        (None, None),
    ],
)
def test_a_time_without_a_zone_is_utc_and_fractions_may_be_missing(text, expected):
    assert models.read_time(text, "a time") == expected


async def test_servers_that_are_neither_ready_nor_pending_are_not_active(fake):
    fake.says(
        json=page(
            [user("ada", {"": server(ready=False, stopped=True), "x": server("x", ready=False, pending="spawn")})]
        )
    )
    async with client(fake.url) as hub:
        assert [found.label for found in await hub.list_servers()] == ["ada/x"]


# pages


class Hub:
    """A list of users in pages, as the hub makes them; ``between`` may change it before each page.

    All have a running server. ``active_at`` is the last activity of each, and None for all who aren't in it; in the order
    of activity, those who have none come first, in an order that is another for each page where ``shuffled``.
    """

    def __init__(self, fake, names, *, most=200, between=lambda hub: None, active_at=None, shuffled=False) -> None:
        self.names, self.most, self.between = list(names), most, between
        self.active_at, self.shuffled = dict(active_at or {}), shuffled
        self.sent = 0
        fake.answer = self.answer

    def in_order(self, request):
        if request.query.get("sort", "id") == "id":
            return self.names
        names = list(self.names)
        if self.shuffled:
            random.Random(request.query["offset"]).shuffle(names)
        return sorted(names, key=lambda name: self.active_at.get(name, ""))

    def answer(self, request):
        self.between(self)
        assert request.headers["Accept"] == "application/jupyterhub-pagination+json"
        assert request.headers["Authorization"] == f"token {TOKEN}"
        offset, limit = int(request.query["offset"]), min(int(request.query["limit"]), self.most)
        some = self.in_order(request)[offset : offset + limit]
        self.sent += len(some)
        items = [user(name, {"": server()}, last_activity=self.active_at.get(name)) for name in some]
        more = offset + limit < len(self.names)
        return web.json_response(page(items, offset, limit, len(self.names), offset + limit if more else None))


def named(count):
    return [f"user-{number:04}" for number in range(count)]


@pytest.mark.parametrize("most", [1, 2, 3, 10, 49, 50, 51, 200])
@pytest.mark.parametrize("count", [0, 1, 2, 49, 50, 51, 100])
async def test_every_page_is_read_however_small_the_hub_makes_them(fake, most, count):
    names = named(count)
    Hub(fake, names, most=most)
    async with client(fake.url, page_size=50) as hub:
        assert [found.user for found in await hub.list_servers()] == names
        assert [found.name for found in await hub.list_users(inactive_since=None)] == names
        assert await hub.count_users() == count


async def test_reading_a_large_hub_asks_for_hardly_anybody_twice(fake):
    pages = Hub(fake, named(5000))
    async with client(fake.url) as hub:
        assert len(await hub.list_servers()) == 5000
    assert {request.query["state"] for request in fake.asked} == {"active"}
    assert pages.sent <= 5000 * 1.011


async def test_one_who_leaves_before_each_page_costs_no_page_more(fake):
    def one_leaves(hub):
        del hub.names[:1]

    Hub(fake, named(1000), between=one_leaves)
    async with client(fake.url) as hub:
        assert {found.user for found in await hub.list_servers()} >= set(named(1000)[6:])
    assert len(fake.asked) == 6


async def test_users_who_leave_while_pages_are_read_push_nobody_out_of_the_list(fake):
    names = [f"user-{number:04}" for number in range(300)]

    def some_leave(hub):
        del hub.names[:7]

    Hub(fake, names, most=50, between=some_leave)
    async with client(fake.url) as hub:
        listed = {found.user for found in await hub.list_servers()}
    gone_at_last = 7 * len(fake.asked)
    assert listed >= set(names[gone_at_last:])


async def test_a_whole_class_that_leaves_at_once_pushes_nobody_out_of_the_list(fake):
    names = [f"user-{number:04}" for number in range(500)]

    def a_class_leaves(hub):
        if len(fake.asked) == 4:
            del hub.names[:180]

    Hub(fake, names, most=50, between=a_class_leaves)
    async with client(fake.url) as hub:
        assert {found.user for found in await hub.list_servers()} >= set(names[180:])


@pytest.mark.parametrize("leave", [2, 3, 10, 40, 90])
async def test_many_who_leave_all_the_time_push_nobody_out_of_the_list_nor_keep_it_from_being_read(fake, leave):
    names = named(2000)

    def many_leave(hub):
        del hub.names[:leave]

    Hub(fake, names, between=many_leave)
    async with client(fake.url) as hub:
        listed = {found.user for found in await hub.list_servers()}
    assert listed >= set(names[leave * len(fake.asked) :])


async def test_users_who_come_while_pages_are_read_are_listed_once(fake):
    def somebody_comes(hub):
        hub.names.insert(0, f"new-{len(fake.asked)}")

    Hub(fake, [f"user-{number:04}" for number in range(120)], most=50, between=somebody_comes)
    async with client(fake.url) as hub:
        listed = [found.user for found in await hub.list_servers()]
    assert len(listed) == len(set(listed))
    assert sum(name.startswith("user-") for name in listed) == 120


async def test_a_list_that_grows_without_end_is_refused(fake):
    def answer(request):
        offset = int(request.query["offset"])
        items = [user(f"user-{number}") for number in range(offset, offset + 200)]
        return web.json_response(page(items, offset, 200, offset + 1000, offset + 200))

    fake.answer = answer
    async with client(fake.url, budget={"rate": 1000.0, "burst": 1000}) as hub:
        await fails(hub, "list", HubGarbled, "without end")


async def test_a_list_that_changes_faster_than_it_is_read_is_refused(fake):
    def everybody_changes(hub):
        hub.names = [f"user-{len(fake.asked)}-{number}" for number in range(100)]

    Hub(fake, [], most=10, between=everybody_changes)
    async with client(fake.url) as hub:
        await fails(hub, "list", HubGarbled, "faster than it can be read")


# pages of routes


def table(paths, offset=0, limit=200):
    some = sorted(paths)[offset : offset + limit]
    routes = {path: {"routespec": path, "target": "http://127.0.0.1:1", "data": {}} for path in some}
    more = offset + limit if offset + limit < len(paths) else None
    return {**page([], offset, limit, len(paths), more), "items": routes}


async def test_all_routes_are_read_even_while_some_come_and_go(fake):
    paths = [f"/user/{name}/" for name in named(900)]

    def answer(request):
        del paths[:3]
        paths.insert(0, f"/user/aa-{len(fake.asked)}/")
        query = request.query
        return web.json_response(table(paths, int(query["offset"]), int(query["limit"])))

    fake.answer = answer
    async with client(fake.url) as hub:
        routes = await hub.list_routes()
    assert {path.rstrip("/") for path in paths[len(fake.asked) :]} <= routes.keys()
    assert all(path == route.path for path, route in routes.items())


@pytest.mark.parametrize("broken", [{"items": []}, {"items": {"/": {"target": "http://a/"}}}, {"items": {"/": None}}])
async def test_a_table_that_makes_no_sense_is_refused(fake, broken):
    fake.says(json={**table(["/"]), **broken})
    async with client(fake.url) as hub:
        await fails(hub, "routes", HubGarbled, "makes no sense")


# pages of inactive users


def at(day):
    return f"2024-03-{day:02}T07:00:00Z"


SINCE = datetime(2024, 3, 10, 7, tzinfo=timezone.utc)


def term(active, inactive, never):
    """So many users who were active since SINCE, before it, and never; by id, they take turns."""
    names = named(active + inactive + never)
    stamps = [at(11)] * active + [at(1 + number % 10) for number in range(inactive)] + [None] * never
    random.Random(1).shuffle(stamps)
    return names, {name: stamp for name, stamp in zip(names, stamps, strict=True) if stamp is not None}


def inactive_of(names, active_at):
    return [name for name in names if active_at.get(name, "") < at(11)]


@pytest.mark.parametrize("most", [1, 2, 3, 50, 200])
@pytest.mark.parametrize(
    ("inactive", "never"), [(0, 0), (1, 0), (0, 1), (40, 9), (40, 10), (49, 1), (30, 70), (400, 0)]
)
async def test_inactive_users_are_all_listed_by_name_however_small_the_pages(fake, most, inactive, never):
    names, active_at = term(100, inactive, never)
    Hub(fake, names, most=most, active_at=active_at)
    async with client(fake.url) as hub:
        listed = await hub.list_users(inactive_since=SINCE)
    assert [found.name for found in listed] == inactive_of(names, active_at)


async def test_only_the_pages_with_inactive_users_are_read(fake):
    names, active_at = term(5000, 300, 50)
    Hub(fake, names, active_at=active_at)
    async with client(fake.url) as hub:
        assert len(await hub.list_users(inactive_since=SINCE)) == 350
    assert [request.query["sort"] for request in fake.asked] == ["last_activity"] * 2


async def test_where_the_database_has_no_order_among_those_who_never_came_nobody_is_left_out(fake):
    names, active_at = term(100, 30, 900)
    Hub(fake, names, active_at=active_at, shuffled=True)
    async with client(fake.url) as hub:
        assert [found.name for found in await hub.list_users(inactive_since=SINCE)] == inactive_of(names, active_at)


@pytest.mark.parametrize("many", [1, 150])
async def test_inactive_users_who_come_back_while_they_are_read_push_nobody_out_of_the_list(fake, many):
    names, active_at = term(300, 600, 100)
    back = []

    def some_come_back(hub):
        first = [name for name in hub.in_order(fake.asked[-1]) if name in inactive_of(names, hub.active_at)][:many]
        back.extend(first)
        hub.active_at.update(dict.fromkeys(first, at(12)))

    Hub(fake, names, active_at=active_at, between=lambda hub: some_come_back(hub) if len(fake.asked) < 4 else None)
    async with client(fake.url) as hub:
        listed = {found.name for found in await hub.list_users(inactive_since=SINCE)}
    assert listed >= set(inactive_of(names, active_at)) - set(back)


async def test_inactive_users_who_leave_while_they_are_read_push_nobody_out_of_the_list(fake):
    names, active_at = term(300, 600, 100)

    def some_leave(hub):
        hub.names = [name for name in hub.names if name not in hub.in_order(fake.asked[-1])[:3]]

    pages = Hub(fake, names, active_at=active_at, between=some_leave)
    async with client(fake.url) as hub:
        listed = {found.name for found in await hub.list_users(inactive_since=SINCE)}
    assert listed >= set(inactive_of(pages.names, active_at))


async def test_a_list_of_inactive_users_that_grows_without_end_is_refused(fake):
    def answer(request):
        offset = int(request.query["offset"])
        items = [user(f"user-{number}", last_activity=None) for number in range(offset, offset + 200)]
        return web.json_response(page(items, offset, 200, offset + 1000, offset + 200))

    fake.answer = answer
    async with client(fake.url, budget={"rate": 1000.0, "burst": 1000}) as hub:
        await fails(hub, "inactive", HubGarbled, "without end")


@pytest.mark.parametrize(
    "answer",
    [
        [user()],
        {"items": [user()]},
        {"items": {"ada": user()}, "_pagination": {"offset": 0, "limit": 1, "total": 1, "next": None}},
        page([user()], offset=200),
        page([user("a"), user("b")], limit=1),
        page([user()], limit=0),
        page([user()], total=-1),
        page([user()], total="1"),
        page([user()], limit=True),
        page([user()], limit=1, total=5, next_offset=0),
        page([user()], limit=1, total=5, next_offset=-1),
        page([user()], limit=1, total=5, next_offset=3),
        page([user()], limit=1, total=1, next_offset=1),
        page([user()], limit=1, total=5),
        {"items": [user()], "_pagination": {"offset": 0, "limit": 1, "total": 5, "next": "http://hub/?offset=1"}},
    ],
)
async def test_pages_whose_numbers_do_not_add_up_are_refused(fake, answer):
    fake.says(json=answer)
    async with client(fake.url) as hub:
        for call in ("list", "count", "users", "inactive"):
            await fails(hub, call, HubGarbled, "makes no sense")


async def test_a_page_that_fails_leaves_no_half_list(fake):
    hub_pages = Hub(fake, [f"user-{number}" for number in range(100)], most=50)
    fake.answer = lambda request: web.Response(status=500) if len(fake.asked) == 2 else hub_pages.answer(request)
    async with client(fake.url) as hub:
        await fails(hub, "list", HubFailed, "500")


# the hub's clock


@pytest.mark.parametrize("ahead_s", [-4000, 0, 300])
async def test_a_hub_with_another_time_is_noticed_by_any_answer(fake, ahead_s):
    async with client(fake.url) as hub:
        assert hub.skew_s is None
        date = datetime.now(timezone.utc) + timedelta(seconds=ahead_s)
        fake.says(500, headers={"Date": format_datetime(date, usegmt=True)})
        await fails(hub, "stop", HubFailed, "500")
        assert abs(hub.skew_s - ahead_s) < 100


@pytest.mark.parametrize("date", ["", "today", "Tue, 35 Mar 2024 07:00:00 GMT", "17", "Tue, 05 Mar 99999 07:00:00 GMT"])
async def test_a_date_that_is_none_says_nothing_about_the_clock(fake, date):
    fake.says(json={"version": "6.1.1"}, headers={"Date": date})
    async with client(fake.url) as hub:
        await hub.version()
        assert hub.skew_s is None


# names, settings, secrets


NAMES = ["sl/ash", "a//b", "q?x=1", "h#ash", "per%cent", "per%2fcent", 'quo"te', "less<than", "sp ace", "käthe", "李雷"]


@pytest.mark.parametrize(
    "name", [*NAMES, "...", "a/..", "+", "a\\b", "%", "&state=x", "🦉", ";", "~", "a\r\nX-Evil: 1"]
)
async def test_a_name_reaches_the_hub_as_it_is_and_as_one_piece_of_the_path(fake, name):
    fake.says(204)
    async with client(fake.url) as hub:
        await hub.stop_server(name, "")
        await hub.stop_server("ada", name, remove=True)
        await hub.delete_user(name)
    first, second, third = (request.rel_url.raw_parts[3:] for request in fake.asked)
    assert [len(first), len(second), len(third)] == [3, 4, 2]
    assert fake.asked[2].rel_url.parts[4] == name
    assert await fake.asked[2].text() == ""
    assert fake.asked[0].rel_url.parts[4] == name
    assert fake.asked[1].rel_url.parts[6] == name
    assert first[2] == "server"
    assert await fake.asked[1].text() == '{"remove": true}'


@pytest.mark.parametrize("name", [".", ".."])
async def test_a_name_that_whatever_stands_in_between_takes_for_another_path_is_never_sent(fake, name):
    """A proxy that tidies paths makes ``DELETE /users/ann`` of ``DELETE /users/ann/servers/..``."""
    fake.says(204)
    async with client(fake.url) as hub:
        for call in (
            lambda: hub.stop_server("ada", name, remove=True),
            lambda: hub.stop_server(name, ""),
            lambda: hub.start_server("ada", name),
            lambda: hub.delete_user(name),
            lambda: hub.get_user(name),
            lambda: hub.get_server(name, ""),
            lambda: hub.tokens_of(name),
            lambda: hub.create_user(name),
            lambda: hub.add_to_group(name, ["ada"]),
        ):
            with pytest.raises(HubFailed, match="no path of its own"):
                await call()
    assert fake.asked == []


@pytest.mark.parametrize(
    "url",
    ["", "hub", "ftp://hub/api", "http://", "http://hub:99999/", "http://a:b@hub/", "http://hub/?x=1", "http://[/"],
)
def test_a_url_that_can_be_no_hubs_is_named(url):
    with pytest.raises(ConfigError, match=r"^JUPYTERHUB_API_URL: must"):
        HTTPHubAPI(url, TOKEN, Budget(rate=1, burst=1, concurrency=1))


INTERNAL = ("hub-internal/hub-internal.key", "hub-internal/hub-internal.crt", "hub-ca/hub-ca.crt")


@pytest.mark.parametrize("missing", INTERNAL)
def test_a_missing_certificate_of_the_hubs_is_named(tmp_path, missing):
    for file in INTERNAL:
        (tmp_path / file).parent.mkdir(exist_ok=True)
        if file != missing:
            (tmp_path / file).write_text("-----BEGIN CERTIFICATE-----\n")
    with pytest.raises(
        ConfigError, match=rf"^internal_certs_location: {tmp_path}/{missing} can't be read \(No such file"
    ):
        internal_ssl_context(str(tmp_path))


@pytest.mark.parametrize("broken", ["", "-----BEGIN CERTIFICATE-----\n"])
def test_certificates_that_are_none_are_refused(tmp_path, broken):
    for file in INTERNAL:
        (tmp_path / file).parent.mkdir(exist_ok=True)
        (tmp_path / file).write_text(broken)
    with pytest.raises(ConfigError, match=rf"^internal_certs_location: the certificates in {tmp_path} can't be used"):
        internal_ssl_context(str(tmp_path))


@pytest.mark.parametrize("token", ["", "two words", "line\nbreak", "tökén", "\x00"])
def test_a_token_that_can_be_none_is_named_and_not_shown(token):
    with pytest.raises(ConfigError, match=r"^JUPYTERHUB_API_TOKEN: ") as raised:
        HTTPHubAPI("http://hub/", token, Budget(rate=1, burst=1, concurrency=1))
    assert not token or token not in str(raised.value)


async def test_the_token_is_in_no_log_line_even_at_debug(fake, caplog):
    caplog.set_level(logging.DEBUG)
    fake.says(500)
    async with client(fake.url) as hub:
        for call in CALLS:
            await fails(hub, call, HubFailed, "500")
    assert TOKEN not in caplog.text


async def test_it_may_be_used_again_after_it_was_closed(fake):
    fake.says(json={"version": "6.1.1"})
    async with client(fake.url) as hub:
        await hub.version()
        await hub.close()
        assert await hub.version() == "6.1.1"


async def _hang():
    await asyncio.sleep(3600)


def _abort(request: web.Request) -> web.Response:
    request.transport.abort()
    return web.Response()


@contextlib.asynccontextmanager
async def broken_off(answer: bytes) -> AsyncIterator[tuple[str, list[bytes]]]:
    """A server that reads a request, sends ``answer`` whatever it was asked, and breaks off."""
    asked: list[bytes] = []

    async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        with contextlib.suppress(ConnectionError, asyncio.IncompleteReadError):
            asked.append(await reader.readuntil(b"\r\n\r\n"))
            writer.write(answer)
            await writer.drain()
        writer.close()

    listening = await asyncio.start_server(serve, "127.0.0.1", 0)
    async with listening:
        yield f"http://127.0.0.1:{listening.sockets[0].getsockname()[1]}/hub/api", asked
