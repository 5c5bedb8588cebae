"""``hubguard drift`` against a made-up guard's API: what it prints, what it asks for, and its exit codes."""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncIterator, Callable
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import cli as command
import pytest
from asked_site import Site, sites
from cli import TOKEN
from doubles.drift import drift_of, one_of_each, reading, report_with, settled, world_of
from doubles.guard import CALLERS, guard_with, made_up

from hubguard.drift import cli as drift_cli
from hubguard.drift.model import DriftKind, Repaired
from hubguard.model import Cause, Order, OutcomeKind, Source
from hubguard.status import Mode

SERVERS = made_up(12)


@pytest.fixture
def run(capsys: pytest.CaptureFixture[str]) -> Callable[..., Any]:
    return partial(asyncio.to_thread, command.run, capsys, "drift")


@pytest.fixture
def journal(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The guard's journal is in this folder, and nobody holds the lease."""
    monkeypatch.chdir(tmp_path)
    command.alone(monkeypatch, hub=True)
    monkeypatch.setattr(drift_cli, "POLL_S", 0.0)
    command.journal()


@pytest.fixture
async def site(journal: None, monkeypatch: pytest.MonkeyPatch) -> AsyncIterator[Site]:
    """A guard with drift of every kind, at the address in the journal; our token may act."""
    monkeypatch.setitem(CALLERS, TOKEN, CALLERS["actor"])
    async with sites() as make:
        guard = guard_with(SERVERS)
        guard.drifts.report = report_with(one_of_each(), SERVERS)
        made = make(guard)
        command.journal(made.url)
        yield made


def ends(site: Site, kind: OutcomeKind, detail: str = "", cause: Cause = Cause.NONE) -> None:
    """Every repair that is asked for from now on is over at once, so."""
    carry_out = site.guard.drifts.repair

    async def repair(digest: str, count: int, order: Order) -> Any:
        plan = await carry_out(digest, count, order)
        assert site.guard.drifts.report
        over = tuple(
            settled(one, kind, detail, cause) if not one.outcome else one for one in site.guard.drifts.report.repaired
        )
        site.guard.drifts.report = replace(site.guard.drifts.report, repaired=over)
        return plan

    site.guard.drifts.repair = repair  # type: ignore[method-assign]


async def test_drift_is_printed_and_exits_4(site: Site, run: Callable[..., Any]) -> None:
    said = await run()
    assert said.code == 4
    assert "13 differences between what the hub believes and what runs" in said.out
    assert "server-ghost  fay  (raised, seen in 4 of 4 looks" in said.out
    assert "to do: HubGuard can't confirm that it belongs to this hub" in said.out
    told = json.loads((await run("--json", "--kind", "server-ghost", "pending-stuck")).out)
    assert [one["user"] for one in told["drift"]] == ["fay", "jon"]
    assert (told["raised"], told["servers"]) == (13, 12)


async def test_no_drift_exits_0_and_suspicion_is_no_drift(site: Site, run: Callable[..., Any]) -> None:
    site.guard.drifts.report = report_with((), SERVERS)
    said = await run()
    assert (said.code, said.out.startswith("All agree: 12 servers, 13 routes and 12 backends.")) == (0, True)
    site.guard.drifts.report = report_with([drift_of(raised_at=None)], SERVERS)
    assert (await run()).code == 0
    site.guard.drifts.report = report_with([drift_of(DriftKind.SERVER_GHOST)], SERVERS)
    assert (await run("--kind", "server-dead")).code == 0


async def test_what_cannot_be_told_exits_1_and_never_0(site: Site, run: Callable[..., Any]) -> None:
    site.guard.drifts.report = None
    said = await run()
    assert (said.code, "hasn't looked" in said.out) == (1, True)
    broken = (reading(Source.HUB_API, "refused"), reading(Source.PROXY))
    site.guard.drifts.report = report_with(world=world_of(SERVERS, readings=broken))
    said = await run()
    assert (said.code, "The hub_api reading is incomplete: refused" in said.out) == (1, True)
    site.guard.drifts.report = report_with(world=world_of(SERVERS, routes=None))
    assert (await run()).code == 1


async def test_more_than_a_page_of_drift_is_read_to_its_end(site: Site, run: Callable[..., Any]) -> None:
    site.guard.drifts.report = report_with([drift_of(user=f"u{i:04d}") for i in range(2500)], SERVERS)
    assert len(json.loads((await run("--json")).out)["drift"]) == 2500


async def test_a_look_is_only_taken_when_asked_for(site: Site, run: Callable[..., Any]) -> None:
    await run()
    assert site.guard.drifts.sources.looks == 0
    await run("--look")
    assert site.guard.drifts.sources.looks == 1


async def test_a_server_is_shown_across_all_sources(site: Site, run: Callable[..., Any]) -> None:
    said = await run("--server", "eve")
    assert said.code == 4
    assert "no server of this name runs" in said.out
    assert "server-dead  eve" in said.out
    said = await run("--server", "student-00003/gpu", "--json")
    assert (said.code, json.loads(said.out)["name"]) == (0, "gpu")
    assert "a/b/c" in (await run("--server", "a%2Fb/c")).out


async def test_repairs_are_done_once_the_count_is_given(site: Site, run: Callable[..., Any]) -> None:
    ends(site, OutcomeKind.DONE, "a re-read shows it")
    said = await run("--repair", "server-dead", "route-missing", "--count", "2", "--why", "drill")
    assert said.code == 0
    assert "2 repairs:" in said.out
    assert "eve: have the hub stop it, so that it can be started again: done, a re-read shows it" in said.out
    assert site.guard.drifts.asked == [("ann", "asked for 2 repairs: drill")]


async def test_an_id_is_repaired_alone(site: Site, run: Callable[..., Any]) -> None:
    ends(site, OutcomeKind.DONE)
    wanted = next(one.id for one in one_of_each() if one.user == "jon")
    said = await run("--repair", wanted, "--count", "1", "--json")
    assert said.code == 0
    told = json.loads(said.out)
    assert (
        [one["drifts"] for one in told["repaired"]] == [[wanted]] == [one["drifts"] for one in told["plan"]["repairs"]]
    )


@pytest.mark.parametrize(("words", "code"), [([], 2), (["--count", "3"], 2), (["--count", "0"], 2)])
async def test_without_the_right_count_nothing_is_done(
    site: Site, run: Callable[..., Any], words: list[str], code: int
) -> None:
    said = await run("--repair", "server-dead", *words)
    assert said.code == code
    assert "--count" in said.err
    assert "Nothing was repaired" in said.err
    assert site.guard.drifts.asked == []


@pytest.mark.parametrize(("typed", "code"), [("1", 0), ("2", 1), ("", 1), ("yes", 1)])
async def test_on_a_terminal_the_count_is_asked_for(
    site: Site, run: Callable[..., Any], monkeypatch: pytest.MonkeyPatch, typed: str, code: int
) -> None:
    ends(site, OutcomeKind.DONE)
    monkeypatch.setattr("sys.stdin.isatty", lambda: True, raising=False)
    monkeypatch.setattr("builtins.input", lambda prompt: typed)
    assert (await run("--repair", "server-dead")).code == code
    assert len(site.guard.drifts.asked) == (code == 0)


@pytest.mark.parametrize(
    ("kind", "detail", "cause", "code"),
    [
        (OutcomeKind.FAILED, "the hub refused", Cause.NONE, 1),
        (OutcomeKind.UNVERIFIED, "it is stopping", Cause.NONE, 1),
        (OutcomeKind.SKIPPED, "it is gone already", Cause.NONE, 0),
        (OutcomeKind.SKIPPED, "the hub doesn't answer", Cause.NOT_TRIED, 1),
    ],
)
async def test_the_exit_code_follows_what_came_of_it(
    site: Site, run: Callable[..., Any], kind: OutcomeKind, detail: str, cause: Cause, code: int
) -> None:
    ends(site, kind, detail, cause)
    said = await run("--repair", "server-dead", "--count", "1")
    assert (said.code, f"{kind.value}, {detail}" in said.out) == (code, True)


async def test_an_older_repair_of_the_same_is_no_answer(
    site: Site, run: Callable[..., Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Else a repair that hangs would count as the one that worked yesterday."""
    monkeypatch.setattr(drift_cli, "OUTCOMES_S", 0.0)
    plan = site.guard.drifts.plan(kinds=(DriftKind.SERVER_DEAD,))
    old = settled(Repaired(plan.repairs[0], "ann", plan.made_at.replace(year=2025)))
    assert site.guard.drifts.report
    site.guard.drifts.report = replace(site.guard.drifts.report, repaired=(old,))
    said = await run("--repair", "server-dead", "--count", "1")
    assert (said.code, "still under way" in said.out) == (1, True)


async def test_on_hold_it_exits_3_and_does_nothing(site: Site, run: Callable[..., Any]) -> None:
    site.guard.change(mode=Mode.HELD)
    said = await run("--repair", "server-dead", "--count", "1")
    assert said.code == 3
    assert "Nothing was repaired. On hold (ann: " in said.out
    assert site.guard.drifts.asked == []


@pytest.mark.parametrize(
    ("words", "says"),
    [
        (["--kind", "ghosts"], "--kind: 'ghosts' is no kind of drift; choose from "),
        (["--repair", "all"], "--repair: 'all' is neither a kind of drift nor the id of one"),
        (["--repair", "server-dead", "--look"], "--repair: "),
        (["--count", "1"], "--repair: is missing: --count and --why belong to it"),
        (["--repair"], "expected at least one argument"),
        (["--repair", "server-dead", "--server", "ann"], "not allowed with"),
        (["--server", "/gpu"], "USER: is missing"),
    ],
)
async def test_wrong_usage_is_named_and_exits_2(
    site: Site, run: Callable[..., Any], words: list[str], says: str
) -> None:
    said = await run(*words)
    assert (said.code, says in said.err) == (2, True), said.err


async def test_nothing_to_repair_is_said_and_exits_1(site: Site, run: Callable[..., Any]) -> None:
    site.guard.drifts.report = report_with((), SERVERS)
    said = await run("--repair", "server-dead", "--count", "1")
    assert (said.code, said.err) == (
        1,
        "hubguard: Nothing to repair: none of these differences is raised and can be repaired.\n",
    )


async def test_without_a_guard_it_says_so(journal: None, run: Callable[..., Any]) -> None:
    said = await run()
    assert (said.code, said.err.startswith("hubguard: No guard is running for this hub")) == (1, True)


async def test_without_the_right_to_act_it_says_which_is_missing(site: Site, run: Callable[..., Any]) -> None:
    CALLERS[TOKEN] = CALLERS["reader"]
    assert (await run()).code == 4
    said = await run("--repair", "server-dead", "--count", "1")
    assert (said.code, "custom:hubguard:act" in said.err) == (1, True)
