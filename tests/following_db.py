"""A hub's database that has what a hub in memory has, or had."""

from __future__ import annotations

from doubles.hub import MemoryHub
from doubles.hub_db import MemoryHubDB


class FollowingDB(MemoryHubDB):
    """Tells what the hub in memory has; while ``lags``, what it had before."""

    def __init__(self, hub: MemoryHub) -> None:
        super().__init__()
        self._hub = hub
        self.lags = False

    def _id(self, name: str) -> int:
        return int.from_bytes(name.encode(), "big")

    def _asked(self) -> None:
        super()._asked()
        if not self.lags:
            self.users = dict(self._hub._shown_users())
