"""Users as the hub's database or API has them, for pruning and undo."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from datetime import datetime
from typing import NamedTuple


class TokenOwner(NamedTuple):
    """Whose token it is, ``kind`` "user" or "service", with its expanded ``scopes``."""

    kind: str
    name: str
    scopes: frozenset[str]


@dataclass(frozen=True, slots=True)
class ORMCounts:
    """Rows of the hub's database that lead nowhere, or are of no use any more."""

    servers_of_nobody: int = 0
    spawners_without_server: int = 0  # they name a server row that isn't there
    expired_tokens: int = 0
    expired_codes: int = 0  # of OAuth
    expired_share_codes: int = 0
    memberships_of_nobody: int = 0  # rows of group and role maps without user, group, role, service or token


@dataclass(frozen=True, slots=True)
class AccountServer:
    """One of a user's servers, running or not. ``name`` is ``""`` for the default server.

    ``active``: it runs, or ``pending`` says what the hub is in the middle of. ``keeps_state``: its spawner keeps something to
    find its storage or backend again; None: unknown.
    """

    name: str
    active: bool
    pending: str | None = None
    last_activity: datetime | None = None
    keeps_state: bool | None = None


@dataclass(frozen=True, slots=True)
class Account:
    """A user, and what hangs on them in the hub's database. ``servers`` is in name order.

    ``servers_whole``: those that don't run are among them, too. ``groups`` and ``roles`` are in name order. ``tokens`` and
    ``shares`` (as owner and as the one shared with) are numbers of rows; ``token_used_at`` is the last use of any token.
    ``id`` is the hub's. Whatever the source doesn't show is None.
    """

    name: str
    admin: bool
    created: datetime | None
    last_activity: datetime | None
    groups: tuple[str, ...] | None = None
    roles: tuple[str, ...] | None = None
    servers: tuple[AccountServer, ...] = ()
    servers_whole: bool = False
    tokens: int | None = None
    token_used_at: datetime | None = None
    shares: int | None = None
    id: int | None = None
    times_known: bool = True
    """Whether no time of theirs, their servers' and tokens' was unreadable. If one was, a None may hide a use."""


@dataclass(frozen=True, slots=True)
class Accounts:
    """Users as the hub's database has them, in name order. ``users_total`` is how many the hub has in all.

    ``revision`` is the Alembic revision of its tables, ``took_s`` how many seconds the reading took.
    """

    accounts: tuple[Account, ...]
    users_total: int
    revision: str
    took_s: float


@dataclass(frozen=True, slots=True)
class UndoServer:
    """A server of a user's, as an undo file has it. ``options`` is what it was last started with, None: none or unknown."""

    name: str
    options: Mapping[str, object] | None = field(default=None, hash=False)


@dataclass(frozen=True, slots=True)
class UndoUser:
    """All there is to bring one user back. ``groups`` and ``roles`` are names, in order; ``servers`` in name order.

    ``rows`` has the rows of the hub's database that go with them, by table, each by column, with the values that the driver
    gave; None: it wasn't read. It holds spawner state and the hashes of tokens, and is in no repr.
    """

    name: str
    groups: tuple[str, ...] = ()
    roles: tuple[str, ...] = ()
    servers: tuple[UndoServer, ...] = ()
    rows: Mapping[str, tuple[Mapping[str, object], ...]] | None = field(default=None, hash=False, repr=False)
