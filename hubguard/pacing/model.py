"""The state of the pace at the hub, and what of it outlives a restart."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class BudgetUse:
    """The state of the budget: requests in flight, the concurrency allowed now and at most, the rate, and the breaker.

    ``concurrency`` is how many stops and the like may be in flight at the hub; ``in_flight`` counts looking, too, and may
    be over it. ``rate`` is in requests per second, ``burst`` in requests.
    ``breaker`` is the hub's: closed, open or probing. ``requests`` (sent), ``failures`` and ``waited_s``
    (seconds, summed) count since the guard started.
    """

    in_flight: int
    concurrency: int
    concurrency_cap: int
    rate: float
    burst: int
    breaker: str
    requests: int
    failures: int
    waited_s: float


@dataclass(frozen=True, slots=True)
class PaceState:
    """What of the pace at the hub outlives a restart of the guard.

    ``concurrency`` is the limit at that moment. ``breaker`` is closed or open; an open one lets a probe go in ``probe_in_s``
    and stays open for ``stays_open_s`` between two probes. ``failures`` is how many requests in a row have failed.
    """

    concurrency: int
    breaker: str
    failures: int
    probe_in_s: float
    stays_open_s: float
