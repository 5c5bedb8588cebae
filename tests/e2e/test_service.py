"""HubGuard on a real hub, a real proxy and real little servers: it does its work, and nothing it suffers hurts the hub."""

from __future__ import annotations

import asyncio
import json
import os
import secrets
import signal
import socket
import sqlite3
from collections.abc import Awaitable, Callable
from pathlib import Path

import aiohttp
import pytest
import pytest_asyncio
from guarded import ARMED, OBSERVING, QUICK, ask, external, gone, guards, mode, places_of, servers, status

from hubguard.staging.hub import TestbedHub
from hubguard.staging.processes import free_ports

MakeHub = Callable[..., Awaitable[TestbedHub]]

GIVEN = secrets.token_hex(16)
NAMES = ["sl/ash", "que?stion", "ha#sh", "per%2fcent", 'quo"te', "less<than", "käthe", "李雷", "sp ace"]


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def armed(shared_hub: MakeHub) -> TestbedHub:
    """For those who only look."""
    population = servers(idle=7200, busy=60, **dict.fromkeys(NAMES, 7200))
    return await shared_hub(config=ARMED, population=population, environment={"HUBGUARD_API_TOKEN": GIVEN})


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def observing(shared_hub: MakeHub, tmp_path_factory: pytest.TempPathFactory) -> TestbedHub:
    """Whoever arms it puts that back, and `late` is kept for the test that has it stopped."""
    file = tmp_path_factory.mktemp("observing") / "hubguard_config.py"
    file.write_text("c.HubGuardCull.idle_timeout_s = 5000.0\n")
    environment = {"HUBGUARD_CONFIG": str(file)}
    population = servers(idle=7200, late=7200, ada=60)
    hub = await shared_hub(config=OBSERVING, population=population, environment=environment)
    await mode(hub, "observing")
    code, answer = await ask(hub, "api/v1/exemptions", method="POST", json={"user": "late", "for_s": 3600})
    assert code == 200, answer
    return hub


async def test_an_armed_guard_stops_the_idle_and_leaves_the_others(armed: TestbedHub):
    hub = armed
    await gone(hub, "idle", *NAMES)
    assert ("busy", "") in await hub.servers()
    outcomes: list[tuple[str, str]] = []

    async def settled() -> bool:
        code, journal = await ask(hub, "api/v1/journal")
        assert code == 200
        outcomes[:] = sorted((entry["user"], entry["outcome"]) for entry in journal if entry["event"] == "outcome")
        return len(outcomes) > len(NAMES)

    # The hub forgets a server a moment before HubGuard has seen that.
    await hub.wait_for(settled, "the outcome to be in the journal")
    assert outcomes == sorted((user, "done") for user in ["idle", *NAMES])


async def test_a_first_install_only_observes_until_an_admin_arms_it(observing: TestbedHub):
    hub = observing
    await asyncio.sleep(2)
    assert ("idle", "") in await hub.servers()
    code, answer = await ask(hub, "api/v1/arm", method="POST", json={"why": "we have looked long enough"})
    assert code == 200, answer
    await gone(hub, "idle")
    assert (await ask(hub, "api/v1/observe", method="POST", json={}))[0] == 200


async def test_settings_that_stand_after_the_include_hold(armed: TestbedHub):
    await mode(armed, "acting")
    _, answer = await ask(armed, "api/v1/servers/busy/")
    assert answer["idle_timeout_s"] == 600.0, answer
    assert "10 min" in str(answer["facts"])


async def test_a_config_file_of_its_own_holds_for_a_guard_that_the_hub_runs(observing: TestbedHub):
    """A managed service doesn't inherit HUBGUARD_CONFIG; the file was ignored, and servers stopped by the defaults."""
    _, answer = await ask(observing, "api/v1/servers/ada/")
    assert answer["idle_timeout_s"] == 5000.0, answer


async def test_wrong_settings_are_named_on_the_page_and_nothing_is_done(testbed_hub: MakeHub):
    config = (
        "c.HubGuardCull.idle_timeout = 60\nc.HubGuardCull.max_age_s = -1\nc.HubGuardCull.hook = lambda server: True\n"
    )
    hub = await testbed_hub(config=ARMED + config, population=servers(idle=7200))
    found = await mode(hub, "troubled")
    assert "HubGuardCull.hook: a function" in found["errors"][0]
    assert "HubGuardCull.hook" in found["why"]
    names = ["HubGuardCull.hook", "HubGuardCull.idle_timeout", "HubGuardCull.max_age_s"]
    assert [error.partition(":")[0] for error in found["errors"]] == names
    await asyncio.sleep(2)
    assert ("idle", "") in await hub.servers()


@pytest.mark.long
async def test_a_database_that_cannot_be_reached_hurts_nobody_and_is_named(testbed_hub: MakeHub):
    (port,) = free_ports(1)
    config = ARMED + f"c.HubGuard.db_url = 'postgresql://u:hunter2@127.0.0.1:{port}/x'\n"
    hub = await testbed_hub(config=config, population=servers(idle=7200))
    found = await mode(hub, "troubled")
    assert "hunter2" not in str(found)
    assert str(port) in found["why"]
    assert "hunter2" not in hub.log_text()
    assert ("idle", "") in await hub.servers()


@pytest.mark.long
async def test_a_port_that_is_taken_costs_the_page_and_nothing_else(testbed_hub: MakeHub):
    with socket.socket() as other:
        other.bind(("127.0.0.1", 0))
        port = other.getsockname()[1]
        config = f"c.HubGuard.url = 'http://127.0.0.1:{port}'\n" + ARMED
        hub = await testbed_hub(config=config, population=servers(idle=7200))
        await gone(hub, "idle")
        assert "Can't listen on 127.0.0.1 port" in hub.log_text()
    await mode(hub, "acting")


@pytest.mark.long
async def test_beside_a_culler_that_is_to_stay_it_only_observes(testbed_hub: MakeHub):
    culler = (
        "import sys\nopen('jupyterhub_idle_culler.py', 'w').write('import time; time.sleep(600)')\n"
        "c.HubGuard.on_idle_culler = 'refuse'\n"
        "c.JupyterHub.services.append({'name': 'culler', 'command': [sys.executable, '-m', 'jupyterhub_idle_culler']})\n"
    )
    hub = await testbed_hub(config=ARMED + culler, population=servers(idle=7200))
    found = await mode(hub, "observing")
    assert "culler culls, and only one of the two may act" in found["why"]
    await asyncio.sleep(2)
    assert ("idle", "") in await hub.servers()


async def test_no_token_is_in_the_hubs_database_its_log_or_any_command_line(armed: TestbedHub):
    hub = armed
    await gone(hub, "idle")
    (guard,) = guards(hub)
    parts = Path(f"/proc/{guard}/environ").read_text().split("\0")
    environ = dict(part.split("=", 1) for part in parts if "=" in part)
    tokens = (environ["JUPYTERHUB_API_TOKEN"], json.loads(environ["HUBGUARD_REGISTRATION"])["proxy"]["auth_token"])
    assert tokens[0] == GIVEN
    assert all(len(token) >= 32 for token in tokens)
    assert (hub.folder / "hubguard.sqlite").exists()
    assert places_of(hub, *tokens) == []


@pytest.mark.long
async def test_after_kill_9_of_the_hub_the_old_guard_ends_and_the_new_one_acts_alone(testbed_hub: MakeHub):
    hub = await testbed_hub(config=ARMED, population=servers(idle=7200))
    await gone(hub, "idle")
    (old,) = guards(hub)
    await hub.kill()
    await hub.start()

    async def replaced() -> bool:
        return len(guards(hub)) == 1 and guards(hub) != [old]

    await hub.wait_for(replaced, "the old guard to end")
    assert (await mode(hub, "acting"))["holds_lease"]


@pytest.mark.long
async def test_a_frozen_old_guard_acts_no_more_when_it_thaws(testbed_hub: MakeHub):
    """SIGSTOP is the worst kind of survivor: it holds what it believes to be its lease, and wakes up much later."""
    hub = await testbed_hub(config=ARMED, population=servers(busy=60))
    await mode(hub, "acting")
    (old,) = guards(hub)
    os.kill(old, signal.SIGSTOP)
    await hub.kill()
    await hub.start()

    async def acting() -> bool:
        return (await status(hub))["mode"] == "acting" and (await status(hub))["holds_lease"]

    await hub.wait_for(acting, "the new guard to act")
    with sqlite3.connect(hub.folder / "hubguard.sqlite") as journal:
        fence = journal.execute("select max(fence) from hubguard_entry").fetchone()[0]
    os.kill(old, signal.SIGCONT)

    async def ended() -> bool:
        return old not in guards(hub)

    await hub.wait_for(ended, "the thawed guard to end")
    with sqlite3.connect(hub.folder / "hubguard.sqlite") as journal:
        later = journal.execute("select max(fence) from hubguard_entry where event = 'intent'").fetchone()[0]
    assert later is None or later >= fence


@pytest.mark.long
async def test_two_external_guards_on_one_postgresql_take_turns(
    testbed_hub: MakeHub, postgresql_url: str, tmp_path: Path
):
    """The one without the lease waits; when the other is killed it takes over, and never do both act."""
    hub = await testbed_hub(population=servers(idle=7200, late=60))
    settings = tmp_path / "hubguard_config.py"
    settings.write_text("c = get_config()\n" + QUICK + "c.HubGuard.armed = True\n")
    processes: list[asyncio.subprocess.Process] = []
    ports = free_ports(2)
    try:
        for port in ports:
            command, environ = external(hub, port, postgresql_url, HUBGUARD_CONFIG=str(settings))
            with (tmp_path / f"log{port}").open("wb") as log:
                processes.append(
                    await asyncio.create_subprocess_exec(*command, env=environ, cwd=tmp_path, stdout=log, stderr=log)
                )
        await gone(hub, "idle")

        async def modes() -> dict[int, str]:
            found = {}
            async with aiohttp.ClientSession(headers={"Authorization": f"token {hub.token}"}) as session:
                for port in ports:
                    try:
                        async with session.get(f"http://127.0.0.1:{port}/services/hubguard/api/v1/status") as answer:
                            found[port] = (await answer.json())["mode"]
                    except aiohttp.ClientError:
                        found[port] = "no answer"
            return found

        async def one_acts() -> bool:
            return sorted((await modes()).values()) == ["acting", "standby"]

        await hub.wait_for(one_acts, "one guard to act and the other to stand by")
        acting = next(port for port, found in (await modes()).items() if found == "acting")
        processes[ports.index(acting)].kill()

        async def other_acts() -> bool:
            return sorted((await modes()).values()) == ["acting", "no answer"]

        await hub.wait_for(other_acts, "the other guard to take over")
        await hub.api("POST", "users/late/activity", json={})
    finally:
        for process in processes:
            if process.returncode is None:
                process.terminate()
            await asyncio.wait_for(process.wait(), 20)


@pytest.mark.long
async def test_who_has_no_rights_at_the_hub_gains_none_here(observing: TestbedHub):
    hub = observing
    token = (await hub.api("POST", "users/ada/tokens", json={})).data["token"]
    for method, path in [
        ("GET", "api/v1/status"),
        ("GET", "api/v1/servers"),
        ("GET", "metrics"),
        ("POST", "api/v1/arm"),
        ("POST", "api/v1/cycles"),
    ]:
        code, _ = await ask(hub, path, method=method, token=token)
        assert code == 403, path
    async with aiohttp.ClientSession() as session:
        await hub.login(session, "ada")
        async with session.get(f"{hub.url}services/hubguard/") as page:
            assert page.status == 403


@pytest.mark.long
async def test_an_admin_needs_no_extra_role_to_see_and_arm(observing: TestbedHub):
    hub = observing
    await mode(hub, "observing")
    async with aiohttp.ClientSession() as session:
        await hub.login(session)
        async with session.get(f"{hub.url}hub/home") as home:
            assert "/services/hubguard/" in await home.text()
        async with session.get(f"{hub.url}services/hubguard/") as page:
            assert page.status == 200
            assert "observ" in (await page.text()).lower()
        async with session.post(f"{hub.url}services/hubguard/actions/arm", data={"why": "no token"}) as refused:
            assert refused.status == 403, "a POST without the XSRF token must be refused"
    token = (await hub.api("POST", "users/admin/tokens", json={})).data["token"]
    code, _ = await ask(hub, "api/v1/arm", method="POST", token=token, json={})
    assert code == 200
    (kept,) = (await ask(hub, "api/v1/exemptions"))[1]
    assert (await ask(hub, f"api/v1/exemptions/{kept['id']}", method="DELETE"))[0] == 200
    await gone(hub, "late")
    assert (await ask(hub, "api/v1/observe", method="POST", json={}))[0] == 200
