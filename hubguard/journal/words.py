"""Journal entries and exemptions in sentences, for pages, the terminal and JSON."""

from __future__ import annotations

from typing import Any

from hubguard.journal.model import Entry, Event, Exemption
from hubguard.model import ActionKind, Grounds, server_label
from hubguard.words import as_json, kept_label, limit, stamp

_KIND_WORDS: dict[str, tuple[str, str]] = {
    ActionKind.STOP_SERVER.value: ("stop {}", "stopping {}"),
    ActionKind.INTERRUPT_SPAWN.value: ("interrupt the start of {}", "interrupting the start of {}"),
    ActionKind.DELETE_USER.value: ("delete the user {}", "deleting the user {}"),
    ActionKind.CHECK_ROUTES.value: ("have the hub check its routes", "having the hub check its routes"),
    ActionKind.START_AND_STOP.value: ("start and stop {}", "starting and stopping {}"),
    ActionKind.END_BACKEND.value: ("end the backend of {}", "ending the backend of {}"),
}

EVIDENCE: dict[str, str] = {
    "hub": "the hub's last activity",
    "start": "its start",
    "proxy": "traffic at the proxy",
    "recovery": "the end of an outage of hub or proxy",
}
"""What idleness is counted from, by the evidence."""

_LIMITS: dict[str, tuple[str, str]] = {
    "idle": ("idle since", "idle limit"),
    "too-old": ("running since", "maximum age"),
    "pending-stuck": ("pending since", "limit"),
    "surplus": ("idle since", ""),
}
"""By an intent's reason: what began then, and what the limit is called."""

_STANCE_WORDS: dict[Event, str] = {
    Event.ARMED: "armed HubGuard",
    Event.OBSERVING: "set HubGuard to observe only",
    Event.HELD: "put acting on hold",
    Event.RESUMED: "resumed acting",
    Event.BRAKED: "braked",
    Event.BRAKE_OVER: "no longer braked",
}


def exemption_text(exemption: Exemption) -> str:
    """One line for a terminal."""
    why = f": {exemption.why}" if exemption.why else ""
    kept = kept_label(exemption.user, exemption.server)
    return f"{exemption.id:>4}  {kept}  until {stamp(exemption.until)}  {exemption.actor}{why}"


def entry_json(entry: Entry) -> dict[str, Any]:
    """A journal entry as the API returns it."""
    plain: dict[str, Any] = as_json(entry)
    return plain


def entry_sentence(entry: Entry) -> str:
    """What happened, in words, without the time and who did it."""
    whose = server_label(entry.user or "", entry.server or "")
    detail = f": {entry.detail}" if entry.detail else ""
    do, doing = _KIND_WORDS.get(entry.action or "", _KIND_WORDS[ActionKind.STOP_SERVER.value])
    if entry.event is Event.INTENT:
        why = grounds_words(entry.reason or "", entry.grounds, of_user=entry.action == ActionKind.DELETE_USER.value)
        by = f" by plan {entry.plan[:12]}" if entry.plan else ""
        return f"going to {do.format(whose)}{by}{f' ({why})' if why else ''}"
    if entry.event is Event.OUTCOME:
        kind = entry.outcome.value if entry.outcome else "ended"
        return f"{doing.format(whose)}: {kind}{f', {entry.detail}' if entry.detail else ''}"
    if entry.event in {Event.KEPT, Event.RELEASED} and entry.user is not None:
        kept = kept_label(entry.user, entry.server)
        return f"keeps {kept} {entry.detail}" if entry.event is Event.KEPT else f"no longer keeps {kept}{detail}"
    if entry.event in _STANCE_WORDS:
        return _STANCE_WORDS[entry.event] + detail
    if entry.event in {Event.ALERT, Event.ALERT_OVER}:
        return f"alert {entry.reason}{detail}" if entry.event is Event.ALERT else entry.detail
    if entry.event is Event.INCIDENT:
        return entry.detail
    if entry.event is Event.SILENCED:
        return f"silences {entry.detail}"
    if f" {whose}: " in detail:
        whose = ""  # what drifts is named in the detail, after its kind
    if entry.event is Event.CLEARED:
        return f"resolved: {whose}{detail}" if whose else f"resolved{detail}"
    if entry.event is Event.ANNOUNCED and entry.grounds is not None:
        detail += f" ({grounds_words(entry.reason or '', entry.grounds)})"
    about_one = whose and entry.event in {Event.NOTE, Event.ANNOUNCED, Event.FINDING}
    return f"{whose}{detail}" if about_one else entry.detail or entry.event.value


def grounds_words(reason: str, grounds: Grounds | None, *, of_user: bool = False) -> str:
    """Why, as a clause: ``idle since 2026-11-21 14:05:09 UTC by the hub's last activity, idle limit 1 h, rule "GPU"``."""
    if grounds is None or grounds.since is None:
        return reason
    begun, called = _LIMITS.get(reason, (f"{reason} since", "limit"))
    if of_user:
        begun, called = ("created on", called) if reason == "too-old" else ("inactive since", "limit")
    by = f" by {EVIDENCE.get(grounds.evidence, grounds.evidence)}" if grounds.evidence else ""
    parts = [f"{begun} {stamp(grounds.since)}{by}"]
    parts += [f"{called} {limit(grounds.limit_s)}"] if grounds.limit_s > 0 else []
    parts += [f'rule "{grounds.rule}"'] if grounds.rule is not None else []
    return ", ".join(parts) + (f"; {grounds.detail}" if grounds.detail else "")


def entry_text(entry: Entry) -> str:
    """One line for a terminal."""
    return f"{stamp(entry.at)}  {entry.event.value:<9}  {entry.actor}: {entry_sentence(entry)}"
