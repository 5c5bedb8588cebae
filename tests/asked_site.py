"""The application over a placed guard, asked as anyone may ask it."""

from __future__ import annotations

import html
import json
import re
from collections.abc import AsyncIterator, Callable, Mapping
from contextlib import asynccontextmanager
from dataclasses import dataclass
from typing import Any

import aiohttp
from doubles.guard import POLICY, FakeAuth, PlacedGuard
from tornado.httpserver import HTTPServer
from tornado.netutil import bind_sockets

from hubguard.cull.decide.judge import CullPolicy
from hubguard.dashboard.routes import make_application

PREFIX = "/services/hubguard/"
AWKWARD = (
    *("a/b", "a?b", "a#b", "100%", 'q"uote', "<s>struck</s>", "żółć/😀", "a b&c=d", "'; drop", "..", "%2e%2e", "a\\b"),
    *("{{7*7}}", "<script>alert(1)</script>", '"><img src=x onerror=a()>', "=cmd|'/c calc'!A0"),
)
"""Names and texts that want to be something else."""


@dataclass
class Answer:
    status: int
    headers: Mapping[str, str]
    text: str

    @property
    def json(self) -> Any:
        return json.loads(self.text)

    @property
    def says(self) -> str:
        """What a page says, without its tags."""
        plain = " ".join(html.unescape(re.sub(r"<[^>]*>", " ", self.text)).split())
        return re.sub(r" (?=[.,;:)])", "", plain)


class Site:
    """The application over a placed guard, and a client that is nobody unless told."""

    def __init__(self, guard: PlacedGuard, auth: FakeAuth, session: aiohttp.ClientSession, url: str) -> None:
        self.guard, self.auth, self.session, self.url = guard, auth, session, url

    async def ask(
        self,
        path: str,
        token: str | None = None,
        *,
        method: str = "GET",
        login: str | None = None,
        headers: Mapping[str, str] | None = None,
        body: Any = None,
    ) -> Answer:
        sent = dict(headers or {})
        if token:
            sent["Authorization"] = f"token {token}"
        if login:
            sent["Cookie"] = f"login={login}"
        data = body if isinstance(body, str | bytes | dict) or body is None else json.dumps(body)
        url = aiohttp.client.URL(self.url + path, encoded=True)
        async with self.session.request(method, url, headers=sent, data=data, allow_redirects=False) as answer:
            return Answer(answer.status, answer.headers, await answer.text())

    async def post(self, path: str, token: str, body: Any = "{}") -> Answer:
        """The answer to ``body``, as JSON unless it is text."""
        return await self.ask(path, token, method="POST", body=body if isinstance(body, str) else json.dumps(body))

    async def form_token(self, login: str = "actor") -> str:
        """What the forms on that login's pages send along to prove that they are ours."""
        pages = [(await self.ask(path, login=login)).text for path in ("", "users")]
        found = re.search(r'name="_xsrf" value="(\w+)"', "".join(pages))
        assert found
        return found[1]


def serve(guard: PlacedGuard, auth: FakeAuth, **settings: Any) -> tuple[HTTPServer, str]:
    """The application on a free port, and its URL. ``settings`` are make_application's."""
    app = make_application(guard, auth, prefix=PREFIX, hub_prefix="/hub/", **settings)
    sockets = bind_sockets(0, "127.0.0.1")
    server = HTTPServer(app)
    server.add_sockets(sockets)
    return server, f"http://127.0.0.1:{sockets[0].getsockname()[1]}{PREFIX}"


async def end(guard: PlacedGuard, server: HTTPServer) -> None:
    await guard.drifts.close()
    server.stop()
    await server.close_all_connections()


@asynccontextmanager
async def sites(**settings: Any) -> AsyncIterator[Callable[..., Site]]:
    """A function that serves a guard; what it served is gone at the end. ``settings`` are make_application's."""
    served: list[tuple[PlacedGuard, HTTPServer]] = []
    async with aiohttp.ClientSession(cookie_jar=aiohttp.DummyCookieJar()) as session:

        def make(guard: PlacedGuard, policy: CullPolicy = POLICY) -> Site:
            auth = FakeAuth()
            guard.cycles.policy = policy
            server, url = serve(guard, auth, **settings)
            served.append((guard, server))
            return Site(guard, auth, session, url)

        yield make
    for guard, server in served:
        await end(guard, server)
