"""Which backends fit a hub: those that were named, or by the class of its spawner."""

from __future__ import annotations

import importlib
import logging
from collections.abc import Awaitable, Callable, Iterable, Sequence
from dataclasses import replace
from importlib.metadata import EntryPoint, entry_points

from typing_extensions import override

from hubguard.backends import http
from hubguard.backends.confirmed import Confirmed
from hubguard.backends.model import Backend
from hubguard.backends.port import Backends, Expected, Place
from hubguard.errors import BackendError, ConfigError
from hubguard.hub.http import printable

GROUP = "hubguard.backends"
"""Entry points whose name is the full name of a spawner's class, and whose value is a function from a Place to Backends."""

KINDS = ("process", "systemd", "docker", "kubernetes", "http")

log = logging.getLogger(__name__)


def open_backends(setting: str, place: Place) -> Backends | None:
    """The backends by HubGuardDrift.backend: of that kind; by the hub's spawner for "auto"; None for "".

    For "auto" the entry point for the nearest of the spawner's classes is taken, another package's before our own; what
    doesn't load is logged and passed over; and HTTP is what remains. All kinds but that are Confirmed by it. Raises
    ConfigError, naming the setting, for another word, and for a kind that can't be had as the hub is set up.
    """
    if not setting:
        return None
    if setting == "auto":
        return _by_spawner(place)
    if setting not in KINDS:
        known = ", ".join(f'"{kind}"' for kind in ("auto", *KINDS))
        raise ConfigError("HubGuardDrift.backend", f'{printable(setting)!r} is none of {known}; "" is none at all')
    module = importlib.import_module(f"hubguard.backends.{setting}")
    return _confirmed(module.open_backends(place), place)


class ByTheHub(Backends):
    """Backends by the class of the hub's spawner, which the hub is asked for at the first look; until then, "http".

    For a service without the include. Not at its start: what the budget has learned isn't in force by then.
    """

    def __init__(self, place: Place, spawner_class: Callable[[], Awaitable[str | None]]) -> None:
        self._place = place
        self._spawner_class = spawner_class
        self._chosen: Backends | None = None

    @property
    @override
    def kind(self) -> str:
        return "http" if self._chosen is None else self._chosen.kind

    @property
    @override
    def whole(self) -> bool:
        return self._chosen is not None and self._chosen.whole

    @override
    async def look(self, expected: Sequence[Expected]) -> tuple[Backend, ...]:
        """Raises HubError, too, if the hub doesn't answer; the next look asks it again."""
        if self._chosen is None:
            name = await self._spawner_class()
            self._chosen = _by_spawner(replace(self._place, spawner=() if name is None else (name,)))
        return await self._chosen.look(expected)

    @override
    async def end(self, backend: Backend) -> None:
        if self._chosen is None:
            raise BackendError(f"Nothing was ended: what runs {backend.user}'s server hasn't been looked at yet.")
        await self._chosen.end(backend)

    @override
    async def close(self) -> None:
        if self._chosen is not None:
            await self._chosen.close()


def _by_spawner(place: Place) -> Backends:
    for entry in _nearest(entry_points(group=GROUP), place.spawner):
        try:
            backends = _confirmed(entry.load()(place), place)
        except Exception as error:  # it may be anybody's
            log.warning(
                "What runs the servers can't be seen by %s, which is for spawners of %s: %s: %s. What comes next is used.",
                *(entry.value, entry.name, type(error).__name__, printable(str(error))),
            )
            continue
        return backends
    return http.open_backends(place)


def _confirmed(backends: Backends, place: Place) -> Backends:
    return backends if backends.kind == "http" else Confirmed(backends, http.HTTPBackends(place, every_time=True))


def _nearest(entries: Iterable[EntryPoint], spawner: tuple[str, ...]) -> list[EntryPoint]:
    """Those for these classes, in the order of the classes; of several for one class, ours last."""
    fitting = [entry for entry in entries if entry.name in spawner]
    return sorted(
        fitting, key=lambda entry: (spawner.index(entry.name), entry.value.startswith("hubguard."), entry.value)
    )
