"""Roles that come through a group count as their members' roles, by API and by database."""

from __future__ import annotations

from collections.abc import AsyncIterator
from typing import Any

import pytest
import sqlalchemy as sa
from aiohttp import web
from aiohttp.test_utils import TestServer

from hubguard.hub import client
from hubguard.hub.client import GROUP_ROLES_FRESH_S, HTTPHubAPI
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


class Hub:
    def __init__(self) -> None:
        self.group_lists, self.allowed = 0, True
        self.groups_of_bo: list[str] = []
        self.groups_there = {"staff": ["keeper"]}

    async def users(self, request: web.Request) -> web.Response:
        return self._page(self._users())

    async def user(self, request: web.Request) -> web.Response:
        return web.json_response(next(one for one in self._users() if one["name"] == request.match_info["name"]))

    async def groups(self, request: web.Request) -> web.Response:
        self.group_lists += 1
        if not self.allowed:
            return web.json_response({"message": "no"}, status=403)
        return self._page([{"name": name, "roles": roles} for name, roles in self.groups_there.items()])

    def _users(self) -> list[dict[str, Any]]:
        return [user("ada", "staff"), user("bo", *self.groups_of_bo)]

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


async def test_a_group_that_is_newer_than_the_list_of_groups_has_them_read_again_once(hub: tuple[Hub, HTTPHubAPI]):
    """Its roles counted as none, so that somebody whom a role protects could be deleted."""
    there, api = hub
    api.through_groups, there.groups_there = True, {"other": []}
    assert (await api.get_user("ada")).roles is None
    assert there.group_lists == 1
    there.groups_there = {"other": [], "staff": ["keeper"]}
    there.groups_of_bo = ["late"]
    assert (await api.get_user("bo")).roles is None
    assert there.group_lists == 2
    assert (await api.get_user("ada")).roles == ("keeper", "user")
    assert (await api.get_user("bo")).roles is None
    assert [server.roles for server in await api.list_servers()] == [("keeper", "user"), None]
    assert there.group_lists == 2


async def test_a_second_look_uses_no_old_list_of_groups(hub: tuple[Hub, HTTPHubAPI], monkeypatch: pytest.MonkeyPatch):
    there, api = hub
    api.through_groups, now_s = True, 1000.0
    monkeypatch.setattr(client.time, "monotonic", lambda: now_s)
    await api.list_servers()
    there.groups_there = {"staff": []}
    now_s += GROUP_ROLES_FRESH_S + 1
    assert (await api.get_user("ada")).roles == ("user",)
    there.groups_there = {"staff": ["keeper"]}
    now_s += GROUP_ROLES_FRESH_S + 1
    assert [one.roles for one in await api.list_users(inactive_since=None)] == [("user",), ("user",)]
    assert (await api.get_server("ada", "")).roles == ("keeper", "user")
    assert there.group_lists == 3


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
