"""What is configured of the hub's spawner: what distinguishes its backends from others, and what becomes of storage."""

from __future__ import annotations

import copy
from collections.abc import Mapping
from typing import Any

from traitlets import DefaultHandler
from traitlets.config import Config
from traitlets.config.loader import DeferredConfig, LazyConfigValue

HUBS_OWN = "jupyterhub.spawner.Spawner"

TELLING: Mapping[str, tuple[str, ...]] = {
    "DockerSpawner": ("network_name", "prefix", "name_template", "remove", "use_internal_ip"),
    "SystemdSpawner": ("unit_name_template",),
    "KubeSpawner": (
        *("namespace", "common_labels", "component_label", "pod_name_template"),
        *("enable_user_namespaces", "user_namespace_template"),
    ),
}
"""The traits that are passed on, by the name of the class that brings them. None of them holds a secret."""

CLAIMING: Mapping[str, tuple[str, ...]] = {
    "FirstUseAuthenticator": ("create_users",),
    "NativeAuthenticator": ("enable_signup", "open_signup"),
}
"""By class of authenticator, the settings that decide whether anyone may take a name that nobody has."""

STORING: Mapping[str, tuple[str, ...]] = {"KubeSpawner": ("delete_pvc", "pvc_name_template", "storage_pvc_ensure")}
"""The traits that say what becomes of storage when a user is deleted, in the same way."""


def classes_of(kind: type) -> list[str]:
    """The full names of ``kind`` and what it is derived from, nearest first, up to JupyterHub's Spawner."""
    names = [f"{base.__module__}.{base.__qualname__}" for base in kind.__mro__]
    return names[: names.index(HUBS_OWN) + 1]


def deleter_of(kind: type) -> str:
    """The full name of the class whose code ``kind`` runs when a user is deleted; HUBS_OWN does nothing (5.5 and 6.1)."""
    maker = next(base for base in kind.__mro__ if "delete_forever" in vars(base))
    return f"{maker.__module__}.{maker.__qualname__}"


def settings_of(config: Config, kind: type, traits: Mapping[str, tuple[str, ...]] = TELLING) -> dict[str, object]:
    """The ``traits`` as they are set for ``kind``, or by default; without those that only an instance knows.

    They are texts, numbers, True or False, and for labels an object of texts.
    """
    names = [name for base in kind.__mro__ for name in traits.get(base.__name__, ())]
    values = {name: setting(config, kind, name) for name in names}
    return {name: value for name, value in values.items() if value is not None and _plain(value)}


def setting(config: Config, kind: Any, name: str) -> Any:
    """The trait ``name`` of ``kind`` as its instances will have it by their config or its static default, else None.

    As traitlets does, the config of a class comes before that of those that it is derived from.
    """
    trait = kind.class_traits().get(name)
    if trait is None:
        return None
    computed = any(
        f"_{name}_default" in vars(base)
        or any(isinstance(made, DefaultHandler) and made.trait_name == name for made in vars(base).values())
        for base in kind.__mro__
    )
    value = None if computed else trait.default()
    for base in reversed(kind.__mro__):
        section = config.get(base.__name__, {})
        if name not in section:
            continue
        # On a copy: a lazy value keeps the first answer it gives.
        set_to = copy.deepcopy(section[name])
        if isinstance(set_to, LazyConfigValue):
            set_to = set_to.get_value(copy.deepcopy(value) or trait.default())
        elif isinstance(set_to, DeferredConfig):
            set_to = set_to.get_value(trait)
        value = set_to
    return value


def _plain(value: object) -> bool:
    if isinstance(value, Mapping):
        return all(isinstance(part, str) for item in value.items() for part in item)
    return isinstance(value, (str, int, float, bool))
