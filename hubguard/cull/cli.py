"""The subcommands of culling: `hubguard explain` and `hubguard keep`."""

from __future__ import annotations

import argparse
import asyncio
import json
import os
from collections.abc import Mapping
from datetime import datetime, timedelta, timezone
from typing import Any
from urllib.parse import quote

from hubguard import config, times, words
from hubguard.config import Settings
from hubguard.console import FINE, _actor, _settings, _the_guards_journal, _user_and_server
from hubguard.errors import ConfigError
from hubguard.place import place_from
from hubguard.times import moment, span_s
from hubguard.web.client import running_guard


def _explain(arguments: argparse.Namespace) -> int:
    from hubguard.cull import words as cull_words

    settings = _settings(arguments)
    _the_guards_journal(settings)
    user, server = _user_and_server(arguments.who)
    told = asyncio.run(explain(settings, os.environ, user=user, server=server or ""))
    print(json.dumps(told, indent=2) if arguments.json else cull_words.server_text(told))
    return FINE


def _keep(arguments: argparse.Namespace) -> int:
    """keep goes straight into the journal, as hold does."""
    from hubguard.journal import words as journal_words
    from hubguard.journal.store import open_journal

    settings, now = _settings(arguments), datetime.now(timezone.utc)
    ending, listing = arguments.end is not None, arguments.list
    if ending and not arguments.why:
        arguments.who, arguments.why = "", arguments.who
    if (arguments.who == "") != (ending or listing) or (listing and arguments.why):
        needed = "takes no USER" if ending or listing else "needs a USER"
        raise ConfigError("keep", f"{needed} here; see `hubguard keep --help`")
    journal = open_journal(_the_guards_journal(settings))
    try:
        if listing:
            told = journal.exemptions(now)
        elif ending:
            told = (journal.end_exemption(arguments.end, _actor(), arguments.why, now),)
        else:
            user, server = _user_and_server(arguments.who)
            told = (journal.exempt(user, server, _until(arguments, settings, now), _actor(), arguments.why, now),)
    finally:
        journal.close()
    if arguments.json:
        print(json.dumps(words.as_json(told if listing else told[0]), indent=2))
    elif ending:
        print(f"no longer kept: {words.kept_label(told[0].user, told[0].server)}")
    else:
        print("\n".join(map(journal_words.exemption_text, told)) or "nothing is kept")
    return FINE


def _until(arguments: argparse.Namespace, settings: config.Settings, now: datetime) -> datetime:
    """Until when to keep. Raises ConfigError where that is over, or later than the settings allow."""
    longest_s = settings.guard.longest_exemption_s
    option = "--for" if arguments.until is None else "--until"
    until: datetime = now + timedelta(seconds=arguments.for_s) if arguments.until is None else arguments.until
    if until <= now:
        raise ConfigError(option, f"{until:%Y-%m-%d %H:%M} UTC is over already. Nothing was changed")
    if (until - now).total_seconds() > longest_s:
        latest = f"{longest_s / 86400:g} days at the longest (HubGuard.longest_exemption_s)"
        raise ConfigError(option, f"a server is kept for {latest}. Nothing was changed")
    return until


def _span(text: str) -> float:
    value = span_s(text)
    if not 0 < value <= times.YEAR_S:
        raise ValueError(text)
    return value


def _moment(text: str) -> datetime:
    return moment(text)


def _exemption_id(text: str) -> int:
    value = int(text)
    if not 1 <= value <= 2**62:
        raise ValueError(text)
    return value


_span.__name__ = "span such as 90min, 12h, 7d or 2w, and up to a year"


_moment.__name__ = "time such as 2026-12-01 or 2026-12-01T18:00"


_exemption_id.__name__ = "number of an exemption, as --list shows it,"


def _keep_arguments(keep: argparse.ArgumentParser) -> None:
    keep.add_argument(
        "who",
        nargs="?",
        default="",
        metavar="USER[/SERVER]",
        help="ada: all of her servers; ada/: her default server; ada/gpu: that one. A slash in a name is written %%2F",
    )
    keep.add_argument("why", nargs="?", default="", metavar="WHY", help="a reason, for the journal")
    what = keep.add_mutually_exclusive_group(required=True)
    what.add_argument(
        "--for", type=_span, dest="for_s", metavar="SPAN", help="for so long from now: 90min, 12h, 7d, 2w"
    )
    what.add_argument(
        "--until",
        type=_moment,
        metavar="TIME",
        help="until then, in UTC: 2026-12-01T18:00, or 2026-12-01 with all of it",
    )
    what.add_argument("--list", action="store_true", help="show what is kept")
    what.add_argument("--end", type=_exemption_id, metavar="ID", help="end that exemption")
    keep.add_argument("--json", action="store_true")


async def explain(settings: Settings, environ: Mapping[str, str], *, user: str, server: str) -> dict[str, Any]:
    """Why that server is stopped or not, by the guard that runs, as its API tells it; ``server`` "" is the default one.

    Raises HubGuardError where no guard runs, or the server doesn't as of its last look.
    """
    instead = "and it is the guard that knows. `hubguard cull --once --dry-run` says what would be stopped"
    token = place_from(environ).token
    guard = await asyncio.to_thread(running_guard, settings.guard.db_url, token, instead=instead)
    path = f"api/v1/servers/{quote(user, safe='')}/{quote(server, safe='')}"
    told: dict[str, Any] = await guard.ask("GET", path)
    return told
