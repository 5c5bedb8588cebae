"""A real JupyterHub with a real proxy in a folder of its own, on free loopback ports, that leaves nothing running."""

from __future__ import annotations

import asyncio
import json
import os
import re
import secrets
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import Any
from urllib.parse import quote

import aiohttp
from yarl import URL

import hubguard
from hubguard.errors import HubGuardError
from hubguard.staging.population import Population
from hubguard.staging.processes import end, end_all_in, find_proxy_command, free_ports, listens, running_in
from hubguard.staging.seed import order, write
from hubguard.staging.spawner import MARKER, Little, killed_marker

TESTER_SCOPES = (
    "admin:users",
    "admin:servers",
    "admin:groups",
    "admin:services",
    "access:servers",
    "access:services",
    "list:services",
    "read:hub",
    "read:metrics",
    "read:roles",
    "proxy",
    "shutdown",
    "tokens",
)


@dataclass(frozen=True, slots=True)
class Answer:
    """What the hub's API answered; ``data`` is the decoded JSON, or the text where it isn't JSON."""

    status: int
    data: Any


class TestbedHub:
    """A hub for tests, demo and benchmarks. ``async with TestbedHub() as hub:`` has it running, and ends everything after.

    ``config`` is added to jupyterhub_config.py, after the testbed's own lines. ``python`` is the interpreter that runs the
    hub; from a checkout, hubguard is made importable for it. ``population`` is seeded before the first start.
    ``external_proxy`` True: the testbed runs the proxy, else the hub does, with a token that only the hub knows.
    ``hub_prefix`` is the base_url. ``port`` is where the proxy listens for people; None: a free one. ``db_url`` None: SQLite
    in the folder. ``environment`` is added to the hub's.

    The admin ``admin`` and every other name log in with ``password``; ``token`` may do all that an admin may.
    """

    __test__ = False  # tests import it by this name, and it isn't one

    admin = "admin"

    def __init__(
        self,
        *,
        config: str = "",
        python: str | None = None,
        population: Population | None = None,
        external_proxy: bool = False,
        hub_prefix: str = "/",
        db_url: str | None = None,
        environment: Mapping[str, str] | None = None,
        start_timeout_s: float = 120.0,
        port: int | None = None,
    ) -> None:
        self.python = os.path.abspath(python or sys.executable)
        self.external_proxy = external_proxy
        self.hub_prefix = hub_prefix
        self.start_timeout_s = start_timeout_s
        self.password = secrets.token_hex(8)
        self.token = secrets.token_hex(16)
        self.proxy_token = secrets.token_hex(16) if external_proxy else None
        # Resolved, since a process tells its folder without links in the path.
        self.folder = Path(tempfile.mkdtemp(prefix="hubguard-testbed-")).resolve()
        self.log_file = self.folder / "hub.log"
        self.db_url = db_url or f"sqlite:///{self.folder / 'jupyterhub.sqlite'}"
        self._config = config
        self._population = population
        self._environment = dict(environment or {})
        self._hub: subprocess.Popen[bytes] | None = None
        self._proxy: subprocess.Popen[bytes] | None = None
        self._wanted_port = port
        self._port = self._hub_port = self._proxy_api_port = 0

    async def __aenter__(self) -> TestbedHub:
        try:
            if self._wanted_port and listens(self._wanted_port):
                raise HubGuardError(f"Port {self._wanted_port} is taken. Choose another one.")
            await asyncio.to_thread(self._seed)
            for attempt in range(3):
                free, self._hub_port, self._proxy_api_port = free_ports(3)
                self._port = self._wanted_port or free
                self._write_config()
                try:
                    if self.external_proxy:
                        await self.start_proxy()
                    await self.start()
                    break
                except HubGuardError as error:
                    # Between finding a port free and using it, somebody else may have taken it.
                    taken = re.search("EADDRINUSE|[Aa]ddress already in use", self.log_text() + error.detail)
                    await self._end_everything()
                    if not taken or attempt == 2:
                        raise
        except BaseException:
            await self.aclose()
            raise
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        await self.aclose()

    # where things are

    @property
    def url(self) -> str:
        """The hub as users reach it, with the prefix and a slash at the end; ``localhost``, so that cookies are kept."""
        return f"http://localhost:{self._port}{self.hub_prefix}"

    @property
    def api_url(self) -> str:
        """The hub's API as services reach it, past the proxy; no slash at the end."""
        return f"http://127.0.0.1:{self._hub_port}{self.hub_prefix}hub/api"

    @property
    def proxy_api_url(self) -> str:
        """The proxy's own API; no slash at the end."""
        return f"http://127.0.0.1:{self._proxy_api_port}"

    @property
    def little_servers(self) -> Path:
        """LittleSpawner's folder."""
        return self.folder / "little-servers"

    @property
    def pid(self) -> int | None:
        """The hub's process, or None if it doesn't run."""
        return self._hub.pid if self._hub is not None and self._hub.poll() is None else None

    @property
    def proxy_pid(self) -> int | None:
        """The proxy's process, or None if it doesn't run, as far as the testbed or the hub knows."""
        if self.external_proxy:
            return self._proxy.pid if self._proxy is not None and self._proxy.poll() is None else None
        try:
            return int((self.folder / "jupyterhub-proxy.pid").read_text())
        except (OSError, ValueError):
            return None

    def log_text(self) -> str:
        """Everything that the hub, its proxy and its managed services have printed so far."""
        return self.log_file.read_text(errors="replace") if self.log_file.exists() else ""

    # starting and ending

    async def start(self) -> None:
        """Start the hub and wait till it says it runs and answers through the proxy.

        Raises HubGuardError with the end of its log in ``detail`` where it doesn't.
        """
        seen = len(self.log_text())
        with self.log_file.open("ab") as log:
            self._hub = subprocess.Popen(  # noqa: S603, ASYNC220  # the command is ours, and starting takes no time
                [self.python, "-m", "jupyterhub", "-f", str(self.folder / "jupyterhub_config.py")],
                cwd=self.folder,
                env=self._hub_environment(),
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=subprocess.STDOUT,
                start_new_session=True,
            )

        async def up() -> bool:
            if self.pid is None:
                raise self._failure(
                    f"The hub ended with exit code {self._hub and self._hub.returncode} while starting."
                )
            if "JupyterHub is now running" not in self.log_text()[seen:]:
                return False
            try:
                return (await self.api("GET", "")).status == 200
            except (aiohttp.ClientError, asyncio.TimeoutError):
                return False

        await self.wait_for(up, "the hub to come up", timeout_s=self.start_timeout_s)

    async def stop(self, timeout_s: float = 30.0) -> None:
        """End the hub the clean way (SIGTERM), with SIGKILL after ``timeout_s``. What it leaves running is left running."""
        await end(self._hub, timeout_s)
        self._hub = None

    async def kill(self) -> None:
        """kill -9 of the hub alone: proxy, managed services and servers live on."""
        await end(self._hub, 0)
        self._hub = None

    async def restart(self) -> None:
        """Stop the hub and start it again, on the same ports and database."""
        await self.stop()
        await self.start()

    async def start_proxy(self) -> None:
        """Start the external proxy and wait till both its ports answer. Raises HubGuardError where they don't."""
        assert self.proxy_token is not None, "the hub runs its own proxy"
        with self.log_file.open("ab") as log:
            self._proxy = subprocess.Popen(  # noqa: S603, ASYNC220  # the command is ours, and starting takes no time
                [
                    *find_proxy_command(),
                    *("--ip", "127.0.0.1", "--port", str(self._port)),
                    *("--api-ip", "127.0.0.1", "--api-port", str(self._proxy_api_port)),
                    *("--error-target", f"http://127.0.0.1:{self._hub_port}{self.hub_prefix}hub/error"),
                    *("--default-target", f"http://127.0.0.1:{self._hub_port}"),
                ],
                cwd=self.folder,
                env={**self._hub_environment(), "CONFIGPROXY_AUTH_TOKEN": self.proxy_token},
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=subprocess.STDOUT,
                start_new_session=True,
            )

        async def up() -> bool:
            if self.proxy_pid is None:
                raise self._failure("The proxy ended while starting.")
            return all(listens(port) for port in (self._port, self._proxy_api_port))

        await self.wait_for(up, "the proxy to come up", timeout_s=20.0)

    async def kill_proxy(self) -> None:
        """kill -9 of the proxy. A proxy of the hub's own is started again by the hub within seconds."""
        pid = self.proxy_pid
        if self.external_proxy:
            await end(self._proxy, 0)
            self._proxy = None
        elif pid is not None:
            os.kill(pid, signal.SIGKILL)

    async def aclose(self) -> None:
        """End the hub and everything that came of it, by pid, and remove the folder."""
        try:
            await self._end_everything()
        finally:
            shutil.rmtree(self.folder, ignore_errors=True)

    async def _end_everything(self) -> None:
        try:
            await self.stop(timeout_s=5.0)
            await end(self._proxy, timeout_s=5.0)
            self._proxy = None
        finally:
            await asyncio.to_thread(end_all_in, self.folder)

    def leftovers(self) -> list[int]:
        """The pids of all processes that came of this hub and still run, the hub and the proxy among them."""
        return [process.pid for process in running_in(self.folder)]

    # talking to it

    async def api(
        self,
        method: str,
        path: str,
        *,
        token: str | None = None,
        headers: Mapping[str, str] | None = None,
        **request: Any,
    ) -> Answer:
        """Ask the hub's API, past the proxy, with the tester's token or ``token``. ``path`` is quoted already.

        ``request`` goes to aiohttp: ``json``, ``params``, ``data``. Raises aiohttp.ClientError or asyncio.TimeoutError where
        no answer comes within a minute.
        """
        headers = {"Authorization": f"token {token or self.token}", **(headers or {})}
        url = URL(f"{self.api_url}/{path.lstrip('/')}", encoded=True)
        # A session for each request, so that a hub outlives the event loop that it was started in.
        async with (
            aiohttp.ClientSession(timeout=aiohttp.ClientTimeout(total=60)) as session,
            session.request(method, url, headers=headers, **request) as response,
        ):
            body = await response.text()
        try:
            return Answer(response.status, json.loads(body) if body else None)
        except ValueError:
            return Answer(response.status, body)

    async def servers(self) -> dict[tuple[str, str], dict[str, Any]]:
        """Every active server as the hub's API shows it, by (user, name)."""
        servers: dict[tuple[str, str], dict[str, Any]] = {}
        following: dict[str, Any] | None = {"offset": 0, "limit": 200}
        while following is not None:
            page = await self.api(
                "GET",
                "users",
                params={"state": "active", "offset": following["offset"], "limit": following["limit"]},
                headers={"Accept": "application/jupyterhub-pagination+json"},
            )
            if page.status != 200:
                raise self._failure(f"The hub answered {page.status} when asked for its users.")
            for user in page.data["items"]:
                servers.update({(user["name"], name): server for name, server in user["servers"].items()})
            following = page.data["_pagination"]["next"]
        return servers

    async def server(self, user: str, name: str = "") -> dict[str, Any] | None:
        """One server as the hub's API shows it, or None if it isn't active."""
        answer = await self.api("GET", f"users/{quote(user, safe='')}")
        if answer.status == 404:
            return None
        servers: dict[str, Any] | None = answer.data["servers"].get(name)
        return servers

    async def start_server(self, user: str, name: str = "", **options: Any) -> None:
        """Create the user where needed, start a server with LittleSpawner's ``options``, and wait till it is ready."""
        path = f"users/{quote(user, safe='')}"
        await self.api("POST", path)
        path += f"/servers/{quote(name, safe='')}" if name else "/server"
        answer = await self.api("POST", path, json=options)
        if answer.status not in (201, 202):
            raise self._failure(f"The hub answered {answer.status} when asked to start a server for {user}.")

        async def ready() -> bool:
            server = await self.server(user, name)
            return bool(server and server["ready"])

        await self.wait_for(ready, f"the server of {user} to be ready")

    async def kill_server(self, user: str, name: str = "") -> None:
        """Kill a server's process from outside; at the shared endpoint, make it count as killed."""
        server = await self.server(user, name)
        state = (server or {}).get("state") or {}
        if "pid" not in state:
            raise self._failure(f"{user} has no running server {name!r} to be killed.")
        if state["shared"]:
            killed_marker(self.little_servers, user, name).touch()
        else:
            Little(state["pid"], state["born"], state["port"]).send(signal.SIGKILL)

    async def login(self, session: aiohttp.ClientSession, user: str = admin) -> None:
        """Log ``user`` in, so that ``session`` holds the hub's cookies. Raises HubGuardError where that fails."""
        async with session.get(f"{self.url}hub/login") as page:
            await page.read()
        xsrf = session.cookie_jar.filter_cookies(URL(f"{self.url}hub/"))["_xsrf"].value
        form = {"username": user, "password": self.password, "_xsrf": xsrf}
        async with session.post(f"{self.url}hub/login?next={quote(self.hub_prefix)}hub/home", data=form) as page:
            if page.status != 200 or not page.url.path.endswith("/hub/home"):
                raise self._failure(f"{user} couldn't log in: {page.status} at {page.url.path}.")

    async def wait_for(self, check: Callable[[], Any], what: str, timeout_s: float = 30.0) -> None:
        """Wait until the coroutine function ``check`` gives something true.

        Raises HubGuardError, naming ``what`` was waited for, after ``timeout_s`` seconds.
        """
        deadline = time.monotonic() + timeout_s
        while not await check():
            if time.monotonic() > deadline:
                raise self._failure(f"Waited {timeout_s:.0f} s for {what}, in vain.")
            await asyncio.sleep(0.1)

    # making it

    def _failure(self, what: str) -> HubGuardError:
        tail = "\n".join(self.log_text().splitlines()[-40:])
        for secret in (self.token, self.password, self.proxy_token):
            tail = tail.replace(secret, "…") if secret else tail
        return HubGuardError(f"{what} Its log ends with:\n{tail}", detail=tail)

    def _hub_environment(self) -> dict[str, str]:
        foreign = ("JUPYTERHUB_", "CONFIGPROXY_", "HUBGUARD_", "JPY_", "PYTHONWARNINGS")
        environment = {key: value for key, value in os.environ.items() if not key.startswith(foreign)}
        environment[MARKER] = str(self.folder)
        environment["PYTHONUNBUFFERED"] = "1"
        environment["PATH"] = os.pathsep.join([str(Path(self.python).parent), environment.get("PATH", os.defpath)])
        checkout = Path(hubguard.__file__).parent.parent
        if self.python != sys.executable and (checkout / "setup.cfg").exists():
            environment["PYTHONPATH"] = str(checkout)
        return {**environment, **self._environment}

    def _seed(self) -> None:
        if self._population is None:
            return
        if self.python == os.path.abspath(sys.executable):
            try:
                write(self.db_url, self._population, hub_prefix=self.hub_prefix)
            except HubGuardError as error:
                raise HubGuardError(f"The hub couldn't be seeded: {error}") from None
            return
        # In the hub's own interpreter: the tables have to be those of its JupyterHub.
        done = subprocess.run(  # noqa: S603  # the command is ours
            [self.python, "-m", "hubguard.staging.seed"],
            input=order(self.db_url, self._population, self.hub_prefix),
            env=self._hub_environment(),
            cwd=self.folder,
            capture_output=True,
            text=True,
            check=False,
        )
        if done.returncode:
            raise HubGuardError(f"The hub couldn't be seeded: {done.stderr.strip()}")

    def _write_config(self) -> None:
        settings = {
            "JupyterHub.bind_url": f"http://127.0.0.1:{self._port}{self.hub_prefix}",
            "JupyterHub.hub_ip": "127.0.0.1",
            "JupyterHub.hub_port": self._hub_port,
            "JupyterHub.db_url": self.db_url,
            "JupyterHub.allow_named_servers": True,
            # What is seeded as running is settled when the hub says it runs.
            "JupyterHub.init_spawners_timeout": -1,
            "JupyterHub.authenticator_class": "dummy",
            "DummyAuthenticator.password": self.password,
            "Authenticator.allow_all": True,
            "Authenticator.admin_users": {self.admin},
            "JupyterHub.spawner_class": "hubguard.staging.spawner.LittleSpawner",
            "LittleSpawner.folder": str(self.little_servers),
            "ConfigurableHTTPProxy.api_url": self.proxy_api_url,
            "ConfigurableHTTPProxy.command": find_proxy_command(),
            "ConfigurableHTTPProxy.should_start": not self.external_proxy,
            "JupyterHub.services": [{"name": "tester", "api_token": self.token}],
            "JupyterHub.load_roles": [{"name": "tester", "services": ["tester"], "scopes": list(TESTER_SCOPES)}],
        }
        if self.proxy_token:
            settings["ConfigurableHTTPProxy.auth_token"] = self.proxy_token
        lines = [f"c.{name} = {value!r}" for name, value in settings.items()]
        self.little_servers.mkdir(exist_ok=True)
        file = self.folder / "jupyterhub_config.py"
        file.write_text("\n".join([*lines, "", self._config, ""]), encoding="utf-8")
