"""A hub's database in memory, with the semantics of the real one, for tests and simulations."""

from __future__ import annotations

import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace
from datetime import datetime

from hubguard.errors import HubDBError
from hubguard.hub.database import HubState
from hubguard.hub.nouns import Account, Accounts, AccountServer, ORMCounts, UndoServer, UndoUser
from hubguard.model import Key, Server, User


class MemoryHubDB:
    """Implements HubDB. ``users`` holds everybody by name, with what runs for them, and may be changed at any time.

    ``belongings`` has, by name, an Account of whom something else hangs on: its id, tokens, shares, and its servers that
    don't run; the rest of it isn't looked at. ``have`` sets both. ``options`` are what servers that don't run had last.
    ``rows`` has what undo_users tells of somebody instead of a few rows made up. ``targets`` and ``states`` are told of those
    that run, ``counts`` as they are; they too may be changed.
    ``fault`` may be set to what every reading raises. ``calls`` counts the readings, those that failed among them.
    """

    def __init__(self, *users: User) -> None:
        self.users = {user.name: user for user in users}
        self.place = "memory"
        self.revision = "f460b0348206"
        self.fault: HubDBError | None = None
        self.calls = 0
        self.targets: dict[Key, str] = {}
        self.states: dict[Key, Mapping[str, object]] = {}
        self.counts = ORMCounts()
        self.tokens_and_codes = (0, 0)
        self.belongings: dict[str, Account] = {}
        self.options: dict[Key, Mapping[str, object]] = {}
        self.rows: dict[str, Mapping[str, tuple[Mapping[str, object], ...]]] = {}
        self._ids: dict[str, int] = {}

    def have(self, *accounts: Account) -> None:
        """Have these users, in place of any by their names, with all that their accounts tell."""
        for account in accounts:
            servers = (
                Server(account.name, server.name, True, None, None, server.last_activity, options={})
                for server in account.servers
                if server.active
            )
            self.belongings[account.name] = account
            self.users[account.name] = User(
                account.name,
                account.admin,
                account.groups,
                account.roles,
                account.created,
                account.last_activity,
                tuple(servers),
            )

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

    async def accounts(self, since: datetime | None, names: Sequence[str] | None = None) -> Accounts:
        """See HubDB."""
        began_s = time.monotonic()
        self._asked()
        wanted = set(self.users if names is None else names)
        found = (
            self._account(_as_told(user))
            for name, user in sorted(self.users.items())
            if name in wanted and (since is None or user.last_activity is None or user.last_activity <= since)
        )
        return Accounts(tuple(found), len(self.users), self.revision, time.monotonic() - began_s)

    async def users_made(self, names: Sequence[str]) -> dict[str, datetime | None]:
        """See HubDB."""
        self._asked()
        return {name: self.users[name].created for name in names if name in self.users}

    async def undo_users(self, names: Sequence[str]) -> tuple[UndoUser, ...]:
        """See HubDB."""
        self._asked()
        return tuple(self._undo(_as_told(self.users[name])) for name in sorted(set(names)) if name in self.users)

    async def orm_counts(self) -> ORMCounts:
        """See HubDB."""
        self._asked()
        return self.counts

    async def ping(self) -> None:
        """See HubDB."""
        self._asked()

    async def count_tokens(self) -> tuple[int, int]:
        """See HubDB."""
        self._asked()
        return self.tokens_and_codes

    def close(self) -> None:
        """See HubDB."""

    def _id(self, name: str) -> int:
        had = self.belongings.get(name)
        return self._ids.setdefault(name, len(self._ids) + 1) if had is None or had.id is None else had.id

    def _account(self, user: User) -> Account:
        had = self.belongings.get(user.name)
        servers = {server.name: server for server in (had.servers if had else ()) if not server.active}
        for server in user.servers:
            keeps_state = bool(self.states.get(server.key))
            servers[server.name] = AccountServer(server.name, True, None, server.last_activity, keeps_state)
        return Account(
            name=user.name,
            admin=user.admin,
            created=user.created,
            last_activity=user.last_activity,
            groups=user.groups,
            roles=user.roles,
            servers=tuple(server for _, server in sorted(servers.items())),
            servers_whole=True,
            tokens=(had.tokens or 0) if had else 0,
            token_used_at=had.token_used_at if had else None,
            shares=(had.shares or 0) if had else 0,
            id=self._id(user.name),
        )

    def _undo(self, user: User) -> UndoUser:
        account = self._account(user)
        options = {name: self.options[user_name, name] for user_name, name in self.options if user_name == user.name}
        options |= {server.name: server.options for server in user.servers if server.options}
        rows = self.rows.get(user.name)
        if rows is None:
            rows = {
                "users": ({"id": account.id, "name": user.name, "admin": user.admin},),
                "spawners": tuple({"user_id": account.id, "name": server.name} for server in account.servers),
            }
        servers = tuple(UndoServer(server.name, options.get(server.name)) for server in account.servers)
        return UndoUser(user.name, user.groups or (), user.roles or (), servers, rows)

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
