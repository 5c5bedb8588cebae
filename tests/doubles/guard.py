"""Doubles for the pages' tests: a guard with made-up servers, and logins that no hub has to vouch for."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Sequence
from dataclasses import asdict, replace
from datetime import datetime, timedelta
from types import SimpleNamespace
from typing import Any, TypeVar, cast

import sqlalchemy as sa
from assembled import assembled
from builders import NOW, minutes
from doubles.drift import PlacedDrifts
from doubles.hub import MemoryHub
from doubles.prune import FakePruning
from doubles.watch import PlacedWatch
from inline_journal import InlineJournal
from tornado.web import RequestHandler
from virtual_time import VirtualClock

from hubguard import config
from hubguard.cull.decide.judge import CullPolicy, judge_all
from hubguard.cull.decide.judge import plan as plan_cull
from hubguard.cull.model import CycleReport, Known, UserVerdict
from hubguard.errors import ConfigError, HubUnreachable
from hubguard.guard import Guard
from hubguard.journal import tables
from hubguard.journal.entries import add_entry
from hubguard.journal.model import Event, Exemption, Failures, Lease, Stance
from hubguard.model import Action, Outcome, OutcomeKind, Reading, Server, Source
from hubguard.pacing.budget import Budget
from hubguard.pacing.model import BudgetUse
from hubguard.snapshot.model import Brake, BrakeReason, Snapshot
from hubguard.status import HandoverStatus, Mode
from hubguard.web.auth import Caller

T = TypeVar("T")

POLICY = CullPolicy(idle_timeout_s=7200, max_age_s=0, admin_servers=False)

LEASE = Lease("hub-1:4711", "http://127.0.0.1:8080", 3, 0.0, NOW - minutes(60), NOW + timedelta(seconds=20))
WRONG = ConfigError("HubGuardCull.idle_timeout_s", "must be at least 0, not -5")
BRAKE = Brake(
    BrakeReason.INCOMPLETE,
    NOW - minutes(2),
    "the server list is incomplete: page 3 of 7 didn't come",
    "It ends by itself with the next complete list.",
)
STANCES = {
    Mode.OBSERVING: Stance(),
    Mode.HELD: Stance(armed=True, held=True, held_by="ann", held_at=NOW, held_why="exam until 5 pm"),
}
"""What people have set in a mode that depends on it; else HubGuard is armed."""


def made_up(count: int) -> tuple[Server, ...]:
    """Servers of all kinds, idle between nothing and four hours."""
    servers = []
    for i in range(count):
        name = "gpu" if i % 7 == 3 else ""
        servers.append(
            Server(
                user=f"student-{i:05d}",
                name=name,
                ready=i % 11 != 5,
                pending="spawn" if i % 11 == 5 else None,
                started=NOW - minutes(300 + i % 500),
                last_activity=None if i % 13 == 7 else NOW - minutes(i * 37 % 240),
                admin=i % 17 == 2,
            )
        )
    return tuple(sorted(servers, key=lambda server: server.key))


def report_of(
    servers: Sequence[Server],
    *,
    policy: CullPolicy = POLICY,
    incomplete: str = "",
    outcomes: Sequence[Outcome] = (),
    failures: dict[Any, Failures] | None = None,
    skipped_why: str = "",
    users: Sequence[UserVerdict] = (),
) -> CycleReport:
    """A cycle over ``servers`` a minute before NOW; ``outcomes`` are those of the first planned actions."""
    at = NOW - minutes(1)
    reading = Reading(Source.HUB_API, at, not incomplete, 0.25, incomplete)
    known = {run: Known(failures=failed) for run, failed in (failures or {}).items()}
    verdicts = judge_all(servers, policy, known, NOW)
    plan = plan_cull(verdicts, policy, NOW, users)
    done: tuple[tuple[Action, Outcome], ...] = tuple(zip(plan.actions, outcomes, strict=False))
    snapshot = Snapshot(at, tuple(servers), (reading,))
    return CycleReport(at, at + timedelta(seconds=3), snapshot, verdicts, plan, done, skipped_why, tuple(users))


class HurriedClock(VirtualClock):
    """Whoever waits by it has waited: nobody runs it in a test of pages, where real requests come in between."""

    async def sleep(self, seconds: float) -> None:
        self._elapsed_s += max(0.0, seconds)
        await asyncio.sleep(0)


class PlacedJournal(InlineJournal):
    """A journal in memory that raises what ``fails`` is set to."""

    fails: Exception | None = None

    async def call(self, function: Callable[..., T], *args: Any, **kwargs: Any) -> T:
        if self.fails:
            raise self.fails
        return await super().call(function, *args, **kwargs)

    def check(self) -> None:
        if self.fails:
            raise self.fails


class PlacedGuard(Guard):
    """The guard itself, in charge at NOW, over a hub and a journal in memory.

    A test places what it would have learned: :meth:`change`, and in the hub, the journal and the parts. Its parts do only
    what they are asked to.
    """

    def __init__(self, report: CycleReport, policy: CullPolicy) -> None:
        self.clock = HurriedClock(NOW)
        self.hub = MemoryHub(clock=self.clock)
        self.books = PlacedJournal()
        made = assembled(
            config.load(environ={}), self.hub, Budget(rate=1000, burst=1000, concurrency=10, clock=self.clock),
            self.books, self.clock,
        )  # fmt: skip
        parts: Any = SimpleNamespace(
            culling=made.parts.culling,
            drifts=PlacedDrifts(self.books),
            proxy=None,
            pruning=FakePruning(),
            watch=PlacedWatch(made.mandate, self.clock),
            notices=None,
        )
        super().__init__(made.settings, made.mandate, made.snapshots, parts, made._facts, made._budget, self.clock)
        self.cycles = made.parts.culling.cycles
        self.cycles.policy = policy
        self.lease: Any = SimpleNamespace(lease=None, seen=LEASE, holder=LEASE.holder, superseded=False)
        self.mandate._keeper = self.lease
        self._started_at = NOW - timedelta(days=2)
        self._facts.version = "6.1.1"
        self._handing_over: Any = SimpleNamespace(note="", status=lambda mode, why: self.handover)
        self.handover = HandoverStatus()
        self.change(
            mode=Mode.ACTING,
            budget=BudgetUse(1, 10, 10, 20.0, 10, "closed", 1234, 5, 1.5),
            last_cycle=report,
            last_good_cycle_at=NOW - minutes(1),
            next_cycle_at=NOW + timedelta(seconds=23),
        )

    @property
    def drifts(self) -> PlacedDrifts:
        return cast(PlacedDrifts, self.parts.drifts)

    @property
    def watch(self) -> PlacedWatch:
        return cast(PlacedWatch, self.parts.watch)

    @property
    def pruning(self) -> Any:
        return self.parts.pruning

    @pruning.setter
    def pruning(self, pruning: Any) -> None:
        parts: Any = self.parts
        parts.pruning = pruning

    @property
    def policy(self) -> CullPolicy:
        return self.cycles.policy

    @property
    def last_cycle(self) -> CycleReport:
        assert self.cycles.last is not None
        return self.cycles.last

    def change(self, *, mode: Mode | None = None, brake: Brake | None = None, **placed: Any) -> None:
        """From now on it is as ``placed``, by the names that Status and CullStatus have, and for its reasons in ``mode``."""
        if mode is not None:
            placed.setdefault("stance", STANCES.get(mode, Stance(armed=True)))
            placed.setdefault("lease", LEASE)
            placed.setdefault("errors", (WRONG,) if mode is Mode.TROUBLED else ())
            if mode is Mode.STARTING:
                self.snapshots.last = None
            elif self.snapshots.last is None:
                self.snapshots.last = Snapshot(NOW - minutes(1), (), ())
            self.lease.lease = LEASE if mode is not Mode.STANDBY else None
        for name, value in placed.items():
            self._place(name, value)
        if mode is not None or brake is not None:
            there = self.snapshots.brake if mode is Mode.HELD else BRAKE if mode is Mode.BRAKED else None
            brake = brake or there
            self.snapshots._judged = replace(self.snapshots._judged, brake=brake)
        assert mode in (None, self.status().mode), (mode, self.status())

    def _place(self, name: str, value: Any) -> None:
        cycles = self.cycles
        match name:
            case "at":
                self.clock._elapsed_s = (value - NOW).total_seconds()
            case "stance":
                self._place_stance(value)
            case "lease":
                self.lease.seen, self.lease.lease = value, value and self.lease.lease
            case "budget":
                self._budget = SimpleNamespace(use=lambda: value)
            case "errors":
                self.settings = replace(self.settings, errors=value)
            case "notes":
                self._facts.notes = value
            case "hub_version":
                self._facts.version = value
            case "clock_from":
                self.snapshots._judged = replace(self.snapshots._judged, clock_from=value)
            case "handover":
                self.handover = value
            case "last_cycle":
                cycles.last = value
                for server in value.snapshot.servers if value else ():
                    self.hub.add(server)
            case "last_good_cycle_at":
                cycles.last_good_at = value
            case "next_cycle_at":
                self.parts.culling.next_at = value
            case "findings":
                cycles._findings.now = value
            case "tally" | "recent" | "oldest_overdue":
                setattr(cycles, name, value)
            case _:
                raise AssertionError(f"{name} can't be placed")

    def _place_stance(self, stance: Stance) -> None:
        """What people have set, without the entry that says so."""
        with self.books.sync.writing() as connection:
            connection.execute(sa.update(tables.stance).values(**asdict(stance)))
        self.mandate.stance = stance

    # -- the journal ----------------------------------------------------------------------------------------------

    def write(self, event: Event, *, actor: str = "hubguard", **fields: Any) -> None:
        """One more entry in the journal."""
        columns = {"user": "user_name", "server": "server_name"}
        values = {columns.get(name, name): getattr(value, "value", value) for name, value in fields.items()}
        with self.books.sync.writing() as connection:
            add_entry(connection, self.clock.now(), event, actor, 1, **values)

    @property
    def asked(self) -> list[tuple[str, str, str]]:
        """What people had it do, oldest first: the event, by whom, and the detail, as the journal has it."""
        asked = {Event.ARMED, Event.OBSERVING, Event.HELD, Event.RESUMED, Event.KEPT, Event.RELEASED, Event.INTENT}
        return [
            (one.event.value, one.actor, one.detail)
            for one in reversed(self.books.sync.entries(limit=1000))
            if one.event in asked
        ]

    @property
    def kept(self) -> list[Exemption]:
        """All exemptions that were ever made, oldest first."""
        return list(self.books.sync.exemptions(self.clock.now(), ended=True))[::-1]

    def keep(self, user: str, server: str | None = None, *, until: datetime, actor: str = "ann", why: str = "") -> None:
        """One more exemption."""
        self.books.sync.exempt(user, server, until, actor, why, self.clock.now())


def guard_with(servers: Sequence[Server] = (), mode: Mode = Mode.ACTING, **report: Any) -> PlacedGuard:
    """A guard that has just had a cycle over ``servers``."""
    guard = PlacedGuard(report_of(servers, **report), report.get("policy", POLICY))
    guard.change(mode=mode)
    return guard


def done(*details: str) -> list[Outcome]:
    return [Outcome(OutcomeKind.DONE, detail) for detail in details]


CALLERS = {
    "reader": Caller("rita", "user", frozenset({"custom:hubguard:read"})),
    "actor": Caller("ann", "user", frozenset({"custom:hubguard:act"}), admin=True),
    "owner": Caller("ann", "user", frozenset({"custom:hubguard:act", "custom:hubguard:prune"}), admin=True),
    "pruner": Caller("pat", "user", frozenset({"custom:hubguard:prune", "custom:hubguard:read"})),
    "deleter": Caller("del", "user", frozenset({"delete:users"})),
    "stopper": Caller("stan", "user", frozenset({"delete:servers"})),
    "filtered": Caller(
        "fil", "user", frozenset({"custom:hubguard:read!user=fil", "admin:servers!group=a", "list:users"})
    ),
    "nobody": Caller("nora", "user", frozenset({"access:services!service=hubguard"})),
    "service": Caller("report", "service", frozenset({"custom:hubguard:act"})),
}


class FakeAuth:
    """An AuthPort: a token, or the login cookie ``login``, is the key of CALLERS. ``down``: the hub doesn't answer."""

    def __init__(self) -> None:
        self.down = False
        self.lookups: list[bool] = []

    async def caller(self, handler: RequestHandler, *, fresh: bool) -> Caller | None:
        self.lookups.append(fresh)
        if self.down:
            raise HubUnreachable(
                "The hub doesn't answer, so HubGuard can't check who you are: try again when it answers."
            )
        header = handler.request.headers.get("Authorization", "")
        return CALLERS.get(header.partition(" ")[2] if header else handler.get_cookie("login") or "")

    def session(self, handler: RequestHandler) -> str | None:
        return None if handler.request.headers.get("Authorization") else handler.get_cookie("login")

    def login_url(self, handler: RequestHandler) -> str:
        return f"/hub/login?next={handler.request.uri}"

    def callback(self) -> None:
        return None
