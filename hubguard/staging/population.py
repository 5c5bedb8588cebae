"""Who lives on a throwaway hub: users and servers, listed one by one or made up by the thousand."""

from __future__ import annotations

import random
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from typing import Any

from hubguard.errors import HubGuardError

HOUR_S = 3600.0
DAY_S = 24 * HOUR_S

AWKWARD_NAMES = (
    "sl/ash",
    "que?stion",
    "ha#sh",
    "per%cent",
    "per%2fcent",
    'quo"te',
    "less<than",
    "amp&ersand",
    "semi;colon",
    "pl+us",
    "sp ace",
    "back\\slash",
    "at@example.org",
    "tilde~",
    "käthe",
    "李雷",
    "мария",
    "🦉",
)


@dataclass(frozen=True, slots=True)
class SeededServer:
    """One server. ``name`` is ``""`` for the default server; ``running`` False leaves a server that once ran.

    Idle for ``idle_for_s`` seconds, None: activity was never recorded. Started ``age_s`` seconds ago, None: an hour
    before its last activity. ``kept_state`` is what the spawner of one that doesn't run still has, as a volume's name.
    The rest are LittleSpawner's options of the same names.
    """

    user: str
    name: str = ""
    idle_for_s: float | None = 0.0
    age_s: float | None = None
    running: bool = True
    shared: bool = True
    start_s: float = 0.0
    stop_s: float = 0.0
    on_stop: str = "works"
    kept_state: Mapping[str, Any] = field(default_factory=dict, hash=False)

    @property
    def started_s(self) -> float:
        """How many seconds ago it was started."""
        return self.age_s if self.age_s is not None else (self.idle_for_s or 0.0) + HOUR_S

    @property
    def options(self) -> dict[str, Any]:
        """What the hub keeps as this server's user options."""
        return {"shared": self.shared, "start_s": self.start_s, "stop_s": self.stop_s, "on_stop": self.on_stop}


@dataclass(frozen=True, slots=True)
class SeededUser:
    """One user, last active ``idle_for_s`` seconds ago (None: never), created ``created_s`` seconds ago.

    They have ``tokens`` tokens, which nobody knows, made when they were; one was used ``token_used_s`` seconds ago (None:
    never), the others weren't. Their default server, which must be among the servers, is ``shared_with`` these users.
    """

    name: str
    admin: bool = False
    groups: tuple[str, ...] = ()
    idle_for_s: float | None = None
    created_s: float = 30 * DAY_S
    tokens: int = 0
    token_used_s: float | None = None
    shared_with: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True)
class Population:
    """Everybody to be written. Owners of servers who aren't among ``users`` are added."""

    users: tuple[SeededUser, ...] = ()
    servers: tuple[SeededServer, ...] = ()


def made_up(
    *, users: int, running: int = 0, groups: int = 0, named: int = 0, awkward: bool = False, number: int = 0
) -> Population:
    """A plausible population of that size; the same ``number`` gives the same one.

    ``named`` of the ``running`` servers are named ones. Of the others, most have been away for days or months, some
    never came. ``awkward`` gives the first users names that are hard to quote. Raises HubGuardError where the numbers
    don't fit together.
    """
    if min(users, running, groups, named) < 0:
        raise HubGuardError("Numbers of users, running servers, groups and named servers can't be negative.")
    if named > running or running - named > users or (named and not users):
        raise HubGuardError(
            f"{running} running servers, {named} of them named, don't fit {users} users: a user has one default "
            "server, and named servers are counted among the running ones. Ask for more users or fewer servers."
        )
    dice = random.Random(number)  # noqa: S311  # nothing secret depends on it
    names = list(AWKWARD_NAMES[:users]) if awkward else []
    names += [f"user-{i:05}" for i in range(len(names), users)]
    group_names = [f"group-{i:03}" for i in range(groups)]

    people: list[SeededUser] = []
    servers: list[SeededServer] = []
    for i, name in enumerate(names):
        runs = i < running - named
        idle_for_s: float | None = dice.uniform(0, 2 * HOUR_S) if runs else dice.expovariate(1 / (60 * DAY_S))
        if not runs and dice.random() < 0.05:
            idle_for_s = None
        member_of = tuple(dice.sample(group_names, k=min(groups, dice.randint(0, 2))))
        known_s = (idle_for_s or 0.0) + dice.uniform(DAY_S, 400 * DAY_S)
        people.append(SeededUser(name, groups=member_of, idle_for_s=idle_for_s, created_s=known_s))
        if idle_for_s is not None:
            age_s = idle_for_s + dice.uniform(60, 8 * HOUR_S)
            servers.append(SeededServer(name, idle_for_s=idle_for_s, age_s=age_s, running=runs))
    for i in range(named):
        idle_for_s = dice.uniform(0, 2 * HOUR_S)
        servers.append(SeededServer(names[i % users], f"work-{i // users + 1}", idle_for_s=idle_for_s))
    return Population(tuple(people), tuple(servers))


def with_owners(population: Population) -> Population:
    """``population`` with every owner among the users, and nobody last active before their servers were.

    Raises HubGuardError where a user or a server is listed twice.
    """
    idle: dict[str, float] = {}
    for server in population.servers:
        if server.idle_for_s is not None:
            idle[server.user] = min(server.idle_for_s, idle.get(server.user, server.idle_for_s))
    known = {user.name for user in population.users}
    owners = dict.fromkeys(server.user for server in population.servers if server.user not in known)
    users = population.users + tuple(SeededUser(name) for name in owners)
    if len({user.name for user in users}) != len(users):
        raise HubGuardError("A user is listed twice; every user can be seeded once only.")
    if len({(server.user, server.name) for server in population.servers}) != len(population.servers):
        raise HubGuardError("A server is listed twice; a user has one default server, and one of each name.")
    return Population(tuple(_at_least_as_active(user, idle.get(user.name)) for user in users), population.servers)


def _at_least_as_active(user: SeededUser, idle_for_s: float | None) -> SeededUser:
    if idle_for_s is None or (user.idle_for_s is not None and user.idle_for_s <= idle_for_s):
        return user
    return replace(user, idle_for_s=idle_for_s, created_s=max(user.created_s, idle_for_s))
