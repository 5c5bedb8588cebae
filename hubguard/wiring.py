"""Makes a guard and its parts from the settings and the ways to the outside."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from urllib.parse import urlsplit

from hubguard.act.handover import Handover
from hubguard.act.lease import LeaseKeeper
from hubguard.act.mandate import Mandate
from hubguard.backends.port import Backends
from hubguard.config import Settings
from hubguard.cull.cycle import Cycles, caution_of, policy_of
from hubguard.cull.decide.judge import CullPolicy
from hubguard.cull.decide.reach import Reach
from hubguard.cull.hook import Hook, Hooked
from hubguard.cull.model import Protected
from hubguard.cull.part import Culling, Rhythm
from hubguard.drift.cycle import DriftCycles
from hubguard.drift.model import DriftKind
from hubguard.drift.observe import WorldObserver
from hubguard.drift.repairs import Limits
from hubguard.guard import Guard, Parts
from hubguard.hub.api import HubAPI
from hubguard.hub.database import HubDB
from hubguard.hub.facts import HubFacts
from hubguard.inhub.handover import Handover as TakenOver
from hubguard.journal.asynchronous import AsyncJournal
from hubguard.pacing.budget import Budget
from hubguard.pacing.clock import Clock
from hubguard.proxy.act import RouteChecks
from hubguard.proxy.canary import Canary
from hubguard.proxy.client import ProxyAPI
from hubguard.proxy.cycle import ProxyWatch
from hubguard.proxy.model import ProxyWatchStatus, WatchState
from hubguard.proxy.part import Watching
from hubguard.proxy.table import ExpectedRoutes
from hubguard.prune.act import Pace
from hubguard.prune.cycle import PruneCycles
from hubguard.prune.decide import plan as prune_plan
from hubguard.prune.review import HubConfigFacts
from hubguard.snapshot.cycle import Snapshots
from hubguard.snapshot.observe import Observer
from hubguard.watch.cycle import Watch
from hubguard.watch.decide.adjust import adjust
from hubguard.watch.decide.failed_starts import FailedStarts
from hubguard.watch.model import SignalSource
from hubguard.watch.notify.choose import Named, receivers_for
from hubguard.watch.notify.queue import Notices
from hubguard.watch.observe.guard import GuardReader
from hubguard.watch.observe.port import Reader


@dataclass(frozen=True, slots=True)
class Ways:
    """The ways out of this process; what is None isn't there.

    ``canary`` is the route by which the proxy is watched. ``backends`` is what really runs the servers. ``world`` looks for
    drift; without it the guard doesn't. ``hook`` is the operator's own function. ``readers`` read the signals; without any
    the guard doesn't watch. ``failed_starts`` are those that the hub's process reported, ``receivers`` are notified of
    alerts.
    """

    hub: HubAPI
    budget: Budget
    database: HubDB | None = None
    proxy: ProxyAPI | None = None
    canary: Canary | None = None
    backends: Backends | None = None
    world: WorldObserver | None = None
    hook: Hook | None = None
    readers: tuple[Reader, ...] = ()
    failed_starts: FailedStarts = field(default_factory=FailedStarts)
    receivers: tuple[Named, ...] = ()


NOT_LOOKED = "it hasn't yet looked for other cullers"
"""Why a guard without the include observes at first."""


@dataclass(frozen=True, slots=True)
class Circumstances:
    """What a guard must know besides its settings.

    ``holder`` names this guard among others, ``address`` is that of its pages, and ``generation`` when the hub that runs it
    was started. ``observe_only``: see Mandate. ``handover`` is what becomes of the hub's idle cullers. ``may_delete_users``:
    the hub lets this service do that. ``without_include``: other cullers are unknown so far. ``notes`` go to the
    Overview. ``features`` says for each hub scope what needs it. ``hub_checks_at_s`` is a moment (unix time) at which the
    hub checks its routes, None if unknown. ``config_facts`` is what the hub's config says, None if unknown.
    ``public_url`` is where people find HubGuard's pages, with a slash at the end, "" if unknown.
    """

    holder: str = ""
    address: str = ""
    generation: float = 0.0
    observe_only: str = ""
    handover: TakenOver = field(default_factory=TakenOver)
    may_delete_users: bool = True
    without_include: bool = False
    notes: tuple[str, ...] = ()
    features: Mapping[str, str] | None = None
    hub_checks_at_s: float | None = None
    config_facts: HubConfigFacts | None = None
    public_url: str = ""


def assemble(
    settings: Settings,
    ways: Ways,
    journal: AsyncJournal,
    clock: Clock,
    chance: Callable[[], float],
    circumstances: Circumstances,
) -> Guard:
    """The guard, not yet running. ``journal`` needn't be open. ``chance`` returns numbers in [0, 1)."""
    cull, hub, budget = settings.cull, ways.hub, ways.budget
    keeper = LeaseKeeper(
        journal,
        clock,
        holder=circumstances.holder,
        address=circumstances.address,
        generation=circumstances.generation,
        lease_s=settings.guard.lease_s,
    )
    mandate = Mandate(
        journal,
        keeper,
        clock,
        armed=settings.guard.armed,
        observe_only=circumstances.observe_only or (NOT_LOOKED if circumstances.without_include else ""),
        handover=Handover(circumstances.handover, clock) if circumstances.handover.replaced else None,
        wrong_setting=str(settings.errors[0]) if settings.errors else "",
    )
    watch: ProxyWatch | None = None

    def watch_status() -> ProxyWatchStatus:
        return ProxyWatchStatus() if watch is None else watch.status

    table = ExpectedRoutes(watch_status)
    if ways.world is not None and ways.canary is not None and ways.proxy is not None and not settings.errors:
        checks = RouteChecks(mandate, wanted=DriftKind.ROUTE_MISSING.value in settings.drift.repair)
        watch = ProxyWatch(ways.canary, ways.proxy, hub, budget, clock, expected=table.expected, checks=checks)
    observer = Observer(hub, clock, database=ways.database, proxy=ways.proxy)
    snapshots = Snapshots(
        hub,
        budget,
        observer,
        clock,
        caution_of(cull),
        generation=circumstances.generation,
        journal_days=settings.guard.journal_days,
        mandate=mandate,
        restores=lambda: () if watch is None else watch.restores,
    )
    facts = HubFacts(
        hub,
        clock,
        circumstances.features,
        circumstances.notes,
        circumstances.handover,
        without_include=circumstances.without_include,
    )
    cycles = Cycles(
        cull,
        _cull_policy(settings, circumstances),
        hub,
        budget,
        snapshots,
        mandate,
        observer,
        clock,
        hook=Hooked(ways.hook) if ways.hook is not None else None,
    )
    culling = Culling(
        cycles,
        snapshots,
        mandate,
        facts,
        clock,
        Rhythm(cull.every_s, cull.outage_s, cull.hub_activity_interval_s, chance, circumstances.hub_checks_at_s),
        longest_exemption_s=settings.guard.longest_exemption_s,
    )
    drifts = None
    if ways.world is not None:
        limits = Limits(
            pending_limit_s=cull.pending_limit_s,
            concurrency=settings.budget.concurrency,
            verify_s=cull.verify_s,
            retry_base_s=cull.retry_base_s,
            retry_max_s=cull.retry_max_s,
        )
        drifts = DriftCycles(
            settings.drift,
            limits,
            hub,
            ways.world,
            ways.backends,
            snapshots,
            mandate,
            clock,
            chance,
            table=table,
        )
    pruning = PruneCycles(
        settings.prune,
        hub,
        ways.database,
        snapshots,
        clock,
        chance,
        mandate=mandate,
        facts=circumstances.config_facts,
        pace=Pace(settings.prune.rate, settings.budget.concurrency, cull.verify_s),
        journal_days=settings.guard.journal_days,
    )
    watching = notices = None
    if ways.readers:
        rules = adjust(settings.watch.alerts)
        watching = Watch(
            rules,
            (
                *ways.readers,
                GuardReader(
                    SignalSource.HUBGUARD,
                    lambda: _of_hubguard(culling, drifts, budget, clock),
                    clock,
                    rates={"budget_waited_s": "budget_wait_seconds"},
                ),
                GuardReader(
                    SignalSource.PROXY,
                    lambda: _of_proxy(watch_status(), drifts),
                    clock,
                    changes={"proxy_started": "proxy_restarts"},
                ),
                GuardReader(SignalSource.BACKENDS, lambda: _of_backends(drifts), clock),
            ),
            mandate,
            clock,
            keep_days=settings.watch.keep_days,
            failed_starts=ways.failed_starts,
            receivers=lambda severity, rule, subject: receivers_for(ways.receivers, severity),
        )
        if ways.receivers:
            link = circumstances.public_url and f"{circumstances.public_url}alerts"
            source = urlsplit(circumstances.public_url).hostname or ""
            notices = Notices(ways.receivers, rules, mandate, clock, link=link, source=source)
    parts = Parts(
        culling, drifts, None if watch is None else Watching(watch, mandate, clock), pruning, watching, notices
    )
    return Guard(settings, mandate, snapshots, parts, facts, budget, clock)


def _cull_policy(settings: Settings, circumstances: Circumstances) -> CullPolicy:
    """What is culled. Users that pruning protects are kept, and so is everybody until the loss of storage is acknowledged.

    An idle culler whose place HubGuard takes deleted users by the same hub, with their storage: its settings suffice. What
    that culler couldn't reach, HubGuard leaves alone, too.
    """
    prune, facts, wait = settings.prune, circumstances.config_facts or HubConfigFacts(), ""
    handover, reach, user_reach = circumstances.handover, None, None
    if handover.replaced:
        reach = Reach(tuple(culler.reach for culler in handover.cullers))
        if handover.deletes_users:
            user_reach = Reach(tuple(culler.user_reach for culler in handover.cullers if culler.user_reach is not None))
    if facts.classes and not handover.deletes_users:
        storage = prune_plan.storage(facts.classes, facts.settings, facts.overrides)
        if storage.at_risk and storage.spawner not in prune.acknowledged:
            wait = (
                f"Inactive users aren't deleted (HubGuardCull.users): {storage.why} To delete them anyway, add"
                f' "{storage.spawner}" to HubGuardPrune.acknowledged.'
            )
    protected = Protected(
        names=tuple(prune.protected_names),
        groups=tuple(prune.protected_groups),
        roles=tuple(prune.protected_roles),
        in_config=facts.named or frozenset(),
    )
    policy = policy_of(settings.cull, protected, wait, reach, user_reach)
    # Without the scope, the hub would refuse each user in each cycle.
    return replace(policy, users=policy.users and circumstances.may_delete_users)


# -- what the parts know, as signals --------------------------------------------------------------------------------------


def _of_hubguard(
    culling: Culling, drifts: DriftCycles | None, budget: Budget, clock: Clock
) -> Mapping[str, float | None]:
    culled, report = culling.status(), drifts.report if drifts is not None else None
    good_at = culled.last_good_cycle_at
    return {
        "last_good_cycle_age_seconds": None if good_at is None else (clock.now() - good_at).total_seconds(),
        "error_share": culled.recent.error_ratio,
        "budget_waited_s": budget.use().waited_s,
        "drift_raised": None if report is None else sum(drift.raised_at is not None for drift in report.drifts),
    }


def _of_proxy(watched: ProxyWatchStatus, drifts: DriftCycles | None) -> Mapping[str, float | None] | str:
    """A proxy that refuses our token is there, and how it is can't be said."""
    if watched.state is WatchState.OFF:
        return (
            "HubGuard doesn't watch the proxy: it needs a configurable-http-proxy, its API's URL and token, and"
            " HubGuard.read_proxy."
        )
    known = {WatchState.STARTING: None, WatchState.UNUSABLE: None, WatchState.FINE: 1.0}
    values: dict[str, float | None] = {"proxy_up": known.get(watched.state, 0.0)}
    if watched.proxy_started_at is not None:
        values["proxy_started"] = watched.proxy_started_at.timestamp()
    report = drifts.report if drifts is not None else None
    if report is not None and report.world.routes is not None and report.world.servers is not None:
        ready = sum(server.ready for server in report.world.servers.values())
        missing = sum(drift.kind is DriftKind.ROUTE_MISSING for drift in report.drifts)
        values |= {"routes_missing": missing, "routes_missing_share": missing / ready if ready else 0.0}
    return values


def _of_backends(drifts: DriftCycles | None) -> Mapping[str, float | None] | str:
    """Backends whose server the hub doesn't count as active, of those that are this hub's."""
    report = drifts.report if drifts is not None else None
    if report is None or report.world.backends is None or report.world.servers is None:
        return {}
    if not report.world.whole:
        return "The kind of backend doesn't show what runs beyond the hub's count: only whether each server answers."
    alive = [backend for backend in report.world.backends if backend.alive and backend.proof]
    extra = sum((backend.user, backend.server) not in report.world.servers for backend in alive)
    return {
        "backends_alive": len(alive),
        "backends_extra": extra,
        "backends_extra_share": extra / len(alive) if alive else 0.0,
    }
