"""The journal and the stores on it as the event loop calls them: ``await journal.exemptions(now)``."""

from __future__ import annotations

import asyncio
import contextlib
import time
from collections.abc import Callable, Coroutine
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from typing import Any, Concatenate, Generic, ParamSpec, TypeVar

from hubguard.errors import ActingRefused, InDoubt, JournalError, LeaseLost, Unrecordable
from hubguard.journal.database import IN_DOUBT
from hubguard.journal.store import Journal, open_journal

QUEUE_S = 3.0
"""Maximum seconds that a call waits for those before it."""

CALL_S = 9.0
"""Maximum seconds for a call. A database server is given up before that; this is for a disk that hangs."""

SLOW_S = 2.0
"""Seconds after which a call that fails shows that the journal doesn't answer: others then fail at once."""

TRY_AGAIN_S = 2.0
"""Seconds between two calls that find out whether the journal answers again."""

BEAT_S = 3.0
"""Seconds between two looks at whether the journal still answers."""

S = TypeVar("S")
S_co = TypeVar("S_co", covariant=True)
P = ParamSpec("P")
T = TypeVar("T")


class Busy(JournalError):
    """A call wasn't begun, since those before it took too long."""


class AsyncStore(Generic[S_co]):
    """A store whose methods are awaited. Subclasses list them: ``exemptions = awaited(Journal.exemptions)``.

    ``make`` makes the store itself from the journal, at the first call.
    """

    def __init__(self, journal: AsyncJournal, make: Callable[[Journal], S_co]) -> None:
        self._journal = journal
        self._make = make
        self._store: S_co | None = None

    @property
    def sync(self) -> S_co:
        """The store, for the journal's thread. Raises JournalError until the journal is open."""
        if self._store is None:
            self._store = self._make(self._journal.sync)
        return self._store

    async def call(self, function: Callable[P, T], *args: P.args, **kwargs: P.kwargs) -> T:
        """``function(*args, **kwargs)`` in the journal's thread."""
        return await self._journal.call(function, *args, **kwargs)


class awaited(Generic[S, P, T]):  # reads as a verb in the lists of methods
    """A method of a store, run in the journal's thread and awaited by the caller."""

    def __init__(self, method: Callable[Concatenate[S, P], T]) -> None:
        self._name = method.__name__

    def __get__(self, store: AsyncStore[S], owner: object = None) -> Callable[P, Coroutine[Any, Any, T]]:
        """The method of that store, as a coroutine function."""

        async def call(*args: P.args, **kwargs: P.kwargs) -> T:
            return await store.call(getattr(store.sync, self._name), *args, **kwargs)

        return call


class AsyncJournal(AsyncStore[Journal]):
    """The journal at ``url``: one thread, one call at a time, in order. Every call raises JournalError until it is open.

    ``silent`` is the error of a database that doesn't answer, "" while it does. Meanwhile calls fail at once, except
    for one every few seconds.
    """

    def __init__(self, url: str) -> None:
        self._url = url
        self._trouble = ""
        self._thread: ThreadPoolExecutor | None = None
        self._store: Journal | None = None
        self._beat: asyncio.Task[None] | None = None
        self._try_again_at_s = 0.0
        self.silent = ""

    @property
    def sync(self) -> Journal:
        """The journal itself, for its thread. Raises JournalError until it is open."""
        if self._store is None:
            raise JournalError(self._trouble or "The journal isn't open yet. Try again in a few seconds.")
        return self._store

    def check(self) -> None:
        """Raises JournalError until it is open."""
        _ = self.sync

    async def open(self) -> None:
        """The journal is open, in the thread that uses it from now on. Does nothing if it is. Raises JournalError."""
        if self._store is not None:
            return
        thread = ThreadPoolExecutor(1, thread_name_prefix="journal")
        try:
            self._store = await asyncio.get_running_loop().run_in_executor(thread, open_journal, self._url)
        except BaseException as error:
            self._trouble = str(error) if isinstance(error, JournalError) else ""
            thread.shutdown(wait=False)
            raise
        self._thread = thread
        self._beat = asyncio.create_task(self._keep_looking())

    async def call(self, function: Callable[P, T], *args: P.args, **kwargs: P.kwargs) -> T:
        """``function(*args, **kwargs)`` in the journal's thread; a cancelled caller leaves it running to its end.

        Raises JournalError within 10 s if the database doesn't answer. Then the call had no effect and won't have one,
        unless the error says that this is unknown.
        """
        began_s = time.monotonic()
        if self.silent:
            if began_s < self._try_again_at_s:
                raise JournalError(self.silent)
            self._try_again_at_s = began_s + CALL_S  # this one finds out, for all
        try:
            result = await self._called(partial(function, *args, **kwargs))
        except (Busy, LeaseLost, ActingRefused, Unrecordable):
            raise
        except JournalError as error:
            now_s = time.monotonic()
            if now_s - began_s >= SLOW_S or self.silent:
                self.silent = self._no_answer() if isinstance(error, InDoubt) else str(error)
                self._try_again_at_s = now_s + TRY_AGAIN_S
            raise
        self.silent = ""
        return result

    def _no_answer(self) -> str:
        return f"The journal's database ({self.sync.place}) doesn't answer. HubGuard tries again by itself."

    async def _called(self, function: Callable[[], T]) -> T:
        assert self._thread is not None
        job = self._thread.submit(function)
        answer = asyncio.wrap_future(job)
        answer.add_done_callback(lambda done: done.cancelled() or done.exception())  # heard, should nobody wait
        if not (await asyncio.wait({answer}, timeout=QUEUE_S))[0]:
            if job.cancel():
                raise Busy(
                    f"The journal's database ({self.sync.place}) has kept others waiting for more than {QUEUE_S:g} seconds."
                    " Nothing was recorded; try again."
                )
            if not (await asyncio.wait({answer}, timeout=CALL_S - QUEUE_S))[0]:
                raise InDoubt(f"{self._no_answer()} {IN_DOUBT}")
        return await answer

    async def _keep_looking(self) -> None:
        while True:
            await asyncio.sleep(BEAT_S)
            with contextlib.suppress(JournalError):
                await self.stance()

    def close(self) -> None:
        """The thread has ended and the database is closed."""
        if self._beat is not None:
            self._beat.cancel()
        if self._thread is not None:
            self._thread.submit(self.sync.close)
            self._thread.shutdown(wait=True)

    take_lease = awaited(Journal.take_lease)
    renew_lease = awaited(Journal.renew_lease)
    release_lease = awaited(Journal.release_lease)
    lease = awaited(Journal.lease)
    stance = awaited(Journal.stance)
    arm = awaited(Journal.arm)
    observe = awaited(Journal.observe)
    hold = awaited(Journal.hold)
    resume = awaited(Journal.resume)
    resumed_at = awaited(Journal.resumed_at)
    intend = awaited(Journal.intend)
    settle = awaited(Journal.settle)
    open_intents = awaited(Journal.open_intents)
    failures = awaited(Journal.failures)
    note = awaited(Journal.note)
    announce = awaited(Journal.announce)
    entries = awaited(Journal.entries)
    tally = awaited(Journal.tally)
    exempt = awaited(Journal.exempt)
    end_exemption = awaited(Journal.end_exemption)
    exemptions = awaited(Journal.exemptions)
    remember = awaited(Journal.remember)
    recall = awaited(Journal.recall)
    forget = awaited(Journal.forget)
