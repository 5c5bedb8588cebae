"""Databases of hubs that don't run, filled with all that can hang on a user; and users deleted from them as a hub does it.

Runs by itself under the interpreter of the hub under test, so that the tables are that hub's own, and imports nothing else:
``fill`` and ``delete`` call it there.
"""

from __future__ import annotations

import json
import random
import subprocess
import sys
from collections.abc import Sequence
from datetime import datetime, timedelta, timezone
from pathlib import Path
from typing import Any

import sqlalchemy as sa

NAMES = ("a", "a-b", "käthe", "sl/a?s#h%", "李雷", "o'brien", *(f"user-{number:02}" for number in range(12)))
GROUPS = ("zoo", "käthe's", "staff")
ROLES = ("user", "admin", "grader", "o'role")


def fill(python: str, wanted: Sequence[tuple[str, int]], at: datetime) -> None:
    """An old hub's tables at each URL, with the population of that number in it; ``at`` is when it was last in use."""
    _run(python, {"fill": list(wanted), "at": at.isoformat()})


def delete(python: str, url: str, names: Sequence[str]) -> None:
    """Delete these users through the hub's own ORM, one by one, as a hub does when asked by its API."""
    _run(python, {"delete": list(names), "url": url})


def dump(url: str) -> dict[str, list[str]]:
    """All rows of all tables, as texts, sorted."""
    engine = sa.create_engine(url, poolclass=sa.NullPool)
    with engine.connect() as connection:
        tables = sa.inspect(connection).get_table_names()
        quote = connection.dialect.identifier_preparer.quote
        found = {
            name: sorted(
                str(dict(row)) for row in connection.exec_driver_sql(f"SELECT * FROM {quote(name)}").mappings()
            )
            for name in sorted(tables)
        }
    engine.dispose()
    return found


def _run(python: str, order: dict[str, Any]) -> None:
    ran = subprocess.run(
        [python, str(Path(__file__))], input=json.dumps(order), capture_output=True, text=True, check=False, timeout=120
    )
    assert ran.returncode == 0, ran.stderr


def _fill(url: str, number: int, at: datetime) -> None:
    from jupyterhub import orm

    with orm.new_session_factory(url)() as session:
        session.get_bind().dispose()
    # Without the hub's own listener, so that rows which lead nowhere can be put in where the database takes them.
    engine = sa.create_engine(url, poolclass=sa.NullPool)
    tables = orm.Base.metadata.tables
    with engine.begin() as connection:
        for name, of_table in _rows(random.Random(number), at, engine.dialect.name == "sqlite").items():
            columns = set(tables[name].c.keys())
            for row in of_table:
                known = {key: value for key, value in row.items() if key in columns}
                connection.execute(sa.insert(tables[name]).values(known))
        if engine.dialect.name == "postgresql":
            for name, table in tables.items():
                if "id" in table.c:
                    connection.exec_driver_sql(
                        f"SELECT setval(pg_get_serial_sequence('{name}', 'id'), m) "
                        f"FROM (SELECT max(id) AS m FROM {name}) x WHERE m IS NOT NULL"
                    )
    engine.dispose()


def _rows(dice: random.Random, at: datetime, junk: bool) -> dict[str, list[dict[str, Any]]]:
    def ago(days: float) -> datetime:
        return at - timedelta(days=days)

    def some(choices: Sequence[Any], most: int) -> list[Any]:
        return dice.sample(list(choices), k=dice.randint(0, min(most, len(choices))))

    rows: dict[str, list[dict[str, Any]]] = {
        "groups": [{"id": i, "name": name, "properties": {"n": i}} for i, name in enumerate(GROUPS, 1)],
        "roles": [
            {"id": i, "name": name, "scopes": ["self"], "managed_by_auth": False} for i, name in enumerate(ROLES, 1)
        ],
        "servers": [{"id": 1, "ip": "127.0.0.1", "port": 1, "base_url": "/services/x"}],
        "oauth_clients": [
            {"id": 1, "identifier": "jupyterhub", "secret": "s"},
            {"id": 2, "identifier": "service-x", "secret": "s"},
        ],
        "services": [
            {"id": 1, "name": "x", "_server_id": 1, "oauth_client_id": "service-x"},
            {"id": 2, "name": "cull", "admin": True},
        ],
        "service_role_map": [{"service_id": 1, "role_id": 3, "managed_by_auth": False}],
        "group_role_map": [{"group_id": 2, "role_id": 3, "managed_by_auth": False}],
    }
    users: list[dict[str, Any]] = []
    spawners: list[dict[str, Any]] = []
    maps: dict[str, list[dict[str, Any]]] = {"user_group_map": [], "user_role_map": []}
    clients = {row["identifier"] for row in rows["oauth_clients"]}
    for i, name in enumerate(NAMES):
        id_ = 3 + 2 * i
        recent = dice.random() < 0.3
        active = ago(dice.uniform(0.1, 1)) if recent else dice.choice([None, ago(dice.uniform(200, 400))])
        users.append(
            {
                "id": id_,
                "name": name,
                "admin": dice.random() < 0.1,
                "created": ago(dice.uniform(401, 900)),
                "last_activity": active,
                "cookie_id": f"cookie-{dice.random()}",
                "encrypted_auth_state": dice.choice([None, bytes(dice.randrange(256) for _ in range(20))]),
                "state": dice.choice([None, {"old": True}]),
                "user_info": dice.choice([None, {"mail": "ü"}]),
            }
        )
        maps["user_group_map"] += [{"user_id": id_, "group_id": group} for group in some((1, 2, 3), 3)]
        maps["user_role_map"] += [
            {"user_id": id_, "role_id": role, "managed_by_auth": dice.random() < 0.5} for role in (1, *some((3, 4), 2))
        ]
        servers = {"a": ["", "b"], "a-b": [""]}.get(name) or some(("", "gpu", "nä/me"), 3)
        for server in servers:
            client = f"jupyterhub-user-{name}" + (f"-{server}" if server else "")
            if client not in clients:
                clients.add(client)
                rows["oauth_clients"].append(
                    {
                        "id": len(rows["oauth_clients"]) + 7,
                        "identifier": client,
                        "secret": "s",
                        "allowed_scopes": ["self"],
                    }
                )
            server_id = None
            if recent and dice.random() < 0.5:
                server_id = len(rows["servers"]) + 4
                rows["servers"].append(
                    {"id": server_id, "ip": "127.0.0.1", "port": 2, "base_url": f"/user/{server_id}"}
                )
            spawners.append(
                {
                    "id": len(spawners) + 11,
                    "user_id": id_,
                    "server_id": server_id,
                    "name": server,
                    "state": {"pvc_name": f"claim-{id_}"},
                    "started": None if server_id is None else ago(0.1),
                    "last_activity": active,
                    "user_options": dice.choice([None, {"profile": "groß"}]),
                    "oauth_client_id": client if dice.random() < 0.9 or name.startswith("a") else None,
                }
            )
    ids = [user["id"] for user in users]
    tokens, codes, shares, share_codes = [], [], [], []
    for i in range(40):
        service = dice.random() < 0.15
        tokens.append(
            {
                "id": i + 5,
                "user_id": None if service else dice.choice(ids),
                "service_id": dice.choice((1, 2)) if service else None,
                "hashed": f"h-{i}-{dice.random()}",
                "prefix": f"p{i}",
                "client_id": dice.choice(sorted(clients)),
                "session_id": dice.choice([None, "s"]),
                "created": ago(300),
                "expires_at": dice.choice([None, ago(3), ago(-300)]),
                "last_activity": dice.choice([None, ago(150)]),
                "note": "nöte",
                "scopes": ["inherit"],
            }
        )
    for i in range(15):
        codes.append(
            {
                "id": i + 2,
                "client_id": dice.choice(sorted(clients)),
                "code": f"code-{i}",
                "user_id": dice.choice(ids),
                "expires_at": int(ago(dice.choice((-9, 9))).replace(tzinfo=timezone.utc).timestamp()),
                "scopes": [],
            }
        )
    for i in range(15):
        spawner = dice.choice(spawners)
        common = {"owner_id": spawner["user_id"], "spawner_id": spawner["id"], "created_at": ago(100), "scopes": ["x"]}
        other = dice.choice([{"user_id": dice.choice(ids)}, {"group_id": dice.choice((1, 2, 3))}])
        shares.append({"id": i + 3, **common, **other, "expires_at": None})
        share_codes.append(
            {"id": i + 6, **common, "hashed": f"c-{i}", "prefix": "c", "expires_at": ago(dice.choice((-9, 9)))}
        )
    rows["servers"] += [{"id": 900 + i, "ip": "127.0.0.1", "port": 3, "base_url": "/gone"} for i in range(2)]
    if junk:
        kept = next(spawner for spawner in spawners if spawner["server_id"] is None)
        kept["server_id"] = 777
        maps["user_group_map"].append({"user_id": 5000, "group_id": 1})
        maps["user_role_map"].append({"user_id": 5001, "role_id": 1, "managed_by_auth": True})
        rows["group_role_map"].append({"group_id": 50, "role_id": 50, "managed_by_auth": False})
    rows |= {"users": users, **maps, "spawners": spawners, "api_tokens": tokens, "oauth_codes": codes}
    rows |= {"shares": shares, "share_codes": share_codes}
    order = ("users", "groups", "roles", "servers", "oauth_clients", "services")
    return {**{name: rows[name] for name in order}, **{name: rows[name] for name in rows if name not in order}}


def _delete(url: str, names: Sequence[str]) -> None:
    from jupyterhub import orm

    with orm.new_session_factory(url)() as session:
        for name in names:
            session.delete(orm.User.find(session, name))
            session.commit()


@sa.event.listens_for(sa.Engine, "connect")
def _hurry(connection: Any, _: Any) -> None:
    """Nothing here has to survive a power cut."""
    if type(connection).__module__.startswith("sqlite3"):
        connection.execute("PRAGMA synchronous = OFF")


def main() -> None:
    order = json.load(sys.stdin)
    for url, number in order.get("fill", ()):
        _fill(url, number, datetime.fromisoformat(order["at"]))
    if "delete" in order:
        _delete(order["url"], order["delete"])


if __name__ == "__main__":
    main()
