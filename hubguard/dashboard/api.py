"""The REST API, metrics and health. JSON in and out; every error is one clear line."""

from __future__ import annotations

from dataclasses import dataclass
from functools import partial
from typing import ClassVar

from prometheus_client import generate_latest
from prometheus_client.exposition import CONTENT_TYPE_LATEST
from typing_extensions import override

from hubguard.dashboard import shapes as dashboard_status
from hubguard.dashboard.metrics import registry
from hubguard.guard import Guard
from hubguard.hub.names import spellings
from hubguard.journal.asynchronous import AsyncJournal
from hubguard.journal.model import Entry, Event
from hubguard.model import ARMING_COVERS, NEEDS_NO_ARMING
from hubguard.web.endpoint import LIMIT, WHY, Api
from hubguard.web.openapi import Operation, Param

EVENTS = tuple(event.value for event in Event)
JOURNAL_FILTERS = (
    Param("before_id", int, "Only entries older than this one.", low=1, high=2**62),
    LIMIT,
    Param("user", str, "Only what concerns this user's servers.", high=255),
    Param("server", str, "Only servers of this name; empty for default servers.", high=255),
    Param("event", str, "Only this kind of entry.", choices=EVENTS),
    Param("plan", str, "Only what belongs to the plan to delete users with this digest, or this beginning.", high=64),
)


@dataclass(frozen=True, slots=True)
class LiveShape:
    """What a probe learns."""

    ok: bool


class GuardApi(Api):
    """An endpoint of the whole guard."""

    guard: Guard

    def write_status(self) -> None:
        """Answer with what HubGuard is doing, or with 204 to a caller who may act and not read."""
        self.write_json_to_readers(dashboard_status.describe(dashboard_status.state_of(self.guard)))


class StatusApi(GuardApi):
    """What HubGuard is doing."""

    operations = {"get": Operation("What HubGuard is doing, and why.", dashboard_status.StatusShape, "read")}

    @override
    def get(self) -> None:
        self.write_status()


class JournalApi(Api):
    """The journal."""

    journal: AsyncJournal

    operations = {
        "get": Operation("What was decided and done, newest first.", Entry, "read", query=JOURNAL_FILTERS, listed=True)
    }

    async def get(self) -> None:
        """A list, with a ``Link`` to older entries if there may be some."""
        asked = self.query()
        event = asked.pop("event", None)
        entries = tuple[Entry, ...]()
        for spelling in spellings(asked["user"]) if asked["user"] else (None,):
            asked = {**asked, "user": spelling} if not entries else asked
            entries = entries or await self.journal.entries(**asked, event=Event(event) if event else None)
        if len(entries) == asked["limit"]:
            self.link_next(**{**asked, "event": event, "before_id": entries[-1].id})
        self.write_json(entries)


_SAYS = {
    "arm": f"Arm HubGuard. {ARMING_COVERS} {NEEDS_NO_ARMING}",
    "observe": f"Only observe from now on; what is under way is finished. {NEEDS_NO_ARMING}",
    "hold": "Put acting on hold: HubGuard changes nothing at the hub, whoever asks, until someone resumes.",
    "resume": "End the hold, and accept what a brake objects to if a person may accept it; the status shows that.",
}


class StanceApi(GuardApi):
    """Arm, observe, hold, resume: the last part of the path says which. One subclass each, by ``stance_api``."""

    word: ClassVar[str] = ""

    async def post(self) -> None:
        """The guard has taken it up, and the journal has it."""
        why = self.body()["why"]
        assert self.who is not None
        await getattr(self.guard.mandate, self.word)(self.who.actor, why)
        self.write_status()


def stance_api(word: str) -> type[StanceApi]:
    """The endpoint for one of arm, observe, hold, resume."""
    operation = Operation(_SAYS[word], dashboard_status.StatusShape, "act", body=(WHY,))
    return type(f"{word.title()}Api", (StanceApi,), {"word": word, "operations": {"post": operation}})


class MetricsApi(GuardApi):
    """For Prometheus."""

    operations = {
        "get": Operation(
            "Metrics in Prometheus' text format. HubGuard.authenticate_prometheus = False opens them.", None, "read"
        )
    }

    async def prepare(self) -> None:
        """Open where the settings say so."""
        if self.guard.settings.guard.authenticate_prometheus:
            await super().prepare()

    @override
    def get(self) -> None:
        self.set_header("Content-Type", CONTENT_TYPE_LATEST)
        state = partial(dashboard_status.state_of, self.guard)
        self.finish(generate_latest(registry(state, self.guard.parts.watch)))


class HealthApi(GuardApi):
    """Whether HubGuard works, for anyone and for machines."""

    operations = {
        "get": Operation(
            "Whether HubGuard works: 200 where ``ok`` is true, else 503.",
            dashboard_status.HealthShape,
            "none",
            query=(Param("verbose", bool, "With the reasons why it isn't ok.", default=False),),
            unavailable=True,
        )
    }

    @override
    def get(self) -> None:
        shape = dashboard_status.health(dashboard_status.state_of(self.guard), verbose=self.query()["verbose"])
        self.set_status(200 if shape.ok else 503)
        self.write_json(shape)


class LiveApi(GuardApi):
    """For a probe that starts HubGuard again: that helps only if it doesn't answer at all."""

    operations = {"get": Operation("200 while HubGuard serves, whatever else is wrong.", LiveShape, "none")}

    @override
    def get(self) -> None:
        self.write_json(LiveShape(True))


class ReadyApi(GuardApi):
    """For a probe that sends requests here."""

    operations = {
        "get": Operation(
            "200 once HubGuard has its settings and its journal, and can answer; else 503.",
            LiveShape,
            "none",
            unavailable=True,
        )
    }

    @override
    def get(self) -> None:
        ready = self.guard.status().lease is not None and not self.guard.mandate.trouble
        self.set_status(200 if ready else 503)
        self.write_json(LiveShape(ready))


class OpenApi(Api):
    """This API, described."""

    operations = {"get": Operation("This description.", None, "none")}

    @override
    def get(self) -> None:
        self.write_json(self.site.description())
