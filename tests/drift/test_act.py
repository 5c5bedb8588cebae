"""Repairs in virtual time: hub, backends and journal in memory, and all that can go wrong between plan and proof."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Sequence
from dataclasses import replace
from datetime import datetime, timedelta, timezone
from typing import Any

import pytest
from doubles.backends import BackendRequest, MemoryBackends
from doubles.drift import drift_of
from doubles.hub import MemoryHub, Request, Stops
from inline_journal import InlineJournal
from virtual_time import VirtualClock

from hubguard.act.lease import HUB, LeaseKeeper
from hubguard.act.mandate import Mandate
from hubguard.backends.model import Backend
from hubguard.drift.act import Repairer
from hubguard.drift.decide.follow import DriftPolicy, follow
from hubguard.drift.decide.repair import plan_repairs
from hubguard.drift.model import Drift, DriftKind, Repair, RepairPlan, World
from hubguard.errors import (
    BackendError,
    BudgetExhausted,
    HubBusy,
    HubError,
    HubFailed,
    HubRefused,
    HubUnreachable,
    JournalError,
    ProxyUnreachable,
)
from hubguard.journal.model import Entry, Event
from hubguard.model import Action, ActionKind, Cause, Key, Order, Outcome, OutcomeKind, Reading, Route, Server, Source

VERIFY_S = 20.0
LIMIT_S = 600.0
POLICY = DriftPolicy(sightings=1, for_s=0.0, clear_after=1, pending_limit_s=LIMIT_S)
RESERVE = {"/": Route("/", "http://127.0.0.1:8081")}


class Hub(MemoryHub):
    """A hub whose starts and stops make and end backends, but for those that the test has made deaf to it."""

    def __init__(self, clock: VirtualClock, engine: MemoryBackends) -> None:
        super().__init__(clock=clock)
        self.engine = engine
        self.start_error: HubError | None = None
        self.routes_stay_wrong = False

    async def start_server(self, user: str, name: str, *, confirm: Callable[[], Awaitable[None]] | None = None) -> bool:
        started = await super().start_server(user, name, confirm=confirm)
        if self.start_error is not None:
            # As the real one does it: what doesn't come up is stopped, and then the start is answered with 500.
            self._records[(user, name)].active = False
            self.backends.discard((user, name))
            raise self.start_error
        self.engine.add(user, name)
        return started

    async def stop_server(
        self, user: str, name: str, *, remove: bool = False, confirm: Callable[[], Awaitable[None]] | None = None
    ) -> bool:
        at_once = await super().stop_server(user, name, remove=remove, confirm=confirm)
        self._settled()
        if (user, name) not in self.backends:
            self.engine.kill(user, name)
        return at_once

    async def check_routes(self, *, timeout_s: float, confirm: Callable[[], Awaitable[None]] | None = None) -> None:
        before = dict(self.routes)
        await super().check_routes(timeout_s=timeout_s, confirm=confirm)
        if self.routes_stay_wrong:
            self.routes = before


class Scene:
    """One hub with its backends, a guard's lease on it, and what was found there."""

    def __init__(self, clock: VirtualClock, books: InlineJournal) -> None:
        self.clock = clock
        self.books = books
        self.engine = MemoryBackends(clock=clock)
        self.hub = Hub(clock, self.engine)
        self.keeper = LeaseKeeper(books, clock, holder="me", address="", generation=1.0, lease_s=3600.0)
        self.mandate = Mandate(books, self.keeper, clock)
        self.ghosts: set[tuple[str, str, datetime | None]] = set()
        self.found: tuple[Drift, ...] = ()
        self.looks = 0
        self.look_error: Callable[[int], Exception | None] = lambda _: None
        self.looked: Callable[[], None] = lambda: None
        self.told: list[tuple[Repair, Outcome]] = []
        self.repairer = self.another_repairer()

    def another_repairer(self, mandate: Mandate | None = None) -> Repairer:
        return Repairer(
            self.hub,
            self.engine,
            mandate or self.mandate,
            self.clock,
            self.look,
            verify_s=VERIFY_S,
            on_outcome=lambda repair, outcome: self.told.append((repair, outcome)),
        )

    def server(self, user: str, name: str = "", *, stops: Stops = Stops.WORKS, backend: bool = True) -> Server:
        server = Server(user, name, True, None, self.clock.now() - timedelta(hours=1), self.clock.now())
        self.hub.add(server, stops=stops)
        if backend:
            self.engine.add(user, name)
        else:
            self.hub.backends.discard(server.key)
        return server

    def dead(self, user: str, name: str = "", *, stops: Stops = Stops.WORKS) -> Server:
        return self.server(user, name, stops=stops, backend=False)

    def ghost(self, user: str, name: str = "") -> Server:
        server = self.dead(user, name, stops=Stops.GHOST)
        self.ghosts.add(server.run)
        return server

    async def look(self, keys: Sequence[Key]) -> tuple[Drift, ...]:
        self.looks += 1
        error = self.look_error(self.looks)
        if error is not None:
            raise error
        await self.clock.sleep(0.05)
        servers = await self.hub.list_servers()
        backends = await self.engine.look(())
        now = self.clock.now()
        world = World(
            now,
            tuple(Reading(source, now, True, 0.0) for source in (Source.HUB_API, Source.PROXY, Source.BACKEND)),
            {server.key: server for server in servers},
            routes=dict(self.hub.routes),
            prefixes={},
            backends=backends,
            whole=True,
            ghosts=frozenset(self.ghosts),
        )
        self.found, _ = follow(self.found, world, POLICY)
        there = tuple(d for d in self.found if d.missed == 0 and (not keys or (d.user, d.server) in keys))
        self.looked()
        return there

    async def plan(self, *kinds: DriftKind) -> RepairPlan:
        drifts = await self.look(())
        return plan_repairs([drift for drift in drifts if not kinds or drift.kind in kinds], self.clock.now())

    async def repair(self, plan: RepairPlan, *, asked: bool = True, concurrency: int = 4) -> list[Outcome]:
        done = await self.repairer.run(plan, Order("ann", asked=asked), concurrency=concurrency, running=10)
        assert tuple(repair for repair, _ in done) == plan.repairs
        assert sorted(map(str, self.told)) == sorted(map(str, done))
        return [outcome for _, outcome in done]

    def asked_to(self, call: str) -> list[str]:
        return [request.user for request in self.hub.requests if request.call == call]

    def ended(self) -> list[str]:
        return [request.end.name for request in self.engine.requests if request.end is not None]

    def changed_nothing(self) -> bool:
        return not (self.asked_to("stop") or self.asked_to("start") or self.asked_to("check-routes") or self.ended())

    def entries(self, event: str) -> list[Entry]:
        return list(reversed(self.books.journal.entries(event=Event(event), limit=1000)))

    def open_intents(self) -> list[Entry]:
        return list(self.books.journal.open_intents())


Play = Callable[[Callable[[Scene], Awaitable[None]]], Awaitable[Scene]]


@pytest.fixture
async def play() -> Play:
    async def run(act: Callable[[Scene], Awaitable[None]]) -> Scene:
        clock = VirtualClock()
        scene = Scene(clock, InlineJournal())
        assert await scene.keeper.keep()
        try:
            await clock.run(act(scene))
        finally:
            scene.books.close()
        return scene

    return run


def kinds(outcomes: Sequence[Outcome]) -> list[str]:
    return [outcome.kind.value for outcome in outcomes]


# -- each kind ---------------------------------------------------------------------------------------------------------


async def test_a_dead_server_is_stopped_and_seen_gone_before_it_counts_as_repaired(play: Play):
    async def act(scene: Scene) -> None:
        scene.server("bo")
        scene.dead("ann")
        (outcome,) = await scene.repair(await scene.plan())
        assert outcome == Outcome(OutcomeKind.DONE, "gone at a re-read")
        assert scene.asked_to("stop") == ["ann"]
        (intent,), (settled,) = scene.entries(Event.INTENT), scene.entries(Event.OUTCOME)
        assert (intent.user, intent.action, intent.reason, intent.actor) == ("ann", "stop-server", "server-dead", "ann")
        assert settled.refers_to == intent.id
        assert not await scene.look(())

    await play(act)


async def test_a_stop_that_changes_nothing_fails_with_the_words_that_make_it_a_ghost(play: Play):
    async def act(scene: Scene) -> None:
        scene.dead("ann", stops=Stops.GHOST)
        (outcome,) = await scene.repair(await scene.plan())
        assert outcome.kind is OutcomeKind.FAILED
        assert outcome.cause is Cause.CHANGED_NOTHING
        assert "By hand: " in outcome.detail
        assert "Tried: " in outcome.detail

    await play(act)


async def test_a_ghost_is_started_and_stopped_and_each_request_has_an_intent_of_its_own(play: Play):
    async def act(scene: Scene) -> None:
        server = scene.ghost("ann", "gpu")
        scene.hub.start_s = 30.0  # answered 202 after ten seconds
        before_s = scene.clock.monotonic_s()
        (outcome,) = await scene.repair(await scene.plan())
        assert scene.clock.monotonic_s() - before_s < 45  # it is stopped soon after it is up
        assert outcome.kind is OutcomeKind.DONE, outcome
        assert (scene.asked_to("start"), scene.asked_to("stop")) == (["ann"], ["ann"])
        start, stop = scene.entries(Event.INTENT)
        assert (start.action, start.started) == ("start-and-stop", server.started)
        assert stop.action == "stop-server"
        assert stop.started is not None
        assert server.started is not None
        assert stop.started > server.started
        assert not scene.open_intents()
        assert not await scene.look(())

    await play(act)


async def test_an_orphan_that_is_proved_is_ended_and_the_journal_names_it(play: Play):
    async def act(scene: Scene) -> None:
        scene.server("bo")
        orphan = scene.engine.add("ann")
        (outcome,) = await scene.repair(await scene.plan())
        assert outcome == Outcome(OutcomeKind.DONE, f"{orphan.name} is gone at a re-read")
        assert scene.ended() == [orphan.name]
        (intent,) = scene.entries(Event.INTENT)
        assert orphan.id in intent.detail
        assert orphan.proof in intent.detail
        assert scene.engine.alive("bo")

    await play(act)


async def test_an_orphan_that_does_not_end_leaves_the_command_for_a_person(play: Play):
    async def act(scene: Scene) -> None:
        scene.engine.add("ann", stubborn=True)
        (outcome,) = await scene.repair(await scene.plan())
        assert outcome.kind is OutcomeKind.FAILED
        assert "process 1 is still alive" in outcome.detail
        assert "By hand: kill -9 1." in outcome.detail

    await play(act)


async def test_routes_are_checked_once_for_all_of_them(play: Play):
    async def act(scene: Scene) -> None:
        for user in ("ann", "bo", "cy"):
            scene.server(user)
        del scene.hub.routes["/user/ann"], scene.hub.routes["/user/bo"]
        scene.hub.routes["/user/gone"] = Route("/user/gone", "http://127.0.0.1:1", "gone", "")
        plan = await scene.plan()
        assert [len(repair.drifts) for repair in plan.repairs] == [3]
        assert kinds(await scene.repair(plan)) == ["done"]
        assert len(scene.asked_to("check-routes")) == 1
        assert not await scene.look(())

    await play(act)


async def test_a_check_that_leaves_routes_missing_has_failed_and_names_a_few(play: Play):
    async def act(scene: Scene) -> None:
        for number in range(5 + 3):
            scene.server(f"u{number}")
        scene.hub.routes = dict(RESERVE)
        scene.hub.routes_stay_wrong = True
        (outcome,) = await scene.repair(await scene.plan())
        assert outcome.kind is OutcomeKind.FAILED
        assert "8 of 8 are still wrong: route-missing " in outcome.detail
        assert "and 3 more" in outcome.detail
        assert outcome.detail.count("route-missing") == 5
        assert len(scene.asked_to("check-routes")) == 1

    await play(act)


async def stuck(scene: Scene, user: str = "ann", pending: str = "spawn") -> None:
    scene.server(user, backend=False)
    scene.hub.change(user, pending=pending)
    scene.hub.routes = dict(RESERVE)
    await scene.look(())
    await scene.clock.sleep(LIMIT_S + 1)


async def test_a_start_that_is_stuck_is_interrupted(play: Play):
    async def act(scene: Scene) -> None:
        await stuck(scene)
        (outcome,) = await scene.repair(await scene.plan())
        assert outcome.kind is OutcomeKind.DONE
        assert scene.asked_to("stop") == ["ann"]

    await play(act)


@pytest.mark.parametrize("by_then", [{"pending": "stop"}, {"pending": "check"}, {"ready": True}])
async def test_a_start_that_is_over_by_then_is_not_interrupted(play: Play, by_then: dict[str, Any]):
    async def act(scene: Scene) -> None:
        await stuck(scene)
        plan = await scene.plan()
        scene.looked = lambda: scene.hub.change("ann", **by_then)
        (outcome,) = await scene.repair(plan)
        assert outcome == Outcome(OutcomeKind.SKIPPED, "its start is no longer pending")
        assert scene.changed_nothing()

    await play(act)


# -- what changes between the plan and its second look -----------------------------------------------------------------


async def test_a_server_that_was_restarted_since_the_plan_is_left_alone(play: Play):
    async def act(scene: Scene) -> None:
        scene.dead("ann")
        scene.ghost("bo")
        plan = await scene.plan()
        for user in ("ann", "bo"):
            scene.hub.change(user, started=scene.clock.now(), stops=Stops.WORKS)
        assert kinds(await scene.repair(plan)) == ["skipped", "skipped"]
        assert scene.changed_nothing()
        assert not scene.entries(Event.INTENT)
        assert {note.user for note in scene.entries(Event.NOTE)} == {"ann", "bo"}

    await play(act)


async def test_an_orphan_whose_user_starts_a_server_meanwhile_is_never_ended(play: Play):
    async def act(scene: Scene) -> None:
        scene.engine.add("ann")
        plan = await scene.plan()
        scene.hub.add(Server("ann", "", False, "spawn", scene.clock.now(), None))
        assert kinds(await scene.repair(plan)) == ["skipped"]
        scene.hub.change("ann", ready=True)
        scene.told.clear()
        assert kinds(await scene.repair(plan)) == ["skipped"]
        assert scene.changed_nothing()

    await play(act)


async def test_a_server_that_comes_up_between_the_look_at_the_sources_and_the_end_keeps_its_backend(play: Play):
    async def act(scene: Scene) -> None:
        scene.engine.add("ann")
        plan = await scene.plan()
        scene.looked = lambda: scene.hub.add(Server("ann", "", True, None, scene.clock.now(), None))
        (outcome,) = await scene.repair(plan)
        assert outcome.kind is OutcomeKind.SKIPPED
        assert "the hub has that server again" in outcome.detail
        assert not scene.ended()

    await play(act)


async def beside(scene: Scene, *, later_s: float = 120.0) -> Backend:
    """A backend of an earlier run, so many seconds before a server that runs with one of its own."""
    orphan = scene.engine.add("ann")
    await scene.clock.sleep(later_s)
    scene.hub.add(Server("ann", "", True, None, scene.clock.now(), scene.clock.now()))
    scene.engine.add("ann")
    return orphan


async def test_an_orphan_of_an_earlier_run_is_ended_beside_the_server_that_runs(play: Play):
    async def act(scene: Scene) -> None:
        orphan = await beside(scene)
        plan = await scene.plan()
        assert [repair.backend for repair in plan.repairs] == [orphan]
        assert kinds(await scene.repair(plan)) == ["done"]
        assert [one.id for one in await scene.engine.look(()) if one.alive] != [orphan.id]
        assert scene.engine.alive("ann"), "its own lives on"

    await play(act)


async def test_an_orphan_that_began_hardly_before_the_run_is_in_no_plan(play: Play):
    async def act(scene: Scene) -> None:
        await beside(scene, later_s=59.0)
        assert (await scene.plan()).repairs == ()

    await play(act)


async def test_an_orphan_beside_a_server_is_left_alone_once_the_servers_own_backend_is_gone(play: Play):
    """Then it may be the one that runs it."""

    async def act(scene: Scene) -> None:
        orphan = await beside(scene)
        plan = await scene.plan()

        def own_ends() -> None:
            scene.engine.kill("ann")
            scene.engine._backends[orphan.id] = orphan

        scene.looked = own_ends
        (outcome,) = await scene.repair(plan)
        assert outcome.kind is OutcomeKind.SKIPPED
        assert "may belong to it" in outcome.detail
        assert scene.engine.alive("ann")

    await play(act)


async def test_an_orphan_beside_a_server_that_is_started_again_in_the_meantime_is_left_alone(play: Play):
    async def act(scene: Scene) -> None:
        await beside(scene)
        plan = await scene.plan()
        scene.looked = lambda: scene.hub.change("ann", pending="stop")
        assert kinds(await scene.repair(plan)) == ["skipped"]
        assert not scene.ended()

    await play(act)


async def test_a_backend_whose_server_is_restarted_during_the_last_look_at_the_backends_is_not_ended(play: Play):
    async def act(scene: Scene) -> None:
        orphan = await beside(scene)
        plan = await scene.plan()
        assert [repair.backend for repair in plan.repairs] == [orphan]
        look = scene.engine.look

        async def restarts(expected: Sequence[Any]) -> tuple[Backend, ...]:
            seen = await look(expected)
            if expected:
                scene.hub.change("ann", started=scene.clock.now() + timedelta(seconds=1))
            return seen

        scene.engine.look = restarts  # type: ignore[method-assign]
        (outcome,) = await scene.repair(plan)
        assert outcome.kind is OutcomeKind.SKIPPED
        assert "may belong to it" in outcome.detail
        assert not scene.ended()
        assert not scene.entries(Event.INTENT)

    await play(act)


async def test_a_backend_in_the_place_of_the_one_that_was_meant_is_not_ended(play: Play):
    async def act(scene: Scene) -> None:
        scene.engine.add("ann")
        plan = await scene.plan()
        scene.engine.kill("ann")
        scene.engine.add("ann")
        assert kinds(await scene.repair(plan)) == ["skipped"]
        assert not scene.ended()
        assert scene.engine.alive("ann")

    await play(act)


@pytest.mark.parametrize(
    ("change", "says"),
    [
        ({"started": datetime(2024, 3, 5, 8, 0, tzinfo=timezone.utc)}, "restarted"),
        ({"pending": "stop"}, "(pending: stop)"),
        ({"ready": False}, "no longer calls it ready"),
    ],
)
@pytest.mark.parametrize("kind", ["dead", "ghost"])
async def test_a_server_that_changes_right_after_the_look_at_the_sources_is_left_alone(
    play: Play, kind: str, change: dict[str, Any], says: str
):
    async def act(scene: Scene) -> None:
        scene.ghost("ann") if kind == "ghost" else scene.dead("ann")
        plan = await scene.plan()
        scene.looked = lambda: scene.hub.change("ann", **change)
        (outcome,) = await scene.repair(plan)
        assert outcome.kind is OutcomeKind.SKIPPED
        assert says in outcome.detail
        assert scene.changed_nothing()

    await play(act)


async def test_what_is_not_proved_to_be_this_hubs_is_never_ended(play: Play):
    async def act(scene: Scene) -> None:
        scene.engine.add("ann")
        plan = await scene.plan()
        (repair,) = plan.repairs
        assert repair.backend is not None
        unproved = replace(repair, backend=replace(repair.backend, proof=""))
        (outcome,) = await scene.repair(replace(plan, repairs=(unproved,)))
        assert outcome.kind is OutcomeKind.SKIPPED
        assert "can't confirm" in outcome.detail
        assert not scene.ended()
        scene.told.clear()
        assert kinds(await scene.repair(plan)) == ["done"], "the same one, proved, is ended"

    await play(act)


async def test_a_plan_that_has_expired_does_nothing_and_says_so_in_the_journal(play: Play):
    async def act(scene: Scene) -> None:
        scene.dead("ann")
        scene.engine.add("bo")
        plan = await scene.plan()
        await scene.clock.sleep(601)
        outcomes = await scene.repair(plan)
        assert kinds(outcomes) == ["skipped", "skipped"]
        assert all("expired" in outcome.detail for outcome in outcomes)
        assert scene.changed_nothing()
        assert len(scene.entries(Event.NOTE)) == 2

    await play(act)


# -- what goes wrong on the way ----------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "error",
    [
        HubFailed("The hub failed to stop ann (500).", status=500),
        HubBusy("The hub is too busy to stop ann (429)."),
        HubRefused("The hub refused to stop ann (403)."),
        HubUnreachable("The hub didn't stop ann within 60 s."),
    ],
)
async def test_a_repair_that_fails_ends_no_other(play: Play, error: HubError):
    async def act(scene: Scene) -> None:
        scene.dead("ann")
        scene.dead("bo")
        scene.engine.add("cy")
        plan = await scene.plan()
        scene.hub.fault = lambda asked: error if (asked.call, asked.user) == ("stop", "ann") else None
        outcomes = await scene.repair(plan, concurrency=1)
        by_user = {repair.action.user: outcome for (repair, _), outcome in zip(scene.told, outcomes, strict=True)}
        assert sorted(kinds(outcomes)) == ["done", "done", "failed"], by_user
        assert scene.asked_to("stop") == ["ann", "bo"]
        (failed,) = [outcome for outcome in outcomes if outcome.kind is OutcomeKind.FAILED]
        assert str(error) in failed.detail
        assert "By hand: " in failed.detail

    await play(act)


async def test_a_stop_whose_answer_was_lost_is_settled_by_a_re_read_and_not_sent_again(play: Play):
    async def act(scene: Scene) -> None:
        scene.dead("ann", stops=Stops.ANSWER_LOST)
        assert kinds(await scene.repair(await scene.plan())) == ["done"]
        assert scene.asked_to("stop") == ["ann"]

    await play(act)


async def test_routes_that_are_right_after_a_check_that_failed_count_as_repaired(play: Play):
    async def act(scene: Scene) -> None:
        scene.server("ann")
        scene.hub.routes = dict(RESERVE)
        plan = await scene.plan()

        def put_right_and_fail(asked: Request) -> HubError | None:
            if asked.call != "check-routes":
                return None
            scene.hub.routes["/user/ann"] = Route("/user/ann", "http://127.0.0.1:1", "ann", "")
            return HubFailed("The hub failed to check the proxy's routes (500).", status=500)

        scene.hub.fault = put_right_and_fail
        (outcome,) = await scene.repair(plan)
        assert outcome.kind is OutcomeKind.DONE
        assert "(500)" in outcome.detail

    await play(act)


async def test_what_cannot_be_looked_at_again_counts_as_unverified_never_as_repaired(play: Play):
    async def act(scene: Scene) -> None:
        scene.server("bo")
        scene.hub.routes = dict(RESERVE)
        plan = await scene.plan()
        scene.look_error = lambda number: BackendError("The engine doesn't answer.") if number > 2 else None
        (outcome,) = await scene.repair(plan)
        assert outcome.kind is OutcomeKind.UNVERIFIED
        assert "The engine doesn't answer." in outcome.detail

    await play(act)


async def test_routes_that_are_still_wrong_have_failed_though_a_look_in_between_did_too(play: Play):
    async def act(scene: Scene) -> None:
        scene.server("bo")
        scene.hub.routes = dict(RESERVE)
        scene.hub.routes_stay_wrong = True
        plan = await scene.plan()
        scene.look_error = lambda number: BackendError("The engine is slow.") if number == 3 else None
        (outcome,) = await scene.repair(plan)
        assert outcome.kind is OutcomeKind.FAILED
        assert "route-missing" in outcome.detail

    await play(act)


async def test_absence_proves_nothing_where_not_all_backends_can_be_seen(play: Play):
    async def act(scene: Scene) -> None:
        scene.engine.add("ann")
        plan = await scene.plan()
        end = scene.engine.end

        async def end_and_see_nothing(backend: Backend) -> None:
            await end(backend)
            scene.engine.whole = False

            async def nothing(_: object) -> tuple[Backend, ...]:
                return ()

            scene.engine.look = nothing  # type: ignore[method-assign,assignment]

        scene.engine.end = end_and_see_nothing  # type: ignore[method-assign]
        (outcome,) = await scene.repair(plan)
        assert outcome.kind is OutcomeKind.UNVERIFIED
        assert "the list is incomplete" in outcome.detail

    await play(act)


async def test_an_end_that_cannot_be_seen_is_unverified(play: Play):
    async def act(scene: Scene) -> None:
        scene.engine.add("ann")
        plan = await scene.plan()
        gone = False

        def fault(asked: BackendRequest) -> BackendError | None:
            nonlocal gone
            gone = gone or asked.end is not None
            return BackendError("The engine hangs.") if gone and asked.end is None else None

        scene.engine.fault = fault
        (outcome,) = await scene.repair(plan)
        assert outcome.kind is OutcomeKind.UNVERIFIED
        assert "The engine hangs." in outcome.detail

    await play(act)


async def test_an_engine_that_refuses_to_end_one_has_failed_at_once(play: Play):
    async def act(scene: Scene) -> None:
        scene.engine.add("ann")
        plan = await scene.plan()
        scene.engine.fault = lambda asked: BackendError("The engine says no.") if asked.end is not None else None
        before_s = scene.clock.monotonic_s()
        (outcome,) = await scene.repair(plan)
        assert outcome.kind is OutcomeKind.FAILED
        assert "The engine says no." in outcome.detail
        assert scene.clock.monotonic_s() - before_s < 1

    await play(act)


async def test_sources_that_cannot_be_read_at_the_second_look_skip_only_that_one(play: Play):
    async def act(scene: Scene) -> None:
        scene.dead("ann")
        scene.dead("bo")
        plan = await scene.plan()
        scene.look_error = lambda number: BackendError("The engine is away.") if number == 2 else None
        outcomes = await scene.repair(plan, concurrency=1)
        assert kinds(outcomes) == ["skipped", "done"]
        assert outcomes[0].cause is Cause.NOT_TRIED

    await play(act)


async def test_a_stop_that_leaves_its_backend_alive_has_made_an_orphan_and_says_so(play: Play):
    async def act(scene: Scene) -> None:
        await stuck(scene)
        plan = await scene.plan()
        scene.hub.backends.add(("ann", ""))
        scene.hub.change("ann", pending="spawn", stops=Stops.RAISES)
        scene.engine.add("ann")
        (outcome,) = await scene.repair(plan)
        assert outcome.kind is OutcomeKind.FAILED
        assert "still runs: it is an orphan now" in outcome.detail

    await play(act)


async def test_a_stop_isnt_called_failed_by_the_spawners_word_alone_that_its_backend_was_still_there(play: Play):
    """A batch queue's poll calls a job alive for a minute after a good stop, and nothing lists its jobs."""

    async def act(scene: Scene) -> None:
        await stuck(scene)
        plan = await scene.plan()
        look = scene.repairer._look

        async def with_that_word(keys: Sequence[Key]) -> tuple[Drift, ...]:
            gone = not scene.hub._records[("ann", "")].active
            return (drift_of(DriftKind.SERVER_ORPHAN, "ann", backend=None),) if gone else await look(keys)

        scene.repairer._look = with_that_word
        (outcome,) = await scene.repair(plan)
        assert outcome.kind is OutcomeKind.DONE
        assert "may only have needed a moment longer" in outcome.detail

    await play(act)


async def test_a_repair_is_never_blamed_on_anothers_orphan(play: Play):
    async def act(scene: Scene) -> None:
        await stuck(scene, "u17")
        scene.engine.add("u16")
        scene.engine.add("u17", "named")
        plan = await scene.plan(DriftKind.PENDING_STUCK)
        look = scene.look

        async def of_all(keys: Sequence[Key]) -> tuple[Drift, ...]:
            """As Looks.look_at does, which returns what it sees of others, too."""
            return await look(())

        scene.repairer._look = of_all
        (outcome,) = await scene.repair(plan)
        assert outcome.kind is OutcomeKind.DONE, outcome
        (of_u16,) = (drift for drift in scene.found if drift.user == "u16")
        await scene.keeper.intend(
            Action("u18", "", None, None, "server-orphan", kind=ActionKind.END_BACKEND), "ann", asked=True, armed=None
        )
        await scene.repairer.settle_left(scene.open_intents())
        assert of_u16.backend is not None
        assert not any(of_u16.backend.name in entry.detail for entry in scene.entries(Event.OUTCOME))

    await play(act)


async def test_an_orphan_that_was_there_before_the_stop_is_not_blamed_on_it(play: Play):
    async def act(scene: Scene) -> None:
        scene.dead("ann")
        plan = await scene.plan(DriftKind.SERVER_DEAD)
        look = scene.look
        there = replace(scene.engine.add("bo"), user="ann", started=None)
        after = [there]

        async def with_orphans(keys: Sequence[Key]) -> tuple[Drift, ...]:
            found = (drift for drift in await look(keys) if drift.kind is not DriftKind.SERVER_ORPHAN)
            return (*found, *(drift_of(DriftKind.SERVER_ORPHAN, "ann", subject=o.id, backend=o) for o in after))

        scene.repairer._look = with_orphans
        (outcome,) = await scene.repair(plan)
        assert outcome.kind is OutcomeKind.DONE, outcome
        scene.dead("ann")
        plan = await scene.plan(DriftKind.SERVER_DEAD)
        scene.told.clear()
        scene.looked = lambda: scene.asked_to("stop")[1:] and after.append(replace(there, id="another", name="another"))
        (outcome,) = await scene.repair(plan)
        assert outcome.kind is OutcomeKind.FAILED
        assert "another still runs" in outcome.detail

    await play(act)


async def test_an_orphan_of_an_earlier_run_is_not_blamed_on_the_stop_of_a_later_one(play: Play):
    async def act(scene: Scene) -> None:
        scene.engine.add("ann", stubborn=True)
        await scene.clock.sleep(300)
        await stuck(scene)
        (outcome,) = await scene.repair(await scene.plan(DriftKind.PENDING_STUCK))
        assert outcome.kind is OutcomeKind.DONE, outcome

    await play(act)


# -- starting ghosts ---------------------------------------------------------------------------------------------------


async def test_after_a_start_that_failed_no_other_is_tried_since_a_hub_exits_after_several(play: Play):
    async def act(scene: Scene) -> None:
        for user in ("ann", "bo", "cy"):
            scene.ghost(user)
        scene.dead("dee")
        scene.hub.start_error = HubFailed("The hub failed to start the server of ann (500).", status=500)
        outcomes = await scene.repair(await scene.plan())
        assert len(scene.asked_to("start")) == 1
        assert scene.asked_to("stop") == ["dee"]
        assert sorted(kinds(outcomes)) == ["done", "done", "skipped", "skipped"]
        skipped = [outcome for outcome in outcomes if outcome.kind is OutcomeKind.SKIPPED]
        assert all("consecutive_failure_limit" in outcome.detail for outcome in skipped)

    await play(act)


async def test_ghosts_are_started_one_at_a_time(play: Play):
    async def act(scene: Scene) -> None:
        for user in ("ann", "bo", "cy"):
            scene.ghost(user)
        scene.hub.start_s = 3.0
        plan = await scene.plan()
        assert kinds(await scene.repair(plan)) == ["done"] * 3
        calls = [(r.call, r.user) for r in scene.hub.requests if r.call in ("start", "stop")]
        assert [call for call, _ in calls] == ["start", "stop"] * 3
        assert all(calls[at][1] == calls[at + 1][1] for at in (0, 2, 4))

    await play(act)


async def test_a_start_that_the_hub_refuses_leaves_what_to_do_by_hand(play: Play):
    async def act(scene: Scene) -> None:
        scene.ghost("ann")
        scene.hub.fault = lambda asked: HubRefused("The hub refused (403).") if asked.call == "start" else None
        (outcome,) = await scene.repair(await scene.plan())
        assert outcome.kind is OutcomeKind.FAILED
        assert "The hub refused (403)." in outcome.detail
        assert "server_id" in outcome.detail

    await play(act)


async def test_a_ghost_that_turns_out_to_run_is_left_running(play: Play):
    async def act(scene: Scene) -> None:
        server = scene.ghost("ann")
        scene.hub.backends.add(server.key)
        before_s = scene.clock.monotonic_s()
        (outcome,) = await scene.repair(await scene.plan())
        assert scene.clock.monotonic_s() - before_s < 1  # nothing has begun that would be worth waiting for
        assert outcome.kind is OutcomeKind.FAILED
        assert "already running" in outcome.detail
        assert not scene.asked_to("stop")

    await play(act)


async def test_a_ghost_that_does_not_come_up_in_time_is_not_left_starting(play: Play):
    async def act(scene: Scene) -> None:
        scene.ghost("ann")
        scene.hub.start_s = 120.0 * 10
        (outcome,) = await scene.repair(await scene.plan())
        assert outcome.kind is OutcomeKind.DONE, outcome
        assert [intent.action for intent in scene.entries(Event.INTENT)] == ["start-and-stop", "interrupt-spawn"]
        assert not await scene.hub.list_servers()

    await play(act)


@pytest.mark.parametrize(("start_s", "actions"), [(110.0, "stop-server"), (130.0, "interrupt-spawn")])
async def test_a_ghost_that_is_started_gets_two_minutes_to_come_up(play: Play, start_s: float, actions: str):
    async def act(scene: Scene) -> None:
        scene.ghost("ann")
        scene.hub.start_s = start_s
        await scene.repair(await scene.plan())
        assert [intent.action for intent in scene.entries(Event.INTENT)] == ["start-and-stop", actions]

    await play(act)


async def test_a_hold_between_start_and_stop_leaves_it_running_and_says_so(play: Play):
    async def act(scene: Scene) -> None:
        scene.ghost("ann")
        scene.ghost("bo")
        plan = await scene.plan()

        def hold(asked: Request) -> None:
            if asked.call == "start":
                scene.books.journal.hold("dee", "stop it", scene.clock.now())

        scene.hub.fault = hold
        outcome, other = await scene.repair(plan, concurrency=1)
        assert outcome.kind is OutcomeKind.FAILED
        assert "it was started again, runs, and wasn't stopped" in outcome.detail
        assert not scene.asked_to("stop")
        assert other.kind is OutcomeKind.SKIPPED
        assert scene.looks == 2  # the other one isn't even looked at
        assert not scene.open_intents()

    await play(act)


async def test_a_server_that_its_user_restarts_between_our_start_and_stop_is_not_stopped(play: Play):
    async def act(scene: Scene) -> None:
        scene.ghost("ann")
        plan = await scene.plan()
        reads = 0

        def restart(asked: Request) -> None:
            nonlocal reads
            reads += asked.call == "get" and bool(scene.asked_to("start"))
            if reads == 2:
                scene.hub.change("ann", started=scene.clock.now() + timedelta(seconds=5))

        scene.hub.fault = restart
        (outcome,) = await scene.repair(plan)
        assert outcome.kind is OutcomeKind.FAILED
        assert "restarted in the meantime" in outcome.detail
        assert not scene.asked_to("stop")

    await play(act)


# -- who may act -------------------------------------------------------------------------------------------------------


async def test_nothing_is_repaired_by_itself_while_hubguard_only_observes_but_what_is_asked_for_is(play: Play):
    async def act(scene: Scene) -> None:
        scene.dead("ann")
        plan = await scene.plan()
        assert kinds(await scene.repair(plan, asked=False)) == ["skipped"]
        assert scene.changed_nothing()
        scene.told.clear()
        assert kinds(await scene.repair(plan, asked=True)) == ["done"]

    await play(act)


async def test_a_hold_in_the_midst_ends_what_has_not_been_sent(play: Play):
    async def act(scene: Scene) -> None:
        for user in ("ann", "bo", "cy"):
            scene.dead(user)
        scene.engine.add("dee")
        plan = await scene.plan()

        def hold(asked: Request) -> None:
            if asked.call == "stop":
                scene.books.journal.hold("dee", "stop it", scene.clock.now())

        scene.hub.fault = hold
        outcomes = await scene.repair(plan, concurrency=1)
        assert kinds(outcomes) == ["done", "skipped", "skipped", "skipped"]
        assert len(scene.asked_to("stop")) == 1
        assert not scene.ended()

    await play(act)


async def test_a_lease_lost_in_the_midst_ends_what_has_not_been_sent(play: Play):
    async def act(scene: Scene) -> None:
        for user in ("ann", "bo", "cy"):
            scene.dead(user)
        plan = await scene.plan()

        def push_aside(asked: Request) -> None:
            if asked.call == "stop":
                journal, now = scene.books.journal, scene.clock.now()
                assert journal.take_lease(HUB, "newer", "", 2.0, now, 3600.0) is not None

        scene.hub.fault = push_aside
        outcomes = await scene.repair(plan, concurrency=1)
        assert kinds(outcomes) == ["done", "skipped", "skipped"]
        assert len(scene.asked_to("stop")) == 1
        assert not scene.open_intents()

    await play(act)


@pytest.mark.parametrize(
    "error",
    [
        BudgetExhausted("The hub failed several times in a row, so it is left alone for now."),
        ProxyUnreachable("The proxy doesn't answer."),
        HubRefused("The token isn't valid."),
        JournalError("The journal is full."),
    ],
)
async def test_what_concerns_all_of_them_ends_all_of_them(play: Play, error: Exception):
    async def act(scene: Scene) -> None:
        for user in ("ann", "bo", "cy"):
            scene.dead(user)
        plan = await scene.plan()
        scene.look_error = lambda _: error
        assert kinds(await scene.repair(plan, concurrency=1)) == ["skipped"] * 3
        assert scene.looks == 2
        assert scene.changed_nothing()

    await play(act)


async def test_the_end_that_one_repair_comes_upon_ends_the_others_though_one_beside_it_has_nothing_to_say(play: Play):
    """The first of bo's is left alone for a reason of its own, after ann's has found that the hub refuses to be read."""

    async def act(scene: Scene) -> None:
        scene.dead("ann")
        gone = scene.engine.add("bo")
        await scene.clock.sleep(1)
        scene.engine.add("bo")
        plan = await scene.plan()
        assert [repair.action.user for repair in plan.repairs] == ["ann", "bo", "bo"]
        assert plan.repairs[1].backend == gone
        del scene.engine._backends[gone.id]
        look = scene.repairer._look

        async def refused_for_ann(keys: Sequence[Key]) -> tuple[Drift, ...]:
            if keys == [("ann", "")]:
                await scene.clock.sleep(0.01)
                raise HubRefused("The token isn't valid.")
            return await look(keys)

        scene.repairer._look = refused_for_ann
        outcomes = await scene.repair(plan, concurrency=4)
        assert kinds(outcomes) == ["skipped"] * 3
        assert [outcome.cause for outcome in outcomes] == [Cause.NOT_TRIED, Cause.NONE, Cause.NOT_TRIED]
        assert scene.looks == 2, "for the plan, and for the first of bo's"
        assert scene.changed_nothing()

    await play(act)


# -- order and pace ----------------------------------------------------------------------------------------------------


async def test_routes_are_put_right_before_anything_else_and_alone(play: Play):
    async def act(scene: Scene) -> None:
        for number in range(5):
            scene.dead(f"u{number}")
        scene.server("ann")
        del scene.hub.routes["/user/ann"]
        plan = await scene.plan()
        plan = replace(plan, repairs=tuple(reversed(plan.repairs)))
        assert set(kinds(await scene.repair(plan))) == {"done"}
        sent = [request.call for request in scene.hub.requests if request.call in ("stop", "check-routes")]
        assert sent == ["check-routes"] + ["stop"] * 5

    await play(act)


async def test_two_repairs_of_one_server_come_one_after_the_other_each_with_its_own_look(play: Play):
    async def act(scene: Scene) -> None:
        scene.engine.add("ann")
        scene.engine.add("ann")
        plan = await scene.plan()
        assert [repair.action.kind for repair in plan.repairs] == [ActionKind.END_BACKEND] * 2
        under_way = most = 0

        async def end(backend: object) -> None:
            nonlocal under_way, most
            under_way += 1
            most = max(most, under_way)
            await scene.clock.sleep(3)
            under_way -= 1

        scene.engine.end = end  # type: ignore[method-assign]
        await scene.repair(plan)
        assert most == 1

    await play(act)


async def test_no_more_are_sent_at_once_than_allowed(play: Play):
    async def act(scene: Scene) -> None:
        for number in range(12):
            scene.dead(f"u{number}")
        plan = await scene.plan()
        now = most = 0
        stop = scene.hub.stop_server

        async def counted(*args: str, **options: object) -> bool:
            nonlocal now, most
            now += 1
            most = max(most, now)
            await scene.clock.sleep(1)
            try:
                return await stop(*args, **options)  # type: ignore[arg-type]
            finally:
                now -= 1

        scene.hub.stop_server = counted  # type: ignore[method-assign,assignment]
        assert set(kinds(await scene.repair(plan, concurrency=3))) == {"done"}
        assert most == 3

    await play(act)


async def test_two_plans_are_carried_out_one_after_the_other(play: Play):
    async def act(scene: Scene) -> None:
        scene.dead("ann")
        plan = await scene.plan()
        scene.hub.takes_s = 0.3
        run = [scene.repairer.run(plan, Order(actor, asked=True), concurrency=4, running=1) for actor in ("bo", "cy")]
        (_, first), (_, second) = [done[0] for done in await asyncio.gather(*run)]
        assert kinds([first, second]) == ["done", "skipped"]
        assert scene.asked_to("stop") == ["ann"]

    await play(act)


# -- after a crash -----------------------------------------------------------------------------------------------------


async def crash(scene: Scene, plan: RepairPlan, call: str) -> None:
    """The guard ends while its request is on the way."""
    reached = asyncio.Event()

    async def hang(*_: object, **options: object) -> bool:
        confirm = options.get("confirm")
        if callable(confirm):
            await confirm()
        reached.set()
        await asyncio.Event().wait()
        return True

    owner = scene.engine if call == "end" else scene.hub
    kept = getattr(owner, call)
    setattr(owner, call, hang)
    task = asyncio.ensure_future(scene.repairer.run(plan, Order("ann", asked=True), concurrency=4, running=1))
    await reached.wait()
    assert {intent.id for intent in scene.open_intents()} == scene.mandate.intents_under_way
    await scene.repairer.settle_left(scene.open_intents())
    assert scene.open_intents()  # what is under way isn't left over
    task.cancel()
    await asyncio.gather(task, return_exceptions=True)
    assert not scene.mandate.intents_under_way
    setattr(owner, call, kept)


async def test_an_intent_left_behind_is_settled_by_a_look_and_its_request_is_not_sent_again(play: Play):
    async def act(scene: Scene) -> None:
        scene.server("ann")
        del scene.hub.routes["/user/ann"]
        await crash(scene, await scene.plan(), "check_routes")
        later = scene.another_repairer(Mandate(scene.books, scene.keeper, scene.clock))
        await later.settle_left(scene.open_intents())
        (left,) = scene.entries(Event.OUTCOME)
        assert left.outcome is OutcomeKind.UNVERIFIED
        assert "the guard ended before the outcome was known" in left.detail
        assert not scene.asked_to("check-routes")
        assert not scene.open_intents()

    await play(act)


async def test_a_ghost_that_was_started_and_never_stopped_is_told_of(play: Play):
    async def act(scene: Scene) -> None:
        scene.ghost("ann")
        plan = await scene.plan()
        await crash(scene, plan, "start_server")
        await scene.hub.start_server("ann", "")
        scene.hub.change("ann", pending="stop")
        await scene.repairer.settle_left(scene.open_intents())
        assert len(scene.open_intents()) == 1  # its end isn't known yet
        scene.hub.change("ann", ready=True)
        await scene.repairer.settle_left(scene.open_intents())
        (left,) = scene.entries(Event.OUTCOME)
        assert left.outcome is OutcomeKind.UNVERIFIED
        assert "stop it yourself" in left.detail

    await play(act)


async def test_an_orphan_that_ended_after_the_guard_did_is_settled_as_gone(play: Play):
    async def act(scene: Scene) -> None:
        orphan = scene.engine.add("ann")
        plan = await scene.plan()
        (repair,) = plan.repairs
        await scene.keeper.intend(repair.action, "ann", asked=True, armed=None, detail=orphan.id)
        scene.look_error = lambda _: BackendError("The engine is away.")
        await scene.repairer.settle_left(scene.open_intents())
        assert len(scene.open_intents()) == 1
        scene.look_error = lambda _: None
        scene.engine.kill("ann")
        await scene.repairer.settle_left(scene.open_intents())
        (left,) = scene.entries(Event.OUTCOME)
        assert (left.outcome, left.detail) == (OutcomeKind.DONE, "found repaired by a later look")

    await play(act)


async def test_an_orphan_that_is_gone_is_not_called_alive_by_another_of_the_same_server(play: Play):
    """A guard that was started again named whichever orphan the server had by then."""

    async def act(scene: Scene) -> None:
        ended = scene.engine.add("ann")
        await crash(scene, await scene.plan(), "end")
        scene.engine.kill("ann")
        assert scene.engine.add("ann").id != ended.id
        await scene.another_repairer().settle_left(scene.open_intents())
        (left,) = scene.entries(Event.OUTCOME)
        assert (left.outcome, left.detail) == (OutcomeKind.DONE, "found repaired by a later look")

    await play(act)


async def test_intents_of_culling_and_pruning_are_none_of_drifts_to_settle(play: Play):
    async def act(scene: Scene) -> None:
        server = scene.dead("ann")
        for kind in (ActionKind.STOP_SERVER, ActionKind.INTERRUPT_SPAWN, ActionKind.DELETE_USER):
            action = Action("ann", "", server.started, None, "idle", kind=kind)
            await scene.keeper.intend(action, "hubguard", asked=True, armed=None)
        scene.hub.requests.clear()
        await scene.repairer.settle_left(scene.open_intents())
        assert len(scene.open_intents()) == 3
        assert scene.entries(Event.OUTCOME) == []
        assert (scene.looks, scene.hub.requests) == (0, [])

    await play(act)


async def test_an_orphan_of_which_nothing_more_is_known_is_called_its_backend(play: Play):
    async def act(scene: Scene) -> None:
        action = Action("ann", "", None, None, "server-orphan", kind=ActionKind.END_BACKEND)
        await scene.keeper.intend(action, "ann", asked=True, armed=None)

        async def look(keys: Sequence[Key]) -> tuple[Drift, ...]:
            return (drift_of(DriftKind.SERVER_ORPHAN, "ann", backend=None),)

        scene.look = look  # type: ignore[method-assign]
        await scene.another_repairer().settle_left(scene.open_intents())
        (left,) = scene.entries(Event.OUTCOME)
        assert left.outcome is OutcomeKind.UNVERIFIED
        assert "its backend is alive" in left.detail

    await play(act)
