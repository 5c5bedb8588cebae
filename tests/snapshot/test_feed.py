"""The hub's feed of activity at its limits: what is waited for, when it was taken over, and when a wait is too long."""

from __future__ import annotations

from datetime import datetime, timedelta, timezone

import pytest

from hubguard.model import Route, Server
from hubguard.snapshot.decide.feed import Feed, limit_s

NOW = datetime(2026, 3, 1, 12, 0, tzinfo=timezone.utc)
INTERVAL_S, LIMIT_S = 60.0, 150.0


def at(seconds: float) -> datetime:
    return NOW + timedelta(seconds=seconds)


def looked(feed: Feed, hub: float | None, proxy: float | None, passed_s: float = 0.0, users: str = "a") -> Feed:
    """The feed after a look at a server for each of ``users``: its activity by the hub and by the proxy."""
    seen_at = None if hub is None else at(hub)
    servers = tuple(Server(user, "", True, None, at(-9000), seen_at) for user in users)
    routes = {f"/user/{user}": Route(f"/user/{user}", "", user, "", at(proxy)) for user in users if proxy is not None}
    return feed.looked(servers, routes, at(feed.clock_s + passed_s), passed_s, INTERVAL_S)


def test_a_hub_has_two_of_its_intervals_and_half_a_minute():
    assert (limit_s(60.0), limit_s(300.0)) == (150.0, 630.0)


def test_a_feed_is_frozen_as_soon_as_the_wait_has_reached_its_limit():
    waits = looked(Feed(), hub=-100, proxy=0)
    late = looked(waits, hub=-100, proxy=0, passed_s=LIMIT_S - 0.1)
    assert (late.frozen_since, late.missed) == (None, 0)
    frozen = looked(late, hub=-100, proxy=0, passed_s=0.1)
    assert (frozen.frozen_since, frozen.missed) == (at(0), 1)


@pytest.mark.parametrize(("ahead_s", "awaited"), [(0.0, 0), (1.0, 0), (1.001, 1)])
def test_a_time_that_the_hub_lacks_by_no_more_than_a_second_is_not_waited_for(ahead_s: float, awaited: int):
    assert len(looked(Feed(), hub=0, proxy=ahead_s).awaited) == awaited


@pytest.mark.parametrize(("hub", "taken_s"), [(0.0, 7.0), (-1.0, 7.0), (-1.001, None)])
def test_what_the_hub_has_but_for_a_second_was_taken_over(hub: float, taken_s: float | None):
    waits = looked(Feed(), hub=-100, proxy=0)
    (one,) = looked(waits, hub=hub, proxy=0, passed_s=7.0).awaited
    assert one.taken_s == taken_s


@pytest.mark.parametrize(("proxy", "stamp", "since_s"), [(50.0, 0, 0.0), (-1.0, 0, 0.0), (-1.001, -1.001, 7.0)])
def test_only_a_route_whose_time_went_back_by_more_than_a_second_is_waited_for_anew(
    proxy: float, stamp: float, since_s: float
):
    waits = looked(Feed(), hub=-100, proxy=0)
    (one,) = looked(waits, hub=-100, proxy=proxy, passed_s=7.0).awaited
    assert (one.stamp, one.since_s) == (at(stamp), since_s)


def test_what_was_taken_over_is_remembered_for_as_long_as_a_wait_may_last():
    taken = looked(looked(Feed(), hub=-100, proxy=0), hub=0, proxy=0, passed_s=7.0)
    assert len(looked(taken, hub=0, proxy=0, passed_s=LIMIT_S - 0.1).awaited) == 1
    assert looked(taken, hub=0, proxy=0, passed_s=LIMIT_S).awaited == ()


def test_after_an_outage_the_whole_wait_begins_again():
    waits = looked(looked(Feed(), hub=-100, proxy=0), hub=-100, proxy=0, passed_s=100.0).started_anew()
    assert looked(waits, hub=-100, proxy=0, passed_s=LIMIT_S - 1).frozen_since is None
    assert looked(waits, hub=-100, proxy=0, passed_s=LIMIT_S).frozen_since == at(0)


def test_an_empty_table_ends_no_freeze_and_one_that_the_hub_follows_does_with_the_second_look():
    frozen = looked(looked(Feed(), hub=-100, proxy=0), hub=-100, proxy=0, passed_s=LIMIT_S)
    blind = looked(looked(frozen, hub=-100, proxy=None), hub=-100, proxy=None)
    assert (blind.frozen_since, blind.clean) == (at(0), 0)
    once = looked(frozen, hub=0, proxy=0, passed_s=60.0)
    assert (once.frozen_since, once.clean) == (at(0), 1)
    assert looked(once, hub=0, proxy=0, passed_s=60.0).frozen_since is None


def test_at_most_two_hundred_runs_are_waited_for():
    assert len(looked(Feed(), hub=-100, proxy=0, users="".join(chr(0x4E00 + n) for n in range(201))).awaited) == 200
