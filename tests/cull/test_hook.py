"""The operator's function: what it is asked, what its trouble comes to, and that it never holds HubGuard up for good."""

from __future__ import annotations

import asyncio
import subprocess
import sys
import threading
import time
from datetime import datetime, timedelta
from types import SimpleNamespace
from typing import cast

import pytest
from builders import NOW

from hubguard.cull import hook
from hubguard.cull.cycle import Cycles
from hubguard.cull.decide.judge import CullPolicy
from hubguard.cull.decide.rules import parse
from hubguard.cull.hook import Hook, Hooked
from hubguard.cull.model import Reason, Standing, Verdict
from hubguard.journal.asynchronous import AsyncJournal
from hubguard.journal.model import Failures
from hubguard.model import Server
from hubguard.snapshot.model import Run, Situation, Snapshot


def verdict(user: str) -> Verdict:
    idle_since = NOW - timedelta(hours=2)
    server = Server(user, "", True, None, idle_since, idle_since)
    return Verdict(server, Standing.STOP, Reason.IDLE, idle_since, NOW, idle_timeout_s=600.0)


async def test_the_function_is_asked_about_each_server_that_is_due_in_place_of_one_that_it_keeps():
    asked: list[str] = []

    def keeps_two(server: Server) -> bool:
        asked.append(server.name)
        return server.name not in {"a", "b"}

    class Journal:
        async def exemptions(self, now: datetime) -> tuple[()]:
            return ()

        async def failures(self, since: datetime) -> dict[Run, Failures]:
            return {}

    idle = {name: NOW - timedelta(hours=hours) for name, hours in {"a": 9, "b": 8, "c": 7, "d": 6, "e": 5}.items()}
    there = tuple(Server("ann", name, True, None, at, at) for name, at in idle.items())
    rules, _ = parse([{"users": "*", "max_servers": 3}])
    cycles = cast(Cycles, SimpleNamespace(_hook=Hooked(keeps_two)))
    situation = Situation(NOW, Snapshot(NOW, there, ()))
    decision, known = await Cycles._decide(
        cycles, cast(AsyncJournal, Journal()), situation, CullPolicy(0, 0, rules=rules)
    )
    assert [action.name for action in decision.plan.actions] == ["c", "d"]
    assert sorted(asked) == ["a", "b", "c", "d"]
    assert {run[1]: of_run.hook for run, of_run in known.items()} == {
        "a": False,
        "b": False,
        "c": True,
        "d": True,
        "e": None,
    }


async def test_second_looks_at_many_servers_at_once_all_get_the_functions_own_answer():
    at_once: list[int] = []
    inside = threading.Semaphore(1)

    def slow(server: Server) -> bool:
        at_once.append(0 if inside.acquire(blocking=False) else 1)
        time.sleep(0.02)
        inside.release()
        return server.user != "kept"

    hooked = Hooked(slow)
    users = ["kept", *(f"user-{number}" for number in range(9))]
    answers = await asyncio.gather(*(hooked.ask([verdict(user)], NOW) for user in users))
    assert answers == [{(user, ""): (user != "kept", "")} for user in users]
    assert set(at_once) == {0}, "a function that isn't async is never asked twice at a time"


async def test_while_it_hangs_over_one_server_it_is_asked_about_the_others(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(hook, "PATIENCE_S", 0.05)
    hangs = threading.Event()

    def stuck(server: Server) -> bool:
        if server.user == "odd":
            hangs.wait(30)
        return True

    answers = await Hooked(stuck).ask([verdict(user) for user in ("odd", "ann", "bob")], NOW)
    hangs.set()
    assert answers[("odd", "")] == (None, "it didn't answer within 0.05 s")
    assert [answers[(user, "")] for user in ("ann", "bob")] == [(True, "")] * 2


async def test_one_that_hangs_for_all_is_given_up_after_a_few_and_asked_again_when_it_answers(
    monkeypatch: pytest.MonkeyPatch,
):
    monkeypatch.setattr(hook, "PATIENCE_S", 0.05)
    hangs, asked = threading.Event(), []

    def stuck(server: Server) -> bool:
        asked.append(server.user)
        hangs.wait(30)
        return True

    hooked = Hooked(stuck)
    answers = await hooked.ask([verdict(f"u{number}") for number in range(20)], NOW)
    assert len(asked) == hook.HANGING
    assert all(said is None for said, _ in answers.values()), "none is stopped without its word"
    hangs.set()
    while (await hooked.ask([verdict("ann")], NOW))[("ann", "")] != (True, ""):
        await asyncio.sleep(0.01)


async def test_one_that_is_cancelled_or_cancels_itself_is_a_failure_of_its_own():
    async def cancelled() -> bool:
        raise asyncio.CancelledError

    answers = await Hooked(cancelled).ask([verdict("ann")], NOW)
    assert answers == {("ann", ""): (None, "it was cancelled")}


def exits() -> bool:
    raise SystemExit(3)


class Undecided:
    def __bool__(self) -> bool:
        raise ValueError("neither true nor false")


def answers_in_riddles() -> Undecided:
    return Undecided()


async def exits_later() -> bool:
    raise SystemExit(3)


def fails() -> bool:
    raise ValueError("no such room")


ENDS = "RuntimeError: it called sys.exit(3)"


@pytest.mark.parametrize(("function", "why"), [(fails, "ValueError: no such room"), (exits, ENDS), (exits_later, ENDS)])
async def test_one_that_fails_has_no_say_and_is_quoted(function: Hook, why: str):
    hooked = Hooked(function)
    assert await hooked.ask([verdict("ann")], NOW) == {("ann", ""): (None, f"it failed with {why}")}


HANGING = """
import asyncio, time
from datetime import datetime, timezone
from hubguard.cull import hook
from hubguard.cull.model import Reason, Standing, Verdict
from hubguard.model import Server

hook.PATIENCE_S = 0.05
NOW = datetime(2026, 3, 2, 9, tzinfo=timezone.utc)

async def main():
    hooked = hook.Hooked(lambda: time.sleep(600))
    await hooked.ask([Verdict(Server("a", "", True, None, NOW, NOW), Standing.STOP, Reason.IDLE, NOW, NOW)], NOW)

asyncio.run(main())
"""


def test_one_that_hangs_does_not_keep_the_process_from_ending():
    """A hub that stops had to kill the guard, and a single cycle from the command line never came to its end."""
    subprocess.run([sys.executable, "-c", HANGING], check=True, timeout=60)
