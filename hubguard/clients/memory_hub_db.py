"""A hub's database in memory, with the semantics of the real one, for tests and simulations."""

from __future__ import annotations

import time
from collections.abc import Iterator, Mapping
from dataclasses import replace
from datetime import datetime

from hubguard.clients.hub_db import HubState
from hubguard.drift import Key, ORMCounts
from hubguard.errors import HubDBError
from hubguard.model import Server, User


class MemoryHubDB:
    """Implements HubDB. ``users`` holds everybody by name, with what runs for them, and may be changed at any time.

    ``targets`` and ``states`` are told of those that run, ``counts`` as they are; they too may be changed.
    ``fault`` may be set to what every reading raises. ``calls`` counts the readings, those that failed among them.
    """

    def __init__(self, *users: User) -> None:
        self.users = {user.name: user for user in users}
        self.revision = "f460b0348206"
        self.fault: HubDBError | None = None
        self.calls = 0
        self.targets: dict[Key, str] = {}
        self.states: dict[Key, Mapping[str, object]] = {}
        self.counts = ORMCounts()

    async def read(self) -> HubState:
        """See HubDB."""
        began_s = time.monotonic()
        self._asked()
        servers = tuple(sorted(self._running(), key=lambda server: server.key))
        run = {server.key for server in servers}
        targets = {key: target for key, target in self.targets.items() if key in run}
        states = {key: dict(state) for key, state in self.states.items() if key in run and state}
        took_s = time.monotonic() - began_s
        return HubState(servers, len(self.users), self.revision, took_s, targets, states)

    async def inactive_users(self, since: datetime) -> tuple[User, ...]:
        """See HubDB."""
        self._asked()
        found = (user for user in self.users.values() if user.last_activity is None or user.last_activity < since)
        return tuple(sorted((_as_told(user) for user in found), key=lambda user: user.name))

    async def orm_counts(self) -> ORMCounts:
        """See HubDB."""
        self._asked()
        return self.counts

    def close(self) -> None:
        """See HubDB."""

    def _asked(self) -> None:
        self.calls += 1
        if self.fault is not None:
            raise self.fault

    def _running(self) -> Iterator[Server]:
        for user in self.users.values():
            yield from _as_told(user).servers


def _as_told(user: User) -> User:
    """As a database tells it: everything but what is pending, and the user's own things on each server."""
    groups, roles = (tuple(sorted(names or ())) for names in (user.groups, user.roles))
    servers = (
        replace(
            server,
            ready=True,
            pending=None,
            admin=user.admin,
            groups=groups,
            roles=roles,
            options={} if server.options is None else server.options,
        )
        for server in user.servers
    )
    return replace(user, groups=groups, roles=roles, servers=tuple(sorted(servers, key=lambda server: server.key)))
