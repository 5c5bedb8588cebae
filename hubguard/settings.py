"""What every section of settings has in common, and the section that belongs to no feature."""

from __future__ import annotations

import difflib
from collections.abc import Mapping, Sequence
from typing import ClassVar
from urllib.parse import urlsplit

from traitlets import Bool, Enum, Float, Int, List, Unicode
from traitlets.config import Configurable

from hubguard.errors import ConfigError
from hubguard.model import ARMING_COVERS, NEEDS_NO_ARMING
from hubguard.times import DAY_S, YEAR_S


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

    def notes(self) -> list[str]:
        """What is wrong with settings that leave everything else as it is: sentences that start with the setting."""
        return []

    @classmethod
    def note_on_former(cls, name: str) -> str | None:
        """What an operator who still sets ``name`` should know; None if it was never a setting."""
        setting = f"{cls.__name__}.{name}"
        if name in cls.constants:
            unit = " s" if name.endswith("_s") else ""
            return f"{setting} is no longer a setting; HubGuard uses {getattr(cls, name):g}{unit}. Remove the line."
        if name in cls.replaced:
            return f"{setting} is no longer a setting. {cls.replaced[name]} Remove the line."
        return None


class HubGuard(Section):
    """The service itself."""

    armed = Bool(
        None,
        allow_none=True,
        help=f"""Whether HubGuard acts by itself. None: an admin decides on the page, through the API or with `hubguard
        arm`; until then it isn't armed. True or False takes precedence over that. {ARMING_COVERS} {NEEDS_NO_ARMING}""",
    ).tag(config=True)
    url = Unicode(
        "http://127.0.0.1:0",
        help="""URL at which the hub's proxy reaches HubGuard's pages. Port 0 picks a free port at each start of the
        hub. If the proxy runs on another machine or in another pod, use a URL that it can reach. Set it before the
        include.""",
    ).tag(config=True)
    bind_ip = Unicode(
        "",
        help="""Address to listen on. Empty: the host in `HubGuard.url`. Set it, for example to 0.0.0.0, if that host is
        a name that reaches this machine only from outside.""",
    ).tag(config=True)
    db_url = Unicode(
        "sqlite:///hubguard.sqlite",
        help="""SQLAlchemy URL of HubGuard's own database: the journal, the lease and what people have set. Each hub
        needs its own. A relative SQLite path starts at the folder that the hub runs in. Default: the environment
        variable HUBGUARD_DB_URL, if set.""",
    ).tag(config=True)
    on_idle_culler = Enum(
        ["take over", "refuse"],
        default_value="take over",
        help="""What to do if jupyterhub-idle-culler is registered as a service, too. "take over": HubGuard does its work,
        with its settings and within its rights, and the culler runs whenever HubGuard can't. "refuse": the culler keeps
        running, and HubGuard only observes.""",
    ).tag(config=True)
    act_beside = List(
        Unicode(),
        help="""Services that may stop servers and beside which HubGuard acts anyway: they aren't cullers, or you want
        both. Beside a service that looks like another culler, HubGuard only observes until it is named here.""",
    ).tag(config=True)
    hub_db_url = Unicode(
        "",
        help="""SQLAlchemy URL of the hub's own database. HubGuard only reads it; a cycle then costs the hub next to
        nothing. Empty: HubGuard reads everything through the hub's API. "hub", in the hub's config: the database that
        this config names. A read-only account is enough.""",
    ).tag(config=True)
    read_proxy = Bool(
        True,
        help="""Whether HubGuard reads the routes of a configurable-http-proxy, which knows of traffic minutes before
        the hub does, and watches the proxy by a route of its own, so that a proxy that is gone, hangs or has lost its
        routes shows within seconds.""",
    ).tag(config=True)
    authenticate_prometheus = Bool(
        True,
        help="""Whether `/metrics` needs a token that may read. False opens it, as the hub's setting of the same name does: a
        scrape by annotation can't send a token. The metrics name no user and no server.""",
    ).tag(config=True)
    longest_exemption_s = Float(
        30 * DAY_S,
        help="Maximum seconds for which an exemption keeps a server. Range: 0 (no exemptions) to a year.",
    ).tag(config=True, low=0.0, high=YEAR_S)
    journal_days = Int(
        400,
        help="""Days after which the journal forgets an entry, unless it is still open. Range: 8 to 36,600. The default
        lets you compare a semester with the one a year before.""",
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


def closest(name: str, names: Sequence[str]) -> str:
    """The end of a sentence about an unknown ``name``: the one that was probably meant, or all ``names``."""
    near = difflib.get_close_matches(name, names, n=1)
    return f"; did you mean {near[0]}?" if near else f"; choose from {', '.join(sorted(names))}"
