"""Servers that are processes of this machine, as LocalProcessSpawner and what is derived from it start them.

A hub names each server in its environment, and that identifies its processes: the hub's API, the user and the server. Kernels
and terminals inherit all of it, and may outlive their server; only the server itself, which listens at the port that it was
given, is reported.
"""

from __future__ import annotations

import asyncio
import contextlib
import os
import sys
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime, timedelta, timezone
from pathlib import Path
from urllib.parse import urlsplit

import psutil
from typing_extensions import override

from hubguard.backends.claim import Claim, claim_from
from hubguard.backends.model import Backend
from hubguard.backends.port import Backends, Expected, Place
from hubguard.errors import BackendError
from hubguard.model import Key

GRACE_S = 5.0
"""Seconds from SIGTERM to SIGKILL."""

SETTLED_S = 60.0
"""Seconds of age up to which a process's environment is read at each look: it may still become another program (exec)."""

SOONEST = timedelta(seconds=-5)
LATEST = timedelta(minutes=10)
"""When a process may have started, counted from the server's start at the hub, for its number alone to identify it."""

FIRST_PERSON = 1000
"""Smallest id of a person's account. Processes of smaller ones that can't be read are no servers, nor are nobody's."""
NOBODY = 65534


def open_backends(place: Place) -> Backends:
    """The processes of this machine that are servers of that hub."""
    return ProcessBackends(place)


@dataclass(slots=True)
class _Known:
    """One process, by its number and start. ``readable``: its environment could be read."""

    process: psutil.Process
    began: float
    readable: bool = False
    claim: Claim | None = None
    settled: bool = False
    serves: bool = False

    @property
    def id(self) -> str:
        return f"{self.process.pid}:{self.began:.2f}"


class ProcessBackends(Backends):
    """Implements Backends over psutil. A look is one pass over the processes, in a thread.

    It is whole when every process that could be a server could be read, and servers of this hub were seen here at all:
    from another machine or container than the hub's, everything would look gone.
    """

    kind = "process"

    def __init__(self, place: Place) -> None:
        self._api_url = place.api_url.rstrip("/")
        self._known: dict[int, _Known] = {}
        self._here = False
        self._whole = False
        self._one_pass = asyncio.Lock()

    @property
    @override
    def whole(self) -> bool:
        """As of the last look, and False before the first."""
        return self._whole

    @override
    async def look(self, expected: Sequence[Expected]) -> tuple[Backend, ...]:
        async with self._one_pass:
            return await asyncio.to_thread(self._look, tuple(expected))

    @override
    async def end(self, backend: Backend) -> None:
        """Returns when it and those of its children that carry the same proof are gone, 6 s later at most."""
        family = await asyncio.to_thread(self._family, backend)
        try:
            await asyncio.to_thread(self._signal, family[:1], backend.key, psutil.Process.terminate)
            if not await self._gone_within(family, GRACE_S):
                await asyncio.to_thread(self._signal, family, backend.key, psutil.Process.kill)
                await self._gone_within(family, 1.0)
        except psutil.AccessDenied as error:
            raise BackendError(
                f"{backend.name} can't be ended: the system doesn't allow it to the account that HubGuard runs as. "
                "End it by hand, or run HubGuard as the hub is run."
            ) from error

    @override
    async def close(self) -> None:
        pass

    # looking

    def _look(self, expected: tuple[Expected, ...]) -> tuple[Backend, ...]:
        pids = psutil.pids()
        self._read(pids)
        listeners = _Listeners()
        named = {pid: ready for ready in expected if (pid := _pid(ready)) is not None}
        servers, ours = self._servers(named, listeners)
        backends = [self._backend(known) for known in servers]
        # One of an earlier run may live while the one that the hub names is gone.
        reported = {backend.key for backend in backends}
        # Services aren't asked: HubGuard is one itself, and may be with the hub where the servers are elsewhere.
        self._here = self._here or any(
            known.claim is not None and known.claim.api_url == self._api_url for known in self._known.values()
        )
        # With /proc mounted hidepid, only one's own processes are listed.
        hidden = sys.platform == "linux" and 1 not in pids
        unread = hidden or any(map(_could_be_a_server, self._known.values()))
        missing = [
            self._missing(ready, listeners, hidden=hidden, unread=unread)
            for ready in expected
            if ready.key not in reported or ((pid := _pid(ready)) is not None and pid not in ours)
        ]
        self._whole = self._here and not unread
        if not self._whole:
            # One for each: the one that the hub names, if there are several.
            backends.sort(key=lambda backend: int(backend.id.partition(":")[0]) in named)
            wanted = {ready.key for ready in expected} - {backend.key for backend in missing}
            backends = list({backend.key: backend for backend in backends if backend.key in wanted}.values())
        return tuple(sorted([*backends, *missing], key=lambda backend: (*backend.key, backend.id)))

    def _read(self, pids: Iterable[int]) -> None:
        """Have all processes in ``_known``, and of those that are new, or young, the environment."""
        now: dict[int, _Known] = {}
        for pid in pids:
            with contextlib.suppress(psutil.NoSuchProcess):  # it ended meanwhile
                process = psutil.Process(pid)
                known = self._known.get(pid)
                if known is None or known.process != process:
                    known = _Known(process, process.create_time())
                if not known.settled:
                    self._read_environment(known)
                now[pid] = known
        self._known = now

    def _read_environment(self, known: _Known) -> None:
        known.settled = abs(time.time() - known.began) > SETTLED_S
        try:
            environment = known.process.environ()
        except psutil.NoSuchProcess:
            # A zombie has none any more, and a thread of the kernel never had one (Linux says ESRCH). A look's own judgement
            # of those that ended meanwhile comes later.
            known.readable = True
            return
        except (psutil.AccessDenied, OSError):
            known.readable = False
            return
        known.readable = True
        known.claim = _claim(environment)

    def _servers(self, named: Mapping[int, Expected], listeners: _Listeners) -> tuple[list[_Known], set[int]]:
        """Of the processes that carry this hub's proof, those that are servers: named as such by the hub, or listening.

        And the numbers of all that carry it.
        """
        ours: dict[int, tuple[_Known, Claim, int]] = {}
        for pid, known in self._known.items():
            if known.claim is not None and known.claim.api_url == self._api_url:
                with contextlib.suppress(psutil.NoSuchProcess), known.process.oneshot():
                    if known.process.status() != psutil.STATUS_ZOMBIE:
                        ours[pid] = (known, known.claim, known.process.ppid())

        def top(pid: int) -> int:
            _, claim, parent = ours[pid]
            while parent in ours and ours[parent][1].key == claim.key:
                pid, parent = parent, ours[parent][2]
            return pid

        for pid, (known, claim, _) in ours.items():
            ready = named.get(pid)
            if ready is not None and claim.key == ready.key:
                known.serves = True
            elif not known.serves and claim.port is not None and listeners.at(claim.port, pid):
                # A shell may have started it (LocalProcessSpawner.shell_cmd): it is the shell that is the server, then.
                ours[top(pid)][0].serves = True
        tops = {top(pid) for pid, (known, _, _) in ours.items() if known.serves}
        return [known for pid, (known, _, _) in ours.items() if pid in tops], set(ours)

    def _backend(self, known: _Known) -> Backend:
        assert known.claim is not None
        return Backend(
            kind=self.kind,
            id=known.id,
            user=known.claim.user,
            server=known.claim.server,
            alive=True,
            name=f"pid {known.process.pid}",
            started=_time(known.began),
            proof=known.claim.proof(self._api_url),
            command=f"kill -9 {known.process.pid}",
            detail="it runs",
        )

    def _missing(self, ready: Expected, listeners: _Listeners, *, hidden: bool, unread: bool) -> Backend:
        """What is known of an expected server that no process with this hub's proof is."""
        pid = _pid(ready)
        known = self._known.get(pid) if pid is not None else None
        alive: bool | None = None
        if known is not None:
            alive, detail = self._judge(ready, known, listeners)
        elif not self._here:
            detail = "no server of this hub was ever seen from here: HubGuard may run on another machine than the hub"
        elif hidden or (pid is None and unread):
            detail = "the account that HubGuard runs as can't read all processes"
        else:
            alive, detail = False, "no process carries its name" if pid is None else f"pid {pid} is gone"
        return Backend(
            kind=self.kind,
            id=known.id if known is not None else f"{pid or 'none'} of {ready.user}/{ready.server}",
            user=ready.user,
            server=ready.server,
            alive=alive,
            name="no process" if pid is None else f"pid {pid}",
            started=_time(known.began) if known is not None and alive else None,
            detail=detail,
        )

    def _judge(self, ready: Expected, known: _Known, listeners: _Listeners) -> tuple[bool | None, str]:
        """Whether that process, which the hub says is the server, and which carries no proof of it, is it; and why."""
        other = f"pid {known.process.pid} is another process by now"
        try:
            if known.process.status() == psutil.STATUS_ZOMBIE:
                return False, f"pid {known.process.pid} has ended"
        except psutil.NoSuchProcess:
            return False, f"pid {known.process.pid} is gone"
        if known.claim is not None and known.claim.key != ready.key:
            return False, other
        port = urlsplit(ready.target).port if ready.target else None
        if known.readable and port is not None and listeners.at(port, known.process.pid):
            return True, "it listens where the server should, and carries no proof of being this hub's"
        if ready.started is None:
            return None, f"pid {known.process.pid} runs, and when the server started is unknown"
        if SOONEST <= _time(known.began) - ready.started <= LATEST:
            return True, "it started when the server did, and carries no proof of being this hub's"
        return False, other

    # ending

    def _family(self, backend: Backend) -> list[_Known]:
        """That backend's process, and those that came of it and carry the same proof. Empty if it is gone.

        Raises BackendError if it isn't proved to be this hub's.
        """
        try:
            pid = int(backend.id.partition(":")[0])
            process = psutil.Process(pid)
            known = self._known.get(pid)
            if known is None or known.process != process:
                known = _Known(process, process.create_time())
        except (ValueError, psutil.NoSuchProcess):
            return []
        if known.id != backend.id or not _runs(known):
            return []
        if not self._is_proved(known, backend.key):
            raise BackendError(
                f"{backend.name} isn't proved to be a server of this hub, so it wasn't ended: its environment doesn't name "
                f"{self._api_url} and that server, or can't be read. Look at it by hand."
            )
        family = [known]
        with contextlib.suppress(psutil.NoSuchProcess):
            for child in process.children(recursive=True):
                with contextlib.suppress(psutil.NoSuchProcess):
                    descendant = _Known(child, child.create_time())
                    if self._is_proved(descendant, backend.key):
                        family.append(descendant)
        return family

    def _is_proved(self, known: _Known, key: Key) -> bool:
        if known.process.pid == os.getpid():
            return False
        with contextlib.suppress(psutil.Error, OSError):
            claim = _claim(known.process.environ())
            return claim is not None and claim.api_url == self._api_url and claim.key == key
        return False

    def _signal(self, family: Sequence[_Known], key: Key, send: Callable[[psutil.Process], None]) -> None:
        for known in family:
            # The proof is read again right before, and psutil compares the start: by now its number may be another process's.
            with contextlib.suppress(psutil.NoSuchProcess):
                if known.process.is_running() and self._is_proved(known, key):
                    send(known.process)

    async def _gone_within(self, family: Sequence[_Known], seconds: float) -> bool:
        deadline = time.monotonic() + seconds
        while any(map(_runs, family)):
            if time.monotonic() > deadline:
                return False
            await asyncio.sleep(0.1)
        return True


class _Listeners:
    """Who listens on which TCP port. What was read once holds for as long as this is used."""

    def __init__(self) -> None:
        self._sockets: dict[int, set[str]] | None = None
        self._asked: dict[tuple[int, int], bool] = {}

    def at(self, port: int, pid: int) -> bool:
        """Whether that process listens on that port; False, too, if that can't be read."""
        if (port, pid) not in self._asked:
            self._asked[port, pid] = self._holds(port, pid)
        return self._asked[port, pid]

    def _holds(self, port: int, pid: int) -> bool:
        try:
            if sys.platform != "linux":
                return any(
                    connection.status == psutil.CONN_LISTEN and connection.laddr.port == port
                    for connection in psutil.Process(pid).connections("tcp")
                )
            # psutil would read the table of all connections for each process, and with many users that is long.
            if self._sockets is None:
                self._sockets = _listening_sockets()
            wanted = self._sockets.get(port, set())
            files = f"/proc/{pid}/fd"
            return bool(wanted) and any(os.readlink(f"{files}/{number}") in wanted for number in os.listdir(files))
        except (psutil.Error, OSError):
            return False


def _listening_sockets() -> dict[int, set[str]]:
    """By port, the listening sockets as /proc/<pid>/fd names them."""
    sockets: dict[int, set[str]] = {}
    for table in ("/proc/net/tcp", "/proc/net/tcp6"):
        with contextlib.suppress(OSError):
            for line in Path(table).read_text().splitlines()[1:]:
                fields = line.split()
                if fields[3] == "0A":
                    sockets.setdefault(int(fields[1].rpartition(":")[2], 16), set()).add(f"socket:[{fields[9]}]")
    return sockets


def _claim(environ: Mapping[str, str]) -> Claim | None:
    """What a hub passed to a server in its environment; None if it isn't a server's."""
    claim = claim_from(environ)
    return None if claim is None or claim.service or not claim.api_url else claim


def _pid(ready: Expected) -> int | None:
    """The number of the process that the hub believes to be that server, as LocalProcessSpawner keeps it."""
    pid = (ready.state or {}).get("pid")
    return pid if isinstance(pid, int) and pid > 0 else None


def _time(epoch_s: float) -> datetime:
    return datetime.fromtimestamp(epoch_s, timezone.utc)


def _runs(known: _Known) -> bool:
    with contextlib.suppress(psutil.NoSuchProcess):
        return bool(known.process.is_running() and known.process.status() != psutil.STATUS_ZOMBIE)
    return False


def _could_be_a_server(known: _Known) -> bool:
    """Whether it can't be read, and belongs to a person's account."""
    if known.readable:
        return False
    with contextlib.suppress(psutil.NoSuchProcess):
        uid: int = known.process.uids().real
        return uid >= FIRST_PERSON and uid != NOBODY
    return False
