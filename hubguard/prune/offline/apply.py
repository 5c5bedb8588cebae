"""Carrying out an offline plan: everything in one transaction, with everybody else kept out of the database."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from datetime import datetime
from pathlib import Path

import sqlalchemy as sa
from sqlalchemy.engine import Connection

from hubguard.hub.accounts import NAMED
from hubguard.hub.nouns import Account, AccountServer, UndoUser
from hubguard.hub.tables import as_times, groups_and_roles
from hubguard.journal.model import Exemption
from hubguard.prune import undo_file as prune_undo_file
from hubguard.prune.decide import plan as prune_plan
from hubguard.prune.decide import stale
from hubguard.prune.model import Deletion, Protection, PrunePlan, UndoHead, Use
from hubguard.prune.offline import rows as prune_rows
from hubguard.prune.offline.alone import opened
from hubguard.prune.offline.backup import back_up
from hubguard.prune.offline.database import Database, Tables
from hubguard.prune.offline.plan import rows_that_stay
from hubguard.prune.offline.rows import Row, Rows

ROWS_AT_ONCE = 5_000
"""Maximum rows of no use in one line of an undo file."""


@dataclass(frozen=True, slots=True)
class Applied:
    """What was done to the hub's database, or in a dry run would have been.

    ``deleted`` has the users' names, ``gone`` those of users that somebody else had deleted, and ``skipped`` those left
    alone, each with why, all in the plan's order. ``rows`` counts
    the rows that went by table (of ``spawners``, also those that lost a server that wasn't there). ``undo_file`` brings it
    all back, ``undo_sha256`` (hex) is its checksum; ``backup`` is the copy of a SQLite database. None: there is none, as in a
    dry run, or where nothing was to be deleted. ``notes`` says what stays behind and what couldn't be seen.
    """

    deleted: tuple[str, ...]
    skipped: tuple[tuple[str, str], ...]
    rows: Mapping[str, int] = field(hash=False)
    gone: tuple[str, ...] = ()
    undo_file: Path | None = None
    undo_sha256: str | None = None
    backup: Path | None = None
    notes: tuple[str, ...] = ()
    dry_run: bool = False


def apply_offline(
    url: str,
    folder: Path,
    plan: PrunePlan,
    *,
    count: int,
    acknowledged: Sequence[str],
    protection: Protection,
    undo_folder: Path,
    now: Callable[[], datetime],
    actor: str,
    hub_api_url: str | None,
    also_at: Sequence[str] = (),
    exemptions: Sequence[Exemption] = (),
    uses: Mapping[str, Use] | None = None,
    dry_run: bool = False,
    progress: Callable[[str], None] | None = None,
) -> Applied:
    """Delete the users of ``plan`` from the hub's database at ``url``, all in one transaction, or none of them.

    Each is read and judged again under lock, and left alone where anything has changed. Before the first row goes, all that
    go are in an undo file in ``undo_folder``, and a SQLite database has a copy beside it. ``count`` and ``acknowledged`` are
    as for a plan online; what of the hub can't be seen has to be acknowledged, too (see in_use.cautions). ``hub_api_url`` is
    where the hub would answer, None: not known; ``also_at`` are further such addresses. A dry run does the same, takes it all
    back at the end, and writes no file. ``progress`` is told each step in words.

    Raises OfflineRefused, HubDBError or UndoError, with nothing changed: a hub uses the database, the plan is for another
    one or may not be begun, the tables are of an unknown revision, or copy or undo file can't be written.
    """
    tell = progress or (lambda step: None)
    database = Database(url, folder)
    at = now()
    _refuse_plan(database, plan, count=count, at=at, acknowledged=acknowledged)
    tell("Looking whether a hub uses the database")
    with opened(database, now=at, hub_api_url=hub_api_url, also_at=also_at, acknowledged=acknowledged) as ours:
        backup = None
        if database.file is not None and not dry_run:
            tell("Copying the database")
            backup = back_up(database, ours.connection, now())
        written = None
        try:
            with ours.changing(
                revision=plan.revision, mismatch=("the plan is for", "Make the plan again."), dry_run=dry_run
            ) as (connection, tables, seen):
                tell("Reading the users again")
                going, skipped, absent = _look_again(
                    database, connection, tables, plan, protection, exemptions, uses or {}, at
                )
                gone = prune_rows.rows_of(connection, tables, going)
                useless: Rows = {}
                if plan.housekeeping is not None:
                    useless = prune_rows.useless(connection, tables, at, gone, prune_rows.ids_of(gone))
                notes = _notes(database, tables, plan, going, seen)
                counts: dict[str, int] = {}
                if going or useless:
                    if not dry_run:
                        tell("Writing the undo file")
                        head = UndoHead(plan.digest, at, actor, database.place, tables.revision)
                        written = prune_undo_file.write(
                            undo_folder, head, _undo_users(connection, tables, gone, useless)
                        )
                    tell("Deleting")
                    counts = prune_rows.delete_useless(database, connection, tables, useless)
                    for name, went in prune_rows.delete_users(database, connection, tables, gone).items():
                        counts[name] = counts.get(name, 0) + went
                    _verify(database, connection, tables, going)
        finally:
            # Before the undo file was there, nothing was deleted.
            if backup is not None and written is None:
                backup.unlink()
    tell("Nothing was changed" if written is None else "Done")
    return Applied(
        tuple(going.values()),
        skipped,
        counts,
        gone=absent,
        undo_file=written.path if written else None,
        undo_sha256=written.sha256 if written else None,
        backup=backup if written else None,
        notes=notes,
        dry_run=dry_run,
    )


def _refuse_plan(database: Database, plan: PrunePlan, *, count: int, at: datetime, acknowledged: Sequence[str]) -> None:
    if not plan.offline:
        raise database.refused(
            "isn't touched by a plan that was made for a running hub", "Make one with hubguard prune plan --offline."
        )
    if plan.database != database.place:
        raise database.refused(f"isn't the one that the plan is for ({plan.database})", "Name that one, or plan again.")
    if why := prune_plan.refusal(plan, count=count, now=at, acknowledged=acknowledged):
        raise database.refused("isn't touched", why)


def _look_again(
    database: Database,
    connection: Connection,
    tables: Tables,
    plan: PrunePlan,
    protection: Protection,
    exemptions: Sequence[Exemption],
    uses: Mapping[str, Use],
    at: datetime,
) -> tuple[dict[int, str], tuple[tuple[str, str], ...], tuple[str, ...]]:
    """Who still is to be deleted, by id; who isn't, each with why; and who isn't there any more."""
    ids = {name: id_ for id_, name in prune_rows.names_by_id(connection, tables["users"]).items()}
    wanted = {ids[deletion.user]: deletion for deletion in plan.deletions if deletion.user in ids}
    accounts = _accounts(connection, tables, wanted)
    protection = prune_plan.protected(plan, protection)
    going: dict[int, str] = {}
    skipped: list[tuple[str, str]] = []
    absent: list[str] = []
    for deletion in plan.deletions:
        account = accounts.get(deletion.user)
        if account is None or account.id is None:
            absent.append(deletion.user)
            continue
        why = stale.second_look(deletion, account, plan.criteria, protection, exemptions, uses.get(deletion.user), at)
        if why is not None:
            skipped.append((deletion.user, why))
        else:
            going[account.id] = deletion.user
    return going, tuple(skipped), tuple(absent)


def _accounts(connection: Connection, tables: Tables, wanted: Mapping[int, Deletion]) -> dict[str, Account]:
    """These users as they are now, by name."""
    users, spawners, tokens = tables["users"], tables["spawners"], tables["api_tokens"]
    # As the plan was made: who has got a protected role since, through a group, must be kept like who has it themselves.
    groups, roles = groups_and_roles(connection, wanted)
    servers: dict[int, list[AccountServer]] = {}
    used: dict[int, object] = {}
    accounts = {}
    for batch in prune_rows.batches(wanted):
        columns = (spawners.c.user_id, spawners.c.name, spawners.c.server_id)
        of_users = connection.execute(sa.select(*columns).where(prune_rows.these(spawners.c.user_id, batch)))
        for user_id, name, server_id in of_users.all():
            servers.setdefault(user_id, []).append(AccountServer(name or "", active=server_id is not None))
        last = sa.func.max(tokens.c.last_activity)
        last_used = (
            sa.select(tokens.c.user_id, last)
            .where(prune_rows.these(tokens.c.user_id, batch))
            .group_by(tokens.c.user_id)
        )
        used.update({row[0]: row[1] for row in connection.execute(last_used)})
        columns_of_user = (users.c.id, users.c.name, users.c.admin, users.c.created, users.c.last_activity)
        for id_, name, admin, *stored in connection.execute(
            sa.select(*columns_of_user).where(prune_rows.these(users.c.id, batch))
        ).all():
            (created, last_activity, used_at), known = as_times(*stored, used.get(id_))
            accounts[name] = Account(
                name=name,
                admin=bool(admin),
                created=created,
                last_activity=last_activity,
                groups=groups[id_],
                roles=roles[id_],
                servers=tuple(sorted(servers.get(id_, ()), key=lambda server: server.name)),
                servers_whole=True,
                token_used_at=used_at,
                id=id_,
                times_known=known,
            )
    return accounts


def _undo_users(connection: Connection, tables: Tables, gone: Mapping[int, Rows], useless: Rows) -> Iterator[UndoUser]:
    """All that goes: first, without a name, what is nobody's and what others are called, then one a user, by name."""
    nobodys = {**useless, NAMED: prune_rows.named(connection, tables, (useless, *gone.values()), gone)}
    for name, of_table in nobodys.items():
        for first in range(0, len(of_table), ROWS_AT_ONCE):
            yield UndoUser(name="", rows={name: tuple(of_table[first : first + ROWS_AT_ONCE])})
    groups, roles = (prune_rows.names_by_id(connection, tables[name]) for name in ("groups", "roles"))
    for of_user in sorted(gone.values(), key=_name):
        yield prune_rows.undo_user(of_user, groups, roles)


def _name(of_user: Rows) -> str:
    user: Row = of_user["users"][0]
    return str(user["name"])


def _verify(database: Database, connection: Connection, tables: Tables, going: Mapping[int, str]) -> None:
    users = tables["users"]
    for batch in prune_rows.batches(going):
        left = connection.execute(
            sa.select(sa.func.count()).select_from(users).where(prune_rows.these(users.c.id, batch))
        )
        if count := left.scalar_one():
            raise database.refused(
                f"still has {count} of the users that were deleted", "A trigger may bring them back."
            )


def _notes(
    database: Database, tables: Tables, plan: PrunePlan, going: Mapping[int, str], seen: tuple[str, ...]
) -> tuple[str, ...]:
    notes = list(seen)
    if database.file is None:
        notes.append(f"No copy of a {database.kind} database is made: the undo file is what brings the rows back.")
    if going:
        notes.append(
            f"No spawner and no authenticator is asked: backends and volumes of the {len(going)} users stay as they are "
            f"({plan.storage.why})"
        )
    notes += rows_that_stay(tables)
    return tuple(notes)
