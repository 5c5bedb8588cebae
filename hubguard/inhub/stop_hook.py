"""Watches, inside the hub, whether what a stopped server ran in is really gone, and reports to HubGuard if it lives on.

After a stop the hub forgets the server, whatever became of its backend, and soon the spawner's state, by which alone the
backend can be asked for. In between, the hub runs the ``post_stop_hook``: that is the moment to poll once more.
"""

from __future__ import annotations

import asyncio
import concurrent.futures
import functools
import inspect
import json
import logging
from collections.abc import Awaitable, Callable
from typing import Any

from tornado.httpclient import HTTPRequest
from tornado.simple_httpclient import SimpleAsyncHTTPClient

from hubguard.inhub.scopes import SERVICE

POLL_S = 2.0
"""Maximum seconds for a poll after a stop; the stop waits no longer."""

TELL_S = 2.0
"""Maximum seconds for HubGuard to take a report; nothing waits for that."""

TELLINGS_AT_ONCE = 4
"""Maximum reports on their way at a time. Others queue, and are dropped after TELL_S, too."""

log = logging.getLogger("hubguard.inhub")


def watch_stops(app: Any) -> None:
    """From now on, each stop of a server of this hub is followed by a look at what it ran in; a second call changes nothing.

    The spawner's class is made to look after its ``run_post_stop_hook``, by which the hub (5.5 and 6.1) runs the hook of
    every server that stops. So it makes no difference where a ``post_stop_hook`` is set, when, or in which section, the one
    of a single server among them: it runs first, once, and its errors are the hub's as ever. A later line of config can't
    lose this, and servers that the hub found running when it started are watched like others.
    """
    kind = app.spawner_class
    there = kind.run_post_stop_hook
    watch = getattr(there, "watch", None)
    if watch is not None and watch.app is app:
        return
    # What is there may look for another hub that was in this process before, as tests have them.
    kind.run_post_stop_hook = _Watch(app).after(there if watch is None else there.__wrapped__)


class _Watch:
    """Looks for one hub. Raises nothing that the hooks don't."""

    def __init__(self, app: Any) -> None:
        self.app = app
        self._client: SimpleAsyncHTTPClient | None = None
        self._tellings: set[asyncio.Future[None]] = set()

    def after(self, theirs: Callable[[Any], Any]) -> Callable[[Any], Awaitable[Any]]:
        """``theirs``, and then a look."""

        @functools.wraps(theirs)
        async def run_post_stop_hook(spawner: Any) -> Any:
            try:
                return await _outcome(theirs(spawner))
            finally:
                await self._look(spawner)

        run_post_stop_hook.watch = self  # type: ignore[attr-defined]
        return run_post_stop_hook

    async def _look(self, spawner: Any) -> None:
        """Poll once, for POLL_S at most; if the backend is alive, begin to report it to HubGuard."""
        try:
            polling = asyncio.ensure_future(_outcome(spawner.poll()))
            done, _ = await asyncio.wait({polling}, timeout=POLL_S)
            if not done:
                # Its end isn't waited for: a poll may not mind being cancelled.
                polling.cancel()
                polling.add_done_callback(_forget)
                log.debug(
                    "Polling %s after its stop takes more than %g s.",
                    spawner._log_name,
                    POLL_S,
                )
            elif polling.result() is None:
                telling = asyncio.ensure_future(self._tell(spawner.user.name, spawner.name, type(spawner).__name__))
                self._tellings.add(telling)  # the event loop itself doesn't keep it
                telling.add_done_callback(self._tellings.discard)
        except Exception as error:
            log.debug("Can't check whether a stopped server's backend lives on: %s", type(error).__name__)

    async def _tell(self, user: str, server: str, spawner: str) -> None:
        try:
            page = self.app._service_map[SERVICE]
            report = {"user": user, "server": server, "detail": f"{spawner}.poll() still found it after the stop"}
            request = HTTPRequest(
                f"{page.url.rstrip('/')}{page.prefix}api/v1/outlived",
                method="POST",
                headers={"Authorization": f"token {page.api_token}", "Content-Type": "application/json"},
                body=json.dumps(report),
                connect_timeout=TELL_S,
                request_timeout=TELL_S,
                follow_redirects=False,
            )
            if self._client is None:
                # Its own: the hub's takes ten at a time of all that the hub asks of proxy and services.
                self._client = SimpleAsyncHTTPClient(force_instance=True, max_clients=TELLINGS_AT_ONCE)
            await self._client.fetch(request)
        except Exception as error:
            log.debug("HubGuard got no report that a server of %s lives on: %s", user, type(error).__name__)


async def _outcome(made: Any) -> Any:
    """What comes of a call that may be a coroutine, a future of either kind, or done, as the hub takes hooks and polls.

    The hub's own maybe_future isn't imported: the process and the commands import this package, too, without a hub.
    """
    if isinstance(made, concurrent.futures.Future):
        made = asyncio.wrap_future(made)
    return await made if inspect.isawaitable(made) else made


def _forget(polling: asyncio.Future[Any]) -> None:
    if not polling.cancelled():
        polling.exception()
