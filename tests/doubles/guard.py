"""Doubles for the pages' tests: a guard with made-up servers, and logins that no hub has to vouch for."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from datetime import datetime, timedelta
from typing import Any

from builders import NOW, minutes
from doubles.drift import PlacedDrifts
from doubles.prune import FakePruning
from tornado.web import RequestHandler

from hubguard.cull.decide.judge import CullPolicy, judge_all
from hubguard.cull.decide.judge import plan as plan_cull
from hubguard.cull.model import CullStatus, CycleReport, Known, UserVerdict, Wish
from hubguard.errors import HubGuardError, HubUnreachable
from hubguard.journal.exemptions import NoSuchExemption
from hubguard.journal.model import Entry, Event, Exemption, Failures, Lease, Stance
from hubguard.model import Action, Outcome, OutcomeKind, Reading, Server, Source
from hubguard.pacing.model import BudgetUse
from hubguard.snapshot.model import Snapshot
from hubguard.status import Mode, Status
from hubguard.web.auth import Caller

POLICY = CullPolicy(idle_timeout_s=7200, max_age_s=0, admin_servers=False)

WHY = {
    Mode.STARTING: "HubGuard is starting: the hub's servers are being read for the first time.",
    Mode.ACTING: "Servers that are due are stopped.",
    Mode.OBSERVING: "Nothing is stopped until an admin arms HubGuard.",
    Mode.HELD: "On hold (ann: exam until 5 pm).",
    Mode.BRAKED: "Braked: the server list is incomplete: page 3 of 7 didn't come.",
    Mode.STANDBY: "Another guard (hub-2:81 at http://10.0.0.7:8080) holds the lease and acts for this hub.",
    Mode.TROUBLED: "A setting is wrong, so nothing is done. HubGuardCull.idle_timeout_s: must be at least 0, not -5",
}


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


@dataclass
class FakeGuard:
    """A guard whose state a test sets; what its parts were asked to do is in ``asked``."""

    state: Status
    culled: CullStatus
    policy: CullPolicy = POLICY
    written: list[Entry] = field(default_factory=list)
    asked: list[tuple[Any, ...]] = field(default_factory=list)
    kept: list[Exemption] = field(default_factory=list)
    fails: Exception | None = None
    pruning: FakePruning = field(default_factory=FakePruning)

    def __post_init__(self) -> None:
        self.mandate = FakeMandate(self)
        self.culling = FakeCulling(self)
        self.drifts = PlacedDrifts()

    @property
    def parts(self) -> FakeGuard:
        return self

    def status(self) -> Status:
        return self.state

    def change(self, **fields: Any) -> None:
        """Another state from now on, of the guard and of culling."""
        if "mode" in fields and "why" not in fields:
            fields["why"] = WHY[fields["mode"]]
        of_culling = {name: fields.pop(name) for name in list(fields) if hasattr(self.culled, name)}
        self.state, self.culled = replace(self.state, **fields), replace(self.culled, **of_culling)

    def write(self, event: str, **fields: Any) -> Entry:
        """One more entry in the journal."""
        entry = Entry(
            id=len(self.written) + 1,
            at=NOW,
            event=Event(event),
            actor=fields.pop("actor", "hubguard"),
            fence=1,
            **fields,
        )
        self.written.append(entry)
        return entry

    def do(self, *asked: Any) -> None:
        """Remember what was asked, or fail."""
        if self.fails:
            raise self.fails
        self.asked.append(asked)


class FakeMandate:
    """What people set, and the journal."""

    def __init__(self, guard: FakeGuard) -> None:
        self._guard = guard
        self.journal = FakeJournal(guard)

    async def arm(self, actor: str, why: str) -> None:
        self._guard.do("arm", actor, why)
        self._guard.change(mode=Mode.ACTING, stance=Stance(armed=True, armed_by=actor, armed_at=NOW, armed_why=why))

    async def observe(self, actor: str, why: str) -> None:
        self._guard.do("observe", actor, why)
        self._guard.change(mode=Mode.OBSERVING, stance=Stance(armed=False, armed_by=actor, armed_at=NOW, armed_why=why))

    async def hold(self, actor: str, why: str) -> None:
        self._guard.do("hold", actor, why)
        held = replace(self._guard.state.stance, held=True, held_by=actor, held_at=NOW, held_why=why)
        self._guard.change(mode=Mode.HELD, why=held.sentence, stance=held)

    async def resume(self, actor: str, why: str) -> None:
        self._guard.do("resume", actor, why)
        brake, stance = self._guard.state.brake, replace(self._guard.state.stance, held=False)
        brake = None if brake is not None and brake.acceptable else brake
        self._guard.change(mode=Mode.BRAKED if brake else Mode.ACTING, stance=stance, brake=brake)


class FakeJournal:
    """What pages read in the journal."""

    def __init__(self, guard: FakeGuard) -> None:
        self._guard = guard

    async def exemptions(self, now: datetime, *, user: str | None = None, ended: bool = False) -> tuple[Exemption, ...]:
        if self._guard.fails:
            raise self._guard.fails
        found = [
            one
            for one in reversed(self._guard.kept)
            if user in (None, one.user) and (ended or one.covers(one.user, one.server or "", now))
        ]
        return tuple(found)

    async def entries(
        self,
        *,
        before_id: int | None = None,
        limit: int = 100,
        user: str | None = None,
        server: str | None = None,
        event: str | None = None,
    ) -> tuple[Entry, ...]:
        if self._guard.fails:
            raise self._guard.fails
        found = [
            entry
            for entry in reversed(self._guard.written)
            if (before_id is None or entry.id < before_id)
            and (user is None or entry.user == user)
            and (server is None or (entry.server or "") == server)
            and (event is None or entry.event == event)
        ]
        return tuple(found[:limit])


class FakeCulling:
    """Cycles and exemptions."""

    def __init__(self, guard: FakeGuard) -> None:
        self._guard = guard

    @property
    def policy(self) -> CullPolicy:
        return self._guard.policy

    def status(self) -> CullStatus:
        return self._guard.culled

    async def cycle(self, asked_by: str, wish: Wish) -> CycleReport:
        self._guard.do("cycle", asked_by, wish)
        assert self._guard.culled.last_cycle is not None
        return self._guard.culled.last_cycle

    async def exempt(self, actor: str, why: str, *, user: str, server: str | None, until: datetime) -> Exemption:
        self._guard.do("exempt", actor, why, user, server, until)
        at = self._guard.state.at
        if not at < until <= at + timedelta(days=30):
            raise HubGuardError("An exemption ends within 30 d (HubGuard.longest_exemption_s). Nothing was changed.")
        made = Exemption(len(self._guard.kept) + 1, user, server, until, actor, why, at)
        self._guard.kept.append(made)
        return made

    async def end_exemption(self, exemption_id: int, actor: str, why: str) -> Exemption:
        self._guard.do("end_exemption", exemption_id, actor, why)
        at, kept = self._guard.state.at, self._guard.kept
        for i, one in enumerate(kept):
            if one.id == exemption_id and one.covers(one.user, one.server or "", at):
                kept[i] = replace(one, ended_at=at, ended_by=actor)
                return kept[i]
        raise NoSuchExemption(f"There is no exemption {exemption_id}. Nothing was changed.")

    async def exemptions(self, *, user: str | None = None, ended: bool = False) -> tuple[Exemption, ...]:
        return await self._guard.mandate.journal.exemptions(self._guard.state.at, user=user, ended=ended)


def guard_with(servers: Sequence[Server] = (), mode: Mode = Mode.ACTING, **report: Any) -> FakeGuard:
    """A guard that has just had a cycle over ``servers``."""
    return FakeGuard(
        Status(
            at=NOW,
            mode=mode,
            why=WHY[mode],
            stance=Stance(armed=mode is Mode.ACTING or None),
            armed=mode in {Mode.ACTING, Mode.BRAKED},
            started_at=NOW - timedelta(days=2),
            holder="hub-1:4711",
            lease=Lease("hub-1:4711", "http://127.0.0.1:8080", 3, 0.0, NOW - minutes(60), NOW + timedelta(seconds=20)),
            holds_lease=mode is not Mode.STANDBY,
            hub_version="6.1.1",
            budget=BudgetUse(1, 10, 10, 20.0, 10, "closed", 1234, 5, 1.5),
        ),
        CullStatus(report_of(servers, **report), NOW - minutes(1), NOW + timedelta(seconds=23)),
    )


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
            raise HubUnreachable("The hub doesn't tell who you are: try again when it answers.")
        header = handler.request.headers.get("Authorization", "")
        return CALLERS.get(header.partition(" ")[2] if header else handler.get_cookie("login") or "")

    def session(self, handler: RequestHandler) -> str | None:
        return None if handler.request.headers.get("Authorization") else handler.get_cookie("login")

    def login_url(self, handler: RequestHandler) -> str:
        return f"/hub/login?next={handler.request.uri}"

    def callback(self) -> None:
        return None
