"""Reads the command line of jupyterhub-idle-culler as that program does, and translates it into HubGuard's settings.

Versions 1 and 2 know the same options with the same defaults, and read a line differently: see :class:`Dialect`.
"""

from __future__ import annotations

import difflib
import math
import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from enum import Enum
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
_BY_OTHER_NAMES = {
    "config": "config_file",
    "h": "help",
    "V": "version",
    "Application.log_level": "log_level",
}

PEER = ("jupyterhub_idle_culler", "jupyterhub-idle-culler")
"""Names of the culler whose versions 1 and 2 read options differently."""

DROP_IN = "hubguard.culler"

CULLERS = (*PEER, "cull_idle_servers", DROP_IN)
"""How an idle culler's command is recognized: z2jh's, TLJH's, the project's own, the one before it, and the drop-in."""

API_URL = "JUPYTERHUB_API_URL"

_PRINTS = (*QUESTIONS, "generate_config")
_KEEPS_US_AWAY = {
    "config_file": "--config isn't taken over: HubGuard doesn't read that file.",
    "ssl_enabled": "--ssl-enabled isn't taken over: HubGuard's service can't connect to a hub with internal SSL yet.",
    **dict.fromkeys(_PRINTS, "This culler prints something and exits. It culls nobody."),
}

_ONLY_2 = ("config_file", "generate_config", "log_level", "help_all", "version", "debug")
_LEVELS = {
    "logging": re.compile("(?i:debug|info|warn|warning|error|critical|none)"),
    "log_level": re.compile("DEBUG|INFO|WARN|ERROR|CRITICAL|[1-5]?0"),
}
_SHELLS = {"sh", "bash", "dash", "ash", "ksh", "zsh"}
_PYTHON = re.compile(r"(python|pypy)[\d.]*")
_PYTHONS_FLAGS = re.compile(r"-[bBdEIOPqsuv]+|-[WX].+")
_OPTION_OF_2 = re.compile(r"--?[A-Za-z]\w*(\.\w+)*")
_CHANGES_THE_CULLER = re.compile(r"JUPYTERHUB_.*|SSL_.*|.*_PROXY|PATH|PYTHONPATH|PYTHONHOME|LD_.*", re.IGNORECASE)


class Dialect(Enum):
    """How a command line is read."""

    ONE = (
        "version 1"  # tornado: no value after a space, any word but false, f and 0 is true, nothing after a plain word
    )
    TWO = "version 2"  # traitlets: every option needs a value, and what it doesn't know is ignored, such as --cull_users=true
    DROP_IN = "HubGuard's drop-in"  # whatever either of them understands


@dataclass(frozen=True, slots=True)
class Line:
    """A command line that was read: ``values`` of the options that it sets, and ``problems``, a sentence each.

    ``refusals`` are sentences on why that culler exits with this line. The values then are what the line seems to mean.
    """

    values: Mapping[str, object]
    problems: tuple[str, ...] = ()
    refusals: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True)
class Run:
    """What a command runs: the culler ``name`` with ``words``, by ``program``, with ``environ`` set before it.

    If ``name`` is "", HubGuard can't tell what ``program`` does. ``problems`` are sentences on what else is in the way.
    """

    program: str = ""
    name: str = ""
    words: tuple[str, ...] = ()
    environ: Mapping[str, str] = field(default_factory=dict)
    problems: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True)
class TakenOver:
    """A culler's command as HubGuard would carry it out: ``values`` of its options, and ``api_url`` ("": the usual one).

    ``notes`` are for the operator, a line each: what isn't taken over, and what matters. If ``understood`` is False, HubGuard
    must not take over: the command may spare servers in ways that HubGuard doesn't know, or HubGuard couldn't work.
    ``refusal`` is a sentence on why that culler exits with this line, "" if it doesn't. ``works`` is None if only some of the
    versions that may be installed do so.
    """

    values: Mapping[str, object] = field(default_factory=dict)
    api_url: str = ""
    notes: tuple[str, ...] = ()
    understood: bool = True
    refusal: str = ""
    works: bool | None = True

    @property
    def settings(self) -> dict[str, dict[str, object]]:
        """HubGuard's settings (section → name → value)."""
        return settings_for(self.values)


def read_line(words: Sequence[str], dialect: Dialect = Dialect.DROP_IN) -> Line:
    """The culler's own ``words``; the last value of an option counts. Never raises."""
    values: dict[str, object] = {}
    problems: list[str] = []
    refusals: list[str] = []
    waiting = [str(word) for word in words]
    while waiting:
        word = waiting.pop(0)
        if dialect is not Dialect.DROP_IN and word == "--":
            break
        if not word.startswith("-") or not word.strip("-"):
            if dialect is Dialect.ONE and not word.startswith("-"):
                break
            if dialect is not Dialect.DROP_IN:
                problems.append(f"HubGuard can't tell what {word!r} means.")
            continue
        flag, form, text = word.partition("=")
        option = _option(flag.lstrip("-"))
        if option is None:
            problems.append(f"{word} is unknown.{_closest(flag.lstrip('-'))}")
            continue
        if not form:
            if waiting and _takes(option, waiting[0], dialect):
                form, text = " ", waiting.pop(0)
            elif isinstance(option.default, bool):
                text = "true"
        value = _valued(option, text) if form or text else None
        if dialect is Dialect.ONE and form and isinstance(option.default, bool):
            value = text.lower() not in {"false", "f", "0"}
        if dialect is Dialect.TWO and option.name in _PRINTS:
            value = True
        if value is None:
            problems.append(f"{word} needs {_wanted(option)}.")
            continue
        ignored = dialect is Dialect.TWO and not _known_to_2(option, flag)
        if why := _refusal(option, flag, form, text, dialect, ignored=ignored):
            refusals.append(f"{flag} {why}")
        if dialect is Dialect.TWO and not ignored and option.name in values:
            refusals.append(f"{flag} is given twice")
        if not ignored:
            values[option.name] = value
    if dialect is not Dialect.DROP_IN and _never(values, dialect):
        refusals.append("a cycle every 0 s isn't possible")
    return Line(values, tuple(problems), tuple(refusals))


def _takes(option: Option, word: str, dialect: Dialect) -> bool:
    """Whether the next ``word`` is the value of an option that stands without one."""
    alone = isinstance(option.default, bool) and (dialect is Dialect.ONE or option.name in _PRINTS)
    return not alone and not word.startswith("-") and _valued(option, word) is not None


def _known_to_2(option: Option, flag: str) -> bool:
    if option.name == "log_level":
        return flag in {"--IdleCuller.log_level", "--Application.log_level"}
    return option.name in QUESTIONS or (
        option.name in DEFAULTS and flag in {option.flag, f"--IdleCuller.{option.name}"}
    )


def _refusal(option: Option, flag: str, form: str, text: str, dialect: Dialect, *, ignored: bool) -> str:
    """Why the culler exits with this option, as a predicate, or "". ``form`` is "=", " ", or "" without a value."""
    if dialect is Dialect.DROP_IN:
        return ""
    if dialect is Dialect.ONE:
        if flag.lstrip("-").replace("-", "_") != option.name or option.name in _ONLY_2:
            return "is unknown"
        if form == " ":
            return "needs its value after ="
    elif ignored and not _OPTION_OF_2.fullmatch(flag):
        return "is unknown"
    elif not form and (ignored or option.name not in _PRINTS):
        return "needs a value"
    elif not ignored and isinstance(option.default, bool) and text.lower() not in {"true", "false", "1", "0"}:
        return "must be true or false"
    if not ignored and option.name in _LEVELS and not _LEVELS[option.name].fullmatch(text):
        return "must be a level"
    if not ignored and isinstance(option.default, int) and not isinstance(option.default, bool):
        try:
            int(text)
        except ValueError:
            return "must be a whole number"
    return ""


def _never(values: Mapping[str, object], dialect: Dialect) -> bool:
    """Whether the time between two cycles comes out as 0 s, with which the culler exits."""
    half = _float(values.get("timeout", DEFAULTS["timeout"])) // 2
    every = _float(values.get("cull_every", half))
    return (half if dialect is Dialect.ONE and not every else every) < 1


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


def run_of(command: Iterable[object] | None) -> Run:
    """What a service's whole command runs, as far as HubGuard knows each word that stands before the culler. Never raises."""
    words = [str(word) for word in command or ()]
    environ: dict[str, str] = {}
    problems: list[str] = []
    place = 0
    while place < len(words):
        name = PurePath(words[place]).name
        following = words[place + 1 :]
        if name == "env":
            place += 1
            while place < len(words) and re.match(r"[A-Za-z_]\w*=", words[place]):
                variable, _, environ[variable] = words[place].partition("=")
                if variable != API_URL and _CHANGES_THE_CULLER.fullmatch(variable):
                    problems.append(f"env sets {variable}, which may change what the culler does.")
                place += 1
        elif name in {"tini", "dumb-init"} and following[:1] == ["--"]:
            place += 2
        elif name == "nice" and following[:1] == ["-n"] and re.fullmatch(r"[+-]?\d+", "".join(following[1:2])):
            place += 3
        else:
            break
    program = words[place] if place < len(words) else ""
    culler, place = (
        _after_python(words, place + 1) if _PYTHON.fullmatch(PurePath(program).name) else (program, place + 1)
    )
    name = PurePath(culler).name.removesuffix(".py")
    if name not in CULLERS:
        return Run(culler)
    return Run(program, name, tuple(words[place:]), environ, tuple(problems))


def _after_python(words: Sequence[str], place: int) -> tuple[str, int]:
    """The script or module that a Python with the arguments from ``place`` on runs, and the place of its own words."""
    while place < len(words) and _PYTHONS_FLAGS.fullmatch(words[place]):
        place += 1
    word = words[place] if place < len(words) else ""
    if word == "-m" and place + 1 < len(words):
        return words[place + 1], place + 2
    return word.removeprefix("-m"), place + 1


def runs_a_culler(command: Iterable[object] | None) -> bool:
    """Whether a service's command is known to run an idle culler. A folder of such a name isn't one."""
    return bool(run_of(command).name)


def names_a_culler(command: Iterable[object] | None) -> str:
    """The idle culler that a service's command runs or names, by itself or in a shell's text; "" if there is none."""
    for word in command or ():
        for part in str(word).split():
            name = PurePath(part.strip("'\"`;&|()$").removeprefix("-m")).name.removesuffix(".py")
            if name in CULLERS and (not part.startswith("-") or part.startswith("-m")):
                return name
    return ""


def in_a_shell(command: Iterable[object] | None) -> bool:
    """Whether a service's command is a shell's, which may do anything before it starts what it names."""
    return any(PurePath(str(word)).name in _SHELLS for word in command or ())


def settings_from(command: Iterable[object] | None, version: str | None = None) -> TakenOver:
    """What HubGuard would do in the place of a culler with that whole command. Never raises.

    ``version`` is that of the jupyterhub-idle-culler that would run, None if unknown.
    """
    run = run_of(command)
    if not run.name:
        return TakenOver(notes=(f"HubGuard can't tell what {run.program!r} does.",), understood=False)
    dialects = _dialects(run.name, version)
    lines = [read_line(run.words, dialect) for dialect in dialects]
    notes = [*run.problems, *(problem for line in lines for problem in line.problems)]
    notes += [why for name, why in _KEEPS_US_AWAY.items() if any(line.values.get(name) for line in lines)]
    values, *others = [{name: line.values.get(name, default) for name, default in DEFAULTS.items()} for line in lines]
    differing = [f"--{name.replace('_', '-')}" for other in others for name in DEFAULTS if other[name] != values[name]]
    if differing:
        notes.append(
            f"Versions 1 and 2 of the culler read {', '.join(differing)} differently here, and HubGuard can't tell which is"
            " installed."
        )
    if _float(values["timeout"]) < 1:
        notes.append("--timeout=0 isn't taken over: it stops every server in every cycle.")
    refused = [bool(line.refusals) for line in lines]
    refusal = "; ".join(refusal for line in lines for refusal in line.refusals)
    return TakenOver(
        values=values,
        api_url=str(values["url"] or run.environ.get(API_URL, "")),
        notes=tuple(dict.fromkeys(notes)),
        understood=not notes,
        refusal=refusal,
        works=not all(refused) if all(refused) or not any(refused) else None,
    )


def _dialects(name: str, version: str | None) -> tuple[Dialect, ...]:
    """How the culler ``name`` may read its line."""
    if name == DROP_IN:
        return (Dialect.DROP_IN,)
    if name not in PEER:
        return (Dialect.ONE,)
    if version is None:
        return Dialect.ONE, Dialect.TWO
    return (Dialect.ONE if version.startswith(("0.", "1.")) else Dialect.TWO,)


def _option(written: str) -> Option | None:
    name = written.removeprefix("IdleCuller.").replace("-", "_")
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
