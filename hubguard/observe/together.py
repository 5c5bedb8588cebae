"""Asking one question for several at once: whoever asks while an answer is on its way shares the next one."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Mapping, Sequence
from typing import Generic, TypeVar

T = TypeVar("T")


class Together(Generic[T]):
    """Reads what is asked for by name. ``read`` gives what there is of these names, by name.

    Every answer was read after it was asked for, so that it is as fresh as one's own; only that others' come with it.
    """

    def __init__(self, read: Callable[[Sequence[str]], Awaitable[Mapping[str, T]]]) -> None:
        self._read = read
        self._asked: dict[str, list[asyncio.Future[T | None]]] = {}
        self._reading: asyncio.Task[None] | None = None

    async def ask(self, name: str) -> T | None:
        """What there is of ``name`` now, or None. Raises what reading raises."""
        answer: asyncio.Future[T | None] = asyncio.get_running_loop().create_future()
        self._asked.setdefault(name, []).append(answer)
        if self._reading is None or self._reading.done():
            self._reading = asyncio.ensure_future(self._read_all())
        return await answer

    async def _read_all(self) -> None:
        while self._asked:
            asked, self._asked = self._asked, {}
            try:
                found = await self._read(tuple(asked))
            except BaseException as error:
                for answer in (one for answers in asked.values() for one in answers if not one.done()):
                    if isinstance(error, Exception):
                        answer.set_exception(error)
                    else:
                        answer.cancel()
                if not isinstance(error, Exception):
                    raise
                continue
            for name, answers in asked.items():
                for answer in answers:
                    if not answer.done():
                        answer.set_result(found.get(name))
