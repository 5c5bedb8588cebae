"""What culling is limited to by the rights of the idle cullers whose place HubGuard takes."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass

from hubguard.model import Server, User


@dataclass(frozen=True, slots=True)
class Reach:
    """What at least one of some cullers could reach.

    ``ways`` has one entry for each culler. Each entry has, for every scope that is limited, the filters of that scope, such
    as ``group=students``: one filter of each scope has to fit. An entry without any reaches everything.
    """

    ways: tuple[tuple[tuple[str, ...], ...], ...]

    def covers(self, server: Server) -> bool | None:
        """Whether ``server`` is within it; None if that depends on groups that the hub doesn't show."""
        user, groups = server.user, server.groups
        return self._any(lambda filter_: _fits(filter_, user, groups, f"{user}/{server.name}"))

    def covers_user(self, user: User) -> bool | None:
        """Whether ``user`` is within it; None if that depends on groups that the hub doesn't show."""
        return self._any(lambda filter_: _fits(filter_, user.name, user.groups, None))

    def _any(self, fits: Callable[[str], bool | None]) -> bool | None:
        return _some(_every(_some(map(fits, filters)) for filters in way) for way in self.ways)


def _fits(filter_: str, user: str, groups: Iterable[str] | None, server: str | None) -> bool | None:
    kind, _, value = filter_.partition("=")
    if kind == "user":
        return value == user
    if kind == "server":
        return value == server
    return None if groups is None else value in groups


def _some(answers: Iterable[bool | None]) -> bool | None:
    known = list(answers)
    return True if True in known else None if None in known else False


def _every(answers: Iterable[bool | None]) -> bool | None:
    known = list(answers)
    return False if False in known else None if None in known else True
