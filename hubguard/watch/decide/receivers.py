"""Which receivers the settings name, and what is wrong with them. A wrong one leaves the others as they are."""

from __future__ import annotations

import difflib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any
from urllib.parse import urlsplit

from hubguard.watch.model import Severity

SETTING = "HubGuardWatch.receivers"
"""The setting, as an operator writes it."""

LONGEST_NAME = 64
"""Maximum characters of a receiver's name."""


class Secret:
    """A text that no ``repr``, log or error shows."""

    def __init__(self, text: str) -> None:
        self._text = text

    def reveal(self) -> str:
        """The text itself, for the request that needs it."""
        return self._text

    def __eq__(self, other: object) -> bool:
        return isinstance(other, Secret) and other._text == self._text

    def __hash__(self) -> int:
        return hash(self._text)

    def __repr__(self) -> str:
        return "[secret]"


@dataclass(frozen=True, slots=True)
class Kind:
    """What a kind of receiver takes: ``secrets`` inline, or with ``_env`` or ``_file`` behind the name. ``required`` are some
    of both.
    """

    secrets: tuple[str, ...] = ()
    options: Mapping[str, type] = field(default_factory=dict)
    required: tuple[str, ...] = ()
    urls: tuple[str, ...] = ("url",)


KINDS: Mapping[str, Kind] = {
    "slack": Kind(secrets=("url",), required=("url",)),
    "pagerduty": Kind(secrets=("routing_key",), options={"url": str}, required=("routing_key",)),
    "alertmanager": Kind(secrets=("token",), options={"url": str}, required=("url",)),
    "webhook": Kind(secrets=("url", "token"), required=("url",)),
    "email": Kind(
        secrets=("password",),
        options={"host": str, "port": int, "security": str, "user": str, "from": str, "to": list},
        required=("host", "from", "to"),
        urls=(),
    ),
    "apprise": Kind(secrets=("url",), required=("url",)),
}
"""The kinds of receivers, and what each takes besides ``kind`` and ``severities``."""

SECURITY = ("starttls", "tls", "none")
"""How the connection to a mail server is secured."""

_SOURCES = ("_env", "_file")


@dataclass(frozen=True, slots=True)
class ReceiverSettings:
    """One receiver. ``options`` are its plain options, ``secrets`` those given inline, ``sources`` where to read the others:
    by secret, ("env" or "file", which).
    """

    name: str
    kind: str
    severities: frozenset[Severity]
    options: Mapping[str, Any]
    secrets: Mapping[str, Secret]
    sources: Mapping[str, tuple[str, str]]


@dataclass(frozen=True, slots=True)
class Problem:
    """What is wrong with ``where`` in the setting, in one line that starts there."""

    where: str
    why: str

    def __str__(self) -> str:
        return f"{self.where}: {self.why}"

    @property
    def note(self) -> str:
        """The sentence for the Overview."""
        return f"{self}. Nobody is notified through it."


def place(name: str, option: str = "") -> str:
    """How an operator finds a receiver or its option in the settings."""
    return f"{SETTING}[{name!r}]{option and f'.{option}'}"


def hide_secrets(value: object) -> object:
    """The value of the setting with every inline secret as a Secret. What isn't a dict of dicts is hidden as a whole."""
    if not isinstance(value, Mapping):
        return Secret(repr(value))
    return {name: _hidden(given) for name, given in value.items()}


def _hidden(given: object) -> object:
    if not isinstance(given, Mapping):
        return Secret(repr(given))
    kind = KINDS.get(str(given.get("kind")))
    # Of an unknown kind or option nobody knows whether it is a secret.
    open_ = {"kind", "severities"} | (set(kind.options) if kind else set())
    return {
        option: value
        if option in open_ or str(option).endswith(_SOURCES) or isinstance(value, Secret)
        else Secret(str(value))
        for option, value in given.items()
    }


def read_receivers(value: object) -> tuple[tuple[ReceiverSettings, ...], tuple[Problem, ...]]:
    """The receivers that are right, in the order of the settings, and one problem for each that isn't."""
    if not isinstance(value, Mapping):
        return (), (Problem(SETTING, 'is a dict such as {"ops": {"kind": "slack", "url_env": "SLACK_URL"}}'),)
    receivers: list[ReceiverSettings] = []
    problems: list[Problem] = []
    for name, given in value.items():
        read = _read(name, given)
        if isinstance(read, Problem):
            problems.append(read)
        else:
            receivers.append(read)
    return tuple(receivers), tuple(problems)


def _read(name: object, given: object) -> ReceiverSettings | Problem:
    if not isinstance(name, str) or not name.isprintable() or not 1 <= len(name) <= LONGEST_NAME:
        return Problem(place(str(name)[:LONGEST_NAME]), f"a name is a text of 1 to {LONGEST_NAME} characters")
    if not isinstance(given, Mapping):
        return Problem(place(name), 'is a dict such as {"kind": "slack", "url_env": "SLACK_URL"}')
    if "kind" not in given:
        return Problem(place(name, "kind"), f"is missing; choose from {', '.join(KINDS)}")
    kind = KINDS.get(given["kind"]) if isinstance(given["kind"], str) else None
    if kind is None:
        return Problem(place(name, "kind"), f"no such kind of receiver{_meant(given['kind'], tuple(KINDS))}")
    known = ("kind", "severities", *kind.options, *(s + end for s in kind.secrets for end in ("", *_SOURCES)))
    for option in given:
        if option not in known:
            return Problem(place(name, str(option)), f"no such option{_meant(option, known)}")
    severities = _severities(given.get("severities"))
    if severities is None:
        values = ", ".join(severity.value for severity in Severity)
        return Problem(place(name, "severities"), f"is a list of these: {values}")
    secrets: dict[str, Secret] = {}
    sources: dict[str, tuple[str, str]] = {}
    for secret in kind.secrets:
        ways = [secret + end for end in ("", *_SOURCES) if secret + end in given]
        if len(ways) > 1:
            return Problem(place(name, ways[1]), f"is given as {ways[0]}, too; keep one of them")
        for way in ways:
            text = given[way]
            if way == secret:
                secrets[secret] = text if isinstance(text, Secret) else Secret(str(text))
            elif not isinstance(text, str) or not text:
                return Problem(place(name, way), "is the name of an environment variable or a file")
            else:
                sources[secret] = way.removeprefix(f"{secret}_"), text
    there = {*secrets, *sources, *given}
    for option in kind.required:
        if option not in there:
            if option in kind.secrets:
                return Problem(place(name, f"{option}_env"), f"is missing; set it, or {option}_file")
            return Problem(place(name, option), "is missing")
    options = {option: given[option] for option in kind.options if option in given}
    if problem := _wrong_option(name, kind, options):
        return problem
    for url in kind.urls:
        text = secrets[url].reveal() if url in secrets else options.get(url)
        if text is not None and (why := wrong_url(given["kind"], text)):
            return Problem(place(name, url), why)
    return ReceiverSettings(name, given["kind"], severities, options, secrets, sources)


def _wrong_option(name: str, kind: Kind, options: Mapping[str, Any]) -> Problem | None:
    for option, value in options.items():
        wanted = kind.options[option]
        if wanted is list:
            value = [value] if isinstance(value, str) else value  # noqa: PLW2901
            if not isinstance(value, (list, tuple)) or not value or not all(map(_is_address, value)):
                return Problem(place(name, option), "is a list of e-mail addresses")
        elif isinstance(value, bool) or not isinstance(value, wanted):
            return Problem(place(name, option), f"is a {'whole number' if wanted is int else 'text'}, not {value!r}")
        elif isinstance(value, int) and not 1 <= value <= 65535:
            return Problem(place(name, option), f"is a port from 1 to 65535, not {value!r}")
        elif option == "security" and value not in SECURITY:
            return Problem(place(name, option), f"is one of {', '.join(SECURITY)}, not {value!r}")
        elif option == "from" and not _is_address(value):
            return Problem(place(name, option), "is an e-mail address")
    return None


def _is_address(value: object) -> bool:
    return isinstance(value, str) and value.isprintable() and "@" in value.strip("@") and " " not in value


def wrong_url(kind: str, url: str) -> str:
    """Why ``url`` can't be the address of a receiver of that kind, without the URL; "" if it can."""
    try:
        parts = urlsplit(url)
        port = parts.port
    except ValueError:
        return "is no URL"
    if not url.isprintable() or " " in url:
        return "is no URL: it has a space or a line break in it"
    if kind == "apprise":
        return "" if parts.scheme else "has no scheme; apprise's URLs start with the service, for example mailto://"
    if not parts.scheme or "://" not in url:
        return "has no scheme; write http:// or https:// in front"
    if parts.scheme not in ("http", "https"):
        return "has another scheme than http or https"
    return "" if parts.hostname and port != 0 else "has no host"


def _severities(value: object) -> frozenset[Severity] | None:
    """Those to be notified of, all by default; None if that can't be read."""
    if value is None:
        return frozenset(Severity)
    if not isinstance(value, Sequence) or isinstance(value, str) or not value:
        return None
    values = {severity.value: severity for severity in Severity}
    return frozenset(values[one] for one in value) if all(one in values for one in value) else None


def _meant(name: object, names: Sequence[str]) -> str:
    near = difflib.get_close_matches(str(name), names, n=1)
    return f"; did you mean {near[0]}?" if near else f"; choose from {', '.join(names)}"
