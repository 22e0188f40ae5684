"""Sagas that are paused (rule 24)."""

from __future__ import annotations

import pytest

from choreo.core import timers
from choreo.core.status import status_of
from choreo.messages.records import SagaPaused, SagaResumed, TypePaused, TypeResumed
from tests.unit.core.spec import (
    COMPENSATED,
    COMPLETE,
    LINE,
    SAGA_ID,
    START_MS,
    Said,
    cancelled,
    compensate,
    completed,
    execute,
    failed,
    given,
    given_log,
    retry,
    round_started,
    saga,
    signalled,
    started,
    step,
    timed_out,
    undo_failed,
    undone,
)

HOUR_MS = 3_600_000
SHORT = saga(step("a"), step("b"))


def of_pause(kind: type[SagaPaused | SagaResumed | TypePaused | TypeResumed]) -> Said:
    return Said(
        lambda contract, state: kind(
            saga=contract.name,
            version=contract.version,
            saga_id=SAGA_ID,
            start="0" * 16,
            request="request",
            operator="ada",
            reason="because",
        )
    )


PAUSED, RESUMED, TYPE_PAUSED, TYPE_RESUMED = map(of_pause, (SagaPaused, SagaResumed, TypePaused, TypeResumed))


def test_what_is_in_flight_finishes_and_no_further_step_is_in_flight() -> None:
    history = given(LINE, PAUSED, completed("a")).then()
    assert history.state.standing == {"a": 1}
    assert history.instance("b").held
    assert not history.instance("b").in_flight
    history = history.when(RESUMED).then(execute("b")).when_sent()
    history.when(completed("b"), completed("c")).then(COMPLETE)


def test_a_held_step_gets_a_due_of_its_own_when_it_goes_on() -> None:
    contract = saga(step("a"), step("b", deadline="1m"), deadline="2h")
    history = given(contract, PAUSED.at(START_MS), completed("a"))
    assert timers(contract, history.state) == []
    history = history.when(RESUMED.at(START_MS + 5 * HOUR_MS))
    assert history.state.due_ms == START_MS + 7 * HOUR_MS, "the saga's deadline has stood still"
    history = history.when_sent()
    assert history.instance("b").due_ms == history.log[-1].at_ms + 60_000


def test_no_command_is_decided_while_the_saga_is_paused() -> None:
    history = given(SHORT, completed("a"), PAUSED, failed("b")).then()
    history = history.when(RESUMED).then(compensate("a")).when_sent()
    history.when(PAUSED, undone("a")).then().when(RESUMED).then(COMPENSATED)


def test_no_outcome_is_decided_while_the_saga_is_paused() -> None:
    given(SHORT, completed("a"), PAUSED, completed("b")).then().when(RESUMED).then(COMPLETE)


def test_no_time_out_and_no_round_counts_while_the_saga_is_paused() -> None:
    contract = saga(step("a", deadline="1m"), step("b"))
    history = given(contract, PAUSED)
    history.when(timed_out("a").at(START_MS + HOUR_MS)).then_nothing("held")
    history = given(SHORT, completed("a"), failed("b")).when_sent().when(retry("a"), PAUSED)
    history.when(round_started()).then_nothing("held")
    history.when(RESUMED).when(round_started()).then(execute("a", 2))


def test_the_settle_limit_counts_from_the_resumption() -> None:
    contract = saga(step("a"), step("b", "a"), step("c", "a"), settle="1m")
    history = given(contract, completed("a"), PAUSED, failed("b")).when(RESUMED.at(START_MS + HOUR_MS))
    assert timers(contract, history.state)[0].at_ms == START_MS + HOUR_MS + 60_000 + contract.grace_ms + 1


def test_a_cancel_in_a_pause_takes_effect_when_the_saga_goes_on_and_what_was_held_never_runs() -> None:
    history = given(LINE, PAUSED, completed("a"), cancelled()).then()
    [settle] = history.when(RESUMED).owed
    assert (settle.kind, settle.step) == ("settle", "b"), "somebody may know nothing of the pause"
    history = history.when(RESUMED).when_sent().when(undone("b", nothing=True)).then(compensate("a"))
    history.when_sent().when(undone("a")).then(COMPENSATED)


def test_a_step_that_ran_although_it_was_held_has_its_outcome_folded_as_usual() -> None:
    history = given(LINE, PAUSED, completed("a"), completed("b"))
    assert history.note is None
    assert history.state.standing == {"a": 1, "b": 1}
    history.when(RESUMED).then(execute("c"))
    rejected = given(LINE, PAUSED, completed("a"), failed("b"))
    assert rejected.state.failing
    rejected.when(RESUMED).then(compensate("a"))


def test_what_ran_although_it_was_held_is_undone_in_order_when_it_is_said_only_later() -> None:
    history = given(LINE, PAUSED, completed("a"), cancelled(), RESUMED).when_sent()
    history = history.when(completed("b")).then()
    assert history.instance("c").in_flight, "its event has triggered what builds on it"
    history = history.when(failed("c")).then(compensate("b", 2)).when_sent()
    history.when(undone("b", 2)).then(compensate("a"))


def test_a_first_step_that_is_held_runs_when_the_saga_goes_on() -> None:
    given_log(LINE, PAUSED, started()).then().when(RESUMED).then(execute("a"))
    given_log(LINE, TYPE_PAUSED, started()).then().when(TYPE_RESUMED).then(execute("a"))


def test_both_pauses_have_to_end() -> None:
    history = given(LINE, PAUSED, TYPE_PAUSED, completed("a"))
    history.when(RESUMED).then().when(TYPE_RESUMED).then(execute("b"))
    history.when(TYPE_RESUMED).then().when(RESUMED).then(execute("b"))


@pytest.mark.parametrize(("pause", "resume"), [(PAUSED, RESUMED), (TYPE_PAUSED, TYPE_RESUMED)])
def test_a_second_pause_and_a_resumption_of_nothing_are_noted(pause: Said, resume: Said) -> None:
    given(LINE, pause).when(pause).then_nothing("duplicate")
    given(LINE).when(resume).then_nothing("stale")


def test_a_wait_for_a_signal_stands_still() -> None:
    contract = saga(step("a", await_signal="go", signal_timeout="1h"), step("b"))
    history = given(contract)
    due_ms = history.instance("a").signal_due_ms
    history = history.when(PAUSED.at(START_MS + 10), RESUMED.at(START_MS + 10 + 5 * HOUR_MS)).then()
    assert history.instance("a").signal_due_ms == due_ms + 5 * HOUR_MS
    given(contract, PAUSED, signalled("go")).then().when(RESUMED).then(execute("a"))


def test_a_scheduled_saga_does_not_begin_in_a_pause() -> None:
    history = given_log(LINE, started(delay_ms=HOUR_MS), PAUSED)
    history.when(round_started(1).at(START_MS + 2 * HOUR_MS)).then_nothing("held")
    history = history.when(RESUMED.at(START_MS + 3 * HOUR_MS)).then()
    assert history.state.due_ms == START_MS + 3 * HOUR_MS + LINE.deadline_ms
    history.when(round_started(1)).then(execute("a"))


def test_a_failed_compensation_is_told_in_a_pause_too() -> None:
    history = given(SHORT, completed("a"), failed("b")).when_sent().when(PAUSED, undo_failed("a"))
    assert [one.kind for one in history.owed] == ["stuck"]


def test_a_saga_that_is_over_is_held_no_longer_by_its_type() -> None:
    history = given(SHORT, completed("a"), completed("b"), TYPE_PAUSED).when_sent()
    assert history.state.is_settled
    assert history.state.type_pause is None


def test_the_status_says_who_paused_since_when_and_why() -> None:
    paused = status_of(LINE, given(LINE, TYPE_PAUSED.at(START_MS + 5), PAUSED.at(START_MS + 7)).state).paused
    assert [(each.of, each.since_ms, each.operator, each.reason) for each in paused] == [
        ("saga", START_MS + 7, "ada", "because"),
        ("type", START_MS + 5, "ada", "because"),
    ]


def test_a_deadline_that_is_over_in_a_pause_does_not_keep_a_saga_from_a_retry() -> None:
    contract = saga(step("a"), step("b"), deadline="1h")
    history = given(contract, completed("a"), failed("b")).when_sent().when(PAUSED)
    history = history.when(retry("a").at(START_MS + 3 * HOUR_MS))
    assert history.note is None
    history.when(RESUMED.at(START_MS + 4 * HOUR_MS)).when(round_started()).then(execute("a", 2))
