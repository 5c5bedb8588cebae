"""The ``hubguard`` command. Exit codes: 0 fine, 1 failed, 2 wrong usage, 3 held or braked, 4 findings exist."""

from __future__ import annotations

import argparse
import asyncio
import json
import logging
import os
import shutil
import sys
from collections.abc import Callable, Sequence
from dataclasses import replace
from datetime import datetime, timezone
from importlib.util import find_spec
from pathlib import Path
from typing import Any

from hubguard import __version__, config, times
from hubguard.console import (
    FAILED,
    FINDINGS,
    FINE,
    USAGE,
    _actor,
    _configs,
    _count,
    _count_or_0,
    _settings,
    _the_guards_journal,
)
from hubguard.cull.cli import _explain, _keep, _keep_arguments
from hubguard.drift.cli import _drift, _drift_arguments
from hubguard.errors import ConfigError, HubGuardError
from hubguard.journal.model import Stance
from hubguard.prune.cli import _given
from hubguard.prune.cli import add_command as add_prune_command


def main(argv: Sequence[str] | None = None) -> int:
    """Run one command; its exit code. An error is one line on stderr, never a traceback."""
    parser = _parser()
    arguments, rest = parser.parse_known_args(argv)
    # argparse drops a last word that stands behind an option: `keep ada --for 7d "an exam"`.
    if arguments.command == "keep" and not arguments.why and len(rest) == 1 and not rest[0].startswith("-"):
        arguments.why = rest[0]
    elif rest:
        parser.error(f"unrecognized arguments: {' '.join(rest)}")
    logging.basicConfig(
        level=logging.DEBUG if arguments.debug else logging.INFO if arguments.command == "serve" else logging.WARNING,
        format="[%(levelname).1s %(asctime)s hubguard] %(message)s",
    )
    if not arguments.debug:
        logging.getLogger("alembic").setLevel(logging.WARNING)
    try:
        return int(arguments.run(arguments))
    except ConfigError as error:
        return _fail(error, USAGE)
    except HubGuardError as error:
        return _fail(error, FAILED)
    except KeyboardInterrupt:
        return 130
    except BrokenPipeError:
        # The reader (head, less) has seen enough. Nothing more may be written, at interpreter exit either.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return FINE


def _fail(error: HubGuardError, code: int) -> int:
    print(f"hubguard: {error}", file=sys.stderr)
    if error.detail:
        print(error.detail, file=sys.stderr)
    return code


# -- the commands ---------------------------------------------------------------------------------------------------------


def _serve(arguments: argparse.Namespace) -> int:
    from hubguard import app
    from hubguard.place import place_from

    place = place_from(os.environ)
    place = replace(
        place,
        url=arguments.url or os.environ.get("JUPYTERHUB_SERVICE_URL", ""),
        generation=arguments.generation,
        hub_pid=arguments.hub_pid,
    )
    return asyncio.run(app.serve(place, arguments.config))


def _cull(arguments: argparse.Namespace) -> int:
    from hubguard import once
    from hubguard.cull import words as cull_words

    settings = _settings(arguments)
    if settings.errors:
        raise settings.errors[0]
    _the_guards_journal(settings)
    report = asyncio.run(
        once.cull(
            settings,
            os.environ,
            actor=_actor(),
            policy_known=arguments.config is not None or arguments.timeout is not None,
            dry_run=arguments.dry_run,
            idle_timeout_s=arguments.timeout,
            concurrency=arguments.concurrency,
            rate=arguments.rate,
        )
    )
    print(json.dumps(report, indent=2) if arguments.json else cull_words.report_text(report))
    return once.exit_code(report, dry_run=arguments.dry_run)


def _prune(arguments: argparse.Namespace) -> int:
    from hubguard.place import place_from
    from hubguard.prune import cli as prune_cli
    from hubguard.web.client import RunningGuard, running_guard

    configs = [config.read_file(path) for path in _configs(arguments)]
    settings = config.load(*map(config.sections_of, configs))
    if arguments.offline:
        from hubguard.prune.offline import cli as offline_cli

        return offline_cli.run(
            arguments, settings, configs, actor=_actor(), say=print, asks=sys.stdin.isatty(), environ=os.environ
        )
    if wanted := [name for name in ("hub_db", "housekeeping", "undo_folder", "with_tokens") if _given(arguments, name)]:
        raise ConfigError(f"--{wanted[0].replace('_', '-')}", "is for --offline alone. Nothing was done")
    url, token = _the_guards_journal(settings), place_from(os.environ).token
    instead = (
        "and it is the guard that removes users. For a hub that isn't running there is --offline"
        " (docs/how-to/prune-users.md)"
    )

    def find() -> RunningGuard:
        return running_guard(url, token, instead=instead)

    return asyncio.run(prune_cli.run(arguments, prune_cli.Asked(find, print, asks=sys.stdin.isatty())))


def _doctor(arguments: argparse.Namespace) -> int:
    from hubguard import doctor

    checks = asyncio.run(doctor.examine(_settings(arguments), os.environ))
    if arguments.json:
        print(json.dumps([doctor.as_json(check) for check in checks], indent=2))
    else:
        print(doctor.as_text(checks))
    return FAILED if any(check.finding is doctor.Finding.WRONG for check in checks) else FINE


def _stance(arguments: argparse.Namespace) -> int:
    """arm, observe, hold and resume go straight into the journal, so that they work with hub, proxy and guard down."""
    from hubguard.journal.store import Journal, open_journal

    change = {"arm": Journal.arm, "observe": Journal.observe, "hold": Journal.hold, "resume": Journal.resume}
    settings = _settings(arguments)
    journal = open_journal(_the_guards_journal(settings))
    try:
        stance = change[arguments.command](journal, _actor(), arguments.why, datetime.now(timezone.utc))
    finally:
        journal.close()
    print(f"{'acting is on hold' if stance.held else 'not on hold'}, {_armed_words(stance, settings.guard.armed)}")
    if arguments.command == "resume":
        print("What HubGuard itself held back for so far is accepted, where a person may accept it (see the Overview).")
    return FINE


def _armed_words(stance: Stance, by_config: bool | None) -> str:
    """Whether HubGuard acts by itself, as far as it can be told here: the guard's config may be another than ours."""
    if by_config is not None:
        return f"{'armed' if by_config else 'observing only'} (HubGuard.armed is {by_config} in the config)"
    return f"{'armed' if stance.armed else 'observing only'}, unless HubGuard.armed is set in the guard's config"


def _journal(arguments: argparse.Namespace) -> int:
    from hubguard.journal import words as journal_words
    from hubguard.journal.store import open_journal

    journal = open_journal(_the_guards_journal(_settings(arguments)))
    try:
        entries = journal.entries(limit=arguments.limit, user=arguments.user)
    finally:
        journal.close()
    for entry in entries:
        print(json.dumps(journal_words.entry_json(entry)) if arguments.json else journal_words.entry_text(entry))
    return FINE


def _config_check(arguments: argparse.Namespace) -> int:
    from hubguard import doctor

    checks = doctor.examine_config(arguments.file)
    print(doctor.as_text(checks))
    return FAILED if any(check.finding is doctor.Finding.WRONG for check in checks) else FINE


def _config_show(arguments: argparse.Namespace) -> int:
    from hubguard.journal.database import without_password

    settings = _settings(arguments)
    for name, default, text in config.settings_table():
        section, trait = name.split(".")
        holder = {
            type(part).__name__: part
            for part in (settings.guard, settings.cull, settings.drift, settings.prune, settings.budget)
        }[section]
        value = repr(getattr(holder, trait))
        if name == "HubGuard.db_url":
            value = repr(without_password(getattr(holder, trait)))
        print(f"{name} = {value}" + ("" if value == default else f"  (default: {default})"))
        print(f"    {text}")
    for note in settings.notes:
        print(note, file=sys.stderr)
    for error in settings.errors:
        print(f"wrong: {error}", file=sys.stderr)
    return USAGE if settings.errors else FINE


def _config_install(arguments: argparse.Namespace) -> int:
    spec = find_spec("hubguard.config_d")
    assert spec is not None
    assert spec.origin is not None
    snippet = Path(spec.origin).with_name("hubguard.py")
    # Not hubguard.py: a hub that runs in that folder would take it for the package.
    target = Path(arguments.folder) / "50-hubguard.py"
    if not target.parent.is_dir():
        raise ConfigError(str(target.parent), "there is no such folder")
    if target.exists() and target.read_bytes() != snippet.read_bytes():
        raise ConfigError(str(target), "is there already, and differs. Nothing was written; remove it to get a new one")
    shutil.copyfile(snippet, target)
    print(f"{target} is in place. It takes effect when the hub restarts and its config includes it.")
    return FINE


def _db(arguments: argparse.Namespace) -> int:
    from hubguard.journal import migrate
    from hubguard.journal.store import open_journal

    url = _settings(arguments).guard.db_url
    if arguments.action == "upgrade":
        open_journal(url).close()
    found, newest = migrate.revisions(url)
    print(f"revision {found or 'none yet'}, newest {newest}")
    return FINE if found == newest else FINDINGS


def _seed(arguments: argparse.Namespace) -> int:
    from hubguard.staging.seed import seed

    if not arguments.hub_db_url:
        raise ConfigError(
            "--hub-db-url", "is needed: the database of a hub that hasn't started yet (or HUBGUARD_HUB_DB_URL)"
        )
    summary = seed(
        arguments.hub_db_url,
        users=arguments.users,
        running=arguments.running,
        groups=arguments.groups,
        named=arguments.named,
    )
    print(summary)
    return FINE


def _demo(arguments: argparse.Namespace) -> int:
    try:
        from hubguard.staging.demo import run_demo
    except ImportError as error:
        raise HubGuardError(f"The demo needs {error.name}: pip install 'hubguard[demo]'") from None

    return asyncio.run(run_demo(check=arguments.check))


# -- their arguments -----------------------------------------------------------------------------------------------------


def _idle_timeout(text: str) -> float:
    value = float(text)
    if not 0 < value <= times.YEAR_S:
        raise ValueError(text)
    return value


def _rate(text: str) -> float:
    value = float(text)
    if not 0.1 <= value <= 1000:
        raise ValueError(text)
    return value


def _width(text: str) -> int:
    value = int(text)
    if not 1 <= value <= 500:
        raise ValueError(text)
    return value


# argparse names a type in its message: "argument --rate: invalid number from 0.1 to 1000 value: '-1'".
_idle_timeout.__name__ = "number above 0 and up to a year"
_rate.__name__ = "number from 0.1 to 1000"
_width.__name__ = "count from 1 to 500"


def _parser() -> argparse.ArgumentParser:
    shared = argparse.ArgumentParser(add_help=False)
    shared.add_argument("--debug", action="store_true", help="log more")
    shared.add_argument(
        "--config",
        type=Path,
        default=os.environ.get("HUBGUARD_CONFIG") and Path(os.environ["HUBGUARD_CONFIG"]),
        metavar="FILE",
        help="a config file with c.HubGuard… lines; jupyterhub_config.py will do (default: $HUBGUARD_CONFIG)",
    )
    parser = argparse.ArgumentParser(prog="hubguard", description="Keeps a JupyterHub healthy.", epilog=__doc__)
    parser.add_argument("--version", action="version", version=f"hubguard {__version__}")
    commands = parser.add_subparsers(dest="command", required=True, metavar="COMMAND")

    def command(name: str, run: Any, text: str, group: Any = commands) -> argparse.ArgumentParser:
        made: argparse.ArgumentParser = group.add_parser(name, help=text, description=text, parents=[shared])
        made.set_defaults(run=run)
        return made

    serve = command("serve", _serve, "run the service: the guard, its pages and its API")
    serve.add_argument("--url", help="where the proxy reaches us (default: $JUPYTERHUB_SERVICE_URL)")
    # Set by the include alone: they tell a guard which hub's process runs it.
    serve.add_argument("--generation", type=float, default=0.0, help=argparse.SUPPRESS)
    serve.add_argument("--hub-pid", type=int, default=None, help=argparse.SUPPRESS)

    cull = command("cull", _cull, "stop the servers that are due, once, even when HubGuard only observes")
    cull.add_argument("--once", action="store_true", required=True, help="one cycle (the service does the others)")
    cull.add_argument("--dry-run", action="store_true", help="say what would be stopped, and stop nothing")
    cull.add_argument("--json", action="store_true", help="print the whole report as JSON")
    cull.add_argument("--timeout", type=_idle_timeout, metavar="S", help="idle timeout for this cycle, in seconds")
    cull.add_argument("--concurrency", type=_width, metavar="N", help="stop at most N at a time")
    cull.add_argument("--rate", type=_rate, metavar="PER_SECOND", help="at most so many requests per second")

    explain = command("explain", _explain, "say why a server is stopped or not, by what rule, since when, and when")
    explain.add_argument(
        "who", metavar="USER[/SERVER]", help="ada: her default server; a slash in a name is written %%2F"
    )
    explain.add_argument("--json", action="store_true", help="as the API gives it")

    _drift_arguments(command("drift", _drift, "show where hub, database, proxy and backends differ, and repair it"))

    add_prune_command(commands, _prune)
    _stance_commands(command)

    _keep_arguments(
        command("keep", _keep, "keep a server, or all of a user's, until a time; works with hub and proxy down")
    )

    journal = command("journal", _journal, "show what was done and decided, newest first")
    journal.add_argument("--limit", type=_count, default=50, metavar="N")
    journal.add_argument("--user", help="only what concerns this user")
    journal.add_argument("--json", action="store_true", help="one JSON object a line")

    doctor = command("doctor", _doctor, "check hub, scopes, proxy, database and other cullers; say what to do")
    doctor.add_argument("--json", action="store_true")

    settings = commands.add_parser("config", help="check, show or install the config").add_subparsers(
        dest="action", required=True, metavar="ACTION"
    )
    check = command("check", _config_check, "say what is wrong with a config file before it is deployed", settings)
    check.add_argument("file", type=Path, help="jupyterhub_config.py, or a file of HubGuard's own")
    command("show", _config_show, "every setting with its value, default and meaning", settings)
    install = command("install", _config_install, "put the include into a config folder", settings)
    install.add_argument("folder", help="for instance /opt/tljh/config/jupyterhub_config.d")

    database = command("db", _db, "show or upgrade the revision of HubGuard's own database")
    database.add_argument("action", choices=["status", "upgrade"])

    seed = command("seed", _seed, "fill a hub's database with made-up users and servers, before that hub first starts")
    seed.add_argument("--hub-db-url", "--hub-db", default=os.environ.get("HUBGUARD_HUB_DB_URL"), metavar="URL")
    seed.add_argument("--users", type=_count_or_0, default=100, metavar="N")
    seed.add_argument(
        "--running", type=_count_or_0, default=10, metavar="M", help="how many of them have a server running"
    )
    seed.add_argument("--groups", type=_count_or_0, default=0, metavar="N")
    seed.add_argument("--named", type=_count_or_0, default=0, metavar="N", help="how many of those are named servers")

    demo = command("demo", _demo, "a real hub with a few dozen little servers, guarded by HubGuard")
    demo.add_argument("--check", action="store_true", help="watch it work, print what was seen, exit 0 or 1")
    return parser


def _stance_commands(command: Callable[..., argparse.ArgumentParser]) -> None:
    for name, text in (
        ("arm", "let HubGuard act by itself"),
        ("observe", "let HubGuard only observe"),
        ("hold", "nothing more is sent, whoever asks, until resumed; works with hub and proxy down"),
        ("resume", "end a hold; what HubGuard itself holds back for is accepted, where a person may accept it"),
    ):
        command(name, _stance, text).add_argument("why", nargs="?", default="", help="a reason, for the journal")
