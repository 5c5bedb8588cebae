"""Whatever apprise reaches. It is an extra: ``pip install 'hubguard[apprise]'``."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Sequence
from typing import Any

from hubguard.watch.decide.message import Message, lines_of, subject_of
from hubguard.watch.decide.notice import Result, Together

SEND_S = 30.0
"""Maximum seconds for one message."""


class Apprise:
    """Sends to one of apprise's URLs. Raises ImportError without apprise, ValueError if it doesn't know the URL."""

    together = Together.DIGEST
    spacing_s = 1.0
    repeat_s = None

    def __init__(self, url: str) -> None:
        import apprise

        # Its log quotes URLs.
        logging.getLogger("apprise").setLevel(logging.CRITICAL)
        self._apprise: Any = apprise.Apprise()
        self._kinds = {True: apprise.NotifyType.SUCCESS, False: apprise.NotifyType.WARNING}
        self._text = apprise.NotifyFormat.TEXT
        if not self._apprise.add(url):
            raise ValueError("apprise doesn't know this kind of URL")

    async def send(self, messages: Sequence[Message]) -> Result:
        """What came of it. Apprise only says whether it worked."""
        title, link = subject_of(messages), messages[0].link
        body = "\n".join((*lines_of(messages), *([link] if link else ())))
        kind = self._kinds[all(message.resolved for message in messages)]
        sending = self._apprise.async_notify(body=body, title=title, notify_type=kind, body_format=self._text)
        try:
            delivered = bool(await asyncio.wait_for(sending, SEND_S))
        except asyncio.TimeoutError:
            return Result(delivered=False, said=f"no answer within {SEND_S:g} s", again=True)
        except Exception as error:  # plugins are many, and each may raise what it likes
            return Result(delivered=False, said=f"apprise failed ({type(error).__name__})", again=True)
        return Result(
            delivered, "apprise delivered it" if delivered else "apprise couldn't deliver it", again=not delivered
        )

    async def close(self) -> None:
        """Apprise keeps no connections."""
