"""``hubguard drift``: what the running guard found, one server across all sources, and repairs, from a terminal."""

from __future__ import annotations

import argparse
import asyncio
import json
import os
import re
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from typing import Any
from urllib.parse import quote

from hubguard import words
from hubguard.console import _count_or_0, _settings, _the_guards_journal, _user_and_server
from hubguard.drift import beliefs
from hubguard.drift import words as drift_words
from hubguard.drift.model import DriftKind
from hubguard.errors import ConfigError, HubGuardError
from hubguard.model import Cause, OutcomeKind
from hubguard.status import Mode
from hubguard.web.client import Refused, RunningGuard

FINE, FAILED, HELD, FINDINGS = 0, 1, 3, 4

PAGE = 1000
POLL_S = 1.0
"""Seconds from one question for the outcomes of repairs to the next."""

OUTCOMES_S = 900.0
"""Repairs that have no outcome after this long are told as such."""

Say = Callable[[str], None]
"""Where what a person or a script is to read goes."""

_KINDS = {kind.value for kind in DriftKind}
_ID = re.compile("[0-9a-f]{16}")


async def show(guard: RunningGuard, say: Say, *, kinds: Sequence[str], look: bool, as_json: bool) -> int:
    """Say what was found; 0 for no drift, 4 for some, 1 where it can't be told. Raises ConfigError, HubGuardError."""
    for kind in kinds:
        if kind not in _KINDS:
            raise ConfigError("--kind", f"{kind!r} is no kind of drift; there are {', '.join(sorted(_KINDS))}")
    if look:
        await guard.ask("POST", "api/v1/drift/looks", {})
    report = await guard.ask("GET", "api/v1/drift/report")
    looked = report["looked_at"] is not None
    rows = [row for row in await _all_drift(guard) if not kinds or row["kind"] in kinds] if looked else []
    if as_json:
        say(json.dumps({**report, "drift": rows}, indent=2))
    else:
        say("\n".join([*map(drift_words.drift_text, rows), *_around(report)]))
    if any(row["state"] == drift_words.DriftState.RAISED.value for row in rows):
        return FINDINGS
    blind = not looked or report["servers"] is None or report["routes"] is None
    return FAILED if blind or not all(source["complete"] for source in report["sources"]) else FINE


async def _all_drift(guard: RunningGuard) -> list[dict[str, Any]]:
    """Every difference, in the guard's order."""
    rows: list[dict[str, Any]] = []
    while True:
        page = await guard.ask("GET", f"api/v1/drift?offset={len(rows)}&limit={PAGE}")
        rows += page
        if len(page) < PAGE:
            return rows


def _around(report: Mapping[str, Any]) -> list[str]:
    lines = [report["sentence"]]
    if report["looked_at"] is not None:
        lines[0] += f" As of {report['looked_at']}."
    lines += [
        f"The {source['source']} reading is incomplete: {source['detail']}"
        for source in report["sources"]
        if not source["complete"]
    ]
    lines += report["narrowed"]
    if report["watch"]["why"]:
        lines.append(f"Proxy: {report['watch']['why']}")
    return lines


async def one_server(guard: RunningGuard, say: Say, user: str, server: str, *, as_json: bool) -> int:
    """Say what each source says of a server; 4 where they differ, else 0. Raises HubGuardError."""
    told = await guard.ask("GET", f"api/v1/beliefs/{quote(user, safe='')}/{quote(server, safe='')}")
    say(json.dumps(told, indent=2) if as_json else beliefs.beliefs_text(told))
    return FINDINGS if any(one["state"] == drift_words.DriftState.RAISED.value for one in told["drifts"]) else FINE


async def repair(
    guard: RunningGuard, say: Say, wanted: Sequence[str], *, count: int | None, why: str, as_json: bool, asks: bool
) -> int:
    """Say the plan, have it carried out once its count is confirmed, and wait for the outcomes.

    ``wanted`` are kinds and ids; ``count`` None is asked for where there is somebody to ask (``asks``). 0: all was done, or
    no longer needed; 1: some of it wasn't; 3: on hold or braked. Raises ConfigError, HubGuardError.
    """
    for word in wanted:
        if word not in _KINDS and not _ID.fullmatch(word):
            raise ConfigError("--repair", f"{word!r} is neither a kind of drift nor the id of one")
    kinds, ids = [word for word in wanted if word in _KINDS], [word for word in wanted if word not in _KINDS]
    plan = await guard.ask("POST", "api/v1/repairs", {"kinds": kinds, "ids": ids})
    if not as_json:
        say(drift_words.plan_text(plan))
    if count is None:
        await _confirm(plan, asks)
    elif count != plan["count"]:
        many = words.count(plan["count"], "repair")
        raise ConfigError("--count", f"the plan has {many}, not {count}. Nothing was done")
    body = {"digest": plan["digest"], "count": plan["count"], "why": why}
    try:
        await guard.ask("POST", "api/v1/repairs", body)
    except Refused as refused:
        if refused.status == 409 and await _held(guard):
            say(f"Nothing was done: {(await guard.ask('GET', 'api/v1/status'))['sentence']}")
            return HELD
        raise
    outcomes = await _outcomes(guard, plan)
    if as_json:
        say(json.dumps({"plan": plan, "repaired": list(outcomes.values())}, indent=2))
    else:
        say("\n".join(_outcome_text(one, outcomes.get(_key(one))) for one in plan["repairs"]))
    if all(_came_right(outcomes.get(_key(one))) for one in plan["repairs"]):
        return FINE
    return HELD if await _held(guard) else FAILED


async def _confirm(plan: Mapping[str, Any], asks: bool) -> None:
    """Returns when somebody has typed the count of ``plan``. Raises ConfigError, HubGuardError."""
    if not asks:
        raise ConfigError("--count", f"is needed where nobody can be asked; it is {plan['count']}. Nothing was done")
    typed = await asyncio.to_thread(input, "To confirm, type how many repairs that is: ")
    if typed.strip() != str(plan["count"]):
        raise HubGuardError("That isn't the number of repairs. Nothing was done")


async def _held(guard: RunningGuard) -> bool:
    return (await guard.ask("GET", "api/v1/status"))["mode"] in {Mode.HELD.value, Mode.BRAKED.value}


async def _outcomes(guard: RunningGuard, plan: Mapping[str, Any]) -> dict[tuple[str, ...], dict[str, Any]]:
    """What came of each repair of ``plan``, by what it is for; those without an outcome after OUTCOMES_S are left out."""
    wanted = {_key(one) for one in plan["repairs"]}
    found: dict[tuple[str, ...], dict[str, Any]] = {}
    end = time.monotonic() + OUTCOMES_S
    while True:
        for one in (await guard.ask("GET", "api/v1/drift/report"))["repaired"]:
            # The newest comes first: an older repair of the same was for another plan.
            if _key(one) in wanted - set(found) and one["outcome"] and one["began_at"] >= plan["made_at"]:
                found[_key(one)] = one
        if len(found) == len(wanted) or time.monotonic() > end:
            return found
        await asyncio.sleep(POLL_S)


def _key(one: Mapping[str, Any]) -> tuple[str, ...]:
    return (one["kind"], *one["drifts"])


def _came_right(one: Mapping[str, Any] | None) -> bool:
    """Whether it is done, or is needed no longer."""
    if one is None:
        return False
    needless: bool = one["outcome"] == OutcomeKind.SKIPPED.value and one["cause"] != Cause.NOT_TRIED.value
    return needless or one["outcome"] == OutcomeKind.DONE.value


def _outcome_text(repair: Mapping[str, Any], one: Mapping[str, Any] | None) -> str:
    if one is None:
        return f"  {repair['says']}: still under way; the Drift page shows what comes of it"
    return f"  {repair['says']}: {one['outcome']}{', ' + one['detail'] if one['detail'] else ''}"


def _drift(arguments: argparse.Namespace) -> int:
    from hubguard.place import place_from
    from hubguard.web.client import running_guard

    settings, place = _settings(arguments), place_from(os.environ)
    guard = running_guard(
        _the_guards_journal(settings), place.token, instead="and it is the guard that looks for drift"
    )
    if arguments.repair:
        if arguments.kind or arguments.look:
            raise ConfigError(
                "--repair", "takes kinds and ids itself, and looks before it acts; leave out --kind and --look"
            )
        return asyncio.run(
            repair(
                guard,
                print,
                arguments.repair,
                count=arguments.count,
                why=arguments.why,
                as_json=arguments.json,
                asks=sys.stdin.isatty(),
            )
        )
    if arguments.count is not None or arguments.why:
        raise ConfigError("--repair", "is what --count and --why belong to; see `hubguard drift --help`")
    if arguments.server:
        user, server = _user_and_server(arguments.server)
        return asyncio.run(one_server(guard, print, user, server or "", as_json=arguments.json))
    return asyncio.run(show(guard, print, kinds=arguments.kind, look=arguments.look, as_json=arguments.json))


def _drift_arguments(drift: argparse.ArgumentParser) -> None:
    what = drift.add_mutually_exclusive_group()
    what.add_argument("--kind", nargs="+", default=[], metavar="KIND", help="only of these kinds, such as server-dead")
    what.add_argument(
        "--repair", nargs="+", metavar="KIND|ID", help="show what would be done about these, and do it once confirmed"
    )
    what.add_argument(
        "--server",
        metavar="USER[/NAME]",
        help="what each source says of that server, known to the hub or not; a slash in a name is written %%2F",
    )
    drift.add_argument("--look", action="store_true", help="look at all sources first")
    drift.add_argument(
        "--count", type=_count_or_0, metavar="N", help="how many repairs that is, where nobody can be asked"
    )
    drift.add_argument("--why", default="", help="a reason, for the journal")
    drift.add_argument("--json", action="store_true", help="as the API gives it")
