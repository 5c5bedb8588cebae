"""Pages and API over a made-up guard: rights, forgery, bad input, paging, empty states, and what must never be shown."""

from __future__ import annotations

import json
import re
from collections.abc import AsyncIterator, Callable
from dataclasses import replace
from datetime import timedelta
from typing import Any

import pytest
from asked_site import AWKWARD, PREFIX, Site, sites
from builders import NOW, minutes
from doubles.drift import one_of_each, report_with
from doubles.guard import CALLERS, POLICY, PlacedGuard, done, guard_with, made_up, report_of

from hubguard import words
from hubguard.cull import shapes
from hubguard.cull.decide.judge import judge
from hubguard.cull.model import Known, Reason, Standing, UserVerdict, Verdict
from hubguard.dashboard.routes import API, PAGES
from hubguard.errors import ConfigError, HubGuardError, JournalError
from hubguard.journal.model import ArmedBy, Event, Failures, Stance
from hubguard.model import Finding, FindingKind, Outcome, OutcomeKind, Server, Tally, User
from hubguard.snapshot.model import Brake, BrakeReason, Evidence
from hubguard.status import Culls, HandoverStatus, Mode, OtherCuller, TakenSetting

pytestmark = pytest.mark.contract

STATES = [f"api/v1/{word}" for word in ("arm", "observe", "hold", "resume")]


@pytest.fixture
async def site_of() -> AsyncIterator[Callable[..., Site]]:
    async with sites() as make:
        yield make


@pytest.fixture
def site(site_of: Callable[..., Site]) -> Site:
    guard = guard_with(made_up(40))
    guard.drifts.report = report_with(one_of_each(), made_up(40))
    for server in (Server("ann", "gpu", True, None, NOW, NOW), Server("bo", "", True, None, NOW, NOW)):
        guard.hub.add(server)
    return site_of(guard)


def pages() -> list[str]:
    return ["", "servers", "servers/student-00000/", "drift", "beliefs/student-00000/", "exemptions", "journal"]


# -- who may ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("path", [*STATES, "api/v1/cycles"])
async def test_reading_does_not_grant_acting(site: Site, path: str) -> None:
    answer = await site.post(path, "reader")
    assert answer.status == 403
    assert "custom:hubguard:act" in answer.json["message"]
    assert site.guard.asked == []


async def test_the_reader_sees_no_buttons_and_the_actor_does(site: Site) -> None:
    assert "actions/hold" not in (await site.ask("", "reader")).text
    assert "actions/hold" in (await site.ask("", "actor")).text


async def test_who_may_only_stop_servers_learns_no_names_here(site: Site) -> None:
    assert (await site.ask("api/v1/servers", "stopper")).status == 403
    assert (await site.post("api/v1/cycles", "stopper")).status == 403
    held = await site.post("api/v1/hold", "stopper")
    assert (held.status, held.text) == (204, "")


async def test_health_and_the_description_are_open_and_name_nobody(site: Site) -> None:
    site.guard.change(stance=Stance(armed=True, armed_by="ann"))
    for path in ("health", "openapi.json"):
        answer = await site.ask(path)
        assert answer.status == 200
        assert not re.search("student|ann\\b|hub-1", answer.text)
    assert (await site.ask("health")).json == {
        **{"ok": True, "mode": "acting", "last_good_cycle_age_s": 60.0},
        **{"oldest_overdue_s": None, "error_ratio": None, "braked": False, "reasons": None},
    }


async def test_health_answers_503_and_not_ok_when_nothing_works(site_of: Callable[..., Site]) -> None:
    for change in ({"mode": Mode.TROUBLED}, {"mode": Mode.STARTING}, {"last_good_cycle_at": NOW - minutes(60)}):
        site = site_of(guard_with(made_up(40)))
        site.guard.change(**change)
        answer = await site.ask("health")
        assert (answer.status, answer.json["ok"], answer.json["reasons"]) == (503, False, None)
        (reason,) = (await site.ask("health?verbose")).json["reasons"]
        assert reason.startswith(("HubGuard is starting", "HubGuard takes no action", "The last cycle"))
        assert (await site.ask("health/live")).status == 200


async def test_metrics_are_open_where_the_settings_say_so_and_nothing_else_is(site_of: Callable[..., Site]) -> None:
    site = site_of(guard_with(made_up(4)))
    assert (await site.ask("metrics")).status == 401
    site.guard.settings.guard.authenticate_prometheus = False
    answer = await site.ask("metrics")
    assert answer.status == 200
    assert "student" not in answer.text
    assert (await site.ask("api/v1/status")).status == 401


async def test_a_guard_without_its_journal_is_live_and_not_ready(site_of: Callable[..., Site]) -> None:
    site = site_of(guard_with(made_up(4)))
    assert (await site.ask("health/ready")).status == 200
    site.guard.mandate.note_trouble(JournalError("The journal's database is away."))
    assert ((await site.ask("health/ready")).status, (await site.ask("health/live")).status) == (503, 200)


async def test_with_the_hub_down_pages_and_api_say_so(site: Site) -> None:
    site.auth.down = True
    page, api = await site.ask("", login="actor"), await site.ask("api/v1/status", "actor")
    assert (page.status, api.status) == (503, 503)
    assert (page.headers["Retry-After"], api.headers["Retry-After"]) == ("5", "5")
    assert "HubGuard can&#39;t check who you are" in page.text
    assert page.headers["Content-Type"].startswith("text/html")
    assert api.json["status"] == 503
    assert "can't check who you are" in api.json["message"]


# -- logins and forgery ----------------------------------------------------------------------------------------------


async def test_only_a_person_opening_a_page_is_sent_to_the_login(site: Site) -> None:
    opened = await site.ask("servers?q=a", headers={"Sec-Fetch-Mode": "navigate"})
    assert (opened.status, opened.headers["Location"]) == (302, f"/hub/login?next={PREFIX}servers?q=a")
    assert (await site.ask("")).status == 302  # browsers don't tell on http
    for headers in ({"Sec-Fetch-Mode": "cors"}, {"Sec-Fetch-Mode": "no-cors"}, {"HX-Request": "true"}):
        assert (await site.ask("servers", headers=headers)).status == 401
    assert (await site.ask("servers", "wrong")).status == 401
    assert (await site.ask("api/v1/status", headers={"Sec-Fetch-Mode": "navigate"})).status == 401


async def test_a_poll_after_the_login_ended_has_the_page_loaded_anew(site: Site) -> None:
    answer = await site.ask("fragments/servers", headers={"HX-Request": "true", "Sec-Fetch-Mode": "cors"})
    assert (answer.status, answer.headers["HX-Refresh"]) == (401, "true")


async def test_the_form_token_of_one_login_does_not_serve_another(site: Site) -> None:
    token = await site.form_token("actor")
    answer = await site.ask("actions/hold", method="POST", login="service", body={"_xsrf": token})
    assert answer.status == 403
    assert site.guard.asked == []


async def test_a_form_of_our_own_works_and_comes_back_to_the_overview(site: Site) -> None:
    token = await site.form_token()
    answer = await site.ask("actions/hold", method="POST", login="actor", body={"_xsrf": token, "why": "exam"})
    assert (answer.status, answer.headers["Location"]) == (303, PREFIX)
    assert site.guard.asked == [("held", "ann", "exam")]
    shown = (await site.ask("", login="actor")).text
    assert "On hold" in shown
    assert "On hold (ann: exam)" in shown


async def test_a_script_of_another_page_cannot_read_with_the_login(site: Site) -> None:
    """Same-origin scripts, such as those of user servers on the same host, are refused for reading, too."""
    for path in ("", "servers", "fragments/servers", "api/v1/servers"):
        answer = await site.ask(path, login="actor", headers={"Sec-Fetch-Mode": "same-origin"})
        assert answer.status == 403
        assert "student-" not in answer.text
    token = await site.form_token()
    headers = {"Sec-Fetch-Mode": "cors", "X-XSRFToken": token}
    assert (await site.ask("fragments/servers", login="actor", headers=headers)).status == 200


async def test_a_token_in_the_header_needs_no_form_token(site: Site) -> None:
    answer = await site.ask("api/v1/hold", "service", method="POST", login="actor", body='{"why": "drill"}')
    assert answer.status == 200
    assert answer.json["mode"] == "held"
    assert site.guard.asked == [("held", "service report", "drill")]


async def test_arm_and_resume_are_confirmed_and_say_how_many_are_due(site: Site) -> None:
    for word in ("arm", "resume"):
        page = await site.ask(f"actions/{word}", login="actor")
        assert page.status == 200
        assert re.search(r"<strong>\d+ servers</strong>\s+are due", page.text)
    assert site.guard.asked == []


# -- bad input ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("path", "named"),
    [
        ("api/v1/servers?limit=0", "limit"),
        ("api/v1/servers?limit=1001", "limit"),
        ("api/v1/servers?limit=ten", "limit"),
        ("api/v1/servers?limit=", "limit"),
        ("api/v1/servers?offset=-1", "offset"),
        ("api/v1/servers?offset=99999999999999999999", "offset"),
        ("api/v1/servers?offset=1e3", "offset"),
        ("api/v1/servers?limit=1&limit=2", "limit"),
        ("api/v1/servers?standing=gone", "standing"),
        ("api/v1/servers?sort=colour", "sort"),
        ("api/v1/servers?usr=ann", "usr"),
        ("api/v1/servers?q=%ff", "q"),
        ("api/v1/servers?q=%00", "q"),
        ("api/v1/servers?q=" + "x" * 300, "q"),
        ("api/v1/journal?before_id=0", "before_id"),
        ("api/v1/journal?event=party", "event"),
        ("api/v1/journal?limit=nan", "limit"),
    ],
)
async def test_a_bad_parameter_is_named(site: Site, path: str, named: str) -> None:
    answer = await site.ask(path, "reader")
    assert answer.status == 400
    assert answer.json["message"].startswith(f"{named}: ")
    assert "\n" not in answer.json["message"]
    assert len(answer.json["message"]) < 300


@pytest.mark.parametrize(
    ("body", "named"),
    [
        ('{"dry_run": 1}', "dry_run"),
        ('{"dry_run": "true"}', "dry_run"),
        ('{"idle_timeout_s": 0}', "idle_timeout_s"),
        ('{"idle_timeout_s": -5}', "idle_timeout_s"),
        ('{"idle_timeout_s": NaN}', "idle_timeout_s"),
        ('{"idle_timeout_s": Infinity}', "idle_timeout_s"),
        ('{"idle_timeout_s": 1e300}', "idle_timeout_s"),
        ('{"idle_timeout_s": ' + "9" * 400 + "}", "idle_timeout_s"),
        ('{"idle_timeout_s": true}', "idle_timeout_s"),
        ('{"rate": "fast"}', "rate"),
        ('{"concurrency": 1.5}', "concurrency"),
        ('{"concurrency": 0}', "concurrency"),
        ('{"dryrun": true}', "dryrun"),
        ("[]", "The body"),
        ("{", "The body"),
        ("[" * 100_000, "The body"),
        ('"x"', "The body"),
    ],
)
async def test_a_bad_body_is_refused_and_no_cycle_runs(site: Site, body: str, named: str) -> None:
    answer = await site.post("api/v1/cycles", "actor", body)
    assert answer.status == 400
    assert answer.json["message"].startswith(named)
    assert site.guard.asked == []


async def test_a_reason_may_not_break_the_journals_lines(site: Site) -> None:
    for why in ("a\nb", "\u001b[31m", "x" * 501):
        assert (await site.post("api/v1/hold", "actor", json.dumps({"why": why}))).status == 400
        await site.ask("actions/hold", method="POST", token="actor", body={"why": f"a{why}b"})
    assert all(why.isprintable() and len(why) <= 500 for _, _, why in site.guard.asked)


async def test_unknown_addresses_and_methods_get_one_clear_line(site: Site) -> None:
    for path, method, status in (
        ("api/v1/nothing", "GET", 404),
        ("api/v1/hold", "GET", 405),
        ("api/v1/status", "POST", 405),
        ("api/v1/status", "DELETE", 405),
        ("api/v1/servers/nobody/", "GET", 404),
    ):
        answer = await site.ask(path, "actor", method=method)
        assert answer.status == status
        assert set(answer.json) == {"status", "message"}
    assert (await site.ask("servers/nobody/", "actor")).status == 404
    assert (await site.ask("actions/explode", "actor", method="POST")).status == 404


async def test_pages_take_odd_addresses_as_if_nothing_was_asked(site: Site) -> None:
    for query in (
        "page=-1",
        "page=x",
        "page=9999999999999",
        "sort=%3Cb%3E",
        "standing=gone",
        "page=%C2%B2",
        "before_id=x",
    ):
        for path in ("servers", "journal"):
            assert (await site.ask(f"{path}?{query}", "reader")).status == 200


# -- what the API tells --------------------------------------------------------------------------------------------------


async def test_ten_thousand_servers_are_filtered_sorted_and_paged(site_of: Callable[..., Site]) -> None:
    site = site_of(guard_with(made_up(10_000), skipped_why="a drill"))
    first = (await site.ask("api/v1/servers", "reader")).json
    assert len(first) == 100
    dues = [row["due_at"] for row in first if row["due_at"]]
    assert dues == sorted(dues)
    only = (await site.ask("api/v1/servers?standing=exempt&limit=1000&sort=-name", "reader")).json
    assert {row["standing"] for row in only} == {"exempt"}
    assert [row["user"] for row in only] == sorted((row["user"] for row in only), reverse=True)
    assert [row["user"] for row in (await site.ask("api/v1/servers?q=T-09999", "reader")).json] == ["student-09999"]
    page = await site.ask("servers?page=3", "reader")
    assert "201\N{EN DASH}300 of 10,000 servers" in page.text
    assert page.text.count('<tr id="r') == 100
    assert len(page.text) < 300_000


async def test_a_server_that_the_last_cycle_stopped_is_no_longer_listed(site_of: Callable[..., Site]) -> None:
    servers = [
        Server(user, "", True, None, NOW - minutes(600), NOW - minutes(300 - i)) for i, user in enumerate("abcd")
    ]
    outcomes = [
        *done(""),
        Outcome(OutcomeKind.FAILED, "the hub said 500"),
        Outcome(OutcomeKind.UNVERIFIED, "still stopping"),
    ]
    site = site_of(guard_with(servers, outcomes=outcomes))
    told = {row["user"]: row for row in (await site.ask("api/v1/servers", "reader")).json}
    assert {user: row["outcome"] for user, row in told.items()} == {"b": "failed", "c": "unverified", "d": None}
    assert "stopping it failed: the hub said 500" in told["b"]["explanation"]
    assert (await site.ask("api/v1/status", "reader")).json["servers"]["running"] == 3


async def test_a_cycle_that_is_asked_for_is_reported_with_each_action(site_of: Callable[..., Site]) -> None:
    site = site_of(guard_with(made_up(30), outcomes=done("gone")))
    answer = await site.post("api/v1/cycles", "actor", '{"dry_run": true, "idle_timeout_s": 60, "rate": null}')
    assert answer.status == 200
    assert answer.json["skipped_why"] == "this was a dry run"
    assert {action["outcome"] for action in answer.json["actions"]} == {None}
    assert len(answer.json["actions"]) > len(site.guard.last_cycle.plan.actions) > 0
    assert site.guard.asked == []


async def test_the_guards_own_refusals_are_one_line_with_the_right_status(site: Site) -> None:
    for error, status in ((HubGuardError("Another guard acts for this hub."), 409), (JournalError("It is full."), 503)):
        site.guard.books.fails = error
        answer = await site.post("api/v1/cycles", "actor")
        assert (answer.status, answer.json["message"]) == (status, str(error))
        assert (await site.post("api/v1/hold", "actor")).status == status


async def test_a_defect_tells_the_caller_nothing_of_its_insides(site: Site, caplog: pytest.LogCaptureFixture) -> None:
    site.guard.books.fails = RuntimeError("secret insides")
    answer = await site.post("api/v1/hold", "actor")
    assert answer.status == 500
    assert "secret" not in answer.text
    assert "secret insides" in caplog.text  # the log is for the operator


async def test_tokens_and_queries_stay_out_of_the_log(site: Site, caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(0)
    for path in ("servers?token=sesame", "nothing?code=sesame", "api/v1/status?code=sesame"):
        await site.ask(path, "sesame-open")
        await site.ask(path, login="sesame-open")
    assert "sesame" not in caplog.text.replace(site.url, "")


async def test_the_journal_is_filtered_by_plan_on_its_page_and_by_the_api(site: Site) -> None:
    for plan in ("ab" * 32, "cd" * 32, None):
        site.guard.write(Event.NOTE, detail=f"of {plan}", plan=plan)
    rows = (await site.ask("api/v1/journal?plan=abab", "reader")).json
    assert [row["plan"] for row in rows] == ["ab" * 32]
    page = await site.ask("journal?plan=abab", "reader")
    assert "of abab" in page.says
    assert "of cdcd" not in page.says
    assert 'name="plan" value="abab"' in page.text
    assert "No entry matches." in (await site.ask("journal?plan=ffff", "reader")).says


async def test_the_journal_is_paged_and_filtered(site: Site) -> None:
    for i in range(250):
        site.guard.write(Event.OUTCOME, user=f"u{i % 2}", server="", outcome=OutcomeKind.DONE, detail=f"no {i}")
    seen, url = [], "api/v1/journal?user=u1&limit=60"
    while url:
        answer = await site.ask(url, "reader")
        seen += [entry["id"] for entry in answer.json]
        found = re.match(r"<(.+)>", answer.headers.get("Link", ""))
        url = found[1].removeprefix(PREFIX) if found else ""
    assert seen == [i for i in range(250, 0, -1) if i % 2 == 0]
    assert 'href="/services/hubguard/journal?before_id=151"' in (await site.ask("journal", "reader")).text


async def test_metrics_are_prometheus_text_and_leave_out_what_is_not_known(site: Site) -> None:
    text = (await site.ask("metrics", "reader")).text
    assert 'hubguard_mode{mode="acting"} 1.0' in text
    assert 'hubguard_source_complete{source="hub_api"} 1.0' in text
    assert "hubguard_hub_requests_total 1234.0" in text
    assert 'hubguard_servers{standing="keep"}' in text
    assert "student" not in text
    site.guard.change(last_cycle=None, last_good_cycle_at=None, budget=None, mode=Mode.STARTING)
    text = (await site.ask("metrics", "reader")).text
    assert "hubguard_servers" not in text
    assert "last_good" not in text


# -- what the pages say ----------------------------------------------------------------------------------------------------


async def test_with_a_wrong_setting_the_overview_names_it_first(site: Site) -> None:
    error = ConfigError("HubGuardCull.idle_timeout_s", "must be at least 0, not -5")
    site.guard.change(mode=Mode.TROUBLED, errors=(error,), last_cycle=None, lease=None, last_good_cycle_at=None)
    text = (await site.ask("", "actor")).text
    main = text[text.index("<main") :]
    assert main.index("HubGuardCull.idle_timeout_s") < main.index("<h2")
    assert "must be at least 0, not -5" in main
    assert (await site.ask("servers", "actor")).status == 200


@pytest.mark.parametrize("mode", list(Mode))
async def test_every_mode_has_a_page_a_word_and_a_shape(site: Site, mode: Mode) -> None:
    site.guard.change(mode=mode)
    for path in pages():
        assert (await site.ask(path, "actor")).status == 200
    overview = (await site.ask("", "actor")).text
    assert f'class="pill is-{mode.value}"><svg' in overview
    site.guard.change(
        last_cycle=None, last_good_cycle_at=None, next_cycle_at=None, lease=None, hub_version=None, budget=None
    )
    for path in ["", "servers", "journal"]:
        assert (await site.ask(path, "actor")).status == 200


async def test_an_empty_table_says_which_empty_it_is(site_of: Callable[..., Site]) -> None:
    site = site_of(guard_with(()))
    assert "No server is running" in (await site.ask("servers", "reader")).text
    site.guard.change(last_cycle=report_of((), incomplete="page 3 of 7 didn't come"))
    assert "couldn&#39;t be read: page 3 of 7" in (await site.ask("servers", "reader")).text
    site.guard.change(last_cycle=None, mode=Mode.STARTING)
    assert "hasn&#39;t read the hub&#39;s servers yet" in (await site.ask("servers", "reader")).text
    site.guard.change(last_cycle=report_of(made_up(12)))
    assert "No server matches. 12 servers are running." in (await site.ask("servers?q=zzz", "reader")).text


async def test_while_observing_the_pages_say_what_would_be_done(site: Site) -> None:
    site.guard.change(mode=Mode.OBSERVING, stance=Stance())
    servers = (await site.ask("servers", "reader")).text
    assert "would be stopped" in servers
    assert not re.search(r"over the limit of 2 h; stopped", servers)
    assert "it would stop" in (await site.ask("", "reader")).text


async def test_a_journal_that_fails_does_not_take_the_overview_down(site: Site) -> None:
    site.guard.books.fails = JournalError("The journal's database is full.")
    for path in ("", "servers/student-00000/"):
        answer = await site.ask(path, "reader")
        assert answer.status == 200
        assert "database is full" in answer.text
    assert (await site.ask("journal", "reader")).status == 503


async def test_a_server_page_tells_of_back_off_and_what_was_tried(site_of: Callable[..., Site]) -> None:
    server = Server("bo", "", True, None, NOW - minutes(600), NOW - minutes(300))
    policy = replace(POLICY, retry_base_s=3600.0)
    failures = {server.run: Failures(9, NOW - minutes(0.01))}
    site = site_of(guard_with([server], policy=policy, failures=failures))
    site.guard.write(Event.OUTCOME, user="bo", server="", outcome=OutcomeKind.FAILED, detail="the hub said 500")
    site.guard.write(Event.OUTCOME, user="bob", server="", outcome=OutcomeKind.DONE, detail="someone else's")
    text = (await site.ask("servers/bo/", "reader")).text
    assert "9 tries to stop it failed" in text
    assert "the hub said 500" in text
    assert "someone else" not in text


async def test_links_lead_back_to_the_hub_and_admin_is_for_admins(site: Site) -> None:
    assert CALLERS["actor"].admin
    for caller, shown in (("actor", True), ("reader", False)):
        text = (await site.ask("", caller)).text
        assert ('href="/hub/admin"' in text) is shown
        for path in ("home", "token", "logout"):
            assert f'href="/hub/{path}"' in text


async def test_every_address_is_below_the_prefix(site: Site) -> None:
    assert set(PAGES) & set(API) == set()
    outside = site.url.removesuffix(PREFIX)
    async with site.session.get(f"{outside}/health") as answer:
        assert answer.status == 404
    async with site.session.get(f"{outside}{PREFIX.rstrip('/')}", allow_redirects=False) as answer:
        assert (answer.status, answer.headers["Location"]) == (302, PREFIX)


# -- what people ask to keep -----------------------------------------------------------------------------------------------

KEEP = {"user": "ann", "until": "2026-11-23T12:00:00Z", "why": "exam"}


async def test_an_exemption_is_made_listed_and_ended_through_the_api(site: Site) -> None:
    made = await site.post("api/v1/exemptions", "actor", json.dumps({**KEEP, "server": "gpu"}))
    assert made.status == 200
    assert {**KEEP, "server": "gpu", "actor": "ann", "id": 1}.items() <= made.json.items()
    whole = await site.post("api/v1/exemptions", "service", '{"user": "bo", "server": null, "for_s": 3600}')
    assert (whole.json["server"], whole.json["until"]) == (None, "2026-11-21T13:00:00Z")
    assert [one["id"] for one in (await site.ask("api/v1/exemptions", "reader")).json] == [2, 1]
    assert [one["id"] for one in (await site.ask("api/v1/exemptions?user=ann", "reader")).json] == [1]
    ended = await site.ask("api/v1/exemptions/1?why=cancelled", "actor", method="DELETE")
    assert (ended.status, ended.json["ended_by"], ended.json["ended_at"]) == (200, "ann", "2026-11-21T12:00:00Z")
    assert site.guard.asked[-1][:2] == ("released", "ann")
    assert "cancelled" in site.guard.asked[-1][2]
    assert [one["id"] for one in (await site.ask("api/v1/exemptions", "reader")).json] == [2]
    assert [one["id"] for one in (await site.ask("api/v1/exemptions?ended=true", "reader")).json] == [2, 1]


async def test_a_date_alone_keeps_over_that_day(site: Site) -> None:
    made = await site.post("api/v1/exemptions", "actor", '{"user": "ann", "until": "2026-11-30"}')
    assert made.json["until"] == "2026-11-30T23:59:59Z"


@pytest.mark.parametrize("number", ["1", "2", "0", str(2**62), str(2**62 + 1), "9" * 400])
async def test_ending_what_is_not_in_force_is_404_and_ends_nothing(site: Site, number: str) -> None:
    site.guard.keep("ann", until=NOW + minutes(5))
    await site.guard.parts.culling.end_exemption(1, "ann", "")
    before = list(site.guard.kept)
    for method, path in (("DELETE", f"api/v1/exemptions/{number}"), ("GET", f"exemptions/{number}")):
        answer = await site.ask(path, "actor", method=method)
        assert answer.status == 404
        assert len(answer.text) < 2000
    assert site.guard.kept == before


@pytest.mark.parametrize(
    ("body", "named"),
    [
        ({"until": "2026-11-23"}, "user"),
        ({"user": "", "until": "2026-11-23"}, "user"),
        ({"user": "x" * 256, "until": "2026-11-23"}, "user"),
        ({"user": "a\nb", "until": "2026-11-23"}, "user"),
        ({"user": "\ud800", "until": "2026-11-23"}, "user"),
        ({"user": ["ann"], "until": "2026-11-23"}, "user"),
        ({"user": "ann", "server": "x" * 256, "until": "2026-11-23"}, "server"),
        ({"user": "ann"}, "until"),
        ({"user": "ann", "until": "2026-11-23", "for_s": 60}, "until"),
        ({"user": "ann", "until": "tomorrow"}, "until"),
        ({"user": "ann", "until": "2026-13-01"}, "until"),
        ({"user": "ann", "until": "0001-01-01T00:00+14:00"}, "until"),
        ({"user": "ann", "until": 1795000000}, "until"),
        ({"user": "ann", "for_s": 0}, "for_s"),
        ({"user": "ann", "for_s": float("nan")}, "for_s"),
        ({"user": "ann", "for_s": 1e12}, "for_s"),
        ({"user": "ann", "for_s": 60, "forever": True}, "forever"),
    ],
)
async def test_an_exemption_that_makes_no_sense_is_refused_by_name(site: Site, body: Any, named: str) -> None:
    answer = await site.post("api/v1/exemptions", "actor", json.dumps(body))
    assert answer.status == 400
    assert answer.json["message"].startswith(f"{named}: ")
    assert site.guard.kept == []


async def test_an_exemption_beyond_what_the_settings_allow_is_409_with_the_guards_own_words(site: Site) -> None:
    for until, says in (("2026-11-20", "must end in the future"), ("2027-11-20", "HubGuard.longest_exemption_s")):
        answer = await site.post("api/v1/exemptions", "actor", json.dumps({"user": "ann", "until": until}))
        assert answer.status == 409
        assert says in answer.json["message"]


async def test_who_may_only_read_keeps_and_ends_nothing(site: Site) -> None:
    site.guard.keep("ann", until=NOW + minutes(5))
    for method, path, body in (
        ("POST", "api/v1/exemptions", json.dumps(KEEP)),
        ("DELETE", "api/v1/exemptions/1", None),
        ("POST", "exemptions/new", {"user": "ann", "server": "", "scope": "user", "until": "day"}),
        ("GET", "exemptions/1", None),
        ("POST", "exemptions/1", {}),
    ):
        assert (await site.ask(path, "reader", method=method, body=body)).status == 403
    assert len(site.guard.kept) == len(site.guard.asked) == 1
    assert "exemptions/1" not in (await site.ask("exemptions", "reader")).text
    assert "exemptions/new" not in (await site.ask("servers/student-00000/", "reader")).text


async def test_who_may_act_and_not_read_learns_nothing_from_keeping(site: Site) -> None:
    answer = await site.post("api/v1/exemptions", "stopper", json.dumps(KEEP))
    assert (answer.status, answer.text) == (204, "")
    ended = await site.ask("api/v1/exemptions/1", "stopper", method="DELETE")
    assert (ended.status, ended.text) == (204, "")
    assert (await site.ask("api/v1/exemptions", "stopper")).status == 403
    assert (await site.ask("exemptions/1", "stopper")).status == 403


@pytest.mark.parametrize("name", [*AWKWARD, " a", "a "])
async def test_the_form_keeps_a_server_of_any_name_and_the_page_ends_it(site: Site, name: str) -> None:
    site.guard.change(last_cycle=report_of([Server(name, name, True, None, NOW - minutes(60), NOW)]))
    token = await site.form_token()
    form = {"_xsrf": token, "user": name, "server": name, "scope": "server", "until": "week", "why": "<b>bold"}
    kept = await site.ask("exemptions/new", method="POST", login="actor", body=form)
    assert kept.status == 303
    assert site.guard.kept[0].until == NOW + timedelta(days=7)
    assert (site.guard.kept[0].user, site.guard.kept[0].server) == (name, name)
    back = await site.ask(kept.headers["Location"].removeprefix(PREFIX), login="actor")
    assert "Kept until" in back.text
    assert "<b>bold" not in back.text
    assert "exempt until" in (await site.ask("servers", "reader")).text
    assert (await site.ask("exemptions/1", login="actor")).status == 200
    over = await site.ask("exemptions/1", method="POST", login="actor", body={"_xsrf": token, "why": "done"})
    assert (over.status, over.headers["Location"]) == (303, f"{PREFIX}exemptions")
    assert "No exemption is in force" in (await site.ask("exemptions", "actor")).text
    assert "by ann" in (await site.ask("exemptions?ended=1", "actor")).text


async def test_the_form_keeps_all_servers_until_the_end_of_a_date(site: Site) -> None:
    form = {"_xsrf": await site.form_token(), "user": "student-00000", "server": "", "scope": "user"}
    answer = await site.ask(
        "exemptions/new", method="POST", login="actor", body={**form, "until": "date", "date": "2026-12-01"}
    )
    assert answer.status == 303
    assert site.guard.kept[0].server is None
    assert site.guard.kept[0].until.isoformat() == "2026-12-01T23:59:59+00:00"
    assert "All servers of this user are kept until" in (await site.ask("servers/student-00000/", "reader")).text


@pytest.mark.parametrize(
    "change", [{"until": "date"}, {"until": "date", "date": "soon"}, {"until": "ever"}, {"scope": "all"}, {"user": ""}]
)
async def test_a_form_that_is_not_filled_in_keeps_nothing_and_says_so(site: Site, change: dict[str, str]) -> None:
    form = {"_xsrf": await site.form_token(), "user": "a", "server": "", "scope": "user", "until": "day", **change}
    answer = await site.ask("exemptions/new", method="POST", login="actor", body=form)
    assert answer.status == 400
    assert answer.headers["Content-Type"].startswith("text/html")
    assert site.guard.kept == []


async def test_many_exemptions_come_in_pages_each_once(site: Site) -> None:
    for i in range(230):
        site.guard.keep(f"u{i % 3}", until=NOW + minutes(5 + i))
    seen, url = [], "api/v1/exemptions?limit=60&ended=false&user=u1"
    while url:
        answer = await site.ask(url, "reader")
        seen += [one["id"] for one in answer.json]
        found = re.match(r"<(.+)>", answer.headers.get("Link", ""))
        url = found[1].removeprefix(PREFIX) if found else ""
    assert seen == [i for i in range(230, 0, -1) if i % 3 == 2]
    page = (await site.ask("exemptions?page=3", "actor")).text
    assert page.count('<tr id="x') == 30
    assert "exemptions?page=2" in page


async def test_a_journal_that_fails_leaves_the_servers_to_be_seen(site: Site) -> None:
    site.guard.books.fails = JournalError("The journal's database is full.")
    assert (await site.ask("servers", "reader")).status == 200
    assert (await site.ask("exemptions", "reader")).status == 503


# -- why it isn't culling ----------------------------------------------------------------------------------------------------

OVER_CAP = Brake(
    BrakeReason.OVER_CAP,
    NOW - minutes(7),
    "1,234 actions are due at once, more than the 1,000 of HubGuardCull.plan_cap",
    "It ends by itself when no more than 1,000 are due.",
    acceptable=True,
)
PROXY_DOWN = Brake(
    BrakeReason.PROXY_DOWN, NOW, "the proxy hasn't answered since noon", "It ends when it answers again."
)


def overdue(minutes_ago: float, user: str = "late") -> Verdict:
    server = Server(user, "gpu", True, None, NOW - minutes(900), NOW - minutes(120 + minutes_ago))
    return judge(server, POLICY, Known(), NOW)


async def test_a_brake_is_shown_with_why_since_when_and_what_ends_it(site: Site) -> None:
    site.guard.change(mode=Mode.BRAKED, brake=PROXY_DOWN)
    text = (await site.ask("", "actor")).text
    assert "Braked: the proxy hasn&#39;t answered since noon." in text
    assert "It ends when it answers again." in text
    assert "actions/resume" not in text
    told = (await site.ask("api/v1/status", "reader")).json["brake"]
    assert (told["reason"], told["acceptable"]) == ("proxy-down", False)
    site.guard.change(mode=Mode.HELD, stance=Stance(held=True, held_by="ann"))
    assert "Braked: the proxy hasn&#39;t answered since noon." in (await site.ask("", "actor")).text
    confirm = (await site.ask("actions/resume", "actor")).text
    assert "Resuming doesn&#39;t change that" in confirm


async def test_an_acceptable_brake_offers_to_resume_and_says_what_is_accepted(site: Site) -> None:
    site.guard.change(mode=Mode.BRAKED, brake=OVER_CAP)
    assert "actions/resume" in (await site.ask("", "actor")).text
    assert "actions/resume" not in (await site.ask("", "reader")).text
    confirm = (await site.ask("actions/resume", login="actor")).text
    assert "1,234 actions are due at once" in confirm
    assert "If you resume, HubGuard carries out everything that is due, up to 1,000 actions in each cycle." in confirm
    assert "standing=stop" in confirm
    assert "ends the hold" not in confirm
    done_ = await site.ask("actions/resume", method="POST", login="actor", body={"_xsrf": await site.form_token()})
    assert done_.status == 303
    assert [asked[0] for asked in site.guard.asked] == ["resumed"]
    assert site.guard.mandate.allowed.is_set(), "the next look comes at once, and accepts it"


async def test_after_an_outage_the_overview_says_that_idle_clocks_began_anew_for_a_day(site: Site) -> None:
    site.guard.change(clock_from=NOW - minutes(30))
    assert "All idle times restarted at" in (await site.ask("", "reader")).text
    site.guard.change(clock_from=NOW - timedelta(days=2))
    assert "All idle times" not in (await site.ask("", "reader")).text
    assert (await site.ask("api/v1/status", "reader")).json["clock_from"] == "2026-11-19T12:00:00Z"


@pytest.mark.parametrize(
    ("change", "ok"),
    [
        ({"oldest_overdue": overdue(29)}, True),
        ({"oldest_overdue": overdue(31)}, False),
        ({"oldest_overdue": overdue(31), "mode": Mode.BRAKED, "brake": OVER_CAP}, False),
        ({"oldest_overdue": overdue(31), "mode": Mode.BRAKED, "brake": OVER_CAP, "stance": Stance()}, True),
        ({"oldest_overdue": overdue(31), "mode": Mode.OBSERVING}, True),
        ({"oldest_overdue": overdue(31), "mode": Mode.HELD, "stance": Stance(armed=True, held=True)}, True),
        ({"oldest_overdue": overdue(31), "mode": Mode.STANDBY}, True),
        ({"recent": Tally(done=4, failed=3, unverified=3)}, False),
        ({"recent": Tally(done=5, failed=3, unverified=2)}, True),
        ({"recent": Tally(failed=9)}, True),
        ({"recent": Tally(skipped=100, failed=9)}, True),
        ({"recent": Tally(failed=10)}, False),
        ({"mode": Mode.BRAKED, "brake": PROXY_DOWN}, True),
    ],
)
async def test_health_is_not_ok_when_hubguard_ought_to_cull_and_does_not(
    site: Site, change: dict[str, Any], ok: bool
) -> None:
    site.guard.change(**change)
    answer = await site.ask("health")
    assert answer.json["ok"] is ok
    assert answer.json["braked"] is (change.get("mode") is Mode.BRAKED)
    assert "late" not in answer.text


async def test_the_overview_says_what_is_overdue_what_failed_and_what_to_look_at(site: Site) -> None:
    quiet = (await site.ask("", "reader")).text
    assert "no server is overdue" in quiet
    assert "Needs attention" not in quiet
    site.guard.change(
        oldest_overdue=overdue(45, "<b>late"),
        recent=Tally(done=3, failed=1, skipped=7),
        tally=Tally(done=300, failed=1),
        findings=(
            Finding(FindingKind.CAME_BACK, NOW - minutes(90), "It was seen gone <i>and is ready.", "bo", "x/y"),
            Finding(FindingKind.NOT_CULLING, NOW - minutes(5), "12 servers are long overdue."),
        ),
    )
    text = (await site.ask("", "reader")).text
    assert "45 min" in text
    assert "&lt;b&gt;late/gpu" in text
    assert "1 failed and 0 not verified of 4" in text
    assert "25 %" in text
    assert text.index("seen gone &lt;i&gt;") < text.index("12 servers are long overdue")
    assert "servers/bo/x%2Fy" in text
    told = (await site.ask("api/v1/status", "reader")).json
    assert told["oldest_overdue"]["overdue_s"] == 45 * 60
    assert told["error_ratio"] == 0.25
    assert told["tally"]["done"] == 300
    assert [one["kind"] for one in told["findings"]] == ["came-back", "not-culling"]


def everything() -> PlacedGuard:
    guard = guard_with(made_up(20), mode=Mode.BRAKED)
    verdict = overdue(45)
    known = Known(exemption=None, active_at=NOW - minutes(500), clock_from=NOW - minutes(600))
    verdict = replace(verdict, rule="gpu", evidence=Evidence.PROXY, known=known)
    report = replace(guard.last_cycle, verdicts=(*guard.last_cycle.verdicts, verdict))
    guard.change(
        brake=OVER_CAP,
        clock_from=NOW,
        oldest_overdue=verdict,
        recent=Tally(1, 2, 3, 4),
        findings=(Finding(FindingKind.RULE, NOW, "It can't match."),),
        last_cycle=report,
        handover=HANDOVER,
    )
    return guard


HANDOVER = HandoverStatus(
    Culls.OTHER,
    ArmedBy.CULLER,
    "cull-idle culls (HubGuard has fallen silent)",
    (
        OtherCuller(
            "cull-idle", known=True, replaced=True, runs=True, detail="HubGuard has fallen silent",
            command=("jupyterhub-idle-culler",), reach=(("group=gpu", "user=o"), ("user=o",)),
        ),
        OtherCuller("janitor", known=False, replaced=False, runs=None, detail="the service janitor may stop servers"),
    ),
    (TakenSetting("HubGuardCull.idle_timeout_s", "5000.0"),),
    "http://localhost:8081/hub/api",
)  # fmt: skip


async def test_the_overview_says_who_culls_by_what_right_and_with_what(site: Site) -> None:
    site.guard.change(mode=Mode.OBSERVING, handover=HANDOVER)
    page = (await site.ask("", "reader")).text
    section = re.sub(r"\s+", " ", re.sub("<[^>]+>", " ", page[page.index('id="h-culls"') :])).partition("Does it cull")[
        0
    ]
    for said in (
        *("Another service", "cull-idle culls (HubGuard has fallen silent)", "only for what the culler did"),
        *("Reaches group=gpu or user=o and user=o", "janitor", "may cull", "http://localhost:8081/hub/api"),
        "c.HubGuardCull.idle_timeout_s = 5000.0",
    ):
        assert said in section
    shape = (await site.ask("api/v1/status", "reader")).json["handover"]
    assert (shape["culls"], shape["armed_by"]) == ("other", "culler")
    site.guard.change(handover=HandoverStatus(Culls.HUBGUARD, ArmedBy.PERSON))
    assert "h-culls" not in (await site.ask("", "reader")).text, "without another culler there is nothing to say"


async def test_metrics_tell_of_actions_brake_findings_and_what_is_overdue(site: Site) -> None:
    text = (await site.ask("metrics", "reader")).text
    assert "hubguard_oldest_overdue_seconds 0.0" in text
    assert "hubguard_error_ratio" not in text
    site.guard.change(
        mode=Mode.BRAKED,
        brake=OVER_CAP,
        tally=Tally(done=7, failed=2),
        recent=Tally(done=3, failed=1),
        oldest_overdue=overdue(45),
        findings=(Finding(FindingKind.RULE, NOW, "x"), Finding(FindingKind.RULE, NOW, "y")),
    )
    text = (await site.ask("metrics", "reader")).text
    for line in (
        'hubguard_actions_total{outcome="done"} 7.0',
        'hubguard_actions_total{outcome="unverified"} 0.0',
        "hubguard_error_ratio 0.25",
        "hubguard_oldest_overdue_seconds 2700.0",
        'hubguard_brake{reason="over-cap"} 1.0',
        'hubguard_brake{reason="clock"} 0.0',
        'hubguard_findings{kind="rule"} 2.0',
        'hubguard_findings{kind="came-back"} 0.0',
    ):
        assert line in text
    assert "late" not in text
    site.guard.change(last_cycle=None)
    assert "hubguard_oldest_overdue" not in (await site.ask("metrics", "reader")).text


# -- users to be deleted ---------------------------------------------------------------------------------------------------


def leaving(*names: str) -> list[UserVerdict]:
    gone = NOW - timedelta(days=60)
    return [
        UserVerdict(User(name, False, created=gone, last_activity=gone), Standing.STOP, Reason.IDLE, gone, gone)
        for name in names
    ]


async def test_a_deletion_is_never_told_as_a_stop(site_of: Callable[..., Site]) -> None:
    servers = [Server("ann", "", True, None, NOW - minutes(600), NOW - minutes(300))]
    policy = replace(POLICY, users=True)
    site = site_of(guard_with(servers, users=leaving("bo", "cy"), outcomes=done("", "")), policy)
    actions = words.as_json(shapes.describe_cycle(site.guard.last_cycle))["actions"]
    assert [(one["kind"], one["user"], one["outcome"]) for one in actions] == [
        ("stop-server", "ann", "done"),
        ("delete-user", "bo", "done"),
        ("delete-user", "cy", None),
    ]
    last = (await site.ask("api/v1/status", "reader")).json["last_cycle"]
    assert (last["planned"], last["stop_server"], last["delete_user"], last["users_due"]) == (3, 1, 2, 1)
    overview = (await site.ask("", "reader")).text
    assert "1 server to be stopped, 2 users to be deleted" in overview
    assert "1 user is due to be deleted." in overview
    site.guard.change(mode=Mode.OBSERVING)
    assert "it would delete 1 user now" in (await site.ask("", "reader")).text
    assert "2 stopped" not in overview
    for word in ("arm", "resume"):
        assert "HubGuard also deletes users" in (await site.ask(f"actions/{word}", "actor")).text


async def test_a_user_whose_deletion_failed_is_still_due(site_of: Callable[..., Site]) -> None:
    outcomes = [Outcome(OutcomeKind.DONE, ""), Outcome(OutcomeKind.FAILED, "still there")]
    site = site_of(guard_with([], users=leaving("bo", "cy"), outcomes=outcomes), replace(POLICY, users=True))
    assert (await site.ask("api/v1/status", "reader")).json["last_cycle"]["users_due"] == 1
    assert "1 user is due to be deleted." in (await site.ask("", "reader")).text


async def test_a_user_who_was_deleted_takes_no_server_of_the_same_run_off_the_list(
    site_of: Callable[..., Site],
) -> None:
    gone = NOW - timedelta(days=60)
    servers = [Server("bo", "", True, None, gone, NOW - minutes(1))]
    site = site_of(guard_with(servers, users=leaving("bo"), outcomes=done("")))
    assert (await site.ask("api/v1/servers/bo/", "reader")).status == 200


async def test_without_users_to_delete_nobody_is_frightened(site: Site) -> None:
    assert "Users are deleted" not in (await site.ask("actions/arm", "actor")).text


# -- explanations ----------------------------------------------------------------------------------------------------------


async def test_page_and_api_explain_a_server_in_the_same_words(site_of: Callable[..., Site]) -> None:
    guard = everything()
    site = site_of(guard)
    told = (await site.ask("api/v1/servers/late/gpu", "reader")).json
    facts = {fact["what"]: fact["text"] for fact in told["facts"]}
    assert told["rule"] == facts["Rule"] == "gpu"
    assert told["evidence"] == "proxy"
    assert told["active_at"] == "2026-11-21T03:40:00Z"
    assert facts["Last real use"].startswith("2026-11-21 03:40:00 UTC")
    assert told["not_acting"] == guard.status().why
    listed = next(one for one in (await site.ask("api/v1/servers?q=late", "reader")).json)
    assert listed == told
    page = (await site.ask("servers/late/gpu", "reader")).text
    assert told["explanation"] in page.replace("&#34;", '"').replace("&#39;", "'")
    for what, text in facts.items():
        assert f"<dt>{what}</dt><dd>{text}</dd>" in page.replace("&#39;", "'")
