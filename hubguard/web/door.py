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
from tornado.iostream import IOStream
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
        self._visits: dict[IOStream, _Visit] = {}
        self._said_s = float("-inf")

    @override
    def handle_stream(self, stream: IOStream, address: tuple[Any, ...]) -> None:
        now_s = time.monotonic()
        if len(self._visits) >= self._most and not self._made_room(now_s):
            stream.close()
            return
        # Before a proxy's headers are read, this is who has connected.
        self._visits[stream] = _Visit(str(address[0]) if address else "", now_s)
        super().handle_stream(stream, address)

    @override
    def start_request(self, server_conn: object, request_conn: httputil.HTTPConnection) -> httputil.HTTPMessageDelegate:
        delegate = super().start_request(server_conn, request_conn)
        visit = self._visits.get(cast(HTTP1ServerConnection, server_conn).stream)
        if visit is None:
            return delegate  # closed for another by now
        visit.served, visit.since_s = False, time.monotonic()
        return _Watched(delegate, visit)

    @override
    def on_close(self, server_conn: object) -> None:
        self._visits.pop(cast(HTTP1ServerConnection, server_conn).stream, None)
        super().on_close(server_conn)

    def _made_room(self, now_s: float) -> bool:
        if now_s - self._said_s >= SAY_AGAIN_S:
            self._said_s = now_s
            log.warning(
                "More than %d connections at once: those that send nothing are closed, oldest first.", self._most
            )
        by_peer = Counter(visit.peer for visit in self._visits.values())
        # One that doesn't read its answer is no better than one that doesn't send its request.
        waiting = [
            (-by_peer[visit.peer], visit.since_s, number, stream)
            for number, (stream, visit) in enumerate(self._visits.items())
            if not visit.served or stream.writing()
        ]
        if not waiting:
            return False
        closed = min(waiting)[-1]
        del self._visits[closed]
        closed.close()
        return True


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
