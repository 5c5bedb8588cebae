"""Docker engines for tests: a real one, started here and ended with all that it made; and a fake of the few calls we use."""

from __future__ import annotations

import asyncio
import io
import itertools
import re
import shutil
import signal
import ssl
import subprocess
import sys
import sysconfig
import tarfile
import tempfile
import time
from collections.abc import Awaitable, Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from datetime import datetime, timezone
from pathlib import Path
from typing import Any, BinaryIO

import aiohttp
from aiohttp import web

# With a plain sleep as process 1, SIGTERM would be ignored, and each stop take its whole grace.
STAYS = ["/bin/sh", "-c", "trap 'exit 0' TERM; while :; do sleep 60 & wait $!; done"]
IMAGE = "hubguard-test-tiny"


class NoEngine(Exception):
    """No engine can be started here; why."""


def _libraries(*programs: Path) -> dict[str, Path]:
    """What these programs and libraries need, by its path in an image."""
    needed = subprocess.run(["ldd", *programs], capture_output=True, text=True, check=False)
    return {name.lstrip("/"): Path(name) for name in re.findall(r"(/[^\s:]+)(?: \(|$)", needed.stdout, re.MULTILINE)}


def _tar(files: Mapping[str, Path]) -> BinaryIO:
    out = io.BytesIO()
    with tarfile.open(fileobj=out, mode="w") as tar:
        for name, path in files.items():
            data = path.resolve().read_bytes()
            entry = tarfile.TarInfo(name)
            entry.size, entry.mode = len(data), 0o755
            tar.addfile(entry, io.BytesIO(data))
    out.seek(0)
    return out


def tiny_image() -> BinaryIO:
    """A tar with this machine's own shell and sleep and the libraries that they need."""
    files = {"bin/sh": Path("/bin/sh"), "bin/sleep": Path("/bin/sleep")}
    return _tar(files | _libraries(*files.values()))


def python_image() -> tuple[BinaryIO, str]:
    """A tar with this Python and what its standard library has in pure Python and in extensions; and the program's path."""
    program, library = Path(sys.executable).resolve(), Path(sysconfig.get_path("stdlib"))
    left_out = {"site-packages", "test", "tests", "__pycache__", "idlelib", "tkinter", "ensurepip", "lib2to3"}
    files = {str(program).lstrip("/"): program} | _libraries(program)
    for path in library.rglob("*"):
        if path.is_file() and path.suffix in (".py", ".so") and not left_out & set(path.relative_to(library).parts):
            files[str(path).lstrip("/")] = path
    files |= _libraries(*(path for path in files.values() if path.suffix == ".so"))
    return _tar(files), str(program)


@contextmanager
def real_engine(settings: Mapping[str, str] | None = None) -> Iterator[str]:
    """The socket of an engine of its own. Raises NoEngine with the reason why there can't be one."""
    dockerd = shutil.which("dockerd") or shutil.which("dockerd", path="/usr/sbin:/usr/local/sbin")
    if dockerd is None:
        raise NoEngine("dockerd isn't installed (Debian: docker.io)")
    folder = Path(tempfile.mkdtemp(prefix="hubguard-docker-"))
    socket = folder / "docker.sock"
    command = [dockerd, "--data-root", folder / "data", "--exec-root", folder / "exec", "--pidfile", folder / "pid"]
    command += ["-H", f"unix://{socket}", "--iptables=false", "--ip6tables=false", "--ip-masq=false", "--bridge=none"]
    command += ["--ip-forward=false", "--exec-opt", "native.cgroupdriver=cgroupfs"]
    log = folder / "log"
    with log.open("wb") as out:
        daemon = subprocess.Popen(list(map(str, command)), stdout=out, stderr=out)
    try:
        deadline = time.monotonic() + 30
        while not socket.exists() or b"API listen on" not in log.read_bytes():
            if daemon.poll() is not None or time.monotonic() > deadline:
                last = log.read_text(errors="replace").strip().splitlines()[-1:] or ["it said nothing"]
                raise NoEngine(f"dockerd doesn't start here: {last[0][:300]}")
            time.sleep(0.1)
        yield str(socket)
    finally:
        daemon.send_signal(signal.SIGTERM)
        try:
            daemon.wait(30)
        except subprocess.TimeoutExpired:
            daemon.kill()
            daemon.wait()
        shutil.rmtree(folder, ignore_errors=True)


class RealEngine:
    """What tests do to a real engine behind HubGuard's back."""

    def __init__(self, socket: str) -> None:
        self.socket = socket
        self._session = aiohttp.ClientSession(connector=aiohttp.UnixConnector(socket))
        self._made: list[str] = []
        self._networks: list[str] = []

    async def call(self, method: str, path: str, *, fine: tuple[int, ...] = (200, 201, 204, 304), **given: Any) -> Any:
        async with self._session.request(method, f"http://docker{path}", **given) as answer:
            text = await answer.text()
            assert answer.status in fine, f"{method} {path}: {answer.status} {text}"
            return await answer.json() if answer.content_type == "application/json" and text else None

    async def prepare(self) -> None:
        if not await self.call("GET", f"/images/json?filters=%7B%22reference%22%3A%5B%22{IMAGE}%22%5D%7D"):
            await self.load(IMAGE, tiny_image())

    async def load(self, image: str, tar: BinaryIO) -> None:
        """Have an image of that name with the files of ``tar``."""
        await self.call("POST", f"/images/create?fromSrc=-&repo={image}", data=tar)

    async def network(self, name: str) -> None:
        self._networks.append(name)
        await self.call("POST", "/networks/create", json={"Name": name, "CheckDuplicate": True})

    async def create(
        self, name: str, environ: Mapping[str, str], network: str = "none", *, remove: bool = False
    ) -> str:
        body = {
            "Image": IMAGE,
            "Cmd": STAYS,
            "Env": [f"{key}={value}" for key, value in environ.items()],
            "HostConfig": {"NetworkMode": network, "AutoRemove": remove},
        }
        made = await self.call("POST", f"/containers/create?name={name}", json=body)
        self._made.append(made["Id"])
        return str(made["Id"])

    async def start(self, container: str) -> None:
        await self.call("POST", f"/containers/{container}/start")

    async def kill(self, container: str) -> None:
        await self.call("POST", f"/containers/{container}/kill")
        while (await self.inspect(container) or {"State": {"Running": False}})["State"]["Running"]:
            await asyncio.sleep(0.05)

    async def pause(self, container: str) -> None:
        await self.call("POST", f"/containers/{container}/pause")

    async def rename(self, container: str, name: str) -> None:
        await self.call("POST", f"/containers/{container}/rename?name={name}")

    async def inspect(self, container: str) -> Any:
        """What the engine tells of it; None where it is gone."""
        told = await self.call("GET", f"/containers/{container}/json", fine=(200, 404))
        return told if "Id" in told else None

    async def adopt(self, prefix: str) -> dict[str, str]:
        """The ids of all containers whose names begin so, by name; they are removed with its own."""
        found = {one["Names"][0].lstrip("/"): one["Id"] for one in await self.call("GET", "/containers/json?all=1")}
        found = {name: container for name, container in found.items() if name.startswith(prefix)}
        self._made += found.values()
        return found

    async def close(self) -> None:
        for container in self._made:
            await self.call("DELETE", f"/containers/{container}?force=1&v=1", fine=(204, 404, 409))
        for container in self._made:
            while await self.inspect(container):
                await asyncio.sleep(0.05)
        for network in self._networks:
            await self.call("DELETE", f"/networks/{network}")
        await self._session.close()


@dataclass
class FakeContainer:
    id: str
    name: str
    environ: dict[str, str]
    networks: list[str]
    remove: bool
    state: str = "created"
    started: str = "0001-01-01T00:00:00Z"
    status: str = "Created"
    stubborn: bool = False
    asked: list[str] = field(default_factory=list)


Fault = Callable[[web.Request], Awaitable[web.StreamResponse | None]]


class FakeEngine:
    """The engine's list, details, stop and removal over a Unix socket, as Docker 20.10 and 28 answer; no containers run.

    ``fault`` is asked before each answer and may give another. ``requests`` has "METHOD path?query" of each, in order.
    """

    def __init__(self, folder: Path) -> None:
        self.socket = str(folder / "fake.sock")
        self.containers: dict[str, FakeContainer] = {}
        self.requests: list[str] = []
        self.fault: Fault | None = None
        self._numbers = itertools.count(1)
        app = web.Application(middlewares=[self._meet])
        app.add_routes(
            [
                web.get("/containers/json", self._list),
                web.get("/containers/{id}/json", self._inspect),
                web.post("/containers/{id}/stop", self._stop),
                web.delete("/containers/{id}", self._delete),
            ]
        )
        self._runner = web.AppRunner(app, shutdown_timeout=0.1)

    async def prepare(self) -> None:
        await self._runner.setup()
        await web.UnixSite(self._runner, self.socket).start()

    async def listen(self, tls: ssl.SSLContext | None = None) -> int:
        """Have it answer at a port of 127.0.0.1, too; which one."""
        site = web.TCPSite(self._runner, "127.0.0.1", 0, ssl_context=tls)
        await site.start()
        return int(self._runner.addresses[-1][1])

    async def network(self, name: str) -> None:
        pass

    async def create(
        self, name: str, environ: Mapping[str, str], network: str = "none", *, remove: bool = False
    ) -> str:
        assert all(one.name != name for one in self.containers.values()), f"the name {name} is taken"
        container = f"{next(self._numbers):064x}"
        self.containers[container] = FakeContainer(container, name, dict(environ), [network], remove)
        return container

    async def start(self, container: str) -> None:
        one = self.containers[container]
        now = datetime.now(timezone.utc)
        one.state, one.status = "running", "Up Less than a second"
        one.started = f"{now:%Y-%m-%dT%H:%M:%S}.{now.microsecond:06d}{next(self._numbers) % 1000:03d}Z"

    async def kill(self, container: str) -> None:
        self._ended(self.containers[container], "Exited (137) Less than a second ago")

    async def pause(self, container: str) -> None:
        self.containers[container].state = "paused"
        self.containers[container].status += " (Paused)"

    async def rename(self, container: str, name: str) -> None:
        self.containers[container].name = name

    async def inspect(self, container: str) -> Any:
        one = self.containers.get(container)
        return None if one is None else self._page(one)

    async def close(self) -> None:
        await self._runner.cleanup()

    def _ended(self, one: FakeContainer, status: str) -> None:
        one.state, one.status = "exited", status
        if one.remove:
            del self.containers[one.id]

    def _page(self, one: FakeContainer) -> dict[str, object]:
        return {
            "Id": one.id,
            "Name": f"/{one.name}",
            "State": {
                "Status": one.state,
                "Running": one.state in ("running", "paused", "restarting"),
                "Paused": one.state == "paused",
                "StartedAt": one.started,
            },
            "Config": {"Env": [f"{key}={value}" for key, value in one.environ.items()] or None},
            "HostConfig": {"AutoRemove": one.remove},
            "NetworkSettings": {"Networks": {name: {} for name in one.networks}},
        }

    @web.middleware
    async def _meet(
        self, request: web.Request, handler: Callable[..., Awaitable[web.StreamResponse]]
    ) -> web.StreamResponse:
        self.requests.append(f"{request.method} {request.rel_url}")
        answer = await self.fault(request) if self.fault else None
        return answer or await handler(request)

    async def _list(self, request: web.Request) -> web.Response:
        everything = request.query.get("all") in ("1", "true")
        return web.json_response(
            [
                {
                    "Id": one.id,
                    "Names": [f"/{one.name}"],
                    "Image": IMAGE,
                    "State": one.state,
                    "Status": one.status,
                    "Labels": {},
                    "NetworkSettings": {"Networks": {name: {} for name in one.networks}},
                }
                for one in self.containers.values()
                if everything or one.state not in ("created", "exited", "dead")
            ]
        )

    async def _inspect(self, request: web.Request) -> web.Response:
        return web.json_response(self._page(self._one(request)))

    async def _stop(self, request: web.Request) -> web.Response:
        one = self._one(request)
        one.asked.append(f"stop {request.query.get('t')}")
        if one.state not in ("running", "paused", "restarting"):
            return web.Response(status=304)
        if not one.stubborn:
            self._ended(one, "Exited (0) Less than a second ago")
        return web.Response(status=204)

    async def _delete(self, request: web.Request) -> web.Response:
        one = self._one(request)
        one.asked.append("remove")
        if one.state == "running":
            raise web.HTTPConflict(
                text='{"message":"You cannot remove a running container"}', content_type="application/json"
            )
        del self.containers[one.id]
        return web.Response(status=204)

    def _one(self, request: web.Request) -> FakeContainer:
        one = self.containers.get(request.match_info["id"])
        if one is None:
            missing = f'{{"message":"No such container: {request.match_info["id"]}"}}'
            raise web.HTTPNotFound(text=missing, content_type="application/json")
        return one


class Relay:
    """A socket that leads to another, until it is cut."""

    def __init__(self, folder: Path, target: str) -> None:
        self.socket = str(folder / "relay.sock")
        self._target = target
        self._server: asyncio.Server | None = None
        self._writers: list[asyncio.StreamWriter] = []

    async def open(self) -> None:
        self._server = await asyncio.start_unix_server(self._join, self.socket)

    async def cut(self) -> None:
        if self._server is not None:
            self._server.close()
            self._server = None
        for writer in self._writers:
            writer.close()
        Path(self.socket).unlink(missing_ok=True)
        await asyncio.sleep(0.05)

    async def _join(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        to_reader, to_writer = await asyncio.open_unix_connection(self._target)
        self._writers += [writer, to_writer]

        async def pump(source: asyncio.StreamReader, sink: asyncio.StreamWriter) -> None:
            try:
                while data := await source.read(65536):
                    sink.write(data)
                    await sink.drain()
            except OSError:
                pass
            finally:
                sink.close()

        await asyncio.gather(pump(reader, to_writer), pump(to_reader, writer))
