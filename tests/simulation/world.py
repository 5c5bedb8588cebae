"""A hub, its proxy and its people over weeks of virtual time, and guards that live and die there.

The world knows what really happened. Every request that a guard sends is held against that in the moment it goes out, so
that what breaks a guarantee fails the test right there, with all that led to it.
"""

from __future__ import annotations

import asyncio
import copy
import heapq
import itertools
import random
from collections.abc import Awaitable, Callable, Coroutine
from dataclasses import dataclass, replace
from datetime import datetime, timedelta
from typing import Any, TypeVar

from assembled import assembled
from constants import with_constants
from doubles.hub import MemoryHub, Request, Stops
from doubles.hub_db import MemoryHubDB
from doubles.paths import route_path
from doubles.proxy import MemoryProxy, ProxyRequest
from inline_journal import InlineJournal
from virtual_time import VirtualClock

from hubguard import config
from hubguard.errors import HubBusy, HubDBError, HubError, HubFailed, HubUnreachable, JournalError, ProxyUnreachable
from hubguard.journal.model import Entry, Event
from hubguard.journal.store import Journal, open_journal
from hubguard.model import Route, Server, User
from hubguard.pacing.budget import Budget
from hubguard.snapshot.model import Evidence
from hubguard.snapshot.store import ActivityStore

COMMIT_LASTS_S = 2.0
LOOK_LASTS_S = 15.0
ROUTES_LAST_S = 2.0

T = TypeVar("T")
Key = tuple[str, str]

LIMIT_S = 3600.0
EVERY_S = 240.0
RATE, BURST = 10.0, 5
OUTAGE_S = 120.0
UPDATE_S = 300.0
VERIFY_S = 60.0
RETRY_MAX_S = 900.0
TAKES_S = 0.05
"""How long hub and proxy take for an answer: whatever happens meanwhile happens in the midst of a request."""

SETTINGS: dict[str, dict[str, object]] = {
    "HubGuardCull": {
        "idle_timeout_s": LIMIT_S,
        "every_s": EVERY_S,
        "hub_activity_interval_s": UPDATE_S,
    },
    "HubGuardBudget": {"rate": RATE, "burst": BURST, "concurrency": 3},
}


class StillClock(VirtualClock):
    """The same clock, quicker: it looks whether anything is left to do instead of waiting for many turns."""

    async def run(self, awaitable: Awaitable[T]) -> T:
        task = asyncio.ensure_future(awaitable)
        loop: Any = asyncio.get_running_loop()
        try:
            while not task.done():
                await asyncio.sleep(0)
                # What is ready to run by now stands behind us in this queue, but for our own next turn.
                if not loop._ready and not task.done():
                    self._wake_next()
            return task.result()
        finally:
            if not task.done():
                task.cancel()
                await asyncio.gather(task, return_exceptions=True)

    def _wake_next(self) -> None:
        assert self._sleepers, "everything waits, and nothing will ever wake it"
        at_s, _, woken = heapq.heappop(self._sleepers)
        if not woken.done():
            self._elapsed_s = max(self._elapsed_s, at_s)
            woken.set_result(None)


class WallClock:
    """What a guard's machine takes for the time: ``ahead_s`` seconds ahead of the world's, while intervals are right."""

    def __init__(self, clock: VirtualClock) -> None:
        self._clock = clock
        self.ahead_s = 0.0

    def now(self) -> datetime:
        return self._clock.now() + timedelta(seconds=self.ahead_s)

    def monotonic_s(self) -> float:
        return self._clock.monotonic_s()

    async def sleep(self, seconds: float) -> None:
        await self._clock.sleep(seconds)


class Pace:
    """Holds requests against the budget: never more than rate * W + burst in any window of W seconds."""

    def __init__(self) -> None:
        self._at_s = float("-inf")
        self._most = 0.0

    def one_more(self, now_s: float) -> None:
        # The fullest window that ends now, less what the rate has let through meanwhile.
        self._most = max(0.0, self._most - RATE * (now_s - self._at_s)) + 1
        self._at_s = now_s
        assert self._most <= BURST + 1e-6, f"{self._most:.2f} requests above the rate at {now_s:.2f} s"


class Asked(list[Any]):
    """The log of one guard's requests; the world sees each as it goes out."""

    def __init__(self, see: Callable[[Any], None]) -> None:
        super().__init__()
        self._see = see

    def append(self, request: Any) -> None:
        self._see(request)


@dataclass
class Intent:
    id: int
    key: Key
    started: datetime | None
    sent: bool = False


class LifeBooks(InlineJournal):
    """The journal as one guard has it: it outlives the guard, and nothing is written after the guard's death."""

    def __init__(self, journal: Journal, life: Life) -> None:
        super().__init__(journal)
        self._life = life

    async def call(self, function: Callable[..., T], *args: Any, **kwargs: Any) -> T:
        life, name = self._life, function.__name__
        if life.dead:
            raise JournalError("The guard is dead.")
        await life.step(f"before {name}")
        result = function(*args, **kwargs)
        life.recorded(name, args, result)
        await life.step(f"after {name}")
        return result

    def close(self) -> None:
        pass


class GuardsHub(MemoryHub):
    """The world's hub as one guard reaches it. What was sent takes its course even if nobody waits for the answer."""

    world: World
    life: Life

    async def stop_server(
        self, user: str, name: str, *, remove: bool = False, confirm: Callable[[], Awaitable[None]] | None = None
    ) -> bool:
        sent = False

        async def confirmed() -> None:
            nonlocal sent
            if confirm is not None:
                await confirm()
            sent = True

        stop = asyncio.ensure_future(super().stop_server(user, name, remove=remove, confirm=confirmed))
        stop.add_done_callback(lambda task: task.cancelled() or task.exception())
        try:
            return await asyncio.shield(stop)
        except asyncio.CancelledError:
            if not sent:
                stop.cancel()
            raise

    async def _stop(self, record: Any) -> None:
        if record.stops is not Stops.COMES_BACK:
            self.world.proxy.remove(route_path("/", *record.server.key))
        await super()._stop(record)


class HubsDatabase(MemoryHubDB):
    """What the hub has in its database is what it knows, but for what is pending."""

    def __init__(self, world: World) -> None:
        self._world = world
        super().__init__()

    @property
    def users(self) -> dict[str, User]:
        return self._world.hub._shown_users()

    @users.setter
    def users(self, users: dict[str, User]) -> None:
        pass


class Life:
    """One guard, from its start to its end."""

    def __init__(self, world: World, number: int, generation: float) -> None:
        self.world = world
        self.number = number
        self.dead = False
        self.began_s = world.clock.monotonic_s()
        self.steps: list[str] = []
        self.dies_at: int | None = None
        self.looked: dict[Key, tuple[int, float]] = {}
        self.intents: list[Intent] = []
        self.table_at_s = float("-inf")
        settings = config.load(SETTINGS, world.settings, environ={})
        with_constants(settings, lease_s=900.0, outage_s=OUTAGE_S, verify_s=VERIFY_S, retry_max_s=RETRY_MAX_S)
        assert not settings.errors, settings.errors
        budget = Budget(
            rate=settings.budget.rate,
            burst=settings.budget.burst,
            concurrency=settings.budget.concurrency,
            breaker_failures=settings.budget.breaker_failures,
            breaker_open_s=settings.budget.breaker_open_s,
            clock=world.clock,
        )
        hub, proxy = copy.copy(world.hub), copy.copy(world.proxy)
        hub.__class__, hub.world, hub.life = GuardsHub, world, self  # type: ignore[attr-defined]
        hub._budget = proxy._budget = budget
        hub.requests = Asked(self._asks_hub)
        proxy.requests = Asked(self._asks_proxy)
        hub.skew_s = -world.wall.ahead_s
        self.hub = hub
        books = LifeBooks(world.journal, self)

        self.guard = assembled(
            settings,
            hub,
            budget,
            books,
            world.wall,
            random.Random(number).random,
            holder=f"guard {number}",
            address="",
            generation=generation,
            database=world.database,
            proxy=proxy if world.proxy_told else None,
        )
        self.task = asyncio.ensure_future(self.guard.run())

    def kill(self) -> None:
        """As kill -9: nothing more is asked or written."""
        self.dead = True
        self.task.cancel()

    async def step(self, what: str) -> None:
        """The guard is about to do something, or has just done it; it may be its last."""
        self._count(what)
        if self.dead:
            await asyncio.get_running_loop().create_future()

    def _count(self, what: str) -> None:
        self.steps.append(what)
        if self.dies_at is not None and len(self.steps) > self.dies_at and not self.dead:
            self.kill()

    def recorded(self, name: str, args: tuple[Any, ...], result: Any) -> None:
        if name == "intend":
            action = args[2]
            self.intents.append(Intent(result, (action.user, action.name), action.started))
        elif name == "settle":
            self.intents = [intent for intent in self.intents if intent.id != args[0]]

    def _asks_hub(self, request: Request) -> None:
        if self.dead:
            raise asyncio.CancelledError
        self.world.hub_is_asked(self, request)
        self._count(f"asked {request.call}")

    def _asks_proxy(self, request: ProxyRequest) -> None:
        if self.dead:
            raise asyncio.CancelledError
        self.world.pace.one_more(request.at_s)
        self._count("asked proxy")


class World:
    """All of it. ``proxy_told`` and ``database_told``: the guards may read the proxy's table, and the hub's database."""

    def __init__(
        self,
        *,
        proxy_told: bool = True,
        database_told: bool = False,
        settings: dict[str, dict[str, object]] | None = None,
    ) -> None:
        self.loop = asyncio.new_event_loop()
        self.clock = StillClock()
        self.wall = WallClock(self.clock)
        self.settings = settings or {}
        self.proxy_told = proxy_told
        self.hub = MemoryHub(clock=self.clock, takes_s=TAKES_S)
        self.proxy = MemoryProxy(clock=self.clock, takes_s=TAKES_S)
        self.hub.fault = self._hub_fault
        self.proxy.fault = self._proxy_fault
        self.database = HubsDatabase(self) if database_told else None
        self.journal = open_journal("sqlite://")
        self.pace = Pace()
        self.life: Life | None = None
        self.lives = itertools.count(1)
        self.generation = 0.0
        self.hub_up = self.proxy_up = True
        self.frozen = False
        self.every_nth_fails: tuple[int, str] | None = None
        self.regulars: set[Key] = set()
        self.used: dict[Key, datetime] = {}
        self.stops_sent: dict[tuple[Key, datetime | None], int] = {}
        self.sent = 0
        self.requests = 0
        self.kept_until: dict[int, tuple[str, datetime, float]] = {}
        self.comes_back: dict[str, set[Key]] = {}
        self.not_idle_before_s = float("-inf")
        self.down: tuple[float, Life | None] | None = None
        self._last_stop: dict[Key, int] = {}
        self._living = self.loop.create_task(self._live())

    # -- living -----------------------------------------------------------------------------------------------------

    def run(self, coroutine: Coroutine[Any, Any, T]) -> T:
        return self.loop.run_until_complete(self.clock.run(coroutine))

    def passes(self, seconds: float) -> None:
        """So much time passes. Whatever breaks in it breaks the test."""
        self.run(self.clock.sleep(seconds))
        if self.broken is not None:
            raise self.broken
        assert not self._living.done(), self._living.exception()
        if self.life is not None and not self.life.dead:
            assert not self.life.task.done(), self.life.task.exception()

    broken: AssertionError | None = None

    def close(self) -> None:
        if self.life is not None:
            self.life.kill()
        for task in asyncio.all_tasks(self.loop):
            task.cancel()

        async def over() -> None:
            await asyncio.gather(*asyncio.all_tasks() - {asyncio.current_task()}, return_exceptions=True)

        self.loop.run_until_complete(over())
        self.loop.close()
        self.journal.close()

    async def _live(self) -> None:
        """The people who are always there, and the hub's own updates."""
        while True:
            await self.clock.sleep(UPDATE_S / 2)
            for key in sorted(self.regulars):
                self.use(key)
            await self.clock.sleep(UPDATE_S / 2)
            self.hub_updates()

    def hub_updates(self) -> None:
        """The hub takes over the proxy's activity and puts its table right."""
        if not (self.hub_up and self.proxy_up):
            return
        routes = {route.key: route for route in self.proxy.table.values() if route.key is not None}
        records = self.hub._settled()
        for key, record in records.items():
            route = routes.get(key)
            if record.active and route is not None and not self.frozen:
                seen = route.last_activity
                if record.server.last_activity is None or (seen is not None and seen > record.server.last_activity):
                    self.hub.change(*key, last_activity=seen)
            if record.active and record.server.ready and route is None:
                self.proxy.add_server(*key)
        for key, route in routes.items():
            if key not in records or not records[key].active:
                self.proxy.remove(route.path)

    def begin(self, *, managed: bool = False) -> None:
        """A guard is started; ``managed`` by the hub, whose start then is its generation."""
        assert self.life is None or self.life.dead or self.life.task.done()

        async def start() -> Life:
            return Life(self, next(self.lives), self.generation if managed else 0.0)

        self.life = self.run(start())

    def kill(self) -> None:
        if self.life is not None:
            self.life.kill()
            self.passes(1 / RATE)

    def end(self) -> None:
        """The guard is asked to end, and does."""
        if self.life is not None and not self.life.dead:
            life = self.life
            life.task.cancel()

            async def over() -> None:
                await asyncio.gather(life.task, return_exceptions=True)

            self.run(over())
            life.dead = True
            self.passes(1 / RATE)

    # -- what happens -------------------------------------------------------------------------------------------------

    def start(self, key: Key, *, stops: Stops = Stops.WORKS, stop_s: float = 0.0, idle_s: float = 0.0) -> None:
        """Somebody starts that server, unless it is there."""
        record = self.hub._settled().get(key)
        if not self.hub_up or (record is not None and record.active):
            return
        now = self.clock.now()
        seen = now - timedelta(seconds=idle_s)
        server = Server(*key, ready=True, pending=None, started=seen, last_activity=seen)
        self.hub.add(server, stops=stops, stop_s=stop_s)
        self.proxy.add_server(*key)
        if idle_s:
            path = route_path("/", *key)
            self.proxy.table[path] = replace(self.proxy.table[path], last_activity=seen)
        self.used.pop(key, None)

    def use(self, key: Key) -> bool:
        """Somebody uses their server through the proxy; False where they can't."""
        record, path = self.hub._records.get(key), route_path("/", *key)
        if not self.proxy_up or record is None or not record.server.ready or path not in self.proxy.table:
            return False
        self.proxy.seen(path)
        self.used[key] = self.clock.now()
        return True

    def gone(self, key: Key) -> None:
        """Its owner, or another admin, has stopped it."""
        record = self.hub._settled().get(key)
        if record is not None and record.active and record.server.pending is None:
            record.active = False
            record.server = replace(record.server, ready=False)
            self.hub.backends.discard(key)
            self.proxy.remove(route_path("/", *key))

    def switch_hub(self, up: bool) -> None:
        self.hub_up = up
        self._outage(up and self.proxy_up)

    def switch_proxy(self, up: bool) -> None:
        self.proxy_up = up
        self._outage(up and self.hub_up)

    def _outage(self, over: bool) -> None:
        now_s = self.clock.monotonic_s()
        if not over:
            self.down = self.down or (now_s, self.life)
            return
        if self.down is not None:
            began_s, life = self.down
            self.down = None
            seen = life is not None and not life.dead and life is self.life and life.began_s + 3 * EVERY_S < began_s
            if seen and now_s - began_s >= OUTAGE_S + 3 * EVERY_S + 2 * VERIFY_S and self.proxy_told:
                self.not_idle_before_s = now_s + LIMIT_S

    def jump(self, seconds: float) -> None:
        """The date of the guard's machine changes by so much, between two cycles."""
        while (
            self.life is not None
            and not self.life.dead
            and self.life.guard.parts.culling.cycles._one_at_a_time.locked()
        ):
            self.passes(1.0)
        self.wall.ahead_s += seconds
        if self.life is not None:
            self.life.hub.skew_s = -self.wall.ahead_s
        self.not_idle_before_s = float("-inf")

    def heal(self) -> None:
        """Everything works again, nobody holds anything back, and nobody is there any more."""
        self.hub_up = self.proxy_up = True
        self.down = None
        self.frozen = False
        self.every_nth_fails = None
        self.wall.ahead_s = 0.0
        self.regulars.clear()
        self.comes_back.clear()
        self.kept_until.clear()
        if self.life is None or self.life.dead:
            self.begin()
        assert self.life is not None
        self.life.hub.skew_s = 0.0
        self.life.dies_at = None
        now = self.wall.now()
        for exemption in self.journal.exemptions(now):
            # One that was ended by a clock that was ahead is in force again, and can't be ended twice.
            if exemption.ended_at is None:
                self.journal.end_exemption(exemption.id, "ada", "", now)
        self.journal.arm("ada", "", now)
        for key, record in self.hub._settled().items():
            record.stops = Stops.WORKS
            if record.server.pending == "check":
                self.hub.change(*key, ready=True)

    # -- what is held against it --------------------------------------------------------------------------------------

    def hub_is_asked(self, life: Life, request: Request) -> None:
        try:
            self._hold_against_the_truth(life, request)
        except AssertionError as error:
            # A guard takes any exception of its hub for a defect and goes on.
            self.broken = self.broken or error
            raise
        for key in sorted(self.comes_back.pop(request.call, set())):
            self.use(key)

    def _hold_against_the_truth(self, life: Life, request: Request) -> None:
        self.requests += 1
        self.pace.one_more(request.at_s)
        assert life is self.life, f"guard {life.number} asks, and it isn't its turn"
        key = (request.user, request.name)
        if request.call == "get":
            life.looked[key] = (self.requests, request.at_s)
        if request.call == "stop":
            self._stop_is_right(life, key, request)

    def _stop_is_right(self, life: Life, key: Key, request: Request) -> None:
        now, what = self.clock.now(), f"stop of {key} at {request.at_s:.2f} s"
        record = self.hub._records.get(key)
        number, looked_s = life.looked.get(key, (0, float("-inf")))
        assert request.at_s - looked_s <= LOOK_LASTS_S + COMMIT_LASTS_S + 1e-6, f"{what}: not looked at again"
        assert number > self._last_stop.get(key, 0), f"{what}: asked again without a fresh read"
        self._last_stop[key] = self.requests
        self.sent += 1
        intent = next((one for one in life.intents if one.key == key and not one.sent), None)
        assert intent is not None, f"{what}: no intent is on record"
        intent.sent = True
        assert any(one.id == intent.id for one in self.journal.open_intents()), f"{what}: its intent isn't committed"
        stance, status = self.journal.stance(), life.guard.status()
        assert not stance.held, f"{what}: acting is on hold"
        assert stance.armed, f"{what}: nobody has armed it"
        assert status.brake is None, f"{what}: braked, since {status.brake and status.brake.why}"
        for user, until, made_s in self.kept_until.values():
            assert user != key[0] or made_s >= looked_s or self.wall.now() >= until, f"{what}: it is to be kept"
        assert self.wall.ahead_s <= 60, f"{what}: the clock is {self.wall.ahead_s} s ahead"
        if record is None or record.server.started != intent.started:
            return  # it was started anew since the second look, and HubGuard can't know
        assert request.at_s >= self.not_idle_before_s - max(0.0, self.wall.ahead_s), f"{what}: just after an outage"
        if self.proxy_told:
            assert looked_s - life.table_at_s <= ROUTES_LAST_S + 2 * TAKES_S, f"{what}: the proxy wasn't asked"
            noted = ActivityStore(self.journal).activity().get(key)
            if noted is not None and noted.evidence is Evidence.PROXY and noted.active_at is not None:
                idle_s = (self.wall.now() - noted.active_at).total_seconds()
                assert idle_s >= LIMIT_S, f"{what}: HubGuard itself had noted its use {idle_s:.0f} s ago"
        used = self.used.get(key)
        if used is None or not self._could_be_told(life, key, used, looked_s):
            return
        idle_s = (now - used).total_seconds() + max(0.0, self.wall.ahead_s)
        assert idle_s >= LIMIT_S, f"{what}: it was used {idle_s:.0f} s ago"

    def _could_be_told(self, life: Life, key: Key, used: datetime, looked_s: float) -> bool:
        """Whether anything that the guard could ask at its second look told of that use.

        Not what happened later, or in the last seconds, for which a table that was just read still counts; and not where
        the proxy has lost it, or doesn't answer, before the hub has taken it over.
        """
        began = self.clock.now() - timedelta(seconds=self.clock.monotonic_s() - looked_s)
        record = self.hub._records[key]
        if record.server.last_activity is not None and record.server.last_activity >= used:
            return used <= began
        route: Route | None = self.proxy.table.get(route_path("/", *key))
        told_s = ROUTES_LAST_S + 2 * TAKES_S
        readable = self.proxy_told and self.proxy_up and self.every_nth_fails is None
        stamped = route is not None and route.last_activity is not None and used - route.last_activity < TICK
        return readable and stamped and used <= began - timedelta(seconds=told_s)

    def entries(self, event: str) -> tuple[Entry, ...]:
        found: list[Entry] = []
        while page := self.journal.entries(event=Event(event), limit=1000, before_id=found[-1].id if found else None):
            found += page
        return tuple(found)

    def all_is_accounted_for(self) -> None:
        """Every intent has its one outcome, and no more was sent than was intended."""
        intents = {entry.id for entry in self.entries("intent")}
        outcomes = [entry.refers_to for entry in self.entries("outcome")]
        assert len(outcomes) == len(set(outcomes)), "an intent has two outcomes"
        assert set(outcomes) == intents, f"without outcome: {sorted(intents - set(outcomes))}"
        assert self.sent <= len(intents)

    def explained(self) -> str:
        """What the guard says of itself and of each server."""
        assert self.life is not None
        guard = self.life.guard
        last = guard.parts.culling.status().last_cycle
        verdicts = last.verdicts if last else ()
        return "\n".join([f"{self.wall.now()} {guard.status().why}", *(f"{one}" for one in verdicts)])

    def running(self) -> set[Key]:
        """The servers that run, without those that somebody has asked to keep."""
        kept = self.journal.exemptions(self.wall.now())
        return {
            key
            for key, record in self.hub._settled().items()
            if record.active and not any(one.covers(*key, self.wall.now()) for one in kept)
        }

    # -- faults -------------------------------------------------------------------------------------------------------

    def _hub_fault(self, request: Request) -> HubError | None:
        if not self.hub_up:
            return HubUnreachable("Connection refused.")
        if self.every_nth_fails is None or self.requests % self.every_nth_fails[0]:
            return None
        return {
            "429": HubBusy("429", retry_after_s=5.0),
            "503": HubBusy("503"),
            "500": HubFailed("500", status=500),
            "timeout": HubUnreachable("no answer within 60 s"),
        }[self.every_nth_fails[1]]

    def _proxy_fault(self, request: ProxyRequest) -> ProxyUnreachable | None:
        if not self.proxy_up:
            return ProxyUnreachable("Connection refused.")
        if self.every_nth_fails and self.requests % 2:
            return ProxyUnreachable("reset")
        if self.life is not None:
            self.life.table_at_s = request.at_s
        return None

    def switch_database(self, up: bool) -> None:
        if self.database is not None:
            self.database.fault = None if up else HubDBError("The hub's database is locked.")


TICK = timedelta(milliseconds=1)
"""What a proxy's clock tells."""
