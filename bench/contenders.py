"""Who is compared: jupyterhub-idle-culler as PyPI has it, and HubGuard. Each runs as a process of its own."""

from __future__ import annotations

import asyncio
import os
import re
import subprocess
import sys
import time
from collections.abc import AsyncIterator, Mapping, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from pathlib import Path

import aiohttp

from bench.gate import Gate
from hubguard.inhub.scopes import SCOPES, SERVICE
from hubguard.staging.hub import TestbedHub
from hubguard.staging.processes import free_ports

PEERS = Path(sys.prefix) / "hubguard-peers"

CULLER_SCOPES = ("list:users", "read:users:activity", "read:servers", "delete:servers")
"""What the culler's own documentation gives it."""

END_S = 20.0

# Runs the culler's own main() and ends it when its first cycle has.
ONE_CYCLE = """
import jupyterhub_idle_culler as culler
from tornado.ioloop import IOLoop
cull_idle = culler.cull_idle
async def once(*args, **kwargs):
    try:
        await cull_idle(*args, **kwargs)
    finally:
        IOLoop.current().stop()
culler.cull_idle = once
culler.main()
"""


class BenchError(Exception):
    """A benchmark that can't go on; the text is for the person who started it."""


@dataclass
class Contender:
    """One program that runs: its process, and what it has written to stderr so far."""

    process: asyncio.subprocess.Process
    lines: list[str] = field(default_factory=list)

    @property
    def text(self) -> str:
        return "\n".join(self.lines[-30:])


def peer(version: str) -> Path:
    """The folder with that culler in it, fetched from PyPI once."""
    there = PEERS / version
    if not (there / "jupyterhub_idle_culler").is_dir():
        fetched = PEERS / f"{version}.{os.getpid()}"
        wanted = [
            f"jupyterhub-idle-culler=={version}",
            "--no-deps",
            "--no-compile",
            "--quiet",
            "--target",
            str(fetched),
        ]
        done = subprocess.run(
            [sys.executable, "-m", "pip", "install", *wanted], capture_output=True, text=True, timeout=120, check=False
        )
        if done.returncode != 0:
            raise BenchError(f"jupyterhub-idle-culler {version} can't be had: {done.stderr.strip()[-300:]}")
        try:
            fetched.rename(there)
        except OSError:
            if not (there / "jupyterhub_idle_culler").is_dir():
                raise
    return there


def services(tokens: Mapping[str, str]) -> str:
    """Config lines for the hub: each service with its token and no more scopes than it needs."""
    scopes = {"culler": list(CULLER_SCOPES), SERVICE: list(SCOPES), "bystander": []}
    lines = []
    for name, token in tokens.items():
        lines.append(f"c.JupyterHub.services.append({ {'name': name, 'api_token': token}!r})")
        if scopes[name]:
            role = {"name": name, "services": [name], "scopes": scopes[name]}
            lines.append(f"c.JupyterHub.load_roles.append({role!r})")
    return "\n".join(lines) + "\n"


@asynccontextmanager
async def running(
    command: Sequence[str], hub: TestbedHub, gate: Gate | TestbedHub, token: str, **environ: str
) -> AsyncIterator[Contender]:
    """``command`` runs in the hub's folder and asks the gate, or the hub itself, for its API; ended with the block."""
    kept = {name: os.environ[name] for name in ("PATH", "HOME", "LANG", "PYTHONPATH") if name in os.environ}
    process = await asyncio.create_subprocess_exec(
        *command,
        env={**kept, "JUPYTERHUB_API_URL": gate.api_url, "JUPYTERHUB_API_TOKEN": token, **environ},
        cwd=hub.folder,
        stdin=asyncio.subprocess.DEVNULL,
        stdout=asyncio.subprocess.DEVNULL,
        stderr=asyncio.subprocess.PIPE,
    )
    contender = Contender(process)
    reading = asyncio.create_task(_read(contender))
    try:
        yield contender
    finally:
        if process.returncode is None:
            process.terminate()
            try:
                await asyncio.wait_for(process.wait(), END_S)
            except asyncio.TimeoutError:
                process.kill()
        await process.wait()
        await reading


async def _read(contender: Contender) -> None:
    assert contender.process.stderr is not None
    while line := await contender.process.stderr.readline():
        contender.lines.append(line.decode(errors="replace").rstrip())


def peer_once(version: str, options: Sequence[str]) -> tuple[list[str], dict[str, str]]:
    """(command, environment) of the peer for one cycle, after which it ends."""
    return [sys.executable, "-c", ONE_CYCLE, *options], {"PYTHONPATH": str(peer(version))}


def peer_for_ever(version: str, options: Sequence[str]) -> tuple[list[str], dict[str, str]]:
    """(command, environment) of the peer as people run it."""
    return [sys.executable, "-m", "jupyterhub_idle_culler", *options], {"PYTHONPATH": str(peer(version))}


def drop_in(options: Sequence[str]) -> list[str]:
    """The command of HubGuard in the peer's place."""
    return [sys.executable, "-m", "hubguard.culler", *options]


async def over(contender: Contender, *, ends_by_itself: bool, timeout_s: float) -> None:
    """Returns when its first cycle is over: the peer ends then, HubGuard's drop-in says so. Raises BenchError."""
    deadline_s = time.monotonic() + timeout_s
    while True:
        if contender.process.returncode is not None:
            if ends_by_itself and contender.process.returncode == 0:
                return
            raise BenchError(f"It ended with exit code {contender.process.returncode}:\n{contender.text}")
        if not ends_by_itself and any("Cycle done" in line for line in contender.lines):
            return
        if time.monotonic() > deadline_s:
            raise BenchError(f"Its cycle wasn't over after {timeout_s:.0f} s:\n{contender.text}")
        await asyncio.sleep(0.02)


class Service:
    """HubGuard's service, external to the hub, with a config of its own; it reports its cycles at ``/health``."""

    def __init__(self, hub: TestbedHub, config: str) -> None:
        (port,) = free_ports(1)
        self._url = f"http://127.0.0.1:{port}"
        file = hub.folder / f"hubguard-{port}.py"
        file.write_text(f"c.HubGuard.db_url = 'sqlite:///{hub.folder / f'hubguard-{port}.sqlite'}'\n{config}")
        self.command = [sys.executable, "-m", "hubguard", "serve", "--url", self._url, "--config", str(file)]
        self._age_s: float | None = None

    async def had_a_cycle(self, session: aiohttp.ClientSession) -> bool:
        """Whether a good cycle has ended since this was asked last."""
        try:
            async with session.get(f"{self._url}/services/hubguard/health") as answer:
                told = await answer.json(content_type=None)
        except (aiohttp.ClientError, asyncio.TimeoutError, ValueError):
            return False
        age_s = next((value for key, value in told.items() if key.endswith("age_s")), None)
        ended = age_s is not None and (self._age_s is None or age_s < self._age_s)
        self._age_s = age_s
        return ended


SEEN = re.compile(r"[?#].*")


def kinds(paths: Sequence[tuple[str, str]]) -> dict[str, int]:
    """How often each kind of request was made: ``GET users`` for a page of the list, ``GET users/:name`` and so on."""
    found: dict[str, int] = {}
    for method, path in paths:
        parts = SEEN.sub("", path).partition("/hub/api")[2].strip("/").split("/")
        if len(parts) > 1:
            parts[1] = ":name"
        kind = f"{method} {'/'.join(parts[:3]) or '/'}"
        found[kind] = found.get(kind, 0) + 1
    return dict(sorted(found.items()))
