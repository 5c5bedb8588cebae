"""Bringing the rows of an undo file back into the hub's database, all in one transaction.

The owner of a row is found by name, never by a number that may belong to somebody else by now: SQLite gives the
numbers of deleted rows away again. A row gets its old number back where that is free, else a new one, and so does all that
points to it. What would point to somebody who isn't there any more stays out, and is counted.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from datetime import datetime
from pathlib import Path
from typing import Any

import sqlalchemy as sa
from sqlalchemy.engine import Connection

from hubguard.errors import OfflineRefused, UndoError
from hubguard.hub.accounts import NAMED
from hubguard.hub.nouns import UndoUser
from hubguard.prune import undo_file
from hubguard.prune.model import UndoHead
from hubguard.prune.offline import rows as prune_rows
from hubguard.prune.offline.alone import opened
from hubguard.prune.offline.database import HUB_TABLES, Database, Tables
from hubguard.prune.offline.undo_rows import unlike_ours

_CREDENTIALS = ("api_tokens", "oauth_codes", "share_codes")
"""What lets somebody in who has its text: comes back only when asked for."""

_GIVES_ACCESS = frozenset({*_CREDENTIALS, "shares"})
"""What lets others act for its owner, or use their servers."""

_UNIQUE: Mapping[str, str] = {"api_tokens": "hashed", "share_codes": "hashed", "oauth_clients": "identifier"}

Row = Mapping[str, Any]


@dataclass(frozen=True, slots=True)
class Restored:
    """What came back, or in a dry run would have.

    ``restored`` has the users' names, ``skipped`` those left as they are, each with why, both in the file's order. ``rows``
    counts the rows that came back by table (of ``spawners``, also those of others that got back what they pointed to).
    ``notes`` says what didn't come back, and what couldn't be seen.
    """

    restored: tuple[str, ...]
    skipped: tuple[tuple[str, str], ...]
    rows: Mapping[str, int] = field(hash=False)
    notes: tuple[str, ...] = ()
    dry_run: bool = False


def restore_offline(
    url: str,
    folder: Path,
    undo_path: Path,
    *,
    with_tokens: bool,
    now: Callable[[], datetime],
    hub_api_url: str | None,
    also_at: Sequence[str] = (),
    acknowledged: Sequence[str] = (),
    sha256: str | None = None,
    from_other_database: bool = False,
    dry_run: bool = False,
    progress: Callable[[str], None] | None = None,
) -> Restored:
    """Bring back the users in the undo file, into the hub's database at ``url``, all in one transaction.

    Users who are there are left as they are, so it may be done twice; who has somebody else's number now gets a new one.
    Groups and roles are found by name, and none is made. ``with_tokens`` brings back tokens and codes, too; without, their
    users log in again, and what is left out then isn't brought back by a second time. Servers come back as stopped: what they
    ran as is gone. ``hub_api_url`` is where the hub would answer, None: not known; ``also_at`` are further such addresses.
    ``acknowledged`` names what of the hub can't be seen (see in_use.cautions). ``sha256`` is the file's checksum where it was
    noted; None: nothing vouches for the file, and no tokens, codes or shares come back that belong to anybody else than those
    who come back. ``from_other_database``: the file may be of another database, such as a hub's that has moved. Nobody comes
    back as an admin: no admin is ever deleted. A dry run takes it all back at the end.

    Raises UndoError for a file that isn't as it was written, and OfflineRefused, with nothing changed, where the hub uses
    the database, the file has no rows, or they are of another kind of database or another revision of the hub's tables.
    """
    tell = progress or (lambda step: None)
    tell("Checking the undo file")
    head, users = undo_file.read(undo_path, sha256=sha256)
    if why := unlike_ours(users):
        raise UndoError(
            f"The undo file {undo_path} {why}, as HubGuard never writes it. Nobody is brought back by it; use a copy of it"
            " that is as it was written."
        )
    database = Database(url, folder)
    _refuse_file(database, head, users)
    if database.place != head.database and not from_other_database:
        raise database.refused(
            f"isn't the one that the undo file was made of ({head.database})",
            "Name that one; where the hub has moved, ask for it with --from-other-database.",
        )
    tell("Looking whether a hub uses the database")
    with (
        opened(database, now=now(), hub_api_url=hub_api_url, also_at=also_at, acknowledged=acknowledged) as ours,
        ours.changing(
            revision=head.revision,
            mismatch=("the rows in the undo file are of", "Start the hub, and bring the users back online."),
            dry_run=dry_run,
        ) as (connection, tables, seen),
    ):
        tell("Bringing back")
        _refuse_columns(database, tables, users)
        plan = _plan(connection, tables, users, with_tokens=with_tokens, vouched=sha256 is not None)
        counts = _write(database, connection, tables, plan)
    tell("Nothing was changed" if dry_run else "Done")
    notes = list(seen)
    if database.place != head.database:
        notes.append(f"The undo file was made of another database ({head.database}).")
    notes += (f"{count} rows of {table} didn't come back: {why}." for (table, why), count in plan.out.items())
    restored = tuple(user.name for user in plan.coming)
    return Restored(restored, tuple(plan.skipped), dict(counts), tuple(notes), dry_run)


def _refuse_file(database: Database, head: UndoHead, users: Sequence[UndoUser]) -> None:
    kind = head.database.partition(" ")[0].rstrip(",").lower()
    if not head.revision or not any(user.rows for user in users):
        raise OfflineRefused(
            "The undo file has no rows of a hub's database, so nothing can be brought back straight into one. Nothing was "
            "changed. Start the hub, and bring the users back online."
        )
    if (kind if kind != "mariadb" else "mysql") != database.kind:
        raise database.refused(
            f"is of another kind than the rows in the undo file ({head.database})",
            "Start the hub, and bring the users back online.",
        )


def _refuse_columns(database: Database, tables: Tables, users: Sequence[UndoUser]) -> None:
    columns: dict[str, set[str]] = {}
    for user in users:
        for name, of_table in (user.rows or {}).items():
            if name != NAMED and of_table:
                columns.setdefault(name, set()).update(*of_table)
    for name, wanted in columns.items():
        unknown = wanted - set(tables.hub[name].c.keys()) if name in tables.hub else wanted
        if unknown or name not in tables.hub:
            raise database.refused(
                f"has no {name} with the columns {', '.join(sorted(unknown))} of the undo file",
                "Start the hub, and bring the users back online.",
            )


class _There:
    """What the database has, with what is planned to be put in, by the names that it had when the file was written."""

    def __init__(self, connection: Connection, tables: Tables, users: Sequence[UndoUser]) -> None:
        self._in_file: dict[str, set[int]] = {}
        # By table, what each id was called when the file was written: of spawners, (the user's id, name).
        self._called: dict[str, dict[int, Any]] = {name: {} for name in HUB_TABLES}
        for user in users:
            for row in _of(user, NAMED):
                self._called[row["table"]][row["id"]] = _called(row["table"], row)
            for name in ("users", "spawners"):
                self._called[name].update((row["id"], _called(name, row)) for row in _of(user, name))
            for name in (user.rows or {}).keys() & tables.hub.keys() - prune_rows.MAPS.keys():
                self._in_file.setdefault(name, set()).update(row["id"] for row in _of(user, name))
        # By table, the id of each name.
        self.ids: dict[str, dict[Any, int]] = {
            name: {called: id_ for id_, called in prune_rows.names_by_id(connection, tables[name]).items()}
            for name in ("users", "groups", "roles", "services")
        }
        spawners = sa.select(*(tables["spawners"].c[column] for column in ("id", "user_id", "name")))
        self.ids["spawners"] = {
            _called("spawners", row): row["id"] for row in map(dict, connection.execute(spawners).mappings())
        }

        def values(name: str, column: str) -> set[Any]:
            return set(connection.execute(sa.select(tables[name].c[column])).scalars())

        self.taken = {name: values(name, "id") for name in {*self._in_file, *self.ids, "servers"}}
        self.unique = {name: values(name, column) for name, column in _UNIQUE.items() if name in tables.hub}
        # What rows without an owner point to isn't free: its new owner would gain what they lead to.
        self._pointed_to = {name: prune_rows.pointed_to(connection, tables, name) for name in self._in_file}
        self._next: dict[str, int] = {}

    def called(self, target: str, was: int) -> Any:
        """What had the id ``was`` when the file was written, None: nothing that the file names."""
        return self._called[target].get(was)

    def now(self, target: str, was: int) -> int | None:
        """The id that what had the id ``was`` has now."""
        called = self.called(target, was)
        if target == "spawners" and called is not None:
            user_id = self.now("users", called[0])
            called = None if user_id is None else (user_id, called[1])
        return None if called is None else self.ids[target].get(called)

    def is_as_it_was(self, target: str, was: int) -> bool:
        """Whether that id is nobody's now, as it was, or of who had it."""
        called = self.called(target, was)
        return was not in self.taken[target] if called is None else self.ids[target].get(called) == was

    def take_id(self, name: str, was: int) -> int:
        """``was`` if it is free, else an id that neither the database nor the file has."""
        if was in self.taken[name] or was in self._pointed_to[name]:
            if name not in self._next:
                ids = self.taken[name] | self._pointed_to[name] | self._in_file[name]
                self._next[name] = 1 + max(ids)
            was, self._next[name] = self._next[name], self._next[name] + 1
        self.taken[name].add(was)
        return was


@dataclass
class _Restoration:
    """The rows to put in, by table, what points to nothing in them first; and what stays out, with why."""

    there: _There
    vouched: bool
    """Whether it is known that the file is as it was written."""
    rows: dict[str, list[Row]] = field(default_factory=dict)
    pointing: list[tuple[int, str, Any]] = field(default_factory=list)
    """Spawners that stayed, by id, with the column of each that gets a value back if it has none now."""
    coming: list[UndoUser] = field(default_factory=list)
    names: set[str] = field(default_factory=set)
    """Of those who are coming."""
    skipped: list[tuple[str, str]] = field(default_factory=list)
    out: Counter[tuple[str, str]] = field(default_factory=Counter)

    def put(self, name: str, old: Row) -> None:
        """Put in that row, at its own id or another, if all that it points to is there."""
        row, unique = dict(old), _UNIQUE.get(name, "")
        if unique and row[unique] in self.there.unique[name]:
            self.out[name, "they are there"] += 1
            return
        if not self.vouched and name in _GIVES_ACCESS and not self._belongs_to_who_comes(name, old):
            self.out[name, "they belong to somebody who didn't come back, and nothing vouches for the undo file"] += 1
            return
        for column, target in prune_rows.POINTERS.get(name, ()):
            if row[column] is not None:
                row[column] = self.there.now(target, row[column])
                if row[column] is None:
                    self.out[name, f"their {column} was of a user who isn't there, or isn't named in the file"] += 1
                    return
        if row.get("client_id") is not None and row["client_id"] not in self.there.unique["oauth_clients"]:
            self.out[name, "the OAuth client that they were made for isn't there"] += 1
            return
        row["id"] = self.there.take_id(name, row["id"])
        if unique:
            self.there.unique[name].add(row[unique])
        if name in self.there.ids:
            self.there.ids[name][_called(name, row)] = row["id"]
        self.rows.setdefault(name, []).append(row)

    def _belongs_to_who_comes(self, name: str, row: Row) -> bool:
        owner = row[prune_rows.OWNER[name]]
        return owner is not None and row.get("service_id") is None and self.there.called("users", owner) in self.names

    def put_memberships(self, user: UndoUser, name: str, names: Iterable[str]) -> None:
        """Put the user into the groups, or give them the roles, of these names; roles that came through a group stay out."""
        column, target = prune_rows.MAPS[name][1]
        for wanted in names:
            if (target, wanted) == ("roles", "admin"):
                self.out[name, "no admin is ever deleted, so no undo file makes one"] += 1
                continue
            now_id = self.there.ids[target].get(wanted)
            if now_id is None:
                self.out[name, f"there is none of the {target} called {wanted} any more"] += 1
                continue
            # Its other columns are in the row of the id that it had then.
            called = [(row, self.there.called(target, row[column])) for row in _of(user, name)]
            was = [row for row, then in called if then == wanted]
            was = was or [row for row, then in called if then is None and row[column] == now_id]
            if not was:
                continue
            ends = {"user_id": self.there.ids["users"][user.name], column: now_id}
            self.rows.setdefault(name, []).append({**was[0], **ends})

    def point_again(self, old: Row, column: str, *, is_there: bool) -> None:
        """Let a spawner that stayed have again what it pointed to by ``column``."""
        now_id = self.there.now("spawners", old["id"])
        if now_id is None or not is_there:
            self.out["spawners", f"their {column} is of what isn't there any more"] += 1
        else:
            self.pointing.append((now_id, column, old[column]))


def _plan(
    connection: Connection, tables: Tables, users: Sequence[UndoUser], *, with_tokens: bool, vouched: bool
) -> _Restoration:
    """What to put in, and what not; nothing is written yet. A row points to what is planned before it, or was there."""
    plan = _Restoration(_There(connection, tables, users), vouched)
    there, coming = plan.there, plan.coming
    cookies = sa.select(tables["users"].c.cookie_id, tables["users"].c.name)
    known: dict[str, str] = {row[0]: row[1] for row in connection.execute(cookies)}
    for user in users:
        mine = _of(user, "users")
        if not user.name:
            continue
        if user.name in there.ids["users"]:
            plan.skipped.append((user.name, "there is a user of that name, who is left as they are"))
        elif not mine:
            plan.skipped.append((user.name, "the undo file has no rows of theirs"))
        elif mine[0]["cookie_id"] in known:
            plan.skipped.append((user.name, f"they are there, and called {known[mine[0]['cookie_id']]} now"))
        else:
            coming.append(user)
            plan.names.add(user.name)
    for user in coming:
        plan.put("users", {**_of(user, "users")[0], "admin": False})
    for user in coming:
        for row in _of(user, "oauth_clients"):
            plan.put("oauth_clients", row)
    shared = []
    for user in coming:
        for row in _of(user, "spawners"):
            if row["user_id"] != _of(user, "users")[0]["id"]:
                shared.append(row)
                continue
            client = row["oauth_client_id"] if row["oauth_client_id"] in there.unique["oauth_clients"] else None
            # A hub would ask its spawner for a server that it has a row of, at its start.
            plan.put("spawners", {**row, "server_id": None, "oauth_client_id": client})
    for user in coming:
        for name, wanted in (("user_group_map", user.groups), ("user_role_map", user.roles)):
            plan.put_memberships(user, name, wanted)
    rest = [
        name
        for name in ("api_tokens", "oauth_codes", "shares", "share_codes")
        if name in tables.hub and (with_tokens or name not in _CREDENTIALS)
    ]
    for name in rest:
        # Each once: a row that hangs on two users may be with both.
        for row in {row["id"]: row for user in coming for row in _of(user, name)}.values():
            plan.put(name, row)
    for row in shared:
        plan.point_again(row, "oauth_client_id", is_there=row["oauth_client_id"] in there.unique["oauth_clients"])
    _plan_useless(plan, connection, tables, users, ("servers", *rest))
    return plan


def _plan_useless(
    plan: _Restoration, connection: Connection, tables: Tables, users: Sequence[UndoUser], names: Sequence[str]
) -> None:
    """Put in the rows of no use, as they were or not at all: they must not become somebody's."""
    useless: prune_rows.Rows = {}
    for user in users:
        for name, of_table in (user.rows or {}).items() if not user.name else ():
            useless.setdefault(name, []).extend(map(dict, of_table))
    for name in names:
        for row in [row for row in useless.get(name, ()) if row["id"] not in plan.there.taken[name]]:
            plan.put(name, row)
    for name, ends in prune_rows.MAPS.items():
        if name not in useless:
            continue
        columns = [column for column, _ in ends]
        pairs = {tuple(pair) for pair in connection.execute(sa.select(*(tables[name].c[column] for column in columns)))}
        pairs.update(tuple(row[column] for column in columns) for row in plan.rows.get(name, ()))
        for row in useless[name]:
            if all(plan.there.now(target, row[column]) is not None for column, target in ends):
                plan.out[name, "they lead somewhere, so they weren't of no use"] += 1
            elif not all(plan.there.is_as_it_was(target, row[column]) for column, target in ends):
                plan.out[name, "they led nowhere, and would be somebody's now"] += 1
            elif tuple(row[column] for column in columns) not in pairs:
                plan.rows.setdefault(name, []).append(row)
    for row in useless.get("spawners", ()):
        if row["server_id"] not in plan.there.taken["servers"]:
            plan.point_again(row, "server_id", is_there=True)


def _write(database: Database, connection: Connection, tables: Tables, plan: _Restoration) -> Counter[str]:
    """Put in what is planned; how many rows came back, by table. Raises OfflineRefused where others are there then."""
    counts: Counter[str] = Counter()
    for name, rows in plan.rows.items():
        connection.execute(sa.insert(tables[name]), rows)
        counts[name] = len(rows)
    spawners = tables["spawners"]
    for id_, column, value in plan.pointing:
        change = sa.update(spawners).where(spawners.c.id == id_, spawners.c[column].is_(None)).values({column: value})
        counts["spawners"] += connection.execute(change).rowcount
    if database.kind == "postgresql":
        # The others go on counting after the ids that were put in by themselves.
        for name in (name for name in plan.rows if "id" in tables[name].c):
            table = connection.dialect.identifier_preparer.quote(name)
            sequence = connection.exec_driver_sql(f"SELECT pg_get_serial_sequence('{table}', 'id')").scalar()
            if sequence is not None:
                connection.exec_driver_sql(
                    f"SELECT setval('{sequence}', m.id) FROM (SELECT max(id) AS id FROM {table}) m, {sequence} s "  # noqa: S608
                    "WHERE m.id > s.last_value"
                )
    _verify(database, connection, tables, plan)
    return +counts


def _verify(database: Database, connection: Connection, tables: Tables, plan: _Restoration) -> None:
    ids = plan.there.ids
    there = prune_rows.names_by_id(connection, tables["users"])
    missing = [user.name for user in plan.coming if there.get(ids["users"][user.name]) != user.name]
    if missing:
        raise database.refused(
            f"doesn't have {len(missing)} of the users that were put in", "A trigger may remove them."
        )
    coming = {ids["users"][user.name]: user for user in plan.coming}
    for name in ("user_group_map", "user_role_map"):
        map_, (_, (column, target)) = tables[name], prune_rows.MAPS[name]
        members: dict[int, set[int]] = {}
        for batch in prune_rows.batches(coming):
            statement = sa.select(map_.c.user_id, map_.c[column]).where(prune_rows.these(map_.c.user_id, batch))
            for user_id, id_ in connection.execute(statement):
                members.setdefault(user_id, set()).add(id_)
        planned: dict[int, set[int]] = {}
        for row in plan.rows.get(name, ()):
            planned.setdefault(row["user_id"], set()).add(row[column])
        for user_id, user in coming.items():
            if members.get(user_id, set()) != planned.get(user_id, set()):
                raise database.refused(
                    f"gives {user.name} other {target} than the undo file has",
                    "A trigger may do so, or rows that were there before: find out where they come from.",
                )


def _of(user: UndoUser, name: str) -> Sequence[Row]:
    return (user.rows or {}).get(name, ())


def _called(table: str, row: Row) -> Any:
    return (row["user_id"], row["name"] or "") if table == "spawners" else row["name"]
