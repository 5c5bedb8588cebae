"""This machine: its ephemeral ports, and the disks and inodes of named folders."""

from __future__ import annotations

import asyncio
import os
import re
import threading
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from typing_extensions import override

from hubguard.watch.decide.signals import OFTEN_S, SELDOM_S
from hubguard.watch.model import SignalSource, signal_key
from hubguard.watch.observe.port import NotSetUp, Reader, SourceUnavailable

DISK_S = 5.0
"""Seconds after which a folder that doesn't answer is left out: a network file system may hang for good."""

LONGEST_FOLDER = 200
"""Maximum characters of a folder's path as a subject."""

_LOCAL_PORT = re.compile(rb"^\s*\d+: [0-9A-F]+:([0-9A-F]{4}) ", re.M)


class MachineReader(Reader):
    """Ephemeral ports in use, by the tables of connections below ``proc``: every local port in the range counts once."""

    source = SignalSource.MACHINE
    every_s = OFTEN_S

    def __init__(self, proc: Path = Path("/proc")) -> None:
        self._proc = proc

    @override
    async def read(self) -> Mapping[str, float]:
        """In a thread: with 28,000 connections it takes some 20 ms."""
        return await asyncio.get_running_loop().run_in_executor(None, self._read)

    def _read(self) -> dict[str, float]:
        try:
            low, high = map(int, (self._proc / "sys/net/ipv4/ip_local_port_range").read_text().split())
        except (OSError, ValueError):
            raise NotSetUp("This system doesn't show its range of ephemeral ports.") from None
        ports: set[int] = set()
        for name in ("tcp", "tcp6"):
            try:
                table = (self._proc / "net" / name).read_bytes()
            except OSError:
                continue
            ports.update(int(port, 16) for port in set(_LOCAL_PORT.findall(table)))
        used = sum(low <= port <= high for port in ports)
        return {"ports_used": float(used), "ports_used_share": used / max(1, high - low + 1)}

    @override
    async def close(self) -> None:
        """Nothing is open."""


@dataclass(frozen=True, slots=True)
class Space:
    """What is free in the file system of a folder; shares are None for one that doesn't count inodes (btrfs)."""

    free_bytes: float
    free_share: float
    inodes_share: float | None


def space_of(folder: str) -> Space:
    """What is free there for everybody but root. Raises OSError."""
    seen = os.statvfs(folder)
    return Space(
        float(seen.f_bavail * seen.f_frsize),
        # As df has it: of what can be used, not of what root keeps for itself.
        seen.f_bavail / max(1, seen.f_blocks - seen.f_bfree + seen.f_bavail),
        seen.f_favail / seen.f_files if seen.f_files else None,
    )


class FoldersReader(Reader):
    """Disk and inodes of ``folders``. Each is looked at in a thread of its own, and never by two at a time."""

    source = SignalSource.FOLDERS
    every_s = SELDOM_S

    def __init__(self, folders: Sequence[str]) -> None:
        self._folders = list(dict.fromkeys(folders))
        self._looking: dict[str, asyncio.Future[Space]] = {}

    @override
    async def read(self) -> Mapping[str, float]:
        """Raises SourceUnavailable, naming those that can't be read, only if none can."""
        if not self._folders:
            raise NotSetUp("No folder is watched. Set c.HubGuardWatch.folders, for example to ['/', '/home'].")
        looks = {folder: self._looking.get(folder) or self._look(folder) for folder in self._folders}
        await asyncio.wait(looks.values(), timeout=DISK_S)
        values: dict[str, float] = {}
        wrong: list[str] = []
        for folder, look in looks.items():
            if not look.done():
                self._looking[folder] = look
                wrong.append(f"{folder} doesn't answer")
                continue
            self._looking.pop(folder, None)
            if (error := look.exception()) is not None:
                wrong.append(f"{folder}: {getattr(error, 'strerror', None) or error}")
                continue
            space, subject = look.result(), folder[:LONGEST_FOLDER]
            values[signal_key("disk_free_bytes", subject)] = space.free_bytes
            values[signal_key("disk_free_share", subject)] = space.free_share
            if space.inodes_share is not None:
                values[signal_key("inodes_free_share", subject)] = space.inodes_share
        if not values:
            raise SourceUnavailable(f"No folder can be read ({'; '.join(wrong)}).")
        return values

    def _look(self, folder: str) -> asyncio.Future[Space]:
        """Not in a pool, whose threads a process waits for at its end: one that hangs in a file system can't be ended."""
        loop = asyncio.get_running_loop()
        future: asyncio.Future[Space] = loop.create_future()

        def finish(result: Space | OSError) -> None:
            if future.done():
                return
            if isinstance(result, Space):
                future.set_result(result)
            else:
                future.set_exception(result)

        def look() -> None:
            result: Space | OSError
            try:
                result = space_of(folder)
            except OSError as error:
                result = error
            try:
                loop.call_soon_threadsafe(finish, result)
            except RuntimeError:
                pass  # the loop has ended meanwhile

        threading.Thread(target=look, name=f"space of {folder}", daemon=True).start()
        return future

    @override
    async def close(self) -> None:
        """A thread that hangs is left behind."""
