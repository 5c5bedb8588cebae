"""What the hub's own process reports of starts that fail, and that nothing else changes by it."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import pytest
from tornado.web import HTTPError

from hubguard.inhub.start_hook import LONGEST, watch_starts
from hubguard.inhub.tell import Teller

EVENTS = [
    {"type": "Normal", "reason": "Scheduled", "message": "fine"},
    {"type": "Warning", "reason": "Failed", "message": "ErrImagePull"},
    "nonsense",
]


@pytest.fixture
def told(monkeypatch: pytest.MonkeyPatch) -> list[tuple[str, Any]]:
    reports: list[tuple[str, Any]] = []
    monkeypatch.setattr(Teller, "begin", lambda self, path, report: reports.append((path, report)))
    return reports


class User:
    name = "ada"

    def __init__(self, fails: Exception | None = None, events: object = None) -> None:
        self.fails = fails
        self.spawners = {"gpu": SimpleNamespace(events=events)}

    async def spawn(self, server_name: str = "", options: Any = None, handler: Any = None) -> str:
        if self.fails is not None:
            raise self.fails
        return f"{server_name} {options}"


def kind() -> Any:
    return type("User", (User,), {"spawn": User.spawn})


async def test_a_start_that_works_returns_what_it_returned_and_nothing_is_told(told: list[Any]) -> None:
    users = kind()
    watch_starts(object(), users)
    assert await users().spawn("gpu", options=3) == "gpu 3"
    assert told == []


@pytest.mark.parametrize(
    ("error", "message", "refused"),
    [
        (TimeoutError("did not start in 300 seconds!"), "did not start in 300 seconds!; Failed: ErrImagePull", False),
        (HTTPError(500, "broken"), "broken; Failed: ErrImagePull", False),
        (HTTPError(429, "too many"), "too many; Failed: ErrImagePull", True),
        (RuntimeError("x" * 9999), "x" * LONGEST, False),
    ],
)
async def test_a_failed_start_is_told_with_its_error_and_raises_it_as_ever(
    told: list[Any], error: Exception, message: str, refused: bool
) -> None:
    users = kind()
    watch_starts(object(), users)
    with pytest.raises(type(error)) as raised:
        await users(error, EVENTS).spawn("gpu")
    assert raised.value is error
    what = {"error": type(error).__name__, "message": message, "refused": refused}
    assert told == [("api/v1/starts/failed", {"user": "ada", "server": "gpu", **what})]


async def test_watching_twice_tells_once_and_another_hub_takes_over(told: list[Any]) -> None:
    users, app = kind(), object()
    watch_starts(app, users)
    watch_starts(app, users)
    watch_starts(object(), users)
    with pytest.raises(ValueError, match="no"):
        await users(ValueError("no")).spawn("gpu")
    assert len(told) == 1


async def test_a_spawner_whose_events_cant_be_read_changes_nothing_for_the_user(told: list[Any]) -> None:
    users = kind()
    watch_starts(object(), users)
    with pytest.raises(ValueError, match="no"):
        await users(ValueError("no"), events=3).spawn("gpu")
    assert told == []
