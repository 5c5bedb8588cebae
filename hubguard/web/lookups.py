"""Who is asked about at the hub, and in which order: nobody's made-up tokens make others wait for long."""

from __future__ import annotations

import asyncio
import time
from collections import Counter
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from enum import IntEnum

from hubguard.errors import HubUnreachable

KNOWN_AT_ONCE = 4
"""Maximum lookups in flight of callers with a token that the hub has vouched for recently; these places are theirs alone."""

SIGNED_AT_ONCE = 2
"""Maximum lookups in flight of logins that HubGuard has set a cookie for; these places are theirs alone."""

LOGINS_AT_ONCE = 2
"""Maximum lookups in flight of browsers that come back from a login; these places are theirs alone."""

STRANGERS_AT_ONCE = 2
"""Maximum lookups in flight of anyone else."""

WAITING_MOST = 100
"""Maximum lookups that wait, of each of these kinds."""

WAITING_PER_PEER = 20
"""Maximum lookups of one kind that wait for one address. Known callers have no such limit."""

LONGEST_WAIT_S = 10.0
"""Maximum seconds that a lookup waits for its turn."""

DENIALS_FREE = 20
"""Tokens unknown to the hub that one address may ask about before it is slowed down."""

DENIALS_FORGIVEN_PER_S = 0.5
"""Unknown tokens that are forgiven an address each second, so that this is how fast it may go on."""

PEERS_MOST = 10_000
"""Maximum addresses whose unknown tokens are counted."""

_LOOK_AGAIN_S = 0.5


class TooMany(HubUnreachable):
    """A lookup wasn't made, since too many others are."""

    def __init__(self) -> None:
        super().__init__("Too many tokens and logins are being checked with the hub. Try again in a few seconds.")


class Standing(IntEnum):
    """What is known of a caller before the hub is asked."""

    KNOWN = 0  # the hub has vouched for this token recently
    SIGNED = 1  # the token comes in a cookie that HubGuard has set
    LOGIN = 2  # a browser comes back from a login that HubGuard began
    STRANGER = 3


_AT_ONCE = {
    Standing.KNOWN: KNOWN_AT_ONCE,
    Standing.SIGNED: SIGNED_AT_ONCE,
    Standing.LOGIN: LOGINS_AT_ONCE,
    Standing.STRANGER: STRANGERS_AT_ONCE,
}


@dataclass(eq=False, slots=True)
class _Waiting:
    peer: str
    standing: Standing
    number: int
    granted: asyncio.Future[None] = field(repr=False)


class Lookups:
    """Lets lookups go, each standing in places of its own, so that strangers keep nobody else waiting.

    Strangers at addresses with the fewest unknown tokens go first, then who came first.
    """

    def __init__(self, monotonic_s: Callable[[], float] = time.monotonic) -> None:
        self._monotonic_s = monotonic_s
        self._waiting: list[_Waiting] = []
        self._in_flight: Counter[Standing] = Counter()
        self._denials: dict[str, tuple[float, float]] = {}  # by address: how many, counted when
        self._number = 0
        self._alarm: asyncio.TimerHandle | None = None

    @asynccontextmanager
    async def turn(self, peer: str, standing: Standing) -> AsyncIterator[None]:
        """While the block lasts, one lookup for the caller at ``peer`` may be made. Raises TooMany."""
        self._number += 1
        lookup = _Waiting(peer, standing, self._number, asyncio.get_running_loop().create_future())
        self._admit(lookup)
        try:
            await asyncio.wait({lookup.granted}, timeout=LONGEST_WAIT_S)
            if not lookup.granted.done():
                raise TooMany
            lookup.granted.result()
            yield
        finally:
            if lookup in self._waiting:
                self._waiting.remove(lookup)
            elif lookup.granted.done() and lookup.granted.exception() is None:
                self._in_flight[standing] -= 1
            self._dispatch()

    def denied(self, peer: str) -> None:
        """The hub didn't know the token of the stranger at ``peer``."""
        if len(self._denials) >= PEERS_MOST:
            self._denials = {peer: denied for peer, denied in self._denials.items() if self._score(peer) > 0}
        self._denials[peer] = (self._score(peer) + 1, self._monotonic_s())

    def _score(self, peer: str) -> float:
        count, at_s = self._denials.get(peer, (0.0, 0.0))
        return max(0.0, count - DENIALS_FORGIVEN_PER_S * (self._monotonic_s() - at_s))

    def _rank(self, lookup: _Waiting) -> tuple[Standing, float, int]:
        score = self._score(lookup.peer) if lookup.standing is Standing.STRANGER else 0.0
        return lookup.standing, score, lookup.number

    def _admit(self, lookup: _Waiting) -> None:
        alike = [other for other in self._waiting if other.standing is lookup.standing]
        of_peer = sum(other.peer == lookup.peer for other in alike)
        if lookup.standing is not Standing.KNOWN and of_peer >= WAITING_PER_PEER:
            raise TooMany
        self._waiting.append(lookup)
        if len(alike) >= WAITING_MOST:
            last = max([*alike, lookup], key=self._rank)
            self._waiting.remove(last)
            if last is lookup:
                raise TooMany
            last.granted.set_exception(TooMany())
        self._dispatch()

    def _may_go(self, lookup: _Waiting) -> bool:
        slowed_down = lookup.standing is Standing.STRANGER and self._score(lookup.peer) >= DENIALS_FREE
        return not slowed_down and self._in_flight[lookup.standing] < _AT_ONCE[lookup.standing]

    def _dispatch(self) -> None:
        for lookup in sorted(self._waiting, key=self._rank):
            if self._may_go(lookup):
                self._waiting.remove(lookup)
                self._in_flight[lookup.standing] += 1
                lookup.granted.set_result(None)
        if self._waiting and self._alarm is None:
            self._alarm = asyncio.get_running_loop().call_later(_LOOK_AGAIN_S, self._ring)

    def _ring(self) -> None:
        self._alarm = None
        self._dispatch()
