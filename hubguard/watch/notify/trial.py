"""Tries a receiver with a made-up alert."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from datetime import datetime, timezone

from hubguard.errors import ConfigError
from hubguard.settings import closest
from hubguard.watch.decide.message import message_of
from hubguard.watch.decide.notice import Result
from hubguard.watch.decide.receivers import SETTING, place, read_receivers
from hubguard.watch.model import AlertRow, Change, Severity
from hubguard.watch.notify.choose import open_receivers


async def send_trial(value: object, name: str, environ: Mapping[str, str]) -> tuple[tuple[str, Result], ...]:
    """What the receiver called ``name`` answered to a made-up alert and to its resolution. ``value`` is the setting.

    Raises ConfigError for a receiver that isn't there or can't be used.
    """
    opened, unusable = open_receivers(value, environ)
    for problem in (*read_receivers(value)[1], *unusable):
        if problem.where.startswith(place(name)) or problem.where == SETTING:
            raise ConfigError(problem.where, problem.why)
    by_name = {named.name: named.receiver for named in opened}
    if name not in by_name:
        raise ConfigError(
            SETTING, f"no receiver {name!r}{closest(name, list(by_name)) if by_name else '; it is empty'}"
        )
    now = datetime.now(timezone.utc)
    text = "This is a test of HubGuard's notices. Nothing is wrong."
    alert = AlertRow(0, "HubGuardTest", "", Severity.WEEK, now, None, 0.0, 0.0, text)
    results = []
    try:
        for what, change, row in (
            ("alert", Change.RAISED, alert),
            ("resolution", Change.RESOLVED, replace(alert, resolved_at=datetime.now(timezone.utc))),
        ):
            message = replace(message_of(row, change, {}, "", ""), first="Nothing to do.")
            results.append((what, await by_name[name].send([message])))
    finally:
        await by_name[name].close()
    return tuple(results)
