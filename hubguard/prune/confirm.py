"""Asking people: the plan shown, cautions acknowledged, the count typed."""

from __future__ import annotations

import argparse
import json
import os
import shlex
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

from sqlalchemy.engine import make_url

from hubguard.errors import ConfigError, HubGuardError
from hubguard.prune import words as prune_words
from hubguard.prune.decide import plan as prune_plan
from hubguard.prune.model import Caution, PrunePlan

FINE, FAILED, HELD = 0, 1, 3


LINE_S = 10.0
"""Where progress isn't shown in place, a line for it comes so often at most, in seconds."""


Say = Callable[[str], None]
"""Where what a person or a script is to read goes."""


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
        _write(arguments.csv, prune_words.plan_csv(plan))
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


def to_people(text: str) -> None:
    """A line on stderr, where no script reads."""
    _write_now(f"{text}\n")


def _write_now(text: str) -> None:
    sys.stderr.write(text)
    sys.stderr.flush()


def plan_text(plan: PrunePlan) -> str:
    """A plan for a terminal: how many of how many, why, who is kept, what is gained, and what can't come back."""
    lines = [prune_words.plan_sentence(plan), f"Then {prune_words.gain_sentence(plan)}"]
    lines += rows_text(plan.gain.rows or {})
    if plan.housekeeping is not None:
        useless = ", ".join(
            f"{name.replace('_', ' ')} {number:,}" for name, number in asdict(plan.housekeeping).items()
        )
        lines.append(f"Rows of no use that go, too: {useless}.")
    kept = sorted(plan.kept.items(), key=lambda item: (-item[1], item[0].value))
    if kept:
        lines.append(
            "Kept: " + ", ".join(f"{number:,} {prune_words.REASON_WORDS[one].lower()}" for one, number in kept) + "."
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
