"""Whether a guard may act, and which intents are its own to settle."""

from __future__ import annotations

from pathlib import Path

import pytest
from handing_over import replaced
from inline_journal import InlineJournal
from virtual_time import VirtualClock

from hubguard import understudy
from hubguard.act.handover import Handover
from hubguard.act.lease import LeaseKeeper
from hubguard.act.mandate import Mandate
from hubguard.errors import ActingRefused, HubGuardError, JournalError
from hubguard.journal.model import ArmedBy
from hubguard.model import Action, Order, Outcome, OutcomeKind

BY_ITSELF, ASKED = Order("hubguard"), Order("ann", "exam", asked=True)
STOP = Action("ann", "", None, None, "idle")
DONE = Outcome(OutcomeKind.DONE, "gone")


class Scene:
    """A mandate over a journal in memory; it holds the lease unless ``holds`` is False."""

    def __init__(self, **given: bool | str | None) -> None:
        self.clock = VirtualClock()
        self.journal = InlineJournal()
        keeper = LeaseKeeper(self.journal, self.clock, holder="me", address="", generation=0.0, lease_s=30.0)
        self.mandate = Mandate(self.journal, keeper, self.clock, **given)  # type: ignore[arg-type]

    async def begun(self) -> Mandate:
        await self.mandate.open()
        await self.mandate.keep_lease()
        return self.mandate


def waiting(folder: Path, clock: VirtualClock, *, until_s: float = 1000.0) -> Handover:
    """The handover from a culler that has promised to wait until then."""
    understudy.write(folder / understudy.report_file(0), understudy.Report(until_s, False, "", 0.0))
    handover = Handover(replaced(folder), clock)
    handover.show(understudy.Word.ABLE, "")
    return handover


async def test_nothing_may_be_done_before_the_lease_is_held_whoever_asks():
    mandate = Scene(armed=True).mandate
    assert not mandate.may_act(BY_ITSELF)
    assert not mandate.may_act(ASKED)
    with pytest.raises(HubGuardError, match="in charge"):
        mandate.check()


async def test_a_fresh_install_observes_and_does_what_a_person_asks_for_by_name():
    mandate = await Scene().begun()
    assert (mandate.may_act(BY_ITSELF), mandate.may_act(ASKED)) == (False, True)
    assert mandate.why_not(BY_ITSELF)
    await mandate.arm("ann", "")
    assert mandate.may_act(BY_ITSELF)
    assert mandate.why_not(BY_ITSELF) == ""


async def test_a_hold_stops_everything_and_names_who_held_and_why():
    mandate = await Scene(armed=True).begun()
    await mandate.hold("ann", "exam week")
    assert (mandate.may_act(BY_ITSELF), mandate.may_act(ASKED)) == (False, False)
    assert "ann" in mandate.why_not(ASKED)
    assert "exam week" in mandate.why_not(ASKED)
    await mandate.resume("bo", "")
    assert mandate.may_act(BY_ITSELF)


async def test_a_wrong_setting_stops_everything_and_is_named():
    mandate = await Scene(armed=True, wrong_setting="HubGuardCull.every_s: is not a number").begun()
    assert "HubGuardCull.every_s" in mandate.why_not(ASKED)
    with pytest.raises(HubGuardError, match=r"HubGuardCull\.every_s"):
        mandate.check()


async def test_beside_another_culler_it_observes_even_where_people_or_settings_armed_it():
    mandate = await Scene(armed=True, observe_only="the culler cull-idle runs, too").begun()
    assert not mandate.may_act(BY_ITSELF)
    assert mandate.why_not(BY_ITSELF) == "the culler cull-idle runs, too"
    with pytest.raises(HubGuardError, match="cull-idle"):
        await mandate.arm("ann", "")


async def test_a_replaced_culler_arms_for_culling_alone_and_never_against_what_people_have_set(tmp_path: Path):
    scene = Scene()
    scene.mandate.handover = waiting(tmp_path, scene.clock)
    mandate = await scene.begun()
    assert mandate.armed
    assert mandate.armed_by is ArmedBy.CULLER
    assert not mandate.armed_for_all
    assert "only culling" in mandate.why_not(BY_ITSELF)
    assert mandate.stance.armed is None, "it isn't kept: it ends with the culler's entry"
    await mandate.intend(STOP, BY_ITSELF)
    await mandate.observe("ann", "not yet")
    assert not mandate.armed
    with pytest.raises(ActingRefused):
        await mandate.intend(STOP, BY_ITSELF)
    await mandate.arm("ann", "go")
    assert mandate.armed_for_all


async def test_while_the_culler_works_nothing_is_sent_by_itself_whoever_armed_it(tmp_path: Path):
    scene = Scene(armed=True)
    scene.mandate.handover = handover = waiting(tmp_path, scene.clock, until_s=10)
    mandate = await scene.begun()
    assert mandate.armed
    await scene.clock.run(scene.clock.sleep(11))
    handover.show(understudy.Word.ABLE, "")
    await mandate.keep_lease()
    assert not mandate.armed
    assert "hasn't handed over" in mandate.why_observing
    with pytest.raises(ActingRefused):
        await mandate.intend(STOP, BY_ITSELF)
    assert await mandate.intend(STOP, ASKED), "a person who asks by name isn't a culler"


async def test_what_an_earlier_version_armed_by_itself_is_not_armed_any_more():
    scene = Scene()
    mandate = await scene.begun()
    await mandate.journal.arm("hubguard", "took over from cull-idle, and goes on with its settings", scene.clock.now())
    await mandate.refresh()
    assert not mandate.armed
    assert mandate.stance.armed is None
    await mandate.arm("hubguard", "a person with that name, or with the service's token")
    assert mandate.armed


async def test_an_intent_is_under_way_from_its_commit_until_it_is_settled():
    mandate = await Scene(armed=True).begun()
    intent = await mandate.intend(STOP, BY_ITSELF)
    assert mandate.intents_under_way == {intent}
    await mandate.settle(intent, DONE)
    assert mandate.intents_under_way == frozenset()


async def test_an_intent_whose_outcome_could_not_be_recorded_is_left_to_later_looks_once_its_attempt_is_closed(
    monkeypatch: pytest.MonkeyPatch,
):
    scene = Scene(armed=True)
    mandate = await scene.begun()
    attempt = mandate.attempt(STOP, BY_ITSELF)

    async def look() -> None:
        return None

    async def send() -> str:
        await attempt.confirm()
        return ""

    await scene.clock.run(attempt.make(look, send))
    intent = attempt.intent
    assert intent is not None

    def full(*_: object) -> bool:
        raise JournalError("the disk is full")

    monkeypatch.setattr(scene.journal.journal, "settle", full)
    with pytest.raises(JournalError):
        await mandate.settle(intent, DONE)
    attempt.close()
    assert mandate.intents_under_way == frozenset()
    assert [entry.id for entry in scene.journal.journal.open_intents()] == [intent]


async def test_the_lease_is_newly_ours_once_and_again_after_it_was_lost():
    scene = Scene(armed=True)
    assert await scene.mandate.keep_lease()
    assert not await scene.mandate.keep_lease()
    await scene.clock.run(scene.clock.sleep(31))
    assert not scene.mandate.holds_lease
    assert await scene.mandate.keep_lease(), "another guard may have acted meanwhile"


async def test_a_journal_that_does_not_answer_is_trouble_at_once_and_is_over_when_it_does():
    scene = Scene(armed=True)
    mandate = await scene.begun()
    assert mandate.trouble == ""
    scene.journal.silent = "The journal's database doesn't answer."
    assert mandate.trouble == "The journal's database doesn't answer."
    scene.journal.silent = ""
    assert mandate.trouble == ""


async def test_trouble_with_the_journal_lasts_until_it_is_used_again_and_the_same_is_logged_once(
    caplog: pytest.LogCaptureFixture,
):
    mandate = await Scene(armed=True).begun()
    for _ in range(2):
        mandate.note_trouble(JournalError("the disk is full"))
    assert mandate.trouble == "the disk is full"
    assert caplog.text.count("the disk is full") == 1
    mandate.note_trouble(None)
    assert mandate.trouble == ""
    mandate.note_trouble(JournalError("the disk is full"))
    assert caplog.text.count("the disk is full") == 2
