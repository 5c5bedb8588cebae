"""Backends that are containers of a Docker engine, as DockerSpawner makes them; over the engine's own API."""

from __future__ import annotations

import asyncio
import contextlib
import ipaddress
import os
import re
import ssl
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime, timezone
from functools import partial
from urllib.parse import urlsplit

import aiohttp
from typing_extensions import override

from hubguard.backends.claim import Claim, claim_from
from hubguard.backends.model import Backend
from hubguard.backends.port import Backends, Expected, Place
from hubguard.errors import BackendError
from hubguard.hub.http import Answer, Failure, HTTPClient, NoAnswer, in_words, printable, quotable
from hubguard.model import Key

LARGEST_ANSWER = 64 * 1024 * 1024
"""Maximum bytes of an answer. One container takes about 2 KB of a list, so that 5,000 take 10 of these 64 MiB."""

AT_ONCE = 8
"""Maximum containers whose details are read at the same time: the engine answers each in about a millisecond."""

HOST = "host"
"""The network of containers that have none of their own."""

GRACE_S = 10
"""Seconds from SIGTERM to SIGKILL; the engine's own default, which DockerSpawner takes, too."""

_SWARM = "dockerspawner.swarmspawner.SwarmSpawner"
_TIME = re.compile(r"(\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d)(\.\d+)?(Z|[+-]\d\d:\d\d)")
_CONTAINER_ID = re.compile(r"[0-9a-f]{12,128}")

# By the engine's word for a container's state. DockerSpawner's own poll takes restarting and paused ones for running.
_ALIVE: Mapping[str, bool | None] = {
    "running": True,
    "created": False,
    "exited": False,
    "dead": False,
    "removing": False,
    "stopping": None,
    "paused": None,
    "restarting": None,
}


def open_backends(place: Place) -> Backends:
    """The containers of the engine that DOCKER_HOST names, by default the one at unix:///var/run/docker.sock.

    With DOCKER_TLS_VERIFY or DOCKER_CERT_PATH it is spoken to by TLS. Never raises: ``look`` reports what is wrong.
    """
    return DockerBackends(place)


@dataclass(frozen=True, slots=True)
class _Row:
    """A container in the engine's list."""

    id: str
    name: str
    state: str
    status: str
    networks: frozenset[str]


@dataclass(frozen=True, slots=True)
class _Details:
    """What only a container's own page shows. ``claim`` None: it isn't a server's; ``run`` is when it started, as given."""

    claim: Claim | None
    state: str
    run: str
    networks: frozenset[str]


class DockerBackends(Backends):
    """Implements Backends.

    A look is one list of all containers; details are read of those that are new, or have started, stopped or grown older by
    as much as the list shows. A backend's id has the container's and the time of its start: DockerSpawner starts a stopped
    container again, and that is another run. A container is proved by the API URL in its environment; and if that URL
    could be another hub's, too (http://hub:8081), by its network.
    """

    kind = "docker"
    whole = True

    def __init__(self, place: Place, *, request_timeout_s: float = 10.0) -> None:
        """``request_timeout_s`` is for one request and its whole answer; a stop gets its grace on top."""
        self._place = place
        self._timeout_s = request_timeout_s
        self._api_url = place.api_url.rstrip("/")
        network = place.settings.get("network_name")
        self._network = network if isinstance(network, str) and network else None
        self._shared_url = not _is_unique(self._api_url)
        self._seen: dict[str, tuple[str, _Details]] = {}
        self._http: HTTPClient | None = None
        self._base = ""
        self._where = place.environ.get("DOCKER_HOST") or "unix:///var/run/docker.sock"

    def __repr__(self) -> str:
        return f"<DockerBackends {self._where}>"

    @override
    async def look(self, expected: Sequence[Expected]) -> tuple[Backend, ...]:
        """Reports containers that have stopped, too: DockerSpawner keeps them by default.

        If a server's own isn't seen to run, and its state names none, another hub's by its names may be it, from before this
        hub's URL or network changed: then it is unknown whether the server runs. So it is of what is in the host's network
        with this hub's URL.
        """
        if _SWARM in self._place.spawner:
            raise BackendError(
                "The hub's SwarmSpawner has its servers on all nodes of a swarm, of which this engine is one, so containers"
                ' show nothing here. Set HubGuardDrift.backend to "http".'
            )
        rows = _rows(await self._read("/containers/json?all=1", "list its containers"))
        self._seen = {row.id: self._seen[row.id] for row in rows if row.id in self._seen}
        by_id, by_name = _named(expected)
        keys = {ready.key for ready in expected}
        backends: list[Backend] = []
        strangers: list[Backend] = []
        unnamed = keys - {*by_id.values(), *by_name.values()}
        for row, details in zip(rows, await self._details_of(rows), strict=True):
            if details is None or details.claim is None:
                continue
            named = by_id.get(row.id) or by_name.get(row.name)
            proof = self._proof(details.claim, row.networks)
            if proof is None and named is None:
                wanted = details.claim.key in unnamed or self._looks_alike(details.claim, row.networks)
                if wanted and _ALIVE.get(row.state) is not False:
                    strangers.append(self._stranger(row, details, details.claim))
                continue
            # A renamed user's container keeps the old name in its environment.
            user, server = details.claim.key if named is None or details.claim.key in keys else named
            backends.append(
                Backend(
                    kind=self.kind,
                    id=f"{row.id}@{details.run}",
                    user=user,
                    server=server,
                    alive=_ALIVE.get(row.state),
                    name=f"container {row.name}",
                    started=_time(details.run),
                    proof=proof or "",
                    # By its id: a later container of that server has the same name.
                    command=f"docker rm -f {row.id[:12]}",
                    detail=row.status or row.state,
                )
            )
        running = {backend.key for backend in backends if backend.alive}
        backends += [backend for backend in strangers if backend.key not in running]
        return tuple(sorted(backends, key=lambda backend: (*backend.key, backend.id)))

    @override
    async def end(self, backend: Backend) -> None:
        """The container is stopped, and removed only if DockerSpawner itself would do so (``remove``)."""
        container, _, run = backend.id.partition("@")
        if not _CONTAINER_ID.fullmatch(container):
            raise BackendError(f"{backend.id!r} isn't the id of a container, so nothing was ended.")
        self._seen.pop(container, None)
        page = await self._read(f"/containers/{container}/json", f"describe {backend.name}", missing_is_fine=True)
        if page is None:
            return
        details = _details(page)
        alive = _ALIVE.get(details.state)
        if alive is False:
            return
        if details.run != run:
            raise BackendError(
                f"{backend.name} was started again since it was looked at, so it wasn't ended. Look again."
            )
        if details.claim is None or not self._proof(details.claim, details.networks):
            raise BackendError(
                f"{backend.name} isn't proved to be this hub's ({self._api_url}), so it wasn't ended. If it is to go,"
                f" do it by hand: docker stop {container[:12]}"
            )
        if alive is None:
            raise BackendError(
                f"{backend.name} is {printable(details.state)[:40]!r}, so it wasn't ended. Let it run first, or end it by"
                f" hand: docker rm -f {container[:12]}"
            )
        answer = await self._ask(
            "POST", f"/containers/{container}/stop?t={GRACE_S}", timeout_s=self._timeout_s + GRACE_S
        )
        if answer.status not in (204, 304, 404):  # 304: it has stopped already; 404: it is gone
            raise self._failed(f"stop {backend.name}", answer)
        if self._place.settings.get("remove") is True:
            await self._remove(container)

    @override
    async def close(self) -> None:
        """It may be used again afterwards, and opens new connections then."""
        client, self._http = self._http, None
        if client is not None:
            await client.close()

    async def _remove(self, container: str) -> None:
        # It has ended, as was asked. One that can't be removed stays listed, and DockerSpawner removes it when it starts
        # the server again.
        with contextlib.suppress(BackendError):
            await self._ask("DELETE", f"/containers/{container}?v=1")

    async def _details_of(self, rows: Sequence[_Row]) -> list[_Details | None]:
        """In the order of ``rows``; None: it is gone meanwhile, or has stopped and can't be read."""
        turns = asyncio.Semaphore(AT_ONCE)

        async def read(row: _Row) -> _Details | None:
            seen = self._seen.get(row.id)
            # The status of a running one ("Up 5 minutes") grows coarser with age; a start in between shows in it.
            mark = row.status if _ALIVE.get(row.state) is not False else row.state
            if seen is not None and (not self._looks_ours(seen[1]) or (seen[0] == mark and "second" not in mark)):
                return seen[1]
            async with turns:
                try:
                    answer = await self._read(
                        f"/containers/{row.id}/json", f"describe {row.name}", missing_is_fine=True
                    )
                    details = None if answer is None else _details(answer)
                except _Refused:
                    # The engine can't describe some broken containers, forever; those that don't run are nobody's loss.
                    if _ALIVE.get(row.state) is not False:
                        raise
                    return None
            if details is not None:
                self._seen[row.id] = (mark, details)
            return details

        reading = [asyncio.ensure_future(read(row)) for row in rows]
        try:
            return list(await asyncio.gather(*reading))
        finally:
            for task in reading:
                task.cancel()
            await asyncio.gather(*reading, return_exceptions=True)

    def _looks_ours(self, details: _Details) -> bool:
        return details.claim is not None and details.claim.api_url == self._api_url

    def _stranger(self, row: _Row, details: _Details, claim: Claim) -> Backend:
        whose = claim.whose
        if claim.api_url == self._api_url:
            whose = f"it isn't in this hub's network, {self._network}"
        if self._looks_alike(claim, row.networks):
            whose = "it is in the host's network, where nothing tells this hub's containers from those of others"
        return Backend(
            kind=self.kind,
            id=f"{row.id}@{details.run}",
            user=claim.user,
            server=claim.server,
            alive=None,
            name=f"container {row.name}",
            started=_time(details.run),
            command=f"docker rm -f {row.id[:12]}",
            detail=f"{whose}, so it is unknown whose it is; {row.status or row.state}",
        )

    def _looks_alike(self, claim: Claim, networks: frozenset[str]) -> bool:
        """Whether it is in the host's network with this hub's URL: the hub's settings may name another network."""
        return claim.api_url == self._api_url and networks == {HOST}

    def _proof(self, claim: Claim, networks: frozenset[str]) -> str | None:
        """One clause on why it is this hub's; "" if it only looks like it; None if it is another's."""
        proof = claim.proof(self._api_url)
        if not proof or not self._shared_url:
            return proof or None
        if self._network is None:
            return ""
        return f"{proof}, and it is in this hub's network, {self._network}" if self._network in networks else None

    async def _read(self, path: str, what: str, *, missing_is_fine: bool = False) -> object:
        """The engine's answer from JSON; None if there is no such container and that is fine. Raises BackendError."""
        answer = await self._ask("GET", path)
        if answer.status == 404 and missing_is_fine:
            return None
        if answer.status != 200:
            raise self._failed(what, answer)
        if answer.json is None:
            raise BackendError(
                f"The Docker engine at {self._where} answered with what isn't JSON. Is DOCKER_HOST its API?"
            )
        return answer.json

    def _failed(self, what: str, answer: Answer) -> BackendError:
        message = answer.json.get("message") if isinstance(answer.json, dict) else None
        said = quotable(str(message or ""))
        return _Refused(
            f"The Docker engine at {self._where} failed to {printable(what)}"
            f" ({answer.status}{': ' if said else ''}{said})."
        )

    async def _ask(self, method: str, path: str, *, timeout_s: float | None = None) -> Answer:
        """The engine's answer. Raises BackendError if there is none."""
        client = self._http = self._http or self._client()
        answer = await client.exchange(method, self._base + path, timeout_s=timeout_s)
        if not isinstance(answer, NoAnswer):
            return answer
        if answer.why is Failure.TOO_LARGE:
            raise BackendError(f"The Docker engine was asked for containers, and {answer.detail}, so it isn't used.")
        if answer.why is Failure.TIMEOUT:
            problem = f"didn't answer within {answer.timeout_s:g} s: it hangs or is overloaded"
        else:
            problem = f"can't be reached ({answer.detail})"
        if answer.denied:
            problem += "; HubGuard's user isn't in the group docker, which it lets in"
        raise BackendError(
            f"The Docker engine at {self._where} {problem}. What its containers do is unknown until then."
        )

    def _client(self) -> HTTPClient:
        """Raises BackendError if DOCKER_HOST can't be used."""
        environ = self._place.environ
        secure = bool(environ.get("DOCKER_TLS_VERIFY") or environ.get("DOCKER_CERT_PATH"))
        try:
            parts = urlsplit(self._where)
            port = parts.port
        except ValueError:
            parts, port = urlsplit(""), None
        connector: Callable[[], aiohttp.BaseConnector]
        if parts.scheme == "unix":
            self._base = "http://docker"
            connector = partial(aiohttp.UnixConnector, path=parts.netloc + parts.path, limit=AT_ONCE + 1)
        elif parts.scheme in ("tcp", "http", "https") and parts.hostname:
            secure = secure or parts.scheme == "https"
            default = 2376 if secure else 2375
            self._base = f"{'https' if secure else 'http'}://{parts.netloc if port else f'{parts.netloc}:{default}'}"
            connector = partial(aiohttp.TCPConnector, limit=AT_ONCE + 1, ssl=self._tls() if secure else True)
        else:
            raise BackendError(
                f"DOCKER_HOST is {printable(self._where)!r}, which HubGuard can't use: it must begin with unix:// or tcp://."
            )
        return HTTPClient(timeout_s=self._timeout_s, largest=LARGEST_ANSWER, connector=connector, resend=True)

    def _tls(self) -> ssl.SSLContext:
        folder = self._place.environ.get("DOCKER_CERT_PATH") or os.path.expanduser("~/.docker")
        try:
            context = ssl.create_default_context(cafile=os.path.join(folder, "ca.pem"))
            context.load_cert_chain(os.path.join(folder, "cert.pem"), os.path.join(folder, "key.pem"))
        except OSError as error:  # ssl's errors among them
            raise BackendError(
                f"The certificates for the Docker engine in {folder} can't be used ({in_words(error)}). DOCKER_CERT_PATH"
                " names the folder that has ca.pem, cert.pem and key.pem."
            ) from None
        return context


class _Refused(BackendError):
    """The engine answered with an error."""


def _is_unique(api_url: str) -> bool:
    """Whether no other hub can have that URL: its host is a public address, or a full name that isn't a private one."""
    host = urlsplit(api_url).hostname or ""
    try:
        return ipaddress.ip_address(host).is_global
    except ValueError:
        last = host.rstrip(".").rpartition(".")
        return bool(last[0]) and last[2] not in ("local", "localhost", "localdomain", "internal", "lan", "home", "test")


def _named(expected: Sequence[Expected]) -> tuple[dict[str, Key], dict[str, Key]]:
    """The servers by the id, or if that isn't kept by the name, of the container that their spawners' state names."""
    by_id: dict[str, Key] = {}
    by_name: dict[str, Key] = {}
    for ready in expected:
        state = ready.state or {}
        container = state.get("object_id") or state.get("container_id")
        name = state.get("object_name")
        if isinstance(container, str) and container:
            by_id[container] = ready.key
        elif isinstance(name, str) and name:
            by_name[name] = ready.key
    return by_id, by_name


def _rows(answer: object) -> list[_Row]:
    """The engine's list. Raises BackendError for what can't be one."""
    try:
        if not isinstance(answer, list):
            raise TypeError
        return [_row(container) for container in answer]
    except (TypeError, KeyError, AttributeError):
        raise BackendError(
            "The Docker engine's list of containers has another shape than its API promises. Is DOCKER_HOST its API?"
        ) from None


def _row(model: dict[str, object]) -> _Row:
    container = model["Id"]
    if not isinstance(container, str) or not _CONTAINER_ID.fullmatch(container):
        raise TypeError
    names = model.get("Names")
    first = names[0] if isinstance(names, list) and names else ""  # one that is being made or removed may have none
    return _Row(
        id=container,
        name=printable(str(first).lstrip("/")) or container[:12],
        state=_text(model["State"]),
        status=printable(str(model.get("Status") or "")),
        networks=_networks(model.get("NetworkSettings")),
    )


def _details(answer: object) -> _Details:
    """A container's own page. Raises BackendError, without its environment, for what can't be one."""
    try:
        if not isinstance(answer, dict):
            raise TypeError
        state = answer["State"]
        environment: dict[str, str] = {}
        for line in answer["Config"].get("Env") or ():
            name, _, value = line.partition("=")
            environment[name] = value
        return _Details(
            claim=claim_from(environment),
            state=_text(state["Status"]),
            run=_text(state["StartedAt"]),
            networks=_networks(answer.get("NetworkSettings")),
        )
    except (TypeError, KeyError, AttributeError):
        raise BackendError("The Docker engine described a container in another shape than its API promises.") from None


def _networks(settings: object) -> frozenset[str]:
    networks = settings.get("Networks") if isinstance(settings, dict) else None
    return frozenset(str(name) for name in networks) if isinstance(networks, dict) else frozenset()


def _text(value: object) -> str:
    if not isinstance(value, str):
        raise TypeError
    return value


def _time(text: str) -> datetime | None:
    """The engine's times have nanoseconds; that of the year 1 is that of a container that never started."""
    match = _TIME.fullmatch(text)
    if match is None or text.startswith("0001-"):
        return None
    zone = "+00:00" if match[3] == "Z" else match[3]
    try:
        time = datetime.fromisoformat(f"{match[1]}{(match[2] or '.0')[:7].ljust(7, '0')}{zone}")
    except ValueError:
        return None
    return time.astimezone(timezone.utc)
