"""The include in real hubs: loaded in every way, broken in every way, and the hub serves all the same.

The process is replaced by stand-ins where it is the hub's part that is tried; tests/e2e/test_service.py has the real one.
"""

from __future__ import annotations

import json
import os
import secrets
import signal
import sys
from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import Any

import aiohttp
import pytest
import pytest_asyncio
from guarded import INCLUDE, SNIPPET, places_of
from handing_over import understudies
from stand_ins import stand_in
from yarl import URL

from hubguard.inhub import SCOPES
from hubguard.staging.hub import TestbedHub

MakeHub = Callable[..., Awaitable[TestbedHub]]


def culler(*options: str, name: str = "jupyterhub-idle-culler") -> str:
    """Config lines that register an idle culler as z2jh does."""
    command = ["-m", "jupyterhub_idle_culler", "--timeout=86000", *options]
    return (
        "import sys\n"
        f"c.JupyterHub.services.append({{'name': {name!r}, 'command': [sys.executable, *{command!r}]}})\n"
        f"c.JupyterHub.load_roles.append({{'name': {name!r}, 'services': [{name!r}], 'scopes': ['list:users',"
        " 'read:users:activity', 'read:servers', 'delete:servers']})\n"
    )


async def told(hub: TestbedHub, *, after: int = 0) -> dict[str, Any]:
    """What the stand-in was told; by another process than ``after``."""
    file = hub.folder / "told.json"
    found: dict[str, Any] = {}

    async def there() -> bool:
        if file.exists():
            found.update(json.loads(file.read_text()))
        return found.get("pid", after) != after

    await hub.wait_for(there, "the process to be told", 60)
    return found


async def serves(hub: TestbedHub) -> None:
    """The hub answers, people log in, and servers start."""
    assert (await hub.api("GET", "users")).status == 200
    await hub.start_server("ada")
    async with aiohttp.ClientSession() as session:
        await hub.login(session, "ada")
        async with session.get(f"{hub.url}hub/home") as home:
            assert home.status == 200
    assert hub.pid is not None


async def registered(hub: TestbedHub) -> list[str]:
    services = (await hub.api("GET", "services")).data
    return [name for name in services if name.startswith("hubguard")]


ACCESS = "access:services!service=hubguard"
ROLES = (
    f"c.JupyterHub.load_roles.append({{'name': 'may-come', 'users': ['bo', 'cy'], 'scopes': [{ACCESS!r}]}})\n"
    "c.JupyterHub.load_roles.append({'name': 'may-see', 'users': ['bo'], 'scopes': ['custom:hubguard:read']})\n"
)


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def hub(shared_hub: MakeHub) -> TestbedHub:
    """Included twice beside an idle culler, with a stand-in for the process. For those who leave the hub as it is."""
    config = culler("--cull-every=600") + INCLUDE * 2 + stand_in() + "c.HubGuardCull.idle_timeout_s = 4321\n" + ROLES
    return await shared_hub(config=config, environment={"HUBGUARD_DB_URL": "sqlite:///elsewhere.sqlite"})


async def test_the_process_is_started_once_and_knows_what_was_set(hub: TestbedHub):
    found = await told(hub)
    assert found["errors"] == []
    assert found["sections"] == {"HubGuardCull": {"idle_timeout_s": 4321}}
    assert found["environ"]["HUBGUARD_DB_URL"] == "sqlite:///elsewhere.sqlite"
    assert sorted(await registered(hub)) == ["hubguard", "hubguard-process"]
    # The token of the proxy, which the hub has made up for itself, opens the proxy's API.
    headers = {"Authorization": f"token {found['proxy']['auth_token']}"}
    async with (
        aiohttp.ClientSession(headers=headers) as session,
        session.get(f"{found['proxy']['api_url']}/api/routes") as routes,
    ):
        assert routes.status == 200
    whoami = await hub.api("GET", "user", token=found["token"])
    assert (whoami.data["kind"], whoami.data["name"]) == ("service", "hubguard")
    # Where hub and proxy are, and what runs the servers.
    assert (found["hub"]["api_url"], found["hub"]["base_url"], found["hub"]["subdomain_host"]) == (hub.api_url, "/", "")
    assert found["proxy"]["public_url"] == hub.url.rstrip("/").replace("localhost", "127.0.0.1")
    assert found["spawner"] == {
        "classes": ["hubguard.staging.spawner.LittleSpawner", "jupyterhub.spawner.Spawner"],
        "settings": {},
        "start_s": 90,
        "failures_limit": 0,
    }
    # The role is one that this hub knows all of, and holds it all.
    assert set(SCOPES) - {ACCESS} <= set(whoami.data["scopes"])
    assert not {scope for scope in whoami.data["scopes"] if scope.startswith(("admin", "delete:users", "custom"))}


@pytest.mark.long
async def test_a_file_that_sets_the_services_anew_before_it_includes_us_works(testbed_hub: MakeHub, tmp_path: Path):
    inner = tmp_path / "inner.py"
    inner.write_text("c.JupyterHub.services = [{'name': 'theirs', 'api_token': 'x' * 32}]\n" + INCLUDE + stand_in())
    # What the inner file has replaced is put back, so that the testbed can ask.
    config = f"_mine = c.JupyterHub.services\nload_subconfig({str(inner)!r})\nc.JupyterHub.services += _mine\n"
    hub = await testbed_hub(config=config)
    assert (await told(hub))["errors"] == []
    assert sorted(await registered(hub)) == ["hubguard", "hubguard-process"]


@pytest.mark.any_hub
@pytest.mark.parametrize(
    "code",
    [
        pytest.param("raise SystemExit(3)", id="ends"),
        pytest.param("import os; os.kill(os.getpid(), 9)", id="is killed", marks=pytest.mark.long),
        pytest.param(
            "import signal, time; signal.signal(signal.SIGTERM, signal.SIG_IGN); time.sleep(600)",
            id="hangs and ignores SIGTERM",
            marks=pytest.mark.long,
        ),
    ],
)
async def test_a_process_that_serves_nothing_costs_the_hub_nothing(testbed_hub: MakeHub, code: str):
    token = secrets.token_hex(16)
    hub = await testbed_hub(config=INCLUDE + stand_in(code), environment={"HUBGUARD_API_TOKEN": token})
    await serves(hub)
    await hub.restart()
    await serves(hub)
    # Whatever the hub writes when it ends, and when it starts again, is written now.
    assert places_of(hub, token) == []


@pytest.mark.parametrize("answers", ["nothing", pytest.param("500", marks=pytest.mark.long)])
async def test_a_page_that_never_answers_or_fails_costs_the_hub_nothing(testbed_hub: MakeHub, answers: str):
    """A 6.1 hub would wait five minutes for the one that takes connections and says nothing, with no route to itself."""
    code = {
        "nothing": "import socket, time; s = socket.create_server(('127.0.0.1', PORT)); time.sleep(600)",
        "500": "from http.server import *; HTTPServer(('127.0.0.1', PORT), BaseHTTPRequestHandler).serve_forever()",
    }[answers]
    config = INCLUDE + stand_in(code)
    config += "_url = next(s['url'] for s in c.JupyterHub.services if s['name'] == 'hubguard')\n"
    config += "c.JupyterHub.services[0]['command'][2] = "
    config += "c.JupyterHub.services[0]['command'][2].replace('PORT', _url.rpartition(':')[2])\n"
    hub = await testbed_hub(config=config)
    await serves(hub)


@pytest.mark.long
async def test_the_hub_outlives_its_own_polls_and_health_checks_of_a_broken_guard(testbed_hub: MakeHub):
    """It polls managed services every 30 s, and asks those with a url every 60 s by default; here every 5 s."""
    config = INCLUDE + stand_in("raise SystemExit(3)") + culler() + "c.JupyterHub.service_check_interval = 5\n"
    hub = await testbed_hub(config=config)

    async def again() -> bool:
        return hub.log_text().count("Service hubguard-process exited with status 3") >= 2

    await hub.wait_for(again, "two polls of the hub", 90)
    assert "Cannot connect to external service hubguard" in hub.log_text()
    await serves(hub)


LATER = {
    "services": "c.JupyterHub.services = [s for s in c.JupyterHub.services if s['name'] == 'tester']\n",
    "custom scopes": "c.JupyterHub.custom_scopes = {'custom:mine': {'description': 'x'}}\n",
    "roles": "c.JupyterHub.load_roles = [r for r in c.JupyterHub.load_roles if r['name'] == 'tester']\n",
}


@pytest.mark.long
@pytest.mark.any_hub
@pytest.mark.parametrize("what", LATER)
async def test_a_later_line_that_sets_it_anew_costs_the_guard_and_not_the_hub(testbed_hub: MakeHub, what: str):
    hub = await testbed_hub(config=INCLUDE + stand_in() + LATER[what])
    await serves(hub)
    if what == "services":
        assert await registered(hub) == []
        assert "HubGuard isn't started: a line after its include overwrites c.JupyterHub.services" in hub.log_text()


@pytest.mark.any_hub
@pytest.mark.parametrize(
    ("config", "environment"),
    [
        pytest.param("", {"HUBGUARD_API_TOKEN": "short", "HUBGUARD_DB_URL": "x" * 120_000}, id="environment"),
        pytest.param("c.HubGuard.url = 'http://127.0.0.1:99999'\n", {}, id="port", marks=pytest.mark.long),
        pytest.param("c.HubGuard.url = lambda: 1\n", {}, id="function", marks=pytest.mark.long),
        pytest.param("c.HubGuard.url = 'http://nowhere.invalid:1'\n", {}, id="host", marks=pytest.mark.long),
        pytest.param("c.HubGuardCull.x = 'x' * 1_000_000\n", {}, id="length", marks=pytest.mark.long),
    ],
)
async def test_nonsense_around_the_include_costs_the_hub_nothing(
    testbed_hub: MakeHub, config: str, environment: dict[str, str]
):
    hub = await testbed_hub(config=config + INCLUDE + stand_in(), environment=environment)
    await serves(hub)


# -- beside an idle culler ----------------------------------------------------------------------------------------------


MAY_DELETE = "c.JupyterHub.load_roles[-1]['scopes'] += ['delete:users']\n"


async def test_an_idle_culler_keeps_its_entry_and_an_understudy_stands_by(hub: TestbedHub):
    found = (await told(hub))["handover"]
    assert found["replaced"] is True
    assert found["cullers"][0]["command"][1:] == [
        *("-m", "jupyterhub_idle_culler", "--timeout=86000", "--cull-every=600")
    ]
    await serves(hub)
    (standing_by,) = understudies(hub)
    words = Path(f"/proc/{standing_by}/cmdline").read_bytes().decode().split("\0")
    assert words[words.index("--") + 1 : -1] == found["cullers"][0]["command"]
    assert "HubGuard replaces the idle culler jupyterhub-idle-culler once it has shown" in hub.log_text()


FILTERED = "c.JupyterHub.load_roles[-1]['scopes'] = ['list:users', 'read:servers', 'delete:servers!group=gpu']\n"
ELSEWHERE = (
    "c.JupyterHub.services.append({'name': 'janitor', 'api_token': 'x' * 32})\n"
    "c.JupyterHub.load_roles.append({'name': 'janitor', 'services': ['janitor'], 'scopes': ['list:users',"
    " 'read:servers', 'delete:servers']})\n"
)


@pytest.mark.parametrize(
    ("config", "why"),
    [
        pytest.param(culler() + INCLUDE + "c.HubGuard.on_idle_culler = 'refuse'\n", "refuse", id="refused"),
        pytest.param(culler() + INCLUDE + ELSEWHERE, "janitor", id="an external culler"),
        pytest.param(
            culler()
            + INCLUDE
            + "c.JupyterHub.load_roles = [r for r in c.JupyterHub.load_roles if r['name'] != 'hubguard']\n",
            "HubGuard's role lacks",
            id="roles set anew",
        ),
        pytest.param(culler("--spare-the-professor") + INCLUDE, "spare", id="not understood", marks=pytest.mark.long),
        pytest.param(
            INCLUDE + culler("--cull-users=true") + MAY_DELETE, "delete:users", id="users", marks=pytest.mark.long
        ),
    ],
)
async def test_a_culler_that_is_not_taken_over_is_started_as_ever(testbed_hub: MakeHub, config: str, why: str):
    hub = await testbed_hub(config=config + stand_in())
    found = (await told(hub))["handover"]
    assert found["replaced"] is False
    assert why in found["why"]
    assert "Starting managed service jupyterhub-idle-culler" in hub.log_text()
    assert understudies(hub) == []
    whoami = await hub.api("GET", "user", token=(await told(hub))["token"])
    assert "delete:users" not in whoami.data["scopes"]


async def test_two_cullers_of_which_one_is_for_a_group_are_taken_over_with_their_filters(testbed_hub: MakeHub):
    hub = await testbed_hub(config=culler() + culler(name="cull-gpu") + FILTERED + INCLUDE + stand_in())
    found = (await told(hub))["handover"]
    assert found["replaced"] is True, found["why"]
    assert [one["reach"] for one in found["cullers"]] == [[], [["group=gpu"]]]
    assert len(understudies(hub)) == 2


@pytest.mark.long
async def test_a_process_that_the_hub_starts_again_is_told_of_the_culler_again(hub: TestbedHub):
    first = await told(hub)
    os.kill(first["pid"], signal.SIGKILL)
    again = await told(hub, after=first["pid"])
    assert again["handover"] == first["handover"]
    assert again["handover"]["replaced"] is True
    assert again["token"] == first["token"]


# -- tokens and rights ------------------------------------------------------------------------------------------------------


async def login_scopes(hub: TestbedHub, user: str, secret: str) -> set[str] | None:
    """What a login of ``user`` at our pages carries: the hub's OAuth, step by step, as the page goes through it.

    None where the hub doesn't let that user in.
    """
    form = {"client_id": "service-hubguard", "redirect_uri": f"{hub.hub_prefix}services/hubguard/oauth_callback"}
    async with aiohttp.ClientSession() as session:
        await hub.login(session, user)
        ask = URL(f"{hub.url}hub/api/oauth2/authorize").with_query({**form, "response_type": "code", "state": "x"})
        async with session.get(ask, allow_redirects=False) as answer:
            if answer.status == 403:
                return None
            assert answer.status == 302, "oauth_no_confirm: nobody is asked"
            code = URL(answer.headers["Location"]).query["code"]
    form |= {"client_secret": secret, "grant_type": "authorization_code", "code": code}
    token = (await hub.api("POST", "oauth2/token", data=form)).data["access_token"]
    return set((await hub.api("GET", "user", token=token)).data["scopes"])


async def test_a_login_carries_what_the_user_may_do_anyway_and_no_more(hub: TestbedHub):
    secret = (await told(hub))["token"]
    await hub.api("POST", "users/ada")

    async with aiohttp.ClientSession() as session:
        await hub.login(session)
        async with session.get(f"{hub.url}hub/home") as home:
            assert "/services/hubguard/" in await home.text(), "the page stands in the menu"
    routes = (await hub.api("GET", "proxy")).data
    assert "/services/hubguard/" in routes

    admin = await login_scopes(hub, "admin", secret)
    assert admin is not None
    assert {"list:users", "read:users", "read:servers", "delete:servers", "delete:users", "admin-ui"} <= admin
    assert not {
        scope for scope in admin if scope.startswith(("admin:", "tokens", "servers", "access:servers", "proxy"))
    }

    assert await login_scopes(hub, "ada", secret) is None, "the hub gives people no access to services by itself"
    cy = await login_scopes(hub, "cy", secret)
    assert cy is not None
    assert {scope for scope in cy if "!user=cy" not in scope} == {ACCESS}, "what is cy's own is nobody else's"
    bo = await login_scopes(hub, "bo", secret)
    assert bo is not None
    assert {scope for scope in bo if "!user=bo" not in scope} == {ACCESS, "custom:hubguard:read"}


@pytest.mark.long
async def test_a_snippet_in_the_hubs_own_folder_is_not_taken_for_the_package(testbed_hub: MakeHub, tmp_path: Path):
    """Where a hub runs in the folder that the snippet was copied to, Python would find the snippet first."""
    if sys.version_info < (3, 11):
        pytest.skip("Python has no -P before 3.11; the snippet is installed under a name that can't be imported")
    shadow = f"import pathlib, shutil\nshutil.copy({str(SNIPPET)!r}, 'hubguard.py')\n"
    hub = await testbed_hub(config=INCLUDE + shadow)

    async def listens() -> bool:
        return "pages at /services/hubguard/" in hub.log_text()

    await hub.wait_for(listens, "HubGuard to listen")
