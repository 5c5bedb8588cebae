"""Reads the command line of jupyterhub-idle-culler as that program does, and translates it into HubGuard's settings.

It knows the options of 1.4.0 (tornado's: ``--cull-every=0``, ``--cull_users``) and 2.0.0 (traitlets': ``--cull-every 0``,
``--IdleCuller.cull_every=0``). Their names and defaults are the same.
"""

from __future__ import annotations

import difflib
import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import PurePath

DEFAULT_CONFIG_FILE = "idle_culler_config.py"
"""The file that 2.0.0 reads from its working directory, unless ``--config`` names another one."""

LONGEST_IDLE_S = 366 * 86400
LONGEST_AGE_S = 10 * LONGEST_IDLE_S
"""Maximum seconds in HubGuard's settings. A longer limit means none."""

AT_ONCE_S = 0.001
"""Seconds that stand for ``--timeout=0`` in HubGuard's settings, in which 0 means never."""

LONGEST_EVERY_S = 86400
"""Maximum seconds between cycles, as in HubGuard's settings."""

MOST_AT_ONCE = 500
"""Maximum concurrency, as in HubGuard's settings."""


@dataclass(frozen=True, slots=True)
class Option:
    """An option of the culler. ``name`` is its trait's; the command line has dashes for underscores.

    The type of ``default`` is the type of the option: a switch, a whole number, or text ("" means none).
    """

    name: str
    default: bool | int | str
    help: str

    @property
    def flag(self) -> str:
        """The option as it is written on the command line."""
        return "--" + {"config_file": "config"}.get(self.name, self.name).replace("_", "-")


OPTIONS: tuple[Option, ...] = (
    Option("timeout", 600, "Seconds without activity after which a server is stopped. 0: as soon as it is seen."),
    Option("cull_every", 0, "Seconds between two cycles. 0: half the timeout."),
    Option("max_age", 0, "Seconds after its start at which a server is stopped even when it is in use. 0: never."),
    Option("concurrency", 10, "Maximum servers that are stopped at a time. 0: HubGuard's own maximum, not unlimited."),
    Option("cull_users", False, "Whether users are deleted, too, by the same limits as servers."),
    Option("cull_admin_users", True, "Whether admins are deleted, too, with --cull-users."),
    Option("cull_default_servers", True, "Whether default servers are stopped."),
    Option("cull_named_servers", True, "Whether named servers are stopped."),
    Option("remove_named_servers", False, "Whether a named server that was stopped is also removed from the hub."),
    Option("api_page_size", 0, "Users per page of the hub's API. 0: the hub's own page size."),
    Option("url", "", "The hub's API. Default: the environment variable JUPYTERHUB_API_URL."),
    Option("ssl_enabled", False, "Whether the hub has internal SSL."),
    Option("internal_certs_location", "internal-ssl", "The folder with the hub's internal certificates."),
    Option("config_file", DEFAULT_CONFIG_FILE, "A file that sets c.IdleCuller.*. The command line overrides it."),
    Option("generate_config", False, "Print a config file with all defaults, and exit."),
)
"""The culler's own options, in the order of ``--help``."""

LOGGING: tuple[Option, ...] = (
    Option("logging", "info", "Lowest level that is logged: debug, info, warning, error or none."),
    Option("log_level", "", "The same, as a trait (c.IdleCuller.log_level): a name or a number."),
    Option("debug", False, "The same as --logging=debug."),
    Option("log_to_stderr", False, "Log to stderr, even if there is a log file."),
    Option("log_file_prefix", "", "Log to this file."),
    Option("log_file_max_size", 100_000_000, "Bytes after which a new log file is started."),
    Option("log_file_num_backups", 10, "Old log files to keep."),
    Option("log_rotate_when", "midnight", "The unit of the interval with --log-rotate-mode=time."),
    Option("log_rotate_interval", 1, "Units after which a new log file is started."),
    Option("log_rotate_mode", "size", "What starts a new log file: size or time."),
)
"""The options of logging: those of tornado (1.4.0) and of traitlets (2.0.0)."""

QUESTIONS = ("help", "help_all", "version")
"""Options that print something and exit."""

DEFAULTS: Mapping[str, object] = {option.name: option.default for option in OPTIONS}

_KNOWN: Mapping[str, Option] = {
    **{option.name: option for option in (*OPTIONS, *LOGGING)},
    **{name: Option(name, False, "") for name in QUESTIONS},
}
_BY_OTHER_NAMES = {"config": "config_file", "h": "help", "V": "version"}

CULLERS = ("jupyterhub_idle_culler", "jupyterhub-idle-culler", "cull_idle_servers", "hubguard.culler")
"""How an idle culler's command is recognized: z2jh's, TLJH's, the project's own, the one before it, and the drop-in."""

_KEEPS_US_AWAY = {
    "config_file": "--config isn't taken over: HubGuard doesn't read that file.",
    "ssl_enabled": "--ssl-enabled isn't taken over: HubGuard's service can't connect to a hub with internal SSL yet.",
}


@dataclass(frozen=True, slots=True)
class Line:
    """A command line that was read: ``values`` of the options that it sets, and ``problems``, a sentence each."""

    values: Mapping[str, object]
    problems: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True)
class TakenOver:
    """A culler's command, as HubGuard's ``settings`` (section → name → value).

    ``notes`` are for the operator, a line each: what isn't taken over, and what matters. If ``understood`` is False, HubGuard
    must not take over: the command may spare servers in ways that HubGuard doesn't know, or HubGuard couldn't work.
    """

    settings: dict[str, dict[str, object]] = field(default_factory=dict)
    notes: tuple[str, ...] = ()
    understood: bool = True


def read_line(words: Sequence[str]) -> Line:
    """The culler's own ``words``, in either dialect; the last value of an option counts. Never raises.

    Words that belong to no option are ignored, as the culler does.
    """
    values: dict[str, object] = {}
    problems: list[str] = []
    waiting = [str(word) for word in words]
    while waiting:
        word = waiting.pop(0)
        if not word.startswith("-") or not word.strip("-"):
            continue
        written, equals, text = word.lstrip("-").partition("=")
        option = _option(written)
        if option is None:
            problems.append(f"{word} is unknown.{_closest(written)}")
            continue
        value = _valued(option, text) if equals else None
        if not equals:
            value = _valued(option, waiting[0]) if waiting and not waiting[0].startswith("-") else None
            if value is not None:
                waiting.pop(0)
            elif isinstance(option.default, bool):
                value = True
        if value is None:
            problems.append(f"{word} needs {_wanted(option)}.")
        else:
            values[option.name] = value
    return Line(values, tuple(problems))


def read_trait(name: str, value: object) -> object | None:
    """The value of the option ``name`` in a config file, or None if it is invalid. Raises KeyError for an unknown name."""
    option = _KNOWN[name]
    if name == "log_level" and isinstance(value, int) and not isinstance(value, bool):
        return str(value)
    if isinstance(option.default, bool):
        return value if isinstance(value, bool) else None
    if isinstance(option.default, int):
        fine = isinstance(value, (int, float)) and not isinstance(value, bool)
        return _number(str(value)) if fine else None
    return value if isinstance(value, str) else None


def settings_for(values: Mapping[str, object]) -> dict[str, dict[str, object]]:
    """HubGuard's settings (section → name → value) for a culler with these options, and the defaults of all others."""
    options = {**DEFAULTS, **values}
    timeout_s, every_s, max_age_s, concurrency = (
        _float(options[name]) for name in ("timeout", "cull_every", "max_age", "concurrency")
    )
    cull: dict[str, object] = {
        "default_servers": options["cull_default_servers"],
        "named_servers": options["cull_named_servers"],
        "remove_named_servers": options["remove_named_servers"],
        "idle_timeout_s": max(AT_ONCE_S, timeout_s) if timeout_s <= LONGEST_IDLE_S else 0.0,
        "max_age_s": max_age_s if max_age_s <= LONGEST_AGE_S else 0.0,
        "every_s": float(min(max(1.0, every_s or timeout_s // 2), LONGEST_EVERY_S)),
    }
    if options["cull_users"]:
        cull |= {
            "users": True,
            "user_idle_timeout_s": max(AT_ONCE_S, timeout_s) if timeout_s <= LONGEST_AGE_S else 0.0,
            "user_max_age_s": cull["max_age_s"],
            "admin_users": options["cull_admin_users"],
        }
    settings: dict[str, dict[str, object]] = {"HubGuardCull": cull}
    if concurrency >= 1:
        settings["HubGuardBudget"] = {"concurrency": min(int(concurrency), MOST_AT_ONCE)}
    return settings


def runs_a_culler(command: Iterable[object] | None) -> bool:
    """Whether a service's command runs an idle culler, by itself or in a shell. A folder of such a name isn't one."""
    return any(_is_a_culler(part) for word in command or () for part in str(word).split())


def read_command(command: Sequence[str]) -> Line:
    """What a culler's whole command, interpreter included, says. Never raises."""
    return read_line(_own([str(word) for word in command]))


def given_bare(command: Sequence[str], name: str) -> bool:
    """Whether a culler's whole command has the switch ``name`` without a value, as 1.4.0 takes it and 2.0.0 doesn't."""
    words = _own([str(word) for word in command])
    following = [*words[1:], ""]
    return any(
        word.startswith("-")
        and "=" not in word
        and (option := _option(word.lstrip("-"))) is not None
        and option.name == name
        and (after.startswith("-") or _boolean(after) is None)
        for word, after in zip(words, following, strict=False)
    )


def settings_from(command: Sequence[str], *, without: Sequence[str] = ()) -> TakenOver:
    """HubGuard's settings for a culler's whole command, interpreter included. Never raises.

    ``without`` names options that count as if they weren't given.
    """
    words = [str(word) for word in command]
    notes: list[str] = []
    if shell := next((word for word in words if "cull" in word and len(word.split()) > 1), None):
        notes.append(f"HubGuard can't read a command inside a command: {shell}")
    line = read_line(_own(words))
    notes += line.problems
    notes += [why for name, why in _KEEPS_US_AWAY.items() if line.values.get(name)]
    if _float(line.values.get("timeout", 600)) < 1:
        notes.append("--timeout=0 isn't taken over: it stops every server in every cycle.")
    understood = not notes
    if line.values.get("cull_users"):
        notes.append("--cull-users is taken over: HubGuard deletes users, which needs the scope delete:users.")
    values = {name: value for name, value in line.values.items() if name not in without}
    return TakenOver(settings_for(values), tuple(notes), understood)


def _own(words: list[str]) -> list[str]:
    """The culler's own words, without the interpreter and program before them."""
    for position, word in enumerate(words):
        if _is_a_culler(word):
            return words[position + 1 :]
    return words[1:]


def _is_a_culler(word: str) -> bool:
    return PurePath(word.strip("'\"")).name.removesuffix(".py") in CULLERS


def _option(written: str) -> Option | None:
    name = written.removeprefix("IdleCuller.").removeprefix("Application.").replace("-", "_")
    return _KNOWN.get(_BY_OTHER_NAMES.get(name, name))


def _valued(option: Option, text: str) -> object | None:
    """``text`` as a value of ``option``, or None if it is invalid."""
    if isinstance(option.default, bool):
        return _boolean(text)
    return _number(text) if isinstance(option.default, int) else text


def _wanted(option: Option) -> str:
    if isinstance(option.default, bool):
        return "true or false"
    return "a number that isn't negative" if isinstance(option.default, int) else "a value"


def _closest(written: str) -> str:
    near = difflib.get_close_matches(written.replace("_", "-"), [option.flag[2:] for option in _KNOWN.values()], n=1)
    return f" Is --{near[0]} meant?" if near else ""


def _float(value: object) -> float:
    return float(value) if isinstance(value, (int, float)) else 0.0


def _number(text: str) -> float | int | None:
    try:
        number = float(text)
    except ValueError:
        return None
    if not math.isfinite(number) or number < 0:
        return None
    return int(number) if number.is_integer() else number


def _boolean(text: str) -> bool | None:
    return {"true": True, "t": True, "1": True, "yes": True, "false": False, "f": False, "0": False, "no": False}.get(
        text.strip("'\"").lower()
    )
