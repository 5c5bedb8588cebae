from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from datetime import timedelta
from typing import Any

import pytest
from builders import NOW, ago, server

from hubguard.backends.model import Backend
from hubguard.drift.decide.follow import DriftPolicy, follow, shown, suspects
from hubguard.drift.decide.narrowed import narrowed
from hubguard.drift.decide.repair import plan_repairs, remedy, still_there
from hubguard.drift.model import Drift, DriftKind, World
from hubguard.hub.nouns import ORMCounts
from hubguard.model import ActionKind, Reading, Route, Source

POLICY = DriftPolicy(sightings=3, for_s=15, clear_after=2, pending_limit_s=1800)
TARGET = "http://127.0.0.1:4001"


def route(user: str = "ann", name: str = "", target: str = TARGET, path: str = "") -> Route:
    return Route(path or f"/user/{user}" + (f"/{name}" if name else ""), target, user, name)


def backend(user: str = "ann", alive: bool | None = True, id_: str = "", **changes: Any) -> Backend:
    base = Backend("process", id_ or f"{user}:1", user, "", alive, f"pid of {user}", ago(3600), "its API URL")
    return replace(base, **changes)


def world(after_s: float = 0, *, without: Sequence[Source] = (), part: Sequence[Source] = (), **said: Any) -> World:
    """A world of one healthy server, as of so many seconds after NOW, with what is ``said`` instead."""
    at = NOW + timedelta(seconds=after_s)
    readings = tuple(
        Reading(source, at - timedelta(seconds=0.5), source not in part, 0.1, "no answer" if source in part else "")
        for source in (Source.HUB_API, Source.HUB_DB, Source.PROXY, Source.BACKEND)
        if source not in without
    )
    servers = said.pop("servers", [server()])
    routes = said.pop("routes", [route()])
    fields: dict[str, Any] = {
        "servers": servers and {one.key: one for one in servers},
        "routes": None if routes is None else {one.path: one for one in [Route("/", "http://hub"), *routes]},
        "targets": {("ann", ""): TARGET},
        "prefixes": {},
        "backends": (backend(),),
        "whole": True,
        "orm": ORMCounts(),
        **said,
    }
    if servers == []:
        fields["servers"] = {}
    return World(at, readings, **fields)


def looks(*worlds: World, before: Sequence[Drift] = (), policy: DriftPolicy = POLICY) -> tuple[Drift, ...]:
    """What goes on after these looks."""
    for one in worlds:
        before = follow(before, one, policy)[0]
    return tuple(before)


def one(world: World) -> Drift:
    """The single drift that one look at it suspects."""
    (found,) = looks(world)
    return found


def raised(times: Sequence[float] = (0, 10, 20), **said: Any) -> Drift:
    """The single drift that looks at these times raise."""
    (found,) = looks(*(world(after_s, **said) for after_s in times))
    assert found.raised_at is not None
    return found


GONE = {"servers": [], "targets": {}}


# -- the kinds ------------------------------------------------------------------------------------------------------


def test_where_all_agree_there_is_no_drift():
    assert looks(world()) == ()
    assert narrowed(world()) == ()


def test_a_ready_server_without_a_route_is_route_missing():
    drift = one(world(routes=[]))
    assert drift.key == (DriftKind.ROUTE_MISSING, "ann", "", "")
    assert drift.expected == f"ready, so a route to {TARGET}"
    assert drift.observed == "no route"
    assert drift.evidence == (
        "Hub's API, 2026-11-21 11:59:59 UTC: ready, started 2026-11-21 11:00:00 UTC",
        f"Hub's database, 2026-11-21 11:59:59 UTC: it is reached at {TARGET}",
        "Proxy, 2026-11-21 11:59:59 UTC: no route for it among 1",
    )
    assert (drift.sightings, drift.looks, drift.raised_at) == (1, 1, None)


def test_somebody_elses_route_in_its_place_is_no_route_of_the_server():
    drift = one(world(routes=[Route("/user/ann", TARGET)]))
    assert drift.kind is DriftKind.ROUTE_MISSING
    assert drift.observed == "no route of the hub's; /user/ann is somebody else's"


def test_a_route_that_leads_elsewhere_is_wrong_target():
    drift = one(world(routes=[route(target="http://127.0.0.1:4002")]))
    assert drift.key == (DriftKind.ROUTE_WRONG_TARGET, "ann", "", "/user/ann")
    assert drift.expected == f"ready at {TARGET}"
    assert drift.observed == "the route /user/ann to http://127.0.0.1:4002"


@pytest.mark.parametrize(
    ("target", "route_target"),
    [
        (TARGET, TARGET + "/user/ann"),
        (TARGET, "http://LOCALHOST:4001/"),
        ("http://10.0.0.1", "http://10.0.0.1:80/"),
        ("https://10.0.0.1:443", "https://10.0.0.1"),
        ("http://[::1]", "http://[::1]:80"),
        ("http://[fe80::1]:8888", "http://[FE80::1]:8888/x"),
    ],
)
def test_one_place_may_be_written_in_several_ways(target, route_target):
    assert looks(world(routes=[route(target=route_target)], targets={("ann", ""): target})) == ()


@pytest.mark.parametrize(
    "route_target", ["https://127.0.0.1:4001", "http://127.0.0.2:4001", "http://127.0.0.1", "http://[::1]:4001"]
)
def test_scheme_host_and_port_each_make_another_place(route_target):
    assert one(world(routes=[route(target=route_target)])).kind is DriftKind.ROUTE_WRONG_TARGET


@pytest.mark.parametrize("target", ["", "4001", "http://", "http://host:port", "unix+http:///run/x.sock"])
def test_a_target_that_makes_no_sense_is_not_judged(target):
    assert looks(world(routes=[route()], targets={("ann", ""): target})) == ()


def test_without_the_hubs_database_no_target_is_wrong():
    said = {"targets": None, "routes": [route(target="http://elsewhere")]}
    assert looks(world(without=[Source.HUB_DB], orm=None, **said)) == ()


def test_a_route_at_its_path_that_names_another_users_server_is_wrong_target_even_without_the_database():
    said = {
        "servers": [server(), server("bob")],
        "routes": [route("bob", path="/user/ann"), route("bob")],
        "backends": (backend(), backend("bob")),
        "targets": None,
    }
    drift = one(world(without=[Source.HUB_DB], orm=None, **said))
    assert drift.key == (DriftKind.ROUTE_WRONG_TARGET, "ann", "", "/user/ann")
    assert drift.observed == f"the route /user/ann to {TARGET}, which belongs to bob"


def test_a_route_in_anothers_place_is_no_route_of_its_own_server():
    said = {
        "servers": [server(), server("bob")],
        "routes": [route("bob", path="/user/ann")],
        "backends": (backend(), backend("bob")),
    }
    assert [drift.key[:2] for drift in looks(world(**said))] == [
        (DriftKind.ROUTE_MISSING, "bob"),
        (DriftKind.ROUTE_WRONG_TARGET, "ann"),
    ]


def test_routes_of_a_hub_with_subdomains_are_judged_by_whose_they_are_and_not_by_their_paths():
    said = {"routes": [route(path="/ann.hub.example.org/user/ann")], "prefixes": {"grader": "/services/grader/"}}
    bare = world(**said)
    del bare.routes["/"]
    assert looks(bare) == ()
    assert narrowed(bare) == (
        "Missing routes of the hub and its services are unknown: this hub gives users subdomains.",
    )


def test_a_route_for_a_server_that_is_not_is_stale():
    drift = one(world(backends=(), **GONE))
    assert drift.key == (DriftKind.ROUTE_STALE, "ann", "", "/user/ann")
    assert drift.observed == f"the route /user/ann to {TARGET}"


def test_a_server_that_is_listed_and_neither_ready_nor_pending_is_none():
    drift = one(world(backends=(), targets={}, servers=[replace(server(), ready=False)]))
    assert drift.kind is DriftKind.ROUTE_STALE


def test_services_and_hub_must_have_their_routes():
    said = {"prefixes": {"grader": "/lab/services/gr%C3%A4der/"}, "base_url": "/lab/"}
    missing = looks(world(**{**said, "servers": [], "routes": [], "backends": (), "targets": {}}))
    assert [(drift.kind, drift.user, drift.server, drift.subject) for drift in missing] == [
        (DriftKind.HUB_ROUTE_MISSING, None, None, ""),
        (DriftKind.SERVICE_ROUTE_MISSING, None, None, "grader"),
    ]
    there = [Route("/lab", "http://hub"), Route("/lab/services/gräder", "http://grader")]
    assert looks(world(**{**said, "servers": [], "routes": there, "backends": (), "targets": {}})) == ()


@pytest.mark.parametrize(("backends", "whole"), [((backend(alive=False),), False), ((), True)])
def test_a_ready_server_whose_backend_is_gone_is_dead(backends, whole):
    drift = one(world(backends=backends, whole=whole))
    assert drift.key == (DriftKind.SERVER_DEAD, "ann", "", "")
    assert drift.started == ago(3600)


@pytest.mark.parametrize(
    ("backends", "whole"),
    [
        ((backend(alive=None),), True),
        ((backend(alive=False), backend(id_="2", alive=True)), True),
        ((backend(alive=False), backend(id_="2", alive=None)), True),
        ((), False),
    ],
)
def test_a_server_is_not_dead_while_anything_may_run_it(backends, whole):
    assert looks(world(backends=backends, whole=whole)) == ()


@pytest.mark.parametrize("off_s", [0, 0.7])
def test_a_dead_server_that_a_stop_did_not_end_is_a_ghost(off_s):
    run = ("ann", "", ago(3600 + off_s))
    assert one(world(backends=(), ghosts=frozenset({run}))).kind is DriftKind.SERVER_GHOST
    other = ("ann", "", ago(7200))
    assert one(world(backends=(), ghosts=frozenset({other}))).kind is DriftKind.SERVER_DEAD


def test_a_live_backend_without_a_server_is_an_orphan():
    drift = one(world(routes=[], **GONE))
    assert drift.key == (DriftKind.SERVER_ORPHAN, "ann", "", "ann:1")
    assert drift.backend == backend()
    assert drift.observed == "pid of ann lives"


def test_something_that_answers_where_a_server_was_is_no_orphan():
    assert looks(world(routes=[], backends=(backend(kind="http"),), **GONE)) == ()


@pytest.mark.parametrize("alive", [False, None])
def test_a_backend_that_is_not_surely_alive_is_no_orphan(alive):
    assert looks(world(routes=[], backends=(backend(alive=alive),), **GONE)) == ()


def test_a_backend_of_an_earlier_run_beside_the_present_one_is_an_orphan():
    old, new = backend(id_="old", started=ago(9000)), backend(id_="new", started=ago(3590))
    assert one(world(backends=(old, new))).key == (DriftKind.SERVER_ORPHAN, "ann", "", "old")


@pytest.mark.parametrize(
    ("old_s", "new_s"),
    [
        (3640, 3590),  # less than 60 s apart
        (9000, 8000),  # the run that the hub has fits neither
        (3500, 60),  # both are of the run that the hub has
        (None, 3590),
    ],
)
def test_two_backends_of_one_server_are_left_alone_where_it_can_not_be_told_which_is_too_many(old_s, new_s):
    old = backend(id_="old", started=None if old_s is None else ago(old_s))
    assert looks(world(backends=(old, backend(id_="new", started=ago(new_s))))) == ()


def test_a_server_is_dead_though_a_backend_of_an_earlier_run_lives():
    old, gone = backend(id_="old", started=ago(9000)), backend(id_="new", alive=False, detail="pid 7 is gone")
    for own in (replace(gone, started=ago(3590)), replace(gone, started=None)):
        for both in ((old, own), (own, old)):
            drift = one(world(backends=both))
            assert drift.kind is DriftKind.SERVER_DEAD
            assert "pid 7 is gone" in drift.observed
            assert "old" not in drift.observed


@pytest.mark.parametrize(
    ("other_s", "gone_s"),
    [
        (3640, 3590),  # it may be of this run: clocks differ
        (None, 3590),
        (9000, 9500),  # what is gone is of an earlier run, too
    ],
)
def test_a_server_is_not_dead_where_what_lives_may_be_of_its_run_or_what_is_gone_is_not(other_s, gone_s):
    lives = backend(id_="1", started=None if other_s is None else ago(other_s))
    gone = backend(id_="2", alive=False, started=ago(gone_s))
    assert looks(world(backends=(lives, gone))) == ()


def test_an_orphan_beside_a_running_server_is_ended_only_where_it_surely_began_before_it():
    old, new = backend(id_="old", started=ago(9000)), backend(id_="new", started=ago(3590))
    assert remedy(one(world(backends=(old, new)))) is ActionKind.END_BACKEND
    hardly = replace(old, started=ago(3640))
    drift = one(world(backends=(hardly, replace(new, started=ago(3500)))))
    assert remedy(drift) is None
    assert "End anything else yourself" in drift.evidence[-1]
    assert remedy(one(world(backends=(replace(old, proof=""), new)))) is None


def test_an_orphan_goes_on_while_its_user_starts_and_stops_servers_beside_it():
    old = backend(id_="old", started=ago(9000))
    before = looks(*(world(after_s, routes=[], backends=(old,), **GONE) for after_s in (0, 10, 20)))
    for after_s, started_s in ((30, 25), (40, 38)):
        started = NOW + timedelta(seconds=started_s)
        new = backend(id_=f"new {started_s}", started=started)
        before, ended = follow(before, world(after_s, servers=[server(started=started)], backends=(old, new)), POLICY)
        assert ended == ()
        assert [(drift.subject, drift.started) for drift in before if drift.raised_at] == [("old", started)]


def test_one_odd_route_makes_no_hub_with_subdomains():
    odd = [replace(route("ann", ".."), path=path) for path in ("/user", "/x.example.org/user/ann/..")]
    for one_odd in odd:
        said = {"routes": [route(), route("bob"), one_odd], "prefixes": {"grader": "/services/grader/"}}
        seen = world(**said)
        assert not any("subdomains" in line for line in narrowed(seen))
        assert (DriftKind.SERVICE_ROUTE_MISSING, "grader") in {(drift.kind, drift.subject) for drift in looks(seen)}


def test_rows_that_lead_nowhere_are_counted_by_their_sort():
    found = looks(world(orm=ORMCounts(servers_of_nobody=2, expired_codes=12_000)))
    assert [(drift.subject, drift.observed) for drift in found] == [
        ("expired_codes", "12,000 expired OAuth codes"),
        ("servers_of_nobody", "2 server rows without a spawner or a service"),
    ]
    assert {drift.key[:3] for drift in found} == {(DriftKind.ORM_DANGLING, None, None)}


def test_frozen_activity_counts_since_it_was_first_noticed():
    drift = one(world(frozen_since=ago(900)))
    assert (drift.kind, drift.since) == (DriftKind.ACTIVITY_FROZEN, ago(900))


# -- the spawner's word -----------------------------------------------------------------------------------------------


def outlived(after_s: float = 0, told_s: float = -5, **said: Any) -> World:
    told = {("ann", ""): (NOW + timedelta(seconds=told_s), "poll says None")}
    return world(after_s, **{**GONE, "routes": [], "backends": None, "outlived": told, **said})


def test_the_spawners_word_alone_is_a_suspicion_for_ten_minutes_and_never_more():
    """Many a spawner says that it has stopped a server while its backend still ends."""
    drift = one(outlived())
    assert drift.key == (DriftKind.SERVER_ORPHAN, "ann", "", "")
    assert (drift.since, drift.backend) == (ago(5), None)
    assert remedy(drift) is None
    assert "end it yourself" in drift.evidence[-1]
    for whole in (False, True):
        said = {"whole": whole, "backends": None if whole else ()}
        (last,) = looks(*(outlived(after_s, **said) for after_s in range(0, 590, 30)))
        assert last.raised_at is None
        assert looks(outlived(595, **said), before=(last,)) != ()
        assert looks(outlived(595.1, **said), before=(last,)) == ()


def test_a_backend_that_still_ends_when_the_spawner_has_spoken_is_suspected_only_and_then_over():
    before = looks(outlived(backends=(backend(),)))
    assert [drift.raised_at for drift in before] == [None]
    assert follow(before, outlived(5, backends=()), POLICY)[0] == ()


def test_the_backend_that_the_spawner_spoke_of_is_raised_by_the_first_look_that_shows_it_later_and_takes_over():
    before = looks(outlived())
    early, _ = follow(before, outlived(80, backends=(backend(),)), POLICY)
    assert [(drift.subject, drift.raised_at) for drift in early] == [("ann:1", None)]
    going, ended = follow(early, outlived(90, backends=(backend(),)), POLICY)
    assert ended == ()
    (drift,) = going
    assert (drift.subject, drift.backend, drift.since) == ("ann:1", backend(), ago(5))
    assert drift.raised_at is not None
    assert looks(outlived(backends=(backend(),), told_s=-95))[0].raised_at == NOW


def test_a_backend_that_is_named_stays_the_only_one_while_backends_can_not_be_read():
    before = looks(outlived(backends=(backend(),)))
    assert looks(outlived(10), before=before) == before


@pytest.mark.parametrize(
    "said",
    [
        {"servers": [server(started=NOW)]},
        {"servers": [server(pending="spawn", started=NOW)]},
        {"backends": ()},
        {"backends": (backend(alive=False),)},
    ],
)
def test_the_spawners_word_is_over_when_the_server_runs_again_or_a_later_whole_look_shows_none(said):
    assert [drift for drift in looks(outlived(**said)) if drift.kind is DriftKind.SERVER_ORPHAN] == []


@pytest.mark.parametrize(
    "said",
    [
        {"backends": (), "told_s": 0},  # read before the spawner spoke
        {"backends": (), "whole": False},
        {"backends": (backend(alive=None),)},
        {"servers": [server(pending="stop")]},  # the stop that it spoke of
    ],
)
def test_the_spawners_word_holds_while_nothing_says_otherwise(said):
    assert [drift.kind for drift in shown(looks(outlived(**said)))] == [DriftKind.SERVER_ORPHAN]


# -- counting ---------------------------------------------------------------------------------------------------------


def test_a_difference_is_raised_after_its_sightings_and_its_time():
    before: Sequence[Drift] = ()
    for after_s, sightings, is_raised in [(0, 1, False), (10, 2, False), (14, 3, False), (15, 4, True), (20, 5, True)]:
        (drift,) = before = looks(world(after_s, routes=[]), before=before)
        assert (drift.sightings, drift.looks, drift.raised_at is not None) == (sightings, sightings, is_raised)
        assert (drift.since, drift.seen_at) == (NOW, NOW + timedelta(seconds=after_s))
    assert drift.raised_at == NOW + timedelta(seconds=15)
    (slow,) = looks(world(routes=[]), world(3600, routes=[]))
    assert slow.raised_at is None


def test_a_suspected_one_ends_with_its_first_miss_and_counts_anew():
    before = looks(world(routes=[]), world(10, routes=[]))
    going, ended = follow(before, world(20), POLICY)
    assert (going, ended) == ((), before)
    assert one(world(30, routes=[])).sightings == 1


def test_a_raised_one_ends_after_its_misses_in_a_row():
    drift = raised(routes=[])
    (once,), ended = follow([drift], world(30), POLICY)
    assert (once.missed, once.looks, once.sightings, ended) == (1, 4, 3, ())
    (again,) = looks(world(40, routes=[]), before=[once])
    assert (again.missed, again.looks, again.sightings, again.raised_at) == (0, 5, 4, drift.raised_at)
    (once,), _ = follow([again], world(50), POLICY)
    going, ended = follow([once], world(60), POLICY)
    assert going == ()
    assert [(one.seen_at, one.raised_at) for one in ended] == [(NOW + timedelta(seconds=40), drift.raised_at)]


def test_the_same_reading_seen_twice_is_no_second_sighting():
    first = world(routes=[])
    before = looks(first)
    for source in (Source.HUB_API, Source.PROXY):
        old = first.reading(source)
        later = world(30, routes=[])
        readings = tuple(old if reading.source is source else reading for reading in later.readings)
        assert looks(replace(later, readings=readings), before=before) == before


def test_a_reading_seen_twice_counts_once_even_where_looks_are_dated_before_their_readings():
    first = world(routes=[])
    early = replace(first, at=ago(2))
    (drift,) = looks(early, replace(early, at=NOW + timedelta(seconds=8)))
    assert drift.sightings == 1


def test_another_run_is_another_difference():
    drift = raised(backends=())
    again = [server(started=NOW + timedelta(seconds=25))]
    (new,), ended = follow([drift], world(30, servers=again, backends=()), POLICY)
    assert (new.sightings, new.raised_at, new.since) == (1, None, NOW + timedelta(seconds=30))
    assert ended == (drift,)
    for later in (world(30, servers=again), world(30, servers=[server(pending="spawn", started=NOW)])):
        going, ended = follow([drift], later, POLICY)
        assert (shown(going), ended) == ((), (drift,))


def test_a_start_rounded_by_a_database_is_the_same_run():
    rounded = [server(started=ago(3600.4))]
    (drift,) = looks(world(backends=()), world(10, servers=rounded, backends=()), world(20, backends=()))
    assert drift.sightings == 3


def test_a_stale_route_that_leads_elsewhere_by_now_is_another_difference_until_it_is_raised():
    def look(after_s: float, port: int) -> World:
        return world(after_s, routes=[route(target=f"http://127.0.0.1:{port}")], backends=(), **GONE)

    (drift,) = looks(look(0, 1), look(10, 2), look(20, 2))
    assert (drift.sightings, drift.raised_at) == (2, None)
    (drift,) = looks(look(30, 2), look(40, 3), before=[drift])
    assert (drift.sightings, drift.raised_at is not None) == (4, True)


def test_a_dead_server_becomes_a_ghost_without_ending():
    drift = raised(backends=())
    (ghost,), ended = follow([drift], world(30, backends=(), ghosts=frozenset({server().run})), POLICY)
    assert (ghost.kind, ghost.since, ghost.sightings) == (DriftKind.SERVER_GHOST, drift.since, 4)
    assert ghost.raised_at is not None
    assert ended == ()
    _, ended = follow([ghost], world(40, servers=[server(started=NOW)]), POLICY)
    assert [one.kind for one in ended] == [DriftKind.SERVER_GHOST]


def test_a_clock_that_was_put_back_does_not_stop_the_counting():
    before = looks(world(7200, routes=[]))
    (drift,) = looks(*(world(after_s, routes=[]) for after_s in (0, 10, 20, 30)), before=before)
    assert drift.raised_at is not None


# -- what is unknown ------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("pending", ["spawn", "stop", "check", "rename"])
def test_what_is_pending_never_differs(pending):
    said = {"servers": [server(pending=pending)], "routes": [], "backends": ()}
    assert shown(looks(*(world(after_s, **said) for after_s in (0, 10, 20)))) == ()
    live = {"servers": [server(pending=pending)], "targets": {("ann", ""): "http://elsewhere"}}
    assert shown(looks(*(world(after_s, **live) for after_s in (0, 10, 20)))) == ()


def test_what_becomes_pending_keeps_its_drift_as_it_was():
    drift = raised(routes=[])
    going, ended = follow([drift], world(30, servers=[server(pending="stop")]), POLICY)
    assert (shown(going), ended) == ((drift,), ())


def test_a_server_of_which_the_hubs_word_is_old_gives_neither_sighting_nor_miss():
    for said in ({"routes": []}, {"backends": ()}, {**GONE, "backends": ()}, {**GONE, "routes": []}):
        assert looks(world(unsure=frozenset({("ann", "")}), **said)) == ()
        drift = raised(**said)
        assert looks(world(30, unsure=frozenset({("ann", "")}), **said), before=[drift]) == (drift,)
        assert looks(world(30, unsure=frozenset({("ann", "")})), before=[drift]) == (drift,)


@pytest.mark.parametrize(
    ("said", "needs"),
    [
        ({"routes": []}, [Source.HUB_API, Source.PROXY]),
        ({"routes": [route(target="http://x")]}, [Source.HUB_API, Source.PROXY, Source.HUB_DB]),
        ({**GONE, "backends": ()}, [Source.HUB_API, Source.PROXY]),
        ({"backends": ()}, [Source.HUB_API, Source.BACKEND]),
        ({**GONE, "routes": []}, [Source.HUB_API, Source.BACKEND]),
        ({"orm": ORMCounts(1)}, [Source.HUB_DB]),
        ({"prefixes": {"grader": "/services/grader"}}, [Source.HUB_API, Source.PROXY]),
        ({"frozen_since": NOW}, [Source.HUB_API]),
    ],
)
def test_without_a_source_that_it_needs_a_drift_stays_as_it_was(said, needs):
    drift = raised(**said)
    for source in needs:
        for there in (said, {}):
            assert looks(world(30, part=[source], **there), before=[drift]) == (drift,)
            if not (source is Source.HUB_DB and drift.kind is DriftKind.ROUTE_WRONG_TARGET):
                assert looks(world(30, without=[source], **there), before=[drift]) == (drift,)
    for source in set(Source) - set(needs) - {Source.HUB_ROUTES}:
        (after,) = looks(world(30, part=[source], **said), before=[drift])
        assert after.sightings == drift.sightings + 1


def test_a_backend_that_can_not_be_told_of_any_more_stays_an_orphan():
    drift = raised(routes=[], **GONE)
    unclear = world(30, routes=[], backends=(backend(alive=None),), **GONE)
    assert looks(unclear, before=[drift]) == (drift,)


def test_an_orphan_beside_a_server_that_is_ready_again_ends_only_where_it_is_the_one_that_runs_it():
    drift = raised(routes=[], **GONE)
    again = [server(started=NOW + timedelta(seconds=25))]
    two = (backend(started=None), backend(id_="ann:2", started=None))
    assert looks(world(30, servers=again, backends=two), world(40, servers=again, backends=two), before=[drift]) == (
        drift,
    )
    assert looks(world(30, servers=again), world(40, servers=again), before=[drift]) == ()


# -- pending for too long -------------------------------------------------------------------------------------------


def pending(after_s: float, word: str = "spawn", **said: Any) -> World:
    return world(after_s, **{"servers": [server(pending=word)], "routes": [], "backends": (), "targets": {}, **said})


def test_a_start_that_takes_too_long_is_suspected_at_half_its_limit_and_raised_at_its_limit():
    before: Sequence[Drift] = ()
    seen = {}
    for after_s in range(0, 1861, 60):
        before = looks(pending(after_s), before=before)
        seen[after_s] = [(drift.sightings, drift.raised_at is not None) for drift in shown(before)]
    assert [seen[at] for at in (0, 840, 900, 960, 1740, 1800)] == [
        [],
        [],
        [(1, False)],
        [(2, False)],
        [(15, False)],
        [(16, True)],
    ]
    (drift,) = before
    assert drift.key == (DriftKind.PENDING_STUCK, "ann", "", "spawn")
    assert (drift.since, drift.looks) == (NOW, drift.sightings)
    assert remedy(drift) is ActionKind.INTERRUPT_SPAWN


@pytest.mark.parametrize("said", [{"word": "stop"}, {"servers": [server(pending="spawn", started=ago(9))]}])
def test_another_word_or_another_run_is_pending_anew(said):
    before = looks(pending(0), pending(1700))
    (drift,) = looks(pending(1900, **said), before=before)
    assert (drift.since, drift.raised_at) == (NOW + timedelta(seconds=1900), None)


def test_a_pending_that_was_only_followed_ends_unseen():
    before = looks(pending(0), pending(60))
    assert follow(before, world(120), POLICY) == ((), ())


def test_time_in_which_nobody_looked_counts_for_little():
    """Our clock was put on by a day, or a guard hung for one: a start that was seen for a minute isn't stuck."""
    before = looks(*(pending(after_s) for after_s in (0, 30, 60)))
    going = looks(*(pending(86400 + after_s) for after_s in (0, 30, 60)), before=before)
    assert shown(going) == ()
    (drift,) = looks(*(pending(86400 + after_s) for after_s in range(90, 1900, 30)), before=going)
    assert drift.raised_at is not None, "it does go on"
    assert drift.since > NOW + timedelta(seconds=86000)


def test_only_a_start_can_be_interrupted():
    (drift,) = looks(*(pending(after_s, "stop") for after_s in range(0, 1801, 100)))
    assert drift.raised_at is not None
    assert remedy(drift) is None


# -- whom to ask about ----------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("said", "asked"),
    [
        ({"routes": []}, True),
        ({"routes": [route(target="http://x")]}, True),
        ({"backends": ()}, True),
        ({}, False),
    ],
)
def test_servers_that_seem_to_differ_are_asked_for_where_the_hubs_word_is_old(said, asked):
    unsure = frozenset({("ann", "")})
    assert suspects(world(unsure=unsure, **said)) == ((("ann", ""),) if asked else ())
    assert suspects(world(unsure=unsure, without=[Source.HUB_API], **said)) == ((("ann", ""),) if asked else ())
    assert suspects(world(**said)) == ()


def test_what_the_hub_does_not_list_is_asked_for_where_a_route_or_a_backend_is_there():
    for servers in ([], [server(pending="stop")]):
        assert suspects(world(servers=servers, backends=())) == (("ann", ""),)
        assert suspects(world(servers=servers, routes=[])) == (("ann", ""),)
        assert suspects(world(servers=servers, routes=[], backends=())) == ()


def test_suspects_are_sorted():
    assert suspects(world(servers=[], routes=[route("bob", "x"), route("bob"), route("ann")])) == (
        ("ann", ""),
        ("bob", ""),
        ("bob", "x"),
    )


# -- what is unknown -------------------------------------------------------------------------------------------------


def test_what_can_not_be_told_is_said_with_its_reason():
    assert narrowed(world(part=[Source.HUB_API])) == ("Drift of servers and routes is unknown (Hub's API: no answer).",)
    assert narrowed(world(part=[Source.PROXY])) == ("Missing, stale or wrong routes are unknown (Proxy: no answer).",)
    assert narrowed(world(without=[Source.HUB_DB], targets=None, orm=None)) == (
        "Whether routes lead to the right place is unknown (Hub's database: not read).",
        "Dangling rows in the hub's database are unknown (Hub's database: not read).",
    )
    assert narrowed(world(prefixes=None)) == (
        "Missing routes of services are unknown: the hub doesn't list the services that need one.",
    )
    assert narrowed(world(without=[Source.BACKEND], backends=None)) == (
        "Dead servers, and backends that outlived theirs, are unknown (Backends: not read).",
    )
    backends = (backend(), backend("bob", proof=""), backend("eve", alive=None))
    assert narrowed(world(backends=backends)) == (
        f"1 backend: can't tell whether it still runs ({backends[2].name}).",
        f"HubGuard won't end 1 backend: it can't confirm that it belongs to this hub ({backends[1].name}).",
    )


def test_a_table_that_only_the_hub_tells_of_is_used_and_said_to_be_that():
    of_hub = replace(
        world(routes=[]), readings=(*world(without=[Source.PROXY]).readings, Reading(Source.HUB_ROUTES, NOW, True, 0.1))
    )
    drift = one(of_hub)
    assert "Proxy, as the hub sees it, 2026-11-21 12:00:00 UTC: no route" in drift.evidence[-1]
    assert [line.split(",")[0] for line in narrowed(of_hub)] == ["Routes are read through the hub"]


# -- many -------------------------------------------------------------------------------------------------------------


def test_of_a_wiped_table_five_thousand_are_followed_and_the_number_of_all_is_said():
    servers = [server(f"u{n:05}") for n in range(6000)]
    said = {"servers": servers, "routes": [], "backends": None, "targets": {}}
    drifts = looks(world(**said))
    assert len(drifts) == 5000
    assert all(drift.evidence[-1] == "5,000 of 6,000 such differences are followed" for drift in drifts)
    later = looks(world(10, **said), world(20, **{**said, "servers": [server("a"), *servers]}), before=drifts)
    assert [drift.user for drift in later] == [drift.user for drift in drifts]
    assert all(drift.raised_at for drift in later)


# -- repairs ----------------------------------------------------------------------------------------------------------


def drift_of(kind: DriftKind, user: str | None = "ann", **changes: Any) -> Drift:
    return replace(Drift(kind, user, "", "", "", NOW, NOW, started=ago(3600), raised_at=NOW), **changes)


ORPHAN = drift_of(DriftKind.SERVER_ORPHAN, subject="ann:1", started=None, backend=backend())
DEAD = drift_of(DriftKind.SERVER_DEAD, "bob")


def test_all_routes_are_one_repair_that_comes_first():
    stale, missing = drift_of(DriftKind.ROUTE_STALE, subject="/user/x"), drift_of(DriftKind.ROUTE_MISSING)
    plan = plan_repairs([DEAD, stale, ORPHAN, missing], NOW)
    assert [repair.action.kind for repair in plan.repairs] == [
        ActionKind.CHECK_ROUTES,
        ActionKind.STOP_SERVER,
        ActionKind.END_BACKEND,
    ]
    check, stop, end = plan.repairs
    assert check.drifts == tuple(sorted([stale.id, missing.id]))
    assert (check.action.user, check.action.reason) == ("", DriftKind.ROUTE_MISSING)
    assert (stop.action.user, stop.action.started, stop.drifts, stop.backend) == ("bob", ago(3600), (DEAD.id,), None)
    assert end.backend == backend()
    assert plan.expires_at - plan.made_at == timedelta(minutes=10)


def test_a_plan_is_the_same_whenever_it_is_made_and_another_one_for_other_repairs():
    plan = plan_repairs([DEAD, ORPHAN, DEAD], NOW)
    assert plan_repairs([replace(DEAD, sightings=9), ORPHAN], NOW + timedelta(hours=1), lasts_s=5).digest == plan.digest
    routes = [drift_of(DriftKind.ROUTE_MISSING, user) for user in ("a", "b")]
    assert plan_repairs(routes, NOW).digest == plan_repairs(reversed(routes), NOW).digest
    others = [
        plan_repairs(drifts, NOW).digest
        for drifts in ([DEAD], [ORPHAN], [replace(DEAD, started=NOW), ORPHAN], [ORPHAN, DEAD], routes, [])
    ]
    assert len({plan.digest, *others}) == 7


@pytest.mark.parametrize(
    "drift",
    [
        drift_of(DriftKind.ORM_DANGLING),
        drift_of(DriftKind.ACTIVITY_FROZEN),
        replace(ORPHAN, backend=None),
        replace(ORPHAN, backend=backend(proof="")),
        drift_of(DriftKind.PENDING_STUCK, subject="stop"),
    ],
)
def test_what_can_only_be_reported_is_left_out_of_a_plan(drift):
    assert remedy(drift) is None
    assert plan_repairs([drift], NOW).repairs == ()


@pytest.mark.parametrize("drift", [DEAD, ORPHAN, drift_of(DriftKind.ROUTE_STALE)])
def test_a_repair_is_still_to_be_done_while_its_drift_is_there(drift):
    (repair,) = plan_repairs([drift], NOW).repairs
    assert still_there(repair, [drift_of(DriftKind.ROUTE_MISSING, "x"), replace(drift, raised_at=None)]) == ""
    assert still_there(repair, []) != ""
    assert still_there(repair, [drift_of(DriftKind.ROUTE_MISSING, "x")]) != ""


def test_a_repair_is_not_to_be_done_to_another_run_or_another_backend():
    stop, end = plan_repairs([DEAD, ORPHAN], NOW).repairs
    assert still_there(stop, [replace(DEAD, started=NOW)]) == "the server was started again"
    ghost = replace(DEAD, kind=DriftKind.SERVER_GHOST)
    assert still_there(stop, [ghost]) == "it is a server-ghost now"
    assert "the sources now agree" in still_there(end, [replace(ORPHAN, subject="ann:2", backend=backend(id_="ann:2"))])
    assert still_there(end, [replace(ORPHAN, backend=backend(proof=""))]) == "HubGuard can no longer repair it"


def test_a_check_of_routes_is_to_be_done_while_one_of_them_differs():
    routes = [drift_of(DriftKind.ROUTE_MISSING, user) for user in ("a", "b")]
    (repair,) = plan_repairs(routes, NOW).repairs
    assert still_there(repair, routes[1:]) == ""
    assert still_there(repair, [drift_of(DriftKind.ROUTE_MISSING, "c")]) == "none of these routes differs now"


@pytest.mark.parametrize(("many", "remarked"), [(2, False), (3, True)])
def test_what_fits_is_followed_whole_and_no_limit_is_spoken_of(
    monkeypatch: pytest.MonkeyPatch, many: int, remarked: bool
):
    monkeypatch.setattr("hubguard.drift.decide.follow.MOST", 2)
    servers = [server(f"u{n}") for n in range(many)]
    drifts = looks(world(servers=servers, routes=[], backends=None, targets={}))
    assert len(drifts) == 2
    assert all(("such differences are followed" in drift.evidence[-1]) is remarked for drift in drifts)


def test_every_backend_of_a_server_that_is_neither_ready_nor_on_its_way_is_an_orphan_whenever_it_began():
    idle = replace(server(), ready=False)
    drifts = looks(world(servers=[idle], routes=[], backends=(backend(started=ago(60)),)))
    orphans = [drift for drift in drifts if drift.kind is DriftKind.SERVER_ORPHAN]
    assert [(drift.user, drift.started) for drift in orphans] == [("ann", None)]
