"""The pages and the API on users and plans, over made-up users: rights, filters, empty states, checks, and restoring."""

from __future__ import annotations

import csv
import html
import io
import json
import re
import shlex
from collections.abc import AsyncIterator, Callable, Sequence
from dataclasses import replace
from datetime import datetime, timezone
from typing import Any
from urllib.parse import urlencode

import pytest
from asked_site import AWKWARD, PREFIX, Site, sites
from builders import DAY_S, NOW, days
from doubles.guard import guard_with, made_up
from doubles.prune import CRITERIA, KEEPS, FakePruning, made_up_users, one_of_each, plan_of, verdict_of

from hubguard.errors import HubDBError, HubGuardError, HubUnreachable, JournalError
from hubguard.journal.model import Event
from hubguard.model import Finding, FindingKind, OutcomeKind, User
from hubguard.prune.model import PrunePlan, PruneReason, PruneState, PruneVerdict
from hubguard.status import Mode


@pytest.fixture
async def site_of() -> AsyncIterator[Callable[..., Site]]:
    async with sites() as make:

        def of(verdicts: Sequence[PruneVerdict] = (), mode: Mode = Mode.ACTING, **pruning: Any) -> Site:
            guard = guard_with(made_up(3), mode)
            guard.pruning = FakePruning(verdicts, **pruning)
            return make(guard)

        yield of


@pytest.fixture
def site(site_of: Callable[..., Site]) -> Site:
    return site_of([*one_of_each(), *made_up_users(20)])


def planned(site: Site, **fields: Any) -> PrunePlan:
    return site.guard.pruning.add(plan_of(site.guard.pruning.verdicts, **fields))


async def begun(site: Site, **fields: Any) -> PrunePlan:
    plan = planned(site, **fields)
    await site.guard.pruning.apply(plan.digest, len(plan.deletions), "ann", "spring", acknowledged=("KubeSpawner",))
    site.guard.pruning.asked.clear()
    return plan


def changes(site: Site) -> list[tuple[Any, ...]]:
    """What was asked for that isn't only looking."""
    return [one for one in site.guard.pruning.asked if one[0] not in {"users", "user"}]


# -- users ----------------------------------------------------------------------------------------------------------------


async def test_each_user_is_told_with_every_reason_and_the_longest_idle_come_first(site: Site) -> None:
    rows = (await site.ask("api/v1/users", "reader")).json
    assert len(rows) == len(site.guard.pruning.verdicts)
    idle = [row["idle_since"] for row in rows]
    known = [at for at in idle if at is not None]
    assert known == sorted(known)
    assert idle[len(known) :] == [None] * (len(idle) - len(known))
    told = {row["user"]: row for row in rows}
    for reason in PruneReason:
        row = told[f"u-{reason.value}"]
        assert row["reasons"] == [reason.value]
        assert row["stale"] is (reason in {PruneReason.INACTIVE, PruneReason.NEVER_ACTIVE})
        assert row["sentence"].endswith(".")


@pytest.mark.parametrize(
    ("query", "users"),
    [
        ("reason=admin&search=U-", ["u-admin"]),
        ("stale=true&search=u-", ["u-never-active", "u-inactive"]),
        ("stale=false&search=U-EXEM", ["u-exemption"]),
        ("search=nobody", []),
        ("stale=true&reason=admin", []),
    ],
)
async def test_filters_take_all_that_match_and_nothing_else(site: Site, query: str, users: list[str]) -> None:
    assert [row["user"] for row in (await site.ask(f"api/v1/users?{query}", "reader")).json] == users


async def test_users_come_in_pages_each_once_and_the_link_keeps_the_filters(site_of: Callable[..., Site]) -> None:
    site = site_of(made_up_users(250))
    path, seen = "api/v1/users?stale=true&limit=100&inactive_for_s=86400", list[str]()
    while path:
        answer = await site.ask(path, "reader")
        seen += [row["user"] for row in answer.json]
        link = re.search(r"<([^>]+)>", answer.headers.get("Link", ""))
        path = link[1].removeprefix(PREFIX) if link else ""
    assert len(seen) == len(set(seen)) == 225
    assert {asked[1].inactive_for_s for asked in site.guard.pruning.asked} == {86400.0}


async def test_what_a_request_leaves_out_is_as_in_the_settings_and_the_caller_is_kept(site: Site) -> None:
    await site.ask("api/v1/users?groups=a&groups=b%2Cc&never_active_for_s=0", "reader")
    await site.ask("api/v1/users", "service")
    first, second = site.guard.pruning.asked
    assert first == ("users", replace(CRITERIA, groups=("a", "b,c"), never_active_for_s=0.0), "rita")
    assert second == ("users", CRITERIA, None), "a service is no user of the hub"


async def test_who_is_kept_and_why_is_a_table_to_save_and_the_page_leads_to_it(site: Site) -> None:
    answer = await site.ask("api/v1/users.csv?stale=false&search=u-&inactive_for_s=86400", "reader")
    assert answer.headers["Content-Disposition"] == 'attachment; filename="users.csv"'
    comment, _, table = answer.text.partition("\n")
    assert comment.startswith("# Criteria: inactive for 1 d")
    rows = list(csv.DictReader(io.StringIO(table)))
    kept = [verdict for verdict in one_of_each() if not verdict.stale]
    assert {row["user"] for row in rows} == {verdict.account.name for verdict in kept}
    assert {row["verdict"] for row in rows} == {"kept"}
    assert all(row["reasons"] and row["sentence"].startswith("Kept: ") for row in rows)
    page = await site.ask("users?show=kept&search=u-&inactive=1&group=a,b", "reader")
    link = re.search(r'href="([^"]*users\.csv[^"]*)"', page.text)
    assert link
    path = html.unescape(link[1])
    assert {"stale=false", "search=u-", "inactive_for_s=86400.0", "groups=a", "groups=b"} <= set(
        path.partition("?")[2].split("&")
    )
    assert (await site.ask(path.removeprefix(PREFIX), "reader")).status == 200


@pytest.mark.parametrize(
    ("path", "named"),
    [
        ("api/v1/users?reason=odd", "reason"),
        ("api/v1/users?stale=maybe", "stale"),
        ("api/v1/users?inactive_for_s=-1", "inactive_for_s"),
        ("api/v1/users?inactive_for_s=nan", "inactive_for_s"),
        ("api/v1/users?inactive_for_s=0&never_active_for_s=0", "inactive_for_s"),
        ("api/v1/users?groups=", "groups"),
        ("api/v1/users?group=a", "group"),
        ("api/v1/users?listed=a", "listed"),
        ("api/v1/users/u-admin?reason=admin", "reason"),
    ],
)
async def test_a_bad_filter_is_named(site: Site, path: str, named: str) -> None:
    answer = await site.ask(path, "reader")
    assert answer.status == 400
    assert answer.json["message"].startswith(f"{named}: ")


async def test_a_user_whom_nobody_knows_is_404_and_one_in_the_journal_has_a_page(site: Site) -> None:
    for path in ("users/nobody", "api/v1/users/nobody"):
        assert (await site.ask(path, "reader")).status == 404
    site.guard.write(Event.OUTCOME, user="gone", action="delete-user", outcome=OutcomeKind.DONE)
    page = await site.ask("users/gone", "reader")
    assert page.status == 200
    assert "The hub has no user gone" in page.says
    assert "deleting the user gone: done" in page.says


async def test_the_page_counts_stale_and_kept_by_reason_and_says_the_source_and_its_age(site: Site) -> None:
    text = (await site.ask("users", "reader")).says
    assert re.search(r"20 of 35 users are stale", text)
    assert "Read from the hub's database 2 min ago, in 0.4 s." in text
    stale = re.search(r"(\d+) Inactive", text)
    assert stale
    shown = (await site.ask("users?show=inactive", "reader")).says
    assert f"of {stale[1]} users" in shown
    for reason in PruneReason:
        assert f"u-{reason.value}" in (await site.ask(f"users?show={reason.value}", "reader")).says


async def test_the_criteria_stand_in_the_address_and_go_with_every_link_and_the_form(
    site_of: Callable[..., Site],
) -> None:
    site = site_of(made_up_users(250))
    page = await site.ask("users?inactive=90&never=&group=x%2C+y&name=guest-*&show=all&sort=-name&page=2", "pruner")
    wanted = replace(CRITERIA, inactive_for_s=90 * DAY_S, groups=("x", "y"), names=("guest-*",))
    assert site.guard.pruning.asked == [("users", wanted, "pat")]
    assert "101\N{EN DASH}200 of 250 users" in page.text
    following = re.search(rf'href="{PREFIX}(users[^"]+)" rel="next"', page.text)
    assert following
    link = following[1].replace("&amp;", "&")
    assert {"inactive=90", "group=x%2C+y", "name=guest-%2A", "show=all", "sort=-name", "page=3"} <= set(
        link.partition("?")[2].split("&")
    )
    form = dict(re.findall(r'type="hidden" name="(\w+)" value="([^"]*)"', page.text))
    assert (form["inactive"], form["never"], form["group"], form["name"]) == ("90", "180", "x, y", "guest-*")


@pytest.mark.parametrize(
    "query",
    ["inactive=never", "inactive=-3", "inactive=nan", "inactive=1e99", "page=0&sort=odd&show=odd", "inactive=%00"],
)
async def test_the_page_takes_odd_criteria_as_if_they_werent_given(site: Site, query: str) -> None:
    assert (await site.ask(f"users?{query}", "reader")).status == 200
    assert site.guard.pruning.asked[0][1] == CRITERIA


async def test_limits_of_the_settings_are_kept_to_the_second_and_names_with_a_comma_stay_one(
    site_of: Callable[..., Site], monkeypatch: pytest.MonkeyPatch
) -> None:
    default = replace(CRITERIA, inactive_for_s=1234567.0, groups=("a, b",))
    monkeypatch.setattr(FakePruning, "default_criteria", lambda self: default)
    site = site_of(one_of_each())
    page = await site.ask("users", "pruner")
    form = dict(re.findall(r'type="hidden" name="(inactive|never|group|role|name)" value="([^"]*)"', page.text))
    form["_xsrf"] = await site.form_token("pruner")
    assert (await site.ask("plans/new", login="pruner", method="POST", body=form)).status == 303
    assert changes(site) == [("plan", default, "pat", "pat")]


@pytest.mark.parametrize(
    ("verdicts", "query", "said"),
    [
        ((), "", "The hub has no users."),
        (tuple(one for one in one_of_each() if not one.stale), "", "No user is stale by these criteria"),
        (tuple(one_of_each()), "?search=zzz", "No user matches. 2 users of 15 are stale"),
    ],
)
async def test_an_empty_table_says_which_empty_it_is(
    site_of: Callable[..., Site], verdicts: tuple[PruneVerdict, ...], query: str, said: str
) -> None:
    assert said in (await site_of(verdicts).ask(f"users{query}", "reader")).says


@pytest.mark.parametrize(
    "trouble", [HubDBError("The hub's database is locked."), HubUnreachable("The hub doesn't answer.")]
)
async def test_users_who_cant_be_read_are_no_empty_list(site: Site, trouble: HubGuardError) -> None:
    site.guard.pruning.fails = trouble
    page = await site.ask("users?search=x&inactive=90", "pruner")
    assert page.status == 200, "what was typed stays"
    assert str(trouble) in page.says
    assert "couldn't be read" in page.says
    assert 'value="90"' in page.text
    assert "Nobody is stale" not in page.text
    answer = await site.ask("api/v1/users", "reader")
    assert (answer.status, answer.json["message"]) == (503 if "answer" in str(trouble) else 409, str(trouble))
    for path in ("users/ann", "plans"):
        assert str(trouble) in (await site.ask(path, "reader")).says


async def test_storage_at_risk_is_said_in_red_and_storage_that_stays_plainly(site_of: Callable[..., Site]) -> None:
    at_risk = (await site_of(one_of_each()).ask("users", "reader")).text
    assert re.search(r'class="danger">KubeSpawner deletes', at_risk)
    kept = await site_of(one_of_each(), storage=KEEPS).ask("users", "reader")
    assert "danger" not in kept.text
    assert "SystemdSpawner leaves the home folders" in kept.text


async def test_what_isnt_told_is_said_to_be_unknown_and_never_0(site_of: Callable[..., Site]) -> None:
    account = {"groups": None, "roles": None, "servers": (), "servers_whole": False, "tokens": None, "shares": None}
    site = site_of([verdict_of("ann", **account)], source="hub_api", whole=False, notes=("Tokens can't be read.",))
    listed = (await site.ask("users", "reader")).says
    assert "servers, tokens, shares, groups: unknown" in listed
    assert "hub's API" in listed
    assert "HubGuard read only users who may be stale" in listed
    assert "Tokens can't be read." in listed
    row = (await site.ask("api/v1/users/ann", "reader")).json
    assert (row["tokens"], row["groups"], row["shares"], row["servers_whole"]) == (None, None, None, False)
    assert "Tokens unknown" in (await site.ask("users/ann", "reader")).says


async def test_an_exemption_asked_for_on_a_users_page_comes_back_to_it(site: Site) -> None:
    form = {"user": "a/b", "server": "", "scope": "user", "until": "day", "back": "user", "why": "thesis"}
    site.guard.pruning.verdicts = [verdict_of("a/b")]
    site.guard.hub.add_user(User("a/b", admin=False))
    form["_xsrf"] = await site.form_token("actor")
    answer = await site.ask("exemptions/new", login="actor", method="POST", body=form)
    assert (answer.status, answer.headers["Location"]) == (303, f"{PREFIX}users/a%2Fb")
    assert "by ann: thesis" in (await site.ask("users/a%2Fb", "reader")).says


# -- planning -------------------------------------------------------------------------------------------------------------


async def test_a_plan_made_by_the_api_is_frozen_whole_and_listed(site: Site) -> None:
    body = {"inactive_for_s": 90 * DAY_S, "groups": ["g"], "listed": ["u-inactive", "u-admin"]}
    answer = await site.post("api/v1/plans", "pruner", body)
    assert answer.status == 201
    wanted = replace(CRITERIA, inactive_for_s=90 * DAY_S, groups=("g",), listed=("u-admin", "u-inactive"))
    assert changes(site) == [("plan", wanted, "pat", "pat")]
    digest = answer.json["digest"]
    assert answer.headers["Location"] == f"{PREFIX}api/v1/plans/{digest}"
    assert answer.json["count"] == len(answer.json["deletions"]) == 20
    whole = (await site.ask(f"api/v1/plans/{digest}", "reader")).json
    assert whole["plan"] == answer.json
    assert (whole["run"]["state"], whole["run"]["count"]) == ("planned", 20)
    assert [one["digest"] for one in (await site.ask("api/v1/plans", "reader")).json] == [digest]


async def test_groups_roles_and_creation_leave_users_out_by_api_and_form(site: Site) -> None:
    body = {"not_groups": ["staff"], "not_roles": ["ta"], "created_before": "2026-06-01", "created_after": "400d"}
    assert (await site.post("api/v1/plans", "pruner", body)).status == 201
    day = datetime(2026, 6, 1, tzinfo=timezone.utc)
    wanted = replace(
        CRITERIA, not_groups=("staff",), not_roles=("ta",), created_before=day, created_after=NOW - days(400)
    )
    assert changes(site)[-1][1] == wanted
    form = {"not_group": "staff", "not_role": "ta", "created_before": "2026-06-01", "created_after": "400d"}
    page = await site.ask(f"users?{urlencode(form)}", "pruner")
    hidden = dict(re.findall(r'type="hidden" name="(\w+)" value="([^"]*)"', page.text))
    assert {name: hidden[name] for name in form} == form
    hidden["_xsrf"] = await site.form_token("pruner")
    assert (await site.ask("plans/new", login="pruner", method="POST", body=hidden)).status == 303
    assert changes(site)[-1][1] == wanted


async def test_a_date_of_creation_that_cant_be_read_never_widens_a_plan(site: Site) -> None:
    for text in ("2026-13-01", "soon", "90"):
        answer = await site.post("api/v1/plans", "pruner", {"created_before": text})
        assert (answer.status, answer.json["message"].startswith("created_before: ")) == (400, True)
        form = {"_xsrf": await site.form_token("pruner"), "created_before": text}
        page = await site.ask("plans/new", login="pruner", method="POST", body=form)
        assert page.status == 409
        assert "no date such as 2026-06-01" in page.says
        assert f'value="{text}"' in page.text
    assert changes(site) == []


async def test_an_empty_list_of_names_asks_for_nobody_and_none_for_everybody(site: Site) -> None:
    for body, wanted in (({"listed": []}, ()), ({"listed": None}, None), ({}, None)):
        await site.post("api/v1/plans", "pruner", body)
        assert changes(site)[-1][1].listed == wanted


@pytest.mark.parametrize(
    ("body", "named"),
    [
        ({"inactive_for": 3}, "inactive_for"),
        ({"inactive_for_s": "90d"}, "inactive_for_s"),
        ({"inactive_for_s": 0, "never_active_for_s": 0}, "inactive_for_s"),
        ({"inactive_for_s": True}, "inactive_for_s"),
        ({"groups": "g"}, "groups"),
        ({"names": [""]}, "names"),
        ({"listed": [3]}, "listed"),
        ({"dry_run": True}, "dry_run"),
        ([], "The body"),
        ("{", "The body"),
    ],
)
async def test_a_bad_body_is_refused_by_name_and_nothing_is_planned(site: Site, body: Any, named: str) -> None:
    answer = await site.post("api/v1/plans", "pruner", body)
    assert answer.status == 400
    assert answer.json["message"].startswith(named)
    assert changes(site) == []


async def test_nobody_to_delete_is_409_and_the_page_keeps_what_was_typed(site_of: Callable[..., Site]) -> None:
    site = site_of([one for one in one_of_each() if not one.stale])
    assert (await site.post("api/v1/plans", "pruner", {})).status == 409
    form = {
        "_xsrf": await site.form_token("pruner"),
        "inactive": "90",
        "never": "",
        "group": "g<",
        "role": "",
        "name": "",
    }
    answer = await site.ask("plans/new", login="pruner", method="POST", body=form)
    assert answer.status == 409
    assert "No plan made: no user is stale by these criteria." in answer.says
    assert 'value="90"' in answer.text
    assert 'value="g&lt;"' in answer.text
    assert "hx-get" not in answer.text, "a refresh would show other criteria than those typed"


async def test_the_form_makes_a_plan_and_leads_to_its_page(site: Site) -> None:
    form = {"_xsrf": await site.form_token("pruner"), "inactive": "90", "never": "0"}
    answer = await site.ask("plans/new", login="pruner", method="POST", body=form)
    assert answer.status == 303
    made = changes(site)[0][1]
    assert (made.inactive_for_s, made.never_active_for_s) == (90 * DAY_S, 0.0)
    page = await site.ask(answer.headers["Location"].removeprefix(PREFIX), login="pruner")
    assert "Delete 20 users?" in page.says


# -- rights ---------------------------------------------------------------------------------------------------------------

DEEDS = ("apply", "pause", "resume", "cancel", "restore")


@pytest.mark.parametrize("token", ["reader", "actor", "stopper", "filtered", "nobody", "deleter", "service"])
@pytest.mark.parametrize("deed", ["", *(f"/{deed}" for deed in DEEDS)])
async def test_only_who_may_prune_and_read_plans_applies_or_restores(site: Site, token: str, deed: str) -> None:
    plan = planned(site)
    path = f"api/v1/plans/{plan.digest}{deed}" if deed else "api/v1/plans"
    body = {"count": 20} if deed in {"/apply", "/restore"} else {}
    assert (await site.post(path, token, body)).status == 403
    assert changes(site) == []
    assert site.guard.pruning.tokens == []


async def test_the_reader_sees_no_form_and_a_form_of_a_reader_does_nothing(site: Site) -> None:
    plan = planned(site)
    for path in ("users", f"plans/{plan.digest}", "users/u-admin", "plans"):
        page = await site.ask(path, login="reader")
        assert page.status == 200
        assert 'method="post"' not in page.text
        assert "PruneApply" not in page.text
    assert "custom:hubguard:prune" in (await site.ask(f"plans/{plan.digest}/cancel", login="reader")).says
    xsrf = await site.form_token("pruner")
    for path in ("plans/new", f"plans/{plan.digest}/apply", f"plans/{plan.digest}/cancel"):
        body = {"_xsrf": xsrf, "count": "20", "acknowledged": "KubeSpawner"}
        assert (await site.ask(path, login="reader", method="POST", body=body)).status == 403
    assert changes(site) == []


# -- a plan's page --------------------------------------------------------------------------------------------------------


async def test_the_plan_says_all_that_is_to_know_before_anything_goes(site: Site) -> None:
    plan = planned(site, left_out=7)
    text = (await site.ask(f"plans/{plan.digest}", "pruner")).says
    for said in (
        "Delete 20 users?",
        "nobody has been deleted",
        "KubeSpawner deletes the home volume with the user.",
        "The home volumes are deleted with the users. To continue anyway, type KubeSpawner",
        "A deleted volume can't be brought back.",
        "Roles aren't brought back while the hub runs.",
        "35 \N{RIGHTWARDS ARROW} 15",
        "40 api_tokens",
        "12.5 s",
        "type the number of users: 20",
        "Stale beyond the cap 7",
        "Criteria: inactive for 180 d or never active and created 180 d ago.",
        plan.digest,
        "1 server, 2 tokens, 1 group",
    ):
        assert said in text, said


async def test_a_plan_of_many_is_paged_and_each_user_is_on_one_page(site_of: Callable[..., Site]) -> None:
    site = site_of(made_up_users(10_000))
    plan = planned(site)
    path, seen = f"plans/{plan.digest}?page=89", list[str]()
    while path:
        page = await site.ask(path, "reader")
        seen += re.findall(r'<th scope="row"><a href="[^"]*">([^<]*)</a>', page.text)
        link = re.search(rf'href="{PREFIX}([^"]+)" rel="next"', page.text)
        path = link[1].replace("&amp;", "&") if link else ""
    assert seen == [one.user for one in plan.deletions[8800:]]


async def test_a_plan_is_applied_only_with_its_count_and_each_caution_typed(site: Site) -> None:
    plan = planned(site)
    path = f"plans/{plan.digest}/apply"
    form = {"_xsrf": await site.form_token("pruner"), "why": "spring <b>"}
    for change, said in (
        ({"count": "", "acknowledged": "KubeSpawner"}, "type the number of users"),
        ({"count": "twenty", "acknowledged": "KubeSpawner"}, "type the number of users"),
        ({"count": "\N{SUPERSCRIPT TWO}0", "acknowledged": "KubeSpawner"}, "type the number of users"),
        ({"count": "19", "acknowledged": "KubeSpawner"}, "20 users, not 19"),
        ({"count": "20", "acknowledged": "kubespawner"}, "Acknowledge KubeSpawner"),
        ({"count": "20", "acknowledged": ""}, "Acknowledge KubeSpawner"),
        ({"count": "20"}, "Acknowledge KubeSpawner"),
    ):
        answer = await site.ask(path, login="pruner", method="POST", body=form | change)
        assert answer.status == 409
        assert said in answer.says
        assert 'value="spring &lt;b&gt;"' in answer.text, "what was typed stays"
        assert f'value="{change.get("acknowledged", "")}"' in answer.text
        assert changes(site) == []
    body = form | {"count": " 20 ", "acknowledged": " KubeSpawner "}
    answer = await site.ask(path, login="pruner", method="POST", body=body)
    assert (answer.status, answer.headers["Location"]) == (303, f"{PREFIX}plans/{plan.digest}")
    assert changes(site) == [("apply", plan.digest, 20, "pat", "spring <b>", ("KubeSpawner",))]
    again = await site.ask(path, login="pruner", method="POST", body=body)
    assert again.status == 409
    assert "begun already" in again.says
    assert len(changes(site)) == 1


async def test_on_hold_the_plan_says_so_and_applying_is_refused_with_the_guards_words(site: Site) -> None:
    plan = planned(site)
    site.guard.change(mode=Mode.HELD)
    site.guard.pruning.held = "Acting is on hold. Nothing was done."
    assert "On hold (ann: " in (await site.ask(f"plans/{plan.digest}", "pruner")).says
    body = {"count": 20, "acknowledged": ["KubeSpawner"]}
    answer = await site.post(f"api/v1/plans/{plan.digest}/apply", "pruner", body)
    assert (answer.status, answer.json["message"]) == (409, "Acting is on hold. Nothing was done.")


async def test_an_expired_plan_has_no_form_and_says_to_make_a_new_one(site: Site) -> None:
    plan = planned(site, expires_at=NOW - days(0.1))
    page = await site.ask(f"plans/{plan.digest}", "pruner")
    assert "make a new one" in page.says
    assert 'name="count"' not in page.text
    assert "Expired" in (await site.ask("plans", "reader")).says


@pytest.mark.parametrize(
    "path", ["plans/{}", "plans/{}/cancel", "api/v1/plans/{}", "api/v1/plans/{}/items", "api/v1/plans/{}.csv"]
)
async def test_a_plan_that_isnt_there_is_404_with_one_clear_line(site: Site, path: str) -> None:
    for digest in ("0" * 64, "abc", "new", "A" * 64):
        answer = await site.ask(path.format(digest), "pruner")
        assert answer.status == (303 if path == "plans/{}" and digest == "new" else 404), digest
    for deed in DEEDS:
        body = {"count": 1} if deed in {"apply", "restore"} else {}
        answer = await site.post(f"api/v1/plans/{'0' * 64}/{deed}", "pruner", body)
        assert answer.status == 404
        assert answer.json["message"].startswith("There is no plan 000000000000")


async def test_a_journal_that_fails_is_503_and_no_plan_that_isnt_there(site: Site) -> None:
    plan = planned(site)
    site.guard.pruning.fails = JournalError("The journal's database is full.")
    for path in (f"plans/{plan.digest}", f"api/v1/plans/{plan.digest}", "api/v1/plans"):
        assert (await site.ask(path, "pruner")).status == 503


# -- a plan under way -----------------------------------------------------------------------------------------------------


async def test_progress_is_told_with_rate_time_left_and_what_went_wrong_first(site: Site) -> None:
    plan = await begun(site)
    kinds = [OutcomeKind.DONE] * 5 + [OutcomeKind.SKIPPED, OutcomeKind.FAILED, OutcomeKind.UNVERIFIED]
    site.guard.pruning.settle(plan.digest, *kinds, detail="why it is so", per_s=2.5, left_s=77.0)
    page = await site.ask(f"plans/{plan.digest}", "pruner")
    assert re.search(r'<progress[^>]* value="8" max="20"', page.text)
    text = page.says
    assert "8 of 20 settled, 2.5 per second recently; about 1 min left" in text
    assert "Running: 5 deleted, 1 kept, 1 failed, 1 not verified of 20 users" in text
    assert text.count("why it is so") == 8 + 3, "in the list, and those that went wrong above it"
    heads = re.findall(r'<h2 id="h-(failed|unverified|skipped|list)"', page.text)
    assert heads == ["failed", "unverified", "skipped", "list"]
    assert "undo-20261121T120000Z" in text
    assert "ab" * 32 in text
    assert "hubguard prune restore /srv/hubguard-undo/undo-20261121T120000Z-0123456789ab.jsonl --count 5" in text
    assert 'name="count"' not in page.text


async def test_the_command_to_restore_is_safe_to_paste_whatever_the_folder_is_called(site: Site) -> None:
    plan = await begun(site)
    site.guard.pruning.settle(plan.digest, OutcomeKind.DONE, undo_file="/srv/it's $(mine)/undo.jsonl")
    page = await site.ask(f"plans/{plan.digest}", "reader")
    command = re.search(r"<code>(hubguard prune restore [^<]*)</code>", page.text)
    assert command
    words = shlex.split(html.unescape(command[1]))
    assert words[3:] == ["/srv/it's $(mine)/undo.jsonl", "--count", "1"]


async def test_the_overview_tells_of_a_plan_under_way_and_stands_without_the_journal(site: Site) -> None:
    planned(site)
    assert "Deleting users" not in (await site.ask("", "reader")).text
    plan = await begun(site, digest="b" * 64)
    page = await site.ask("", "reader")
    assert "Deleting users: Running; 0 of 20 users deleted." in page.says
    assert f'href="{PREFIX}plans/{plan.digest}"' in page.text
    site.guard.pruning.settle(plan.digest, state=PruneState.DONE)
    assert "Deleting users" not in (await site.ask("", "reader")).text
    site.guard.pruning.fails = JournalError("The journal's database is full.")
    assert (await site.ask("", "reader")).status == 200


async def test_every_finding_has_a_word_on_the_overview(site: Site) -> None:
    site.guard.change(findings=tuple(Finding(kind, NOW, f"about {kind.value}") for kind in FindingKind))
    text = (await site.ask("", "reader")).says
    assert all(f"about {kind.value}" in text for kind in FindingKind)


@pytest.mark.parametrize(
    ("state", "numbers"), [("done", 5), ("skipped", 1), ("failed", 1), ("unverified", 1), ("waiting", 12)]
)
async def test_users_of_a_plan_are_listed_by_how_they_stand(site: Site, state: str, numbers: int) -> None:
    plan = await begun(site)
    kinds = [OutcomeKind.DONE] * 5 + [OutcomeKind.SKIPPED, OutcomeKind.FAILED, OutcomeKind.UNVERIFIED]
    site.guard.pruning.settle(plan.digest, *kinds)
    items = (await site.ask(f"api/v1/plans/{plan.digest}/items?state={state}", "reader")).json
    assert [one["state"] for one in items] == [state] * numbers
    page = await site.ask(f"plans/{plan.digest}?state={state}", "reader")
    assert f"of {numbers} user" in page.says
    lines = list(
        csv.DictReader(
            io.StringIO((await site.ask(f"api/v1/plans/{plan.digest}.csv", "reader")).text.partition("\n")[2])
        )
    )
    assert sum(line["state"] == state for line in lines) == numbers


async def test_a_refresh_of_a_plan_under_way_doesnt_read_the_whole_plan(
    site: Site, monkeypatch: pytest.MonkeyPatch
) -> None:
    plan = await begun(site)

    async def never(self: FakePruning, digest: str) -> PrunePlan:
        raise AssertionError("a plan may be of 50,000 users, and is asked for every few seconds")

    monkeypatch.setattr(FakePruning, "plan_of", never)
    assert (await site.ask(f"fragments/plans/{plan.digest}", "reader")).status == 200


async def test_a_plan_is_paused_resumed_and_cancelled_by_page_and_api(site: Site) -> None:
    plan = await begun(site)
    xsrf = await site.form_token("pruner")
    for word, state in (("pause", "paused"), ("resume", "running"), ("cancel", "cancelled")):
        asked = await site.ask(f"plans/{plan.digest}/{word}", login="pruner")
        assert asked.status == 200
        assert "20 of 20 users are left" in asked.says
        body = {"_xsrf": xsrf, "why": "exam"}
        answer = await site.ask(f"plans/{plan.digest}/{word}", login="pruner", method="POST", body=body)
        assert (answer.status, answer.headers["Location"]) == (303, f"{PREFIX}plans/{plan.digest}")
        assert changes(site)[-1] == (word, plan.digest, "pat", "exam")
        assert site.guard.pruning.states[plan.digest].state is PruneState(state)
    other = await begun(site, made_by="bob", digest="b" * 64)
    for word, state in (("pause", "paused"), ("resume", "running"), ("cancel", "cancelled")):
        told = await site.post(f"api/v1/plans/{other.digest}/{word}", "pruner", {"why": "exam"})
        assert (told.status, told.json["state"]) == (200, state)
    again = await site.post(f"api/v1/plans/{other.digest}/resume", "pruner", {})
    assert again.status == 409


async def test_what_has_arisen_since_is_acknowledged_by_name_before_a_plan_is_resumed(site: Site) -> None:
    plan = await begun(site)
    await site.post(f"api/v1/plans/{plan.digest}/pause", "pruner", {})
    site.guard.pruning.cautions_of_now = "KubeSpawner"
    refused = await site.post(f"api/v1/plans/{plan.digest}/resume", "pruner", {"acknowledged": ["Other"]})
    assert (refused.status, "KubeSpawner must be acknowledged" in refused.json["message"]) == (409, True)
    assert (
        await site.post(f"api/v1/plans/{plan.digest}/pause", "pruner", {"acknowledged": ["KubeSpawner"]})
    ).status == 400
    path, xsrf = f"plans/{plan.digest}/resume", await site.form_token("pruner")
    assert 'name="acknowledged"' in (await site.ask(path, login="pruner")).text
    assert 'name="acknowledged"' not in (await site.ask(f"plans/{plan.digest}/cancel", login="pruner")).text
    body = {"_xsrf": xsrf, "why": "go <on>", "acknowledged": 'Oth"er'}
    again = await site.ask(path, login="pruner", method="POST", body=body)
    assert again.status == 409
    assert "KubeSpawner must be acknowledged" in again.says
    assert 'value="Oth&#34;er"' in again.text
    assert 'value="go &lt;on&gt;"' in again.text
    assert changes(site)[-1][0] == "pause"
    body["acknowledged"] = "Other, KubeSpawner"
    assert (await site.ask(path, login="pruner", method="POST", body=body)).status == 303
    assert changes(site)[-1] == ("resume", plan.digest, "pat", "go <on>")
    await site.post(f"api/v1/plans/{plan.digest}/pause", "pruner", {})
    told = await site.post(f"api/v1/plans/{plan.digest}/resume", "pruner", {"acknowledged": ["KubeSpawner"]})
    assert (told.status, told.json["state"]) == (200, "running")


async def test_the_api_applies_with_202_and_refuses_what_isnt_acknowledged(site: Site) -> None:
    plan = planned(site)
    path = f"api/v1/plans/{plan.digest}/apply"
    for body, status in (
        ({"count": 20}, 409),
        ({"count": 20, "acknowledged": ["other"]}, 409),
        ({"count": 21, "acknowledged": ["KubeSpawner"]}, 409),
        ({"acknowledged": ["KubeSpawner"]}, 400),
        ({"count": "20"}, 400),
        ({"count": 20, "acknowledged": "KubeSpawner"}, 400),
        ({"count": 20, "force": True}, 400),
    ):
        assert (await site.post(path, "pruner", body)).status == status
        assert changes(site) == []
    body = {"count": 20, "acknowledged": ["KubeSpawner"], "why": "spring"}
    answer = await site.post(path, "pruner", body)
    assert (answer.status, answer.json["state"], answer.json["undo_sha256"]) == (202, "running", "ab" * 32)
    assert changes(site) == [("apply", plan.digest, 20, "pat", "spring", ("KubeSpawner",))]


async def test_the_history_tells_who_when_what_and_the_undo_file(site: Site) -> None:
    assert "There are no plans yet" in (await site.ask("plans", "reader")).says
    plan = await begun(site)
    site.guard.pruning.settle(plan.digest, OutcomeKind.DONE, OutcomeKind.SKIPPED)
    text = (await site.ask("plans", "reader")).says
    for said in ("20 users", "Running", "1 deleted, 1 kept", "ann: spring", "2026-11-21", "undo-20261121T120000Z"):
        assert said in text, said


# -- restoring ------------------------------------------------------------------------------------------------------------


async def restorable(site: Site) -> PrunePlan:
    plan = await begun(site)
    site.guard.pruning.settle(plan.digest, *[OutcomeKind.DONE] * 20, state=PruneState.DONE)
    return plan


@pytest.mark.parametrize("scheme", ["token", "Token", "bearer", "Bearer"])
async def test_restoring_uses_the_callers_own_token_and_nobody_elses(site: Site, scheme: str) -> None:
    plan = await restorable(site)
    body = {"count": 20, "why": "a mistake", "sha256": "ab" * 32}
    headers = {"Authorization": f"{scheme} pruner", "Content-Type": "application/json"}
    answer = await site.ask(
        f"api/v1/plans/{plan.digest}/restore", method="POST", body=json.dumps(body), headers=headers
    )
    assert (answer.status, answer.json["restored"]) == (200, 20)
    assert site.guard.pruning.tokens == ["pruner"]
    assert changes(site) == [("restore", plan.digest, 20, "pat", "a mistake", "ab" * 32)]
    assert "Restored 20 users" in (await site.ask(f"plans/{plan.digest}", "reader")).says


async def test_a_login_by_cookie_restores_nothing(site: Site) -> None:
    plan = await restorable(site)
    headers = {"X-XSRFToken": await site.form_token("pruner")}
    answer = await site.ask(
        f"api/v1/plans/{plan.digest}/restore",
        login="pruner",
        method="POST",
        body=json.dumps({"count": 20}),
        headers=headers,
    )
    assert answer.status == 400
    assert "token of your own" in answer.json["message"]
    assert site.guard.pruning.tokens == []
    assert changes(site) == []


@pytest.mark.parametrize(
    ("body", "status"),
    [
        ({"count": 19}, 409),
        ({}, 400),
        ({"count": 20, "sha256": "ab"}, 400),
        ({"count": 20, "token": "x"}, 400),
        ({"count": 20, "users": []}, 400),
    ],
)
async def test_restoring_with_a_wrong_check_does_nothing(site: Site, body: dict[str, Any], status: int) -> None:
    plan = await restorable(site)
    answer = await site.post(f"api/v1/plans/{plan.digest}/restore", "pruner", body)
    assert answer.status == status
    assert changes(site) == []


async def test_the_token_of_a_restore_stays_out_of_log_and_answer(site: Site, caplog: pytest.LogCaptureFixture) -> None:
    plan = await restorable(site)
    caplog.set_level("DEBUG")
    for body in ({"count": 20}, {"count": 3}, {"odd": 1}):
        answer = await site.ask(
            f"api/v1/plans/{plan.digest}/restore",
            method="POST",
            body=json.dumps(body),
            headers={"Authorization": "token pruner"},
        )
        assert "pruner" not in answer.text
    assert "restore" in caplog.text
    assert "pruner" not in caplog.text


# -- the description ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", AWKWARD)
async def test_no_name_in_a_table_of_a_plan_is_a_formula(site_of: Callable[..., Site], name: str) -> None:
    site = site_of([verdict_of(name)])
    table = (await site.ask(f"api/v1/plans/{planned(site).digest}.csv", "reader")).text
    row = list(csv.reader(io.StringIO(table)))[2]
    assert row[0] in (name, f"'{name}")
    assert row[0][0] not in "=+-@"


async def test_a_table_of_a_plan_is_a_file_to_save_and_its_address_has_a_dot(site: Site) -> None:
    plan = planned(site)
    answer = await site.ask(f"api/v1/plans/{plan.digest}.csv", "reader")
    assert answer.headers["Content-Type"] == "text/csv; charset=utf-8"
    assert answer.headers["Content-Disposition"] == f'attachment; filename="plan-{plan.digest[:12]}.csv"'
    assert (await site.ask(f"api/v1/plans/{plan.digest}xcsv", "reader")).status == 404
