"""What the hub's JSON may hold where its database has NULL."""

from hubguard.hub.models import read_users

NOTHING = dict.fromkeys(("admin", "created", "last_activity"))
IDLE = {"name": "", "ready": True, "pending": None, "started": None, "last_activity": None}


def test_nulls_in_one_user_cost_no_other_user():
    odd = {"name": "odd", "servers": {"": IDLE}, **NOTHING}
    users = read_users([odd, {"name": "ada", "admin": True, "servers": {}}])
    assert users["ada"].admin
    assert not users["odd"].admin
    assert (users["odd"].created, users["odd"].last_activity) == (None, None)
    (server,) = users["odd"].servers
    assert (server.admin, server.started, server.last_activity) == (False, None, None)


def test_users_and_servers_without_a_name_cost_no_others():
    """The hub's tables allow both: a row that somebody else has written, or half of one."""
    nameless = {"name": None, "servers": {}, **NOTHING}
    ada = {
        "name": "ada",
        "admin": None,
        "servers": {"": IDLE, "null": {**IDLE, "name": None}},
    }
    users = read_users([nameless, ada])
    assert list(users) == ["ada"]
    assert [server.name for server in users["ada"].servers] == [""]
