"""``hubguard prune``: who is stale, plans, what comes of them, and the way back, asked of the running guard."""

from __future__ import annotations

import argparse
import asyncio
import hashlib
import json
import os
import re
import shlex
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass
from datetime import datetime, timezone
from pathlib import Path
from typing import Any
from urllib.parse import quote

from sqlalchemy.engine import make_url

from hubguard.clients import undo_file
from hubguard.decide import prune_plan
from hubguard.errors import ConfigError, HubGuardError
from hubguard.model import Mode
from hubguard.prune import Caution, PrunePlan, PruneState
from hubguard.running import Refused, RunningGuard
from hubguard.web import present, prune

FINE, FAILED, HELD = 0, 1, 3

PAGE = 1000
POLL_S = 2.0
"""Seconds from one question for how a plan stands to the next."""

LINE_S = 10.0
"""Where progress isn't shown in place, a line for it comes so often at most, in seconds."""

AWAY_S = 300.0
"""A guard that doesn't answer for so long, while it is being followed, isn't followed any longer."""

LONG_S = 4 * 3600.0
"""The longest that planning, beginning and restoring may take, by the budget, on a hub with very many users."""

Say = Callable[[str], None]
"""Where what a person or a script is to read goes."""

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
        asked.say(f"{present.count(standing['done'], 'user')} {were} deleted by the plan {digest[:12]}.")
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


def criteria_of(arguments: argparse.Namespace) -> dict[str, Any]:
    """What the command's options ask for, by the names of StaleCriteria; without those that weren't given."""
    given = {
        "inactive_for_s": arguments.inactive_for,
        "never_active_for_s": arguments.never_active_for,
        "groups": arguments.group,
        "roles": arguments.role,
        "names": arguments.name,
        "listed": None if arguments.list is None else names_in(arguments.list),
    }
    return {name: value for name, value in given.items() if value is not None}


def names_in(path: Path) -> list[str]:
    """The names in a file, one a line, without the blanks around them; empty lines are none. Raises ConfigError."""
    try:
        text = path.read_text("utf-8-sig")
    except (OSError, ValueError) as error:
        raise ConfigError("--list", f"{path} can't be read: {type(error).__name__}: {error}") from None
    return [name for line in text.splitlines() if (name := line.strip())]


def plan_in(path: Path) -> PrunePlan:
    """The plan in a file. Raises ConfigError, saying what is wrong with it."""
    try:
        return prune_plan.from_dict(json.loads(path.read_text("utf-8")))
    except (OSError, ValueError, RecursionError) as error:
        raise ConfigError("PLAN", f"{path} can't be used: {str(error) or type(error).__name__}") from None


def confirmed(plan: PrunePlan, arguments: argparse.Namespace, *, asks: bool) -> tuple[int, list[str]]:
    """The count that was given or typed, and the cautions that were acknowledged, or typed where somebody can be asked.

    Raises ConfigError, HubGuardError where one of them is missing or wrong.
    """
    acknowledged = acknowledge(plan.cautions, arguments.acknowledge, asks=asks)
    return typed_count(len(plan.deletions), arguments.count, asks=asks, what="users to delete"), acknowledged


def acknowledge(cautions: Sequence[Caution], given: Sequence[str], *, asks: bool) -> list[str]:
    """The names of ``cautions``, once all were given, or typed where somebody can be asked.

    Raises ConfigError, HubGuardError where one is missing or wrong.
    """
    acknowledged = list(given)
    known = [one.name for one in cautions]
    for name in acknowledged:
        if name not in known:
            there = f"its cautions are {', '.join(known)}" if known else "it has none"
            raise ConfigError("--acknowledge", f"the plan has no caution {name!r}; {there}. Nothing was done")
    for one in cautions:
        if one.name in acknowledged:
            continue
        if not asks:
            raise ConfigError("--acknowledge", f"{one.name} has to be acknowledged by name: {one.why} Nothing was done")
        if input(f"{one.why}\nTo acknowledge that, type {one.name}: ").strip() != one.name:
            raise HubGuardError("That isn't its name. Nothing was done")
        acknowledged.append(one.name)
    return acknowledged


def typed_count(right: int, given: int | None, *, asks: bool, what: str) -> int:
    """``right``, once it was given, or typed where somebody can be asked. Raises ConfigError, HubGuardError."""
    if given is None and asks:
        if input(f"To confirm, type how many {what} that is: ").strip().replace(",", "") != str(right):
            raise HubGuardError(f"That isn't the number of {what}. Nothing was done")
    elif given is None:
        raise ConfigError("--count", f"is needed where nobody can be asked; it is {right}. Nothing was done")
    elif given != right:
        raise ConfigError("--count", f"it is {right:,} {what}, not {given:,}. Nothing was done")
    return right


def show_plan(arguments: argparse.Namespace, plan: PrunePlan, say: Say) -> None:
    """The plan is in the files that were asked for, and told. Raises HubGuardError where one can't be written."""
    if arguments.output is not None:
        _write(arguments.output, json.dumps(prune_plan.to_dict(plan), indent=1) + "\n")
    if arguments.csv is not None:
        _write(arguments.csv, prune.plan_csv(plan))
    if arguments.json:
        say(json.dumps(prune_plan.to_dict(plan), indent=2))
    else:
        say(plan_text(plan))
        say(how_to_apply(arguments, plan))


def _write(path: Path, text: str) -> None:
    try:
        with open(
            os.open(path, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o600), "w", encoding="utf-8", newline=""
        ) as file:
            file.write(text)
    except OSError as error:
        raise HubGuardError(f"{path} can't be written ({error.strerror}), so the plan isn't in it") from None


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


class Progress:
    """One line on stderr that is written anew in place; where that isn't a terminal, a line now and then."""

    def __init__(self) -> None:
        self._in_place = sys.stderr.isatty()
        self._shown, self._shown_at = "", float("-inf")

    def show(self, line: str) -> None:
        """``line`` is what stands there now."""
        now = time.monotonic()
        if self._in_place:
            _write_now(f"\r\x1b[K{line}")
        elif line != self._shown and now - self._shown_at >= LINE_S:
            _write_now(f"{line}\n")
        else:
            return
        self._shown, self._shown_at = line, now

    def end(self) -> None:
        """What is written next begins a line."""
        if self._in_place and self._shown:
            _write_now("\n")


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


def to_people(text: str) -> None:
    """A line on stderr, where no script reads."""
    _write_now(f"{text}\n")


def _write_now(text: str) -> None:
    sys.stderr.write(text)
    sys.stderr.flush()


# -- what people read -----------------------------------------------------------------------------------------------------


def plan_text(plan: PrunePlan) -> str:
    """A plan for a terminal: how many of how many, why, who is kept, what is gained, and what can't come back."""
    lines = [prune.plan_sentence(plan), f"Then {prune.gain_sentence(plan)}"]
    lines += rows_text(plan.gain.rows or {})
    if plan.housekeeping is not None:
        useless = ", ".join(
            f"{name.replace('_', ' ')} {number:,}" for name, number in asdict(plan.housekeeping).items()
        )
        lines.append(f"Rows of no use that go, too: {useless}.")
    kept = sorted(plan.kept.items(), key=lambda item: (-item[1], item[0].value))
    if kept:
        lines.append(
            "Kept: " + ", ".join(f"{number:,} {prune.reason_words(one).lower()}" for one, number in kept) + "."
        )
    lines.append(f"{'STORAGE' if plan.storage.at_risk else 'Storage'}: {plan.storage.why}")
    if plan.lost:
        lines += ["What can't be brought back:", *(f"  - {sentence}" for sentence in plan.lost)]
    if plan.cautions:
        lines.append("To be acknowledged by name:")
        lines += [f"  - {caution.name}: {caution.why}" for caution in plan.cautions]
    return "\n".join(lines)


def rows_text(rows: Mapping[str, int]) -> list[str]:
    """A line with the numbers of rows by table; none where there are no rows."""
    told = ", ".join(f"{table} {number:,}" for table, number in sorted(rows.items()) if number)
    return [f"Rows: {told}."] if told else []


def how_to_apply(arguments: argparse.Namespace, plan: PrunePlan) -> str:
    """The command that carries the plan out, to be copied."""
    if not plan.deletions and plan.housekeeping is None:
        return "There is nobody to delete."
    words = ["hubguard", "prune", "apply"]
    if plan.offline:
        if arguments.output is None:
            return "Nothing was changed. An offline plan is kept nowhere: to carry it out, plan with -o FILE."
        words += [
            "--offline",
            *hub_db_words(arguments.hub_db),
            *(f"--config={path}" for path in arguments.config or ()),
        ]
    words += [str(arguments.output or plan.digest[:12]), "--count", str(len(plan.deletions))]
    for caution in plan.cautions:
        words += ["--acknowledge", caution.name]
    database = with_hub_db(arguments.hub_db) if plan.offline else ""
    until = f"{plan.expires_at:%Y-%m-%d %H:%M} UTC"
    return f"Nothing was changed. Until {until} it can be carried out{database}:\n\n    {shlex.join(words)}\n"


def hub_db_words(url: str) -> list[str]:
    """The option that names the hub's database; none where it holds a password, which is nobody's to read."""
    return [] if _holds_secret(url) else [f"--hub-db={url}"]


def with_hub_db(url: str) -> str:
    """What to say beside a command that :func:`hub_db_words` left the URL out of, else ""."""
    return ", with the same --hub-db" if _holds_secret(url) else ""


def _holds_secret(url: str) -> bool:
    parsed = make_url(url)
    return parsed.password is not None or bool(parsed.query)


def progress_text(run: Mapping[str, Any]) -> str:
    """One line: how many are settled, how they ended, at what rate, and for how long it will go on."""
    line = f"{run['settled']:,} of {run['count']:,}: {_ends(run)}"
    if run["per_s"] is not None:
        line += f"; {run['per_s']:.1f} a second"
    if run["left_s"] is not None:
        line += f", about {present.duration(run['left_s'])} left"
    return line + (f". {run['why']}" if run["why"] else "")


def _ends(run: Mapping[str, Any]) -> str:
    ends = [f"{run['done']:,} deleted"]
    for name, words in (("skipped", "kept"), ("failed", "failed"), ("unverified", "not verified")):
        if run[name]:
            ends.append(f"{run[name]:,} {words}")
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
