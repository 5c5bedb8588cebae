"""What a notice says: one sentence, when to act, the first thing to do, since when, and where to look."""

from __future__ import annotations

import unicodedata
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime
from hashlib import sha256

from hubguard.watch.decide.alert import Rule
from hubguard.watch.model import AlertRow, Change, Severity
from hubguard.words import duration, stamp

LINE_MOST = 600
"""Maximum characters of a sentence in a message."""

DIGEST_LINES_MOST = 20
"""Maximum alerts that a digest names. It counts the others."""

TO_ACT: Mapping[Severity, str] = {
    Severity.NOW: "act now",
    Severity.TODAY: "act today",
    Severity.WEEK: "act this week",
}
"""The severity in words."""


@dataclass(frozen=True, slots=True)
class Message:
    """One notice in words. All texts are on one line, without control characters, and at most LINE_MOST long.

    ``key`` is the same for an alert's beginning and end, and for no other alert of any hub. ``ended_at`` is None as long as
    the alert lasts. ``link`` is the page of alerts and ``source`` the hub's host, "" if
    the address is unknown.
    """

    key: str
    rule: str
    subject: str
    severity: Severity
    sentence: str
    first: str
    since: datetime
    ended_at: datetime | None
    link: str
    source: str

    @property
    def resolved(self) -> bool:
        """Whether it says that the alert is over."""
        return self.ended_at is not None

    @property
    def title(self) -> str:
        """The alert and when to act, or that it is resolved."""
        state = "resolved" if self.resolved else TO_ACT[self.severity]
        return f"{self.rule} ({state}): {self.sentence}"

    @property
    def lines(self) -> tuple[str, ...]:
        """What stands below the title: what to do first and since when, or how long it lasted."""
        if self.ended_at is not None:
            lasted = duration(max(0.0, (self.ended_at - self.since).total_seconds()))
            return (f"From {stamp(self.since)} for {lasted}.",)
        return f"First: {self.first}", f"Since {stamp(self.since)}."


def message_of(alert: AlertRow, change: Change, rules: Mapping[str, Rule], link: str, source: str) -> Message:
    """The message that ``alert`` was raised or resolved."""
    rule = rules.get(alert.rule)
    first = rule.first.format(subject=alert.subject) if rule is not None else "Open HubGuard's page of alerts."
    return Message(
        key="hubguard-"
        + sha256(f"{alert.id} {alert.rule} {alert.subject} {alert.raised_at.isoformat()}".encode()).hexdigest()[:32],
        rule=plain(alert.rule),
        subject=plain(alert.subject, 200),
        severity=alert.severity,
        sentence=plain(alert.sentence),
        first=plain(first),
        since=alert.raised_at,
        ended_at=(alert.resolved_at or alert.raised_at) if change is Change.RESOLVED else None,
        link=link,
        source=source,
    )


def subject_of(messages: Sequence[Message]) -> str:
    """What stands above ``messages``: the title of the only one, or how many they are."""
    if len(messages) == 1:
        return messages[0].title
    raised = sum(not message.resolved for message in messages)
    counts = [f"{raised} alerts" if raised != 1 else "1 alert"] if raised else []
    if ended := len(messages) - raised:
        counts.append(f"{ended} resolved")
    at = messages[0].source and f" at {messages[0].source}"
    return f"HubGuard: {' and '.join(counts)}{at}"


def lines_of(messages: Sequence[Message]) -> tuple[str, ...]:
    """What stands below: what to do, or the title of each."""
    if len(messages) == 1:
        return messages[0].lines
    titles = [message.title for message in messages[:DIGEST_LINES_MOST]]
    left_out = len(messages) - len(titles)
    return (*titles, f"And {left_out} more.") if left_out else tuple(titles)


def plain(text: str, most: int = LINE_MOST) -> str:
    """``text`` on one line of at most ``most`` characters, without any that is invisible or turns the direction of others."""
    line = " ".join("".join(c if unicodedata.category(c)[0] != "C" else " " for c in text[: 4 * most]).split())
    return line if len(line) <= most else line[: most - 1].rstrip() + "…"
