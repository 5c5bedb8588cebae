"""What every kind of backends keeps, over its double and over the real thing.

A test module subclasses BackendChecks (``class TestDocker(BackendChecks)``) and has a fixture ``world`` that gives a World.
"""

from __future__ import annotations

import asyncio
import contextlib
import time
from collections.abc import Sequence

import pytest

from hubguard.backends.model import Backend
from hubguard.backends.port import Backends, Expected
from hubguard.errors import BackendError

PATIENCE_S = 20.0
"""For what a real engine does in its own time."""


class World:
    """Real servers of one hub, by one kind of backends; and what happens to them behind HubGuard's back.

    ``backends`` is what is tested. ``ends``: it can end what it is told to. ``breaks``: the engine can be out of reach.
    """

    backends: Backends
    ends = True
    breaks = True
    hubs = 2
    """1: there is no other hub from which it would have to tell this one's apart."""

    async def start(self, user: str, server: str = "") -> Expected:
        """Have a server of this hub run, and give what is known of it. A second one of that name replaces nothing."""
        raise NotImplementedError

    async def kill(self, user: str, server: str = "") -> None:
        """Have the backend of that server dead, as by kill -9."""
        raise NotImplementedError

    async def lives(self, user: str, server: str = "") -> bool:
        """Whether this hub's backend of that server runs, as the system itself tells, not as ``backends`` do."""
        raise NotImplementedError

    async def start_elsewhere(self, user: str, server: str = "") -> Backend:
        """Have one of another hub run, on this machine or engine; and what one would call it who took it for this hub's."""
        raise NotImplementedError

    async def lives_elsewhere(self, user: str, server: str = "") -> bool:
        """Whether the other hub's backend of that server runs."""
        raise NotImplementedError

    async def break_engine(self) -> None:
        """Have the engine out of reach from now on."""
        raise NotImplementedError


def of(found: Sequence[Backend], user: str, server: str = "") -> list[Backend]:
    return [backend for backend in found if backend.key == (user, server)]


def living(found: Sequence[Backend], user: str, server: str = "") -> Backend:
    """The one live backend of that server."""
    alive = [backend for backend in of(found, user, server) if backend.alive]
    assert len(alive) == 1, f"{len(alive)} live backends of {user}/{server}, not one, in {found}"
    return alive[0]


def is_gone(found: Sequence[Backend], user: str, server: str = "", *, whole: bool) -> bool:
    """Whether that server has no backend: none is told of, where absence says so, or it is told that it isn't alive."""
    of_it = of(found, user, server)
    return all(backend.alive is False for backend in of_it) and (whole or bool(of_it))


async def look_until_gone(world: World, expected: Expected) -> tuple[Backend, ...]:
    deadline = time.monotonic() + PATIENCE_S
    while True:
        found = await world.backends.look([expected])
        if is_gone(found, expected.user, expected.server, whole=world.backends.whole):
            return found
        assert time.monotonic() < deadline, f"{expected.user}/{expected.server} is still told of: {found}"
        await asyncio.sleep(0.1)


async def until_dead(world: World, user: str, server: str = "") -> None:
    deadline = time.monotonic() + PATIENCE_S
    while await world.lives(user, server):
        assert time.monotonic() < deadline, f"{user}/{server} lives on"
        await asyncio.sleep(0.1)


def needs(wanted: bool, why: str) -> None:
    if not wanted:
        pytest.skip(why)


class BackendChecks:
    """The suite. Each test has a world of its own, or names of its own in a shared one: nothing asserts that it is empty."""

    async def test_what_runs_is_alive_under_its_own_names_and_proved(self, world: World) -> None:
        expected = [await world.start("ann"), await world.start("ann", "second"), await world.start("bob")]
        found = await world.backends.look(expected)
        for one in expected:
            backend = living(found, one.user, one.server)
            assert backend.kind == world.backends.kind
            assert backend.id
            assert backend.name
            if world.ends:
                assert backend.proof, f"{backend} isn't proved to be this hub's"
            assert backend.started is None or backend.started.utcoffset() is not None

    async def test_a_look_is_sorted_and_names_nothing_twice(self, world: World) -> None:
        expected = [await world.start("zoe"), await world.start("ann", "b"), await world.start("ann", "a")]
        found = await world.backends.look(expected)
        order = [(*backend.key, backend.id) for backend in found]
        assert order == sorted(order)
        assert len({backend.id for backend in found}) == len(found)
        # The order in which they are asked for is nobody's.
        again = await world.backends.look(expected[::-1])
        assert [(backend.id, backend.alive) for backend in again] == [(backend.id, backend.alive) for backend in found]

    @pytest.mark.parametrize(
        ("user", "server"),
        [("ann.b-c@example.org", ""), ("UPPER_lower", "Named-1"), ("übér", ""), ("a--b", "c"), ("a", "b--c")],
    )
    async def test_awkward_names_come_back_as_they_are(self, world: World, user: str, server: str) -> None:
        expected = await world.start(user, server)
        living(await world.backends.look([expected]), user, server)

    async def test_what_was_killed_is_gone_and_its_neighbours_are_not(self, world: World) -> None:
        ann, bob = await world.start("ann"), await world.start("bob")
        await world.backends.look([ann, bob])
        await world.kill("ann")
        found = await look_until_gone(world, ann)
        assert not any(backend.alive for backend in of(found, "ann"))
        living(await world.backends.look([ann, bob]), "bob")

    async def test_nothing_alive_is_told_of_a_server_that_never_ran(self, world: World) -> None:
        await world.start("ann")
        never = Expected("never-ran", "", target="http://127.0.0.1:9", state={})
        found = await world.backends.look([never])
        assert not any(backend.alive for backend in of(found, "never-ran"))

    async def test_without_whole_there_is_one_for_each_expected_and_no_other(self, world: World) -> None:
        needs(not world.backends.whole, "it tells of all there are")
        expected = [await world.start("ann"), Expected("bob", "", target="http://127.0.0.1:9", state={})]
        await world.start("nobody-asks")
        found = await world.backends.look(expected)
        assert [backend.key for backend in found] == [("ann", ""), ("bob", "")]
        assert await world.backends.look([]) == ()

    async def test_what_nobody_expects_is_found_too_and_proved(self, world: World) -> None:
        needs(world.backends.whole, "it tells of the expected ones only")
        await world.start("orphan", "named")
        assert living(await world.backends.look([]), "orphan", "named").proof

    async def test_one_that_started_anew_has_another_id(self, world: World) -> None:
        expected = await world.start("ann")
        before = living(await world.backends.look([expected]), "ann")
        await world.kill("ann")
        await look_until_gone(world, expected)
        expected = await world.start("ann")
        after = living(await world.backends.look([expected]), "ann")
        assert (before.id != after.id) or not world.ends

    async def test_an_orphan_ends_when_asked_and_its_neighbours_live_on(self, world: World) -> None:
        needs(world.ends, "it ends nothing")
        ann, bob = await world.start("ann"), await world.start("bob")
        await world.start("ann", "second")
        # An orphan is one that nobody expects; those that can't list have to be asked for it.
        backend = living(await world.backends.look([bob] if world.backends.whole else [ann, bob]), "ann")
        await world.backends.end(backend)
        await until_dead(world, "ann")
        await look_until_gone(world, ann)
        assert await world.lives("bob")
        assert await world.lives("ann", "second")

    async def test_ending_what_is_gone_is_nothing(self, world: World) -> None:
        needs(world.ends, "it ends nothing")
        expected = await world.start("ann")
        backend = living(await world.backends.look([expected]), "ann")
        await world.kill("ann")
        await look_until_gone(world, expected)
        await world.backends.end(backend)
        await world.backends.end(backend)

    async def test_its_successor_is_not_ended_in_its_place(self, world: World) -> None:
        needs(world.ends, "it ends nothing")
        expected = await world.start("ann")
        backend = living(await world.backends.look([expected]), "ann")
        await world.kill("ann")
        await look_until_gone(world, expected)
        await world.start("ann")
        with contextlib.suppress(BackendError):
            await world.backends.end(backend)
        await asyncio.sleep(0.5)
        assert await world.lives("ann")

    async def test_what_ends_nothing_says_so(self, world: World) -> None:
        needs(not world.ends, "it ends what it is told to")
        expected = await world.start("ann")
        backend = living(await world.backends.look([expected]), "ann")
        assert backend.proof == ""
        with pytest.raises(BackendError):
            await world.backends.end(backend)
        assert await world.lives("ann")

    async def test_another_hubs_are_left_out_even_under_the_same_names(self, world: World) -> None:
        needs(world.hubs > 1, "there is no other hub")
        expected = await world.start("ann")
        foreign = [await world.start_elsewhere("ann"), await world.start_elsewhere("theirs")]
        found = await world.backends.look([expected])
        living(found, "ann")
        assert not of(found, "theirs")
        assert not {backend.id for backend in found} & {backend.id for backend in foreign}

    async def test_another_hubs_are_never_ended_whoever_says_they_are_proved(self, world: World) -> None:
        needs(world.hubs > 1 and world.ends, "there is no other hub, or it ends nothing")
        await world.start("ann")
        foreign = await world.start_elsewhere("ann")
        with pytest.raises(BackendError):
            await world.backends.end(foreign)
        await asyncio.sleep(0.5)
        assert await world.lives_elsewhere("ann")
        assert await world.lives("ann")

    async def test_an_engine_out_of_reach_is_an_error_and_never_an_empty_answer(self, world: World) -> None:
        needs(world.breaks, "there is no engine that could be out of reach")
        expected = await world.start("ann")
        backend = living(await world.backends.look([expected]), "ann")
        await world.break_engine()
        with pytest.raises(BackendError) as caught:
            await world.backends.look([expected])
        assert len(str(caught.value)) > 20
        if world.ends:
            with pytest.raises(BackendError):
                await world.backends.end(backend)

    async def test_closing_twice_is_closing_once(self, world: World) -> None:
        await world.backends.look([await world.start("ann")])
        await world.backends.close()
        await world.backends.close()
