"""Receivers that take JSON over HTTP: one request, and what its answer means."""

from __future__ import annotations

import math
from collections.abc import Callable
from datetime import datetime, timezone
from email.utils import parsedate_to_datetime

from hubguard.hub.http import Answer, Failure, HTTPClient, NoAnswer, quotable
from hubguard.watch.decide.notice import Result

REQUEST_S = 15.0
"""Maximum seconds for one request."""

LARGEST_ANSWER = 64 * 1024
"""Maximum bytes of an answer. What receivers answer has a few words."""

NEVER_AGAIN = frozenset({300, 301, 302, 303, 304, 307, 308, 400, 413, 415, 422})
"""Answers to which the same request would get the same again. Others, such as 403 or 404, end when an operator corrects
something at the receiver.
"""

NOT_TAKEN = frozenset({401, 403, 404, 405, 407, 410, 429})
"""Answers that are given before anything is taken in."""

Taken = Callable[[Answer], bool]
"""Whether an answer says that the notices were taken."""


class Poster:
    """Posts JSON to ``url``. Neither that nor the ``secrets`` are in what it returns."""

    def __init__(self, url: str, taken: Taken, secrets: tuple[str, ...] = (), token: str = "") -> None:
        self._url = url
        self._taken = taken
        # The longest first, so that no rest of it stays.
        self._secrets = sorted({url, *secrets, token} - {"", "/"}, key=len, reverse=True)
        self._http = HTTPClient(timeout_s=REQUEST_S, largest=LARGEST_ANSWER, token=token, scheme="Bearer")

    async def post(self, body: object) -> Result:
        """What came of it."""
        answer = await self._http.exchange("POST", self._url, json=body)
        if isinstance(answer, NoAnswer):
            return self._no_answer(answer)
        if 200 <= answer.status < 300 and self._taken(answer):
            return Result(delivered=True, said=self._words(answer))
        return Result(
            delivered=False,
            said=self._words(answer),
            again=answer.status not in NEVER_AGAIN,
            retry_after_s=seconds_of(answer.retry_after, datetime.now(timezone.utc)),
            reached=answer.status not in NOT_TAKEN | NEVER_AGAIN,
        )

    async def close(self) -> None:
        """Close its connections."""
        await self._http.close()

    def _no_answer(self, answer: NoAnswer) -> Result:
        says = {
            Failure.TIMEOUT: f"no answer within {answer.timeout_s:g} s",
            Failure.LOST: "the connection broke before an answer",
            Failure.UNREACHABLE: "can't be reached",
            Failure.TOO_LARGE: "the answer is too large",
        }[answer.why]
        detail = f": {self._hidden(answer.detail)}" if answer.detail and answer.why is Failure.UNREACHABLE else ""
        return Result(delivered=False, said=says + detail, again=True, reached=answer.why is not Failure.UNREACHABLE)

    def _words(self, answer: Answer) -> str:
        said = self._hidden(quotable(answer.start()))
        return f"answered {answer.status}{said and f': {said}'}"

    def _hidden(self, text: str) -> str:
        for secret in self._secrets:
            text = text.replace(secret, "[secret]")
        return text


def seconds_of(retry_after: str | None, now: datetime) -> float | None:
    """The seconds that a ``Retry-After`` asks for, as a number or a date; None if it asks for nothing that makes sense."""
    if retry_after is None:
        return None
    try:
        seconds = float(retry_after)
    except ValueError:
        try:
            at = parsedate_to_datetime(retry_after)
        except ValueError:
            return None
        seconds = ((at if at.tzinfo else at.replace(tzinfo=timezone.utc)) - now).total_seconds()
    return seconds if math.isfinite(seconds) and seconds > 0 else None
