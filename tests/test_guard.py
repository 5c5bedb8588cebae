"""The guard in virtual time: a hub in memory, a journal in memory, and everything that can happen to both."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from dataclasses import dataclass, replace
from datetime import timedelta
from pathlib import Path
from typing import Any

import pytest
from assembled import assembled
from constants import with_constants
from doubles.hub import MemoryHub, Request, Stops
from handing_over import StandIn, replaced
from inline_journal import InlineJournal
from virtual_time import VirtualClock

from hubguard import config, understudy, words
from hubguard.act.lease import HUB
from hubguard.cull import shapes as cull_shapes
from hubguard.cull.cli import exit_code
from hubguard.cull.model import Reason, Wish
from hubguard.errors import HubBusy, HubError, HubGuardError, HubRefused, HubUnreachable, JournalError
from hubguard.guard import Guard
from hubguard.inhub.handover import Kind, Suspect
from hubguard.journal.model import ArmedBy, Entry, Event
from hubguard.journal.store import open_journal
from hubguard.journal.words import entry_sentence
from hubguard.model import FindingKind, OutcomeKind, Server, User
from hubguard.pacing.budget import Budget
from hubguard.prune.review import HubConfigFacts
from hubguard.status import Culls, Mode, Status, TakenSetting

ARMED = {"HubGuard": {"armed": True}, "HubGuardCull": {"idle_timeout_s": 600.0}}


@dataclass
class World:
    clock: VirtualClock
    hub: MemoryHub
    books: InlineJournal
    guard: Guard
    status: Status | None = None  # as it was at the end of for_s

    def server(
        self, user: str, idle_s: float, *, name: str = "", stops: Stops = Stops.WORKS, stop_s: float = 0.0
    ) -> None:
        now = self.clock.now()
        seen = now - timedelta(seconds=idle_s)
        started = now - timedelta(days=1)
        self.hub.add(
            Server(user, name, ready=True, pending=None, started=started, last_activity=seen),
            stops=stops,
            stop_s=stop_s,
        )

    def stopped(self) -> list[str]:
        return [request.user for request in self.hub.requests if request.call == "stop"]

    def entries(self, event: str) -> list[Entry]:
        return list(reversed(self.books.journal.entries(event=Event(event), limit=1000)))

    async def for_s(self, seconds: float) -> None:
        """The guard lives for ``seconds``."""
        await self.clock.run(self._live(seconds))

    async def _live(self, seconds: float) -> None:
        task = asyncio.ensure_future(self.guard.run())
        await self.clock.sleep(seconds)
        assert not task.done(), task.exception()
        self.status = self.guard.status()
        task.cancel()
        await asyncio.gather(task, return_exceptions=True)


MakeWorld = Callable[..., Awaitable[World]]


@pytest.fixture
async def world() -> MakeWorld:
    async def make(
        *layers: dict[str, dict[str, object]],
        books: InlineJournal | None = None,
        clock: VirtualClock | None = None,
        **options: object,
    ) -> World:
        settings = config.load(*(layers or (ARMED,)), environ={})
        with_constants(settings, **{name: options.pop(name) for name in ("lease_s", "retry_base_s") if name in options})
        clock = clock or VirtualClock()
        budget = Budget(
            rate=settings.budget.rate, burst=settings.budget.burst, concurrency=settings.budget.concurrency, clock=clock
        )
        hub = MemoryHub(clock=clock, budget=budget)
        books = books or InlineJournal()
        books.close = lambda: None  # type: ignore[method-assign]  # it is read after the guard has ended

        holder = str(options.pop("holder", "here"))
        guard = assembled(
            settings, hub, budget, books, clock,
            holder=holder, address="http://here/", generation=float(options.pop("generation", 0.0)), **options,
        )  # fmt: skip
        return World(clock, hub, books, guard)

    return make


async def test_idle_servers_are_stopped_in_the_first_cycle_and_the_others_left(world: MakeWorld):
    w = await world()
    w.server("idle", 700)
    w.server("busy", 10)
    await w.for_s(30)
    assert w.stopped() == ["idle"]
    assert w.hub.backends == {("busy", "")}
    assert w.status.mode is Mode.ACTING
    (intent,), (outcome,) = w.entries(Event.INTENT), w.entries(Event.OUTCOME)
    assert (intent.user, intent.reason, outcome.outcome) == ("idle", "idle", OutcomeKind.DONE)
    assert outcome.refers_to == intent.id


async def test_a_first_install_only_observes_and_the_journal_says_what_it_would_do_once(world: MakeWorld):
    w = await world({"HubGuardCull": {"idle_timeout_s": 600.0}})
    w.server("idle", 700)
    await w.for_s(600)
    assert w.stopped() == []
    assert w.status.mode is Mode.OBSERVING
    (note,) = w.entries(Event.ANNOUNCED)
    assert note.user == "idle"
    assert "would be stopped" in note.detail
    assert note.grounds is not None
    assert (note.grounds.limit_s, note.grounds.evidence) == (600.0, "hub")
    assert "(idle since" in entry_sentence(note)


@pytest.mark.parametrize(
    ("leave", "stopped"), [((), ["u5", "u4", "u3"]), (("u1", "u2"), ["u5"]), (("u1",), ["u5", "u4"])]
)
async def test_as_many_as_all_users_may_have_is_counted_again_before_each_stop(
    world: MakeWorld, leave: tuple[str, ...], stopped: list[str]
):
    """Two may stay, and while the first of three is being stopped, others leave by themselves."""
    rules = [{"name": "class", "users": "u*", "max_servers_in_all": 2}]
    w = await world(
        {"HubGuard": {"armed": True}, "HubGuardCull": {"idle_timeout_s": 0.0, "rules": rules, "every_s": 3600.0}},
        {"HubGuardBudget": {"concurrency": 1}},
    )
    for number in range(1, 6):
        w.server(f"u{number}", 1000 + number)
    stop = w.hub.stop_server

    async def stop_server(user: str, name: str, **more: Any) -> bool:
        answer = await stop(user, name, **more)
        for other in leave:
            w.hub._records.pop((other, ""), None)
        await w.clock.sleep(11)
        return answer

    w.hub.stop_server = stop_server  # type: ignore[method-assign]
    await w.for_s(600)
    assert w.stopped() == stopped


async def test_arming_takes_effect_within_a_moment(world: MakeWorld):
    w = await world({"HubGuardCull": {"idle_timeout_s": 600.0, "every_s": 3600.0}})
    w.server("idle", 700)

    async def arm() -> None:
        task = asyncio.ensure_future(w.guard.run())
        await w.clock.sleep(30)
        await w.guard.mandate.arm("ada", "we have seen enough")
        await w.clock.sleep(5)
        task.cancel()
        await asyncio.gather(task, return_exceptions=True)

    await w.clock.run(arm())
    assert w.stopped() == ["idle"]


async def test_a_person_who_asks_for_a_cycle_gets_it_even_from_an_observer(world: MakeWorld):
    w = await world({"HubGuardCull": {"idle_timeout_s": 600.0, "every_s": 3600.0}})
    w.server("idle", 700)

    async def ask() -> None:
        task = asyncio.ensure_future(w.guard.run())
        await w.clock.sleep(1)
        dry = await w.guard.parts.culling.cycle("ada", Wish(dry_run=True))
        assert [action.user for action in dry.plan.actions] == ["idle"]
        assert w.stopped() == []
        await w.guard.parts.culling.cycle("ada", Wish())
        task.cancel()
        await asyncio.gather(task, return_exceptions=True)

    await w.clock.run(ask())
    assert w.stopped() == ["idle"]
    assert w.entries(Event.INTENT)[0].actor == "ada"


async def test_a_hold_stops_even_what_a_person_asks_for(world: MakeWorld):
    w = await world()
    w.books.journal.hold("bob", "an exam", w.clock.now())
    w.server("idle", 700)

    async def ask() -> str:
        task = asyncio.ensure_future(w.guard.run())
        await w.clock.sleep(1)
        report = await w.guard.parts.culling.cycle("ada", Wish())
        w.status = w.guard.status()
        task.cancel()
        await asyncio.gather(task, return_exceptions=True)
        return report.skipped_why

    assert await w.clock.run(ask()) == "HubGuard is on hold (bob: an exam)"
    assert w.stopped() == []
    assert w.status.mode is Mode.HELD


async def test_a_hold_in_the_middle_of_a_cycle_stops_the_rest_of_it(world: MakeWorld):
    w = await world({**ARMED, "HubGuardBudget": {"concurrency": 1}})
    for number in range(20):
        w.server(f"u{number:02}", 700, stop_s=2)

    async def hold() -> None:
        task = asyncio.ensure_future(w.guard.run())
        await w.clock.sleep(7)
        w.books.journal.hold("bob", "from a terminal", w.clock.now())
        await w.clock.sleep(120)
        task.cancel()
        await asyncio.gather(task, return_exceptions=True)

    await w.clock.run(hold())
    assert 1 <= len(w.stopped()) <= 5
    assert len(w.entries(Event.INTENT)) == len(w.entries(Event.OUTCOME)) == len(w.stopped())


async def test_a_user_who_comes_back_between_list_and_stop_keeps_the_server(world: MakeWorld):
    w = await world()
    w.server("ada", 700)

    def comes_back(request: Request) -> None:
        if request.call == "list":
            asyncio.get_running_loop().call_soon(lambda: w.hub.change("ada", last_activity=w.clock.now()))

    w.hub.fault = comes_back
    w.hub.takes_s = 0.2
    await w.for_s(30)
    assert w.stopped() == []


@pytest.mark.long
async def test_a_failed_stop_is_not_repeated_before_its_back_off_and_the_others_go_on(world: MakeWorld):
    w = await world({**ARMED, "HubGuardCull": {"idle_timeout_s": 600.0, "every_s": 10.0}}, retry_base_s=60.0)
    w.server("bad", 900, stops=Stops.POLL_RAISES)
    w.server("good", 700)
    await w.for_s(3600)
    tries = [request.at_s for request in w.hub.requests if request.call == "stop" and request.user == "bad"]
    assert "good" in w.stopped()
    assert 2 <= len(tries) < 40, "360 cycles, and hardly any of them asked again"
    failed = [entry for entry in w.entries(Event.OUTCOME) if entry.user == "bad"]
    assert {entry.outcome for entry in failed} == {OutcomeKind.FAILED}


async def test_a_204_that_changed_nothing_is_a_failure_not_a_success(world: MakeWorld):
    w = await world()
    w.server("ghost", 700, stops=Stops.GHOST)
    await w.for_s(90)
    assert [entry.outcome for entry in w.entries(Event.OUTCOME)] == [OutcomeKind.FAILED]


async def test_a_server_that_comes_back_ready_after_a_202_is_a_failure(world: MakeWorld):
    w = await world()
    w.server("ada", 700, stops=Stops.COMES_BACK)
    await w.for_s(90)
    assert [entry.outcome for entry in w.entries(Event.OUTCOME)] == [OutcomeKind.FAILED]


async def test_a_stop_whose_answer_is_lost_is_settled_by_reading_not_by_asking_again(world: MakeWorld):
    w = await world()
    w.server("ada", 700, stops=Stops.ANSWER_LOST)
    await w.for_s(300)
    assert w.stopped() == ["ada"]
    assert [entry.outcome for entry in w.entries(Event.OUTCOME)] == [OutcomeKind.DONE]


async def test_a_slow_stop_is_waited_for(world: MakeWorld):
    w = await world()
    w.server("slow", 700, stop_s=25)
    await w.for_s(60)
    assert w.stopped() == ["slow"]
    assert [entry.outcome for entry in w.entries(Event.OUTCOME)] == [OutcomeKind.DONE]


@pytest.mark.parametrize(
    "error", [HubUnreachable("refused"), HubBusy("429"), HubRefused("403"), HubGuardError("a new kind")]
)
async def test_half_a_list_stops_nothing_and_the_status_says_why(world: MakeWorld, error: HubGuardError):
    w = await world()
    w.server("idle", 700)

    def fault(request: Request) -> HubError | None:
        return error if request.call == "list" else None  # type: ignore[return-value]

    w.hub.fault = fault
    await w.for_s(300)
    status = w.status
    assert w.stopped() == []
    assert status.mode is Mode.BRAKED
    assert str(error) in status.why
    w.hub.fault = None
    await w.for_s(60)
    assert w.stopped() == [], (
        "nobody's activity could be seen during the outage, so that idle clocks start anew after it"
    )
    await w.for_s(700)
    assert w.stopped() == ["idle"]


async def test_a_token_without_the_scope_to_stop_is_tried_once_a_cycle_not_once_a_server(world: MakeWorld):
    w = await world({**ARMED, "HubGuardBudget": {"concurrency": 2}})
    for number in range(50):
        w.server(f"u{number}", 700)
    w.hub.fault = lambda request: HubRefused("delete:servers is missing") if request.call == "stop" else None
    await w.for_s(30)
    assert len(w.stopped()) <= 2


async def test_never_more_requests_than_the_budget_in_any_second(world: MakeWorld):
    w = await world({**ARMED, "HubGuardBudget": {"rate": 5.0, "burst": 3, "concurrency": 50}})
    for number in range(100):
        w.server(f"u{number:03}", 700, stops=Stops.POLL_RAISES if number % 3 else Stops.WORKS)
    await w.for_s(600)
    times = [request.at_s for request in w.hub.requests]
    assert len(set(w.stopped())) == 100
    for window_s in (1, 10, 60):
        assert max(sum(t <= u < t + window_s for u in times) for t in times) <= 5 * window_s + 3


async def test_a_wrong_setting_is_named_and_nothing_is_done(world: MakeWorld):
    w = await world({**ARMED, "HubGuardCull": {"idle_timeout": 1}})
    w.server("idle", 9000)
    await w.for_s(300)
    status = w.status
    assert status.mode is Mode.TROUBLED
    assert "HubGuardCull.idle_timeout" in status.why
    assert w.hub.requests == []
    with pytest.raises(HubGuardError, match="HubGuardCull.idle_timeout"):
        await w.guard.parts.culling.cycle("ada", Wish())


async def test_two_guards_on_one_journal_never_act_at_once(world: MakeWorld):
    first = await world(holder="first")
    second = await world(books=first.books, clock=first.clock, holder="second")
    for w in (first, second):
        for number in range(30):
            w.server(f"u{number}", 700)

    async def both() -> None:
        tasks = [asyncio.ensure_future(w.guard.run()) for w in (first, second)]
        await first.clock.sleep(200)
        second.status = second.guard.status()
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)

    await first.clock.run(both())
    assert len(first.stopped()) == 30
    assert second.hub.requests == []
    assert second.status.mode is Mode.STANDBY


async def test_a_guard_of_a_newer_hub_takes_over_at_once_and_the_old_one_says_it_is_superseded(world: MakeWorld):
    old = await world({**ARMED, "HubGuardBudget": {"rate": 2.0}}, holder="old", generation=100.0)
    new = await world(books=old.books, clock=old.clock, holder="new", generation=200.0)
    for w in (old, new):
        for number in range(60):
            w.server(f"u{number:02}", 700)

    async def both() -> float:
        first = asyncio.ensure_future(old.guard.run())
        await old.clock.sleep(15)
        took_over_s = old.clock.monotonic_s()
        second = asyncio.ensure_future(new.guard.run())
        await old.guard.mandate.superseded.wait()
        await old.clock.sleep(100)
        for task in (first, second):
            task.cancel()
        await asyncio.gather(first, second, return_exceptions=True)
        return took_over_s

    took_over_s = await old.clock.run(both())
    new_stops = [request for request in new.hub.requests if request.call == "stop"]
    assert new_stops
    assert [request for request in old.hub.requests if request.call == "stop" and request.at_s > took_over_s + 2] == []


async def test_what_a_crash_left_open_is_settled_by_looking_and_never_sent_again_blindly(world: MakeWorld):
    w = await world()
    w.server("gone", 700)
    w.server("alive", 900)
    journal, now = w.books.journal, w.clock.now()
    lease = journal.take_lease(HUB, "crashed", "", 0.0, now, 30)
    assert lease is not None
    (dry,) = [await w.clock.run(_dry(w))]
    for action in dry:
        journal.intend(HUB, lease, action, "hubguard", now, asked=False, armed=True)
    await w.clock.run(w.hub.stop_server("gone", ""))
    w.hub.requests.clear()
    await w.for_s(50)
    assert w.stopped() == [], "alive is backing off, gone is gone"
    assert {entry.user: entry.outcome for entry in w.entries(Event.OUTCOME)} == {
        "gone": OutcomeKind.DONE,
        "alive": OutcomeKind.UNVERIFIED,
    }


async def _dry(w: World):
    from hubguard.cull.decide.judge import judge_all, plan

    servers = await w.hub.list_servers()
    return plan(
        judge_all(servers, w.guard.parts.culling.policy, {}, w.clock.now()), w.guard.parts.culling.policy, w.clock.now()
    ).actions


async def test_a_journal_that_cannot_be_used_stops_everything_and_is_tried_again(world: MakeWorld):
    w = await world()
    w.server("idle", 700)
    real, failing = w.books.call, True

    async def call(function, *args, **kwargs):
        if failing:
            raise JournalError("The disk is full.")
        return await real(function, *args, **kwargs)

    w.books.call = call  # type: ignore[method-assign]
    await w.for_s(60)
    assert w.status.mode is Mode.TROUBLED
    assert "The disk is full." in w.status.why
    assert w.stopped() == []
    failing = False
    await w.for_s(60)
    assert w.stopped() == ["idle"]


async def side_by_side(w: World, folder: Path, *turns: tuple[float, Callable[[], Awaitable[object] | None]]) -> StandIn:
    """Guard and understudy live side by side; at each of ``turns`` (seconds, what happens)."""
    stand_in = StandIn(folder, w.clock)

    async def live() -> None:
        tasks = [asyncio.ensure_future(w.guard.run()), asyncio.ensure_future(stand_in.live())]
        for seconds, turn in turns:
            await w.clock.sleep(seconds)
            w.status = w.guard.status()
            done = turn()
            if done is not None:
                await done
        for task in tasks:
            assert not task.done(), task.exception()
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)

    await w.clock.run(live())
    return stand_in


async def nothing() -> None:
    """Nothing happens."""


REPLACING = {"HubGuardCull": {"idle_timeout_s": 600.0}}


async def test_in_the_place_of_a_culler_it_culls_as_soon_as_that_waits_and_keeps_no_arming(
    world: MakeWorld, tmp_path: Path
):
    w = await world(REPLACING, handover=replaced(tmp_path))
    w.server("idle", 700)
    stand_in = await side_by_side(w, tmp_path, (30, nothing))
    assert w.stopped() == ["idle"]
    assert stand_in.runs == [(0.0, False)]
    assert w.entries(Event.ARMED) == []
    assert w.status is not None
    handover = w.status.handover
    assert (handover.culls, handover.armed_by) == (Culls.HUBGUARD, ArmedBy.CULLER)
    assert handover.settings == (TakenSetting("HubGuardCull.idle_timeout_s", "600.0"),)


async def test_a_culler_that_never_promises_to_wait_keeps_hubguard_from_culling(world: MakeWorld, tmp_path: Path):
    w = await world(ARMED, handover=replaced(tmp_path))
    w.server("idle", 700)
    await w.for_s(600)
    assert w.stopped() == []
    assert w.status is not None
    assert w.status.mode is Mode.OBSERVING
    assert w.status.handover.culls is Culls.NOBODY
    assert "hasn't handed over" in w.status.why


@pytest.mark.parametrize("end", ["observe", "hub refuses", "journal fails"])
async def test_the_culler_works_again_whenever_hubguard_cannot(world: MakeWorld, tmp_path: Path, end: str):
    w = await world(REPLACING, handover=replaced(tmp_path))

    async def spoil() -> None:
        w.server("idle", 700)
        if end == "observe":
            await w.guard.mandate.observe("ann", "not yet")
        elif end == "hub refuses":
            w.hub.fault = lambda request: HubRefused("403") if request.call in {"list", "count"} else None
        else:

            async def call(*_: object, **__: object) -> None:
                raise JournalError("The disk is full.")

            w.books.call = call  # type: ignore[method-assign]

    stand_in = await side_by_side(w, tmp_path, (100, spoil), (900, nothing))
    assert stand_in.original_runs
    assert w.status is not None
    assert w.status.handover.culls is Culls.OTHER
    assert w.status.handover.others[0].runs is True
    stopped = [request.at_s for request in w.hub.requests if request.call == "stop"]
    assert all(at_s < stand_in.runs[-1][0] for at_s in stopped)


async def test_a_hold_stops_both_and_a_wrong_setting_leaves_the_work_to_the_culler(world: MakeWorld, tmp_path: Path):
    w = await world(REPLACING, handover=replaced(tmp_path))
    stand_in = await side_by_side(w, tmp_path, (100, lambda: w.guard.mandate.hold("ann", "exam")), (900, nothing))
    assert not stand_in.original_runs
    assert w.status is not None
    assert w.status.handover.culls is Culls.NOBODY
    other = tmp_path / "other"
    other.mkdir()
    w = await world({**REPLACING, "HubGuardBudget": {"rate": "many"}}, handover=replaced(other))
    stand_in = await side_by_side(w, other, (10, nothing))
    assert stand_in.original_runs
    assert "HubGuardBudget.rate" in understudy_says(other)


@pytest.mark.parametrize("journal", ["is new", "can't be read", "has the resume"])
async def test_incident_a_hold_was_over_when_hubguard_restarted_without_its_journal(
    world: MakeWorld, tmp_path: Path, journal: str
):
    """The folder was lost with the pod, or the database was down: the culler, or HubGuard itself, culled in the exam."""
    former = understudy.Claim(understudy.Word.HELD, "ann: exam", 0.0)
    understudy.write(tmp_path / understudy.CLAIM, former)
    w = await world(REPLACING, handover=replaced(tmp_path))
    w.server("idle", 700)
    if journal == "can't be read":

        async def call(*_: object, **__: object) -> None:
            raise JournalError("The disk is full.")

        w.books.call = call  # type: ignore[method-assign]
    if journal == "has the resume":
        w.books.journal.hold("ann", "exam", w.clock.now())
        w.books.journal.resume("ann", "over", w.clock.now())
    stand_in = await side_by_side(w, tmp_path, (900, nothing))
    assert not stand_in.original_runs
    assert w.stopped() == (["idle"] if journal == "has the resume" else [])
    if journal == "is new":
        assert w.status is not None
        assert w.status.mode is Mode.HELD
        assert "ann: exam" in w.status.why
        await side_by_side(w, tmp_path, (1, lambda: w.guard.mandate.resume("ann", "over")), (60, nothing))
        assert w.stopped() == ["idle"]


async def test_hubguard_does_no_more_than_the_role_of_the_culler_allowed(world: MakeWorld, tmp_path: Path):
    handover = replaced(tmp_path, reach=(("group=students", "user=cy"), ("group=students", "server=cy/")))
    w = await world({"HubGuard": {"armed": True}, **REPLACING}, handover=handover)
    now = w.clock.now()
    for user, name, groups in (
        ("ann", "", ("students",)), ("bo", "", ("staff",)), ("cy", "", ()), ("cy", "gpu", ()), ("di", "", None),
    ):  # fmt: skip
        seen = now - timedelta(seconds=700)
        started = now - timedelta(days=1)
        w.hub.add(Server(user, name, True, None, started=started, last_activity=seen, groups=groups))
    await side_by_side(w, tmp_path, (60, nothing))
    assert sorted(w.stopped()) == ["ann", "cy"]
    last = w.guard.parts.culling.status().last_cycle
    assert last is not None
    reasons = {verdict.server.key: verdict.reason for verdict in last.verdicts}
    assert {key: reasons[key] for key in [("bo", ""), ("cy", "gpu"), ("di", "")]} == {
        ("bo", ""): Reason.BEYOND,
        ("cy", "gpu"): Reason.BEYOND,
        ("di", ""): Reason.CANT_TELL,
    }


async def test_a_service_that_may_cull_is_shown_with_what_to_do_about_it(world: MakeWorld, tmp_path: Path):
    ext = Suspect("ext", Kind.POSSIBLE, "the service ext may list users and stop their servers, among much else")
    w = await world(ARMED, handover=replace(replaced(tmp_path), cullers=(), replaced=False, suspects=(ext,)))
    await w.for_s(5)
    assert w.status is not None
    (other,) = w.status.handover.others
    assert other.detail.startswith("the service ext may list users")
    assert other.detail.endswith("let only one of the two do that: end it, or have HubGuard observe.")


async def test_with_the_cullers_entry_its_limits_and_its_right_to_act_end_and_that_is_said(
    world: MakeWorld, tmp_path: Path
):
    books = InlineJournal()
    w = await world({"HubGuardCull": {"idle_timeout_s": 28800.0}}, handover=replaced(tmp_path), books=books)
    await side_by_side(w, tmp_path, (30, nothing))
    assert w.status is not None
    assert w.status.handover.culls is Culls.HUBGUARD
    assert "cull-idle waits, and HubGuard culls" in [entry.detail for entry in w.entries(Event.NOTE)]
    w = await world({}, books=books, clock=w.clock, holder="after the restart")
    w.server("idle", 7200)
    await w.for_s(90)
    assert w.stopped() == []
    assert w.status is not None
    assert (w.status.mode, w.status.handover.armed_by) == (Mode.OBSERVING, ArmedBy.NOBODY)
    assert any("cull-idle, which HubGuard replaced, is no longer registered" in note for note in w.status.notes)
    await w.guard.mandate.journal.open()
    w.books.journal.arm("ann", "", w.clock.now())
    w = await world({}, books=books, clock=w.clock, holder="armed by a person")
    await w.for_s(90)
    assert w.status is not None
    assert not any("no longer registered" in note for note in w.status.notes)


async def test_without_the_right_to_delete_users_nobody_is_tried(world: MakeWorld):
    w = await world(GONE, may_delete_users=False)
    at = w.clock.now() - timedelta(hours=1)
    w.hub.add_user(User("gone", False, (), ("user",), at, at))
    await w.for_s(90)
    assert [request for request in w.hub.requests if request.call == "delete"] == []


@pytest.mark.parametrize(("beside", "stopped"), [([], []), (["idle-culler"], ["idle"])])
async def test_a_guard_of_its_own_does_not_act_beside_the_hubs_culler_unless_told(
    world: MakeWorld, beside: list[str], stopped: list[str]
):
    settings = {**ARMED, "HubGuard": {"armed": True, "act_beside": beside}}
    w = await world(settings, without_include=True)
    w.hub.services = {"idle-culler": ("python3", "-m", "jupyterhub_idle_culler")}
    w.server("idle", 700)
    await w.for_s(90)
    assert w.stopped() == stopped
    assert w.status is not None
    assert ("idle-culler culls" in w.status.why) is not bool(stopped)


async def test_a_guard_of_its_own_acts_once_it_has_seen_that_nobody_else_culls(world: MakeWorld):
    w = await world(ARMED, without_include=True)
    w.hub.fault = lambda request: HubUnreachable("down") if request.at_s < 10 else None
    w.server("idle", 700)
    await w.for_s(200)
    assert w.stopped() == ["idle"]


@pytest.mark.parametrize("armed", [False, True])
async def test_a_guard_of_its_own_that_finds_no_culler_reads_the_list_again_only_to_act(world: MakeWorld, armed: bool):
    w = await world({"HubGuard": {"armed": armed}}, without_include=True)
    w.hub.fault = lambda request: HubUnreachable("down") if request.call == "services" and request.at_s < 10 else None
    w.server("busy", 10)
    await w.for_s(40)
    assert [request.call for request in w.hub.requests].count("list") == 1 + armed


@pytest.mark.parametrize(("armed", "deleted"), [(None, []), (True, ["gone"])])
async def test_a_cullers_entry_arms_for_what_that_culler_did_and_no_more(
    world: MakeWorld, tmp_path: Path, armed: bool | None, deleted: list[str]
):
    w = await world({**GONE, "HubGuard": {"armed": armed}}, handover=replaced(tmp_path))
    at = w.clock.now() - timedelta(hours=1)
    w.hub.add_user(User("gone", False, (), ("user",), at, at))
    w.server("idle", 4000)
    await side_by_side(w, tmp_path, (90, nothing))
    assert w.stopped() == ["idle"]
    assert [request.user for request in w.hub.requests if request.call == "delete"] == deleted


def understudy_says(folder: Path) -> str:
    report = understudy.read_report(folder, 0)
    return "" if report is None else report.why


async def test_beside_a_running_culler_it_only_observes_even_when_armed(world: MakeWorld):
    w = await world(observe_only="jupyterhub-idle-culler is running, too")
    w.server("idle", 700)
    await w.for_s(30)
    assert w.stopped() == []
    assert "jupyterhub-idle-culler is running" in w.status.why


async def test_a_defect_in_one_cycle_does_not_end_the_guard(world: MakeWorld, monkeypatch: pytest.MonkeyPatch):
    w = await world()
    w.server("idle", 700)

    def defect(request: Request) -> None:
        if request.at_s < 30:
            raise ZeroDivisionError

    w.hub.fault = defect
    await w.for_s(120)
    assert w.stopped() == ["idle"]


async def test_the_lease_is_given_up_at_the_end_so_that_the_next_guard_need_not_wait(world: MakeWorld):
    w = await world()
    await w.for_s(10)
    assert open_journal  # the journal is still open, by the fixture
    lease = w.books.journal.take_lease(HUB, "next", "", 0.0, w.clock.now(), 30)
    assert lease is not None


@pytest.mark.long
async def test_the_journal_forgets_what_is_older_than_its_setting(world: MakeWorld):
    w = await world({"HubGuard": {"journal_days": 10}, "HubGuardCull": {"every_s": 3600.0}}, lease_s=3600.0)
    w.books.journal.note(Event.NOTE, "ada", 0, w.clock.now() - timedelta(days=9), "yesterday's news")
    await w.for_s(3600)
    assert len(w.entries(Event.NOTE)) == 1
    await w.for_s(2 * 86400)
    assert w.entries(Event.NOTE) == []


async def test_a_missing_optional_scope_is_said_with_the_feature_that_lacks_it(world: MakeWorld):
    w = await world(features={"list:services": "noticing another culler", "list:users": "finding servers"})
    await w.for_s(30)
    assert w.status.notes == ("No noticing another culler: the service's role lacks the scope list:services.",)


async def test_arming_what_the_config_keeps_observing_is_refused_and_the_setting_named(world: MakeWorld):
    w = await world({"HubGuard": {"armed": False}})

    async def arm() -> None:
        task = asyncio.ensure_future(w.guard.run())
        await w.clock.sleep(5)
        with pytest.raises(HubGuardError, match="HubGuard.armed is False"):
            await w.guard.mandate.arm("ada", "")
        task.cancel()
        await asyncio.gather(task, return_exceptions=True)

    await w.clock.run(arm())
    assert w.entries(Event.ARMED) == []


async def test_observing_what_the_config_has_armed_is_refused_and_hold_is_named(world: MakeWorld):
    w = await world()
    with pytest.raises(HubGuardError, match="use hold"):
        await w.guard.mandate.observe("ada", "")


@pytest.mark.long
async def test_servers_that_cannot_be_stopped_do_not_keep_the_others_running_for_hours(world: MakeWorld):
    """Each failed stop takes a minute to verify, and its back-off is over when the next cycle comes."""
    w = await world()
    for number in range(300):
        w.server(f"ghost{number:03}", 5000, stops=Stops.GHOST)
    for number in range(50):
        w.server(f"good{number:02}", 700)
    await w.for_s(3600)
    assert {user for user, _ in w.hub.backends if user.startswith("good")} == set()


async def test_a_name_that_the_journal_cannot_hold_keeps_no_other_server_running(world: MakeWorld):
    w = await world()
    w.server("eve", 5000, name="x" * 256)
    for number in range(50):
        w.server(f"u{number}", 700)
    await w.for_s(50)
    assert w.hub.backends == {("eve", "x" * 256)}


async def test_an_observer_shows_its_servers_whatever_their_names(world: MakeWorld):
    w = await world({"HubGuardCull": {"idle_timeout_s": 600.0}})
    w.server("eve", 5000, name="a\0b")
    w.server("idle", 700)
    await w.for_s(50)
    assert w.status.mode is Mode.OBSERVING
    assert [note.user for note in w.entries(Event.ANNOUNCED)] == ["idle"]


@pytest.mark.long
async def test_a_hub_that_comes_and_goes_does_not_fill_the_journal_of_an_observer(world: MakeWorld):
    w = await world({"HubGuardCull": {"idle_timeout_s": 600.0}})
    w.server("idle", 700)
    w.hub.fault = lambda request: HubUnreachable("down") if request.at_s % 600 > 300 else None
    await w.for_s(6 * 3600)
    assert len(w.entries(Event.ANNOUNCED)) == 1


async def test_a_cycle_is_told_even_when_the_journal_cannot_forget(world: MakeWorld, monkeypatch: pytest.MonkeyPatch):
    w = await world()
    w.server("idle", 700)

    def forget(before: object) -> int:
        raise JournalError("canceling statement due to statement timeout")

    monkeypatch.setattr(w.books.journal, "forget", forget)
    await w.for_s(50)
    assert w.stopped() == ["idle"]
    assert w.status.mode is Mode.ACTING


async def test_a_cull_by_name_that_was_cut_short_does_not_exit_as_if_all_were_done(world: MakeWorld):
    w = await world()
    w.server("idle", 700)
    w.hub.fault = lambda request: HubRefused("403") if request.call == "get" else None
    report = await w.clock.run(w.guard.once("ada", Wish()))
    assert exit_code(words.as_json(cull_shapes.describe_cycle(report)), dry_run=False) == 1


async def test_requests_that_a_slow_journal_held_up_do_not_go_out_all_at_once(world: MakeWorld):
    w = await world({**ARMED, "HubGuardBudget": {"rate": 5.0, "burst": 1}})
    for number in range(20):
        w.server(f"u{number:02}", 700)
    real, slow_until_s = w.books.call, 20.0

    async def call(function, *args, **kwargs):
        if function.__name__ == "intend" and w.clock.monotonic_s() < slow_until_s:
            await w.clock.sleep(slow_until_s - w.clock.monotonic_s())
        return await real(function, *args, **kwargs)

    w.books.call = call  # type: ignore[method-assign]
    await w.for_s(120)
    times = sorted(request.at_s for request in w.hub.requests)
    assert len(set(w.stopped())) == 20
    assert max(sum(t <= u < t + 1 for u in times) for t in times) <= 5 + 1


async def test_a_restart_does_not_say_again_what_would_be_stopped(world: MakeWorld):
    first = await world({"HubGuardCull": {"idle_timeout_s": 600.0}})
    first.server("idle", 700)
    await first.for_s(60)
    second = await world(
        {"HubGuardCull": {"idle_timeout_s": 600.0}}, books=first.books, clock=first.clock, holder="next"
    )
    second.server("idle", 760)
    second.hub._records = first.hub._records
    await second.for_s(60)
    assert len(second.entries(Event.ANNOUNCED)) == 1


async def test_a_mended_role_shows_without_a_restart(world: MakeWorld):
    w = await world(features={"list:services": "noticing another culler"})
    await w.for_s(30)
    assert len(w.status.notes) == 1
    w.hub.scopes = frozenset({"list:services"})
    await w.for_s(700)
    assert w.status.notes == ()


def failing_once(w: World, name: str, when: Callable[[], bool] = lambda: True) -> list[bool]:
    """The journal's method of that name fails the first time that ``when`` holds; what is returned says whether it has."""
    real, failed = w.books.call, []

    async def call(function, *args, **kwargs):
        if function.__name__ == name and not failed and when():
            failed.append(True)
            raise JournalError("the journal is locked")
        return await real(function, *args, **kwargs)

    w.books.call = call  # type: ignore[method-assign]
    return failed


async def test_one_failure_to_read_what_the_journal_remembers_delays_a_cycle_and_no_more(world: MakeWorld):
    w = await world()
    w.server("idle", 700)
    failed = failing_once(w, "recall")
    await w.for_s(200)
    assert failed
    assert w.stopped() == ["idle"]


async def test_an_outage_between_two_long_cycles_is_seen_and_nobody_active_before_it_is_stopped(world: MakeWorld):
    w = await world({"HubGuard": {"armed": True}, "HubGuardCull": {"idle_timeout_s": 900.0, "every_s": 600.0}})
    w.server("ann", 30)
    w.hub.fault = lambda _: HubUnreachable("down") if 330 <= w.clock.monotonic_s() <= 1190 else None

    async def use() -> None:
        while True:
            if not 330 <= w.clock.monotonic_s() <= 1500:  # the hub's first update comes 300 s after its start
                w.hub.change("ann", last_activity=w.clock.now())
            await w.clock.sleep(290)

    task = asyncio.ensure_future(use())
    await w.for_s(2500)
    task.cancel()
    assert w.status.clock_from is not None
    assert w.stopped() == []


USERS = {
    "HubGuard": {"armed": True},
    "HubGuardCull": {"idle_timeout_s": 1800.0, "users": True, "user_idle_timeout_s": 1800.0},
}


def deleted(w: World) -> list[str]:
    return [request.user for request in w.hub.requests if request.call == "delete"]


async def test_users_are_not_deleted_at_the_first_look_after_an_outage(world: MakeWorld):
    w = await world(USERS)
    now = w.clock.now()
    w.hub.add_user(User("ann", False, (), (), now - timedelta(days=9), now - timedelta(seconds=60)))
    w.hub.fault = lambda _: HubUnreachable("down") if 120 <= w.clock.monotonic_s() <= 3720 else None
    await w.for_s(3900)
    assert deleted(w) == []
    await w.for_s(3600)
    assert deleted(w) == ["ann"]


async def test_its_own_deletions_are_no_loss_of_users_even_when_the_journal_fails_meanwhile(world: MakeWorld):
    w = await world(USERS)
    now = w.clock.now()
    for number in range(40):
        at = now - timedelta(days=1) if number < 20 else now + timedelta(days=3)
        w.hub.add_user(User(f"u{number}", False, (), (), now - timedelta(days=9), at))
    failed = failing_once(w, "remember", lambda: len(deleted(w)) == 20)
    await w.for_s(3600)
    assert failed
    assert len(deleted(w)) == 20
    assert w.status.brake is None


async def test_many_stops_at_once_are_verified_by_one_list(world: MakeWorld):
    w = await world({**ARMED, "HubGuardBudget": {"concurrency": 50, "rate": 1000.0, "burst": 100}})
    for number in range(40):
        w.server(f"u{number:02}", 700, stops=Stops.GHOST if number == 7 else Stops.WORKS)
    await w.for_s(70)
    calls = [request.call for request in w.hub.requests if request.at_s < 5]
    assert calls.count("stop") == 40
    assert calls.count("get") < 60, "40 second looks, and hardly any more"
    assert calls.count("list") >= 2
    outcomes = {entry.user: entry.outcome for entry in w.entries(Event.OUTCOME)}
    assert outcomes.pop("u07") is OutcomeKind.FAILED
    assert set(outcomes.values()) == {OutcomeKind.DONE}
    assert len(outcomes) == 39


# -- users whose storage would go with them ----------------------------------------------------------------------------

KUBE = HubConfigFacts(frozenset(), ("kubespawner.spawner.KubeSpawner",), {"delete_pvc": True}, None)
GONE = {**ARMED, "HubGuardCull": {"users": True, "user_idle_timeout_s": 1800.0}}


@pytest.mark.parametrize(
    ("acknowledged", "by_a_culler", "deleted"),
    [([], False, []), (["KubeSpawner"], False, ["gone"]), ([], True, ["gone"])],
)
async def test_no_user_is_deleted_with_their_volume_until_somebody_has_acknowledged_that(
    world: MakeWorld, tmp_path: Path, acknowledged: list[str], by_a_culler: bool, deleted: list[str]
):
    given = {}
    if by_a_culler:  # an idle culler did that before
        report = understudy.Report(1e9, False, "", 0.0)
        understudy.write(tmp_path / understudy.report_file(0), report)
        settings = {"HubGuardCull": {"users": True}}
        given = {"handover": replace(replaced(tmp_path, user_reach=()), settings=settings)}
    w = await world(GONE, {"HubGuardPrune": {"acknowledged": acknowledged}}, config_facts=KUBE, **given)
    at = w.clock.now() - timedelta(hours=1)
    w.hub.add_user(User("gone", False, (), ("user",), at, at))
    await w.for_s(90)
    assert [request.user for request in w.hub.requests if request.call == "delete"] == deleted
    told = [
        finding.detail for finding in w.guard.parts.culling.status().findings if finding.kind is FindingKind.USERS_KEPT
    ]
    assert len(told) == (not deleted)
    assert all('add "KubeSpawner" to HubGuardPrune.acknowledged' in detail for detail in told)


async def test_users_whom_pruning_protects_are_kept_by_culling(world: MakeWorld):
    w = await world(GONE, {"HubGuardPrune": {"protected_names": ["keep-*"]}})
    at = w.clock.now() - timedelta(hours=1)
    for name in ("gone", "keep-me"):
        w.hub.add_user(User(name, False, (), ("user",), at, at))
    await w.for_s(90)
    assert [request.user for request in w.hub.requests if request.call == "delete"] == ["gone"]


# -- what the hub refuses, or fails at -----------------------------------------------------------------------------------


def culling_findings(w: World, kind: FindingKind) -> list[str]:
    return [finding.detail for finding in w.guard.parts.culling.status().findings if finding.kind is kind]


async def test_named_servers_that_the_hub_lets_nobody_stop_are_told_once_and_no_sign_of_failing(world: MakeWorld):
    """A hub whose named servers were switched off (allow_named_servers) while some ran answers each stop with 400."""
    w = await world()
    for number in range(30):
        w.server(f"u{number:02}", 700, name="gpu")
    w.server("ann", 700)
    w.hub.named_servers = False
    await w.for_s(1800)
    assert w.stopped().count("ann") == 1
    assert len(w.stopped()) < 15, "those that went out before the first answer, and no more within the hour"
    (told,) = culling_findings(w, FindingKind.NAMED_SERVERS_OFF)
    assert told.startswith(
        "30 named servers can't be stopped, because the hub has named servers switched off: u00/gpu, "
    )
    assert "JupyterHub.allow_named_servers" in told
    status = w.guard.parts.culling.status()
    assert status.recent.error_ratio == 0.0
    assert status.oldest_overdue is None
    assert len([entry for entry in w.entries("finding") if "named servers" in (entry.detail or "")]) == 1
    assert w.status.mode is Mode.ACTING
    w.hub.named_servers = True  # and the hub was restarted, unnoticed by a guard that runs elsewhere
    await w.for_s(4200)
    assert await w.hub.list_servers() == ()
    assert culling_findings(w, FindingKind.NAMED_SERVERS_OFF) == []


@pytest.mark.long
async def test_users_whom_the_hub_fails_to_delete_are_tried_ever_less_and_stopping_goes_on(world: MakeWorld):
    """An authenticator whose delete_user raises makes the hub answer 500, after it has stopped the user's server."""
    w = await world({**GONE, "HubGuardCull": {**GONE["HubGuardCull"], "idle_timeout_s": 600.0, "every_s": 900.0}})
    at = w.clock.now() - timedelta(hours=1)
    for number in range(20):
        w.hub.add_user(User(f"gone{number:02}", False, (), ("user",), at, at))
        w.hub.undeletable.add(f"gone{number:02}")
    await w.for_s(120)
    assert len(deleted(w)) == 20, "no breaker opens: the hub itself is well"
    w.server("ann", 700)
    await w.for_s(1800)
    assert w.stopped() == ["ann"]
    status = w.guard.parts.culling.status()
    assert status.recent.error_ratio == 0.0
    assert not status.recent.mostly_failed
    await w.for_s(8 * 3600)
    tries = [deleted(w).count(f"gone{number:02}") for number in range(20)]
    assert max(tries) < 12
    assert sum(tries) < 7 * 20, "of 34 cycles"
    (told,) = culling_findings(w, FindingKind.NOT_DELETED)
    assert told.startswith("The hub fails to delete 20 users: gone00, gone01, gone02 and 17 more.")
    assert "delete_user" in told
    assert len([entry for entry in w.entries("finding") if "fails to delete" in (entry.detail or "")]) == 1
    w.hub.undeletable.clear()
    await w.for_s(86400)
    assert culling_findings(w, FindingKind.NOT_DELETED) == []
    assert await w.hub.count_users() == 0


async def test_a_hub_whose_database_begins_anew_with_each_start_goes_on_being_culled(world: MakeWorld):
    """A db_url in memory, or a file that was replaced: after the restart everybody is new, and most are gone."""
    w = await world(generation=1.0)
    for number in range(40):
        w.hub.add_user(User(f"u{number:02}", False, (), ("user",), w.clock.now() - timedelta(days=3)))
    w.server("before", 10)
    await w.for_s(300)
    await w.clock.run(w.clock.sleep(60))
    started_at = w.clock.now()
    again = await world(books=w.books, clock=w.clock, generation=started_at.timestamp())
    await w.clock.run(w.clock.sleep(5))
    for name in ("ada", "bob", "cat"):
        again.hub.add_user(User(name, False, (), ("user",), w.clock.now()))
    again.hub.add(Server("ada", "", True, None, w.clock.now(), w.clock.now()))
    await again.for_s(120)
    assert again.status.brake is None
    (told,) = [finding.detail for finding in again.status.findings if finding.kind is FindingKind.NEW_DATABASE]
    assert told.startswith("All 3 users of the hub are new since ")
    assert "JupyterHub.db_url" in told
    await again.for_s(900)
    assert again.stopped() == ["ada"]
    assert [request.call for request in again.hub.requests].count("first") == 1


async def test_a_hub_that_lost_users_and_kept_one_of_before_is_braked_for_as_ever(world: MakeWorld):
    w = await world(generation=1.0)
    old = w.clock.now() - timedelta(days=3)
    for number in range(40):
        w.hub.add_user(User(f"u{number:02}", False, (), ("user",), old))
    await w.for_s(300)
    again = await world(books=w.books, clock=w.clock, generation=w.clock.now().timestamp())
    again.hub.add_user(User("u00", False, (), ("user",), old))
    again.hub.add_user(User("new", False, (), ("user",), w.clock.now()))
    await again.for_s(120)
    assert again.status.brake is not None
    assert again.status.brake.acceptable
