"""A webhook in the shape of Alertmanager's, version 4: what takes those takes these."""

from __future__ import annotations

from collections.abc import Sequence
from hashlib import sha256
from typing import Any
from urllib.parse import urlsplit

from hubguard.watch.decide.message import Message
from hubguard.watch.decide.notice import Result, Together
from hubguard.watch.notify.alertmanager import annotations_of, labels_of
from hubguard.watch.notify.http import Poster

NO_END = "0001-01-01T00:00:00Z"
"""The time that stands for none, as in Alertmanager's own requests."""


class Webhook:
    """Posts the alerts that begin or end. ``token`` is sent as a bearer's, "": none."""

    together = Together.ALL
    spacing_s = 0.2
    repeat_s = None

    def __init__(self, url: str, receiver: str, token: str = "") -> None:
        self._receiver = receiver
        self._poster = Poster(url, lambda answer: True, (urlsplit(url).path,), token)

    async def send(self, messages: Sequence[Message]) -> Result:
        """What came of it."""
        return await self._poster.post(body_of(messages, self._receiver))

    async def close(self) -> None:
        """Close its connections."""
        await self._poster.close()


def body_of(messages: Sequence[Message], receiver: str) -> dict[str, Any]:
    """The request. ``status`` is firing if any of them is."""
    labels, annotations = (
        [labels_of(message) for message in messages],
        [annotations_of(message) for message in messages],
    )
    firing = any(not message.resolved for message in messages)
    return {
        "version": "4",
        "groupKey": f'{{}}:{{service="hubguard", receiver="{sha256(receiver.encode()).hexdigest()[:16]}"}}',
        "truncatedAlerts": 0,
        "status": "firing" if firing else "resolved",
        "receiver": receiver,
        "groupLabels": {"service": "hubguard"},
        "commonLabels": _common(labels),
        "commonAnnotations": _common(annotations),
        "externalURL": messages[0].link,
        "alerts": [
            {
                "status": "resolved" if message.resolved else "firing",
                "labels": labels_of(message),
                "annotations": annotations_of(message),
                "startsAt": message.since.isoformat(),
                "endsAt": message.ended_at.isoformat() if message.ended_at is not None else NO_END,
                "generatorURL": message.link,
                "fingerprint": sha256(repr(sorted(labels_of(message).items())).encode()).hexdigest()[:16],
            }
            for message in messages
        ],
    }


def _common(dicts: Sequence[dict[str, str]]) -> dict[str, str]:
    return {key: value for key, value in dicts[0].items() if all(other.get(key) == value for other in dicts)}
