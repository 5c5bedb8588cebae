"""What is remembered of the number of users, and what own deletions make of it."""

from __future__ import annotations

from hubguard.snapshot.decide.memory import Population


def test_own_deletions_lower_what_is_expected_to_nobody_and_never_below():
    remembered = Population(peak=5, earlier=8, shown=3)
    assert remembered.without(5) == Population(peak=0, earlier=3, shown=0)
    assert remembered.without(100) == Population(peak=0, earlier=0, shown=0)


def test_own_deletions_change_nothing_about_what_was_never_known():
    assert Population().without(3) == Population()
