"""Stale users leave a real hub by a plan: exactly those, each once, with a way back, whatever happens in between."""

from __future__ import annotations

import os
import re
import signal
import stat
from collections import Counter
from collections.abc import Awaitable, Callable, Mapping
from pathlib import Path
from typing import Any
from urllib.parse import quote, unquote

import aiohttp
import pytest
from guarded import ARMED, ask, guards, mode

from hubguard.prune import undo_file
from hubguard.staging.hub import TestbedHub
from hubguard.staging.population import AWKWARD_NAMES, DAY_S, Population, SeededServer, SeededUser

MakeHub = Callable[..., Awaitable[TestbedHub]]

LONG_AGO_S = 200 * DAY_S
# The scope is asked for by the include, so what asks for it stands before that. Servers are left to themselves.
PRUNING = (
    "c.HubGuardPrune.delete_users = True\n"
    + ARMED
    + """
c.HubGuard.hub_db_url = "hub"
c.HubGuardCull.idle_timeout_s = 0.0
c.HubGuardPrune.rate = 50.0
c.HubGuardPrune.protected_groups = ["staff"]
c.HubGuardPrune.protected_names = ["vip-*"]
"""
)
SLOWLY = "c.HubGuardPrune.rate = 2.0\n"

DELETED = re.compile(r"JupyterHub log:\d+\] (\d+) DELETE /hub/api/users/([^/\s]+) \(hubguard@")


def stale(name: str, **more: Any) -> SeededUser:
    return SeededUser(name, idle_for_s=LONG_AGO_S, created_s=LONG_AGO_S + DAY_S, **more)


def crowd(count: int) -> Population:
    return Population(tuple(stale(f"stale-{number:02}") for number in range(count)))


async def users(hub: TestbedHub) -> set[str]:
    """All that the hub has."""
    answer = await hub.api("GET", "users", params={"limit": "200"})
    assert answer.status == 200
    return {user["name"] for user in answer.data}


async def planned(hub: TestbedHub, *, token: str | None = None, **criteria: Any) -> dict[str, Any]:
    """A plan to remove all that are stale, or whom else ``criteria`` ask for."""
    code, plan = await ask(hub, "api/v1/plans", method="POST", json=criteria, token=token)
    assert code == 201, plan
    found: dict[str, Any] = plan
    return found


async def token_of(hub: TestbedHub, user: str = TestbedHub.admin) -> str:
    """A new token of that user's, with all that they may do."""
    answer = await hub.api("POST", f"users/{user}/tokens", json={"note": "a test"})
    assert answer.status == 201, answer
    return str(answer.data["token"])


def order(plan: Mapping[str, Any], **other: Any) -> dict[str, Any]:
    return {"count": len(plan["deletions"]), "why": "a test wants it", **other}


async def turned(hub: TestbedHub, plan: Mapping[str, Any], word: str, **body: Any) -> tuple[int, Any]:
    """(status, answer) when that is asked of a plan: apply, pause, resume, cancel, restore."""
    return await ask(
        hub, f"api/v1/plans/{plan['digest']}/{word}", method="POST", json=body or {"why": "a test wants it"}
    )


async def begun(hub: TestbedHub, plan: Mapping[str, Any], **other: Any) -> dict[str, Any]:
    """How the plan stands right after it was applied."""
    code, run = await turned(hub, plan, "apply", **order(plan, **other))
    assert code == 202, run
    found: dict[str, Any] = run
    return found


async def standing(hub: TestbedHub, plan: Mapping[str, Any]) -> dict[str, Any]:
    code, answer = await ask(hub, f"api/v1/plans/{plan['digest']}")
    assert code == 200, answer
    run: dict[str, Any] = answer["run"]
    return run


async def until(
    hub: TestbedHub, plan: Mapping[str, Any], check: Callable[[dict[str, Any]], bool], timeout_s: float = 60.0
) -> dict[str, Any]:
    """How the plan stands once ``check`` holds. A guard that doesn't answer is waited for."""
    found: dict[str, Any] = {}

    async def there() -> bool:
        try:
            found.update(await standing(hub, plan))
        except (AssertionError, aiohttp.ClientError, TimeoutError):
            return False
        return check(found)

    try:
        await hub.wait_for(there, "the plan to get there", timeout_s)
    except Exception as error:
        raise AssertionError(f"{found}\n{error}") from error
    return found


async def done(hub: TestbedHub, plan: Mapping[str, Any], timeout_s: float = 60.0) -> dict[str, Any]:
    return await until(hub, plan, lambda run: run["state"] == "done", timeout_s)


async def items(hub: TestbedHub, plan: Mapping[str, Any]) -> dict[str, dict[str, Any]]:
    """What came of each user of the plan."""
    code, found = await ask(hub, f"api/v1/plans/{plan['digest']}/items", params={"limit": "200"})
    assert code == 200, found
    return {item["user"]: item for item in found}


def named(plan: Mapping[str, Any]) -> set[str]:
    return {deletion["user"] for deletion in plan["deletions"]}


def deletes(hub: TestbedHub) -> Counter[str]:
    """How often the hub was asked to delete each user, by its own log."""
    return Counter(unquote(name) for _, name in DELETED.findall(hub.log_text()))


@pytest.fixture(params=["sqlite", pytest.param("postgresql", marks=pytest.mark.long)])
def hub_database(request: pytest.FixtureRequest) -> str | None:
    return str(request.getfixturevalue("postgresql_url")) if request.param == "postgresql" else None


async def test_a_plan_removes_exactly_its_users_once_each_and_they_come_back_from_its_undo_file(
    testbed_hub: MakeHub, hub_database: str | None
):
    theirs = {*AWKWARD_NAMES, "never", "volume"}
    kept = {
        "boss": "admin",
        "configured": "named-in-config",
        "teacher": "protected-group",
        "vip-guest": "protected-name",
        "exempt": "exemption",
        "runs": "server-active",
        "starts": "server-active",
        "scripted": "token-used",
        "fresh": "active",
        "newcomer": "active",
    }
    population = Population(
        (
            *(stale(name, groups=("students",), tokens=1) for name in AWKWARD_NAMES),
            SeededUser("never", created_s=LONG_AGO_S),
            stale("volume", groups=("students", "lab"), tokens=2, token_used_s=LONG_AGO_S, shared_with=("fresh",)),
            stale("boss", admin=True),
            stale("configured"),
            stale("teacher", groups=("staff",)),
            stale("vip-guest"),
            stale("exempt"),
            stale("scripted", tokens=1, token_used_s=DAY_S),
            stale("starts"),
            SeededUser("fresh", idle_for_s=DAY_S),
            SeededUser("newcomer", created_s=DAY_S),
        ),
        (
            SeededServer("volume", idle_for_s=LONG_AGO_S, running=False, kept_state={"pvc_name": "claim-volume"}),
            SeededServer("volume", "work", idle_for_s=LONG_AGO_S, running=False),
            SeededServer("runs", idle_for_s=LONG_AGO_S),
        ),
    )
    hub = await testbed_hub(
        config=PRUNING
        + "c.Authenticator.allowed_users = {'configured'}\n"
        + "c.JupyterHub.tornado_settings = {'slow_spawn_timeout': 0}\n",
        population=population,
        db_url=hub_database,
    )
    await mode(hub, "acting")
    assert (await hub.api("POST", "users/starts/server", json={"start_s": 300.0})).status == 202
    exemption = {"user": "exempt", "why": "on leave", "for_s": DAY_S}
    assert (await ask(hub, "api/v1/exemptions", method="POST", json=exemption))[0] == 200

    plan = await planned(hub)
    assert named(plan) == theirs
    assert plan["cautions"] == [], "the include tells who is named, and that this spawner keeps storage"
    for name, reason in kept.items():
        code, told = await ask(hub, f"api/v1/users/{quote(name, safe='')}")
        assert code == 200
        assert not told["stale"], name
        assert reason in told["reasons"], (name, told["reasons"])
    everybody = await users(hub)
    assert everybody == theirs | set(kept) | {hub.admin}, "planning removes nobody"
    code, refused = await turned(hub, plan, "apply", **order(plan, count=len(theirs) - 1))
    assert code == 409
    assert not Path(hub.folder / "hubguard-undo").exists(), refused

    run = await begun(hub, plan)
    file = Path(run["undo_file"])
    assert stat.S_IMODE(file.stat().st_mode) == 0o600
    head, undo = undo_file.read(file, sha256=run["undo_sha256"])
    assert head.digest == plan["digest"]
    assert {user.name for user in undo if user.name} == theirs, "whoever goes is in the file before the first one goes"
    (volume,) = [user for user in undo if user.name == "volume"]
    rows = volume.rows or {}
    assert (volume.groups, [server.name for server in volume.servers]) == (("lab", "students"), ["", "work"])
    assert {table: len(rows[table]) for table in ("users", "spawners", "api_tokens", "shares", "user_group_map")} == {
        **{"users": 1, "spawners": 2, "api_tokens": 2},
        **{"shares": 1, "user_group_map": 2},
    }

    run = await done(hub, plan)
    assert (run["done"], run["settled"], run["count"]) == (len(theirs), len(theirs), len(theirs))
    assert await users(hub) == set(kept) | {hub.admin}
    assert deletes(hub) == dict.fromkeys(theirs, 1)
    assert {item["state"] for item in (await items(hub, plan)).values()} == {"done"}
    code, entries = await ask(hub, "api/v1/journal", params={"limit": "1000"})
    assert code == 200
    intents = {entry["id"]: entry["user"] for entry in entries if entry["event"] == "intent"}
    assert set(intents.values()) == theirs
    assert {intents[entry["refers_to"]] for entry in entries if entry["outcome"] == "done"} == theirs
    code, _ = await turned(hub, plan, "apply", **order(plan))
    assert code == 409, "a plan is carried out once"

    token = await token_of(hub)
    body = {"count": len(theirs), "why": "they are back", "sha256": run["undo_sha256"]}
    path = f"api/v1/plans/{plan['digest']}/restore"
    code, run = await ask(hub, path, method="POST", json=body, token=token)
    assert code in {200, 202}, run
    # No hub makes anybody with a slash in their name (5.5, 6.1): whoever has one can only come back by the database.
    back = theirs - {"sl/ash"}
    code, entries = await ask(hub, "api/v1/journal", params={"limit": "30"})
    told = [f"{entry['user']} {entry['detail']}" for entry in entries if "from an undo file" in entry["detail"]]
    assert run["restored"] == len(back), told
    assert [line for line in told if "failed" in line and "400" in line and line.startswith("sl/ash ")], told
    assert await users(hub) == everybody - {"sl/ash"}
    for name in back - {"never"}:
        answer = await hub.api("GET", f"users/{quote(name, safe='')}", params={"include_stopped_servers": "1"})
        assert set(answer.data["groups"]) == ({"students", "lab"} if name == "volume" else {"students"})
        assert not answer.data["admin"]
        if name == "volume" and (await hub.api("GET", "")).data["version"] >= "6":
            assert "work" in answer.data["servers"]
    code, run = await ask(hub, path, method="POST", json=body, token=token)
    assert code in {200, 202}, run
    assert await users(hub) == everybody - {"sl/ash"}, "asked for twice, it changes nothing"


async def test_whoever_is_back_when_their_turn_comes_is_skipped_and_the_journal_tells_why(testbed_hub: MakeHub):
    names = ("arrives", "starts", "rises", "joins", "anew", "left", "goes")
    hub = await testbed_hub(
        config=PRUNING, population=Population((*map(stale, names), SeededUser("colleague", groups=("staff",))))
    )
    await mode(hub, "acting")
    code, refused = await ask(hub, "api/v1/plans", method="POST", json={"listed": [*names, "nobody"]})
    assert (code, "none of these listed users: nobody." in refused["message"]) == (409, True)
    plan = await planned(hub, listed=[*names, "nobody"], ignore_unknown=True)
    assert named(plan) == set(names)
    async with aiohttp.ClientSession(timeout=aiohttp.ClientTimeout(total=10)) as session:
        await hub.login(session, "arrives")
    await hub.start_server("starts")
    # Only an admin makes others admins.
    boss = await token_of(hub)
    assert (await hub.api("PATCH", "users/rises", json={"admin": True}, token=boss)).status == 200
    assert (await hub.api("POST", "groups/staff/users", json={"users": ["joins"]})).status == 200
    assert (await hub.api("DELETE", "users/anew")).status == 204
    assert (await hub.api("POST", "users/anew")).status == 201
    assert (await hub.api("DELETE", "users/left")).status == 204

    await begun(hub, plan)
    run = await done(hub, plan)
    found = await items(hub, plan)
    assert {name: item["state"] for name, item in found.items()} == {
        **dict.fromkeys(names, "skipped"),
        "left": "gone",
        "goes": "done",
    }, found
    assert (run["done"], run["skipped"], run["gone"]) == (1, 5, 1)
    for name, why in {
        "arrives": "active",
        "starts": "active|server",
        "rises": "admin",
        "joins": "protected group",
        "anew": "created again",
        "left": "weren't there",
    }.items():
        assert re.search(why, found[name]["detail"]), found[name]
        code, entries = await ask(hub, "api/v1/journal", params={"user": name})
        assert code == 200
        assert any(found[name]["detail"] in entry["detail"] for entry in entries), (name, entries)
    assert await users(hub) == {"arrives", "starts", "rises", "joins", "anew", "colleague", hub.admin}
    assert ("starts", "") in await hub.servers()
    assert deletes(hub) == {"goes": 1}


@pytest.mark.long
async def test_a_hub_that_does_not_let_hubguard_delete_users_is_asked_for_nothing(testbed_hub: MakeHub):
    config = PRUNING.replace("c.HubGuardPrune.delete_users = True\n", "")
    hub = await testbed_hub(config=config, population=crowd(2))
    await mode(hub, "acting")
    plan = await planned(hub)
    code, refused = await turned(hub, plan, "apply", **order(plan))
    assert code == 409
    assert "HubGuardPrune.delete_users" in str(refused)
    assert len(await users(hub)) == 3
    assert not deletes(hub)


@pytest.mark.long
async def test_over_rest_alone_a_plan_removes_whom_it_lists_and_restores_them(testbed_hub: MakeHub):
    config = PRUNING.replace('c.HubGuard.hub_db_url = "hub"\n', "")
    people = tuple(stale(name, groups=("students",)) for name in AWKWARD_NAMES)
    hub = await testbed_hub(config=config, population=Population((*people, SeededUser("fresh", idle_for_s=DAY_S))))
    await mode(hub, "acting")
    plan = await planned(hub)
    assert named(plan) == set(AWKWARD_NAMES)
    run = await begun(hub, plan, acknowledged=[caution["name"] for caution in plan["cautions"]])
    _, undo = undo_file.read(Path(run["undo_file"]), sha256=run["undo_sha256"])
    assert {(user.name, user.groups) for user in undo if user.name} == {(name, ("students",)) for name in AWKWARD_NAMES}
    run = await done(hub, plan)
    assert await users(hub) == {"fresh", hub.admin}
    token = await token_of(hub)
    body = {"count": run["done"], "why": "they are back"}
    code, run = await ask(hub, f"api/v1/plans/{plan['digest']}/restore", method="POST", json=body, token=token)
    assert code in {200, 202}, run
    group = await hub.api("GET", "groups/students")
    assert set(group.data["users"]) == set(AWKWARD_NAMES) - {"sl/ash"}, (
        "no hub makes anybody with a slash in their name"
    )


@pytest.mark.long
async def test_a_plan_is_paused_goes_on_where_it_stopped_and_is_cancelled_for_good(testbed_hub: MakeHub):
    hub = await testbed_hub(config=PRUNING + SLOWLY, population=crowd(20))
    await mode(hub, "acting")
    plan = await planned(hub)
    await begun(hub, plan)
    await until(hub, plan, lambda run: run["done"] >= 2)
    code, _ = await turned(hub, plan, "pause")
    assert code == 200
    # The one under way is finished; after that the number stands still, for longer than two more would take.
    paused = await until(hub, plan, lambda run: run["state"] == "paused")
    before: list[int] = []

    async def still() -> bool:
        before.append((await standing(hub, plan))["settled"])
        return len(before) >= 25

    await hub.wait_for(still, "the plan to stand still", 30)
    assert max(before) - before[0] <= 1, before
    assert len(set(before[10:])) == 1, before
    assert before[-1] < 20, paused
    left = await users(hub)

    code, _ = await turned(hub, plan, "resume")
    assert code == 200
    await until(hub, plan, lambda run: run["done"] >= before[-1] + 2)
    code, _ = await turned(hub, plan, "cancel")
    assert code == 200
    run = await until(hub, plan, lambda run: run["state"] == "cancelled")
    assert run["ended_at"] is not None
    code, refused = await turned(hub, plan, "resume")
    assert code == 409, refused
    gone = left - await users(hub)
    assert 2 <= len(gone) < len(left) - 1
    assert set(deletes(hub).values()) == {1}


@pytest.mark.long
@pytest.mark.parametrize("who", ["the guard", "the hub"])
async def test_a_plan_goes_on_where_it_stopped_after_a_kill_and_nobody_is_deleted_twice(testbed_hub: MakeHub, who: str):
    """kill -9 in the midst of it. The hub starts a guard that has gone within half a minute; one of its own it outlives."""
    hub = await testbed_hub(config=PRUNING + SLOWLY, population=crowd(24))
    await mode(hub, "acting")
    plan = await planned(hub)
    await begun(hub, plan)
    await until(hub, plan, lambda run: run["done"] >= 4)
    if who == "the guard":
        (pid,) = guards(hub)
        os.kill(pid, signal.SIGKILL)
    else:
        await hub.kill()
        await hub.start()
    run = await done(hub, plan, timeout_s=120)
    assert (run["done"], run["failed"], run["unverified"]) == (24, 0, 0), await items(hub, plan)
    assert await users(hub) == {hub.admin}
    assert set(deletes(hub)) == named(plan)
    # The one that was under way may be asked for again, where the answer didn't come: never where a look shows it gone.
    assert {name: count for name, count in deletes(hub).items() if count > 1} == {}


OBSTINATE = """
from pathlib import Path
from jupyterhub.auth import DummyAuthenticator
from hubguard.staging.spawner import LittleSpawner

class Forgetful(DummyAuthenticator):
    # The hub asks it first; whatever comes after may still fail.
    forgotten = []

    def delete_user(self, user):
        self.forgotten.append(user.name)
        if user.name == "never-lets-go" or (user.name == "lets-go-later" and self.forgotten.count(user.name) == 1):
            raise RuntimeError("the directory is down")

class VolumeSpawner(LittleSpawner):
    async def delete_forever(self):
        Path(self.folder, f"deleted-{self.user.name}").touch()
        if self.user.name == "volume-stays":
            raise RuntimeError("the volume can't be deleted")

c.JupyterHub.authenticator_class = Forgetful
c.JupyterHub.spawner_class = VolumeSpawner
"""


@pytest.mark.long
async def test_a_delete_that_fails_half_way_is_told_and_storage_goes_only_once_that_is_acknowledged(
    testbed_hub: MakeHub,
):
    """A hub (5.5, 6.1) logs what a delete_forever raises, and deletes the user; what delete_user raises is a 500."""
    names = ("lets-go-later", "never-lets-go", "volume", "volume-stays")
    stopped = tuple(SeededServer(name, idle_for_s=LONG_AGO_S, running=False) for name in names)
    hub = await testbed_hub(config=OBSTINATE + PRUNING, population=Population(tuple(map(stale, names)), stopped))
    await mode(hub, "acting")
    plan = await planned(hub)
    assert [caution["name"] for caution in plan["cautions"]] == ["VolumeSpawner"]
    assert plan["storage"]["fate"] == "may-be-deleted"
    for acknowledged in ([], ["volumespawner"], ["KubeSpawner"]):
        code, refused = await turned(hub, plan, "apply", **order(plan, acknowledged=acknowledged))
        assert code == 409
        assert "VolumeSpawner" in str(refused)
    assert not deletes(hub)
    assert not list(hub.little_servers.glob("deleted-*"))

    await begun(hub, plan, acknowledged=["VolumeSpawner"])
    run = await done(hub, plan, timeout_s=300)
    found = await items(hub, plan)
    assert {name: item["state"] for name, item in found.items()} == {
        **{"lets-go-later": "done", "volume": "done"},
        **{"volume-stays": "done", "never-lets-go": "failed"},
    }
    assert (run["done"], run["failed"]) == (3, 1)
    assert "500" in found["never-lets-go"]["detail"], "what the hub answered"
    assert await users(hub) == {"never-lets-go", hub.admin}
    assert {path.name for path in hub.little_servers.glob("deleted-*")} == {
        f"deleted-{name}" for name in ("lets-go-later", "volume", "volume-stays")
    }
    code, entries = await ask(hub, "api/v1/journal", params={"user": "never-lets-go"})
    assert code == 200
    assert [entry["outcome"] for entry in entries if entry["event"] == "outcome"][:1] == ["failed"]


@pytest.mark.long
async def test_whoever_asks_is_kept_and_nobody_without_the_right_may_ask(testbed_hub: MakeHub):
    """Pruners have the right by a role of their group, and are no admins; a student has none."""
    role = {
        "name": "pruner",
        "groups": ["pruners"],
        "scopes": ["custom:hubguard:prune", "access:services!service=hubguard"],
    }
    people = (stale("pru", groups=("pruners",)), stale("other"), stale("student", groups=("students",)))
    hub = await testbed_hub(
        config=PRUNING + f"c.JupyterHub.load_roles.append({role!r})\n", population=Population(people)
    )
    await mode(hub, "acting")

    student, pru = await token_of(hub, "student"), await token_of(hub, "pru")
    code, _ = await ask(hub, "api/v1/plans", method="POST", json={}, token=student)
    assert code == 403
    code, told = await ask(hub, "api/v1/users/pru", token=pru)
    assert code == 200
    assert "caller" in told["reasons"]
    plan = await planned(hub, token=pru, inactive_for_s=DAY_S)
    assert "pru" not in named(plan)
    code, refused = await ask(
        hub, f"api/v1/plans/{plan['digest']}/apply", method="POST", json=order(plan), token=student
    )
    assert code == 403, refused
    code, run = await ask(hub, f"api/v1/plans/{plan['digest']}/apply", method="POST", json=order(plan), token=pru)
    assert code == 202, run
    await done(hub, plan)
    assert await users(hub) >= {"pru", hub.admin}
    assert "other" not in await users(hub)
    body = {"count": len(named(plan)), "why": "a test wants it"}
    path = f"api/v1/plans/{plan['digest']}/restore"
    _, run = await ask(hub, path, method="POST", json=body, token=pru)
    assert not run.get("restored"), "who may remove users may not make any: nobody gains rights through HubGuard"
    assert "other" not in await users(hub)
    code, entries = await ask(hub, "api/v1/journal", params={"user": "other"})
    assert code == 200
    assert "admin:users" in entries[0]["detail"], "what it takes"


@pytest.mark.long
async def test_a_plan_from_before_the_hub_got_a_spawner_that_deletes_storage_waits_for_that_to_be_acknowledged(
    testbed_hub: MakeHub,
):
    people = crowd(8)
    servers = tuple(SeededServer(user.name, idle_for_s=LONG_AGO_S, running=False) for user in people.users)
    hub = await testbed_hub(
        config=PRUNING + "c.HubGuardPrune.rate = 1.0\n", population=Population(people.users, servers)
    )
    await mode(hub, "acting")
    paused, never_begun = await planned(hub), await planned(hub, names=["stale-07"])
    assert paused["cautions"] == []
    await begun(hub, paused)
    await until(hub, paused, lambda run: run["done"] >= 1)
    await turned(hub, paused, "pause")
    hub._config = OBSTINATE + PRUNING
    hub._write_config()
    await hub.restart()
    await mode(hub, "acting")
    left = await users(hub)

    code, refused = await turned(hub, never_begun, "apply", **order(never_begun))
    assert (code, "VolumeSpawner" in refused["message"]) == (409, True)
    code, refused = await turned(hub, paused, "resume", why="go on", acknowledged=["KubeSpawner"])
    assert (code, "VolumeSpawner" in refused["message"]) == (409, True)
    assert await users(hub) == left
    assert list(hub.little_servers.glob("deleted-*")) == []

    code, run = await turned(hub, paused, "resume", why="go on", acknowledged=["VolumeSpawner"])
    assert code == 200, run
    run = await done(hub, paused)
    assert run["done"] == 8
    assert len(list(hub.little_servers.glob("deleted-*"))) == len(left) - 1


@pytest.mark.long
async def test_whoever_gets_a_group_a_token_or_a_server_after_the_undo_file_was_written_is_kept(testbed_hub: MakeHub):
    busy = SeededUser("fresh", idle_for_s=DAY_S, groups=("lab",))
    hub = await testbed_hub(
        config=PRUNING + "c.HubGuardPrune.rate = 1.0\n", population=Population((*crowd(8).users, busy))
    )
    await mode(hub, "acting")
    plan = await planned(hub)
    await begun(hub, plan)
    await until(hub, plan, lambda run: run["done"] >= 1)
    await turned(hub, plan, "pause")

    async def still() -> bool:
        before = await users(hub)
        return before == await users(hub) and (await standing(hub, plan))["settled"] + len(before) == 10

    await hub.wait_for(still, "the one under way to be finished", 30)
    with_server, with_token, in_group = sorted(await users(hub) - {"fresh", hub.admin})[-3:]
    assert (await hub.api("POST", "groups/lab/users", json={"users": [in_group]})).status == 200
    assert (await hub.api("POST", f"users/{with_token}/tokens", json={"note": "a script"})).status == 201
    told = {in_group: "the group lab", with_token: "1 more token"}
    if int((await hub.api("GET", "")).data["version"].partition(".")[0]) >= 6:
        # Before 6.0 none can be had without starting it.
        assert (await hub.api("PUT", f"users/{with_server}/servers/gpu", json={})).status in {200, 201, 204}
        told[with_server] = "the server gpu"
    code, _ = await turned(hub, plan, "resume")
    assert code == 200
    run = await done(hub, plan)
    assert (run["done"], run["skipped"]) == (8 - len(told), len(told))
    assert await users(hub) == {"fresh", hub.admin, *told}
    settled = await items(hub, plan)
    for name, what in told.items():
        assert settled[name]["detail"].startswith("changed since the undo file was written: "), settled[name]
        assert what in settled[name]["detail"]


SLOW_ONE = """
import asyncio
from jupyterhub.auth import DummyAuthenticator

class SlowAuthenticator(DummyAuthenticator):
    async def delete_user(self, user):
        if user.name == "b-slow":
            await asyncio.sleep(20)

c.JupyterHub.authenticator_class = SlowAuthenticator
"""


@pytest.mark.long
async def test_who_was_being_deleted_when_the_guard_was_killed_is_counted_and_comes_back(testbed_hub: MakeHub):
    hub = await testbed_hub(
        config=SLOW_ONE + PRUNING + "c.HubGuardBudget.concurrency = 1\n",
        population=Population(tuple(stale(name) for name in ("a", "b-slow", "c"))),
    )
    await mode(hub, "acting")
    plan = await planned(hub)
    await begun(hub, plan)
    await until(hub, plan, lambda run: run["done"] >= 1)

    async def asked() -> bool:
        code, entries = await ask(hub, "api/v1/journal", params={"user": "b-slow"})
        return code == 200 and any(entry["event"] == "intent" for entry in entries)

    await hub.wait_for(asked, "the slow one to be asked for", 20)
    await turned(hub, plan, "pause")
    (pid,) = guards(hub)
    os.kill(pid, signal.SIGKILL)

    async def another() -> bool:
        return guards(hub) not in ([], [pid])

    await hub.wait_for(another, "a new guard", 60)
    run = await until(hub, plan, lambda run: run["done"] == 2, timeout_s=120)
    assert run["state"] == "paused"
    assert await users(hub) == {hub.admin, "c"}
    code, run = await ask(
        hub,
        f"api/v1/plans/{plan['digest']}/restore",
        method="POST",
        json={"count": 2, "why": "a test wants it"},
        token=await token_of(hub),
    )
    assert (code, run["restored"]) == (200, 2), run
    assert await users(hub) == {hub.admin, "a", "b-slow", "c"}
