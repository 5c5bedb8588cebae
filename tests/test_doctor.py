"""What the doctor says of other cullers: who culls, by what it sees, and never that there are none."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest
from handing_over import replaced

from hubguard import config, doctor, understudy
from hubguard.doctor import Finding
from hubguard.hub.nouns import TokenOwner
from hubguard.inhub import SCOPES
from hubguard.inhub.handover import Handover, Kind, Suspect


class Hub:
    def __init__(self, **services: tuple[str, ...]) -> None:
        self.services = services
        self.owner = TokenOwner("service", "hubguard", frozenset(SCOPES))

    async def whoami(self) -> TokenOwner:
        return self.owner

    async def list_services(self) -> dict[str, tuple[str, ...]]:
        return self.services


async def said(hub: Hub, told: Handover | None = None) -> list[tuple[Finding, str]]:
    registration = {} if told is None else {"handover": told.to_dict()}
    return [(check.finding, check.what) for check in await doctor._cullers(registration, hub)]  # type: ignore[arg-type]


def standing_by(folder: Path) -> tuple[str, ...]:
    part = understudy.Part(str(folder), 0, 1, understudy.Terms(), ("jupyterhub-idle-culler",))
    return tuple(understudy.command_for(part, "python3"))


@pytest.mark.parametrize(("runs", "finding"), [(True, Finding.WARNING), (False, Finding.FINE)])
async def test_who_culls_beside_an_understudy_and_with_which_settings(tmp_path: Path, runs: bool, finding: Finding):
    understudy.write(tmp_path / understudy.report_file(0), understudy.Report(1.0, runs, "because", 1.0))
    ((found, what),) = await said(Hub(idle=standing_by(tmp_path)), replaced(tmp_path))
    assert found is finding
    assert "because" in what
    assert ("idle_timeout_s = 600.0" in what) is not runs


async def test_an_understudy_that_has_said_nothing_is_unknown(tmp_path: Path):
    ((found, what),) = await said(Hub(idle=standing_by(tmp_path)))
    assert found is Finding.WARNING
    assert "unknown" in what


async def test_a_culler_that_stays_is_named_with_the_reason():
    hub = Hub(idle=("jupyterhub-idle-culler", "--cull-users"))
    ((found, what),) = await said(hub, Handover(why="HubGuard.on_idle_culler is 'refuse'."))
    assert found is Finding.WRONG
    assert "deletes users" in what
    assert "refuse" in what


async def test_what_looks_like_a_culler_is_named_and_what_cannot_be_seen_too(tmp_path: Path):
    suspects = (
        Suspect("janitor", Kind.LIKELY, "the service janitor may"),
        Suspect("portal", Kind.POSSIBLE, "portal may"),
    )
    told = replace(replaced(tmp_path), cullers=(), replaced=False, suspects=suspects)
    assert await said(Hub(), told) == [(Finding.WARNING, "the service janitor may"), (Finding.FINE, "portal may")]
    ((_, what),) = await said(Hub(elsewhere=(), hubguard=()))
    assert "elsewhere" in what
    assert "unknown" in what
    ((_, what),) = await said(Hub(pages=("python3", "-m", "pages")))
    assert "no other culler" not in what


async def of_token(kind: str, name: str, scopes: frozenset[str]) -> list[doctor.Check]:
    hub = Hub()
    hub.owner = TokenOwner(kind, name, scopes)
    return await doctor._scopes(config.load(environ={}), hub)  # type: ignore[arg-type]


async def test_incident_the_doctor_missed_a_scope_of_an_admin_who_has_more_and_called_her_a_service():
    """An admin ran it with a token of her own: "access:services!service=hubguard is missing … the service 'root'"."""
    wider = frozenset(scope.partition("!")[0] for scope in SCOPES)
    scopes, token = await of_token("user", "root", wider)
    assert (scopes.finding, scopes.what) == (Finding.FINE, "the user 'root' has all scopes that HubGuard uses")
    assert (token.finding, token.subject) == (Finding.FINE, "token")
    assert "belongs to the user 'root'" in token.what
    (scopes,) = await of_token("service", "hubguard", frozenset(SCOPES))
    assert scopes.what == "the service 'hubguard' has all scopes that HubGuard uses"


async def test_a_scope_that_is_filtered_or_missing_is_named_with_whose_role_lacks_it():
    held = frozenset(SCOPES) - {"delete:servers"} | {"delete:servers!group=x"}
    (missing,) = await of_token("service", "mine", held)
    assert (missing.finding, missing.do) == (Finding.WRONG, "Add it to the role of the service 'mine'.")
    missing, _ = await of_token("user", "ada", held)
    assert missing.do == "Add it to the role of the user 'ada'."


async def test_incident_an_external_culler_of_an_admin_was_named_with_nothing_to_do_about_it(tmp_path: Path):
    """A token and no command: it stopped servers beside HubGuard, and the doctor said that it "may"."""
    told = replace(
        replaced(tmp_path),
        cullers=(),
        replaced=False,
        suspects=(Suspect("ext", Kind.POSSIBLE, "ext may stop servers"),),
    )
    (seen,) = await doctor._cullers({"handover": told.to_dict()}, Hub())  # type: ignore[arg-type]
    assert (seen.finding, seen.what) == (Finding.FINE, "ext may stop servers")
    assert seen.do == "If it stops idle servers, let only one of the two do that: end it, or have HubGuard observe."
    (unseen,) = await doctor._cullers({}, Hub(ext=()))  # type: ignore[arg-type]
    assert "ext" in unseen.what
    assert "let only one of the two do that" in unseen.do


def of_config(folder: Path, *lines: str) -> dict[str, list[doctor.Check]]:
    """What the doctor finds in a hub's config with the include before these lines, by subject."""
    file = folder / "jupyterhub_config.py"
    file.write_text("\n".join(["from hubguard.inhub import register", "register(c)", *lines, ""]))
    found: dict[str, list[doctor.Check]] = {}
    for check in doctor.examine_config(file):
        found.setdefault(check.subject, []).append(check)
    return found


def test_custom_scopes_that_are_set_after_the_include_are_found(tmp_path: Path):
    assert "scopes" not in of_config(tmp_path, "c.JupyterHub.custom_scopes.update({'custom:x': {'description': 'x'}})")
    (check,) = of_config(tmp_path, "c.JupyterHub.custom_scopes = {'custom:x': {'description': 'x'}}")["scopes"]
    assert check.finding is Finding.WARNING
    assert "overwrites c.JupyterHub.custom_scopes" in check.what
    assert "update()" in check.do


@pytest.mark.parametrize(
    ("lines", "warned"),
    [
        (
            ["c.ConfigurableHTTPProxy.should_start = False", "c.ConfigurableHTTPProxy.api_url = 'http://proxy:8001'"],
            True,
        ),
        (
            [
                "c.ConfigurableHTTPProxy.should_start = False",
                "c.ConfigurableHTTPProxy.api_url = 'http://127.0.0.1:8001'",
            ],
            False,
        ),
        (["c.ConfigurableHTTPProxy.api_url = 'http://proxy:8001'"], False),
        (
            [
                "c.ConfigurableHTTPProxy.should_start = False",
                "c.ConfigurableHTTPProxy.api_url = 'http://proxy:8001'",
                "c.HubGuard.url = 'http://hub:10101'",
            ],
            False,
        ),
    ],
)
def test_pages_that_a_proxy_in_another_container_cant_reach_are_found(tmp_path: Path, lines: list[str], warned: bool):
    found = of_config(tmp_path, *lines)
    assert ("pages" in found) is warned
    if warned:
        assert "HubGuard.url" in found["pages"][0].do
