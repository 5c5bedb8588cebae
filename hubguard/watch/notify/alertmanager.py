"""Alertmanager, by its API, version 2."""

from __future__ import annotations

from collections.abc import Sequence
from datetime import datetime, timedelta, timezone
from typing import Any

from hubguard.watch.decide.message import Message
from hubguard.watch.decide.notice import Result, Together
from hubguard.watch.notify.http import Poster

AHEAD_S = 240.0
"""Seconds from now at which Alertmanager takes an alert for resolved unless it is sent again: four reminders."""


class Alertmanager:
    """Keeps an Alertmanager informed. It forgets an alert that it isn't reminded of."""

    together = Together.ALL
    spacing_s = 0.1
    repeat_s = AHEAD_S / 4

    def __init__(self, url: str, token: str = "") -> None:
        self._poster = Poster(url.rstrip("/") + "/api/v2/alerts", lambda answer: answer.status == 200, token=token)

    async def send(self, messages: Sequence[Message]) -> Result:
        """What came of it."""
        return await self._poster.post(body_of(messages, datetime.now(timezone.utc)))

    async def close(self) -> None:
        """Close its connections."""
        await self._poster.close()


def body_of(messages: Sequence[Message], now: datetime) -> list[dict[str, Any]]:
    """The alerts: those that last end far enough ahead, the others now."""
    return [
        {
            "labels": labels_of(message),
            "annotations": annotations_of(message),
            "startsAt": message.since.isoformat(),
            "endsAt": (now if message.resolved else now + timedelta(seconds=AHEAD_S)).isoformat(),
            **({"generatorURL": message.link} if message.link else {}),
        }
        for message in messages
    ]


def labels_of(message: Message) -> dict[str, str]:
    """What identifies the alert to Alertmanager, and nothing else."""
    labels = {"alertname": message.rule, "severity": message.severity.value, "service": "hubguard"}
    return {
        **labels,
        **({"subject": message.subject} if message.subject else {}),
        **({"hub": message.source} if message.source else {}),
    }


def annotations_of(message: Message) -> dict[str, str]:
    """What it says to people."""
    return {"summary": message.sentence, "description": f"First: {message.first}"}
