"""PagerDuty's Events API, version 2."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from hubguard.hub.http import Answer
from hubguard.watch.decide.message import Message
from hubguard.watch.decide.notice import Result, Together
from hubguard.watch.model import Severity
from hubguard.watch.notify.http import Poster

URL = "https://events.pagerduty.com/v2/enqueue"
"""Where PagerDuty takes events."""

SUMMARY_MOST = 1024
"""Maximum characters of a summary."""

SEVERITIES = {Severity.NOW: "critical", Severity.TODAY: "error", Severity.WEEK: "warning"}
"""PagerDuty's words for when to act."""


class PagerDuty:
    """Triggers and resolves an incident for each alert. A trigger after the end has another key, and so opens a new one."""

    together = Together.ONE
    spacing_s = 0.6  # a key may send 120 events a minute
    repeat_s = None

    def __init__(self, routing_key: str, url: str = URL) -> None:
        self._routing_key = routing_key
        self._poster = Poster(url, _taken, (routing_key,))

    async def send(self, messages: Sequence[Message]) -> Result:
        """What came of it."""
        (message,) = messages
        return await self._poster.post(body_of(message, self._routing_key))

    async def close(self) -> None:
        """Close its connections."""
        await self._poster.close()


def _taken(answer: Answer) -> bool:
    return answer.status == 202 and isinstance(answer.json, dict) and answer.json.get("status") == "success"


def body_of(message: Message, routing_key: str) -> dict[str, Any]:
    """The event that triggers or resolves."""
    event: dict[str, Any] = {
        "routing_key": routing_key,
        "event_action": "resolve" if message.resolved else "trigger",
        "dedup_key": message.key,
    }
    if message.resolved:
        return event
    event["payload"] = {
        "summary": message.title[:SUMMARY_MOST],
        "source": message.source or "hubguard",
        "severity": SEVERITIES[message.severity],
        "timestamp": message.since.isoformat(),
        "component": message.subject or "hub",
        "class": message.rule,
        "custom_details": {"first": message.first, "act": message.severity.value},
    }
    if message.link:
        event["client"], event["client_url"] = "HubGuard", message.link
        event["links"] = [{"href": message.link, "text": "Open the alerts"}]
    return event
