"""Roles that come through a group count as their members' roles, by API and by database."""

from __future__ import annotations

from collections.abc import AsyncIterator
from typing import Any

import pytest
import sqlalchemy as sa
from aiohttp import web
from aiohttp.test_utils import TestServer

from hubguard.hub.client import HTTPHubAPI
from hubguard.hub.models import with_group_roles
from hubguard.hub.tables import groups_and_roles
from hubguard.model import Server, User
from hubguard.pacing.budget import Budget


def user(name: str, *groups: str) -> dict[str, Any]:
    server = {"name": "", "ready": True, "pending": None, "started": None, "last_activity": None, "user_options": {}}
    return {
        "name": name,
        "admin": False,
        "groups": list(groups),
        "roles": ["user"],
        "created": None,
        "last_activity": None,
        "servers": {"": server},
    }


BUDGET = Budget(rate=1000, burst=100, concurrency=10)
USERS = [user("ada", "staff"), user("bo")]


class Hub:
    def __init__(self) -> None:
        self.group_lists, self.allowed = 0, True

    async def users(self, request: web.Request) -> web.Response:
        return self._page(USERS)

    async def user(self, request: web.Request) -> web.Response:
        return web.json_response(next(one for one in USERS if one["name"] == request.match_info["name"]))

    async def groups(self, request: web.Request) -> web.Response:
        self.group_lists += 1
        if not self.allowed:
            return web.json_response({"message": "no"}, status=403)
        return self._page([{"kind": "group", "name": "staff", "roles": ["keeper"]}])

    def _page(self, items: list[Any]) -> web.Response:
        pages = {"offset": 0, "limit": 200, "total": len(items), "next": None}
        return web.json_response({"items": items, "_pagination": pages})


@pytest.fixture
async def hub() -> AsyncIterator[tuple[Hub, HTTPHubAPI]]:
    there, app = Hub(), web.Application()
    app.add_routes(
        [web.get("/users", there.users), web.get("/users/{name}", there.user), web.get("/groups", there.groups)]
    )
    async with TestServer(app) as server, HTTPHubAPI(str(server.make_url("/")), "token", BUDGET) as api:
        yield there, api


async def test_roles_come_through_groups_in_lists_and_second_looks_and_groups_are_read_once(
    hub: tuple[Hub, HTTPHubAPI],
):
    there, api = hub
    api.through_groups = True
    assert [server.roles for server in await api.list_servers()] == [("keeper", "user"), ("user",)]
    assert (await api.get_server("ada", "")).roles == ("keeper", "user")
    assert (await api.get_user("ada")).roles == ("keeper", "user")
    assert [one.roles for one in await api.list_users(inactive_since=None)] == [("keeper", "user"), ("user",)]
    assert there.group_lists == 1


async def test_without_the_scope_the_roles_of_who_is_in_a_group_are_unknown(hub: tuple[Hub, HTTPHubAPI]):
    there, api = hub
    api.through_groups, there.allowed = True, False
    assert [server.roles for server in await api.list_servers()] == [None, ("user",)]
    assert (await api.get_server("ada", "")).roles is None


async def test_nobody_lists_groups_when_nothing_asks_for_roles(hub: tuple[Hub, HTTPHubAPI]):
    there, api = hub
    assert (await api.get_user("ada")).roles == ("user",)
    assert there.group_lists == 0


def test_a_user_whose_groups_are_unknown_may_have_any_role():
    one = User("ada", False, None, ("user",), servers=(Server("ada", "", True, None, None, None),))
    assert with_group_roles(one, {"staff": ("keeper",)}).roles is None


def test_the_database_tells_roles_of_groups_too():
    engine = sa.create_engine("sqlite://")
    with engine.begin() as connection:
        for statement in (
            "CREATE TABLE groups (id, name)",
            "CREATE TABLE roles (id, name)",
            "CREATE TABLE user_group_map (user_id, group_id)",
            "CREATE TABLE user_role_map (user_id, role_id)",
            "CREATE TABLE group_role_map (group_id, role_id)",
            "INSERT INTO groups VALUES (1, 'staff')",
            "INSERT INTO roles VALUES (1, 'user'), (2, 'keeper')",
            "INSERT INTO user_group_map VALUES (1, 1)",
            "INSERT INTO user_role_map VALUES (1, 1), (1, 2), (2, 1)",
            "INSERT INTO group_role_map VALUES (1, 2)",
        ):
            connection.exec_driver_sql(statement)
        assert groups_and_roles(connection, [1, 2]) == (
            {1: ("staff",), 2: ()},
            {1: ("keeper", "user"), 2: ("user",)},
        )
