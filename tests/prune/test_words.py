from __future__ import annotations

import csv
import io
import json
from dataclasses import fields, replace
from datetime import datetime, timedelta, timezone
from typing import Any

import pytest
from builders import DAY_S, NOW, days_ago

from hubguard.hub.nouns import Account, AccountServer
from hubguard.model import Outcome, OutcomeKind
from hubguard.prune import words as prune_words
from hubguard.prune.decide.plan import OFFLINE_STORAGE, freeze, from_dict, to_shape
from hubguard.prune.decide.stale import judge
from hubguard.prune.model import (
    Deletion,
    Protection,
    PruneItem,
    PrunePlan,
    PruneReason,
    PruneRun,
    PruneState,
    PruneVerdict,
    StaleCriteria,
    StorageFate,
    Use,
)
from hubguard.wire import to_plain
from hubguard.words import json_text

ASKED = StaleCriteria(180 * DAY_S, 90 * DAY_S)


ANN = Account("ann", admin=False, created=days_ago(900), last_activity=days_ago(230), id=3)


def said(account: Account, criteria: StaleCriteria = ASKED, use: Use | None = None, **protection: Any) -> str:
    uses = {} if use is None else {account.name: use}
    (verdict,) = judge([account], criteria, Protection(**protection), (), uses, NOW)
    return prune_words.verdict_sentence(verdict, NOW)


def planned(*accounts: Account, **more: Any) -> PrunePlan:
    given: dict[str, Any] = {
        "made_by": "x",
        "life_s": 3600.0,
        "cap": None,
        "users_total": 5000,
        "storage": OFFLINE_STORAGE,
        "cautions": (),
        "lost": (),
    }
    return freeze(judge(accounts, ASKED, Protection(), (), {}, NOW), ASKED, NOW, **given | more)


# -- sentences ------------------------------------------------------------------------------------------------------------


def test_a_sentence_says_why_somebody_is_stale_and_by_which_limit() -> None:
    assert said(ANN) == "Stale: last active 230 d ago; the limit is 180 d."
    assert said(replace(ANN, last_activity=None)) == "Stale: created 900 d ago and never active; the limit is 90 d."


def test_a_sentence_says_why_the_hubs_own_time_doesnt_count() -> None:
    stopped = Use(days_ago(200), ((days_ago(20), days_ago(20)),))
    assert said(replace(ANN, last_activity=days_ago(20)), use=stopped) == (
        "Stale: last active 200 d ago; the limit is 180 d"
        " (the hub says 20 d ago, when HubGuard stopped one of their servers)."
    )


def test_a_sentence_says_when_somebody_who_is_kept_can_be_stale() -> None:
    assert (
        said(replace(ANN, last_activity=days_ago(3))) == "Kept: last active 3 d ago, so stale in 177 d at the earliest."
    )
    never = replace(ANN, last_activity=None, created=days_ago(40))
    assert said(never) == "Kept: created 40 d ago and never active, so stale in 50 d at the earliest."


def test_a_sentence_has_all_that_keeps_somebody() -> None:
    busy = replace(ANN, admin=True, token_used_at=days_ago(2), servers=(AccountServer("", active=True),))
    assert said(busy, token_used_within_s=30 * DAY_S, callers=("ann",)) == (
        "Kept: they are an admin; one of their servers is running or pending; one of their tokens was used 2 d ago;"
        " they make this plan."
    )


def test_a_sentence_says_what_wasnt_asked_for() -> None:
    assert said(ANN, StaleCriteria(never_active_for_s=1)) == "Kept: the criteria leave out users who were ever active."
    never = replace(ANN, last_activity=None)
    assert said(never, StaleCriteria(inactive_for_s=1)) == "Kept: the criteria leave out users who were never active."
    assert said(ANN, replace(ASKED, names=("b*",))) == (
        "Kept: their groups, roles, name or creation don't match the criteria."
    )


def test_what_cant_be_told_is_said_so() -> None:
    assert said(replace(ANN, groups=None), groups=("staff",)) == (
        "Kept: their groups, roles or creation are unknown, and the criteria or protections need them."
    )
    assert said(replace(ANN, created=None, last_activity=None)) == ("Kept: it is unknown when they were active.")


@pytest.mark.parametrize("reason", list(PruneReason))
def test_every_reason_has_words_and_a_sentence(reason: PruneReason) -> None:
    stale = reason in {PruneReason.INACTIVE, PruneReason.NEVER_ACTIVE}
    for times in ((None, None), (days_ago(300), days_ago(120)), (days_ago(300), None)):
        for account in (ANN, replace(ANN, last_activity=None), replace(ANN, token_used_at=days_ago(1))):
            said = prune_words.verdict_sentence(PruneVerdict(account, stale, (reason,), *times), NOW)
            assert said.startswith("Stale: " if stale else "Kept: ")
            assert said.endswith(".")
            assert "None" not in said
    assert prune_words.REASON_WORDS[reason]


def test_every_state_and_fate_has_its_own_word() -> None:
    assert len({prune_words.STATE_WORDS[state] for state in PruneState}) == len(PruneState)
    assert len({prune_words.FATE_WORDS[fate] for fate in StorageFate}) == len(StorageFate)
    (deletion,) = planned(ANN).deletions
    items = [PruneItem(0, deletion), *(PruneItem(0, deletion, Outcome(kind, "x")) for kind in OutcomeKind)]
    assert len({prune_words.ITEM_WORDS[item.state] for item in items}) == len(OutcomeKind) + 1


def test_a_plan_is_said_in_a_sentence_with_what_is_gained() -> None:
    people = [replace(ANN, name=f"u{n}") for n in range(4)] + [replace(ANN, name="n", last_activity=None)]
    plan = planned(*people, cap=4, startup_s=12.34, rows_known=True)
    assert prune_words.plan_sentence(plan) == (
        "Deletes 4 of 5,000 users: 3 inactive, 1 never active. 1 more stale user left for another plan."
    )
    assert prune_words.gain_sentence(plan) == (
        "4,996 users are left; at least 4 rows fewer in the hub's database; the hub's last start took 12.3 s."
    )
    fewer = planned(*people, users_total=203)
    assert prune_words.gain_sentence(fewer) == "198 users are left; 1 page of the hub's list instead of 2."
    assert prune_words.plan_sentence(planned()) == "Deletes 0 of 5,000 users."


RUN = PruneRun("d" * 64, PruneState.PLANNED, NOW, NOW + timedelta(hours=1), "ann", 1000)


def test_a_run_is_said_in_a_sentence() -> None:
    assert prune_words.run_sentence(RUN) == "Planned; apply it by 2026-11-21 13:00:00 UTC."
    running = replace(RUN, state=PruneState.RUNNING, done=400, skipped=2, failed=1, unverified=3, left_s=120.0)
    assert prune_words.run_sentence(running) == (
        "Running; 400 of 1,000 users deleted, 2 kept, 1 failed, 3 not verified, done in about 2 min."
    )
    paused = replace(running, state=PruneState.PAUSED, why="acting is on hold.")
    assert prune_words.run_sentence(paused) == (
        "Paused: acting is on hold; 400 of 1,000 users deleted, 2 kept, 1 failed, 3 not verified."
    )
    done = replace(RUN, state=PruneState.DONE, done=1000, restored=10)
    assert prune_words.run_sentence(done) == "Done; 1,000 of 1,000 users deleted, 10 restored."


# -- values ---------------------------------------------------------------------------------------------------------------


def names_of(kind: type) -> set[str]:
    return {field.name for field in fields(kind)}


def test_the_shapes_have_all_that_is_known_as_json() -> None:
    full = replace(
        ANN, servers=(AccountServer("", active=False, last_activity=days_ago(300)),), groups=("a",), shares=2
    )
    (verdict,) = judge([full], ASKED, Protection(), (), {}, NOW)
    shape = to_plain(prune_words.user_shape(verdict, NOW))
    assert names_of(Account) - {"name"} <= set(shape)
    assert names_of(PruneVerdict) - {"account"} <= set(shape)
    assert names_of(AccountServer) == set(shape["servers"][0])
    assert shape["user"] == "ann"
    assert shape["last_activity"] == "2026-04-05T12:00:00Z"
    assert shape["idle_s"] == 230 * DAY_S
    assert shape["sentence"].startswith("Stale: ")
    run = to_plain(prune_words.run_shape(RUN))
    assert names_of(PruneRun) | {"settled", "sentence"} == set(run)
    plan = planned(full)
    item = PruneItem(0, plan.deletions[0], Outcome(OutcomeKind.SKIPPED, "an admin by now"), NOW)
    told = to_plain(prune_words.item_shape(item))
    assert names_of(Deletion) | {"index", "state", "detail", "at"} == set(told)
    assert (told["state"], told["detail"], told["at"]) == ("skipped", "an admin by now", "2026-11-21T12:00:00Z")


def test_a_plan_of_the_api_is_one_that_can_be_saved_and_read() -> None:
    plan = planned(ANN)
    assert from_dict(json.loads(json_text(to_shape(plan)))) == plan


def test_a_time_ahead_of_ours_is_no_negative_idleness() -> None:
    (verdict,) = judge([replace(ANN, last_activity=days_ago(-1))], ASKED, Protection(), (), {}, NOW)
    assert prune_words.user_shape(verdict, NOW).idle_s == 0.0


# -- for a spreadsheet ----------------------------------------------------------------------------------------------------


def table(plan: PrunePlan, items: list[PruneItem] | None = None) -> list[dict[str, str]]:
    return list(csv.DictReader(io.StringIO(prune_words.plan_csv(plan, items or ()).partition("\n")[2], newline="")))


@pytest.mark.parametrize("name", ["=cmd|' /C calc'!A0", "+1", "-1", "@SUM(A1)", "\t=1", "\r=1", "\n=1"])
def test_no_name_is_a_formula_in_a_spreadsheet(name: str) -> None:
    odd = replace(ANN, name=name, groups=(name, "x"), roles=(name,))
    plan = planned(replace(odd, servers=(AccountServer(name, active=False),), servers_whole=True))
    item = PruneItem(0, plan.deletions[0], Outcome(OutcomeKind.FAILED, name), NOW)
    (row,) = table(plan, [item])
    assert [row[field] for field in ("user", "servers", "roles", "detail")] == [f"'{name}"] * 4
    assert row["groups"] == f"'{name}; x"


@pytest.mark.parametrize("name", ["ann", "a/b?c#%", "żółć", 'say "x", then\ny', " x ", "a=b"])
def test_other_names_are_as_they_are_in_a_spreadsheet(name: str) -> None:
    (row,) = table(planned(replace(ANN, name=name)))
    assert row["user"] == name


def test_a_spreadsheet_has_a_header_and_a_line_for_each_user_with_what_came_of_them() -> None:
    servers = (AccountServer("", active=False), AccountServer("gpu", active=False))
    bob = replace(ANN, name="bob", servers=servers, servers_whole=True, groups=(), tokens=0)
    plan = planned(ANN, bob)
    before = table(plan)
    assert [(row["user"], row["state"], row["at"]) for row in before] == [
        ("ann", "waiting", ""),
        ("bob", "waiting", ""),
    ]
    assert (before[0]["servers"], before[0]["tokens"], before[0]["id"]) == ("", "", "3")
    assert (before[1]["servers"], before[1]["tokens"]) == ("(default); gpu", "0")
    items = [PruneItem(0, plan.deletions[0], Outcome(OutcomeKind.DONE, "gone"), NOW), PruneItem(1, plan.deletions[1])]
    assert [row["state"] for row in table(plan, items)] == ["done", "waiting"]
    assert table(planned()) == []
    assert prune_words.plan_csv(planned()).splitlines()[1].startswith("user,reason,")


def test_the_criteria_are_one_line_before_a_table_whatever_they_hold() -> None:
    plan = planned(ANN)
    odd = replace(plan, criteria=replace(plan.criteria, names=("a\r\nb,=1", '"')))
    comment, header = list(csv.reader(io.StringIO(prune_words.plan_csv(odd), newline="")))[:2]
    assert (len(comment), comment[0][:12], header[0]) == (1, "# Criteria: ", "user")
    assert prune_words.plan_csv(odd).splitlines()[1].startswith("user,reason,")


def test_the_criteria_say_who_is_left_out_and_when_users_were_created() -> None:
    day = datetime(2026, 6, 1, tzinfo=timezone.utc)
    criteria = StaleCriteria(
        DAY_S, not_groups=("staff", "ta"), not_roles=("grader",), created_before=day, created_after=day.replace(hour=1)
    )
    assert prune_words.criteria_sentence(criteria) == (
        "inactive for 1 d; not in the group staff or ta; without the role grader; created before 2026-06-01; created on or"
        " after 2026-06-01 01:00:00 UTC."
    )
