"""Which servers are to be stopped, and why each of the others isn't."""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from datetime import datetime, timedelta

from hubguard.decide.plan import freeze
from hubguard.decide.rules import Rule
from hubguard.limits import backoff_s
from hubguard.model import (
    Action,
    Exemption,
    Failures,
    Known,
    Plan,
    Reason,
    Server,
    Standing,
    User,
    UserVerdict,
    Verdict,
)

Run = tuple[str, str, datetime | None]


@dataclass(frozen=True, slots=True)
class CullPolicy:
    """What people want culled; the fields mean what the settings of ``HubGuardCull`` of the same names say."""

    idle_timeout_s: float
    max_age_s: float
    admin_servers: bool = True
    default_servers: bool = True
    named_servers: bool = True
    remove_named_servers: bool = False
    plan_cap: int = 1000
    retry_base_s: float = 30.0
    retry_max_s: float = 3600.0
    rules: tuple[Rule, ...] = ()
    users: bool = False
    user_idle_timeout_s: float = 30 * 86400.0
    user_max_age_s: float = 0.0
    admin_users: bool = False
    pending_limit_s: float = 1800.0
    interrupt_spawns: bool = False


def judge(server: Server, policy: CullPolicy, known: Known, now: datetime) -> Verdict:
    """What is to happen to ``server`` at ``now``. ``known`` is of this very run.

    Idleness counts from the later of last activity and start, since the hub may keep the activity of an earlier run. A
    time in the future (a skewed clock) makes a server look busy, never idle.
    """
    failures = known.failures
    idle_since = max((t for t in (server.last_activity, server.started) if t is not None), default=None)
    limits = []
    if policy.idle_timeout_s > 0 and idle_since is not None:
        limits.append((idle_since + timedelta(seconds=policy.idle_timeout_s), Reason.IDLE))
    if policy.max_age_s > 0 and server.started is not None:
        limits.append((server.started + timedelta(seconds=policy.max_age_s), Reason.TOO_OLD))
    due_at, limit = min(limits, key=lambda pair: pair[0], default=(None, Reason.NO_TIMES))

    def verdict(standing: Standing, reason: Reason, not_before: datetime | None = None) -> Verdict:
        due = None if standing in {Standing.EXEMPT, Standing.UNKNOWN} else due_at
        return Verdict(
            server, standing, reason, idle_since, due, not_before, failures.count if failures else 0, known=known
        )

    if (exempt := _exemption(server, policy)) is not None:
        return verdict(Standing.EXEMPT, exempt)
    if due_at is None:
        return verdict(Standing.UNKNOWN, Reason.NO_TIMES)
    if now < due_at:
        return verdict(Standing.KEEP, Reason.ACTIVE)
    if server.pending is not None:
        return verdict(Standing.WAIT, Reason.PENDING)
    if not server.ready:
        return verdict(Standing.WAIT, Reason.NOT_READY)
    if failures is not None and now < (again_at := not_before(server.run, failures, policy)):
        return verdict(Standing.WAIT, Reason.BACKING_OFF, again_at)
    return verdict(Standing.STOP, limit)


def not_before(run: Run, failures: Failures, policy: CullPolicy) -> datetime:
    """When that run may be tried again: exponential back-off with full jitter after its last failure.

    The draw comes from the run and the count, so that it stays the same from cycle to cycle and over a restart.
    """
    seed = hashlib.sha256(repr((*run, failures.count)).encode()).digest()
    draw = int.from_bytes(seed[:7], "big") / (1 << 56)
    wait_s = backoff_s(failures.count, draw, base_s=policy.retry_base_s, max_s=policy.retry_max_s)
    return failures.last_at + timedelta(seconds=wait_s)


def judge_all(
    servers: Iterable[Server], policy: CullPolicy, known: Mapping[Run, Known], now: datetime
) -> tuple[Verdict, ...]:
    """A verdict for every server, nearest to being stopped first; those that never will be come last, by name."""
    verdicts = [judge(server, policy, known.get(server.run, Known()), now) for server in servers]
    return tuple(sorted(verdicts, key=_nearness))


def plan(
    verdicts: Iterable[Verdict], policy: CullPolicy, now: datetime, user_verdicts: Iterable[UserVerdict] = ()
) -> Plan:
    """The servers to stop now, at most ``policy.plan_cap`` of them: those that failed least first, then most overdue first.

    A stop that fails takes a minute, so that servers that can't be stopped would keep all others waiting for hours.
    """
    due = [verdict for verdict in verdicts if verdict.standing is Standing.STOP]
    due.sort(key=lambda verdict: (verdict.failures, _nearness(verdict)))
    return freeze([_action(verdict, policy) for verdict in due], cap=policy.plan_cap, now=now)


def still_due(action: Action, server: Server | None, policy: CullPolicy, known: Known, now: datetime) -> str | None:
    """The second look: None when ``server``, as just read again, is to be stopped as ``action`` has it; else why not."""
    if server is None:
        return "it is no longer running"
    if server.started != action.started:
        return "it was restarted in the meantime"
    verdict = judge(server, policy, replace(known, failures=None), now)
    if verdict.standing is Standing.STOP:
        return None
    if verdict.reason is Reason.ACTIVE:
        return "it was used in the meantime"
    if verdict.reason is Reason.PENDING:
        return f"the hub is in the middle of something with it ({server.pending})"
    return f"it is no longer due ({verdict.reason.value})"


def judge_users(
    users: Iterable[User], policy: CullPolicy, exemptions: Sequence[Exemption], now: datetime
) -> tuple[UserVerdict, ...]:
    """A verdict for every user, nearest to being deleted first; those that never will be come last, by name."""
    return tuple(UserVerdict(user, Standing.EXEMPT, Reason.NO_LIMITS, None, None) for user in users)


def user_still_due(
    action: Action, user: User | None, policy: CullPolicy, exemptions: Sequence[Exemption], now: datetime
) -> str | None:
    """The second look: None when ``user``, as just read again, is to be deleted as ``action`` has it; else why not."""
    return "users aren't deleted"


def _exemption(server: Server, policy: CullPolicy) -> Reason | None:
    if server.admin and not policy.admin_servers:
        return Reason.ADMIN
    if server.name and not policy.named_servers:
        return Reason.NAMED_SERVER
    if not server.name and not policy.default_servers:
        return Reason.DEFAULT_SERVER
    if policy.idle_timeout_s <= 0 and policy.max_age_s <= 0:
        return Reason.NO_LIMITS
    return None


def _nearness(verdict: Verdict) -> tuple[bool, float, str, str]:
    due = verdict.due_at
    return (due is None, due.timestamp() if due is not None else 0.0, verdict.server.user, verdict.server.name)


def _action(verdict: Verdict, policy: CullPolicy) -> Action:
    server = verdict.server
    return Action(
        user=server.user,
        name=server.name,
        started=server.started,
        last_activity=server.last_activity,
        reason=verdict.reason,
        remove=bool(server.name) and policy.remove_named_servers,
    )
