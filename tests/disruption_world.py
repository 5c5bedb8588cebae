"""A hub, its proxy and its people in virtual time, as the brake sees them in one look after another."""

from __future__ import annotations

import json
from datetime import datetime, timedelta, timezone
from typing import Any

from hubguard.model import FindingKind, Reading, Route, Server, Source
from hubguard.snapshot.decide.brake import Caution, Judgement, Look, look
from hubguard.snapshot.decide.memory import Watch
from hubguard.snapshot.model import BrakeReason, Snapshot

START = datetime(2026, 3, 1, 12, 0, tzinfo=timezone.utc)


class World:
    """``pass_time`` lets the hub do its updates; ``look`` is one cycle's look, with what it saw changed as the test asks.

    Each look is made twice, once with the memory as it is and once with what JSON makes of it: a guard that crashes and
    starts again after every cycle sees the same as one that lives on.
    """

    def __init__(self, *people: str, caution: Caution | None = None, has_proxy: bool = True, users: int = 1000) -> None:
        self.caution = caution or Caution()
        self.now = START
        self.users = users
        self.hub_up, self.proxy_up, self.feed_alive = True, True, True
        self.has_proxy = has_proxy
        self.generation = 0.0
        self.watch = Watch()
        self.judged: Judgement | None = None
        self.started: dict[str, datetime] = {}
        self.hub: dict[str, datetime | None] = {}
        self.proxy: dict[str, datetime] = {}
        self.pending: dict[str, str] = {}
        self.odd: set[str] = set()  # whom the hub's updates leave out
        self.coarse = False  # whether the hub's database drops fractions of a second
        self._updated = START
        for person in people:
            self.start(person)

    def start(self, person: str) -> None:
        self.started[person] = self.hub[person] = self.proxy[person] = self.now

    def stop(self, person: str) -> None:
        for table in (self.started, self.hub, self.proxy, self.pending):
            table.pop(person, None)

    def use(self, *people: str) -> None:
        """Traffic through the proxy."""
        if self.proxy_up:
            self.proxy.update(dict.fromkeys((p for p in people if p in self.proxy), self.now))

    def wipe(self) -> None:
        """The proxy loses its table."""
        self.proxy = {}

    def restore(self) -> None:
        """The hub adds the routes that are missing; the proxy stamps them with the time of that."""
        for person in self.started:
            self.proxy.setdefault(person, self.now)

    def pass_time(self, seconds: float) -> None:
        end = self.now + timedelta(seconds=seconds)
        interval = timedelta(seconds=self.caution.hub_activity_interval_s)
        while interval and self._updated + interval <= end:
            self._updated = self.now = max(self.now, self._updated + interval)
            if self.hub_up and self.proxy_up and self.feed_alive:
                self.update()
                self.restore()
        self.now = end

    def restart_hub(self, down_s: float) -> None:
        """The hub is gone for so long, unseen, and then begins a new interval."""
        self.hub_up = False
        self.pass_time(down_s)
        self.hub_up, self._updated = True, self.now

    def update(self) -> None:
        """The hub takes over the proxy's times."""
        for person in self.hub:
            if person in self.proxy and person not in self.odd:
                before = self.hub[person]
                at = self.proxy[person].replace(microsecond=0) if self.coarse else self.proxy[person]
                self.hub[person] = at if before is None else max(before, at)

    def seen(self, **changes: Any) -> Look:
        servers = tuple(
            Server(person, "", person not in self.pending, self.pending.get(person), started, self.hub[person])
            for person, started in sorted(self.started.items())
        )
        routes = {f"/user/{p}": Route(f"/user/{p}", "http://x", p, "", at) for p, at in self.proxy.items()}
        snapshot = Snapshot(
            self.now,
            servers if self.hub_up else (),
            (Reading(Source.HUB_API, self.now, self.hub_up, 0.1, "" if self.hub_up else "no answer"),),
            users_total=self.users if self.hub_up else None,
            routes=routes if self.has_proxy and self.proxy_up else None,
        )
        fields = {
            "now": self.now,
            "snapshot": snapshot,
            "hub_answered": self.hub_up,
            "proxy_answered": self.proxy_up if self.has_proxy else None,
            "generation": self.generation,
            **changes,
        }
        return Look(**fields)

    def look(self, **changes: Any) -> Judgement:
        seen = self.seen(**changes)
        judged = look(self.watch, seen, self.caution)
        reborn = Watch.from_dict(json.loads(json.dumps(self.watch.to_dict())))
        assert look(reborn, seen, self.caution) == judged
        self.watch, self.judged = judged.watch, judged
        return judged

    def look_on(self, seconds: float, every_s: float = 60.0, use: tuple[str, ...] = (), **changes: Any) -> Judgement:
        """Looks every ``every_s`` for so long; ``use`` are the people at work meanwhile."""
        judged = None
        for _ in range(int(seconds // every_s)):
            self.pass_time(every_s)
            self.use(*use)
            judged = self.look(**changes)
        assert judged is not None
        return judged

    @property
    def reason(self) -> BrakeReason | None:
        """Why HubGuard holds back after the last look, None where it doesn't."""
        assert self.judged is not None
        return self.judged.brake.reason if self.judged.brake else None

    @property
    def found(self) -> set[FindingKind]:
        assert self.judged is not None
        return {finding.kind for finding in self.judged.findings}
