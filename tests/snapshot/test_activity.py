from __future__ import annotations

from dataclasses import replace
from datetime import datetime, timedelta

from builders import NOW
from hypothesis import given
from hypothesis import strategies as st

from hubguard.cull.decide.judge import CullPolicy, judge
from hubguard.cull.model import Known, Standing
from hubguard.model import Reading, Route, Server, Source
from hubguard.snapshot.decide.activity import ALIVE, by_restore, follow, pending_from, trusted
from hubguard.snapshot.model import Evidence, Seen, Snapshot

LATEST_LOOK = timedelta(seconds=600)

KEY = ("ada", "")


def at(seconds: float) -> datetime:
    return NOW + timedelta(seconds=seconds)


def server(last_activity: float | None, started: float = -86400.0) -> Server:
    return Server("ada", "", True, None, at(started), None if last_activity is None else at(last_activity))


def snapshot(taken: float, hub: float | None, proxy: float | None, *, started: float = -86400.0) -> Snapshot:
    """What a look sees: the server's activity by the hub, and its route's by the proxy (None: no route)."""
    routes = {} if proxy is None else {"/user/ada": Route("/user/ada", "http://x", "ada", "", at(proxy))}
    readings = (Reading(Source.HUB_API, at(taken), True, 0.1), Reading(Source.PROXY, at(taken), True, 0.1))
    return Snapshot(at(taken), (server(hub, started),), readings, routes=routes)


def seen(active: float | None, **more) -> Seen:
    active_at = None if active is None else at(active)
    return Seen("ada", "", at(-86400), active_at, None if active is None else Evidence.PROXY, **more)


def after(known: Seen | None, look: Snapshot, *windows: tuple[float, float]) -> Seen:
    before = {} if known is None else {KEY: known}
    return follow(before, look, tuple((at(begins), at(ends)) for begins, ends in windows))[KEY]


def test_a_time_from_within_a_restore_is_no_use():
    found = after(seen(-500), snapshot(30, hub=-500, proxy=12), (10, 14))
    assert (found.active_at, found.evidence, found.readded_at) == (at(-500), Evidence.PROXY, at(12))


def test_the_same_without_a_window_is():
    assert after(seen(-500), snapshot(30, hub=-500, proxy=12)).active_at == at(12)


def test_the_hub_may_round_what_it_takes_over():
    assert after(seen(-500), snapshot(90, hub=14.9, proxy=12), (10, 14)).active_at == at(-500)
    assert after(seen(-500), snapshot(90, hub=15.1, proxy=12), (10, 14)).active_at == at(15.1)


def test_use_after_a_restore_counts_and_so_does_use_before_it():
    assert after(seen(-500), snapshot(30, hub=-500, proxy=16), (10, 14)).active_at == at(16)
    assert after(seen(-500), snapshot(30, hub=5, proxy=12), (10, 14)).active_at == at(5)


def test_without_a_record_from_before_it_nothing_is_discounted():
    assert after(None, snapshot(30, hub=None, proxy=12), (10, 14)).active_at == at(12)
    assert after(seen(None), snapshot(30, hub=12, proxy=12), (10, 14)).active_at == at(12)
    assert after(seen(11), snapshot(30, hub=-500, proxy=12), (10, 14)).active_at == at(12)


def test_a_start_within_a_restore_is_a_start():
    found = after(seen(-500), snapshot(30, hub=12, proxy=12, started=12), (10, 14))
    assert (found.active_at, found.started) == (at(12), at(12))


def test_what_was_discounted_once_is_no_use_even_where_the_window_is_forgotten():
    found = after(seen(-500), snapshot(30, hub=-500, proxy=12), (10, 14))
    assert after(found, snapshot(90, hub=12, proxy=12)).active_at == at(-500)


def test_of_a_second_loss_neither_time_counts():
    windows = ((10, 14), (3610, 3613))
    found = after(seen(-500), snapshot(30, hub=-500, proxy=12), *windows)
    # The hub hasn't taken over the second one yet.
    found = after(found, snapshot(3630, hub=12, proxy=3612), *windows)
    assert found.active_at == at(-500)
    assert after(found, snapshot(3690, hub=3612, proxy=3612), *windows).active_at == at(-500)


# deciding


POLICY = CullPolicy(idle_timeout_s=600, max_age_s=0)


def known(active: float | None, *windows: tuple[float, float], proxy: float | None = None) -> Known:
    return Known(
        active_at=None if active is None else at(active),
        proxy_activity=None if proxy is None else at(proxy),
        restores=tuple((at(begins), at(ends)) for begins, ends in windows),
    )


def test_a_server_is_due_by_its_own_record_and_not_by_when_its_route_came_back():
    verdict = judge(server(-20), POLICY, known(-700, (-30, -10), proxy=-20), NOW)
    assert (verdict.standing, verdict.idle_since) == (Standing.STOP, at(-700))
    assert judge(server(-20), POLICY, known(-700, proxy=-20), NOW).standing is Standing.KEEP


def test_use_since_keeps_it_whichever_of_them_knows():
    assert judge(server(-5), POLICY, known(-700, (-30, -10), proxy=-20), NOW).idle_since == at(-5)
    assert judge(server(-20), POLICY, known(-700, (-30, -10), proxy=-5), NOW).idle_since == at(-5)


def test_without_a_record_the_hubs_word_counts():
    assert judge(server(-20), POLICY, known(None, (-30, -10), proxy=-20), NOW).idle_since == at(-20)


offsets = st.integers(-2000, 0).map(float)
windows = st.lists(st.tuples(offsets, st.integers(0, 60)), max_size=4).map(
    lambda pairs: tuple((at(begins), at(begins + length)) for begins, length in sorted(pairs))
)


@given(
    hub=st.none() | offsets,
    started=offsets,
    proxy=st.none() | offsets,
    active=st.none() | offsets,
    restores=windows,
    limit=st.sampled_from([1, 60, 600]),
)
def test_discounting_never_goes_behind_the_record_and_touches_only_times_of_a_restore(
    hub, started, proxy, active, restores, limit
):
    policy = replace(POLICY, idle_timeout_s=limit)
    one = server(hub, started)
    without = known(active, proxy=proxy)
    plain, better = (judge(one, policy, k, NOW) for k in (without, replace(without, restores=restores)))
    assert better.idle_since <= plain.idle_since
    if better.idle_since == plain.idle_since:
        return
    assert active is not None
    assert better.idle_since >= at(active)
    if better.standing is Standing.STOP:
        assert NOW - at(active) >= timedelta(seconds=limit)
    a_second = timedelta(seconds=1)
    assert any(begins - a_second <= plain.idle_since <= ends + a_second for begins, ends in restores)
    assert not any(
        better.idle_since < at(told) and not by_restore(at(told), at(active), restores)
        for told in (hub, proxy, started)
        if told is not None
    )


@given(story=st.lists(st.tuples(offsets, offsets), min_size=1, max_size=8), restores=windows)
def test_a_record_never_goes_back_and_is_never_newer_than_without_discounting(story, restores):
    found = plain = seen(-2100)
    for hub, proxy in story:
        look = snapshot(0, hub, proxy)
        before, found = found, follow({KEY: found}, look, restores)[KEY]
        plain = follow({KEY: plain}, look)[KEY]
        assert before.active_at <= found.active_at <= plain.active_at


# which restores may be discounted


def test_a_restore_counts_where_a_look_was_made_shortly_before_and_goes_on_counting():
    window = (at(0), at(3))
    assert trusted((), [window], at(-60)) == (window,)
    assert trusted((), [window], None) == ()
    assert trusted((), [window], at(0) - LATEST_LOOK - timedelta(seconds=1)) == ()
    grown = (at(0), at(9))
    assert trusted((window,), [grown], None) == (grown,), "it is the same one, and has gone on"
    assert trusted((window,), [], at(-60)) == (), "what its owner has forgotten is"


# what hubs have suffered


def test_incident_a_proxy_that_was_wiped_once_an_hour_kept_idle_servers_alive_for_ever():
    """Any hub whose proxy is restarted again and again, as one that runs out of memory (many, from 2017 to 2024).

    Sequence: the proxy loses its table; the hub adds every route again; adding counts as traffic, the hub takes that over as
    activity, and every server looks used just now. Cause: the two can't be told apart by their times.
    Here: an hour's timeout, a loss every 50 minutes, looks once a minute. Whoever is idle is stopped when the hour is over,
    and whoever uses the server now and then isn't.
    """
    policy = CullPolicy(idle_timeout_s=3600, max_age_s=0)

    def stopped_after(use_every_s: int | None) -> int | None:
        hub = proxy = 0
        record = after(None, snapshot(0, 0, 0))
        restores: tuple[tuple[datetime, datetime], ...] = ()
        looked_at = at(0)
        for now in range(60, 12 * 3600, 60):
            if use_every_s and now % use_every_s == 0:
                proxy = now - 7
            if now % 3000 == 0:
                proxy = now - 5
                restores = trusted(restores, [*restores, (at(now - 7), at(now - 3))], looked_at)
            look = snapshot(now, hub, proxy)
            hub, looked_at = proxy, at(now)
            record = follow({KEY: record}, look, restores)[KEY]
            what = Known(active_at=record.active_at, proxy_activity=at(proxy), restores=restores)
            if judge(look.servers[0], policy, what, at(now)).standing is Standing.STOP:
                return now
        return None

    assert stopped_after(None) == 3600
    assert stopped_after(1800) is None


def test_only_a_whole_list_of_the_hubs_api_shows_what_is_pending():
    stopping = seen(-500, pending="stop", pending_since=at(-60))
    whole = snapshot(30, hub=-500, proxy=None)
    (shown,) = whole.servers
    starts = replace(whole, servers=(replace(shown, pending="spawn"),))
    api = Reading(Source.HUB_API, at(30), True, 0.1)
    found = after(stopping, replace(starts, readings=(api,)))
    assert (found.pending, found.pending_since) == ("spawn", at(30))
    assert after(stopping, replace(whole, readings=(api,))).pending is None
    for readings in ((), (replace(api, complete=False),), (replace(api, detail=ALIVE),)):
        found = after(stopping, replace(starts, readings=readings))
        assert (found.pending, found.pending_since) == ("stop", at(-60))


def test_a_restore_counts_from_a_little_before_it_began_to_a_little_after_it_ended():
    for proxy in (9, 10, 14, 15):
        assert after(seen(-500), snapshot(30, hub=-500, proxy=proxy), (10, 14)).active_at == at(-500), proxy
    for proxy in (8.9, 15.1):
        assert after(seen(-500), snapshot(30, hub=-500, proxy=proxy), (10, 14)).active_at == at(proxy), proxy


def test_a_hub_that_was_started_again_has_its_servers_pending_since_then_at_most():
    before, later, never = seen(0, pending_since=at(-7200)), seen(0, pending_since=at(60)), seen(0)
    known = {("a", ""): before, ("b", ""): later, ("c", ""): never}
    assert pending_from(known, None) == known
    after = pending_from(known, at(0))
    assert [one.pending_since for one in after.values()] == [at(0), at(60), None]
