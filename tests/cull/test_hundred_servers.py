"""A hundred real little servers on a hub, half of them idle: exactly those are stopped, once each, within the budget."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Awaitable, Callable
from datetime import datetime
from typing import Any
from urllib.parse import unquote

import pytest
from constants import constants_by_the_hub
from guarded import ARMED, ask, in_use, mode

from hubguard.staging.hub import TestbedHub
from hubguard.staging.population import Population, SeededServer

MakeHub = Callable[..., Awaitable[TestbedHub]]

RATE, BURST, EVERY_S = 20, 5, 3
SETTINGS = (
    constants_by_the_hub(retry_base_s=86400.0, retry_max_s=604800.0)
    + f"""
c.JupyterHub.last_activity_interval = 2
c.HubGuard.read_proxy = True
c.HubGuardCull.idle_timeout_s = 30.0
c.HubGuardBudget.rate = {RATE}.0
c.HubGuardBudget.burst = {BURST}
c.HubGuardBudget.concurrency = 10
c.HubGuardCull.every_s = {EVERY_S}.0
"""
)
# The wait before a second try is drawn from zero on: the longer it may be, the surer there is none while this looks.
# What a busy machine may make of requests that were sent at their time: the log knows to the millisecond when the hub has
# taken each up, which may be several at once. Held to the letter in test_budget.
LEEWAY_S = 0.25

IDLE = [f"idle-{number:02}" for number in range(48)]
BUSY = [f"busy-{number:02}" for number in range(50)]
NAMED = ("nadia", "work")
STUCK = "stuck"

LINE = re.compile(r"\[\w (\S+ \S+) JupyterHub log:\d+\] (\d+) (\w+) (\S+) \(hubguard@\S+\) ([\d.]+)ms")


def population() -> Population:
    """Fifty idle servers, a named one and one that can't be stopped among them, and fifty in use; a process each.

    They are idle by what the hub says. Its proxy has just been started and says that of nobody, until the limit is over.
    """
    return Population(
        servers=(
            *(SeededServer(user, idle_for_s=7200, stop_s=1.0, shared=False) for user in IDLE),
            SeededServer(*NAMED, idle_for_s=7200, shared=False),
            SeededServer(STUCK, idle_for_s=7200, shared=False, on_stop="poll-raises"),
            *(SeededServer(user, idle_for_s=5, shared=False) for user in BUSY),
        )
    )


def requests(hub: TestbedHub) -> list[tuple[float, str, str, int]]:
    """(arrived at, unix seconds; method; path; status) of each of HubGuard's requests, by the hub's access log."""
    found = []
    for at, status, method, path, took_ms in LINE.findall(hub.log_text()):
        answered = datetime.strptime(at, "%Y-%m-%d %H:%M:%S.%f").timestamp()  # noqa: DTZ007  # only differences count
        found.append((answered - float(took_ms) / 1000, method, unquote(path), int(status)))
    return sorted(found)


def label(user: str, name: str) -> str:
    return f"{user}/{name}"


@pytest.mark.long
async def test_of_a_hundred_servers_the_idle_half_is_stopped_once_each_within_the_budget_and_one_failure_is_told(
    testbed_hub: MakeHub,
):
    hub = await testbed_hub(config=ARMED + SETTINGS, population=population())
    pids = {label(*key): server["state"]["pid"] for key, server in (await hub.servers()).items()}
    assert len(set(pids.values())) == 100, "each has a process of its own"
    kept = {(user, "") for user in (*BUSY, STUCK)}
    journal: list[dict[str, Any]] = []

    async def only_the_kept_are_left() -> bool:
        return set(await hub.servers()) == kept

    async def all_accounted_for() -> bool:
        nonlocal journal
        code, journal = await ask(hub, "api/v1/journal?limit=1000")
        intents = {entry["id"] for entry in journal if entry["event"] == "intent"}
        settled = {entry["refers_to"] for entry in journal if entry["event"] == "outcome"}
        return code == 200 and len(intents) >= 50 and intents <= settled

    async def two_more_cycles() -> bool:
        now = (await mode(hub, "acting"))["last_cycle"]["began_at"]
        return (datetime.fromisoformat(now) - datetime.fromisoformat(began)).total_seconds() > 2 * EVERY_S

    async with in_use(hub, *BUSY):
        await hub.wait_for(only_the_kept_are_left, "the idle servers, and only these, to be gone", 120)
        await hub.wait_for(all_accounted_for, "every intent in the journal to have its outcome", 60)
        began = (await mode(hub, "acting"))["last_cycle"]["began_at"]
        # Whoever asks for the same stop in every cycle is found out here.
        await hub.wait_for(two_more_cycles, "two more cycles", 60)

    # The hub: who was asked for, how often, and how fast.
    seen = requests(hub)
    stops = Counter(path for _, method, path, _ in seen if method == "DELETE")
    expected = {f"/hub/api/users/{user}/server" for user in (*IDLE, STUCK)} | {"/hub/api/users/nadia/servers/work"}
    assert stops == Counter(expected), "each idle server is asked for once, and nobody else is"
    refused = {path for _, method, path, status in seen if method == "DELETE" and status >= 400}
    assert refused == {f"/hub/api/users/{STUCK}/server"}
    times = [at for at, *_ in seen]
    for first, began_at in enumerate(times):
        for count, ended_at in enumerate(times[first:], 1):
            allowed = RATE * (ended_at - began_at + LEEWAY_S) + BURST
            assert count <= allowed, f"{count} requests within {ended_at - began_at:.3f} s"

    # The journal: an intent and an outcome for each.
    intents = {entry["id"]: entry for entry in journal if entry["event"] == "intent"}
    outcomes = {
        label(intents[entry["refers_to"]]["user"], intents[entry["refers_to"]]["server"] or ""): entry
        for entry in journal
        if entry["event"] == "outcome"
    }
    assert len(intents) == len(outcomes) == 50
    done = {who for who, entry in outcomes.items() if entry["outcome"] == "done"}
    assert done == {label(user, "") for user in IDLE} | {label(*NAMED)}
    failed = outcomes[label(STUCK, "")]
    assert failed["outcome"] in {"failed", "unverified"}, failed
    assert failed["detail"]

    # The page of that server tells of it, and the machine agrees on who lives.
    code, shown = await ask(hub, f"api/v1/servers/{STUCK}/")
    assert code == 200
    assert shown["failures"], shown
    alive = set(hub.leftovers())
    assert {who for who, pid in pids.items() if pid in alive} == {label(*key) for key in kept}
