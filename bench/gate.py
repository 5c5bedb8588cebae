"""A gate in front of a hub's API: lets everything through, and knows when each request arrived."""

from __future__ import annotations

import time
from collections.abc import Sequence
from dataclasses import dataclass

import aiohttp
from aiohttp import web
from yarl import URL

HOP_BY_HOP = {"connection", "content-length", "keep-alive", "transfer-encoding", "upgrade"}


@dataclass
class Asked:
    """One request: when it arrived and was answered (monotonic seconds), and with which status; None: not yet."""

    at_s: float
    method: str
    path: str
    answered_s: float | None = None
    status: int | None = None


class Gate:
    """``async with Gate(hub.api_url) as gate:`` serves that API at ``gate.api_url``; ``asked`` has all requests in order."""

    def __init__(self, api_url: str) -> None:
        self._behind = URL(api_url)
        self.asked: list[Asked] = []
        self.api_url = ""

    async def __aenter__(self) -> Gate:
        self._session = aiohttp.ClientSession(
            auto_decompress=False,
            connector=aiohttp.TCPConnector(limit=0),
            timeout=aiohttp.ClientTimeout(total=120),
        )
        app = web.Application()
        app.router.add_route("*", "/{path:.*}", self._pass_on)
        self._runner = web.AppRunner(app)
        await self._runner.setup()
        site = web.TCPSite(self._runner, "127.0.0.1", 0)
        await site.start()
        self.api_url = f"http://127.0.0.1:{self._runner.addresses[0][1]}{self._behind.path}"
        return self

    async def __aexit__(self, *_: object) -> None:
        await self._runner.cleanup()
        await self._session.close()

    async def _pass_on(self, request: web.Request) -> web.Response:
        asked = Asked(time.monotonic(), request.method, request.raw_path)
        self.asked.append(asked)
        # The Host header goes along: the hub makes the address of the next page from it.
        headers = [(name, value) for name, value in request.headers.items() if name.lower() not in HOP_BY_HOP]
        url = URL(f"{self._behind.origin()}{request.raw_path}", encoded=True)
        body = await request.read()
        async with self._session.request(
            request.method, url, headers=headers, data=body or None, allow_redirects=False
        ) as answer:
            content = await answer.read()
        asked.answered_s, asked.status = time.monotonic(), answer.status
        told = [(name, value) for name, value in answer.headers.items() if name.lower() not in HOP_BY_HOP]
        return web.Response(status=answer.status, headers=told, body=content)

    def most_in_flight(self, method: str) -> int:
        """How many requests of that method were unanswered at once, at most."""
        steps = []
        for asked in self.asked:
            if asked.method == method:
                steps += [(asked.at_s, 1), (asked.answered_s or float("inf"), -1)]
        most = now = 0
        for _, step in sorted(steps):
            now += step
            most = max(most, now)
        return most


@dataclass(frozen=True)
class BudgetKept:
    """How requests that arrived kept to ``rate * W + burst`` in every window of W seconds.

    ``highest_share`` is the most of it that any window used. ``ahead_ms`` is by how much the one that was furthest ahead of
    the budget came too early; 0 or less where none was, and so the budget was never exceeded.
    """

    requests: int
    highest_share: float
    ahead_ms: float

    @property
    def kept(self) -> bool:
        return self.ahead_ms <= 0


def budget_kept(times_s: Sequence[float], rate: float, burst: int) -> BudgetKept:
    """Look at every window there is: from each request to each later one, both included."""
    times = sorted(times_s)
    share, ahead_s = 0.0, float("-inf")
    for first, began in enumerate(times):
        for count, ended in enumerate(times[first:], 1):
            share = max(share, count / (rate * (ended - began) + burst))
            ahead_s = max(ahead_s, (count - burst) / rate - (ended - began))
    return BudgetKept(len(times), share, ahead_s * 1000 if times else 0.0)
