"""The suite of tests/backend_checks.py over the double, over real processes and over HTTP; and what is each one's own."""

from __future__ import annotations

import pytest
from backend_checks import BackendChecks, World

from hubguard.clients.backends.memory import MemoryBackends
from hubguard.clients.backends.port import Expected
from hubguard.drift import Backend
from hubguard.errors import BackendError


class MemoryWorld(World):
    def __init__(self, *, whole: bool) -> None:
        self.backends: MemoryBackends = MemoryBackends(whole=whole)

    async def start(self, user: str, server: str = "") -> Expected:
        backend = self.backends.add(user, server)
        return Expected(user, server, backend.started)

    async def kill(self, user: str, server: str = "") -> None:
        self.backends.kill(user, server)

    async def lives(self, user: str, server: str = "") -> bool:
        return self.backends.alive(user, server)

    async def start_elsewhere(self, user: str, server: str = "") -> Backend:
        return self.backends.add(user, server, elsewhere=True)

    async def lives_elsewhere(self, user: str, server: str = "") -> bool:
        return self.backends.alive(user, server, elsewhere=True)

    async def break_engine(self) -> None:
        self.backends.fault = lambda request: BackendError("The engine doesn't answer. Look whether it runs.")


class TestMemoryBackends(BackendChecks):
    @pytest.fixture(params=[True, False], ids=["whole", "expected-only"])
    def world(self, request: pytest.FixtureRequest) -> MemoryWorld:
        return MemoryWorld(whole=request.param)
