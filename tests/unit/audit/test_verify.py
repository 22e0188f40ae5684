"""Verification: a sound log has no fault; what was forged, dropped, doubled, moved or changed in one is found."""

from __future__ import annotations

from collections.abc import Callable

import msgspec
import pytest

from choreo.audit.findings import Fault
from choreo.audit.verification import Verified, verify
from choreo.broker.port import Message
from choreo.broker.registry import Registry
from choreo.contract import Saga
from choreo.core import SagaState, record_of
from choreo.core.state import Decision
from choreo.messages.codec import decode, encode
from choreo.messages.headers import JSON, make_headers
from choreo.messages.records import (
    CancelRequested,
    Compensate,
    RoundStarted,
    SagaCompleted,
    SagaStarted,
    SignalReceived,
    StepCompleted,
)
from choreo.saga_log.outbound import SOURCE
from tests.unit.audit.recorded import HISTORIES, LINE, T0, Recorder, back, happy, log_of, renumbered, unsignalled

LATER = T0 + 3_600_000  # a decision has been said by then


async def judged(contract: Saga, messages: list[Message], *, now_ms: int = LATER, first: int = 0) -> Verified:
    broker, registry = await log_of(contract, messages, first=first)
    found = await verify(broker, contract.name, registry=registry, now_ms=now_ms)
    assert msgspec.json.decode(msgspec.json.encode(found))["saga"] == contract.name
    return found


def kinds(found: Verified) -> set[str]:
    return set(found.faults_total)


def places(name: str) -> list[int]:
    return list(range(len(HISTORIES[name]().messages)))


ALL = [(name, place) for name in HISTORIES for place in places(name)]


@pytest.mark.parametrize("name", HISTORIES)
async def test_a_sound_log_has_no_fault(name: str) -> None:
    told = HISTORIES[name]()
    found = await judged(told.contract, told.messages)
    assert found.sound, found.faults
    assert found.notices == []
    assert (found.records, found.partitions[0].unfinished) == (len(told.messages), 0)


@pytest.mark.parametrize(("name", "place"), ALL)
async def test_a_record_that_is_dropped_is_missed(name: str, place: int) -> None:
    told = HISTORIES[name]()
    left = told.messages[:place] + told.messages[place + 1 :]
    if place < len(left):
        assert "gap" in kinds(await judged(told.contract, left))
    # Written anew the log has no gap: it is the other records that miss it.
    assert not (await judged(told.contract, renumbered(left, times=True))).sound


@pytest.mark.parametrize(("name", "place"), ALL)
async def test_a_record_that_is_there_twice_is_noticed_and_the_same_id_with_other_content_is_a_fault(
    name: str, place: int
) -> None:
    told = HISTORIES[name]()
    doubled = renumbered([*told.messages[: place + 1], *told.messages[place:]], times=True)
    found = await judged(told.contract, doubled)
    assert found.sound, found.faults
    assert [(one.kind, one.offset) for one in found.notices] == [("repeated", place + 1)]
    moved = renumbered([*told.messages, told.messages[place]], times=True)
    found = await judged(told.contract, moved)
    assert found.notices_total["repeated"] == 1


EITHER_WAY = {
    ("joined", 3),  # b and c are done side by side
    ("joined", 7),  # … and their undoing is asked for at once
    ("joined", 8),
    ("stuck", 6),  # the operator may act before the notice is in the log
    ("cancelled", 2),  # the client may cancel before a step has completed
    ("signalled", 2),  # the signal may come before its step waits for it
    ("signalled", 6),  # a skipped step and the outcome are decided at once
    ("cancelled", 7),  # … and again before the outcome, which is decided by then, is in the log
}
"""Neighbours that could stand in the other order: both orders are sound histories."""


@pytest.mark.parametrize(("name", "place"), [(name, place) for name, place in ALL if place])
async def test_two_records_in_the_other_order_are_found(name: str, place: int) -> None:
    told = HISTORIES[name]()
    before, after = told.messages[place - 1], told.messages[place]
    swapped = renumbered([*told.messages[: place - 1], after, before, *told.messages[place + 1 :]])
    found = await judged(told.contract, swapped)
    assert "time_fell" in kinds(found)
    # With times written anew too, what depends on the order shows it.
    found = await judged(told.contract, renumbered(swapped, times=True))
    assert found.sound == ((name, place) in EITHER_WAY), found.faults


async def test_a_wait_for_a_signal_that_is_given_up_too_late_answers_no_command() -> None:
    told = unsignalled()
    start, gave_up, *_ = told.messages
    signalled = Recorder(told.contract)
    signalled.start("s")
    signalled.say("s", SignalReceived, "/choreo/client", request="g", name="go", payload=msgspec.Raw(b"1"))
    _, signal, execute = signalled.messages
    found = await judged(told.contract, renumbered([start, signal, gave_up, execute], times=True))
    assert found.sound, found.faults


FORGED: dict[str, Callable[[SagaState], Decision]] = {
    "an outcome": lambda _: Decision("complete"),
    "an undoing": lambda _: Decision("compensate", "a", 1, 1),
    "a command": lambda _: Decision("execute", "b", 1),
    "a refusal": lambda _: Decision("refuse_cancel", reference="nobody"),
    "a notice": lambda _: Decision("stuck", "a", 1, 1),
}


@pytest.mark.parametrize("what", FORGED)
@pytest.mark.parametrize("place", [1, 2, 3])
async def test_a_forged_decision_is_found(what: str, place: int) -> None:
    told = Recorder(LINE)
    told.start("s")
    for step in "abc"[: place - 1]:
        told.completed("s", step)
    state = told.states["s"]
    record = record_of(LINE, state, FORGED[what](state))
    told._append(record, SOURCE)
    assert kinds(await judged(LINE, told.messages, now_ms=T0)) == {"undecided"}


def forged(message: Message, **changes: object) -> Message:
    """The message with a record that says otherwise, headers as they ought to be."""
    record = decode(message.key, message.value, message.headers)
    changed = msgspec.structs.replace(record, **changes)  # type: ignore[type-var]
    source = (message.header("ce_source") or b"").decode()
    headers = make_headers(changed, source=source, content_type=JSON)
    return msgspec.structs.replace(message, value=encode(changed), headers=headers)


def is_of(message: Message, kind: type) -> bool:
    return isinstance(decode(message.key, message.value, message.headers), kind)


@pytest.mark.parametrize(
    ("history", "kind", "changes", "fault"),
    [
        (back, Compensate, {"effect": msgspec.Raw(b'"less"')}, "altered"),
        (back, Compensate, {"effect": msgspec.UNSET}, "altered"),
        (back, Compensate, {"deadline_ms": 1}, "altered"),
        (back, Compensate, {"generation": 7}, "undecided"),
        (happy, SagaCompleted, {"result": msgspec.Raw(b'"more"')}, "altered"),
        (happy, SagaStarted, {"input": msgspec.Raw(b"2")}, "altered"),
        (happy, SagaStarted, {"saga_deadline_ms": 1}, "altered"),
        (happy, StepCompleted, {"effect": msgspec.Raw(b'"other"')}, "altered"),
        (happy, StepCompleted, {"input": msgspec.Raw(b"2")}, "altered"),
        (happy, StepCompleted, {"due_ms": 2**50}, "altered"),
        (happy, StepCompleted, {"round": 2}, "unasked"),
        (happy, StepCompleted, {"start": "0" * 16}, "unasked"),
        (happy, StepCompleted, {"step": "nowhere"}, "unasked"),
    ],
)
async def test_a_record_that_was_changed_is_found(
    history: Callable[[], Recorder], kind: type, changes: dict[str, object], fault: str
) -> None:
    told = history()
    at = next(place for place, message in enumerate(told.messages) if is_of(message, kind))
    messages = [*told.messages[:at], forged(told.messages[at], **changes), *told.messages[at + 1 :]]
    assert fault in kinds(await judged(told.contract, messages))


async def test_a_decision_that_another_has_written_is_an_impostors() -> None:
    told = happy()
    record = decode(told.messages[-1].key, told.messages[-1].value, told.messages[-1].headers)
    headers = make_headers(record, source="/choreo/payment", content_type=JSON)
    messages = [*told.messages[:-1], msgspec.structs.replace(told.messages[-1], headers=headers)]
    assert kinds(await judged(LINE, messages)) == {"impostor"}


async def test_headers_that_say_otherwise_are_found() -> None:
    told = happy()
    for name, value in (("ce_id", b"other"), ("choreo_step", b"b"), ("ce_type", b"choreo.step_failed.v1")):
        headers = tuple((key, value if key == name else old) for key, old in told.messages[1].headers)
        message = msgspec.structs.replace(told.messages[1], headers=headers)
        assert kinds(await judged(LINE, [told.messages[0], message, *told.messages[2:]])) == {"mislabelled"}


async def test_an_id_that_is_said_twice_with_other_content_contradicts_itself() -> None:
    told = happy()
    second = msgspec.structs.replace(forged(told.messages[3], duration_ms=9), offset=5, timestamp_ms=LATER)
    assert kinds(await judged(LINE, [*told.messages, second])) == {"contradiction"}


async def test_an_effect_that_is_there_twice_is_found_and_an_equal_one_is_noticed() -> None:
    for effect, fault, notice in ((b'"more"', {"effect_twice"}, set()), (b'"a-done-1"', set(), {"ran_twice"})):
        told = Recorder(LINE)
        told.start("s")
        told.completed("s", "a")
        told.completed("s", "a", run="second", effect=msgspec.Raw(effect))
        found = await judged(LINE, told.messages, now_ms=T0)
        assert kinds(found) == fault
        assert set(found.notices_total) == notice


async def test_a_command_that_was_decided_before_another_run_completed_may_not_know_its_effect() -> None:
    told = Recorder(LINE)
    told.start("s")
    told.failed("s", "a", effect="unknown")
    told.completed("s", "a", run="second")
    start, failed, command, completed = told.messages
    found = await judged(LINE, renumbered([start, failed, completed, command], times=True), now_ms=T0)
    assert found.sound, found.faults


@pytest.mark.parametrize(("saga_round", "faults"), [(2, set()), (3, {"undecided"})])
async def test_a_round_may_begin_late_if_it_was_asked_for(saga_round: int, faults: set[str]) -> None:
    told = Recorder(LINE)
    told.start("s")
    told.completed("s", "a")
    told.failed("s", "b")
    told.compensated("s", "a", verdict="retry", retry_limit=3)
    told.say("s", CancelRequested, "/choreo/client", request="no")  # before the round has begun
    told.say("s", RoundStarted, SOURCE, round=saga_round)
    assert kinds(await judged(LINE, told.messages, now_ms=T0)) == faults


async def test_what_was_decided_just_now_is_pending_and_later_it_is_missing() -> None:
    told = happy()
    last = told.messages[-2].timestamp_ms
    found = await judged(LINE, told.messages[:-1], now_ms=last + 59_000)
    assert found.sound
    assert [one.kind for one in found.notices] == ["pending"]
    assert kinds(await judged(LINE, told.messages[:-1], now_ms=last + 61_000)) == {"missing"}


async def test_a_timer_that_should_have_fired_is_overdue() -> None:
    told = happy()
    day = LINE.deadline_ms
    assert (await judged(LINE, told.messages[:2], now_ms=T0 + day)).sound
    assert kinds(await judged(LINE, told.messages[:2], now_ms=T0 + day + 120_000)) == {"overdue"}


async def test_where_retention_has_cut_the_beginning_off_no_start_is_missed() -> None:
    told = back()
    found = await judged(LINE, told.messages[2:], first=2)
    assert found.sound, found.faults
    assert [one.kind for one in found.notices] == ["truncated"]
    assert "headless" in kinds(await judged(LINE, renumbered(told.messages[2:], times=True)))


async def test_what_is_no_record_and_what_waits_for_a_contract_are_told() -> None:
    told = happy()
    noise = msgspec.structs.replace(told.messages[-1], offset=5, value=b"{}", key=b"x", timestamp_ms=LATER)
    assert kinds(await judged(LINE, [*told.messages, noise])) == {"unreadable"}
    other = Recorder(Saga("order", *LINE.steps, version=2))
    other.say(
        "t",
        SagaStarted,
        version=2,
        contract_hash=other.contract.content_hash,
        request="r",
        saga_deadline_ms=1,
        input=msgspec.Raw(b"1"),
    )
    found = await judged(LINE, other.messages)
    assert found.sound
    assert [one.kind for one in found.notices] == ["waiting"]


async def test_sagas_that_are_let_go_and_come_back_are_judged_whole(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("choreo.saga_log.window.SETTLED_KEPT", 0)
    monkeypatch.setattr("choreo.saga_log.replay._RECORDS_PER_POLL", 1)
    told = Recorder(LINE)
    for saga_id in ("s", "t", "u"):
        told.start(saga_id)
        for step in "abc":
            told.completed(saga_id, step)
    told._append(told_again(told, 1), "/choreo/service")  # at-least-once, long after the outcome
    found = await judged(LINE, told.messages)
    assert found.sound, found.faults
    assert [one.kind for one in found.notices] == ["repeated"]
    told._append(record_of(LINE, told.states["s"], Decision("compensate", "a", 1, 1)), SOURCE)
    found = await judged(LINE, told.messages)
    assert [(one.kind, one.saga_id) for one in found.faults] == [("undecided", "s")]


def told_again(told: Recorder, place: int):  # noqa: ANN201 -- a record
    message = told.messages[place]
    return decode(message.key, message.value, message.headers)


async def test_findings_beyond_the_limit_are_counted(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("choreo.audit.judge.KEPT", 3)
    messages = [msgspec.structs.replace(each, headers=()) for each in happy().messages]
    found = await judged(LINE, messages)
    assert len(found.faults) == 3
    assert found.faults_total["mislabelled"] == 5
    assert isinstance(found.faults[0], Fault)


async def test_a_topic_is_verified_partition_by_partition_with_progress() -> None:
    told = happy()
    broker, registry = await log_of(LINE, told.messages)
    seen: list[int] = []
    await verify(broker, "order", registry=registry, now_ms=LATER, on_progress=lambda done: seen.append(done[0]))
    assert seen == [5]
    assert isinstance(registry, Registry)
