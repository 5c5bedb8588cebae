"""The metrics of the hub and of configurable-http-proxy, and what they say of starts that fail."""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import Mapping
from datetime import datetime, timezone

from typing_extensions import override

from hubguard.hub.api import HubAPI
from hubguard.hub.http import Answer, HTTPClient
from hubguard.pacing.clock import Clock
from hubguard.watch.decide.failed_starts import FailedStarts
from hubguard.watch.decide.metrics import (
    RECENT_S,
    Malformed,
    Scrape,
    Starts,
    hub_signals,
    is_of_hub,
    is_of_proxy,
    proxy_signals,
    read_scrape,
    start_signals,
    started,
    starts_since,
    with_causes,
)
from hubguard.watch.decide.signals import OFTEN_S, SELDOM_S
from hubguard.watch.model import SignalSource
from hubguard.watch.observe.port import NotSetUp, Reader, SourceUnavailable

FRESH_S = SELDOM_S / 2
"""Seconds for which one scrape of the hub serves all that is read from it."""

LARGEST = 16 * 1024 * 1024
"""Maximum bytes of an answer with metrics. A hub's take some 200 kB."""

NO_HUB_METRICS = (
    "The hub doesn't show its metrics to HubGuard's token. Give the service's role the scope read:metrics, which the"
    " include requests, or set c.JupyterHub.authenticate_prometheus = False."
)
NO_PROXY_METRICS = (
    "HubGuard doesn't know where the proxy's metrics are. Start configurable-http-proxy with --metrics-port=8002 (z2jh:"
    " proxy.chp.extraCommandLineFlags), and set c.HubGuardWatch.proxy_metrics_url = 'http://127.0.0.1:8002/metrics'."
)


class HubScrapes:
    """The two newest scrapes of the hub, read at most once in half a minute whoever asks."""

    def __init__(self, hub: HubAPI, clock: Clock) -> None:
        self._hub = hub
        self._clock = clock
        self._lock = asyncio.Lock()
        self._newest: Scrape | None = None
        self._before: Scrape | None = None

    async def latest(self) -> tuple[Scrape, Scrape | None]:
        """(the newest, the one before it or None). Raises NotSetUp, SourceUnavailable, HubError."""
        async with self._lock:
            now = self._clock.now().timestamp()
            if self._newest is None or not 0 <= now - self._newest.at < FRESH_S:
                text = await self._hub.metrics()
                if text is None:
                    raise NotSetUp(NO_HUB_METRICS)
                self._newest, self._before = _read(text, now, of_hub=True), self._newest
            return self._newest, self._before


def _read(text: str, at: float, *, of_hub: bool) -> Scrape:
    try:
        return read_scrape(text, at, is_of_hub if of_hub else is_of_proxy)
    except Malformed as error:
        raise SourceUnavailable(f"The answer isn't metrics: {error}") from None


class HubMetricsReader(Reader):
    """The hub's metrics. ``check_every_s`` is how often the hub checks its routes, 0 if it doesn't or that is unknown."""

    source = SignalSource.HUB_METRICS
    every_s = SELDOM_S

    def __init__(self, scrapes: HubScrapes, check_every_s: float) -> None:
        self._scrapes = scrapes
        self._check_every_s = check_every_s
        self._checks: dict[str, float] = {}
        self._checked_at = 0.0
        self._started: float | None = None
        self._restarts = 0

    @override
    async def read(self) -> Mapping[str, float]:
        """The last check of routes counts until the next one should long have come: there may be minutes between two."""
        now, before = await self._scrapes.latest()
        try:
            values = hub_signals(now, before)
        except Malformed as error:
            raise SourceUnavailable(f"The hub's metrics can't be used: {error}.") from None
        if "check_routes_seconds" in values:
            self._checks = {"check_routes_seconds": values["check_routes_seconds"]}
            if self._check_every_s > 0:
                self._checks["check_routes_share"] = values["check_routes_seconds"] / self._check_every_s
            self._checked_at = now.at
        elif now.at - self._checked_at > 2 * max(self._check_every_s, SELDOM_S):
            self._checks = {}
        begun = started(now)
        if begun is not None:
            self._restarts += self._started is not None and abs(begun - self._started) > 1
            self._started = begun
            values["hub_restarts"] = float(self._restarts)
        return {**values, **self._checks}

    @override
    async def close(self) -> None:
        """The hub's client isn't ours to close."""


class StartsReader(Reader):
    """Failed starts by cause, with those causes that were ``told`` by the hub's process.

    ``limit``: the hub exits after that many failed starts in a row, 0: it doesn't.
    """

    source = SignalSource.STARTS
    every_s = SELDOM_S

    def __init__(self, scrapes: HubScrapes, limit: int, told: FailedStarts) -> None:
        self._scrapes = scrapes
        self._told = told
        self._limit = limit
        self._steps: deque[Starts] = deque()

    @override
    async def read(self) -> Mapping[str, float]:
        """Before two scrapes nothing is known, and nothing is 0."""
        now, before = await self._scrapes.latest()
        if before is None:
            return {}
        step = starts_since(now, before)
        if step is None:
            self._steps.clear()  # a hub that was started again counts from 0
            return {}
        if not self._steps or step.at > self._steps[-1].at:
            since, until = (datetime.fromtimestamp(at, timezone.utc) for at in (before.at, now.at))
            self._steps.append(with_causes(step, self._told.causes_between(since, until)))
        while self._steps[0].at < now.at - RECENT_S:
            self._steps.popleft()
        return start_signals(self._steps, max(1.0, now.at - before.at), self._limit)

    @override
    async def close(self) -> None:
        """The hub's client isn't ours to close."""


class ProxyMetricsReader(Reader):
    """configurable-http-proxy's metrics at ``url``, "" if unknown. ``heap_limit`` is its heap's in bytes, 0 if unknown."""

    source = SignalSource.PROXY_METRICS
    every_s = OFTEN_S

    def __init__(self, url: str, clock: Clock, heap_limit: float = 0.0) -> None:
        self._url = url
        self._clock = clock
        self._heap_limit = heap_limit
        self._http = HTTPClient(timeout_s=5.0, largest=LARGEST, resend=True)
        self._before: Scrape | None = None

    @override
    async def read(self) -> Mapping[str, float]:
        """Each reading also ends a little of what the proxy measures by itself, such as its event loop's lag."""
        if not self._url:
            raise NotSetUp(NO_PROXY_METRICS)
        answer = await self._http.exchange("GET", self._url)
        if not isinstance(answer, Answer):
            raise SourceUnavailable(f"{self._url} doesn't answer ({answer.detail or answer.why.value}).")
        if answer.status != 200:
            raise SourceUnavailable(f"{self._url} answers {answer.status}. Is it the proxy's --metrics-port?")
        now = _read(answer.body.decode("utf-8", "replace"), self._clock.now().timestamp(), of_hub=False)
        try:
            values = proxy_signals(now, self._before)
        except Malformed as error:
            raise SourceUnavailable(f"{self._url} isn't the proxy's: {error}.") from None
        self._before = now
        if self._heap_limit:
            values["proxy_heap_limit_bytes"] = self._heap_limit
        return values

    @override
    async def close(self) -> None:
        """Close the connection."""
        await self._http.close()
