"""The routes that belong in the proxy's table."""

from __future__ import annotations

from collections.abc import Callable, Collection, Mapping

from hubguard.model import Key, Route, Server
from hubguard.proxy.model import ProxyWatchStatus, WatchState


class ExpectedRoutes:
    """The routes that belong in the proxy's table, learned from looks at a whole one.

    ``watch`` returns how the proxy is. A table that is read while the proxy isn't well is not learned from.
    """

    def __init__(self, watch: Callable[[], ProxyWatchStatus]) -> None:
        self.watch = watch
        self._table: dict[str, Key | None] = {}
        self._servers: Mapping[Key, Server] | None = None

    def learn(
        self, servers: Mapping[Key, Server] | None, routes: Mapping[str, Route] | None, own: Collection[str]
    ) -> None:
        """Take over what one look read. None: it couldn't be read. ``own`` are the prefixes of the hub and its services."""
        self._servers = servers
        if servers is None or routes is None or self.watch().state not in (WatchState.FINE, WatchState.OFF):
            return
        paths = {prefix.rstrip("/") or "/" for prefix in own}
        table = {path: route.key for path, route in routes.items() if route.key is not None or path in paths}
        routed = set(table.values())
        # A missing route belongs there all the same: the table may have been lost before the watch could notice.
        for path, key in self._table.items():
            belongs = path in paths if key is None else key not in routed and key in servers and servers[key].ready
            if belongs:
                table.setdefault(path, key)
        self._table = table

    def expected(self) -> dict[str, Key | None]:
        """Each path that belongs in the table, with its server (None: the hub or a service). Empty before the first look.

        Routes of servers that no longer run are left out.
        """
        servers = self._servers
        if servers is None:
            return dict(self._table)
        return {
            path: key
            for path, key in self._table.items()
            if key is None or ((server := servers.get(key)) is not None and server.ready)
        }
