"""Why starts fail: causes by what spawners say, who is hit, and how near the hub is to its exit."""

from __future__ import annotations

import pytest
from builders import NOW, minutes

from hubguard.watch.cli import starts_text
from hubguard.watch.decide.failed_starts import KEPT, FailedStart, FailedStarts, by_cause, cause_of_error, describe_row
from hubguard.watch.decide.metrics import Starts, start_signals, with_causes
from hubguard.words import as_json


def failed(user: str, cause: str = "timeout", ago_min: float = 1.0) -> FailedStart:
    return FailedStart(NOW - minutes(ago_min), user, "", cause, f"{cause} of {user}")


@pytest.mark.parametrize(
    ("error", "message", "cause"),
    [
        ("TimeoutError", "", "timeout"),
        ("TimeoutError", "Server at http://10.0.0.1:8888/ didn't respond in 30 seconds", "timeout"),
        ("TimeoutError", "pod did not start; FailedScheduling: 0/3 nodes are available", "unschedulable"),
        ("TimeoutError", "pod did not start; Failed: Error: ImagePullBackOff", "image-pull"),
        ("TimeoutError", "pod did not start; BackOff: restarting failed container", "crash"),
        ("RuntimeError", "Server process exited with exit code 137, OOMKilled", "out-of-memory"),
        ("RuntimeError", "The server exited with status 1", "crash"),
        ("FileNotFoundError", "[Errno 2] No such file or directory: 'singleuser'", "crash"),
        ("ValueError", "what?", "other"),
    ],
)
def test_the_closest_cause_that_the_message_names_counts(error: str, message: str, cause: str) -> None:
    assert cause_of_error(error, message, refused=False) == cause
    assert cause_of_error(error, message, refused=True) == "refused"


def test_causes_come_with_who_is_hit_and_since_when_the_most_frequent_first() -> None:
    causes = by_cause([failed("bob"), failed("ada", ago_min=9), failed("ada"), failed("eve", "crash")])
    assert [(one.cause, one.count, one.users) for one in causes] == [
        ("timeout", 3, ("ada", "bob")),
        ("crash", 1, ("eve",)),
    ]
    assert causes[0].since == NOW - minutes(9)


def test_only_the_last_half_hour_is_recent_and_only_so_many_are_kept() -> None:
    told = FailedStarts()
    told.add(failed("old", ago_min=31))
    for number in range(KEPT - 1):
        told.add(failed(str(number)))
    assert len(told.recent(NOW)) == KEPT - 1
    told.add(failed("one more"))
    told.add(failed("and another"))
    assert len(told.recent(NOW)) == KEPT
    assert told.recent(NOW)[0].user == "and another"


def test_a_cause_that_was_told_takes_the_place_of_an_unknown_one_and_adds_no_failure() -> None:
    told = FailedStarts()
    for one in (failed("a"), failed("b"), failed("c", "crash"), failed("d", "refused")):
        told.add(one)
    causes = told.causes_between(NOW - minutes(2), NOW)
    assert with_causes(Starts(60, 1, {"failed": 4.0}), causes).failed == {"failed": 1.0, "timeout": 2.0, "crash": 1.0}
    assert sum(with_causes(Starts(60, 1, {"failed": 2.0}), causes).failed.values()) == 2.0
    row = start_signals([Starts(60, 0, {"timeout": 2.0, "crash": 1.0, "refused": 4.0})], 60, 5)
    assert row["failed_starts_in_a_row"] == 3.0


@pytest.mark.parametrize(
    ("row", "limit", "sentence"),
    [
        (3.0, 5.0, "3 of 5 in a row failed: the hub exits at 5."),
        (3.0, None, "3 in a row failed."),
        (0.0, 5.0, ""),
        (None, None, ""),
    ],
)
def test_how_near_the_hub_is_to_its_exit(row: float | None, limit: float | None, sentence: str) -> None:
    values = {"failed_starts_in_a_row": row, "failed_starts_limit": limit}
    assert describe_row({name: value for name, value in values.items() if value is not None}) == sentence


def test_a_terminal_shows_causes_users_and_what_nobody_told_the_cause_of() -> None:
    some = (failed("bob"), failed("ada"))
    text = starts_text(
        {"sentence": "2 in a row failed.", "counted": 5, "causes": as_json(by_cause(some)), "failures": as_json(some)}
    )
    assert text.startswith("2 in a row failed.\n    2  timeout, since 2")
    assert ": ada, bob\n       timeout of bob\n    3  counted by the hub" in text
    assert starts_text({"sentence": "", "counted": 0, "causes": [], "failures": []}).startswith("No start failed")
    assert "is known" in starts_text({"sentence": "", "counted": None, "causes": [], "failures": []})
