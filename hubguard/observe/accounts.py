"""Reading users for pruning: all of them for nearly nothing where the hub's database is given, else what its API tells."""

from __future__ import annotations

from dataclasses import dataclass, replace
from datetime import datetime

from hubguard.clients.clock import Clock
from hubguard.clients.hub_api import HubAPI
from hubguard.clients.hub_db import HubDB
from hubguard.errors import HubDBError
from hubguard.model import Source, User
from hubguard.prune import Account, AccountServer, UndoServer, UndoUser

UNDO_AT_ONCE = 500
"""So many users' rows are read before others get their turn."""


@dataclass(frozen=True, slots=True)
class AccountsRead:
    """Users as one source has them, in name order. ``at`` is when it was begun to be read, ``took_s`` how long that took.

    ``since``: who was active after it isn't among them; None: everybody is. ``users_total`` is how many there are in all,
    ``revision`` that of the hub's database, "" where it wasn't read.
    """

    accounts: tuple[Account, ...]
    users_total: int
    source: Source
    at: datetime
    since: datetime | None = None
    revision: str = ""
    took_s: float = 0.0


class AccountReader:
    """Reads the users of one hub. ``database`` is None where it can't be read, for want of a setting."""

    def __init__(self, hub: HubAPI, database: HubDB | None, clock: Clock) -> None:
        self._hub = hub
        self._clock = clock
        self._tokens_known = False
        self._asked_at_s = float("-inf")
        self.database = database

    async def read(self, since: datetime) -> AccountsRead:
        """Everybody, or by the API alone, those who weren't active after ``since``. Raises HubGuardError."""
        at, began_s = self._clock.now(), self._clock.monotonic_s()
        if self.database is not None:
            found = await self.database.accounts(None)
            return AccountsRead(
                found.accounts,
                found.users_total,
                Source.HUB_DB,
                at,
                revision=found.revision,
                took_s=self._clock.monotonic_s() - began_s,
            )
        users = await self._hub.list_users(inactive_since=since)
        total = await self._hub.count_users()
        took_s = self._clock.monotonic_s() - began_s
        return AccountsRead(tuple(map(account_of, users)), total, Source.HUB_API, at, since=since, took_s=took_s)

    async def one(self, name: str, *, tokens: bool = True) -> Account | None:
        """That user as they are now, by every source there is; None where the hub knows nobody by that name.

        Without the database and with ``tokens``, the hub is asked when their tokens were last used. Raises HubGuardError,
        HubRefused also where it doesn't tell that.
        """
        user = await self._hub.get_user(name)
        if user is None:
            return None
        account = account_of(user)
        if self.database is not None:
            rows = (await self.database.accounts(None, [name])).accounts
            of_database = next((row for row in rows if row.name == name), None)
            if of_database is None:
                raise HubDBError(
                    f"The hub knows the user {name}, and its database doesn't: it isn't this hub's, or a copy that lags"
                    " behind. Nothing rests on it; check HubGuard.hub_db_url."
                )
            return _together(account, of_database)
        if tokens:
            count, used_at = await self._hub.tokens_of(name)
            account = replace(account, tokens=count, token_used_at=used_at)
        return account

    async def tokens_known(self, *, within_s: float = 0.0) -> bool:
        """Whether it can be told when users' tokens were last used, as of so long ago at most. Raises HubGuardError."""
        if self.database is not None:
            return True
        now_s = self._clock.monotonic_s()
        if now_s - self._asked_at_s >= within_s:
            _, scopes = await self._hub.whoami()
            self._tokens_known = not scopes.isdisjoint({"read:tokens", "tokens", "admin:users"})
            self._asked_at_s = now_s
        return self._tokens_known

    async def undo_users(self, names: list[str], since: datetime) -> list[UndoUser]:
        """What brings these users back, in name order; who isn't there any more is left out. Raises HubGuardError.

        By the API alone it has no rows, and of their servers those that the hub tells of.
        """
        if self.database is not None:
            found: list[UndoUser] = []
            for first in range(0, len(names), UNDO_AT_ONCE):
                found += await self.database.undo_users(names[first : first + UNDO_AT_ONCE])
            return found
        wanted = set(names)
        users = await self._hub.list_users(inactive_since=since)
        return [_undo_of(user) for user in users if user.name in wanted]


def account_of(user: User) -> Account:
    """A user as the API tells of them: of their servers only those that are active."""
    return Account(
        name=user.name,
        admin=user.admin,
        created=user.created,
        last_activity=user.last_activity,
        groups=user.groups,
        roles=user.roles,
        servers=tuple(AccountServer(one.name, True, one.pending, one.last_activity) for one in user.servers),
    )


def _together(account: Account, row: Account) -> Account:
    """What both tell: only the API knows what is pending, only the database what doesn't run. In doubt, what keeps them."""
    servers = {server.name: server for server in row.servers} | {server.name: server for server in account.servers}
    times = [at for at in (account.last_activity, row.last_activity) if at is not None]
    return replace(
        row,
        admin=account.admin or row.admin,
        last_activity=max(times, default=None),
        groups=row.groups if account.groups is None else tuple(sorted({*account.groups, *(row.groups or ())})),
        roles=row.roles if account.roles is None else tuple(sorted({*account.roles, *(row.roles or ())})),
        servers=tuple(server for _, server in sorted(servers.items())),
    )


def _undo_of(user: User) -> UndoUser:
    servers = tuple(UndoServer(one.name, one.options) for one in user.servers)
    return UndoUser(user.name, user.groups or (), user.roles or (), servers)
