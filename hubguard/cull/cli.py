"""The commands of culling: cull, explain and keep."""

from __future__ import annotations

import argparse
import asyncio
import json
import sys
from collections.abc import Mapping
from dataclasses import asdict
from datetime import datetime, timedelta, timezone
from typing import Any
from urllib.parse import quote

from hubguard import words
from hubguard.console import Context, Exit, add_json, bounded, user_and_server
from hubguard.cull import shapes
from hubguard.cull import words as cull_words
from hubguard.cull.model import Wish
from hubguard.errors import ConfigError, HubGuardError
from hubguard.hub.names import nearest, resolved, spellings
from hubguard.journal import words as journal_words
from hubguard.journal.model import Entry
from hubguard.journal.store import Journal, open_journal
from hubguard.model import Cause
from hubguard.snapshot.store import ActivityStore
from hubguard.times import DAY_S, YEAR_S, moment, span_s
from hubguard.web.client import Refused, RunningGuard, running_guard, running_lease

CYCLE_S = 3600.0
"""Maximum seconds to wait for a cycle of the running guard. A thousand slow stops take long."""


def add_cull(parser: argparse.ArgumentParser) -> None:
    """The options of ``hubguard cull``."""
    timeout = bounded(float, 0.001, YEAR_S, noun="number above 0 and up to a year")
    parser.add_argument(
        "--once", action="store_true", required=True, help="run one cycle (the service runs the others)"
    )
    parser.add_argument("--dry-run", action="store_true", help="print what would be stopped, and stop nothing")
    add_json(parser, "print the whole report as JSON")
    parser.add_argument("--timeout", type=timeout, metavar="S", help="idle timeout for this cycle, in seconds")
    parser.add_argument(
        "--concurrency",
        type=bounded(int, 1, 500, noun="count from 1 to 500"),
        metavar="N",
        help="maximum number of stops at a time",
    )
    parser.add_argument(
        "--rate",
        type=bounded(float, 0.1, 1000, noun="number from 0.1 to 1000"),
        metavar="PER_SECOND",
        help="maximum number of requests per second",
    )
    parser.set_defaults(run=cull)


def cull(arguments: argparse.Namespace, context: Context) -> int:
    """Run one cycle: by the running guard, or by this command alone if no guard runs."""
    context.check()
    wish = Wish(arguments.dry_run, arguments.timeout, arguments.rate, arguments.concurrency)
    report = asyncio.run(
        _cycle(context, policy_known=bool(arguments.config) or arguments.timeout is not None, wish=wish)
    )
    context.say(json.dumps(report, indent=2) if arguments.json else cull_words.report_text(report))
    return exit_code(report, dry_run=arguments.dry_run)


async def _cycle(context: Context, *, policy_known: bool, wish: Wish) -> dict[str, Any]:
    """The report of one cycle, as the API returns it.

    A running guard does it at its own pace, and checks our token's rights. If there is none, this command takes the lease
    for one cycle; then nobody knows the hub's policy unless the caller gave one. Raises HubGuardError.
    """
    url, place = context.journal, context.place
    lease = await asyncio.to_thread(running_lease, url)
    if lease is not None:
        given = {key: value for key, value in asdict(wish).items() if value is not None}
        answer: dict[str, Any] = await RunningGuard(lease, place.token).ask(
            "POST", "api/v1/cycles", given, within_s=CYCLE_S
        )
        return answer
    if not policy_known:
        raise ConfigError(
            "--config",
            "is needed, or --timeout: no guard is running, and this command doesn't know the hub's idle timeout. Pass the"
            " hub's jupyterhub_config.py",
        )
    report: dict[str, Any] = words.as_json(shapes.describe_cycle(await context.cycle_alone(place, context.actor, wish)))
    return report


def exit_code(report: Mapping[str, Any], *, dry_run: bool) -> Exit:
    """Fine if all that was due is done (or a dry run printed it); failed if something failed or wasn't tried."""
    if not all(source["complete"] for source in report["sources"]):
        return Exit.FAILED
    if report["skipped_why"] and not dry_run:
        return Exit.HELD
    return Exit.FAILED if any(map(_came_to_nothing, report["actions"])) else Exit.FINE


def _came_to_nothing(action: Mapping[str, Any]) -> bool:
    if action["outcome"] == "skipped":
        return bool(action["cause"] == Cause.NOT_TRIED.value)
    return action["outcome"] in {"failed", "unverified"}


# -- explain --------------------------------------------------------------------------------------------------------------


def add_explain(parser: argparse.ArgumentParser) -> None:
    """The arguments of ``hubguard explain``."""
    parser.add_argument(
        "who",
        metavar="USER[/SERVER]",
        help="ada is her default server, ada/gpu a named one; write %%2F for a slash in a name",
    )
    add_json(parser)
    parser.set_defaults(run=explain)


def explain(arguments: argparse.Namespace, context: Context) -> int:
    """Print why the running guard stops or keeps a server; of one that doesn't run, what the journal has."""
    url = context.journal
    user, server = user_and_server(arguments.who)
    instead = "Only a running guard can explain. To see what would be stopped: hubguard cull --once --dry-run"
    guard = running_guard(url, context.place.token, instead=instead)
    path = f"api/v1/servers/{quote(user, safe='')}/{quote(server or '', safe='')}"
    try:
        row = asyncio.run(guard.ask("GET", path))
    except Refused as refused:
        past = _past(context, user, server)
        if refused.status != 404 or not past:
            raise
        if arguments.json:
            entries = list(map(journal_words.entry_json, past))
            context.say(
                json.dumps({"user": user, "name": server, "message": str(refused), "entries": entries}, indent=2)
            )
        else:
            context.say("\n".join([str(refused), *map(journal_words.entry_text, past)]))
        return Exit.FINE
    context.say(json.dumps(row, indent=2) if arguments.json else cull_words.server_text(row))
    return Exit.FINE


PAST = 20
"""Maximum journal entries that ``explain`` prints about a server that doesn't run."""


def _past(context: Context, user: str, server: str | None) -> tuple[Entry, ...]:
    """What the journal has of that server, or of all of the user's (``server`` None), newest first."""
    journal = open_journal(context.journal)
    try:
        by_spelling = (journal.entries(limit=PAST, user=spelling, server=server) for spelling in spellings(user))
        return next((entries for entries in by_spelling if entries), ())
    finally:
        journal.close()


# -- keep -----------------------------------------------------------------------------------------------------------------


def add_keep(parser: argparse.ArgumentParser) -> None:
    """The arguments of ``hubguard keep``."""
    parser.add_argument(
        "who",
        nargs="?",
        default="",
        metavar="USER[/SERVER]",
        help="ada is all of her servers, ada/ her default server, ada/gpu a named one; write %%2F for a slash in a name",
    )
    parser.add_argument("why", nargs="?", default="", metavar="WHY", help="reason, for the journal")
    what = parser.add_mutually_exclusive_group(required=True)
    what.add_argument(
        "--for",
        type=bounded(span_s, 0.001, YEAR_S, noun="span such as 90min, 12h, 7d or 2w, and up to a year"),
        dest="for_s",
        metavar="SPAN",
        help="how long to keep it, from now: 90min, 12h, 7d, 2w",
    )
    what.add_argument(
        "--until",
        type=bounded(moment, noun="time such as 2026-12-01 or 2026-12-01T18:00"),
        metavar="TIME",
        help="keep it until then, in UTC: 2026-12-01T18:00, or 2026-12-01 for the whole day",
    )
    what.add_argument("--list", action="store_true", help="list what is kept")
    what.add_argument(
        "--end",
        type=bounded(int, 1, 2**62, noun="number of an exemption, as --list prints it"),
        metavar="ID",
        help="end that exemption",
    )
    add_json(parser, "print JSON")
    parser.set_defaults(run=keep, why_last=True)


def keep(arguments: argparse.Namespace, context: Context) -> int:
    """Add, list or end exemptions, straight in the journal, so that it works with hub and proxy down."""
    now = datetime.now(timezone.utc)
    ending, listing = arguments.end is not None, arguments.list
    if ending and not arguments.why:
        arguments.who, arguments.why = "", arguments.who
    if (arguments.who == "") != (ending or listing) or (listing and arguments.why):
        needed = "takes no USER" if ending or listing else "needs a USER"
        raise ConfigError("keep", f"{needed} here. Run hubguard keep --help")
    journal = open_journal(context.journal)
    try:
        if listing:
            exemptions = journal.exemptions(now)
        elif ending:
            exemptions = (journal.end_exemption(arguments.end, context.actor, arguments.why, now),)
        else:
            user, server = user_and_server(arguments.who)
            until = _until(arguments, context, now)
            user = _meant(context, journal, user)
            exemptions = (journal.exempt(user, server, until, context.actor, arguments.why, now),)
            if not ActivityStore(journal).activity():
                note = f"The name {user} isn't checked: HubGuard hasn't seen any server of the hub yet"
                print(note, file=sys.stderr)
    finally:
        journal.close()
    if arguments.json:
        context.say(json.dumps(words.as_json(exemptions if listing else exemptions[0]), indent=2))
    elif ending:
        context.say(f"no longer kept: {words.kept_label(exemptions[0].user, exemptions[0].server)}")
    else:
        context.say("\n".join(map(journal_words.exemption_text, exemptions)) or "nothing is kept")
    return Exit.FINE


def _meant(context: Context, journal: Journal, user: str) -> str:
    """Who is meant by ``user``: the running guard asks the hub; without it, the journal has the users it has seen.

    Raises HubGuardError for an unknown name. A journal that has seen no user yet takes any.
    """
    if context.environ.get("JUPYTERHUB_API_TOKEN"):
        try:
            guard = running_guard(context.journal, context.place.token, instead="")
            return str(asyncio.run(guard.ask("GET", f"api/v1/users/{quote(user, safe='')}"))["user"])
        except Refused as refused:
            if refused.status == 404:
                raise
        except HubGuardError:
            pass  # what it has seen is in the journal
    seen = {name for name, _ in ActivityStore(journal).activity()}
    name = resolved(user, seen)
    if name is not None:
        return name
    if seen:
        near = nearest(user, seen)
        meant = f" Did you mean {' or '.join(near)}?" if near else ""
        raise HubGuardError(
            f"Nothing was changed: HubGuard has seen no server of {user}, and this command can't ask the hub.{meant}"
            " It can if the guard is running and JUPYTERHUB_API_TOKEN is that of its service"
        )
    return user


def _until(arguments: argparse.Namespace, context: Context, now: datetime) -> datetime:
    """Until when to keep. Raises ConfigError if that has passed, or is later than the settings allow."""
    longest_s = context.configured.guard.longest_exemption_s
    option = "--for" if arguments.until is None else "--until"
    until: datetime = now + timedelta(seconds=arguments.for_s) if arguments.until is None else arguments.until
    if until <= now:
        raise ConfigError(option, f"{until:%Y-%m-%d %H:%M} UTC has passed. Nothing was changed")
    if (until - now).total_seconds() > longest_s:
        latest = f"{longest_s / DAY_S:g} days (HubGuard.longest_exemption_s)"
        raise ConfigError(option, f"the maximum is {latest}. Nothing was changed")
    return until


ARGUMENTS = {"cull": add_cull, "explain": add_explain, "keep": add_keep}
