"""Names of users as people type them."""

from __future__ import annotations

import pytest
from doubles.hub import MemoryHub
from hypothesis import given
from hypothesis import strategies as st

from hubguard.hub.names import UnknownUser, fits, nearest, nobody_of, resolved, who
from hubguard.model import User

KNOWN = ("ada", "kept@x.org", "Zoe", "bo-1", "BO-2", "bo-2")


def hub_of(*names: str) -> MemoryHub:
    hub = MemoryHub()
    for name in names:
        hub.add_user(User(name, False))
    return hub


@pytest.mark.parametrize(
    ("typed", "meant"),
    [
        ("ada", "ada"),
        ("Ada", "ada"),
        ("Kept@X.org", "kept@x.org"),
        ("zoe", "Zoe"),
        ("BO-2", "BO-2"),
        ("Bo-2", "bo-2"),
        ("adda", None),
        ("", None),
        ("ada ", None),
    ],
)
async def test_a_typed_name_is_that_very_user_or_as_the_hub_makes_it_or_nobody(typed: str, meant: str | None):
    assert resolved(typed, KNOWN) == meant
    if meant is not None:
        assert await who(hub_of(*KNOWN), typed) == meant
    elif typed:
        with pytest.raises(UnknownUser) as refused:
            await who(hub_of(*KNOWN), typed)
        assert str(refused.value).startswith(f"The hub has no user {typed}.")


def test_a_name_that_two_users_differ_from_in_case_alone_is_doubtful():
    assert resolved("aNN", ["Ann", "ANN"]) is None


async def test_a_name_that_only_a_map_of_the_authenticator_knows_is_refused_and_never_taken_for_another():
    """With ``username_map = {"bob": "robert"}`` the hub has no bob, and nothing typed is kept for nobody in silence."""
    with pytest.raises(UnknownUser, match="The hub has no user bob"):
        await who(hub_of("robert", "ada"), "bob")


async def test_who_is_unknown_is_told_with_the_nearest_names():
    assert nearest("KEPT@y.org", KNOWN) == ("kept@x.org",)
    with pytest.raises(UnknownUser, match=r"The hub has no user adda\. Did you mean ada\?"):
        await who(hub_of(*KNOWN), "adda")


async def test_a_short_name_among_very_many_that_contain_it_is_found():
    hub = hub_of(*(f"ann{number:03}" for number in range(300)), "ann")
    assert await who(hub, "Ann") == "ann"


@pytest.mark.parametrize(
    ("globs", "nobody"),
    [
        (["ada"], False),
        (["Ada"], True),
        (["nobody", "bo-*"], False),
        (["nobody", "x*"], True),
        (["*"], False),
        (["b[oa]-[12]"], False),
        (["z[xy]o*"], True),
        (["?da"], False),
    ],
)
async def test_globs_fit_nobody_only_when_the_hub_has_no_such_user(globs: list[str], nobody: bool):
    assert await nobody_of(hub_of(*KNOWN), globs, []) is nobody
    assert await nobody_of(hub_of(*KNOWN), globs, KNOWN) is nobody


@given(st.text(max_size=8))
def test_a_text_fits_itself_as_a_glob(text: str):
    assert fits(text, text) or "*" not in text
