"""Users with all that hangs on them, of the hub's own database: what pruning decides by, and what brings them back.

There is no index by user on spawners, tokens and shares. So if everybody is read, each table is gone through once, by its
own ids, a piece in each transaction: how long one takes doesn't grow with the hub.
"""

from __future__ import annotations

import time
from collections import defaultdict
from collections.abc import Collection, Iterable, Iterator, Mapping, Sequence
from datetime import datetime
from typing import Any

import sqlalchemy as sa
from sqlalchemy.engine import Connection

from hubguard.hub.nouns import Account, Accounts, AccountServer, UndoServer, UndoUser
from hubguard.hub.read_only import ReadOnly
from hubguard.hub.tables import (
    HAS_NAME,
    USERS_AT_ONCE,
    Names,
    as_object,
    as_times,
    clients,
    codes,
    groups_and_roles,
    has_name,
    has_shares,
    known_revision,
    servers,
    share_codes,
    shares,
    spawners,
    tokens,
    user_groups,
    user_roles,
    users,
)

ROWS_AT_ONCE = 5000
"""Maximum rows that one statement reads of what hangs on users, when everybody's are read."""

NAMED = "named"
"""What an undo file has as this table isn't one: it says which name had each id that its rows point to."""

# Spawners first: whose they are has to be named as well.
_NAMEABLE = ("spawners", "users", "groups", "roles", "services")

_AFTER = sa.bindparam("after", type_=sa.Integer())
_SINCE = sa.bindparam("since", type_=sa.DateTime())
_NAMES: sa.BindParameter[Any] = sa.bindparam("names", expanding=True)
_IDS: sa.BindParameter[Any] = sa.bindparam("ids", expanding=True)
_SPAWNER_IDS: sa.BindParameter[Any] = sa.bindparam("spawner_ids", expanding=True)
_SERVER_IDS: sa.BindParameter[Any] = sa.bindparam("server_ids", expanding=True)
_CLIENT_IDS: sa.BindParameter[Any] = sa.bindparam("client_ids", expanding=True)

_USERS = sa.select(users.c.id, users.c.name, users.c.admin, users.c.created, users.c.last_activity).where(HAS_NAME)
_ALL_USERS = _USERS.where(users.c.id > _AFTER).order_by(users.c.id).limit(USERS_AT_ONCE)
_STALE_USERS = _ALL_USERS.where(users.c.last_activity.is_(None) | (users.c.last_activity <= _SINCE))
_THESE_USERS = _USERS.where(users.c.name.in_(_NAMES))
_USERS_TOTAL = sa.select(sa.func.count()).select_from(users)

# The hub writes nothing, an empty object or null for a spawner that keeps nothing. What one keeps needn't be fetched.
_KEEPS_STATE = sa.case((sa.func.coalesce(spawners.c.state, "").in_(("", "{}", "null")), 0), else_=1)
_SPAWNERS = sa.select(
    spawners.c.id, spawners.c.user_id, spawners.c.name, spawners.c.server_id, spawners.c.last_activity, _KEEPS_STATE
)
_TOKENS = sa.select(tokens.c.id, tokens.c.user_id, tokens.c.last_activity)
_SHARES = sa.select(shares.c.id, shares.c.owner_id, shares.c.user_id)


def _piece(rows: sa.Select[Any], table: sa.TableClause) -> sa.Select[Any]:
    return rows.where(table.c.id > _AFTER).order_by(table.c.id).limit(ROWS_AT_ONCE)


_PIECES = {
    "spawners": _piece(_SPAWNERS, spawners),
    "tokens": _piece(_TOKENS, tokens),
    "shares": _piece(_SHARES, shares),
}
_OF_USERS = {
    "spawners": _SPAWNERS.where(spawners.c.user_id.in_(_IDS)),
    "tokens": _TOKENS.where(tokens.c.user_id.in_(_IDS)),
    "shares": _SHARES.where(shares.c.owner_id.in_(_IDS) | shares.c.user_id.in_(_IDS)),
}


def _whole_rows(
    table: sa.TableClause, condition: sa.ColumnElement[bool], order: sa.ColumnClause[Any]
) -> sa.Select[Any]:
    """All columns, whichever a hub's revision has."""
    return sa.select(sa.text("*")).select_from(table).where(condition).order_by(order)


_UNDO_USERS = _whole_rows(users, users.c.name.in_(_NAMES), users.c.id)
_UNDO_SPAWNERS = _whole_rows(spawners, spawners.c.user_id.in_(_IDS), spawners.c.id)
_UNDO_REST: Mapping[str, sa.Select[Any]] = {
    "servers": _whole_rows(servers, servers.c.id.in_(_SERVER_IDS), servers.c.id),
    "oauth_clients": _whole_rows(clients, clients.c.identifier.in_(_CLIENT_IDS), clients.c.id),
    "api_tokens": _whole_rows(tokens, tokens.c.user_id.in_(_IDS) | tokens.c.client_id.in_(_CLIENT_IDS), tokens.c.id),
    "oauth_codes": _whole_rows(codes, codes.c.user_id.in_(_IDS) | codes.c.client_id.in_(_CLIENT_IDS), codes.c.id),
    "user_group_map": _whole_rows(user_groups, user_groups.c.user_id.in_(_IDS), user_groups.c.group_id),
    "user_role_map": _whole_rows(user_roles, user_roles.c.user_id.in_(_IDS), user_roles.c.role_id),
}
_UNDO_SHARES: Mapping[str, sa.Select[Any]] = {
    "shares": _whole_rows(
        shares,
        shares.c.owner_id.in_(_IDS) | shares.c.user_id.in_(_IDS) | shares.c.spawner_id.in_(_SPAWNER_IDS),
        shares.c.id,
    ),
    "share_codes": _whole_rows(
        share_codes, share_codes.c.owner_id.in_(_IDS) | share_codes.c.spawner_id.in_(_SPAWNER_IDS), share_codes.c.id
    ),
}

_OWNED_BY: Mapping[str, tuple[tuple[str, str], ...]] = {
    "servers": (("id", "server"),),
    "oauth_clients": (("identifier", "client"),),
    "api_tokens": (("user_id", "user"), ("client_id", "client")),
    "oauth_codes": (("user_id", "user"), ("client_id", "client")),
    "user_group_map": (("user_id", "user"),),
    "user_role_map": (("user_id", "user"),),
    "shares": (("owner_id", "user"), ("user_id", "user"), ("spawner_id", "spawner")),
    "share_codes": (("owner_id", "user"), ("spawner_id", "spawner")),
}
"""By table, the columns that say whose a row is, each with what of theirs it names."""

_POINTS_TO: Mapping[str, tuple[tuple[str, str], ...]] = {
    "api_tokens": (("user_id", "users"), ("service_id", "services")),
    "oauth_codes": (("user_id", "users"),),
    "user_group_map": (("group_id", "groups"),),
    "user_role_map": (("role_id", "roles"),),
    "shares": (("owner_id", "users"), ("user_id", "users"), ("group_id", "groups"), ("spawner_id", "spawners")),
    "share_codes": (("owner_id", "users"), ("spawner_id", "spawners")),
}
"""By table, the columns by which a row names others, each with the table that it points to."""


class _Hanging:
    """What hangs on users, by their ids, as it is read."""

    def __init__(self) -> None:
        self._servers: dict[int, list[AccountServer]] = defaultdict(list)
        self._tokens: dict[int, int] = defaultdict(int)
        # As the driver gives it: texts sort as the times do, and only the last one has to be made one.
        self._used: dict[int, Any] = {}
        self._unreadable: set[int] = set()
        self._shares: dict[int, int] = defaultdict(int)

    def take(self, kind: str, rows: Iterable[Any], ids: Collection[int] | None = None) -> None:
        """``kind`` is one of _OF_USERS, and the rows are as its statement returns them for these users; None: for all.

        A share stands between two, who may be asked for apart: it counts for those it is given for.
        """
        if kind == "spawners":
            for _, user_id, name, server_id, last_activity, keeps_state in rows:
                (at,), known = as_times(last_activity)
                if not known:
                    self._unreadable.add(user_id)
                name = name if isinstance(name, str) else ""  # noqa: PLW2901
                server = AccountServer(name, server_id is not None, None, at, bool(keeps_state))
                self._servers[user_id].append(server)
        elif kind == "tokens":
            for _, user_id, used in rows:
                self._tokens[user_id] += 1
                if used is None:
                    continue
                before = self._used.get(user_id, used)
                if type(before) is not type(used) or not _may_be_a_time(used):
                    self._unreadable.add(user_id)
                elif before <= used:
                    self._used[user_id] = used
        else:
            for _, owner_id, user_id in rows:
                for id_ in {owner_id, user_id}:
                    if ids is None or id_ in ids:
                        self._shares[id_] += 1

    def account(self, row: Any, groups: tuple[str, ...], roles: tuple[str, ...]) -> Account:
        """The user of that row."""
        id_, name, admin, *stored = row
        (created, last_activity, used), known = as_times(*stored, self._used.get(id_))
        return Account(
            name=name,
            admin=bool(admin),
            created=created,
            last_activity=last_activity,
            groups=groups,
            roles=roles,
            servers=tuple(sorted(self._servers.get(id_, ()), key=lambda server: server.name)),
            servers_whole=True,
            tokens=self._tokens.get(id_, 0),
            token_used_at=used,
            shares=self._shares.get(id_, 0),
            id=id_,
            times_known=known and id_ not in self._unreadable,
        )


def _may_be_a_time(used: object) -> bool:
    """Whether a token's last use sorts as a time does. A text that isn't one would hide behind the others."""
    return not isinstance(used, str) or (len(used) >= len("2026-01-01 00:00:00") and used[:4].isdigit())


def read_accounts(db: ReadOnly, since: datetime | None, names: Sequence[str] | None) -> Accounts:
    """What :meth:`HubDB.accounts` returns."""
    began_s = time.monotonic()
    hanging = _Hanging()
    with db.transaction() as connection:
        revision = known_revision(db, connection)
        users_total = connection.execute(_USERS_TOTAL).scalar_one()
        kinds = [kind for kind in _OF_USERS if kind != "shares" or has_shares(connection)]
    rows_read: list[tuple[Any, tuple[str, ...], tuple[str, ...]]] = []
    batches = _everybody(db, since) if names is None else _these(db, names, kinds, hanging)
    for rows, (groups, roles) in batches:
        rows_read.extend((row, groups[row[0]], roles[row[0]]) for row in rows if has_name(row[1]))
    if names is None and rows_read:
        for kind in kinds:
            for piece in _pieces(db, kind):
                hanging.take(kind, piece)
    accounts = (hanging.account(row, groups, roles) for row, groups, roles in rows_read)
    # Again, as times: SQLite has compared them as texts.
    wanted = (
        account
        for account in accounts
        if since is None or account.last_activity is None or account.last_activity <= since
    )
    by_name = tuple(sorted(wanted, key=lambda account: account.name))
    return Accounts(by_name, users_total, revision, time.monotonic() - began_s)


def read_users_made(db: ReadOnly, names: Sequence[str]) -> dict[str, datetime | None]:
    """What :meth:`HubDB.users_made` returns. ``names`` are few."""
    with db.transaction() as connection:
        known_revision(db, connection)
        rows = connection.execute(_THESE_USERS, {"names": list(names)}).all()
    made = {name: as_times(created)[0][0] for _, name, _, created, _ in rows}
    # MySQL takes letters of either case for the same.
    return {name: made[name] for name in names if name in made}


def read_undo_users(db: ReadOnly, names: Sequence[str]) -> tuple[UndoUser, ...]:
    """What :meth:`HubDB.undo_users` returns."""
    users: list[UndoUser] = []
    for batch in _batches(names):
        with db.transaction() as connection:
            known_revision(db, connection)
            user_rows = _rows(connection, _UNDO_USERS, {"names": batch})
            ids = [row["id"] for row in user_rows]
            spawner_rows = _rows(connection, _UNDO_SPAWNERS, {"ids": ids})
            asked = {
                "ids": ids,
                "spawner_ids": [row["id"] for row in spawner_rows],
                "server_ids": [row["server_id"] for row in spawner_rows if row["server_id"] is not None],
                "client_ids": [row["oauth_client_id"] for row in spawner_rows if row["oauth_client_id"] is not None],
            }
            statements = {**_UNDO_REST, **(_UNDO_SHARES if has_shares(connection) else {})}
            rest = {table: _rows(connection, statement, asked) for table, statement in statements.items()}
            names_of = groups_and_roles(connection, ids)
            named = named_rows(connection, _pointed_to(rest, set(ids), set(asked["spawner_ids"])))
        users.extend(_undo_users(user_rows, spawner_rows, rest, names_of))
        if named:
            users.append(UndoUser(name="", rows={NAMED: tuple(map(_kept, named))}))
    wanted = {*names, ""}  # MySQL takes letters of either case for the same
    return tuple(sorted((user for user in users if user.name in wanted), key=lambda user: user.name))


def named_rows(connection: Connection, wanted: Mapping[str, Collection[int]]) -> list[Mapping[Any, Any]]:
    """What an undo file has as the table NAMED: of these ids, by table, each with its ``table``, ``id`` and ``name``.

    A spawner has its ``user_id``, too, and that user is among them. Whatever isn't there is left out.
    """
    rows: list[Mapping[Any, Any]] = []
    users_too: set[int] = set()
    for name in _NAMEABLE:
        ids = sorted({*wanted.get(name, ()), *(users_too if name == "users" else ())})
        table = sa.table(name, *map(sa.column, ("id", "name", "user_id")[: 3 if name == "spawners" else 2]))
        statement = sa.select(table).where(table.c.id.in_(_IDS)).order_by(table.c.id)
        for first in range(0, len(ids), USERS_AT_ONCE):
            for row in connection.execute(statement, {"ids": ids[first : first + USERS_AT_ONCE]}).mappings():
                rows.append({"table": name, **row})
                if name == "spawners":
                    users_too.add(row["user_id"])
    return rows


def _pointed_to(
    rest: Mapping[str, Sequence[Mapping[Any, Any]]], user_ids: Collection[int], spawner_ids: Collection[int]
) -> dict[str, set[int]]:
    """What these rows point to, by table, besides those whose own rows are read with them."""
    pointed: dict[str, set[int]] = defaultdict(set)
    for table, rows in rest.items():
        for column, target in _POINTS_TO.get(table, ()):
            pointed[target].update(row[column] for row in rows if row[column] is not None)
    pointed["users"] -= set(user_ids)
    pointed["spawners"] -= set(spawner_ids)
    return pointed


def _undo_users(
    user_rows: Sequence[Mapping[Any, Any]],
    spawner_rows: Sequence[Mapping[Any, Any]],
    rest: Mapping[str, Sequence[Mapping[Any, Any]]],
    names_of: tuple[Names, Names],
) -> Iterator[UndoUser]:
    groups, roles = names_of
    owners: Mapping[str, dict[object, int]] = {
        "user": {row["id"]: row["id"] for row in user_rows},
        "spawner": {row["id"]: row["user_id"] for row in spawner_rows},
        "server": {row["server_id"]: row["user_id"] for row in spawner_rows},
        "client": {row["oauth_client_id"]: row["user_id"] for row in spawner_rows},
    }
    rows: dict[int, dict[str, list[Mapping[str, object]]]] = defaultdict(lambda: defaultdict(list))
    for row in user_rows:
        rows[row["id"]]["users"].append(_kept(row))
    for row in spawner_rows:
        rows[row["user_id"]]["spawners"].append(_kept(row))
    for table, of_table in rest.items():
        for row in of_table:
            named = ((what, row[column]) for column, what in _OWNED_BY[table])
            for id_ in {owners[what][value] for what, value in named if value is not None and value in owners[what]}:
                rows[id_][table].append(_kept(row))
    kept: dict[int, list[UndoServer]] = defaultdict(list)
    for row in spawner_rows:
        kept[row["user_id"]].append(UndoServer(row["name"] or "", as_object(row["user_options"]) or None))
    for row in user_rows:
        id_ = row["id"]
        yield UndoUser(
            name=row["name"],
            groups=groups[id_],
            roles=roles[id_],
            servers=tuple(sorted(kept[id_], key=lambda server: server.name)),
            rows={table: tuple(of_table) for table, of_table in rows[id_].items()},
        )


def _everybody(db: ReadOnly, since: datetime | None) -> Iterator[tuple[Sequence[Any], tuple[Names, Names]]]:
    """All users, or those who weren't active after ``since``, a few hundred at a time, with their groups and roles."""
    after = -1
    while True:
        asked: dict[str, object] = {"after": after}
        if since is not None:
            asked["since"] = since.replace(tzinfo=None)
        with db.transaction() as connection:
            rows = connection.execute(_ALL_USERS if since is None else _STALE_USERS, asked).all()
            names_of = groups_and_roles(connection, [row[0] for row in rows])
        yield rows, names_of
        if len(rows) < USERS_AT_ONCE:
            return
        after = rows[-1][0]


def _these(
    db: ReadOnly, names: Sequence[str], kinds: Sequence[str], hanging: _Hanging
) -> Iterator[tuple[Sequence[Any], tuple[Names, Names]]]:
    """The users of these names, as _everybody returns them; what hangs on them is of the same moment, and is taken."""
    for batch in _batches(names):
        with db.transaction() as connection:
            rows = [row for row in connection.execute(_THESE_USERS, {"names": batch}) if row[1] in batch]
            ids = [row[0] for row in rows]
            names_of = groups_and_roles(connection, ids)
            hung = {kind: connection.execute(_OF_USERS[kind], {"ids": ids}).all() for kind in kinds}
        for kind, of_kind in hung.items():
            hanging.take(kind, of_kind, set(ids))
        yield rows, names_of


def _pieces(db: ReadOnly, kind: str) -> Iterator[Sequence[Any]]:
    """All rows of a table, in the order of their ids."""
    after = -1
    while True:
        with db.transaction() as connection:
            rows = connection.execute(_PIECES[kind], {"after": after}).all()
        yield rows
        if len(rows) < ROWS_AT_ONCE:
            return
        after = rows[-1][0]


def _batches(names: Sequence[str]) -> Iterator[list[str]]:
    ordered = sorted(set(names))
    for first in range(0, len(ordered), USERS_AT_ONCE):
        yield ordered[first : first + USERS_AT_ONCE]


def _rows(
    connection: Connection, statement: sa.Select[Any], asked: Mapping[str, object]
) -> Sequence[Mapping[Any, Any]]:
    return connection.execute(statement, asked).mappings().all()


def _kept(row: Mapping[Any, Any]) -> Mapping[str, object]:
    """The row by column; some drivers return bytes as a view of them."""
    return {column: bytes(value) if isinstance(value, memoryview) else value for column, value in row.items()}
