"""Slack's incoming webhooks."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any
from urllib.parse import urlsplit

from hubguard.hub.http import Answer
from hubguard.watch.decide.message import Message, lines_of, subject_of
from hubguard.watch.decide.notice import Result, Together
from hubguard.watch.notify.http import Poster

HEADER_MOST = 150
"""Maximum characters of a header block, by Slack's limits."""

TEXT_MOST = 3000
"""Maximum characters of a section's text, by Slack's limits."""


class Slack:
    """Posts to a channel. An earlier message can't be changed, so that an alert is resolved is a message of its own."""

    together = Together.DIGEST
    spacing_s = 1.1  # about one message a second is allowed
    repeat_s = None

    def __init__(self, url: str) -> None:
        # Who knows the path can post.
        self._poster = Poster(url, _taken, (urlsplit(url).path,))

    async def send(self, messages: Sequence[Message]) -> Result:
        """What came of it."""
        return await self._poster.post(body_of(messages))

    async def close(self) -> None:
        """Close its connections."""
        await self._poster.close()


def _taken(answer: Answer) -> bool:
    return answer.status == 200 and bytes(answer.body).strip() == b"ok"


def body_of(messages: Sequence[Message]) -> dict[str, Any]:
    """The message: as plain text, in which Slack reads no markup, besides our own link."""
    title = subject_of(messages)
    text = _unpinged("\n".join((title, *lines_of(messages))))
    blocks: list[dict[str, Any]] = [
        {"type": "header", "text": _plain(_cut(_unpinged(title), HEADER_MOST))},
        {"type": "section", "text": _plain(_cut(text, TEXT_MOST))},
    ]
    if link := messages[0].link:
        blocks.append({"type": "section", "text": {"type": "mrkdwn", "text": f"<{_escaped(link)}|Open the alerts>"}})
    # What stands in notifications: Slack reads markup and <!channel> there, unless they are escaped.
    return {"text": _escaped(_cut(text, TEXT_MOST)), "mrkdwn": False, "blocks": blocks}


def _plain(text: str) -> dict[str, Any]:
    return {"type": "plain_text", "text": text, "emoji": False}


def _escaped(text: str) -> str:
    return text.replace("&", "&amp;").replace("<", "&lt;").replace(">", "&gt;")


def _unpinged(text: str) -> str:
    """``text`` with an invisible joiner behind each @, so that no @channel in it calls anybody."""
    return text.replace("@", "@\u2060")


def _cut(text: str, most: int) -> str:
    return text if len(text) <= most else text[: most - 1] + "…"
