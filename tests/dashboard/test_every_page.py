"""What holds at every address of the route table, whatever feature it belongs to. A new feature passes these tests for free.

Only a placeholder of a new kind, or a request that takes more than an empty body, has to be added here.
"""

from __future__ import annotations

import html
import json
import re
from collections.abc import AsyncIterator, Callable
from dataclasses import dataclass, replace
from html.parser import HTMLParser
from typing import Any
from urllib.parse import quote, unquote_plus

import pytest
import sqlalchemy as sa
from asked_site import AWKWARD, PREFIX, Site, sites
from builders import NOW, minutes
from doubles.drift import PROVED, drift_of, report_with, world_of
from doubles.drift import one_of_each as one_drift_of_each
from doubles.guard import PlacedGuard, guard_with, made_up
from doubles.prune import FakePruning, made_up_users, one_of_each, plan_of, verdict_of
from doubles.watch import alert_of, every_alert, readings_of_each_kind
from hypothesis import HealthCheck, Phase, given, settings
from hypothesis import strategies as st
from tornado.web import RequestHandler

from hubguard.cull.decide.judge import judge
from hubguard.cull.model import Known
from hubguard.dashboard.pages import Change
from hubguard.dashboard.routes import API, FRAGMENTS, PAGES
from hubguard.drift.model import REMEDIES, DriftKind, Repaired
from hubguard.journal import tables
from hubguard.journal.model import Event, Stance
from hubguard.model import Finding, FindingKind, OutcomeKind, Route, Server, Tally
from hubguard.proxy.model import ProxyWatchStatus, WatchState
from hubguard.prune.model import PruneReason, PruneState
from hubguard.prune.plan_pages import TurnPlan
from hubguard.snapshot.model import Brake, BrakeReason, Evidence
from hubguard.status import Mode
from hubguard.watch.model import Sample, Severity
from hubguard.watch.store.alerts import AlertStore
from hubguard.watch.store.incidents import IncidentStore
from hubguard.web.openapi import BY_THE_HUB

pytestmark = pytest.mark.contract

WORDS = {"{word}": Change.words, "{turn}": TurnPlan.words}
QUERIES = {"repairs": "?kind=server-dead"}
"""What an address takes to show anything."""

STALE = 21
FORM = {
    **{"user": "ada", "server": "", "scope": "user", "until": "day", "inactive": "90", "never": "0"},
    **{"count": str(STALE), "acknowledged": "KubeSpawner", "why": "spring", "rule": "DiskLow"},
    **{"title": "503 for everybody", "text": "restarted the proxy"},
}
BODIES: dict[str, Any] = {
    "api/v1/exemptions": {"user": "ada", "for_s": 3600},
    "api/v1/incidents": {"title": "503 for everybody"},
    "api/v1/incidents/{id}/notes": {"text": "restarted the proxy"},
    "api/v1/outlived": {"user": "ada", "server": ""},
    "api/v1/starts/failed": {"user": "ada", "server": "", "error": "TimeoutError"},
    "api/v1/silences": {"rule": "DiskLow", "for_s": 3600},
    "api/v1/repairs": {"kinds": ["server-dead"]},
    "api/v1/plans/{digest}/apply": {"count": STALE, "acknowledged": ["KubeSpawner"]},
    "api/v1/plans/{digest}/restore": {"count": 1},
}
"""What a request takes to do anything; the others take an empty body."""


def spelled(path: str) -> list[str]:
    """``path``, once for each word that its placeholder stands for."""
    for placeholder, words in WORDS.items():
        if placeholder in path:
            return [path.replace(placeholder, word) for word in words]
    return [path]


TABLE = {**PAGES, **FRAGMENTS, **API}
ADDRESSES = [
    (method, address)
    for path, handler in TABLE.items()
    for method in ("GET", "POST", "DELETE")
    if getattr(handler, method.lower()) is not getattr(RequestHandler, method.lower())
    for address in spelled(path)
]
READ = [path for method, path in ADDRESSES if method == "GET"]
CHANGES = [(method, path) for method, path in ADDRESSES if method != "GET"]
SHOWN = [path for path in READ if path not in API and path not in {"plans/new", "plans/{digest}/apply"}]
"""What people see; the two others lead elsewhere."""

OPEN = {path for path, handler in API.items() if any(one.needs == "none" for one in handler.operations.values())}
LISTS = [
    path
    for path, handler in API.items()
    if "get" in handler.operations and any(param.name == "limit" for param in handler.operations["get"].query)
]


def needs(method: str, path: str) -> str:
    """The right that a request to the API takes."""
    return API[path].operations[method.lower()].needs if path in API else ""


@dataclass
class Place:
    """A site with something to show at every address, and what stands there for the placeholders."""

    site: Site
    user: str
    name: str
    digests: tuple[str, ...]

    def at(self, path: str) -> list[str]:
        """The addresses that ``path`` stands for: one for each plan if it is a plan's."""
        whose = {"user": quote(self.user, safe=""), "name": quote(self.name, safe=""), "id": "1"}
        whose["signal"] = "hub_latency_seconds"
        digests = self.digests if "{digest}" in path else ("",)
        return [path.format(**whose, digest=digest) + QUERIES.get(path, "") for digest in digests]

    def deeds(self) -> list[Any]:
        """Whatever the guard was asked to do."""
        guard = self.site.guard
        looked = {"users", "user"}
        of_plans = [deed for deed in guard.pruning.asked if deed[0] not in looked]
        return [
            *guard.asked,
            *of_plans,
            *guard.kept,
            *AlertStore(guard.books.sync).silences(NOW),
            *guard.pruning.states.values(),
            *guard.drifts.plans,
            *guard.drifts.asked,
            guard.drifts.sources.looks,
        ]


def full(name: str = "ada", server: str = "gpu") -> tuple[PlacedGuard, tuple[str, ...]]:
    """A guard with something at every address, and the digests of its plans. All that has a name or a text is called so."""
    started, last = NOW - minutes(900), NOW - minutes(165)
    named = [Server(name, one, True, None, started, last) for one in ("", server)]
    guard = guard_with([*made_up(40), *named], Mode.BRAKED)
    late = replace(
        judge(named[1], guard.policy, Known(), NOW),
        rule="gpu",
        evidence=Evidence.PROXY,
        known=Known(exemption=None, active_at=NOW - minutes(500), clock_from=NOW - minutes(600)),
    )
    cycle = guard.last_cycle
    guard.change(
        brake=Brake(BrakeReason.OVER_CAP, NOW - minutes(7), name, name, acceptable=True),
        stance=Stance(armed=True, armed_by=name, armed_at=NOW, armed_why=name),
        notes=(name,),
        clock_from=NOW,
        oldest_overdue=late,
        tally=Tally(done=300, failed=1),
        recent=Tally(1, 2, 3, 4),
        findings=(Finding(FindingKind.RULE, NOW, name), Finding(FindingKind.CAME_BACK, NOW, name, name, server)),
        last_cycle=replace(cycle, verdicts=tuple(late if one.server == named[1] else one for one in cycle.verdicts)),
    )
    until = NOW + minutes(60)
    for i in range(10):
        guard.keep(name, (None, server)[i % 2], until=until, actor=name, why=name)
    for event in Event:
        guard.write(event, user=name, server=server, actor=name, detail=name)
    guard.write(Event.KEPT, user=name, server=None, detail=name)
    guard.write(Event.OUTCOME, user=name, server="", action="delete-user", outcome=OutcomeKind.DONE)
    _drift(guard, name, server, named)
    _watch(guard, name)
    return guard, _plans(guard, name)


def _drift(guard: PlacedGuard, name: str, server: str, servers: list[Server]) -> None:
    backend = replace(PROVED, id=name, user=name, server=server, name=name, detail=name)
    texts = {"subject": name, "expected": name, "observed": name, "evidence": (name,), "backend": backend}
    drifts = [drift_of(kind, name, server=server, **texts) for kind in DriftKind]
    drifts.append(drift_of(DriftKind.SERVICE_ROUTE_MISSING, None, subject=name))
    world = world_of(servers)
    route = Route(f"/{name}", f"http://{name}", name, server)
    world = replace(world, routes={**(world.routes or {}), route.path: route}, prefixes={name: name})
    guard.drifts.report = report_with(
        [*one_drift_of_each(), *drifts],
        world=world,
        watch=ProxyWatchStatus(WatchState.WIPED, NOW, name, missing=(name,)),
        narrowed=(name,),
        cleared=tuple(drifts[:2]),
    )
    repairs = guard.drifts.plan(kinds=tuple(REMEDIES)).repairs
    guard.drifts.plans.clear()
    guard.drifts.report = replace(guard.drifts.report, repaired=(Repaired(repairs[1], name, NOW),))


def _watch(guard: PlacedGuard, name: str) -> None:
    _alerts(guard, name)
    incidents = IncidentStore(guard.books.sync)
    for i in range(5):
        incident = incidents.open_incident(f"{name} {i}", name, NOW - minutes(30 - i))
        incidents.add_note(incident.id, name, name, NOW - minutes(20))
        incidents.close_incident(incident.id, name, NOW - minutes(10), name)
    with guard.books.sync.writing() as connection:  # the one that the addresses lead to goes on
        connection.execute(sa.update(tables.incident).where(tables.incident.c.id == 1).values(closed_at=None))


def _alerts(guard: PlacedGuard, name: str) -> None:
    store = AlertStore(guard.books.sync)
    alerts = [*every_alert(), alert_of("DiskFull", name)]
    for number, alert in enumerate(alerts):
        if alert.raised:
            id_ = store.raise_alert(alert, Severity.TODAY, name, 1, ())
            alerts[number] = replace(alert, id=id_)
    guard.watch.place(alerts, readings_of_each_kind(name))
    id_ = store.raise_alert(alert_of("DiskLow", name), Severity.TODAY, name, 1, ())
    store.note_verdict(id_, name)
    store.resolve_alert(id_, 0.1, name, 1, (), NOW)
    for _ in range(5):
        store.silence("DiskLow", name, NOW + minutes(60), name, name, NOW)
    samples = [Sample((NOW - minutes(60 - ago)).timestamp(), 0.1, 0.2, 0.3) for ago in range(60)]
    guard.watch.history.restore(60, {f"disk_free_share:{name}": samples})


def _plans(guard: PlacedGuard, name: str) -> tuple[str, ...]:
    unknown = verdict_of("zoe", PruneReason.CANT_TELL, groups=None, roles=None, tokens=None, shares=None, id=None)
    pruning = guard.pruning = FakePruning(
        [verdict_of(name, groups=(name,)), unknown, *one_of_each(), *made_up_users(20)]
    )
    waiting, begun, paused = (pruning.add(plan_of(pruning.verdicts, digest=one * 64)) for one in "abc")
    pruning.begin(begun.digest, name, name)
    pruning.settle(
        begun.digest, OutcomeKind.DONE, OutcomeKind.FAILED, OutcomeKind.SKIPPED, detail=name, per_s=1.0, left_s=18.0
    )
    pruning.begin(paused.digest, name, name)
    pruning.settle(paused.digest, OutcomeKind.FAILED, state=PruneState.PAUSED)
    return waiting.digest, begun.digest, paused.digest


@pytest.fixture
async def served() -> AsyncIterator[Callable[..., Place]]:
    async with sites() as make:

        def of(name: str = "ada", server: str = "gpu") -> Place:
            guard, digests = full(name, server)
            return Place(make(guard), name, server, digests)

        yield of


@pytest.fixture
def place(served: Callable[..., Place]) -> Place:
    return served()


def test_the_table_is_read_as_it_is_meant() -> None:
    assert {"", "servers/{user}/{name}", "plans/{digest}/pause", "fragments/drift"} <= set(SHOWN)
    assert ("POST", "exemptions/new") in CHANGES
    assert ("DELETE", "api/v1/exemptions/{id}") in CHANGES
    assert {"health", "health/live", "health/ready", "openapi.json"} == OPEN
    assert len(LISTS) >= 6


# -- who may ------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("method", "path"), [one for one in ADDRESSES if one[1] not in OPEN])
async def test_nobody_sees_or_does_anything(place: Place, method: str, path: str) -> None:
    before = place.deeds()
    for token in (None, "wrong", "nobody", "filtered"):
        known = token in {"nobody", "filtered"} and needs(method, path) != BY_THE_HUB
        for address in place.at(path):
            answer = await place.site.ask(address, token, method=method, headers={"Sec-Fetch-Mode": "cors"})
            assert answer.status == (403 if known else 401)
            assert "student-" not in answer.text
    assert place.deeds() == before


@pytest.mark.parametrize(("method", "path"), [one for one in CHANGES if needs(*one) != BY_THE_HUB])
async def test_what_a_foreign_page_sends_changes_nothing(place: Place, method: str, path: str) -> None:
    before = place.deeds()
    bodies = (FORM, {**FORM, "_xsrf": "0" * 64}) if path not in API else (json.dumps(BODIES.get(path, {})),)
    for address in place.at(path):
        for body in bodies:
            answer = await place.site.ask(address, method=method, login="owner", body=body)
            assert answer.status == 403
    assert place.deeds() == before


@pytest.mark.parametrize(("method", "path"), [*CHANGES, ("GET", "")])
async def test_what_changes_something_asks_the_hub_anew_who_it_is(place: Place, method: str, path: str) -> None:
    for address in place.at(path):
        place.site.auth.lookups.clear()
        await place.site.ask(address, "owner", method=method)
        assert place.site.auth.lookups == [method != "GET"] * (needs(method, path) != BY_THE_HUB)


# -- answers ------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("path", [*READ, "nothing", "api/nothing", "static/live.js", "static/x"])
async def test_every_answer_is_hardened(place: Place, path: str) -> None:
    for address in place.at(path):
        answer = await place.site.ask(address, "owner")
        policy = answer.headers["Content-Security-Policy"]
        assert "default-src 'none'" in policy
        assert "frame-ancestors 'none'" in policy
        assert "unsafe" not in policy
        assert answer.headers["X-Content-Type-Options"] == "nosniff"
        assert answer.headers["Referrer-Policy"] == "no-referrer"
        assert "Server" not in answer.headers
        if not path.startswith("static/"):
            assert answer.headers["Cache-Control"] == "no-store"
            assert "ETag" not in answer.headers


@pytest.mark.parametrize("path", [*READ, "nothing"])
async def test_head_answers_as_get_does_without_the_body(place: Place, path: str) -> None:
    for address in place.at(path):
        for token in ("owner", "nobody"):
            get, head = [await place.site.ask(address, token, method=method) for method in ("GET", "HEAD")]
            assert head.status == get.status
            assert head.text == ""
            assert head.headers["Content-Type"] == get.headers["Content-Type"]


@pytest.mark.parametrize("path", [path for _, path in CHANGES if path not in READ])
async def test_head_does_nothing_where_there_is_nothing_to_get(place: Place, path: str) -> None:
    before = place.deeds()
    for address in place.at(path):
        assert (await place.site.ask(address, "owner", method="HEAD")).status == 405
    assert place.deeds() == before


@pytest.mark.parametrize(("method", "path"), [one for one in ADDRESSES if one[1] in API])
async def test_every_answer_is_as_described(served: Callable[..., Place], method: str, path: str) -> None:
    place = served()
    described = (await place.site.ask("openapi.json")).json
    assert set(described["paths"]) == {f"/{path}" for path in API}
    responses = described["paths"][f"/{path}"][method.lower()]["responses"]
    if "{digest}" in path:
        assert {"401", "403", "404"} <= set(responses)
    body = json.dumps(BODIES.get(path, {})) if method == "POST" else None
    good = []
    for address in place.at(path):
        answer = await place.site.ask(address, "owner", method=method, body=body)
        content = responses[str(answer.status)].get("content", {})
        assert answer.headers.get("Content-Type", "").partition(";")[0] in (content or {""})
        if "application/json" in content:
            conforms(answer.json, content["application/json"]["schema"], described["components"]["schemas"], path)
        good.append(answer.status < 300 or (answer.status == 503 and API[path].operations[method.lower()].unavailable))
    # One plan waits, one is under way, one is paused: what can be done to one of them is refused for another.
    assert any(good) if "{digest}" in path and method != "GET" else all(good) or needs(method, path) == BY_THE_HUB


def conforms(value: Any, schema: dict[str, Any], known: dict[str, Any], where: str) -> None:
    """``value`` is as ``schema`` says, with nothing more in it."""
    if "$ref" in schema:
        conforms(value, known[schema["$ref"].rsplit("/", 1)[1]], known, where)
    elif "allOf" in schema:
        # As older versions of pydantic put a reference that has a default.
        (one,) = schema["allOf"]
        conforms(value, one, known, where)
    elif "anyOf" in schema:
        fits = [one for one in schema["anyOf"] if (one.get("type") == "null") == (value is None)]
        conforms(value, fits[0], known, where)
    elif schema["type"] == "array":
        assert isinstance(value, list), where
        for item in value:
            conforms(item, schema["items"], known, where + "[]")
    elif schema["type"] == "object" and "properties" not in schema:
        assert isinstance(value, dict), where
        for name, item in value.items():
            if "additionalProperties" in schema:
                conforms(item, schema["additionalProperties"], known, f"{where}.{name}")
    elif schema["type"] == "object":
        assert set(value) == set(schema["properties"]), where
        for name, item in value.items():
            conforms(item, schema["properties"][name], known, f"{where}.{name}")
    else:
        kinds_of = {"string": str, "integer": int, "number": (int, float), "boolean": bool, "null": type(None)}
        assert isinstance(value, kinds_of[schema["type"]]), (where, value)
        assert value in schema.get("enum", [value]), where


@pytest.mark.parametrize("path", [path for path in READ if path in API])
async def test_what_isnt_known_yet_is_answered_as_described(path: str) -> None:
    async with sites() as make:
        place = Place(make(guard_with(made_up(3))), "student-00000", "", ("0" * 64,))
        described = (await place.site.ask("openapi.json")).json
        (address,) = place.at(path)
        answer = await place.site.ask(address, "owner")
        content = described["paths"][f"/{path}"]["get"]["responses"][str(answer.status)]["content"]
        if "application/json" in content:
            conforms(answer.json, content["application/json"]["schema"], described["components"]["schemas"], path)


@pytest.mark.parametrize("path", LISTS)
async def test_all_that_is_listed_is_in_one_page_or_another_once(place: Place, path: str) -> None:
    address = place.at(path)[-1]
    whole = (await place.site.ask(f"{address}?limit=1000", "reader")).json
    plain, url = [], f"{address}?limit=3"
    while url:
        answer = await place.site.ask(url, "reader")
        plain += answer.json
        link = re.match(r'<(.+)>; rel="next"', answer.headers.get("Link", ""))
        url = link[1].removeprefix(PREFIX) if link else ""
    assert plain == whole
    assert len(whole) > (2 if path == "api/v1/plans" else 3)
    assert len({json.dumps(row) for row in whole}) == len(whole)
    if not API[path].operations["get"].paged:
        return
    asked, following = [], {"offset": 0}
    while following is not None:
        headers = {"Accept": "application/jupyterhub-pagination+json"}
        answer = await place.site.ask(f"{address}?limit=3&offset={following['offset']}", "reader", headers=headers)
        assert answer.headers["Content-Type"] == "application/jupyterhub-pagination+json"
        asked += answer.json["items"]
        assert answer.json["_pagination"]["total"] == len(whole)
        following = answer.json["_pagination"]["next"]
    assert asked == whole


# -- pages that refresh themselves ----------------------------------------------------------------------------------------


@pytest.mark.parametrize("path", FRAGMENTS)
async def test_a_refresh_shows_the_same_and_an_unchanged_one_has_no_body(place: Place, path: str) -> None:
    """Else each page would be drawn anew at its first refresh."""
    site = place.site
    asked = {"HX-Request": "true", "X-XSRFToken": await site.form_token("owner")}
    tags = {}
    for address in place.at(path):
        first = await site.ask(address, login="owner", headers=asked)
        tag = tags[address] = first.headers["HX-PTag"]
        assert "<html" not in first.text
        page = await site.ask(address.removeprefix("fragments/").replace("overview", ""), login="owner")
        assert f'hx-ptag="{tag}"' in page.text
        same = await site.ask(address, login="owner", headers={**asked, "HX-PTag": tag})
        assert (same.status, same.text) == (204, "")
    site.guard.change(at=NOW + minutes(5), mode=Mode.HELD)
    site.guard.write(Event.NOTE, detail="something new")
    site.guard.pruning.verdicts = []
    for digest in place.digests:
        site.guard.pruning.settle(digest, OutcomeKind.SKIPPED)
    for address, tag in tags.items():
        assert (await site.ask(address, login="owner", headers={**asked, "HX-PTag": tag})).status == 200


# -- names and texts that want to be something else -------------------------------------------------------------------


class Tags(HTMLParser):
    """What a browser finds in a page: its tags, each with its attributes."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.found: list[tuple[str, dict[str, str | None]]] = []
        self.feed(text)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.found.append((tag, dict(attrs)))


def foreign(text: str) -> list[str]:
    """What no template of ours has: scripts, images and addresses from elsewhere, handlers and styles in attributes."""
    wrong = []
    for tag, attrs in Tags(text).found:
        wrong += [f"{tag} {name}" for name in attrs if name.startswith("on") or name == "style"]
        if tag in {"script", "img"} and not (attrs.get("src") or "").startswith(f"{PREFIX}static/"):
            wrong.append(f"{tag} {attrs.get('src')}")
        for name in {"href", "src", "action", "hx-get"} & attrs.keys():
            if not (attrs[name] or "").startswith((PREFIX, "#", "/hub/")):
                wrong.append(f"{tag} {name}={attrs[name]}")
        if tag in {"style", "iframe", "object", "base", "s"}:
            wrong.append(tag)
    return wrong


NAMES = st.text(st.characters(exclude_categories=["Cs", "Cc"]), min_size=1, max_size=40)


@pytest.mark.parametrize("name", AWKWARD)
async def test_no_awkward_name_or_text_breaks_a_page_and_each_is_found_again(
    served: Callable[..., Place], name: str
) -> None:
    await holds_together(served(name, name))


@settings(
    max_examples=10,
    deadline=None,
    phases=[Phase.explicit, Phase.reuse, Phase.generate],  # shrinking asks for pages for minutes
    suppress_health_check=[HealthCheck.function_scoped_fixture],
)
@given(name=NAMES, server=NAMES)
async def test_no_name_at_all_breaks_a_page_and_each_is_found_again(
    served: Callable[..., Place], name: str, server: str
) -> None:
    await holds_together(served(name, server))


async def holds_together(place: Place) -> None:
    """No page has anything that its template hasn't, and each shows names as they are, with links that lead to them."""
    links = set()
    for path in SHOWN:
        for address in place.at(path):
            page = await place.site.ask(address, "owner")
            assert page.status == 200, address
            assert foreign(page.text) == [], address
            assert page.text.count("<table") == page.text.count("</table>")
            assert place.user in html.unescape(page.text) or "{user}" not in path, address
            links |= {html.unescape(link) for link in re.findall(f'href="{PREFIX}([^"]+)"', page.text)}
    ours = [link for link in links if place.user in unquote_plus(link) and not link.startswith("static/")]
    assert len(ours) > 5
    for link in ours:
        assert (await place.site.ask(link, "owner")).status == 200, link
    for path in [path for path in READ if path in API and "{user}" in path]:
        told = (await place.site.ask(place.at(path)[0], "owner")).json
        assert (told["user"], told.get("name", place.name)) == (place.user, place.name)
    for path in LISTS:
        for param in {"q", "search", "user"} & {param.name for param in API[path].operations["get"].query}:
            (address, *_) = place.at(path)
            assert (await place.site.ask(f"{address}?{param}={quote(place.user, safe='')}", "owner")).json, address
