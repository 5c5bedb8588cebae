"""Units for tests: of the real systemd where it is process 1 here, and of a fake systemctl over real processes."""

from __future__ import annotations

import asyncio
import contextlib
import json
import os
import secrets
import shutil
import subprocess
import sys
from collections.abc import Mapping
from pathlib import Path

import psutil

FAKE = '''\
#!{python} -ISE
"""Answers show and stop as systemctl of systemd 252 does, for units that are files beside it, with real processes."""
import fnmatch, json, os, signal, sys, time
from pathlib import Path

folder = Path(__file__).resolve().parent

def lives(pid):
    try:
        return Path(f"/proc/{{pid}}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except OSError:
        return False

def page(unit):
    runs = unit["state"] != "failed" and lives(unit["pid"])
    active, sub = (unit["state"], unit["sub"]) if runs else ("failed", "failed")
    stamp = time.strftime("%a %Y-%m-%d %H:%M:%S %Z", time.localtime(unit["at"]))
    return {{"MainPID": unit["pid"] if runs else 0, "Result": "success" if runs else "signal",
        "ExecMainStartTimestamp": stamp, "Id": unit["name"], "LoadState": "loaded", "ActiveState": active,
        "SubState": sub, "Transient": unit["transient"], "InvocationID": unit["run"]}}

with open(folder / "calls", "a") as calls:
    calls.write(json.dumps(sys.argv[1:]) + "\\n")
fault = folder / "fault"
if fault.exists():
    exec(fault.read_text())
cut = sys.argv.index("--")
options, names = sys.argv[1:cut], sys.argv[cut + 1:]
units = {{}}
for file in folder.glob("*.json"):
    unit = json.loads(file.read_text())
    units[unit["name"]] = unit
if options[0] == "show":
    wanted = next(one for one in options if one.startswith("--property=")).partition("=")[2].split(",")
    blocks = []
    for name in names:
        if any(c in name for c in "*?["):
            pages = [page(unit) for known, unit in units.items() if fnmatch.fnmatchcase(known, name)]
        elif name in units:
            pages = [page(units[name])]
        else:
            pages = [{{"MainPID": 0, "Result": "success", "ExecMainStartTimestamp": "", "Id": name,
                "LoadState": "not-found", "ActiveState": "inactive", "SubState": "dead", "Transient": "no",
                "InvocationID": ""}}]
        blocks += ["".join(f"{{key}}={{value}}\\n" for key, value in one.items() if key in wanted) for one in pages]
    sys.stdout.write("\\n".join(blocks))
elif options[0] == "stop":
    for name in names:
        if name not in units:
            sys.exit(f"Failed to stop {{name}}: Unit {{name}} not loaded.")
        os.kill(units[name]["pid"], signal.SIGTERM)
else:
    sys.exit(f"Unknown command verb {{options[0]}}.")
'''


def mangled(name: str) -> str:
    """What systemd-run makes of a name that isn't one, by systemd-escape's rules, said for bytes."""
    good = set(b"abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMNOPQRSTUVWXYZ0123456789:-_.\\@")
    return "".join("-" if byte == 47 else chr(byte) if byte in good else f"\\x{byte:02x}" for byte in name.encode())


class FakeSystemd:
    """A systemctl on a PATH of its own, and units whose processes are this test's."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self._processes: dict[str, subprocess.Popen[bytes]] = {}
        script = folder / "systemctl"
        script.write_text(FAKE.format(python=sys.executable))
        script.chmod(0o755)
        self.path = str(folder)

    @property
    def calls(self) -> list[list[str]]:
        """The arguments of each call of systemctl, in order."""
        file = self._folder / "calls"
        return [json.loads(line) for line in file.read_text().splitlines()] if file.exists() else []

    def fault(self, code: str) -> None:
        """Have each call run that Python first."""
        (self._folder / "fault").write_text(code)

    async def start(self, name: str, environ: Mapping[str, str]) -> str:
        process = subprocess.Popen(["/bin/sleep", "600"], env=dict(environ))
        self._processes[name] = process
        self.change(
            name,
            pid=process.pid,
            run=secrets.token_hex(16),
            at=psutil.Process(process.pid).create_time(),
            state="active",
            sub="running",
            transient="yes",
        )
        return str(self._unit(name)["run"])

    def change(self, name: str, **values: object) -> None:
        """Have systemctl tell something else of that unit."""
        self._file(name).write_text(json.dumps({**self._unit(name), **values}))

    def _file(self, name: str) -> Path:
        return self._folder / f"{mangled(name).encode().hex()}.json"

    def _unit(self, name: str) -> dict[str, object]:
        file = self._file(name)
        return dict(json.loads(file.read_text())) if file.exists() else {"name": f"{mangled(name)}.service"}

    async def kill(self, name: str) -> None:
        self._processes[name].kill()
        self._processes[name].wait()

    async def lives(self, name: str) -> bool:
        return self._processes[name].poll() is None

    async def close(self) -> None:
        self.end_all()

    def end_all(self) -> None:
        """Kill every process."""
        for process in self._processes.values():
            process.kill()
            process.wait()


class RealSystemd:
    """The machine's own systemd: units by systemd-run, as SystemdSpawner 1.0.2 makes them."""

    def __init__(self) -> None:
        self.path = os.environ["PATH"]
        self._names: list[str] = []

    @staticmethod
    def missing() -> str:
        """Why there is none here, "" where there is."""
        if not os.path.isdir("/run/systemd/system"):
            return "systemd isn't process 1 here"
        if os.geteuid() != 0 or shutil.which("systemd-run") is None:
            return "starting units takes root and systemd-run"
        return ""

    async def _run(self, *command: str) -> str:
        process = await asyncio.create_subprocess_exec(
            *command, stdout=asyncio.subprocess.PIPE, stderr=asyncio.subprocess.DEVNULL
        )
        out, _ = await process.communicate()
        return out.decode().strip()

    async def start(self, name: str, environ: Mapping[str, str]) -> str:
        await self._run("systemctl", "reset-failed", f"{mangled(name)}.service")
        given = [f"--setenv={key}={value}" for key, value in environ.items()]
        await self._run("systemd-run", "--unit", name, "--property=OOMPolicy=continue", *given, "/bin/sleep", "600")
        self._names.append(name)
        assert await self.lives(name)
        pid = int(await self._show(name, "MainPID"))
        while psutil.Process(pid).name() != "sleep":
            await asyncio.sleep(0.01)
        return await self._show(name, "InvocationID")

    async def kill(self, name: str) -> None:
        await self._run("systemctl", "kill", "--signal=SIGKILL", f"{mangled(name)}.service")
        while await self.lives(name):
            await asyncio.sleep(0.05)

    async def lives(self, name: str) -> bool:
        return await self._show(name, "ActiveState") in ("active", "deactivating")

    async def close(self) -> None:
        for name in self._names:
            with contextlib.suppress(OSError):
                await self._run("systemctl", "stop", f"{mangled(name)}.service")
                await self._run("systemctl", "reset-failed", f"{mangled(name)}.service")

    async def _show(self, name: str, what: str) -> str:
        return await self._run("systemctl", "show", "--value", "-p", what, f"{mangled(name)}.service")
