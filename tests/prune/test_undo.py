"""The way back of a plan, with a journal and a hub in memory: what is written down of it, and what asking again finds."""

from __future__ import annotations

import asyncio
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass, replace
from datetime import timedelta
from pathlib import Path
from types import SimpleNamespace
from typing import Any, cast

import pytest
from doubles.hub import MemoryHub, Request
from inline_journal import InlineJournal
from virtual_time import VirtualClock

from hubguard import config
from hubguard.act.mandate import Mandate
from hubguard.errors import HubError, HubFailed, HubGuardError, HubRefused
from hubguard.hub.nouns import UndoServer, UndoUser
from hubguard.journal.model import Event
from hubguard.model import Outcome, OutcomeKind, User
from hubguard.prune import undo_file
from hubguard.prune.model import (
    Deletion,
    Gain,
    PrunePlan,
    PruneReason,
    PruneRun,
    PruneState,
    StaleCriteria,
    Storage,
    StorageFate,
    UndoHead,
)
from hubguard.prune.observe import AccountReader
from hubguard.prune.store import PruneStore
from hubguard.prune.undo import Undo

NAMES = tuple(f"user-{number:02}" for number in range(12))


class InlineThreads(ThreadPoolExecutor):
    """In place of threads, in virtual time: what is given to one is over before anything else happens."""

    def submit(self, fn: Any, /, *args: Any, **kwargs: Any) -> Future[Any]:
        done: Future[Any] = Future()
        try:
            done.set_result(fn(*args, **kwargs))
        except Exception as error:
            done.set_exception(error)
        return done


class Killed(BaseException):
    """The guard's process ends here."""


@dataclass
class World:
    clock: VirtualClock
    hub: MemoryHub
    books: InlineJournal
    undo: Undo
    plan: PrunePlan

    @property
    def run(self) -> PruneRun:
        run = PruneStore(self.books.journal).prune_run(self.plan.digest)
        assert run is not None
        return run

    async def restored(self, *, count: int = len(NAMES)) -> PruneRun:
        return await self.clock.run(
            self.undo.restore(self.plan, self.run, count, "ada", "they asked", token="hers", sha256=None)
        )

    def told(self) -> list[tuple[str | None, str]]:
        """Whom each entry of the journal is about, and what it says, oldest first."""
        return [
            (entry.user, entry.detail) for entry in reversed(self.books.journal.entries(event=Event.NOTE, limit=1000))
        ]

    def back(self) -> list[str]:
        """Whom the journal tells to be back."""
        return sorted(user for user, detail in self.told() if user and ": done: " in detail)


@pytest.fixture
async def world(tmp_path: Path) -> Any:
    """A plan that is done; its users are in the undo file, and the hub has none of them."""
    asyncio.get_running_loop().set_default_executor(InlineThreads())
    clock, books = VirtualClock(), InlineJournal()
    hub = MemoryHub(clock=clock)
    hub.takes_s = 0.01
    hub.groups = {"lab"}
    settings = config.load({"HubGuardPrune": {"undo_folder": str(tmp_path)}}, environ={})
    reader = AccountReader(hub, None, clock)
    undo = Undo(settings.prune, hub, reader, clock, books, cast(Mandate, SimpleNamespace(check=lambda: None)))
    now = clock.now()
    deletions = tuple(Deletion(name, now, None, PruneReason.NEVER_ACTIVE, now) for name in NAMES)
    kept = Storage(StorageFate.KEPT, "Local", "kept")
    criteria, gain = StaleCriteria(never_active_for_s=1.0), Gain(20, 8, 1, 1)
    plan = PrunePlan("d" * 64, now, now + timedelta(days=1), "ada", criteria, deletions, {}, gain, kept)
    users = [UndoUser(name, ("lab",), ("user",), (UndoServer("gpu", {"cpu": 2}),)) for name in NAMES]
    written = undo_file.write(tmp_path, UndoHead(plan.digest, now, "ada"), users)
    journal = books.journal
    PruneStore(journal).keep_plan(plan, "{}")
    PruneStore(journal).begin_prune(plan.digest, "ada", "term", str(written.path), written.sha256, now)
    for position in range(len(NAMES)):
        PruneStore(journal).settle_pruned(plan.digest, position, Outcome(OutcomeKind.DONE, "gone"), now)
    PruneStore(journal).turn_prune(plan.digest, [PruneState.RUNNING], PruneState.DONE, "hubguard", "", now)
    yield World(clock, hub, books, undo, plan)
    books.close()


async def test_the_journal_says_who_is_next_and_then_what_came_of_each(world: World) -> None:
    run = await world.restored()

    assert run.restored == len(NAMES)
    first, about, *each = world.told()[-len(NAMES) - 2 :]
    assert first == (None, "bringing back 12 users of plan dddddddddddd was asked for: they asked")
    assert about == (None, "about to bring back users 1 to 12 of 12 of plan dddddddddddd, from user-00 to user-11")
    assert sorted(each) == [(name, "brought back from an undo file: done: is back") for name in NAMES]


async def test_killed_at_any_request_the_journal_knows_what_was_begun_and_asking_again_finds_all_back(
    world: World,
) -> None:
    """As it was found: 19 of 30 were made, the guard was killed, and every later word was "11 of 30 are back"."""
    world.hub.fault = killing(world.hub, len(world.hub.requests) + 17)
    with pytest.raises(Killed):
        await world.restored()
    made = set(world.hub._users)
    assert made, "it was killed before anybody was made, so this proves nothing"
    assert world.told()[-1 - len(world.back())][1].startswith("about to bring back users 1 to 12 of 12")

    world.hub.fault = None
    for _ in range(3):
        assert (await world.restored()).restored == len(NAMES)
    assert set(world.hub._users) == {*NAMES}
    assert all(user.groups == ("lab",) for user in world.hub._users.values())
    assert {*world.back()} == {*NAMES}


async def test_killed_while_they_are_read_again_those_who_were_seen_are_in_the_journal(world: World) -> None:
    seen = 0

    def kill(request: Request) -> HubError | None:
        nonlocal seen
        seen += request.call == "get-user"
        if seen > 11:
            raise Killed
        return None

    world.hub.fault = kill
    with pytest.raises(Killed):
        await world.restored()

    assert len(world.back()) >= 10
    assert world.run.restored == len(world.back())


async def test_who_is_gone_again_counts_no_longer_when_all_were_looked_at(world: World) -> None:
    assert (await world.restored()).restored == len(NAMES)
    await world.clock.run(world.hub.delete_user("user-03"))
    world.hub.fault = failing("create", "user-03", HubFailed("The hub failed to make them (400).", status=400))
    assert (await world.restored()).restored == len(NAMES) - 1


async def test_who_could_not_be_looked_at_is_still_counted(world: World) -> None:
    assert (await world.restored()).restored == len(NAMES)
    world.hub.fault = failing("get-user", "user-03", HubFailed("The hub failed to read them (500).", status=500))
    assert (await world.restored()).restored == len(NAMES)


async def test_where_nobody_could_be_tried_it_is_refused_with_the_reason(world: World) -> None:
    def refuse(request: Request) -> HubError | None:
        return HubRefused("The hub refused to make them (403).") if request.call == "create" else None

    world.hub.fault = refuse
    with pytest.raises(HubGuardError, match="Nobody was restored: .*the right admin:users"):
        await world.restored()
    assert world.run.restored == 0
    assert not world.hub._users


async def test_an_undo_file_is_not_written_where_somebody_cannot_be_read(world: World, tmp_path: Path) -> None:
    for name in NAMES:
        world.hub.add_user(User(name, admin=False, groups=(), roles=("user",)))
    world.hub.fault = failing("get-user", "user-07", HubFailed("The hub failed to read them (500).", status=500))
    before = {*tmp_path.iterdir()}
    with pytest.raises(HubFailed, match="failed to read"):
        await world.clock.run(world.undo.write(world.plan))
    assert {*tmp_path.iterdir()} == before


async def test_an_undo_file_without_the_database_has_the_servers_that_do_not_run(world: World) -> None:
    await world.restored()
    written = await world.clock.run(world.undo.write(replace(world.plan, digest="e" * 64)))
    _, users = undo_file.read(written.path)
    assert users == tuple(UndoUser(name, ("lab",), ("user",), (UndoServer("gpu", {"cpu": 2}),)) for name in NAMES)


async def test_the_facts_of_a_plan_are_those_of_its_own_undo_file_whichever_was_read_before(
    world: World, tmp_path: Path
) -> None:
    assert set(await world.undo.facts(world.run)) == {*NAMES}
    head = UndoHead("e" * 64, world.clock.now(), "ada")
    others = undo_file.write(tmp_path / "others", head, [UndoUser("zoe")])
    another = replace(world.run, digest=head.digest, undo_file=str(others.path), undo_sha256=others.sha256)
    assert set(await world.undo.facts(another)) == {"zoe"}
    assert set(await world.undo.facts(world.run)) == {*NAMES}


def killing(hub: MemoryHub, step: int) -> Any:
    def kill(_: Request) -> HubError | None:
        if len(hub.requests) > step:
            raise Killed
        return None

    return kill


def failing(call: str, user: str, error: HubError) -> Any:
    return lambda request: error if (request.call, request.user) == (call, user) else None
