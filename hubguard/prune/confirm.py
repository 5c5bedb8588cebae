"""What people see and confirm: the plan, its cautions, its count, and the progress."""

from __future__ import annotations

import argparse
import json
import os
import shlex
import sys
import time
from collections.abc import Mapping, Sequence
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

from sqlalchemy.engine import make_url

from hubguard.console import Say
from hubguard.errors import ConfigError, HubGuardError
from hubguard.prune import words as prune_words
from hubguard.prune.decide import plan as prune_plan
from hubguard.prune.model import Caution, PrunePlan

LINE_S = 10.0
"""Minimum seconds between two lines of progress if stderr isn't a terminal."""


def criteria_of(arguments: argparse.Namespace) -> dict[str, Any]:
    """The criteria that were given as options, by the names of StaleCriteria."""
    given = {
        "inactive_for_s": arguments.inactive_for,
        "never_active_for_s": arguments.never_active_for,
        "groups": arguments.group,
        "roles": arguments.role,
        "names": arguments.name,
        "not_groups": arguments.not_group,
        "not_roles": arguments.not_role,
        "created_before": arguments.created_before,
        "created_after": arguments.created_after,
        "listed": None if arguments.list is None else names_in(arguments.list),
    }
    return {name: value for name, value in given.items() if value is not None}


def names_in(path: Path) -> list[str]:
    """The names in a file, one per line, without blanks around them and without empty lines. Raises ConfigError."""
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
        raise ConfigError(
            "PLAN", f"{path} isn't a plan that can be used: {str(error) or type(error).__name__}"
        ) from None


def confirmed(plan: PrunePlan, arguments: argparse.Namespace, *, asks: bool) -> tuple[int, list[str]]:
    """The count, and the names of the cautions, once both were given as options or typed.

    Raises ConfigError, HubGuardError if one of them is missing or wrong.
    """
    count = len(plan.deletions)
    needs = () if asks or arguments.count == count else ("--count", str(count))
    acknowledged = acknowledge(plan.cautions, arguments.acknowledge, asks=asks, needs=needs)
    return typed_count(len(plan.deletions), arguments.count, asks=asks, what="users to delete"), acknowledged


def acknowledge(
    cautions: Sequence[Caution], given: Sequence[str], *, asks: bool, needs: Sequence[str] = ()
) -> list[str]:
    """The names of ``cautions``, once all were given or, if ``asks``, typed.

    Raises ConfigError, HubGuardError if some are missing or wrong: it has all of them, with the options to add, of which
    ``needs`` are others that are missing.
    """
    acknowledged = list(given)
    known = [caution.name for caution in cautions]
    for name in acknowledged:
        if name not in known:
            there = f"its cautions are {', '.join(known)}" if known else "it has none"
            raise ConfigError("--acknowledge", f"the plan has no caution {name!r}; {there}. Nothing was done")
    missing = [caution for caution in cautions if caution.name not in acknowledged]
    if missing and not asks:
        each = " ".join(f"{caution.name} is required. {caution.why}" for caution in missing)
        add = shlex.join([*needs, *acknowledging(missing)])
        raise ConfigError("--acknowledge", f"{each} Nothing was done. To go on anyway, add: {add}")
    for caution in missing:
        if input(f"{caution.why}\nTo continue anyway, type {caution.name}: ").strip() != caution.name:
            raise HubGuardError(f"Nothing was done: {caution.name} wasn't acknowledged")
        acknowledged.append(caution.name)
    return acknowledged


def acknowledging(cautions: Sequence[Caution]) -> list[str]:
    """The options that acknowledge ``cautions``."""
    return [word for caution in cautions for word in ("--acknowledge", caution.name)]


def typed_count(right: int, given: int | None, *, asks: bool, what: str) -> int:
    """``right``, once it was given or, if ``asks``, typed. Raises ConfigError, HubGuardError."""
    if given is None and asks:
        if input(f"To confirm, type the number of {what}: ").strip().replace(",", "") != str(right):
            raise HubGuardError(f"Nothing was done: that isn't the number of {what}")
    elif given is None:
        raise ConfigError(
            "--count", f"is required when not run interactively; there are {right} {what}. Nothing was done"
        )
    elif given != right:
        raise ConfigError("--count", f"there are {right:,} {what}, not {given:,}. Nothing was done")
    return right


def show_plan(arguments: argparse.Namespace, plan: PrunePlan, say: Say, unseen: Sequence[Caution] = ()) -> None:
    """Write the plan to the given files, and print it. Raises HubGuardError if a file can't be written.

    ``unseen`` must be acknowledged beside the plan's own cautions, as it stands on this machine.
    """
    if arguments.output is not None:
        write_file(arguments.output, json.dumps(prune_plan.to_dict(plan), indent=1) + "\n")
    if arguments.csv is not None:
        write_file(arguments.csv, prune_words.plan_csv(plan))
    if arguments.json:
        say(json.dumps(prune_plan.to_dict(plan), indent=2))
    else:
        every = replace(plan, cautions=(*plan.cautions, *unseen))
        say(plan_text(every))
        say(how_to_apply(arguments, every))


def write_file(path: Path, text: str) -> None:
    """``text`` is in that file, which only its owner may read. Raises HubGuardError."""
    try:
        with open(
            os.open(path, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o600), "w", encoding="utf-8", newline=""
        ) as file:
            file.write(text)
    except OSError as error:
        raise HubGuardError(f"The plan wasn't written to {path}: {error.strerror}") from None


class Progress:
    """One line on stderr that is overwritten in place; if that isn't a terminal, a line now and then."""

    def __init__(self) -> None:
        self._in_place = sys.stderr.isatty()
        self._shown, self._shown_at = "", float("-inf")

    def show(self, line: str) -> None:
        """Show ``line`` in place of the last one."""
        now = time.monotonic()
        if self._in_place:
            _write_now(f"\r\x1b[K{line}")
        elif line != self._shown and now - self._shown_at >= LINE_S:
            _write_now(f"{line}\n")
        else:
            return
        self._shown, self._shown_at = line, now

    def end(self) -> None:
        """Begin a new line for what is written next."""
        if self._in_place and self._shown:
            _write_now("\n")


def to_people(text: str) -> None:
    """A line on stderr, where no script reads."""
    _write_now(f"{text}\n")


def _write_now(text: str) -> None:
    sys.stderr.write(text)
    sys.stderr.flush()


def plan_text(plan: PrunePlan) -> str:
    """A plan for a terminal: its criteria, how many users, why, who is kept, what is gained, and what can't be restored."""
    lines = [f"Criteria: {prune_words.criteria_sentence(plan.criteria)}", prune_words.plan_sentence(plan)]
    lines += [f"Then {prune_words.gain_sentence(plan)}"]
    lines += rows_text(plan.gain.rows or {})
    if plan.housekeeping is not None:
        useless = ", ".join(
            f"{name.replace('_', ' ')} {number:,}" for name, number in asdict(plan.housekeeping).items()
        )
        lines.append(f"Useless rows that are also deleted: {useless}.")
    kept = sorted(plan.kept.items(), key=lambda item: (-item[1], item[0].value))
    if kept:
        lines.append(
            "Kept: "
            + ", ".join(f"{number:,} {prune_words.REASON_WORDS[reason].lower()}" for reason, number in kept)
            + "."
        )
    lines.append(f"{'STORAGE' if plan.storage.at_risk else 'Storage'}: {plan.storage.why}")
    if plan.lost:
        lines += ["What can't be restored:", *(f"  - {sentence}" for sentence in plan.lost)]
    if plan.cautions:
        lines.append("Acknowledge by name:")
        lines += [f"  - {caution.name}: {caution.why}" for caution in plan.cautions]
    return "\n".join(lines)


def rows_text(rows: Mapping[str, int]) -> list[str]:
    """A line with the numbers of rows by table, or no line if there are no rows."""
    listed = ", ".join(f"{table} {number:,}" for table, number in sorted(rows.items()) if number)
    return [f"Rows: {listed}."] if listed else []


def how_to_apply(arguments: argparse.Namespace, plan: PrunePlan) -> str:
    """The command that applies the plan, to be copied."""
    if not plan.deletions and plan.housekeeping is None:
        return "There is nobody to delete."
    command = ["hubguard", "prune", "apply"]
    if plan.offline:
        if arguments.output is None:
            return "Nothing was changed. HubGuard doesn't keep offline plans: to apply one, plan again with -o FILE."
        command += [
            "--offline",
            *hub_db_words(arguments.hub_db),
            *config_words(arguments),
        ]
    command += [str(arguments.output or plan.digest[:12]), "--count", str(len(plan.deletions))]
    command += acknowledging(plan.cautions)
    database = with_hub_db(arguments.hub_db) if plan.offline else ""
    until = f"{plan.expires_at:%Y-%m-%d %H:%M} UTC"
    return f"Nothing was changed. To apply the plan before {until}{database}:\n\n    {shlex.join(command)}\n"


def config_words(arguments: argparse.Namespace) -> list[str]:
    """The options that name the configs, as they were given."""
    return [f"--config={path}" for path in arguments.config or ()]


def hub_db_words(url: str) -> list[str]:
    """The option that names the hub's database, left out if it holds a password."""
    return [] if _holds_secret(url) else [f"--hub-db={url}"]


def with_hub_db(url: str) -> str:
    """What to say next to a command from which :func:`hub_db_words` left out the URL, else ""."""
    return ", with the same --hub-db" if _holds_secret(url) else ""


def _holds_secret(url: str) -> bool:
    parsed = make_url(url)
    return parsed.password is not None or bool(parsed.query)
