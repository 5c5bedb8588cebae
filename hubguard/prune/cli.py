"""``hubguard prune``: who is stale, plans, what comes of them, and the way back, asked of the running guard."""

from __future__ import annotations

import argparse
import asyncio
import hashlib
import json
import math
import os
import re
import shlex
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from datetime import datetime, timezone
from pathlib import Path
from typing import Any
from urllib.parse import quote

from hubguard import words
from hubguard.console import FAILED, FINE, HELD
from hubguard.errors import ConfigError, HubGuardError
from hubguard.prune import undo_file
from hubguard.prune.confirm import (
    Progress,
    Say,
    confirmed,
    criteria_of,
    plan_in,
    plan_text,
    show_plan,
    to_people,
    typed_count,
)
from hubguard.prune.decide import plan as prune_plan
from hubguard.prune.model import PrunePlan, PruneState
from hubguard.status import Mode
from hubguard.times import DAY_S, span_s
from hubguard.web.client import Refused, RunningGuard

PAGE = 1000
POLL_S = 2.0
"""Seconds from one question for how a plan stands to the next."""


AWAY_S = 300.0
"""A guard that doesn't answer for so long, while it is being followed, isn't followed any longer."""

LONG_S = 4 * 3600.0
"""The longest that planning, beginning and restoring may take, by the budget, on a hub with very many users."""


_DIGEST = re.compile("[0-9a-f]{6,64}")


@dataclass(frozen=True, slots=True)
class Asked:
    """Where commands ask: ``find`` gives the guard that runs, anew where it may have changed. ``asks``: somebody is there."""

    find: Callable[[], RunningGuard]
    say: Say
    asks: bool


# -- the commands ---------------------------------------------------------------------------------------------------------


async def run(arguments: argparse.Namespace, asked: Asked) -> int:
    """One command; its exit code. Raises ConfigError, HubGuardError."""
    command = {
        "plan": _plan,
        "apply": _apply,
        "status": _status,
        "pause": _turn,
        "resume": _turn,
        "cancel": _turn,
        "history": _history,
        "why": _why,
        "export": _export,
        "restore": _restore,
    }[arguments.action]
    return await command(arguments, asked, asked.find())


async def _plan(arguments: argparse.Namespace, asked: Asked, guard: RunningGuard) -> int:
    plan = await guard.ask("POST", "api/v1/plans", criteria_of(arguments), within_s=LONG_S)
    show_plan(arguments, prune_plan.from_dict(plan), asked.say)
    return FINE


async def _apply(arguments: argparse.Namespace, asked: Asked, guard: RunningGuard) -> int:
    digest = await _digest(guard, arguments.plan)
    told = await guard.ask("GET", f"api/v1/plans/{digest}")
    plan = prune_plan.from_dict(told["plan"])
    if arguments.dry_run:
        standing = told["run"]
        begun = standing["state"] != PruneState.PLANNED.value
        refused = f"The plan is {standing['state']}: it was begun already." if begun else None
        return dry_run(arguments, plan, asked.say, refused)
    if not arguments.json:
        asked.say(plan_text(plan))
    count, acknowledged = await asyncio.to_thread(confirmed, plan, arguments, asks=asked.asks)
    body = {"count": count, "why": arguments.why, "acknowledged": acknowledged}
    standing = await _unless_held(guard, digest, "apply", body)
    if standing is None:
        return HELD
    if arguments.wait:
        to_people(f"It is under way. Leaving this command ends nothing; hubguard prune pause {digest[:12]} does.")
        standing = await _followed(asked, guard, digest)
    asked.say(json.dumps(standing, indent=2) if arguments.json else run_text(standing))
    return _code(standing)


async def _status(arguments: argparse.Namespace, asked: Asked, guard: RunningGuard) -> int:
    if arguments.plan:
        standing = await _standing(guard, await _digest(guard, arguments.plan))
    else:
        runs = await _pages(guard, "api/v1/plans")
        under_way = [one for one in runs if one["state"] in {PruneState.RUNNING.value, PruneState.PAUSED.value}]
        if not (under_way or runs):
            asked.say("null" if arguments.json else "Nothing was planned yet.")
            return FINE
        standing = (under_way or runs)[0]
    if arguments.follow:
        standing = await _followed(asked, guard, standing["digest"])
    asked.say(json.dumps(standing, indent=2) if arguments.json else run_text(standing))
    return _code(standing)


async def _turn(arguments: argparse.Namespace, asked: Asked, guard: RunningGuard) -> int:
    digest = await _digest(guard, arguments.plan)
    if arguments.dry_run:
        standing = await _standing(guard, digest)
    elif arguments.action == "resume":
        body = {"why": arguments.why, "acknowledged": arguments.acknowledge}
        resumed = await _unless_held(guard, digest, "resume", body)
        if resumed is None:
            return HELD
        standing = resumed
    else:
        standing = await guard.ask("POST", f"api/v1/plans/{digest}/{arguments.action}", {"why": arguments.why})
    asked.say(json.dumps(standing, indent=2) if arguments.json else run_text(standing))
    return FINE


async def _history(arguments: argparse.Namespace, asked: Asked, guard: RunningGuard) -> int:
    runs = await _pages(guard, "api/v1/plans")
    if arguments.json:
        asked.say(json.dumps(runs, indent=2))
    else:
        asked.say("\n".join(map(_history_text, runs)) or "Nothing was planned yet.")
    return FINE


async def _why(arguments: argparse.Namespace, asked: Asked, guard: RunningGuard) -> int:
    told = await guard.ask("GET", f"api/v1/users/{quote(arguments.user, safe='')}", within_s=LONG_S)
    asked.say(json.dumps(told, indent=2) if arguments.json else f"{told['user']}: {told['sentence']}")
    return FINE


async def _export(arguments: argparse.Namespace, asked: Asked, guard: RunningGuard) -> int:
    digest = await _digest(guard, arguments.plan)
    if arguments.csv:
        asked.say((await guard.read(f"api/v1/plans/{digest}.csv")).rstrip("\r\n"))
    else:
        told = await guard.ask("GET", f"api/v1/plans/{digest}")
        asked.say(json.dumps({**told, "items": await _pages(guard, f"api/v1/plans/{digest}/items")}, indent=2))
    return FINE


async def _restore(arguments: argparse.Namespace, asked: Asked, guard: RunningGuard) -> int:
    word, sha256 = await asyncio.to_thread(_undone, arguments.undo)
    digest = await _digest(guard, word)
    standing = await _standing(guard, digest)
    if standing["undo_file"] is None:
        raise HubGuardError(f"The plan {digest[:12]} was never begun, so it has deleted nobody. Nothing was done")
    if not arguments.json:
        were = "was" if standing["done"] == 1 else "were"
        asked.say(f"{words.count(standing['done'], 'user')} {were} deleted by the plan {digest[:12]}.")
    if arguments.dry_run:
        if arguments.json:
            asked.say(json.dumps(standing, indent=2))
        else:
            asked.say("They would be brought back, but for who is there again. Nothing was done.")
        return FINE
    count = await asyncio.to_thread(
        typed_count, standing["done"], arguments.count, asks=asked.asks, what="users to bring back"
    )
    body = {"count": count, "why": arguments.why, **({"sha256": sha256} if sha256 else {})}
    restored = await _unless_held(guard, digest, "restore", body)
    if restored is None:
        return HELD
    if arguments.json:
        asked.say(json.dumps(restored, indent=2))
    else:
        asked.say(f"{restored['restored']:,} of {restored['done']:,} are back. What came of each is in the journal.")
    return FINE if restored["restored"] >= restored["done"] else FAILED


# -- what is asked for ----------------------------------------------------------------------------------------------------


def dry_run(arguments: argparse.Namespace, plan: PrunePlan, say: Say, refused: str | None = None) -> int:
    """Say what applying that plan would do, or why it would be refused; 1 for that."""
    count = len(plan.deletions) if arguments.count is None else arguments.count
    refused = refused or prune_plan.refusal(
        plan, count=count, now=datetime.now(timezone.utc), acknowledged=arguments.acknowledge
    )
    if arguments.json:
        say(json.dumps({"would_begin": refused is None, "why": refused, "plan": prune_plan.to_dict(plan)}, indent=2))
    else:
        say(plan_text(plan))
        names = ", ".join(deletion.user for deletion in plan.deletions)
        say(f"It would be refused. {refused}" if refused else f"These would be deleted, if they still fit: {names}")
    return FAILED if refused else FINE


# -- asking the guard -----------------------------------------------------------------------------------------------------


async def _digest(guard: RunningGuard, word: str) -> str:
    """The whole digest of the plan that ``word`` is: a file, a digest, or its beginning. Raises ConfigError."""
    word = await asyncio.to_thread(_digest_of_file, word)
    if len(word) == 64:
        return word
    found = [one["digest"] for one in await _pages(guard, "api/v1/plans") if one["digest"].startswith(word)]
    if len(found) != 1:
        many = "several plans begin" if found else "no plan begins"
        raise ConfigError("PLAN", f"{many} with {word}; `hubguard prune history` lists them")
    return str(found[0])


def _digest_of_file(word: str) -> str:
    """The digest of the plan in the file of that name; ``word`` itself where it may be one. Raises ConfigError."""
    path = Path(word)
    if not path.is_file():
        if not _DIGEST.fullmatch(word):
            raise ConfigError("PLAN", f"{word!r} is neither a file nor the digest of a plan")
        return word
    plan = plan_in(path)
    if plan.offline:
        raise ConfigError("PLAN", f"{word} is for a hub that isn't running: it goes with --offline and --hub-db")
    return plan.digest


async def _standing(guard: RunningGuard, digest: str) -> dict[str, Any]:
    # From the list: a plan of its own comes with all of its users.
    for one in await _pages(guard, "api/v1/plans"):
        if one["digest"] == digest:
            return dict(one)
    told = await guard.ask("GET", f"api/v1/plans/{digest}")
    return dict(told["run"])


async def _pages(guard: RunningGuard, path: str) -> list[dict[str, Any]]:
    """All rows of a list, in the guard's order."""
    rows: list[dict[str, Any]] = []
    while True:
        page = await guard.ask("GET", f"{path}?offset={len(rows)}&limit={PAGE}")
        rows += page
        if len(page) < PAGE:
            return rows


async def _unless_held(guard: RunningGuard, digest: str, action: str, body: Mapping[str, Any]) -> dict[str, Any] | None:
    """How the plan stands after ``action``. None, and people are told why: acting is on hold, or HubGuard holds back."""
    try:
        return dict(await guard.ask("POST", f"api/v1/plans/{digest}/{action}", body, within_s=LONG_S))
    except Refused as refused:
        held = {Mode.HELD.value, Mode.BRAKED.value}
        if refused.status != 409 or (await guard.ask("GET", "api/v1/status"))["mode"] not in held:
            raise
        to_people(str(refused))
        return None


async def _followed(asked: Asked, guard: RunningGuard, digest: str) -> dict[str, Any]:
    """How that plan stands once it no longer runs. A guard that restarts meanwhile is found again; raises HubGuardError."""
    progress, answered_at = Progress(), time.monotonic()
    while True:
        try:
            standing = await _standing(guard, digest)
        except Refused:
            raise
        except HubGuardError:
            if time.monotonic() - answered_at > AWAY_S:
                raise
            await asyncio.sleep(POLL_S)
            try:
                guard = await asyncio.to_thread(asked.find)
            except HubGuardError as error:
                progress.show(f"{error} Waiting for it.")
            continue
        answered_at = time.monotonic()
        if standing["state"] != PruneState.RUNNING.value:
            progress.end()
            return standing
        progress.show(progress_text(standing))
        await asyncio.sleep(POLL_S)


def _undone(word: str) -> tuple[str, str | None]:
    """The digest of the plan that the undo file ``word`` is of, and the file's checksum; or ``word``, a digest, and None.

    The file is read whole: whoever restores from a copy learns that it isn't what was written before anything is done.
    Raises ConfigError, UndoError.
    """
    path = Path(word)
    if not path.exists():
        if not _DIGEST.fullmatch(word):
            raise ConfigError("FILE", f"there is no {path}, and it is no digest of a plan. Nothing was done")
        return word, None
    head, _ = undo_file.read(path)
    found = hashlib.sha256()
    with path.open("rb") as file:
        while part := file.read(1 << 20):
            found.update(part)
    return head.digest, found.hexdigest()


# -- what people read -----------------------------------------------------------------------------------------------------


def progress_text(run: Mapping[str, Any]) -> str:
    """One line: how many are settled, how they ended, at what rate, and for how long it will go on."""
    line = f"{run['settled']:,} of {run['count']:,}: {_ends(run)}"
    if run["per_s"] is not None:
        line += f"; {run['per_s']:.1f} a second"
    if run["left_s"] is not None:
        line += f", about {words.duration(run['left_s'])} left"
    return line + (f". {run['why']}" if run["why"] else "")


def _ends(run: Mapping[str, Any]) -> str:
    ends = [f"{run['done']:,} deleted"]
    for name, ending in (("skipped", "kept"), ("failed", "failed"), ("unverified", "not verified")):
        if run[name]:
            ends.append(f"{run[name]:,} {ending}")
    return ", ".join(ends)


def run_text(run: Mapping[str, Any]) -> str:
    """How a plan stands, for a terminal, with what to do next."""
    digest = run["digest"][:12]
    lines = [f"Plan {digest}: {run['sentence']}"]
    if run["undo_file"]:
        lines += [f"Undo file: {run['undo_file']} (on the guard's machine)", f"  SHA-256 {run['undo_sha256']}"]
    if run["state"] == PruneState.PAUSED.value:
        lines.append(f"To go on: hubguard prune resume {digest}")
    elif run["undo_file"] and run["done"] > run["restored"]:
        lines.append(f"To bring them back: hubguard prune restore {shlex.quote(run['undo_file'])}")
    if run["failed"] or run["unverified"] or run["skipped"]:
        lines.append(f"What came of each: hubguard prune export {digest} --csv")
    return "\n".join(lines)


def _history_text(run: Mapping[str, Any]) -> str:
    made = datetime.fromisoformat(run["began_at"] or run["made_at"])
    why = f" ({run['asked_why']})" if run["asked_why"] else ""
    scheduled = ", by schedule" if run["scheduled"] else ""
    line = f"{made:%Y-%m-%d %H:%M} UTC  {run['digest'][:12]}  {run['state']}, by {run['actor']}{scheduled}{why}: "
    line += f"{run['count']:,} users" if run["began_at"] is None else f"{_ends(run)}, of {run['count']:,}"
    if run["restored"]:
        line += f"; {run['restored']:,} brought back"
    return line + (f"\n    {run['undo_file']}" if run["undo_file"] else "")


def _code(run: Mapping[str, Any]) -> int:
    if run["state"] == PruneState.PAUSED.value:
        return HELD
    bad = run["failed"] or run["unverified"] or run["state"] == PruneState.CANCELLED.value
    return FAILED if bad else FINE


def _given(arguments: argparse.Namespace, name: str) -> bool:
    """Whether that option was given on the command line, other than by a variable of the environment."""
    value = getattr(arguments, name, None)
    return bool(value) and value != os.environ.get("HUBGUARD_HUB_DB_URL")


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

    _plan_arguments(action("plan", "say who would be deleted, why, and what can't come back; nothing is changed"))
    _apply_arguments(action("apply", "carry out a plan that was looked at: its undo file is written first"))

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
        _why_argument(turn)
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

    _restore_arguments(action("restore", "bring back whom a plan deleted, from its undo file"))


def _plan_arguments(plan: argparse.ArgumentParser) -> None:
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


def _apply_arguments(apply: argparse.ArgumentParser) -> None:
    apply.add_argument("plan", metavar="PLAN", help="the file of the plan, or its digest (or the beginning of that)")
    _count(apply, "how many users the plan has")
    _acknowledge(apply, "a caution, by its name; may be given more than once")
    _why_argument(apply)
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


def _restore_arguments(restore: argparse.ArgumentParser) -> None:
    restore.add_argument(
        "undo", metavar="FILE", help="the undo file; with a guard that runs, the plan's digest will do"
    )
    _count(restore, "how many users that is")
    _why_argument(restore)
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


def _why_argument(parser: argparse.ArgumentParser) -> None:
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
