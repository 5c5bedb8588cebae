"""The testbed's spawner: little servers that can be slow, fail to stop, share one process, and be killed from outside.

It runs inside the hub's process, so it imports nothing of HubGuard's. Switch it on with
``c.JupyterHub.spawner_class = "hubguard.staging.spawner.LittleSpawner"``.
"""

from __future__ import annotations

import asyncio
import contextlib
import hashlib
import json
import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, ClassVar, NamedTuple

import jupyterhub
from jupyterhub.spawner import Spawner
from traitlets import Bool, Enum, Float, Unicode, default

LITTLE_SERVER = Path(__file__).with_name("little_server.py")
MARKER = "HUBGUARD_TESTBED"  # in the environment of everything that a testbed starts
ON_STOP = ("works", "raises", "hangs", "poll-raises")
END_S = 5.0  # from SIGTERM to SIGKILL


def born(pid: int) -> str | None:
    """When process ``pid`` started, in the system's own words; None if it doesn't run (any more).

    Two processes that share a pid one after the other differ in it. A zombie counts as gone.
    """
    if sys.platform == "linux":
        try:
            fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
        except OSError:
            return None
        return None if fields[0] in "ZX" else fields[19]
    command = ["/bin/ps", "-o", "state=,lstart=", "-p", str(pid)]
    shown = subprocess.run(command, capture_output=True, text=True, check=False)  # noqa: S603  # no words of others in it
    state, _, started = shown.stdout.strip().partition(" ")
    return started.strip() if started and not state.startswith("Z") else None


class Little(NamedTuple):
    """One little server process: which one, and where it listens on 127.0.0.1."""

    pid: int
    born: str
    port: int

    @property
    def alive(self) -> bool:
        """Whether that very process still runs."""
        return born(self.pid) == self.born

    def send(self, sig: signal.Signals) -> None:
        """Send it a signal, unless it is gone or its pid is somebody else's by now."""
        if self.alive:
            with contextlib.suppress(ProcessLookupError):
                os.kill(self.pid, sig)


def killed_marker(folder: str | Path, user: str, name: str) -> Path:
    """The file that, once it exists, makes a server at the shared endpoint count as killed."""
    return Path(folder) / "killed" / hashlib.sha256(json.dumps([user, name]).encode()).hexdigest()


def launch(
    name: str, folder: str, *, listener: socket.socket | None = None, environment: Mapping[str, str] | None = None
) -> tuple[Little, subprocess.Popen[bytes]]:
    """Start a little server and wait till it serves, some 50 ms. Raises RuntimeError where it doesn't come up.

    It serves at ``listener``, which is closed here, or else at a port of its own. ``environment`` is added to its own.
    """
    with listener or socket.create_server(("127.0.0.1", 0), backlog=1024) as handed:
        own = {"LITTLE_NAME": name, "LITTLE_VERSION": jupyterhub.__version__, "LITTLE_LISTENER": str(handed.fileno())}
        if MARKER in os.environ:
            own[MARKER] = os.environ[MARKER]
        process = subprocess.Popen(  # noqa: S603  # no words of others in it
            [sys.executable, "-S", "-E", str(LITTLE_SERVER)],
            env={**(environment or {}), **own},
            cwd=folder,
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.DEVNULL,
            start_new_session=True,
            pass_fds=[handed.fileno()],
        )
    assert process.stdout is not None
    with process.stdout:
        line = process.stdout.readline()
    began = born(process.pid)
    if not line.strip().isdigit() or began is None:
        process.kill()
        process.wait()
        raise RuntimeError(f"The little server of {name or 'the shared endpoint'} ended before it listened")
    return Little(process.pid, began, int(line)), process


def _end_unwanted(launched: asyncio.Future[tuple[Little, subprocess.Popen[bytes]]]) -> None:
    if not launched.cancelled() and launched.exception() is None:
        launched.result()[1].kill()


class LittleSpawner(Spawner):
    """Starts little servers. The traits are the defaults; a server's user options of the same names overrule them.

    A server's state holds the pid, the start and the port of its process, so that it is found again after a restart of
    the hub, and a pid that the system has given to something else is neither taken for it nor killed. A state of
    ``{"seeded": true}`` means: running already, as far as the database knows; its process is started at the first poll.
    """

    folder = Unicode(help="Where the markers of killed servers lie. Default: little-servers, where the hub runs.").tag(
        config=True
    )
    shared = Bool(
        False, help="True: one process answers for all such servers, so that thousands fit one small machine."
    ).tag(config=True)
    start_s = Float(0.0, help="Seconds that a start takes.").tag(config=True)
    stop_s = Float(0.0, help="Seconds that a stop takes.").tag(config=True)
    on_stop = Enum(
        ON_STOP,
        default_value="works",
        help="""What a stop comes to. "raises": stop() raises and the process lives on, while the hub forgets the
        server. "hangs": stop() doesn't return until the process is killed from outside. "poll-raises": poll() raises,
        except while the hub starts, so that the hub answers 500 to a stop and the server stays ready.""",
    ).tag(config=True)

    # All of one hub: the process behind the servers that share one, which servers those are, and what to reap.
    _endpoint: ClassVar[Little | None] = None
    _sharers: ClassVar[set[tuple[str, str]]] = set()
    _children: ClassVar[list[subprocess.Popen[bytes]]] = []
    _endpoint_lock: ClassVar[asyncio.Lock] = asyncio.Lock()
    _launches: ClassVar[asyncio.Semaphore] = asyncio.Semaphore(4)

    _little: Little | None = None
    _is_shared = False
    _seeded = False

    @default("folder")
    def _default_folder(self) -> str:
        return os.path.join(os.getcwd(), "little-servers")

    @default("apply_user_options")
    def _default_apply_user_options(self) -> Callable[..., None]:
        # They are read where they are needed, since what was started by the seed never went through a start.
        return lambda spawner, options: None

    @property
    def _key(self) -> tuple[str, str]:
        return (self.user.name, self.name)

    def _option(self, name: str) -> Any:
        """The user option of that name where it has the right type, else the trait."""
        value, standard = (self.user_options or {}).get(name), getattr(self, name)
        kinds = (int, float) if isinstance(standard, float) else type(standard)
        return value if isinstance(value, kinds) else standard

    def load_state(self, state: dict[str, Any]) -> None:
        """Take up what an earlier run of the hub, or the seed, has left."""
        super().load_state(state)  # type: ignore[no-untyped-call]
        self._is_shared = bool(state.get("shared"))
        self._seeded = bool(state.get("seeded"))
        if "pid" in state:
            self._little = Little(state["pid"], state["born"], state["port"])
            if self._is_shared:
                self._sharers.add(self._key)
                if LittleSpawner._endpoint is None and self._little.alive:
                    LittleSpawner._endpoint = self._little

    def get_state(self) -> dict[str, Any]:
        """What finds this server again: pid, born, port, shared. Empty where it doesn't run."""
        state: dict[str, Any] = super().get_state()  # type: ignore[no-untyped-call]
        if self._little is not None:
            state.update(self._little._asdict(), shared=self._is_shared)
        elif self._seeded:
            state.update(seeded=True, shared=self._is_shared)
        return state

    def clear_state(self) -> None:
        """Forget the server; that doesn't end its process."""
        super().clear_state()  # type: ignore[no-untyped-call]
        self._sharers.discard(self._key)
        self._little, self._seeded = None, False

    async def start(self) -> tuple[str, int]:
        """Start it, after ``start_s``; (ip, port)."""
        self._is_shared = bool(self._option("shared"))
        await asyncio.sleep(self._option("start_s"))
        little = await self._bring_up()
        return ("127.0.0.1", little.port)

    async def _bring_up(self) -> Little:
        marker = killed_marker(self.folder, *self._key)
        marker.parent.mkdir(parents=True, exist_ok=True)
        marker.unlink(missing_ok=True)
        if self._is_shared:
            # Before anything is awaited: the last one to leave ends the endpoint.
            self._sharers.add(self._key)
            async with self._endpoint_lock:
                if LittleSpawner._endpoint is None or not LittleSpawner._endpoint.alive:
                    LittleSpawner._endpoint = await self._launch("", None, {})
            self._little = LittleSpawner._endpoint
        else:
            # As other spawners do: what tells a server who it is and where it listens is how it is known again from outside.
            listener = socket.create_server(("127.0.0.1", 0), backlog=1024)
            self.port = listener.getsockname()[1]
            environment = {key: text for key, text in self.get_env().items() if key.startswith("JUPYTERHUB_")}  # type: ignore[no-untyped-call]
            self._little = await self._launch(self.user.name, listener, environment)
        self._seeded = False
        return self._little

    async def _launch(self, name: str, listener: socket.socket | None, environment: Mapping[str, str]) -> Little:
        async with self._launches:
            starting = asyncio.to_thread(launch, name, self.folder, listener=listener, environment=environment)
            launching = asyncio.ensure_future(starting)
            try:
                little, process = await asyncio.shield(launching)
            except asyncio.CancelledError:
                # The hub interrupted the start; the process comes up all the same, and would be nobody's.
                launching.add_done_callback(_end_unwanted)
                raise
        self._children[:] = [child for child in self._children if child.poll() is None]
        self._children.append(process)
        return little

    async def poll(self) -> int | None:
        """None while it runs, else 0. Raises RuntimeError where ``on_stop`` says so."""
        if self._seeded:
            await self._bring_up()
            # The hub commits this along with the real URL, for which it asks next.
            self.orm_spawner.state = self.get_state()
        if self._little is None:
            return 0
        # While the hub starts, a poll that raises would be taken for "not running".
        if self._option("on_stop") == "poll-raises" and not self._check_pending:
            raise RuntimeError(f"poll of {self._log_name} raises: it was asked to")
        return None if self._runs() else 0

    def _runs(self) -> bool:
        if self._little is None or not self._little.alive:
            return False
        return not (self._is_shared and killed_marker(self.folder, *self._key).exists())

    async def get_url(self) -> str:
        """Where it really listens, whatever the database says: the seed couldn't know the port."""
        assert self._little is not None
        return f"http://127.0.0.1:{self._little.port}{self.server.base_url}"

    async def stop(self, now: bool = False) -> None:
        """Stop it the way ``on_stop`` says, after ``stop_s`` unless ``now``."""
        if not now:
            await asyncio.sleep(self._option("stop_s"))
        if self._option("on_stop") == "raises":
            raise RuntimeError(f"stop of {self._log_name} raises: it was asked to")
        while self._option("on_stop") == "hangs" and self._runs():  # noqa: ASYNC110  # nobody tells when a process ends
            await asyncio.sleep(0.1)
        if self._little is None:
            return
        if not self._is_shared:
            await self._end(self._little)
            return
        self._sharers.discard(self._key)
        self._little = None  # the endpoint may go on for others; this server doesn't
        endpoint = LittleSpawner._endpoint
        if endpoint is not None and not self._sharers:
            LittleSpawner._endpoint = None
            await self._end(endpoint)

    async def _end(self, little: Little) -> None:
        deadline = time.monotonic() + END_S
        little.send(signal.SIGTERM)
        while little.alive:
            if time.monotonic() > deadline:
                little.send(signal.SIGKILL)
            await asyncio.sleep(0.02)
        self._children[:] = [child for child in self._children if child.poll() is None]
