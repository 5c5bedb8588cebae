"""Which servers are to be stopped and which users deleted, and why each of the others isn't."""

from __future__ import annotations

import hashlib
import json
from collections import defaultdict
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
from datetime import datetime, timedelta

from hubguard.cull.decide.reach import Reach
from hubguard.cull.decide.rules import Rule, first_match
from hubguard.cull.model import Decision, Known, Plan, Protected, Reason, Standing, Surplus, UserVerdict, Verdict
from hubguard.hub.names import addressable, fits, spellings
from hubguard.journal.model import Exemption, Failures
from hubguard.model import Action, ActionKind, Grounds, Server, User, same_run
from hubguard.pacing.limits import backoff_s
from hubguard.snapshot.decide.activity import by_restore, by_server
from hubguard.snapshot.model import Evidence, Run, Situation


@dataclass(frozen=True, slots=True)
class CullPolicy:
    """What people want culled; the fields mean what the settings of ``HubGuardCull`` of the same names say.

    ``rules`` are in order, as :func:`hubguard.cull.decide.rules.parse` reads them. ``users_wait`` is why nobody is deleted
    although users are due, or "". ``reach`` and ``user_reach`` limit whose servers are stopped and who is deleted; None:
    nothing does. ``named_servers_off``: the hub refuses to stop any named server.
    """

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
    protected: Protected = field(default_factory=Protected)
    users_wait: str = ""
    reach: Reach | None = None
    user_reach: Reach | None = None
    named_servers_off: bool = False


def decide(
    situation: Situation,
    policy: CullPolicy,
    known: Mapping[Run, Known],
    exemptions: Sequence[Exemption],
    failures: Mapping[Run, Failures] | None = None,
) -> Decision:
    """What is to be done about ``situation``: a verdict for every server and user, and the plan that follows from them.

    ``failures`` are those of users, by (name, "", created).
    """
    snapshot, now = situation.snapshot, situation.at
    verdicts = judge_all(snapshot.servers, policy, known, now)
    user_verdicts = judge_users(snapshot.users or (), policy, exemptions, now, situation.clock_from, failures)
    return Decision(verdicts, user_verdicts, plan(verdicts, policy, now, user_verdicts))


def known_of(
    situation: Situation, failures: Mapping[Run, Failures], exemptions: Sequence[Exemption]
) -> dict[Run, Known]:
    """What is known of every run in ``situation`` beyond the hub's list of servers."""
    routes = by_server(situation.snapshot.routes or {})
    known = {}
    for server in situation.snapshot.servers:
        seen, route = situation.seen.get(server.key), routes.get(server.key)
        # A proxy that has lost its table has lost traffic, too, that the hub may not have taken over yet.
        noted = seen.active_at if seen is not None and seen.evidence is Evidence.PROXY else None
        known[server.run] = Known(
            failures=failures.get(server.run),
            exemption=exemption_of(server.user, server.name, exemptions, situation.at),
            proxy_activity=latest(route.last_activity if route else None, noted),
            active_at=seen.active_at if seen else None,
            pending_since=seen.pending_since if seen else None,
            clock_from=situation.clock_from,
            restores=situation.restores,
        )
    return known


def hook_decides(verdict: Verdict) -> bool:
    """Whether the operator's function has the last word: on what is to be stopped, not on a start that is stuck."""
    return verdict.standing is Standing.STOP and verdict.reason is not Reason.STUCK


def exemption_of(user: str, server: str, exemptions: Iterable[Exemption], now: datetime) -> Exemption | None:
    """The one that lasts longest of those that cover that server."""
    covering = [exemption for exemption in exemptions if exemption.covers(user, server, now)]
    return max(covering, key=lambda exemption: exemption.until, default=None)


def latest(*times: datetime | None) -> datetime | None:
    """The latest of the times that are known; None: none is."""
    return max((at for at in times if at is not None), default=None)


def judge(server: Server, policy: CullPolicy, known: Known, now: datetime) -> Verdict:
    """What is to happen to ``server`` at ``now``. ``known`` is of this very run.

    What protects a server counts in this order: the switches for admins and kinds, an exemption, a rule. A start that has
    been pending for too long is interrupted if the policy says so, however idle the server is. A time in the future (a skewed
    clock) makes a server look busy, never idle.
    """
    rule, certain = first_match(policy.rules, server, now)
    idle_timeout_s, max_age_s = _limits(rule, policy) if certain else (0.0, 0.0)
    idle_since, evidence = _idle_since(server, known)
    surplus = known.surplus if rule is not None and known.surplus and known.surplus.rule == rule.name else None
    due_at, limit = _due(idle_since, idle_timeout_s, server.started, max_age_s, surplus)
    base = Verdict(
        server,
        Standing.EXEMPT,
        Reason.RULE,
        idle_since,
        None,
        failures=known.failures.count if known.failures else 0,
        evidence=evidence,
        rule=rule.name if rule else None,
        idle_timeout_s=idle_timeout_s,
        max_age_s=max_age_s,
        known=known,
    )

    if (switch := _switched_off(server, policy)) is not None:
        return replace(base, reason=switch)
    if policy.reach is not None and (within := policy.reach.covers(server)) is not True:
        beyond = (Standing.EXEMPT, Reason.BEYOND) if within is False else (Standing.UNKNOWN, Reason.CANT_TELL)
        return replace(base, standing=beyond[0], reason=beyond[1], rule=None)
    if known.exemption is not None and known.exemption.covers(server.user, server.name, now):
        return replace(base, reason=Reason.EXEMPTION)
    if not (addressable(server.user) and addressable(server.name)):
        return replace(base, standing=Standing.EXEMPT, reason=Reason.DOTS)
    if not certain:
        return replace(base, standing=Standing.UNKNOWN, reason=Reason.CANT_TELL)
    if rule is not None and rule.never:
        return base
    if server.pending is not None and known.pending_since is not None:
        stuck_at = known.pending_since + timedelta(seconds=policy.pending_limit_s)
        if stuck_at <= now:
            if policy.interrupt_spawns and server.pending == "spawn":
                return _unless_put_off(replace(base, reason=Reason.STUCK, due_at=stuck_at), policy, now)
            return replace(base, standing=Standing.WAIT, reason=Reason.STUCK, due_at=due_at)
    if idle_timeout_s <= 0 and max_age_s <= 0 and surplus is None:
        return replace(base, reason=Reason.NO_LIMITS)
    if due_at is None:
        return replace(base, standing=Standing.UNKNOWN, reason=Reason.NO_TIMES)
    base = replace(base, due_at=due_at)
    if now < due_at:
        return replace(base, standing=Standing.KEEP, reason=Reason.ACTIVE)
    if server.pending is not None:
        return replace(base, standing=Standing.WAIT, reason=Reason.PENDING)
    if not server.ready:
        return replace(base, standing=Standing.WAIT, reason=Reason.NOT_READY)
    return _unless_put_off(replace(base, reason=limit), policy, now)


def not_before(run: Run, failures: Failures, policy: CullPolicy) -> datetime:
    """When that run may be tried again: exponential back-off with full jitter after its last failure.

    The draw comes from the run and the count, so that it stays the same from cycle to cycle and over a restart.
    """
    wait_s = backoff_s(failures.count, _draw(run, failures), base_s=policy.retry_base_s, max_s=policy.retry_max_s)
    return failures.last_at + timedelta(seconds=wait_s)


def _draw(run: Run, failures: Failures) -> float:
    seed = hashlib.sha256(repr((*run, failures.count)).encode()).digest()
    return int.from_bytes(seed[:7], "big") / (1 << 56)


def judge_all(
    servers: Iterable[Server], policy: CullPolicy, known: Mapping[Run, Known], now: datetime
) -> tuple[Verdict, ...]:
    """A verdict for every server, nearest to being stopped first; those that never will be come last, by name.

    A run that ``known`` doesn't have is one of which nothing more is known. Those beyond the number that a rule allows
    are found here: each verdict's ``known`` says so.
    """
    servers = tuple(servers)
    beyond = surplus_of(servers, policy, known, now)
    verdicts = []
    for server in servers:
        of_run = known.get(server.run, _NOTHING)
        # Kept as it is where nothing changes: most are.
        if of_run.surplus != (surplus := beyond.get(server.run)):
            of_run = replace(of_run, surplus=surplus)
        verdicts.append(judge(server, policy, of_run, now))
    return tuple(sorted(verdicts, key=_nearness))


SURPLUS_IDLE_S = 600.0
"""Seconds without use before which a server isn't stopped for being one too many. The hub may learn of use only then."""


def surplus_of(
    servers: Sequence[Server], policy: CullPolicy, known: Mapping[Run, Known], now: datetime
) -> dict[Run, Surplus]:
    """By run, those beyond the numbers that the policy's rules allow: of each user, then of all, the ones idle for longest.

    What a rule decides on counts for it, unless it is stopping. A server that HubGuard may not stop, or that the hub
    couldn't stop now, counts, and is never one of those beyond: another is.
    """
    limited = {rule.name: rule for rule in policy.rules if rule.max_servers or rule.max_servers_in_all}
    if not limited:
        return {}
    members: dict[str, list[tuple[datetime | None, Server]]] = defaultdict(list)
    for server in servers:
        rule, certain = first_match(policy.rules, server, now)
        if rule is not None and certain and rule.name in limited and server.pending != "stop":
            of_run = known.get(server.run, _NOTHING)
            idle_since = _idle_since(server, of_run)[0] if _may_go(server, policy, of_run, now) else None
            members[rule.name].append((idle_since, server))
    beyond: dict[Run, Surplus] = {}
    for name, of_rule in members.items():
        rule = limited[name]
        by_user: dict[str, list[tuple[datetime | None, Server]]] = defaultdict(list)
        for member in of_rule:
            by_user[member[1].user].append(member)
        if rule.max_servers:
            for of_user in by_user.values():
                surplus = Surplus(name, len(of_user), rule.max_servers)
                beyond |= dict.fromkeys(_longest_idle(of_user, len(of_user) - rule.max_servers), surplus)
        if rule.max_servers_in_all:
            staying = [member for member in of_rule if member[1].run not in beyond]
            surplus = Surplus(name, len(of_rule), rule.max_servers_in_all, in_all=True)
            beyond |= dict.fromkeys(_longest_idle(staying, len(staying) - rule.max_servers_in_all), surplus)
    return beyond


def _may_go(server: Server, policy: CullPolicy, known: Known, now: datetime) -> bool:
    """Whether ``server`` could be stopped now, however idle it is. A back-off after a failure only puts that off."""
    kept = known.exemption is not None and known.exemption.covers(server.user, server.name, now)
    off = _switched_off(server, policy) is not None or (bool(server.name) and policy.named_servers_off)
    within = policy.reach is None or policy.reach.covers(server) is True
    return server.ready and server.pending is None and within and not (kept or off or known.hook is False)


def _longest_idle(members: Sequence[tuple[datetime | None, Server]], number: int) -> list[Run]:
    may_go = sorted(
        ((idle_since, server.key, server.run) for idle_since, server in members if idle_since is not None),
        key=lambda row: row[:2],
    )
    return [run for _, _, run in may_go[: max(0, number)]]


_NOTHING = Known()


def judge_users(
    users: Iterable[User],
    policy: CullPolicy,
    exemptions: Sequence[Exemption],
    now: datetime,
    clock_from: datetime | None = None,
    failures: Mapping[Run, Failures] | None = None,
) -> tuple[UserVerdict, ...]:
    """A verdict for every user, nearest to being deleted first; those that never will be come last, by name.

    An exemption of any server of a user's keeps the user, too: a server goes with its user. No inactivity counts from
    before ``clock_from``. ``failures`` are by (name, "", created).
    """
    kept = {e.user for e in exemptions if e.covers(e.user, e.server or "", now)}
    verdicts = [
        _put_off(_judge_user(user, policy, user.name in kept, now, clock_from), failures or {}, now) for user in users
    ]
    return tuple(sorted(verdicts, key=_user_nearness))


USER_RETRY_S, LONGEST_USER_RETRY_S = 3600.0, 86400.0
"""Bounds of the back-off after the first failure to delete a user, and after many. What raises in the hub's authenticator
does so until somebody mends it."""


def _put_off(verdict: UserVerdict, failures: Mapping[Run, Failures], now: datetime) -> UserVerdict:
    """``verdict`` on a user as WAIT while the back-off after earlier tries lasts."""
    run = (verdict.user.name, "", verdict.user.created)
    failed = failures.get(run)
    if failed is None or verdict.standing is not Standing.STOP:
        return verdict
    verdict = replace(verdict, failures=failed.count)
    wait_s = backoff_s(failed.count, _draw(run, failed), base_s=USER_RETRY_S, max_s=LONGEST_USER_RETRY_S)
    if now < failed.last_at + timedelta(seconds=wait_s):
        return replace(verdict, standing=Standing.WAIT, reason=Reason.BACKING_OFF)
    return verdict


def plan(
    verdicts: Iterable[Verdict], policy: CullPolicy, now: datetime, user_verdicts: Iterable[UserVerdict] = ()
) -> Plan:
    """What is to be done now, at most ``policy.plan_cap`` acts: servers to stop, then starts to interrupt, then users.

    Among servers, those that failed least come first, then the most overdue: a stop that fails takes a minute, so that
    servers that can't be stopped would keep all others waiting for hours.
    """
    due = [verdict for verdict in verdicts if verdict.standing is Standing.STOP]
    due.sort(key=lambda verdict: (verdict.reason is Reason.STUCK, verdict.failures, _nearness(verdict)))
    leaving = [verdict for verdict in user_verdicts if verdict.standing is Standing.STOP]
    leaving.sort(key=_user_nearness)
    actions = [_action(verdict, policy) for verdict in due] + [_deletion(verdict) for verdict in leaving]
    return freeze(actions, cap=policy.plan_cap, now=now)


def still_due(action: Action, server: Server | None, policy: CullPolicy, known: Known, now: datetime) -> str | None:
    """The second look: None when ``server``, as just read again, is to be stopped as ``action`` has it; else why not.

    ``known`` is what is known of it now. Earlier failures no longer count: the plan was made with them.
    """
    if server is None:
        return "it is no longer running"
    if action.reason == Reason.SURPLUS.value and known.surplus is None:
        return "there are no longer more servers than the rule allows"
    if not same_run(server.started, action.started):
        return "it was restarted in the meantime"
    verdict = judge(server, policy, replace(known, failures=None), now)
    interrupting = action.kind is ActionKind.INTERRUPT_SPAWN
    if verdict.standing is Standing.STOP and (verdict.reason is Reason.STUCK) == interrupting:
        return None
    if interrupting and server.pending != "spawn":
        return "its start is no longer pending"
    if server.pending is not None and verdict.reason in {Reason.PENDING, Reason.STUCK}:
        return busy_words(server.pending)
    if verdict.reason is Reason.RULE:
        return f'the rule "{verdict.rule}" says never'
    return SPARED.get(verdict.reason, f"it is no longer due ({verdict.reason.value})")


def user_still_due(
    action: Action,
    user: User | None,
    policy: CullPolicy,
    exemptions: Sequence[Exemption],
    now: datetime,
    clock_from: datetime | None = None,
) -> str | None:
    """The second look: None when ``user``, as just read again, is to be deleted as ``action`` has it; else why not."""
    if user is None:
        return "there is no such user any more"
    if not same_run(user.created, action.started):
        return "the user was deleted and created again in the meantime"
    if user.last_activity is not None and (
        action.last_activity is None or user.last_activity > action.last_activity + timedelta(seconds=1)
    ):
        # A second more may come of another source that keeps whole ones.
        return "the user was active in the meantime"
    (verdict,) = judge_users([user], policy, exemptions, now, clock_from)
    if verdict.standing is Standing.STOP:
        return None
    if verdict.standing is Standing.WAIT and verdict.reason is Reason.ACTIVE:
        return "a server of the user's is running"
    return _SPARED_USER.get(verdict.reason, f"the user is no longer due ({verdict.reason.value})")


def grounds(server: Server, policy: CullPolicy, known: Known, now: datetime) -> Grounds:
    """What stopping ``server`` is based on at ``now``, earlier failures aside: its limit, rule, evidence, and since when."""
    verdict = judge(server, policy, replace(known, failures=None), now)
    if verdict.reason is Reason.STUCK:
        return Grounds(policy.pending_limit_s, known.pending_since)
    if verdict.reason is Reason.TOO_OLD:
        return Grounds(verdict.max_age_s, server.started, rule=verdict.rule)
    evidence = verdict.evidence.value if verdict.evidence else ""
    if verdict.reason is Reason.SURPLUS and known.surplus is not None:
        return Grounds(0.0, verdict.idle_since, evidence, verdict.rule, surplus_words(known.surplus, server.user))
    return Grounds(verdict.idle_timeout_s, verdict.idle_since, evidence, verdict.rule)


def busy_words(pending: str | None) -> str:
    """Why a pending server is left alone, as a clause."""
    return f"the hub is busy with it (pending: {pending})"


def surplus_words(surplus: Surplus, user: str) -> str:
    """``ann has 4 servers, 3 are allowed``, or how many the rule covers; as a clause."""
    who = "the rule covers" if surplus.in_all else f"{user} has"
    return f"{who} {surplus.count:,} servers, {surplus.most:,} {'is' if surplus.most == 1 else 'are'} allowed"


def grounds_of_user(user: User, policy: CullPolicy, now: datetime, clock_from: datetime | None = None) -> Grounds:
    """What deleting ``user`` is based on at ``now``."""
    (verdict,) = judge_users([user], policy, (), now, clock_from)
    if verdict.reason is Reason.TOO_OLD:
        return Grounds(policy.user_max_age_s, user.created)
    return Grounds(policy.user_idle_timeout_s, verdict.idle_since)


SPARED: dict[Reason, str] = {
    Reason.ACTIVE: "it was used in the meantime",
    Reason.EXEMPTION: "somebody has asked to keep it",
    Reason.HOOK: "the hook didn't say to stop it",
    Reason.CANT_TELL: "the hub doesn't show what a rule depends on",
    Reason.BEYOND: "the role of the idle culler that HubGuard replaces doesn't allow it",
    Reason.SWITCHED_OFF: "the hub has named servers switched off, and refuses to stop any (JupyterHub.allow_named_servers)",
}

_SPARED_USER: dict[Reason, str] = {
    Reason.EXEMPTION: "somebody has asked to keep a server of the user's",
    Reason.ADMIN: "the user is an admin",
    Reason.PROTECTED: "the user is protected",
    Reason.BEYOND: "the role of the idle culler that HubGuard replaces doesn't allow it",
    Reason.RULE: "a rule says never",
    Reason.CANT_TELL: "the hub doesn't show whether the user is protected",
    Reason.STORAGE: "the user's storage would be deleted, too, and nobody has acknowledged that",
}


def _limits(rule: Rule | None, policy: CullPolicy) -> tuple[float, float]:
    """Idle timeout and max age in seconds, 0 for off; what the rule doesn't set is as in the settings."""
    if rule is None:
        return policy.idle_timeout_s, policy.max_age_s
    if rule.never:
        return 0.0, 0.0
    return (
        policy.idle_timeout_s if rule.idle_timeout_s is None else rule.idle_timeout_s,
        policy.max_age_s if rule.max_age_s is None else rule.max_age_s,
    )


def _idle_since(server: Server, known: Known) -> tuple[datetime | None, Evidence | None]:
    """The latest evidence of use, since the hub may keep the activity of an earlier run, and which it is.

    What HubGuard knows itself only moves the hub's times forward, except those from a proxy's table that was filled
    again: these it knows better. Where the hub has no times, nothing is concluded.
    """
    if server.last_activity is None and server.started is None:
        return None, None
    candidates = [
        (_used_at(server.last_activity, known), Evidence.HUB),
        (server.started, Evidence.START),
        (_used_at(known.proxy_activity, known), Evidence.PROXY),
        (known.clock_from, Evidence.RECOVERY),
    ]
    return max(((at, evidence) for at, evidence in candidates if at is not None), key=lambda pair: pair[0])


def _used_at(at: datetime | None, known: Known) -> datetime | None:
    return known.active_at if at is not None and by_restore(at, known.active_at, known.restores) else at


def _due(
    idle_since: datetime | None,
    idle_timeout_s: float,
    started: datetime | None,
    max_age_s: float,
    surplus: Surplus | None = None,
) -> tuple[datetime | None, Reason]:
    """The nearest of the limits that are on and whose time is known; (None, NO_TIMES) if there is none."""
    limits = []
    if idle_timeout_s > 0 and idle_since is not None:
        limits.append((idle_since + timedelta(seconds=idle_timeout_s), Reason.IDLE))
    if max_age_s > 0 and started is not None:
        limits.append((started + timedelta(seconds=max_age_s), Reason.TOO_OLD))
    if surplus is not None and idle_since is not None:
        limits.append((idle_since + timedelta(seconds=SURPLUS_IDLE_S), Reason.SURPLUS))
    return min(limits, key=lambda pair: pair[0], default=(None, Reason.NO_TIMES))


def _switched_off(server: Server, policy: CullPolicy) -> Reason | None:
    if server.admin and not policy.admin_servers:
        return Reason.ADMIN
    if server.name and not policy.named_servers:
        return Reason.NAMED_SERVER
    if not server.name and not policy.default_servers:
        return Reason.DEFAULT_SERVER
    return None


def _unless_put_off(due: Verdict, policy: CullPolicy, now: datetime) -> Verdict:
    """``due`` as STOP, or as WAIT if a back-off or the operator's hook stands in the way."""
    failures, known = due.known.failures, due.known
    if due.server.name and policy.named_servers_off:
        return replace(due, standing=Standing.WAIT, reason=Reason.SWITCHED_OFF)
    if failures is not None and now < (again_at := not_before(due.server.run, failures, policy)):
        return replace(due, standing=Standing.WAIT, reason=Reason.BACKING_OFF, not_before=again_at)
    if known.hook is False or known.hook_error:
        return replace(due, standing=Standing.WAIT, reason=Reason.HOOK)
    return replace(due, standing=Standing.STOP)


def _judge_user(user: User, policy: CullPolicy, kept: bool, now: datetime, clock_from: datetime | None) -> UserVerdict:
    idle_since = max((at for at in (user.last_activity, user.created) if at is not None), default=None)
    if idle_since is not None and clock_from is not None:
        idle_since = max(idle_since, clock_from)
    due_at, limit = _due(idle_since, policy.user_idle_timeout_s, user.created, policy.user_max_age_s)
    if not policy.users or (policy.user_idle_timeout_s <= 0 and policy.user_max_age_s <= 0):
        return UserVerdict(user, Standing.EXEMPT, Reason.NO_LIMITS, idle_since, None)
    if user.admin and not policy.admin_users:
        return UserVerdict(user, Standing.EXEMPT, Reason.ADMIN, idle_since, None)
    if kept:
        return UserVerdict(user, Standing.EXEMPT, Reason.EXEMPTION, idle_since, None)
    if policy.user_reach is not None and (within := policy.user_reach.covers_user(user)) is not True:
        beyond = (Standing.EXEMPT, Reason.BEYOND) if within is False else (Standing.UNKNOWN, Reason.CANT_TELL)
        return UserVerdict(user, *beyond, idle_since, None)
    if not addressable(user.name):
        return UserVerdict(user, Standing.EXEMPT, Reason.DOTS, idle_since, None)
    if (protected := _protects(policy.protected, user)) is not None:
        standing, reason = protected
        return UserVerdict(user, standing, reason, idle_since, None)
    # As for servers, the first that matches decides; what only some servers of a user match says nothing of the user.
    for rule in policy.rules:
        matched = rule.matches_user(user, now)
        if matched and not rule.never:
            break
        if matched is not False and rule.never:
            standing, reason = (Standing.EXEMPT, Reason.RULE) if matched else (Standing.UNKNOWN, Reason.CANT_TELL)
            return UserVerdict(user, standing, reason, idle_since, None, rule.name)
    if due_at is None:
        return UserVerdict(user, Standing.UNKNOWN, Reason.NO_TIMES, idle_since, None)
    if now < due_at:
        return UserVerdict(user, Standing.KEEP, Reason.ACTIVE, idle_since, due_at)
    if user.servers:
        return UserVerdict(user, Standing.WAIT, Reason.ACTIVE, idle_since, due_at)
    if policy.users_wait:
        return UserVerdict(user, Standing.WAIT, Reason.STORAGE, idle_since, due_at)
    return UserVerdict(user, Standing.STOP, limit, idle_since, due_at)


def _protects(protected: Protected, user: User) -> tuple[Standing, Reason] | None:
    """How ``user`` is kept whatever is due, or None."""
    groups, roles = frozenset(protected.groups), frozenset(protected.roles)
    if (
        user.name in protected.in_config
        or any(fits(spelling, user.name) for glob in protected.names for spelling in spellings(glob))
        or not groups.isdisjoint(user.groups or ())
        or not roles.isdisjoint(user.roles or ())
    ):
        return Standing.EXEMPT, Reason.PROTECTED
    if (groups and user.groups is None) or (roles and user.roles is None):
        return Standing.UNKNOWN, Reason.CANT_TELL
    return None


def _nearness(verdict: Verdict) -> tuple[bool, float, str, str]:
    due = verdict.due_at
    return (due is None, due.timestamp() if due is not None else 0.0, verdict.server.user, verdict.server.name)


def _user_nearness(verdict: UserVerdict) -> tuple[bool, float, str]:
    due = verdict.due_at
    return (due is None, due.timestamp() if due is not None else 0.0, verdict.user.name)


def _action(verdict: Verdict, policy: CullPolicy) -> Action:
    server = verdict.server
    stuck = verdict.reason is Reason.STUCK
    return Action(
        user=server.user,
        name=server.name,
        started=server.started,
        last_activity=server.last_activity,
        reason=verdict.reason.value,
        remove=bool(server.name) and policy.remove_named_servers and not stuck,
        kind=ActionKind.INTERRUPT_SPAWN if stuck else ActionKind.STOP_SERVER,
    )


def _deletion(verdict: UserVerdict) -> Action:
    user = verdict.user
    return Action(user.name, "", user.created, user.last_activity, verdict.reason.value, kind=ActionKind.DELETE_USER)


PLAN_LIFE_S = 600.0
"""Seconds after which a cycle's plan expires: what it is based on is too old by then."""


def freeze(actions: Sequence[Action], *, cap: int, now: datetime) -> Plan:
    """A plan of the first ``cap`` of ``actions``, in their order, made at ``now``."""
    kept = tuple(actions[:cap])
    return Plan(now, now + timedelta(seconds=PLAN_LIFE_S), kept, len(actions) - len(kept), digest(kept))


def digest(actions: Sequence[Action]) -> str:
    """SHA-256 (hex) over the actions in their order: equal for equal plans, whoever made them and when."""
    text = json.dumps([asdict(action) for action in actions], default=str, sort_keys=True, ensure_ascii=True)
    return hashlib.sha256(text.encode("ascii")).hexdigest()
