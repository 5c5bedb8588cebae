"""Which processes are a hub's servers and which only look like it; and that nothing else is ended."""

from __future__ import annotations

import asyncio
import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Awaitable, Callable, Iterator
from dataclasses import replace
from datetime import datetime, timedelta, timezone
from pathlib import Path

import psutil
import pytest
from backend_checks import is_gone, living, of
from little_machine import ANOTHER_API, API, Machine, told

from hubguard.backends import process
from hubguard.backends.model import Backend
from hubguard.backends.port import Expected, Place
from hubguard.backends.process import ProcessBackends
from hubguard.errors import BackendError
from hubguard.staging.hub import TestbedHub
from hubguard.staging.processes import free_ports
from hubguard.staging.spawner import LITTLE_SERVER

pytestmark = pytest.mark.contract

CHECKOUT = Path(__file__).parents[2]

# A server that listens where it was told to, with one child that inherits all it was told, as a kernel does; the child's
# number is the first line. Argument: what the child is, "kernel", or "stranger" for one with an environment of its own.
WITH_CHILD = """
import os, signal, socket, subprocess, sys, time
from urllib.parse import urlsplit
listener = socket.create_server(("127.0.0.1", urlsplit(os.environ["JUPYTERHUB_SERVICE_URL"]).port))
wait = [sys.executable, "-S", "-c", "import signal, time; signal.signal(signal.SIGTERM, signal.SIG_IGN); time.sleep(600)"]
child = subprocess.Popen(wait, start_new_session=True, env={} if sys.argv[1] == "stranger" else None)
if sys.argv[1] == "stubborn":
    signal.signal(signal.SIGTERM, signal.SIG_IGN)
print(child.pid, flush=True)
time.sleep(600)
"""
WAITS = [sys.executable, "-S", "-c", "import time; print(1, flush=True); time.sleep(600)"]


def free_port() -> int:
    return free_ports(1)[0]


def runs(pid: int) -> bool:
    try:
        return psutil.Process(pid).status() != psutil.STATUS_ZOMBIE
    except psutil.NoSuchProcess:
        return False


@pytest.fixture
def machine(tmp_path: Path) -> Iterator[Machine]:
    machine = Machine(tmp_path)
    yield machine
    machine.end()


@pytest.fixture
def run() -> Iterator[Callable[..., tuple[subprocess.Popen[bytes], int]]]:
    """Runs a program till it prints a number; (process, number). It and what it names are killed afterwards."""
    started: list[tuple[subprocess.Popen[bytes], int]] = []

    def start(command: list[str], environment: dict[str, str]) -> tuple[subprocess.Popen[bytes], int]:
        running = subprocess.Popen(command, env=environment, stdout=subprocess.PIPE, start_new_session=True)
        number = int(running.stdout.readline())
        started.append((running, number))
        return running, number

    yield start
    for running, number in started:
        if running.poll() is None:
            for child in psutil.Process(running.pid).children(recursive=True):
                child.kill()
        running.kill()
        running.wait()
        running.stdout.close()
        if number > 1 and runs(number):
            os.kill(number, signal.SIGKILL)


def with_child(run, user: str, kind: str = "kernel", **more: str) -> tuple[subprocess.Popen[bytes], int]:
    return run([sys.executable, "-S", "-c", WITH_CHILD, kind], {**told(user, port=free_port()), **more})


async def look(backends: ProcessBackends, *expected: Expected) -> tuple[Backend, ...]:
    found = await backends.look(expected)
    assert backends.whole
    return found


@pytest.fixture
async def backends(machine: Machine) -> ProcessBackends:
    """Which has seen that it is where the hub is."""
    await machine.start("somebody")
    backends = ProcessBackends(Place(API))
    await look(backends)
    return backends


# which are servers


async def test_kernels_are_neither_servers_nor_orphans_even_when_they_outlive_theirs(backends, run) -> None:
    server, kernel = with_child(run, "ann")
    found = await look(backends)
    assert living(found, "ann").name == f"pid {server.pid}"
    server.kill()
    server.wait()
    assert runs(kernel)
    assert of(await look(backends), "ann") == []
    assert of(await look(ProcessBackends(Place(API))), "ann") == []


async def test_a_server_that_a_shell_started_is_the_shell(backends, run, monkeypatch) -> None:
    monkeypatch.setattr(process, "GRACE_S", 0.3)
    line = f"'{sys.executable}' -S -c '{WITH_CHILD}' kernel; true"
    shell, _ = run(["/bin/sh", "-c", line], told("ann", port=free_port()))
    backend = living(await look(backends), "ann")
    assert backend.name == f"pid {shell.pid}"
    await backends.end(backend)
    shell.wait()
    assert of(await look(backends), "ann") == []


async def test_one_that_does_not_listen_yet_is_a_server_when_the_hub_names_it(backends, run) -> None:
    starting, _ = run(WAITS, told("ann", port=free_port()))
    assert of(await look(backends), "ann") == []
    assert living(await look(backends, Expected("ann", "", state={"pid": starting.pid})), "ann").proof
    # And remains one once the hub has forgotten it.
    assert living(await look(backends), "ann").proof


async def test_a_managed_service_is_no_server_though_it_is_told_the_same(backends, run) -> None:
    with_child(run, "ann", JUPYTERHUB_SERVICE_NAME="culler")
    assert of(await look(backends), "ann") == []


async def test_what_becomes_a_server_by_exec_is_found_though_it_was_seen_before(backends, tmp_path, run) -> None:
    go = tmp_path / "go"
    program = f"""
import os, sys, time
print(1, flush=True)
while not os.path.exists({str(go)!r}):
    time.sleep(0.01)
os.execve(sys.executable, [sys.executable, "-S", "-c", {WITH_CHILD!r}, "kernel"], {told("ann", port=free_port())!r})
"""
    becoming, _ = run([sys.executable, "-S", "-c", program], {})
    assert of(await look(backends), "ann") == []
    go.touch()
    becoming.stdout.readline()
    assert living(await look(backends), "ann").name == f"pid {becoming.pid}"


async def test_environments_are_read_once(backends, machine, monkeypatch) -> None:
    monkeypatch.setattr(process, "SETTLED_S", -1.0)
    expected = await machine.start("ann")
    await look(backends, expected)
    read: list[int] = []
    environ = psutil.Process.environ
    monkeypatch.setattr(psutil.Process, "environ", lambda self: read.append(self.pid) or environ(self))
    later = await machine.start("later")
    for _ in range(3):
        living(await look(backends, expected, later), "ann")
    # Others come and go on this machine; of those, too, each is read once.
    assert len(read) == len(set(read))
    assert later.state["pid"] in read
    assert expected.state["pid"] not in read


async def test_a_slash_at_the_end_of_the_api_url_makes_no_difference(machine: Machine) -> None:
    await machine.start("ann", api_url=API + "/")
    await machine.start("bob")
    found = await look(ProcessBackends(Place(API + "/")))
    assert {backend.key for backend in found} == {("ann", ""), ("bob", "")}


# what the hub expects, and isn't there


async def test_a_zombie_is_gone(backends, machine: Machine) -> None:
    expected = await machine.start("ann")
    living(await look(backends, expected), "ann")
    (_, child) = machine.of("ann")[0]
    os.kill(child.pid, signal.SIGKILL)
    deadline = time.monotonic() + 10
    while psutil.Process(child.pid).status() != psutil.STATUS_ZOMBIE:
        assert time.monotonic() < deadline
        await asyncio.sleep(0.01)
    for looker in (backends, ProcessBackends(Place(API))):
        found = await look(looker, expected)
        assert is_gone(found, "ann", whole=False), found
        assert is_gone(await look(looker), "ann", whole=True)


async def test_a_number_that_another_process_has_by_now_is_not_the_server(backends, machine, run) -> None:
    long_ago = datetime.now(timezone.utc) - timedelta(days=1)
    anybody, _ = run(WAITS, {"PATH": "/bin"})
    bobs = await machine.start("bob")
    theirs = await machine.start("ann", api_url=ANOTHER_API)
    for pid, started in (
        (anybody.pid, long_ago),
        (bobs.state["pid"], long_ago),
        (bobs.state["pid"], bobs.started),
        (theirs.state["pid"], long_ago),
    ):
        expected = Expected("ann", "", started, "http://127.0.0.1:9", {"pid": pid})
        (backend,) = of(await look(backends, expected), "ann")
        assert backend.alive is False
        assert "another process" in backend.detail
        assert not backend.proof


async def test_without_proof_it_is_told_by_its_start_or_by_where_it_listens_and_never_ended(backends, run) -> None:
    now = datetime.now(timezone.utc)
    bare, _ = run(WAITS, {"PATH": "/bin"})
    port = free_port()
    listener, _ = run(
        [sys.executable, "-S", "-c", WITH_CHILD, "kernel"],
        {"JUPYTERHUB_SERVICE_URL": f"http://127.0.0.1:{port}/"},
    )
    long_ago = now - timedelta(days=1)
    for expected in (
        Expected("ann", "", now, "http://127.0.0.1:9", {"pid": bare.pid}),
        Expected("ann", "", long_ago, f"http://127.0.0.1:{port}", {"pid": listener.pid}),
    ):
        backend = living(await look(backends, expected), "ann")
        assert not backend.proof
        for asked in (backend, replace(backend, proof="believe me")):
            with pytest.raises(BackendError, match="isn't proved"):
                await backends.end(asked)
    assert runs(bare.pid)
    assert runs(listener.pid)
    unknown = Expected("ann", "", None, None, {"pid": bare.pid})
    assert of(await look(backends, unknown), "ann")[0].alive is None


async def test_one_of_an_earlier_run_does_not_hide_that_the_one_the_hub_names_is_gone(backends, machine) -> None:
    earlier = await machine.start("ann")
    now = await machine.start("ann")
    found = of(await look(backends, now), "ann")
    assert [(backend.alive, bool(backend.proof)) for backend in found] == [(True, True), (True, True)]
    machine.of("ann")[1][0].send(signal.SIGKILL)
    machine.of("ann")[1][1].wait()
    for looker in (backends, ProcessBackends(Place(API))):
        found = of(await look(looker, now), "ann")
        assert {backend.name: backend.alive for backend in found} == {
            f"pid {earlier.state['pid']}": True,
            f"pid {now.state['pid']}": False,
        }


@pytest.mark.parametrize("state", [None, {}, {"pid": 0}, {"pid": "12"}, {"pid": -1}, {"pod_name": "x"}])
async def test_a_state_that_names_no_process_is_no_error(backends, machine: Machine, state) -> None:
    expected = await machine.start("ann")
    living(await look(backends, replace(expected, state=state)), "ann")
    assert of(await look(backends, Expected("bob", "", state=state)), "bob")[0].alive is False


async def test_from_another_machine_nothing_is_told_to_be_gone() -> None:
    backends = ProcessBackends(Place("http://hub.elsewhere:8081/hub/api"))
    (backend,) = await backends.look([Expected("ann", "", datetime.now(timezone.utc), None, {"pid": 2**22 + 1})])
    assert backend.alive is None
    assert "another machine" in backend.detail
    assert not backends.whole


async def test_an_account_that_may_not_read_them_tells_less_and_nothing_wrong(machine: Machine) -> None:
    if os.geteuid() != 0:
        pytest.skip("only root can become an account that may read nothing")
    expected = [await machine.start("ann"), await machine.start("bob"), await machine.start("cat")]
    machine.kill("bob")
    # Its own server is what shows it that it is where the hub is. All is imported before: it may read no files after.
    program = f"""
import asyncio, concurrent.futures.thread, json, os, subprocess, sys
from datetime import datetime
from hubguard.backends.port import Expected, Place
from hubguard.backends.process import ProcessBackends
from hubguard.errors import BackendError
os.setgroups([]); os.setgid(54321); os.setuid(54321)
mine = subprocess.Popen(["/bin/sleep", "600"], env={told("mine")!r}, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
expected = [
    Expected(user, "", datetime.fromisoformat(at), target, state)
    for user, at, target, state in json.loads(sys.argv[1])
]
expected += [Expected("mine", "", None, None, {{"pid": mine.pid}}), Expected("unknown", "", None, None, None)]
async def main():
    backends = ProcessBackends(Place({API!r}))
    found = await backends.look(expected)
    try:
        await backends.end(next(backend for backend in found if backend.user == "ann"))
        ended = True
    except BackendError:
        ended = False
    print(json.dumps([backends.whole, ended, {{one.user: [one.alive, bool(one.proof)] for one in found}}]))
try:
    asyncio.run(main())
finally:
    mine.kill()
    mine.wait()
"""
    # A person's process that can't be read: as a stand-in, one of the account 54322.
    words = json.dumps([[one.user, one.started.isoformat(), one.target, one.state] for one in expected])
    other = subprocess.Popen(["/bin/sleep", "600"], user=54322)
    try:
        asked = await asyncio.to_thread(
            subprocess.run,
            [sys.executable, "-c", program, words],
            env={"PYTHONPATH": str(CHECKOUT), "PATH": os.environ["PATH"]},
            capture_output=True,
            text=True,
            timeout=60,
        )
    finally:
        other.kill()
        other.wait()
    assert asked.returncode == 0, asked.stderr
    whole, ended, told_of = json.loads(asked.stdout)
    assert not whole
    assert not ended
    assert told_of == {
        "ann": [True, False],
        "bob": [False, False],
        "cat": [True, False],
        "mine": [True, True],
        "unknown": [None, False],
    }
    assert machine.lives("ann")


# ending


async def test_its_kernels_end_with_it_and_what_is_not_proved_to_be_its_own_does_not(
    backends, run, monkeypatch
) -> None:
    monkeypatch.setattr(process, "GRACE_S", 0.3)
    ann, anns_kernel = with_child(run, "ann", "stubborn")
    bob, stranger = with_child(run, "bob", "stranger")
    found = await look(backends)
    for user, server in (("ann", ann), ("bob", bob)):
        await backends.end(living(found, user))
        server.wait()
    assert not runs(anns_kernel)
    assert runs(stranger)
    assert runs(os.getpid())


async def test_a_frozen_server_ends_too(backends, machine: Machine, monkeypatch) -> None:
    monkeypatch.setattr(process, "GRACE_S", 0.3)
    expected = await machine.start("ann")
    backend = living(await look(backends, expected), "ann")
    machine.of("ann")[0][0].send(signal.SIGSTOP)
    await backends.end(backend)
    assert not machine.lives("ann")


async def test_a_process_with_its_number_but_another_start_is_not_ended(backends, machine: Machine) -> None:
    expected = await machine.start("ann")
    backend = living(await look(backends, expected), "ann")
    pid, _, began = backend.id.partition(":")
    for wrong in (f"{pid}:{float(began) - 100:.2f}", pid, f"{pid}:", "1:0", "", "nonsense", f"{2**22 + 1}:1.00"):
        await backends.end(replace(backend, id=wrong))
    assert machine.lives("ann")


async def test_the_names_must_be_those_that_its_environment_has(backends, machine: Machine) -> None:
    expected = await machine.start("ann")
    backend = living(await look(backends, expected), "ann")
    for wrong in (replace(backend, user="bob"), replace(backend, server="second")):
        with pytest.raises(BackendError, match="isn't proved"):
            await backends.end(wrong)
    assert machine.lives("ann")


async def test_a_number_that_is_given_away_between_the_two_signals_is_not_killed(
    backends, machine: Machine, monkeypatch
) -> None:
    monkeypatch.setattr(process, "GRACE_S", 0.0)
    expected = await machine.start("ann")
    backend = living(await look(backends, expected), "ann")
    machine.of("ann")[0][0].send(signal.SIGSTOP)
    # The moment SIGTERM is sent, that process is, for all that can be read, another hub's.
    terminate = psutil.Process.terminate

    def and_then(self: psutil.Process) -> None:
        terminate(self)
        monkeypatch.setattr(psutil.Process, "environ", lambda self: told("ann", api_url=ANOTHER_API))

    monkeypatch.setattr(psutil.Process, "terminate", and_then)
    await backends.end(backend)
    assert machine.lives("ann")


async def test_hubguard_does_not_end_itself_when_it_runs_inside_a_server(machine: Machine) -> None:
    program = f"""
import asyncio, os, psutil
from hubguard.backends.port import Place
from hubguard.backends.process import ProcessBackends
from hubguard.backends.model import Backend
from hubguard.errors import BackendError
me = psutil.Process()
backend = Backend("process", f"{{me.pid}}:{{me.create_time():.2f}}", "ann", "", True, "me", proof="it is me")
try:
    asyncio.run(ProcessBackends(Place({API!r})).end(backend))
except BackendError as error:
    print("refused")
"""
    asked = await asyncio.to_thread(
        subprocess.run,
        [sys.executable, "-c", program],
        env={**told("ann"), "PYTHONPATH": str(CHECKOUT)},
        capture_output=True,
        text=True,
        timeout=60,
    )
    assert asked.stdout == "refused\n", asked.stderr


# real hubs

Hubs = Callable[..., Awaitable[TestbedHub]]


async def expected_of(hub: TestbedHub) -> list[Expected]:
    return [
        Expected(user, name, datetime.fromisoformat(server["started"].replace("Z", "+00:00")), None, server["state"])
        for (user, name), server in (await hub.servers()).items()
    ]


@pytest.mark.long
async def test_of_two_hubs_on_one_machine_each_sees_its_own_even_under_the_same_names(testbed_hub: Hubs) -> None:
    one, other = await testbed_hub(), await testbed_hub(hub_prefix="/other/")
    for hub in (one, other):
        await hub.start_server("ann")
        await hub.start_server("ann", "shared", shared=True)
    await other.start_server("bob")
    lookers = {hub: ProcessBackends(Place(hub.api_url, hub.hub_prefix)) for hub in (one, other)}
    pids = {}
    for hub, looker in lookers.items():
        expected = await expected_of(hub)
        found = await look(looker, *expected)
        pids[hub] = {backend.name for backend in found if backend.proof}
        assert {backend.key for backend in found} == {(server.user, server.server) for server in expected}
        assert all(backend.alive for backend in found)
        # The endpoint that several share is nobody's own.
        assert not living(found, "ann", "shared").proof
        assert living(found, "ann").proof
    assert not pids[one] & pids[other]
    theirs = living(await look(lookers[other]), "ann")
    with pytest.raises(BackendError):
        await lookers[one].end(theirs)
    assert len([backend for backend in await look(lookers[other]) if backend.alive]) == 2


@pytest.mark.long
async def test_an_orphan_by_a_stop_that_raised_is_found_and_ended(testbed_hub: Hubs) -> None:
    hub = await testbed_hub()
    await hub.start_server("ann", on_stop="raises")
    await hub.start_server("bob")
    backends = ProcessBackends(Place(hub.api_url))
    assert (await hub.api("DELETE", "users/ann/server")).status == 204
    assert set(await hub.servers()) == {("bob", "")}
    orphan = living(await look(backends, *await expected_of(hub)), "ann")
    assert orphan.proof
    await backends.end(orphan)
    found = await look(backends, *await expected_of(hub))
    assert of(found, "ann") == []
    living(found, "bob")


@pytest.mark.long
async def test_the_hubs_own_spawner_of_local_processes(testbed_hub: Hubs, tmp_path: Path) -> None:
    # It gives a port and no socket.
    server = tmp_path / "server.py"
    server.write_text(
        "import os, socket, sys\n"
        "from urllib.parse import urlsplit\n"
        f"sys.path.insert(0, {str(LITTLE_SERVER.parent)!r})\n"
        "from little_server import serve\n"
        "port = urlsplit(os.environ['JUPYTERHUB_SERVICE_URL']).port\n"
        "serve(os.environ['JUPYTERHUB_USER'], '', socket.create_server(('127.0.0.1', port)))\n"
    )
    hub = await testbed_hub(
        config=f"""
c.JupyterHub.spawner_class = "simple"
c.SimpleLocalProcessSpawner.home_dir_template = {str(tmp_path / "{username}")!r}
c.Spawner.cmd = [{sys.executable!r}, "-S", {str(server)!r}]
c.Spawner.poll_interval = 1
"""
    )
    await hub.start_server("ann")
    await hub.start_server("bob")
    backends = ProcessBackends(Place(hub.api_url))
    expected = await expected_of(hub)
    assert [set(one.state) for one in expected] == [{"pid"}, {"pid"}]
    found = await look(backends, *expected)
    assert living(found, "ann").proof
    assert living(found, "bob").proof
    # A hub that has lost what it knew, and one that is gone, leave orphans.
    assert living(await look(ProcessBackends(Place(hub.api_url))), "ann").proof
    await hub.kill()
    ann = living(await look(backends), "ann")
    await backends.end(ann)
    found = await look(backends, *expected)
    assert is_gone(found, "ann", whole=True)
    os.kill(int(living(found, "bob").id.partition(":")[0]), signal.SIGKILL)
    deadline = time.monotonic() + 10
    while not is_gone(found, "bob", whole=True):
        assert time.monotonic() < deadline
        found = await look(backends, *expected)
