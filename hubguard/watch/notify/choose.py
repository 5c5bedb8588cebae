"""Makes the receivers that the settings name, with their secrets from the environment and from files."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from hubguard.watch.decide.receivers import Problem, ReceiverSettings, place, read_receivers, wrong_url
from hubguard.watch.model import Severity
from hubguard.watch.notify import pagerduty
from hubguard.watch.notify.alertmanager import Alertmanager
from hubguard.watch.notify.apprise import Apprise
from hubguard.watch.notify.email import Email
from hubguard.watch.notify.pagerduty import PagerDuty
from hubguard.watch.notify.port import Receiver
from hubguard.watch.notify.slack import Slack
from hubguard.watch.notify.webhook import Webhook

LARGEST_SECRET = 64 * 1024
"""Maximum bytes that are read of a file with a secret."""


@dataclass(frozen=True, slots=True)
class Named:
    """A receiver by its name in the settings, and of what it is notified."""

    name: str
    severities: frozenset[Severity]
    receiver: Receiver


def open_receivers(value: object, environ: Mapping[str, str]) -> tuple[tuple[Named, ...], tuple[Problem, ...]]:
    """The receivers that can be used, in the order of the setting, and what keeps others from it that are set correctly."""
    read, _ = read_receivers(value)
    opened: list[Named] = []
    wrong: list[Problem] = []
    for settings in read:
        made = _open(settings, environ)
        if isinstance(made, Problem):
            wrong.append(made)
        else:
            opened.append(Named(settings.name, settings.severities, made))
    return tuple(opened), tuple(wrong)


def receivers_for(receivers: Sequence[Named], severity: Severity) -> tuple[str, ...]:
    """The names of those that are notified of an alert of that severity."""
    return tuple(named.name for named in receivers if severity in named.severities)


def _open(settings: ReceiverSettings, environ: Mapping[str, str]) -> Receiver | Problem:
    secrets = {name: secret.reveal() for name, secret in settings.secrets.items()}
    for name, (way, which) in settings.sources.items():
        text = _secret(way, which, environ)
        if isinstance(text, Problem):
            return Problem(place(settings.name, f"{name}_{way}"), text.why)
        if name == "url" and (why := wrong_url(settings.kind, text)):
            return Problem(place(settings.name, f"{name}_{way}"), f"the URL in {which} {why}")
        secrets[name] = text
    options = settings.options
    if settings.kind == "slack":
        return Slack(secrets["url"])
    if settings.kind == "pagerduty":
        return PagerDuty(secrets["routing_key"], options.get("url", pagerduty.URL))
    if settings.kind == "alertmanager":
        return Alertmanager(options["url"], secrets.get("token", ""))
    if settings.kind == "webhook":
        return Webhook(secrets["url"], settings.name, secrets.get("token", ""))
    if settings.kind == "email":
        return Email(
            options["host"],
            options["from"],
            [options["to"]] if isinstance(options["to"], str) else options["to"],
            port=options.get("port"),
            security=options.get("security", "starttls"),
            user=options.get("user", ""),
            password=secrets.get("password", ""),
        )
    try:
        return Apprise(secrets["url"])
    except ImportError:
        return Problem(place(settings.name, "kind"), "apprise isn't installed. Install hubguard[apprise]")
    except ValueError as error:
        return Problem(place(settings.name, "url"), str(error))


def _secret(way: str, which: str, environ: Mapping[str, str]) -> str | Problem:
    if way == "env":
        text = environ.get(which, "").strip()
        return text or Problem("", f"the environment variable {which} isn't set where HubGuard runs")
    try:
        with Path(which).open("rb") as file:
            text = file.read(LARGEST_SECRET).decode().strip()
    except OSError as error:
        return Problem("", f"{which} can't be read: {error.strerror}")
    except ValueError:
        return Problem("", f"{which} isn't text")
    if not text or "\n" in text:
        return Problem("", f"{which} must hold the secret on one line")
    return text
