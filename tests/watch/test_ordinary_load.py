"""Noise is a defect: a week of ordinary campus load raises no alert."""

from __future__ import annotations

import math
import random

import pytest
from builders import NOW
from signal_series import Series, raised

HOUR = 3600.0
DAY = 24 * HOUR
MiB = 2.0**20
GiB = 2.0**30

MONDAY = NOW.replace(hour=0)
"""What day of the week it is makes no difference to any rule."""

CLASSES = (9 * HOUR, 14 * HOUR)
"""Each day 300 students start their servers within five minutes, twice."""

DEPLOY = DAY + 22 * HOUR
"""The hub is down for 45 s, and begins its counts again; some requests fail around it."""

PROXY_RESTART = 3 * DAY + 3 * HOUR
"""The proxy is gone for 12 s, and its table is filled within 20 s."""

NIGHTLY_CULL = 2 * HOUR
"""At two at night what is left of the day is stopped within ten minutes."""


def campus(seed: int) -> dict[str, Series]:
    """The signals of that week, the same for the same seed."""
    chance = random.Random(seed)
    noise = [chance.gauss(0, 1) for _ in range(10_007)]

    def wobble(at_s: float, share: float) -> float:
        return 1 + share * noise[int(at_s // 10) % len(noise)]

    def of_day(at_s: float) -> float:
        return at_s % DAY

    def since_class(at_s: float) -> float | None:
        since = min((of_day(at_s) - begin for begin in CLASSES if of_day(at_s) >= begin), default=None)
        return since if since is not None and since < 2 * HOUR else None

    def servers(at_s: float) -> float:
        daily = (
            60 + 140 * max(0.0, math.sin(math.pi * (of_day(at_s) / HOUR - 7) / 15)) if of_day(at_s) > 7 * HOUR else 40.0
        )
        since = since_class(at_s)
        in_class = (
            0.0 if since is None else 300 * min(1.0, since / 300) * (1.0 if since < 6000 else (7200 - since) / 1200)
        )
        evening = max(0.0, of_day(at_s) - 22 * HOUR) / (2 * HOUR) * 250
        night = 250 * max(0.0, 1 - max(0.0, of_day(at_s) - NIGHTLY_CULL) / 600) if of_day(at_s) < 7 * HOUR else 0.0
        left = evening + night
        return daily + in_class + left

    def starting(at_s: float) -> bool:
        since = since_class(at_s)
        return since is not None and since < 300

    def hub_down(at_s: float) -> bool:
        return DEPLOY <= at_s < DEPLOY + 45

    def proxy_down(at_s: float) -> bool:
        return PROXY_RESTART <= at_s < PROXY_RESTART + 30

    def latency(at_s: float) -> float | None:
        if hub_down(at_s):
            return None
        return (2.4 if starting(at_s) else 0.03) * abs(wobble(at_s, 0.3))

    def errors(at_s: float) -> float:
        return 20.0 if DEPLOY <= at_s < DEPLOY + 120 else 6.0 * abs(wobble(at_s, 0.5)) if starting(at_s) else 0.3

    def requests(at_s: float) -> float:
        return 4 * servers(at_s) * abs(wobble(at_s, 0.1)) + 30

    def proxy_memory(at_s: float) -> float:
        # A sawtooth of collections over what the users need; it begins low after a restart.
        base = (160 + 2.3 * servers(at_s)) * MiB
        return base + 90 * MiB * (at_s % 400) / 400 * abs(wobble(at_s, 0.1))

    def disk(at_s: float) -> float:
        # Logs fill 4 % in a day, and are rotated at midnight; a large file comes and goes.
        large = 0.08 if 10 * HOUR < of_day(at_s) < 11 * HOUR else 0.0
        return 0.42 - 0.04 * of_day(at_s) / DAY - large

    return {
        "hub_up": lambda at_s: 0.0 if hub_down(at_s) else 1.0,
        "hub_latency_seconds": latency,
        "hub_requests_per_minute": requests,
        "hub_errors_per_minute": errors,
        "hub_error_share": lambda at_s: errors(at_s) / requests(at_s),
        "hub_cpu_cores": lambda at_s: min(
            1.0, (0.97 if starting(at_s) else 0.15 + servers(at_s) / 2500) * wobble(at_s, 0.1)
        ),
        "hub_memory_bytes": lambda at_s: (
            (300 + servers(at_s) / 3 + (at_s % (2 * DAY)) / DAY * 40) * MiB * wobble(at_s, 0.01)
        ),
        "hub_memory_limit_bytes": lambda _: 2 * GiB,
        "check_routes_share": lambda at_s: 0.02 + servers(at_s) / 10000,
        "servers_running": servers,
        "users_total": lambda at_s: 4000 + at_s / DAY * 3,
        "failed_starts_share": lambda at_s: 0.02 if starting(at_s) else 0.0,
        "failed_starts_recent": lambda at_s: 6.0 if starting(at_s) else 0.0,
        "failed_starts_in_a_row": lambda at_s: float(starting(at_s) and at_s % 120 < 60),
        "failed_starts_limit": lambda _: 5.0,
        "database_up": lambda _: 1.0,
        "tokens": lambda at_s: 9000 + servers(at_s) * 4,
        "proxy_up": lambda at_s: 0.0 if proxy_down(at_s) else 1.0,
        "routes_missing": lambda at_s: servers(at_s) if proxy_down(at_s) else 1.0 if starting(at_s) else 0.0,
        "routes_missing_share": lambda at_s: 1.0 if proxy_down(at_s) else 0.003 if starting(at_s) else 0.0,
        "proxy_restarts": lambda at_s: float(at_s >= PROXY_RESTART),
        "proxy_memory_bytes": proxy_memory,
        "proxy_memory_limit_bytes": lambda _: 2.5 * GiB,
        "proxy_heap_bytes": lambda at_s: proxy_memory(at_s) * 0.6,
        "proxy_heap_limit_bytes": lambda _: 1.5 * GiB,
        "proxy_files_share": lambda at_s: servers(at_s) * 5 / 65536 * 4,
        "proxy_errors_per_minute": lambda at_s: 90.0 if proxy_down(at_s) else 2.0 * abs(wobble(at_s, 1.0)),
        "proxy_error_share": lambda at_s: 0.2 if proxy_down(at_s) else 0.002,
        "ports_used_share": lambda at_s: 0.02 + servers(at_s) * 8 / 28231 * wobble(at_s, 0.1),
        "backends_extra": lambda at_s: 12.0 if starting(at_s) else 1.0,
        "backends_extra_share": lambda at_s: (12.0 if starting(at_s) else 1.0) / servers(at_s),
        "disk_free_share:/": disk,
        "disk_free_share:/home": lambda at_s: 0.18 + 0.01 * math.sin(at_s / DAY),
        "inodes_free_share:/": lambda at_s: 0.6 - 0.02 * of_day(at_s) / DAY,
        "last_good_cycle_age_seconds": lambda at_s: 200.0 if hub_down(at_s) else at_s % 60,
        "error_share": lambda at_s: 0.15 if starting(at_s) else 0.0,
    }


def test_a_day_of_ordinary_load_with_a_deploy_raises_nothing() -> None:
    series = campus(1)
    day = {key: (lambda at_s, of=of: of(at_s + DAY)) for key, of in series.items()}
    assert raised(day, DAY, begin=MONDAY) == {}


@pytest.mark.long
@pytest.mark.parametrize("seed", range(3))
def test_a_week_of_ordinary_load_raises_nothing(seed: int) -> None:
    assert raised(campus(seed), 7 * DAY, begin=MONDAY) == {}


def test_the_same_load_raises_an_alert_as_soon_as_something_is_wrong() -> None:
    """Else the week above would prove nothing."""
    series = campus(1) | {"hub_up": lambda at_s: 0.0 if at_s > 1800 else 1.0, "disk_free_share:/home": lambda _: 0.02}
    assert set(raised(series, HOUR, begin=MONDAY)) >= {"HubDown", "DiskLow", "DiskFull"}
