"""Watches, inside the hub, whether what a stopped server ran in is really gone, and reports to HubGuard if it lives on.

After a stop the hub forgets the server, whatever became of its backend, and soon the spawner's state, by which alone the
backend can be asked for. In between, the hub runs the ``post_stop_hook``: that is the moment to poll once more.
"""

from __future__ import annotations

import asyncio
import concurrent.futures
import functools
import inspect
import logging
from collections.abc import Awaitable, Callable
from typing import Any

from hubguard.inhub.tell import Teller

POLL_S = 2.0
"""Maximum seconds for a poll after a stop; the stop waits no longer."""

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
        self._teller = Teller(app)

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
                detail = f"{type(spawner).__name__}.poll() still found it after the stop"
                report = {"user": spawner.user.name, "server": spawner.name, "detail": detail}
                self._teller.begin("api/v1/outlived", report)
        except Exception as error:
            log.debug("Can't check whether a stopped server's backend lives on: %s", type(error).__name__)


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
