"""``python -m hubguard.culler``: replaces jupyterhub-idle-culler, with the same options and the same scopes.

It runs the same guard as the service, with the journal in memory and without pages.
"""

from __future__ import annotations

import asyncio
import concurrent.futures
import inspect
import logging
import os
import signal
import sys
from collections.abc import Awaitable, Callable, Mapping, Sequence
from dataclasses import replace
from datetime import timedelta
from pathlib import Path
from typing import Any

from tornado.log import define_logging_options
from tornado.options import Error as OptionError
from tornado.options import OptionParser
from traitlets.config import Config
from traitlets.config.loader import DeferredConfig, JSONFileConfigLoader, LazyConfigValue

from hubguard import __version__, config
from hubguard.app import make_budget, make_guard
from hubguard.config import Settings
from hubguard.cull.model import CycleReport
from hubguard.errors import ConfigError, HubGuardError
from hubguard.guard import Guard
from hubguard.hub.client import HTTPHubAPI, internal_ssl_context
from hubguard.inhub.idle_culler import (
    DEFAULTS,
    LOGGING,
    OPTIONS,
    QUESTIONS,
    Option,
    read_line,
    read_trait,
    settings_for,
)
from hubguard.logs import tidy
from hubguard.model import FindingKind, Server
from hubguard.place import place_from
from hubguard.wiring import Ways

log = logging.getLogger(__name__)

FINE, FAILED, USAGE = 0, 1, 2

HOOK = "cull_arbiter_hook"

NO_CAP = 1_000_000
"""Maximum actions that may be due at a time: in effect none, because nobody is there to look and resume."""

LOG_EVERY_S = 0.5
"""Seconds between checks for a finished cycle to log."""

JOURNAL_DAYS = 8
"""Days that journal entries are kept in memory. Back-offs and counts need less."""

WITHOUT: tuple[str, ...] = (
    "Its journal is in memory: a restart forgets failed stops, outages and everything that it did.",
    "It has no page, no API and no hold. It logs what it does. To stop it, end the process.",
    "It doesn't read the proxy: it knows activity only from the hub, which lags by minutes.",
    "It doesn't notice another culler.",
)
"""What the service can do and this can't, because it has only the culler's scopes and no disk."""

LOGGED_FINDINGS = {FindingKind.PENDING_STUCK, FindingKind.CAME_BACK}
"""Findings about single servers that are logged."""

Hook = Callable[..., Any]


def main(argv: Sequence[str] | None = None) -> int:
    """Cull until a signal ends it; return the exit code. Problems with the options go to stderr, a line each."""
    line = read_line(sys.argv[1:] if argv is None else argv)
    for problem in line.problems:
        _complain(problem)
    if line.problems:
        return USAGE
    questions = [name for name in (*QUESTIONS, "generate_config") if line.values.get(name)]
    if questions:
        text = {"version": __version__, "generate_config": config_text()}.get(questions[0], help_text())
        sys.stdout.write(text + "\n")
        return FINE
    try:
        in_file, unknown = read_config_file(line.values.get("config_file"))
        options = {**in_file, **line.values}
        _set_up_logging(options)
        for name in unknown:
            log.warning("c.%s is unknown and ignored.", name)
        return asyncio.run(cull(options, os.environ))
    except HubGuardError as error:
        _complain(str(error))
        return USAGE if isinstance(error, ConfigError) else FAILED
    except KeyboardInterrupt:
        return FINE


def _complain(text: str) -> None:
    sys.stderr.write(f"hubguard.culler: {text}\n")


def help_text() -> str:
    """All options with their defaults, for people."""
    lines = [
        "python -m hubguard.culler [options]",
        "",
        "Stops idle servers. Replaces jupyterhub-idle-culler and takes all its options, written as --cull-users or",
        "--cull-users=true, --cull-every 600 or --cull_every=600. Set JUPYTERHUB_API_TOKEN to the token of its service.",
        "",
    ]
    for option in (*OPTIONS, *LOGGING):
        lines += [f"  {option.flag}", f"      {option.help} (Default: {_default(option)}.)"]
    return "\n".join(lines)


def config_text() -> str:
    """A config file in which every option has its default, as a comment."""
    lines = ["c = get_config()", ""]
    for option in OPTIONS:
        if option.name != "generate_config":
            lines += [f"## {option.help}", f"# c.IdleCuller.{option.name} = {option.default!r}", ""]
    lines += [
        "## A function that decides about each server: hook(inactive=timedelta, inactive_limit=seconds, server=dict).",
        f"# c.IdleCuller.{HOOK} = None",
    ]
    return "\n".join(lines)


def _default(option: Option) -> str:
    if isinstance(option.default, bool):
        return str(option.default).lower()
    return str(option.default) if option.default != "" else "none"


# -- options ---------------------------------------------------------------------------------------------------------------


def read_config_file(named: object | None) -> tuple[dict[str, object], tuple[str, ...]]:
    """(options that the culler's config file sets, unknown names in it).

    ``named`` is the file, or None for the default one, which may be missing. As in the culler, a ``.py`` and a ``.json`` of
    that name are both read, and the latter overrides. Raises ConfigError if a named file is missing, if a file can't be read,
    or if it sets an option to an invalid value: the file may spare servers.
    """
    path = Path(str(named or DEFAULTS["config_file"]))
    options: dict[str, object] = {}
    unknown: list[str] = []
    files = [file for suffix in (".py", ".json") if (file := path.with_suffix(suffix)).exists()]
    if named and not files:
        raise ConfigError("--config", f"no file {path}. Nothing is culled, because the file may spare servers")
    for file in files:
        loaded = config.read_file(file) if file.suffix == ".py" else _read_json(file)
        for section in ("Application", "IdleCuller"):
            for name, value in loaded.get(section, {}).items():
                if isinstance(value, LazyConfigValue | DeferredConfig):
                    continue
                setting = f"{section}.{name}"
                if name == HOOK and callable(value):
                    options[name] = value
                    continue
                try:
                    parsed = read_trait(name, value)
                except KeyError:
                    parsed = None
                    if name != HOOK:
                        unknown.append(setting)
                        continue
                if parsed is None:
                    raise ConfigError(f"c.{setting}", f"in {file}: {value!r} is invalid")
                options[name] = parsed
    return options, tuple(unknown)


def _read_json(file: Path) -> Config:
    try:
        return JSONFileConfigLoader(file.name, str(file.parent.absolute())).load_config()
    except Exception as error:
        raise ConfigError(str(file), f"can't be read: {type(error).__name__}: {error}") from error


def settings_of(options: Mapping[str, object], environ: Mapping[str, str]) -> Settings:
    """The guard's settings for a culler with these options. Raises ConfigError if one is invalid."""
    sections = settings_for(options)
    if options.get(HOOK) is not None:
        # The culler calls its hook for every server, and the result replaces the timeout.
        sections["HubGuardCull"]["idle_timeout_s"] = settings_for({"timeout": 0})["HubGuardCull"]["idle_timeout_s"]
    timeout_s = _request_timeout_s(environ)
    settings = config.load(
        sections,
        {
            "HubGuard": {"armed": True, "db_url": "sqlite://", "journal_days": JOURNAL_DAYS},
            "HubGuardCull": {"plan_cap": NO_CAP},
            "HubGuardBudget": {} if timeout_s is None else {"request_timeout_s": timeout_s},
        },
        environ={},
    )
    if settings.errors:
        raise settings.errors[0]
    # Nobody is there to look and resume: a brake that waits for a person would last forever.
    settings.cull.population_fall = 1.0
    return settings


def _request_timeout_s(environ: Mapping[str, str]) -> float | None:
    """JUPYTERHUB_REQUEST_TIMEOUT within HubGuard's limits, in seconds; None if it isn't set. 0 means the longest."""
    text = environ.get("JUPYTERHUB_REQUEST_TIMEOUT")
    if not text:
        return None
    try:
        seconds = float(text)
    except ValueError:
        raise ConfigError("JUPYTERHUB_REQUEST_TIMEOUT", f"{text!r} is not a number of seconds") from None
    return min(max(1.0, seconds), 600.0) if seconds > 0 else 600.0


def _set_up_logging(options: Mapping[str, object]) -> None:
    """Set up logging by the options of 1.4.0 (tornado's) and 2.0.0 (``log_level``). The default is stderr."""
    parser = OptionParser()
    define_logging_options(parser)
    try:
        for option in LOGGING:
            if option.name in parser and option.name in options:
                setattr(parser, option.name, options[option.name])
        if options.get("debug"):
            parser.logging = "debug"
        elif level := str(options.get("log_level", "")):
            parser.logging = logging.getLevelName(int(level)) if level.isdigit() else level
        parser.run_parse_callbacks()
    except (AttributeError, OptionError, OSError, ValueError) as error:
        raise ConfigError("--logging", f"can't set up the log: {error}") from None
    tidy(*logging.getLogger().handlers)
    if logging.getLogger().level > logging.DEBUG:
        logging.getLogger("alembic").setLevel(logging.WARNING)


# -- culling ----------------------------------------------------------------------------------------------------------------


async def cull(options: Mapping[str, object], environ: Mapping[str, str]) -> int:
    """Run the guard until a signal ends it; return the exit code. Raises ConfigError for options that can't work."""
    settings = settings_of(options, environ)
    ssl_context = None
    if options.get("ssl_enabled"):
        location = options.get("internal_certs_location", DEFAULTS["internal_certs_location"])
        ssl_context = internal_ssl_context(str(location))
    if url := options.get("url"):
        environ = {**environ, "JUPYTERHUB_API_URL": str(url)}
    place = replace(place_from(environ), registration={})
    ending = asyncio.Event()
    for signal_number in (signal.SIGTERM, signal.SIGINT):
        asyncio.get_running_loop().add_signal_handler(signal_number, ending.set)
    budget = make_budget(settings)
    hub = _HubWithModels(
        place.api_url,
        place.token,
        budget,
        request_timeout_s=settings.budget.request_timeout_s,
        page_size=int(str(options.get("api_page_size") or 200)),
        ssl_context=ssl_context,
    )
    async with hub:
        hook = options.get(HOOK)
        inactive_limit = int(str(options.get("timeout", DEFAULTS["timeout"])))
        arbiter = as_arbiter(hook, inactive_limit, hub.model) if callable(hook) else None
        guard = make_guard(settings, place, Ways(hub, budget, hook=arbiter))
        _log_limitations()
        cycle_log = _CycleLog(guard)
        tasks = [asyncio.create_task(work) for work in (guard.run(), ending.wait(), cycle_log.run())]
        await asyncio.wait(tasks, return_when=asyncio.FIRST_COMPLETED)
        if ending.is_set():
            log.info("Signal received: ending.")
        for task in tasks:
            task.cancel()
        results = await asyncio.gather(*tasks, return_exceptions=True)
        cycle_log.write()
    for result in results:
        if isinstance(result, Exception):
            log.error("HubGuard's culler ends: unexpected error (a bug in HubGuard)", exc_info=result)
            return FAILED
    return FINE


def _log_limitations() -> None:
    log.info("HubGuard %s replaces jupyterhub-idle-culler. Unlike HubGuard's service:", __version__)
    for line in WITHOUT:
        log.info("  %s", line)


class _CycleLog:
    """Logs what each cycle did, because there is no page that shows it."""

    def __init__(self, guard: Guard) -> None:
        self._guard = guard
        self._last: CycleReport | None = None
        self._warnings: tuple[str, ...] = ()

    async def run(self) -> None:
        while True:
            self.write()
            await asyncio.sleep(LOG_EVERY_S)

    def write(self) -> None:
        culled = self._guard.parts.culling.status()
        report = culled.last_cycle
        if report is None or report is self._last:
            return
        self._last = report
        for action, outcome in report.outcomes:
            log.info(
                "%s %s (%s): %s, %s",
                action.kind.value,
                action.label,
                action.reason,
                outcome.kind.value,
                outcome.detail,
            )
        unusual = [
            finding.detail
            for finding in (*culled.findings, *self._guard.status().findings)
            if finding.kind in LOGGED_FINDINGS
        ]
        warnings = tuple(line for line in (report.skipped_why, *unusual) if line)
        for line in warnings:
            if line not in self._warnings:
                log.warning("%s", line)
        self._warnings = warnings
        log.info(
            "Cycle done: %d servers, %d actions due%s.",
            len(report.snapshot.servers),
            len(report.plan.actions),
            ", none taken" if report.skipped_why else "",
        )


# -- the culler's hook ------------------------------------------------------------------------------------------------------


class _HubWithModels(HTTPHubAPI):
    """Also keeps the hub's last model of each server, because the culler's hook receives it."""

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self._models: dict[tuple[str, str], dict[str, Any]] = {}

    async def _read(self, call: Any) -> Any:
        answer = await super()._read(call)
        query = call.query or {}
        if query.get("state") == "active" and query.get("offset") == "0":
            self._models = {}
        body = answer.json if isinstance(answer.json, dict) else {}
        users = body.get("items")
        for user in users if isinstance(users, list) else [body]:
            # The next reader refuses what is malformed.
            servers = user.get("servers") if isinstance(user, dict) else None
            if isinstance(servers, dict):
                self._models |= {(str(user.get("name")), name): model for name, model in servers.items()}
        return answer

    def model(self, server: Server) -> dict[str, Any]:
        """``server`` as the hub last reported it. Raises KeyError for one that it didn't."""
        return self._models[server.key]


def as_arbiter(
    hook: Hook, inactive_limit: int, model: Callable[[Server], Mapping[str, Any]]
) -> Callable[..., Awaitable[bool]]:
    """The culler's ``hook`` as HubGuard's. It is called with the culler's keywords only."""

    async def arbiter(*, server: Server, inactive: timedelta, **_: Any) -> bool:
        answer = hook(inactive=inactive, inactive_limit=inactive_limit, server=dict(model(server)))
        if isinstance(answer, concurrent.futures.Future):
            answer = asyncio.wrap_future(answer)
        return bool(await answer if inspect.isawaitable(answer) else answer)

    return arbiter


if __name__ == "__main__":
    sys.exit(main())
