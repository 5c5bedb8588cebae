"""What of a user comes back on a real hub, after a deletion and a restoring by its API: each difference, by name.

docs/reference/pruning.md says the same under "What comes back".
"""

from __future__ import annotations

import contextlib
import json
from collections.abc import AsyncIterator, Mapping
from dataclasses import dataclass
from datetime import datetime, timezone
from pathlib import Path
from typing import Any
from urllib.parse import quote

import pytest
import pytest_asyncio
import sqlalchemy as sa
from conftest import HUB_PYTHON
from real_hub import RealHub

from hubguard.hub.client import HTTPHubAPI
from hubguard.hub.database import SQLHubDB
from hubguard.model import Outcome, OutcomeKind
from hubguard.pacing.budget import Budget
from hubguard.prune import undo_file
from hubguard.prune.model import UndoHead
from hubguard.prune.restore import Restorer
from hubguard.staging.hub import TestbedHub
from hubguard.staging.population import DAY_S, Population, SeededServer, SeededUser

pytestmark = [pytest.mark.asyncio(loop_scope="module"), pytest.mark.hub, pytest.mark.contract]

KUBE = {"pod_name": "jupyter-x", "pvc_name": "claim-x", "namespace": "jhub", "dns_name": "x.jhub.svc"}
AWKWARD = ("sl/ash", "que?stion", "ha#sh", "per%cent", "käthe 李雷")
OLD = {"idle_for_s": 300 * DAY_S, "created_s": 900 * DAY_S}
USERS = (
    SeededUser("stays", groups=("staff",), tokens=1, **OLD),
    *(SeededUser(name, groups=("staff",), **OLD) for name in AWKWARD),
    SeededUser("grouped", groups=("gpu users", "lonely", "staff"), **OLD),
    SeededUser("instructor", tokens=3, token_used_s=DAY_S, **OLD),
    SeededUser("namer", shared_with=("stays",), **OLD),
    # As from an authenticator that leaves names as they are; the testbed's takes small letters only.
    SeededUser("Capital", groups=("staff",), **OLD),
    # SQLite gives a number again only where it was the last of all.
    SeededUser("admin", admin=True),
    SeededUser("newest", groups=("staff",), tokens=1, created_s=900 * DAY_S),
)
TEN = tuple(user.name for user in USERS if user.name not in {"stays", "admin"})
SERVERS = (
    SeededServer("stays", running=False, idle_for_s=300 * DAY_S),
    SeededServer("namer", running=False, idle_for_s=300 * DAY_S, kept_state=KUBE),
    SeededServer("namer", "gpu-2", running=False, idle_for_s=300 * DAY_S, kept_state=KUBE),
    # A hub before 6.0 was content with such a name.
    SeededServer("namer", "a b", running=False, idle_for_s=300 * DAY_S),
    SeededServer("newest", running=False, idle_for_s=None, kept_state=KUBE),
)
CONFIG = """
c.JupyterHub.load_roles[0]["scopes"].append("shares")
c.JupyterHub.load_roles.append({"name": "instructor", "scopes": ["read:hub"]})
"""


class Prepared(RealHub):
    """A hub on whose database more is written before it starts, as a longer life would have left it."""

    __test__ = False

    def _seed(self) -> None:
        super()._seed()
        write(
            self.db_url,
            "INSERT INTO oauth_codes (id, client_id, code, expires_at, user_id)"
            " SELECT 1, 'jupyterhub', 'a code', 4000000000, id FROM users WHERE name = 'instructor'",
            "UPDATE users SET encrypted_auth_state = X'00ff' WHERE name = 'instructor'",
        )


def write(db_url: str, *statements: str) -> None:
    engine = sa.create_engine(db_url)
    with engine.begin() as db:
        for statement in statements:
            assert db.execute(sa.text(statement)).rowcount == 1
    engine.dispose()


@dataclass(frozen=True, slots=True)
class Experiment:
    """What was read before, between and after, and what HubGuard says came of it."""

    before: Mapping[str, Any]
    deleted: Mapping[str, Any]
    after: Mapping[str, Any]
    outcomes: Mapping[str, Outcome]
    again: Mapping[str, Outcome]
    last: Mapping[str, Any]
    since: datetime

    @property
    def six(self) -> bool:
        return int(self.before["version"].partition(".")[0]) >= 6


async def seen(hub: TestbedHub) -> dict[str, Any]:
    """What the API and the database show of everybody, with nothing that only says when or under which number."""
    answer = await hub.api("GET", "users?include_stopped_servers=1")
    api = {user["name"]: user for user in answer.data}
    for name, user in api.items():
        user["tokens"] = (await hub.api("GET", f"users/{quote(name, safe='')}/tokens")).data["api_tokens"]
    groups = {group["name"]: sorted(group["users"]) for group in (await hub.api("GET", "groups")).data}
    version = (await hub.api("GET", "")).data["version"]
    engine = sa.create_engine(hub.db_url)
    with engine.connect() as db:
        names = sa.inspect(db).get_table_names()
        tables = {
            table: [dict(row._mapping) for row in db.execute(sa.text(f"SELECT * FROM {table}"))] for table in names
        }
    engine.dispose()
    return {"api": api, "groups": groups, "version": version, "db": tables}


def of_user(tables: Mapping[str, Any], name: str) -> dict[str, Any]:
    """What the database has of one user, without ids and secrets: the row, what leads to it, and what leads to that."""
    found = [row for row in tables["users"] if row["name"] == name]
    if not found:
        return {}
    (user,) = found
    spawners = [row for row in tables["spawners"] if row["user_id"] == user["id"]]
    own = {row["id"] for row in spawners}

    def owned(table: str, key: str = "user_id") -> int:
        return sum(row[key] == user["id"] for row in tables[table])

    def called(table: str, column: str, within: str) -> list[str]:
        ids = {row[column] for row in tables[within] if row["user_id"] == user["id"]}
        return sorted(row["name"] for row in tables[table] if row["id"] in ids)

    return {
        **{f"users.{column}": value for column, value in user.items() if column not in {"id", "name"}},
        **{
            f"spawners[{row['name']}].{column}": json.loads(value)
            if column in {"state", "user_options"} and value
            else value
            for row in spawners
            for column, value in row.items()
            if column not in {"id", "user_id", "name"}
        },
        "spawners": sorted(row["name"] for row in spawners),
        "groups": called("groups", "group_id", "user_group_map"),
        "roles": called("roles", "role_id", "user_role_map"),
        "api_tokens": owned("api_tokens"),
        "oauth_codes": owned("oauth_codes"),
        "shares of theirs": sum(row["spawner_id"] in own for row in tables["shares"]),
        "shares with them": owned("shares"),
        "share_codes": owned("share_codes", "owner_id"),
    }


def differences(before: Mapping[str, Any], after: Mapping[str, Any]) -> list[str]:
    """The names of what isn't the same, in order; ``spawners`` alone stands for servers that aren't there at all."""
    if not after:
        return ["everything"]
    gone = tuple(f"spawners[{name}]." for name in {*before.get("spawners", ())} ^ {*after.get("spawners", ())})
    return sorted(key for key in {*before, *after} if before.get(key) != after.get(key) and not key.startswith(gone))


@contextlib.asynccontextmanager
async def _an_experiment(folder: Path) -> AsyncIterator[Experiment]:
    async with Prepared(python=HUB_PYTHON, population=Population(USERS, SERVERS), config=CONFIG) as hub:
        # A server that ran leaves the most behind, such as its OAuth client.
        await hub.start_server("grouped", shared=True)
        assert (await hub.api("DELETE", "users/grouped/server")).status == 204
        assert (await hub.api("POST", "shares/stays/", json={"user": "grouped"})).status == 200
        assert (await hub.api("POST", "share-codes/namer/", json={})).status == 200
        # Not earlier: a hub that starts takes everybody out of the roles of its config but whom that names.
        write(
            hub.db_url,
            "INSERT INTO user_role_map (user_id, role_id, managed_by_auth) SELECT users.id, roles.id, 0 FROM users, roles"
            " WHERE users.name = 'instructor' AND roles.name = 'instructor'",
        )
        before = await seen(hub)
        database = SQLHubDB(hub.db_url)
        users = await database.undo_users(TEN)
        database.close()
        assert {user.name for user in users if user.name} == {*TEN}
        since = datetime.now(timezone.utc)
        written = undo_file.write(folder, UndoHead("d" * 64, since, "tester"), users)
        budget = Budget(rate=1000.0, burst=1000, concurrency=10)
        async with HTTPHubAPI(hub.api_url, hub.token, budget) as api:
            for name in TEN:
                await api.delete_user(name)
            deleted = await seen(hub)
            # On SQLite, whoever comes next gets the number of the last who went.
            assert await api.create_user("stranger")
            _, back = undo_file.read(written.path, sha256=written.sha256)
            assert back == users
            outcomes = dict(await Restorer(api).restore(back, since=since))
            after = await seen(hub)
            again = dict(await Restorer(api).restore(back, since=since))
            last = await seen(hub)
        yield Experiment(before, deleted, after, outcomes, again, last, since)


@pytest_asyncio.fixture(loop_scope="module", scope="module")
async def experiment(tmp_path_factory: pytest.TempPathFactory) -> AsyncIterator[Experiment]:
    async with _an_experiment(tmp_path_factory.mktemp("undo")) as done:
        yield done


ALWAYS = ["users.cookie_id", "users.created", "users.last_activity"]
DEFAULT_SERVER = ["spawners[].state", "spawners[].user_options"]


async def test_what_the_database_shows_of_each_is_as_before_but_for_this(experiment: Experiment) -> None:
    six = experiment.six
    named = ["spawners[gpu-2].last_activity", "spawners[gpu-2].state"]
    shown = {
        name: differences(*(of_user(at["db"], name) for at in (experiment.before, experiment.after))) for name in TEN
    }

    assert shown == {
        **dict.fromkeys(("que?stion", "ha#sh", "per%cent", "käthe 李雷"), ALWAYS),
        "sl/ash": ["everything"],
        "Capital": sorted([*ALWAYS, "groups"]),
        "grouped": sorted([*ALWAYS, *DEFAULT_SERVER, "shares with them", "spawners[].last_activity", "users.state"]),
        "instructor": sorted([*ALWAYS, "api_tokens", "oauth_codes", "roles", "users.encrypted_auth_state"]),
        "namer": sorted(
            [
                *ALWAYS,
                *DEFAULT_SERVER,
                "share_codes",
                "shares of theirs",
                "spawners",
                "spawners[].last_activity",
                # A 6.x hub calls a server by a name for people, too; where there was none, it is made to be the name.
                *(["spawners[].display_name", "spawners[gpu-2].display_name", *named] if six else []),
            ]
        ),
        "newest": sorted(
            ["users.cookie_id", "users.created", *DEFAULT_SERVER, "api_tokens", *(["spawners[].display_name"] * six)]
        ),
    }


async def test_what_the_api_shows_of_each_is_as_before_but_for_this(experiment: Experiment) -> None:
    before, after = experiment.before["api"], experiment.after["api"]

    assert {name: differences(before[name], after[name]) for name in TEN if name in after} == {
        **{name: ["created", "last_activity"] for name in ("que?stion", "ha#sh", "per%cent", "käthe 李雷")},
        "Capital": ["created", "groups", "last_activity"],
        "grouped": ["created", "last_activity", "servers"],
        "instructor": ["created", "last_activity", "roles", "tokens"],
        "namer": ["created", "last_activity", "servers"],
        "newest": ["created", "servers", "tokens"],
    }
    assert set(before) - set(after) == {"sl/ash"}


async def test_the_default_role_is_given_anew_and_nobody_is_an_admin(experiment: Experiment) -> None:
    back = [experiment.after["api"][name] for name in TEN if name != "sl/ash"]

    assert [user["roles"] for user in back] == [["user"]] * 9
    assert not any(user["admin"] for user in back)


async def test_who_is_back_counts_as_never_active_from_now_on(experiment: Experiment) -> None:
    """So they aren't stale again at once."""
    for name in TEN[1:]:
        user = experiment.after["api"][name]
        assert user["last_activity"] is None
        assert datetime.fromisoformat(user["created"].replace("Z", "+00:00")) >= experiment.since


async def test_named_servers_come_back_with_their_options_on_hub_6(experiment: Experiment) -> None:
    servers = experiment.after["api"]["namer"]["servers"]

    assert set(servers) == ({"", "gpu-2"} if experiment.six else {""})
    if experiment.six:
        assert servers["gpu-2"]["user_options"] == experiment.before["api"]["namer"]["servers"]["gpu-2"]["user_options"]
        assert servers["gpu-2"]["stopped"]
        assert not servers["gpu-2"]["state"]


async def test_each_difference_is_told(experiment: Experiment) -> None:
    hubs_5 = "hubs before 6.0 can't have one that was never started"
    outcomes = experiment.outcomes
    namer = outcomes["namer"].detail

    assert outcomes["sl/ash"].kind is OutcomeKind.FAILED
    assert "(400: Failed to create user: sl/ash)" in outcomes["sl/ash"].detail
    assert {outcome.kind for name, outcome in outcomes.items() if name != "sl/ash"} == {OutcomeKind.DONE}
    for name in ("que?stion", "ha#sh", "per%cent", "käthe 李雷"):
        assert outcomes[name].detail == "is back"
    assert outcomes["Capital"].detail == "not back: the group staff (the hub failed to, 400)"
    assert outcomes["grouped"].detail == "not back: the options of the default server, 1 of shares"
    assert outcomes["instructor"].detail == "not back: the role instructor, 3 of tokens"
    assert outcomes["newest"].detail == "not back: the options of the default server, the spawner's state, 1 of tokens"
    assert namer.startswith("not back: the options of the default server, the server a b (")
    assert namer.endswith("the spawner's state, 1 of shares, 1 of share codes")
    assert (f"the server gpu-2 ({hubs_5})" in namer) is not experiment.six


async def test_a_group_stays_when_its_last_member_goes(experiment: Experiment) -> None:
    assert experiment.deleted["groups"] == {"gpu users": [], "lonely": [], "staff": ["stays"]}
    back = sorted({*TEN, "stays"} - {"sl/ash", "Capital", "instructor", "namer"})
    assert experiment.after["groups"] == {"gpu users": ["grouped"], "lonely": ["grouped"], "staff": back}


async def test_the_hub_leaves_no_row_behind_that_leads_to_the_deleted(experiment: Experiment) -> None:
    before, deleted = experiment.before["db"], experiment.deleted["db"]
    changed = {table: len(deleted[table]) - len(rows) for table, rows in before.items()}

    assert {table: less for table, less in changed.items() if less} == {
        "users": -10,
        "user_group_map": -10,
        "user_role_map": -11,
        "spawners": -12,
        "api_tokens": -4,
        "oauth_codes": -1,
        "shares": -2,
        "share_codes": -1,
    }
    left = {row["id"] for row in deleted["users"]}
    for table, rows in deleted.items():
        assert all(row[key] in {*left, None} for row in rows for key in ("user_id", "owner_id") if key in row), table


async def test_a_stranger_with_the_number_of_a_deleted_user_has_nothing_of_theirs(experiment: Experiment) -> None:
    ids = {at: {row["name"]: row["id"] for row in getattr(experiment, at)["db"]["users"]} for at in ("before", "after")}
    assert ids["after"]["stranger"] == ids["before"]["newest"], "the numbers weren't reused, so this proves nothing"
    assert len({*ids["after"].values()}) == len(ids["after"])

    stranger = of_user(experiment.after["db"], "stranger")

    assert (stranger["groups"], stranger["roles"]) == ([], ["user"])
    assert {stranger[what] for what in ("api_tokens", "oauth_codes", "shares of theirs", "shares with them")} == {0}


async def test_asking_again_changes_nothing(experiment: Experiment) -> None:
    assert experiment.last["api"] == experiment.after["api"]
    assert experiment.last["groups"] == experiment.after["groups"]
    for name in TEN:
        assert of_user(experiment.last["db"], name) == of_user(experiment.after["db"], name)
    assert {outcome.kind for name, outcome in experiment.again.items() if name != "sl/ash"} == {OutcomeKind.DONE}
