"""What every command is given: exit codes, the context it runs in, and the types of its options."""

from __future__ import annotations

import argparse
import getpass
from collections.abc import Awaitable, Callable, Mapping
from dataclasses import dataclass
from enum import IntEnum
from functools import cached_property
from typing import TYPE_CHECKING, Any, Protocol, TypeVar

from hubguard.errors import ConfigError
from hubguard.logs import for_terminals
from hubguard.place import Place, place_from

if TYPE_CHECKING:  # traitlets alone take longer than all that `hubguard --help` does
    from traitlets.config import Config

    from hubguard.settings import HubGuard, Section

T = TypeVar("T")
S = TypeVar("S", bound="Section")

Say = Callable[[str], None]
"""Where a command's output goes, a text at a time."""


def say(text: str) -> None:
    """Print it. Names in it come from outside, and don't reach the terminal as commands."""
    print(for_terminals(text))  # noqa: T201  # what a command is for


class Exit(IntEnum):
    """How a command ended."""

    FINE = 0
    FAILED = 1
    USAGE = 2
    HELD = 3  # acting is on hold, or HubGuard is braked
    FINDINGS = 4


@dataclass(frozen=True, slots=True)
class Configured:
    """What the config files set: every section, what is wrong with them, and what each file says of the hub itself."""

    guard: HubGuard
    sections: Mapping[type[Section], Section]
    errors: tuple[ConfigError, ...]
    configs: tuple[Config, ...]


class CycleAlone(Protocol):
    """Culls once without a running guard."""

    def __call__(self, place: Place, actor: str, wish: Any, /) -> Awaitable[Any]:
        """The report; ``wish`` is culling's own."""


@dataclass
class Context:
    """What a command works with, besides its arguments. The config files are read when something of them is needed.

    ``asks``: somebody can answer questions.
    """

    read: Callable[[], Configured]
    environ: Mapping[str, str]
    asks: bool
    cycle_alone: CycleAlone
    say: Say = say

    @cached_property
    def configured(self) -> Configured:
        """What the config files set. Raises ConfigError if one can't be read."""
        return self.read()

    @cached_property
    def place(self) -> Place:
        """Where the hub is, with the token for it. Raises ConfigError if there is no token."""
        return place_from(self.environ)

    def section(self, kind: type[S]) -> S:
        """The settings of that section."""
        section = self.configured.sections[kind]
        assert isinstance(section, kind)
        return section

    def check(self) -> None:
        """Raise the first ConfigError of the settings, if any."""
        for error in self.configured.errors:
            raise error

    @property
    def journal(self) -> str:
        """The URL of the guard's journal. Raises ConfigError if a new one would begin in this folder.

        The guard reads its own: a hold in another journal would hold nobody, and two cycles could run at once.
        """
        from hubguard.journal.database import Database

        url = self.configured.guard.db_url
        database = Database(url)
        if database.missing and database.file is not None and not database.file.is_absolute():
            text = f"there is no {database.file} in this folder"
            raise ConfigError(
                "HubGuard.db_url", f"{text}. Set HUBGUARD_DB_URL to the guard's, or go to the hub's folder"
            )
        return url

    @property
    def actor(self) -> str:
        """Who is named in the journal for what the command does."""
        try:
            return f"{getpass.getuser()} (command)"
        except (KeyError, OSError):
            return "somebody (command)"


def bounded(kind: Callable[[str], T], low: Any = None, high: Any = None, *, noun: str) -> Callable[[str], T]:
    """A ``type`` for argparse: what ``kind`` makes of a text, if it lies within ``low`` and ``high``."""

    def value(text: str) -> T:
        try:
            made = kind(text)
            fine = (low is None or low <= made) and (high is None or made <= high)
        except ValueError:
            fine = False
        if not fine:
            raise argparse.ArgumentTypeError(f"{text!r} is not a {noun}")
        return made

    return value


def count(low: int = 0) -> Callable[[str], int]:
    """A ``type`` for argparse: a whole number of at least ``low``."""
    return bounded(int, low, noun=f"count of {low} or more")


def add_json(parser: argparse.ArgumentParser, text: str = "print JSON, as the API returns it") -> None:
    """The option ``--json``."""
    parser.add_argument("--json", action="store_true", help=text)


def add_config(parser: argparse.ArgumentParser) -> None:
    """The options that every command has."""
    parser.add_argument("--debug", action="store_true", help="log more")
    parser.add_argument(
        "--config",
        action="append",
        metavar="FILE",
        help="config file with c.HubGuard… lines, for example jupyterhub_config.py; can be repeated"
        " (default: $HUBGUARD_CONFIG)",
    )


def user_and_server(who: str) -> tuple[str, str | None]:
    """The user and the server of ``ada``, ``ada/`` (the default server) or ``ada/gpu``; the server is None if not named."""
    user, slash, server = who.partition("/")
    if not user:
        raise ConfigError("USER", "is missing before the slash")
    user, server = (name.replace("%2F", "/").replace("%2f", "/") for name in (user, server))
    return user, server if slash else None
