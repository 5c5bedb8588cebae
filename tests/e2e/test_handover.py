"""The handover from an idle culler on a real hub: whatever goes wrong, exactly one of the two works."""

from __future__ import annotations

import asyncio
import json
import os
import signal
import sys
from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import Any

import pytest
from guarded import INCLUDE, QUICK, ask, gone, guards, servers, status
from handing_over import QUICK_TERMS, culler, runs, understudies
from jupyterhub import version_info
from peers import ONE, TWO, peer
from stand_ins import stand_in

from hubguard.staging.hub import TestbedHub
from hubguard.staging.processes import find_proxy_command, free_ports

MakeHub = Callable[..., Awaitable[TestbedHub]]

CONFIG = QUICK_TERMS + INCLUDE + QUICK
PATH = os.pathsep.join([str(Path(sys.executable).parent), os.environ.get("PATH", os.defpath)])


async def handed_over(hub: TestbedHub, culls: str, within_s: float = 60) -> dict[str, Any]:
    """The handover as the guard shows it, once it says that ``culls`` does."""
    found: dict[str, Any] = {}

    async def there() -> bool:
        found.clear()
        found.update((await status(hub))["handover"])
        return found["culls"] == culls

    try:
        await hub.wait_for(there, f"{culls} to cull", within_s)
    except Exception as error:
        raise AssertionError(f"{found}\n{error}") from error
    return found


async def works(hub: TestbedHub, name: str = "jupyterhub-idle-culler", within_s: float = 60) -> None:
    async def there() -> bool:
        return bool(runs(hub, name))

    await hub.wait_for(there, f"{name} to run", within_s)


async def waits(hub: TestbedHub, name: str = "jupyterhub-idle-culler", within_s: float = 60) -> None:
    async def over() -> bool:
        return not runs(hub, name)

    await hub.wait_for(over, f"{name} to end", within_s)


@pytest.mark.long
async def test_the_culler_waits_while_hubguard_culls_and_works_whenever_it_does_not(testbed_hub: MakeHub):
    """Taken over, armed by the entry alone, with its settings; then HubGuard hangs, wakes, is held and observes."""
    hub = await testbed_hub(
        config=CONFIG.replace("c.HubGuardCull.idle_timeout_s = 600.0\n", "")
        + culler("--timeout=5000", "--cull-every=1"),
        population=servers(idle=7200, fresh=4000),
    )
    await gone(hub, "idle")
    assert ("fresh", "") in await hub.servers()
    found = await handed_over(hub, "hubguard")
    assert found["armed_by"] == "culler"
    assert {"name": "HubGuardCull.idle_timeout_s", "value": "5000.0"} in found["settings"]
    assert runs(hub) == []
    assert (await status(hub))["stance"]["armed"] is None, "what the entry allows isn't kept longer than the entry"

    (guard,) = guards(hub)
    os.kill(guard, signal.SIGSTOP)  # it hangs
    await works(hub)
    os.kill(guard, signal.SIGCONT)
    await waits(hub)
    await handed_over(hub, "hubguard")

    assert (await ask(hub, "api/v1/hold", method="POST", json={"why": "exam"}))[0] == 200
    await asyncio.sleep(14)  # longer than any promise
    assert runs(hub) == [], "a hold holds for both"
    assert (await ask(hub, "api/v1/resume", method="POST", json={"why": ""}))[0] == 200
    await handed_over(hub, "hubguard")

    assert (await ask(hub, "api/v1/observe", method="POST", json={"why": ""}))[0] == 200
    await works(hub)
    assert (await handed_over(hub, "other"))["armed_by"] == "nobody"
    first = json.loads((hub.folder / "ran-jupyterhub-idle-culler.txt").read_text().splitlines()[0])
    assert first["words"] == ["--timeout=5000", "--cull-every=1"]
    (hub.folder / "cull-now.txt").touch()
    await gone(hub, "fresh")  # the original's token and rights are its own, and work

    (original,), (understudy,) = runs(hub), understudies(hub)
    os.kill(understudy, signal.SIGKILL)
    await waits(hub)
    assert original not in hub.leftovers()
    await hub.stop()
    assert not runs(hub)
    assert not understudies(hub)


@pytest.mark.long
@pytest.mark.parametrize("version", [ONE, TWO])
async def test_the_peer_itself_works_whenever_hubguard_does_not(testbed_hub: MakeHub, version: str):
    """The original of the understudy is jupyterhub-idle-culler from PyPI, with its own words and environment."""
    config = (
        CONFIG.replace("c.HubGuardCull.idle_timeout_s = 600.0\n", "")
        + culler("--timeout=60", "--cull-every=1")
        + "import os; os.remove('jupyterhub_idle_culler.py')\n"
        + f"c.JupyterHub.services[-1]['environment'] = {{'PYTHONPATH': {str(peer(version))!r}}}\n"
    )
    hub = await testbed_hub(config=config, population=servers(idle=7200))
    await gone(hub, "idle")
    assert runs(hub) == []
    await hub.start_server("late")
    assert (await ask(hub, "api/v1/observe", method="POST", json={"why": "a test"}))[0] == 200
    await works(hub)
    (guard,) = guards(hub)
    os.kill(guard, signal.SIGSTOP)  # whatever is stopped now is stopped by the peer

    async def stopped() -> bool:
        return await hub.server("late") is None

    await hub.wait_for(stopped, "the peer to stop what is idle by its own words", 120)
    os.kill(guard, signal.SIGCONT)

    async def armed() -> bool:
        # For a moment after it wakes, its journal doesn't answer.
        return (await ask(hub, "api/v1/arm", method="POST", json={"why": "a test"}))[0] == 200

    await hub.wait_for(armed, "HubGuard to be armed")
    await waits(hub)
    await handed_over(hub, "hubguard")
    assert understudies(hub)


FILTERED = ("list:users", "read:servers", "read:users:activity", "delete:servers!group=gpu")


@pytest.mark.long
async def test_hubguard_uses_the_cullers_url_and_keeps_to_its_filters(testbed_hub: MakeHub):
    """The URL that services are told leads nowhere, as in a pod that can't reach its own Service."""
    config = (
        QUICK_TERMS
        + "c.JupyterHub.load_groups = {'gpu': {'users': ['ann']}}\n"
        + "c.JupyterHub.hub_bind_url = f'http://127.0.0.1:{c.JupyterHub.hub_port}'\n"
        + "c.JupyterHub.hub_connect_url = 'http://127.0.0.1:9'\n"
        + culler("--timeout=600", "--cull-every=1", "--url=URL", scopes=FILTERED)
        + "c.JupyterHub.services[-1]['command'][-1] = f'--url=http://127.0.0.1:{c.JupyterHub.hub_port}/hub/api'\n"
        + INCLUDE
        + "c.HubGuard.read_proxy = False\n"
    )
    hub = await testbed_hub(config=config, population=servers(ann=7200, bo=7200))
    await gone(hub, "ann")
    await asyncio.sleep(3)
    assert ("bo", "") in await hub.servers()
    assert not runs(hub)


@pytest.mark.parametrize(
    ("line", "environment", "why"),
    [
        pytest.param(
            "", {"HUBGUARD_DB_URL": "sqlite:////proc/hubguard.sqlite"}, "HubGuard takes no action", id="folder"
        ),
        pytest.param("c.HubGuardBudget.rate = 'many'\n", {}, "rate", id="setting", marks=pytest.mark.long),
        pytest.param("c.HubGuard.armed = False\n", {}, "only observes", id="not armed", marks=pytest.mark.long),
    ],
)
async def test_where_hubguard_cannot_work_the_culler_does(
    testbed_hub: MakeHub, line: str, environment: dict[str, str], why: str
):
    hub = await testbed_hub(config=CONFIG + line + culler(), environment=environment)
    await works(hub)
    assert why in hub.log_text()
    found = await handed_over(hub, "other")
    assert why in found["others"][0]["detail"]


@pytest.mark.long
async def test_an_entry_that_is_removed_takes_its_limits_and_its_arming_along(testbed_hub: MakeHub):
    lines = culler("--timeout=28800").replace("\n", "\n    ")
    config = QUICK_TERMS + INCLUDE + f"import os\nif not os.path.exists('removed'):\n    {lines}\n"
    hub = await testbed_hub(config=config + "c.HubGuard.read_proxy = False\n", population=servers(idle=7200))
    await handed_over(hub, "hubguard")
    (hub.folder / "removed").touch()
    await hub.restart()
    found = await handed_over(hub, "nobody")
    assert found["armed_by"] == "nobody"
    assert found["settings"] == []

    async def said() -> bool:
        return any("no longer registered" in note for note in (await status(hub))["notes"])

    await hub.wait_for(said, "HubGuard to say that the culler is gone")


@pytest.mark.long
@pytest.mark.parametrize("code", ["raise SystemExit(3)", "import time; time.sleep(600)"], ids=["crashes", "hangs"])
async def test_a_hubguard_that_never_shows_up_leaves_the_work_to_the_culler(testbed_hub: MakeHub, code: str):
    hub = await testbed_hub(config=QUICK_TERMS + culler() + INCLUDE + stand_in(code))
    assert runs(hub) == []
    await works(hub)


UNREACHABLE = {
    "unix socket": "c.JupyterHub.hub_bind_url = c.JupyterHub.hub_connect_url = 'http+unix://' + quote(SOCKET, safe='')",
    "internal SSL": "c.JupyterHub.internal_ssl = True; c.JupyterHub.hub_port = PORTS[2]",
}


@pytest.mark.long
@pytest.mark.parametrize("kind", UNREACHABLE)
async def test_a_hub_that_the_service_cannot_reach_is_refused_by_name_and_keeps_its_culler(tmp_path: Path, kind: str):
    if kind == "unix socket" and version_info < (6,):
        pytest.skip("a hub listens at unix sockets from 6.0 on")
    config = (
        f"import os\nfrom urllib.parse import quote\nPORTS = {free_ports(3)!r}\nSOCKET = {str(tmp_path / 'hub.sock')!r}\n"
        f"{UNREACHABLE[kind]}\n"
        "c.JupyterHub.bind_url = f'http://127.0.0.1:{PORTS[0]}'\n"
        f"c.ConfigurableHTTPProxy.api_url = '{'https' if 'SSL' in kind else 'http'}://127.0.0.1:%d' % PORTS[1]\n"
        f"c.ConfigurableHTTPProxy.command = {find_proxy_command()!r}\n"
        "c.JupyterHub.authenticator_class = 'dummy'\nc.JupyterHub.spawner_class = 'simple'\n"
        "c.JupyterHub.services = []\nc.JupyterHub.load_roles = []\n" + culler() + INCLUDE
    )
    (tmp_path / "jupyterhub_config.py").write_text(config)
    log = tmp_path / "hub.log"
    with log.open("wb") as out:
        hub = await asyncio.create_subprocess_exec(
            sys.executable, "-m", "jupyterhub", cwd=tmp_path, stdout=out, stderr=out, env=dict(os.environ, PATH=PATH)
        )
    try:
        for _ in range(300):
            await asyncio.sleep(0.2)
            if (tmp_path / "ran-jupyterhub-idle-culler.txt").exists() and kind in log.read_text():
                break
        text = log.read_text()
        assert f"HubGuard's service can't reach a hub {'with' if 'SSL' in kind else 'at a'} {kind}" in text
        assert (tmp_path / "ran-jupyterhub-idle-culler.txt").exists(), text
        assert "understudy.py" not in text
    finally:
        # A hub that is told to end while it still starts may never end (6.1).
        for _ in range(100):
            if "JupyterHub is now running" in log.read_text():
                break
            await asyncio.sleep(0.2)
        hub.terminate()
        await asyncio.wait_for(hub.wait(), 30)
