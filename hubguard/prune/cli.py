"""The commands of pruning by the running guard: who is stale, plans, their outcomes, and the way back."""

from __future__ import annotations

import argparse
import asyncio
import hashlib
import json
import re
import shlex
import time
from collections.abc import Callable, Mapping
from datetime import datetime, timezone
from functools import partial
from pathlib import Path
from typing import Any
from urllib.parse import quote, urlencode

from hubguard import words
from hubguard.console import Context, Exit
from hubguard.errors import ConfigError, HubGuardError
from hubguard.hub.names import spellings
from hubguard.prune import undo_file
from hubguard.prune import words as prune_words
from hubguard.prune.confirm import (
    Progress,
    confirmed,
    criteria_of,
    plan_in,
    plan_text,
    show_plan,
    to_people,
    typed_count,
    write_file,
)
from hubguard.prune.decide import plan as prune_plan
from hubguard.prune.model import PrunePlan, PruneState, StaleCriteria
from hubguard.web.client import Refused, RunningGuard, all_rows, running_guard
from hubguard.wire import read, to_plain

POLL_S = 2.0
"""Seconds between two reads of a plan's state."""

LEFT_OUT = 100
"""Maximum lines of a list for which a plan's command says why they are left out. Each takes a reading of that user."""

AWAY_S = 300.0
"""Maximum seconds without an answer from the guard while a plan is followed."""

LONG_S = 4 * 3600.0
"""Maximum seconds for planning, starting and restoring, which the budget paces, on a hub with very many users."""

INSTEAD = "Only a running guard deletes users. For a hub that isn't running, use --offline (docs/how-to/prune-users.md)"

_DIGEST = re.compile("[0-9a-f]{6,64}")

Find = Callable[[], RunningGuard]
"""Finds the running guard; it may be another one after a restart."""


# -- the commands ---------------------------------------------------------------------------------------------------------


def run(arguments: argparse.Namespace, context: Context) -> int:
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
    return asyncio.run(command(arguments, context, _find(context)()))


def _find(context: Context) -> Find:
    return partial(running_guard, context.journal, context.place.token, instead=INSTEAD)


async def _plan(arguments: argparse.Namespace, context: Context, guard: RunningGuard) -> int:
    criteria = criteria_of(arguments)
    planned: set[str] = set()
    try:
        asked = {**words.as_json(criteria), "ignore_unknown": arguments.ignore_unknown}
        plan = prune_plan.from_dict(await guard.ask("POST", "api/v1/plans", asked, within_s=LONG_S))
        planned = {deletion.user for deletion in plan.deletions}
        if arguments.kept is not None:
            query = urlencode(prune_words.criteria_query(to_plain(plan.criteria)), doseq=True)
            kept = await guard.read(f"api/v1/users.csv?stale=false&{query}", within_s=LONG_S)
            write_file(arguments.kept, kept)
        show_plan(arguments, plan, context.say)
    finally:
        await _tell_left_out(guard, criteria, planned)
    return Exit.FINE


async def _tell_left_out(guard: RunningGuard, criteria: Mapping[str, Any], planned: set[str]) -> None:
    """Tell people which lines of their list the plan leaves out, and why. Nothing is raised for that."""
    left_out = [name for name in criteria.get("listed", ()) if planned.isdisjoint(spellings(name))]
    limits = "&".join(
        f"{name}={criteria[name]}" for name in ("inactive_for_s", "never_active_for_s") if name in criteria
    )
    for name in left_out[:LEFT_OUT]:
        try:
            answer = await guard.ask("GET", f"api/v1/users/{quote(name, safe='')}?{limits}", within_s=LONG_S)
        except HubGuardError as error:
            to_people(f"Not in the plan: {name}. {error}")
        else:
            if answer["user"] not in planned:
                to_people(f"Not in the plan: {name}. {answer['sentence']}")
    if len(left_out) > LEFT_OUT:
        to_people(f"Not in the plan: {words.count(len(left_out) - LEFT_OUT, 'more line')} of the list.")


async def _apply(arguments: argparse.Namespace, context: Context, guard: RunningGuard) -> int:
    digest = await _digest(guard, arguments.plan)
    answer = await guard.ask("GET", f"api/v1/plans/{digest}")
    plan = prune_plan.from_dict(answer["plan"])
    if arguments.dry_run:
        state = answer["run"]["state"]
        started = state != PruneState.PLANNED.value
        return _dry_run(arguments, context, plan, f"The plan has started already; it is {state}." if started else None)
    if not arguments.json:
        context.say(plan_text(plan))
    count, acknowledged = await asyncio.to_thread(confirmed, plan, arguments, asks=context.asks)
    body = {"count": count, "why": arguments.why, "acknowledged": acknowledged}
    standing = await _unless_held(guard, digest, "apply", body)
    if standing is None:
        return Exit.HELD
    if arguments.wait:
        to_people(f"Started. It continues if you leave this command. To pause it: hubguard prune pause {digest[:12]}")
        standing = await _followed(_find(context), guard, digest)
    context.say(json.dumps(standing, indent=2) if arguments.json else run_text(standing))
    return _code(standing)


async def _status(arguments: argparse.Namespace, context: Context, guard: RunningGuard) -> int:
    if arguments.plan:
        standing = await _standing(guard, await _digest(guard, arguments.plan))
    else:
        runs = await all_rows(guard, "api/v1/plans")
        under_way = [run for run in runs if run["state"] in {PruneState.RUNNING.value, PruneState.PAUSED.value}]
        if not (under_way or runs):
            context.say("null" if arguments.json else "There are no plans yet.")
            return Exit.FINE
        standing = (under_way or runs)[0]
    if arguments.follow:
        standing = await _followed(_find(context), guard, standing["digest"])
    context.say(json.dumps(standing, indent=2) if arguments.json else run_text(standing))
    return _code(standing)


async def _turn(arguments: argparse.Namespace, context: Context, guard: RunningGuard) -> int:
    digest = await _digest(guard, arguments.plan)
    if arguments.dry_run:
        standing = await _standing(guard, digest)
    elif arguments.action == "resume":
        body = {"why": arguments.why, "acknowledged": arguments.acknowledge}
        resumed = await _unless_held(guard, digest, "resume", body)
        if resumed is None:
            return Exit.HELD
        standing = resumed
    else:
        standing = await guard.ask("POST", f"api/v1/plans/{digest}/{arguments.action}", {"why": arguments.why})
    context.say(json.dumps(standing, indent=2) if arguments.json else run_text(standing))
    return Exit.FINE


async def _history(arguments: argparse.Namespace, context: Context, guard: RunningGuard) -> int:
    user = urlencode({"user": arguments.user})
    runs = await all_rows(guard, f"api/v1/plans?{user}" if arguments.user else "api/v1/plans")
    if arguments.json:
        context.say(json.dumps(runs, indent=2))
    else:
        none = f"No plan has a user {arguments.user}." if arguments.user else "There are no plans yet."
        context.say("\n".join(map(_history_text, runs)) or none)
    return Exit.FINE


async def _why(arguments: argparse.Namespace, context: Context, guard: RunningGuard) -> int:
    given = {"inactive_for_s": arguments.inactive_for, "never_active_for_s": arguments.never_active_for}
    asked: dict[str, Any] = {name: value for name, value in given.items() if value is not None}
    by = ""
    if not asked and (run := await _reviewed(guard)):
        criteria = (await guard.ask("GET", f"api/v1/plans/{run['digest']}"))["plan"]["criteria"]
        asked = prune_words.criteria_query(criteria)
        by = f" By the criteria of plan {run['digest'][:12]}: {_criteria_text(criteria)}"
    address = f"api/v1/users/{quote(arguments.user, safe='')}?{urlencode(asked, doseq=True)}".rstrip("?")
    answer = await guard.ask("GET", address, within_s=LONG_S)
    context.say(json.dumps(answer, indent=2) if arguments.json else f"{answer['user']}: {answer['sentence']}{by}")
    return Exit.FINE


async def _reviewed(guard: RunningGuard) -> dict[str, Any] | None:
    """The newest plan, if it is under way or can still be applied. None: it is over or has expired, or there is none."""
    newest = next(iter(await all_rows(guard, "api/v1/plans")), None)
    if newest is None or newest["state"] in {PruneState.CANCELLED.value, PruneState.DONE.value}:
        return None
    expired = datetime.fromisoformat(newest["expires_at"].replace("Z", "+00:00")) <= datetime.now(timezone.utc)
    return None if expired and newest["state"] == PruneState.PLANNED.value else newest


async def _export(arguments: argparse.Namespace, context: Context, guard: RunningGuard) -> int:
    digest = await _digest(guard, arguments.plan)
    if arguments.csv:
        context.say((await guard.read(f"api/v1/plans/{digest}.csv")).rstrip("\r\n"))
    else:
        answer = await guard.ask("GET", f"api/v1/plans/{digest}")
        context.say(json.dumps({**answer, "items": await all_rows(guard, f"api/v1/plans/{digest}/items")}, indent=2))
    return Exit.FINE


async def _restore(arguments: argparse.Namespace, context: Context, guard: RunningGuard) -> int:
    word, sha256 = await asyncio.to_thread(_undone, arguments.undo)
    digest = await _digest(guard, word)
    standing = await _standing(guard, digest)
    if standing["undo_file"] is None:
        raise HubGuardError(f"Nothing to restore: plan {digest[:12]} was never started, so it has deleted nobody")
    if not arguments.json:
        context.say(f"Plan {digest[:12]} deleted {words.count(standing['done'], 'user')}.")
    if arguments.dry_run:
        if arguments.json:
            context.say(json.dumps(standing, indent=2))
        else:
            context.say("They would be restored, except those who exist again. Nothing was done.")
        return Exit.FINE
    count = await asyncio.to_thread(
        typed_count, standing["done"], arguments.count, asks=context.asks, what="users to restore"
    )
    body = {"count": count, "why": arguments.why, **({"sha256": sha256} if sha256 else {})}
    restored = await _unless_held(guard, digest, "restore", body)
    if restored is None:
        return Exit.HELD
    if arguments.json:
        context.say(json.dumps(restored, indent=2))
    else:
        context.say(
            f"{restored['restored']:,} of {restored['done']:,} users restored. The journal has the outcome of each."
        )
        for user in restored["not_back"]:
            context.say(f"  Not restored: {user['user']}: {user['detail']}")
    return Exit.FINE if restored["restored"] >= restored["done"] else Exit.FAILED


# -- trying it -----------------------------------------------------------------------------------------------------------


def _dry_run(arguments: argparse.Namespace, context: Context, plan: PrunePlan, refused: str | None) -> int:
    """Print what applying that plan would do, or why it would be refused; that counts as failed."""
    count = len(plan.deletions) if arguments.count is None else arguments.count
    refused = refused or prune_plan.refusal(
        plan, count=count, now=datetime.now(timezone.utc), acknowledged=arguments.acknowledge
    )
    if arguments.json:
        context.say(
            json.dumps({"would_begin": refused is None, "why": refused, "plan": prune_plan.to_dict(plan)}, indent=2)
        )
    else:
        context.say(plan_text(plan))
        names = ", ".join(deletion.user for deletion in plan.deletions)
        context.say(
            f"It would be refused. {refused}" if refused else f"These would be deleted, if still stale: {names}"
        )
    return Exit.FAILED if refused else Exit.FINE


# -- asking the guard -----------------------------------------------------------------------------------------------------


async def _digest(guard: RunningGuard, word: str) -> str:
    """The whole digest of the plan that ``word`` names: a file, a digest, or its beginning. Raises ConfigError."""
    word = await asyncio.to_thread(_digest_of_file, word)
    if len(word) == 64:
        return word
    digests = [run["digest"] for run in await all_rows(guard, "api/v1/plans") if run["digest"].startswith(word)]
    if len(digests) != 1:
        many = "several plans begin" if digests else "no plan begins"
        raise ConfigError("PLAN", f"{many} with {word}. To list them: hubguard prune history")
    return str(digests[0])


def _digest_of_file(word: str) -> str:
    """The digest of the plan in the file of that name, or ``word`` itself if it may be one. Raises ConfigError."""
    path = Path(word)
    if not path.is_file():
        if not _DIGEST.fullmatch(word):
            raise ConfigError("PLAN", f"{word!r} is neither a file nor the digest of a plan")
        return word
    plan = plan_in(path)
    if plan.offline:
        raise ConfigError("PLAN", f"{word} is an offline plan. Apply it with --offline and --hub-db")
    return plan.digest


async def _standing(guard: RunningGuard, digest: str) -> dict[str, Any]:
    # From the list: a single plan comes with all of its users.
    for run in await all_rows(guard, "api/v1/plans"):
        if run["digest"] == digest:
            return dict(run)
    return dict((await guard.ask("GET", f"api/v1/plans/{digest}"))["run"])


async def _unless_held(guard: RunningGuard, digest: str, action: str, body: Mapping[str, Any]) -> dict[str, Any] | None:
    """The state of the plan after ``action``. None if acting is on hold or HubGuard is braked; people are told why."""
    try:
        return dict(await guard.ask("POST", f"api/v1/plans/{digest}/{action}", body, within_s=LONG_S))
    except Refused as refused:
        if refused.status != 409 or not await guard.held_or_braked():
            raise
        to_people(str(refused))
        return None


async def _followed(find: Find, guard: RunningGuard, digest: str) -> dict[str, Any]:
    """The state of that plan once it no longer runs. A guard that restarts meanwhile is found again. Raises HubGuardError."""
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
                guard = await asyncio.to_thread(find)
            except HubGuardError as error:
                progress.show(f"{error}. Waiting for it.")
            continue
        answered_at = time.monotonic()
        if standing["state"] != PruneState.RUNNING.value:
            progress.end()
            return standing
        progress.show(progress_text(standing))
        await asyncio.sleep(POLL_S)


def _undone(word: str) -> tuple[str, str | None]:
    """The digest of the plan of the undo file ``word``, and the file's checksum; or ``word`` itself, a digest, and None.

    The file is read whole, so that a damaged copy is noticed before anything is done. Raises ConfigError, UndoError.
    """
    path = Path(word)
    if not path.exists():
        if not _DIGEST.fullmatch(word):
            raise ConfigError("FILE", f"there is no file {path}, and it isn't the digest of a plan. Nothing was done")
        return word, None
    head, _ = undo_file.read(path)
    checksum = hashlib.sha256()
    with path.open("rb") as file:
        while part := file.read(1 << 20):
            checksum.update(part)
    return head.digest, checksum.hexdigest()


# -- what people read -----------------------------------------------------------------------------------------------------


def progress_text(run: Mapping[str, Any]) -> str:
    """One line: how many users are settled, how they ended, the rate, and the time left."""
    line = f"{run['settled']:,} of {run['count']:,}: {_ends(run)}"
    if run["per_s"] is not None:
        line += f"; {run['per_s']:.1f} a second"
    if run["left_s"] is not None:
        line += f", about {words.duration(run['left_s'])} left"
    return line + (f". {run['why']}" if run["why"] else "")


def _ends(run: Mapping[str, Any]) -> str:
    ends = [f"{run['done']:,} deleted"]
    ends += [f"{run[state]:,} {word}" for state, word in prune_words.ENDS if run[state]]
    return ", ".join(ends)


def run_text(run: Mapping[str, Any]) -> str:
    """The state of a plan, for a terminal, with the command to run next."""
    digest = run["digest"][:12]
    lines = [f"Plan {digest}: {run['sentence']}"]
    if run["undo_file"]:
        lines += [f"Undo file: {run['undo_file']} (on the guard's machine)", f"  SHA-256 {run['undo_sha256']}"]
    if run["state"] == PruneState.PAUSED.value:
        lines.append(f"To continue: hubguard prune resume {digest}")
    elif run["undo_file"] and run["done"] > run["restored"]:
        lines.append(f"To restore them: hubguard prune restore {shlex.quote(run['undo_file'])}")
    if any(run[state] for state, _ in prune_words.ENDS):
        lines.append(f"For the outcome of each: hubguard prune export {digest} --csv")
    return "\n".join(lines)


def _criteria_text(criteria: object) -> str:
    return prune_words.criteria_sentence(read(StaleCriteria, criteria, "criteria"))


def _history_text(run: Mapping[str, Any]) -> str:
    made = datetime.fromisoformat(run["began_at"] or run["made_at"])
    why = f" ({run['asked_why']})" if run["asked_why"] else ""
    scheduled = ", scheduled" if run["scheduled"] else ""
    line = f"{made:%Y-%m-%d %H:%M} UTC  {run['digest'][:12]}  {run['state']}, by {run['actor']}{scheduled}{why}: "
    line += f"{run['count']:,} users" if run["began_at"] is None else f"{_ends(run)}, of {run['count']:,}"
    if run["restored"]:
        line += f"; {run['restored']:,} restored"
    line += f"\n    Criteria: {_criteria_text(run['criteria'])}" if run["criteria"] else ""
    return line + (f"\n    {run['undo_file']}" if run["undo_file"] else "")


def _code(run: Mapping[str, Any]) -> int:
    if run["state"] == PruneState.PAUSED.value:
        return Exit.HELD
    bad = run["failed"] or run["unverified"] or run["state"] == PruneState.CANCELLED.value
    return Exit.FAILED if bad else Exit.FINE
