"""What every subcommand needs: settings, the guard's journal, who is asking, and exit codes."""

from __future__ import annotations

import argparse
import getpass
import os
from pathlib import Path

from hubguard import config
from hubguard.errors import ConfigError

FINE, FAILED, USAGE, HELD, FINDINGS = 0, 1, 2, 3, 4


def _user_and_server(who: str) -> tuple[str, str | None]:
    """The user and the server, None where none is named: ``ada``, ``ada/`` (the default server), ``ada/gpu``."""
    user, slash, server = who.partition("/")
    if not user:
        raise ConfigError("USER", "is missing before the slash")
    user, server = (name.replace("%2F", "/").replace("%2f", "/") for name in (user, server))
    return user, server if slash else None


def _settings(arguments: argparse.Namespace) -> config.Settings:
    return config.load(*(config.sections_of(config.read_file(path)) for path in _configs(arguments)))


def _configs(arguments: argparse.Namespace) -> list[Path]:
    """The config files that were given, else the one of the environment."""
    given: Path | list[Path] | str = arguments.config or os.environ.get("HUBGUARD_CONFIG", "")
    if isinstance(given, list):
        return given
    return [Path(given)] if given else []


def _the_guards_journal(settings: config.Settings) -> str:
    """The journal's URL. Raises ConfigError where a new one would begin in whatever folder this is.

    The guard reads its own, so that a hold in the new one would hold nobody, and a cull beside it two would act at once.
    """
    from hubguard.journal.database import Database

    database = Database(settings.guard.db_url)
    if database.missing and database.file is not None and not database.file.is_absolute():
        text = (
            f"there is no {database.file} in this folder. Set HUBGUARD_DB_URL to the guard's, or go to the hub's folder"
        )
        raise ConfigError("HubGuard.db_url", text)
    return settings.guard.db_url


def _actor() -> str:
    """Who is named in the journal for what is done by command."""
    try:
        return f"{getpass.getuser()} (command)"
    except (KeyError, OSError):
        return "somebody (command)"


def _count(text: str) -> int:
    value = int(text)
    if value < 1:
        raise ValueError(text)
    return value


def _count_or_0(text: str) -> int:
    value = int(text)
    if value < 0:
        raise ValueError(text)
    return value


_count.__name__ = "count of 1 or more"


_count_or_0.__name__ = "count of 0 or more"
