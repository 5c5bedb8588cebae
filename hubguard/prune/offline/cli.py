"""The commands of pruning with `--offline`: straight in the database of a hub that isn't running, without a guard."""

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
from typing import Any, Generic, TypeVar
from urllib.parse import urlsplit

from traitlets.config import Config

from hubguard import words
from hubguard.console import Context, Exit
from hubguard.errors import ConfigError, HubGuardError, JournalError
from hubguard.hub.names import spellings
from hubguard.inhub.named_users import named_users
from hubguard.inhub.spawner_settings import setting
from hubguard.journal.database import Database
from hubguard.journal.model import Event, Exemption
from hubguard.journal.store import open_journal
from hubguard.prune import undo_file
from hubguard.prune import words as prune_words
from hubguard.prune.confirm import (
    Progress,
    acknowledge,
    acknowledging,
    config_words,
    confirmed,
    criteria_of,
    hub_db_words,
    plan_in,
    rows_text,
    show_plan,
    to_people,
    typed_count,
    with_hub_db,
    write_file,
)
from hubguard.prune.decide import risks, stale
from hubguard.prune.model import Caution, Protection, PruneVerdict, StaleCriteria, Use
from hubguard.prune.offline.apply import Applied, apply_offline
from hubguard.prune.offline.in_use import HUB_NOT_ASKED, PROCESSES_NOT_SEEN, cautions
from hubguard.prune.offline.plan import plan_offline
from hubguard.prune.offline.restore import Restored, restore_offline
from hubguard.prune.settings import HubGuardPrune
from hubguard.prune.store import PruneStore

T = TypeVar("T", Applied, Restored)

PLANS_LISTED = 1000
"""Maximum plans, newest first, whose undo files are known."""

UNDO_FILE = "undo-file "
"""Under this and the file's name the journal keeps the checksum of an undo file that was written offline."""


UNDO_FILE_UNKNOWN = Caution(
    "undo-file-unknown",
    "HubGuard's journal doesn't know this undo file, so it can't tell whether somebody changed it. A changed file may give"
    " users roles, groups and tokens that they never had.",
)


@dataclass(frozen=True, slots=True)
class JournalFacts:
    """What HubGuard's own journal holds. ``url`` None: it can't be opened, so nothing is known or recorded.

    ``held`` says who has put acting on hold, and why; "" if nobody has.
    """

    url: str | None
    exemptions: tuple[Exemption, ...] = ()
    uses: Mapping[str, Use] | None = None
    held: str = ""


@dataclass(frozen=True, slots=True)
class Change(Generic[T]):
    """A change of the hub's database: how it is made, and what is recorded before it, after it and if it fails."""

    intent: str
    failure: str
    make: Callable[[Mapping[str, Any]], T]
    text: Callable[[T], str]
    summary: Callable[[T], str]


def run(arguments: argparse.Namespace, context: Context) -> int:
    """One command; its exit code. Raises ConfigError, HubGuardError."""
    context.check()
    if not arguments.hub_db:
        raise ConfigError("--hub-db", "is required: the hub's database (or set HUBGUARD_HUB_DB_URL). Nothing was done")
    facts = _journal_facts(context)
    hub_at = {
        "hub_api_url": context.environ.get("JUPYTERHUB_API_URL") or None,
        "also_at": _answers_at(context.configured.configs),
    }
    if arguments.action == "plan":
        return _plan(arguments, context, facts, hub_at)
    if facts.held and not arguments.dry_run:
        to_people(f"Nothing was done. {facts.held} Run hubguard resume, then try again.")
        return Exit.HELD
    if arguments.action == "apply":
        return _apply(arguments, context, facts, hub_at)
    return _restore(arguments, context, facts, hub_at)


def _plan(arguments: argparse.Namespace, context: Context, facts: JournalFacts, hub_at: Mapping[str, Any]) -> int:
    settings, now = context.section(HubGuardPrune), _now()
    criteria = _criteria(arguments, settings)

    def judged(verdicts: Sequence[PruneVerdict]) -> None:
        kept = {verdict.account.name: verdict for verdict in verdicts if not verdict.stale}
        if arguments.kept is not None:
            write_file(arguments.kept, prune_words.users_csv(kept.values(), criteria, now))
        for name in criteria.listed or ():
            for verdict in (kept[spelling] for spelling in spellings(name) if spelling in kept):
                to_people(f"Not in the plan: {name}. {prune_words.verdict_sentence(verdict, now)}")

    plan = plan_offline(
        arguments.hub_db,
        Path.cwd(),
        criteria,
        _protection(context),
        now=now,
        made_by=context.actor,
        life_s=settings.plan_life_s,
        cap=None,
        storage=risks.OFFLINE_STORAGE,
        exemptions=facts.exemptions,
        uses=facts.uses,
        journal_known=facts.url is not None,
        housekeeping=arguments.housekeeping,
        ignore_unknown=arguments.ignore_unknown,
        judged=judged,
    )
    show_plan(arguments, plan, context.say, cautions(arguments.hub_db, Path.cwd(), **hub_at))
    return Exit.FINE


def _apply(arguments: argparse.Namespace, context: Context, facts: JournalFacts, hub_at: Mapping[str, Any]) -> int:
    plan = plan_in(Path(arguments.plan))
    protection = _protection(context)
    unknown = {caution.name for caution in plan.cautions}
    # Otherwise the second look would see less than the first.
    if risks.JOURNAL not in unknown and facts.url is None:
        raise ConfigError(
            "HUBGUARD_DB_URL",
            "HubGuard's own journal is required: the plan was made with it, and keeps users by its exemptions. Run this"
            " in the folder where you planned, or name the journal. Nothing was done",
        )
    if risks.USERS_IN_CONFIG not in unknown and protection.in_config is None:
        raise ConfigError("--config", "is required: the plan was made with the hub's config. Nothing was done")
    unseen = _unseen(arguments, hub_at)
    every = replace(plan, cautions=(*plan.cautions, *unseen))
    if arguments.dry_run:
        count = len(plan.deletions) if arguments.count is None else arguments.count
        acknowledged = [caution.name for caution in every.cautions]
    else:
        count, acknowledged = confirmed(every, arguments, asks=context.asks)

    def make(how: Mapping[str, Any]) -> Applied:
        folder = context.section(HubGuardPrune).undo_folder or "hubguard-undo"
        applied = apply_offline(
            arguments.hub_db,
            Path.cwd(),
            plan,
            count=count,
            acknowledged=acknowledged,
            protection=protection,
            undo_folder=arguments.undo_folder or Path(folder),
            actor=context.actor,
            exemptions=facts.exemptions,
            uses=facts.uses,
            **how,
        )
        if facts.url is not None and applied.undo_file is not None and not arguments.dry_run:
            with closing(open_journal(facts.url)) as journal:
                journal.remember(UNDO_FILE + applied.undo_file.name, {"sha256": applied.undo_sha256}, _now())
        return applied

    digest, many = plan.digest[:12], words.count(len(plan.deletions), "user")
    change = Change(
        intent=f"Offline plan {digest} to delete {many} from {plan.database} started",
        failure=f"Offline plan {digest} not applied",
        make=make,
        text=lambda applied: _applied_text(applied, arguments, (*unseen, *_journal_unknown(facts))),
        summary=lambda applied: (
            f"Offline plan {digest}: {len(applied.deleted):,} deleted, {len(applied.skipped):,} kept,"
            f" {len(applied.gone):,} already gone, undo file {applied.undo_file} (SHA-256 {applied.undo_sha256})"
        ),
    )
    _make(change, arguments, context, facts, hub_at)
    return Exit.FINE


def _restore(arguments: argparse.Namespace, context: Context, facts: JournalFacts, hub_at: Mapping[str, Any]) -> int:
    path = Path(arguments.undo)
    if not path.exists():
        raise ConfigError("FILE", f"there is no file {path}. Nothing was done")
    sha256 = _noted_sha256(facts, path)
    head, users = undo_file.read(path, sha256=sha256)
    there = sum(1 for user in users if user.name)
    if not arguments.json:
        whose, when = head.database or "a hub", f"{head.made_at:%Y-%m-%d %H:%M} UTC"
        context.say(f"{path} has {words.count(there, 'user')} of {whose}, from {when}.")
    unseen = (*_unseen(arguments, hub_at), *_journal_unknown(facts))
    unseen += () if sha256 is not None else (UNDO_FILE_UNKNOWN,)
    acknowledged = [caution.name for caution in unseen]
    if not arguments.dry_run:
        acknowledged = acknowledge(unseen, arguments.acknowledge, asks=context.asks)
        typed_count(there, arguments.count, asks=context.asks, what="users to restore")

    def make(how: Mapping[str, Any]) -> Restored:
        return restore_offline(
            arguments.hub_db,
            Path.cwd(),
            path,
            with_tokens=arguments.with_tokens,
            sha256=sha256,
            from_other_database=arguments.from_other_database,
            acknowledged=acknowledged,
            **how,
        )

    change = Change(
        intent=f"Offline restore of the users of the undo file {path} started",
        failure=f"Users of the undo file {path} not restored",
        make=make,
        text=_restored_text,
        summary=lambda restored: (
            f"Undo file {path}: {len(restored.restored):,} restored, {len(restored.skipped):,} not restored"
        ),
    )
    restored = _make(change, arguments, context, facts, hub_at)
    return Exit.FINE if not restored.skipped else Exit.FAILED


def _make(
    change: Change[T], arguments: argparse.Namespace, context: Context, facts: JournalFacts, hub_at: Mapping[str, Any]
) -> T:
    """Make ``change``, with a line before and after it in the journal, and print the result. Raises HubGuardError."""
    note = _note_taker(facts, context.actor, arguments)
    note(change.intent)
    progress = Progress()
    try:
        made = change.make({"now": _now, "dry_run": arguments.dry_run, "progress": progress.show, **hub_at})
    except HubGuardError as error:
        note(f"{change.failure}: {error}")
        raise
    finally:
        progress.end()
    if arguments.json:
        context.say(json.dumps(words.as_json(made), indent=2, default=str))
    else:
        context.say(change.text(made))
    note(change.summary(made))
    return made


# -- what they need -------------------------------------------------------------------------------------------------------


def _criteria(arguments: argparse.Namespace, settings: HubGuardPrune) -> StaleCriteria:
    criteria: dict[str, Any] = {
        "inactive_for_s": settings.inactive_for_s,
        "never_active_for_s": settings.never_active_for_s,
        "groups": settings.groups,
        "roles": settings.roles,
        "names": settings.names,
        **criteria_of(arguments),
    }
    return stale.checked(StaleCriteria(**criteria))


def _protection(context: Context) -> Protection:
    settings = context.section(HubGuardPrune)
    return Protection(
        groups=tuple(settings.protected_groups),
        roles=tuple(settings.protected_roles),
        names=tuple(settings.protected_names),
        in_config=_named(context.configured.configs),
        token_used_within_s=settings.token_used_within_s,
        callers=_caller(),
    )


def _caller() -> tuple[str, ...]:
    """Who runs the command, in case the hub has a user of that name."""
    try:
        return (getpass.getuser(),)
    except (KeyError, OSError):
        return ()


def _named(configs: Sequence[Config]) -> frozenset[str] | None:
    """The users that the hub's config names; None if none of ``configs`` is the hub's, or the names are unknown."""
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
    except Exception:  # whatever a site's own classes raise: then it is unknown
        return None
    return None if names is None else frozenset(names)


def _unseen(arguments: argparse.Namespace, hub_at: Mapping[str, Any]) -> tuple[Caution, ...]:
    """Cautions about what can't be seen of who uses the database. What can be seen is dropped from ``arguments.acknowledge``.

    So a script may name these cautions whether or not it runs as root today.
    """
    unseen = cautions(arguments.hub_db, Path.cwd(), **hub_at)
    needless = {HUB_NOT_ASKED.name, PROCESSES_NOT_SEEN} - {caution.name for caution in unseen}
    arguments.acknowledge = [name for name in arguments.acknowledge if name not in needless]
    return unseen


def _journal_unknown(facts: JournalFacts) -> tuple[Caution, ...]:
    return (risks.JOURNAL_UNKNOWN,) if facts.url is None else ()


def _answers_at(configs: Sequence[Config]) -> tuple[str, ...]:
    """URLs of the hub's own API by its config; empty if none of ``configs`` is the hub's, or it is unknown."""
    hub = _hub_of(configs)
    if hub is None:
        return ()
    addresses = [hub.hub_bind_url or f"http://{_in_url(hub.hub_ip)}:{hub.hub_port}"]
    if hub.hub_connect_url:
        addresses.append(hub.hub_connect_url)
    elif hub.hub_connect_ip:
        addresses.append(f"http://{_in_url(hub.hub_connect_ip)}:{hub.hub_port}")
    urls = []
    for address in addresses:
        parts = urlsplit(address)
        # All addresses of this machine are meant where it listens on all.
        host = parts.hostname if parts.hostname not in (None, "", "*", "0.0.0.0", "::") else "127.0.0.1"  # noqa: S104
        if parts.scheme in ("http", "https"):
            port = "" if parts.port is None else f":{parts.port}"
            urls.append(f"{parts.scheme}://{_in_url(str(host))}{port}{hub.hub_prefix}api")
    return tuple(urls)


def _in_url(host: str) -> str:
    return f"[{host}]" if ":" in host else host


def _hub_of(configs: Sequence[Config]) -> Any:
    """A hub (JupyterHub's own application) with that config, not started; None if none of ``configs`` is the hub's."""
    merged = Config()
    for config in configs:
        merged.merge(config)
    if "JupyterHub" not in merged:
        return None
    # Only where it is needed: it takes a second.
    from jupyterhub.app import JupyterHub

    try:
        return JupyterHub(config=merged)
    except Exception:  # whatever a site's own classes raise: then it is unknown
        return None


def _journal_facts(context: Context) -> JournalFacts:
    """Exemptions, activity, stops and hold from the journal; if it can't be opened, people are told.

    It is closed again: if it is in the hub's own database, an open connection would look like somebody using that.
    """
    url = context.configured.guard.db_url
    try:
        database = Database(url)
        if database.missing:
            raise JournalError(f"There is no {database.file}.")
        with closing(open_journal(url)) as journal:
            return JournalFacts(url, journal.exemptions(_now()), PruneStore(journal).uses(), journal.stance().sentence)
    except HubGuardError as error:
        to_people(
            "HubGuard's own journal can't be opened. Exemptions and recorded activity are unknown, and nothing will be"
            f" recorded there: {error}"
        )
        return JournalFacts(None)


def _noted_sha256(facts: JournalFacts, path: Path) -> str | None:
    """The checksum of that undo file in HubGuard's journal, None if it has none or can't be read. Raises JournalError."""
    if facts.url is None:
        return None
    with closing(open_journal(facts.url)) as journal:
        for run in PruneStore(journal).prune_runs(limit=PLANS_LISTED):
            if run.undo_file is not None and Path(run.undo_file).name == path.name:
                return run.undo_sha256
        noted = journal.recall(UNDO_FILE + path.name)
        return str(noted[0]["sha256"]) if noted is not None and "sha256" in noted[0] else None


def _note_taker(facts: JournalFacts, actor: str, arguments: argparse.Namespace) -> Callable[[str], None]:
    """A function that writes a line into the journal, if there is one and this is no dry run. It raises JournalError."""

    def note(text: str) -> None:
        if facts.url is None or arguments.dry_run:
            return
        why = f": {arguments.why}" if arguments.why else ""
        with closing(open_journal(facts.url)) as journal:
            journal.note(Event.NOTE, actor, 0, _now(), f"{text}{why}")

    return note


def _now() -> datetime:
    return datetime.now(timezone.utc)


# -- what people read -----------------------------------------------------------------------------------------------------


def _applied_text(applied: Applied, arguments: argparse.Namespace, unseen: Sequence[Caution]) -> str:
    hub_db = arguments.hub_db
    would = "would be " if applied.dry_run else ""
    ends = [f"{words.count(len(applied.deleted), 'user')} {would}deleted", f"{len(applied.skipped):,} kept"]
    ends += [f"{len(applied.gone):,} already gone"] if applied.gone else []
    lines = [f"{', '.join(ends)}."]
    if applied.dry_run and applied.deleted:
        lines.append(f"These: {', '.join(applied.deleted)}")
    lines += [f"  {name}: {why}" for name, why in applied.skipped]
    lines += [f"  {name}: already gone, and this plan didn't delete them" for name in applied.gone]
    lines += rows_text(applied.rows)
    lines += [f"Copy of the database: {applied.backup}"] if applied.backup else []
    if applied.undo_file:
        lines += [f"Undo file: {applied.undo_file}", f"  SHA-256 {applied.undo_sha256}"]
        command = ["hubguard", "prune", "restore", "--offline", *hub_db_words(hub_db), *config_words(arguments)]
        command += [str(applied.undo_file), "--count", str(len(applied.deleted)), *acknowledging(unseen)]
        lines.append(f"To restore them{with_hub_db(hub_db)}:\n\n    {shlex.join(command)}\n")
    return "\n".join([*lines, *applied.notes])


def _restored_text(restored: Restored) -> str:
    would = "would be " if restored.dry_run else ""
    lines = [f"{words.count(len(restored.restored), 'user')} {would}restored, {len(restored.skipped):,} not."]
    lines += [f"  {name}: {why}" for name, why in restored.skipped]
    return "\n".join([*lines, *rows_text(restored.rows), *restored.notes])
