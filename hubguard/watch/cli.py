"""The command ``hubguard alerts list`` and its neighbours: what is wrong, who hears of it, and the report of what was."""

from __future__ import annotations

import argparse
import asyncio
import json
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from datetime import datetime, timedelta, timezone
from typing import TYPE_CHECKING, Any

from hubguard.console import Context, Exit, add_config, add_json, bounded, count
from hubguard.errors import ConfigError
from hubguard.times import YEAR_S, point, span_s
from hubguard.watch.decide.adjust import adjust, adjustable, check_rule
from hubguard.watch.decide.prometheus import REFERENCE, dashboard, series_of_guard, series_of_hub, write_rules
from hubguard.watch.model import Silence
from hubguard.watch.settings import HubGuardWatch
from hubguard.web.client import all_rows, running_guard

if TYPE_CHECKING:
    from hubguard.watch.store.alerts import AlertStore


def add_alerts(parser: argparse.ArgumentParser) -> None:
    """The options of ``hubguard alerts``."""
    commands = parser.add_subparsers(dest="what", required=True, metavar="WHAT")
    listed = commands.add_parser("list", help="show the alerts that are firing or pending")
    add_json(listed)
    add_config(listed)
    listed.set_defaults(run=list_alerts)
    starts = commands.add_parser("starts", help="show why starts failed in the last half hour, and who is hit")
    add_json(starts)
    add_config(starts)
    starts.set_defaults(run=list_starts)
    rules = commands.add_parser(
        "rules", help="show every alert, when it is raised, and what HubGuardWatch.alerts can change"
    )
    add_json(rules)
    add_config(rules)
    rules.set_defaults(run=list_rules)
    written = commands.add_parser("prometheus", help="print the alerts as rules for Prometheus")
    written.add_argument(
        "--hub", type=int, choices=(5, 6), help="use the hub's own metrics where it has them, of this version"
    )
    written.add_argument(
        "--prefix",
        default="jupyterhub",
        help="with --hub: what the names of its metrics begin with (default: jupyterhub)",
    )
    written.add_argument(
        "--docs",
        metavar="URL",
        default=REFERENCE,
        help=f"where people read {REFERENCE}, for runbook_url (default: that path)",
    )
    add_config(written)
    written.set_defaults(run=print_prometheus)
    drawn = commands.add_parser("grafana", help="print a dashboard of all signals, for import into Grafana")
    add_config(drawn)
    drawn.set_defaults(run=print_grafana)
    test = commands.add_parser("test", help="send a made-up alert and its resolution to a receiver")
    test.add_argument("name", metavar="NAME", help="its name in HubGuardWatch.receivers")
    add_config(test)
    test.set_defaults(run=try_receiver)
    silence = commands.add_parser("silence", help="send no notices of an alert for a while")
    silence.add_argument("rule", metavar="RULE", help="name of the alert, or all")
    silence.add_argument("why", nargs="?", default="", metavar="WHY", help="reason, for the journal")
    silence.add_argument(
        "--subject", metavar="S", help="only for this subject, for example a folder (default: for all)"
    )
    silence.add_argument(
        "--for",
        type=bounded(span_s, 0.001, YEAR_S, noun="span such as 90min, 12h, 7d or 2w, and up to a year"),
        dest="for_s",
        metavar="SPAN",
        required=True,
        help="how long, from now: 90min, 12h, 7d, 2w",
    )
    add_json(silence, "print JSON")
    add_config(silence)
    silence.set_defaults(run=silence_alert, why_last=True)
    silences = commands.add_parser("silences", help="list the silences in force")
    add_json(silences, "print JSON")
    add_config(silences)
    silences.set_defaults(run=list_silences)
    ending = commands.add_parser("end-silence", help="end a silence")
    ending.add_argument(
        "id",
        type=bounded(int, 1, 2**62, noun="number of a silence, as `hubguard alerts silences` prints it"),
        metavar="ID",
        help="number of the silence",
    )
    add_json(ending, "print JSON")
    add_config(ending)
    ending.set_defaults(run=end_silence)


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


def list_starts(arguments: argparse.Namespace, context: Context) -> int:
    """Print the failed starts, the most frequent cause first; FINDINGS if there are any."""
    guard = running_guard(context.journal, context.place.token, instead="Only a running guard watches")
    found = asyncio.run(guard.ask("GET", "api/v1/starts"))
    if arguments.json:
        context.say(json.dumps(found, indent=2))
    else:
        context.say(starts_text(found))
    return Exit.FINDINGS if found["failures"] or found["counted"] else Exit.FINE


def starts_text(found: Mapping[str, Any]) -> str:
    """The API's answer on failed starts for a terminal."""
    if not found["failures"] and not found["counted"]:
        return "No start failed within the last half hour." if found["counted"] == 0 else "No failed start is known."
    lines = [found["sentence"]] if found["sentence"] else []
    for cause in found["causes"]:
        lines.append(f"{cause['count']:>5}  {cause['cause']}, since {cause['since']}: {', '.join(cause['users'])}")
        lines.append(f"       {next(one['message'] for one in found['failures'] if one['cause'] == cause['cause'])}")
    if (more := (found["counted"] or 0) - len(found["failures"])) > 0:
        lines.append(f"{more:>5}  counted by the hub, without a report of the cause")
    return "\n".join(lines)


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


def print_prometheus(arguments: argparse.Namespace, context: Context) -> int:
    """Print the rules in force as Prometheus reads them."""
    series = series_of_guard if arguments.hub is None else series_of_hub(arguments.hub, arguments.prefix)
    context.say(write_rules(adjust(context.section(HubGuardWatch).alerts), series, arguments.docs).rstrip())
    return Exit.FINE


def print_grafana(arguments: argparse.Namespace, context: Context) -> int:
    """Print the dashboard."""
    context.say(json.dumps(dashboard(), indent=2))
    return Exit.FINE


def try_receiver(arguments: argparse.Namespace, context: Context) -> int:
    """Send a made-up alert and its resolution, and print what the receiver answered; FAILED unless it took both."""
    from hubguard.watch.notify.trial import send_trial

    results = asyncio.run(send_trial(context.section(HubGuardWatch).receivers, arguments.name, context.environ))
    for what, result in results:
        context.say(f"{what}: {'taken' if result.delivered else 'not taken'} ({result.said})")
    return Exit.FINE if all(result.delivered for _, result in results) else Exit.FAILED


def silence_alert(arguments: argparse.Namespace, context: Context) -> int:
    """Silence it, straight in the journal, so that it works with hub and guard down."""
    now = datetime.now(timezone.utc)
    rule = "" if arguments.rule == "all" else arguments.rule
    check_rule(rule, [rule.name for rule in adjust(context.section(HubGuardWatch).alerts)])
    until = now + timedelta(seconds=arguments.for_s)
    with _alert_store(context) as alerts:
        made = alerts.silence(rule, arguments.subject, until, context.actor, arguments.why, now)
    _say_silences([made], context, as_one=True, json_wanted=arguments.json)
    return Exit.FINE


def list_silences(arguments: argparse.Namespace, context: Context) -> int:
    """Print those in force, newest first."""
    with _alert_store(context) as alerts:
        silences = alerts.silences(datetime.now(timezone.utc))
    _say_silences(silences, context, as_one=False, json_wanted=arguments.json)
    return Exit.FINE


def end_silence(arguments: argparse.Namespace, context: Context) -> int:
    """End it, straight in the journal."""
    with _alert_store(context) as alerts:
        ended = alerts.end_silence(arguments.id, context.actor, datetime.now(timezone.utc))
    if arguments.json:
        _say_silences([ended], context, as_one=True, json_wanted=True)
    else:
        context.say(f"Silence {ended.id} has ended. Whoever wasn't notified of an alert that is still firing, is now.")
    return Exit.FINE


@contextmanager
def _alert_store(context: Context) -> Iterator[AlertStore]:
    from hubguard.journal.store import open_journal
    from hubguard.watch.store.alerts import AlertStore

    journal = open_journal(context.journal)
    try:
        yield AlertStore(journal)
    finally:
        journal.close()


def _say_silences(silences: Sequence[Silence], context: Context, *, as_one: bool, json_wanted: bool) -> None:
    from hubguard.words import as_json, stamp

    if json_wanted:
        context.say(json.dumps(as_json(silences[0] if as_one else silences), indent=2))
        return
    lines = [
        f"{silence.id}  {silence.rule or 'all alerts'}{(silence.subject and f' of {silence.subject}') or ''} until"
        f" {stamp(silence.until)}, by {silence.actor}{silence.why and f': {silence.why}'}"
        for silence in silences
    ]
    context.say("\n".join(lines) or "Nothing is silenced.")


def add_report(parser: argparse.ArgumentParser) -> None:
    """The options of ``hubguard report``."""
    which = parser.add_mutually_exclusive_group(required=True)
    which.add_argument("--incident", type=count(1), metavar="N", help="the incident of this number")
    which.add_argument(
        "--since",
        metavar="TIME",
        help="the time from here on: 2026-11-21, 2026-11-21T12:00, or how long ago, for example 2h",
    )
    parser.add_argument("--until", metavar="TIME", help="end of that time (default: now)")
    add_json(parser)
    parser.set_defaults(run=report)


def report(arguments: argparse.Namespace, context: Context) -> int:
    """Print the report, from the journal alone: it works with hub and guard down."""
    from hubguard.journal.store import open_journal
    from hubguard.watch.incident import tell, tell_incident
    from hubguard.watch.report import write_report
    from hubguard.words import as_json, stamp

    now = datetime.now(timezone.utc)
    if arguments.until and not arguments.since:
        raise ConfigError("--until", "belongs to --since. An incident has its own times")
    since, until = (_moment(name, getattr(arguments, name), now) for name in ("since", "until"))
    if since is not None and since >= (until or now):
        raise ConfigError("--since", f"must lie before {stamp(until or now)}")
    journal = open_journal(context.journal)
    try:
        number = arguments.incident
        story = tell(journal, since, until or now, now) if since else tell_incident(journal, number, now)
    finally:
        journal.close()
    context.say(json.dumps(as_json(story), indent=2) if arguments.json else write_report(story, now).rstrip())
    return Exit.FINE


def _moment(name: str, text: str | None, now: datetime) -> datetime | None:
    if text is None:
        return None
    try:
        return point(text, now)
    except ValueError as error:
        raise ConfigError(f"--{name}", str(error)) from None


ARGUMENTS = {"alerts": add_alerts, "report": add_report}
