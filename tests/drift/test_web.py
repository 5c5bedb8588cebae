"""The pages and the API on drift, over made-up reports: rights, filters, empty states, repairs, and names that bite."""

from __future__ import annotations

import json
import re
from collections.abc import AsyncIterator, Callable, Mapping
from dataclasses import replace
from datetime import datetime
from typing import Any
from unittest.mock import AsyncMock
from urllib.parse import quote

import pytest
from asked_site import PREFIX, Site, sites
from builders import NOW, minutes
from doubles.drift import EVERY_SOURCE, PROVED, drift_of, one_of_each, reading, report_with, settled, world_of
from doubles.guard import guard_with, made_up

from hubguard.dashboard.routes import API
from hubguard.drift import words as drift_words
from hubguard.drift.model import ROUTE_KINDS, DriftKind, DriftReport, Repaired
from hubguard.errors import JournalError
from hubguard.journal.model import Event, Stance
from hubguard.model import Key, OutcomeKind, Route, Server, Source
from hubguard.proxy.model import ProxyWatchStatus, WatchState
from hubguard.snapshot.model import Brake, BrakeReason
from hubguard.status import Mode
from hubguard.web.openapi import document

OURS = "tok-of-our-service"
ROUTES = tuple(kind for kind in DriftKind if kind in ROUTE_KINDS)
BRAKE = Brake(BrakeReason.CHECKING, NOW, "the hub was away", "It ends by itself.")


@pytest.fixture
async def site_of() -> AsyncIterator[Callable[..., Site]]:
    async with sites(service_token=OURS) as make:

        def of(found: DriftReport | None = None, mode: Mode = Mode.ACTING) -> Site:
            guard = guard_with(made_up(12), mode)
            guard.drifts.report = found
            return make(guard)

        yield of


@pytest.fixture
def site(site_of: Callable[..., Site]) -> Site:
    return site_of(report_with(one_of_each(), made_up(12)))


async def form_of(site: Site, path: str) -> dict[str, Any]:
    """The hidden fields of the form on the page of a plan."""
    page = await site.ask(path, login="actor")
    assert page.status == 200
    return dict(re.findall(r'type="hidden" name="(_xsrf|digest)" value="(\w+)"', page.text))


# -- the list -----------------------------------------------------------------------------------------------------------


async def test_the_list_has_what_is_raised_first_and_each_with_what_can_be_done(site: Site) -> None:
    rows = (await site.ask("api/v1/drift", "reader")).json
    assert [row["state"] for row in rows] == ["raised"] * 13 + ["suspected"]
    remedies = {(row["kind"], row["user"]): row["remedy"] for row in rows}
    assert remedies["route-missing", "bea"] == "check-routes"
    assert remedies["server-orphan", "gil"] == "end-backend"
    assert remedies["server-orphan", "hal"] is None, "it isn't proved to be this hub's"
    assert remedies["server-orphan", "ida"] is None, "nobody knows which it is"
    assert remedies["orm-dangling", None] is None
    assert all(row["advice"].endswith(".") for row in rows)
    assert rows[0]["evidence"][0].startswith("The hub's API")
    gil = next(row for row in rows if row["user"] == "gil")
    assert gil["backend"]["name"] == "pid 4711"


@pytest.mark.parametrize(
    ("query", "users"),
    [
        ("kind=server-ghost", ["fay"]),
        ("kind=server-ghost&kind=pending-stuck", ["fay", "jon"]),
        ("state=suspected", ["kim"]),
        ("q=CID%2FGPU", ["cid"]),
        ("q=%2Fuser%2Fdot", ["dot"]),
        ("kind=server-dead&state=raised", ["eve"]),
        ("q=nobody", []),
    ],
)
async def test_filters_take_all_that_match_and_nothing_else(site: Site, query: str, users: list[str]) -> None:
    assert [row["user"] for row in (await site.ask(f"api/v1/drift?{query}", "reader")).json] == users


async def test_the_list_is_paged_and_the_link_keeps_the_filters(site: Site) -> None:
    first = await site.ask("api/v1/drift?kind=server-orphan&kind=server-dead&limit=2", "reader")
    link = re.search(r"<([^>]+)>", first.headers["Link"])
    assert link
    second = await site.ask(link[1].removeprefix(PREFIX), "reader")
    assert [row["user"] for row in first.json + second.json] == ["eve", "gil", "hal", "ida"]
    wrapped = await site.ask(
        "api/v1/drift?limit=2", "reader", headers={"Accept": "application/jupyterhub-pagination+json"}
    )
    assert wrapped.json["_pagination"]["total"] == 14


@pytest.mark.parametrize("path", ["api/v1/drift", "api/v1/routes", "api/v1/beliefs/ann/"])
async def test_before_the_first_look_no_empty_list_says_that_all_agree(site_of: Callable[..., Site], path: str) -> None:
    for mode in (Mode.STARTING, Mode.TROUBLED, Mode.STANDBY):
        answer = await site_of(None, mode).ask(path, "reader")
        assert answer.status == 409
        assert "look" in answer.json["message"]
    report = (await site_of(None).ask("api/v1/drift/report", "reader")).json
    assert (report["looked_at"], report["servers"], report["routes"]) == (None, None, None)


@pytest.mark.parametrize(
    ("path", "named"),
    [
        ("api/v1/drift?kind=gone", "kind"),
        ("api/v1/drift?kind=server-dead&kind=gone", "kind"),
        ("api/v1/drift?state=maybe", "state"),
        ("api/v1/drift?state=raised&state=suspected", "state"),
        ("api/v1/drift?q=%00", "q"),
        ("api/v1/routes?verdict=odd", "verdict"),
    ],
)
async def test_a_bad_filter_is_named(site: Site, path: str, named: str) -> None:
    answer = await site.ask(path, "reader")
    assert answer.status == 400
    assert answer.json["message"].startswith(f"{named}: ")


async def test_the_last_repair_stands_beside_what_it_was_for(site: Site) -> None:
    plan = site.guard.drifts.plan(kinds=(DriftKind.SERVER_DEAD,))
    older = settled(Repaired(plan.repairs[0], "ann", NOW - minutes(30)))
    newer = settled(Repaired(plan.repairs[0], "bob", NOW - minutes(3)), OutcomeKind.FAILED, "the hub refused")
    assert site.guard.drifts.report
    site.guard.drifts.report = replace(site.guard.drifts.report, repaired=(newer, older))
    row = (await site.ask("api/v1/drift?kind=server-dead&state=raised", "reader")).json[0]
    assert (row["repaired"]["actor"], row["repaired"]["outcome"]) == ("bob", "failed")
    page = (await site.ask("drift", "reader")).says
    assert re.search(r"failed the hub refused \(bob, just now ?\)", page)


# -- the report -----------------------------------------------------------------------------------------------------------


async def test_the_report_tells_sources_numbers_watch_and_what_cannot_be_told(site_of: Callable[..., Site]) -> None:
    watch = ProxyWatchStatus(WatchState.WIPED, NOW, "It was restarted empty.", missing=("/user/ann", "/user/bea"))
    cleared = (drift_of(user="zoe"),)
    report = report_with(one_of_each(), made_up(12), watch=watch, narrowed=("No backends.",), cleared=cleared)
    told = (await site_of(report).ask("api/v1/drift/report", "reader")).json
    assert (told["raised"], told["suspected"], told["servers"], told["routes"]) == (13, 1, 12, 13)
    assert {one["kind"]: (one["raised"], one["suspected"]) for one in told["kinds"]}["server-dead"] == (1, 1)
    assert [one["source"] for one in told["sources"]] == ["hub_api", "hub_db", "proxy", "backend"]
    assert told["narrowed"] == ["No backends."]
    assert (told["watch"]["state"], told["watch"]["missing"]) == ("wiped", ["/user/ann", "/user/bea"])
    assert told["cleared"][0]["user"] == "zoe"


async def test_a_look_takes_the_right_to_act_and_answers_with_what_was_found(site: Site) -> None:
    for token in ("reader", "stopper"):
        assert (await site.post("api/v1/drift/looks", token)).status == 403
    assert site.guard.drifts.sources.looks == 0
    answer = await site.post("api/v1/drift/looks", "actor")
    assert (answer.status, answer.json["raised"]) == (200, 13)
    assert site.guard.drifts.sources.looks == 1


# -- routes ---------------------------------------------------------------------------------------------------------------


async def test_each_route_has_a_verdict_and_those_missing_are_in_the_list(site_of: Callable[..., Site]) -> None:
    servers = [Server(name, "", True, None, NOW, NOW) for name in ("ann", "bea", "cid", "dot")]
    world = world_of(servers)
    assert world.routes is not None
    routes = dict(world.routes) | {
        "/user/zoe": Route("/user/zoe", "http://10.0.0.9:1", "zoe", ""),
        "/services/hubguard": Route("/services/hubguard", "http://127.0.0.1:5"),
        "/mine": Route("/mine", "http://127.0.0.1:9"),
    }
    del routes["/user/ann"]
    world = replace(world, routes=routes, unsure=frozenset({("dot", "")}))
    drifts = [
        drift_of(DriftKind.ROUTE_MISSING, "ann", subject="/user/ann"),
        drift_of(DriftKind.ROUTE_WRONG_TARGET, "bea"),
        drift_of(DriftKind.ROUTE_STALE, "zoe", subject="/user/zoe", raised_at=None),
    ]
    site = site_of(report_with(drifts, world=world))
    rows = {row["path"]: row for row in (await site.ask("api/v1/routes", "reader")).json}
    assert {path: row["verdict"] for path, row in rows.items()} == {
        "/user/ann": "missing",
        "/user/bea": "wrong-target",
        "/user/zoe": "stale",
        "/": "fine",
        "/services/hubguard": "fine",
        "/user/cid": "fine",
        "/user/dot": "unknown",
        "/mine": "unknown",
    }
    assert rows["/user/ann"]["target"] is None
    assert rows["/user/ann"]["expected"] == "http://10.0.0.0:20000"
    assert (rows["/user/zoe"]["raised"], rows["/user/bea"]["raised"]) == (False, True)
    found = await site.ask("api/v1/routes?verdict=unknown&q=MINE", "reader")
    assert [row["path"] for row in found.json] == ["/mine"]


async def test_no_route_counts_as_fine_where_nothing_tells_where_it_should_lead(site_of: Callable[..., Site]) -> None:
    site = site_of(report_with(world=world_of(made_up(5), targets=None)))
    rows = (await site.ask("api/v1/routes", "reader")).json
    assert {row["verdict"] for row in rows if row["user"]} == {"unknown"}


async def test_an_unread_table_is_no_empty_table(site_of: Callable[..., Site]) -> None:
    answer = await site_of(report_with(world=world_of((), routes=None))).ask("api/v1/routes", "reader")
    assert (answer.status, "are unknown" in answer.json["message"]) == (409, True)


# -- repairs --------------------------------------------------------------------------------------------------------------


async def test_without_a_digest_the_plan_is_told_and_nothing_is_done(site: Site) -> None:
    answer = await site.post("api/v1/repairs", "actor", '{"kinds": ["server-dead", "route-missing", "route-stale"]}')
    assert answer.status == 200
    assert answer.json["count"] == 2
    assert [one["kind"] for one in answer.json["repairs"]] == ["check-routes", "stop-server"]
    assert len(answer.json["repairs"][0]["drifts"]) == 2
    assert site.guard.drifts.asked == []


async def test_with_digest_and_count_it_is_carried_out(site: Site) -> None:
    plan = (await site.post("api/v1/repairs", "actor", '{"kinds": ["server-dead"]}')).json
    body = {"digest": plan["digest"], "count": 1, "why": "drill"}
    answer = await site.post("api/v1/repairs", "service", json.dumps(body))
    assert (answer.status, answer.json["digest"]) == (202, plan["digest"])
    assert site.guard.drifts.asked == [("service report", "asked for 1 repair: drill")]
    report = (await site.ask("api/v1/drift/report", "reader")).json
    assert [(one["outcome"], one["actor"]) for one in report["repaired"]] == [(None, "service report")]


@pytest.mark.parametrize("change", [{"count": 2}, {"digest": "0" * 64}, {"count": 0}])
async def test_a_wrong_count_or_digest_does_nothing(site: Site, change: dict[str, Any]) -> None:
    plan = (await site.post("api/v1/repairs", "actor", '{"kinds": ["server-dead"]}')).json
    body = {"digest": plan["digest"], "count": 1, **change}
    answer = await site.post("api/v1/repairs", "actor", json.dumps(body))
    assert answer.status == 409
    assert "Nothing was done" in answer.json["message"]
    assert site.guard.drifts.asked == []


@pytest.mark.parametrize(
    ("body", "named"),
    [
        ("{}", "ids"),
        ('{"ids": [], "kinds": []}', "ids"),
        ('{"ids": "0011"}', "ids"),
        ('{"ids": [1]}', "ids"),
        ('{"ids": ["' + "x" * 17 + '"]}', "ids"),
        ('{"kinds": ["all"]}', "kinds"),
        ('{"kinds": {"server-dead": true}}', "kinds"),
        ('{"count": 3}', "digest"),
        ('{"digest": "00"}', "count"),
        ('{"digest": "00", "count": 1, "kinds": ["server-dead"]}', "digest"),
        ('{"digest": "00", "count": true}', "count"),
        ('{"digest": "00", "count": 1.0}', "count"),
        (json.dumps({"ids": ["a"] * 100_001}), "ids"),
    ],
)
async def test_a_bad_wish_to_repair_is_named_and_nothing_is_done(site: Site, body: str, named: str) -> None:
    answer = await site.post("api/v1/repairs", "actor", body)
    assert answer.status == 400
    assert answer.json["message"].startswith(f"{named}: ")
    assert site.guard.drifts.asked == []


async def test_repairs_take_the_right_to_act_and_to_read(site: Site) -> None:
    for token in ("reader", "stopper", "nobody"):
        answer = await site.post("api/v1/repairs", token, '{"kinds": ["server-dead"]}')
        assert answer.status == 403
        assert (await site.ask("repairs?kind=server-dead", token)).status == 403
    assert site.guard.drifts.plans == {}


# -- repairing from the page -------------------------------------------------------------------------------------------------


async def test_a_reader_sees_no_way_to_repair_and_the_actor_does(site: Site) -> None:
    reader, actor = await site.ask("drift", "reader"), await site.ask("drift", "actor")
    assert not re.search(r'type="checkbox"|Repair selected|href="[^"]*repairs', reader.text)
    assert actor.text.count('type="checkbox"') == 9, "only what is raised and can be repaired has one"
    assert "Repair selected" in actor.text


async def test_a_plan_is_shown_counted_and_carried_out(site: Site) -> None:
    ids = [one.id for one in one_of_each() if one.user in {"bea", "eve"}]
    path = f"repairs?drift={ids[0]}&drift={ids[1]}"
    fields = await form_of(site, path)
    assert site.guard.drifts.asked == []
    answer = await site.ask("repairs", method="POST", login="actor", body={**fields, "count": " 2 ", "why": "drill"})
    assert (answer.status, answer.headers["Location"]) == (303, f"{PREFIX}drift?asked=2")
    assert site.guard.drifts.asked == [("ann", "asked for 2 repairs: drill")]
    page = (await site.ask("drift?asked=2", login="actor")).says
    assert "2 repairs requested" in page
    assert "under way" in page


async def test_a_plan_names_each_difference_once_and_a_servers_with_what_it_is_about(site: Site) -> None:
    page = (await site.ask("repairs?kind=service-route-missing&kind=route-stale", "actor")).says
    assert "dot (/user/dot)" in page
    assert ": hubguard" in page
    assert "hubguard (hubguard)" not in page


@pytest.mark.parametrize("said", ["", "x", "-1", "0", "\N{SUPERSCRIPT TWO}", "<b>"])
async def test_no_odd_address_makes_the_page_say_that_somebody_asked_for_repairs(site: Site, said: str) -> None:
    assert "repairs requested" not in (await site.ask(f"drift?asked={quote(said)}", "reader")).text


@pytest.mark.parametrize("count", ["", "two", "1", "-2", "2e0", "9" * 30, "٢"])
async def test_a_wrong_count_shows_the_plan_again_and_keeps_what_was_typed(site: Site, count: str) -> None:
    ids = [one.id for one in one_of_each() if one.user in {"bea", "eve"}]
    fields = await form_of(site, f"repairs?drift={ids[0]}&drift={ids[1]}")
    # More than one difference: aiohttp takes only one value a name from a dict.
    body = "&".join(f"{k}={quote(v)}" for k, v in [*fields.items(), ("count", count), ("why", "dr<ll")])
    body += "".join(f"&drift={one}" for one in ids)
    headers = {"Content-Type": "application/x-www-form-urlencoded"}
    answer = await site.ask("repairs", method="POST", login="actor", body=body, headers=headers)
    assert answer.status == 409
    assert "Nothing was done" in answer.text
    assert 'role="alert"' in answer.text
    assert 'value="dr&lt;ll"' in answer.text
    assert f'value="{fields["digest"]}"' in answer.text
    assert site.guard.drifts.asked == []


async def test_when_what_was_planned_is_gone_the_page_says_so(site: Site) -> None:
    fields = await form_of(site, "repairs?kind=server-dead")
    site.guard.drifts.report = report_with((), made_up(12))
    site.guard.drifts.plans.clear()
    body = {**fields, "count": "1", "kind": "server-dead"}
    answer = await site.ask("repairs", method="POST", login="actor", body=body)
    assert answer.status == 409
    assert "Nothing to repair" in answer.text
    assert "no such plan" in answer.text


async def test_on_hold_the_plan_says_so_before_anything_is_typed(site: Site) -> None:
    site.guard.change(mode=Mode.HELD, stance=Stance(held=True, held_by="ann"))
    assert "On hold (ann" in (await site.ask("repairs?kind=server-dead", "actor")).text


async def test_a_journal_that_fails_is_a_503_and_no_question(site: Site) -> None:
    fields = await form_of(site, "repairs?kind=server-dead")
    site.guard.drifts.books.stance = AsyncMock(side_effect=JournalError("The journal can't be written."))
    answer = await site.ask("repairs", method="POST", login="actor", body={**fields, "count": "1"})
    assert (answer.status, "can&#39;t be written" in answer.text) == (503, True)


@pytest.mark.parametrize("query", ["", "?kind=odd", "?drift=" + "&drift=".join(str(i) for i in range(101))])
async def test_a_selection_that_no_page_made_is_refused(site: Site, query: str) -> None:
    assert (await site.ask(f"repairs{query}", "actor")).status == 400


async def test_what_cannot_be_repaired_is_said_with_the_reason(site: Site) -> None:
    suspected = drift_of(DriftKind.SERVER_DEAD, "kim", raised_at=None).id
    page = await site.ask(f"repairs?drift={suspected}", "actor")
    assert (page.status, "only suspected so far" in page.text) == (200, True)
    assert "<form" not in page.text


# -- one server across all sources -----------------------------------------------------------------------------------


async def says(site: Site, user: str, name: str = "") -> dict[str, str]:
    told = (await site.ask(f"api/v1/beliefs/{user}/{name}", "reader")).json
    return {row["source"]: row["says"] for row in told["beliefs"]}


async def test_the_matrix_has_a_row_for_each_source_and_each_backend(site_of: Callable[..., Site]) -> None:
    ann = Server("ann", "gpu", True, None, NOW - minutes(60), NOW)
    world = world_of([ann])
    two = (
        *(world.backends or ()),
        replace(PROVED, id="9@9", user="ann", server="gpu", name="pid 9", alive=None, proof=""),
    )
    site = site_of(report_with(world=replace(world, backends=two)))
    site.guard.write(Event.OUTCOME, user="ann", server="gpu", action="stop-server", outcome=OutcomeKind.FAILED)
    told = (await site.ask("api/v1/beliefs/ann/gpu", "reader")).json
    assert [row["source"] for row in told["beliefs"]] == [
        "Hub's API",
        "Hub's database",
        "Proxy",
        "Backend (process)",
        "Backend (process)",
        "HubGuard's own record",
    ]
    by = [row["says"] for row in told["beliefs"]]
    assert by[0] == "ready, started 2026-11-21 11:00:00 UTC"
    assert by[1] == "reached at http://10.0.0.0:20000"
    assert by[2] == "/user/ann/gpu leads to http://10.0.0.0:20000"
    assert "pid 4711: alive" in by[3]
    assert by[4].startswith("pid 9: state unknown")
    assert by[4].endswith("not confirmed to belong to this hub")
    assert by[5] == "last in the journal: stopping ann/gpu: failed"
    page = (await site.ask("beliefs/ann/gpu", "reader")).says
    for row in by:
        assert row in page


async def test_the_matrix_of_a_server_has_its_own_differences_and_none_of_its_users_other_servers(
    site_of: Callable[..., Site],
) -> None:
    other = drift_of(DriftKind.SERVER_GHOST, "ann", server="other")
    site = site_of(report_with([drift_of(DriftKind.SERVER_DEAD, "ann", server="gpu"), other]))
    page = (await site.ask("beliefs/ann/gpu", "reader")).says
    assert ("Dead server" in page, "Ghost server" in page) == (True, False)
    assert "Dead server" not in (await site.ask("beliefs/ann/", "reader")).says


async def test_a_server_that_nobody_knows_is_answered_and_not_missed(site: Site) -> None:
    told = await says(site, "nobody")
    assert told["Hub's API"] == "no server of this name runs"
    assert told["Proxy"] == "no route for it"
    assert told["Backends"] == "nothing runs for it"
    assert (await site.ask("beliefs/nobody/", "reader")).status == 200


async def test_no_source_is_said_to_know_of_nothing_when_it_did_not_speak(site_of: Callable[..., Site]) -> None:
    down = world_of(
        (),
        servers=None,
        routes=None,
        targets=None,
        backends=None,
        readings=(
            reading(Source.HUB_API, "refused"),
            reading(Source.HUB_ROUTES, "no answer"),
            reading(Source.BACKEND, "gone"),
        ),
    )
    told = await says(site_of(report_with(world=down)), "ann")
    assert told["Hub's API"].startswith("gave no answer")
    assert told["Hub's database"] == "isn't read"
    assert told["Proxy, as the hub sees it"].startswith("gave no answer")
    assert told["Backends"].startswith("gave no answer")
    partial = world_of((), whole=False)
    assert (
        "only backends of servers that the hub knows are looked at"
        in (await says(site_of(report_with(world=partial)), "ann"))["Backends"]
    )


async def test_an_old_word_of_the_hub_is_marked_and_its_spawners_word_told(site_of: Callable[..., Site]) -> None:
    ann = Server("ann", "", True, None, NOW, NOW)
    world = world_of([ann], unsure=frozenset({("ann", "")}), outlived={("ann", ""): (NOW, "poll() is None")})
    told = await says(site_of(report_with(world=world)), "ann")
    assert "read before this look" in told["Hub's API"]
    assert "poll() is None" in told["HubGuard's own record"]


async def test_the_matrix_lasts_when_the_journal_is_down(site: Site) -> None:
    site.guard.books.fails = JournalError("The journal is gone.")
    page = await site.ask("beliefs/eve/", "reader")
    assert (page.status, "The journal is gone." in page.text, "Dead server" in page.text) == (200, True, True)


# -- what kind of empty ---------------------------------------------------------------------------------------------------


async def test_only_what_was_compared_is_said_to_agree(site_of: Callable[..., Site]) -> None:
    servers = made_up(12)
    world = world_of(servers)
    backends = tuple(replace(one, alive=None) if at < 7 else one for at, one in enumerate(world.backends))
    by_hand = Route("/user/handmade", "http://127.0.0.1:9")
    canary = Route("/hubguard-canary/one", "http://127.0.0.1:9")
    world = replace(world, backends=backends, routes={**world.routes, by_hand.path: by_hand, canary.path: canary})
    page = (await site_of(report_with(world=world)).ask("drift", "reader")).says
    assert "All agree" not in page
    assert "can't tell whether 7 of 12 backends still run" in page
    assert backends[0].name in page
    assert "and 2 more" in page
    assert "1 route in the proxy is not the hub's." in page


async def test_an_empty_table_says_which_empty_it_is(site_of: Callable[..., Site]) -> None:
    servers = made_up(12)
    healthy = (await site_of(report_with((), servers)).ask("drift", "reader")).says
    assert "All agree: 12 servers, 13 routes and 12 backends." in healthy
    assert "(4 s ago)" in healthy
    assert "Nothing to repair" in healthy
    filtered = (await site_of(report_with(one_of_each(), servers)).ask("drift?q=nobody", "reader")).says
    assert "No difference matches the filter (of 14 differences)." in filtered
    unlooked = (await site_of(None).ask("drift", "reader")).says
    assert "hasn't looked at the sources yet" in unlooked
    readings = (reading(Source.HUB_API, "connection refused"), *EVERY_SOURCE[1:])
    down = (await site_of(report_with(world=world_of(servers, readings=readings))).ask("drift", "reader")).says
    assert "Unknown: not every source could be read." in down
    assert "connection refused" in down
    assert "so there may be some" in down
    for page in (filtered, unlooked, down):
        assert "All agree" not in page


async def test_the_overview_counts_what_is_raised_and_tells_of_a_proxy_in_trouble(site_of: Callable[..., Site]) -> None:
    watch = ProxyWatchStatus(WatchState.HANGS, NOW - minutes(2), "It doesn't answer in 3 s.")
    shown = await site_of(report_with(one_of_each(), made_up(12), watch=watch)).ask("", "reader")
    assert "13 differences" in shown.says
    assert f'href="{PREFIX}drift"' in shown.text
    assert "It doesn't answer in 3 s." in shown.says
    fine = (await site_of(report_with((), made_up(12))).ask("", "reader")).says
    assert "Drift no differences" in fine
    assert "It doesn't answer" not in fine
    blind = report_with(world=world_of(made_up(3), routes=None))
    assert "Drift unknown" in (await site_of(blind).ask("", "reader")).says


async def test_ten_thousand_differences_are_paged(site_of: Callable[..., Site]) -> None:
    many = [drift_of(DriftKind.SERVER_DEAD, f"u{i:05d}") for i in range(10_000)]
    site = site_of(report_with(many, made_up(12)))
    page = await site.ask("drift?page=100", "actor")
    assert "9,901\N{EN DASH}10,000 of 10,000 differences" in page.text
    assert page.text.count('type="checkbox"') == 100
    assert len(page.text) < 400_000
    plan = await site.ask("repairs?kind=server-dead", "actor")
    assert "10,000 repairs, in this order" in plan.text
    assert "u09999" in plan.text


# -- what the hub itself tells ---------------------------------------------------------------------------------------------


async def test_the_hub_tells_of_a_backend_that_outlived_its_stop_without_being_asked_anything(site: Site) -> None:
    site.auth.down = True
    for scheme in ("token", "Bearer"):
        headers = {"Authorization": f"{scheme} {OURS}"}
        body = {"user": "ann", "server": scheme, "detail": "poll() is None"}
        answer = await site.ask("api/v1/outlived", method="POST", headers=headers, body=json.dumps(body))
        assert (answer.status, answer.text) == (204, "")
        assert (await outlived(site))["ann", scheme] == (NOW, "poll() is None")
    assert site.auth.lookups == [], "the hub is busy with that very stop"


async def outlived(site: Site) -> Mapping[Key, tuple[datetime, str]]:
    """What the next look knows from the hub of backends that outlived their servers."""
    return (await site.guard.drifts.look()).world.outlived


@pytest.mark.parametrize(
    "headers",
    [
        {},
        {"Authorization": "token "},
        {"Authorization": OURS},
        {"Authorization": f"token {OURS}x"},
        {"Authorization": f"Basic {OURS}"},
        {"Authorization": "token actor"},
        {"Authorization": "token service"},
        {"Cookie": f"login={OURS}"},
    ],
)
async def test_nobody_else_is_believed(site: Site, headers: dict[str, str]) -> None:
    body = json.dumps({"user": "ann", "server": ""})
    answer = await site.ask("api/v1/outlived", method="POST", headers=headers, body=body)
    assert answer.status == 401
    assert OURS not in answer.text
    assert await outlived(site) == {}


async def test_without_a_token_of_its_own_nobody_is_believed() -> None:
    async with sites() as make:
        site = make(guard_with())
        site.guard.drifts.report = report_with()
        for given in ("", "token ", "token x"):
            answer = await site.ask(
                "api/v1/outlived", method="POST", headers={"Authorization": given}, body='{"user": "a", "server": ""}'
            )
            assert answer.status == 401
        assert await outlived(site) == {}


async def test_our_own_token_opens_nothing_else_by_itself(site: Site) -> None:
    for path in ("drift", "api/v1/drift", "api/v1/outlived"):
        assert (await site.ask(path, OURS)).status in {401, 405}


@pytest.mark.parametrize(
    "body", ["{}", '{"user": "", "server": ""}', '{"user": "a"}', "[]", '{"user": "a", "server": 1}']
)
async def test_what_makes_no_sense_is_not_told_on(site: Site, body: str) -> None:
    headers = {"Authorization": f"token {OURS}"}
    assert (await site.ask("api/v1/outlived", method="POST", headers=headers, body=body)).status == 400
    assert await outlived(site) == {}


# -- words ------------------------------------------------------------------------------------------------------------------


def test_every_kind_has_a_word_and_something_to_do_about_it() -> None:
    for kind in DriftKind:
        assert drift_words.KIND_WORDS[kind]
        for backend in (None, PROVED, replace(PROVED, proof="")):
            words = drift_words.advice_on(drift_of(kind, backend=backend))
            assert words.endswith(".")
            assert words[0].isupper()


def test_the_sentence_counts_right() -> None:
    one, suspected = drift_of(), drift_of(raised_at=None)
    assert drift_words.headline(report_with([one], made_up(2))).startswith("1 difference between")
    assert "1 more suspected" in drift_words.headline(report_with([one, suspected], made_up(2)))
    assert drift_words.headline(report_with([suspected], made_up(2))) == "1 difference suspected, none confirmed yet."


def test_the_description_tells_of_lists_and_of_what_is_under_way() -> None:
    described = document({path: handler.operations for path, handler in API.items()}, PREFIX)["paths"]
    repairs = described["/api/v1/repairs"]["post"]
    assert set(repairs["responses"]) >= {"200", "202", "400", "401", "403", "409"}
    ids = repairs["requestBody"]["content"]["application/json"]["schema"]["properties"]["ids"]
    assert (ids["type"], ids["items"]["type"]) == ("array", "string")
    kind = next(one for one in described["/api/v1/drift"]["get"]["parameters"] if one["name"] == "kind")
    assert "server-ghost" in kind["schema"]["items"]["enum"]
    assert set(described["/api/v1/outlived"]["post"]["responses"]) == {"204", "400", "401"}


# -- what is repaired without being asked -----------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("state", "watch", "dead", "route"),
    [
        ({}, WatchState.FINE, "Only when you ask.", "Automatically, soon."),
        ({"stance": Stance()}, WatchState.FINE, "Only when you ask.", "Automatically, once HubGuard is armed."),
        (
            {"stance": Stance(held=True)},
            WatchState.FINE,
            "Only when you ask.",
            "Automatically, once acting is resumed.",
        ),
        ({}, WatchState.HANGS, "Only when you ask.", "Automatically, once the proxy is well again."),
        ({"brake": BRAKE}, WatchState.FINE, "Only when you ask.", "Automatically, soon."),
        ({"mode": Mode.STANDBY}, WatchState.FINE, "Only when you ask.", "Automatically, once this guard is in charge."),
    ],
)
async def test_each_difference_says_whether_it_is_repaired_by_itself_and_why_not_now(
    site_of: Callable[..., Site], state: dict[str, Any], watch: WatchState, dead: str, route: str
) -> None:
    site = site_of(report_with(one_of_each(), made_up(12), watch=ProxyWatchStatus(watch, NOW)))
    site.guard.change(**state)
    rows = {(row["kind"], row["user"]): row for row in (await site.ask("api/v1/drift", "reader")).json}
    assert rows["server-dead", "eve"]["by_itself"] == dead
    assert rows["route-missing", "bea"]["by_itself"] == route
    # What can't be repaired isn't repaired by itself either.
    assert {row["by_itself"] for row in rows.values() if row["remedy"] is None} == {""}
    page = (await site.ask("drift", "reader")).says
    assert dead in page
    assert route in page


@pytest.mark.parametrize(
    ("fields", "state", "kind", "words"),
    [
        ({"by_itself": (DriftKind.SERVER_DEAD,)}, {}, DriftKind.SERVER_DEAD, "Automatically, soon."),
        (
            {"by_itself": (DriftKind.SERVER_DEAD,), "doubted": (DriftKind.SERVER_DEAD,)},
            {},
            DriftKind.SERVER_DEAD,
            "Only when you ask: with this many at once",
        ),
        (
            {"by_itself": (DriftKind.SERVER_DEAD,)},
            {"brake": BRAKE},
            DriftKind.SERVER_DEAD,
            "Automatically, once the brake is released.",
        ),
        ({"by_itself": ()}, {}, DriftKind.ROUTE_MISSING, "Only when you ask."),
    ],
)
async def test_the_settings_the_brake_and_too_many_at_once_are_why_not(
    site_of: Callable[..., Site], fields: dict[str, Any], state: dict[str, Any], kind: DriftKind, words: str
) -> None:
    site = site_of(report_with(one_of_each(), made_up(12), **fields))
    site.guard.change(**state)
    rows = (await site.ask(f"api/v1/drift?kind={kind.value}&state=raised", "reader")).json
    assert [row["by_itself"].startswith(words) for row in rows] == [True]


@pytest.mark.parametrize(
    ("by_itself", "state", "sentence"),
    [
        ((), {}, "HubGuard repairs nothing automatically (HubGuardDrift.repair is empty)."),
        (ROUTES, {}, "HubGuard repairs routes automatically, and the rest when you ask."),
        (
            ROUTES,
            {"stance": Stance()},
            "Once HubGuard is armed, HubGuard repairs routes automatically, and the rest when you ask.",
        ),
        (ROUTES, {"brake": BRAKE}, "HubGuard repairs routes automatically, and the rest when you ask."),
        (
            (*ROUTES, DriftKind.SERVER_DEAD),
            {"brake": BRAKE},
            "HubGuard repairs routes, dead server automatically (only routes while braked), and the rest when you ask.",
        ),
        (
            (DriftKind.SERVER_DEAD,),
            {"brake": BRAKE},
            "Once the brake is released, HubGuard repairs dead server automatically, and the rest when you ask.",
        ),
    ],
)
async def test_the_page_says_what_is_repaired_by_itself_and_why_not_now(
    site_of: Callable[..., Site], by_itself: tuple[DriftKind, ...], state: dict[str, Any], sentence: str
) -> None:
    site = site_of(report_with((), made_up(12), by_itself=by_itself))
    site.guard.change(**state)
    report = (await site.ask("api/v1/drift/report", "reader")).json
    assert (report["by_itself"], report["by_itself_says"]) == ([kind.value for kind in by_itself], sentence)
    assert sentence in (await site.ask("drift", "reader")).says


async def test_a_stop_that_is_stuck_is_not_offered_a_repair_that_would_do_nothing(
    site_of: Callable[..., Site],
) -> None:
    site = site_of(report_with([drift_of(DriftKind.PENDING_STUCK, subject="stop")]))
    (row,) = (await site.ask("api/v1/drift", "reader")).json
    assert (row["remedy"], row["by_itself"]) == (None, "")
    assert "isn't one" in row["advice"]
    assert "checkbox" not in (await site.ask("drift", login="actor")).text


# -- metrics and journal ----------------------------------------------------------------------------------------------


async def test_the_metrics_have_every_kind_and_every_state_of_the_proxy_and_no_names(site: Site) -> None:
    watch = ProxyWatchStatus(WatchState.WIPED, NOW, "It has lost its table.", wiped_at=NOW, missing=("/user/a", "/b"))
    assert site.guard.drifts.report
    site.guard.drifts.report = replace(site.guard.drifts.report, watch=watch)
    text = (await site.ask("metrics", "reader")).text
    samples = dict(line.rsplit(" ", 1) for line in text.splitlines() if not line.startswith("#"))
    of_drift = {name for name in samples if name.startswith("hubguard_drifts{")}
    assert len(of_drift) == 2 * len(DriftKind)
    assert samples['hubguard_drifts{kind="server-orphan",state="raised"}'] == "3.0"
    assert samples['hubguard_drifts{kind="server-dead",state="suspected"}'] == "1.0"
    assert {state.value: samples[f'hubguard_proxy_watch{{state="{state.value}"}}'] for state in WatchState} == {
        state.value: "1.0" if state is WatchState.WIPED else "0.0" for state in WatchState
    }
    assert samples["hubguard_proxy_missing_routes"] == "2.0"
    assert float(samples["hubguard_last_drift_look_time_seconds"]) == site.guard.drifts.report.world.at.timestamp()
    assert not any("eve" in name or "/user" in name for name in samples)


async def test_what_isnt_known_or_is_no_longer_looked_at_has_no_sample(site_of: Callable[..., Site]) -> None:
    """A guard that stands by has an old report: an alert by it would never end."""
    assert "hubguard_drifts" not in (await site_of(None).ask("metrics", "reader")).text
    old = site_of(report_with(one_of_each()))
    old.guard.change(mode=Mode.STANDBY)
    assert "hubguard_drifts" not in (await old.ask("metrics", "reader")).text


async def test_health_is_as_it_was_whatever_drifts(site: Site) -> None:
    health = (await site.ask("health")).json
    site.guard.drifts.report = None
    assert (await site.ask("health")).json == health


async def test_the_journal_tells_of_repairs_and_of_what_is_over_and_can_be_filtered(site: Site) -> None:
    site.guard.write(Event.INTENT, action="check-routes", user="", server="", reason="route-missing")
    site.guard.write(Event.OUTCOME, action="check-routes", user="", server="", outcome=OutcomeKind.DONE)
    site.guard.write(Event.INTENT, action="start-and-stop", user="ann", server="gpu", reason="server-ghost")
    site.guard.write(
        Event.OUTCOME, action="end-backend", user="bob", server="", outcome=OutcomeKind.FAILED, detail="no"
    )
    site.guard.write(Event.CLEARED, user="ann", server="", detail="route-missing: its route is there")
    page = (await site.ask("journal", "reader")).says
    assert "going to have the hub check its routes (route-missing)" in page
    assert "having the hub check its routes: done" in page
    assert "going to start and stop ann/gpu (server-ghost)" in page
    assert "ending the backend of bob: failed, no" in page
    cleared = (await site.ask("api/v1/journal?event=cleared", "reader")).json
    assert [(one["user"], one["event"]) for one in cleared] == [("ann", "cleared")]
