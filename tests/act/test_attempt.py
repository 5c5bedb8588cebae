"""An attempt rests on a fresh look and is written down before its request goes out; whatever fails, nothing is guessed."""

from __future__ import annotations

from collections.abc import Awaitable, Callable

import pytest
from virtual_time import VirtualClock

from hubguard.act.attempt import Attempt, Sent
from hubguard.errors import (
    ActingRefused,
    BackendError,
    BudgetExhausted,
    HubFailed,
    HubRefused,
    HubUnreachable,
    JournalError,
    LeaseLost,
    ProxyError,
    Unrecordable,
)
from hubguard.model import Action, Cause, Order, Outcome, OutcomeKind

ORDER = Order("hubguard")
STOP = Action("ann", "", None, None, "idle")


class ScriptedLedger:
    """Writes down what it is told, in order; ``takes_s`` is how long an intent takes, ``refuses`` what it raises."""

    def __init__(self, clock: VirtualClock) -> None:
        self._clock = clock
        self.written: list[tuple[object, ...]] = []
        self.takes_s: list[float] = []
        self.refuses: Exception | None = None
        self.released: list[int] = []

    async def intend(self, action: Action, order: Order, detail: str = "", grounds: object = None) -> int:
        if self.takes_s:
            await self._clock.sleep(self.takes_s.pop(0))
        if self.refuses is not None:
            raise self.refuses
        self.written.append(("intent", action.user, order, detail))
        return sum(line[0] == "intent" for line in self.written)

    async def settle(self, intent: int, outcome: Outcome) -> None:
        self.written.append(("outcome", intent, outcome.kind))

    async def skip(self, action: Action, actor: str, detail: str) -> None:
        self.written.append(("skip", action.user, actor, detail))

    def release(self, intent: int) -> None:
        self.released.append(intent)


class Scene:
    """One attempt. ``waits_s`` is how long its requests wait for their turn, one after another; ``looks`` what is seen."""

    def __init__(self) -> None:
        self.clock = VirtualClock()
        self.ledger = ScriptedLedger(self.clock)
        self.attempt = Attempt(self.ledger, self.clock, STOP, ORDER, "for a test")
        self.waits_s: list[float] = []
        self.looks: list[str | Exception | None] = []
        self.looked_at_s: list[float] = []
        self.sent_at_s: list[float] = []
        self.answer: str | Exception = ""

    async def look(self) -> str | None:
        self.looked_at_s.append(self.clock.monotonic_s())
        seen = self.looks.pop(0) if self.looks else None
        if isinstance(seen, Exception):
            raise seen
        return seen

    async def send(self) -> str:
        await self.clock.sleep(self.waits_s.pop(0) if self.waits_s else 0.0)
        await self.attempt.confirm()
        self.sent_at_s.append(self.clock.monotonic_s())
        if isinstance(self.answer, Exception):
            raise self.answer
        return self.answer

    async def make(self, send: Callable[[], Awaitable[str]] | None = None) -> Sent | tuple[Outcome, str]:
        return await self.clock.run(self.attempt.make(self.look, send or self.send))

    async def skipped(self) -> tuple[Outcome, str]:
        made = await self.make()
        assert not isinstance(made, Sent)
        assert self.sent_at_s == []
        return made


@pytest.fixture
def scene() -> Scene:
    return Scene()


async def test_the_intent_is_written_down_before_the_request_goes_out(scene: Scene):
    seen: list[int] = []

    async def send() -> str:
        await scene.attempt.confirm()
        seen.append(len(scene.ledger.written))
        return "it stops slowly"

    assert await scene.make(send) == Sent("it stops slowly", failed=False)
    assert seen == [1]
    assert scene.ledger.written == [("intent", "ann", ORDER, "for a test")]
    assert scene.attempt.intent == 1


async def test_what_stands_in_the_way_at_the_second_look_is_told_and_nothing_is_sent(scene: Scene):
    scene.looks = ["used again at 12:00"]
    outcome, end = await scene.skipped()
    assert (outcome.kind, outcome.detail, outcome.cause, end) == (
        OutcomeKind.SKIPPED,
        "used again at 12:00",
        Cause.NONE,
        "",
    )
    assert scene.ledger.written == [("skip", "ann", "hubguard", "used again at 12:00")]
    assert scene.attempt.intent is None


async def test_a_request_that_waited_for_fifteen_seconds_goes_out_on_its_look_and_one_that_waited_longer_looks_again(
    scene: Scene,
):
    scene.waits_s = [15.5, 15.0]
    assert isinstance(await scene.make(), Sent)
    assert scene.looked_at_s == [0.0, 15.5]
    assert scene.sent_at_s == [30.5]
    assert len(scene.ledger.written) == 1


async def test_a_server_that_was_used_while_its_request_waited_is_left_alone(scene: Scene):
    scene.waits_s, scene.looks = [20.0], [None, "used again"]
    outcome, _ = await scene.skipped()
    assert outcome.detail == "used again"


async def test_after_five_looks_that_grew_old_it_is_left_for_the_next_cycle(scene: Scene):
    scene.waits_s = [20.0] * 9
    outcome, end = await scene.skipped()
    assert (outcome.kind, outcome.cause, end) == (OutcomeKind.SKIPPED, Cause.NOT_TRIED, "")
    assert scene.looked_at_s == [0.0, 20.0, 40.0, 60.0, 80.0]
    assert scene.ledger.written == []


async def test_a_journal_that_takes_two_seconds_is_waited_for_and_a_slower_one_costs_the_request_its_turn(scene: Scene):
    scene.ledger.takes_s = [2.5, 2.0]
    assert isinstance(await scene.make(), Sent)
    assert [line[0] for line in scene.ledger.written] == ["intent", "outcome", "intent"]
    assert scene.ledger.written[1] == ("outcome", 1, OutcomeKind.SKIPPED)
    assert scene.attempt.intent == 2
    assert len(scene.looked_at_s) == 2
    assert len(scene.sent_at_s) == 1


NOTHING_GOES_ANY_MORE = [
    (LeaseLost("another guard has it"), "another guard is in charge of this hub"),
    (ActingRefused("on hold"), "on hold"),
    (JournalError("the disk is full"), "the disk is full"),
]


@pytest.mark.parametrize(("error", "end"), NOTHING_GOES_ANY_MORE)
async def test_an_intent_that_could_not_be_written_keeps_the_request_back_and_ends_the_plan(
    scene: Scene, error: Exception, end: str
):
    scene.ledger.refuses = error
    outcome, told = await scene.skipped()
    assert (outcome.kind, outcome.cause) == (OutcomeKind.SKIPPED, Cause.NOT_TRIED)
    assert told.strip(".") == end


async def test_a_name_that_the_journal_cannot_hold_keeps_back_that_request_alone(scene: Scene):
    scene.ledger.refuses = Unrecordable("the name is too long")
    outcome, end = await scene.skipped()
    assert (outcome.cause, end) == (Cause.NOT_TRIED, "")


@pytest.mark.parametrize(
    ("error", "ends"),
    [
        (HubRefused("the token is no good"), True),
        (BudgetExhausted("the breaker is open"), True),
        (ProxyError("the proxy doesn't answer"), True),
        (HubFailed("oops", status=500), False),
        (HubUnreachable("no answer"), False),
        (ValueError("a defect"), False),
    ],
)
async def test_a_second_look_that_failed_sends_nothing_and_only_some_failures_end_the_plan(
    scene: Scene, error: Exception, ends: bool
):
    scene.looks = [error]
    outcome, end = await scene.skipped()
    assert (outcome.kind, outcome.cause) == (OutcomeKind.SKIPPED, Cause.NOT_TRIED)
    assert bool(end) is ends


async def test_a_lost_answer_is_neither_done_nor_failed(scene: Scene):
    scene.answer = HubUnreachable("the connection broke")
    made = await scene.make()
    assert isinstance(made, Sent)
    assert (made.failed, made.refused) == (False, False)
    assert len(scene.sent_at_s) == 1, "it isn't sent again without a re-read"


@pytest.mark.parametrize("error", [HubFailed("oops", status=500), BackendError("it won't end")])
async def test_a_request_that_was_answered_no_has_failed(scene: Scene, error: Exception):
    scene.answer = error
    made = await scene.make()
    assert isinstance(made, Sent)
    assert (made.failed, made.refused) == (True, False)
    assert str(error) in made.remark


async def test_a_hub_that_does_not_take_the_token_has_refused(scene: Scene):
    scene.answer = HubRefused("403")
    made = await scene.make()
    assert isinstance(made, Sent)
    assert (made.failed, made.refused) == (True, True)


async def test_a_defect_after_the_intent_was_written_leaves_what_came_of_it_to_a_reread(
    scene: Scene, caplog: pytest.LogCaptureFixture
):
    scene.answer = ValueError("a defect")
    made = await scene.make()
    assert isinstance(made, Sent)
    assert not made.failed
    assert "ValueError" in made.remark
    assert "unknown" in caplog.text


async def test_closing_an_attempt_gives_its_intent_to_later_looks_and_one_without_an_intent_gives_nothing(scene: Scene):
    scene.attempt.close()
    assert scene.ledger.released == []
    await scene.make()
    scene.attempt.close()
    assert scene.ledger.released == [1]
