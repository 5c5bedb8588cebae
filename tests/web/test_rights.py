"""Who may do what, by scope: a filter never counts, reading never grants acting."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from hubguard.inhub.scopes import LOGIN_SCOPES
from hubguard.web.auth import Rights, rights

ADMIN = {"list:users", "read:servers", "admin:servers", "delete:servers", "delete:users", "admin:users", "admin-ui"}


@pytest.mark.parametrize(
    ("scopes", "expected"),
    [
        (set(), ""),
        ({"access:services", "self", "read:hub"}, ""),
        ({"custom:hubguard:read"}, "read"),
        ({"custom:hubguard:act"}, "read act"),
        ({"custom:hubguard:prune"}, "prune"),
        ({"list:users"}, ""),
        ({"read:servers"}, ""),
        ({"list:users", "read:servers"}, "read"),
        ({"list:users", "read:servers!group=a"}, ""),
        ({"list:users!user=ann", "read:servers!user=ann"}, ""),
        ({"admin:servers"}, "act"),
        ({"delete:servers"}, "act"),
        ({"admin:servers!user=ann", "delete:servers!server=ann/gpu"}, ""),
        ({"delete:users"}, "prune"),
        ({"delete:users!group=old"}, ""),
        ({"custom:hubguard:act!user=ann"}, ""),
        ({"custom:hubguard:*"}, ""),
        ({"custom:hubguard"}, ""),
        (ADMIN, "read act prune"),
    ],
)
def test_rights_follow_the_scopes(scopes: set[str], expected: str) -> None:
    words = expected.split()
    assert rights(frozenset(scopes)) == Rights("read" in words, "act" in words, "prune" in words)


@given(st.frozensets(st.sampled_from(sorted(ADMIN) + list(LOGIN_SCOPES)).map(lambda scope: scope + "!user=ann")))
def test_no_set_of_filtered_scopes_grants_anything(scopes: frozenset[str]) -> None:
    assert rights(scopes) == Rights(False, False, False)


def test_what_a_login_may_carry_is_enough_for_every_right() -> None:
    assert rights(frozenset(LOGIN_SCOPES)) == Rights(True, True, True)
    at_the_hub = frozenset(scope for scope in LOGIN_SCOPES if not scope.startswith("custom:"))
    assert rights(at_the_hub) == Rights(True, True, True)
