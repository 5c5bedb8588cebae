"""A plan for a hub that doesn't run, made of its database alone."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from datetime import datetime
from pathlib import Path

from hubguard.errors import HubGuardError
from hubguard.hub.accounts import read_accounts
from hubguard.hub.nouns import ORMCounts
from hubguard.journal.model import Exemption
from hubguard.journal.tables import metadata as journal_tables
from hubguard.prune.decide import plan, stale
from hubguard.prune.model import Protection, PrunePlan, PruneVerdict, StaleCriteria, Storage, Use
from hubguard.prune.offline import rows as prune_rows
from hubguard.prune.offline.database import Database, Tables

_KNOWN_OTHERS: Mapping[str, str] = {
    "users_info": "NativeAuthenticator's, which still lets those users log in with their passwords: delete their rows there"
    " yourself before the hub starts",
    **dict.fromkeys(journal_tables.tables, "HubGuard's journal"),
}


def plan_offline(
    url: str,
    folder: Path,
    criteria: StaleCriteria,
    protection: Protection,
    *,
    now: datetime,
    made_by: str,
    life_s: float,
    cap: int | None,
    storage: Storage,
    exemptions: Sequence[Exemption] = (),
    uses: Mapping[str, Use] | None = None,
    journal_known: bool = True,
    housekeeping: bool,
    ignore_unknown: bool = False,
    judged: Callable[[Sequence[PruneVerdict]], None] = lambda verdicts: None,
) -> PrunePlan:
    """The plan to delete the users that ``criteria`` select, in the database at ``url``; it changes nothing.

    A relative SQLite file is one below ``folder``. It may be made while a hub runs, and is applied when none does. ``cap`` is
    the most users it may have, None: all. ``journal_known``: ``exemptions`` and ``uses`` are what HubGuard's own journal has;
    else that is a caution. ``housekeeping``: it also removes the rows that are of no use to the hub. A plan without anybody
    in it is one, too. ``judged`` is called with the verdicts on all users.

    Raises HubGuardError for a listed name that is no user's, unless ``ignore_unknown``, ConfigError for criteria without a
    limit, HubDBError where the database can't be read, and OfflineRefused where it isn't one of JupyterHub 5 or 6.
    """
    criteria = stale.checked(criteria)
    database = Database(url, folder)
    with database.reader.transaction() as connection:
        tables = database.tables(connection)
    reading = read_accounts(database.reader, None, None)
    unknown = plan.unmatched(criteria.listed or (), {account.name for account in reading.accounts})
    if unknown and not ignore_unknown:
        raise HubGuardError(plan.unmatched_refusal(unknown))
    verdicts = stale.judge(reading.accounts, criteria, protection, exemptions, uses or {}, now)
    judged(verdicts)
    going = {verdict.account.id or 0 for verdict in plan.chosen(verdicts, cap)}
    with database.reader.transaction() as connection:
        gone = prune_rows.rows_of(connection, tables, going)
        useless = prune_rows.useless(connection, tables, now, gone, prune_rows.ids_of(gone)) if housekeeping else {}
    highest = max((account.id or 0 for account in reading.accounts), default=0)
    named_servers = any(server.name for verdict in verdicts if verdict.stale for server in verdict.account.servers)
    return plan.freeze(
        verdicts,
        criteria,
        now,
        made_by=made_by,
        life_s=life_s,
        cap=cap,
        users_total=reading.users_total,
        storage=storage,
        cautions=plan.cautions(storage, protection, tokens_known=True, journal_known=journal_known),
        lost=(
            *plan.lost(
                storage,
                offline=True,
                rows=True,
                named_servers=named_servers,
                # The next new user gets the number after the highest that is left.
                reuses_ids=database.kind == "sqlite"
                and any(verdict.stale and verdict.account.id == highest for verdict in verdicts),
            ),
            *rows_that_stay(tables),
        ),
        protection=protection,
        rows=prune_rows.counted(gone),
        offline=True,
        database=database.place,
        revision=tables.revision,
        housekeeping=_counts(useless) if housekeeping else None,
    )


def rows_that_stay(tables: Tables) -> tuple[str, ...]:
    """What tables that aren't the hub's keep of users who go, in at most one sentence."""
    if not tables.others:
        return ()
    others = (f"{name} ({_KNOWN_OTHERS[name]})" if name in _KNOWN_OTHERS else name for name in tables.others)
    return (
        "The database has tables that aren't the hub's, and what they say of these users stays: "
        + ", ".join(others)
        + ".",
    )


def _counts(useless: prune_rows.Rows) -> ORMCounts:
    """The rows of no use that go with nobody in the plan."""
    count = {name: len(of_table) for name, of_table in useless.items()}
    return ORMCounts(
        servers_of_nobody=count.get("servers", 0),
        spawners_without_server=count.get("spawners", 0),
        expired_tokens=count.get("api_tokens", 0),
        expired_share_codes=count.get("share_codes", 0),
        expired_codes=count.get("oauth_codes", 0),
        memberships_of_nobody=sum(count.get(name, 0) for name in prune_rows.MAPS),
    )
