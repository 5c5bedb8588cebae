"""The rows of the hub's database that go with users, and those of no use: found, and deleted.

What is deleted is what was read, row by row: so nothing goes that isn't in the undo file. The order and the extent are
those of the hub's own ORM (JupyterHub 5 and 6): a user takes along spawners, tokens, codes, shares both ways and memberships,
a spawner its OAuth client, and that client all tokens and codes that were made out to it, whoever has them.
"""

from __future__ import annotations

from collections.abc import Collection, Iterable, Iterator, Mapping, Sequence
from datetime import datetime, timezone
from typing import Any

import sqlalchemy as sa
from sqlalchemy.engine import Connection
from sqlalchemy.exc import SQLAlchemyError

from hubguard.hub import accounts as hub_accounts
from hubguard.hub.nouns import UndoServer, UndoUser
from hubguard.hub.tables import as_object
from hubguard.prune.offline.database import Database, Tables

Row = dict[str, Any]
Rows = dict[str, list[Row]]

IDS_AT_ONCE = 10_000
"""Maximum ids in one statement."""

MAPS: Mapping[str, tuple[tuple[str, str], tuple[str, str]]] = {
    "user_group_map": (("user_id", "users"), ("group_id", "groups")),
    "user_role_map": (("user_id", "users"), ("role_id", "roles")),
    "group_role_map": (("group_id", "groups"), ("role_id", "roles")),
    "service_role_map": (("service_id", "services"), ("role_id", "roles")),
}
"""The tables of memberships: both columns of each, with the table that it points to."""

POINTERS: Mapping[str, tuple[tuple[str, str], ...]] = {
    **MAPS,
    "spawners": (("user_id", "users"),),
    "api_tokens": (("user_id", "users"), ("service_id", "services")),
    "oauth_codes": (("user_id", "users"),),
    "shares": (("owner_id", "users"), ("user_id", "users"), ("group_id", "groups"), ("spawner_id", "spawners")),
    "share_codes": (("owner_id", "users"), ("spawner_id", "spawners")),
}
"""The columns by which rows point to others by number, with the table that each points to."""

_POINTING = (
    ("spawners", "user_id"),
    ("spawners", "oauth_client_id"),
    ("api_tokens", "user_id"),
    ("api_tokens", "client_id"),
    ("oauth_codes", "user_id"),
    ("oauth_codes", "client_id"),
    ("shares", "owner_id"),
    ("shares", "user_id"),
    ("shares", "spawner_id"),
    ("share_codes", "owner_id"),
    ("share_codes", "spawner_id"),
)
"""Columns that point to what is deleted."""

OWNER: Mapping[str, str] = {
    **dict.fromkeys(("spawners", "api_tokens", "oauth_codes"), "user_id"),
    **dict.fromkeys(("shares", "share_codes"), "owner_id"),
}
"""By table, the column that says whose a row is."""

_DELETED = ("share_codes", "shares", "api_tokens", "oauth_codes", "user_role_map", "user_group_map", "spawners")
# Last, since others point to them.
_DELETED_LAST = ("servers", "oauth_clients", "users")


def these(column: sa.ColumnElement[Any], ids: Collection[int]) -> sa.ColumnElement[bool]:
    """Whether ``column`` is one of ``ids``, written into the statement: databases limit how many parameters it may have."""
    # As one text: SQLAlchemy takes a third of all the time to write them one by one.
    return column.op("IN", is_comparison=True)(
        sa.literal_column(f"({', '.join(str(int(id_)) for id_ in ids) or 'NULL'})")
    )


def batches(ids: Iterable[int]) -> Iterator[list[int]]:
    """``ids`` in order, no more at once than a statement takes."""
    ordered = sorted(ids)
    for first in range(0, len(ordered), IDS_AT_ONCE):
        yield ordered[first : first + IDS_AT_ONCE]


def rows_of(connection: Connection, tables: Tables, ids: Collection[int]) -> dict[int, Rows]:
    """All rows that go with the users of these ids, by user and table, in the order of their ids; each row once.

    A row that hangs on two of them is with its owner. Among ``spawners`` may be one of somebody else: it stays, and loses its
    OAuth client, which it has in common with one that goes.
    """
    rows: dict[int, Rows] = {id_: {} for id_ in sorted(ids)}
    for name, sources in _sources(tables).items():
        key = "id" if "id" in tables[name].c else None
        seen: set[Any] = set()
        for source, owner in sources:
            for batch in batches(ids):
                statement = source.add_columns(owner).where(these(owner, batch))
                if key is not None:
                    statement = statement.order_by(tables[name].c.id)
                result = connection.execute(statement)
                columns = list(result.keys())[:-1]
                place = columns.index(key) if key is not None else None
                for values in result.all():
                    if place is not None:
                        if values[place] in seen:
                            continue
                        seen.add(values[place])
                    rows[values[-1]].setdefault(name, []).append(dict(zip(columns, values, strict=False)))
    return rows


def undo_user(rows: Rows, groups: Mapping[int, str], roles: Mapping[int, str]) -> UndoUser:
    """One user as an undo file has them. ``groups`` and ``roles`` are all there are, by id."""
    user = rows["users"][0]
    mine = (row for row in rows.get("spawners", ()) if row["user_id"] == user["id"])
    servers = (UndoServer(row["name"] or "", as_object(row["user_options"])) for row in mine)
    return UndoUser(
        name=user["name"],
        groups=_names(rows.get("user_group_map", ()), "group_id", groups),
        roles=_names(rows.get("user_role_map", ()), "role_id", roles),
        servers=tuple(sorted(servers, key=lambda server: server.name)),
        rows={name: tuple(of_table) for name, of_table in rows.items()},
    )


def useless(
    connection: Connection, tables: Tables, now: datetime, gone: Mapping[int, Rows], gone_by_id: Mapping[str, set[int]]
) -> Rows:
    """The rows that are of no use to the hub, besides those that go with ``gone``; see ORMCounts.

    ``gone_by_id`` has the ids of what goes with them. A row of ``spawners`` stays and loses the server that isn't there.
    """
    useless_rows: Rows = {}
    at = now.astimezone(timezone.utc).replace(tzinfo=None)
    servers, spawners, services = tables["servers"], tables["spawners"], tables["services"]
    expired = {
        "api_tokens": sa.bindparam("at", at, type_=sa.DateTime()),
        "oauth_codes": sa.bindparam("at", int(now.timestamp()), type_=sa.Integer()),
        "share_codes": sa.bindparam("at", at, type_=sa.DateTime()),
    }
    statements = {
        name: sa.select(tables[name]).where(tables[name].c.expires_at < limit)
        for name, limit in expired.items()
        if name in tables.hub
    }
    statements["servers"] = (
        sa.select(servers)
        .outerjoin(spawners, spawners.c.server_id == servers.c.id)
        .outerjoin(services, services.c._server_id == servers.c.id)
        .where(spawners.c.server_id.is_(None), services.c.id.is_(None))
    )
    statements["spawners"] = (
        sa.select(spawners)
        .outerjoin(servers, spawners.c.server_id == servers.c.id)
        .where(spawners.c.server_id.is_not(None), servers.c.id.is_(None))
    )
    for name, ends in MAPS.items():
        joined: sa.FromClause = tables[name]
        for column, target in ends:
            joined = joined.outerjoin(tables[target], tables[name].c[column] == tables[target].c.id)
        statements[name] = (
            sa.select(tables[name])
            .select_from(joined)
            .where(sa.or_(*(tables[target].c.id.is_(None) for _, target in ends)))
        )
    for name, statement in statements.items():
        goes = gone_by_id.get(name, set())
        rows = [dict(row) for row in connection.execute(statement).mappings()]
        rows = [
            row
            for row in rows
            if ("id" not in row or row["id"] not in goes) and (name not in MAPS or row.get("user_id") not in gone)
        ]
        if rows:
            useless_rows[name] = rows
    return useless_rows


def named(connection: Connection, tables: Tables, every: Iterable[Rows], gone: Mapping[int, Rows]) -> list[Row]:
    """What the rows of ``every`` point to, besides ``gone`` and what goes with them (see hub_accounts.named_rows)."""
    wanted: dict[str, set[int]] = {}
    for rows in every:
        for name, of_table in rows.items():
            for column, target in POINTERS.get(name, ()):
                ids = wanted.setdefault(target, set())
                ids.update(row[column] for row in of_table if row[column] is not None)
    if "users" in wanted:
        wanted["users"] -= gone.keys()
    if "spawners" in wanted:
        wanted["spawners"] -= {
            row["id"] for id_, rows in gone.items() for row in rows.get("spawners", ()) if row["user_id"] == id_
        }
    return [dict(row) for row in hub_accounts.named_rows(connection, wanted)]


def pointed_to(connection: Connection, tables: Tables, target: str) -> set[int]:
    """The ids in the table ``target`` that rows of others point to, whether or not there are such rows in it."""
    ids_pointed_to: set[int] = set()
    for name, pointers in POINTERS.items():
        for column, to in pointers:
            if to == target and name in tables.hub:
                ids = sa.select(tables[name].c[column]).distinct()
                ids_pointed_to.update(id_ for id_ in connection.execute(ids).scalars() if id_ is not None)
    return ids_pointed_to


def delete_users(
    database: Database, connection: Connection, tables: Tables, gone: Mapping[int, Rows]
) -> dict[str, int]:
    """Delete exactly these rows; how many went, by table: of spawners, also those that lost a client.

    Raises OfflineRefused where there were others than these.
    """
    ids, pointers, memberships = _told_apart(gone)
    counts: dict[str, int] = {}
    spawners = tables["spawners"]
    indexes = _index_pointers(database, connection, tables)
    for batch in batches(pointers):
        connection.execute(sa.update(spawners).where(these(spawners.c.id, batch)).values(oauth_client_id=None))
    for name in (*_DELETED, *_DELETED_LAST):
        if name in MAPS:
            column, going, expected = tables[name].c.user_id, set(gone), memberships[name]
        elif name in ids:
            column, going, expected = tables[name].c.id, ids[name], len(ids[name])
        else:
            continue
        went = sum(
            connection.execute(sa.delete(tables[name]).where(these(column, batch))).rowcount for batch in batches(going)
        )
        _as_read(database, name, expected, went)
        if name == "spawners":
            went += len(pointers)
        if went:
            counts[name] = went
    for index in indexes:
        connection.exec_driver_sql(f"DROP INDEX {index}")
    return counts


def counted(gone: Mapping[int, Rows]) -> dict[str, int]:
    """How many rows :func:`delete_users` counts when it deletes ``gone``, by table."""
    ids, pointers, memberships = _told_apart(gone)
    counts = {**memberships, **{name: len(of_table) for name, of_table in ids.items()}}
    counts["spawners"] = counts.get("spawners", 0) + len(pointers)
    return {name: number for name, number in counts.items() if number}


def _told_apart(gone: Mapping[int, Rows]) -> tuple[dict[str, set[int]], set[int], dict[str, int]]:
    """The ids of the rows that go, by table; those of spawners that only lose their client; and how many memberships go."""
    ids: dict[str, set[int]] = {}
    pointers: set[int] = set()
    memberships: dict[str, int] = dict.fromkeys(MAPS, 0)
    for user_id, rows in gone.items():
        for name, of_table in rows.items():
            if name in MAPS:
                memberships[name] += len(of_table)
            elif name == "spawners":
                for row in of_table:
                    (ids.setdefault(name, set()) if row["user_id"] == user_id else pointers).add(row["id"])
            else:
                ids.setdefault(name, set()).update(row["id"] for row in of_table)
    return ids, pointers, memberships


def _index_pointers(database: Database, connection: Connection, tables: Tables) -> list[str]:
    """Indexes for the time of the transaction, by their names; none if they aren't needed, or this account may not.

    For each row that goes PostgreSQL looks through all tables that may point to it, and the hub's (up to 6) have no indexes
    for that: minutes become hours. MySQL makes its own, and SQLite doesn't look.
    """
    if database.kind != "postgresql":
        return []
    made = []
    try:
        with connection.begin_nested():
            for name, column in ((name, column) for name, column in _POINTING if name in tables.hub):
                connection.exec_driver_sql(f"CREATE INDEX hubguard_{name}_{column} ON {name} ({column})")
                made.append(f"hubguard_{name}_{column}")
    except SQLAlchemyError:
        return []
    return made


def delete_useless(database: Database, connection: Connection, tables: Tables, rows: Rows) -> dict[str, int]:
    """Delete these rows of no use; how many went, by table: of spawners, how many no longer point to nowhere."""
    counts: dict[str, int] = {}
    for name, of_table in rows.items():
        table = tables[name]
        if name in MAPS:
            keys = [column for column, _ in MAPS[name]]
            statement = sa.delete(table).where(*(table.c[key] == sa.bindparam(f"was_{key}") for key in keys))
            for row in of_table:
                connection.execute(statement, {f"was_{key}": row[key] for key in keys})
            counts[name] = len(of_table)
            continue
        ids = {row["id"] for row in of_table}
        went = 0
        for batch in batches(ids):
            if name == "spawners":
                change: Any = sa.update(table).where(these(table.c.id, batch)).values(server_id=None)
            else:
                change = sa.delete(table).where(these(table.c.id, batch))
            went += connection.execute(change).rowcount
        _as_read(database, name, len(ids), went)
        counts[name] = went
    return counts


def ids_of(gone: Mapping[int, Rows]) -> dict[str, set[int]]:
    """The ids of all rows in ``gone``, by table."""
    ids: dict[str, set[int]] = {}
    for rows in gone.values():
        for name, of_table in rows.items():
            if name not in MAPS:
                ids.setdefault(name, set()).update(row["id"] for row in of_table)
    return ids


def names_by_id(connection: Connection, table: sa.TableClause) -> dict[int, str]:
    """All names in that table."""
    return {row[0]: row[1] for row in connection.execute(sa.select(table.c.id, table.c.name))}


def _sources(tables: Tables) -> dict[str, list[tuple[sa.Select[Any], sa.ColumnElement[Any]]]]:
    """By table, the rows that go with users, each with the column that names the user."""
    spawners, clients = tables["spawners"], tables["oauth_clients"]
    mine = spawners.alias("mine")

    def own(name: str, *columns: str) -> list[tuple[sa.Select[Any], sa.ColumnElement[Any]]]:
        table = tables[name]
        return [(sa.select(table), table.c[column].label("hubguard_owner")) for column in columns]

    def by_spawner(name: str, column: str, spawner_column: str) -> tuple[sa.Select[Any], sa.ColumnElement[Any]]:
        table = tables[name]
        joined = table.join(mine, table.c[column] == mine.c[spawner_column])
        statement = sa.select(table).select_from(joined)
        if (owner := OWNER.get(name)) is not None:
            # Nearly all are their owner's, and found as theirs.
            statement = statement.where(table.c[owner].is_distinct_from(mine.c.user_id))
        return statement, mine.c.user_id.label("hubguard_owner")

    sources = {
        "users": own("users", "id"),
        "user_group_map": own("user_group_map", "user_id"),
        "user_role_map": own("user_role_map", "user_id"),
        "spawners": [*own("spawners", "user_id"), by_spawner("spawners", "oauth_client_id", "oauth_client_id")],
        "oauth_clients": [by_spawner(clients.name, "identifier", "oauth_client_id")],
        "api_tokens": [*own("api_tokens", "user_id"), by_spawner("api_tokens", "client_id", "oauth_client_id")],
        "oauth_codes": [*own("oauth_codes", "user_id"), by_spawner("oauth_codes", "client_id", "oauth_client_id")],
    }
    if "shares" in tables.hub:
        sources["shares"] = [*own("shares", "owner_id", "user_id"), by_spawner("shares", "spawner_id", "id")]
    if "share_codes" in tables.hub:
        sources["share_codes"] = [*own("share_codes", "owner_id"), by_spawner("share_codes", "spawner_id", "id")]
    return sources


def _names(rows: Sequence[Row], column: str, names: Mapping[int, str]) -> tuple[str, ...]:
    return tuple(sorted(names[row[column]] for row in rows if row[column] in names))


def _as_read(database: Database, table: str, expected: int, went: int) -> None:
    if expected != went:
        raise database.refused(
            f"has other rows in {table} than were read just before ({expected} there, {went} gone)",
            "Somebody else changes it, or a trigger does: find out who, and try again.",
        )
