"""Little servers as real processes of this machine, without a hub: as a spawner of one, or of another, starts them."""

from __future__ import annotations

import asyncio
import secrets
import socket
import subprocess
from datetime import datetime, timezone
from pathlib import Path
from urllib.parse import quote

from hubguard.backends.port import Expected
from hubguard.staging.spawner import Little, launch

# Of this run of the tests alone: another's, beside it on this machine, are another hub's.
API = f"http://127.0.0.1:18081/{secrets.token_hex(8)}/hub/api"
ANOTHER_API = f"http://127.0.0.1:18081/{secrets.token_hex(8)}/hub/api"


def told(user: str, server: str = "", *, port: int = 1, api_url: str = API) -> dict[str, str]:
    """What a hub's spawner tells a server by the environment, as far as it tells whose it is."""
    prefix = f"/user/{quote(user)}/" + (f"{quote(server)}/" if server else "")
    return {
        "JUPYTERHUB_USER": user,
        "JUPYTERHUB_SERVER_NAME": server,
        "JUPYTERHUB_API_URL": api_url,
        "JUPYTERHUB_SERVICE_PREFIX": prefix,
        "JUPYTERHUB_SERVICE_URL": f"http://127.0.0.1:{port}{prefix}",
    }


class Machine:
    """Starts little servers of any hub, and ends them all."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self._running: list[tuple[str, str, str, Little, subprocess.Popen[bytes]]] = []

    async def start(self, user: str, server: str = "", *, api_url: str = API, **more: str) -> Expected:
        listener = socket.create_server(("127.0.0.1", 0))
        port = listener.getsockname()[1]
        environment = {**told(user, server, port=port, api_url=api_url), **more}
        started = datetime.now(timezone.utc)
        little, process = await asyncio.to_thread(
            launch, user, str(self._folder), listener=listener, environment=environment
        )
        self._running.append((api_url, user, server, little, process))
        return Expected(user, server, started, f"http://127.0.0.1:{port}", {"pid": little.pid})

    def of(self, user: str, server: str = "", *, api_url: str = API) -> list[tuple[Little, subprocess.Popen[bytes]]]:
        return [(little, process) for *one, little, process in self._running if one == [api_url, user, server]]

    def kill(self, user: str, server: str = "") -> None:
        for _, process in self.of(user, server):
            process.kill()
            process.wait()

    def lives(self, user: str, server: str = "", *, api_url: str = API) -> bool:
        return any(little.alive for little, _ in self.of(user, server, api_url=api_url))

    def end(self) -> None:
        for *_, process in self._running:
            process.kill()
            process.wait()
