"""Changes what isn't a setting, but must be quicker or slower in a test: the ``constants`` of the sections."""

from __future__ import annotations

from hubguard.config import SECTIONS, Settings


def with_constants(settings: Settings, **values: float) -> Settings:
    """``settings``, with these constants changed in them alone."""
    for section in settings.sections:
        for name in section.constants:
            if name in values:
                setattr(section, name, values.pop(name))
    assert not values, f"no such constants: {', '.join(values)}"
    return settings


def constants(**values: float) -> str:
    """Lines for a config file of HubGuard's own, which is executed in the guard's process."""
    lines = [
        f"config.{section.__name__}.{name} = {values.pop(name)!r}"
        for section in SECTIONS
        for name in section.constants
        if name in values
    ]
    assert not values, f"no such constants: {', '.join(values)}"
    return "\n".join(["from hubguard import config", *lines, ""])


def constants_by_the_hub(**values: float) -> str:
    """Lines for jupyterhub_config.py that pass such lines on to the guard, beside what HUBGUARD_CONFIG may hold already."""
    return (
        'import os\nos.environ.setdefault("HUBGUARD_CONFIG", os.path.abspath("hubguard_constants.py"))\n'
        f'with open(os.environ["HUBGUARD_CONFIG"], "a") as file:\n    file.write({constants(**values)!r})\n'
    )
