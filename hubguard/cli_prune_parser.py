"""The arguments of ``hubguard prune``."""

from __future__ import annotations

import argparse
import math
import os
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

from hubguard.config import DAY_S
from hubguard.web.times import span_s

LONGEST_S = 3660 * DAY_S
"""The longest limit, as in the settings: ten years."""

_URL = "sqlite:////srv/jupyterhub/jupyterhub.sqlite"


def add_command(commands: Any, run: Callable[[argparse.Namespace], int]) -> None:
    """``prune`` is one of ``commands``; ``run`` is what each of its subcommands runs, told apart by ``action``."""
    text = "delete stale users by a plan that people look at first, and bring them back"
    prune: argparse.ArgumentParser = commands.add_parser("prune", help=text, description=text)
    actions = prune.add_subparsers(dest="action", required=True, metavar="ACTION")

    def action(name: str, text: str) -> argparse.ArgumentParser:
        made: argparse.ArgumentParser = actions.add_parser(name, help=text, description=text)
        made.add_argument("--debug", action="store_true", help="log more")
        made.add_argument(
            "--config",
            type=Path,
            action="append",
            metavar="FILE",
            help="a config file with c.HubGuard… lines; jupyterhub_config.py will do, and offline tells whom the hub's config"
            " names (default: $HUBGUARD_CONFIG); may be given more than once",
        )
        made.set_defaults(run=run, offline=False)
        return made

    _plan(action("plan", "say who would be deleted, why, and what can't come back; nothing is changed"))
    _apply(action("apply", "carry out a plan that was looked at: its undo file is written first"))

    status = action("status", "say how a plan stands, or what is under way")
    status.add_argument("plan", nargs="?", metavar="PLAN", help="its digest, or the beginning of that, or its file")
    status.add_argument("--follow", action="store_true", help="stay until it is over")
    _json(status)

    for name, text in (
        ("pause", "delete nobody more by a plan until it is resumed"),
        ("resume", "go on with a paused plan where it stopped"),
        ("cancel", "delete nobody more by a plan, for good"),
    ):
        turn = action(name, text)
        turn.add_argument("plan", metavar="PLAN", help="its digest, or the beginning of that, or its file")
        if name == "resume":
            turn.add_argument(
                "--acknowledge",
                action="append",
                default=[],
                metavar="NAME",
                help="what must be acknowledged since the hub has changed, by its name; may be given more than once",
            )
        _why(turn)
        _dry_run(turn)
        _json(turn)

    _json(action("history", "list plans, newest first: who, when, what came of them, and where their undo files are"))

    why = action("why", "say why a user would be deleted, or is kept, by a reading of now")
    why.add_argument("user", metavar="USER")
    _json(why)

    export = action("export", "print a plan with what came of each user")
    export.add_argument("plan", metavar="PLAN", help="its digest, or the beginning of that, or its file")
    kind = export.add_mutually_exclusive_group(required=True)
    kind.add_argument("--csv", action="store_true", help="as a table")
    kind.add_argument("--json", action="store_true", help="as the API gives it")

    _restore(action("restore", "bring back whom a plan deleted, from its undo file"))


def _plan(plan: argparse.ArgumentParser) -> None:
    _criteria(plan)
    plan.add_argument("-o", "--output", type=Path, metavar="FILE", help="keep the plan in a file, for review and apply")
    plan.add_argument("--csv", type=Path, metavar="FILE", help="write its users as a table, too")
    _json(plan)
    _offline(plan)
    plan.add_argument(
        "--housekeeping",
        action="store_true",
        help="offline: rows of no use go, too (expired tokens and codes, servers and spawners of nobody)",
    )


def _apply(apply: argparse.ArgumentParser) -> None:
    apply.add_argument("plan", metavar="PLAN", help="the file of the plan, or its digest (or the beginning of that)")
    _count(apply, "how many users the plan has")
    _acknowledge(apply, "a caution, by its name; may be given more than once")
    _why(apply)
    apply.add_argument(
        "--wait",
        action=argparse.BooleanOptionalAction,
        default=True,
        help="stay until it is over (as without it), or only begin it",
    )
    _dry_run(apply)
    _json(apply)
    _offline(apply)
    apply.add_argument(
        "--undo-folder",
        type=Path,
        metavar="FOLDER",
        help="offline: where the undo file goes (HubGuardPrune.undo_folder)",
    )


def _restore(restore: argparse.ArgumentParser) -> None:
    restore.add_argument(
        "undo", metavar="FILE", help="the undo file; with a guard that runs, the plan's digest will do"
    )
    _count(restore, "how many users that is")
    _why(restore)
    _dry_run(restore)
    _json(restore)
    _offline(restore)
    _acknowledge(restore, "offline: a caution, by its name; may be given more than once")
    restore.add_argument(
        "--from-other-database",
        action="store_true",
        help="offline: the undo file is of another database than --hub-db, as where the hub has moved",
    )
    restore.add_argument("--with-tokens", action="store_true", help="offline: their API tokens work again, too")


def _criteria(plan: argparse.ArgumentParser) -> None:
    plan.add_argument(
        "--inactive-for",
        type=_limit,
        metavar="SPAN",
        help="whoever was last active so long ago: 180d, 26w; 0: none of those (default: HubGuardPrune.inactive_for_s)",
    )
    plan.add_argument(
        "--never-active-for",
        type=_limit,
        metavar="SPAN",
        help="whoever never was, and was made so long ago; 0: none of those (default: HubGuardPrune.never_active_for_s)",
    )
    for option, text in (
        ("--group", "only members of this group; may be given more than once, then of one of them"),
        ("--role", "only users with this role"),
        ("--name", "only users whose name this glob matches, such as 'guest-*'"),
    ):
        plan.add_argument(option, action="append", metavar=option.strip("-").upper(), help=text)
    plan.add_argument("--list", type=Path, metavar="FILE", help="only users named in this file, one a line")


def _offline(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "--offline", action="store_true", help="straight in the hub's database, for a hub that isn't running"
    )
    parser.add_argument(
        "--hub-db",
        "--hub-db-url",
        default=os.environ.get("HUBGUARD_HUB_DB_URL"),
        metavar="URL",
        help=f"offline: the hub's database, such as {_URL} (default: $HUBGUARD_HUB_DB_URL)",
    )


def _json(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--json", action="store_true", help="as JSON")


def _acknowledge(parser: argparse.ArgumentParser, text: str) -> None:
    parser.add_argument("--acknowledge", action="append", default=[], metavar="NAME", help=text)


def _why(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--why", default="", help="a reason, for the journal")


def _dry_run(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--dry-run", action="store_true", help="say what would be done, and do nothing")


def _count(parser: argparse.ArgumentParser, what: str) -> None:
    parser.add_argument("--count", type=_whole, metavar="N", help=f"{what}, where nobody can be asked")


def _limit(text: str) -> float:
    seconds = float(text) if re.fullmatch(r"\d{1,10}(\.\d{1,3})?", text, re.ASCII) else span_s(text)
    if not (math.isfinite(seconds) and 0 <= seconds <= LONGEST_S):
        raise ValueError(text)
    return seconds


def _whole(text: str) -> int:
    value = int(text)
    if value < 0:
        raise ValueError(text)
    return value


# argparse names a type in its message: "argument --count: invalid count of 0 or more value: '-1'".
_limit.__name__ = "span such as 180d, 26w or 12h, or a number of seconds, of at most ten years"
_whole.__name__ = "count of 0 or more"
