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

from traitlets import Float, Int, TraitError
from traitlets.config import Config
from traitlets.config.loader import PyFileConfigLoader

from hubguard.cull.settings import HubGuardCull
from hubguard.drift.settings import HubGuardDrift
from hubguard.errors import ConfigError
from hubguard.pacing.settings import HubGuardBudget
from hubguard.prune.settings import HubGuardPrune
from hubguard.settings import HubGuard, Section, closest
from hubguard.watch.settings import HubGuardWatch

SECTIONS: tuple[type[Section], ...] = (
    HubGuard,
    HubGuardCull,
    HubGuardDrift,
    HubGuardPrune,
    HubGuardWatch,
    HubGuardBudget,
)


@dataclass(frozen=True, slots=True)
class Settings:
    """All settings as they hold now. With ``errors``, HubGuard takes no action.

    ``errors`` is in the order of the sections, then by name; the wrong setting itself has its default value here.
    ``notes`` are sentences on settings of older versions, which do nothing, and on wrong ones that stop nothing else.
    """

    guard: HubGuard
    cull: HubGuardCull
    drift: HubGuardDrift
    prune: HubGuardPrune
    watch: HubGuardWatch
    budget: HubGuardBudget
    errors: tuple[ConfigError, ...] = ()
    notes: tuple[str, ...] = ()

    @property
    def sections(self) -> tuple[Section, ...]:
        """All of them, in the order of the docs."""
        return self.guard, self.cull, self.drift, self.prune, self.watch, self.budget


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
        notes += section.notes()
        problems = section.problems()
        errors += problems
        for trait in {_trait_of(problem) for problem in problems}:
            setattr(section, trait, kind.class_traits()[trait].default())
    guard, cull, drift, prune, watch, budget = sections.values()
    return Settings(
        guard, cull, drift, prune, watch, budget, tuple({str(error): error for error in errors}.values()), tuple(notes)
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
    sections: dict[str, dict[str, object]] = {}
    errors: list[ConfigError] = []
    if url := environ.get("HUBGUARD_DB_URL"):
        sections["HubGuard"] = {"db_url": url}
    if text := environ.get("JUPYTERHUB_REQUEST_TIMEOUT"):
        try:
            sections["HubGuardBudget"] = {"request_timeout_s": float(text)}
        except ValueError:
            errors.append(ConfigError("JUPYTERHUB_REQUEST_TIMEOUT", f"{text!r} is not a number of seconds"))
    return sections, errors


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
