"""The arguments of the commands of pruning."""

from __future__ import annotations

import argparse
import os
from datetime import datetime, timezone
from functools import partial
from pathlib import Path

from hubguard.console import Context, add_config, add_json, bounded, count
from hubguard.errors import ConfigError
from hubguard.prune import cli
from hubguard.times import DAY_S, ago_s, point

LONGEST_S = 3660 * DAY_S
"""Maximum of a limit, as in the settings: ten years."""

OFFLINE_ONLY = ("hub_db", "housekeeping", "undo_folder", "with_tokens", "from_other_database")
"""The options that only ``--offline`` understands."""

PLAN = "digest of the plan or its beginning, or the plan's file"
URL = "sqlite:////srv/jupyterhub/jupyterhub.sqlite"


def run(arguments: argparse.Namespace, context: Context) -> int:
    """Run one subcommand, by the running guard or offline."""
    if arguments.offline:
        # Needs none of the guard's code, and most of the hub's.
        from hubguard.prune.offline import cli as offline_cli

        return offline_cli.run(arguments, context)
    if wanted := [name for name in OFFLINE_ONLY if _given(arguments, name)]:
        raise ConfigError(f"--{wanted[0].replace('_', '-')}", "works only with --offline. Nothing was done")
    return cli.run(arguments, context)


def _given(arguments: argparse.Namespace, name: str) -> bool:
    """Whether that option was given on the command line, rather than by a variable of the environment."""
    value = getattr(arguments, name, None)
    return bool(value) and value != os.environ.get("HUBGUARD_HUB_DB_URL")


def add_prune(parser: argparse.ArgumentParser) -> None:
    """The subcommands of ``hubguard prune`` and their options."""
    actions = parser.add_subparsers(dest="action", required=True, metavar="ACTION")

    def action(name: str, text: str) -> argparse.ArgumentParser:
        made: argparse.ArgumentParser = actions.add_parser(name, help=text, description=text)
        add_config(made)
        made.set_defaults(run=run, offline=False)
        return made

    _add_plan(action("plan", "show who would be deleted, why, and what can't be restored; changes nothing"))
    _add_apply(action("apply", "carry out a reviewed plan; writes its undo file first"))

    status = action("status", "show the state of a plan, or of the one under way")
    status.add_argument("plan", nargs="?", metavar="PLAN", help=PLAN)
    status.add_argument("--follow", action="store_true", help="stay until it has ended")
    add_json(status)

    for name, text in (
        ("pause", "delete no more users by a plan until you resume it"),
        ("resume", "continue a paused plan where it stopped"),
        ("cancel", "delete no more users by a plan, for good"),
    ):
        turn = action(name, text)
        turn.add_argument("plan", metavar="PLAN", help=PLAN)
        if name == "resume":
            _add_acknowledge(turn, "name of a caution that is new since the hub has changed; can be repeated")
        _add_why(turn)
        _add_dry_run(turn)
        add_json(turn)

    history = action("history", "list plans, newest first, with who applied them, their outcome and their undo file")
    history.add_argument("--user", default="", help="only plans with a user of this name")
    add_json(history)

    why = action("why", "explain why a user would be deleted or is kept, by a fresh reading")
    why.add_argument("user", metavar="USER")
    _add_limits(why)
    add_json(why)

    export = action("export", "print a plan with the outcome of each user")
    export.add_argument("plan", metavar="PLAN", help=PLAN)
    kind = export.add_mutually_exclusive_group(required=True)
    kind.add_argument("--csv", action="store_true", help="print a table")
    kind.add_argument("--json", action="store_true", help="print JSON, as the API returns it")

    _add_restore(action("restore", "restore the users that a plan deleted, from its undo file"))


def _add_plan(plan: argparse.ArgumentParser) -> None:
    _add_criteria(plan)
    plan.add_argument(
        "-o", "--output", type=Path, metavar="FILE", help="write the plan to a file, for review and apply"
    )
    plan.add_argument("--csv", type=Path, metavar="FILE", help="also write its users to a table")
    plan.add_argument("--kept", type=Path, metavar="FILE", help="also write who is kept, and why, to a table (CSV)")
    add_json(plan)
    _add_offline(plan)
    plan.add_argument(
        "--housekeeping",
        action="store_true",
        help="offline: also delete useless rows (expired tokens and codes, servers and spawners without owner)",
    )


def _add_apply(apply: argparse.ArgumentParser) -> None:
    apply.add_argument("plan", metavar="PLAN", help="file of the plan, or its digest (or the beginning of that)")
    _add_count(apply, "number of users in the plan")
    _add_acknowledge(apply, "name of a caution; can be repeated")
    _add_why(apply)
    apply.add_argument(
        "--wait",
        action=argparse.BooleanOptionalAction,
        default=True,
        help="stay until it has ended (the default), or only start it",
    )
    _add_dry_run(apply)
    add_json(apply)
    _add_offline(apply)
    apply.add_argument(
        "--undo-folder",
        type=Path,
        metavar="FOLDER",
        help="offline: folder for the undo file (default: HubGuardPrune.undo_folder)",
    )


def _add_restore(restore: argparse.ArgumentParser) -> None:
    restore.add_argument("undo", metavar="FILE", help="undo file; the plan's digest also works if a guard is running")
    _add_count(restore, "number of users to restore")
    _add_why(restore)
    _add_dry_run(restore)
    add_json(restore)
    _add_offline(restore)
    _add_acknowledge(restore, "offline: name of a caution; can be repeated")
    restore.add_argument(
        "--from-other-database",
        action="store_true",
        help="offline: allow an undo file of another database than --hub-db, for example after the hub has moved",
    )
    restore.add_argument("--with-tokens", action="store_true", help="offline: also make their API tokens work again")


def _add_criteria(plan: argparse.ArgumentParser) -> None:
    _add_limits(plan)
    for option, text in (
        ("--group", "only members of this group; can be repeated, then of any of them"),
        ("--role", "only users with this role; can be repeated"),
        ("--name", "only users whose name matches this glob, for example 'guest-*'; can be repeated"),
        ("--not-group", "no members of this group; can be repeated"),
        ("--not-role", "no users with this role; can be repeated"),
    ):
        plan.add_argument(option, action="append", metavar=option.strip("-").rpartition("-")[2].upper(), help=text)
    created = bounded(
        partial(point, now=datetime.now(timezone.utc)),
        noun="date such as 2026-06-01 (its start, UTC), a time such as 2026-06-01T12:00, or a span such as 90d or 6months",
    )
    for option, text in (("--created-before", "created before"), ("--created-after", "created on or after")):
        plan.add_argument(
            option, type=created, metavar="WHEN", help=f"only users {text} this date (its start, UTC), or this long ago"
        )
    plan.add_argument("--list", type=Path, metavar="FILE", help="only users named in this file, one per line")
    plan.add_argument(
        "--ignore-unknown", action="store_true", help="leave out names in the list that are no user's, not refuse them"
    )


def _add_limits(plan: argparse.ArgumentParser) -> None:
    limit = bounded(
        partial(ago_s, now=datetime.now(timezone.utc)),
        0,
        LONGEST_S,
        noun="span with its unit (s, m, h, d, w, months), such as 180d, 26w or 6months, or a date such as 2026-06-01,"
        " within the last ten years",
    )
    plan.add_argument(
        "--inactive-for",
        type=limit,
        metavar="SPAN",
        help="users last active at least this long ago: 180d, 26w, 6months, or before a date: 2026-06-01; 0: no such users"
        " (default: HubGuardPrune.inactive_for_s)",
    )
    plan.add_argument(
        "--never-active-for",
        type=limit,
        metavar="SPAN",
        help="users never active and created at least this long ago, or before a date; 0: no such users"
        " (default: HubGuardPrune.never_active_for_s)",
    )


def _add_offline(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--offline", action="store_true", help="work in the database of a hub that isn't running")
    parser.add_argument(
        "--hub-db",
        "--hub-db-url",
        default=os.environ.get("HUBGUARD_HUB_DB_URL"),
        metavar="URL",
        help=f"offline: the hub's database, for example {URL} (default: $HUBGUARD_HUB_DB_URL)",
    )


def _add_acknowledge(parser: argparse.ArgumentParser, text: str) -> None:
    parser.add_argument("--acknowledge", action="append", default=[], metavar="NAME", help=text)


def _add_why(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--why", default="", help="reason, for the journal")


def _add_dry_run(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--dry-run", action="store_true", help="print what would be done, and do nothing")


def _add_count(parser: argparse.ArgumentParser, what: str) -> None:
    parser.add_argument("--count", type=count(), metavar="N", help=f"{what} (required when not run interactively)")


ARGUMENTS = {"prune": add_prune}
