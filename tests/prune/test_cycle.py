"""Pruning in virtual time: a hub and its database in memory, a journal, and everything that can happen to a plan."""

from __future__ import annotations

import asyncio
import contextlib
import itertools
import json
from collections.abc import AsyncIterator, Awaitable, Callable
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass, replace
from datetime import timedelta
from pathlib import Path

import pytest
from assembled import assembled
from builders import DAY_S
from doubles.hub import MemoryHub, Request
from following_db import FollowingDB
from inline_journal import InlineJournal
from virtual_time import VirtualClock

from hubguard import config
from hubguard.app import make_budget, make_guard
from hubguard.cull.model import Wish
from hubguard.errors import HubDBError, HubError, HubFailed, HubGuardError, HubRefused, HubUnreachable, JournalError
from hubguard.guard import Guard
from hubguard.hub.names import UnknownUser
from hubguard.hub.nouns import Account, AccountServer, TokenOwner
from hubguard.inhub.named_users import packed
from hubguard.journal.model import Event
from hubguard.model import FindingKind, OutcomeKind, Server, User
from hubguard.pacing.budget import Budget
from hubguard.place import Place
from hubguard.prune import undo_file
from hubguard.prune.decide import plan as prune_plan
from hubguard.prune.decide import stale as prune_stale
from hubguard.prune.model import PruneReason, PruneRun, PruneState, StaleCriteria
from hubguard.prune.review import HubConfigFacts
from hubguard.prune.store import PruneStore
from hubguard.wiring import Ways

AT_ONCE = 3

STALE = StaleCriteria(inactive_for_s=180 * DAY_S, never_active_for_s=180 * DAY_S)
TOLD = HubConfigFacts(frozenset(), ("jupyterhub.spawner.LocalProcessSpawner",), {}, False)
PACE = {"rate": 1000.0, "burst": 100, "concurrency": 8}


@dataclass
class World:
    clock: VirtualClock
    hub: MemoryHub
    database: FollowingDB | None
    books: InlineJournal
    guard: Guard

    @property
    def pruning(self):
        return self.guard.parts.pruning

    def user(self, name: str, idle_days: float | None = 400, **fields: object) -> None:
        now = self.clock.now()
        seen = None if idle_days is None else now - timedelta(days=idle_days)
        user = User(name, False, (), ("user",), now - timedelta(days=500), seen)
        user = replace(user, **fields)
        self.hub.add_user(user)

    def asked_to_delete(self) -> list[str]:
        return [request.user for request in self.hub.requests if request.call == "delete"]

    def there(self) -> set[str]:
        return set(self.hub._users)

    def entries(self, event: str) -> list:
        return list(reversed(self.books.journal.entries(event=Event(event), limit=10000)))

    @contextlib.asynccontextmanager
    async def living(self) -> AsyncIterator[None]:
        """The guard lives while the block lasts. Use it within :meth:`run`."""
        task = asyncio.ensure_future(self.guard.run())
        try:
            while self.guard.parts.culling.status().last_cycle is None:
                await self.clock.sleep(1)
            yield
            assert not task.done(), task.exception()
        finally:
            task.cancel()
            await asyncio.gather(task, return_exceptions=True)

    async def until(self, digest: str, *states: PruneState, for_s: float = 3600.0):
        until_s = self.clock.monotonic_s() + for_s
        while (run := await self.pruning.run(digest)).state not in states:
            assert self.clock.monotonic_s() < until_s, run
            await self.clock.sleep(1)
        return run

    async def apply(self, criteria: StaleCriteria = STALE):
        plan = await self.pruning.plan(criteria, "ada")
        await self.pruning.apply(plan.digest, len(plan.deletions), "ada", "the term is over")
        return plan


MakeWorld = Callable[..., Awaitable[World]]


class InlineThreads(ThreadPoolExecutor):
    """In place of threads, in virtual time: what is given to one is over before anything else happens."""

    def submit(self, fn, /, *args, **kwargs):
        done: Future = Future()
        try:
            done.set_result(fn(*args, **kwargs))
        except Exception as error:
            done.set_exception(error)
        return done


@pytest.fixture
async def world(tmp_path: Path) -> MakeWorld:
    asyncio.get_running_loop().set_default_executor(InlineThreads())

    async def make(
        *,
        books: InlineJournal | None = None,
        clock: VirtualClock | None = None,
        hub: MemoryHub | None = None,
        with_database: bool = True,
        told: HubConfigFacts | None = TOLD,
        prune: dict[str, object] | None = None,
        layers: dict[str, dict[str, object]] | None = None,
        **options: object,
    ) -> World:
        settings = config.load(
            {"HubGuard": {"armed": True}, "HubGuardBudget": PACE},
            {"HubGuardPrune": {"delete_users": True, "undo_folder": str(tmp_path / "undo"), **(prune or {})}},
            layers or {},
            environ={},
        )
        assert not settings.errors
        clock = clock or VirtualClock()
        budget = Budget(rate=1000.0, burst=100, concurrency=8, clock=clock)
        hub = hub or MemoryHub(clock=clock, budget=budget)
        hub.scopes = frozenset({*hub.scopes, "read:tokens"})
        books = books or InlineJournal()
        books.close = lambda: None  # type: ignore[method-assign]  # it is read after the guard has ended

        database = FollowingDB(hub) if with_database else None
        guard = assembled(
            settings, hub, budget, books, clock, holder=str(options.pop("holder", "here")),
            address="http://here/", generation=0.0, database=database, config_facts=told, **options,
        )  # fmt: skip
        return World(clock, hub, database, books, guard)

    return make


@pytest.mark.parametrize("with_database", [True, False])
async def test_a_plan_that_is_applied_deletes_its_users_and_nobody_else(world: MakeWorld, with_database: bool):
    w = await world(with_database=with_database)
    for name in ("ann", "bob/é#?%", "carl"):
        w.user(name)
    w.user("busy", 3)
    w.user("boss", admin=True)

    async def life() -> None:
        async with w.living():
            plan = await w.apply()
            assert [deletion.user for deletion in plan.deletions] == ["ann", "bob/é#?%", "carl"]
            run = await w.until(plan.digest, PruneState.DONE)
            assert (run.done, run.skipped, run.failed, run.unverified) == (3, 0, 0, 0)
            assert run.actor == "ada"
            head, users = undo_file.read(Path(run.undo_file), sha256=run.undo_sha256)
            assert head.digest == plan.digest
            assert (head.database, bool(head.revision)) == (("memory", True) if with_database else ("", False))
            assert [user.name for user in users] == ["ann", "bob/é#?%", "carl"]
            assert all((user.rows is not None) is with_database for user in users)
            items = await w.pruning.items(plan.digest)
            assert {item.state for item in items} == {"done"}
            assert w.pruning.status().tally.done == 3
            assert w.pruning.status().waiting == 0

    await w.clock.run(life())
    assert w.there() == {"busy", "boss"}
    assert sorted(w.asked_to_delete()) == ["ann", "bob/é#?%", "carl"]
    intents, outcomes = w.entries(Event.INTENT), w.entries(Event.OUTCOME)
    assert [entry.outcome for entry in outcomes] == [OutcomeKind.DONE] * 3
    assert {entry.refers_to for entry in outcomes} == {entry.id for entry in intents}
    assert {entry.reason for entry in intents} == {"inactive"}


async def run_in(w: World, steps: Callable[[], Awaitable[None]]) -> None:
    async def life() -> None:
        async with w.living():
            await steps()

    await w.clock.run(life())


async def test_whoever_changes_between_plan_and_deletion_is_skipped_and_the_journal_says_why(world: MakeWorld):
    w = await world()
    for name in ("active", "anew", "boss", "gone", "kept", "runs", "stale"):
        w.user(name)
    found = {}

    async def steps() -> None:
        plan = await w.pruning.plan(STALE, "ada")
        now = w.clock.now()
        w.user("active", 0)
        w.user("boss", admin=True)
        w.user("anew", created=now - timedelta(days=1))
        del w.hub._users["gone"]
        await w.guard.parts.culling.exempt("bob", "a thesis", user="kept", server=None, until=now + timedelta(days=5))
        # Started and as idle as before, as far as the hub tells.
        long_ago = now - timedelta(days=400)
        w.hub.add(Server("runs", "lab", True, None, long_ago, long_ago))
        await w.pruning.apply(plan.digest, 7, "ada", "")
        run = await w.until(plan.digest, PruneState.DONE)
        assert (run.done, run.skipped, run.gone) == (1, 5, 1)
        found.update({item.deletion.user: item.outcome.detail for item in await w.pruning.items(plan.digest)})

    await run_in(w, steps)
    assert w.asked_to_delete() == ["stale"]
    assert w.there() == {"active", "anew", "boss", "kept", "runs"}
    assert "active in the meantime" in found["active"]
    assert "created again" in found["anew"]
    assert "admin" in found["boss"]
    assert "keep" in found["kept"]
    assert "server" in found["runs"]
    notes = [entry for entry in w.entries(Event.NOTE) if "left alone" in entry.detail]
    assert {entry.user for entry in notes} == {"active", "anew", "boss", "gone", "kept", "runs"}


async def test_who_logs_in_while_others_are_being_deleted_is_kept(world: MakeWorld):
    w = await world(prune={"rate": 1.0})
    for number in range(20):
        w.user(f"u{number:02}")

    async def steps() -> None:
        plan = await w.apply()
        await w.clock.sleep(8)
        assert 1 <= len(w.asked_to_delete()) <= 12
        w.user("u19", 0)
        run = await w.until(plan.digest, PruneState.DONE)
        assert (run.done, run.skipped) == (19, 1)

    await run_in(w, steps)
    assert w.there() == {"u19"}


async def test_never_more_users_a_second_than_the_setting_says(world: MakeWorld):
    w = await world(prune={"rate": 2.0})
    for number in range(30):
        w.user(f"u{number:02}")
    seen = []

    async def steps() -> None:
        plan = await w.apply()
        await w.clock.sleep(6)
        seen.append(await w.pruning.run(plan.digest))
        await w.until(plan.digest, PruneState.DONE)

    await run_in(w, steps)
    times = [request.at_s for request in w.hub.requests if request.call == "delete"]
    assert len(times) == 30
    # In steps of what a second look takes, of which none goes out before its turn.
    assert all(later - earlier >= 0.5 * 10 - 0.1 for earlier, later in zip(times, times[10:], strict=False))
    assert seen[0].per_s == pytest.approx(2.0, rel=0.3)
    assert seen[0].left_s == pytest.approx((30 - seen[0].settled) / seen[0].per_s)


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({"count": 2}, "deletes 1 users, not 2"),
        ({"digest": "0" * 64}, "no such plan"),
        ({"later_s": 90.0}, "expired"),
    ],
)
async def test_a_plan_is_not_begun_without_its_digest_and_count_or_when_it_is_old(
    world: MakeWorld, change: dict, said: str
):
    w = await world(prune={"plan_life_s": 60.0})
    w.user("ann")

    async def steps() -> None:
        plan = await w.pruning.plan(STALE, "ada")
        await w.clock.sleep(change.get("later_s", 0.0))
        with pytest.raises(HubGuardError, match=said):
            await w.pruning.apply(change.get("digest", plan.digest), change.get("count", 1), "ada", "")

    await run_in(w, steps)
    assert w.asked_to_delete() == []


async def test_nothing_is_begun_while_deleting_is_off_or_on_hold_or_what_it_risks_isnt_acknowledged(world: MakeWorld):
    off = await world(prune={"delete_users": False})
    off.user("ann")

    async def refused() -> None:
        plan = await off.pruning.plan(STALE, "ada")
        with pytest.raises(HubGuardError, match=r"HubGuardPrune\.delete_users is False"):
            await off.pruning.apply(plan.digest, 1, "ada", "")

    await run_in(off, refused)
    firstuse = ("firstuseauthenticator.firstuseauthenticator.FirstUseAuthenticator", "jupyterhub.auth.Authenticator")
    claimed = await world(told=replace(TOLD, authenticator=firstuse))
    claimed.user("ann")

    async def refused_by_name() -> None:
        plan = await claimed.pruning.plan(STALE, "ada")
        assert [caution.name for caution in plan.cautions] == ["names-claimed-again"]
        assert "whoever next logs in" in plan.cautions[0].why
        with pytest.raises(HubGuardError, match="names-claimed-again"):
            await claimed.pruning.apply(plan.digest, 1, "ada", "")

    await run_in(claimed, refused_by_name)
    w = await world(told=HubConfigFacts(frozenset(), ("kubespawner.spawner.KubeSpawner",), {"delete_pvc": True}, None))
    w.user("ann")

    async def steps() -> None:
        plan = await w.pruning.plan(STALE, "ada")
        with pytest.raises(HubGuardError, match="KubeSpawner"):
            await w.pruning.apply(plan.digest, 1, "ada", "")
        await w.guard.mandate.hold("bob", "an exam")
        with pytest.raises(HubGuardError, match=r"On hold \(bob: an exam\)"):
            await w.pruning.apply(plan.digest, 1, "ada", "", acknowledged=("KubeSpawner",))
        await w.guard.mandate.resume("bob", "")
        assert (await w.pruning.run(plan.digest)).state is PruneState.PLANNED
        await w.pruning.apply(plan.digest, 1, "ada", "", acknowledged=("KubeSpawner",))
        with pytest.raises(HubGuardError, match="started before"):
            await w.pruning.apply(plan.digest, 1, "ada", "", acknowledged=("KubeSpawner",))
        await w.until(plan.digest, PruneState.DONE)

    await run_in(w, steps)
    assert off.asked_to_delete() == []
    assert w.asked_to_delete() == ["ann"]


async def test_without_an_undo_file_nothing_begins(world: MakeWorld, tmp_path: Path):
    w = await world()
    (tmp_path / "undo").write_text("a file in place of the folder")
    w.user("ann")

    async def steps() -> None:
        plan = await w.pruning.plan(STALE, "ada")
        with pytest.raises(HubGuardError):
            await w.pruning.apply(plan.digest, 1, "ada", "")
        assert (await w.pruning.run(plan.digest)).state is PruneState.PLANNED
        await w.clock.sleep(60)

    await run_in(w, steps)
    assert w.asked_to_delete() == []


async def test_a_plan_is_paused_resumed_and_cancelled_and_stays_so(world: MakeWorld):
    w = await world(prune={"rate": 1.0})
    for number in range(30):
        w.user(f"u{number:02}")

    async def steps() -> None:
        plan = await w.apply()
        await w.clock.sleep(5)
        assert (await w.pruning.pause(plan.digest, "bob", "lunch")).why == "paused by bob: lunch"
        await w.clock.sleep(5)
        paused_at = len(w.asked_to_delete())
        await w.clock.sleep(60)
        assert len(w.asked_to_delete()) == paused_at
        await w.pruning.resume(plan.digest, "bob", "")
        await w.clock.sleep(5)
        assert len(w.asked_to_delete()) > paused_at
        await w.pruning.cancel(plan.digest, "bob", "enough")
        await w.clock.sleep(5)
        cancelled_at = len(w.asked_to_delete())
        await w.clock.sleep(60)
        assert len(w.asked_to_delete()) == cancelled_at < 30
        with pytest.raises(HubGuardError, match="is cancelled"):
            await w.pruning.resume(plan.digest, "bob", "")
        assert len(await w.pruning.items(plan.digest, state="waiting")) == 30 - cancelled_at

    await run_in(w, steps)


async def test_at_full_pace_nobody_is_begun_once_a_pause_is_answered(world: MakeWorld):
    w = await world(prune={"rate": 1000.0}, layers={"HubGuardBudget": {"rate": 1000.0}})
    for number in range(300):
        w.user(f"u{number:03}")

    async def life() -> None:
        async with w.living():
            plan = await w.apply()
            while len(w.entries(Event.INTENT)) < 20:
                await w.clock.sleep(0.001)
            await w.pruning.pause(plan.digest, "bob", "an exam begins")
            begun = len(w.entries(Event.INTENT))
            await w.clock.sleep(10)
            assert begun < 300 - AT_ONCE
            assert len(w.entries(Event.INTENT)) <= begun + AT_ONCE
            assert (await w.pruning.run(plan.digest)).state is PruneState.PAUSED

    await run_in(w, life)


async def test_a_hold_pauses_a_plan_until_somebody_resumes_both(world: MakeWorld):
    w = await world(prune={"rate": 1.0})
    for number in range(20):
        w.user(f"u{number:02}")

    async def steps() -> None:
        plan = await w.apply()
        await w.clock.sleep(5)
        w.books.journal.hold("bob", "from a terminal", w.clock.now())
        run = await w.until(plan.digest, PruneState.PAUSED)
        assert "On hold (bob: from a terminal)." in run.why
        held_at = len(w.asked_to_delete())
        with pytest.raises(HubGuardError, match="On hold"):
            await w.pruning.resume(plan.digest, "ada", "")
        await w.guard.mandate.resume("bob", "")
        await w.clock.sleep(60)
        assert len(w.asked_to_delete()) == held_at
        await w.pruning.resume(plan.digest, "ada", "")
        await w.until(plan.digest, PruneState.DONE)

    await run_in(w, steps)
    assert w.there() == set()
    assert len(w.asked_to_delete()) == 20


async def test_a_hub_that_is_down_for_a_while_ends_nothing_and_deletes_nobody_twice(world: MakeWorld):
    w = await world(prune={"rate": 1.0})
    for number in range(20):
        w.user(f"u{number:02}")

    async def steps() -> None:
        plan = await w.apply()
        await w.clock.sleep(5)
        w.hub.fault = lambda _: HubUnreachable("The hub didn't answer: it is down.")
        await w.clock.sleep(300)
        run = await w.pruning.run(plan.digest)
        assert run.state is PruneState.RUNNING
        assert run.why
        w.hub.fault = None
        run = await w.until(plan.digest, PruneState.DONE)
        assert (run.done, run.unverified, run.failed) == (20, 0, 0)

    await run_in(w, steps)
    assert w.there() == set()


async def test_a_deletion_whose_answer_is_lost_is_settled_by_a_re_read_and_never_repeated(world: MakeWorld):
    w = await world()
    for name in ("ann", "bob", "carl"):
        w.user(name)
    delete = w.hub.delete_user

    async def answer_lost(name: str, *, confirm=None) -> None:
        await delete(name, confirm=confirm)
        if name == "bob":
            raise HubUnreachable("The connection broke before an answer came.")

    w.hub.delete_user = answer_lost

    async def steps() -> None:
        plan = await w.apply()
        run = await w.until(plan.digest, PruneState.DONE)
        assert run.done == 3

    await run_in(w, steps)
    assert sorted(w.asked_to_delete()) == ["ann", "bob", "carl"]


async def test_a_deletion_that_fails_half_way_is_finished_or_reported(world: MakeWorld):
    w = await world(with_database=False)
    for name in ("ann", "bob", "carl"):
        w.user(name)
    failures = {"ann": 1, "bob": 99}

    def fails(request: Request) -> HubError | None:
        if request.call == "delete" and failures.get(request.user, 0) > 0:
            failures[request.user] -= 1
            return HubFailed(f"The hub failed to delete the user {request.user} (500).", status=500)
        return None

    w.hub.fault = fails

    async def steps() -> None:
        plan = await w.apply()
        run = await w.until(plan.digest, PruneState.DONE)
        assert (run.done, run.failed) == (2, 1)
        (failed,) = await w.pruning.items(plan.digest, state="failed")
        assert failed.deletion.user == "bob"
        assert "still there" in failed.outcome.detail
        assert "authenticator may have forgotten" in failed.outcome.detail

    await run_in(w, steps)
    assert w.asked_to_delete().count("ann") == 2
    assert w.asked_to_delete().count("bob") == 3
    calls = [request.call for request in w.hub.requests if request.user == "bob"]
    tries = [at for at, call in enumerate(calls) if call == "delete"]
    for before, after in itertools.pairwise(tries):
        # One re-read of what came of the try before, and a second look of its own.
        assert calls[before:after].count("get-user") >= 2


async def test_who_is_there_after_each_unanswered_deletion_is_reported_and_not_asked_for_without_end(world: MakeWorld):
    w = await world()
    for name in ("ann", "bob"):
        w.user(name)
    silent_until = [0.0]

    def falls_silent(request: Request) -> HubError | None:
        if (request.call, request.user) == ("delete", "bob"):
            silent_until[0] = w.clock.monotonic_s() + 600
        return HubUnreachable("The hub doesn't answer.") if w.clock.monotonic_s() < silent_until[0] else None

    w.hub.fault = falls_silent

    async def steps() -> None:
        plan = await w.apply()
        run = await w.until(plan.digest, PruneState.DONE, for_s=2 * 3600)
        assert (run.done, run.failed) == (1, 1)
        (failed,) = await w.pruning.items(plan.digest, state="failed")
        assert failed.deletion.user == "bob"
        assert "never said" in failed.outcome.detail

    await run_in(w, steps)
    assert w.there() == {"bob"}
    assert w.asked_to_delete().count("bob") == 3


async def test_a_database_of_another_hub_pauses_a_plan_and_is_named(world: MakeWorld):
    w = await world(prune={"rate": 1.0})
    for number in range(10):
        w.user(f"u{number}")

    async def steps() -> None:
        plan = await w.apply()
        await w.clock.sleep(3)
        assert w.database is not None
        w.database.lags = True
        w.database.users = {}
        run = await w.until(plan.digest, PruneState.PAUSED)
        assert "isn't this hub's" in run.why
        assert 0 < run.done < 10
        assert run.failed == 0

    await run_in(w, steps)


async def test_a_database_that_cant_be_read_is_waited_for_and_costs_nobody_their_turn(world: MakeWorld):
    w = await world(prune={"rate": 1.0})
    for number in range(10):
        w.user(f"u{number}")

    async def steps() -> None:
        plan = await w.apply()
        await w.clock.sleep(3)
        assert w.database is not None
        w.database.fault = HubDBError("is locked")
        await w.clock.sleep(120)
        run = await w.pruning.run(plan.digest)
        assert run.state is PruneState.RUNNING
        assert "is locked" in run.why
        w.database.fault = None
        run = await w.until(plan.digest, PruneState.DONE)
        assert (run.done, run.failed, run.skipped) == (10, 0, 0)

    await run_in(w, steps)


async def test_a_refused_token_pauses_the_plan_with_the_reason(world: MakeWorld):
    w = await world()
    for name in ("ann", "bob"):
        w.user(name)
    w.hub.fault = lambda request: HubRefused("no scope delete:users") if request.call == "delete" else None

    async def steps() -> None:
        plan = await w.apply()
        run = await w.until(plan.digest, PruneState.PAUSED)
        assert "delete:users" in run.why
        assert run.settled == 0
        w.hub.fault = None
        await w.pruning.resume(plan.digest, "ada", "the role is mended")
        assert (await w.until(plan.digest, PruneState.DONE)).done == 2

    await run_in(w, steps)


async def test_deleting_most_users_is_no_fall_of_the_population_but_a_lost_database_is(world: MakeWorld):
    w = await world(prune={"rate": 10.0}, layers={"HubGuardCull": {"every_s": 10.0}})
    w.hub.takes_s = 0.05
    for number in range(200):
        w.user(f"u{number:03}", 400 if number < 180 else 3)
    brakes = []

    async def steps() -> None:
        plan = await w.apply()
        while (await w.pruning.run(plan.digest)).state is PruneState.RUNNING:
            brakes.append(w.guard.status().brake)
            await w.clock.sleep(1)
        run = await w.pruning.run(plan.digest)
        assert (run.state, run.done) == (PruneState.DONE, 180)
        await w.clock.sleep(60)
        brakes.append(w.guard.status().brake)
        w.hub._users = dict(list(w.hub._users.items())[:5])
        await w.clock.sleep(60)
        assert w.guard.status().brake is not None

    await run_in(w, steps)
    assert set(brakes) == {None}


async def test_incident_a_database_that_was_overwritten_pauses_a_plan_under_way(world: MakeWorld):
    """2017-02-09: a hub's database was overwritten, and 50 of 1,000 users were left. Nothing more may go on that reading."""
    w = await world(prune={"rate": 1.0}, layers={"HubGuardCull": {"every_s": 10.0}})
    for number in range(300):
        w.user(f"u{number:04}")

    async def steps() -> None:
        plan = await w.apply()
        await w.clock.sleep(30)
        w.hub._users = dict(list(w.hub._users.items())[-50:])
        run = await w.until(plan.digest, PruneState.PAUSED)
        assert run.why.startswith("Braked: ")

    await run_in(w, steps)
    assert len(w.there()) >= 20


@pytest.mark.parametrize(("away_s", "state"), [(600.0, PruneState.DONE), (2 * 3600.0, PruneState.PAUSED)])
async def test_a_restarted_guard_goes_on_but_after_a_long_absence_waits_for_a_person(
    world: MakeWorld, away_s: float, state: PruneState
):
    w = await world(prune={"rate": 1.0})
    for number in range(20):
        w.user(f"u{number:02}")
    digests = []

    async def begins() -> None:
        digests.append((await w.apply()).digest)
        await w.clock.sleep(5)

    await run_in(w, begins)
    again = await world(books=w.books, clock=w.clock, hub=w.hub, prune={"rate": 1.0}, holder="next")

    async def goes_on() -> None:
        run = await again.until(digests[0], state)
        if state is PruneState.PAUSED:
            assert "away since" in run.why
            assert run.settled < 20

    await w.clock.run(w.clock.sleep(away_s))
    await run_in(again, goes_on)
    assert len(w.asked_to_delete()) == len(set(w.asked_to_delete()))
    assert (w.there() == set()) is (state is PruneState.DONE)


class DyingBooks(InlineJournal):
    """Once ``armed``, whoever makes its call of that number, or any later one, comes no further; until it is ``over``."""

    def __init__(self, books: InlineJournal, dies_at: int) -> None:
        super().__init__(books.journal)
        self.dies_at, self.calls, self.armed, self.over = dies_at, 0, False, False

    async def call(self, function, *args, **kwargs):
        if self.over:
            raise JournalError("dead")
        self.calls += self.armed
        if self.calls >= self.dies_at:
            await asyncio.Event().wait()
        return await super().call(function, *args, **kwargs)


async def test_a_kill_at_any_step_deletes_everybody_once_and_asks_for_nobody_twice(world: MakeWorld):
    states = set()
    for dies_at in range(1, 60, 2):
        alive = InlineJournal()
        dying = DyingBooks(alive, dies_at)
        w = await world(books=dying)
        for name in ("ann", "bob", "carl"):
            w.user(f"{name}{dies_at}")

        async def begins(w: World = w, dying: DyingBooks = dying) -> None:
            guard = asyncio.ensure_future(w.guard.run())
            while w.guard.parts.culling.status().last_cycle is None:
                await w.clock.sleep(1)
            plan = await w.pruning.plan(STALE, "ada")
            dying.armed = True
            applying = asyncio.ensure_future(w.pruning.apply(plan.digest, 3, "ada", ""))
            await w.clock.sleep(4)
            dying.over = True
            applying.cancel()
            guard.cancel()
            await asyncio.gather(guard, applying, return_exceptions=True)

        await w.clock.run(begins())
        asked = w.asked_to_delete()
        (run,) = PruneStore(alive.journal).prune_runs()
        states.add((run.state, len(asked)))
        if run.state is PruneState.PLANNED:
            assert asked == []
            continue
        assert {user.name for user in undo_file.read(Path(run.undo_file), sha256=run.undo_sha256)[1]} >= set(asked)
        again = await world(books=alive, clock=w.clock, hub=w.hub, holder="next")

        async def goes_on(again: World = again, digest: str = run.digest) -> None:
            done = await again.until(digest, PruneState.DONE)
            assert (done.done, done.skipped, done.failed, done.unverified) == (3, 0, 0, 0)

        await w.clock.run(w.clock.sleep(60))
        await run_in(again, goes_on)
        assert w.there() == set()
        assert len(w.asked_to_delete()) == len(set(w.asked_to_delete())) == 3
        assert alive.journal.open_intents() == ()
    assert {state for state, _ in states} == {PruneState.PLANNED, PruneState.RUNNING, PruneState.DONE}
    assert {count for state, count in states if state is PruneState.RUNNING} >= {0, 3}


async def test_who_was_deleted_is_brought_back_with_the_rights_of_who_asks(world: MakeWorld):
    w = await world()
    w.hub.groups = {"bio"}
    w.user("ann", groups=("bio",))
    w.user("bob")

    async def steps() -> None:
        plan = await w.apply()
        run = await w.until(plan.digest, PruneState.DONE)
        with pytest.raises(HubGuardError, match="deleted 2 users, not 3"):
            await w.pruning.restore(plan.digest, 3, "ada", "", token="hers")
        with pytest.raises(HubGuardError, match="isn't the one"):
            await w.pruning.restore(plan.digest, 2, "ada", "", token="hers", sha256="0" * 64)
        assert w.there() == set()
        run = await w.pruning.restore(plan.digest, 2, "ada", "they asked", token="hers", sha256=run.undo_sha256)
        assert (run.restored, run.restored_at is not None) == (2, True)
        assert (await w.pruning.restore(plan.digest, 2, "ada", "again", token="hers")).state is PruneState.DONE

    await run_in(w, steps)
    assert w.there() == {"ann", "bob"}
    assert {request.token for request in w.hub.requests if request.call in ("create", "group")} == {"hers"}
    assert w.hub._users["ann"].groups == ("bio",)


SCHEDULED = {"every_s": DAY_S, "run_cap": 2}


async def test_scheduled_pruning_removes_no_more_than_its_cap_and_remembers_its_time_over_a_restart(world: MakeWorld):
    w = await world(prune=SCHEDULED)
    for number in range(50):
        w.user(f"busy{number}", 3)
    for name in ("ann", "bob", "carl"):
        w.user(name)

    async def a_while() -> None:
        await w.clock.sleep(200)

    await run_in(w, a_while)
    assert len(w.asked_to_delete()) == 2
    (run,) = await w.pruning.runs()
    assert (run.scheduled, run.actor, run.state) == (True, "hubguard", PruneState.DONE)
    again = await world(books=w.books, clock=w.clock, hub=w.hub, prune=SCHEDULED, holder="next")
    await run_in(again, a_while)
    assert len(w.asked_to_delete()) == 2


@pytest.mark.parametrize("why", ["share", "caution", "observing"])
async def test_a_scheduled_plan_that_a_person_should_see_is_held_and_found(world: MakeWorld, why: str):
    told = HubConfigFacts(frozenset(), ("kubespawner.spawner.KubeSpawner",), {"delete_pvc": True}, None)
    layers = {"HubGuard": {"armed": False}} if why == "observing" else None
    w = await world(prune=SCHEDULED, told=told if why == "caution" else TOLD, layers=layers)
    for number in range(5 if why == "share" else 50):
        w.user(f"busy{number}", 3)
    for name in ("ann", "bob", "carl"):
        w.user(name)

    async def a_while() -> None:
        await w.clock.sleep(200)
        kinds = [finding.kind for finding in w.pruning.status().findings]
        assert kinds.count(FindingKind.PRUNE_HELD) == (why != "observing")

    await run_in(w, a_while)
    assert w.asked_to_delete() == []


async def test_everybody_is_judged_with_the_reason_and_what_the_journal_knows_of_their_use(world: MakeWorld):
    w = await world()
    w.user("ann")
    w.user("busy", 3)
    w.user("boss", admin=True)
    w.user("asks")

    async def steps() -> None:
        report = await w.pruning.users(STALE, caller="asks")
        assert (report.active_since is None, report.source, report.users_total) == (True, "hub_db", 4)
        reasons = {verdict.account.name: verdict.reason for verdict in report.verdicts}
        assert reasons == {
            "ann": PruneReason.INACTIVE,
            "asks": PruneReason.CALLER,
            "boss": PruneReason.ADMIN,
            "busy": PruneReason.ACTIVE,
        }
        one = await w.pruning.user("ann", STALE)
        assert one is not None
        assert one.stale
        assert await w.pruning.user("ANN", STALE) == await w.pruning.user("ann", STALE)
        with pytest.raises(UnknownUser, match=r"The hub has no user anna\. Did you mean ann\?"):
            await w.pruning.user("anna", STALE)

    await run_in(w, steps)


async def test_by_the_api_alone_only_the_inactive_are_read_and_the_report_says_so(world: MakeWorld):
    w = await world(with_database=False)
    w.user("ann")
    w.user("busy", 3)

    async def steps() -> None:
        report = await w.pruning.users(STALE)
        assert (report.active_since is None, report.source, report.users_total) == (False, "hub_api", 2)
        assert [verdict.account.name for verdict in report.verdicts] == ["ann"]
        assert report.notes

    await run_in(w, steps)


async def test_a_token_used_since_the_plan_keeps_its_user_even_without_the_database(world: MakeWorld):
    w = await world(with_database=False)
    w.user("ann")
    w.user("script")
    w.hub.tokens["script"] = (1, w.clock.now() - timedelta(days=2))

    async def steps() -> None:
        plan = await w.apply()
        run = await w.until(plan.digest, PruneState.DONE)
        assert (run.done, run.skipped) == (1, 1)

    await run_in(w, steps)
    assert w.there() == {"script"}


def test_names_that_the_include_has_packed_are_read():
    names = [f"student-{number:05}@example.org" for number in range(5000)]
    told = packed(names)
    assert told["named"] is None
    assert HubConfigFacts.from_dict(json.loads(json.dumps(told))).named == frozenset(names)
    assert HubConfigFacts.from_dict(packed(["ann"])).named == {"ann"}
    assert HubConfigFacts.from_dict(packed([])).named == frozenset()
    assert HubConfigFacts.from_dict({"named": None, "named_packed": None}).named is None
    assert HubConfigFacts.from_dict(None).named is None


async def test_leafing_through_a_list_judges_everybody_once_and_shows_an_exemption_at_once(
    world: MakeWorld, monkeypatch: pytest.MonkeyPatch
):
    w = await world()
    w.user("ann")
    w.user("bob")
    judged, judge = [], prune_stale.judge

    def counted(*args):
        judged.append(args)
        return judge(*args)

    monkeypatch.setattr(prune_stale, "judge", counted)

    async def stale(**options: str) -> list[str]:
        report = await w.pruning.users(STALE, **options)
        return [verdict.account.name for verdict in report.verdicts if verdict.stale]

    async def steps() -> None:
        assert [await stale() for _ in range(3)] == [["ann", "bob"]] * 3
        assert len(judged) == 1
        assert await stale(caller="bob") == ["ann"]
        assert await stale() == ["ann", "bob"]
        now = w.clock.now()
        kept = await w.guard.parts.culling.exempt(
            "ada", "a thesis", user="ann", server=None, until=now + timedelta(days=5)
        )
        assert await stale() == ["bob"]
        await w.guard.parts.culling.end_exemption(kept.id, "ada", "")
        assert await stale() == ["ann", "bob"]
        before = len(judged)
        await w.clock.sleep(11)
        await stale()
        assert len(judged) == before + 1
        w.user("carl")
        assert await stale() == ["ann", "bob"]
        await w.pruning.plan(STALE, "ada")
        assert await stale() == ["ann", "bob", "carl"]

    await run_in(w, steps)


async def test_pages_go_by_what_the_hub_told_of_itself_lately_and_plans_ask_anew(world: MakeWorld):
    w = await world(with_database=False, told=None)
    w.user("ann")
    asked: list[str] = []
    whoami = w.hub.whoami

    async def scopes() -> TokenOwner:
        asked.append("whoami")
        return await whoami()

    async def spawner() -> str:
        asked.append("info")
        return "jupyterhub.spawner.LocalProcessSpawner" if len(asked) < 5 else "kubespawner.spawner.KubeSpawner"

    async def steps() -> None:
        await w.clock.sleep(5)
        w.hub.whoami, w.hub.spawner_class = scopes, spawner
        for _ in range(3):
            assert (await w.pruning.users(STALE)).storage.spawner == "LocalProcessSpawner"
        assert asked == ["info", "whoami"]
        w.hub.scopes -= {"read:tokens"}
        asked.extend(["", ""])
        assert (await w.pruning.users(STALE)).storage.spawner == "LocalProcessSpawner"
        plan = await w.pruning.plan(STALE, "ada")
        assert asked[4:] == ["info", "whoami"]
        assert {caution.name for caution in plan.cautions} >= {"KubeSpawner", "tokens-unknown"}
        assert (await w.pruning.users(STALE)).storage.spawner == "KubeSpawner"
        assert len(asked) == 6
        await w.clock.sleep(601)
        await w.pruning.users(STALE)
        assert asked.count("info") == 3

    await run_in(w, steps)


async def test_a_plan_that_couldnt_be_begun_is_asked_for_again_in_the_same_second(world: MakeWorld, tmp_path: Path):
    w = await world()
    w.user("ann")

    def dies(*_args: object, **_options: object) -> None:
        raise JournalError("The journal can't be written.")

    async def steps() -> None:
        plan = await w.pruning.plan(STALE, "ada")
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(PruneStore, "begin_prune", dies)
            with pytest.raises(JournalError):
                await w.pruning.apply(plan.digest, 1, "ada", "")
        assert w.asked_to_delete() == []
        run = await w.pruning.apply(plan.digest, 1, "ada", "")
        assert Path(run.undo_file) in (tmp_path / "undo").iterdir()
        assert (await w.until(plan.digest, PruneState.DONE)).done == 1
        undo_file.read(Path(run.undo_file), sha256=run.undo_sha256)

    await run_in(w, steps)
    assert len(list((tmp_path / "undo").iterdir())) == 2


class BusyBooks(InlineJournal):
    """``busy`` while it does what the journal's thread would do, which nobody else gets then."""

    busy = False

    async def call(self, function, *args, **kwargs):
        self.busy = True
        try:
            return await super().call(function, *args, **kwargs)
        finally:
            self.busy = False


async def test_nothing_that_takes_long_with_many_users_keeps_the_lease_from_being_renewed(
    world: MakeWorld, monkeypatch: pytest.MonkeyPatch
):
    books = BusyBooks(InlineJournal().journal)
    w = await world(books=books)
    w.user("ann")
    done: list[tuple[str, bool]] = []

    def noted(name: str, function: Callable[..., object]) -> Callable[..., object]:
        def called(*args: object, **kwargs: object) -> object:
            done.append((name, books.busy))
            return function(*args, **kwargs)

        return called

    longest = [
        (undo_file, "write"),
        (undo_file, "read"),
        (prune_stale, "judge"),
        (prune_plan, "freeze"),
        (prune_plan, "to_dict"),
        (prune_plan, "from_dict"),
    ]
    for module, name in longest:
        monkeypatch.setattr(module, name, noted(name, getattr(module, name)))
    digests = []

    async def begins() -> None:
        digests.append((await w.apply()).digest)
        await w.until(digests[0], PruneState.DONE)

    await run_in(w, begins)
    again = await world(books=books, clock=w.clock, hub=w.hub, holder="next")

    async def brings_back() -> None:
        await again.pruning.restore(digests[0], 1, "ada", "", token="hers")

    await run_in(again, brings_back)
    assert w.there() == {"ann"}
    assert {name for name, _ in done} == {name for _, name in longest}
    assert not any(busy for _, busy in done)


async def test_while_a_plan_runs_no_other_begins_and_the_one_that_runs_is_named(world: MakeWorld, tmp_path: Path):
    w = await world(prune={"rate": 0.1})
    for name in ("ann", "bob", "cas"):
        w.user(name)

    async def steps() -> None:
        first, second = [
            await w.pruning.plan(replace(STALE, names=names), "ada") for names in (("ann", "bob"), ("cas",))
        ]
        await w.pruning.apply(first.digest, 2, "ada", "")
        with pytest.raises(HubGuardError, match=f"plan {first.digest[:12]} is running"):
            await w.pruning.apply(second.digest, 1, "ada", "")
        assert len([*(tmp_path / "undo").iterdir()]) == 1
        await w.until(first.digest, PruneState.DONE)
        await w.pruning.apply(second.digest, 1, "ada", "")
        await w.until(second.digest, PruneState.DONE)

    await run_in(w, steps)
    assert w.there() == set()


async def test_a_plan_that_is_begun_while_the_one_before_still_ends_waits_for_that(world: MakeWorld):
    w = await world()
    for name in ("ann", "bob"):
        w.user(name)
    delete, at_once, most = w.hub.delete_user, 0, 0

    async def slowly(name: str, *, confirm=None) -> None:
        nonlocal at_once, most
        at_once += 1
        most = max(most, at_once)
        await delete(name, confirm=confirm)
        await w.clock.sleep(20)
        at_once -= 1

    w.hub.delete_user = slowly

    async def steps() -> None:
        first, second = [await w.pruning.plan(replace(STALE, names=(name,)), "ada") for name in ("ann", "bob")]
        await w.pruning.apply(first.digest, 1, "ada", "")
        await w.clock.sleep(5)
        assert at_once == 1
        await w.pruning.pause(first.digest, "ada", "")
        await w.pruning.apply(second.digest, 1, "ada", "")
        assert (await w.until(second.digest, PruneState.DONE)).done == 1

    await run_in(w, steps)
    assert most == 1
    assert w.there() == set()


@pytest.mark.parametrize(
    ("sections", "said"),
    [
        ({}, None),
        ({"HubGuardPrune": {"delete_users": True}}, "set HubGuardPrune.delete_users before"),
        ({"HubGuardCull": {"users": True}}, "set HubGuardCull.users before"),
    ],
)
async def test_without_the_scope_to_delete_users_the_setting_that_wants_it_is_named(
    tmp_path: Path, sections: dict, said: str | None
):
    settings = config.load({"HubGuard": {"db_url": f"sqlite:///{tmp_path}/journal.sqlite"}}, sections, environ={})
    assert not settings.errors
    budget = make_budget(settings)
    guard = make_guard(settings, Place("http://127.0.0.1:1/hub/api", "x"), Ways(MemoryHub(budget=budget), budget))
    await guard.once("ada", Wish())
    notes = [note for note in guard.status().notes if "delete:users" in note]
    assert [said in note for note in notes] == ([True] if said else [])


KUBE = HubConfigFacts(frozenset(), ("kubespawner.spawner.KubeSpawner",), {"delete_pvc": True}, None)


async def test_a_plan_made_before_the_hub_got_a_spawner_that_deletes_storage_isnt_begun_without_acknowledging_that(
    world: MakeWorld,
):
    w = await world()
    w.user("ann")
    digests = []

    async def plans() -> None:
        digests.append((await w.pruning.plan(STALE, "ada")).digest)

    await run_in(w, plans)
    again = await world(books=w.books, clock=w.clock, hub=w.hub, holder="next", told=KUBE)

    async def applies() -> None:
        for names in ((), ("LocalProcessSpawner",)):
            with pytest.raises(HubGuardError, match="KubeSpawner"):
                await again.pruning.apply(digests[0], 1, "ada", "", acknowledged=names)
        run = await again.pruning.run(digests[0])
        assert (run.state, run.undo_file) == (PruneState.PLANNED, None)
        assert w.asked_to_delete() == []
        run = await again.pruning.apply(digests[0], 1, "ada", "", acknowledged=("KubeSpawner", "tokens-unknown"))
        # Nobody acknowledges beforehand what they haven't been told.
        assert run.acknowledged == ("KubeSpawner",)
        assert (await again.until(digests[0], PruneState.DONE)).done == 1

    await run_in(again, applies)


@pytest.mark.parametrize("paused", [False, True])
async def test_a_plan_that_was_begun_before_deletes_no_storage_until_that_is_acknowledged(
    world: MakeWorld, paused: bool
):
    w = await world(prune={"rate": 1.0})
    for number in range(20):
        w.user(f"u{number:02}")
    digests = []

    async def begins() -> None:
        digests.append((await w.apply()).digest)
        await w.clock.sleep(5)
        if paused:
            await w.pruning.pause(digests[0], "ada", "")
            await w.clock.sleep(5)

    await run_in(w, begins)
    asked = w.asked_to_delete()
    assert 0 < len(asked) < 20
    again = await world(books=w.books, clock=w.clock, hub=w.hub, prune={"rate": 1.0}, holder="next", told=KUBE)

    async def goes_on() -> None:
        run = await again.until(digests[0], PruneState.PAUSED)
        assert paused or "KubeSpawner" in run.why
        for names in ((), ("LocalProcessSpawner",)):
            with pytest.raises(HubGuardError, match="KubeSpawner"):
                await again.pruning.resume(digests[0], "bob", "", acknowledged=names)
        await again.clock.sleep(120)
        assert (await again.pruning.run(digests[0])).state is PruneState.PAUSED
        assert w.asked_to_delete() == asked
        assert (
            await again.pruning.resume(digests[0], "bob", "", acknowledged=("KubeSpawner",))
        ).state is PruneState.RUNNING
        assert (await again.until(digests[0], PruneState.DONE)).done == 20
        assert (await again.pruning.run(digests[0])).acknowledged == ("KubeSpawner",)

    await run_in(again, goes_on)


async def test_whether_storage_goes_is_asked_of_the_hub_before_a_plan_goes_on_and_a_hub_that_is_silent_is_waited_for(
    world: MakeWorld,
):
    w = await world(told=HubConfigFacts(frozenset()), prune={"rate": 1.0})
    w.hub.spawner = "jupyterhub.spawner.LocalProcessSpawner"
    for number in range(20):
        w.user(f"u{number:02}")

    async def steps() -> None:
        digest = (await w.apply()).digest
        await w.clock.sleep(4)
        w.hub.fault = lambda request: HubUnreachable("The hub doesn't answer.")
        await w.clock.sleep(30)
        assert (await w.pruning.run(digest)).state is PruneState.RUNNING
        asked = len(w.asked_to_delete())
        w.hub.spawner = "somewhere.OtherSpawner"
        w.hub.fault = None
        run = await w.until(digest, PruneState.PAUSED)
        assert "OtherSpawner" in run.why
        assert len(w.asked_to_delete()) == asked

    await run_in(w, steps)


async def test_a_scheduled_plan_goes_by_what_the_settings_acknowledge_now(world: MakeWorld):
    prune = {"every_s": DAY_S, "inactive_for_s": 180 * DAY_S, "share_cap": 1.0, "rate": 1.0}
    w = await world(told=KUBE, prune={**prune, "acknowledged": ["KubeSpawner"]})
    for number in range(20):
        w.user(f"u{number:02}")

    async def begins() -> None:
        await w.clock.sleep(10)

    await run_in(w, begins)
    asked = w.asked_to_delete()
    assert 0 < len(asked) < 20
    again = await world(books=w.books, clock=w.clock, hub=w.hub, holder="next", told=KUBE, prune=prune)

    async def goes_on() -> None:
        (run,) = await again.pruning.runs()
        run = await again.until(run.digest, PruneState.PAUSED)
        assert "KubeSpawner" in run.why
        assert w.asked_to_delete() == asked
        await again.pruning.resume(run.digest, "ada", "", acknowledged=("KubeSpawner",))
        assert (await again.until(run.digest, PruneState.DONE)).done == 20

    await run_in(again, goes_on)


@pytest.mark.parametrize("with_database", [True, False])
@pytest.mark.parametrize("restarted", [True, False])
async def test_what_has_come_since_the_undo_file_was_written_is_never_lost(
    world: MakeWorld, with_database: bool, restarted: bool
):
    w = await world(prune={"rate": 2.0}, with_database=with_database)
    names = ("a-first", "in-group", "stale", "with-server", "with-token")
    for name in names:
        w.user(name)
    digests = []

    async def begins() -> None:
        digests.append((await w.apply()).digest)
        # Not for long: what was read ahead for the first of them would still count for the others.
        while "a-first" in w.there():
            await w.clock.sleep(0.1)
        await w.pruning.pause(digests[0], "ada", "")
        await w.clock.sleep(0.1)

    async def goes_on(w: World) -> None:
        assert "a-first" not in w.there()
        w.hub.add_user(replace(w.hub._users["in-group"], groups=("lab",)))
        if w.database is not None:
            for name, more in (
                ("with-token", {"tokens": 1}),
                ("with-server", {"servers": (AccountServer("gpu", False),)}),
            ):
                w.database.belongings[name] = Account(name, False, None, None, **more)
        await w.pruning.resume(digests[0], "ada", "")
        await w.until(digests[0], PruneState.DONE)
        told = {item.deletion.user: item.outcome.detail for item in await w.pruning.items(digests[0], state="skipped")}
        since = "changed since the undo file was written: "
        assert told["in-group"] == since + "the group lab"
        if w.database is not None:
            assert told["with-token"] == since + "1 more token"
            assert told["with-server"] == since + "the server gpu"
        assert w.there() == told.keys()

    async def steps() -> None:
        await begins()
        await goes_on(w)

    if not restarted:
        await run_in(w, steps)
        return
    await run_in(w, begins)
    again = await world(
        books=w.books, clock=w.clock, hub=w.hub, prune={"rate": 2.0}, with_database=with_database, holder="next"
    )
    await run_in(again, lambda: goes_on(again))


@pytest.mark.parametrize("to", ["paused", "cancelled"])
async def test_who_goes_after_the_guard_was_killed_counts_as_deleted_and_comes_back(world: MakeWorld, to: str):
    w = await world(prune={"rate": 1.0})
    names = [f"u{number}" for number in range(6)]
    for name in names:
        w.user(name)
    digests = []

    async def begins() -> None:
        digests.append((await w.apply()).digest)
        while len(w.asked_to_delete()) < 2:
            await w.clock.sleep(0.1)

    # The hub takes its time over the second one, and the guard ends in between.
    late = []
    remove = w.hub.delete_user

    async def slowly(user: str, *, confirm=None) -> None:
        if not late and w.asked_to_delete():
            await confirm()
            late.append(user)
            w.hub.requests.append(Request("delete", user, ""))
            await w.clock.sleep(1e6)
        await remove(user, confirm=confirm)

    w.hub.delete_user = slowly
    await run_in(w, begins)
    del w.hub.delete_user
    assert len(late) == 1
    done = set(names) - w.there()
    again = await world(books=w.books, clock=w.clock, hub=w.hub, prune={"rate": 0.01}, holder="next")
    digest = digests[0]

    async def finds_out() -> None:
        await again.pruning.pause(digest, "ada", "")
        # By now a cycle has settled what was open: they were there.
        await again.clock.sleep(120)
        if to == "cancelled":
            await again.pruning.cancel(digest, "ada", "")
        was = (await again.pruning.run(digest)).done
        del w.hub._users[late[0]]
        await again.clock.sleep(60)
        run = await again.pruning.run(digest)
        assert (run.state.value, run.done) == (to, was + 1)
        gone = {item.deletion.user for item in await again.pruning.items(digest, state="done")}
        assert gone == {*done, late[0]} == set(names) - w.there()
        told = [entry.detail for entry in w.entries(Event.NOTE) if "a later look found" in entry.detail]
        assert len(told) == 1
        assert late[0] in told[0]
        run = await again.pruning.restore(digest, run.done, "bob", "", token="a token")
        assert run.restored == run.done
        assert w.there() == set(names)

    await run_in(again, finds_out)


async def test_who_counts_as_failed_and_goes_later_comes_back_with_the_rest_and_who_was_skipped_does_not(
    world: MakeWorld,
):
    w = await world(prune={"rate": 10.0})
    for name in ("fails", "goes", "spared"):
        w.user(name)

    def fails(request: Request) -> HubError | None:
        return HubFailed("The hub failed.", status=500) if (request.call, request.user) == ("delete", "fails") else None

    w.hub.fault = fails

    async def steps() -> None:
        plan = await w.pruning.plan(STALE, "ada")
        w.user("spared", 0)
        await w.pruning.apply(plan.digest, 3, "ada", "")
        run = await w.until(plan.digest, PruneState.DONE)
        assert (run.done, run.failed, run.skipped) == (1, 1, 1)
        w.hub.fault = None
        del w.hub._users["fails"], w.hub._users["spared"]
        # Even before it is looked at by itself: the hub is asked before anybody is brought back.
        with pytest.raises(HubGuardError, match="deleted 2 users, not 1"):
            await w.pruning.restore(plan.digest, 1, "bob", "", token="a token")
        run = await w.pruning.run(plan.digest)
        assert (run.done, run.failed, run.skipped) == (2, 0, 1)
        await w.pruning.restore(plan.digest, 2, "bob", "", token="a token")

    await run_in(w, steps)
    assert w.there() == {"fails", "goes"}


async def test_nobody_is_brought_back_while_somebody_may_still_be_being_deleted_nor_while_the_hub_doesnt_tell(
    world: MakeWorld,
):
    w = await world(prune={"rate": 1.0})
    for number in range(6):
        w.user(f"u{number}")

    async def steps() -> None:
        digest = (await w.apply()).digest
        await w.clock.sleep(2.5)
        run = await w.pruning.pause(digest, "ada", "")
        with pytest.raises(HubGuardError, match="Try again in a minute"):
            await w.pruning.restore(digest, run.done, "bob", "", token="a token")
        await w.clock.sleep(60)
        run = await w.pruning.run(digest)
        # A plan says of whom it isn't known: what the hub doesn't tell of them isn't guessed.
        u5 = ("u5", w.hub._users["u5"].created)
        w.hub.fault = lambda request: HubUnreachable("The hub doesn't answer.") if request.call == "get-user" else None
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(PruneStore, "deletions_intended", lambda store, digest: (u5,))
            with pytest.raises(HubUnreachable):
                await w.pruning.restore(digest, run.done, "bob", "", token="a token")
        w.hub.fault = None
        assert not [request for request in w.hub.requests if request.call == "create"]
        run = await w.pruning.restore(digest, run.done, "bob", "", token="a token")
        assert run.restored == run.done > 0

    await run_in(w, steps)
    assert len(w.there()) == 6


async def test_while_a_plan_is_paused_the_schedule_begins_no_other_and_says_so(world: MakeWorld):
    prune = {"every_s": 3600.0, "inactive_for_s": 180 * DAY_S, "share_cap": 1.0}
    w = await world(prune={**prune, "rate": 1.0})
    for number in range(10):
        w.user(f"u{number}")

    async def steps() -> None:
        await w.clock.sleep(5)
        (run,) = await w.pruning.runs()
        await w.pruning.pause(run.digest, "ada", "an exam begins")
        await w.clock.sleep(30)
        left = w.there()
        assert left
        await w.clock.sleep(3700)
        assert len(await w.pruning.runs()) == 1
        assert w.there() == left
        (finding,) = [one for one in w.pruning.status().findings if one.kind is FindingKind.PRUNE_HELD]
        assert run.digest[:12] in finding.detail
        assert "an exam begins" in finding.detail
        assert [entry.detail for entry in w.entries(Event.FINDING) if "an exam begins" in entry.detail] == [
            finding.detail
        ]
        await w.pruning.cancel(run.digest, "ada", "")
        await w.clock.sleep(3700)
        assert len(await w.pruning.runs()) == 2
        assert not [one for one in w.pruning.status().findings if one.kind is FindingKind.PRUNE_HELD]

    await run_in(w, steps)
    assert w.there() == set()


async def paused_after_two(w: World) -> tuple[PruneRun, int]:
    """A plan that a person paused soon after its second request, and how many users it has deleted."""
    first = await w.apply()
    while len(w.asked_to_delete()) < 2:
        await w.clock.sleep(0.1)
    await w.pruning.pause(first.digest, "ada", "")
    await w.clock.sleep(10)
    return first, (await w.pruning.run(first.digest)).done


async def test_whoever_else_deletes_users_of_a_paused_plan_the_plan_doesnt_claim_them(world: MakeWorld):
    w = await world(prune={"rate": 1.0})
    for number in range(8):
        w.user(f"u{number}")

    async def steps() -> None:
        first, done = await paused_after_two(w)
        other = await w.pruning.plan(replace(STALE, names=("u[567]",)), "bob")
        await w.pruning.apply(other.digest, 3, "bob", "")
        await w.until(other.digest, PruneState.DONE)
        del w.hub._users["u4"]
        run = await w.pruning.cancel(first.digest, "ada", "")
        assert (run.done, run.gone) == (done, 0)
        with pytest.raises(HubGuardError, match=f"deleted {done} users, not 8"):
            await w.pruning.restore(first.digest, 8, "bob", "", token="a token")

    await run_in(w, steps)
    assert len(set(w.asked_to_delete()) - {"u5", "u6", "u7"}) < 4


@pytest.mark.parametrize("with_database", [True, False])
async def test_users_who_are_gone_when_a_plan_goes_on_are_neither_kept_nor_its_own(
    world: MakeWorld, with_database: bool
):
    w = await world(prune={"rate": 1.0}, with_database=with_database)
    for number in range(8):
        w.user(f"u{number}")
    w.user("stays", 1)

    async def steps() -> None:
        first, done = await paused_after_two(w)
        other = await w.pruning.plan(replace(STALE, names=("u[67]",)), "bob")
        await w.pruning.apply(other.digest, 2, "bob", "")
        await w.until(other.digest, PruneState.DONE)
        for name in ("u3", "u4", "u5"):
            w.hub._users.pop(name, None)
        w.user("u5", 0)
        run = await w.pruning.resume(first.digest, "ada", "")
        assert (run.done, run.gone, run.skipped) == (done, 4, 0), "known at once, and it doesn't pause for them"
        run = await w.until(first.digest, PruneState.DONE)
        assert (run.gone, run.skipped, run.done) == (4, 1, 3)
        details = {
            item.deletion.user: item.outcome.detail for item in await w.pruning.items(first.digest, state="gone")
        }
        assert set(details) == {"u3", "u4", "u6", "u7"}
        assert set(details.values()) == {"gone, and this plan didn't delete them"}

    await run_in(w, steps)
    assert w.there() == {"stays", "u5"}


async def test_a_plan_pauses_when_somebody_else_deletes_several_of_its_users(world: MakeWorld):
    w = await world(prune={"rate": 1.0})
    for number in range(100):
        w.user(f"u{number:02}")
    for number in range(400):
        w.user(f"busy{number}", 1)

    async def steps() -> None:
        plan = await w.apply()
        await w.clock.sleep(5.5)
        for number in range(20, 60, 2):
            del w.hub._users[f"u{number}"]
        run = await w.until(plan.digest, PruneState.PAUSED, for_s=60)
        assert "somebody else deleted 3 users of this plan" in run.why
        assert run.gone == 3
        assert run.done <= 25 + 3
        await w.pruning.resume(plan.digest, "ada", "")
        run = await w.until(plan.digest, PruneState.DONE, PruneState.PAUSED)
        assert (run.state, run.gone, run.done) == (PruneState.DONE, 20, 80)

    await run_in(w, steps)


@pytest.mark.parametrize("with_database", [True, False])
async def test_incident_a_fall_of_the_population_stops_a_plan_within_seconds(world: MakeWorld, with_database: bool):
    """Somebody deleted 33 of 100 users while a plan was under way, and it deleted 41 more before the next look."""
    w = await world(prune={"rate": 1.0}, with_database=with_database)
    for number in range(60):
        w.user(f"u{number:02}")
    for number in range(40):
        w.user(f"busy{number:02}", 1)

    async def falls() -> None:
        plan = await w.apply()
        await w.clock.sleep(4.5)
        for number in range(33):
            del w.hub._users[f"busy{number:02}"]
        before = len(w.asked_to_delete())
        run = await w.until(plan.digest, PruneState.PAUSED, for_s=90)
        assert len(w.asked_to_delete()) - before <= 7
        assert "HubGuard didn't delete the others" in run.why
        await w.clock.sleep(90)
        other = await w.pruning.plan(STALE, "ada")
        with pytest.raises(HubGuardError, match="Braked"):
            await w.pruning.apply(other.digest, len(other.deletions), "ada", "")
        await w.guard.mandate.resume("ada", "they are meant to be gone")
        await w.clock.sleep(90)
        await w.pruning.resume(plan.digest, "ada", "")
        run = await w.until(plan.digest, PruneState.DONE)
        assert run.done == 60

    await run_in(w, falls)


@pytest.mark.parametrize("with_database", [True, False])
async def test_listed_names_that_are_nobodys_are_refused_all_at_once_unless_asked_for(
    world: MakeWorld, with_database: bool
):
    w = await world(with_database=with_database)
    for name in ("ann", "bob"):
        w.user(name)
    w.user("busy", 1)
    listed = replace(STALE, listed=("ann", "Bob", "busy", "ghost", "other"))

    async def steps() -> None:
        with pytest.raises(HubGuardError, match=r"none of these listed users: ghost, other\."):
            await w.pruning.plan(listed, "ada")
        plan = await w.pruning.plan(listed, "ada", ignore_unknown=True)
        assert [deletion.user for deletion in plan.deletions] == ["ann", "bob"]
        assert (await w.pruning.plan(replace(listed, listed=("ann", "busy")), "ada")).gain.users_after == 2

    await run_in(w, steps)


async def test_restoring_names_who_isnt_back_and_why(world: MakeWorld):
    w = await world()
    for name in ("ann", "bob", "carl"):
        w.user(name)

    async def steps() -> None:
        plan = await w.apply()
        await w.until(plan.digest, PruneState.DONE)
        w.hub.fault = lambda request: (
            HubFailed("The hub doesn't take the name.", status=400)
            if (request.call, request.user) == ("create", "bob")
            else None
        )
        run = await w.pruning.restore(plan.digest, 3, "bob", "", token="a token")
        assert (run.restored, run.done) == (2, 3)
        assert [(user.user, user.state) for user in run.not_back] == [("bob", OutcomeKind.FAILED)]
        assert "doesn't take the name" in run.not_back[0].detail

    await run_in(w, steps)


@pytest.mark.parametrize("field", ["groups", "not_groups", "roles", "not_roles"])
async def test_a_group_or_role_that_nobody_has_is_refused_and_never_plans_nobody_or_everybody(
    world: MakeWorld, field: str
):
    """A mistyped --not-group plans those who were to be spared, and a mistyped --group nobody, both in silence."""
    w = await world()
    w.user("ann", groups=("staff",), roles=("staff", "user"))
    w.user("bo")

    async def steps() -> None:
        async with w.living():
            with pytest.raises(
                HubGuardError, match=r"No plan was made. No user has the (group|role) staf. Did you mean staff"
            ):
                await w.pruning.plan(replace(STALE, **{field: ("staf",)}), "ada")
            report = await w.pruning.users(replace(STALE, **{field: ("staf",)}))
            assert any("staf. Did you mean staff?" in note for note in report.notes)
            assert (await w.pruning.plan(replace(STALE, **{field: ("staff",)}), "ada")).deletions

    await w.clock.run(steps())


async def test_a_group_of_the_settings_that_nobody_has_any_more_keeps_no_plan_from_being_made(world: MakeWorld):
    w = await world(prune={"groups": ["class-of-2019", "class"]})
    w.user("ann", groups=("class",))

    async def steps() -> None:
        async with w.living():
            plan = await w.pruning.plan(replace(STALE, groups=("class-of-2019", "class")), "ada")
            assert [deletion.user for deletion in plan.deletions] == ["ann"]

    await w.clock.run(steps())


async def test_a_plan_whose_users_the_hub_fails_to_delete_one_after_another_is_paused_and_says_so_once(
    world: MakeWorld,
):
    """An authenticator whose delete_user raises may have forgotten each of them already."""
    w = await world(told=TOLD, prune={"rate": 10.0})
    for number in range(40):
        w.user(f"u{number:02}")
        w.hub.undeletable.add(f"u{number:02}")

    async def steps() -> None:
        plan = await w.pruning.plan(STALE, "ada")
        await w.pruning.apply(plan.digest, 40, "ada", "")
        run = await w.until(plan.digest, PruneState.PAUSED)
        assert "failed to delete 5 users in a row" in run.why
        assert "delete_user" in run.why
        assert len({request.user for request in w.hub.requests if request.call == "delete"}) < 10

    await run_in(w, steps)
