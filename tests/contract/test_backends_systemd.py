"""Units as backends: the suite over the real systemd, where it is process 1, and over a fake one with real processes."""

from __future__ import annotations

import itertools
import os
from collections.abc import AsyncIterator
from pathlib import Path

import pytest
from backend_checks import BackendChecks, World
from systemd_units import FakeSystemd, RealSystemd, mangled

from hubguard.clients.backends.port import Expected, Place
from hubguard.clients.backends.systemd import open_backends
from hubguard.drift import Backend

OURS = "http://127.0.0.1:8081/hub/api"
THEIRS = "http://127.0.0.1:9081/hub/api"
NUMBERS = itertools.count(1)


def environ(user: str, server: str = "", api_url: str = OURS) -> dict[str, str]:
    """What SystemdSpawner gives a unit by a file, as far as it matters."""
    return {"JUPYTERHUB_USER": user, "JUPYTERHUB_SERVER_NAME": server, "JUPYTERHUB_API_URL": api_url, "HOME": "/"}


class SystemdWorld(World):
    """Units of one hub. Their names have no server's in them, so a named server's is by a template that has it."""

    def __init__(self, systemd: FakeSystemd | RealSystemd) -> None:
        self.systemd = systemd
        self.prefix = f"jupyter{os.getpid()}x{next(NUMBERS)}"
        place = Place(
            OURS,
            settings={"unit_name_template": f"{self.prefix}-{{USERNAME}}-{{SERVERNAME}}"},
            environ={"PATH": systemd.path},
        )
        self.backends = open_backends(place)

    def unit(self, user: str, server: str = "", hub: str = "here") -> str:
        return f"{self.prefix}-{user}-{server}{'' if hub == 'here' else '-of-another'}"

    async def start(self, user: str, server: str = "") -> Expected:
        unit = self.unit(user, server)
        await self.systemd.start(unit, environ(user, server))
        return Expected(user, server, state={"unit_name": unit})

    async def kill(self, user: str, server: str = "") -> None:
        await self.systemd.kill(self.unit(user, server))

    async def lives(self, user: str, server: str = "") -> bool:
        return await self.systemd.lives(self.unit(user, server))

    async def start_elsewhere(self, user: str, server: str = "") -> Backend:
        unit = self.unit(user, server, "elsewhere")
        run = await self.systemd.start(unit, environ(user, server, THEIRS))
        return Backend("systemd", f"{mangled(unit)}.service@{run}", user, server, True, "a unit", proof="so they say")

    async def lives_elsewhere(self, user: str, server: str = "") -> bool:
        return await self.systemd.lives(self.unit(user, server, "elsewhere"))

    async def break_engine(self) -> None:
        if not isinstance(self.systemd, FakeSystemd):
            pytest.skip("the real systemd isn't broken for a test; the fake one is")
        self.systemd.fault('sys.exit("Failed to connect to bus: Host is down")')


@pytest.fixture(params=["real", "fake"])
async def systemd(request: pytest.FixtureRequest, tmp_path: Path) -> AsyncIterator[FakeSystemd | RealSystemd]:
    if request.param == "real" and RealSystemd.missing():
        pytest.skip(RealSystemd.missing())
    systemd = RealSystemd() if request.param == "real" else FakeSystemd(tmp_path)
    try:
        yield systemd
    finally:
        await systemd.close()


class TestSystemd(BackendChecks):
    @pytest.fixture
    async def world(self, systemd: FakeSystemd | RealSystemd) -> AsyncIterator[World]:
        world = SystemdWorld(systemd)
        yield world
        await world.backends.close()
