"""The state of the watched proxy."""

from __future__ import annotations

from dataclasses import dataclass
from datetime import datetime
from enum import Enum

PREFIX = "/hubguard-canary/"
"""Below this path stand the canaries of all guards. The hub leaves them alone: their data doesn't say that they are its."""


class WatchState(str, Enum):
    """The state of the proxy, by the watch."""

    OFF = "off"  # there is no proxy that can be watched, or it isn't wanted
    STARTING = "starting"
    FINE = "fine"
    GONE = "gone"  # its API takes no connections
    HANGS = "hangs"  # it takes connections and doesn't answer
    WIPED = "wiped"  # it has lost its table, and the hub is asked to fill it again
    DEAF = "deaf"  # its API answers, its public port doesn't, or is another program's
    UNUSABLE = "unusable"  # what answers refuses HubGuard's token, or isn't a proxy's API


@dataclass(frozen=True, slots=True)
class ProxyWatchStatus:
    """What the proxy watch has found. ``since`` is when that state began, ``why`` one sentence.

    ``wiped_at`` and ``restored_at`` are of the last time that the table was lost, None for never and for not yet restored;
    ``missing`` are the paths that were still missing when it was last compared, in order.
    """

    state: WatchState = WatchState.OFF
    since: datetime | None = None
    why: str = ""
    proxy_started_at: datetime | None = None
    wiped_at: datetime | None = None
    restored_at: datetime | None = None
    missing: tuple[str, ...] = ()
