"""Every setting, with its help, default and unit. Read from HubGuard's own config file and from jupyterhub_config.py.

A wrong setting never raises out of here: :func:`load` collects what is wrong, so that the service can name it on a page
and act on nothing.
"""

from __future__ import annotations

import difflib
import os
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

from traitlets import Bool, Dict, Enum, Float, Int, List, TraitError, Unicode
from traitlets.config import Config, Configurable
from traitlets.config.loader import PyFileConfigLoader

from hubguard.decide import rules
from hubguard.drift import REMEDIES
from hubguard.errors import ConfigError

HOUR_S = 3600.0
DAY_S = 86400.0
YEAR_S = 366 * DAY_S


class HubGuard(Configurable):
    """The service itself."""

    armed = Bool(
        None,
        allow_none=True,
        help="""Whether HubGuard may act by itself. None: an admin decides, on the page, through the API or with
        `hubguard arm`; until then it only observes and shows what it would do. True or False overrule that.""",
    ).tag(config=True)
    url = Unicode(
        "http://127.0.0.1:0",
        help="""Where the hub's proxy reaches HubGuard's pages. Port 0 picks a free port at each start of the hub. Where the
        proxy runs on another machine or in another pod, a URL that it can reach. Read when the include runs: set it before
        the include.""",
    ).tag(config=True)
    bind_ip = Unicode(
        "",
        help="""The address to listen on. Empty: the host in `HubGuard.url`. Set it, for instance to 0.0.0.0, where that
        host is a name that stands for this machine only from outside.""",
    ).tag(config=True)
    db_url = Unicode(
        "sqlite:///hubguard.sqlite",
        help="""SQLAlchemy URL of HubGuard's own database: the journal, the lease and what people have set. One
        database serves one hub. A relative SQLite path is taken from the folder that the hub runs in. The environment
        variable HUBGUARD_DB_URL is its default.""",
    ).tag(config=True)
    on_idle_culler = Enum(
        ["take over", "refuse"],
        default_value="take over",
        help="""What to do where jupyterhub-idle-culler is registered as a service, too. "take over": the hub doesn't start
        it, and HubGuard goes on with its settings, armed. "refuse": it keeps running, and HubGuard only observes.""",
    ).tag(config=True)
    lease_s = Float(
        30.0,
        help="""Seconds after which a guard that has gone silent loses the right to act to another one. It is renewed three
        times as often. Range: 3 to 3600.""",
    ).tag(config=True, low=3.0, high=3600.0)
    hub_db_url = Unicode(
        "",
        help="""SQLAlchemy URL of the hub's own database, for reading only: then a cycle costs the hub next to nothing. Empty:
        HubGuard reads everything through the hub's API. "hub": the one that the hub's config names; say so in that config.
        An account that may only read is enough.""",
    ).tag(config=True)
    read_proxy = Bool(
        True,
        help="""Whether the proxy's table is read, where the proxy is configurable-http-proxy: it knows of traffic minutes
        before the hub does, and tells a quiet hub from one that has stopped noticing.""",
    ).tag(config=True)
    longest_exemption_s = Float(
        30 * DAY_S,
        help="Seconds for which a server can be kept by an exemption at the longest. Range: 0 (no exemptions) to a year.",
    ).tag(config=True, low=0.0, high=YEAR_S)
    journal_days = Int(
        400,
        help="""Days after which the journal forgets an entry. What is still open is never forgotten. Range: 8 to 36,600.
        (More than a year, so that a semester can be compared with the one a year before.)""",
    ).tag(config=True, low=8, high=36_600)


class HubGuardCull(Configurable):
    """Which servers are stopped, and when."""

    idle_timeout_s = Float(
        3600.0,
        help="Seconds without activity after which a server is stopped. 0: never for idleness. (z2jh's default.)",
    ).tag(config=True, low=0.0, high=YEAR_S)
    max_age_s = Float(
        0.0,
        help="Seconds after its start at which a server is stopped even when it is in use. 0: never for its age.",
    ).tag(config=True, low=0.0, high=10 * YEAR_S)
    every_s = Float(
        60.0,
        help="""Seconds from the end of one cycle to the start of the next, give or take 10 %, so that several hubs, or
        the hub's own checks, stay out of step. Range: 1 to a day.""",
    ).tag(config=True, low=1.0, high=DAY_S)
    admin_servers = Bool(True, help="Whether servers of hub admins are stopped, too.").tag(config=True)
    default_servers = Bool(True, help="Whether default servers are stopped.").tag(config=True)
    named_servers = Bool(True, help="Whether named servers are stopped.").tag(config=True)
    rules = List(
        Dict(),
        help="""Rules in order; the first that matches a server gives its limits. A dict each: what it matches, all of it
        (`users`, `groups`, `roles`, `servers`, `profiles`: a glob or a list of them; `admin`, `named`: True or False;
        `options`: values of user_options; `weekdays` such as "mon-fri", `hours` such as "08:00-18:00", `timezone`), and what
        it sets: `idle_timeout_s`, `max_age_s`, or `never`: True. `name` is what pages call it. A server that no rule matches
        has the limits set here.""",
    ).tag(config=True)
    hook = Unicode(
        "",
        help="""A function of yours that has the last word, as `module:function`, sync or async. It is called with the
        keywords `server`, `user`, `groups`, `inactive` (a timedelta), `inactive_limit` (seconds) for a server that is due,
        and returns whether to stop it. Where it raises or takes over 10 s, the server is kept. Install the module where
        HubGuard is. Empty: none.""",
    ).tag(config=True)
    users = Bool(
        False,
        help="""Whether users are deleted from the hub, too, with all they have there, once none of their servers runs and
        they have been inactive for `user_idle_timeout_s`. For hubs with temporary users. Where the spawner deletes storage
        with the user, that is gone, too (KubeSpawner: by default). Set it before the include, which then asks for the
        scope that it needs.""",
    ).tag(config=True)
    user_idle_timeout_s = Float(
        30 * DAY_S,
        help="Seconds without activity after which a user is deleted, where `users` is True. 0: never for inactivity.",
    ).tag(config=True, low=0.0, high=10 * YEAR_S)
    user_max_age_s = Float(
        0.0, help="Seconds after which a user is deleted even when active, where `users` is True. 0: never for age."
    ).tag(config=True, low=0.0, high=10 * YEAR_S)
    admin_users = Bool(False, help="Whether admins are deleted, too, where `users` is True.").tag(config=True)
    pending_limit_s = Float(
        1800.0,
        help="""Seconds for which a server may be pending (starting, stopping) until it is reported as stuck. Longer than the
        spawner's slowest start. Range: 60 to a day.""",
    ).tag(config=True, low=60.0, high=DAY_S)
    interrupt_spawns = Bool(
        False, help="Whether a start that is stuck for longer than `pending_limit_s` is interrupted by itself."
    ).tag(config=True)
    hub_activity_interval_s = Float(
        300.0,
        help="""How often the hub takes over activity from the proxy, in seconds: `c.JupyterHub.last_activity_interval`, which
        the include passes on where it is set. 0: the hub never does. Up to a day.""",
    ).tag(config=True, low=0.0, high=DAY_S)
    outage_s = Float(
        120.0,
        help="""Seconds for which hub or proxy must have been gone for it to count as an outage, after which all idle clocks
        start anew. A restart takes less, and the hub's activity lags by more anyway. Range: 10 to a day.""",
    ).tag(config=True, low=10.0, high=DAY_S)
    population_fall = Float(
        0.2,
        help="""HubGuard holds back when this share of the hub's users, and ten of them at least, has disappeared within an
        hour or two, other than by its own hand. Range: 0.01 to 1.""",
    ).tag(config=True, low=0.01, high=1.0)
    remove_named_servers = Bool(
        False, help="Whether a named server that was stopped is also removed from the hub, with its options."
    ).tag(config=True)
    plan_cap = Int(
        1000,
        help="""The most that may be due at once: servers to stop, starts to interrupt and users to delete, together. With
        more, HubGuard holds back until no more are due, or a person has looked and resumes; then each cycle does so many. At
        least 1.""",
    ).tag(config=True, low=1, high=1_000_000)
    verify_s = Float(
        60.0,
        help="""Seconds for which HubGuard reads a server again after a stop until the hub shows it gone. Longer stops end as
        "unverified"; those still running later are tried again after a wait, as failed ones are. Range: 1 to an hour.""",
    ).tag(config=True, low=1.0, high=3600.0)
    retry_base_s = Float(
        30.0,
        help="""The longest wait after the first failed stop of a server. It doubles with every further failure, and the
        actual wait is drawn between 0 and that (full jitter). Range: 1 to a day.""",
    ).tag(config=True, low=1.0, high=DAY_S)
    retry_max_s = Float(
        3600.0, help="The longest wait between two tries to stop the same server, in seconds. Range: 1 to a week."
    ).tag(config=True, low=1.0, high=7 * DAY_S)


class HubGuardBudget(Configurable):
    """How fast HubGuard may talk to the hub, all its parts together."""

    rate = Float(
        40.0,
        help="""Requests to hub and proxy per second, sustained. A stop takes about three, each a few milliseconds of a hub's
        time. One fifth is reserved for verification and for people. Range: 0.1 to 1000.""",
    ).tag(config=True, low=0.1, high=1000.0)
    burst = Int(
        3,
        help="""Requests that may go out at once after a quiet spell. Few, so that stops are spread and nobody else at the hub
        waits behind a heap of them. A start isn't such a spell: HubGuard begins without a burst,
        so that one that is started again and again doesn't flood the hub. Range: 1 to 1000.""",
    ).tag(config=True, low=1, high=1000)
    concurrency = Int(
        10,
        help="""The most stops in flight. A fifth of that, one at least, comes on top for looking and verifying. HubGuard goes
        down by halves when the hub answers 429 or 5xx, not at all or ever more slowly (three times its usual time, and half
        a second more), and up by one when it is used and all is well. Range: 1 to 500.""",
    ).tag(config=True, low=1, high=500)
    request_timeout_s = Float(
        60.0,
        help="""Seconds for one request, from sending it to the end of the answer; waiting for the budget doesn't count. The
        environment variable JUPYTERHUB_REQUEST_TIMEOUT is its default. Range: 1 to 600.""",
    ).tag(config=True, low=1.0, high=600.0)
    breaker_failures = Int(
        5,
        help="""Failed requests in a row after which HubGuard stops asking and only probes with a harmless GET until the hub
        answers again. Range: 1 to 1000.""",
    ).tag(config=True, low=1, high=1000)
    breaker_open_s = Float(15.0, help="Seconds between such probes, growing to ten times that. Range: 1 to 3600.").tag(
        config=True, low=1.0, high=3600.0
    )


class HubGuardDrift(Configurable):
    """How HubGuard finds out where hub, database, proxy and backends disagree, and what it mends by itself."""

    every_s = Float(
        30.0,
        help="""Seconds from one look at all sources to the next, give or take 10 %. While something is suspected, it looks
        again after a sixth of that, and after 5 s at the earliest. Range: 5 to an hour.""",
    ).tag(config=True, low=5.0, high=3600.0)
    sightings = Int(
        3,
        help="""A difference is drift when so many complete looks in a row have shown it; until then it is suspected. Range: 2
        to 100.""",
    ).tag(config=True, low=2, high=100)
    for_s = Float(
        15.0,
        help="""Seconds for which it must have been seen, too. Longer than a server is between two states on a busy hub.
        Range: 0 to an hour.""",
    ).tag(config=True, low=0.0, high=3600.0)
    clear_after = Int(
        2, help="So many complete looks in a row without it end a drift that was raised. Range: 1 to 100."
    ).tag(config=True, low=1, high=100)
    repair = List(
        Unicode(),
        default_value=[
            "route-missing",
            "route-wrong-target",
            "route-stale",
            "service-route-missing",
            "hub-route-missing",
        ],
        help="""The kinds of drift that HubGuard repairs by itself, once it is armed; the others it repairs when asked. For
        routes, it has the hub check them; it writes none itself. Of the others there are "server-dead" (stop it),
        "server-ghost" (start it, then stop it), "server-orphan" (end the backend, where it is proved to be this hub's) and
        "pending-stuck" (interrupt the start).""",
    ).tag(config=True)
    backend = Enum(
        ["auto", "process", "systemd", "docker", "kubernetes", "http", ""],
        default_value="auto",
        help="""Where to see what really runs: "process", "systemd", "docker", "kubernetes"; "http" only asks each server
        whether it answers, without anybody's credentials; "" is nowhere. "auto": by the hub's spawner, and "http" where
        that is none of these.""",
    ).tag(config=True)
    watch_proxy = Bool(
        True,
        help="""Whether HubGuard keeps a route of its own at the proxy, where that is configurable-http-proxy, and looks for
        it every second or two: a proxy that has lost its table, hangs or is gone shows within seconds.""",
    ).tag(config=True)


class HubGuardPrune(Configurable):
    """Who is stale, who is always kept, and what HubGuard may remove by itself. It removes nobody unless told to."""

    delete_users = Bool(
        False,
        help="""Whether HubGuard may delete users through the hub at all. Set it before HubGuard's include: that asks for the
        scope delete:users then. Plans can be made without it.""",
    ).tag(config=True)
    inactive_for_s = Float(
        180 * DAY_S,
        help="""A user is stale who was last active so many seconds ago. Pages and commands begin with it, and scheduled
        pruning goes by it. Half a year: longer than a term and the holidays after it. 0: none of those who were ever active.
        Range: 0 to ten years.""",
    ).tag(config=True, low=0.0, high=3660 * DAY_S)
    never_active_for_s = Float(
        180 * DAY_S,
        help="""A user is stale, too, who was never active and was made so many seconds ago. 0: none of them. Range: 0 to ten
        years.""",
    ).tag(config=True, low=0.0, high=3660 * DAY_S)
    groups = List(
        Unicode(), help="Only members of one of these groups are asked for; empty: whatever their groups."
    ).tag(config=True)
    roles = List(Unicode(), help="Only users with one of these roles are asked for; empty: whatever their roles.").tag(
        config=True
    )
    names = List(
        Unicode(),
        help='Only users whose name matches one of these globs ("guest-*") are asked for; empty: whatever it is.',
    ).tag(config=True)
    protected_groups = List(Unicode(), help="Members of these groups are kept, whatever is asked for.").tag(config=True)
    protected_roles = List(Unicode(), help="Users with one of these roles are kept, whatever is asked for.").tag(
        config=True
    )
    protected_names = List(
        Unicode(), help="Users whose name matches one of these globs are kept, whatever is asked for."
    ).tag(config=True)
    token_used_within_s = Float(
        30 * DAY_S,
        help="""Users with a token that was used so lately, in seconds, are kept: a script of theirs may be at work. 0: tokens
        keep nobody. Range: 0 to ten years.""",
    ).tag(config=True, low=0.0, high=3660 * DAY_S)
    rate = Float(
        1.0,
        help="""Users deleted per second at most; the budget's rate holds, too. A hub spends 8 to 20 ms on each, and answers
        nobody else meanwhile: from two a second on, one of a hundred requests of others would wait noticeably longer.
        Range: 0.01 to 1000.""",
    ).tag(config=True, low=0.01, high=1000.0)
    plan_life_s = Float(
        DAY_S,
        help="""Seconds for which a plan can be begun after it was made: long enough for two people to look at it. Each user
        is looked at again before they are deleted, whenever that is. Range: a minute to 30 days.""",
    ).tag(config=True, low=60.0, high=30 * DAY_S)
    every_s = Float(
        0.0,
        help="""Seconds from one scheduled pruning to the next; 0, and nothing is pruned by itself. It needs delete_users, and
        HubGuard armed. Range: 0, or an hour to a year.""",
    ).tag(config=True, low=0.0, high=366 * DAY_S)
    run_cap = Int(
        100,
        help="The most users that one scheduled pruning removes; the rest wait for the next. Range: 1 to a million.",
    ).tag(config=True, low=1, high=1_000_000)
    share_cap = Float(
        0.1,
        help="""A scheduled pruning that finds more than this share of all users stale removes nobody and raises an alert:
        such a plan needs a person's eyes. Range: 0.001 to 1.""",
    ).tag(config=True, low=0.001, high=1.0)
    acknowledged = List(
        Unicode(),
        help="""The cautions that scheduled pruning may go on with, by name as a plan tells them ("KubeSpawner": the users'
        volumes are deleted with them).""",
    ).tag(config=True)
    undo_folder = Unicode(
        "",
        help="""The folder for undo files, which hold all rows that go, spawner state and token hashes among them (mode 0600).
        Empty: hubguard-undo, in the folder that HubGuard runs in.""",
    ).tag(config=True)


SECTIONS: tuple[type[Configurable], ...] = (HubGuard, HubGuardCull, HubGuardDrift, HubGuardPrune, HubGuardBudget)


@dataclass(frozen=True, slots=True)
class Settings:
    """All settings as they hold now. With ``errors``, HubGuard acts on nothing; each starts with the setting's name.

    ``errors`` is in the order of the sections, then by name; the wrong setting itself has its default value here.
    """

    guard: HubGuard
    cull: HubGuardCull
    drift: HubGuardDrift
    prune: HubGuardPrune
    budget: HubGuardBudget
    errors: tuple[str, ...] = ()


def load(
    *layers: Mapping[str, Mapping[str, object]],
    environ: Mapping[str, str] = os.environ,
) -> Settings:
    """Settings from ``layers`` of section → name → value; a later layer wins over an earlier one, all win over ``environ``.

    Never raises for a wrong value: it is in ``errors``, with the name of the setting.
    """
    merged, errors = _from_environment(environ)
    known = {section.__name__: section for section in SECTIONS}
    for layer in layers:
        for name, values in layer.items():
            if name not in known:
                errors.append(f"{name}: no such section of settings{_closest(name, list(known))}")
                continue
            merged.setdefault(name, {}).update(values)
    made: dict[str, Any] = {}
    for name, section in known.items():
        instance = section()
        made[name] = instance
        for trait, value in sorted(merged.get(name, {}).items()):
            try:
                _set(instance, trait, value)
            except ConfigError as error:
                errors.append(str(error))
    guard, cull, drift, prune, budget = (made[section.__name__] for section in SECTIONS)
    errors += [str(error) for error in _together(guard, cull)]
    if 0 < prune.every_s < HOUR_S:
        errors.append("HubGuardPrune.every_s: less than an hour is too often; 0 is for never")
        prune.every_s = 0.0
    if prune.every_s and not prune.delete_users:
        errors.append(
            "HubGuardPrune.every_s: nothing can be pruned by schedule while HubGuardPrune.delete_users is False"
        )
    reparable = [kind.value for kind in REMEDIES]
    for kind in [kind for kind in drift.repair if kind not in reparable]:
        errors.append(
            f"HubGuardDrift.repair: {kind!r} is no kind of drift that can be repaired{_closest(kind, reparable)}"
        )
        drift.repair = []
    if wrong := rules.parse(cull.rules)[1]:
        errors += [f"HubGuardCull.{error}" for error in wrong]
        cull.rules = []
    return Settings(guard, cull, drift, prune, budget, tuple(dict.fromkeys(errors)))


def read_file(path: Path) -> Config:
    """What a config file sets: one of HubGuard's own (``c.HubGuard.armed = True``), or the hub's.

    The file is Python and is executed. Raises ConfigError, naming the file and what is wrong in it.
    """
    loader = PyFileConfigLoader(path.name, str(path.parent.absolute()))
    try:
        config = loader.load_config()
    except Exception as error:
        raise ConfigError(str(path), f"can't be read: {type(error).__name__}: {error}") from error
    return config


def sections_of(config: Config) -> dict[str, dict[str, object]]:
    """The ``HubGuard*`` sections of a traitlets config, with lazy values (``.append`` and the like) left out."""
    return {
        name: {trait: value for trait, value in values.items() if not trait.startswith("_")}
        for name, values in config.items()
        if name.startswith("HubGuard") and isinstance(values, Mapping)
    }


def settings_table() -> list[tuple[str, str, str]]:
    """(name, default as written in Python, help on one line) of every setting, in the order of the sections."""
    return [
        (f"{section.__name__}.{name}", repr(trait.default()), " ".join(str(trait.help).split()))
        for section in SECTIONS
        for name, trait in section.class_own_traits(config=True).items()
    ]


def settings_markdown() -> str:
    """The page of the docs that lists every setting, as Markdown."""
    lines = [
        "# Every setting",
        "",
        "Made from the code by `hubguard config show --markdown`; a test compares the two.",
        "",
    ]
    lines += ["| setting | default | what it is |", "| --- | --- | --- |"]
    lines += [f"| `c.{name}` | `{default}` | {text.replace('|', '/')} |" for name, default, text in settings_table()]
    return "\n".join(lines) + "\n"


def _from_environment(environ: Mapping[str, str]) -> tuple[dict[str, dict[str, object]], list[str]]:
    found: dict[str, dict[str, object]] = {}
    errors: list[str] = []
    if url := environ.get("HUBGUARD_DB_URL"):
        found["HubGuard"] = {"db_url": url}
    if text := environ.get("JUPYTERHUB_REQUEST_TIMEOUT"):
        try:
            found["HubGuardBudget"] = {"request_timeout_s": float(text)}
        except ValueError:
            errors.append(f"JUPYTERHUB_REQUEST_TIMEOUT: {text!r} is not a number of seconds")
    return found, errors


def _set(instance: Configurable, name: str, value: object) -> None:
    section = type(instance).__name__
    traits = type(instance).class_own_traits(config=True)
    setting = f"{section}.{name}"
    if name not in traits:
        raise ConfigError(setting, f"no such setting{_closest(name, list(traits))}")
    trait = traits[name]
    if isinstance(value, bool) and isinstance(trait, (Float, Int)):
        raise ConfigError(setting, f"is a number, and {value!r} is not")
    low, high = trait.metadata.get("low"), trait.metadata.get("high")
    # Written as "not inside" so that NaN, which compares with nothing, is refused, too.
    if low is not None and high is not None and isinstance(value, (int, float)) and not low <= value <= high:
        raise ConfigError(setting, f"{value!r} is out of range: from {low:g} to {high:g} it can be")
    try:
        setattr(instance, name, value)
    except TraitError as error:
        raise ConfigError(setting, f"{value!r} can't be used: {_first_line(error)}") from None


def _together(guard: HubGuard, cull: HubGuardCull) -> list[ConfigError]:
    """What is wrong with settings that are fine one by one."""
    errors = []
    if cull.retry_base_s > cull.retry_max_s:
        errors.append(ConfigError("HubGuardCull.retry_base_s", "is longer than HubGuardCull.retry_max_s"))
    try:
        parts = urlsplit(guard.url)
        fine = parts.scheme in {"http", "https"} and bool(parts.hostname) and (parts.port or 0) >= 0
    except ValueError:
        fine = False
    if not fine:
        errors.append(ConfigError("HubGuard.url", f"{guard.url!r} is no URL such as http://127.0.0.1:10101"))
    return errors


def _closest(name: str, names: list[str]) -> str:
    near = difflib.get_close_matches(name, names, n=1)
    return f"; did you mean {near[0]}?" if near else f"; there are {', '.join(sorted(names))}"


def _first_line(error: Exception) -> str:
    return str(error).splitlines()[0] if str(error) else type(error).__name__
