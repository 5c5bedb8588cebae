"""``python -m hubguard.culler``: HubGuard in the place of jupyterhub-idle-culler, with its options, scopes and nothing else.

The same guard as the service's, with its journal in memory and without pages.
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
from hubguard.inhub.idle_culler import ASKING, DEFAULTS, LOGGING, OPTIONS, Option, read_line, read_trait, settings_for
from hubguard.model import FindingKind, Server
from hubguard.place import place_from

log = logging.getLogger(__name__)

FINE, FAILED, USAGE = 0, 1, 2

HOOK = "cull_arbiter_hook"

NO_CAP = 1_000_000
"""Maximum actions due at a time: no person is there to look and resume, so there is no cap."""

TELL_EVERY_S = 0.5
"""Seconds between checks whether a cycle has ended, for the log."""

JOURNAL_DAYS = 8
"""It lies in memory, which it would fill in the long run; back-offs and counts need less."""

WITHOUT: tuple[str, ...] = (
    "Its journal is in memory: after a restart it remembers no failed stop, no outage and nothing that it did.",
    "It has no page, no API and no hold. Its log says what it does; to stop it, end it.",
    "It doesn't read the proxy: it knows activity only from the hub, which lags by minutes.",
    "It can't notice another culler at work beside it.",
)
"""What the drop-in can't do or check, since it has the culler's scopes and no disk. The service can."""

WORTH_TELLING = {FindingKind.PENDING_STUCK, FindingKind.CAME_BACK}
"""What the log says about single servers. It says once, at the start, that only the hub reports activity."""

Hook = Callable[..., Any]


def main(argv: Sequence[str] | None = None) -> int:
    """Cull until told to end; the exit code. What is wrong with the options is said on stderr, one line each."""
    line = read_line(sys.argv[1:] if argv is None else argv)
    for problem in line.problems:
        _complain(problem)
    if line.problems:
        return USAGE
    asked_for = [name for name in (*ASKING, "generate_config") if line.values.get(name)]
    if asked_for:
        text = {"version": __version__, "generate_config": config_text()}.get(asked_for[0], help_text())
        sys.stdout.write(text + "\n")
        return FINE
    try:
        in_file, unknown = read_config_file(line.values.get("config_file"))
        options = {**in_file, **line.values}
        _log_as_told(options)
        for name in unknown:
            log.warning("c.%s isn't known and changes nothing.", name)
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
        "Stops idle servers in the place of jupyterhub-idle-culler, and takes all its options, as --cull-users or",
        "--cull-users=true, --cull-every 600 or --cull_every=600. JUPYTERHUB_API_TOKEN is the token to do it with.",
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
        "## A function with the last word on each server: hook(inactive=timedelta, inactive_limit=seconds, server=dict).",
        f"# c.IdleCuller.{HOOK} = None",
    ]
    return "\n".join(lines)


def _default(option: Option) -> str:
    if isinstance(option.default, bool):
        return str(option.default).lower()
    return str(option.default) if option.default != "" else "none"


# -- what is asked for ------------------------------------------------------------------------------------------------------


def read_config_file(named: object | None) -> tuple[dict[str, object], tuple[str, ...]]:
    """(options that the culler's config file sets, names in it that mean nothing here).

    ``named`` is the file, or None for the one that is read unasked where there is one. As in the culler, a ``.py`` and a
    ``.json`` of that name are read, and the latter goes first. Raises ConfigError for a file that is named and missing, that
    can't be read, or that sets an option to what it can't be: it might spare servers.
    """
    path = Path(str(named or DEFAULTS["config_file"]))
    found: dict[str, object] = {}
    unknown: list[str] = []
    there = [file for suffix in (".py", ".json") if (file := path.with_suffix(suffix)).exists()]
    if named and not there:
        raise ConfigError("--config", f"there is no file {path}. Nothing is culled, since it may say what is spared")
    for file in there:
        loaded = config.read_file(file) if file.suffix == ".py" else _read_json(file)
        for section in ("Application", "IdleCuller"):
            for name, value in loaded.get(section, {}).items():
                if isinstance(value, LazyConfigValue | DeferredConfig):
                    continue
                setting = f"{section}.{name}"
                if name == HOOK and callable(value):
                    found[name] = value
                    continue
                try:
                    meant = read_trait(name, value)
                except KeyError:
                    meant = None
                    if name != HOOK:
                        unknown.append(setting)
                        continue
                if meant is None:
                    raise ConfigError(f"c.{setting}", f"in {file}: {value!r} can't be used")
                found[name] = meant
    return found, tuple(unknown)


def _read_json(file: Path) -> Config:
    try:
        return JSONFileConfigLoader(file.name, str(file.parent.absolute())).load_config()
    except Exception as error:
        raise ConfigError(str(file), f"can't be read: {type(error).__name__}: {error}") from error


def settings_of(options: Mapping[str, object], environ: Mapping[str, str]) -> Settings:
    """The guard's settings for a culler with these options. Raises ConfigError where one can't be used."""
    sections = settings_for(options)
    if options.get(HOOK) is not None:
        # The culler asks its hook about every server, and its answer stands in the place of the timeout.
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
    # Like the cap: nobody is there to look and resume, so brakes that wait for a person would hold it forever.
    settings.cull.population_fall = 1.0
    return settings


def _request_timeout_s(environ: Mapping[str, str]) -> float | None:
    """JUPYTERHUB_REQUEST_TIMEOUT within what HubGuard can do; 0, which means no limit there, is the longest."""
    text = environ.get("JUPYTERHUB_REQUEST_TIMEOUT")
    if not text:
        return None
    try:
        seconds = float(text)
    except ValueError:
        raise ConfigError("JUPYTERHUB_REQUEST_TIMEOUT", f"{text!r} is not a number of seconds") from None
    return min(max(1.0, seconds), 600.0) if seconds > 0 else 600.0


def _log_as_told(options: Mapping[str, object]) -> None:
    """The log is as the options of 1.4.0 (tornado's) and of 2.0.0 (``log_level``) have it; on stderr unless told else."""
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
        raise ConfigError("--logging", f"the log can't be as it is told: {error}") from None
    if logging.getLogger().level > logging.DEBUG:
        logging.getLogger("alembic").setLevel(logging.WARNING)


# -- culling ----------------------------------------------------------------------------------------------------------------


async def cull(options: Mapping[str, object], environ: Mapping[str, str]) -> int:
    """Run the guard until told to end; the exit code. Raises ConfigError for what can't work at all."""
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
        guard = make_guard(settings, place, hub, budget, hook=arbiter)
        _say_what_it_cannot()
        told = _Told(guard)
        tasks = [asyncio.create_task(work) for work in (guard.run(), ending.wait(), told.run())]
        await asyncio.wait(tasks, return_when=asyncio.FIRST_COMPLETED)
        if ending.is_set():
            log.info("Told to end.")
        for task in tasks:
            task.cancel()
        results = await asyncio.gather(*tasks, return_exceptions=True)
        told.tell()
    for result in results:
        if isinstance(result, Exception):
            log.error("HubGuard's culler ends by a defect", exc_info=result)
            return FAILED
    return FINE


def _say_what_it_cannot() -> None:
    log.info(
        "HubGuard %s in the place of jupyterhub-idle-culler. What HubGuard's service has, and this hasn't:", __version__
    )
    for line in WITHOUT:
        log.info("  %s", line)


class _Told:
    """Tells the log what each cycle did: there is no page to see it on."""

    def __init__(self, guard: Guard) -> None:
        self._guard = guard
        self._last: CycleReport | None = None
        self._said: tuple[str, ...] = ()

    async def run(self) -> None:
        while True:
            self.tell()
            await asyncio.sleep(TELL_EVERY_S)

    def tell(self) -> None:
        culled = self._guard.culling.status()
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
        odd = [
            finding.detail
            for finding in (*culled.findings, *self._guard.status().findings)
            if finding.kind in WORTH_TELLING
        ]
        said = tuple(line for line in (report.skipped_why, *odd) if line)
        for line in said:
            if line not in self._said:
                log.warning("%s", line)
        self._said = said
        log.info(
            "Cycle done: %d servers seen, %d things to do%s.",
            len(report.snapshot.servers),
            len(report.plan.actions),
            ", none done" if report.skipped_why else "",
        )


# -- the culler's hook ------------------------------------------------------------------------------------------------------


class _HubWithModels(HTTPHubAPI):
    """Also keeps what the hub last said of each server, since the culler's hook is given all of that."""

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self._models: dict[tuple[str, str], dict[str, Any]] = {}

    async def _read(self, call: Any) -> Any:
        answer = await super()._read(call)
        query = call.query or {}
        if query.get("state") == "active" and query.get("offset") == "0":
            self._models = {}
        told = answer.json if isinstance(answer.json, dict) else {}
        listed = told.get("items")
        for user in listed if isinstance(listed, list) else [told]:
            # What makes no sense is refused by whoever reads it next.
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
    """The culler's ``hook`` as HubGuard's: it is asked with the keywords that the culler gives it, whatever else there is."""

    async def arbiter(*, server: Server, inactive: timedelta, **_: Any) -> bool:
        answer = hook(inactive=inactive, inactive_limit=inactive_limit, server=dict(model(server)))
        if isinstance(answer, concurrent.futures.Future):
            answer = asyncio.wrap_future(answer)
        return bool(await answer if inspect.isawaitable(answer) else answer)

    return arbiter


if __name__ == "__main__":
    sys.exit(main())
