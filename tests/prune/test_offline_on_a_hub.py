"""A real hub that is stopped, pruned straight in its database by the command, started again, and brought back as it was."""

from __future__ import annotations

import asyncio
import os
import re
import sys
from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import Any

import pytest
import sqlalchemy as sa

from hubguard.staging.hub import TestbedHub
from hubguard.staging.population import DAY_S, Population, SeededServer, SeededUser

LATELY_S = 330.0

MakeHub = Callable[..., Awaitable[TestbedHub]]

STALE = ("old", "old käthe", "never")
UNSEEN = ("--acknowledge", "processes-not-seen")
NO_JOURNAL = ("--acknowledge", "journal-unknown")
KEPT = ("new", "protected")
POPULATION = Population(
    (
        SeededUser("old", groups=("zoo",), idle_for_s=400 * DAY_S, created_s=500 * DAY_S, shared_with=("new",)),
        SeededUser("old käthe", groups=("zoo",), idle_for_s=400 * DAY_S, created_s=500 * DAY_S),
        SeededUser("never", created_s=500 * DAY_S),
        SeededUser("new", groups=("zoo",), idle_for_s=3 * DAY_S, created_s=500 * DAY_S),
        SeededUser("protected", groups=("staff",), idle_for_s=400 * DAY_S, created_s=500 * DAY_S),
    ),
    (
        SeededServer("old", idle_for_s=400 * DAY_S, running=False, kept_state={"pvc_name": "claim-old"}),
        SeededServer("old", "gpu", idle_for_s=400 * DAY_S, running=False, start_s=0.25),
        SeededServer("new", idle_for_s=3 * DAY_S, running=False),
    ),
)


def aged(hub: TestbedHub) -> None:
    """The hub was stopped an hour ago, as far as its database tells: all that it wrote lately was written then."""
    engine = sa.create_engine(hub.db_url, poolclass=sa.NullPool)
    with engine.begin() as connection:
        for table in ("users", "api_tokens", "spawners"):
            connection.exec_driver_sql(
                f"UPDATE {table} SET last_activity = datetime(last_activity, '-1 hour')"
                " WHERE last_activity > datetime('now', '-1 hour')"
            )
    file = hub.folder / "jupyterhub.sqlite"
    at_s = file.stat().st_mtime - 2 * LATELY_S
    os.utime(file, (at_s, at_s))


async def hubguard(hub: TestbedHub, *words: str) -> tuple[int, str]:
    """The command's exit code and all that it says, run in the hub's folder."""
    process = await asyncio.create_subprocess_exec(
        sys.executable,
        *("-m", "hubguard", *words),
        cwd=hub.folder,
        env={
            **{name: value for name, value in os.environ.items() if not name.startswith(("JUPYTERHUB_", "HUBGUARD_"))},
            "HUBGUARD_HUB_DB_URL": hub.db_url,
            "JUPYTERHUB_API_URL": hub.api_url,
            "PYTHONPATH": str(Path(__file__).parents[2]),
        },
        stdin=asyncio.subprocess.DEVNULL,
        stdout=asyncio.subprocess.PIPE,
        stderr=asyncio.subprocess.STDOUT,
    )
    said, _ = await asyncio.wait_for(process.communicate(), 60)
    return int(process.returncode or 0), said.decode()


async def shown(hub: TestbedHub) -> dict[str, dict[str, Any]]:
    answer = await hub.api("GET", "users?include_stopped_servers=1")
    assert answer.status == 200
    return {user["name"]: user for user in answer.data if user["name"] in (*STALE, *KEPT)}


def shares(hub: TestbedHub) -> list[tuple[str, str, str]]:
    """Whose server of which name is shared with whom."""
    question = (
        "SELECT o.name, s.name, u.name FROM shares JOIN users o ON o.id = owner_id JOIN users u ON u.id = shares.user_id"
        " JOIN spawners s ON s.id = spawner_id AND s.user_id = o.id"
    )
    with sa.create_engine(hub.db_url, poolclass=sa.NullPool).connect() as connection:
        return [tuple(row) for row in connection.exec_driver_sql(question)]


def like(user: dict[str, Any]) -> dict[str, Any]:
    """Of a user as the API shows them, what stays when nobody uses the hub."""
    servers = {name: server["user_options"] for name, server in user["servers"].items()}
    return {**{key: user[key] for key in ("groups", "roles", "admin", "created")}, "servers": servers}


@pytest.mark.long
async def test_a_stopped_hub_is_pruned_starts_without_those_users_and_gets_them_back_as_they_were(
    testbed_hub: MakeHub,
) -> None:
    hub = await testbed_hub(population=POPULATION)
    made = await hub.api("POST", "users/old/tokens", json={"note": "a script's"})
    assert made.status == 201
    token = made.data["token"]
    before = await shown(hub)
    (hub.folder / "hubguard_protections.py").write_text("c.HubGuardPrune.protected_groups = ['staff']\n")
    plan = (
        *("prune", "plan", "--offline", "--inactive-for", "180d", "--never-active-for", "90d", "-o", "plan.json"),
        *("--config", "jupyterhub_config.py", "--config", "hubguard_protections.py"),
    )
    code, said = await hubguard(hub, *plan)
    assert code == 0, said
    apply = said[said.index("hubguard prune apply") :].split("\n")[0].split()[1:]
    assert apply[apply.index("--count") + 1] == "3"
    # Other accounts' processes, such as a database server's, can't be looked into everywhere.
    apply += UNSEEN

    code, said = await hubguard(hub, *apply)
    assert code != 0
    assert "The hub answers" in said
    await hub.stop()
    code, said = await hubguard(hub, *apply)
    assert code != 0
    assert re.search(r"wait \d+ s", said), said
    aged(hub)
    code, said = await hubguard(hub, *apply)
    assert code == 0, said
    undo = said[said.index("Undo file: ") :].split("\n")[0].removeprefix("Undo file: ")

    await hub.start()
    left = await shown(hub)
    assert shares(hub) == []
    assert left.keys() == {*KEPT}
    assert {name: like(user) for name, user in left.items()} == {name: like(before[name]) for name in KEPT}
    assert (await hub.api("GET", "user", token=token)).status == 403
    # With what it was last started with: without, a 5.x hub forgets that.
    await hub.start_server("new", **before["new"]["servers"][""]["user_options"])
    assert await hub.server("new") is not None
    assert (await hub.api("DELETE", "users/new/server")).status in (202, 204)

    async def gone() -> bool:
        return await hub.server("new") is None

    await hub.wait_for(gone, "the server to stop", 20)
    await hub.stop()
    aged(hub)
    code, said = await hubguard(
        hub,
        "prune",
        "restore",
        "--offline",
        undo,
        "--with-tokens",
        "--count",
        "3",
        *UNSEEN,
        *NO_JOURNAL,
        "--acknowledge",
        "undo-file-unknown",
    )
    assert code == 0, said

    await hub.start()
    after = await shown(hub)
    assert {name: like(user) for name, user in after.items()} == {name: like(user) for name, user in before.items()}
    assert after["old"]["servers"].keys() >= {"gpu"}
    owner = await hub.api("GET", "user", token=token)
    assert (owner.status, owner.data["name"]) == (200, "old")
    assert shares(hub) == [("old", "", "new")]
