"""The readers of signals: what they say when all is well, when a source is gone, and when there is none."""

from __future__ import annotations

import asyncio
import os
import subprocess
import threading
import time
from pathlib import Path

import pytest
from builders import NOW
from doubles.hub import MemoryHub
from doubles.hub_db import MemoryHubDB
from virtual_time import VirtualClock

from hubguard.errors import BudgetExhausted, HubDBError, HubFailed, HubRefused, HubUnreachable
from hubguard.hub.nouns import TokenOwner
from hubguard.pacing.clock import SystemClock
from hubguard.watch.cycle import READ_S
from hubguard.watch.decide.failed_starts import FailedStarts
from hubguard.watch.model import SignalSource
from hubguard.watch.observe import hub as observed_hub
from hubguard.watch.observe import machine
from hubguard.watch.observe.database import SILENT_S, DatabaseReader
from hubguard.watch.observe.guard import GuardReader
from hubguard.watch.observe.hub import HubReader
from hubguard.watch.observe.machine import FoldersReader, MachineReader
from hubguard.watch.observe.metrics import HubMetricsReader, HubScrapes, ProxyMetricsReader, StartsReader
from hubguard.watch.observe.port import NotSetUp, SourceUnavailable
from hubguard.watch.observe.process import ProcessReader, heap_limit, is_here, listener_of, memory_limit


async def test_a_hub_that_answers_is_up_and_one_that_fails_or_is_silent_is_down() -> None:
    hub = MemoryHub()
    reader = HubReader(hub, VirtualClock())
    assert await reader.read() == {"hub_up": 1.0, "hub_latency_seconds": 0.0, "users_total": 0.0}
    hub.fault = lambda request: HubUnreachable("No answer.")
    assert await reader.read() == {"hub_up": 0.0}
    hub.fault = lambda request: HubFailed("The hub failed.", status=500)
    assert await reader.read() == {"hub_up": 0.0}


async def test_a_hub_that_hangs_is_down_before_the_reading_is_given_up(monkeypatch: pytest.MonkeyPatch) -> None:
    hub = MemoryHub()

    async def hangs() -> TokenOwner:
        await asyncio.Event().wait()
        raise AssertionError

    monkeypatch.setattr(hub, "whoami", hangs)
    monkeypatch.setattr(observed_hub, "SILENT_S", 0.01)
    assert await HubReader(hub, VirtualClock()).read() == {"hub_up": 0.0}
    assert READ_S > 5.0


async def test_a_hub_that_is_down_stays_so_while_the_breaker_keeps_requests_away() -> None:
    hub = MemoryHub()
    reader = HubReader(hub, VirtualClock())
    refused: list[Exception] = [HubUnreachable("No answer."), BudgetExhausted("The breaker is open.")]
    hub.fault = lambda request: refused[0]  # type: ignore[assignment, return-value]
    assert await reader.read() == {"hub_up": 0.0}
    refused.pop(0)
    assert await reader.read() == {"hub_up": 0.0}
    hub.fault = None
    assert (await reader.read())["hub_up"] == 1.0
    hub.fault = lambda request: refused[0]  # type: ignore[assignment, return-value]
    with pytest.raises(SourceUnavailable, match="Nothing was sent"):
        await reader.read()


async def test_a_hub_that_refuses_our_token_is_not_called_down() -> None:
    hub = MemoryHub()
    hub.fault = lambda request: HubRefused("Refused.")
    with pytest.raises(SourceUnavailable, match="The hub answers, but not this"):
        await HubReader(hub, VirtualClock()).read()


async def test_one_scrape_of_the_hub_serves_all_that_is_read_from_it() -> None:
    clock, hub = VirtualClock(), MemoryHub()
    scrapes = HubScrapes(hub, clock)
    metrics, starts = HubMetricsReader(scrapes, 60.0), StartsReader(scrapes, 5, FailedStarts())
    assert (await metrics.read())["servers_running"] == 0.0
    assert await starts.read() == {}
    await clock.run(clock.sleep(60))
    await asyncio.gather(metrics.read(), starts.read())
    assert len([one for one in hub.requests if one.call == "metrics"]) == 2


async def test_where_the_token_may_not_see_metrics_the_scope_is_named() -> None:
    hub = MemoryHub()
    hub.fault = lambda request: HubRefused("Refused.")
    with pytest.raises(NotSetUp, match="read:metrics"):
        await HubMetricsReader(HubScrapes(hub, VirtualClock()), 0.0).read()


async def test_the_last_check_of_routes_counts_until_the_next_should_have_come() -> None:
    clock, hub = VirtualClock(), MemoryHub()
    reader = HubMetricsReader(HubScrapes(hub, clock), 300.0)
    shares = []
    for minute in range(20):
        checks = min(minute, 2)
        name = "jupyterhub_check_routes_duration_seconds"
        hub.shown = f"process_start_time_seconds 5\n{name}_count {checks}\n{name}_sum {checks * 150.0}\n"
        shares.append((await reader.read()).get("check_routes_share"))
        await clock.run(clock.sleep(60))
    assert shares[0] is None
    assert shares[1:12] == [0.5] * 11
    assert shares[-1] is None


async def test_a_database_that_answered_and_is_silent_is_down_and_one_that_never_answered_is_unknown() -> None:
    database = MemoryHubDB()
    database.tokens_and_codes = (7, 2)
    reader = DatabaseReader(database, VirtualClock())
    first = await reader.read()
    assert (first["database_up"], first["tokens"], first["oauth_codes"]) == (1.0, 7.0, 2.0)
    database.fault = HubDBError("It doesn't answer.")
    assert await reader.read() == {"database_up": 0.0}
    with pytest.raises(SourceUnavailable, match="doesn't answer"):
        await DatabaseReader(database, VirtualClock()).read()
    with pytest.raises(NotSetUp, match="hub_db_url"):
        await DatabaseReader(None, VirtualClock()).read()


async def test_a_database_that_is_frozen_is_down_within_the_time_a_source_has(monkeypatch: pytest.MonkeyPatch) -> None:
    database = MemoryHubDB()
    reader = DatabaseReader(database, SystemClock())
    assert (await reader.read())["database_up"] == 1.0
    assert SILENT_S < READ_S
    monkeypatch.setattr("hubguard.watch.observe.database.SILENT_S", 0.05)
    monkeypatch.setattr(database, "ping", lambda: asyncio.sleep(60))
    assert await reader.read() == {"database_up": 0.0}
    with pytest.raises(SourceUnavailable, match="hasn't answered"):
        await DatabaseReader(database, SystemClock()).read()


async def test_a_process_shows_its_memory_and_cpu_and_one_that_ended_is_unavailable() -> None:
    reader = ProcessReader(SignalSource.HUB_PROCESS, "hub", os.getpid, VirtualClock())
    values = await reader.read()
    assert values["hub_memory_bytes"] > 1e6
    assert values["hub_memory_limit_bytes"] > values["hub_memory_bytes"]
    assert "hub_cpu_cores" not in values
    gone = ProcessReader(SignalSource.PROXY_PROCESS, "proxy", lambda: None, VirtualClock())
    with pytest.raises(SourceUnavailable, match="The proxy's process isn't found on this machine"):
        await gone.read()


async def test_cpu_is_what_was_used_since_the_reading_before() -> None:
    class Real(VirtualClock):
        def monotonic_s(self) -> float:
            return time.monotonic()

    reader = ProcessReader(SignalSource.HUB_PROCESS, "hub", os.getpid, Real())
    await reader.read()
    ends = time.process_time() + 0.15
    while time.process_time() < ends:
        pass
    assert 0.05 < (await reader.read())["hub_cpu_cores"] <= os.cpu_count() + 0.5  # type: ignore[operator]


def test_the_listener_of_a_port_is_found_by_its_url() -> None:
    import socket

    with socket.socket() as listening:
        listening.bind(("127.0.0.1", 0))
        listening.listen()
        port = listening.getsockname()[1]
        assert listener_of(f"http://127.0.0.1:{port}/hub/api", "hub")() == os.getpid()
    assert listener_of(f"http://127.0.0.1:{port}/hub/api", "hub")() is None
    with pytest.raises(NotSetUp, match="The proxy runs on another machine"):
        listener_of("http://proxy-api:8001", "proxy")()


@pytest.mark.parametrize(
    ("host", "here"), [("127.0.0.1", True), ("localhost", True), ("::1", True), ("192.0.2.7", False), ("", False)]
)
def test_whether_a_host_is_this_machine(host: str, here: bool) -> None:
    assert is_here(host) is here


@pytest.mark.parametrize(
    ("options", "limit"),
    [
        (["node", "--max-old-space-size=512", "chp"], 512 * 2**20),
        (["node", "chp", "--max_old_space_size 256"], 256 * 2**20),
        (["node", "--max-old-space-size=512", "--max-old-space-size=1024"], 1024 * 2**20),
        (["node", "chp"], 0),
    ],
)
def test_the_limit_of_a_heap_stands_in_its_options(options: list[str], limit: int) -> None:
    assert heap_limit(options) == limit


def test_the_least_limit_of_all_control_groups_counts(tmp_path: Path) -> None:
    (tmp_path / "proc/7").mkdir(parents=True)
    (tmp_path / "proc/7/cgroup").write_text("0::/kubepods/pod1\n")
    group = tmp_path / "sys/fs/cgroup/kubepods/pod1"
    group.mkdir(parents=True)
    (group / "memory.max").write_text("max\n")
    (group.parent / "memory.max").write_text("1000000\n")
    assert memory_limit(7, tmp_path) == 1_000_000
    assert memory_limit(8, tmp_path) > 1_000_000


async def test_ephemeral_ports_in_use_are_counted_once_each(tmp_path: Path) -> None:
    (tmp_path / "net").mkdir()
    (tmp_path / "sys/net/ipv4").mkdir(parents=True)
    (tmp_path / "sys/net/ipv4/ip_local_port_range").write_text("32768\t32867\n")
    line = "{n}: 0100007F:{port:04X} 0100007F:1F40 01 00000000:00000000 00:00000000 00000000 0 0 1\n"
    ports = [32768, 32768, 32800, 32867, 32868, 8000]
    (tmp_path / "net/tcp").write_text(
        "  sl  local_address\n" + "".join(line.format(n=n, port=p) for n, p in enumerate(ports))
    )
    assert await MachineReader(tmp_path).read() == {"ports_used": 3.0, "ports_used_share": 0.03}


async def test_a_folder_shows_its_disk_and_inodes_and_one_that_isnt_there_is_left_out(tmp_path: Path) -> None:
    values = await FoldersReader([str(tmp_path), str(tmp_path / "gone")]).read()
    assert 0 <= values[f"disk_free_share:{tmp_path}"] <= 1
    assert values[f"disk_free_bytes:{tmp_path}"] > 0
    assert not any("gone" in key for key in values)
    with pytest.raises(SourceUnavailable, match="No such file"):
        await FoldersReader([str(tmp_path / "gone")]).read()
    with pytest.raises(NotSetUp, match="HubGuardWatch.folders"):
        await FoldersReader([]).read()


async def test_a_folder_that_hangs_is_looked_at_by_one_thread_and_holds_nobody_up(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    ends, looks = threading.Event(), []

    def hangs(folder: str) -> machine.Space:
        looks.append(folder)
        if folder == "/hangs":
            ends.wait(20)
        return machine.Space(1.0, 0.5, None)

    monkeypatch.setattr(machine, "space_of", hangs)
    monkeypatch.setattr(machine, "DISK_S", 0.05)
    reader = FoldersReader(["/hangs", "/fine"])
    for _ in range(3):
        assert set(await reader.read()) == {"disk_free_bytes:/fine", "disk_free_share:/fine"}
    assert looks.count("/hangs") == 1
    ends.set()
    while "disk_free_share:/hangs" not in await reader.read():
        await asyncio.sleep(0.01)


async def test_a_proxy_without_a_metrics_port_says_how_to_open_one() -> None:
    with pytest.raises(NotSetUp, match="--metrics-port"):
        await ProxyMetricsReader("", VirtualClock()).read()
    reader = ProxyMetricsReader("http://127.0.0.1:1/metrics", VirtualClock())
    with pytest.raises(SourceUnavailable, match="doesn't answer"):
        await reader.read()
    await reader.close()


async def test_sums_become_rates_and_starts_are_counted() -> None:
    clock, known = VirtualClock(NOW), {"waited": 5.0, "started": 1.0, "shown": 3.0, "unknown": None}
    reader = GuardReader(
        SignalSource.PROXY, lambda: known, clock, rates={"waited": "wait_a_minute"}, changes={"started": "restarts"}
    )
    assert await reader.read() == {"restarts": 0.0, "shown": 3.0}
    await clock.run(clock.sleep(30))
    known |= {"waited": 6.0, "started": 2.0}
    assert await reader.read() == {"wait_a_minute": 2.0, "restarts": 1.0, "shown": 3.0}
    with pytest.raises(NotSetUp, match="No proxy."):
        await GuardReader(SignalSource.PROXY, lambda: "No proxy.", clock).read()


async def test_a_file_system_without_a_free_inode_shows_it_while_it_has_space_left(tmp_path: Path) -> None:
    made = subprocess.run(
        ["mount", "-t", "tmpfs", "-o", "size=1m,nr_inodes=20", "tmpfs", str(tmp_path)],
        check=False,
        capture_output=True,
        text=True,
    )
    if made.returncode:
        pytest.skip(f"no file system of its own can be mounted here: {made.stderr.strip()}")
    try:
        for number in range(40):
            try:
                (tmp_path / str(number)).touch()
            except OSError:
                break
        values = await FoldersReader([str(tmp_path)]).read()
    finally:
        subprocess.run(["umount", str(tmp_path)], check=True)
    assert values[f"inodes_free_share:{tmp_path}"] == 0.0
    assert values[f"disk_free_share:{tmp_path}"] > 0.9
