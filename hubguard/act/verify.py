"""Verifies stops: a re-read of each server, or one list for many at once."""

from __future__ import annotations

import asyncio
from collections.abc import Mapping
from dataclasses import dataclass

from hubguard.errors import BudgetExhausted, HubError
from hubguard.hub.api import HubAPI
from hubguard.model import Action, ActionKind, Cause, Outcome, OutcomeKind, Server, same_run
from hubguard.pacing.clock import Clock

FIRST_REREAD_S = 0.5
LONGEST_REREAD_S = 8.0
"""Seconds between two re-reads after a stop, at first and at most. Most servers are gone within a second; slow ones take ten
or more."""

TOGETHER_S = 0.5
"""Seconds within which re-reads that are due are done together, so that one list serves them all."""

USERS_A_PAGE = 200
READS_A_PAGE = 10
"""HubGuard reads the list instead of single servers from this many reads on for each of its pages, of this many users. A page
keeps the hub's event loop busy for 30 to 45 ms (6.1), about as long as ten single reads."""


class Verifier:
    """Reads servers again until each is gone, was restarted, or ``verify_s`` has passed since it was handed over.

    ``running`` is about how many servers the hub has, to choose between a list and single reads.
    """

    def __init__(self, hub: HubAPI, clock: Clock, *, verify_s: float, running: int) -> None:
        self._hub = hub
        self._clock = clock
        self._verify_s = verify_s
        self._pages = 1 + running // USERS_A_PAGE
        self._waiting: dict[tuple[str, str], _Case] = {}
        self._handed_over = asyncio.Event()
        self._reading: asyncio.Task[None] | None = None

    async def outcome(self, action: Action, remark: str, *, failed: bool) -> Outcome:
        """What came of ``action``, which was sent. ``remark`` is what to note about the hub's answer, or "".

        With ``failed`` (the hub said no) a server that is still as it was is a failure at once. One that was on its way
        down and is ready again is a failure, too, whatever the hub had answered. Await one outcome at a time for each server.
        """
        now_s = self._clock.monotonic_s()
        case = _Case(action, remark, failed, now_s + self._verify_s, asyncio.get_running_loop().create_future())
        # With the hub's no, whether it is still there is to be known at once.
        case.next_s = now_s if failed else now_s + FIRST_REREAD_S
        key = (action.user, action.name)
        self._waiting[key] = case
        self._handed_over.set()
        if self._reading is None or self._reading.done():
            self._reading = asyncio.get_running_loop().create_task(self._read())
        try:
            return await case.outcome
        finally:
            if self._waiting.get(key) is case:
                del self._waiting[key]

    def close(self) -> None:
        """No more is read."""
        if self._reading is not None:
            self._reading.cancel()

    async def _read(self) -> None:
        try:
            while self._waiting:
                now_s = self._clock.monotonic_s()
                first_s = min(case.next_s for case in self._waiting.values())
                if first_s > now_s:
                    await self._wait(first_s - now_s)
                    continue
                due = [case for case in self._waiting.values() if case.next_s <= now_s + TOGETHER_S]
                if len(due) > READS_A_PAGE * self._pages:
                    await self._read_list(due)
                else:
                    # Those that aren't due yet come as far apart as they were handed over, not in a heap.
                    due = [case for case in due if case.next_s <= now_s]
                    await asyncio.gather(*(self._read_one(case) for case in due))
                now_s = self._clock.monotonic_s()
                for case in due:
                    case.wait(now_s, self._verify_s)
                    if case.outcome.done():
                        self._waiting.pop((case.action.user, case.action.name), None)
        except Exception as error:
            for case in self._waiting.values():
                if not case.outcome.done():
                    case.outcome.set_exception(error)
            self._waiting.clear()

    async def _wait(self, seconds: float) -> None:
        """Until then, or until one is handed over, which may be due before."""
        self._handed_over.clear()
        waiting = [
            asyncio.ensure_future(self._clock.sleep(seconds)),
            asyncio.ensure_future(self._handed_over.wait()),
        ]
        try:
            await asyncio.wait(waiting, return_when=asyncio.FIRST_COMPLETED)
        finally:
            for task in waiting:
                task.cancel()

    async def _read_one(self, case: _Case) -> None:
        try:
            case.saw(await self._hub.get_server(case.action.user, case.action.name))
        except (HubError, BudgetExhausted) as error:
            case.last = f"it couldn't be read again: {error}"

    async def _read_list(self, cases: list[_Case]) -> None:
        seen: Mapping[tuple[str, str], Server] = {}
        try:
            seen = {server.key: server for server in await self._hub.list_servers()}
        except (HubError, BudgetExhausted) as error:
            for case in cases:
                case.last = f"it couldn't be read again: {error}"
            return
        for case in cases:
            case.saw(seen.get((case.action.user, case.action.name)))


@dataclass(slots=True)
class _Case:
    """One server that is being stopped, and what was seen of it since."""

    action: Action
    remark: str
    failed: bool
    until_s: float
    outcome: asyncio.Future[Outcome]
    next_s: float = 0.0
    wait_s: float = FIRST_REREAD_S
    last: str = ""
    ready: bool = False
    was_going: bool = False

    def saw(self, server: Server | None) -> None:
        if self.outcome.done():
            return
        if server is None:
            self._end(OutcomeKind.DONE, "gone at a re-read" + (f" ({self.remark})" if self.remark else ""))
        elif not same_run(server.started, self.action.started):
            self._end(OutcomeKind.DONE, "that run is gone; the server was started again since")
        else:
            self._still_there(server)

    def _still_there(self, server: Server) -> None:
        self.ready = server.ready
        spawning = self.action.kind is ActionKind.INTERRUPT_SPAWN and server.pending == "spawn"
        if self.action.kind is ActionKind.INTERRUPT_SPAWN and server.ready:
            self._end(OutcomeKind.DONE, "it came up after all, and is left running")
        elif server.ready and self.was_going:
            detail = "it came back: the stop had begun, and it is ready again"
            self._end(OutcomeKind.FAILED, detail + _also(self.remark), Cause.CAME_BACK)
        elif (server.ready or spawning) and self.failed:
            self._end(OutcomeKind.FAILED, f"still {'running' if server.ready else 'starting'}: {self.remark}")
        self.was_going = self.was_going or server.pending == "stop"
        self.last = "still running" if server.ready else f"pending: {server.pending or 'not ready'}"

    def wait(self, now_s: float, verify_s: float) -> None:
        """Until the next read, or to the end."""
        if self.outcome.done():
            return
        if now_s + self.wait_s <= self.until_s:
            self.next_s = now_s + self.wait_s
            self.wait_s = min(self.wait_s * 2, LONGEST_REREAD_S)
        elif self.ready:
            # Tried with the proxy down: 6.1 begins to stop and has the server ready again after half a minute; 5.5 answers
            # 204 at once, and it is ready all along.
            detail = f"the stop changed nothing: still running {verify_s:g} s later"
            self._end(OutcomeKind.FAILED, detail + _also(self.remark), Cause.CHANGED_NOTHING)
        else:
            self._end(OutcomeKind.UNVERIFIED, f"not seen gone within {verify_s:g} s: {self.last}" + _also(self.remark))

    def _end(self, kind: OutcomeKind, detail: str, cause: Cause = Cause.NONE) -> None:
        if not self.outcome.done():
            self.outcome.set_result(Outcome(kind, detail, cause))


def _also(remark: str) -> str:
    return f"; {remark}" if remark else ""
