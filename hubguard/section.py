"""What every section of settings has in common."""

from __future__ import annotations

import difflib
from collections.abc import Mapping, Sequence
from typing import ClassVar

from traitlets.config import Configurable

from hubguard.errors import ConfigError


class Section(Configurable):
    """One section, ``c.HubGuard…`` in a config file: its settings are the traits tagged ``config=True``.

    ``constants`` are attributes that were settings once. They are the same everywhere; tests change them.
    ``replaced`` are other former settings, each with the sentence that says what to set instead.
    """

    constants: ClassVar[tuple[str, ...]] = ()
    replaced: ClassVar[Mapping[str, str]] = {}

    def problems(self) -> list[ConfigError]:
        """What is wrong with the settings together, when each is fine on its own."""
        return []

    @classmethod
    def note_on_former(cls, name: str) -> str | None:
        """What to tell an operator who still sets ``name``; None if it was never a setting."""
        setting = f"{cls.__name__}.{name}"
        if name in cls.constants:
            unit = " s" if name.endswith("_s") else ""
            return f"{setting} is no longer a setting; HubGuard uses {getattr(cls, name):g}{unit}. Remove the line."
        if name in cls.replaced:
            return f"{setting} is no longer a setting. {cls.replaced[name]} Remove the line."
        return None


def closest(name: str, names: Sequence[str]) -> str:
    """The end of a sentence about an unknown ``name``: the one that was probably meant, or all ``names``."""
    near = difflib.get_close_matches(name, names, n=1)
    return f"; did you mean {near[0]}?" if near else f"; choose from {', '.join(sorted(names))}"
