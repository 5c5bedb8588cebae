"""What is remembered of the number of users, and what own deletions make of it."""

from __future__ import annotations

from datetime import datetime, timedelta, timezone

from hubguard.snapshot.decide.memory import Population

NOW = datetime(2026, 3, 1, 12, 0, tzinfo=timezone.utc)


def test_own_deletions_lower_what_is_expected_to_nobody_and_never_below():
    remembered = Population(peak=5, earlier=8, shown=3)
    assert remembered.without(5) == Population(peak=0, earlier=3, shown=0)
    assert remembered.without(100) == Population(peak=0, earlier=0, shown=0)


def test_own_deletions_change_nothing_about_what_was_never_known():
    assert Population().without(3) == Population()


def test_a_fall_counts_from_one_whole_hour_to_the_next():
    high = Population().followed(500, NOW)
    assert (high.reference, high.turned_at) == (500, NOW)
    almost = high.followed(100, NOW + timedelta(seconds=3599.9))
    assert (almost.peak, almost.earlier, almost.turned_at) == (500, None, NOW)
    turned = high.followed(100, NOW + timedelta(hours=1))
    assert (turned.peak, turned.earlier, turned.turned_at) == (100, 500, NOW + timedelta(hours=1))
    assert turned.followed(100, NOW + timedelta(hours=2)).reference == 100


def test_users_are_a_fall_from_ten_who_are_gone_and_from_their_share():
    assert not Population(peak=50).has_fallen(41, 0.1)
    assert Population(peak=50).has_fallen(40, 0.1)
    assert not Population(peak=1000).has_fallen(901, 0.1)
    assert Population(peak=1000).has_fallen(900, 0.1)
    assert not Population().has_fallen(0, 0.1)
