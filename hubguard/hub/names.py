"""Names of users as people type them, and the globs over them. One place decides which user of the hub is meant."""

from __future__ import annotations

import difflib
import re
from collections.abc import Iterable
from fnmatch import fnmatchcase

from hubguard.errors import HubGuardError
from hubguard.hub.api import FOUND_AT_MOST, HubAPI

NEAREST = 3
"""Maximum names that a refusal suggests."""


PIECE = 3
"""Letters at either end of a name by which similar ones are searched."""


class UnknownUser(HubGuardError):
    """The hub has no user of a name that somebody typed. It says which are similar."""


def fits(glob: str, text: str) -> bool:
    """Whether ``glob`` matches all of ``text``. Brackets are a choice of characters, or stand for themselves."""
    return fnmatchcase(text, glob) or ("[" in glob and fnmatchcase(text, plain(glob)))


def addressable(name: str) -> bool:
    """Whether a path of the hub's can name ``name``. "." and ".." mean other paths to whatever stands in between."""
    return name not in {".", ".."}


def plain(glob: str) -> str:
    """``glob`` with its brackets standing for themselves."""
    return glob.replace("[", "[[]")


def spellings(glob: str) -> tuple[str, ...]:
    """``glob`` as it was typed, and in small letters, as the hub's authenticators make names; without doubles.

    A name that ``Authenticator.username_map`` alone turns into a user's is refused as unknown. In rules and protections, the
    include adds what the authenticator makes of a name.
    """
    return tuple(dict.fromkeys((glob, glob.lower())))


def resolved(typed: str, known: Iterable[str]) -> str | None:
    """Who of ``known`` is meant: that very name, else in small letters, else the only one that differs in case alone."""
    names = frozenset(known)
    for name in spellings(typed):
        if name in names:
            return name
    alike = [name for name in names if name.casefold() == typed.casefold()]
    return alike[0] if len(alike) == 1 else None


def nearest(typed: str, known: Iterable[str]) -> tuple[str, ...]:
    """Up to three of ``known`` that look most like ``typed``, whatever the case; the closest first."""
    by_folded = {name.casefold(): name for name in sorted(known, reverse=True)}
    return tuple(by_folded[folded] for folded in difflib.get_close_matches(typed.casefold(), by_folded, NEAREST))


def unknown(typed: str, known: Iterable[str], noun: str = "user") -> str:
    """``The hub has no user adda. Did you mean ada?``, for people."""
    near = nearest(typed, known)
    return f"The hub has no {noun} {typed}." + (f" Did you mean {' or '.join(near)}?" if near else "")


async def who(hub: HubAPI, typed: str) -> str:
    """The name of the hub's user who is meant by ``typed``. Raises UnknownUser, and HubError if the hub doesn't say."""
    names = await hub.find_users(typed)
    if len(names) == FOUND_AT_MOST:
        for name in spellings(typed):
            if name in names or await hub.get_user(name) is not None:
                return name
    if (meant := resolved(typed, names)) is None:
        pieces = dict.fromkeys((typed[:PIECE], typed[-PIECE:], typed[:1]))
        raise UnknownUser(unknown(typed, {name for piece in pieces for name in await hub.find_users(piece)}))
    return meant


async def nobody_of(hub: HubAPI, globs: Iterable[str], there: Iterable[str]) -> bool:
    """Whether none of ``globs`` fits a user of the hub; ``there`` are some of them. Raises HubError.

    False also if that isn't certain: with too many users to look through.
    """
    wanted = tuple(globs)
    if any(fits(glob, name) for name in there for glob in wanted):
        return False
    for glob in wanted:
        # The longest piece that stands in every name that it fits.
        piece = max(re.split(r"\*|\?|\[.*?\]", glob), key=len)
        names = await hub.find_users(piece) if piece else ()
        if not piece or len(names) == FOUND_AT_MOST or any(fits(glob, name) for name in names):
            return False
    return True
