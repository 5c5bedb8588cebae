"""Reading users for pruning: all of them for nearly nothing where the hub's database is given, else what its API tells."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Awaitable, Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from datetime import datetime
from typing import Generic, TypeVar

from hubguard.errors import HubDBError, OtherHubsDB
from hubguard.hub.api import HubAPI
from hubguard.hub.database import HubDB
from hubguard.hub.nouns import Account, AccountServer, UndoServer, UndoUser
from hubguard.model import Source, User, same_run
from hubguard.pacing.clock import Clock

log = logging.getLogger(__name__)

AHEAD_S = 1.0
"""Seconds for which a row that was read ahead counts. A hub on SQLite can't write while one is read: each user's own
reading, right while others are deleted, took a third of the hub's pace."""

PROVED_S = 3.0
"""Maximum seconds since a deletion that rows must show to stand alone: whichever copy of a database answered, it is
no further behind."""

UNDO_AT_ONCE = 500
"""Users whose rows are read before others get their turn."""

IN_FLIGHT = 10
"""Maximum users being read through the API or waiting for the budget, which paces that."""


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


@dataclass(frozen=True, slots=True)
class _Made:
    """Somebody is there, and when they were made."""

    created: datetime | None


@dataclass(frozen=True, slots=True)
class _Gone:
    """A user that the hub has deleted, requested at ``at_s`` (monotonic)."""

    name: str
    created: datetime | None
    at_s: float


@dataclass(frozen=True, slots=True)
class _Ahead:
    """Rows of users by name, read in one moment that was begun at ``at_s`` (monotonic) for all of ``names``.

    ``alone``: they show that the database follows the hub, which needn't be asked then.
    """

    rows: Mapping[str, Account]
    names: frozenset[str]
    at_s: float
    alone: bool


class AccountReader:
    """Reads the users of one hub. ``database`` is None if no setting gives access to it."""

    def __init__(self, hub: HubAPI, database: HubDB | None, clock: Clock) -> None:
        self._hub = hub
        self._clock = clock
        self._tokens_known = False
        self._asked_at_s = float("-inf")
        self.database = database
        self._made = Together(self._read_made)
        self._ahead: _Ahead | None = None
        self._gone: _Gone | None = None
        self._looks = 0
        self._reading_ahead = asyncio.Lock()

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

    async def count(self) -> int:
        """How many users there are. Raises HubGuardError."""
        if self.database is None:
            return await self._hub.count_users()
        return (await self.database.accounts(None, ())).users_total

    async def missing(self, names: Sequence[str], since: datetime) -> frozenset[str]:
        """Those of ``names`` who the hub says aren't there any more. Raises HubGuardError.

        Only users who aren't in the database, or by the API alone were active after ``since``, are asked for one by one.
        """
        if self.database is not None:
            there = {*await self.database.users_made(names)}
        else:
            there = {user.name for user in await self._hub.list_users(inactive_since=since)}
        return await self.absent([name for name in names if name not in there])

    async def absent(self, names: Sequence[str]) -> frozenset[str]:
        """Those of ``names`` that the hub knows no user by. Raises HubGuardError."""
        users = await self._read_each(names)
        return frozenset(name for name, user in zip(names, users, strict=True) if user is None)

    async def one(self, name: str, *, tokens: bool = True) -> Account | None:
        """That user as they are now, by every source there is; None if the hub knows nobody by that name.

        Without the database and with ``tokens``, the hub is asked when their tokens were last used. Raises HubGuardError,
        HubRefused also if it doesn't show that.
        """
        user = await self._hub.get_user(name)
        if user is None:
            return None
        account = account_of(user)
        if self.database is not None:
            return _together(account, _known((await self._read_rows([name])).get(name), name))
        if tokens:
            count, used_at = await self._hub.tokens_of(name)
            account = replace(account, tokens=count, token_used_at=used_at)
        return account

    def look_anew(self) -> None:
        """Nothing that was read or proved before now, or is being read, counts for whoever is looked at next."""
        self._ahead = self._gone = None
        self._looks += 1

    async def again(self, name: str, following: Sequence[str]) -> Account | None:
        """That user right before they are deleted; None: there is nobody by that name. ``following`` are those who come next.

        The database's rows of all of them are read at once, and may be AHEAD_S old. Where these show that the database
        follows the hub, the hub is only asked for who has a named server: it has a server's address from the start's first
        moment, but loses it in the stop's last one (6.1), and refuses to delete only whose default server still stops. A hub
        that is asked for a user makes a row for them, and takes a fifth as long as for deleting them (6.1).
        """
        if self.database is None:
            return await self.one(name)
        ahead = await self._read_ahead(name, following)
        row = ahead.rows.get(name)
        # Who isn't in the database may be gone, or it may be another hub's: the hub knows.
        if ahead.alone and row is not None and not any(server.name for server in row.servers):
            return row
        user = await self._hub.get_user(name)
        return None if user is None else _together(account_of(user), _known(row, name))

    async def is_gone(self, name: str, created: datetime | None) -> bool:
        """Whether the hub's database says that this very user, just deleted by the hub, is gone.

        It costs the hub nothing. False says nothing: it may not be read, or lag behind. Never raises HubGuardErrors.
        """
        if self.database is None:
            return False
        asked_s, looks = self._clock.monotonic_s(), self._looks
        try:
            gone = not _is_there(await self._made.ask(name), created)
        except HubDBError as error:
            log.info("The hub's database doesn't show what became of %s: %s", name, error)
            gone = False
        if not gone:
            self._ahead = self._gone = None
        elif looks == self._looks:
            self._gone = _Gone(name, created, asked_s)
            if self._ahead is not None and not self._ahead.alone:
                self._ahead = None
        return gone

    async def _read_ahead(self, name: str, following: Sequence[str]) -> _Ahead:
        async with self._reading_ahead:
            while True:
                now_s, looks, ahead, gone = self._clock.monotonic_s(), self._looks, self._ahead, self._gone
                if ahead is not None and name in ahead.names and now_s - ahead.at_s <= AHEAD_S:
                    return ahead
                names = [name, *following]
                rows = await self._read_rows(names if gone is None else [*names, gone.name])
                # Counted afterwards: the reading may have had to wait.
                alone = (
                    gone is not None
                    and self._clock.monotonic_s() - gone.at_s <= PROVED_S
                    and not _is_there(rows.get(gone.name), gone.created)
                )
                ahead = _Ahead(rows, frozenset(names), now_s, alone)
                if looks == self._looks:
                    self._ahead = ahead
                    return ahead

    async def _read_rows(self, names: Sequence[str]) -> dict[str, Account]:
        assert self.database is not None
        return {row.name: row for row in (await self.database.accounts(None, names)).accounts}

    async def _read_made(self, names: Sequence[str]) -> dict[str, _Made]:
        assert self.database is not None
        return {name: _Made(created) for name, created in (await self.database.users_made(names)).items()}

    async def tokens_known(self, *, within_s: float = 0.0) -> bool:
        """Whether the times of users' tokens are known; the answer counts for a while. Raises HubGuardError."""
        if self.database is not None:
            return True
        now_s = self._clock.monotonic_s()
        if now_s - self._asked_at_s >= within_s:
            scopes = (await self._hub.whoami()).scopes
            self._tokens_known = not scopes.isdisjoint({"read:tokens", "tokens", "admin:users"})
            self._asked_at_s = now_s
        return self._tokens_known

    async def undo_users(self, names: list[str]) -> list[UndoUser]:
        """What brings these users back, in name order; who isn't there any more is left out. Raises HubGuardError.

        By the API alone it has no rows, and takes a request for each of them.
        """
        if self.database is not None:
            found: list[UndoUser] = []
            for first in range(0, len(names), UNDO_AT_ONCE):
                found += await self.database.undo_users(names[first : first + UNDO_AT_ONCE])
            return found
        # The list shows servers that don't run, too, but leaves a wrapper in the hub's memory for everybody on its pages,
        # for good (6.1). So does this, of users who are about to be deleted, and their wrappers with them.
        users = await self._read_each(sorted(names), stopped=True)
        return [_undo_of(user) for user in users if user is not None]

    async def _read_each(self, names: Sequence[str], *, stopped: bool = False) -> list[User | None]:
        room = asyncio.Semaphore(IN_FLIGHT)

        async def read(name: str) -> User | None:
            async with room:
                return await self._hub.get_user(name, stopped=stopped)

        tasks = [asyncio.ensure_future(read(name)) for name in names]
        try:
            return await asyncio.gather(*tasks)
        finally:
            for task in tasks:
                task.cancel()
            await asyncio.gather(*tasks, return_exceptions=True)


def _known(row: Account | None, name: str) -> Account:
    if row is None:
        raise OtherHubsDB(
            f"The hub knows the user {name}, and its database doesn't: it isn't this hub's, or a copy that lags behind."
            " HubGuard doesn't use it. Check HubGuard.hub_db_url."
        )
    return row


def _is_there(made: _Made | Account | None, created: datetime | None) -> bool:
    """Whether that is the one who was made then; if either is unknown, it may be."""
    return made is not None and (None in (made.created, created) or same_run(made.created, created))


def account_of(user: User) -> Account:
    """A user as the API shows them, with active servers only."""
    return Account(
        name=user.name,
        admin=user.admin,
        created=user.created,
        last_activity=user.last_activity,
        groups=user.groups,
        roles=user.roles,
        servers=tuple(
            AccountServer(server.name, True, server.pending, server.last_activity) for server in user.servers
        ),
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
    servers = tuple(UndoServer(server.name, server.options) for server in user.servers)
    return UndoUser(user.name, user.groups or (), user.roles or (), servers)


T = TypeVar("T")


class Together(Generic[T]):
    """Reads what is asked for by name. ``read`` gives what there is of these names, by name.

    Every answer was read after it was asked for, so that it is as fresh as one's own; only that others' come with it.
    """

    def __init__(self, read: Callable[[Sequence[str]], Awaitable[Mapping[str, T]]]) -> None:
        self._read = read
        self._asked: dict[str, list[asyncio.Future[T | None]]] = {}
        self._reading: asyncio.Task[None] | None = None

    async def ask(self, name: str) -> T | None:
        """What there is of ``name`` now, or None. Raises what reading raises."""
        answer: asyncio.Future[T | None] = asyncio.get_running_loop().create_future()
        self._asked.setdefault(name, []).append(answer)
        if self._reading is None or self._reading.done():
            self._reading = asyncio.ensure_future(self._read_all())
        return await answer

    async def _read_all(self) -> None:
        while self._asked:
            asked, self._asked = self._asked, {}
            try:
                found = await self._read(tuple(asked))
            except BaseException as error:
                for answer in (future for futures in asked.values() for future in futures if not future.done()):
                    if isinstance(error, Exception):
                        answer.set_exception(error)
                    else:
                        answer.cancel()
                if not isinstance(error, Exception):
                    raise
                continue
            for name, answers in asked.items():
                for answer in answers:
                    if not answer.done():
                        answer.set_result(found.get(name))
