"""Starts whose time has not come (rule 23)."""

from __future__ import annotations

import pytest

from choreo.core import Phase, timers
from choreo.core.status import status_of
from choreo.messages.records import RoundStarted
from tests.unit.core.spec import (
    COMPENSATED,
    COMPLETE,
    LINE,
    OTHER_START,
    START_MS,
    cancelled,
    completed,
    execute,
    given_log,
    refuse_start,
    round_started,
    saga,
    signalled,
    started,
    step,
)

HOUR_MS = 3_600_000
SCHEDULES = {"delay_ms": HOUR_MS, "not_before_ms": START_MS + HOUR_MS}


@pytest.mark.parametrize("field", SCHEDULES)
def test_a_scheduled_saga_begins_when_its_time_has_come(field: str) -> None:
    history = given_log(LINE, started(**{field: SCHEDULES[field]})).then()
    assert history.state.phase is Phase.SCHEDULED
    assert not any(instance.in_flight for instance in history.state.instances.values())
    [timer] = timers(LINE, history.state)
    assert timer.at_ms == START_MS + HOUR_MS
    assert isinstance(timer.record, RoundStarted)
    assert timer.record.round == 1
    history.when(round_started(1).at(timer.at_ms - 1)).then_nothing("early_timer")
    history = history.when(round_started(1).at(timer.at_ms)).then(execute("a")).when_sent()
    assert history.state.phase is Phase.FORWARD
    history.when(round_started(1)).then_nothing("duplicate")
    history.when(completed("a"), completed("b"), completed("c")).then(COMPLETE)


def test_its_deadline_counts_from_the_scheduled_time() -> None:
    history = given_log(LINE, started(delay_ms=HOUR_MS))
    assert history.state.due_ms == START_MS + HOUR_MS + LINE.deadline_ms
    late = history.when(round_started(1).at(START_MS + 3 * HOUR_MS))
    assert late.state.due_ms == history.state.due_ms, "that the saga-log was late is no gift"
    assert late.sends(execute("a")).saga_due_ms == history.state.due_ms


def test_a_time_that_has_passed_is_no_reason_to_wait() -> None:
    history = given_log(LINE, started(not_before_ms=1))
    assert timers(LINE, history.state)[0].at_ms == START_MS
    history.when(round_started(1)).then(execute("a"))


def test_it_can_be_cancelled_before_it_begins() -> None:
    history = given_log(LINE, started(delay_ms=HOUR_MS)).when(cancelled()).then(COMPENSATED).when_sent()
    assert timers(LINE, history.state) == []
    history.when(round_started(1).at(START_MS + HOUR_MS)).then_nothing("stale")
    given_log(LINE, cancelled(), started(delay_ms=HOUR_MS)).then(COMPENSATED)


def test_the_same_start_again_is_a_duplicate_and_begins_nothing() -> None:
    history = given_log(LINE, started(delay_ms=HOUR_MS))
    again = history.when(started(request="request-2", delay_ms=HOUR_MS)).then(note="duplicate")
    assert again.state.begins_ms == START_MS + HOUR_MS


def test_a_refused_start_that_is_scheduled_triggers_nothing() -> None:
    history = given_log(LINE, started()).when(started(OTHER_START, "request-2", b"2", delay_ms=HOUR_MS))
    history.then(refuse_start(), note="start_refused")
    assert history.state.instance(("a", 0)).triggered is False


def test_a_signal_that_comes_before_it_begins_is_kept() -> None:
    contract = saga(step("a", await_signal="go"), step("b"))
    history = given_log(contract, started(delay_ms=HOUR_MS)).when(signalled("go")).then()
    history.when(round_started(1).at(START_MS + HOUR_MS)).then(execute("a"))


def test_a_wait_for_a_signal_begins_with_the_saga() -> None:
    contract = saga(step("a", await_signal="go", signal_timeout="1m"), step("b"))
    history = given_log(contract, started(delay_ms=HOUR_MS))
    history = history.when(round_started(1).at(START_MS + HOUR_MS)).then()
    assert history.instance("a").signal_due_ms == START_MS + HOUR_MS + 60_000


def test_the_status_says_when_it_begins() -> None:
    status = status_of(LINE, given_log(LINE, started(delay_ms=HOUR_MS)).state)
    assert (status.phase, status.begins_ms) == (Phase.SCHEDULED, START_MS + HOUR_MS)
