"""The ``hubguard`` command: its table of commands, and those that belong to no feature."""

from __future__ import annotations

import argparse
import asyncio
import json
import logging
import os
import shutil
import sys
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import replace
from datetime import datetime, timezone
from importlib import import_module
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING

from hubguard import __version__
from hubguard.console import Configured, Context, Exit, add_config, add_json, count
from hubguard.errors import ConfigError, HubGuardError
from hubguard.logs import for_terminals, tidy
from hubguard.model import ARMING_COVERS, NEEDS_NO_ARMING

if TYPE_CHECKING:
    from traitlets.config import Config

    from hubguard.config import Settings
    from hubguard.cull.model import CycleReport, Wish
    from hubguard.journal.model import Stance
    from hubguard.place import Place


EXIT_CODES = "Exit codes: 0 fine, 1 failed, 2 wrong usage, 3 on hold or braked, 4 findings exist."


def main(argv: Sequence[str] | None = None) -> int:
    """Run one command; its exit code. An error is one line on stderr, never a traceback."""
    words = sys.argv[1:] if argv is None else argv
    parser = make_parser(words)
    arguments, rest = parser.parse_known_args(words)
    # argparse drops a last word that stands behind an option: `keep ada --for 7d "an exam"`.
    if getattr(arguments, "why_last", False) and not arguments.why and len(rest) == 1 and not rest[0].startswith("-"):
        arguments.why = rest[0]
    elif rest:
        parser.error(f"unrecognized arguments: {' '.join(rest)}")
    logging.basicConfig(
        level=logging.DEBUG if arguments.debug else logging.INFO if arguments.command == "serve" else logging.WARNING,
        format="[%(levelname).1s %(asctime)s hubguard] %(message)s",
    )
    tidy(*logging.getLogger().handlers)
    if not arguments.debug:
        logging.getLogger("alembic").setLevel(logging.WARNING)
    try:
        return int(arguments.run(arguments, _context(arguments)))
    except ConfigError as error:
        return _fail(error, Exit.USAGE)
    except HubGuardError as error:
        return _fail(error, Exit.FAILED)
    except KeyboardInterrupt:
        return 130
    except BrokenPipeError:
        # The reader (head, less) has seen enough. Nothing more may be written, at interpreter exit either.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return Exit.FINE


def _fail(error: HubGuardError, code: Exit) -> Exit:
    print(for_terminals(f"hubguard: {error}"), file=sys.stderr)
    if error.detail:
        print(for_terminals(error.detail), file=sys.stderr)
    return code


# -- the table of commands ------------------------------------------------------------------------------------------------


def make_parser(words: Sequence[str]) -> argparse.ArgumentParser:
    """The parser for these words: every command by name, and the options of the one that is called.

    So `hubguard --help` imports none of what the commands need.
    """
    parser = argparse.ArgumentParser(prog="hubguard", description="Keeps a JupyterHub healthy.", epilog=EXIT_CODES)
    parser.add_argument("--version", action="version", version=f"hubguard {__version__}")
    commands = parser.add_subparsers(dest="command", required=True, metavar="COMMAND")
    called = next((word for word in words if not word.startswith("-")), "")
    for name, (add, text) in COMMANDS.items():
        command = commands.add_parser(name, help=text, description=text)
        if name == called:
            (import_module(add).ARGUMENTS[name] if isinstance(add, str) else add)(command)
            if not any(isinstance(action, argparse._SubParsersAction) for action in command._actions):
                add_config(command)
    return parser


def _context(arguments: argparse.Namespace) -> Context:
    def read() -> Configured:
        return _configured(_files(arguments))

    async def cycle_alone(place: Place, actor: str, wish: Wish, /) -> CycleReport:
        from hubguard import app

        return await app.cycle_once(_settings(_files(arguments)), place, actor, wish)

    return Context(read, os.environ, sys.stdin.isatty(), cycle_alone)


def _files(arguments: argparse.Namespace) -> list[Path]:
    """The config files that were given, else the one of the environment."""
    return [Path(name) for name in arguments.config or [os.environ.get("HUBGUARD_CONFIG", "")] if name]


def _layers(path: Path, read: Config) -> Iterator[tuple[str, Mapping[str, Mapping[str, object]]]]:
    """What the config file ``path``, which was ``read``, puts in force: (where from, section → name → value), in order.

    A hub's config with the include also brings what is taken over from an idle culler.
    """
    from hubguard import config
    from hubguard.inhub.foresee import Foreseen, foresee
    from hubguard.inhub.handover import Handover

    try:
        foreseen = foresee(read) if "JupyterHub" in read else Foreseen(Handover())
    except ConfigError as error:
        print(f"Whether an idle culler is replaced is unknown: {error}", file=sys.stderr)
        foreseen = Foreseen(Handover())
    if foreseen.handover.replaced:
        yield f"taken over from {foreseen.handover.name}", foreseen.handover.settings
    if foreseen.activity_interval_s is not None:
        given = {"hub_activity_interval_s": foreseen.activity_interval_s}
        yield f"JupyterHub.last_activity_interval in {path}", {"HubGuardCull": given}
    yield str(path), config.sections_of(read)


def _settings(files: Sequence[Path]) -> Settings:
    from hubguard import config

    return config.load(*(values for path in files for _, values in _layers(path, config.read_file(path))))


def _configured(files: Sequence[Path]) -> Configured:
    from hubguard import config

    configs = tuple(map(config.read_file, files))
    layers = (layer for path, read in zip(files, configs, strict=True) for layer in _layers(path, read))
    settings = config.load(*(values for _, values in layers))
    return Configured(
        settings.guard, {type(section): section for section in settings.sections}, settings.errors, configs
    )


# -- running, checking ----------------------------------------------------------------------------------------------------


def _add_serve(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--url", help="where the proxy reaches HubGuard (default: $JUPYTERHUB_SERVICE_URL)")
    # Set by the include alone: they say which hub's process runs the guard.
    parser.add_argument("--generation", type=float, default=0.0, help=argparse.SUPPRESS)
    parser.add_argument("--hub-pid", type=int, default=None, help=argparse.SUPPRESS)
    parser.set_defaults(run=_serve)


def _serve(arguments: argparse.Namespace, context: Context) -> int:
    from hubguard import app

    try:
        place = context.place
    except ConfigError as error:
        if arguments.hub_pid is None:
            raise
        # The hub would start a process that ends again and again.
        return asyncio.run(app.stand_still(error, arguments.hub_pid))
    place = replace(
        place,
        url=arguments.url or context.environ.get("JUPYTERHUB_SERVICE_URL", ""),
        generation=arguments.generation,
        hub_pid=arguments.hub_pid,
    )
    files = _files(arguments)
    if len(files) > 1:
        raise ConfigError("--config", "the service reads one file. Put all settings in it")
    return asyncio.run(app.serve(place, files[0] if files else None))


def _add_doctor(parser: argparse.ArgumentParser) -> None:
    add_json(parser, "print JSON")
    parser.set_defaults(run=_doctor)


def _doctor(arguments: argparse.Namespace, context: Context) -> int:
    from hubguard import doctor

    checks = asyncio.run(doctor.examine(_settings(_files(arguments)), context.environ))
    context.say(
        json.dumps([doctor.as_json(check) for check in checks], indent=2) if arguments.json else doctor.as_text(checks)
    )
    return Exit.FAILED if any(check.finding is doctor.Finding.WRONG for check in checks) else Exit.FINE


def _add_config(parser: argparse.ArgumentParser) -> None:
    actions = parser.add_subparsers(dest="action", required=True, metavar="ACTION")

    def action(name: str, run: Callable[[argparse.Namespace, Context], int], text: str) -> argparse.ArgumentParser:
        made: argparse.ArgumentParser = actions.add_parser(name, help=text, description=text)
        add_config(made)
        made.set_defaults(run=run)
        return made

    check = action("check", _config_check, "check a config file before you deploy it")
    check.add_argument("file", type=Path, help="jupyterhub_config.py, or a config file of HubGuard's own")
    action("show", _config_show, "print every setting with its value, default and meaning")
    install = action("install", _config_install, "copy the include into a config folder")
    install.add_argument("folder", help="for example /opt/tljh/config/jupyterhub_config.d")


def _config_check(arguments: argparse.Namespace, context: Context) -> int:
    from hubguard import doctor

    checks = doctor.examine_config(arguments.file)
    context.say(doctor.as_text(checks))
    return Exit.FAILED if any(check.finding is doctor.Finding.WRONG for check in checks) else Exit.FINE


def _config_show(arguments: argparse.Namespace, context: Context) -> int:
    from hubguard import config
    from hubguard.journal.database import without_password

    layers = [layer for path in _files(arguments) for layer in _layers(path, config.read_file(path))]
    settings = config.load(*(values for _, values in layers))
    given_by = {
        f"{section}.{trait}": source
        for source, sections in layers
        for section, values in sections.items()
        for trait in values
    }
    sections = {type(section).__name__: section for section in settings.sections}
    for name, default, text in config.settings_table():
        section, trait = name.split(".")
        value = getattr(sections[section], trait)
        shown = repr(without_password(value) if name == "HubGuard.db_url" else value)
        source = given_by.get(name) or ("" if shown == default else "the environment")
        context.say(f"{name} = {shown}" + (f"  ({source}; default: {default})" if source else ""))
        context.say(f"    {text}")
    for note in settings.notes:
        print(note, file=sys.stderr)
    for error in settings.errors:
        print(f"wrong: {error}", file=sys.stderr)
    return Exit.USAGE if settings.errors else Exit.FINE


def _config_install(arguments: argparse.Namespace, context: Context) -> int:
    spec = find_spec("hubguard.config_d")
    assert spec is not None
    assert spec.origin is not None
    snippet = Path(spec.origin).with_name("hubguard.py")
    # Not hubguard.py: a hub that runs in that folder would take it for the package.
    target = Path(arguments.folder) / "50-hubguard.py"
    folder = target.parent
    try:
        there = folder.exists()
        folder.mkdir(parents=True, exist_ok=True)
        if target.exists() and target.read_bytes() != snippet.read_bytes():
            raise ConfigError(
                str(target), "exists already, and differs. Nothing was written. Remove it, then install again"
            )
        shutil.copyfile(snippet, target)
    except OSError as error:
        raise ConfigError(str(error.filename or target), f"can't be written: {error.strerror}") from None
    context.say(
        f"Installed {target}{'' if there else ', in a new folder'}. It takes effect when the hub restarts, if the hub's"
        " config includes that folder or loads that file."
    )
    return Exit.FINE


# -- the journal ----------------------------------------------------------------------------------------------------------


def _add_stance(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("why", nargs="?", default="", metavar="WHY", help="reason, for the journal")
    parser.epilog = f"{ARMING_COVERS} {NEEDS_NO_ARMING}"
    parser.set_defaults(run=_stance)


def _stance(arguments: argparse.Namespace, context: Context) -> int:
    """arm, observe, hold and resume go straight into the journal, so that they work with hub, proxy and guard down."""
    from hubguard.journal.store import Journal, open_journal

    change = {"arm": Journal.arm, "observe": Journal.observe, "hold": Journal.hold, "resume": Journal.resume}
    journal = open_journal(context.journal)
    try:
        stance = change[arguments.command](journal, context.actor, arguments.why, datetime.now(timezone.utc))
    finally:
        journal.close()
    if stance.held:
        # Armed or not, nothing is sent.
        context.say(f"{stance.sentence} Nothing is sent until someone resumes.")
    else:
        context.say(f"not on hold, {_armed_words(stance, context.configured.guard.armed)}")
    if arguments.command == "resume":
        context.say("HubGuard also accepts what braked it, if a person may accept that (see the Overview).")
    return Exit.FINE


def _armed_words(stance: Stance, by_config: bool | None) -> str:
    """Whether HubGuard acts by itself, as far as this command knows: the guard may read another config."""
    if by_config is not None:
        return f"{'armed' if by_config else 'observing only'} by HubGuard.armed = {by_config} in the config"
    return f"{'armed' if stance.armed else 'observing only'} (HubGuard.armed in the guard's config takes precedence)"


def _add_journal(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "--limit", type=count(1), default=50, metavar="N", help="maximum number of entries (default: 50)"
    )
    parser.add_argument("--user", help="only entries about this user")
    parser.add_argument("--plan", help="only entries of the plan to delete users with this digest, or this beginning")
    add_json(parser, "print one JSON object a line")
    parser.set_defaults(run=_journal)


def _journal(arguments: argparse.Namespace, context: Context) -> int:
    from hubguard.hub.names import nearest, spellings
    from hubguard.journal import words
    from hubguard.journal.store import open_journal
    from hubguard.snapshot.store import ActivityStore

    journal = open_journal(context.journal)
    try:
        users = spellings(arguments.user) if arguments.user else (None,)
        by_user = (journal.entries(limit=arguments.limit, user=user, plan=arguments.plan or None) for user in users)
        entries = next((entries for entries in by_user if entries), ())
        near = () if entries else nearest(arguments.user or "", {name for name, _ in ActivityStore(journal).activity()})
    finally:
        journal.close()
    for entry in entries:
        context.say(json.dumps(words.entry_json(entry)) if arguments.json else words.entry_text(entry))
    if arguments.user and not entries:
        hint = f" Did you mean {' or '.join(near)}?" if near else ""
        print(for_terminals(f"The journal has no such entry about {arguments.user}.{hint}"), file=sys.stderr)
    return Exit.FINE


def _add_db(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("action", choices=["status", "upgrade"], metavar="ACTION", help="status or upgrade")
    parser.set_defaults(run=_db)


def _db(arguments: argparse.Namespace, context: Context) -> int:
    from hubguard.journal import migrate
    from hubguard.journal.store import open_journal

    url = context.configured.guard.db_url
    if arguments.action == "upgrade":
        open_journal(url).close()
    revision, newest = migrate.revisions(url)
    context.say(f"revision {revision or 'none yet'}, newest {newest}")
    return Exit.FINE if revision == newest else Exit.FINDINGS


# -- test beds ------------------------------------------------------------------------------------------------------------


def _add_seed(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--hub-db-url", "--hub-db", default=os.environ.get("HUBGUARD_HUB_DB_URL"), metavar="URL")
    parser.add_argument("--users", type=count(), default=100, metavar="N")
    parser.add_argument("--running", type=count(), default=10, metavar="M", help="number of them with a running server")
    parser.add_argument("--groups", type=count(), default=0, metavar="N")
    parser.add_argument("--named", type=count(), default=0, metavar="N", help="number of those that are named servers")
    parser.set_defaults(run=_seed)


def _seed(arguments: argparse.Namespace, context: Context) -> int:
    from hubguard.staging.seed import seed

    if not arguments.hub_db_url:
        raise ConfigError(
            "--hub-db-url", "is required: the database of a hub that hasn't started yet (or set HUBGUARD_HUB_DB_URL)"
        )
    summary = seed(
        arguments.hub_db_url,
        users=arguments.users,
        running=arguments.running,
        groups=arguments.groups,
        named=arguments.named,
    )
    context.say(str(summary))
    return Exit.FINE


def _add_demo(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--check", action="store_true", help="watch it work, print what was seen, and exit 0 or 1")
    parser.add_argument("--port", type=count(1), metavar="PORT", help="port of the hub's pages (default: a free one)")
    parser.set_defaults(run=_demo)


def _demo(arguments: argparse.Namespace, context: Context) -> int:
    try:
        from hubguard.staging.demo import run_demo
    except ImportError as error:
        raise HubGuardError(
            f"Demo not started: it needs {error.name}. Install it: pip install 'hubguard[demo]'"
        ) from None

    return asyncio.run(run_demo(check=arguments.check, port=arguments.port))


CULL, DRIFT, PRUNE, WATCH = "hubguard.cull.cli", "hubguard.drift.cli", "hubguard.prune.parser", "hubguard.watch.cli"

COMMANDS: Mapping[str, tuple[str | Callable[[argparse.ArgumentParser], None], str]] = {
    "serve": (_add_serve, "run the service: the guard, its pages and its API"),
    "cull": (CULL, "stop the servers that are due, once, even when HubGuard only observes"),
    "explain": (CULL, "explain why a server is stopped or kept: by which rule, since when, and when"),
    "drift": (DRIFT, "show where hub, database, proxy and backends disagree, and repair it"),
    "prune": (PRUNE, "delete stale users by a plan that people review first, and restore them"),
    "alerts": (WATCH, "show what is wrong now, and what raises an alert"),
    "report": (WATCH, "write the report of an incident or of a span of time, in Markdown"),
    "arm": (_add_stance, "let HubGuard act by itself"),
    "observe": (_add_stance, "let HubGuard only observe"),
    "hold": (_add_stance, "stop all acting, whoever asks for it, until you resume; works with hub and proxy down"),
    "resume": (_add_stance, "end a hold, and accept what braked HubGuard if a person may accept it"),
    "keep": (CULL, "keep a server, or all of a user's servers, until a time; works with hub and proxy down"),
    "journal": (_add_journal, "print what was done and decided, newest first"),
    "doctor": (_add_doctor, "check hub, scopes, proxy, database and other cullers, and say what to do"),
    "config": (_add_config, "check, show or install the config"),
    "db": (_add_db, "show or upgrade the revision of HubGuard's own database"),
    "seed": (_add_seed, "fill the database of a new hub with made-up users and servers"),
    "demo": (
        _add_demo,
        "start a real hub with a few dozen small servers, some of them in trouble, guarded by HubGuard",
    ),
}
