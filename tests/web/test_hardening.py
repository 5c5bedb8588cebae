"""What any stranger may send to the pages and the API: odd addresses, methods, headers and names."""

from __future__ import annotations

import asyncio
import logging
import re
from collections.abc import AsyncIterator

import pytest
from asked_site import PREFIX, Site, sites
from doubles.drift import one_of_each, report_with
from doubles.guard import guard_with, made_up

from hubguard.dashboard.routes import API, PAGES

pytestmark = pytest.mark.contract

HARDENED = ("Content-Security-Policy", "X-Content-Type-Options", "Referrer-Policy", "Cross-Origin-Opener-Policy")


@pytest.fixture
async def site() -> AsyncIterator[Site]:
    async with sites() as make:
        guard = guard_with(made_up(5))
        guard.drifts.report = report_with(one_of_each(), made_up(5))
        yield make(guard)


def addresses() -> list[str]:
    """An address of every kind, with a name in it where it takes one."""
    filled = {"user": "student-00000", "name": "gpu", "id": "1", "digest": "0" * 64, "turn": "pause", "word": "hold"}
    filled["signal"] = "hub_up"
    paths = [*PAGES, *API, "static/live.js", "static/nothing", "nothing", "api/nothing"]
    return [re.sub(r"{(\w+)}", lambda found: filled[found[1]], path) for path in paths]


@pytest.mark.parametrize("path", addresses())
async def test_every_method_gets_a_hardened_answer_that_says_what_to_send_instead(site: Site, path: str) -> None:
    for method in ("GET", "HEAD", "POST", "PUT", "PATCH", "DELETE", "OPTIONS", "TRACE", "QUERY"):
        for token in (None, "actor"):
            answer = await site.ask(path, token, method=method)
            assert answer.status != 500
            assert ("Allow" in answer.headers) == (answer.status == 405)
            assert ("WWW-Authenticate" in answer.headers) == (answer.status == 401)
            assert "Server" not in answer.headers
            assert all(name in answer.headers for name in HARDENED)
            if answer.status == 405:
                allowed = [name for name in answer.headers["Allow"].split(", ") if name]
                assert method not in allowed
                for other in allowed:
                    assert (await site.ask(path, "actor", method=other)).status != 405


@pytest.mark.parametrize("name", ["%00", "%0a", "%1b%5b31m", "%c2%85", "%e2%80%a8", "%ff", "x" * 256, "%ed%a0%80"])
async def test_a_name_that_nobody_has_is_a_bad_address_and_no_defect(
    site: Site, name: str, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.DEBUG)
    for path in (
        f"servers/{name}/",
        f"servers/ann/{name}",
        f"beliefs/{name}/",
        f"beliefs/ann/{name}",
        f"users/{name}",
        f"fragments/beliefs/{name}/",
        *(f"api/v1/{kind}" for kind in (f"servers/{name}/", f"beliefs/ann/{name}", f"users/{name}")),
    ):
        answer = await site.ask(path, "reader")
        assert answer.status == (404 if len(name) > 255 else 400)
    for path in (f"static/{name}", f"static/live.js{name}", f"{name}", f"api/v1/{name}", f"static/{'a/' * 3000}"):
        assert (await site.ask(path)).status in {400, 403, 404}
    assert "Traceback" not in caplog.text


async def test_a_name_that_no_database_can_hold_is_the_callers_mistake(site: Site) -> None:
    for path, body in (
        ("api/v1/exemptions", '{"user": "a\\u0000", "for_s": 60}'),
        ("api/v1/exemptions", '{"user": "\\ud800", "for_s": 60}'),
        ("api/v1/hold", '{"why": "\\u0000"}'),
    ):
        assert (await site.post(path, "actor", body)).status == 400
    assert (await site.ask("journal?user=%00", "reader")).status == 200


async def test_the_address_without_its_slash_leads_to_the_pages_and_takes_nothing_else(site: Site) -> None:
    url = site.url.rstrip("/")
    for method, status in (("GET", 302), ("HEAD", 302), ("POST", 405)):
        async with site.session.request(method, url, allow_redirects=False) as answer:
            assert answer.status == status
            assert all(name in answer.headers for name in HARDENED)


async def raw(site: Site, sent: bytes) -> bytes:
    """What comes back on a connection of its own, until it is closed."""
    host, port = site.url.split("/")[2].split(":")
    reader, writer = await asyncio.open_connection(host, int(port))
    writer.write(sent)
    await writer.drain()
    try:
        return await asyncio.wait_for(reader.read(), 20)
    finally:
        writer.close()


@pytest.mark.parametrize(
    "head",
    [
        b"GET %s HTTP/1.1\r\nHost: h\r\nConnection: close\r\nX: " % PREFIX.encode() + b"a" * 70_000,
        b"GET %s?" % PREFIX.encode() + b"a=b&" * 20_000 + b" HTTP/1.1\r\nHost: h\r\nConnection: close",
        b"GET %shealth?" % PREFIX.encode() + b"a=b&" * 10_000 + b" HTTP/1.1\r\nHost: h\r\nConnection: close",
        b"GET %s\x1b[31m HTTP/1.1\r\nHost: h\r\nConnection: close" % PREFIX.encode(),
        b"GET %s HTTP/1.1\r\nConnection: close" % PREFIX.encode(),
        b"GET %s HTTP/1.1\r\nHost: h\r\nCookie: " % PREFIX.encode() + b"a=b; " * 10_000 + b"\r\nConnection: close",
        b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03",
        b"GET " + PREFIX.encode() + b" HTTP/9.9",
        b"POST %sapi/v1/hold HTTP/1.1\r\nHost: h\r\nContent-Length: 99999999999" % PREFIX.encode(),
        b"POST %sapi/v1/hold HTTP/1.1\r\nHost: h\r\nContent-Length: -1" % PREFIX.encode(),
        b"POST %sapi/v1/hold HTTP/1.1\r\nHost: h\r\nTransfer-Encoding: chunked\r\nContent-Length: 5" % PREFIX.encode(),
    ],
)
async def test_a_request_that_is_none_is_turned_away_and_no_defect(
    site: Site, head: bytes, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.DEBUG)
    answer = await raw(site, head + b"\r\n\r\n")
    assert not answer.startswith(b"HTTP/1.1 5")
    assert "Traceback" not in caplog.text
    assert (await site.ask("health")).status == 200
