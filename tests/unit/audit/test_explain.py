"""Why a saga is where it is."""

from __future__ import annotations

import msgspec
import pytest

from choreo.audit import Explanation, Reason, explain
from choreo.broker.announcement import announcement
from choreo.broker.port import Committed, TopicPartition
from choreo.broker.registry import Registry, announce
from choreo.broker.topics import dead_letter_topic, saga_topic
from choreo.contract import Saga, Step
from choreo.errors import SagaNotFound
from choreo.messages.records import SagaPaused, SagaResumed
from tests.conformance.members import ignore
from tests.unit.audit.test_history import say_what_is_owed
from tests.unit.audit.test_preview import PIVOTED
from tests.unit.by_hand import LINE, T0, FakeClock, Pen, a_broker, a_pen

TOPIC = saga_topic("order")
TP = TopicPartition(TOPIC, 0)


class World:
    """A log by hand whose services say what they run."""

    def __init__(self, pen: Pen, clock: FakeClock) -> None:
        self.pen = pen
        self.clock = clock

    @classmethod
    async def open(cls, contract: Saga = LINE, *, announced: bool = True) -> World:
        clock = FakeClock()
        pen = await a_pen(await a_broker(contract, now_ms=clock.now_ms), contract)
        registry = Registry(pen.broker)
        if announced:
            steps = [(contract.name, 1, step.name) for step in contract.steps]
            await announce(pen.broker, registry, [announcement("payment", "choreo.payment", steps)])
        await pen.start("s")
        return cls(pen, clock)

    async def why(self, saga_id: str = "s") -> Explanation:
        registry = Registry(self.pen.broker)
        name = self.pen.contract.name
        found = await explain(self.pen.broker, name, saga_id, registry=registry, now_ms=self.clock.ms)
        assert msgspec.json.decode(msgspec.json.encode(found))["headline"] == found.headline
        return found

    async def only(self, kind: str) -> Reason:
        found = await self.why()
        assert [reason.kind for reason in found.reasons] == [kind]
        return found.reasons[0]

    async def member(self, group: str = "choreo.payment", *, commit: Committed | None = None, topic: str = TOPIC):  # noqa: ANN201
        consumer = await self.pen.broker.consumer(group, [topic], on_assigned=ignore, on_revoked=ignore)
        await consumer.poll(timeout_s=0)
        if commit is not None:
            await consumer.commit({TP: commit})
        return consumer


async def test_a_step_whose_group_is_empty() -> None:
    world = await World.open()
    world.clock.ms += 1_000
    await world.pen.completed("s", "a")
    reason = await world.only("step")
    assert (reason.step, reason.since_ms, reason.until_ms) == ("b", T0 + 1_000, T0 + 86_400_000)
    assert reason.text.startswith("waits for b since 22:13:21: group choreo.payment has no members; lag 2; its due is")
    assert reason.advice == ("start the service: choreo run MODULE:payment",)


async def test_a_step_that_is_to_be_cancelled() -> None:
    beside = Saga("order", Step("a"), Step("b"), Step("c", after="a", on_sibling_failure="cancel"))
    world = await World.open(beside)
    await world.pen.completed("s", "a")
    await world.pen.failed("s", "b")
    assert [reason.kind for reason in (await world.why()).reasons] == ["saga_log", "step"]
    await say_what_is_owed(world.pen)
    reason = await world.only("step")
    assert reason.text.startswith(
        "before the way back begins, it waits for c, which is to be cancelled, since 22:13:20"
    )


async def test_a_step_that_nobody_says_to_run() -> None:
    reason = await (await World.open(announced=False)).only("step")
    assert "no service has said that it runs a of order version 1" in reason.text
    assert "choreo run" in reason.advice[0]


async def test_a_step_with_a_queue_before_it_then_in_hand_then_finished_in_silence() -> None:
    world = await World.open()
    for number in range(3):
        await world.pen.start(f"later-{number}")
    await world.pen.completed("s", "a")
    await world.member(commit=Committed(1))
    reason = await world.only("step")
    assert "group choreo.payment has 3 records before it; lag 4" in reason.text
    assert reason.advice == ()
    await world.member("choreo.payment")
    world = await World.open()
    await world.member()
    assert "has it in hand; lag 1" in (await world.only("step")).text
    world = await World.open()
    await world.member(commit=Committed(1))
    reason = await world.only("step")
    assert reason.waits_on[0].finished
    assert "look at the service's log and at the dead letters" in reason.advice[0]


async def test_what_travels_in_the_commit_counts_as_finished() -> None:
    world = await World.open()
    await world.pen.completed("s", "a")
    await world.member(commit=Committed(0, "f1:1+1"))
    assert (await world.only("step")).waits_on[0].finished


async def test_what_is_decided_and_not_said_waits_for_the_saga_log() -> None:
    world = await World.open()
    await world.pen.completed("s", "a")
    await world.pen.failed("s", "b")
    world.clock.ms += 60_000
    reason = await world.only("saga_log")
    assert "waits for the saga-log since 22:13:20 (compensate a): group choreo.saga-log has no members" in reason.text
    assert reason.advice == ("start it: choreo saga-log …",)
    await world.member("choreo.saga-log", commit=Committed(3))
    reason = await world.only("saga_log")
    assert "it has the record" in reason.advice[0]


async def test_a_timer_that_did_not_fire_is_the_saga_logs_too() -> None:
    world = await World.open()
    world.clock.ms += 86_400_000 + 60_000
    kinds = [reason.kind for reason in (await world.why()).reasons]
    assert kinds == ["saga_log", "step"]


async def test_a_compensation_that_is_not_answered() -> None:
    world = await World.open()
    await world.pen.completed("s", "a")
    await world.pen.failed("s", "b")
    world.clock.ms += 2_000
    await say_what_is_owed(world.pen)
    reason = await world.only("compensation")
    assert (reason.step, reason.generation, reason.since_ms) == ("a", 1, T0 + 2_000)
    assert "without an answer it is stuck at 22:28:22" in reason.text


async def test_settling_is_said_before_the_way_back() -> None:
    saga = Saga("order", Step("a", compensation="undo_a"), Step("b", compensation="undo_b", after=()))
    world = await World.open(saga)
    await world.pen.failed("s", "a")
    reason = await world.only("step")
    assert reason.text.startswith("before the way back begins, it waits for b")
    assert reason.until_ms == T0 + 900_000, "the settle limit"


async def test_a_stuck_saga_says_what_failed_how_often_what_is_left_and_what_to_do() -> None:
    world = await World.open()
    for step in ("a", "b"):
        await world.pen.completed("s", step)
    await world.pen.failed("s", "c")
    await say_what_is_owed(world.pen)
    await world.pen.compensation_failed("s", "b")
    await say_what_is_owed(world.pen)
    reason = await world.only("stuck")
    assert reason.text == "stuck: compensation of b failed (crashed: the bank is closed); still to be undone: a"
    assert (reason.step, reason.generation) == ("b", 1)
    assert "choreo retry order s b --reason …" in reason.advice[0]
    assert "choreo skip" in reason.advice[1]
    assert "choreo resolve" in reason.advice[2]


async def test_a_backoff_says_until_when_and_which_round() -> None:
    world = await World.open()
    await world.pen.completed("s", "a")
    await world.pen.failed("s", "b")
    await say_what_is_owed(world.pen)
    await world.pen.compensated("s", "a", verdict="retry", retry_limit=3, backoff_ms=90_000)
    reason = await world.only("backoff")
    assert reason.until_ms == T0 + 90_000
    assert reason.text == "backoff until 22:14:50, then round 2 after b failed (rejected, no: no)"


async def test_a_step_that_waits_for_a_signal() -> None:
    saga = Saga("order", Step("a", compensation="undo_a"), Step("b", await_signal="approved", signal_timeout="1h"))
    world = await World.open(saga)
    world.clock.ms += 1_000
    await world.pen.completed("s", "a")
    reason = await world.only("signal")
    assert reason.text == ("waits for signal approved (step b) since 22:13:21; without it the step fails at 23:13:21")
    assert reason.advice == ("when it has happened: choreo signal order s approved",)


async def test_a_saga_that_an_operator_holds() -> None:
    world = await World.open()
    world.clock.ms += 1_000
    about = world.pen.about("s")
    await world.pen.write(SagaPaused(**about, request="p", operator="anna", reason="the bank is down"))
    reason = (await world.why()).reasons[0]
    assert (reason.kind, reason.text) == ("paused", "paused by anna since 22:13:21: the bank is down")
    assert reason.advice == ("to let it go on: choreo resume order s --why …",)
    await world.pen.write(SagaResumed(**about, request="r", operator="anna"))
    assert "paused" not in {each.kind for each in (await world.why()).reasons}


async def test_a_saga_that_is_to_begin_later() -> None:
    world = await World.open()
    await world.pen.start("later", not_before_ms=T0 + 60_000)
    found = await world.why("later")
    assert [(reason.kind, reason.until_ms) for reason in found.reasons] == [("scheduled", T0 + 60_000)]
    assert found.headline == "scheduled: it begins at 22:14:20"


async def test_a_cancel_that_waits_for_the_pivot() -> None:
    world = await World.open(PIVOTED)
    await world.pen.completed("s", "a")
    await say_what_is_owed(world.pen)
    await world.pen.cancel("s")
    assert {reason.kind for reason in (await world.why()).reasons} == {"step", "pivot"}


async def test_a_finished_saga_says_how_it_ended() -> None:
    world = await World.open()
    for step in ("a", "b", "c"):
        await world.pen.completed("s", step)
    world.clock.ms += 5_000
    await say_what_is_owed(world.pen)
    reason = await world.only("finished")
    assert reason.text == "it has completed at 22:13:25, after 5s; nothing is left to do"


async def test_an_effect_after_the_outcome_is_a_repair() -> None:
    world = await World.open(Saga("order", Step("a", compensation="undo_a")))
    await world.pen.failed("s", "a")
    await say_what_is_owed(world.pen)
    await world.pen.completed("s", "a", run="late")
    await say_what_is_owed(world.pen)
    assert [reason.kind for reason in (await world.why()).reasons] == ["compensation", "repair"]


async def test_a_saga_of_a_contract_that_is_not_registered_waits_for_it() -> None:
    world = await World.open()
    other = await a_pen(world.pen.broker, Saga("order", Step("z"), version=7))
    await other.start("odd")
    found = await world.why("odd")
    assert [reason.kind for reason in found.reasons] == ["contract"]
    assert "contract 'order' version 7" in found.headline
    assert found.status is None


async def test_a_saga_without_its_start() -> None:
    world = await World.open()
    await world.pen.completed("headless", "a")
    assert [reason.kind for reason in (await world.why("headless")).reasons] == ["truncated"]
    await world.pen.cancel("early")
    assert [reason.kind for reason in (await world.why("early")).reasons] == ["unstarted"]


async def test_dead_letters_of_the_saga_are_shown_and_not_those_of_others() -> None:
    world = await World.open()
    for key in ("s", "other"):
        await world.pen.producer.send(
            dead_letter_topic("order"),
            key=key,
            value=b"{}",
            headers=(
                ("choreo_error_type", b"undecodable"),
                ("choreo_error_message", b"not json"),
                ("choreo_error_source", b"/choreo/payment"),
                ("choreo_original_offset", b"17"),
            ),
        )
    [letter] = (await world.why()).dead_letters
    assert (letter.offset, letter.source, letter.error, letter.message) == (17, "payment", "undecodable", "not json")


async def test_no_record_no_saga() -> None:
    with pytest.raises(SagaNotFound):
        await (await World.open()).why("nobody")
