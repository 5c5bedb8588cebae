"""Both generations of jupyterhub-idle-culler and the drop-in on the same hub: what each stops and deletes in one cycle."""

from __future__ import annotations

import asyncio
import copy
import json
import os
import signal
import subprocess
import sys
from collections.abc import Awaitable, Callable
from dataclasses import dataclass, field
from pathlib import Path

import pytest
from culler_lines import LINES
from doubles.scripted_hub import TOKEN, Person, ScriptedHub, Srv
from guarded import gone, servers
from peers import ONE, TWO, peer

from hubguard.inhub.idle_culler import DEFAULTS
from hubguard.staging.hub import TestbedHub

pytestmark = pytest.mark.contract

CYCLE_S = 60.0
SCOPES = ("list:users", "read:users:activity", "read:servers", "delete:servers")
"""What the culler's own documentation gives it."""

MakeHub = Callable[..., Awaitable[TestbedHub]]

# Runs a culler's own main() and ends it when its first cycle has.
ONE_CYCLE = """
import jupyterhub_idle_culler as culler
from tornado.ioloop import IOLoop
cull_idle = culler.cull_idle
async def once(*args, **kwargs):
    try:
        await cull_idle(*args, **kwargs)
    finally:
        IOLoop.current().stop()
culler.cull_idle = once
culler.main()
"""

READ_LINES = """
import contextlib, json, os, sys
import jupyterhub_idle_culler as culler
from tornado.log import define_logging_options
from tornado.options import OptionParser
class Started(BaseException):
    pass
class Loop:
    def current(): return Loop
    def add_callback(cull): Loop.cull = cull
    def start(): raise Started
culler.IOLoop = Loop
def read(words):
    sys.argv = ["culler", *words]
    parser = OptionParser()
    define_logging_options(parser)
    if hasattr(culler, "IdleCuller"):
        culler.IdleCuller.clear_instance()
    else:
        culler.define, culler.options, culler.parse_command_line = parser.define, parser, parser.parse_command_line
    try:
        with contextlib.redirect_stdout(sys.stderr):
            culler.main()
    except Started:
        asked = Loop.cull.keywords
        return {"timeout": asked["inactive_limit"], **{name: value for name, value in asked.items() if name in WANTED}}
    except (Exception, SystemExit):
        return None
WANTED, lines = json.load(sys.stdin)
print(json.dumps([read(words) for words in lines]))
"""

NO_ACTIVITY_OF_OLD = "Activity of an earlier run doesn't count against a server that was just started."
CAME_BACK = "HubGuard reads each server or user again right before the request, and leaves alone anyone who came back."
SWITCHES_HOLD = "Maximum age doesn't overrule a switch: HubGuard never stops servers that are switched off."
HOOK_HOLDS = "Maximum age doesn't overrule the hook."
NAMES_ARE_QUOTED = "Names in a path are quoted, so that every server and user can be reached."
ITS_SERVER_FIRST = (
    "HubGuard deletes a user when a list shows none of their servers, not in the cycle that stops the last of these."
)


@dataclass(frozen=True)
class Situation:
    """People on a hub, options, and what the drop-in asks the hub to do in one cycle.

    ``different`` has what only one side asks for, with the reason; everything else both ask for. ``config`` is a config file,
    which 1.4.0 doesn't read. ``peers`` are the versions that know these options.
    """

    name: str
    options: tuple[str, ...]
    people: tuple[Person, ...]
    asked: frozenset[str]
    different: dict[str, str] = field(default_factory=dict)
    config: str = ""
    peers: tuple[str, ...] = (ONE, TWO)


def people(**servers: Srv) -> tuple[Person, ...]:
    """A user with a default server each."""
    return tuple(Person(name, {"": server}) for name, server in servers.items())


IDLE, BUSY = {"idle": 3600.0}, {"idle": 20.0}

SITUATIONS = (
    Situation(
        "timeout",
        ("--timeout=600",),
        (
            *people(
                idle=Srv(**IDLE),
                busy=Srv(**BUSY),
                naive=Srv(**IDLE, naive=True),
                naive_busy=Srv(**BUSY, naive=True),
                skewed=Srv(idle=-3600),
                spawning=Srv(**IDLE, ready=False, pending="spawn"),
                stopping=Srv(**IDLE, pending="stop"),
                not_ready=Srv(**IDLE, ready=False),
                never_used=Srv(idle=None, age=7000),
                just_started=Srv(idle=None, age=20),
                no_times=Srv(idle=None, age=None),
                no_start=Srv(idle=3600, age=None),
                old_activity=Srv(idle=90_000, age=30),
                came_back=Srv(**IDLE, by_then_idle=1),
                restarted=Srv(**IDLE, by_then_age=1, by_then_idle=1),
                slow=Srv(**IDLE, answer=202),
                failing=Srv(**IDLE, answer=500),
                after_failing=Srv(**IDLE),
            ),
            Person("named", {"gpu": Srv(**IDLE), "cpu": Srv(**BUSY), "": Srv(**BUSY)}),
            Person("all", {"gpu": Srv(**IDLE), "cpu": Srv(**IDLE), "": Srv(**IDLE)}),
            Person("admin", {"": Srv(**IDLE)}, admin=True),
            Person("Ann Smith", {"my lab": Srv(**IDLE)}),
            Person("ünï+code@ü.org", {"": Srv(**IDLE)}),
            Person("half/half", {"": Srv(**IDLE)}),
            Person("per%2Fcent?#", {"a/b": Srv(**IDLE)}),
            Person("nobody", {}, idle=90_000),
        ),
        frozenset(
            {
                *("stop idle", "stop naive", "stop never_used", "stop no_start", "stop slow", "stop failing"),
                *("stop after_failing", "stop named/gpu", "stop all", "stop all/gpu", "stop all/cpu", "stop admin"),
                *("stop Ann Smith/my lab", "stop ünï+code@ü.org", "stop half/half", "stop per%2Fcent?#/a/b"),
            }
        ),
        {
            "stop old_activity": NO_ACTIVITY_OF_OLD,
            "stop came_back": CAME_BACK,
            "stop restarted": CAME_BACK,
            "stop half/half": NAMES_ARE_QUOTED,
            "lost /hub/api/users/half/half/server": NAMES_ARE_QUOTED,
            "stop per%2Fcent?#/a/b": NAMES_ARE_QUOTED,
            "lost /hub/api/users/per%252Fcent%3F%23/servers/a/b": NAMES_ARE_QUOTED,
        },
    ),
    Situation(
        "defaults",
        (),
        people(idle=Srv(idle=700), busy=Srv(idle=500), old=Srv(idle=20, age=900_000)),
        frozenset({"stop idle"}),
    ),
    Situation(
        "max age",
        ("--timeout=600", "--max-age=3600", "--cull-named-servers=false", "--remove-named-servers=true"),
        (
            *people(young=Srv(**BUSY, age=600), old=Srv(**BUSY, age=7000), no_start=Srv(**BUSY, age=None)),
            Person("idle", {"gpu": Srv(**IDLE, age=3000), "": Srv(**IDLE, age=3000)}),
            Person("named", {"gpu": Srv(**BUSY, age=7000)}),
        ),
        frozenset({"stop old", "stop idle"}),
        {"remove named/gpu": SWITCHES_HOLD},
    ),
    Situation(
        "named servers only, removed, one user a page",
        ("--timeout=600", "--cull-default-servers=false", "--remove-named-servers=true", "--api-page-size=1"),
        (
            *people(idle=Srv(**IDLE), busy=Srv(**BUSY)),
            Person("ann", {"gpu": Srv(**IDLE), "": Srv(**IDLE), "cpu": Srv(**BUSY)}),
            Person("bob", {"gpu": Srv(**IDLE)}),
        ),
        frozenset({"remove ann/gpu", "remove bob/gpu"}),
    ),
    Situation(
        "every server",
        ("--timeout=0", "--cull-every=600", "--concurrency=0"),
        people(idle=Srv(**IDLE), busy=Srv(idle=1), spawning=Srv(ready=False, pending="spawn")),
        frozenset({"stop idle", "stop busy"}),
    ),
    Situation(
        "a hook",
        ("--timeout=600", "--max-age=50000", "--config={config}"),
        people(
            idle=Srv(**IDLE),
            busy=Srv(**BUSY),
            spared=Srv(**IDLE, profile="unlimited"),
            early=Srv(idle=300, profile="eager"),
            raising=Srv(**IDLE, profile="broken"),
            came_back=Srv(**IDLE, by_then_idle=1),
            no_times=Srv(idle=None, age=None),
            spared_and_old=Srv(**IDLE, age=90_000, profile="unlimited"),
        ),
        frozenset({"stop idle", "stop early"}),
        {"stop spared_and_old": HOOK_HOLDS, "stop came_back": CAME_BACK},
        config="""
async def hook(inactive, inactive_limit, server):
    assert inactive_limit == 600
    profile = server["state"]["profile_name"]
    assert server["user_options"] == {"profile": profile}
    limit = {"unlimited": 1e9, "eager": 60, "": inactive_limit}[profile]
    return inactive.total_seconds() >= limit
c.IdleCuller.cull_arbiter_hook = hook
""",
        peers=(TWO,),
    ),
    Situation(
        "a config file beneath the command line",
        ("--timeout=600", "--config={config}"),
        people(idle=Srv(idle=900, age=3000), some=Srv(idle=300, age=3000), old=Srv(**BUSY, age=7000)),
        frozenset({"stop idle", "stop old"}),
        config="c.IdleCuller.timeout = 60\nc.IdleCuller.max_age = 3600\nc.IdleCuller.log_level = 'DEBUG'\n",
        peers=(TWO,),
    ),
    Situation(
        "users",
        ("--timeout=600", "--max-age=2000000", "--cull-users=true"),
        (
            Person("gone"),
            Person("here", idle=20),
            Person("admin", admin=True),
            Person("never", idle=None),
            Person("new", idle=None, age=20),
            Person("no_times", idle=None, age=None),
            Person("old", idle=20, age=9_000_000),
            Person("back", by_then_idle=1),
            Person("Ann Smith"),
            Person("half/half"),
            Person("failing", answer=500),
            Person("works", {"": Srv(**BUSY)}, idle=20),
            Person("spawns", {"": Srv(**IDLE, ready=False, pending="spawn")}),
            Person("half_idle", {"": Srv(**IDLE), "gpu": Srv(**BUSY)}),
            Person("slow", {"": Srv(**IDLE, answer=202)}),
            Person("idle", {"": Srv(**IDLE)}),
        ),
        frozenset(
            {
                *("delete gone", "delete admin", "delete never", "delete old", "delete Ann Smith", "delete half/half"),
                *("delete failing", "stop half_idle", "stop slow", "stop idle"),
            }
        ),
        {
            "delete back": CAME_BACK,
            "delete Ann Smith": NAMES_ARE_QUOTED,
            "delete half/half": NAMES_ARE_QUOTED,
            "lost /hub/api/users/half/half": NAMES_ARE_QUOTED,
            "delete idle": ITS_SERVER_FIRST,
        },
    ),
    Situation(
        "users but not admins",
        ("--timeout=600", "--cull-users=true", "--cull-admin-users=false"),
        (Person("gone"), Person("admin", admin=True), Person("boss", {"": Srv(**IDLE)}, admin=True)),
        frozenset({"delete gone", "stop boss"}),
    ),
)


async def run_peer(version: str, folder: Path, situation: Situation, cwd: Path) -> set[str]:
    async with ScriptedHub(list(fresh(situation)), may_delete_users=True) as hub:
        process = await asyncio.create_subprocess_exec(
            *(sys.executable, "-c", ONE_CYCLE, *with_config(situation, cwd)),
            env=environ(hub, PYTHONPATH=str(folder)),
            cwd=cwd,
            stderr=asyncio.subprocess.PIPE,
        )
        _, said = await asyncio.wait_for(process.communicate(), CYCLE_S)
        assert process.returncode == 0, said.decode()
        assert "Traceback" not in said.decode() or hub.asked, said.decode()
        return set(hub.asked)


async def run_ours(situation: Situation, cwd: Path, **more: str) -> tuple[set[str], str]:
    """What the drop-in asks for in its first cycle, and what it logs until it has ended."""
    async with ScriptedHub(list(fresh(situation)), may_delete_users=True) as hub:
        process = await asyncio.create_subprocess_exec(
            *(sys.executable, "-m", "hubguard.culler", *with_config(situation, cwd)),
            env=environ(hub, **more),
            cwd=cwd,
            stderr=asyncio.subprocess.PIPE,
        )
        assert process.stderr is not None
        said = b""
        try:
            while b"Cycle done" not in said:
                line = await asyncio.wait_for(process.stderr.readline(), CYCLE_S)
                assert line, f"it ended by itself:\n{said.decode()}"
                said += line
            process.terminate()
            said += await asyncio.wait_for(process.stderr.read(), CYCLE_S)
            assert await process.wait() == 0, said.decode()
        finally:
            if process.returncode is None:
                process.kill()
                await process.wait()
        assert len(hub.asked) == len(set(hub.asked)), "something was asked for twice"
        assert [file.name for file in cwd.iterdir()] == ["hub_culler.py"], "it needs a disk"
        assert hub.tokens == {f"token {TOKEN}"}
        return set(hub.asked), said.decode()


def fresh(situation: Situation) -> list[Person]:
    """People whom no other run has changed."""
    return copy.deepcopy(list(situation.people))


def with_config(situation: Situation, cwd: Path) -> list[str]:
    file = cwd / "hub_culler.py"
    file.write_text(situation.config)
    return [option.format(config=file) for option in situation.options]


def environ(hub: ScriptedHub, **more: str) -> dict[str, str]:
    ours = {"JUPYTERHUB_API_URL": hub.api_url, "JUPYTERHUB_API_TOKEN": TOKEN}
    kept = {name: os.environ[name] for name in ("PATH", "HOME", "LANG", "PYTHONPATH") if name in os.environ}
    return {**kept, **ours, **more}


@pytest.mark.parametrize("situation", SITUATIONS, ids=lambda situation: situation.name)
async def test_it_stops_what_the_idle_culler_stops_but_for_what_is_listed(situation: Situation, tmp_path: Path):
    folders = {version: peer(version) for version in situation.peers}
    theirs = [run_peer(version, folder, situation, tmp_path) for version, folder in folders.items()]
    (ours, said), *theirs_asked = await asyncio.gather(run_ours(situation, tmp_path), *theirs)
    assert ours == situation.asked, said
    for version, asked in zip(folders, theirs_asked, strict=True):
        assert asked ^ ours == set(situation.different), version
    assert TOKEN not in said


@pytest.mark.parametrize(("number", "name"), [(signal.SIGTERM, "SIGTERM"), (signal.SIGINT, "SIGINT")])
async def test_it_ends_at_once_and_cleanly_when_told_to_with_a_stop_under_way(number: int, name: str, tmp_path: Path):
    endless = Situation("", ("--timeout=600",), people(endless=Srv(**IDLE, answer=202, slow_s=3600)), frozenset())
    async with ScriptedHub(fresh(endless)) as hub:
        process = await asyncio.create_subprocess_exec(
            *(sys.executable, "-m", "hubguard.culler", *endless.options),
            env=environ(hub),
            cwd=tmp_path,
            stderr=asyncio.subprocess.PIPE,
        )
        try:
            await asyncio.wait_for(hub.asked_for("stop endless"), CYCLE_S)
            process.send_signal(number)
            _, said = await asyncio.wait_for(process.communicate(), 10)
        finally:
            if process.returncode is None:
                process.kill()
                await process.wait()
    assert process.returncode == 0, said.decode()
    assert "Traceback" not in said.decode()
    assert "Signal received: ending." in said.decode()


@pytest.mark.parametrize(("version", "column"), [(ONE, 1), (TWO, 2)])
def test_each_version_reads_a_command_line_as_the_table_says(version: str, column: int, tmp_path: Path):
    folder = peer(version)
    done = subprocess.run(
        [sys.executable, "-c", READ_LINES],
        input=json.dumps([list(DEFAULTS), [line[0] for line in LINES]]),
        env={**os.environ, "PYTHONPATH": str(folder), "JUPYTERHUB_API_TOKEN": TOKEN},
        cwd=tmp_path,
        capture_output=True,
        text=True,
        check=True,
        timeout=60,
    )
    for line, read in zip(LINES, json.loads(done.stdout), strict=True):
        meant = line[column]
        if meant is None or read is None:
            assert read == meant, line
        else:
            changed = {name: value for name, value in read.items() if value is not None and value != DEFAULTS[name]}
            assert changed == meant, line


async def test_what_z2jh_runs_works_with_only_the_modules_name_changed(tmp_path: Path):
    """2.0.0 itself rejects it, for the bare --cull-users."""
    options = ("--timeout=3600", "--cull-every=600", "--concurrency=10", "--remove-named-servers")
    here = people(idle=Srv(idle=4000), busy=Srv(idle=3000))
    asked, said = await run_ours(Situation("", options, here, frozenset({"stop idle"})), tmp_path)
    assert asked == {"stop idle"}, said


async def test_the_token_is_in_no_log_even_when_all_is_logged_and_the_hub_refuses_it(tmp_path: Path):
    refused = Situation("", ("--timeout=600", "--logging=debug"), (), frozenset())
    async with ScriptedHub([], refuses=True) as hub:
        process = await asyncio.create_subprocess_exec(
            *(sys.executable, "-m", "hubguard.culler", *refused.options),
            env=environ(hub),
            cwd=tmp_path,
            stderr=asyncio.subprocess.PIPE,
        )
        assert process.stderr is not None
        said = b""
        try:
            while b"Cycle done" not in said:
                line = await asyncio.wait_for(process.stderr.readline(), CYCLE_S)
                assert line, said.decode()
                said += line
        finally:
            process.kill()
            said += await process.stderr.read()
            await process.wait()
    assert "refused to list its servers" in said.decode()
    assert TOKEN not in said.decode()


def as_a_service(*options: str, scopes: tuple[str, ...]) -> str:
    """Config lines that register a culler as z2jh does, but for the module's name."""
    service = {
        "name": "jupyterhub-idle-culler",
        "command": [sys.executable, "-m", "hubguard.culler", *options],
        "environment": {name: os.environ[name] for name in ("PYTHONPATH",) if name in os.environ},
    }
    role = {"name": "jupyterhub-idle-culler", "services": ["jupyterhub-idle-culler"], "scopes": list(scopes)}
    return f"c.JupyterHub.services.append({service!r})\nc.JupyterHub.load_roles.append({role!r})\n"


@pytest.mark.long
async def test_on_a_real_hub_it_needs_no_more_scopes_than_the_culler(testbed_hub: MakeHub):
    hub = await testbed_hub(
        config=as_a_service("--timeout=600", "--cull-every=2", scopes=SCOPES),
        population=servers(idle=3600, busy=20),
    )
    await gone(hub, "idle")
    assert [user for user, _ in await hub.servers()] == ["busy"]
    await hub.wait_for(lambda: _said(hub, "stop-server idle (idle): done"), "the log to tell of it")


async def _said(hub: TestbedHub, text: str) -> bool:
    return text in hub.log_text()


def test_the_docs_tell_every_difference():
    docs = (Path(__file__).parents[2] / "docs" / "reference" / "idle-culler.md").read_text()
    for reason in {reason for situation in SITUATIONS for reason in situation.different.values()}:
        assert f"- {reason}" in docs
