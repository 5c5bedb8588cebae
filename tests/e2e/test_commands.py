"""The commands against a real hub: through the guard that runs, and without one."""

from __future__ import annotations

import asyncio
import json
import os
import re
import sys
from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import Any

import aiohttp
import pytest
import pytest_asyncio
from guarded import ARMED, OBSERVING, ask, gone, guards, mode, servers

from hubguard.staging.hub import TestbedHub
from hubguard.staging.population import DAY_S, Population, SeededUser

MakeHub = Callable[..., Awaitable[TestbedHub]]


WAYS = ("by-command", "by-page", "by-api")


async def command(hub: TestbedHub, *words: str, cwd: Path | None = None, **environ: str) -> tuple[int, str, str]:
    """(exit code, stdout, stderr) of the command in a service's environment; the tester's token unless told otherwise."""
    inherited = {key: value for key, value in os.environ.items() if not key.startswith(("JUPYTERHUB_", "HUBGUARD_"))}
    process = await asyncio.create_subprocess_exec(
        sys.executable, "-m", "hubguard", *words,
        cwd=cwd or hub.folder,
        env={**inherited, "JUPYTERHUB_API_URL": hub.api_url, "JUPYTERHUB_API_TOKEN": hub.token, **environ},
        stdout=asyncio.subprocess.PIPE,
        stderr=asyncio.subprocess.PIPE,
    )  # fmt: skip
    out, err = await asyncio.wait_for(process.communicate(), 60)
    assert "Traceback" not in err.decode()
    assert hub.token not in out.decode() + err.decode()
    return process.returncode or 0, out.decode(), err.decode()


def told(guard: int) -> dict[str, Any]:
    """What the hub has told that guard: its own token, and the proxy's."""
    parts = Path(f"/proc/{guard}/environ").read_bytes().decode().split("\0")
    environ = dict(part.split("=", 1) for part in parts if "=" in part)
    proxy = json.loads(environ["HUBGUARD_REGISTRATION"])["proxy"]
    return {
        "JUPYTERHUB_API_TOKEN": environ["JUPYTERHUB_API_TOKEN"],
        "CONFIGPROXY_API_URL": proxy["api_url"],
        "CONFIGPROXY_AUTH_TOKEN": proxy["auth_token"],
    }


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def observing(shared_hub: MakeHub) -> TestbedHub:
    people = servers(idle=7200, busy=60)
    stale = (
        SeededUser(f"{way}-{number}", idle_for_s=200 * DAY_S, created_s=201 * DAY_S)
        for way in WAYS
        for number in range(8)
    )
    hub = await shared_hub(
        config="c.HubGuardPrune.delete_users = True\nc.HubGuardPrune.rate = 2.0\n" + OBSERVING,
        population=Population((*people.users, *stale), people.servers),
    )
    await mode(hub, "observing")
    return hub


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def armed(shared_hub: MakeHub) -> TestbedHub:
    """Whoever holds it resumes it."""
    hub = await shared_hub(config=ARMED + "c.HubGuard.longest_exemption_s = 60.0\n")
    await mode(hub, "acting")
    return hub


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def unguarded(shared_hub: MakeHub) -> TestbedHub:
    return await shared_hub(population=servers(idle=7200, busy=60, refused=60, ada=60))


async def test_cull_once_goes_through_the_guard_that_runs(observing: TestbedHub):
    hub = observing
    code, out, _ = await command(hub, "cull", "--once", "--dry-run", "--json")
    assert code == 0
    assert [action["user"] for action in json.loads(out)["actions"]] == ["idle"]
    assert ("idle", "") in await hub.servers()
    code, out, err = await command(hub, "cull", "--once")
    assert code == 0, err
    assert "idle  done" in out
    await gone(hub, "idle")
    assert ("busy", "") in await hub.servers()


@pytest.mark.long
async def test_cull_once_without_a_guard_takes_the_lease_and_gives_it_up(unguarded: TestbedHub, tmp_path: Path):
    hub = unguarded
    journal = f"sqlite:///{tmp_path / 'journal.sqlite'}"
    for _ in range(2):
        code, out, err = await command(
            hub, "cull", "--once", "--timeout", "3600", "--json", cwd=tmp_path, HUBGUARD_DB_URL=journal
        )
        assert code == 0, err
    assert json.loads(out)["actions"] == [], "the second time there is nothing left to do, and no lease in the way"
    assert ("idle", "") not in await hub.servers()
    assert ("busy", "") in await hub.servers()


@pytest.mark.long
async def test_cull_once_says_what_failed_and_exits_1(unguarded: TestbedHub, tmp_path: Path):
    hub = unguarded
    token = (await hub.api("POST", "users/refused/tokens", json={})).data["token"]
    code, out, _ = await command(
        hub,
        "cull",
        "--once",
        "--timeout",
        "600",
        "--json",
        JUPYTERHUB_API_TOKEN=token,
        HUBGUARD_DB_URL=f"sqlite:///{tmp_path / 'journal.sqlite'}",
    )
    assert code == 1
    assert "list:users" in json.loads(out)["sources"][0]["detail"]
    assert ("refused", "") in await hub.servers()


@pytest.mark.long
async def test_a_hold_from_a_terminal_stops_a_running_guard_and_a_person_who_asks(armed: TestbedHub):
    hub = armed
    code, _, _ = await command(hub, "hold", "an exam")
    assert code == 0
    await hub.start_server("ada")
    code, out, _ = await command(hub, "cull", "--once", "--timeout", "0.001", "--json")
    assert code == 3, out
    assert ("ada", "") in await hub.servers()
    await command(hub, "resume")
    code, out, _ = await command(hub, "cull", "--once", "--timeout", "0.001")
    assert code == 0, out
    await gone(hub, "ada")


async def test_the_doctor_finds_nothing_wrong_with_what_the_include_sets_up(observing: TestbedHub):
    hub = observing
    (guard,) = guards(hub)
    code, out, _ = await command(hub, "doctor", "--json", **told(guard))
    checks = json.loads(out)
    assert {check["finding"] for check in checks} == {"fine"}, out
    assert code == 0
    assert {check["subject"] for check in checks} >= {
        "settings",
        "hub",
        "scopes",
        "servers",
        "cullers",
        "proxy",
        "journal",
    }


@pytest.mark.long
async def test_the_doctor_says_what_to_do_about_a_wrong_token_a_missing_scope_and_a_deaf_proxy(unguarded: TestbedHub):
    hub = unguarded
    code, out, _ = await command(hub, "doctor", "--json", JUPYTERHUB_API_TOKEN="0" * 32)
    assert code == 1
    assert any(check["finding"] == "wrong" and "token" in check["what"] for check in json.loads(out))
    token = (await hub.api("POST", "users/ada/tokens", json={})).data["token"]
    code, out, _ = await command(
        hub, "doctor", "--json", JUPYTERHUB_API_TOKEN=token,
        CONFIGPROXY_API_URL=hub.proxy_api_url, CONFIGPROXY_AUTH_TOKEN="wrong",
    )  # fmt: skip
    wrong = [check for check in json.loads(out) if check["finding"] == "wrong"]
    assert code == 1
    assert any("delete:servers is missing" in check["what"] for check in wrong)
    assert any(check["subject"] == "proxy" for check in wrong)
    assert all(check["do"] for check in wrong)


@pytest.mark.long
async def test_what_is_kept_survives_a_cycle_that_stops_the_others_and_goes_when_it_is_ended(testbed_hub: MakeHub):
    hub = await testbed_hub(config=OBSERVING, population=servers(idle=7200, kept=7200, exam=7200))
    await mode(hub, "observing")
    code, _, err = await command(hub, "keep", "kept", "--for", "1h", "a long run")
    assert code == 0, err
    status, made = await ask(
        hub, "api/v1/exemptions", method="POST", json={"user": "exam", "server": "", "for_s": 3600, "why": "exam"}
    )
    assert (status, made["server"]) == (200, "")
    code, out, err = await command(hub, "cull", "--once")
    assert code == 0, err
    assert "idle  done" in out
    await gone(hub, "idle")
    assert {("kept", ""), ("exam", "")} <= set(await hub.servers())
    code, out, err = await command(hub, "explain", "kept")
    assert code == 0, err
    assert "exempt" in out.splitlines()[0]
    assert "a long run" in out
    code, out, _ = await command(hub, "explain", "exam", "--json")
    told = json.loads(out)
    assert (told["reason"], told["exemption"]["why"]) == ("exemption", "exam")
    assert (await ask(hub, f"api/v1/exemptions/{made['id']}", method="DELETE"))[0] == 200
    code, _, err = await command(hub, "cull", "--once")
    assert code == 0, err
    await gone(hub, "exam")
    assert ("kept", "") in await hub.servers()
    _, entries = await ask(hub, "api/v1/journal?event=kept")
    assert {entry["user"] for entry in entries} == {"kept", "exam"}


@pytest.mark.long
async def test_the_guard_refuses_to_keep_for_longer_than_the_settings_allow(armed: TestbedHub):
    hub = armed
    body = {"user": "ada", "for_s": 61}
    status, answer = await ask(hub, "api/v1/exemptions", method="POST", json=body)
    assert (status, "HubGuard.longest_exemption_s" in answer["message"]) == (409, True)
    for number in ("1", str(2**62)):
        status, answer = await ask(hub, f"api/v1/exemptions/{number}", method="DELETE")
        assert (status, f"no exemption {number}" in answer["message"]) == (404, True)
    assert (await ask(hub, "api/v1/exemptions?ended=true"))[1] == []


async def cancel_on_the_page(hub: TestbedHub, digest: str) -> int:
    """An admin confirms on the plan's page that it is cancelled; the status of the page that follows."""
    address = f"{hub.url}services/hubguard/plans/{digest}/cancel"
    async with aiohttp.ClientSession(timeout=aiohttp.ClientTimeout(total=30)) as session:
        await hub.login(session)
        async with session.get(address) as page:
            form = re.search(r'name="_xsrf" value="([^"]+)"', await page.text())
        assert form
        async with session.post(address, data={"_xsrf": form[1], "why": "a mistake"}) as page:
            assert page.url.path.endswith(f"/plans/{digest}")
            assert "Cancelled" in await page.text()
            return page.status


@pytest.mark.parametrize("way", [WAYS[0], *(pytest.param(way, marks=pytest.mark.long) for way in WAYS[1:])])
async def test_a_plan_under_way_is_cancelled_for_good(observing: TestbedHub, way: str):
    hub = observing
    code, plan = await ask(hub, "api/v1/plans", method="POST", json={"names": [f"{way}-*"]})
    assert (code, plan["count"]) == (201, 8), plan
    digest = plan["digest"]
    code, out, err = await command(hub, "prune", "apply", digest, "--count", "8", "--no-wait")
    assert code == 0, out + err

    async def standing() -> dict[str, Any]:
        return dict((await ask(hub, f"api/v1/plans/{digest}"))[1]["run"])

    async def begun() -> bool:
        return (await standing())["done"] >= 1

    await hub.wait_for(begun, "a first user to be deleted")
    if way == "by-command":
        assert (await command(hub, "prune", "cancel", digest[:12], "--why", "a mistake"))[0] == 0
    elif way == "by-api":
        assert (await ask(hub, f"api/v1/plans/{digest}/cancel", method="POST", json={"why": "a mistake"}))[0] == 200
    else:
        assert await cancel_on_the_page(hub, digest) == 200
    run = await standing()
    assert (run["state"], "a mistake" in run["why"]) == ("cancelled", True)
    assert (await ask(hub, f"api/v1/plans/{digest}/resume", method="POST", json={}))[0] == 409

    async def left() -> int:
        users = (await hub.api("GET", "users", params={"limit": "200"})).data
        return sum(user["name"].startswith(f"{way}-") for user in users)

    async def settled() -> bool:
        run = await standing()
        return 8 - int(run["done"]) == await left() > 0

    # Who was being deleted when it was cancelled is finished and counted; nobody else is begun.
    await hub.wait_for(settled, "the plan to stand still")
    stood = await left()
    await asyncio.sleep(1.5)
    assert await left() == stood
    code, out, _ = await command(hub, "prune", "status", digest)
    assert (code, "Cancelled" in out) == (1, True)
