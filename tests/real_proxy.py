"""The two real proxies that tests run: the hub's own in Node, and PyPI's in Python."""

from __future__ import annotations

import asyncio
import importlib.util
import os
import signal
import subprocess
import sys
from collections.abc import Callable

import aiohttp
import pytest

from hubguard.errors import HubGuardError
from hubguard.staging.processes import end, find_proxy_command, free_ports, listens

TOKEN = "5f0e3c9ab7d24611-never-to-be-seen"


def python_proxy_command() -> list[str]:
    """The proxy from PyPI, by import: its command has the name of Node's. HUBGUARD_TEST_PROXY_PYTHON may have it instead."""
    python = os.environ.get("HUBGUARD_TEST_PROXY_PYTHON")
    if python is None and importlib.util.find_spec("configurable_http_proxy") is None:
        pytest.skip(
            "PyPI's configurable-http-proxy isn't here; name a Python that has it in HUBGUARD_TEST_PROXY_PYTHON"
        )
    return [python or sys.executable, "-c", "from configurable_http_proxy.cli import main; main()"]


def node_proxy_command() -> list[str]:
    """The hub's own proxy. Skips the test where it or Node is missing; no hub runs without it."""
    try:
        return find_proxy_command()
    except HubGuardError as error:
        pytest.skip(str(error))


COMMANDS: dict[str, Callable[[], list[str]]] = {"node": node_proxy_command, "python": python_proxy_command}


class RealProxy:
    """A proxy of ours: start it, kill it, freeze it, and change its table."""

    def __init__(self, command: list[str]) -> None:
        self._command = command
        self._process: subprocess.Popen[bytes] | None = None
        self.port, self._api_port = free_ports(2)
        self.api_url = f"http://127.0.0.1:{self._api_port}"
        self.url = f"http://localhost:{self.port}/with/a/prefix/"

    async def start(self) -> None:
        self._process = subprocess.Popen(
            [
                *self._command,
                *("--ip", "127.0.0.1", "--port", str(self.port)),
                *("--api-ip", "127.0.0.1", "--api-port", str(self._api_port)),
            ],
            env={**os.environ, "CONFIGPROXY_AUTH_TOKEN": TOKEN},
            stdin=subprocess.DEVNULL,
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
        )
        for _ in range(600):
            assert self._process.poll() is None, "the proxy ended while starting"
            if listens(self.port) and listens(self._api_port):
                return
            await asyncio.sleep(0.02)
        raise AssertionError("the proxy never comes up")

    async def end(self) -> None:
        await end(self._process, 3.0)
        self._process = None

    async def kill(self) -> None:
        await end(self._process, 0)
        self._process = None

    def freeze(self) -> None:
        self._process.send_signal(signal.SIGSTOP)

    def thaw(self) -> None:
        if self._process is not None:
            self._process.send_signal(signal.SIGCONT)

    async def request(self, method: str, path: str, **body) -> int:
        headers = {"Authorization": f"token {TOKEN}"}
        url = f"{self.api_url}/api/routes{path}"
        async with aiohttp.ClientSession(headers=headers) as session, session.request(method, url, **body) as answer:
            return answer.status

    async def take_away(self, path: str) -> None:
        assert await self.request("DELETE", path) == 204

    async def have_another(self, path: str) -> None:
        assert await self.request("POST", path, json={"target": "http://127.0.0.1:1", "hubguard": "another"}) == 201
