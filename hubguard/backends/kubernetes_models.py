"""Pods, as the API server's JSON has them, as far as they are about servers."""

from __future__ import annotations

import asyncio
import json
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime, timedelta
from typing import Any

from hubguard.errors import BackendError, HubGarbled
from hubguard.hub.models import read_time

NOTEBOOK = "notebook"
"""What KubeSpawner calls the container with the server in it, whatever others stand beside it."""

AT_ONCE = 50
"""Pods that are read before others get their turn: some 10 ms."""

DECODER = json.JSONDecoder()
GAP = re.compile(r"[ \t\n\r]*")


@dataclass(frozen=True, slots=True)
class Pod:
    """A pod. ``component`` is its label of that name. ``user`` and ``server`` are the server that it says it is for; ``user``
    is None if it doesn't say, or says two things.

    ``api_url`` is the JUPYTERHUB_API_URL of its notebook container without a slash at the end, None if that can't be seen.
    ``alive`` is whether its server runs, None: unknown, with ``detail`` in one clause. ``leaving``: it is
    being deleted.
    """

    uid: str
    name: str
    namespace: str
    component: str
    user: str | None
    server: str
    api_url: str | None
    created: datetime
    alive: bool | None
    detail: str
    leaving: bool


@dataclass(frozen=True, slots=True)
class PodList:
    """One answer to a list. ``token`` continues it, "" at its end; ``version`` is the state of the cluster that it is of."""

    pods: tuple[Pod, ...]
    version: str
    token: str


async def read_pod_list(body: bytes | bytearray) -> PodList:
    """A list of pods, from its JSON. Raises BackendError, without any word out of it: pods carry their users' tokens.

    It lets others run every few pods: some thousands of them take a second, and hundreds of megabytes if read at once.
    """
    pods: list[Pod] = []
    head: dict[str, Any] | None
    try:
        text = body.decode()
        head, at = {}, _past(text, 0, "{")
        while text[at] != "}":
            at = _past(text, at, ",") if head else at
            key, at = DECODER.raw_decode(text, at)
            at = _past(text, at, ":")
            if key == "items" and text[at] == "[":
                head[key], at = [], _past(text, at, "[")
                while text[at] != "]":
                    at = _past(text, at, ",") if pods else at
                    item, at = DECODER.raw_decode(text, at)
                    pods.append(_read(item))
                    at = _past(text, at)
                    if len(pods) % AT_ONCE == 0:
                        await asyncio.sleep(0)
                at += 1
            else:
                head[key], at = DECODER.raw_decode(text, at)
            at = _past(text, at)
        if _past(text, at, "}") != len(text):
            head = None
    except (ValueError, IndexError, TypeError, RecursionError):
        # The error itself has the whole text in it.
        head = None
    if head is None or head.get("kind") != "PodList":
        raise _garbled("isn't a list of pods")
    metadata = _mapping(head, "metadata")
    version = _text(metadata, "resourceVersion")
    if "items" not in head or _sequence(head, "items") or not version:
        # What is cut short must not look like a cluster in which nothing runs.
        raise _garbled("is a list of pods without items or version")
    return PodList(tuple(pods), version, _text(metadata, "continue"))


def read_pod(answer: Any) -> Pod:
    """One pod. Raises BackendError, without any word out of it."""
    if not isinstance(answer, dict) or answer.get("kind") != "Pod":
        raise _garbled("isn't a pod")
    return _read(answer)


def _past(text: str, at: int, mark: str = "") -> int:
    """The place after white space, that mark, and white space again. Raises ValueError if it isn't there."""
    at = GAP.match(text, at).end()  # type: ignore[union-attr]  # it matches nothing, too
    if not text.startswith(mark, at):
        raise ValueError(mark)
    return GAP.match(text, at + len(mark)).end()  # type: ignore[union-attr]  # as above


def _read(model: Any) -> Pod:
    if not isinstance(model, dict):
        raise _garbled("has something else in it than pods")
    metadata, spec, status = (_mapping(model, key) for key in ("metadata", "spec", "status"))
    uid, name, namespace = (_text(metadata, key) for key in ("uid", "name", "namespace"))
    created = _time(metadata, "creationTimestamp")
    if not (uid and name and namespace and created):
        raise _garbled("has a pod without name, uid, namespace or time of creation")
    environment = _environment(_named(spec, "containers"))
    user, server = _whose(environment, _mapping(metadata, "annotations"))
    api_url = environment.get("JUPYTERHUB_API_URL")
    alive, detail = _state(metadata, status)
    return Pod(
        uid=uid,
        name=name,
        namespace=namespace,
        component=_text(_mapping(metadata, "labels"), "component"),
        user=user,
        server=server,
        api_url=api_url.rstrip("/") if api_url else None,
        created=created,
        alive=alive,
        detail=detail,
        leaving="deletionTimestamp" in metadata,
    )


def _environment(container: Mapping[str, Any]) -> dict[str, str | None]:
    """What its environment is set to; None for what comes from elsewhere (a secret, ...) and can't be seen here."""
    values: dict[str, str | None] = {}
    for variable in _sequence(container, "env"):
        if not isinstance(variable, dict) or not isinstance(variable.get("name"), str):
            raise _garbled("has a pod with an environment that is none")
        # Go leaves out what is empty: KubeSpawner's default server has a JUPYTERHUB_SERVER_NAME without value.
        values[variable["name"]] = None if "valueFrom" in variable else _text(variable, "value")
    return values


def _whose(environment: Mapping[str, str | None], annotations: Mapping[str, Any]) -> tuple[str | None, str]:
    """(user, server). Labels don't count: they can't hold every name, and KubeSpawner alters those that they can't."""
    named = {
        (environment.get("JUPYTERHUB_USER"), environment.get("JUPYTERHUB_SERVER_NAME") or ""),
        (annotations.get("hub.jupyter.org/username"), annotations.get("hub.jupyter.org/servername") or ""),
    }
    named = {(user, server) for user, server in named if user}
    if len(named) != 1:
        return None, ""
    [(user, server)] = named
    if not isinstance(user, str) or not isinstance(server, str):
        raise _garbled("has a pod whose annotations aren't text")
    return user, server


def _state(metadata: Mapping[str, Any], status: Mapping[str, Any]) -> tuple[bool | None, str]:
    """(whether its server runs, that in one clause)."""
    if "deletionTimestamp" in metadata:
        return None, f"being deleted since {_asked_to_go(metadata):%Y-%m-%d %H:%M:%S} UTC"
    phase, reason = _text(status, "phase"), _text(status, "reason")
    container = _named(status, "containerStatuses")
    state = _mapping(container, "state")
    if phase in ("Succeeded", "Failed"):
        return False, f"{phase.lower()}{': ' + reason if reason else ''}"
    if "terminated" in state:
        # Containers beside it may keep the pod itself running; KubeSpawner, too, takes the server as stopped then.
        terminated = _mapping(state, "terminated")
        return False, f"the notebook container ended: {_text(terminated, 'reason') or 'no reason given'}"
    if phase == "Pending":
        return None, f"pending: {_why_pending(status, state)}"
    if phase != "Running":
        return None, f"phase {phase or 'none'}{': ' + reason if reason else ''}"
    if "waiting" in state:
        return None, f"the notebook container waits: {_text(_mapping(state, 'waiting'), 'reason') or 'no reason given'}"
    if "running" not in state:
        return None, "running, but nothing is said of its notebook container"
    if _condition(status, "Ready") == "False" and _condition(status, "ContainersReady") == "True":
        # Kubelets set the two alike. When a node falls silent, the control plane takes back Ready alone; all else is stale.
        return None, "its node has fallen silent; the notebook container ran when it was last heard of"
    return True, "running"


def _asked_to_go(metadata: Mapping[str, Any]) -> datetime:
    """When its deletion was asked for: ``deletionTimestamp`` is when its grace is over."""
    at = _time(metadata, "deletionTimestamp")
    grace_s = metadata.get("deletionGracePeriodSeconds") or 0
    if at is None or not isinstance(grace_s, (int, float)):
        raise _garbled("has a pod that is being deleted at no time")
    try:
        return at - timedelta(seconds=grace_s)
    except (ValueError, OverflowError):
        return at


def _why_pending(status: Mapping[str, Any], state: Mapping[str, Any]) -> str:
    for condition in _sequence(status, "conditions"):
        if (
            isinstance(condition, dict)
            and condition.get("type") == "PodScheduled"
            and condition.get("status") == "False"
        ):
            return _text(condition, "reason") or "not scheduled yet"
    # What it waits for may be an image of a container that has to run first.
    for first in _sequence(status, "initContainerStatuses"):
        waiting = _mapping(_mapping(first, "state"), "waiting") if isinstance(first, dict) else {}
        if _text(waiting, "reason") not in ("", "PodInitializing"):
            return _text(waiting, "reason")
    return _text(_mapping(state, "waiting"), "reason") or "starting"


def _condition(status: Mapping[str, Any], kind: str) -> str:
    for condition in _sequence(status, "conditions"):
        if isinstance(condition, dict) and condition.get("type") == kind:
            return _text(condition, "status")
    return ""


def _named(model: Mapping[str, Any], key: str) -> Mapping[str, Any]:
    """The one for the server's container in that list; empty if there is none."""
    for item in _sequence(model, key):
        if not isinstance(item, dict):
            raise _garbled(f"has a pod whose {key} are none")
        if item.get("name") == NOTEBOOK:
            return item
    return {}


def _mapping(model: Mapping[str, Any], key: str) -> Mapping[str, Any]:
    value = model.get(key)
    if value is not None and not isinstance(value, dict):
        raise _garbled(f"has a {key} that is none")
    return value or {}


def _sequence(model: Mapping[str, Any], key: str) -> Sequence[Any]:
    value = model.get(key)
    if value is not None and not isinstance(value, list):
        raise _garbled(f"has {key} that are no list")
    return value or []


def _text(model: Mapping[str, Any], key: str) -> str:
    value = model.get(key)
    if value is not None and not isinstance(value, str):
        raise _garbled(f"has a {key} that isn't text")
    return value or ""


def _time(model: Mapping[str, Any], key: str) -> datetime | None:
    try:
        return read_time(model.get(key), key)
    except HubGarbled:
        pass
    raise _garbled(f"has a {key} that is no time")


def _garbled(what: str) -> BackendError:
    return BackendError(
        f"The answer of the Kubernetes API server {what}, so the state of the pods is unknown."
        " Is it the API server that KUBERNETES_SERVICE_HOST leads to?"
    )
