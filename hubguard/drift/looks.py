"""Looks at all sources again and again, follows what differs, and remembers it across restarts."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import replace
from datetime import datetime, timedelta
from typing import Any

from hubguard.drift.decide import follow
from hubguard.drift.decide.narrowed import narrowed
from hubguard.drift.model import Drift, DriftKind, DriftReport, World
from hubguard.drift.observe import WorldObserver
from hubguard.drift.store import REMEMBERED, DriftMemory
from hubguard.errors import HubGuardError, JournalError, Unrecordable
from hubguard.journal.asynchronous import AsyncJournal
from hubguard.journal.model import Event
from hubguard.model import FindingKind, Key, Source
from hubguard.pacing.clock import Clock
from hubguard.proxy.table import ExpectedRoutes
from hubguard.snapshot.cycle import NEWS, Snapshots

log = logging.getLogger(__name__)

DRIFT = "drift"
"""The journal's key for what drift remembers."""

REMEMBER_EVERY_S = 60.0
"""Seconds between two writes of what is only suspected, which comes and goes with each look on a busy hub. What is raised or
ends is written at once. A count that moved is no reason to write."""

CLEARED_FOR_S = 3600.0
"""Seconds for which a resolved difference stays in the report."""

OUTLIVED_FOR_S = 86400.0
"""Seconds for which the hub's report counts that a backend outlived its server, unless a look shows it gone before."""

LONGEST_DETAIL = 500
"""Maximum characters of the hub's report on such a backend."""


class Looks:
    """Looks for drift, one look at a time.

    ``report`` is what the last look found, None before the first. ``drifts`` are all that are followed, more than are shown.
    """

    def __init__(
        self,
        observer: WorldObserver,
        snapshots: Snapshots,
        table: ExpectedRoutes,
        clock: Clock,
        policy: follow.DriftPolicy,
    ) -> None:
        self.report: DriftReport | None = None
        self.drifts: tuple[Drift, ...] = ()
        self._observer = observer
        self._snapshots = snapshots
        self._table = table
        self._clock = clock
        self._policy = policy
        self._looking = asyncio.Lock()
        self._begun = False
        self._unjournaled: list[tuple[Event, datetime, Drift]] = []
        self._cleared: tuple[Drift, ...] = ()
        self._ghosts: dict[tuple[str, str, datetime | None], datetime] = {}
        self._outlived: dict[Key, tuple[datetime, str]] = {}
        self._repaired: set[str] = set()
        self._remembered: tuple[Any, Any] | None = None
        self._remembered_at_s = float("-inf")

    @property
    def complete(self) -> bool:
        """Whether the hub answered the last look in full. Without that, nothing is decided."""
        of_hub = self.report.world.reading(Source.HUB_API) if self.report is not None else None
        return of_hub is not None and of_hub.complete

    @property
    def undecided(self) -> bool:
        """Whether a difference is suspected, or raised and missing from the last look. What is pending takes minutes."""
        return any(
            drift.missed or (drift.raised_at is None and drift.kind is not DriftKind.PENDING_STUCK)
            for drift in self.drifts
        )

    @property
    def server_count(self) -> int:
        """How many servers the hub has, as of the last look; 0 while unknown."""
        return len(self.report.world.servers or ()) if self.report is not None else 0

    def begin_anew(self) -> None:
        """The next look first reads what the journal remembers: another guard may have looked since."""
        self._begun = False

    async def begin(self, journal: AsyncJournal) -> None:
        """Continue from what another guard, or this one before a restart, had seen. Raises JournalError."""
        if self._begun:
            return
        recalled = await journal.recall(DRIFT)
        if recalled is not None:
            memory = DriftMemory.from_dict(recalled[0], self._clock.now())
            self.drifts, self._ghosts = memory.drifts, dict(memory.ghosts)
            self._outlived = {**memory.outlived, **self._outlived}
        # What that guard hadn't raised will be raised, and journaled, again.
        self._unjournaled = []
        self._remembered = None
        self._begun = True

    async def look(self, journal: AsyncJournal) -> DriftReport:
        """Look at all sources. ``report`` is what that found, and the journal gets what is new. Raises JournalError."""
        async with self._looking:
            await self.begin(journal)
            world = self._with_what_we_know(await self._observer.look(self._snapshots.last, self._keys_to_ask()))
            before = {drift.key: drift for drift in self.drifts}
            self.drifts, ended = follow.follow(self.drifts, world, self._policy, self._repaired)
            self._repaired &= {drift.id for drift in self.drifts}
            self._table.learn(world.servers, world.routes, (world.hub_path, *(world.prefixes or {}).values()))
            self._note_changes(world.at, before, ended)
            self._forget(world)
            shown = follow.shown(self.drifts)
            self.report = DriftReport(
                world=world,
                drifts=shown,
                narrowed=narrowed(world),
                cleared=self._cleared,
                used_at=self._snapshots.used_at,
            )
            # The journal comes last: the report doesn't depend on it.
            await self._journal_changes(journal)
            await self._remember(journal, world.at)
            return self.report

    async def look_at(self, keys: Sequence[Key]) -> tuple[Drift, ...]:
        """The differences of these servers at this moment, or those of all routes if ``keys`` is empty.

        Earlier looks don't count. Raises HubGuardError if a source that could show a difference can't be read in full.
        """
        world = self._with_what_we_know(
            await self._observer.look(self._snapshots.last, keys, only=bool(keys), routes_only=not keys)
        )
        # A difference that isn't found counts as resolved, so each source that could show it must be complete.
        needed = (Source.HUB_API, Source.BACKEND) if keys else (Source.HUB_API, Source.PROXY, Source.HUB_ROUTES)
        incomplete = [reading for reading in world.readings if reading.source in needed and not reading.complete]
        if incomplete:
            raise HubGuardError(f"The current state is unknown: {incomplete[0].detail}")
        if world.servers is None or (world.routes is None and not keys):
            raise HubGuardError("The current state is unknown: a source gave no answer.")
        once = replace(self._policy, sightings=1, for_s=0.0, clear_after=1)
        # One look can't show for how long something has been pending.
        pending = [drift for drift in self.drifts if drift.kind is DriftKind.PENDING_STUCK]
        return follow.follow(pending, world, once)[0]

    def note_outlived(self, user: str, server: str, detail: str) -> None:
        """Note the hub's report that a backend outlived its server's stop."""
        self._outlived[user, server] = (self._clock.now(), detail[:LONGEST_DETAIL])
        while len(self._outlived) > REMEMBERED:
            del self._outlived[min(self._outlived, key=lambda key: self._outlived[key][0])]

    def note_repaired(self, ids: Iterable[str]) -> None:
        """Note that a re-read has shown these differences to be repaired: the next look that misses them resolves them."""
        self._repaired.update(ids)

    def note_ghost(self, user: str, server: str, started: datetime | None) -> None:
        """Note that a stop, which the hub took, didn't end this run."""
        self._ghosts[user, server, started] = self._clock.now()

    # -- one look -------------------------------------------------------------------------------------------------

    def _keys_to_ask(self) -> set[Key]:
        """The servers about which the hub must be asked, whatever the other sources say."""
        of_drifts = {(drift.user, drift.server or "") for drift in self.drifts if drift.user is not None}
        return of_drifts | self._outlived.keys()

    def _with_what_we_know(self, world: World) -> World:
        frozen = [finding.since for finding in self._snapshots.findings if finding.kind is FindingKind.ACTIVITY_FROZEN]
        return replace(
            world,
            ghosts=frozenset(self._ghosts) | self._snapshots.came_back,
            outlived=dict(self._outlived),
            frozen_since=min(frozen, default=None),
            pending_from=self._snapshots.clock_from,
        )

    def _forget(self, world: World) -> None:
        """Drop what no longer matters: ghosts of runs that have ended, and old or disproved reports by the hub."""
        horizon = world.at - timedelta(seconds=OUTLIVED_FOR_S)
        self._outlived = {
            key: (at, detail)
            for key, (at, detail) in self._outlived.items()
            if at > horizon and not _is_gone(world, key, at)
        }
        if world.servers is not None:
            runs = {server.run for server in world.servers.values()}
            keys = {(drift.user, drift.server) for drift in self.drifts}
            self._ghosts = {
                run: at for run, at in self._ghosts.items() if run in runs or (run[0], run[1]) in keys or at > horizon
            }

    # -- the journal ----------------------------------------------------------------------------------------------

    def _note_changes(self, now: datetime, before: Mapping[Any, Drift], ended: tuple[Drift, ...]) -> None:
        raised = [
            drift
            for drift in self.drifts
            if drift.raised_at is not None and ((earlier := before.get(drift.key)) is None or earlier.raised_at is None)
        ]
        resolved = [drift for drift in ended if drift.raised_at is not None]
        self._unjournaled += [(Event.FINDING, now, drift) for drift in raised]
        self._unjournaled += [(Event.CLEARED, now, drift) for drift in resolved]
        horizon = now - timedelta(seconds=CLEARED_FOR_S)
        recent = tuple(drift for drift in (*resolved, *self._cleared) if drift.seen_at > horizon)
        self._cleared = recent[:REMEMBERED]

    async def _journal_changes(self, journal: AsyncJournal) -> None:
        """Write what was raised and resolved: the first of each look one by one, the rest as counts.

        What the journal doesn't take now is written after the next look.
        """
        while self._unjournaled:
            event, at, _ = self._unjournaled[0]
            together = [drift for other, then, drift in self._unjournaled if (other, then) == (event, at)]
            try:
                for drift in together[:NEWS]:
                    await _journal(journal, event, at, drift)
                    self._unjournaled.remove((event, at, drift))
                if rest := [drift.kind.value for drift in together[NEWS:]]:
                    counts = ", ".join(f"{rest.count(kind):,} {kind}" for kind in sorted(set(rest)))
                    await journal.note(event, "hubguard", 0, at, f"and more at once: {counts}")
            except JournalError as error:
                log.warning("%d differences aren't in the journal yet: %s", len(self._unjournaled), error)
                del self._unjournaled[:-REMEMBERED]
                return
            self._unjournaled = [entry for entry in self._unjournaled if entry[:2] != (event, at)]

    async def _remember(self, journal: AsyncJournal, now: datetime) -> None:
        """Write what must survive a restart. Raises JournalError."""
        kept = self.drifts[:REMEMBERED]
        ghosts = list(self._ghosts.items())[-REMEMBERED:]
        weighty = (
            [(drift.key, drift.started, drift.raised_at) for drift in kept if drift.raised_at is not None],
            ghosts,
            sorted((key, at) for key, (at, _) in self._outlived.items()),
        )
        passing = [(drift.key, drift.started, drift.since) for drift in kept if drift.raised_at is None]
        now_s = self._clock.monotonic_s()
        recently = now_s - self._remembered_at_s < REMEMBER_EVERY_S
        if (
            self._remembered is not None
            and self._remembered[0] == weighty
            and (recently or self._remembered[1] == passing)
        ):
            return
        value = DriftMemory(kept, dict(ghosts), self._outlived).to_dict()
        await journal.remember(DRIFT, value, now)
        self._remembered, self._remembered_at_s = (weighty, passing), now_s


async def _journal(journal: AsyncJournal, event: Event, at: datetime, drift: Drift) -> None:
    """Write it, with the names of user and server if the journal can hold them. Raises JournalError."""
    line = in_a_line(drift)
    try:
        await journal.note(event, "hubguard", 0, at, line, user=drift.user, server=drift.server)
    except Unrecordable:
        await journal.note(event, "hubguard", 0, at, line)


def in_a_line(drift: Drift) -> str:
    """``route-missing: ann/work: expected …; observed …``, for the journal and errors."""
    about = "/".join(part for part in (drift.user, drift.server) if part) or drift.subject or "the hub"
    return f"{drift.kind.value}: {about}: expected {drift.expected}; observed {drift.observed}"


def _is_gone(world: World, key: Key, reported_at: datetime) -> bool:
    """Whether a look after ``reported_at`` shows that what outlived its server is gone, or is that server again."""
    of_hub, of_backends = world.reading(Source.HUB_API), world.reading(Source.BACKEND)
    server = None if world.servers is None or key in world.unsure else world.servers.get(key)
    if of_hub is not None and of_hub.complete and of_hub.at > reported_at and server is not None and server.ready:
        return True
    if of_backends is None or not of_backends.complete or not world.whole or of_backends.at <= reported_at:
        return False
    return not any(backend.key == key and backend.alive is not False for backend in world.backends or ())
