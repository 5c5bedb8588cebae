"""A limit on how long a database server may leave a question unanswered. Its drivers know none for one that is frozen."""

from __future__ import annotations

import os
import socket
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from typing import Any

from sqlalchemy import event
from sqlalchemy.engine import Engine
from sqlalchemy.exc import TimeoutError


class Answers:
    """Breaks the connections of ``engine`` when its server has been silent for too long; the driver then raises.

    A server that thaws rolls back what wasn't committed by then. Nothing for SQLite, which has no server.
    """

    def __init__(self, engine: Engine) -> None:
        self._engine = engine
        self._lock = threading.Lock()
        self._open: dict[int, Any] = {}
        self._here = threading.local()  # what this thread waits for
        event.listen(engine, "connect", self._opened, insert=True)
        event.listen(engine, "do_connect", self._refuse)
        event.listen(engine, "close", self._closed)
        event.listen(engine, "before_cursor_execute", self._asked)

    @contextmanager
    def within(self, limit_s: float) -> Iterator[None]:
        """While the block lasts, a silence of ``limit_s`` seconds breaks the connections that it has opened or asked."""
        if self._engine.dialect.name == "sqlite":
            yield
            return
        wait = _Wait(limit_s, self._break_off)
        before, self._here.wait = getattr(self._here, "wait", None), wait
        try:
            yield
        finally:
            wait.end()
            self._here.wait = before

    def _refuse(self, *_: Any) -> None:
        """Who found that the server is silent doesn't try it once more."""
        wait: _Wait | None = getattr(self._here, "wait", None)
        if wait is not None and wait.over:
            raise TimeoutError("timed out: it doesn't answer")

    def _opened(self, connection: Any, _record: Any) -> None:
        with self._lock:
            self._open[id(connection)] = connection
        self._asked()

    def _asked(self, *_: Any) -> None:
        """The server has answered what was asked before."""
        wait: _Wait | None = getattr(self._here, "wait", None)
        if wait is None:
            return
        if wait.over:
            self._break_off()
        else:
            wait.begin_again()

    def _closed(self, connection: Any, _record: Any) -> None:
        with self._lock:
            self._open.pop(id(connection), None)

    def _break_off(self) -> None:
        with self._lock:
            for connection in self._open.values():
                with suppress(Exception):  # one that is closed already
                    _shut(connection)


class _Wait:
    """Calls ``give_up``, in a thread of its own, unless it begins again or ends within ``limit_s`` seconds."""

    def __init__(self, limit_s: float, give_up: Callable[[], None]) -> None:
        self._limit_s = limit_s
        self._give_up = give_up
        self._lock = threading.Lock()
        self._ended = False
        self._until_s = time.monotonic() + limit_s
        self.over = False
        self._start(limit_s)

    def begin_again(self) -> None:
        """It waits for ``limit_s`` from now on."""
        self._until_s = time.monotonic() + self._limit_s

    def end(self) -> None:
        """``give_up`` isn't called any more."""
        with self._lock:
            self._ended = True
            self._timer.cancel()

    def _start(self, wait_s: float) -> None:
        self._timer = threading.Timer(wait_s, self._ring)
        self._timer.daemon = True
        self._timer.start()

    def _ring(self) -> None:
        with self._lock:
            left_s = self._until_s - time.monotonic()
            if self._ended:
                return
            if left_s > 0:
                self._start(left_s)
                return
            self.over = True
        self._give_up()


def _shut(connection: Any) -> None:
    """Whoever waits for an answer on ``connection`` gets none; what was sent already is still on its way."""
    number = connection.fileno() if hasattr(connection, "fileno") else connection._sock.fileno()
    with socket.socket(fileno=os.dup(number)) as same:
        same.shutdown(socket.SHUT_RDWR)
