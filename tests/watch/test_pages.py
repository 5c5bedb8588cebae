"""The pages of alerts and signals, over placed alerts: what they say, in which order, and which empty it is."""

from __future__ import annotations

import re
from collections.abc import AsyncIterator
from dataclasses import replace
from datetime import timedelta
from typing import Any

import pytest
from asked_site import Answer, Site, sites
from builders import NOW, minutes
from doubles.guard import guard_with, made_up
from doubles.watch import alert_of, readings_of_each_kind

from hubguard.errors import JournalError
from hubguard.journal.model import Event
from hubguard.status import Mode
from hubguard.watch.charts import MISSED, span_around
from hubguard.watch.decide.rules import RULES
from hubguard.watch.decide.signals import SIGNALS
from hubguard.watch.model import AlertState, Severity, SignalSource, TimeLeft
from hubguard.watch.store.alerts import AlertStore
from hubguard.watch.words import SEVERITY_WORDS, SIGNAL_SOURCE_WORDS, STATE_WORDS, code_parts, left_evidence

MEMORY = alert_of(
    "ProxyMemory", value=1.9 * 2**30, worst=2.0 * 2**30, limit=2.5 * 2**30, left=TimeLeft(720, 540, 1020), id=1
)
DISK = alert_of("DiskLow", "/srv/homes", value=0.08, worst=0.07, limit=0.1, raised_at=NOW - minutes(55), id=2)
TOKENS = alert_of("TokensPile", value=20_000, worst=20_000, limit=10_000, id=3)


@pytest.fixture
async def site() -> AsyncIterator[Site]:
    async with sites() as make:
        yield make(guard_with(made_up(3)))


def store_of(site: Site) -> AlertStore:
    return AlertStore(site.guard.books.sync)


def articles(answer: Answer) -> list[str]:
    """What each raised alert says, in order."""
    found = re.findall(r"<article.*?</article>", answer.text, re.S)
    return [Answer(200, {}, text).says for text in found]


# -- what is wrong --------------------------------------------------------------------------------------------------


async def test_the_most_urgent_comes_first_and_says_what_to_do(site: Site) -> None:
    site.guard.watch.place((TOKENS, DISK, MEMORY), readings_of_each_kind())
    page = await site.ask("alerts", "reader")
    first, second, third = articles(page)
    assert first.startswith(
        "ProxyMemory act now firing since 11:55 UTC (5 min) The proxy uses 1.9 GiB of 2.5 GiB memory"
    )
    assert "First: Restart the proxy at a moment that you choose" in first
    assert second.startswith("DiskLow /srv/homes act today firing")
    assert third.startswith("TokensPile act this week firing")
    assert "3 alerts firing: The proxy uses 1.9 GiB" in page.says


async def test_a_command_stands_as_code(site: Site) -> None:
    site.guard.watch.place((DISK,))
    assert (
        "<code>du -xh /srv/homes | sort -h | tail</code> shows what is large."
        in (await site.ask("alerts", "reader")).text
    )


async def test_the_evidence_has_the_forecast_with_its_uncertainty(site: Site) -> None:
    site.guard.watch.place((MEMORY,))
    (said,) = articles(await site.ask("alerts", "reader"))
    assert "Last reading 1.9 GiB Worst 2 GiB Limit 2.5 GiB Time left 12 min, with 90 % confidence between 9 min" in said


async def test_an_alert_whose_source_is_lost_says_that_this_is_unknown(site: Site) -> None:
    site.guard.watch.place((replace(DISK, state=AlertState.UNKNOWN),))
    (said,) = articles(await site.ask("alerts", "reader"))
    assert "act today unknown since" in said
    assert "Unknown: the source isn't available. Last seen: 8.0 % of the disk" in said


async def test_the_chart_shows_the_limit_and_since_when_it_fires(site: Site) -> None:
    site.guard.watch.place((DISK,))
    for ago in range(170, 0, -1):
        at = (NOW - minutes(ago)).timestamp()
        site.guard.watch.history.add(at, {"disk_free_share:/srv/homes": 0.05 + ago / 1000})
    (said,) = articles(await site.ask("alerts", "reader"))
    assert "Free share of the disk: /srv/homes From 2026-11-21 09:00 to 2026-11-21 12:00 UTC." in said
    assert "Limit 10 %. Firing from 2026-11-21 11:05 to 2026-11-21 12:00 UTC." in said


async def test_a_limit_of_zero_is_the_chart_s_own_line(site: Site) -> None:
    site.guard.watch.place((alert_of("HubDown", value=0.0, worst=0.0, limit=0.0),))
    assert 'class="limit"' not in (await site.ask("alerts", "reader")).text


async def test_what_is_pending_isn_t_called_firing(site: Site) -> None:
    site.guard.watch.place((alert_of("DiskLow", "/scratch", raised=False, value=0.09),))
    page = await site.ask("alerts", "reader")
    assert articles(page) == []
    assert "No alert is firing." in page.says
    assert "pending DiskLow 9.0 % of the disk of /scratch is free. Since 6 min ago." in page.says


async def test_of_many_alerts_the_first_have_charts_and_all_have_a_page(site: Site) -> None:
    alerts = [replace(DISK, subject=f"/srv/{i:02d}", id=i + 1) for i in range(40)]
    site.guard.watch.place(alerts)
    page = await site.ask("alerts", "reader")
    assert page.text.count("<figure") == 12
    assert all(f'alerts/{i + 1}"' in page.text for i in range(40))


# -- which empty it is ----------------------------------------------------------------------------------------------


async def test_nothing_firing_is_said_with_what_is_unknown(site: Site) -> None:
    site.guard.watch.place((), readings_of_each_kind("The database didn't answer."))
    page = await site.ask("alerts", "reader")
    assert (
        "No alert is firing. 1 source isn't available, so what it would show is unknown: Hub's database." in page.says
    )
    assert "Hub's database unavailable just now: The database didn't answer." in page.says
    assert "1 source not set up Proxy's metrics" in page.says


async def test_nothing_firing_and_everything_read_is_healthy(site: Site) -> None:
    site.guard.watch.place((), readings_of_each_kind()[:1])
    page = await site.ask("alerts", "reader")
    assert "No alert is firing." in page.says
    assert "unknown" not in page.says


async def test_before_the_first_reading_nothing_is_called_healthy(site: Site) -> None:
    page = await site.ask("alerts", "reader")
    assert "HubGuard hasn't measured anything yet." in page.says
    assert "No alert is firing" not in page.says


async def test_a_guard_that_stands_by_points_to_the_one_in_charge(site: Site) -> None:
    site.guard.change(mode=Mode.STANDBY)
    assert "Another guard is in charge of this hub and watches it." in (await site.ask("alerts", "reader")).says


async def test_old_readings_are_called_old(site: Site) -> None:
    site.guard.watch.place((DISK,))
    site.guard.change(at=NOW + minutes(10))
    assert "HubGuard last measured 10 min ago. What follows is as of then." in (await site.ask("alerts", "reader")).says


async def test_a_broken_journal_takes_the_live_alerts_not_away(site: Site) -> None:
    site.guard.watch.place((DISK,))
    site.guard.books.fails = JournalError("the disk is full")
    page = await site.ask("alerts", "reader")
    assert len(articles(page)) == 1
    assert "Past alerts and silences aren't available: the disk is full" in page.says
    assert "No alert was resolved" not in page.says


# -- one alert ------------------------------------------------------------------------------------------------------


async def test_a_resolved_alert_has_a_page_with_its_chart_journal_and_verdict(site: Site) -> None:
    store = store_of(site)
    alert = replace(DISK, raised_at=NOW - minutes(90), id=None)
    id_ = store.raise_alert(alert, Severity.TODAY, "8.0 % of the disk of /srv/homes is free.", 1, ())
    store.note_verdict(id_, "A check server started.")
    store.resolve_alert(id_, 0.05, "DiskLow is resolved.", 1, (), NOW - minutes(30))
    site.guard.change(at=NOW - minutes(60))
    site.guard.write(Event.NOTE, detail="the volume was enlarged")
    site.guard.change(at=NOW)
    site.guard.watch.history.add((NOW - minutes(80)).timestamp(), {"disk_free_share:/srv/homes": 0.05})
    page = await site.ask(f"alerts/{id_}", "reader")
    assert "resolved 8.0 % of the disk of /srv/homes is free." in page.says
    assert "after 1 h. At first 8.0 %, at worst 5.0 %." in page.says
    assert "Check: A check server started." in page.says
    assert "Firing from 2026-11-21 10:30 to 2026-11-21 11:30 UTC." in page.says
    assert "the volume was enlarged" in page.says
    assert "hx-get" not in page.text
    assert f'alerts/{id_}"' in (await site.ask("alerts", "reader")).text


async def test_an_alert_of_another_version_has_a_page_without_a_chart(site: Site) -> None:
    id_ = store_of(site).raise_alert(alert_of("Gone", id=None), Severity.NOW, "It was so.", 1, ())
    page = await site.ask(f"alerts/{id_}", "reader")
    assert "It was so." in page.says
    assert "This version of HubGuard has no alert of that name" in page.says


@pytest.mark.parametrize("id_", ["7", "8999999999999999999", "9999999999999999999", "1" * 40])
async def test_an_alert_that_isn_t_there_is_404(site: Site, id_: str) -> None:
    assert (await site.ask(f"alerts/{id_}", "reader")).status == 404


def test_the_time_around_an_alert_is_as_long_as_the_alert_and_an_hour_at_least() -> None:
    assert span_around(NOW - minutes(10), NOW, NOW + minutes(600)) == (NOW - minutes(70), NOW + minutes(60))
    assert span_around(NOW - minutes(200), NOW, NOW + minutes(600)) == (NOW - minutes(400), NOW + minutes(200))
    assert span_around(NOW - minutes(10), None, NOW) == (NOW - minutes(70), NOW)


# -- silences -------------------------------------------------------------------------------------------------------


async def send(site: Site, path: str, login: str = "owner", **fields: str) -> Answer:
    return await site.ask(path, login=login, method="POST", body={"_xsrf": await site.form_token(login), **fields})


async def test_a_silence_is_set_shown_and_ended(site: Site) -> None:
    site.guard.watch.place((DISK,))
    made = await send(site, "silences/new", rule="DiskLow", subject="/srv/homes", until="day", why="being enlarged")
    assert (made.status, made.headers["Location"]) == (303, "/services/hubguard/alerts#h-silences")
    (silence,) = await site.guard.watch.silences()
    assert (silence.until, silence.actor, silence.why) == (NOW + timedelta(days=1), "ann", "being enlarged")
    page = await site.ask("alerts", login="owner")
    assert "silenced until 22 Nov at 12:00 UTC by ann: being enlarged" in articles(page)[0]
    assert "DiskLow about /srv/homes until 22 Nov at 12:00 UTC (in 1 d), by ann: being enlarged" in page.says
    assert (await send(site, f"silences/{silence.id}")).status == 303
    assert await site.guard.watch.silences() == ()
    assert (await send(site, f"silences/{silence.id}")).status == 404


async def test_the_form_is_filled_for_the_alert_that_it_was_opened_for(site: Site) -> None:
    page = await site.ask("alerts?rule=DiskLow&subject=/srv/homes", login="owner")
    assert "<option selected>DiskLow</option>" in page.text
    assert 'name="subject" value="/srv/homes"' in page.text


@pytest.mark.parametrize(
    ("fields", "status", "says"),
    [
        ({"rule": "DiskLow", "until": "day"}, 400, "Nothing silenced: no reason was given."),
        ({"rule": "Disklow", "until": "day", "why": "x"}, 409, "Did you mean DiskLow?"),
        ({"rule": "DiskLow", "until": "date", "why": "x"}, 400, "no date was given"),
        ({"rule": "DiskLow", "until": "date", "date": "2020-01-01", "why": "x"}, 409, "must be in the future"),
        ({"rule": "DiskLow", "until": "always", "why": "x"}, 400, "until: must be one of day, week, date"),
    ],
)
async def test_a_silence_that_can_t_be_is_refused(site: Site, fields: dict[str, Any], status: int, says: str) -> None:
    answer = await send(site, "silences/new", **fields)
    assert answer.status == status
    assert says in answer.says
    assert await site.guard.watch.silences() == ()


async def test_who_may_only_read_sees_no_form(site: Site) -> None:
    site.guard.watch.place((DISK,))
    await site.guard.watch.silence("", None, NOW + minutes(60), "ann", "drill")
    page = await site.ask("alerts", "reader")
    assert "<form" not in page.text
    assert "Every alert until 13:00 UTC (in 1 h), by ann: drill" in page.says


# -- signals --------------------------------------------------------------------------------------------------------


async def test_signals_stand_by_source_with_what_isn_t_available(site: Site) -> None:
    site.guard.watch.place((), readings_of_each_kind("why not"))
    for ago in range(100, 0, -1):
        site.guard.watch.history.add((NOW - minutes(ago)).timestamp(), {"users_total": 3.0, "hub_up": 1.0})
    for span in ("", "3h", "day", "week", "month", "century"):
        page = await site.ask(f"signals?span={span}", "reader")
        assert page.text.count("<figure") == 2
        assert page.says.index("Hub answers From") < page.says.index("Users of the hub From")
        assert "Hub's database unavailable just now: why not" in page.says
        assert "Not set up Proxy's metrics why not" in page.says


async def test_a_month_without_the_journal_shows_what_is_in_memory(site: Site) -> None:
    site.guard.watch.place((), readings_of_each_kind())
    site.guard.watch.history.add(NOW.timestamp(), {"users_total": 3.0})
    site.guard.books.fails = JournalError("the disk is full")
    page = await site.ask("signals?span=month", "reader")
    assert "Older values aren't available: the disk is full" in page.says
    assert page.text.count("<figure") == 1


# -- the Overview and the tab ---------------------------------------------------------------------------------------


async def test_an_urgent_alert_is_the_first_sentence_of_the_overview(site: Site) -> None:
    site.guard.watch.place((MEMORY, DISK))
    page = await site.ask("", "reader")
    lead, look = page.says.index("The proxy uses 1.9 GiB"), page.says.index("To look at")
    assert lead < page.says.index("HubGuard is armed and stops servers") < look
    assert "First: Restart the proxy" in page.says[lead:look]
    assert "act today DiskLow 8.0 % of the disk of /srv/homes is free." in page.says[look:]
    assert page.says.count("The proxy uses 1.9 GiB") == 1


async def test_what_can_wait_doesn_t_displace_what_hubguard_does(site: Site) -> None:
    site.guard.watch.place((DISK,))
    page = await site.ask("", "reader")
    assert '<p class="sentence">HubGuard is armed and stops servers' in page.text
    assert "To look at" in page.says


async def test_an_alert_that_is_known_to_hold_comes_before_an_unknown_one(site: Site) -> None:
    lost = alert_of("DatabaseDown", state=AlertState.UNKNOWN, raised_at=NOW - minutes(50), id=9)
    site.guard.watch.place((lost, MEMORY))
    page = await site.ask("", "reader")
    assert page.says.index("The proxy uses") < page.says.index("Unknown: the source isn't available.")


@pytest.mark.parametrize(
    ("alerts", "mode", "title", "icon"),
    [
        ((), Mode.ACTING, "HubGuard", "hubguard.svg"),
        ((DISK,), Mode.ACTING, "(1) HubGuard", "hubguard-wait.svg"),
        ((DISK, MEMORY), Mode.ACTING, "(2) HubGuard", "hubguard-troubled.svg"),
        ((), Mode.HELD, "HubGuard", "hubguard-wait.svg"),
        ((), Mode.TROUBLED, "HubGuard", "hubguard-troubled.svg"),
        ((MEMORY,), Mode.STANDBY, "HubGuard", "hubguard.svg"),
    ],
)
async def test_the_tab_shows_the_worst(site: Site, alerts: Any, mode: Mode, title: str, icon: str) -> None:
    site.guard.watch.place(alerts)
    site.guard.change(mode=mode)
    page = await site.ask("", "reader")
    assert f"<title>{title}</title>" in page.text
    (shown,) = re.findall(r'rel="icon" type="image/svg\+xml" href="([^"?]+)', page.text)
    assert shown.endswith(f"/{icon}")
    assert (await site.ask(f"static/{icon}")).status == 200
    fragment = await site.ask("fragments/overview", "reader")
    assert fragment.headers["HubGuard-Badge"] == f"{title[1] if title[0] == '(' else 0} {icon}"


async def test_the_status_counts_alerts_by_when_to_act(site: Site) -> None:
    site.guard.watch.place((MEMORY, DISK, TOKENS, alert_of("HubSlow", raised=False)))
    assert (await site.ask("api/v1/status", "reader")).json["alerts"] == {"now": 1, "today": 1, "this_week": 1}
    site.guard.change(mode=Mode.STANDBY)
    assert (await site.ask("api/v1/status", "reader")).json["alerts"] is None


# -- words ----------------------------------------------------------------------------------------------------------


def test_every_source_severity_and_state_has_words() -> None:
    assert set(SIGNAL_SOURCE_WORDS) == set(SignalSource)
    assert set(SEVERITY_WORDS) == set(Severity)
    assert set(STATE_WORDS) == set(AlertState)


def test_every_rule_is_about_a_signal_with_a_chart() -> None:
    assert {rule.condition.signal for rule in RULES} <= set(SIGNALS)
    assert all(MISSED * signal.every_s < 200 for signal in SIGNALS.values())


@pytest.mark.parametrize(
    ("text", "parts"),
    [
        ("Run `ls -l`, then wait.", [(False, "Run "), (True, "ls -l"), (False, ", then wait.")]),
        ("`a` and `b`", [(True, "a"), (False, " and "), (True, "b")]),
        ("Run `ls`, don`t.", [(False, "Run "), (True, "ls"), (False, ", don`t.")]),
        ("", []),
    ],
)
def test_what_stands_between_backticks_is_code(text: str, parts: list[tuple[bool, str]]) -> None:
    assert code_parts(text) == parts


def test_a_forecast_without_an_end_says_so() -> None:
    assert left_evidence(TimeLeft(720, 540, None)) == "12 min, with 90 % confidence at least 9 min"
    assert left_evidence(TimeLeft(0, 0, 0)) == "none: it is at its limit"
