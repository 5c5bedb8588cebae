"""The processes of the hub and of the proxy on this machine: memory, CPU, open files, and their limits."""

from __future__ import annotations

import asyncio
import ipaddress
import re
import socket
from collections.abc import Callable, Mapping
from pathlib import Path
from urllib.parse import urlsplit

import psutil

from hubguard.pacing.clock import Clock
from hubguard.watch.decide.signals import OFTEN_S
from hubguard.watch.model import SignalSource
from hubguard.watch.observe.port import NotSetUp, SourceUnavailable

SEARCH_EVERY_S = 60.0
"""Seconds between two searches for a process: looking through all connections of a large hub takes a tenth of a second."""

MiB = 1024 * 1024
"""Bytes of a mebibyte."""


class ProcessReader:
    """One process, ``what`` for people ("hub", "proxy"), which ``find`` finds by looking through the machine.

    ``find`` returns None if there is none, and raises NotSetUp where it can't be seen from here.
    """

    every_s = OFTEN_S

    def __init__(self, source: SignalSource, what: str, find: Callable[[], int | None], clock: Clock) -> None:
        self.source = source
        self._what = what
        self._find = find
        self._clock = clock
        self._process: psutil.Process | None = None
        self._searched_s: float | None = None
        self._before: tuple[float, float] | None = None

    async def read(self) -> Mapping[str, float]:
        """Memory, CPU since the reading before, and limits.

        In a thread: /proc may be slow on a machine that is out of memory, which is what this is to see."""
        return await asyncio.get_running_loop().run_in_executor(None, self._read)

    def _read(self) -> dict[str, float]:
        process = self._found()
        try:
            with process.oneshot():
                times, memory = process.cpu_times(), process.memory_info().rss
                used_s, now_s = times.user + times.system, self._clock.monotonic_s()
                values = {f"{self._what}_memory_bytes": float(memory)}
                values[f"{self._what}_memory_limit_bytes"] = float(memory_limit(process.pid))
                if self._before is not None and now_s > self._before[1]:
                    values[f"{self._what}_cpu_cores"] = max(0.0, used_s - self._before[0]) / (now_s - self._before[1])
                self._before = used_s, now_s
                if self.source is SignalSource.PROXY_PROCESS:
                    values |= self._more(process)
        except psutil.Error as error:
            self._process = self._before = None
            raise SourceUnavailable(f"The {self._what}'s process can't be read: {type(error).__name__}.") from None
        return values

    @staticmethod
    def _more(process: psutil.Process) -> dict[str, float]:
        """What only matters for a proxy: its files, and the limit of its heap if its command or environment sets it."""
        values: dict[str, float] = {}
        try:
            limit = process.rlimit(psutil.RLIMIT_NOFILE)[0]
            if limit > 0:
                values["proxy_files_share"] = process.num_fds() / limit
            heap = heap_limit([*process.cmdline(), process.environ().get("NODE_OPTIONS", "")])
            if heap:
                values["proxy_heap_limit_bytes"] = float(heap)
        except (psutil.Error, OSError, AttributeError):
            pass  # another account's process, or a system without these: memory and CPU are enough
        return values

    def _found(self) -> psutil.Process:
        if self._process is not None and self._process.is_running():
            return self._process
        now_s = self._clock.monotonic_s()
        if self._searched_s is not None and now_s - self._searched_s < SEARCH_EVERY_S:
            raise SourceUnavailable(f"The {self._what}'s process isn't found on this machine.")
        self._searched_s, self._before = now_s, None
        pid = self._find()
        try:
            self._process = psutil.Process(pid) if pid else None
        except psutil.Error:
            self._process = None
        if self._process is None:
            raise SourceUnavailable(f"The {self._what}'s process isn't found on this machine.")
        self._searched_s = None
        return self._process

    async def close(self) -> None:
        """Nothing is open."""


def heap_limit(options: list[str]) -> int:
    """The bytes that ``--max-old-space-size`` among ``options`` allows (Node counts MiB), 0 if it isn't set."""
    found = re.findall(r"--max[-_]old[-_]space[-_]size[= ](\d{1,9})", " ".join(options))
    return int(found[-1]) * MiB if found else 0


def memory_limit(pid: int, root: Path = Path("/")) -> int:
    """The bytes that the control groups of that process allow it, or the machine has, whichever is less."""
    limits: list[int] = [psutil.virtual_memory().total]
    try:
        lines = (root / f"proc/{pid}/cgroup").read_text().splitlines()
    except OSError:
        lines = []
    for line in lines:
        _, controllers, path = [*line.split(":", 2), "", ""][:3]
        names = ("memory.max",) if not controllers else ("memory.limit_in_bytes",) if "memory" in controllers else ()
        top = root / "sys/fs/cgroup" / ("memory" if controllers else "")
        for name in names:
            folder = top / path.lstrip("/")
            while True:
                limits += _number_in(folder / name)
                if folder == top or top not in folder.parents:
                    break
                folder = folder.parent
    return min(limits)


def _number_in(file: Path) -> list[int]:
    try:
        text = file.read_text().strip()
    except OSError:
        return []
    return [int(text)] if text.isdigit() and int(text) > 0 else []


def listener_of(url: str, what: str) -> Callable[[], int | None]:
    """Finds the process that listens where ``url`` leads, if that is this machine; else it raises NotSetUp."""
    parts = urlsplit(url)
    host, port = parts.hostname or "", parts.port or 80

    def find() -> int | None:
        if not is_here(host):
            raise NotSetUp(
                f"The {what} runs on another machine ({host or 'unknown'}), so its process can't be seen from here."
            )
        try:
            found = psutil.net_connections("tcp")
        except (psutil.Error, OSError):
            raise NotSetUp(f"This account may not see which process is the {what}'s.") from None
        listening = [one for one in found if one.status == psutil.CONN_LISTEN and one.laddr and one.laddr.port == port]
        pids = [one.pid for one in listening if one.pid]
        if listening and not pids:
            raise NotSetUp(f"The {what} runs under another account, so its process can't be seen from here.")
        return pids[0] if pids else None

    return find


def is_here(host: str) -> bool:
    """Whether that host is this machine: a loopback address, or one of its own. It asks no name server for other names."""
    if host in {"localhost", "", socket.gethostname()}:
        return bool(host)
    try:
        address = ipaddress.ip_address(host)
    except ValueError:
        return False
    if address.is_loopback:
        return True
    own = {one.address.partition("%")[0] for some in psutil.net_if_addrs().values() for one in some}
    return str(address) in own
