"""``hubguard drift``: what the running guard found, one server across all sources, and repairs."""

from __future__ import annotations

import argparse
import asyncio
import json
import re
import time
from collections.abc import Mapping, Sequence
from typing import Any
from urllib.parse import quote

from hubguard import words
from hubguard.console import Context, Exit, add_json, count, user_and_server
from hubguard.drift import beliefs
from hubguard.drift import shapes as drift_shapes
from hubguard.drift import words as drift_words
from hubguard.drift.model import DriftKind
from hubguard.errors import ConfigError, HubGuardError
from hubguard.model import Cause, OutcomeKind
from hubguard.web.client import Refused, RunningGuard, all_rows, running_guard

POLL_S = 1.0
"""Seconds between two reads of the outcomes of repairs."""

OUTCOMES_S = 900.0
"""Maximum seconds to wait for the outcomes; repairs without one are then reported as under way."""

_KINDS = {kind.value for kind in DriftKind}
_ID = re.compile("[0-9a-f]{16}")


def add_drift(parser: argparse.ArgumentParser) -> None:
    """The options of ``hubguard drift``."""
    what = parser.add_mutually_exclusive_group()
    what.add_argument(
        "--kind", nargs="+", default=[], metavar="KIND", help="show only these kinds, for example server-dead"
    )
    what.add_argument(
        "--repair", nargs="+", metavar="KIND|ID", help="show the repairs of these, and make them after confirmation"
    )
    what.add_argument(
        "--server",
        metavar="USER[/NAME]",
        help="show what each source says of that server, even if the hub doesn't know it; write %%2F for a slash in a name",
    )
    parser.add_argument("--look", action="store_true", help="look at all sources first")
    parser.add_argument(
        "--count", type=count(), metavar="N", help="number of repairs (required when not run interactively)"
    )
    parser.add_argument("--why", default="", help="reason, for the journal")
    add_json(parser)
    parser.set_defaults(run=drift)


def drift(arguments: argparse.Namespace, context: Context) -> int:
    """Show drift, one server, or repair."""
    place = context.place
    guard = running_guard(context.journal, place.token, instead="Only a running guard looks for drift")
    if arguments.repair:
        if arguments.kind or arguments.look:
            raise ConfigError(
                "--repair", "takes kinds and ids itself, and always looks first. Leave out --kind and --look"
            )
        return asyncio.run(repair(arguments, context, guard))
    if arguments.count is not None or arguments.why:
        raise ConfigError("--repair", "is missing: --count and --why belong to it. Run hubguard drift --help")
    if arguments.server:
        return asyncio.run(one_server(arguments, context, guard))
    return asyncio.run(show(arguments, context, guard))


async def show(arguments: argparse.Namespace, context: Context, guard: RunningGuard) -> int:
    """Print what was found. It fails if a source can't be read, so that "no drift" can be relied on."""
    kinds: Sequence[str] = arguments.kind
    for kind in kinds:
        if kind not in _KINDS:
            raise ConfigError("--kind", f"{kind!r} is no kind of drift; choose from {', '.join(sorted(_KINDS))}")
    if arguments.look:
        await guard.ask("POST", "api/v1/drift/looks", {})
    report = await guard.ask("GET", "api/v1/drift/report")
    looked = report["looked_at"] is not None
    rows = [row for row in await all_rows(guard, "api/v1/drift") if not kinds or row["kind"] in kinds] if looked else []
    if arguments.json:
        context.say(json.dumps({**report, "drift": rows}, indent=2))
    else:
        context.say("\n".join([*map(drift_words.drift_text, rows), *_around(report)]))
    if any(row["state"] == drift_shapes.DriftState.RAISED.value for row in rows):
        return Exit.FINDINGS
    blind = not looked or report["servers"] is None or report["routes"] is None
    return Exit.FAILED if blind or not all(source["complete"] for source in report["sources"]) else Exit.FINE


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


async def one_server(arguments: argparse.Namespace, context: Context, guard: RunningGuard) -> int:
    """Print what each source says of a server."""
    user, server = user_and_server(arguments.server)
    answer = await guard.ask("GET", f"api/v1/beliefs/{quote(user, safe='')}/{quote(server or '', safe='')}")
    context.say(json.dumps(answer, indent=2) if arguments.json else beliefs.beliefs_text(answer))
    raised = any(drift["state"] == drift_shapes.DriftState.RAISED.value for drift in answer["drifts"])
    return Exit.FINDINGS if raised else Exit.FINE


async def repair(arguments: argparse.Namespace, context: Context, guard: RunningGuard) -> int:
    """Print the plan, have the guard carry it out once its count is confirmed, and wait for the outcomes.

    It is fine if every repair is done or no longer needed.
    """
    kinds = [word for word in arguments.repair if word in _KINDS]
    ids = [word for word in arguments.repair if word not in _KINDS]
    for word in ids:
        if not _ID.fullmatch(word):
            raise ConfigError("--repair", f"{word!r} is neither a kind of drift nor the id of one")
    plan = await guard.ask("POST", "api/v1/repairs", {"kinds": kinds, "ids": ids})
    if not arguments.json:
        context.say(drift_words.plan_text(plan))
    await _confirm(plan, arguments.count, asks=context.asks)
    body = {"digest": plan["digest"], "count": plan["count"], "why": arguments.why}
    try:
        await guard.ask("POST", "api/v1/repairs", body)
    except Refused as refused:
        if refused.status == 409 and await guard.held_or_braked():
            context.say(f"Nothing was repaired. {(await guard.ask('GET', 'api/v1/status'))['sentence']}")
            return Exit.HELD
        raise
    outcomes = await _outcomes(guard, plan)
    if arguments.json:
        context.say(json.dumps({"plan": plan, "repaired": list(outcomes.values())}, indent=2))
    else:
        context.say("\n".join(_outcome_text(step, outcomes.get(_key(step))) for step in plan["repairs"]))
    if all(_came_right(outcomes.get(_key(step))) for step in plan["repairs"]):
        return Exit.FINE
    return Exit.HELD if await guard.held_or_braked() else Exit.FAILED


async def _confirm(plan: Mapping[str, Any], given: int | None, *, asks: bool) -> None:
    """Returns when the count of ``plan`` was given or typed. Raises ConfigError, HubGuardError."""
    repairs = words.count(plan["count"], "repair")
    if given is None and asks:
        typed = await asyncio.to_thread(input, "To confirm, type the number of repairs: ")
        if typed.strip() != str(plan["count"]):
            raise HubGuardError(f"Nothing was repaired: the plan has {repairs}")
    elif given is None:
        raise ConfigError(
            "--count", f"is required when not run interactively; the plan has {repairs}. Nothing was repaired"
        )
    elif given != plan["count"]:
        raise ConfigError("--count", f"the plan has {repairs}, not {given}. Nothing was repaired")


async def _outcomes(guard: RunningGuard, plan: Mapping[str, Any]) -> dict[tuple[str, ...], dict[str, Any]]:
    """The outcome of each repair of ``plan``, by its key; repairs without one after OUTCOMES_S are missing."""
    wanted = {_key(step) for step in plan["repairs"]}
    outcomes: dict[tuple[str, ...], dict[str, Any]] = {}
    end = time.monotonic() + OUTCOMES_S
    while True:
        for repaired in (await guard.ask("GET", "api/v1/drift/report"))["repaired"]:
            # The newest comes first: an older repair of the same drift was for another plan.
            missing = _key(repaired) in wanted - set(outcomes)
            if missing and repaired["outcome"] and repaired["began_at"] >= plan["made_at"]:
                outcomes[_key(repaired)] = repaired
        if len(outcomes) == len(wanted) or time.monotonic() > end:
            return outcomes
        await asyncio.sleep(POLL_S)


def _key(step: Mapping[str, Any]) -> tuple[str, ...]:
    return (step["kind"], *step["drifts"])


def _came_right(repaired: Mapping[str, Any] | None) -> bool:
    """Whether a repair is done, or no longer needed."""
    if repaired is None:
        return False
    needless = repaired["outcome"] == OutcomeKind.SKIPPED.value and repaired["cause"] != Cause.NOT_TRIED.value
    return bool(needless or repaired["outcome"] == OutcomeKind.DONE.value)


def _outcome_text(step: Mapping[str, Any], repaired: Mapping[str, Any] | None) -> str:
    if repaired is None:
        return f"  {step['says']}: still under way; the Drift page shows the outcome"
    return f"  {step['says']}: {repaired['outcome']}{', ' + repaired['detail'] if repaired['detail'] else ''}"


ARGUMENTS = {"drift": add_drift}
