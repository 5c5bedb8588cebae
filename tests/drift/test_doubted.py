"""How many differences of one kind are believed at once."""

from __future__ import annotations

import pytest
from doubles.drift import drift_of

from hubguard.drift.decide.repair import doubted
from hubguard.drift.model import DriftKind

TOO_LARGE_A_SHARE = 0.2
TOO_MANY = 3


@pytest.mark.parametrize("servers", [0, 1000])
@pytest.mark.parametrize("kind", [DriftKind.SERVER_DEAD, DriftKind.SERVER_ORPHAN])
def test_as_many_as_the_limit_are_believed_and_one_more_is_not(kind: DriftKind, servers: int):
    limit = int(max(TOO_MANY, TOO_LARGE_A_SHARE * servers))
    drifts = [drift_of(kind, f"u{number}") for number in range(limit + 1)]
    assert doubted(drifts[:limit], servers) == ()
    assert kind in doubted(drifts, servers)


def test_routes_are_never_doubted():
    assert doubted([drift_of(DriftKind.ROUTE_MISSING, f"u{number}") for number in range(1000)], 0) == ()
