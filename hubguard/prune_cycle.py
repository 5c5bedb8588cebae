"""Pruning again and again: reading, planning, carrying out, and what is remembered between."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

from hubguard.act.lease import Books, LeaseKeeper
from hubguard.clients.clock import Clock
from hubguard.clients.hub_api import HubAPI
from hubguard.clients.hub_db import HubDB
from hubguard.config import Settings
from hubguard.cycle import Cycles
from hubguard.errors import HubGuardError
from hubguard.prune import PruneItem, PrunePlan, PruneRun, PruneVerdict, StaleCriteria, UsersReport


@dataclass(frozen=True, slots=True)
class Told:
    """What the include tells of the hub's config. ``named`` are the users it names, None where that isn't known.

    ``classes`` are the full names of the spawner's class and those it is made of, nearest first; empty: not known.
    ``settings`` are those of its settings that decide what becomes of storage. ``overrides``: it has code of its own for
    what is done when a user is deleted; None: not known.
    """

    named: frozenset[str] | None = None
    classes: tuple[str, ...] = ()
    settings: Mapping[str, object] = field(default_factory=dict, hash=False)
    overrides: bool | None = None

    @classmethod
    def from_dict(cls, told: Mapping[str, Any] | None) -> Told:
        """As the include has written it; what it didn't tell isn't known."""
        told = told or {}
        named = told.get("named")
        return cls(
            None if named is None else frozenset(map(str, named)),
            tuple(map(str, told.get("classes") or ())),
            dict(told.get("settings") or {}),
            told.get("overrides"),
        )


class PruneCycles:
    """Implements PrunePort for one guard.

    ``books`` gives the journal, ``keeper`` the lease; both raise HubGuardError with why, where they can't be used now.
    ``armed`` is what the settings say about acting (None: people do), ``acting`` whether HubGuard may act by itself.
    """

    def __init__(
        self,
        settings: Settings,
        hub: HubAPI,
        database: HubDB | None,
        cycles: Cycles,
        clock: Clock,
        chance: Callable[[], float],
        *,
        books: Callable[[], Books],
        keeper: Callable[[], LeaseKeeper],
        armed: Callable[[], bool | None],
        acting: Callable[[], bool],
        told: Told | None = None,
    ) -> None:
        self._settings = settings
        self._hub = hub
        self._database = database
        self._cycles = cycles
        self._clock = clock
        self._chance = chance
        self._books = books
        self._keeper = keeper
        self._armed = armed
        self._acting = acting
        self._told = told or Told()

    def default_criteria(self) -> StaleCriteria:
        """See PrunePort."""
        prune = self._settings.prune
        return StaleCriteria(
            inactive_for_s=prune.inactive_for_s,
            never_active_for_s=prune.never_active_for_s,
            groups=tuple(prune.groups),
            roles=tuple(prune.roles),
            names=tuple(prune.names),
        )

    async def users(self, criteria: StaleCriteria | None = None, *, caller: str | None = None) -> UsersReport:
        """See PrunePort."""
        raise HubGuardError("Users can't be read yet.")

    async def user(
        self, name: str, criteria: StaleCriteria | None = None, *, caller: str | None = None
    ) -> PruneVerdict | None:
        """See PrunePort."""
        raise HubGuardError("Users can't be read yet.")

    async def plan(self, criteria: StaleCriteria, actor: str, *, caller: str | None = None) -> PrunePlan:
        """See PrunePort."""
        raise HubGuardError("Plans can't be made yet.")

    async def runs(self, *, limit: int = 100) -> tuple[PruneRun, ...]:
        """See PrunePort."""
        return ()

    async def run(self, digest: str) -> PruneRun:
        """See PrunePort."""
        raise HubGuardError(f"There is no plan {digest[:12]}.")

    async def plan_of(self, digest: str) -> PrunePlan:
        """See PrunePort."""
        raise HubGuardError(f"There is no plan {digest[:12]}.")

    async def items(
        self, digest: str, *, state: str | None = None, offset: int = 0, limit: int | None = None
    ) -> tuple[PruneItem, ...]:
        """See PrunePort."""
        raise HubGuardError(f"There is no plan {digest[:12]}.")

    async def apply(
        self, digest: str, count: int, actor: str, why: str, *, acknowledged: tuple[str, ...] = ()
    ) -> PruneRun:
        """See PrunePort."""
        raise HubGuardError(f"There is no plan {digest[:12]}.")

    async def pause(self, digest: str, actor: str, why: str) -> PruneRun:
        """See PrunePort."""
        raise HubGuardError(f"There is no plan {digest[:12]}.")

    async def resume(self, digest: str, actor: str, why: str) -> PruneRun:
        """See PrunePort."""
        raise HubGuardError(f"There is no plan {digest[:12]}.")

    async def cancel(self, digest: str, actor: str, why: str) -> PruneRun:
        """See PrunePort."""
        raise HubGuardError(f"There is no plan {digest[:12]}.")

    async def restore(
        self, digest: str, count: int, actor: str, why: str, *, token: str, sha256: str | None = None
    ) -> PruneRun:
        """See PrunePort."""
        raise HubGuardError(f"There is no plan {digest[:12]}.")
