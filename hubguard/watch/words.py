"""What the pages say of alerts, signals and their sources."""

from __future__ import annotations

from datetime import datetime

from hubguard.status import Mode, Status
from hubguard.watch.cycle import WatchStatus
from hubguard.watch.model import AlertState, Severity, SignalSource, TimeLeft
from hubguard.words import clock, duration

LATE_S = 60.0
"""Seconds after which the pages say how old the last reading is."""

SIGNAL_SOURCE_WORDS: dict[SignalSource, str] = {
    SignalSource.HUB: "Hub's answers",
    SignalSource.HUB_METRICS: "Hub's metrics",
    SignalSource.HUB_PROCESS: "Hub's process",
    SignalSource.HUB_DB: "Hub's database",
    SignalSource.PROXY: "Proxy's answers and routes",
    SignalSource.PROXY_METRICS: "Proxy's metrics",
    SignalSource.PROXY_PROCESS: "Proxy's process",
    SignalSource.BACKENDS: "Backends",
    SignalSource.MACHINE: "This machine",
    SignalSource.FOLDERS: "Disks and folders",
    SignalSource.STARTS: "Starts of servers",
    SignalSource.HUBGUARD: "HubGuard itself",
}

SEVERITY_WORDS: dict[Severity, tuple[str, str]] = {
    Severity.NOW: ("troubled", "act now"),
    Severity.TODAY: ("wait", "act today"),
    Severity.WEEK: ("observing", "act this week"),
}
"""The mark of each, and when to act."""

STATE_WORDS: dict[AlertState, tuple[str, str]] = {
    AlertState.PENDING: ("starting", "pending"),
    AlertState.FIRING: ("stop", "firing"),
    AlertState.CLEARING: ("standby", "clearing"),
    AlertState.UNKNOWN: ("unknown", "unknown"),
}
"""The mark of each, and its word."""


def left_evidence(left: TimeLeft) -> str:
    """A forecast as evidence: ``12 min, with 90 % confidence between 9 min and 17 min``."""
    if left.likely_s <= 0:
        return "none: it is at its limit"
    most = f"between {duration(left.least_s)} and {duration(left.most_s)}" if left.most_s is not None else ""
    return f"{duration(left.likely_s)}, with 90 % confidence {most or f'at least {duration(left.least_s)}'}"


def moment_words(at: datetime, now: datetime) -> str:
    """``14:05 UTC``, or ``22 Nov at 14:05 UTC``: after "since", "until" or "from"."""
    return clock(at, now).removeprefix("at ").removeprefix("on ")


def code_parts(text: str) -> list[tuple[bool, str]]:
    """``text`` in parts, each with whether it is code: what stands between backticks is."""
    parts = text.split("`")
    if len(parts) % 2 == 0:  # one backtick has no partner
        parts[-2:] = ["`".join(parts[-2:])]
    return [(number % 2 == 1, part) for number, part in enumerate(parts) if part]


def unwatched(status: Status, watched: WatchStatus) -> str:
    """Why what is shown isn't the state of now, in one sentence; "" if it is."""
    if status.mode is Mode.STANDBY:
        return "Another guard is in charge of this hub and watches it. This one is standing by."
    if status.mode is Mode.TROUBLED:
        return f"HubGuard isn't watching. {status.why}"
    if watched.read_at is None:
        return "HubGuard hasn't measured anything yet. This page updates by itself."
    age_s = (status.at - watched.read_at).total_seconds()
    if age_s > LATE_S:
        return f"HubGuard last measured {duration(age_s)} ago. What follows is as of then."
    return ""
