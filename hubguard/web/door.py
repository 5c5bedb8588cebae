"""The HTTP server that strangers reach: it waits for nobody for long, and never takes the sockets that the guard needs."""

from __future__ import annotations

import logging
import resource
import time
from collections import Counter
from collections.abc import Awaitable
from dataclasses import dataclass
from typing import Any, cast

from tornado import httputil
from tornado.http1connection import HTTP1ServerConnection
from tornado.httpserver import HTTPServer
from typing_extensions import override

log = logging.getLogger("hubguard.web")

LARGEST_REQUEST = 65536
"""Maximum bytes of a request's body. Nothing that HubGuard is asked needs more."""

BODY_S = 20.0
"""Maximum seconds for the body of a request to arrive."""

IDLE_S = 60.0
"""Maximum seconds for the head of a request to arrive. Proxies keep connections open for the next one."""

MOST_CONNECTIONS = 512
"""Maximum connections at once."""

SAY_AGAIN_S = 60.0
"""Seconds between two lines in the log about too many connections."""


def most_connections() -> int:
    """How many connections may be open at once: half of what this process may open, since the guard needs the rest."""
    soft, _ = resource.getrlimit(resource.RLIMIT_NOFILE)
    return MOST_CONNECTIONS if soft == resource.RLIM_INFINITY else max(1, min(MOST_CONNECTIONS, soft // 2))


@dataclass(eq=False, slots=True)
class _Visit:
    """A connection. ``since_s`` is when it began to wait for its next request, ``served``: that one is being answered."""

    peer: str
    since_s: float
    served: bool = False


class Door(HTTPServer):
    """Serves at most ``most`` connections at once. One more closes the one that has kept it waiting for longest.

    It is one of the address that has the most connections, and never one whose request is being answered.
    """

    @override
    def initialize(self, *args: Any, most: int | None = None, **options: Any) -> None:
        """``most`` None: as many as this process can spare."""
        limits = {"body_timeout": BODY_S, "idle_connection_timeout": IDLE_S, "max_body_size": LARGEST_REQUEST}
        super().initialize(*args, **{**limits, **options})
        self._most = most or most_connections()
        self._visits: dict[HTTP1ServerConnection, _Visit] = {}
        self._said_s = float("-inf")

    @override
    def start_request(self, server_conn: object, request_conn: httputil.HTTPConnection) -> httputil.HTTPMessageDelegate:
        connection, now_s = cast(HTTP1ServerConnection, server_conn), time.monotonic()
        visit = self._visits.get(connection)
        if visit is None:
            if len(self._visits) >= self._most:
                self._make_room(connection, now_s)
            # Before a proxy's headers are read, this is who has connected.
            visit = _Visit(str(getattr(connection.context, "remote_ip", "")), now_s)
            self._visits[connection] = visit
        visit.served, visit.since_s = False, now_s
        return _Watched(super().start_request(server_conn, request_conn), visit)

    @override
    def on_close(self, server_conn: object) -> None:
        self._visits.pop(cast(HTTP1ServerConnection, server_conn), None)
        super().on_close(server_conn)

    def _make_room(self, newcomer: HTTP1ServerConnection, now_s: float) -> None:
        if now_s - self._said_s >= SAY_AGAIN_S:
            self._said_s = now_s
            log.warning(
                "More than %d connections at once: those that send nothing are closed, oldest first.", self._most
            )
        by_peer = Counter(visit.peer for visit in self._visits.values())
        # One that doesn't read its answer is no better than one that doesn't send its request.
        waiting = [
            (-by_peer[visit.peer], visit.since_s, number, connection)
            for number, (connection, visit) in enumerate(self._visits.items())
            if not visit.served or connection.stream.writing()
        ]
        closed = min(waiting)[-1] if waiting else newcomer
        self._visits.pop(closed, None)
        closed.stream.close()


class _Watched(httputil.HTTPMessageDelegate):
    """Hands on a request, and notes when it is complete."""

    def __init__(self, delegate: httputil.HTTPMessageDelegate, visit: _Visit) -> None:
        self._delegate = delegate
        self._visit = visit

    @override
    def headers_received(
        self, start_line: httputil.RequestStartLine | httputil.ResponseStartLine, headers: httputil.HTTPHeaders
    ) -> Awaitable[None] | None:
        return self._delegate.headers_received(start_line, headers)

    @override
    def data_received(self, chunk: bytes) -> Awaitable[None] | None:
        return self._delegate.data_received(chunk)

    @override
    def finish(self) -> None:
        self._visit.served = True
        self._delegate.finish()

    @override
    def on_connection_close(self) -> None:
        self._delegate.on_connection_close()
