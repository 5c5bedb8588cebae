"""Which backends are chosen, and that nobody's broken ones keep HubGuard from choosing."""

from __future__ import annotations

import importlib
import logging
import sys
from importlib.metadata import EntryPoint, entry_points
from types import ModuleType

import pytest
from doubles.backends import MemoryBackends

from hubguard.backends import choose
from hubguard.backends.choose import GROUP, KINDS, ByTheHub, open_backends
from hubguard.backends.confirmed import Confirmed
from hubguard.backends.model import Backend
from hubguard.backends.port import Place
from hubguard.errors import BackendError, ConfigError, HubUnreachable

API = "http://127.0.0.1:8081/hub/api"
SIMPLE = (
    "jupyterhub.spawner.SimpleLocalProcessSpawner",
    "jupyterhub.spawner.LocalProcessSpawner",
    "jupyterhub.spawner.Spawner",
)


def place(*spawner: str) -> Place:
    return Place(API, spawner=spawner)


def fail(place: Place) -> MemoryBackends:
    raise BackendError("The engine isn't there.")


@pytest.fixture
def entries(monkeypatch: pytest.MonkeyPatch):
    """``entries(name=…)`` are all the entry points there are; the values are names in a module of somebody else's."""
    theirs = ModuleType("their_backends")
    theirs.near = lambda place: MemoryBackends(kind="near")
    theirs.far = lambda place: MemoryBackends(kind="far")
    theirs.fail = fail
    monkeypatch.setitem(sys.modules, "their_backends", theirs)

    def have(*pairs: tuple[str, str]) -> None:
        found = tuple(EntryPoint(name, value, GROUP) for name, value in pairs)
        monkeypatch.setattr(choose, "entry_points", lambda group: found)

    return have


def test_nothing_is_opened_where_nothing_is_wanted() -> None:
    assert open_backends("", place(*SIMPLE)) is None


@pytest.mark.parametrize("kind", ["process", "http"])
def test_a_kind_that_is_named_is_opened_whatever_the_spawner(kind: str) -> None:
    assert open_backends(kind, place("somebody.Else")).kind == kind


@pytest.mark.parametrize("kind", KINDS)
def test_every_kind_but_http_is_confirmed_by_it(kind: str) -> None:
    assert isinstance(open_backends(kind, place(*SIMPLE)), Confirmed) is (kind != "http")


def test_those_of_other_packages_are_confirmed_too(entries) -> None:
    entries(("near.Spawner", "their_backends:near"))
    assert isinstance(open_backends("auto", place("near.Spawner")), Confirmed)


@pytest.mark.parametrize("word", ["proces", "AUTO", "memory", "choose", "port", "..os", "hubguard", " "])
def test_another_word_names_the_setting_and_says_which_there_are(word: str) -> None:
    with pytest.raises(ConfigError) as caught:
        open_backends(word, place(*SIMPLE))
    assert caught.value.setting == "HubGuardDrift.backend"
    assert '"kubernetes"' in str(caught.value)


def test_a_class_that_is_derived_from_one_that_fits_fits() -> None:
    if not entry_points(group=GROUP):
        pytest.skip("HubGuard isn't installed with its entry points here")
    assert open_backends("auto", place("my.OwnSpawner", *SIMPLE)).kind == "process"
    assert open_backends("auto", place("hubguard.staging.spawner.LittleSpawner", SIMPLE[-1])).kind == "process"


@pytest.mark.parametrize("spawner", [(), ("jupyterhub.spawner.Spawner",), ("a.B", "c.D")])
def test_http_is_what_remains(spawner: tuple[str, ...]) -> None:
    assert open_backends("auto", place(*spawner)).kind == "http"


def test_every_entry_point_of_our_own_leads_somewhere() -> None:
    found = entry_points(group=GROUP)
    if not found:
        pytest.skip("HubGuard isn't installed with its entry points here")
    ours = [entry for entry in found if entry.value.startswith("hubguard.")]
    assert {entry.value.split(":")[0].rpartition(".")[2] for entry in ours} <= set(KINDS)
    for entry in ours:
        assert callable(entry.load())


@pytest.mark.parametrize("kind", KINDS)
def test_every_kind_is_a_module_that_opens_it(kind: str) -> None:
    assert callable(importlib.import_module(f"hubguard.backends.{kind}").open_backends)


@pytest.mark.parametrize("turn", [1, -1])
def test_the_nearest_class_wins_in_whatever_order_they_are_installed(entries, turn: int) -> None:
    entries(*[("far.Base", "their_backends:far"), ("near.Spawner", "their_backends:near")][::turn])
    assert open_backends("auto", place("mine.Own", "near.Spawner", "far.Base")).kind == "near"
    assert open_backends("auto", place("mine.Own", "far.Base")).kind == "far"


@pytest.mark.parametrize("turn", [1, -1])
def test_another_packages_wins_over_ours_for_the_same_class(entries, turn: int) -> None:
    pairs = [(SIMPLE[1], "hubguard.backends.process:open_backends"), (SIMPLE[1], "their_backends:near")]
    entries(*pairs[::turn])
    assert open_backends("auto", place(*SIMPLE)).kind == "near"


@pytest.mark.parametrize("broken", ["no.such.module:open", "their_backends:nothing", "their_backends:fail", "sys:"])
def test_broken_ones_are_logged_and_passed_over(entries, caplog, broken: str) -> None:
    entries((SIMPLE[0], broken), (SIMPLE[1], "their_backends:far"))
    with caplog.at_level(logging.WARNING):
        assert open_backends("auto", place(*SIMPLE)).kind == "far"
    assert broken in caplog.text
    assert SIMPLE[0] in caplog.text
    caplog.clear()
    entries((SIMPLE[0], broken))
    assert open_backends("auto", place(*SIMPLE)).kind == "http"
    assert broken in caplog.text


async def test_a_service_that_no_include_told_asks_the_hub_at_its_first_look_and_until_it_answers():
    asked = []

    async def spawner_class() -> str | None:
        asked.append(1)
        if len(asked) == 1:
            raise HubUnreachable("no answer")
        return "jupyterhub.spawner.LocalProcessSpawner"

    backends = ByTheHub(Place("http://127.0.0.1:1/hub/api"), spawner_class)
    assert asked == [], "nothing is asked before there is a look"
    with pytest.raises(BackendError):
        await backends.end(Backend("process", "1:1", "ann", "", True, "pid 1", proof="said so"))
    with pytest.raises(HubUnreachable):
        await backends.look([])
    await backends.look([])
    await backends.look([])
    assert (backends.kind, len(asked)) == ("process", 2)
    await backends.close()
