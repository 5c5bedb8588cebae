"""``hubguard prune … --offline``: straight in the database of a hub that isn't running, without a guard."""

from __future__ import annotations

import argparse
import getpass
import json
import shlex
from collections.abc import Callable, Mapping, Sequence
from contextlib import closing
from dataclasses import dataclass, replace
from datetime import datetime, timezone
from pathlib import Path
from types import SimpleNamespace
from typing import Any
from urllib.parse import urlsplit

from traitlets.config import Config

from hubguard import words
from hubguard.config import Settings
from hubguard.errors import ConfigError, HubGuardError, JournalError
from hubguard.inhub.named_users import named_users
from hubguard.inhub.spawner_settings import setting
from hubguard.journal.database import Database
from hubguard.journal.model import Event, Exemption
from hubguard.journal.store import open_journal
from hubguard.prune import undo_file
from hubguard.prune.confirm import (
    FAILED,
    FINE,
    HELD,
    Progress,
    Say,
    acknowledge,
    confirmed,
    criteria_of,
    hub_db_words,
    plan_in,
    rows_text,
    show_plan,
    to_people,
    typed_count,
    with_hub_db,
)
from hubguard.prune.decide import risks, stale
from hubguard.prune.model import Caution, Protection, StaleCriteria, Use
from hubguard.prune.offline.apply import Applied, apply_offline
from hubguard.prune.offline.in_use import HUB_NOT_ASKED, PROCESSES_NOT_SEEN, cautions
from hubguard.prune.offline.plan import plan_offline
from hubguard.prune.offline.restore import Restored, restore_offline
from hubguard.prune.store import PruneStore

UNDO_FILE = "undo-file "
"""Under this and the file's name the journal keeps the checksum of an undo file that was written offline."""


@dataclass(frozen=True, slots=True)
class Told:
    """What HubGuard's own journal tells. ``url`` None: it can't be opened, and nothing is known, nor written down.

    ``held_by`` is who has put acting on hold, None: nobody has.
    """

    url: str | None
    exemptions: tuple[Exemption, ...] = ()
    uses: Mapping[str, Use] | None = None
    held_by: str | None = None


def run(
    arguments: argparse.Namespace,
    settings: Settings,
    configs: Sequence[Config],
    *,
    actor: str,
    say: Say,
    asks: bool,
    environ: Mapping[str, str],
) -> int:
    """One command; its exit code. ``configs`` are what the config files set. Raises ConfigError, HubGuardError."""
    if settings.errors:
        raise settings.errors[0]
    if not arguments.hub_db:
        raise ConfigError("--hub-db", "is needed: the hub's database (or HUBGUARD_HUB_DB_URL). Nothing was done")
    told = _of_the_journal(settings)
    if arguments.action == "plan":
        return _plan(arguments, settings, configs, told, actor, say)
    if told.held_by is not None and not arguments.dry_run:
        to_people(f"{told.held_by} has put acting on hold. `hubguard resume` ends that. Nothing was done.")
        return HELD
    hub_at = {"hub_api_url": environ.get("JUPYTERHUB_API_URL") or None, "also_at": _answers_at(configs)}
    if arguments.action == "apply":
        return _apply(arguments, settings, configs, told, actor, say, asks, hub_at)
    return _restore(arguments, told, actor, say, asks, hub_at)


def _plan(
    arguments: argparse.Namespace,
    settings: Settings,
    configs: Sequence[Config],
    told: Told,
    actor: str,
    say: Say,
) -> int:
    plan = plan_offline(
        arguments.hub_db,
        Path.cwd(),
        _criteria(arguments, settings),
        _protection(settings, configs),
        now=_now(),
        made_by=actor,
        life_s=settings.prune.plan_life_s,
        cap=None,
        storage=risks.OFFLINE_STORAGE,
        exemptions=told.exemptions,
        uses=told.uses,
        journal_known=told.url is not None,
        housekeeping=arguments.housekeeping,
    )
    show_plan(arguments, plan, say)
    return FINE


def _apply(
    arguments: argparse.Namespace,
    settings: Settings,
    configs: Sequence[Config],
    told: Told,
    actor: str,
    say: Say,
    asks: bool,
    hub_at: Mapping[str, Any],
) -> int:
    plan = plan_in(Path(arguments.plan))
    protection = _protection(settings, configs)
    unknown = {caution.name for caution in plan.cautions}
    # Else the second look would look at less than the first.
    if risks.JOURNAL not in unknown and told.url is None:
        raise ConfigError(
            "HUBGUARD_DB_URL",
            "HubGuard's own journal is needed: the plan was made with it, and keeps whom somebody asked to keep. Run this"
            " where it was planned, or name the journal. Nothing was done",
        )
    if risks.USERS_IN_CONFIG not in unknown and protection.in_config is None:
        raise ConfigError(
            "--config", "is needed: the plan was made with the hub's config, and goes by it. Nothing was done"
        )
    unseen = _unseen(arguments, hub_at)
    every = replace(plan, cautions=(*plan.cautions, *unseen))
    if arguments.dry_run:
        count = len(plan.deletions) if arguments.count is None else arguments.count
        acknowledged = [caution.name for caution in every.cautions]
    else:
        count, acknowledged = confirmed(every, arguments, asks=asks)
    digest, many = plan.digest[:12], words.count(len(plan.deletions), "user")
    note = _noting(told, actor, arguments)
    note(f"An offline plan ({digest}) to delete {many} from {plan.database} is carried out")
    progress = Progress()
    try:
        applied = apply_offline(
            arguments.hub_db,
            Path.cwd(),
            plan,
            count=count,
            acknowledged=acknowledged,
            protection=protection,
            undo_folder=arguments.undo_folder or Path(settings.prune.undo_folder or "hubguard-undo"),
            now=_now,
            actor=actor,
            **hub_at,
            exemptions=told.exemptions,
            uses=told.uses,
            dry_run=arguments.dry_run,
            progress=progress.show,
        )
    except HubGuardError as error:
        note(f"The offline plan {digest} was not carried out: {error}")
        raise
    finally:
        progress.end()
    say(
        json.dumps(words.as_json(applied), indent=2, default=str)
        if arguments.json
        else _applied_text(applied, arguments.hub_db)
    )
    if told.url is not None and applied.undo_file is not None and not arguments.dry_run:
        with closing(open_journal(told.url)) as journal:
            journal.remember(UNDO_FILE + Path(applied.undo_file).name, {"sha256": applied.undo_sha256}, _now())
    note(
        f"The offline plan {digest}: {len(applied.deleted):,} deleted, {len(applied.skipped):,} kept, undo file"
        f" {applied.undo_file} (SHA-256 {applied.undo_sha256})"
    )
    return FINE


def _restore(
    arguments: argparse.Namespace, told: Told, actor: str, say: Say, asks: bool, hub_at: Mapping[str, Any]
) -> int:
    path = Path(arguments.undo)
    if not path.exists():
        raise ConfigError("FILE", f"there is no {path}. Nothing was done")
    sha256 = _noted_sha256(told, path)
    head, users = undo_file.read(path, sha256=sha256)
    there = sum(1 for user in users if user.name)
    if not arguments.json:
        whose, when = head.database or "a hub", f"{head.made_at:%Y-%m-%d %H:%M} UTC"
        say(f"{path} has {words.count(there, 'user')} of {whose}, from {when}.")
    unseen = (*_unseen(arguments, hub_at), *([risks.JOURNAL_UNKNOWN] if told.url is None else []))
    acknowledged = [caution.name for caution in unseen]
    if not arguments.dry_run:
        acknowledged = acknowledge(unseen, arguments.acknowledge, asks=asks)
        typed_count(there, arguments.count, asks=asks, what="users to bring back")
    note = _noting(told, actor, arguments)
    note(f"The users of the undo file {path} are brought back offline")
    progress = Progress()
    try:
        restored = restore_offline(
            arguments.hub_db,
            Path.cwd(),
            path,
            with_tokens=arguments.with_tokens,
            sha256=sha256,
            from_other_database=arguments.from_other_database,
            now=_now,
            **hub_at,
            acknowledged=acknowledged,
            dry_run=arguments.dry_run,
            progress=progress.show,
        )
    except HubGuardError as error:
        note(f"The users of the undo file {path} were not brought back: {error}")
        raise
    finally:
        progress.end()
    say(json.dumps(words.as_json(restored), indent=2, default=str) if arguments.json else _restored_text(restored))
    note(f"From the undo file {path}: {len(restored.restored):,} brought back, {len(restored.skipped):,} not")
    return FINE if not restored.skipped else FAILED


# -- what they go by ------------------------------------------------------------------------------------------------------


def _criteria(arguments: argparse.Namespace, settings: Settings) -> StaleCriteria:
    default = settings.prune
    asked: dict[str, Any] = {
        "inactive_for_s": default.inactive_for_s,
        "never_active_for_s": default.never_active_for_s,
        "groups": default.groups,
        "roles": default.roles,
        "names": default.names,
        **criteria_of(arguments),
    }
    return stale.checked(StaleCriteria(**asked))


def _protection(settings: Settings, configs: Sequence[Config]) -> Protection:
    return Protection(
        groups=tuple(settings.prune.protected_groups),
        roles=tuple(settings.prune.protected_roles),
        names=tuple(settings.prune.protected_names),
        in_config=_named(configs),
        token_used_within_s=settings.prune.token_used_within_s,
        callers=_caller(),
    )


def _caller() -> tuple[str, ...]:
    """Who runs the command, should they be a user of the hub by that name."""
    try:
        return (getpass.getuser(),)
    except (KeyError, OSError):
        return ()


def _named(configs: Sequence[Config]) -> frozenset[str] | None:
    """The users that the hub's config names; None where none of ``configs`` is the hub's, or it can't be told."""
    hub = _hub_of(configs)
    if hub is None:
        return None
    try:
        # Not made by calling it: some authenticators open databases of their own then.
        authenticator = hub.authenticator_class.__new__(hub.authenticator_class)
        for name in ("username_map", "manage_roles"):
            if (value := setting(hub.config, hub.authenticator_class, name)) is not None:
                setattr(authenticator, name, value)
        names = named_users(
            SimpleNamespace(
                config=hub.config,
                authenticator=authenticator,
                admin_users=hub.admin_users,
                api_tokens=hub.api_tokens,
                load_groups=hub.load_groups,
                load_roles=hub.load_roles,
            )
        )
    except Exception:  # whatever a site's own classes raise: then it can't be told
        return None
    return None if names is None else frozenset(names)


def _unseen(arguments: argparse.Namespace, hub_at: Mapping[str, Any]) -> tuple[Caution, ...]:
    """What can't be seen of who uses the database. Of what can, nothing is left in ``arguments.acknowledge``.

    So a script may name these whether or not it runs as root today.
    """
    unseen = cautions(arguments.hub_db, Path.cwd(), **hub_at)
    needless = {HUB_NOT_ASKED.name, PROCESSES_NOT_SEEN} - {caution.name for caution in unseen}
    arguments.acknowledge = [name for name in arguments.acknowledge if name not in needless]
    return unseen


def _answers_at(configs: Sequence[Config]) -> tuple[str, ...]:
    """Where the hub's own API answers, as its config says; empty: none of ``configs`` is the hub's, or it can't be told."""
    hub = _hub_of(configs)
    if hub is None:
        return ()
    addresses = [hub.hub_bind_url or f"http://{hub.hub_ip}:{hub.hub_port}"]
    if hub.hub_connect_url:
        addresses.append(hub.hub_connect_url)
    elif hub.hub_connect_ip:
        addresses.append(f"http://{hub.hub_connect_ip}:{hub.hub_port}")
    found = []
    for address in addresses:
        parts = urlsplit(address)
        # All addresses of this machine are meant where it listens on all.
        host = parts.hostname if parts.hostname not in (None, "", "*", "0.0.0.0", "::") else "127.0.0.1"  # noqa: S104
        if parts.scheme in ("http", "https"):
            host = f"[{host}]" if ":" in str(host) else host
            port = "" if parts.port is None else f":{parts.port}"
            found.append(f"{parts.scheme}://{host}{port}{hub.hub_prefix}api")
    return tuple(found)


def _hub_of(configs: Sequence[Config]) -> Any:
    """A hub (JupyterHub's own application) with that config, which isn't started; None where none is the hub's."""
    merged = Config()
    for one in configs:
        merged.merge(one)
    if "JupyterHub" not in merged:
        return None
    # Only where it is needed: it takes a second.
    from jupyterhub.app import JupyterHub

    try:
        return JupyterHub(config=merged)
    except Exception:  # whatever a site's own classes raise: then it can't be told
        return None


def _of_the_journal(settings: Settings) -> Told:
    """Exemptions, activity, stops and hold, as the journal has them; where it can't be opened, people are told.

    It is closed again: where it is in the hub's own database, a connection to it would look like somebody's who uses that.
    """
    url = settings.guard.db_url
    try:
        database = Database(url)
        if database.missing:
            raise JournalError(f"There is no {database.file}.")
        with closing(open_journal(url)) as journal:
            stance = journal.stance()
            held_by = (stance.held_by or "Somebody") if stance.held else None
            return Told(url, journal.exemptions(_now()), PruneStore(journal).uses(), held_by)
    except HubGuardError as error:
        to_people(
            "HubGuard's own journal can't be opened, so that exemptions and the use it has seen aren't known, and nothing is"
            f" written down there: {error}"
        )
        return Told(None)


def _noted_sha256(told: Told, path: Path) -> str | None:
    """The checksum that HubGuard's journal has for that undo file, None: it has none, or isn't known. Raises JournalError."""
    if told.url is None:
        return None
    with closing(open_journal(told.url)) as journal:
        for run in PruneStore(journal).prune_runs():
            if run.undo_file is not None and Path(run.undo_file).name == path.name:
                return run.undo_sha256
        noted = journal.recall(UNDO_FILE + path.name)
        return str(noted[0]["sha256"]) if noted is not None and "sha256" in noted[0] else None


def _noting(told: Told, actor: str, arguments: argparse.Namespace) -> Callable[[str], None]:
    """What writes a line into the journal, where there is one and this is no dry run. Raises JournalError."""

    def note(text: str) -> None:
        if told.url is None or arguments.dry_run:
            return
        why = f": {arguments.why}" if arguments.why else ""
        with closing(open_journal(told.url)) as journal:
            journal.note(Event.NOTE, actor, 0, _now(), f"{text}{why}")

    return note


def _now() -> datetime:
    return datetime.now(timezone.utc)


# -- what people read -----------------------------------------------------------------------------------------------------


def _applied_text(applied: Applied, hub_db: str) -> str:
    would = "would be " if applied.dry_run else ""
    lines = [f"{words.count(len(applied.deleted), 'user')} {would}deleted, {len(applied.skipped):,} kept."]
    if applied.dry_run and applied.deleted:
        lines.append(f"These: {', '.join(applied.deleted)}")
    lines += [f"  {name}: {why}" for name, why in applied.skipped]
    lines += rows_text(applied.rows)
    lines += [f"Copy of the database: {applied.backup}"] if applied.backup else []
    if applied.undo_file:
        lines += [f"Undo file: {applied.undo_file}", f"  SHA-256 {applied.undo_sha256}"]
        command = ["hubguard", "prune", "restore", "--offline", *hub_db_words(hub_db), str(applied.undo_file)]
        lines.append(f"To bring them back{with_hub_db(hub_db)}:\n\n    {shlex.join(command)}\n")
    return "\n".join([*lines, *applied.notes])


def _restored_text(restored: Restored) -> str:
    would = "would be " if restored.dry_run else ""
    lines = [f"{words.count(len(restored.restored), 'user')} {would}brought back, {len(restored.skipped):,} not."]
    lines += [f"  {name}: {why}" for name, why in restored.skipped]
    return "\n".join([*lines, *rows_text(restored.rows), *restored.notes])
