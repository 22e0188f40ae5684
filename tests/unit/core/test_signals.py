"""Steps that wait for a signal (rule 22)."""

from __future__ import annotations

import msgspec

from choreo.contract import Saga
from choreo.core import Phase, timers
from choreo.core.status import status_of
from choreo.messages.headers import JSON, MSGPACK
from choreo.messages.records import Compensate, Execute, Failure, StepFailed
from tests.unit.core.spec import (
    COMPENSATED,
    COMPLETE,
    START_MS,
    History,
    cancelled,
    compensate,
    completed,
    execute,
    failed,
    given,
    given_log,
    of_step,
    refold,
    retry,
    round_started,
    saga,
    signalled,
    started,
    step,
    timed_out,
    undone,
)

HOUR_MS = 3_600_000
LINE = saga(step("a"), step("b", await_signal="approved", signal_timeout="1h"), step("c"))
GRACE_MS = LINE.grace_ms


def no_signal(history: History) -> StepFailed:
    """What the saga-log appends when it gives up waiting."""
    [timer] = timers(history.contract, history.state)
    assert isinstance(timer.record, StepFailed)
    return timer.record


def test_a_step_does_not_run_before_its_signal() -> None:
    history = given(LINE, completed("a")).then()
    assert history.state.waits_for_signal(("b", 1))
    history.when(signalled()).then(execute("b")).when_sent().when(completed("b"), completed("c")).then(COMPLETE)


def test_the_payload_travels_with_the_command_and_with_its_undoing() -> None:
    history = given(LINE, completed("a"), signalled())
    command = history.sends(execute("b"))
    assert isinstance(command, Execute)
    assert command.signals == {"approved": msgspec.Raw(b'{"by":"ada"}')}
    history = history.when_sent().when(completed("b"), failed("c")).then(compensate("b"))
    undo = history.sends(compensate("b"))
    assert isinstance(undo, Compensate)
    assert undo.signals == command.signals
    history = history.when_sent().when(undone("b")).then(compensate("a"))
    assert history.sends(compensate("a")).signals == {}


def test_the_payload_is_written_in_the_codec_of_the_saga() -> None:
    packed = msgspec.msgpack.encode({"by": "ada"})
    history = given_log(LINE, started(), content_type=JSON).when(completed("a"))
    history = History(LINE, history.state, MSGPACK, log=history.log).when(signalled(payload=packed))
    assert history.sends(execute("b")).signals == {"approved": msgspec.Raw(b'{"by":"ada"}')}


def test_a_signal_that_comes_before_the_step_is_reached_is_kept() -> None:
    given(LINE, signalled()).then().when(completed("a")).then(execute("b"))


def test_a_signal_that_comes_before_the_start_is_kept() -> None:
    given_log(LINE, signalled()).then().when(started(), completed("a")).then(execute("b"))


def test_the_first_step_may_wait_too() -> None:
    contract = saga(step("a", await_signal="paid"), step("b"))
    history = given(contract).then()
    assert history.instance("a").signal_due_ms == history.state.due_ms
    history.when(signalled("paid")).then(execute("a")).when_sent().when(completed("a"), completed("b")).then(COMPLETE)


def test_several_steps_may_wait_for_one_signal() -> None:
    contract = saga(
        step("a"), step("b", "a", await_signal="go"), step("c", "a", await_signal="go"), step("d", "b", "c")
    )
    given(contract, completed("a")).when(signalled("go")).then(execute("b"), execute("c"))


def test_a_join_runs_when_its_signal_and_all_that_it_builds_on_are_there() -> None:
    contract = saga(step("a", "nothing"), step("b", "nothing"), step("c", "a", "b", await_signal="go"))
    given(contract, completed("a"), signalled("go")).then().when(completed("b")).then(execute("c"))
    given(contract, completed("a"), completed("b")).then().when(signalled("go")).then(execute("c"))


def test_the_same_signal_again_is_a_duplicate_and_another_one_of_its_name_does_not_count() -> None:
    history = given(LINE, signalled())
    history.when(signalled()).then_nothing("duplicate")
    history = history.when(signalled(request="signal-2", payload=b'"never"'))
    history.then_nothing("signal_repeated")
    assert history.when(completed("a")).sends(execute("b")).signals == {"approved": msgspec.Raw(b'{"by":"ada"}')}


def test_a_signal_that_no_step_waits_for_is_noted() -> None:
    given(LINE, signalled("paid")).then_nothing("unknown_signal")


def test_a_signal_after_the_outcome_is_stale() -> None:
    history = given(LINE, failed("a")).then(COMPENSATED)
    history.when(signalled()).then_nothing("stale")


def test_the_wait_ends_by_the_saga_logs_timer_and_the_saga_goes_back() -> None:
    history = given(LINE, completed("a"))
    due_ms = history.log[-1].at_ms + HOUR_MS
    [timer] = timers(LINE, history.state)
    assert timer.at_ms == due_ms + GRACE_MS + 1
    record = no_signal(history)
    assert (record.failure.kind, record.failure.code, record.effect) == ("timed_out", "signal", "none")
    early = of_step(StepFailed, "b", 1, history.state.start, failure=record.failure, effect="none")
    history.when(early.at(timer.at_ms - 1)).then_nothing("early_timer")
    history = history.when(early.at(timer.at_ms)).then(compensate("a"))
    assert history.instance("b").first == "failed"
    assert not history.instance("b").may_stand, "what has not run has left nothing"
    history.when_sent().when(undone("a")).then(COMPENSATED)


def test_a_signal_between_due_and_the_timers_record_counts() -> None:
    history = given(LINE, completed("a"))
    at_ms = no_signal_at(history)
    history = history.when(signalled().at(at_ms)).then(execute("b"))
    late = of_step(StepFailed, "b", 1, history.state.start, failure=timed_out_by_signal(), effect="none")
    history.when(late.at(at_ms + 1)).then_nothing(
        "early_timer"
    )  # it is in flight by now, and that has a due of its own


def no_signal_at(history: History) -> int:
    return timers(history.contract, history.state)[0].at_ms


def timed_out_by_signal() -> Failure:
    return no_signal(given(LINE, completed("a"))).failure


def test_without_a_timeout_of_its_own_the_sagas_deadline_ends_the_wait() -> None:
    contract = saga(step("a", await_signal="paid"), deadline="2h")
    assert no_signal_at(given(contract)) == START_MS + 2 * HOUR_MS + contract.grace_ms + 1


def test_a_wait_does_not_keep_a_failing_saga() -> None:
    contract = saga(step("a"), step("b", "a", await_signal="go"), step("c", "a"))
    history = given(contract, completed("a")).when(failed("c")).then(compensate("a"))
    assert [timer.record.step for timer in timers(contract, history.when_sent().state)] == ["a"]
    given(LINE, completed("a")).when(cancelled()).then(compensate("a"))


def test_after_the_wait_is_over_its_timer_says_nothing_more() -> None:
    history = given(LINE, completed("a"), cancelled())
    history.when(timed_out("b").at(START_MS + 2 * HOUR_MS)).then_nothing("stale")


def test_the_signal_counts_in_a_new_round_too() -> None:
    history = given(LINE, completed("a"), signalled()).when_sent().when(completed("b"), failed("c")).when_sent()
    history = history.when(retry("b"))
    history.when(round_started()).then(execute("b", 2))


def test_a_new_round_waits_anew() -> None:
    history = given(LINE, completed("a"))
    at_ms = no_signal_at(history)
    gone = of_step(StepFailed, "b", 1, history.state.start, failure=no_signal(history).failure, effect="none")
    history = history.when(gone.at(at_ms)).when_sent().when(retry("a"), round_started()).then(execute("a", 2))
    history = history.when_sent().when(completed("a", saga_round=2)).then()
    assert history.state.waits_for_signal(("b", 2))
    assert history.instance("b", 2).signal_due_ms == history.log[-1].at_ms + HOUR_MS


def test_a_wait_in_vain_may_be_recovered_from() -> None:
    contract = saga(step("a"), step("b", await_signal="approved", signal_timeout="1h", recover_from="timed_out"))
    history = given(contract, completed("a"))
    gone = of_step(StepFailed, "b", 1, history.state.start, failure=no_signal(history).failure, effect="none")
    history = history.when(gone.at(no_signal_at(history))).then(compensate("b")).when_sent()
    assert history.sends(compensate("b")).signals == {}
    history.when(undone("b", nothing=True, verdict="continue", effect=msgspec.Raw(b'"default"'))).then(COMPLETE)


def test_a_pivot_may_wait_and_is_cancelled_as_long_as_it_does() -> None:
    contract = saga(step("a"), step("b", await_signal="approved", pivot=True))
    history = given(contract, completed("a")).then()
    history.when(cancelled()).then(compensate("a"))
    history.when(signalled()).then(execute("b")).when_sent().when(cancelled()).then(note="cancel_deferred")


def test_behind_a_pivot_the_wait_has_no_end() -> None:
    contract = saga(step("a", pivot=True), step("b", await_signal="approved", signal_timeout="1h"))
    history = given(contract).when_sent().when(completed("a")).then()
    at_ms = no_signal_at(history)
    gone = of_step(StepFailed, "b", 1, history.state.start, failure=timed_out_by_signal(), effect="none").at(at_ms)
    history = history.when(gone).then(note="overdue")
    assert timers(contract, history.state) == []
    history.when(signalled()).then(execute("b"))


def test_a_second_start_does_not_get_the_signal() -> None:
    contract: Saga = saga(step("a", await_signal="go"), step("b"))
    history = given(contract, started("b" * 16, "request-2", b"2")).when(signalled("go")).then(execute("a"))
    assert history.state.instance(("a", 0)).triggered is False


def test_the_status_says_what_a_step_waits_for_and_until_when() -> None:
    history = given(LINE, completed("a"))
    waiting = status_of(LINE, history.state).steps[1]
    assert (waiting.phase, waiting.signal) == ("waiting", "approved")
    assert waiting.signal_due_ms == history.log[-1].at_ms + HOUR_MS
    status = status_of(LINE, history.when(signalled()).state)
    assert (status.phase, status.steps[1].phase, status.steps[1].signal) == (Phase.FORWARD, "running", None)
    assert status.signals == ("approved",)


def test_a_history_with_signals_folds_the_same_from_the_start() -> None:
    history = given(LINE, signalled(), completed("a")).when_sent().when(completed("b"), completed("c"))
    assert refold(LINE, history.log) == history.state
