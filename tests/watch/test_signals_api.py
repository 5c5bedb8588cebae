"""Signals over the API: what is measured, and how it was; what is kept joined with what is only in memory yet."""

from __future__ import annotations

from collections.abc import AsyncIterator
from datetime import timedelta

import pytest
from asked_site import Site, sites
from builders import NOW, minutes
from doubles.guard import guard_with, made_up
from doubles.watch import readings_of_each_kind

from hubguard.errors import HubGuardError
from hubguard.watch.decide.signals import SIGNALS
from hubguard.watch.model import Sample
from hubguard.watch.store.signals import SignalStore


@pytest.fixture
async def site() -> AsyncIterator[Site]:
    async with sites() as make:
        yield make(guard_with(made_up(3)))


async def test_every_signal_is_listed_with_what_was_read_last(site: Site):
    watch = site.guard.watch
    watch.place((), readings_of_each_kind())
    watch.history.add(NOW.timestamp() - 60, {"hub_latency_seconds": 0.2, "disk_free_share:/srv": 0.5})
    watch.history.add(NOW.timestamp(), {"hub_latency_seconds": 0.4, "disk_free_share:/scratch": 0.1})
    signals = {signal["name"]: signal for signal in (await site.ask("api/v1/signals", "reader")).json}
    assert list(signals) == list(SIGNALS)
    (newest,) = signals["hub_latency_seconds"]["newest"]
    assert newest == {"subject": "", "at": NOW.isoformat().replace("+00:00", "Z"), "value": 0.4}
    assert [each["subject"] for each in signals["disk_free_share"]["newest"]] == ["/scratch", "/srv"]
    assert signals["tokens"]["newest"] == []
    readable = {name: signals[name]["readable"] for name in ("hub_up", "database_up", "proxy_up")}
    assert readable == {"hub_up": True, "database_up": False, "proxy_up": None}


async def test_what_is_kept_is_joined_with_what_is_only_in_memory_yet(site: Site):
    begin = (NOW - minutes(2)).timestamp()
    kept = {begin + 10 * i: {"hub_latency_seconds": Sample(begin + 10 * i, 1, 2, 3)} for i in range(10)}
    SignalStore(site.guard.books.sync).keep_samples(10, kept)
    site.guard.watch.history.add(begin + 90, {"hub_latency_seconds": 7.0})
    site.guard.watch.history.add(begin + 100, {"hub_latency_seconds": 8.0})
    series = (await site.ask("api/v1/signals/hub_latency_seconds?since=2min", "reader")).json
    assert (series["step_s"], series["unit"]) == (10, "s")
    assert [sample["mean"] for sample in series["samples"]] == [*[2.0] * 9, 7.0, 8.0]
    assert series["samples"][0] == {"at": series["since"], "low": 1.0, "mean": 2.0, "high": 3.0}


async def test_the_step_grows_with_the_span(site: Site):
    for span, step_s in (("4h", 10), ("24h", 60), ("7d", 600), ("30d", 3600)):
        assert (await site.ask(f"api/v1/signals/hub_up?since={span}", "reader")).json["step_s"] == step_s


async def test_hours_in_memory_are_joined_too(site: Site):
    site.guard.watch.history.add((NOW - minutes(30)).timestamp(), {"users_total": 12.0})
    series = (await site.ask("api/v1/signals/users_total?since=60d", "reader")).json
    assert [sample["mean"] for sample in series["samples"]] == [12.0]


async def test_a_span_ends_where_it_is_asked_to(site: Site):
    for ago in (30, 20, 10):
        site.guard.watch.history.add((NOW - minutes(ago)).timestamp(), {"users_total": float(ago)})
    series = (await site.ask("api/v1/signals/users_total?since=25min&until=15min", "reader")).json
    assert [sample["mean"] for sample in series["samples"]] == [20.0]


@pytest.mark.parametrize(
    ("path", "status", "says"),
    [
        ("hub_latncy_seconds", 404, "Did you mean hub_latency_seconds?"),
        ("hub_up?since=soon", 400, "since: 'soon' is none of a date"),
        ("hub_up?until=1h&since=30min", 400, "since: must be before until"),
        ("hub_up?since=0001-01-01", 400, "since: must be within 3,660 days of now"),
        ("hub_up?subject=%00", 400, "subject: must not contain control characters"),
        ("disk_free_share", 400, "subject: disk_free_share has one series for each folder: /srv"),
    ],
)
async def test_what_cant_be_answered_is_refused_in_one_line(site: Site, path: str, status: int, says: str):
    site.guard.watch.history.add(NOW.timestamp(), {"disk_free_share:/srv": 0.5})
    answer = await site.ask(f"api/v1/signals/{path}", "reader")
    assert answer.status == status
    assert says in answer.json["message"]


# -- silences -------------------------------------------------------------------------------------------------------


async def test_a_silence_is_in_force_until_it_is_ended(site: Site):
    watch = site.guard.watch
    made = await watch.silence("DiskLow", "/srv", NOW + minutes(60), "ann", "being enlarged")
    assert await watch.silences() == (made,)
    await watch.end_silence(made.id, "bob")
    assert await watch.silences() == ()


@pytest.mark.parametrize(
    ("rule", "until", "says"),
    [
        ("DiskLo", NOW + minutes(60), "Nothing silenced: no alert 'DiskLo'. Did you mean DiskLow?"),
        ("DiskLow", NOW, "must be in the future"),
        ("", NOW + timedelta(days=400), "within a year"),
    ],
)
async def test_a_silence_that_makes_no_sense_is_refused(site: Site, rule: str, until: object, says: str):
    with pytest.raises(HubGuardError, match=says.replace("?", r"\?")):
        await site.guard.watch.silence(rule, None, until, "ann", "")  # type: ignore[arg-type]
    assert await site.guard.watch.silences() == ()


async def test_silences_over_the_api_are_made_listed_and_ended(site: Site):
    made = await site.post("api/v1/silences", "owner", {"rule": "DiskLow", "for_s": 7200, "why": "being enlarged"})
    assert made.status == 200
    (listed,) = (await site.ask("api/v1/silences", "reader")).json
    assert (listed["rule"], listed["subject"], listed["actor"]) == ("DiskLow", None, "ann")
    assert (await site.ask("api/v1/silences/1", "reader", method="DELETE")).status == 403
    assert (await site.ask("api/v1/silences/1", "actor", method="DELETE")).status in {200, 204}
    assert (await site.ask("api/v1/silences", "reader")).json == []
    for number in ("1", "2"):
        gone = await site.ask(f"api/v1/silences/{number}", "actor", method="DELETE")
        assert (gone.status, "is in force" in gone.json["message"]) == (404, True)


@pytest.mark.parametrize(
    ("body", "says"),
    [
        ({"rule": "DiskLo", "for_s": 60}, "Nothing silenced: no alert 'DiskLo'. Did you mean DiskLow?"),
        ({"rule": "DiskLow"}, "until: give either this or for_s"),
        ({"rule": "DiskLow", "for_s": 60, "until": "2027-01-01"}, "until: give either this or for_s"),
        (
            {"rule": "DiskLow", "until": "2020-01-01"},
            "Nothing silenced: the time must be in the future, and within a year.",
        ),
        ({"rule": "DiskLow", "for_s": 1e9}, "for_s: must be a number above 0"),
    ],
)
async def test_a_silence_over_the_api_that_makes_no_sense_is_refused(site: Site, body: object, says: str):
    answer = await site.post("api/v1/silences", "actor", body)
    assert answer.status == 400
    assert answer.json["message"].startswith(says)
    assert await site.guard.watch.silences() == ()
