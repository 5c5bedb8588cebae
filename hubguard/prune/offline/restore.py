"""Bringing the rows of an undo file back into the hub's database, all in one transaction.

Whom and what a row belongs to is told by name, never by a number that somebody else may have by now: SQLite gives the
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

from hubguard.errors import OfflineRefused
from hubguard.hub.accounts import NAMED
from hubguard.hub.nouns import UndoUser
from hubguard.prune import undo_file
from hubguard.prune.model import UndoHead
from hubguard.prune.offline import rows as prune_rows
from hubguard.prune.offline.alone import opened
from hubguard.prune.offline.database import HUB_TABLES, Database, Tables

_CREDENTIALS = ("api_tokens", "oauth_codes", "share_codes")
"""What lets somebody in who has its text: comes back only when asked for."""

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
    noted. ``from_other_database``: the file may be of another database, such as a hub's that has moved. Nobody comes back as
    an admin: no admin is ever deleted. A dry run takes it all back at the end.

    Raises UndoError for a file that isn't as it was written, and OfflineRefused, with nothing changed, where the hub uses
    the database, the file has no rows, or they are of another kind of database or another revision of the hub's tables.
    """
    tell = progress or (lambda step: None)
    tell("Checking the undo file")
    head, users = undo_file.read(undo_path, sha256=sha256)
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
        restoring = _Restoring(database, connection, tables, users, with_tokens=with_tokens)
        restoring.restore()
    tell("Nothing was changed" if dry_run else "Done")
    notes = list(seen)
    if database.place != head.database:
        notes.append(f"The undo file was made of another database ({head.database}).")
    return Restored(
        tuple(restoring.restored),
        tuple(restoring.skipped),
        dict(restoring.counts),
        (*notes, *restoring.notes()),
        dry_run,
    )


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


class _Restoring:
    """One restoration, within its transaction. What came of it is in ``restored``, ``skipped`` and ``counts``."""

    def __init__(
        self,
        database: Database,
        connection: Connection,
        tables: Tables,
        users: Sequence[UndoUser],
        *,
        with_tokens: bool,
    ) -> None:
        self.restored: list[str] = []
        self.skipped: list[tuple[str, str]] = []
        self.counts: Counter[str] = Counter()
        self._out: Counter[tuple[str, str]] = Counter()
        self._database = database
        self._connection = connection
        self._tables = tables
        self._with_tokens = with_tokens
        self._users = [user for user in users if user.name]
        nobodys: prune_rows.Rows = {}
        for user in users:
            if not user.name:
                for name, of_table in (user.rows or {}).items():
                    nobodys.setdefault(name, []).extend(map(dict, of_table))
        # By table, what each id was called when the file was written: of spawners, (the user's id, name).
        self._called: dict[str, dict[int, Any]] = {name: {} for name in HUB_TABLES}
        for row in nobodys.pop(NAMED, ()):
            self._called[row["table"]][row["id"]] = _called(row["table"], row)
        for row in nobodys.get("spawners", ()):
            self._called["spawners"][row["id"]] = _called("spawners", row)
        self._nobodys = nobodys
        self._refuse_columns(users)
        # By table, what there is now: the id of each name.
        self._ids: dict[str, dict[Any, int]] = {
            name: {called: id_ for id_, called in prune_rows.names_by_id(connection, tables[name]).items()}
            for name in ("users", "groups", "roles", "services")
        }
        spawners = tables["spawners"]
        self._ids["spawners"] = {
            (user_id, name or ""): id_
            for id_, user_id, name in connection.execute(sa.select(spawners.c.id, spawners.c.user_id, spawners.c.name))
        }
        self._memberships: dict[str, list[Row]] = {}
        self._clients: set[str] | None = None
        self._taken: dict[str, set[int]] = {}
        self._pointed_to: dict[str, set[int]] = {}
        self._next: dict[str, int] = {}

    def restore(self) -> None:
        """Bring all of it back. Raises OfflineRefused where the database has other rows afterwards than it should."""
        coming = self._coming()
        for user in self._users:
            for row in _of(user, "users"):
                self._called["users"][row["id"]] = row["name"]
            for row in _of(user, "spawners"):
                self._called["spawners"].setdefault(row["id"], _called("spawners", row))
        self._put_users(coming)
        self._put("oauth_clients", [row for user in coming for row in _of(user, "oauth_clients")], {})
        self._put_spawners(coming)
        for user in coming:
            self._put_memberships(user)
        self._flush_memberships()
        for name in ("api_tokens", "oauth_codes", "shares", "share_codes"):
            if name in self._tables.hub and (self._with_tokens or name not in _CREDENTIALS):
                self._put(name, _once(row for user in coming for row in _of(user, name)), _POINTERS[name])
        for user in coming:
            self._point_again(
                [row for row in _of(user, "spawners") if not _is_mine(user, row)], "oauth_client_id", "oauth_clients"
            )
        self._put_nobodys()
        self._count_on()
        self._verify(coming)

    def notes(self) -> tuple[str, ...]:
        """What didn't come back, one sentence each."""
        return tuple(f"{count} rows of {table} didn't come back: {why}." for (table, why), count in self._out.items())

    def _coming(self) -> list[UndoUser]:
        users = self._tables["users"]
        cookies = {row[0]: row[1] for row in self._connection.execute(sa.select(users.c.cookie_id, users.c.name))}
        coming = []
        for user in self._users:
            mine = [row for row in _of(user, "users") if row["name"] == user.name]
            if user.name in self._ids["users"]:
                self.skipped.append((user.name, "there is a user of that name, who is left as they are"))
            elif not mine:
                self.skipped.append((user.name, "the undo file has no rows of theirs"))
            elif mine[0]["cookie_id"] in cookies:
                self.skipped.append((user.name, f"they are there, and called {cookies[mine[0]['cookie_id']]} now"))
            else:
                coming.append(user)
                self.restored.append(user.name)
        return coming

    def _put_users(self, coming: Sequence[UndoUser]) -> None:
        fresh = []
        for user in coming:
            row = {**_of(user, "users")[0], "admin": False}
            row["id"] = self._id_for("users", row["id"])
            self._ids["users"][user.name] = row["id"]
            fresh.append(row)
        self._insert("users", fresh)

    def _put_spawners(self, coming: Sequence[UndoUser]) -> None:
        identifiers = self._identifiers()
        fresh = []
        for user in coming:
            for row in map(dict, _of(user, "spawners")):
                if not _is_mine(user, row):
                    continue
                row["user_id"] = self._ids["users"][user.name]
                row["id"] = self._id_for("spawners", row["id"])
                # A hub would ask its spawner for a server that it has a row of, at its start.
                row["server_id"] = None
                if row["oauth_client_id"] not in identifiers:
                    row["oauth_client_id"] = None
                self._ids["spawners"][row["user_id"], row["name"] or ""] = row["id"]
                fresh.append(row)
        self._insert("spawners", fresh)

    def _put_memberships(self, user: UndoUser) -> None:
        user_id = self._ids["users"][user.name]
        for name, names, target in (
            ("user_group_map", user.groups, "groups"),
            ("user_role_map", user.roles, "roles"),
        ):
            column = prune_rows.MAPS[name][1][0]
            called = self._called[target]
            for wanted in names:
                now_id = self._ids[target].get(wanted)
                if now_id is None:
                    self._out[name, f"there is none of the {target} called {wanted} any more"] += 1
                    continue
                # Its other columns are in the row of the id that it had then.
                was = [row for row in _of(user, name) if called.get(row[column], None) == wanted]
                was = was or [row for row in _of(user, name) if row[column] == now_id and now_id not in called]
                rest = dict(was[0]) if was else {}
                if not was and "managed_by_auth" in self._tables[name].c:
                    rest["managed_by_auth"] = False
                self._memberships.setdefault(name, []).append({**rest, "user_id": user_id, column: now_id})

    def _flush_memberships(self) -> None:
        for name, fresh in self._memberships.items():
            self._insert(name, fresh)

    def _put(self, name: str, old: Iterable[Row], pointers: Mapping[str, str]) -> None:
        """Bring back these rows, each at its own id or another, if all that it points to is there."""
        unique = _UNIQUE.get(name)
        there: set[Any] = set()
        if unique is not None:
            there = set(self._connection.execute(sa.select(self._tables[name].c[unique])).scalars())
        fresh = []
        for row in map(dict, old):
            if unique is not None and row[unique] in there:
                self._out[name, "they are there"] += 1
            elif self._points(name, row, pointers):
                row["id"] = self._id_for(name, row["id"])
                if unique is not None:
                    there.add(row[unique])
                fresh.append(row)
        self._insert(name, fresh)

    def _points(self, name: str, row: dict[str, Any], pointers: Mapping[str, str]) -> bool:
        """Let that row point to what has the names now that it pointed to; False where one isn't there."""
        for column, target in pointers.items():
            if row[column] is None:
                continue
            now_id = self._now(target, row[column])
            if now_id is None:
                self._out[name, f"their {column} was of a user who isn't there, or isn't named in the file"] += 1
                return False
            row[column] = now_id
        client = row.get("client_id")
        if client is not None and client not in self._identifiers():
            self._out[name, "the OAuth client that they were made for isn't there"] += 1
            return False
        return True

    def _now(self, target: str, was: int) -> int | None:
        """The id that what had the id ``was`` has now."""
        called = self._called[target].get(was)
        if target == "spawners" and called is not None:
            user_id = self._now("users", called[0])
            called = None if user_id is None else (user_id, called[1])
        return None if called is None else self._ids[target].get(called)

    def _point_again(self, old: Iterable[Row], column: str, target: str) -> None:
        """Spawners that stayed, and lost what they pointed to by ``column``, get it back if they have nothing else by now."""
        spawners = self._tables["spawners"]
        for row in old:
            now_id = self._now("spawners", row["id"])
            pointed = row[column]
            if now_id is None or (target == "oauth_clients" and pointed not in self._identifiers()):
                self._out["spawners", f"their {column} is of what isn't there any more"] += 1
                continue
            change = sa.update(spawners).where(spawners.c.id == now_id, spawners.c[column].is_(None))
            if self._connection.execute(change.values({column: pointed})).rowcount:
                self.counts["spawners"] += 1

    def _put_nobodys(self) -> None:
        """Bring back the rows of no use, as they were or not at all: they must not become somebody's."""
        for name in ("servers", "api_tokens", "oauth_codes", "share_codes"):
            if name in self._tables.hub and (self._with_tokens or name not in _CREDENTIALS):
                old = [row for row in self._nobodys.get(name, ()) if self._is_free(name, row["id"])]
                self._put(name, old, _POINTERS.get(name, {}))
        for name, ends in prune_rows.MAPS.items():
            table = self._tables[name]
            fresh = []
            for row in self._nobodys.get(name, ()):
                if all(self._is_as_it_was(target, row[column]) for column, target in ends):
                    same = sa.select(sa.literal(1)).where(*(table.c[column] == row[column] for column, _ in ends))
                    if self._connection.execute(same).first() is None:
                        fresh.append(row)
                else:
                    self._out[name, "they led nowhere, and would be somebody's now"] += 1
            self._insert(name, fresh)
        servers = self._tables["servers"]
        taken = set(self._connection.execute(sa.select(servers.c.id)).scalars())
        lost = [row for row in self._nobodys.get("spawners", ()) if row["server_id"] not in taken]
        self._point_again(lost, "server_id", "servers")

    def _is_as_it_was(self, target: str, was: int) -> bool:
        """Whether that id is nobody's now, as it was, or of who had it."""
        called = self._called[target].get(was)
        if called is None:
            return self._is_free(target, was)
        return self._ids[target].get(called) == was

    def _refuse_columns(self, users: Sequence[UndoUser]) -> None:
        known = {name: set(table.c.keys()) for name, table in self._tables.hub.items()}
        seen: dict[str, set[str]] = {}
        for user in users:
            for name, of_table in (user.rows or {}).items():
                if name != NAMED and of_table:
                    seen.setdefault(name, set()).update(*of_table)
        for name, columns in seen.items():
            if name not in known or columns - known[name]:
                raise self._database.refused(
                    f"has no {name} with the columns {', '.join(sorted(columns - known.get(name, set())))} of the undo file",
                    "Start the hub, and bring the users back online.",
                )

    def _identifiers(self) -> set[str]:
        clients = self._tables["oauth_clients"]
        if self._clients is None:
            self._clients = set(self._connection.execute(sa.select(clients.c.identifier)).scalars())
        return self._clients

    def _ids_taken(self, name: str) -> set[int]:
        if name not in self._taken:
            self._taken[name] = set(self._connection.execute(sa.select(self._tables[name].c.id)).scalars())
        return self._taken[name]

    def _is_free(self, name: str, id_: int) -> bool:
        return id_ not in self._ids_taken(name)

    def _id_for(self, name: str, was: int) -> int:
        """``was`` where it is free, else an id that neither the database nor the file has.

        One that rows without an owner point to isn't free: its new owner would gain what they lead to.
        """
        taken = self._ids_taken(name)
        if name not in self._pointed_to:
            self._pointed_to[name] = prune_rows.pointed_to(self._connection, self._tables, name)
        if was in taken or was in self._pointed_to[name]:
            if name not in self._next:
                of_file = {row["id"] for user in self._users for row in _of(user, name)}
                self._next[name] = 1 + max(taken | self._pointed_to[name] | of_file, default=0)
            was, self._next[name] = self._next[name], self._next[name] + 1
        taken.add(was)
        return was

    def _insert(self, name: str, fresh: Sequence[Row]) -> None:
        if fresh:
            self._connection.execute(sa.insert(self._tables[name]), list(fresh))
            self.counts[name] += len(fresh)

    def _count_on(self) -> None:
        """Let PostgreSQL go on counting after the ids that were put in; the others do so by themselves."""
        if self._database.kind != "postgresql":
            return
        for name in self.counts:
            if "id" in self._tables[name].c:
                table = self._connection.dialect.identifier_preparer.quote(name)
                sequence = self._connection.exec_driver_sql(f"SELECT pg_get_serial_sequence('{table}', 'id')").scalar()
                if sequence is not None:
                    self._connection.exec_driver_sql(
                        f"SELECT setval('{sequence}', m.id) FROM (SELECT max(id) AS id FROM {table}) m, {sequence} s "  # noqa: S608
                        "WHERE m.id > s.last_value"
                    )

    def _verify(self, coming: Sequence[UndoUser]) -> None:
        there = prune_rows.names_by_id(self._connection, self._tables["users"])
        missing = [user.name for user in coming if there.get(self._ids["users"][user.name]) != user.name]
        if missing:
            raise self._database.refused(
                f"doesn't have {len(missing)} of the users that were put in", "A trigger may remove them."
            )
        for name in ("user_group_map", "user_role_map"):
            _, (column, target) = prune_rows.MAPS[name]
            map_, ids = self._tables[name], {self._ids["users"][user.name]: user for user in coming}
            found: dict[int, set[int]] = {}
            for batch in prune_rows.batches(ids):
                statement = sa.select(map_.c.user_id, map_.c[column]).where(prune_rows.these(map_.c.user_id, batch))
                for user_id, id_ in self._connection.execute(statement):
                    found.setdefault(user_id, set()).add(id_)
            for user_id, user in ids.items():
                names = user.groups if target == "groups" else user.roles
                expected = {self._ids[target][one] for one in names if one in self._ids[target]}
                if found.get(user_id, set()) != expected:
                    raise self._database.refused(
                        f"gives {user.name} other {target} than the undo file has",
                        "A trigger may do so, or rows that were there before: find out where they come from.",
                    )


_POINTERS: Mapping[str, Mapping[str, str]] = {
    "api_tokens": {"user_id": "users", "service_id": "services"},
    "oauth_codes": {"user_id": "users"},
    "shares": {"owner_id": "users", "user_id": "users", "group_id": "groups", "spawner_id": "spawners"},
    "share_codes": {"owner_id": "users", "spawner_id": "spawners"},
}
"""The columns of rows that are brought back by which they point to others, with the table that each points to."""


def _of(user: UndoUser, name: str) -> Sequence[Row]:
    return (user.rows or {}).get(name, ())


def _is_mine(user: UndoUser, spawner: Row) -> bool:
    return bool(spawner["user_id"] == _of(user, "users")[0]["id"])


def _called(table: str, row: Row) -> Any:
    return (row["user_id"], row["name"] or "") if table == "spawners" else row["name"]


def _once(old: Iterable[Row]) -> list[Row]:
    """Each row once: one that hangs on two users may be with both."""
    return list({row["id"]: row for row in old}.values())
