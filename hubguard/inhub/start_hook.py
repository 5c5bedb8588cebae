"""Watches, inside the hub, for starts of servers that fail, and reports to HubGuard why.

The hub's metrics only count them, and its log is somewhere else: the error itself is known here alone.
"""

from __future__ import annotations

import functools
import logging
from collections.abc import Awaitable, Callable
from typing import Any

from hubguard.inhub.tell import Teller

EVENTS = 3
"""Maximum warnings of the spawner's platform that go with a report: the newest say most."""

LONGEST = 500
"""Maximum characters of a message."""

log = logging.getLogger("hubguard.inhub")


def watch_starts(app: Any, kind: Any = None) -> None:
    """From now on, each start that fails at this hub is reported; a second call changes nothing. ``kind`` is the hub's User.

    The hub (5.5 and 6.1) starts every server by ``User.spawn``, which raises what the spawner, its hooks or the time limits
    did. It goes on to raise that, and nothing waits for the report.
    """
    if kind is None:
        from jupyterhub.user import User as kind
    there = kind.spawn
    watched = getattr(there, "hub", None)
    if watched is app:
        return
    # What is there may report for another hub that was in this process before, as tests have them.
    kind.spawn = _reporting(there if watched is None else there.__wrapped__, app)


def _reporting(theirs: Callable[..., Awaitable[Any]], app: Any) -> Callable[..., Awaitable[Any]]:
    teller = Teller(app)

    @functools.wraps(theirs)
    async def spawn(user: Any, server_name: str = "", *more: Any, **options: Any) -> Any:
        try:
            return await theirs(user, server_name, *more, **options)
        except Exception as error:
            try:
                teller.begin("api/v1/starts/failed", report_of(user, server_name, error))
            except Exception as trouble:
                log.debug("Can't report that a start failed: %s", type(trouble).__name__)
            raise

    spawn.hub = app  # type: ignore[attr-defined]
    return spawn


def report_of(user: Any, server_name: str, error: Exception) -> dict[str, Any]:
    """What is reported on a start that failed: the error, what the platform warned of, and whether it was refused."""
    status = getattr(error, "status_code", None)
    spawner = user.spawners[server_name]
    said = getattr(error, "log_message", None) or str(error)
    return {
        "user": user.name,
        "server": server_name,
        "error": type(error).__name__,
        "message": "; ".join(filter(None, (said, *_warnings(spawner))))[:LONGEST],
        # As the hub judges: what it doesn't count in a row.
        "refused": type(error).__name__ == "SpawnException" or (isinstance(status, int) and status < 500),
    }


def _warnings(spawner: Any) -> list[str]:
    """What KubeSpawner has of the pod's events, for one that keeps them."""
    events = getattr(spawner, "events", None)
    warned = [event for event in events or () if isinstance(event, dict) and event.get("type") == "Warning"]
    return [f"{event.get('reason', '')}: {event.get('message') or ''}" for event in warned[-EVENTS:]]
