"""Backends that are units of systemd, as SystemdSpawner makes them; by systemctl and their processes' environment."""

from __future__ import annotations

import asyncio
import contextlib
import os
import re
import shlex
import shutil
import string
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime

import psutil
from typing_extensions import override

from hubguard.backends.claim import Claim, claim_from
from hubguard.backends.model import Backend
from hubguard.backends.port import Backends, Expected, Place
from hubguard.errors import BackendError
from hubguard.hub.http import LONGEST_QUOTE, printable
from hubguard.model import Key

DEFAULT_TEMPLATE = "jupyter-{USERNAME}-singleuser"
"""SystemdSpawner's own (1.0.2). Units have no server's name in them: a user's named servers take the place of each other."""

_PROPERTIES = "Id,LoadState,ActiveState,SubState,Result,Transient,MainPID,ExecMainStartTimestamp,InvocationID"
_VALID = frozenset((string.ascii_letters + string.digits + ":-_.\\@").encode())
_UNIT = re.compile(r"[A-Za-z0-9:_.\\@-]{1,255}")
_ESCAPE = re.compile(rb"\\x([0-9a-f]{2})")


def open_backends(place: Place) -> Backends:
    """The units of this machine that are servers of that hub. Never raises: ``look`` reports what is wrong."""
    return SystemdBackends(place)


@dataclass(frozen=True, slots=True)
class _Unit:
    """A unit as systemctl shows it. ``pid`` 0: it has no process; ``run`` is the id of its last start, "" for none."""

    name: str
    loaded: bool
    transient: bool
    active: str
    sub: str
    result: str
    pid: int
    run: str
    started: datetime | None

    @property
    def alive(self) -> bool | None:
        """None while it starts, stops or is active without a process of its own that runs."""
        if self.active in ("inactive", "failed"):
            return False
        return True if self.active == "active" and self.sub == "running" and self.pid else None

    @property
    def detail(self) -> str:
        """Its state in systemd's words."""
        result = f", {self.result}" if self.result not in ("", "success") else ""
        return f"{self.active} ({self.sub}{result})"


class SystemdBackends(Backends):
    """Implements Backends. A look is one call of systemctl, and the environment of each unit's main process.

    A unit is proved by its name, which must be what the hub's template makes of the user, and by the API URL in its
    process's environment; that can be read by root and by the same account alone.
    """

    kind = "systemd"
    whole = True

    def __init__(self, place: Place, *, timeout_s: float = 10.0) -> None:
        """``timeout_s`` is for one call of systemctl, after which it is killed."""
        self._place = place
        self._api_url = place.api_url.rstrip("/")
        self._timeout_s = timeout_s
        template = place.settings.get("unit_name_template")
        self._template = template if isinstance(template, str) and template else DEFAULT_TEMPLATE
        self._claims: dict[tuple[str, str, int], Claim] = {}

    @override
    async def look(self, expected: Sequence[Expected]) -> tuple[Backend, ...]:
        """Reports unexpected units only while they live.

        If a unit's process can't be read, its name shows the user, and there is no proof. If a server's own isn't seen to
        run, another hub's may be it, from before this hub's URL changed, if the server's state or its own name says so: then
        it is unknown whether the server runs.
        """
        pattern, fits = self._names()
        state_names = {name: ready.key for ready in expected if (name := _named_by(ready)) is not None}
        others = sorted(name for name in state_names if not fits.fullmatch(name))
        units = [unit for unit in await self._show([pattern, *others]) if unit.loaded and unit.transient]
        claims = await asyncio.to_thread(self._read_claims, units)
        keys = {ready.key for ready in expected}
        backends: dict[str, Backend] = {}
        strangers: list[Backend] = []
        nobodys = 0
        for unit in units:
            claim = claims.get(unit.name)
            if claim is not None and claim.api_url != self._api_url:
                stranger = self._stranger(unit, claim, state_names, keys)
                if stranger is not None:
                    strangers.append(stranger)
                continue
            key: Key | None
            if claim is not None and claim.key in keys:
                key = claim.key
            else:
                key = state_names.get(unit.name)
                if key is None:
                    key = claim.key if claim is not None else _by_name(unit.name, fits, keys)
            if unit.alive is False and key not in keys:
                continue
            if key is None:
                nobodys += 1
                continue
            backends[unit.name] = Backend(
                kind=self.kind,
                id=f"{unit.name}@{unit.run}",
                user=key[0],
                server=key[1],
                alive=unit.alive,
                name=f"unit {unit.name}",
                started=unit.started,
                proof=self._proof(claim),
                command=_stop(unit.name),
                detail=unit.detail
                if claim is not None or not unit.pid
                else f"{unit.detail}; its process doesn't show whose it is",
            )
        running = {backend.key for backend in backends.values() if backend.alive}
        backends.update((backend.id, backend) for backend in strangers if backend.key not in running)
        if nobodys:
            for user, server in keys - {backend.key for backend in backends.values()}:
                backends[f"{user}/{server}"] = Backend(
                    kind=self.kind,
                    id=f"of {user}/{server}",
                    user=user,
                    server=server,
                    alive=None,
                    name=f"the unit of {user}",
                    detail=f"it could be one of {nobodys} whose process can't be read",
                )
        return tuple(sorted(backends.values(), key=lambda backend: (*backend.key, backend.id)))

    @override
    async def end(self, backend: Backend) -> None:
        """Systemd gives it the unit's own time to stop, by default 90 s, and then kills all of it."""
        name, _, run = backend.id.rpartition("@")
        if not _UNIT.fullmatch(name):
            raise BackendError(f"{printable(backend.id)!r} isn't the id of a unit, so nothing was ended.")
        unit = next((unit for unit in await self._show([name]) if unit.name == name), None)
        if unit is None or not unit.loaded or unit.alive is False:
            return
        if unit.run != run:
            raise BackendError(f"Unit {name} was started again since it was looked at, so it wasn't ended. Look again.")
        self._claims.pop((unit.name, unit.run, unit.pid), None)
        claim = (await asyncio.to_thread(self._read_claims, [unit])).get(name) if unit.transient else None
        if not self._proof(claim):
            raise BackendError(
                f"Unit {name} wasn't ended: HubGuard can't confirm that it belongs to this hub ({self._api_url}). To end it"
                f" yourself: {_stop(name)}"
            )
        await self._systemctl("stop", "--no-block", "--no-ask-password", "--", name)

    @override
    async def close(self) -> None:
        pass

    def _names(self, user: str | None = None) -> tuple[str, re.Pattern[str]]:
        """What systemctl finds the hub's units by, and what matches their names, with the user's as the group "user".

        With ``user``, it matches the names of that user's units only. Raises BackendError if the template makes no sense.
        """
        pattern, regex, named = "", "", False
        who = "(?P<user>.+)" if user is None else f"(?P<user>{re.escape(_mangled(user))})"
        try:
            for literal, field, _, _ in string.Formatter().parse(self._template):
                pattern += _mangled(literal)
                regex += re.escape(_mangled(literal))
                if field is None:
                    continue
                pattern += "*"
                if field == "USERNAME":
                    regex += "(?P=user)" if named else who
                    named = True
                else:
                    regex += r"\d+" if field == "USERID" else ".*"
        except ValueError:
            raise BackendError(
                f"SystemdSpawner.unit_name_template, {printable(self._template)!r}, can't be understood, so no unit is known"
                " to be this hub's."
            ) from None
        if not pattern.endswith(".service"):
            pattern, regex = f"{pattern}.service", rf"{regex}\.service"
        return pattern, re.compile(regex)

    def _stranger(
        self, unit: _Unit, claim: Claim, state_names: Mapping[str, Key], keys: Iterable[Key]
    ) -> Backend | None:
        """What a live unit whose process names another hub's API may be of this hub's; None: nothing expected."""
        key = state_names.get(unit.name)
        if key is None:
            named = claim.key
            # The process is the user's, who could have it say anything; the unit's name is a hub's.
            fits = named in keys and self._names(claim.user)[1].fullmatch(unit.name)
            key = named if fits and named not in state_names.values() else None
        if key is None or unit.alive is False:
            return None
        return Backend(
            kind=self.kind,
            id=f"{unit.name}@{unit.run}",
            user=key[0],
            server=key[1],
            alive=None,
            name=f"unit {unit.name}",
            started=unit.started,
            detail=f"{claim.whose}, so it is unknown whose it is; {unit.detail}",
            command=_stop(unit.name),
        )

    def _proof(self, claim: Claim | None) -> str:
        proof = "" if claim is None else claim.proof(self._api_url)
        return f"its name is by this hub's template, and {proof}" if proof else ""

    def _read_claims(self, units: Iterable[_Unit]) -> dict[str, Claim]:
        """By unit, if its process can be read and the claim in its environment fits its name. Blocks; run it in a thread."""
        claims: dict[tuple[str, str, int], Claim] = {}
        for unit in units:
            place = (unit.name, unit.run, unit.pid)
            claim = self._claims.get(place)
            if claim is None and unit.pid:
                # What isn't a server yet may become one: right after the start, it is still systemd's own.
                claim = _read_claim(unit.pid)
                # The process is the user's, who could have it say anything; the unit's name is the hub's.
                if (
                    claim is not None
                    and claim.api_url == self._api_url
                    and not self._names(claim.user)[1].fullmatch(unit.name)
                ):
                    claim = None
            if claim is not None:
                claims[place] = claim
        self._claims = claims
        return {name: claim for (name, _, _), claim in claims.items()}

    async def _show(self, names: Sequence[str]) -> list[_Unit]:
        # Of its output forms, this one is the same in all versions; times come in the zone that it is told.
        out = await self._systemctl("show", "--no-pager", f"--property={_PROPERTIES}", "--", *names)
        units = [_unit(block) for block in out.split("\n\n") if block.strip()]
        return list({unit.name: unit for unit in units}.values())

    async def _systemctl(self, *arguments: str) -> str:
        """What it prints. Raises BackendError if it can't be run, fails or takes too long."""
        path = self._place.environ.get("PATH") or os.environ.get("PATH") or os.defpath
        command = shutil.which("systemctl", path=path)
        if command is None:
            raise BackendError(
                "There is no systemctl on HubGuard's PATH, so units can't be seen. HubGuard has to run on the hub's machine,"
                ' outside containers; or set HubGuardDrift.backend to "http".'
            )
        process = await asyncio.create_subprocess_exec(
            command,
            *arguments,
            stdin=asyncio.subprocess.DEVNULL,
            stdout=asyncio.subprocess.PIPE,
            stderr=asyncio.subprocess.PIPE,
            env={"PATH": path, "LC_ALL": "C", "TZ": "UTC"},
        )
        try:
            out, errors = await asyncio.wait_for(process.communicate(), self._timeout_s)
        except asyncio.TimeoutError:
            raise BackendError(
                f"systemctl {arguments[0]} took longer than {self._timeout_s:g} s: systemd or its bus hangs or is overloaded."
            ) from None
        finally:
            if process.returncode is None:
                with contextlib.suppress(ProcessLookupError):
                    process.kill()
                await process.wait()
        if process.returncode != 0:
            said = printable(" ".join(errors.decode("utf-8", "replace").split()))[:LONGEST_QUOTE]
            raise BackendError(f"systemctl {arguments[0]} failed ({process.returncode}{': ' if said else ''}{said}).")
        return out.decode("utf-8", "replace")


def _unit(block: str) -> _Unit:
    """One unit from the lines "Name=value" that are its properties. Raises BackendError for what can't be that."""
    properties = dict(line.split("=", 1) for line in block.splitlines() if "=" in line)
    if not properties.get("Id") or not properties.get("ActiveState"):
        raise BackendError("systemctl show printed what isn't a unit's properties, so units can't be seen.")
    pid = properties.get("MainPID", "0")
    try:
        started = datetime.strptime(
            properties.get("ExecMainStartTimestamp", "") + "+0000", "%a %Y-%m-%d %H:%M:%S UTC%z"
        )
    except ValueError:
        started = None
    return _Unit(
        name=properties["Id"],
        loaded=properties.get("LoadState") == "loaded",
        transient=properties.get("Transient") == "yes",
        active=properties["ActiveState"],
        sub=properties.get("SubState", ""),
        result=properties.get("Result", ""),
        pid=int(pid) if pid.isdecimal() else 0,
        run=properties.get("InvocationID", ""),
        started=started,
    )


def _read_claim(pid: int) -> Claim | None:
    """The claim of that process; None if it can't be read, is gone, or isn't a server's."""
    try:
        return claim_from(psutil.Process(pid).environ())
    except (psutil.Error, OSError):
        return None


def _named_by(ready: Expected) -> str | None:
    """The unit that its spawner's state names, which holds even after the template was changed."""
    name = (ready.state or {}).get("unit_name")
    if not isinstance(name, str) or not name:
        return None
    unit = _mangled(name)
    unit = unit if unit.endswith(".service") else f"{unit}.service"
    return unit if _UNIT.fullmatch(unit) else None


def _by_name(unit: str, fits: re.Pattern[str], keys: set[Key]) -> Key | None:
    """The server that a unit of that name must be for, if its process shows nothing; None if the name doesn't, either.

    A name shows the user only: of the user's servers, it is the default one, unless just one that is named is expected.
    """
    match = fits.fullmatch(unit)
    mangled = match.groupdict().get("user") if match else None
    if mangled is None:
        return None
    user = _ESCAPE.sub(lambda code: bytes([int(code[1], 16)]), mangled.encode()).decode("utf-8", "replace")
    servers = [key for key in keys if key[0] == user]
    return servers[0] if len(servers) == 1 else (user, "")


def _stop(unit: str) -> str:
    return f"systemctl stop {shlex.quote(unit)}"


def _mangled(text: str) -> str:
    """As systemd-run makes it a part of a unit's name."""
    out = ""
    for byte in text.encode():
        out += "-" if byte == ord("/") else chr(byte) if byte in _VALID else f"\\x{byte:02x}"
    return out
