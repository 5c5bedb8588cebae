"""``hubguard prune`` against a made-up guard's API: what it prints, what it asks for, and its exit codes."""

from __future__ import annotations

import asyncio
import csv
import io
import json
import os
import shlex
import sqlite3
import time
from collections.abc import AsyncIterator, Callable
from contextlib import closing
from dataclasses import replace
from datetime import datetime, timedelta, timezone
from functools import partial
from pathlib import Path
from types import SimpleNamespace
from typing import Any
from unittest.mock import AsyncMock

import cli as command
import pytest
from asked_site import Site, sites
from builders import DAY_S
from cli import TOKEN
from doubles.guard import CALLERS, guard_with, made_up
from doubles.prune import KEEPS, FakePruning, made_up_users, one_of_each, plan_of, verdict_of

from hubguard import cli
from hubguard.errors import HubGuardError
from hubguard.hub.nouns import UndoUser
from hubguard.journal.model import Stance
from hubguard.journal.store import open_journal
from hubguard.model import OutcomeKind
from hubguard.prune import cli as prune_cli
from hubguard.prune import undo_file
from hubguard.prune.decide import plan as prune_plan
from hubguard.prune.model import PrunePlan, PruneReason, PruneState, StaleCriteria, UndoHead
from hubguard.prune.offline import cli as offline_cli
from hubguard.prune.offline import in_use
from hubguard.staging.seed import seed
from hubguard.status import Mode
from hubguard.web import client

NOW = datetime.now(timezone.utc)


@pytest.fixture
def run(capsys: pytest.CaptureFixture[str]) -> Callable[..., Any]:
    return partial(asyncio.to_thread, command.run, capsys, "prune")


@pytest.fixture
def journal(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The guard's journal is in this folder, and nobody holds the lease."""
    monkeypatch.chdir(tmp_path)
    command.alone(monkeypatch, hub=True)
    monkeypatch.setattr(prune_cli, "POLL_S", 0.0)
    command.journal()


class Pruning(FakePruning):
    """One whose plans are as long-lived as they say, and which has deleted all when it is asked the third time."""

    asked_how: int = 0
    ends: tuple[OutcomeKind, ...] = (OutcomeKind.DONE,)
    ends_as: PruneState = PruneState.DONE

    async def plan(self, criteria: StaleCriteria, actor: str, *, caller: str | None = None, **_: Any) -> PrunePlan:
        self.asked.append(("plan", criteria, actor, caller))
        return self.add(frozen(self, criteria))

    async def runs(self, *, limit: int = 100, user: str = "") -> Any:
        for digest, one in self.states.items():
            if one.state is PruneState.RUNNING:
                self.asked_how += 1
                if self.asked_how == 3:
                    kinds = [self.ends[i % len(self.ends)] for i in range(one.count)]
                    self.settle(digest, *kinds, detail="so it is", state=self.ends_as)
        return await super().runs(limit=limit)


def frozen(pruning: FakePruning, criteria: StaleCriteria | None = None, **changes: Any) -> PrunePlan:
    """A plan that would be taken from a file, too."""
    made = plan_of(pruning.verdicts, criteria or StaleCriteria(180 * DAY_S), storage=pruning.storage, **changes)
    made = replace(made, made_at=NOW, expires_at=NOW + timedelta(days=1))
    return replace(made, digest=prune_plan.digest_of(made))


@pytest.fixture
async def site(journal: None, monkeypatch: pytest.MonkeyPatch) -> AsyncIterator[Site]:
    """A guard with 20 users of whom 18 are stale, at the address in the journal; our token may prune."""
    monkeypatch.setitem(CALLERS, TOKEN, CALLERS["pruner"])
    async with sites() as make:
        guard = guard_with(made_up(3))
        guard.pruning = Pruning(made_up_users(20))
        made = make(guard)
        command.journal(made.url)
        yield made


def begun(site: Site) -> list[tuple[Any, ...]]:
    """What the guard was asked to change."""
    return [one for one in site.guard.pruning.asked if one[0] not in {"users", "user", "plan"}]


ALL = ("--count", "18", "--acknowledge", "KubeSpawner")


async def planned(run: Callable[..., Any], *words: str) -> str:
    """The digest of a new plan."""
    said = await run("plan", "--json", *words)
    assert said.code == 0, said.err
    return str(json.loads(said.out)["digest"])


# -- plan -----------------------------------------------------------------------------------------------------------------


async def test_a_plan_says_first_how_many_of_how_many_and_ends_with_the_command(site: Site, run: Callable[..., Any]):
    said = await run("plan")
    lines = said.out.splitlines()
    assert (said.code, lines[0]) == (0, "Criteria: inactive for 180 d or never active and created 180 d ago.")
    assert lines[1] == "Deletes 18 of 20 users: 16 inactive, 2 never active."
    assert "STORAGE: KubeSpawner deletes the home volume with the user." in lines
    assert "  - A deleted volume can't be brought back." in lines
    assert "  - KubeSpawner: The home volumes are deleted with the users." in lines
    digest = next(iter(site.guard.pruning.plans))
    assert lines[-2] == f"    hubguard prune apply {digest[:12]} --count 18 --acknowledge KubeSpawner"
    assert begun(site) == []


async def test_the_command_that_a_plan_ends_with_is_the_one_that_carries_it_out(site: Site, run: Callable[..., Any]):
    words = (await run("plan", "-o", "a plan.json")).out.splitlines()[-2].split()
    assert words[:3] == ["hubguard", "prune", "apply"]
    said = await run(*shlex.split(" ".join(words))[2:])
    assert said.code == 0, said.err
    assert [one[0] for one in begun(site)] == ["apply"]


async def test_what_is_asked_for_reaches_the_guard_and_what_is_left_out_stays_as_set(
    site: Site, run: Callable[..., Any], tmp_path: Path
):
    (tmp_path / "names").write_text("ann\r\n\n  #7 \nmarée\n", "utf-8")
    words = ("--inactive-for", "26w", "--never-active-for", "0", "--group", "a", "--group", "b", "--role", "r")
    await planned(run, *words, "--name", "guest-*", "--list", "names")
    assert [asked for asked in site.guard.pruning.asked if asked[0] == "plan"][-1][1] == StaleCriteria(
        26 * 7 * DAY_S, 0.0, ("a", "b"), ("r",), ("guest-*",), ("#7", "ann", "marée")
    )
    await planned(run, "--inactive-for", "60m")
    assert site.guard.pruning.asked[-1][1] == replace(site.guard.pruning.default_criteria(), inactive_for_s=3600.0)


async def test_groups_roles_and_creation_that_leave_users_out_reach_the_guard(site: Site, run: Callable[..., Any]):
    await planned(
        run, "--not-group", "staff", "--not-group", "ta", "--not-role", "r", "--created-before", "2026-06-01",
        "--created-after", "2026-05-01T12:00",
    )  # fmt: skip
    made = site.guard.pruning.asked[-1][1]
    assert (made.not_groups, made.not_roles) == (("staff", "ta"), ("r",))
    assert made.created_before == datetime(2026, 6, 1, tzinfo=timezone.utc)
    assert made.created_after == datetime(2026, 5, 1, 12, tzinfo=timezone.utc)


async def test_lines_of_a_list_that_the_plan_leaves_out_are_told_with_why(
    site: Site, run: Callable[..., Any], tmp_path: Path
):
    stale, kept = (
        next(one.account.name for one in site.guard.pruning.verdicts if one.stale is is_stale)
        for is_stale in (True, False)
    )
    (tmp_path / "names").write_text(f"{stale}\n{kept}\nnobody at all\n", "utf-8")
    said = await run("plan", "--list", "names")
    lines = said.err.splitlines()
    assert len(lines) == 2, said.err
    assert lines[0].startswith(f"Not in the plan: {kept}. ")
    assert lines[1].startswith("Not in the plan: nobody at all. The hub has no user nobody at all")


async def test_a_list_that_names_nobody_asks_for_nobody(site: Site, run: Callable[..., Any], tmp_path: Path):
    (tmp_path / "names").write_text("\n\n")
    await planned(run, "--list", "names")
    assert site.guard.pruning.asked[-1][1].listed == ()


async def test_a_plan_in_a_file_is_the_plan_and_only_its_owner_reads_it(
    site: Site, run: Callable[..., Any], tmp_path: Path
):
    said = await run("plan", "-o", "plan.json", "--csv", "plan.csv")
    assert said.code == 0, said.err
    plan = prune_plan.from_dict(json.loads((tmp_path / "plan.json").read_text()))
    assert plan == next(iter(site.guard.pruning.plans.values()))
    text = (tmp_path / "plan.csv").read_text()
    assert text.startswith("# Criteria: inactive for 180 d")
    rows = list(csv.DictReader(io.StringIO(text.partition("\n")[2], newline="")))
    assert [row["user"] for row in rows] == [deletion.user for deletion in plan.deletions]
    assert {(tmp_path / name).stat().st_mode & 0o777 for name in ("plan.json", "plan.csv")} == {0o600}


async def test_who_is_kept_is_written_to_a_table_with_why(site: Site, run: Callable[..., Any], tmp_path: Path):
    said = await run("plan", "--kept", "kept.csv", "--group", "a&b", "--created-before", "2026-06-01")
    assert said.code == 0, said.err
    comment, _, table = (tmp_path / "kept.csv").read_text().partition("\n")
    assert "in the group a&b; created before 2026-06-01" in comment
    rows = list(csv.DictReader(io.StringIO(table, newline="")))
    assert {row["user"] for row in rows} == {one.account.name for one in site.guard.pruning.verdicts if not one.stale}


async def test_a_plan_that_cannot_be_written_is_told(site: Site, run: Callable[..., Any]):
    said = await run("plan", "-o", "no/such/folder/plan.json")
    assert (said.code, "The plan wasn't written to" in said.err) == (1, True)


async def test_nobody_to_delete_is_said_and_exits_1(
    site: Site, run: Callable[..., Any], monkeypatch: pytest.MonkeyPatch
):
    site.guard.pruning.verdicts = ()
    monkeypatch.setattr(Pruning, "plan", FakePruning.plan)
    said = await run("plan")
    assert (said.code, "No plan made: " in said.err) == (1, True)


@pytest.mark.parametrize(
    ("words", "says"),
    [
        (["plan", "--inactive-for", "soon"], "such as 180d, 26w or 6months"),
        (["plan", "--inactive-for", "180"], "'180' is not a span with its unit (s, m, h, d, w, months)"),
        (["plan", "--never-active-for", "90.5"], "'90.5' is not a span with its unit"),
        (["plan", "--inactive-for", "2999-01-01"], "or a date such as 2026-06-01"),
        (["plan", "--inactive-for", "2026-02-31"], "or a date such as 2026-06-01"),
        (["plan", "--inactive-for", "9999months"], "within the last ten years"),
        (["plan", "--inactive-for", "-1d"], "expected one argument"),
        (["plan", "--inactive-for", "11000d"], "within the last ten years"),
        (["plan", "--inactive-for", "nan"], "span with its unit"),
        (["plan", "--created-before", "90"], "date such as 2026-06-01"),
        (["plan", "--created-after", "2026-02-31"], "date such as 2026-06-01"),
        (["plan", "--list", "there-is-none"], "--list: there-is-none can't be read"),
        (["plan", "--hub-db", "sqlite:///x"], "--hub-db: works only with --offline"),
        (["plan", "--housekeeping"], "--housekeeping: works only with --offline"),
        (["apply", "there-is-none"], "neither a file nor the digest"),
        (["apply", "abcdef"], "no plan begins with abcdef"),
        (["apply", "abcdef", "--count", "many"], "count of 0 or more"),
        (["restore", "there-is-none"], "there is no file there-is-none"),
        (["restore", "abcdef", "--with-tokens"], "--with-tokens: works only with --offline"),
        (["export", "abcdef"], "one of the arguments --csv --json is required"),
        (["apply", "--offline", "plan.json"], "--hub-db: is required"),
        ([], "the following arguments are required: ACTION"),
    ],
)
async def test_wrong_usage_is_named_and_exits_2(site: Site, run: Callable[..., Any], words: list[str], says: str):
    said = await run(*words)
    assert (said.code, says in said.err) == (2, True), said.err
    assert begun(site) == []


# -- apply ----------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("by", ["file", "digest", "its beginning"])
async def test_a_plan_is_carried_out_and_followed_to_its_end(site: Site, run: Callable[..., Any], by: str):
    digest = await planned(run)
    Path("plan.json").write_text(json.dumps(prune_plan.to_dict(site.guard.pruning.plans[digest])))
    word = {"file": "plan.json", "digest": digest, "its beginning": digest[:8]}[by]
    said = await run("apply", word, *ALL, "--why", "term is over")
    assert said.code == 0, said.err
    assert begun(site) == [("apply", digest, 18, "pat", "term is over", ("KubeSpawner",))]
    assert f"Plan {digest[:12]}: Done; 18 of 18 users deleted" in said.out
    assert "To restore them: hubguard prune restore /srv/hubguard-undo/undo-" in said.out
    assert "0 of 18: 0 deleted" in said.err


async def test_not_waiting_leaves_it_under_way(site: Site, run: Callable[..., Any]):
    said = await run("apply", await planned(run), *ALL, "--no-wait", "--json")
    assert (said.code, json.loads(said.out)["state"]) == (0, "running")


@pytest.mark.parametrize(
    ("words", "code", "says"),
    [
        (("--acknowledge", "KubeSpawner"), 2, "--count: is required when not run interactively; there are 18"),
        (("--count", "17", "--acknowledge", "KubeSpawner"), 2, "--count: there are 18 users to delete, not 17"),
        (("--count", "0", "--acknowledge", "KubeSpawner"), 2, "--count: there are 18"),
        (("--count", "18"), 2, "--acknowledge: KubeSpawner is required. The home volumes"),
        (
            ("--count", "18", "--acknowledge", "kubespawner"),
            2,
            "no caution 'kubespawner'; its cautions are KubeSpawner",
        ),
    ],
)
async def test_without_count_and_acknowledgement_nothing_is_done(
    site: Site, run: Callable[..., Any], words: tuple[str, ...], code: int, says: str
):
    said = await run("apply", await planned(run), *words)
    assert (said.code, says in said.err, "Nothing was done" in said.err) == (code, True, True), said.err
    assert begun(site) == []


@pytest.mark.parametrize(
    ("typed", "code"),
    [(("KubeSpawner", "18"), 0), (("yes",), 1), (("KubeSpawner", "17"), 1), (("KubeSpawner", ""), 1), (("",), 1)],
)
async def test_on_a_terminal_name_and_count_are_asked_for(
    site: Site, run: Callable[..., Any], monkeypatch: pytest.MonkeyPatch, typed: tuple[str, ...], code: int
):
    answers = iter(typed)
    digest = await planned(run)
    monkeypatch.setattr("sys.stdin.isatty", lambda: True, raising=False)
    monkeypatch.setattr("builtins.input", lambda prompt: next(answers))
    assert (await run("apply", digest)).code == code
    assert len(begun(site)) == (code == 0)


async def test_a_plan_whose_file_was_changed_is_refused(site: Site, run: Callable[..., Any]):
    await run("plan", "-o", "plan.json")
    data = json.loads(Path("plan.json").read_text())
    data["deletions"][0]["user"] = "a-professor"
    Path("plan.json").write_text(json.dumps(data))
    said = await run("apply", "plan.json", *ALL)
    assert (said.code, "has changed since it was made" in said.err) == (2, True), said.err
    assert begun(site) == []


async def test_an_offline_plan_is_not_applied_to_a_hub_that_runs(site: Site, run: Callable[..., Any]):
    plan = frozen(site.guard.pruning, offline=True, database="sqlite hub.sqlite")
    Path("plan.json").write_text(json.dumps(prune_plan.to_dict(plan)))
    said = await run("apply", "plan.json", *ALL)
    assert (said.code, "an offline plan" in said.err) == (2, True), said.err


@pytest.mark.parametrize(
    ("words", "would"),
    [(ALL, True), (("--count", "18"), False), (("--count", "3", "--acknowledge", "KubeSpawner"), False)],
)
async def test_a_dry_run_says_what_would_come_of_it_and_asks_for_nothing(
    site: Site, run: Callable[..., Any], words: tuple[str, ...], would: bool
):
    digest = await planned(run)
    said = await run("apply", digest, *words, "--dry-run")
    assert said.code == (0 if would else 1)
    assert ("These would be deleted, if still stale: student-00001" in said.out) == would
    assert json.loads((await run("apply", digest, *words, "--dry-run", "--json")).out)["would_begin"] is would
    assert begun(site) == []


async def test_a_dry_run_of_what_was_begun_already_says_so(site: Site, run: Callable[..., Any]):
    digest = await planned(run)
    await run("apply", digest, *ALL)
    said = await run("apply", digest, *ALL, "--dry-run")
    assert (said.code, "has started already" in said.out) == (1, True)


@pytest.mark.parametrize(
    ("ends", "ends_as", "code"),
    [
        ((OutcomeKind.DONE, OutcomeKind.SKIPPED), PruneState.DONE, 0),
        ((OutcomeKind.DONE, OutcomeKind.FAILED), PruneState.DONE, 1),
        ((OutcomeKind.UNVERIFIED,), PruneState.DONE, 1),
        ((OutcomeKind.DONE,), PruneState.PAUSED, 3),
        ((OutcomeKind.DONE,), PruneState.CANCELLED, 1),
    ],
)
async def test_the_exit_code_follows_what_came_of_it(
    site: Site, run: Callable[..., Any], ends: tuple[OutcomeKind, ...], ends_as: PruneState, code: int
):
    site.guard.pruning.ends, site.guard.pruning.ends_as = ends, ends_as
    said = await run("apply", await planned(run), *ALL)
    assert said.code == code, said.out


async def test_on_hold_it_exits_3_and_does_nothing(site: Site, run: Callable[..., Any]):
    digest = await planned(run)
    site.guard.pruning.held = "Nothing was done. On hold (ann: an exam)."
    site.guard.change(mode=Mode.HELD, stance=Stance(held=True, held_by="ann"))
    said = await run("apply", digest, *ALL)
    assert (said.code, "On hold (ann: an exam)." in said.err) == (3, True)
    assert begun(site) == []


async def test_a_plan_that_is_resumed_on_hold_exits_3_and_stays_as_it_is(
    site: Site, run: Callable[..., Any], monkeypatch: pytest.MonkeyPatch
):
    site.guard.pruning.asked_how = -1000
    digest = await planned(run)
    await run("apply", digest, *ALL, "--no-wait")
    await run("pause", digest)
    refuse = HubGuardError("Nothing was done. On hold (ann: an exam).")
    monkeypatch.setattr(site.guard.pruning, "resume", AsyncMock(side_effect=refuse))
    site.guard.change(mode=Mode.HELD, stance=Stance(held=True, held_by="ann"))
    said = await run("resume", digest)
    assert (said.code, "On hold (ann: an exam)." in said.err) == (3, True)
    site.guard.change(mode=Mode.ACTING)
    assert (await run("resume", digest)).code == 1
    said = await run("cancel", digest)
    assert (said.code, said.err) == (0, "")


async def test_a_refusal_for_another_reason_exits_1_and_is_told(site: Site, run: Callable[..., Any]):
    digest = await planned(run)
    site.guard.pruning.held = "HubGuardPrune.delete_users is False."
    said = await run("apply", digest, *ALL)
    assert (said.code, "delete_users is False" in said.err) == (1, True)


class Fickle:
    """A guard that is away at first, as one that starts again with its hub is."""

    def __init__(self, *answers: dict[str, Any] | HubGuardError) -> None:
        self.answers = list(answers)

    async def ask(self, method: str, path: str, body: Any = None, **how: Any) -> Any:
        answer = self.answers.pop(0)
        if isinstance(answer, HubGuardError):
            raise answer
        return [answer]


def standing(state: str) -> dict[str, Any]:
    told = {"digest": "ab" * 32, "state": state, "settled": 3, "count": 9, "done": 3, "why": ""}
    return {**told, "skipped": 0, "gone": 0, "failed": 0, "unverified": 0, "per_s": None, "left_s": None}


async def test_following_goes_on_when_the_guard_is_away_for_a_while(monkeypatch: pytest.MonkeyPatch):
    """A hub that restarts takes its guard along; what was begun goes on, and so does whoever watches it."""
    monkeypatch.setattr(prune_cli, "POLL_S", 0.0)
    before = Fickle(standing("running"), HubGuardError("it doesn't answer"), HubGuardError("nor now"))
    after = Fickle(HubGuardError("it starts"), standing("running"), standing("done"))
    found: list[Any] = [after, after, HubGuardError("No guard is running for this hub")]

    def find() -> Any:
        guard = found.pop()
        if isinstance(guard, HubGuardError):
            raise guard
        return guard

    assert (await prune_cli._followed(find, before, "ab" * 32))["state"] == "done"  # type: ignore[arg-type]


async def test_a_guard_that_stays_away_is_not_followed_for_ever(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(prune_cli, "POLL_S", 0.0)
    monkeypatch.setattr(prune_cli, "AWAY_S", -1.0)

    def find() -> Any:
        pytest.fail("it is looked for")

    with pytest.raises(HubGuardError, match="is gone"):
        await prune_cli._followed(find, Fickle(HubGuardError("is gone")), "ab" * 32)  # type: ignore[arg-type]


async def test_without_the_right_to_prune_it_says_which_is_missing(site: Site, run: Callable[..., Any]):
    CALLERS[TOKEN] = CALLERS["reader"]
    said = await run("plan")
    assert (said.code, "custom:hubguard:prune" in said.err) == (1, True), said.err


async def test_without_a_guard_it_says_so_and_names_the_offline_way(journal: None, run: Callable[..., Any]):
    said = await run("plan")
    assert (said.code, said.err.startswith("hubguard: No guard is running for this hub")) == (1, True)
    assert "--offline" in said.err


# -- watching, turning, explaining ----------------------------------------------------------------------------------------


async def test_status_tells_of_what_is_under_way_and_how_long_it_will_take(site: Site, run: Callable[..., Any]):
    assert (await run("status")).out == "There are no plans yet.\n"
    site.guard.pruning.asked_how = -1000  # it goes on for as long as the test does
    digest = site.guard.pruning.add(frozen(site.guard.pruning)).digest
    site.guard.pruning.settle(
        digest, *[OutcomeKind.DONE] * 6, state=PruneState.RUNNING, per_s=2.0, left_s=6.0, began_at=NOW
    )
    said = await run("status")
    assert (said.code, "6 of 18 users deleted" in said.out) == (0, True)
    assert prune_cli.progress_text(json.loads((await run("status", "--json")).out)) == (
        "6 of 18: 6 deleted; 2.0 a second, about 6 s left"
    )


@pytest.mark.parametrize("word", ["pause", "cancel"])
async def test_a_plan_is_turned_and_a_dry_run_turns_nothing(site: Site, run: Callable[..., Any], word: str):
    site.guard.pruning.asked_how = -1000  # it goes on for as long as the test does
    digest = await planned(run)
    await run("apply", digest, *ALL, "--no-wait")
    assert (await run(word, digest[:10], "--dry-run")).code == 0
    assert [one[0] for one in begun(site)] == ["apply"]
    said = await run(word, digest[:10], "--why", "an exam")
    assert said.code == 0, said.err
    assert begun(site)[-1] == (word, digest, "pat", "an exam")
    if word == "pause":
        assert f"To continue: hubguard prune resume {digest[:12]}" in said.out
        assert (await run("status")).code == 3
        site.guard.pruning.cautions_of_now = "KubeSpawner"
        assert (await run("resume", digest)).code == 1
        assert (await run("resume", digest, "--acknowledge", "KubeSpawner")).code == 0


async def test_a_turn_that_makes_no_sense_is_refused_in_the_guards_words(site: Site, run: Callable[..., Any]):
    said = await run("resume", await planned(run))
    assert (said.code, "The plan is planned" in said.err) == (1, True)


async def test_history_lists_who_when_what_and_where_the_undo_file_is(site: Site, run: Callable[..., Any]):
    assert (await run("history")).out == "There are no plans yet.\n"
    digest = await planned(run)
    await run("apply", digest, *ALL, "--why", "term is over")
    said = await run("history")
    assert f"{digest[:12]}  done, by pat (term is over): 18 deleted, of 18\n" in said.out
    assert "/srv/hubguard-undo/" in said.out
    assert "\n    Criteria: inactive for 180 d or never" in said.out
    assert [one["digest"] for one in json.loads((await run("history", "--json")).out)] == [digest]


async def test_a_user_is_explained_by_name_whatever_is_in_it(site: Site, run: Callable[..., Any]):
    site.guard.pruning.verdicts = [*one_of_each(), verdict_of("a/b?c#d%e é", PruneReason.ADMIN)]
    assert (await run("why", "a/b?c#d%e é")).out == "a/b?c#d%e é: Kept: they are an admin.\n"
    assert (await run("why", "u-inactive")).out.startswith("u-inactive: Stale: last active ")
    assert json.loads((await run("why", "u-admin", "--json")).out)["reasons"] == ["admin"]
    said = await run("why", "nobody")
    assert (said.code, "has no user nobody" in said.err) == (1, True)


async def test_a_user_is_explained_by_the_criteria_of_the_plan_that_is_reviewed(site: Site, run: Callable[..., Any]):
    site.guard.pruning.verdicts = one_of_each()

    async def limits_of_why(*words: str) -> tuple[float, float]:
        assert (await run("why", "u-inactive", *words)).code == 0
        criteria = site.guard.pruning.asked[-1][2]
        return (criteria.inactive_for_s, criteria.never_active_for_s)

    default = site.guard.pruning.default_criteria()
    assert await limits_of_why() == (default.inactive_for_s, default.never_active_for_s)
    digest = await planned(run, "--inactive-for", "90d", "--never-active-for", "0", "--group", "a", "--group", "b")
    assert await limits_of_why() == (90 * DAY_S, 0.0)
    assert site.guard.pruning.asked[-1][2].groups == ("a", "b")
    said = await run("why", "u-inactive")
    assert said.out.endswith(f" By the criteria of plan {digest[:12]}: inactive for 90 d; in the group a or b.\n")
    assert await limits_of_why("--inactive-for", "26w") == (182 * DAY_S, default.never_active_for_s)


async def test_a_plan_is_exported_with_what_came_of_each(site: Site, run: Callable[..., Any]):
    digest = await planned(run)
    await run("apply", digest, *ALL)
    rows = list(csv.DictReader(io.StringIO((await run("export", digest, "--csv")).out.partition("\n")[2])))
    assert (len(rows), {row["state"] for row in rows}) == (18, {"done"})
    told = json.loads((await run("export", digest[:9], "--json")).out)
    assert (told["run"]["done"], len(told["items"]), told["items"][0]["detail"]) == (18, 18, "so it is")
    assert prune_plan.from_dict(told["plan"]).digest == digest


async def test_more_than_a_page_is_read_to_its_end(
    site: Site, run: Callable[..., Any], monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.setattr(client, "PAGE", 7)
    digest = await planned(run)
    assert len(json.loads((await run("export", digest, "--json")).out)["items"]) == 18


# -- the way back ---------------------------------------------------------------------------------------------------------


async def test_users_are_brought_back_by_their_undo_file_with_the_askers_own_token(
    site: Site, run: Callable[..., Any], tmp_path: Path
):
    digest = await planned(run)
    await run("apply", digest, *ALL)
    written = undo_file.write(tmp_path, UndoHead(digest, NOW, "ann"), [UndoUser(f"u{i}") for i in range(18)])
    said = await run("restore", str(written.path), "--dry-run")
    assert (said.code, "deleted 18 users." in said.out) == (0, True)
    assert [one[0] for one in begun(site)] == ["apply"]
    said = await run("restore", str(written.path), "--count", "18", "--why", "oops")
    assert (said.code, "18 of 18 users restored" in said.out) == (0, True), said.err
    assert begun(site)[-1] == ("restore", digest, 18, "pat", "oops", written.sha256)
    assert site.guard.pruning.tokens == [TOKEN]


async def test_an_undo_file_that_was_changed_is_refused_before_anything_is_asked(
    site: Site, run: Callable[..., Any], tmp_path: Path
):
    digest = await planned(run)
    await run("apply", digest, *ALL)
    written = undo_file.write(tmp_path, UndoHead(digest, NOW, "ann"), [UndoUser("ann")])
    written.path.write_text(written.path.read_text().replace('"ann"', '"eve"'))
    said = await run("restore", str(written.path), "--count", "18")
    assert said.code == 1
    assert [one[0] for one in begun(site)] == ["apply"]


@pytest.mark.parametrize(("words", "code"), [([], 2), (["--count", "17"], 2), (["--count", "18"], 0)])
async def test_restoring_wants_the_count_and_takes_a_digest(
    site: Site, run: Callable[..., Any], words: list[str], code: int
):
    digest = await planned(run)
    await run("apply", digest, *ALL)
    assert (await run("restore", digest[:12], *words)).code == code
    assert ("restore" in [one[0] for one in begun(site)]) == (code == 0)


async def test_a_plan_that_was_never_begun_has_nobody_to_bring_back(site: Site, run: Callable[..., Any]):
    said = await run("restore", await planned(run), "--count", "0")
    assert (said.code, said.out, "was never started" in said.err) == (1, "", True)
    assert begun(site) == []


async def test_one_user_was_deleted_and_several_were(site: Site, run: Callable[..., Any]):
    digest = await planned(run)
    await run("apply", digest, *ALL)
    assert "deleted 18 users." in (await run("restore", digest, "--dry-run")).out
    site.guard.pruning.states[digest] = replace(site.guard.pruning.states[digest], done=1)
    assert "deleted 1 user." in (await run("restore", digest, "--dry-run")).out


async def test_storage_that_stays_is_said_without_alarm(site: Site, run: Callable[..., Any]):
    site.guard.pruning.storage = KEEPS
    assert "Storage: SystemdSpawner leaves the home folders where they are." in (await run("plan")).out


@pytest.mark.parametrize(
    ("lines", "says"),
    [
        ("c.HubGuardPrune.delete_users = True\n", "HubGuard deletes users only when a person applies a plan"),
        ("c.HubGuardPrune.every_s = 86400.0\n", "HubGuardPrune.every_s: scheduled pruning needs"),
        (
            "c.HubGuardPrune.delete_users = True\nc.HubGuardPrune.every_s = 86400.0\n",
            "HubGuard deletes users automatically, every 1 d up to 100 (HubGuardPrune.every_s): everyone inactive for 180 d"
            " or never active and created 180 d ago",
        ),
        (
            "c.HubGuardPrune.delete_users = True\nc.HubGuardPrune.every_s = 86400.0\n"
            "c.HubGuardPrune.inactive_for_s = 0.0\nc.HubGuardPrune.never_active_for_s = 0.0\n",
            "but nobody is ever deleted: both limits are 0",
        ),
    ],
)
def test_config_check_says_plainly_where_users_may_be_deleted_and_how(
    journal: None, capsys: pytest.CaptureFixture[str], lines: str, says: str
):
    Path("mine.py").write_text(lines)
    cli.main(["config", "check", "mine.py"])
    assert says in capsys.readouterr().out
    Path("mine.py").write_text("c.HubGuardPrune.inactive_for_s = 86400.0\n")
    cli.main(["config", "check", "mine.py"])
    assert "delete" not in capsys.readouterr().out


def test_config_show_has_the_settings_of_pruning(journal: None, capsys: pytest.CaptureFixture[str]):
    assert cli.main(["config", "show"]) == 0
    assert "HubGuardPrune.delete_users = False\n" in capsys.readouterr().out


# -- offline --------------------------------------------------------------------------------------------------------------


@pytest.fixture
def hub_db(journal: None, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The database of a hub that last wrote to it long ago: 30 users, of whom many are stale; nobody uses it."""
    monkeypatch.delenv("JUPYTERHUB_API_URL")
    file = tmp_path / "hub.sqlite"
    seed(f"sqlite:///{file}", users=30, running=0, groups=2, named=0)
    an_hour_ago = time.time() - 3600
    with closing(sqlite3.connect(file)) as database, database:
        database.execute(
            "UPDATE users SET created = '2024-01-01 00:00:00', last_activity = '2025-01-01 00:00:00' WHERE id <= 20"
        )
        database.execute("UPDATE users SET last_activity = datetime('now', '-1 hour') WHERE id > 20")
        database.execute("UPDATE spawners SET last_activity = NULL")
        database.execute("UPDATE api_tokens SET last_activity = NULL")
    os.utime(file, (an_hour_ago, an_hour_ago))
    return file


def users_in(file: Path) -> list[str]:
    with closing(sqlite3.connect(file)) as database:
        return [name for (name,) in database.execute("SELECT name FROM users ORDER BY name")]


def offline(hub_db: Path) -> tuple[str, str, str]:
    return ("--offline", "--hub-db", f"sqlite:///{hub_db}")


UNSEEN = ("--acknowledge", "hub-not-asked", "--acknowledge", "processes-not-seen")
"""For who isn't root, or has no hub's config: what can't be seen of the hub."""


def quiet(hub_db: Path) -> None:
    """Nobody has written for a while: what we did ourselves counts as a hub's writing else."""
    an_hour_ago = time.time() - 3600
    os.utime(hub_db, (an_hour_ago, an_hour_ago))


def hub_config(folder: Path, text: str = "") -> str:
    (folder / "jupyterhub_config.py").write_text(f"c.JupyterHub.port = 8000\n{text}")
    return "--config=jupyterhub_config.py"


async def test_offline_users_go_by_a_plan_and_come_back_by_its_undo_file(
    hub_db: Path, run: Callable[..., Any], tmp_path: Path
):
    config, before = hub_config(tmp_path), users_in(hub_db)
    said = await run("plan", *offline(hub_db), config, "--inactive-for", "180d", "-o", "plan.json")
    assert said.code == 0, said.err
    assert said.out.splitlines()[1] == "Deletes 20 of 30 users: 20 inactive."
    database = f"--offline --hub-db=sqlite:///{hub_db}"
    assert f"hubguard prune apply {database} --config=jupyterhub_config.py plan.json --count 20" in said.out
    assert users_in(hub_db) == before, "planning changes nothing"
    quiet(hub_db)
    assert (await run("apply", *offline(hub_db), config, *UNSEEN, "plan.json", "--dry-run")).out.startswith(
        "20 users would be deleted, 0 kept."
    )
    assert users_in(hub_db) == before, "nor does a dry run"
    quiet(hub_db)
    said = await run(
        "apply", *offline(hub_db), config, *UNSEEN, "plan.json", "--count", "20", "--json", "--why", "it won't start"
    )
    assert said.code == 0, said.err
    told = json.loads(said.out)
    assert len(users_in(hub_db)) == 10
    assert Path(told["backup"]).is_file()
    quiet(hub_db)
    said = await run("restore", *offline(hub_db), *UNSEEN, told["undo_file"], "--count", "20")
    assert said.code == 0, said.err
    assert "20 users restored, 0 not." in said.out
    assert users_in(hub_db) == before
    with closing(open_journal("sqlite:///hubguard.sqlite")) as books:
        notes = [entry.detail for entry in reversed(books.entries()) if entry.event == "note"]
    assert "to delete 20 users" in notes[0]
    assert notes[0].endswith(": it won't start")
    assert told["undo_sha256"] in notes[1]
    assert "20 restored" in notes[3]


@pytest.mark.parametrize(
    "text",
    [
        "c.Authenticator.admin_users = {'NAME'}\n",
        "c.Authenticator.allowed_users.add('NAME'.upper())\n",
        "c.JupyterHub.load_groups = {'staff': ['NAME']}\n",
        "c.JupyterHub.load_groups = {'staff': {'users': ['NAME']}}\n",
        "c.JupyterHub.load_roles = [{'name': 'r', 'users': ['NAME']}]\n",
        "c.JupyterHub.authenticator_class = 'dummy'\nc.DummyAuthenticator.allowed_users = {'NAME'}\n",
        "c.HubGuardPrune.protected_names = ['NAME']\n",
    ],
)
async def test_offline_whom_the_config_names_is_kept(hub_db: Path, run: Callable[..., Any], tmp_path: Path, text: str):
    name = users_in(hub_db)[3]
    config = hub_config(tmp_path, text.replace("NAME", name))
    said = await run("plan", *offline(hub_db), config, "--json")
    assert said.code == 0, said.err
    plan = prune_plan.from_dict(json.loads(said.out))
    assert len(plan.deletions) == 19
    assert name not in {deletion.user for deletion in plan.deletions}
    assert plan.cautions == ()


async def test_offline_the_undo_file_goes_where_the_command_says_then_where_the_settings_do(
    hub_db: Path, run: Callable[..., Any], tmp_path: Path
):
    config = hub_config(tmp_path, f"c.HubGuardPrune.undo_folder = {str(tmp_path / 'set')!r}\n")
    for options, folder in (((), "set"), (("--undo-folder", str(tmp_path / "named")), "named")):
        assert (await run("plan", *offline(hub_db), config, "-o", "plan.json")).code == 0
        quiet(hub_db)
        said = await run(
            *("apply", *offline(hub_db), config, *UNSEEN, "plan.json", "--count", "20", "--json"), *options
        )
        written = Path(json.loads(said.out)["undo_file"])
        assert written.parent == tmp_path / folder
        quiet(hub_db)
        assert (await run("restore", *offline(hub_db), *UNSEEN, str(written), "--count", "20")).code == 0
        quiet(hub_db)


async def test_offline_who_has_a_protected_role_is_kept(hub_db: Path, run: Callable[..., Any], tmp_path: Path):
    said = await run(
        "plan", *offline(hub_db), hub_config(tmp_path, "c.HubGuardPrune.protected_roles = ['user']\n"), "--json"
    )
    assert said.code == 0, said.err
    plan = prune_plan.from_dict(json.loads(said.out))
    assert (plan.deletions, plan.kept) == ((), {PruneReason.PROTECTED_ROLE: 30})


@pytest.mark.parametrize(
    "text",
    [
        None,
        "c.HubGuardPrune.inactive_for_s = 86400.0\n",
        "c.JupyterHub.port = 8000\nc.JupyterHub.authenticator_class = 'there.is.None'\n",
        "c.JupyterHub.port = 8000\nc.JupyterHub.load_groups = {'a': [7]}\n",
    ],
)
async def test_offline_a_config_that_does_not_tell_whom_it_names_is_a_caution(
    hub_db: Path, run: Callable[..., Any], tmp_path: Path, text: str | None
):
    (tmp_path / "some_config.py").write_text(text or "")
    words = () if text is None else ("--config", "some_config.py")
    said = await run("plan", *offline(hub_db), *words, "--json")
    assert said.code == 0, said.err
    assert [one["name"] for one in json.loads(said.out)["cautions"]] == ["users-in-config-unknown"]


async def test_offline_a_config_that_cannot_be_read_is_an_error(hub_db: Path, run: Callable[..., Any], tmp_path: Path):
    config = hub_config(tmp_path, "raise RuntimeError('no such secret')\n")
    said = await run("plan", *offline(hub_db), config)
    assert (said.code, "no such secret" in said.err) == (2, True)


async def test_offline_what_a_plan_was_made_with_is_wanted_again(hub_db: Path, run: Callable[..., Any], tmp_path: Path):
    """Else somebody whom the config names by now would be deleted, since the second look knew less than the first."""
    config = hub_config(tmp_path)
    assert (await run("plan", *offline(hub_db), config, "-o", "plan.json")).code == 0
    quiet(hub_db)
    said = await run("apply", *offline(hub_db), "plan.json", "--count", "20")
    assert (said.code, "--config: is required" in said.err) == (2, True)
    name = users_in(hub_db)[3]
    hub_config(tmp_path, f"c.Authenticator.admin_users = {{'{name}'}}\n")
    said = await run("apply", *offline(hub_db), config, *UNSEEN, "plan.json", "--count", "20")
    assert said.code == 0, said.err
    assert f"{name}: the hub's config names the user" in said.out
    assert name in users_in(hub_db)


async def test_offline_names_that_are_nobodys_are_refused_and_who_is_kept_is_told(
    hub_db: Path, run: Callable[..., Any], tmp_path: Path
):
    with closing(sqlite3.connect(hub_db)) as database:
        stale, kept = (
            database.execute("SELECT name FROM users WHERE id = ? AND NOT admin", (id_,)).fetchone()[0]
            for id_ in (10, 25)
        )
    (tmp_path / "names").write_text(f"{stale}\n{kept}\nghost\nother\n", "utf-8")
    said = await run("plan", *offline(hub_db), "--list", "names")
    assert (said.code, "none of these listed users: ghost, other." in said.err) == (1, True), said.err
    said = await run("plan", *offline(hub_db), "--list", "names", "--ignore-unknown", "--kept", "kept.csv")
    assert said.code == 0, said.err
    assert f"Not in the plan: {kept}. Kept: last active" in said.err
    comment, _, table = (tmp_path / "kept.csv").read_text().partition("\n")
    assert comment.startswith("# Criteria: ")
    rows = {row["user"]: row for row in csv.DictReader(io.StringIO(table, newline=""))}
    assert stale not in rows
    assert rows[kept]["reasons"] == "active"
    assert (tmp_path / "kept.csv").stat().st_mode & 0o777 == 0o600


async def test_offline_without_count_or_acknowledgement_nothing_is_done(hub_db: Path, run: Callable[..., Any]):
    assert (await run("plan", *offline(hub_db), "-o", "plan.json")).code == 0
    quiet(hub_db)
    for words in (
        [],
        ["--count", "20"],
        ["--count", "19", "--acknowledge", "users-in-config-unknown"],
        ["--acknowledge", "users-in-config-unknown"],
    ):
        said = await run("apply", *offline(hub_db), *UNSEEN, "plan.json", *words)
        assert (said.code, "Nothing was done" in said.err) == (2, True), said.err
    assert len(users_in(hub_db)) == 30


async def test_offline_all_that_is_missing_is_listed_at_once_and_printed_commands_work_as_pasted(
    hub_db: Path, run: Callable[..., Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.setattr(in_use, "_FIRST_NAMESPACE", "pid:[1]")
    before = users_in(hub_db)
    said = await run("plan", *offline(hub_db), "-o", "a plan.json")
    assert "--with-tokens" in said.out, "what is lost without is said before"
    apply = shlex.split(said.out.strip().splitlines()[-1])
    assert apply[:3] == ["hubguard", "prune", "apply"]
    names = {"users-in-config-unknown", "hub-not-asked", "processes-not-seen"}
    assert all(f"  - {name}: " in said.out for name in names)
    quiet(hub_db)
    said = await run("apply", *offline(hub_db), "a plan.json")
    assert (said.code, len(users_in(hub_db))) == (2, 30)
    added = shlex.split(said.err.partition("add: ")[2])
    assert (set(added[3::2]), added[:2]) == (names, ["--count", "20"])
    quiet(hub_db)
    said = await run(*apply[2:])
    assert (said.code, len(users_in(hub_db))) == (0, 10), said.err
    restore = next(line for line in said.out.splitlines() if "prune restore" in line)
    quiet(hub_db)
    said = await run(*shlex.split(restore)[2:])
    assert (said.code, users_in(hub_db)) == (0, before), said.err


async def test_offline_an_undo_file_that_the_journal_doesnt_know_needs_a_word(
    hub_db: Path, run: Callable[..., Any], tmp_path: Path
):
    """It may be forged: nothing else tells what it gives to whom."""
    assert (await run("plan", *offline(hub_db), "-o", "plan.json")).code == 0
    quiet(hub_db)
    cautions = ("--acknowledge", "users-in-config-unknown", *UNSEEN)
    said = await run("apply", *offline(hub_db), *cautions, "plan.json", "--count", "20", "--json")
    assert said.code == 0, said.err
    head, users = undo_file.read(Path(json.loads(said.out)["undo_file"]))
    forged = [replace(user, roles=("grader",)) if user.name else user for user in users]
    path = str(undo_file.write(tmp_path / "forged", head, forged).path)
    quiet(hub_db)
    said = await run("restore", *offline(hub_db), *UNSEEN, path, "--count", "20")
    assert (said.code, "undo-file-unknown is required" in said.err) == (2, True), said.err
    assert len(users_in(hub_db)) == 10
    said = await run("restore", *offline(hub_db), *UNSEEN, "--acknowledge", "undo-file-unknown", path, "--count", "20")
    assert said.code == 0, said.err
    assert len(users_in(hub_db)) == 30


async def test_offline_nothing_is_done_while_acting_is_on_hold(hub_db: Path, run: Callable[..., Any], tmp_path: Path):
    config = hub_config(tmp_path)
    assert (await run("plan", *offline(hub_db), config, "-o", "plan.json")).code == 0
    with closing(open_journal("sqlite:///hubguard.sqlite")) as books:
        books.hold("ann", "an exam", NOW)
    quiet(hub_db)
    said = await run("apply", *offline(hub_db), config, *UNSEEN, "plan.json", "--count", "20")
    assert (said.code, "On hold (ann: an exam)." in said.err) == (3, True)
    assert len(users_in(hub_db)) == 30


async def test_offline_somebody_who_is_kept_by_an_exemption_stays(
    hub_db: Path, run: Callable[..., Any], tmp_path: Path
):
    name = users_in(hub_db)[2]
    with closing(open_journal("sqlite:///hubguard.sqlite")) as books:
        books.exempt(name, None, NOW + timedelta(days=2), "ann", "a thesis", NOW)
    said = await run("plan", *offline(hub_db), hub_config(tmp_path), "--json")
    assert name not in {one["user"] for one in json.loads(said.out)["deletions"]}
    assert json.loads(said.out)["kept"]["exemption"] == 1


async def test_offline_a_journal_that_is_not_there_is_told_and_no_error(
    hub_db: Path, run: Callable[..., Any], monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.setenv("HUBGUARD_DB_URL", "sqlite:////nowhere/at/all.sqlite")
    said = await run("plan", *offline(hub_db), "--json")
    assert (said.code, "own journal can't be opened" in said.err) == (0, True)
    assert "journal-unknown" in [one["name"] for one in json.loads(said.out)["cautions"]]


async def test_offline_a_plan_made_with_the_journal_is_not_applied_without(
    hub_db: Path, run: Callable[..., Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    """Planned in the hub's folder and applied in another: somebody exempted since, or a hold, wouldn't be known."""
    config = hub_config(tmp_path)
    assert (await run("plan", *offline(hub_db), config, "-o", "plan.json")).code == 0
    quiet(hub_db)
    with closing(open_journal("sqlite:///hubguard.sqlite")) as books:
        books.exempt(users_in(hub_db)[2], None, NOW + timedelta(days=2), "ann", "a thesis", NOW)
    elsewhere = tmp_path / "elsewhere"
    elsewhere.mkdir()
    monkeypatch.chdir(elsewhere)
    words = (f"--config={tmp_path / 'jupyterhub_config.py'}", *UNSEEN, str(tmp_path / "plan.json"), "--count", "20")
    said = await run("apply", *offline(hub_db), *words)
    assert (said.code, "HubGuard's own journal is required" in said.err) == (2, True), said.err
    assert len(users_in(hub_db)) == 30
    monkeypatch.chdir(tmp_path)
    assert (await run("apply", *offline(hub_db), *words)).code == 0
    assert len(users_in(hub_db)) == 11
    quiet(hub_db)
    undo = next(Path("hubguard-undo").absolute().glob("*.jsonl"))
    monkeypatch.chdir(elsewhere)
    said = await run("restore", *offline(hub_db), *UNSEEN, str(undo), "--count", "19")
    assert (said.code, "journal-unknown is required" in said.err) == (2, True), said.err


async def test_offline_a_database_that_was_written_to_just_now_is_refused(
    hub_db: Path, run: Callable[..., Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    config = hub_config(tmp_path)
    assert (await run("plan", *offline(hub_db), config, "-o", "plan.json")).code == 0
    os.utime(hub_db)
    monkeypatch.setattr(in_use, "_FIRST_NAMESPACE", "pid:[1]")
    said = await run("apply", *offline(hub_db), config, *UNSEEN, "plan.json", "--count", "20")
    assert (said.code, "in use" in said.err) == (1, True), said.err
    assert len(users_in(hub_db)) == 30


async def test_offline_a_wrong_setting_is_named_and_nothing_is_planned(
    hub_db: Path, run: Callable[..., Any], tmp_path: Path
):
    """A misspelt protection would protect nobody."""
    said = await run("plan", *offline(hub_db), hub_config(tmp_path, "c.HubGuardPrune.protected_group = ['staff']\n"))
    assert (said.code, "HubGuardPrune.protected_group: no such setting" in said.err) == (2, True)


async def test_offline_the_hub_is_asked_where_its_config_says(hub_db: Path, run: Callable[..., Any], tmp_path: Path):
    async def answer(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await reader.readuntil(b"\r\n\r\n")
        writer.write(b"HTTP/1.1 403 Forbidden\r\nContent-Length: 0\r\n\r\n")
        writer.close()

    async with await asyncio.start_server(answer, "127.0.0.1", 0) as hub:
        port = hub.sockets[0].getsockname()[1]
        for text in (
            f"c.JupyterHub.hub_ip = ''\nc.JupyterHub.hub_port = {port}\nc.JupyterHub.base_url = '/jhub'\n",
            f"c.JupyterHub.hub_bind_url = 'http://127.0.0.1:{port}'\n",
            f"c.JupyterHub.hub_connect_url = 'http://127.0.0.1:{port}'\nc.JupyterHub.hub_port = 9\n",
        ):
            config = hub_config(tmp_path, text)
            assert (await run("plan", *offline(hub_db), config, "-o", "plan.json")).code == 0
            quiet(hub_db)
            words = ("apply", *offline(hub_db), config, *UNSEEN, "plan.json", "--count", "20")
            said = await run(*words)
            assert (said.code, f"The hub answers (with status 403) at http://127.0.0.1:{port}/" in said.err) == (
                1,
                True,
            )
    assert len(users_in(hub_db)) == 30


@pytest.mark.parametrize(
    ("hub", "urls"),
    [
        ({"hub_ip": "127.0.0.1"}, ["http://127.0.0.1:8081/hub/api"]),
        ({"hub_ip": "::"}, ["http://127.0.0.1:8081/hub/api"]),
        ({"hub_ip": "0.0.0.0"}, ["http://127.0.0.1:8081/hub/api"]),
        ({"hub_bind_url": "http://[::]:9"}, ["http://127.0.0.1:9/hub/api"]),
        ({"hub_bind_url": "http://*:9"}, ["http://127.0.0.1:9/hub/api"]),
        ({"hub_bind_url": "https://[fd00::1]:9"}, ["https://[fd00::1]:9/hub/api"]),
        ({"hub_bind_url": "unix+http://%2Fsrv%2Fsocket"}, []),
        ({"hub_connect_ip": "fd00::1"}, ["http://127.0.0.1:8081/hub/api", "http://[fd00::1]:8081/hub/api"]),
        ({"hub_connect_ip": "hub.lan"}, ["http://127.0.0.1:8081/hub/api", "http://hub.lan:8081/hub/api"]),
        ({"hub_connect_url": "http://hub.lan"}, ["http://127.0.0.1:8081/hub/api", "http://hub.lan/hub/api"]),
        (None, []),
    ],
)
def test_offline_all_addresses_at_which_the_config_has_the_hub_answer_are_asked(
    monkeypatch: pytest.MonkeyPatch, hub: dict[str, str] | None, urls: list[str]
):
    defaults = {"hub_ip": "127.0.0.1", "hub_port": 8081, "hub_prefix": "/hub/"}
    unset = dict.fromkeys(("hub_bind_url", "hub_connect_url", "hub_connect_ip"), "")
    made = None if hub is None else SimpleNamespace(**defaults | unset | hub)
    monkeypatch.setattr(offline_cli, "_hub_of", lambda configs: made)
    assert list(offline_cli._answers_at(())) == urls


async def test_offline_an_undo_file_that_isnt_what_the_journal_knows_brings_nobody_back(
    hub_db: Path, run: Callable[..., Any], tmp_path: Path
):
    """A file that was made anew fits its own checksum, but not the one that was noted when it was written."""
    config = hub_config(tmp_path)
    assert (await run("plan", *offline(hub_db), config, "-o", "plan.json")).code == 0
    quiet(hub_db)
    words = ("apply", *offline(hub_db), config, *UNSEEN, "plan.json", "--count", "20", "--json")
    path = Path(json.loads((await run(*words)).out)["undo_file"])
    head, users = undo_file.read(path)
    path.unlink()
    undo_file.write(path.parent, head, users[1:]).path.rename(path)
    quiet(hub_db)
    said = await run("restore", *offline(hub_db), *UNSEEN, str(path), "--count", "19")
    assert said.code == 1, said.err
    assert len(users_in(hub_db)) == 10


async def test_offline_without_the_hubs_config_that_it_was_not_asked_is_acknowledged(
    hub_db: Path, run: Callable[..., Any]
):
    assert (await run("plan", *offline(hub_db), "-o", "plan.json")).code == 0
    quiet(hub_db)
    known = ("--count", "20", "--acknowledge", "users-in-config-unknown", *UNSEEN[2:])
    said = await run("apply", *offline(hub_db), "plan.json", *known)
    assert (said.code, "hub-not-asked is required" in said.err) == (2, True)
    assert len(users_in(hub_db)) == 30
    said = await run("apply", *offline(hub_db), "plan.json", *known, *UNSEEN)
    assert said.code == 0, said.err
    quiet(hub_db)
    undo = next(Path("hubguard-undo").glob("*.jsonl"))
    said = await run("restore", *offline(hub_db), str(undo), "--count", "20", *UNSEEN[2:])
    assert (said.code, "hub-not-asked is required" in said.err) == (2, True)
    assert len(users_in(hub_db)) == 10


async def test_offline_a_url_that_is_wrong_is_named_as_the_option_that_it_is(hub_db: Path, run: Callable[..., Any]):
    for url, says in (("hub", "--hub-db isn't a database URL"), ("sqlite:////nowhere/hub.sqlite", "doesn't exist")):
        said = await run("plan", "--offline", "--hub-db", url)
        assert (said.code, says in said.err, "nothing was done" in said.err) == (1, True, True), said.err
        assert "by itself" not in said.err
        assert "HubGuard.hub_db_url" not in said.err
    said = await run("plan", "--offline", "--hub-db", "postgresql://anna:s3cret@127.0.0.1:9/hub")
    assert (said.code, "by itself" in said.err, "s3cret" in said.err) == (1, False, False), said.err
