"""What tests of the handover share: a stand-in for an idle culler that shows when it runs, and quick terms."""

from __future__ import annotations

from contextlib import suppress
from pathlib import Path
from typing import Any

from guarded import commands
from virtual_time import VirtualClock

from hubguard import understudy
from hubguard.inhub.handover import Culler, Handover
from hubguard.staging.hub import TestbedHub

QUICK_TERMS = (
    "import hubguard.understudy as _understudy\n_understudy.Terms.__new__.__defaults__ = (20.0, 6.0, 6.0, 0.5, 0.1)\n"
)
"""Config lines that let an understudy wait 20 s for HubGuard to start, and call it silent after 6 s."""

CULLER = """
import json, os, sys, time, urllib.request
name = os.environ["JUPYTERHUB_SERVICE_NAME"]
with open(f"ran-{name}.txt", "a") as file:
    file.write(json.dumps({"pid": os.getpid(), "words": sys.argv[1:], "api": os.environ["JUPYTERHUB_API_URL"]}) + "\\n")
def ask(method, path):
    url = os.environ["JUPYTERHUB_API_URL"] + path
    headers = {"Authorization": "token " + os.environ["JUPYTERHUB_API_TOKEN"]}
    return urllib.request.urlopen(urllib.request.Request(url, method=method, headers=headers)).read()
while True:
    if os.path.exists("cull-now.txt"):
        for user in json.loads(ask("GET", "/users?state=ready")):
            ask("DELETE", f"/users/{user['name']}/server")
    time.sleep(0.2)
"""
"""It stops every server as soon as ``cull-now.txt`` is there."""

SCOPES = ("list:users", "read:users:activity", "read:servers", "delete:servers")


def culler(*options: str, name: str = "jupyterhub-idle-culler", scopes: tuple[str, ...] = SCOPES, **more: str) -> str:
    """Config lines that register the stand-in as z2jh registers the idle culler."""
    command = ["-m", "jupyterhub_idle_culler", *options]
    return (
        "import sys\n"
        f"open('jupyterhub_idle_culler.py', 'w').write({CULLER!r})\n"
        f"c.JupyterHub.services.append({{'name': {name!r}, 'command': [sys.executable, *{command!r}], **{more!r}}})\n"
        f"c.JupyterHub.load_roles.append({{'name': {name!r}, 'services': [{name!r}], 'scopes': {list(scopes)!r}}})\n"
    )


def runs(hub: TestbedHub, name: str = "jupyterhub-idle-culler") -> list[int]:
    """The pids of the originals of that service that run now."""
    found = []
    for pid, words in commands(hub).items():
        with suppress(OSError):
            mine = f"JUPYTERHUB_SERVICE_NAME={name}".encode() in Path(f"/proc/{pid}/environ").read_bytes().split(b"\0")
            if mine and b"jupyterhub_idle_culler" in words and b"--" not in words:
                found.append(pid)
    return found


def understudies(hub: TestbedHub) -> list[int]:
    """The pids of the understudies of this hub, without the keepers of their originals."""
    parents = {}
    for pid, words in commands(hub).items():
        with suppress(OSError):
            if any(word.endswith(b"understudy.py") for word in words):
                parents[pid] = int(Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[1])
    return [pid for pid, parent in parents.items() if parent not in parents]


def replaced(folder: Path, **changes: Any) -> Handover:
    """What the include tells of one culler, cull-idle, whose place HubGuard takes."""
    culler = Culler("cull-idle", ("jupyterhub-idle-culler",), **changes)
    settings: dict[str, dict[str, object]] = {"HubGuardCull": {"idle_timeout_s": 600.0}}
    return Handover((culler,), replaced=True, settings=settings, folder=str(folder))


class StandIn:
    """An understudy in virtual time, whose original ends at once. ``runs`` lists (when, whether the original runs)."""

    def __init__(self, folder: Path, clock: VirtualClock) -> None:
        self.runs: list[tuple[float, bool]] = []
        self._folder = folder
        self._clock = clock
        self._past = understudy.Past(clock.monotonic_s())

    async def live(self) -> None:
        while True:
            self.turn()
            await self._clock.sleep(1.0)

    def turn(self) -> None:
        now_s = self._clock.monotonic_s()
        step = understudy.decide(understudy.read_claim(self._folder), self._past, understudy.Terms(), now_s)
        if step.promises:
            self._past = self._past._replace(able_s=now_s, until_s=now_s + understudy.PROMISE_S)
        if not self.runs or self.runs[-1][1] != step.runs:
            self.runs.append((now_s, step.runs))
        report = understudy.Report(self._past.until_s, step.runs, step.why, now_s)
        understudy.write(self._folder / understudy.report_file(0), report)

    @property
    def original_runs(self) -> bool:
        return bool(self.runs) and self.runs[-1][1]
