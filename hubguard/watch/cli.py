"""The command ``hubguard alerts list`` and its neighbours: what is wrong now, and which rules there are."""

from __future__ import annotations

import argparse
import asyncio
import json
from collections.abc import Mapping
from typing import Any

from hubguard.console import Context, Exit, add_config, add_json
from hubguard.watch.decide.adjust import adjust, adjustable
from hubguard.watch.settings import HubGuardWatch
from hubguard.web.client import all_rows, running_guard


def add_alerts(parser: argparse.ArgumentParser) -> None:
    """The options of ``hubguard alerts``."""
    commands = parser.add_subparsers(dest="what", required=True, metavar="WHAT")
    listed = commands.add_parser("list", help="show the alerts that are firing or pending")
    add_json(listed)
    add_config(listed)
    listed.set_defaults(run=list_alerts)
    rules = commands.add_parser(
        "rules", help="show every alert, when it is raised, and what HubGuardWatch.alerts can change"
    )
    add_json(rules)
    add_config(rules)
    rules.set_defaults(run=list_rules)


def list_alerts(arguments: argparse.Namespace, context: Context) -> int:
    """Print the alerts, the most urgent first; FINDINGS if one is firing."""
    guard = running_guard(context.journal, context.place.token, instead="Only a running guard watches")
    rows = asyncio.run(all_rows(guard, "api/v1/alerts"))
    if arguments.json:
        context.say(json.dumps(rows, indent=2))
    else:
        context.say("\n".join(map(alert_text, rows)) or "No alerts.")
    return Exit.FINDINGS if any(row["raised_at"] for row in rows) else Exit.FINE


def alert_text(row: Mapping[str, Any]) -> str:
    """An alert of the API's for a terminal."""
    if row["raised_at"] is None:
        return f"pending  {row['rule']}: {row['sentence']}"
    return f"{row['severity']:<9}  {row['rule']}: {row['sentence']}\n           First: {row['first']}"


def list_rules(arguments: argparse.Namespace, context: Context) -> int:
    """Print the rules in force."""
    rules = adjust(context.section(HubGuardWatch).alerts)
    if arguments.json:
        context.say(
            json.dumps(
                [{"name": rule.name, "why": rule.why, "first": rule.first, **adjustable(rule)} for rule in rules],
                indent=2,
            )
        )
        return Exit.FINE
    for rule in rules:
        numbers = ", ".join(f"{name}={value}" for name, value in adjustable(rule).items() if name != "severity")
        context.say(f"{rule.name} ({rule.severity.value}): {rule.why}\n    {numbers}")
    return Exit.FINE


ARGUMENTS = {"alerts": add_alerts}
