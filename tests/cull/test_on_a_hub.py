"""What decides over a server, on a real hub: the proxy, the hub's database, rules, exemptions, the hook, the brake, users."""

from __future__ import annotations

import asyncio
import itertools
import os
import re
import time
from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import Any
from urllib.parse import quote, unquote

import aiohttp
import pytest
import pytest_asyncio
from aiohttp import web
from constants import constants, constants_by_the_hub
from doubles.scripted_hub import TOKEN, Person, ScriptedHub, Srv
from guarded import ARMED, OBSERVING, ask, external, gone, guards, in_use, mode, patient, servers, status

from hubguard.journal.store import open_journal
from hubguard.snapshot.cycle import PACE
from hubguard.staging.hub import TestbedHub
from hubguard.staging.population import DAY_S, Population, SeededServer, SeededUser
from hubguard.staging.processes import free_ports

MakeHub = Callable[..., Awaitable[TestbedHub]]

CHECKOUT = Path(__file__).parents[2]
REQUEST = re.compile(r"JupyterHub log:\d+\] (\d+) (\w+) (\S+) \(hubguard@\S+\) [\d.]+ms")


def requests(hub: TestbedHub) -> list[tuple[str, str]]:
    """(method, path and query) of each of HubGuard's requests so far, by the hub's access log."""
    return [(method, unquote(path)) for _, method, path in REQUEST.findall(hub.log_text())]


async def shown(hub: TestbedHub, user: str, name: str = "") -> dict[str, Any]:
    """What the API says of that server once a cycle has seen it."""
    found: dict[str, Any] = {}

    async def there() -> bool:
        code, answer = await ask(hub, f"api/v1/servers/{quote(user, safe='')}/{name}")
        if code == 200:
            found.update(answer)
        return code == 200

    await hub.wait_for(there, f"HubGuard to know the server of {user}")
    return found


async def journal(hub: TestbedHub, **query: str) -> list[dict[str, Any]]:
    """The journal's entries, oldest first."""
    code, entries = await ask(hub, "api/v1/journal", params={"limit": "1000", **query})
    assert code == 200, entries
    return list(reversed(entries))


async def outcomes(hub: TestbedHub) -> list[tuple[str, str, str]]:
    """(user, action, outcome) of each intent, in their order, once all of them have one."""
    found: list[tuple[str, str, str]] = []

    async def settled() -> bool:
        entries = await journal(hub)
        ends = {entry["refers_to"]: entry["outcome"] for entry in entries if entry["event"] == "outcome"}
        intents = [entry for entry in entries if entry["event"] == "intent"]
        found[:] = [(entry["user"], entry["action"], ends.get(entry["id"], "")) for entry in intents]
        return all(end for _, _, end in found)

    await hub.wait_for(settled, "every intent to have its outcome")
    return found


async def cycles(hub: TestbedHub, count: int = 2) -> dict[str, Any]:
    """The status after so many more cycles, none of which began before now."""
    found: dict[str, Any] = {}
    seen: set[str | None] = set()

    async def so_many() -> bool:
        found.clear()
        found.update(await status(hub))
        seen.add((found["last_cycle"] or {}).get("began_at"))
        return len(seen) > count + 1  # the last one before, and one that was under way

    await hub.wait_for(so_many, f"{count} more cycles")
    return found


async def act(hub: TestbedHub, word: str) -> None:
    code, answer = await ask(hub, f"api/v1/{word}", method="POST", json={"why": "a test wants it"})
    assert code == 200, answer


# -- the proxy ----------------------------------------------------------------------------------------------------


async def test_use_that_only_the_proxy_has_seen_keeps_a_server_and_an_idle_neighbour_goes(testbed_hub: MakeHub):
    config = ARMED + "c.HubGuard.read_proxy = True\nc.HubGuardCull.idle_timeout_s = 6.0\n"
    hub = await testbed_hub(
        config=config + "c.JupyterHub.last_activity_interval = 3600\n", population=servers(busy=7200, idle=7200)
    )
    async with in_use(hub, "busy"):
        await gone(hub, "idle")
        found = await shown(hub, "busy")
        listed = await hub.servers()
    assert ("busy", "") in listed
    assert found["evidence"] == "proxy"
    assert found["last_activity"] < found["idle_since"], "the hub knows nothing of it"
    assert found["standing"] == "keep"
    assert "proxy" in str(found["explanation"]) + str(found["facts"])
    assert await outcomes(hub) == [("idle", "stop-server", "done")]


@pytest.mark.long
async def test_a_hub_that_no_longer_notices_use_is_braked_for_until_it_does_again(testbed_hub: MakeHub):
    """The hub's own update fails, as when the proxy was given another token; the limit is twice its interval and 30 s."""
    config = ARMED + "c.HubGuard.read_proxy = True\nc.HubGuardCull.idle_timeout_s = 60.0\n"
    hub = await testbed_hub(
        config=config + "c.JupyterHub.last_activity_interval = 1\n",
        population=servers(busy=7200, idle=7200),
        external_proxy=True,
    )
    await mode(hub, "acting")
    assert (await hub.api("PATCH", "proxy", json={"auth_token": "wrong"})).status == 500
    async with in_use(hub, "busy"):

        async def braked() -> bool:
            # The finding is told when the brake is in the journal.
            found = await status(hub)
            return found["mode"] == "braked" and found["findings"]

        await hub.wait_for(braked, "HubGuard to brake and say so", 60)
        found = await status(hub)
        assert found["brake"]["reason"] == "activity-frozen"
        assert not found["brake"]["acceptable"]
        assert [finding["kind"] for finding in found["findings"]] == ["activity-frozen"]

        async def due() -> bool:
            return (await shown(hub, "idle"))["standing"] == "stop"

        await hub.wait_for(due, "the idle server to be due", 60)
        await act(hub, "resume")
        found = await cycles(hub)
        assert found["mode"] == "braked", "no person can accept that nobody's use is seen"
        assert ("idle", "") in await hub.servers()
        assert await journal(hub, event="intent") == []

        assert (await hub.api("PATCH", "proxy", json={"auth_token": hub.proxy_token})).status == 200
        await gone(hub, "idle")
        assert ("busy", "") in await hub.servers()
    assert [entry["event"] for entry in await journal(hub) if "brake" in entry["event"]] == ["braked", "brake-over"]


# -- the hub's database -------------------------------------------------------------------------------------------


@pytest.mark.long
async def test_with_the_hubs_database_a_cycle_with_nothing_to_do_lists_nothing(testbed_hub: MakeHub):
    hub = await testbed_hub(
        config=ARMED + "c.HubGuard.hub_db_url = 'hub'\n", population=servers(soon=597, busy=60, other=30)
    )
    await mode(hub, "acting")
    await gone(hub, "soon")
    await cycles(hub, 1)
    before = len(requests(hub))
    found = await cycles(hub, 3)
    since = requests(hub)[before:]
    logins = {("GET", "/hub/api/user")}
    assert {(method, path.rstrip("/")) for method, path in since} - logins == {("GET", "/hub/api")}
    assert {source["source"] for source in found["sources"]} == {"hub_api", "hub_db"}
    assert found["servers"]["running"] == 2
    assert found["last_cycle"]["skipped_why"] == ""


@pytest.mark.long
async def test_a_server_that_starts_is_not_stopped_by_the_databases_word(testbed_hub: MakeHub):
    """For the database it has an address from its first moment on, and so it looks as if it ran."""
    config = ARMED + "c.HubGuard.hub_db_url = 'hub'\nc.HubGuardCull.idle_timeout_s = 2.0\n"
    # The hub answers at once that it starts.
    hub = await testbed_hub(config=config + "c.JupyterHub.tornado_settings = {'slow_spawn_timeout': 0}\n")
    await mode(hub, "acting")
    await hub.api("POST", "users/late")
    await hub.api("POST", "users/late/server", json={"start_s": 6.0})

    async def looked_at() -> bool:
        return bool(await journal(hub, user="late", event="note"))

    await hub.wait_for(looked_at, "a second look at the server")
    server = await hub.server("late")
    assert server is not None
    assert server["pending"] == "spawn"
    assert not [path for method, path in requests(hub) if method == "DELETE"]
    assert "the hub is busy with it (pending: spawn)" in (await journal(hub, user="late", event="note"))[0]["detail"]
    await gone(hub, "late")
    assert await outcomes(hub) == [("late", "stop-server", "done")]


# -- rules --------------------------------------------------------------------------------------------------------

RULES = """
c.HubGuardCull.rules = [
    {"name": "exams", "groups": "exam-*", "never": True},
    {"name": "tutors", "roles": "tutor", "never": True},
    {"name": "work", "named": True, "idle_timeout_s": 86400.0},
    {"name": "gpu", "options": {"profile": "gpu"}, "idle_timeout_s": 2.0},
]
c.JupyterHub.load_roles.append({"name": "tutor", "users": ["tutor"], "scopes": ["self"]})
"""


RULED = Population(
    users=(SeededUser("exam", groups=("exam-42",)), SeededUser("tutor"), SeededUser("plain", groups=("examples",))),
    servers=tuple(
        SeededServer(user, name, idle_for_s=7200)
        for user, name in [("exam", ""), ("tutor", ""), ("plain", ""), ("plain", "work")]
    ),
)
HOOKS = """
async def asynchronous(server, user, groups, inactive, inactive_limit):
    return synchronous(server, user, groups, inactive, inactive_limit)


def synchronous(server, user, groups, inactive, inactive_limit):
    assert inactive.total_seconds() > inactive_limit == (2.0 if server.user == "calc" else 600.0)
    if server.user == "odd":
        raise ValueError("nobody knows this one")
    return "keepers" not in groups and user.name != "boss"
"""
ASKED = Population(
    users=(SeededUser("keeper", groups=("keepers",)), SeededUser("boss", admin=True)),
    servers=tuple(SeededServer(user, idle_for_s=7200) for user in ("idle", "odd", "keeper", "boss")),
)


def house_rules(folder: Path) -> dict[str, str]:
    """An environment in which the operator's functions are found."""
    (folder / "house_rules.py").write_text(HOOKS)
    return {"PYTHONPATH": os.pathsep.join([str(folder), str(CHECKOUT)])}


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def decided(shared_hub: MakeHub, tmp_path_factory: pytest.TempPathFactory) -> TestbedHub:
    """Rules decide over some, the operator's function over others."""
    return await shared_hub(
        config=ARMED + RULES + "c.HubGuardCull.hook = 'house_rules:synchronous'\n",
        population=Population(RULED.users + ASKED.users, RULED.servers + ASKED.servers),
        environment=house_rules(tmp_path_factory.mktemp("rules")),
    )


async def test_rules_by_group_role_kind_and_options_decide_over_servers(decided: TestbedHub):
    hub = decided
    await hub.start_server("calc", profile="gpu")
    await hub.start_server("text", profile="cpu")
    kept = {("exam", ""), ("tutor", ""), ("plain", "work"), ("text", "")}

    ruled = {"exam", "tutor", "plain", "calc", "text"}

    async def left() -> set[tuple[str, str]]:
        return {key for key in await hub.servers() if key[0] in ruled}

    async def only_kept() -> bool:
        return await left() == kept

    await hub.wait_for(only_kept, "the others to be gone")
    await cycles(hub)
    assert await left() == kept
    listed = (await ask(hub, "api/v1/servers"))[1]
    rows = {(row["user"], row["name"]): row for row in listed if row["user"] in ruled}
    says = {key: (row["rule"], row["standing"], row["idle_timeout_s"]) for key, row in rows.items()}
    assert says == {
        ("exam", ""): ("exams", "exempt", 0.0),
        ("tutor", ""): ("tutors", "exempt", 0.0),
        ("plain", "work"): ("work", "keep", 86400.0),
        ("text", ""): (None, "keep", 600.0),
    }
    assert (await status(hub))["notes"] == []


@pytest.mark.long
async def test_without_the_right_to_read_roles_a_rule_on_them_stops_nobody_and_says_so(testbed_hub: MakeHub):
    # All of read:users tells of roles, too.
    narrow = """
role = next(role for role in c.JupyterHub.load_roles if role["name"] == "hubguard")
role["scopes"] = ["list:users", "read:users:groups", "read:users:activity", "read:servers", "delete:servers"]
"""
    hub = await testbed_hub(config=ARMED + RULES + narrow, population=servers(tutor=7200, plain=7200))
    await cycles(hub)
    for user in ("tutor", "plain"):
        found = await shown(hub, user)
        assert (found["standing"], found["reason"]) == ("unknown", "cant-tell")
    assert "read:roles:users" in " ".join((await status(hub))["notes"])
    assert set(await hub.servers()) == {("tutor", ""), ("plain", "")}


# -- exemptions ---------------------------------------------------------------------------------------------------


@pytest.mark.long
async def test_a_server_that_somebody_keeps_stays_until_that_is_over(testbed_hub: MakeHub):
    hub = await testbed_hub(config=OBSERVING, population=servers(kept=7200, idle=7200))
    await mode(hub, "observing")
    asked = {"user": "kept", "server": "", "for_s": 3600, "why": "a long computation"}
    code, exemption = await ask(hub, "api/v1/exemptions", method="POST", json=asked)
    assert code == 200, exemption
    await act(hub, "arm")
    await gone(hub, "idle")
    await cycles(hub)
    assert ("kept", "") in await hub.servers()
    found = await shown(hub, "kept")
    assert (found["standing"], found["reason"]) == ("exempt", "exemption")
    assert found["exemption"]["why"] == "a long computation"
    code, _ = await ask(hub, f"api/v1/exemptions/{exemption['id']}", method="DELETE")
    assert code == 200
    await gone(hub, "kept")


@pytest.mark.long
async def test_a_server_that_somebody_keeps_while_the_cycle_is_under_way_stays(testbed_hub: MakeHub):
    """It is in the plan already; the second look finds the exemption."""
    slow = "c.HubGuardBudget.rate = 4.0\nc.HubGuardBudget.burst = 1\nc.HubGuardBudget.concurrency = 1\n"
    queue = {f"user-{number}": 7200.0 - number for number in range(6)}
    hub = await testbed_hub(config=OBSERVING + slow, population=servers(**queue, last=3600))
    await mode(hub, "observing")
    await act(hub, "arm")
    await gone(hub, "user-0")
    assert ("last", "") in await hub.servers()
    asked = {"user": "last", "server": None, "for_s": 3600}
    code, exemption = await ask(hub, "api/v1/exemptions", method="POST", json=asked)
    assert code == 200, exemption
    await gone(hub, *queue)
    await cycles(hub)
    assert ("last", "") in await hub.servers()
    assert "last" not in {entry["user"] for entry in await journal(hub, event="intent")}
    left_alone = [entry["detail"] for entry in await journal(hub, user="last", event="note")]
    assert "left alone at the second look: somebody has asked to keep it" in left_alone


# -- users --------------------------------------------------------------------------------------------------------


@pytest.mark.long
@pytest.mark.parametrize("hub_db_url", ["", "hub"])
async def test_users_who_are_long_gone_are_deleted_and_admins_the_active_and_the_kept_are_not(
    testbed_hub: MakeHub, hub_db_url: str
):
    population = Population(
        users=(
            SeededUser("stale", idle_for_s=40 * DAY_S, created_s=90 * DAY_S),
            SeededUser("never/came", created_s=40 * DAY_S),
            SeededUser("new", created_s=DAY_S),
            SeededUser("active", idle_for_s=DAY_S, created_s=90 * DAY_S),
            SeededUser("boss", admin=True, idle_for_s=40 * DAY_S, created_s=90 * DAY_S),
            SeededUser("kept", idle_for_s=40 * DAY_S, created_s=90 * DAY_S),
        ),
        servers=(SeededServer("runs", idle_for_s=40 * DAY_S),),
    )
    config = f"c.HubGuardCull.users = True\nc.HubGuard.hub_db_url = {hub_db_url!r}\n" + OBSERVING
    hub = await testbed_hub(config=config, population=population)
    await mode(hub, "observing")
    asked = {"user": "kept", "for_s": 3600}
    assert (await ask(hub, "api/v1/exemptions", method="POST", json=asked))[0] == 200
    await act(hub, "arm")
    left = {"admin", "new", "active", "boss", "kept", "runs"}

    async def only_left() -> bool:
        return {user["name"] for user in (await hub.api("GET", "users")).data} == left

    await hub.wait_for(only_left, "the stale users to be gone")
    await gone(hub, "runs")
    await cycles(hub)
    assert {user["name"] for user in (await hub.api("GET", "users")).data} == left
    assert sorted(await outcomes(hub)) == [
        ("never/came", "delete-user", "done"),
        ("runs", "stop-server", "done"),
        ("stale", "delete-user", "done"),
    ]
    assert (await status(hub))["brake"] is None


# -- the operator's hook ------------------------------------------------------------------------------------------


async def the_hook_decides(hub: TestbedHub) -> None:
    await gone(hub, "idle")
    await cycles(hub)
    asked = {"idle", "odd", "keeper", "boss"}
    assert {key for key in await hub.servers() if key[0] in asked} == {("odd", ""), ("keeper", ""), ("boss", "")}
    rows = {row["user"]: row for row in (await ask(hub, "api/v1/servers"))[1] if row["user"] in asked}
    assert {(row["standing"], row["reason"]) for row in rows.values()} == {("wait", "hook")}
    assert "nobody knows this one" in str(rows["odd"]["facts"]) + rows["odd"]["explanation"]
    assert "nobody knows" not in str(rows["keeper"])


async def test_the_operators_function_has_the_last_word_and_where_it_fails_the_server_is_kept(decided: TestbedHub):
    await the_hook_decides(decided)


@pytest.mark.long
async def test_so_has_a_function_that_is_asynchronous(testbed_hub: MakeHub, tmp_path: Path):
    await the_hook_decides(
        await testbed_hub(
            config=ARMED + "c.HubGuardCull.hook = 'house_rules:asynchronous'\n",
            population=ASKED,
            environment=house_rules(tmp_path),
        )
    )


@pytest.mark.long
async def test_a_function_that_is_not_there_is_named_and_nothing_is_done(testbed_hub: MakeHub):
    hub = await testbed_hub(
        config=ARMED + "c.HubGuardCull.hook = 'house_rules:missing'\n", population=servers(idle=7200)
    )
    found = await mode(hub, "troubled")
    assert "HubGuardCull.hook" in found["why"]
    assert "house_rules" in found["why"]
    assert ("idle", "") in await hub.servers()


# -- the population -----------------------------------------------------------------------------------------------
@pytest.mark.long
async def test_users_that_vanish_by_another_hand_brake_until_a_person_accepts_it(testbed_hub: MakeHub):
    crowd = tuple(SeededUser(f"user-{number:02}") for number in range(38))
    hub = await testbed_hub(
        config=OBSERVING, population=Population(users=crowd, servers=(SeededServer("idle", idle_for_s=7200),))
    )
    await mode(hub, "observing")
    for user in crowd[:12]:
        assert (await hub.api("DELETE", f"users/{user.name}")).status == 204
    found = await mode(hub, "braked")
    assert found["brake"]["reason"] == "population"
    assert found["brake"]["acceptable"]
    await act(hub, "arm")
    found = await cycles(hub)
    assert found["mode"] == "braked"
    assert ("idle", "") in await hub.servers()
    await act(hub, "resume")
    await gone(hub, "idle")
    assert (await mode(hub, "acting"))["brake"] is None
    assert [entry["event"] for entry in await journal(hub) if "brake" in entry["event"]] == ["braked", "brake-over"]


# -- starts that are stuck ----------------------------------------------------------------------------------------


@pytest.mark.long
async def test_a_start_that_is_stuck_is_reported_and_interrupted_where_the_policy_says_so(testbed_hub: MakeHub):
    """Two hubs at once, since the shortest limit is a minute.

    The one that only reports is watched through its database, which doesn't tell what is pending: it has to be asked.
    """
    config = ARMED + "c.HubGuardCull.pending_limit_s = 60.0\n" + patient(600)
    config += "c.JupyterHub.tornado_settings = {'slow_spawn_timeout': 0}\n"
    reporting, interrupting = await asyncio.gather(
        testbed_hub(config=config + "c.HubGuard.hub_db_url = 'hub'\n"),
        testbed_hub(config=config + "c.HubGuardCull.interrupt_spawns = True\n"),
    )

    async def report(hub: TestbedHub) -> dict[str, Any]:
        found: dict[str, Any] = {}

        async def stuck() -> bool:
            found.clear()
            found.update(next(iter((await status(hub))["findings"]), {}))
            return bool(found)

        await hub.wait_for(stuck, "the stuck start to be reported", 120)
        return found

    for hub in (reporting, interrupting):
        await mode(hub, "acting")
        await hub.api("POST", "users/stuck")
        assert (await hub.api("POST", "users/stuck/server", json={"start_s": 500.0})).status == 202
        # A cycle that is asked for looks at the whole list.
        assert (await ask(hub, "api/v1/cycles", method="POST", json={"dry_run": True}))[0] == 200
    finding = await report(reporting)
    await gone(interrupting, "stuck")
    assert (finding["kind"], finding["user"], finding["server"]) == ("pending-stuck", "stuck", "")
    assert [one["kind"] for one in (await cycles(reporting))["findings"]] == ["pending-stuck"]
    server = await reporting.server("stuck")
    assert server is not None
    assert server["pending"] == "spawn"
    assert await outcomes(reporting) == []
    assert (await shown(reporting, "stuck"))["reason"] == "pending-stuck"
    assert await outcomes(interrupting) == [("stuck", "interrupt-spawn", "done")]
    await cycles(interrupting)
    assert (await status(interrupting))["findings"] == []


# -- stops that come to nothing -----------------------------------------------------------------------------------


@pytest.mark.long
async def test_a_server_that_comes_back_after_its_stop_is_a_finding_and_no_success(testbed_hub: MakeHub):
    """With the proxy down a hub answers that it stops the server, and the same run is ready afterwards: see act/verify.py."""
    hub = await testbed_hub(
        config=OBSERVING + constants_by_the_hub(retry_base_s=86400.0, retry_max_s=86400.0),
        population=servers(idle=7200, other=60),
        external_proxy=True,
    )
    before = await mode(hub, "observing")
    assert before["findings"] == [], "that nothing is stopped is as people want it"
    (guard,) = guards(hub)
    words = Path(f"/proc/{guard}/cmdline").read_text().split("\0")
    address = f"{words[words.index('--url') + 1]}/services/hubguard/api/v1/"

    async def directly(method: str, path: str) -> Any:
        async with (
            aiohttp.ClientSession(headers={"Authorization": f"token {hub.token}"}) as session,
            session.request(method, address + path, json=None if method == "GET" else {}) as answer,
        ):
            assert answer.status == 200, await answer.text()
            return await answer.json()

    await hub.kill_proxy()
    await directly("POST", "arm")

    def back(found: dict[str, Any]) -> list[tuple[str, str]]:
        return [(one["user"], one["server"]) for one in found["findings"] if one["kind"] == "came-back"]

    async def is_told() -> bool:
        return bool(back(await directly("GET", "status")))

    await hub.wait_for(is_told, "the server that came back to be told of", 90)
    await hub.start_proxy()
    assert (await hub.api("POST", "proxy")).status == 200
    server = await hub.server("idle")
    assert server is not None
    assert server["ready"]
    found = await cycles(hub)
    assert back(found) == [("idle", "")], "it stays a finding while that run is there"
    assert (found["tally"]["done"], found["tally"]["failed"]) == (0, 1)
    assert await outcomes(hub) == [("idle", "stop-server", "failed")]
    # Whoever ends it by hand is done with it.
    assert (await hub.api("DELETE", "users/idle/server")).status in {202, 204}
    await gone(hub, "idle")
    assert (await cycles(hub))["findings"] == []


# -- a guard that is killed ---------------------------------------------------------------------------------------


class FallingHub(ScriptedHub):
    """A hub that answers everything with ``error`` from the first stop on that it is asked for, until ``healed``."""

    token = TOKEN

    def __init__(self, people: list[Person], error: int) -> None:
        super().__init__(people)
        self.seen: list[tuple[float, str, str]] = []
        self.healed = False
        self._error = error
        self._fallen = False

    async def _answer(self, request: web.Request) -> web.StreamResponse:
        self.seen.append((time.monotonic(), request.method, request.path))
        self._fallen = self._fallen or request.method == "DELETE"
        if self._fallen and not self.healed:
            return web.json_response({"status": self._error, "message": "not now"}, status=self._error)
        return await super()._answer(request)


OPEN_S = 2.0
CHANGED = constants(lease_s=3.0, retry_base_s=1.0, retry_max_s=1.0, breaker_failures=3, breaker_open_s=OPEN_S)
KILLED = (
    CHANGED
    + """
c.HubGuard.armed = True
c.HubGuardCull.idle_timeout_s = 600.0
c.HubGuardCull.every_s = 1.0
"""
)


@pytest.mark.long
@pytest.mark.parametrize("error", [500, 429])
async def test_a_guard_killed_while_its_breaker_is_open_goes_on_with_one_get_at_a_time(tmp_path: Path, error: int):
    """It was in the midst of stops; the one after it neither repeats them blindly nor begins with a fresh allowance."""
    settings = tmp_path / "hubguard_config.py"
    settings.write_text(KILLED)
    db_url = f"sqlite:///{tmp_path / 'journal.sqlite'}"
    (port,) = free_ports(1)

    async def guard(hub: FallingHub) -> asyncio.subprocess.Process:
        command, environ = external(hub, port, db_url, HUBGUARD_CONFIG=str(settings))  # type: ignore[arg-type]
        with (tmp_path / "log").open("ab") as log:
            return await asyncio.create_subprocess_exec(*command, env=environ, cwd=tmp_path, stdout=log, stderr=log)

    async def until(check: Callable[[], bool], what: str) -> None:
        for _ in range(600):
            if check():
                return
            await asyncio.sleep(0.05)
        raise AssertionError(f"waited for {what}, in vain:\n{(tmp_path / 'log').read_text()[-3000:]}")

    def is_open() -> bool:
        if "DELETE" not in {method for _, method, _ in hub.seen}:
            return False
        journal = open_journal(db_url)
        try:
            remembered = journal.recall(PACE)
            return remembered is not None and remembered[0]["breaker"] == "open"
        finally:
            journal.close()

    async with FallingHub([Person(name, {"": Srv()}) for name in ("ann", "bob", "cyd")], error) as hub:
        process = await guard(hub)
        try:
            await until(is_open, "the journal to know that the breaker is open")
            process.kill()
            await process.wait()
            before = len(hub.seen)
            process = await guard(hub)
            await until(lambda: len(hub.seen) >= before + 2, "two probes")
            probes = hub.seen[before:]
            hub.healed = True
            assert {method for _, method, _ in probes} == {"GET"}
            # Each is sent that long after the answer to the one before, however slow this machine is.
            assert all(later[0] - probe[0] >= OPEN_S for probe, later in itertools.pairwise(probes))
            await until(lambda: len(hub.asked) >= 3, "the servers to be stopped")
        finally:
            if process.returncode is None:
                process.terminate()
            await asyncio.wait_for(process.wait(), 20)
    since = hub.seen[before:]
    for at, method, path in since:
        if method == "DELETE":
            user = path.split("/")[4]
            looks = [when for when, how, where in since if how == "GET" and where == f"/hub/api/users/{user}"]
            assert any(when < at for when in looks), f"{user} was looked at again"
    assert sorted(hub.asked) == ["stop ann", "stop bob", "stop cyd"]
