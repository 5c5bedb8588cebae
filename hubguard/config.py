"""Every setting, with its help, default and unit. Read from HubGuard's own config file and from jupyterhub_config.py.

A wrong setting never raises out of here: :func:`load` collects what is wrong, so that the service can name it on a page
and act on nothing.
"""

from __future__ import annotations

import os
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

from traitlets import Bool, Enum, Float, Int, TraitError, Unicode
from traitlets.config import Config
from traitlets.config.loader import PyFileConfigLoader

from hubguard.cull.settings import HubGuardCull
from hubguard.drift.settings import HubGuardDrift
from hubguard.errors import ConfigError
from hubguard.pacing.settings import HubGuardBudget
from hubguard.prune.settings import HubGuardPrune
from hubguard.section import Section, closest
from hubguard.times import DAY_S, YEAR_S


class HubGuard(Section):
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
    hub_db_url = Unicode(
        "",
        help="""SQLAlchemy URL of the hub's own database, for reading only: then a cycle costs the hub next to nothing. Empty:
        HubGuard reads everything through the hub's API. "hub": the one that the hub's config names; say so in that config.
        An account that may only read is enough.""",
    ).tag(config=True)
    read_proxy = Bool(
        True,
        help="""Whether HubGuard reads the routes of a configurable-http-proxy, which knows of traffic minutes before the hub
        does, and watches the proxy by a route of its own, so that a proxy that is gone, hangs or has lost its routes shows
        within seconds.""",
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

    constants = ("lease_s",)

    lease_s = 30.0
    """Seconds after which a guard that has gone silent loses the right to act. It renews its lease three times as often."""

    def problems(self) -> list[ConfigError]:
        """Whether the URL is one."""
        try:
            parts = urlsplit(self.url)
            fine = parts.scheme in {"http", "https"} and bool(parts.hostname) and (parts.port or 0) >= 0
        except ValueError:
            fine = False
        return [] if fine else [ConfigError("HubGuard.url", f"{self.url!r} is no URL such as http://127.0.0.1:10101")]


SECTIONS: tuple[type[Section], ...] = (HubGuard, HubGuardCull, HubGuardDrift, HubGuardPrune, HubGuardBudget)


@dataclass(frozen=True, slots=True)
class Settings:
    """All settings as they hold now. With ``errors``, HubGuard acts on nothing.

    ``errors`` is in the order of the sections, then by name; the wrong setting itself has its default value here.
    ``notes`` are sentences on settings of older versions, which do nothing.
    """

    guard: HubGuard
    cull: HubGuardCull
    drift: HubGuardDrift
    prune: HubGuardPrune
    budget: HubGuardBudget
    errors: tuple[ConfigError, ...] = ()
    notes: tuple[str, ...] = ()


def load(
    *layers: Mapping[str, Mapping[str, object]],
    environ: Mapping[str, str] = os.environ,
) -> Settings:
    """Settings from ``layers`` of section → name → value; a later layer wins over an earlier one, all win over ``environ``.

    Never raises for a wrong value: it is in ``errors``, with the name of the setting.
    """
    merged, errors = _from_environment(environ)
    notes: list[str] = []
    known = {section.__name__: section for section in SECTIONS}
    for layer in layers:
        for name, values in layer.items():
            if name not in known:
                errors.append(ConfigError(name, f"no such section of settings{closest(name, list(known))}"))
                continue
            merged.setdefault(name, {}).update(values)
    sections: dict[str, Any] = {}
    for name, kind in known.items():
        section = sections[name] = kind()
        for trait, value in sorted(merged.get(name, {}).items()):
            if note := kind.note_on_former(trait):
                notes.append(note)
                continue
            try:
                _set(section, trait, value)
            except ConfigError as error:
                errors.append(error)
        problems = section.problems()
        errors += problems
        for trait in {_trait_of(problem) for problem in problems}:
            setattr(section, trait, kind.class_traits()[trait].default())
    guard, cull, drift, prune, budget = sections.values()
    return Settings(
        guard, cull, drift, prune, budget, tuple({str(error): error for error in errors}.values()), tuple(notes)
    )


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


def _from_environment(environ: Mapping[str, str]) -> tuple[dict[str, dict[str, object]], list[ConfigError]]:
    found: dict[str, dict[str, object]] = {}
    errors: list[ConfigError] = []
    if url := environ.get("HUBGUARD_DB_URL"):
        found["HubGuard"] = {"db_url": url}
    if text := environ.get("JUPYTERHUB_REQUEST_TIMEOUT"):
        try:
            found["HubGuardBudget"] = {"request_timeout_s": float(text)}
        except ValueError:
            errors.append(ConfigError("JUPYTERHUB_REQUEST_TIMEOUT", f"{text!r} is not a number of seconds"))
    return found, errors


def _set(instance: Section, name: str, value: object) -> None:
    section = type(instance).__name__
    traits = type(instance).class_own_traits(config=True)
    setting = f"{section}.{name}"
    if name not in traits:
        raise ConfigError(setting, f"no such setting{closest(name, list(traits))}")
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


def _trait_of(problem: ConfigError) -> str:
    """``rules`` of ``HubGuardCull.rules[1].hours``."""
    return problem.setting.split(".")[1].split("[")[0]


def _first_line(error: Exception) -> str:
    return str(error).splitlines()[0] if str(error) else type(error).__name__
