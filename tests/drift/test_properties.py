from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from datetime import datetime, timedelta
from random import Random
from typing import Any

import pytest
from builders import NOW
from drift_churn import Churn, second
from hypothesis import given, settings
from hypothesis import strategies as st

from hubguard.backends.model import Backend
from hubguard.drift.decide.follow import DriftPolicy, follow, shown, suspects
from hubguard.drift.decide.narrowed import narrowed
from hubguard.drift.decide.repair import plan_repairs, still_there
from hubguard.drift.model import Drift, DriftKind, World
from hubguard.hub.nouns import ORMCounts
from hubguard.model import Reading, Route, Server, Source

DEFAULT = DriftPolicy(sightings=3, for_s=15, clear_after=2, pending_limit_s=1800)
ASKED = (Source.HUB_API, Source.HUB_DB, Source.PROXY, Source.BACKEND)

# What each kind can't be told without; an orphan of which the spawner alone tells needs no backends.
NEEDS = {
    **dict.fromkeys(DriftKind, frozenset({Source.HUB_API, Source.PROXY})),
    DriftKind.SERVER_DEAD: {Source.HUB_API, Source.BACKEND},
    DriftKind.SERVER_GHOST: {Source.HUB_API, Source.BACKEND},
    DriftKind.SERVER_ORPHAN: {Source.HUB_API, Source.BACKEND},
    DriftKind.PENDING_STUCK: {Source.HUB_API},
    DriftKind.ACTIVITY_FROZEN: {Source.HUB_API},
    DriftKind.ORM_DANGLING: {Source.HUB_DB},
}

BOTH = [(user, name) for user in ("ann", "bob") for name in ("", "x")]
PATHS = ["/user/ann", "/user/ann/x", "/user/bob", "/user/bob/x", "/h.org/user/ann", "/", "/services/grader"]
PLACES = ["http://127.0.0.1:1", "http://localhost:1/", "http://127.0.0.1:2", "nonsense"]
PARTS = ("servers", "routes", "targets", "backends", "orm", "ghosts", "outlived", "unsure", "whole", "frozen_since")

seconds = st.integers(-9000, 0).map(lambda n: NOW + timedelta(seconds=n))
policies = st.builds(
    DriftPolicy,
    sightings=st.integers(2, 4),
    for_s=st.sampled_from([0.0, 15.0, 40.0]),
    clear_after=st.integers(1, 3),
    pending_limit_s=st.sampled_from([60.0, 1800.0]),
)


def _world(chance: Random, at_s: float = 0) -> World:
    """Anything that sources could say, sense or not."""

    def mostly() -> bool:
        return chance.random() < 0.85

    def at_some_time() -> datetime:
        return NOW - timedelta(seconds=chance.randrange(9000))

    at = NOW + timedelta(seconds=at_s)
    servers = {}
    for key in BOTH:
        if mostly():
            pending = chance.choice([None, None, None, None, "spawn", "stop"])
            started = chance.choice([None, NOW, NOW - timedelta(hours=1)])
            servers[key] = Server(*key, pending is None and mostly(), pending, started, None)
    routes = {}
    for path in filter(lambda _: mostly(), PATHS):
        key = chance.choice([*BOTH, (None, None)]) if "/user/" in path else (None, None)
        routes[path] = Route(path, chance.choice(PLACES), *key)
    backends = tuple(
        Backend(
            chance.choice(["process", "http"]),
            f"id{n}",
            *chance.choice(BOTH),
            chance.choice([True, True, False, None]),
            f"number {n}",
            chance.choice([None, at_some_time()]),
            chance.choice(["", "its URL"]),
        )
        for n in chance.sample(range(20), chance.randrange(6))
    )
    ages_s = [0.1, 0.1, 0.1, 45]
    return World(
        at,
        tuple(
            Reading(source, at - timedelta(seconds=chance.choice(ages_s)), mostly(), 0.1)
            for source in ASKED
            if mostly()
        ),
        servers if mostly() else None,
        frozenset([] if mostly() else [chance.choice(BOTH)]),
        routes if mostly() else None,
        {key: chance.choice(PLACES) for key in BOTH} if mostly() else None,
        {"grader": "/services/grader/"} if mostly() else None,
        "/",
        backends if mostly() else None,
        mostly(),
        ORMCounts(chance.randrange(2), expired_codes=chance.randrange(3)) if mostly() else None,
        frozenset(one.run for one in servers.values() if not mostly()),
        {} if mostly() else {chance.choice(BOTH): (at_some_time(), "it runs")},
        None if mostly() else at_some_time(),
    )


def _history(seed: int) -> list[World]:
    """Worlds one after another, in which much stays as it was: else hardly anything would be seen twice."""
    chance = Random(seed)
    at_s, history = 0.0, [_world(chance)]
    for _ in range(chance.randrange(1, 8)):
        at_s += chance.choice([1.0, 10.0, 40.0])
        same = {part: getattr(history[-1], part) for part in PARTS if chance.random() < 0.8}
        history.append(replace(_world(chance, at_s), **same))
    return history


seeds = st.integers(0, 2**32 - 1)
# By a seed: drawn one by one, so many parts take a hundred times as long.
histories = st.builds(_history, seeds)
worlds = st.builds(lambda seed: _world(Random(seed), at_s=900), seeds)


def followed(history: list[World], policy: DriftPolicy = DEFAULT) -> tuple[Drift, ...]:
    before: tuple[Drift, ...] = ()
    for world in history:
        before, _ = follow(before, world, policy)
    return before


def shuffled(draw: Any, mapping: Mapping[Any, Any] | None) -> dict[Any, Any] | None:
    return None if mapping is None else dict(draw(st.permutations(list(mapping.items()))))


def test_the_histories_hold_what_these_properties_are_about():
    raised, ended, planned, pending = set[DriftKind](), set[DriftKind](), set[DriftKind](), 0
    for seed in range(300):
        before: tuple[Drift, ...] = ()
        for world in _history(seed):
            before, over = follow(before, world, DEFAULT)
            raised |= {drift.kind for drift in before if drift.raised_at is not None}
            ended |= {drift.kind for drift in over if drift.raised_at is not None}
            pending += sum(drift.kind is DriftKind.PENDING_STUCK for drift in before)
        planned |= {DriftKind(repair.action.reason) for repair in plan_repairs(before, NOW).repairs}
    assert raised >= set(DriftKind) - {DriftKind.PENDING_STUCK}
    assert ended >= {DriftKind.SERVER_DEAD, DriftKind.SERVER_ORPHAN}
    assert planned >= {DriftKind.SERVER_DEAD, DriftKind.SERVER_ORPHAN, DriftKind.ROUTE_MISSING}
    assert pending > 0


@given(histories, policies)
def test_what_goes_on_is_counted_rightly_and_stands_in_order(history, policy):
    before: tuple[Drift, ...] = ()
    for n, world in enumerate(history):
        going, ended = follow(before, world, policy)
        assert len({drift.key for drift in going}) == len(going)
        assert {drift.key for drift in ended} <= {drift.key for drift in before}
        for drift in going:
            assert 0 <= drift.sightings <= drift.looks <= n + 1
            assert drift.since <= drift.seen_at <= world.at
            assert not drift.missed or drift.raised_at
        assert [drift.raised_at is None for drift in going] == sorted(drift.raised_at is None for drift in going)
        before = going


@given(histories, policies)
def test_nothing_is_raised_before_its_sightings_and_its_time(history, policy):
    before: tuple[Drift, ...] = ()
    for world in history:
        before, _ = follow(before, world, policy)
        told = world.outlived.keys()
        for drift in before:
            if drift.raised_at == world.at and (drift.user, drift.server) not in told:
                assert drift.sightings >= policy.sightings
                lasts_s = policy.pending_limit_s if drift.kind is DriftKind.PENDING_STUCK else policy.for_s
                assert (drift.seen_at - drift.since).total_seconds() >= lasts_s


@given(histories, policies)
def test_a_raised_one_ends_only_with_its_misses_or_another_run(history, policy):
    before: tuple[Drift, ...] = ()
    for world in history:
        going, ended = follow(before, world, policy)
        for drift in ended:
            server = (world.servers or {}).get((drift.user or "", drift.server or ""))
            another_run = server is not None and server.started != drift.started
            assert drift.raised_at is None or another_run or drift.missed + 1 >= policy.clear_after
        before = going


@given(histories, st.data())
def test_the_order_in_which_sources_tell_does_not_matter(history, data):
    *past, last = history
    before = followed(past)
    other = replace(
        last,
        readings=tuple(data.draw(st.permutations(last.readings))),
        servers=shuffled(data.draw, last.servers),
        routes=shuffled(data.draw, last.routes),
        targets=shuffled(data.draw, last.targets),
        backends=last.backends and tuple(data.draw(st.permutations(last.backends))),
    )
    mixed = data.draw(st.permutations(before))
    assert follow(mixed, other, DEFAULT) == follow(before, last, DEFAULT)
    assert suspects(other) == suspects(last)
    assert narrowed(other) == narrowed(last)


@given(histories, worlds, st.sampled_from(ASKED), st.booleans())
def test_a_source_that_is_down_changes_nothing_of_what_needs_it(history, world, source, is_asked):
    before = followed(history)
    down = [replace(one, complete=False) if one.source is source else one for one in world.readings]
    world = replace(world, readings=tuple(one for one in down if is_asked or one.source is not source))
    going, ended = follow(before, world, DEFAULT)
    after = {drift.key: drift for drift in going}
    for drift in before:
        told_by_spawner = drift.kind is DriftKind.SERVER_ORPHAN and not drift.subject
        if source in NEEDS[drift.kind] and not (told_by_spawner and source is Source.BACKEND):
            assert after[drift.key] == drift
            assert drift not in ended


@given(histories, worlds)
def test_of_a_server_on_which_the_hubs_word_is_old_nothing_changes(history, world):
    before = followed(history)
    unsure = frozenset(BOTH)
    going, ended = follow(before, replace(world, unsure=unsure), DEFAULT)
    assert {one for one in going if one.user is not None} == {one for one in before if one.user is not None}
    assert not any(one.user for one in ended)


@given(histories, st.sampled_from(["spawn", "stop", "check", "rename"]))
def test_pending_is_never_drift_but_for_too_long_a_time(history, word):
    servers = {key: Server(*key, False, word, NOW, None) for key in BOTH}
    pending = [replace(world, servers=servers, outlived={}) for world in history]
    assert [one.kind for one in shown(followed(pending)) if one.user is not None] == []


@given(worlds)
def test_whoever_differs_is_suspected_while_the_hubs_word_is_old(world):
    fresh = replace(world, unsure=frozenset())
    differing = {(one.user, one.server) for one in shown(follow((), fresh, DEFAULT)[0]) if one.user is not None}
    old = replace(world, unsure=frozenset(world.servers or {}))
    assert differing <= set(suspects(old))
    assert list(suspects(old)) == sorted(set(suspects(old)))


@given(histories)
def test_a_plan_for_what_is_there_is_still_to_be_done_and_for_what_is_gone_is_not(history):
    drifts = followed(history)
    for repair in plan_repairs(drifts, NOW).repairs:
        assert still_there(repair, drifts) == ""
        assert still_there(repair, [one for one in drifts if one.id not in repair.drifts]) != ""


# -- what agrees ------------------------------------------------------------------------------------------------------

names = st.text(st.characters(codec="utf-8", exclude_characters="/", exclude_categories=["Cc", "Cs"]), min_size=1)


@given(
    st.sets(st.tuples(names, st.just("") | names), max_size=8), st.sampled_from(["/", "/lab/", "/l%20b/"]), st.data()
)
def test_a_healthy_hub_has_no_drift_whatever_its_names(running, base_url, data):
    folder = {"/": "", "/lab/": "/lab", "/l%20b/": "/l b"}[base_url]
    hub, routes, targets, backends = {}, {folder or "/": Route(folder or "/", "http://hub")}, {}, []
    for n, (user, name) in enumerate(running):
        target, started = f"http://10.0.0.{n}:8888", data.draw(st.none() | seconds)
        path = f"{folder}/user/{user}" + (f"/{name}" if name else "")
        hub[user, name] = Server(user, name, True, None, started, None)
        routes[path] = Route(path, data.draw(st.sampled_from([target, target + "/", target + path])), user, name)
        targets[user, name] = target
        backends.append(Backend("docker", str(n), user, name, True, "container", started, "its network"))
    readings = tuple(Reading(source, NOW, True, 0.1) for source in ASKED)
    world = World(NOW, readings, hub, frozenset(), routes, targets, {}, base_url, tuple(backends), True, ORMCounts())
    assert follow((), world, DEFAULT) == ((), ())
    assert suspects(replace(world, unsure=frozenset(hub))) == ()
    assert narrowed(world) == ()


# -- what is busy -----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("from_database", [False, True])
@pytest.mark.parametrize("seed", range(4))
def test_a_churning_hub_shows_no_false_drift(seed, from_database):
    churn = Churn(seed, from_database=from_database)
    looks = churn.watch(DEFAULT)
    assert [drift for _, going, ended in looks for drift in (*going, *ended) if drift.raised_at] == []
    # It was near enough to drift that something was suspected all the time, and much of it came to an end.
    assert len(looks) > 60
    assert sum(len(ended) for _, _, ended in looks) > 200
    assert sum(len(going) for _, going, _ in looks) > 200


@settings(max_examples=15, deadline=None)
@given(st.integers(0, 2**32), st.booleans(), st.sampled_from([5, 30, 120, 300]))
def test_a_small_churning_hub_shows_no_false_drift_either_however_seldom_it_is_looked_at(seed, from_database, every_s):
    churn = Churn(seed, servers=30, until_s=20 * every_s, from_database=from_database)
    looks = churn.watch(DEFAULT, every_s)
    assert [drift for _, going, _ in looks for drift in going if drift.raised_at] == []


def _without_route(world: World, path: str) -> World:
    return replace(world, routes={at: one for at, one in (world.routes or {}).items() if at != path})


def _without_server(world: World) -> World:
    return replace(world, servers={key: one for key, one in (world.servers or {}).items() if key[0] != "zoe"})


def _without_backend(world: World) -> World:
    return replace(world, backends=tuple(one for one in world.backends or () if one.user != "zoe"))


def _pending(world: World) -> World:
    stuck = {key: replace(one, ready=False, pending="spawn") for key, one in (world.servers or {}).items()}
    # The database knows of nothing pending: what it says is told by the watcher to be unsure.
    return replace(world, servers={**(world.servers or {}), ("zoe", ""): stuck["zoe", ""]})


FAULTS = {
    DriftKind.ROUTE_MISSING: lambda world: _without_route(world, "/user/zoe"),
    DriftKind.ROUTE_WRONG_TARGET: lambda world: replace(
        world, routes={**world.routes, "/user/zoe": Route("/user/zoe", "http://127.0.0.1:9", "zoe", "")}
    ),
    DriftKind.ROUTE_STALE: lambda world: _without_backend(_without_server(world)),
    DriftKind.SERVICE_ROUTE_MISSING: lambda world: _without_route(world, "/services/grader"),
    DriftKind.HUB_ROUTE_MISSING: lambda world: _without_route(world, "/"),
    DriftKind.SERVER_DEAD: _without_backend,
    DriftKind.SERVER_GHOST: lambda world: replace(
        _without_backend(world), ghosts=frozenset({("zoe", "", second(-900))})
    ),
    DriftKind.SERVER_ORPHAN: lambda world: _without_server(_without_route(world, "/user/zoe")),
    DriftKind.PENDING_STUCK: _pending,
    DriftKind.ORM_DANGLING: lambda world: replace(world, orm=ORMCounts(expired_tokens=3)),
    DriftKind.ACTIVITY_FROZEN: lambda world: replace(world, frozen_since=second(100)),
}


@pytest.mark.parametrize("from_database", [False, True])
@pytest.mark.parametrize("kind", FAULTS)
def test_what_breaks_on_a_churning_hub_is_found_alone_and_ends_when_it_is_mended(kind, from_database):
    churn = Churn(7, servers=60, steady=("yan", "zoe"), until_s=500, from_database=from_database)
    churn.fault = lambda world, at_s: FAULTS[kind](world) if 100 <= at_s < 300 else world
    looks = churn.watch(replace(DEFAULT, pending_limit_s=60))
    about = {(drift.kind, drift.user) for at_s, going, _ in looks for drift in going if drift.raised_at}
    shared = {
        DriftKind.SERVICE_ROUTE_MISSING,
        DriftKind.HUB_ROUTE_MISSING,
        DriftKind.ORM_DANGLING,
        DriftKind.ACTIVITY_FROZEN,
    }
    assert about == {(kind, None if kind in shared else "zoe")}
    within_s = 60 + (60 if kind is DriftKind.PENDING_STUCK else 0)
    first_s = min(at_s for at_s, going, _ in looks if any(drift.raised_at for drift in going))
    assert 115 <= first_s <= 100 + within_s
    ends = [at_s for at_s, _, ended in looks for drift in ended if drift.raised_at]
    assert len(ends) == 1
    assert 300 <= ends[0] <= 360
