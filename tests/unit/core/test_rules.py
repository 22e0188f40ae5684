"""The protocol's rules, one by one (``docs/protocol.md``): given a history, when a record comes, then this is owed."""

from __future__ import annotations

from typing import Any
from unittest.mock import ANY

import msgspec
import pytest

from choreo.contract import when
from choreo.contract.policy import NO_DUE_MS, CompensateOnFailure, RecoverFrom, Retries
from choreo.core import Decision, Entry, Phase, fold, next_due_ms, said_elsewhere, timers
from choreo.core.status import status_of
from choreo.messages.family import Parent, UndoRequested
from choreo.messages.headers import MSGPACK
from choreo.messages.records import (
    CancelRefused,
    Compensate,
    CompensationFailed,
    Execute,
    RoundStarted,
    SagaCompensated,
    SagaCompleted,
    SagaStuck,
    StartRefused,
    StepFailed,
    Undone,
)
from tests.unit.core.spec import (
    BREAKERS,
    COMPENSATED,
    COMPLETE,
    DIAMOND,
    DIAMOND_OF_BREAKERS,
    LINE,
    OTHER_START,
    SAGA_ID,
    START,
    START_MS,
    History,
    Said,
    acted,
    bare,
    cancelled,
    compensate,
    completed,
    continues,
    execute,
    failed,
    given,
    given_log,
    message,
    refold,
    refuse_cancel,
    refuse_start,
    retry,
    round_started,
    saga,
    settle,
    skip,
    started,
    step,
    stuck,
    timed_out,
    undo_failed,
    undo_timed_out,
    undone,
)

HOUR_MS, MINUTE_MS = 3_600_000, 60_000
SOON_MS = START_MS + HOUR_MS
"""After the settle limit, long before the saga's deadline."""
WITH_DEADLINES = saga(step("a", deadline="1m"), step("b", deadline="1m"), step("c", deadline="1m"))

SHORT = saga(step("a"), step("b"))
"""Two steps; what ``b`` left unknown is undone first, then ``a``."""
SHORT_OF_BREAKERS = saga(step("a", recover_from="rejected"), step("b", recover_from="crashed"))


def rejected_at_b() -> History:
    """``a`` stands, ``b`` has failed without an effect, and the Compensate of ``a`` is in the log."""
    return given(SHORT, completed("a"), failed("b")).then(compensate("a")).when_sent()


def stuck_at_a() -> History:
    return rejected_at_b().when(undo_failed("a"))


# ------------------------------------------------------------------------------------------ 1: one ordered history


def test_rule_1_what_is_decided_is_part_of_the_state_at_once() -> None:
    history = given(LINE, completed("a"), completed("b"), completed("c")).then(COMPLETE)
    assert history.state.outcome is not None
    assert history.state.owed == (COMPLETE,)


def test_rule_1_the_record_of_a_decision_is_only_the_message() -> None:
    before = given(LINE, completed("a"), failed("b"))
    after = before.when(message(compensate("a"))).then()
    assert after.state.owed == ()
    assert after.instance("a").compensation_due_ms > 0
    assert after.state.standing == before.state.standing


def test_rule_1_an_old_instance_can_only_repeat_what_everyone_knows() -> None:
    history = given(LINE, completed("a"), failed("b")).when_sent()
    history.when(message(compensate("a"))).then_nothing("duplicate")
    done = history.when(undone("a")).when_sent()
    done.when(message(COMPENSATED)).then_nothing("duplicate")
    done.when(message(compensate("a"))).then_nothing("duplicate")


def test_rule_1_a_command_that_no_prefix_implies_changes_nothing() -> None:
    history = given(LINE, completed("a"))
    history.when(message(compensate("a"))).then_nothing("not_decided")
    history.when(message(execute("c"))).then_nothing("not_decided")
    history.when(message(stuck("a"))).then_nothing("not_decided")
    history.when(message(COMPLETE)).then_nothing("not_decided")


def test_rule_1_the_fold_leaves_the_state_it_was_given_as_it_was() -> None:
    history = given(DIAMOND, completed("a"), completed("b"))
    before = msgspec.msgpack.encode(history.state)
    history.when(failed("c", "unknown"))
    assert msgspec.msgpack.encode(history.state) == before


def test_rule_1_a_record_that_was_folded_before_is_not_folded_again() -> None:
    history = given(LINE, completed("a"))
    again = fold(LINE, history.state, history.log[-1])
    assert again.state is history.state
    assert again.note == "duplicate"


def test_rule_2_a_start_pins_contract_and_rules() -> None:
    state = given(LINE).state
    assert (state.saga, state.version, state.contract_hash, state.rules) == ("order", 1, LINE.content_hash, 1)


# ------------------------------------------------------------------------------------------------- 4: in flight


def test_rule_4_a_step_is_in_flight_from_its_trigger_to_its_first_outcome() -> None:
    history = given(LINE)
    assert history.instance("a").in_flight
    history = history.when(completed("a"))
    assert not history.instance("a").in_flight
    assert history.instance("b").in_flight


def test_rule_4_before_the_way_back_begins_everything_in_flight_settles() -> None:
    history = given(DIAMOND, completed("a"), failed("b")).then()
    assert history.state.phase == Phase.COMPENSATING
    history.when(completed("c")).then(compensate("c"), note=None)
    history.when(failed("c", "unknown")).then(compensate("c"))
    history.when(failed("c")).then(compensate("a"))


def test_rule_4_what_completes_unwanted_triggers_its_successors_all_the_same() -> None:
    chain = saga(step("a"), step("b", "a"), step("c", "a"), step("e", "c"), step("d", "b", "e"))
    history = given(chain, completed("a"), failed("b"), completed("c")).then()
    assert history.instance("e").in_flight
    history.when(completed("e")).then(compensate("e"))


def test_rule_4_the_outcome_waits_for_the_chain_of_a_refused_start() -> None:
    history = given(SHORT, started(OTHER_START, "request-2"), completed("a"), completed("b"))
    assert history.state.outcome is None
    history = history.when(failed("a", start=OTHER_START)).then(COMPLETE)


def test_rule_4_the_outcome_waits_for_every_answer() -> None:
    history = given(DIAMOND, completed("a"), completed("b"), completed("c"), failed("d")).when_sent()
    history = history.when(undone("b")).then()
    history = history.when(undone("c")).then(compensate("a"))
    assert history.state.outcome is None
    history.when_sent().when(undone("a")).then(COMPENSATED)


# --------------------------------------------------------------------------------- 5: what is known of an effect


@pytest.mark.parametrize(
    ("policy", "effect", "compensated"),
    [
        ("if_unknown", "none", False),
        ("if_unknown", "unknown", True),
        ("always", "none", True),
        ("always", "unknown", True),
        ("never", "none", False),
        ("never", "unknown", False),
    ],
)
def test_rule_5_the_failing_step_is_compensated_as_its_policy_says(
    policy: CompensateOnFailure, effect: str, compensated: bool
) -> None:
    contract = saga(step("a"), step("b"), compensate_on_failure=policy)
    first = compensate("b") if compensated else compensate("a")
    given(contract, completed("a"), failed("b", effect)).then(first)  # type: ignore[arg-type]


def test_rule_5_a_step_may_have_a_policy_of_its_own() -> None:
    contract = saga(step("a"), step("b", compensate_on_failure="always"))
    given(contract, completed("a"), failed("b")).then(compensate("b"))


def test_rule_5_nothing_to_undo_is_a_normal_answer() -> None:
    history = given(SHORT, completed("a"), failed("b", "unknown")).when_sent()
    history = history.when(undone("b", nothing=True)).then(compensate("a"))
    assert history.state.undone == (Undone(step="b", round=1, how="nothing_to_undo"),)


def test_rule_5_whatever_a_time_out_says_the_effect_is_unknown() -> None:
    history = given(WITH_DEADLINES)
    forged = failed("a", "none", run="").at(START_MS + 66_000)
    history.when(forged).then(compensate("a"))


# ------------------------------------------------------------------------ 6: one final outcome per instance and run


def test_rule_6_the_same_run_said_again_is_a_duplicate() -> None:
    given(LINE, completed("a"), completed("a")).then_nothing("duplicate")
    given(LINE, completed("a"), failed("b", "unknown"), failed("b", "unknown")).then_nothing("duplicate")


def test_rule_6_another_run_of_a_step_that_stands_changes_nothing_that_is_decided() -> None:
    history = given(SHORT, completed("a"), completed("a", b'"other"', run="run-2")).then(note="duplicate")
    assert history.instance("a").effect == b'"a1"'
    history = history.when(failed("a", "unknown", run="run-3")).then(note="unwanted")
    history.when(completed("b")).then(COMPLETE)


def test_rule_6_another_run_of_a_failed_step_may_have_an_effect() -> None:
    history = given(SHORT, completed("a"), failed("b")).then(compensate("a"))
    history.when(failed("b", "unknown", run="run-2")).then(compensate("b"), note="unwanted")
    history.when(completed("b", run="run-2")).then(compensate("b"), note="unwanted")


def test_rule_6_the_first_outcome_in_the_log_counts() -> None:
    history = given(SHORT, completed("a"), failed("b"), completed("b", run="run-2"))
    assert history.instance("b").first == "failed"
    assert "b" not in history.state.standing


# ------------------------------------------------------------------------------------------------- 7: standing


def test_rule_7_a_step_stands_until_its_compensate_is_decided() -> None:
    history = given(LINE, completed("a"), completed("b"))
    assert history.state.standing == {"a": 1, "b": 1}
    assert history.when(failed("c")).state.standing == {"a": 1}


def test_rule_7_a_failed_compensation_leaves_the_step_owed_and_the_saga_stuck() -> None:
    history = stuck_at_a().then(stuck("a"))
    assert history.state.phase == Phase.STUCK
    assert history.instance("a").may_stand
    assert history.state.outcome is None


def test_rule_7_no_round_starts_before_every_compensation_is_answered() -> None:
    history = given(DIAMOND, completed("a"), completed("b"), completed("c"), failed("d")).when_sent()
    history = history.when(retry("b"))
    assert not history.state.round_ready
    history.when(round_started()).then_nothing("stale")
    assert history.when(undone("c")).state.round_ready


# ------------------------------------------------------------------------------------------------- 8: order back


def test_rule_8_steps_are_undone_in_reverse_order() -> None:
    history = given(LINE, completed("a"), completed("b"), failed("c")).then(compensate("b")).when_sent()
    history.when(undone("b")).then(compensate("a"))


def test_rule_8_parallel_branches_are_undone_side_by_side_each_in_reverse() -> None:
    chain = saga(step("a"), step("b", "a"), step("c", "a"), step("e", "c"), step("d", "b", "e"), step("f", "d"))
    history = given(chain, *(completed(name) for name in "abced")).when(failed("f")).then(compensate("d"))
    history = history.when_sent().when(undone("d")).then(compensate("b"), compensate("e"))
    history = history.when_sent().when(undone("e")).then(compensate("c"))
    history = history.when_sent().when(undone("c")).then()
    history.when(undone("b")).then(compensate("a"))


def test_rule_8_the_failed_steps_own_compensation_comes_first_and_alone() -> None:
    history = given(DIAMOND, completed("a"), completed("b"), failed("c", "unknown")).then(compensate("c"))
    assert history.sends(compensate("c")).own
    history = history.when_sent().when(undone("c")).then(compensate("b"))
    assert not history.sends(compensate("b")).own


def test_rule_8_the_own_compensations_of_several_failed_steps_go_together() -> None:
    history = given(DIAMOND, completed("a"), failed("b", "unknown"), failed("c", "unknown"))
    history = history.then(compensate("b"), compensate("c")).when_sent()
    history.when(undone("b")).then().when(undone("c")).then(compensate("a"))


def test_rule_8_nothing_else_is_undone_while_a_failed_step_is_stuck_in_its_own_compensation() -> None:
    history = given(DIAMOND_OF_BREAKERS, completed("a"), completed("b"), failed("c", "unknown")).when_sent()
    history = history.when(undo_failed("c")).then(stuck("c"))
    history = history.when(acted("c", "retry")).then(compensate("c", 2))
    assert history.sends(compensate("c", 2)).own
    history.when_sent().when(continues("c", generation=2)).then(execute("d"))


def test_rule_8_the_first_failure_in_the_log_is_the_failure_and_the_others_are_kept() -> None:
    history = given(DIAMOND, completed("a"), failed("c", code="sold_out"), failed("b", code="declined"))
    history = history.when_sent().when(undone("a")).then(COMPENSATED)
    outcome = history.sends(COMPENSATED)
    assert (outcome.cause, outcome.step, outcome.failure.code) == ("failed", "c", "sold_out")
    assert [name for name, _, _ in history.state.failures] == ["c", "b"]


def test_rule_8_continue_puts_a_substitute_in_the_failed_steps_place() -> None:
    history = given(BREAKERS, completed("a"), failed("b", "unknown")).when_sent()
    history = history.when(continues("b", b'"cached"')).then(execute("c"))
    assert history.state.phase == Phase.FORWARD
    assert history.sends(execute("c")).effects == {"a": msgspec.Raw(b'"a1"'), "b": msgspec.Raw(b'"cached"')}
    history = history.when_sent().when(completed("c")).then(COMPLETE)
    assert history.sends(COMPLETE).effects["b"] == msgspec.Raw(b'"cached"')


def test_rule_8_continue_counts_only_if_every_failed_step_answered_it() -> None:
    history = given(DIAMOND_OF_BREAKERS, completed("a"), failed("b", "unknown"), failed("c", "unknown")).when_sent()
    history.when(continues("b")).then().when(continues("c")).then(execute("d"))
    history.when(continues("b")).then().when(undone("c")).then(compensate("a"))


def test_rule_8_continue_is_of_no_use_beside_a_definite_failure() -> None:
    history = given(DIAMOND_OF_BREAKERS, completed("a"), failed("b", "unknown"), failed("c")).when_sent()
    history.when(continues("b")).then(compensate("a"))


def test_rule_8_continue_is_ignored_where_the_failed_step_has_also_completed() -> None:
    history = given(SHORT_OF_BREAKERS, completed("a"), failed("b", "unknown")).when_sent()
    history = history.when(completed("b", run="run-2")).then(note="unwanted")
    history.when(continues("b", nothing=False)).then(compensate("a"))


def test_rule_8_continue_is_ignored_after_a_cancel() -> None:
    history = given(BREAKERS, completed("a"), failed("b", "unknown")).when_sent().when(cancelled())
    history.when(continues("b")).then(compensate("a"), note="continue_refused")
    other = given(DIAMOND_OF_BREAKERS, completed("a"), failed("b", "unknown"), failed("c", "unknown")).when_sent()
    other.when(continues("b"), cancelled(), undone("c")).then(compensate("a"))


def test_rule_8_continue_is_ignored_after_an_abort() -> None:
    history = given(
        DIAMOND_OF_BREAKERS, completed("a"), failed("b", "unknown"), failed("c", "unknown", abort=True)
    ).when_sent()
    history.when(continues("b")).then(note="continue_refused")


def test_rule_8_continue_is_ignored_past_the_sagas_deadline() -> None:
    history = given(BREAKERS, completed("a"), failed("b", "unknown")).when_sent()
    late = START_MS + BREAKERS.deadline_ms + 1
    history.when(continues("b").at(late)).then(compensate("a"), note="continue_refused")


def test_rule_8_only_the_failed_steps_own_compensation_may_continue() -> None:
    history = given(SHORT_OF_BREAKERS, completed("a"), failed("b")).when_sent()
    history.when(continues("a")).then(COMPENSATED, note="continue_refused")


def test_rule_8_continue_counts_after_a_rejection_by_default_where_the_own_compensation_runs() -> None:
    history = given(saga(step("a", compensate_on_failure="always"), step("b")), failed("a")).then(compensate("a"))
    history.when_sent().when(continues("a")).then(execute("b"))


@pytest.mark.parametrize(
    "failure", [failed("a", "unknown"), timed_out("a").at(START_MS + HOUR_MS), completed("a").at(START_MS + HOUR_MS)]
)
def test_rule_8_continue_counts_after_no_other_kind_of_failure_unless_it_is_named(failure: Said) -> None:
    history = given(saga(step("a", deadline="1m"), step("b")), failure).then(compensate("a"), note=ANY).when_sent()
    history.when(continues("a")).then(COMPENSATED, note="continue_refused")


@pytest.mark.parametrize(
    ("kind", "failure"),
    [
        ("rejected", failed("a")),
        ("rejected", failed("a", "unknown", kind="rejected")),
        ("crashed", failed("a", "unknown")),
        ("timed_out", timed_out("a").at(START_MS + HOUR_MS)),
        ("timed_out", completed("a").at(START_MS + HOUR_MS)),
    ],
)
@pytest.mark.parametrize("policy", ["if_unknown", "always", "never"])
def test_rule_8_a_kind_that_is_named_makes_the_own_compensation_run_and_continue_count(
    kind: RecoverFrom, failure: Said, policy: CompensateOnFailure
) -> None:
    breaker = step("a", deadline="1m", recover_from=kind, compensate_on_failure=policy)
    history = given(saga(breaker, step("b")), failure).then(compensate("a"), note=ANY).when_sent()
    history.when(continues("a")).then(execute("b"))


def test_rule_8_a_kind_that_is_not_named_is_left_to_the_policy() -> None:
    breaker = step("a", recover_from="crashed")
    given(saga(breaker), failed("a")).then(COMPENSATED)
    given(saga(breaker), failed("a", "unknown", kind="rejected")).then(compensate("a")).when_sent().when(
        continues("a")
    ).then(COMPENSATED, note="continue_refused")


def test_rule_8_a_later_step_of_the_same_round_may_continue_too() -> None:
    history = given(BREAKERS, completed("a"), failed("b", "unknown")).when_sent().when(continues("b"))
    history = history.when_sent().when(failed("c", "unknown")).then(compensate("c"))
    history.when_sent().when(continues("c")).then(COMPLETE)


def test_rule_8_a_failed_step_is_its_own_only_until_something_else_is_taken_down() -> None:
    history = given(DIAMOND_OF_BREAKERS, completed("a"), completed("b"), failed("c", "unknown")).when_sent()
    history = history.when(undone("c", nothing=True)).then(compensate("b"))
    history = history.when_sent().when(failed("c", "unknown", run="run-2")).then(compensate("c", 2), note="unwanted")
    assert not history.sends(compensate("c", 2)).own
    history.when_sent().when(continues("c", generation=2)).then(note="continue_refused").when(undone("b")).then(
        compensate("a")
    )


def test_rule_8_a_step_without_a_compensation_is_skipped_and_accounted_for() -> None:
    history = given(saga(step("a"), bare("b"), step("c")), completed("a"), completed("b"), failed("c"))
    history = history.then(compensate("a")).when_sent().when(undone("a"))
    assert history.sends(COMPENSATED).compensations == (
        Undone(step="b", round=1, how="no_compensation"),
        Undone(step="a", round=1, how="undone"),
    )


# ---------------------------------------------------------------------------------------------- 9: forward again


def test_rule_9_retry_decides_nothing_more_backwards_and_starts_the_next_round() -> None:
    history = given(LINE, completed("a"), completed("b"), failed("c")).when_sent()
    history = history.when(retry("b")).then()
    assert history.state.standing == {"a": 1}
    history = history.when(round_started()).then(execute("b", 2))
    assert history.state.round == 2
    assert history.state.phase == Phase.FORWARD
    history = history.when_sent().when(completed("b", saga_round=2)).then()
    assert history.instance("c", 2).in_flight
    history.when(completed("c", saga_round=2)).then(COMPLETE)


@pytest.mark.parametrize(("limit", "honoured"), [(0, False), (1, False), (2, True)])
def test_rule_9_a_retry_is_honoured_while_its_limit_is_above_the_round(limit: int, honoured: bool) -> None:
    history = given(LINE, completed("a"), completed("b"), failed("c")).when_sent()
    if honoured:
        assert history.when(retry("b", limit)).then().state.round_ready
    else:
        history.when(retry("b", limit)).then(compensate("a"), note="retry_refused")


def test_rule_9_a_round_waits_for_the_backoff() -> None:
    history = rejected_at_b().when(retry("a", backoff_ms=5_000))
    due_ms = history.log[-1].at_ms + 5_000
    assert [(timer.at_ms, type(timer.record)) for timer in timers(SHORT, history.state)] == [(due_ms, RoundStarted)]
    assert next_due_ms(SHORT, history.state) == due_ms
    history.when(round_started().at(due_ms - 1)).then_nothing("early_timer")
    history.when(round_started().at(due_ms)).then(execute("a", 2))


def test_rule_9_the_longest_of_several_backoffs_counts() -> None:
    history = given(DIAMOND, completed("a"), completed("b"), completed("c"), failed("d")).when_sent()
    history = history.when(retry("b", backoff_ms=9_000).at(START_MS + 100), retry("c", backoff_ms=1_000))
    assert history.state.retry_at_ms == START_MS + 100 + 9_000


def test_rule_9_no_round_starts_past_the_sagas_deadline() -> None:
    due_ms = START_MS + SHORT.deadline_ms
    assert rejected_at_b().when(retry("a").at(due_ms)).state.round_ready
    assert rejected_at_b().when(retry("a", backoff_ms=100).at(due_ms - 100)).state.round_ready
    rejected_at_b().when(retry("a").at(due_ms + 1)).then(COMPENSATED, note="retry_refused")
    rejected_at_b().when(retry("a", backoff_ms=101).at(due_ms - 100)).then(COMPENSATED, note="retry_refused")


def test_rule_9_abort_beats_retry() -> None:
    history = given(DIAMOND, completed("a"), completed("b"), completed("c"), failed("d")).when_sent()
    history.when(retry("b"), undone("c", verdict="abort")).then(compensate("a"))
    history.when(undone("b", verdict="abort"), retry("c")).then(compensate("a"), note="retry_refused")


def test_rule_9_a_step_that_aborts_forbids_every_later_retry() -> None:
    history = given(SHORT, completed("a"), failed("b", abort=True)).when_sent()
    history.when(retry("a")).then(COMPENSATED, note="retry_refused")


def test_rule_9_a_cancel_ends_the_wait_for_the_next_round() -> None:
    history = given(LINE, completed("a"), completed("b"), failed("c")).when_sent().when(retry("b", backoff_ms=5_000))
    history = history.when(cancelled()).then(compensate("a"))
    history.when(round_started()).then_nothing("stale")


def test_rule_9_a_step_carried_over_from_an_earlier_round_may_ask_for_the_next_one() -> None:
    history = given(LINE, completed("a"), completed("b"), failed("c", "unknown")).when_sent()
    history = history.when(retry("c", limit=2), round_started()).then(execute("c", 2)).when_sent()
    history = history.when(failed("c", saga_round=2)).then(compensate("b")).when_sent()
    history = history.when(retry("b", limit=3)).then()
    history.when(round_started(3)).then(execute("b", 3))


def test_rule_9_an_unwanted_effect_of_an_earlier_round_has_no_say() -> None:
    history = given(DIAMOND, completed("a"), completed("b"), failed("c", "unknown")).when_sent()
    history = history.when(retry("c"), round_started()).then(execute("c", 2)).when_sent()
    history = history.when(completed("c", run="run-2")).then(compensate("c", 2), note="unwanted").when_sent()
    history = history.when(failed("c", saga_round=2)).then(compensate("b"))
    history.when(retry("c", generation=2)).then(note="retry_refused")


def test_rule_9_a_new_round_drops_the_substitutes_that_it_passes() -> None:
    history = given(BREAKERS, completed("a"), failed("b", "unknown")).when_sent().when(continues("b")).when_sent()
    history = history.when(failed("c")).then(compensate("a")).when_sent().when(retry("a"))
    assert history.state.standing == {"b": 1}
    history = history.when(round_started()).then(execute("a", 2))
    assert history.state.standing == {}


def test_rule_9_a_new_round_keeps_the_substitute_of_a_step_that_it_does_not_redo() -> None:
    history = given(BREAKERS, completed("a"), failed("b", "unknown")).when_sent().when(continues("b")).when_sent()
    history = history.when(failed("c", "unknown")).when_sent().when(retry("c"), round_started())
    history = history.then(execute("c", 2))
    assert history.sends(execute("c", 2)).effects["b"] == msgspec.Raw(b'"substitute"')


def test_rule_9_a_real_completion_of_a_substituted_step_is_undone_and_the_substitute_stays() -> None:
    history = given(BREAKERS, completed("a"), failed("b", "unknown")).when_sent().when(continues("b")).when_sent()
    history = history.when(completed("b", run="run-2")).then(note="unwanted")
    history = history.when(completed("c")).then(compensate("b", 2)).when_sent()
    history = history.when(undone("b", 2)).then(COMPLETE)
    assert history.sends(COMPLETE).effects["b"] == msgspec.Raw(b'"substitute"')


def test_rule_9_a_substitute_falls_with_the_real_effect_that_the_way_back_undoes() -> None:
    history = given(BREAKERS, completed("a"), failed("b", "unknown")).when_sent().when(continues("b")).when_sent()
    history = history.when(completed("b", run="run-2")).when(failed("c")).then(compensate("b", 2)).when_sent()
    history.when(retry("b", generation=2)).when(round_started()).then(execute("b", 2))


# ------------------------------------------------------------------------------------------------- 10: frontier


def test_rule_10_a_join_is_executed_when_all_its_predecessors_stand() -> None:
    history = given(DIAMOND, completed("a"), completed("b")).then()
    history = history.when(completed("c")).then(execute("d"))
    record = history.sends(execute("d"))
    assert isinstance(record, Execute)
    assert set(record.effects) == {"a", "b", "c"}
    assert record.saga_due_ms == history.state.due_ms


def test_rule_10_a_step_with_one_predecessor_is_triggered_by_its_event_alone() -> None:
    history = given(LINE, completed("a")).then()
    assert history.instance("b").in_flight


def test_rule_10_all_roots_start_with_the_saga() -> None:
    history = given(saga(step("a"), step("b", "nothing"), step("c", "a", "b")))
    assert history.instance("a").in_flight
    assert history.instance("b").in_flight
    history.when(completed("b"), completed("a")).then(execute("c"))


def test_rule_10_the_frontier_of_a_new_round_is_executed() -> None:
    history = given(DIAMOND, completed("a"), failed("b", "unknown"), failed("c", "unknown")).when_sent()
    history.when(retry("b"), undone("c"), round_started()).then(execute("b", 2), execute("c", 2))


def test_rule_10_a_new_round_joins_what_stood_with_what_it_redid() -> None:
    history = given(DIAMOND, completed("a"), completed("b"), failed("c", "unknown")).when_sent()
    history = history.when(retry("c"), round_started()).then(execute("c", 2)).when_sent()
    history = history.when(completed("c", saga_round=2)).then(execute("d", 2))
    assert history.sends(execute("d", 2)).effects == {
        "a": msgspec.Raw(b'"a1"'),
        "b": msgspec.Raw(b'"b1"'),
        "c": msgspec.Raw(b'"c2"'),
    }


WRAPPED = saga(step("a"), step("b", when=when.effect("a") == "a2"), step("c"))
"""``b`` runs in the second round alone."""


def test_rule_10_a_step_whose_condition_does_not_hold_is_skipped_and_what_comes_after_it_is_executed() -> None:
    history = given(WRAPPED, completed("a")).then(skip("b"), execute("c"))
    record = history.sends(skip("b"))
    assert (record.id, record.condition) == (f"{SAGA_ID}/{START}/b/1/skipped", 'a == "a2"')
    assert history.sends(execute("c")).effects.keys() == {"a"}
    done = history.when_sent().when(completed("c")).then(COMPLETE)
    assert done.sends(COMPLETE).skipped == ("b",)
    assert done.sends(COMPLETE).effects.keys() == {"a", "c"}


def test_rule_10_a_condition_is_asked_again_in_the_round_that_passes_its_step() -> None:
    history = given(WRAPPED, completed("a")).when_sent().when(failed("c")).then(compensate("a")).when_sent()
    history = history.when(retry("a"), round_started()).then(execute("a", 2)).when_sent()
    history = history.when(completed("a", saga_round=2)).then(execute("b", 2)).when_sent()
    history = history.when(completed("b", saga_round=2)).then()
    assert history.state.standing == {"a": 2, "b": 2}


def test_rule_10_what_was_skipped_is_carried_over_with_what_it_builds_on() -> None:
    history = given(WRAPPED, completed("a")).when_sent().when(failed("c", "unknown")).then(compensate("c")).when_sent()
    history = history.when(retry("c"), round_started()).then(execute("c", 2))
    assert history.state.standing == {"a": 1, "b": 1}


def test_rule_10_a_condition_is_asked_before_a_signal_is_waited_for() -> None:
    contract = saga(step("a"), step("b", when=when.input("order") == 8, await_signal="go"), step("c"))
    given(contract, completed("a")).then(skip("b"), execute("c"))


def test_rule_10_a_skip_that_no_prefix_implies_changes_nothing() -> None:
    record = given(WRAPPED, completed("a")).sends(skip("b"))
    given(WRAPPED).when(Said(lambda contract, state: record)).then_nothing("not_decided")
    history = given(WRAPPED, completed("a")).when_sent()
    history.when(Said(lambda contract, state: record)).then_nothing("duplicate")


def test_rule_12_a_completion_of_a_skipped_step_is_undone_beside_the_saga() -> None:
    history = given(WRAPPED, completed("a")).when_sent().when(completed("b"))
    history = history.then(note="not_decided").when(completed("c")).then(compensate("b")).when_sent()
    history = history.when(undone("b")).then(COMPLETE)
    assert history.sends(COMPLETE).skipped == ("b",)
    assert "b" not in history.sends(COMPLETE).effects


# ---------------------------------------------------------------------------------------------- 11: generations


def test_rule_11_a_run_after_the_command_needs_another_generation_if_nothing_was_undone() -> None:
    history = given(SHORT, completed("a"), failed("b", "unknown")).when_sent()
    history = history.when(failed("b", "unknown", run="run-2"))
    history.when(undone("b", nothing=True)).then(compensate("b", 2))
    history.when(undone("b")).then(compensate("a"))


def test_rule_11_a_run_without_an_effect_needs_no_other_generation() -> None:
    history = given(SHORT, completed("a"), failed("b", "unknown")).when_sent()
    history.when(failed("b", "none", run="run-2"), undone("b", nothing=True)).then(compensate("a"))


def test_rule_11_an_answer_to_an_older_generation_changes_nothing() -> None:
    history = stuck_at_a().when_sent().when(acted("a", "retry")).then(compensate("a", 2)).when_sent()
    history.when(undone("a", 1)).then_nothing("duplicate")
    history.when(undone("a", 3)).then_nothing("stale")
    history.when(undo_failed("a", 1)).then_nothing("duplicate")
    history.when(undone("a", 2)).then(COMPENSATED)


def test_rule_11_a_run_while_the_compensation_is_stuck_is_not_forgotten() -> None:
    history = given(SHORT, completed("a"), failed("b", "unknown")).when_sent().when(undo_failed("b"))
    history = history.when(completed("b", run="run-2"))
    history.when(undone("b", nothing=True)).then(compensate("b", 2))
    earlier = given(SHORT, completed("a"), failed("b", "unknown")).when_sent()
    earlier = earlier.when(completed("b", run="run-2"), undo_failed("b"))
    earlier.when(undone("b", nothing=True)).then(compensate("b", 2))


def test_rule_11_ids_of_commands_end_in_their_generation() -> None:
    history = stuck_at_a().when_sent().when(acted("a", "retry"))
    assert history.sends(compensate("a", 2)).id == f"{SAGA_ID}/{START}/a/1/compensate/2"


# --------------------------------------------------------------------------------------- 12: unwanted means undone


def test_rule_12_a_completion_after_a_cancel_is_undone() -> None:
    given(LINE, cancelled(), completed("a")).then().when(failed("b")).then(compensate("a"))


def test_rule_12_a_completion_in_an_older_round_is_undone() -> None:
    history = given(LINE, completed("a"), failed("b", "unknown")).when_sent().when(retry("b"), round_started())
    history = history.when_sent().when(completed("b", run="run-2")).then(note="unwanted")
    assert history.instance("c").in_flight, "its event has triggered the next step, wanted or not"
    history = history.when(failed("c")).then(compensate("b", 2))
    assert history.state.phase == Phase.FORWARD


def test_rule_12_what_nothing_has_asked_for_is_undone_and_nothing_builds_on_it() -> None:
    history = given(LINE, completed("c")).then(compensate("c"), note="not_decided")
    assert "c" not in history.state.standing
    history = history.when_sent().when(undone("c"), completed("a"), completed("b")).then()
    assert history.instance("c").in_flight
    history = history.when(completed("c", b'"asked for"', run="run-2")).then(COMPLETE)
    assert history.sends(COMPLETE).result == msgspec.Raw(b'"asked for"')


def test_rule_12_what_nothing_has_asked_for_does_not_take_the_place_of_what_stands() -> None:
    history = given(LINE, completed("a"), completed("b"), failed("c", "unknown")).when_sent()
    history = history.when(retry("c"), round_started()).when_sent()
    history = history.when(completed("a", saga_round=2, run="forged")).then(note="not_decided")
    assert history.state.standing == {"a": 1, "b": 1}
    history = history.when(completed("c", saga_round=2)).then(compensate("a", saga_round=2)).when_sent()
    history.when(undone("a", saga_round=2)).then(COMPLETE)


def test_rule_12_a_failure_that_nothing_has_asked_for_does_not_turn_the_saga_round() -> None:
    history = given(LINE, failed("c")).then(note="not_decided")
    assert history.state.phase == Phase.FORWARD
    given(LINE, failed("c", "unknown")).then(compensate("c"), note="not_decided")


# -------------------------------------------------------------------------------------------------- 13: one start


def test_rule_13_the_same_start_again_is_a_duplicate() -> None:
    given(LINE, started()).then_nothing("duplicate")
    history = given(LINE, started(request="request-2")).then(note="duplicate")
    assert history.state.requests == ("request-1", "request-2")


def test_rule_13_a_new_call_after_the_outcome_is_told_it_again() -> None:
    history = given(SHORT, completed("a"), completed("b")).when_sent()
    history.when(started()).then_nothing("duplicate")
    history = history.when(started(request="request-2")).then(COMPLETE, note="duplicate")
    history.when_sent().then().when(started(request="request-2")).then_nothing("duplicate")


def test_rule_13_another_input_is_refused_and_its_chain_undone() -> None:
    history = given(SHORT, started(OTHER_START, "request-2")).then(refuse_start(), note="start_refused")
    refused = history.sends(refuse_start())
    assert isinstance(refused, StartRefused)
    assert (refused.start, refused.standing_start) == (OTHER_START, START)
    history = history.when_sent().when(completed("a", start=OTHER_START)).then(note="unwanted")
    history = history.when(completed("b", start=OTHER_START)).then(compensate("b", saga_round=0), note="unwanted")
    command = history.sends(compensate("b", saga_round=0))
    assert (command.start, command.round, command.input) == (OTHER_START, 1, msgspec.Raw(b'{"order":7}'))
    assert command.effects == {"a": msgspec.Raw(b'"a1"')}
    history = history.when_sent().when(undone("b", start=OTHER_START)).then(compensate("a", saga_round=0))
    history = history.when_sent().when(undone("a", start=OTHER_START)).then()
    history = history.when(completed("a"), completed("b")).then(COMPLETE)
    assert history.state.undone == ()


def test_rule_13_every_call_with_a_wrong_input_is_answered_and_a_resend_is_not() -> None:
    history = given(SHORT, started(OTHER_START, "request-2")).when_sent()
    history.when(started(OTHER_START, "request-2")).then_nothing("duplicate")
    history.when(started(OTHER_START, "request-3")).then(refuse_start(), note="start_refused")


def test_rule_13_a_join_in_a_refused_chain_is_not_executed() -> None:
    history = given(DIAMOND, started(OTHER_START, "request-2")).when_sent()
    history = history.when(*(completed(name, start=OTHER_START) for name in "abc"))
    history.then(compensate("b", saga_round=0), compensate("c", saga_round=0), note="unwanted")


def test_rule_13_a_refused_chain_is_undone_past_a_step_without_a_compensation_at_once() -> None:
    history = given(saga(step("a"), bare("b")), started(OTHER_START, "request-2")).when_sent()
    history = history.when(completed("a", start=OTHER_START)).then(note="unwanted")
    history = history.when(completed("b", start=OTHER_START)).then(compensate("a", saga_round=0), note="unwanted")
    assert history.state.undone == (), "the account is the saga's own"


def test_rule_13_a_second_start_after_the_outcome_is_refused_and_undone_too() -> None:
    history = given(SHORT, completed("a"), completed("b")).when_sent()
    history = history.when(started(OTHER_START, "request-2")).then(refuse_start(), note="start_refused").when_sent()
    history = history.when(completed("a", start=OTHER_START)).then(note="repair")
    history.when(failed("b", start=OTHER_START)).then(compensate("a", saga_round=0))


def test_rule_13_an_abort_in_a_refused_chain_does_not_forbid_the_saga_a_retry() -> None:
    history = given(SHORT, started(OTHER_START, "request-2"), failed("a", start=OTHER_START, abort=True)).when_sent()
    history = history.when(completed("a"), failed("b")).when_sent().when(retry("a"))
    assert history.state.round_ready


def test_rule_13_a_cancel_before_the_start_is_kept() -> None:
    history = given_log(LINE, cancelled(reason="changed my mind")).then()
    history = history.when(started()).then()
    assert history.state.phase == Phase.COMPENSATING
    history = history.when(failed("a")).then(COMPENSATED)
    outcome = history.sends(COMPENSATED)
    assert (outcome.cause, outcome.failure, outcome.reason) == ("cancelled", None, "changed my mind")


def test_rule_13_a_chain_of_a_start_that_is_not_in_the_log_is_noted() -> None:
    given(LINE, completed("a", start="c" * 16)).then_nothing("unknown_start")
    given(LINE, completed("a", start=OTHER_START)).then_nothing("unknown_start")


# ------------------------------------------------------------------------------------------------ 14: one outcome


def test_rule_14_a_cancel_while_running_undoes_what_stands() -> None:
    history = given(LINE, completed("a"), cancelled(reason="no longer needed")).then()
    history = history.when(completed("b")).then().when(failed("c")).then(compensate("b")).when_sent()
    history = history.when(undone("b")).when_sent().when(undone("a")).then(COMPENSATED)
    outcome = history.sends(COMPENSATED)
    assert isinstance(outcome, SagaCompensated)
    assert (outcome.cause, outcome.step, outcome.failure, outcome.reason) == (
        "cancelled",
        None,
        None,
        "no longer needed",
    )
    assert [one.step for one in outcome.compensations] == ["b", "a"]


def test_rule_14_a_failure_before_the_cancel_stays_the_cause() -> None:
    history = given(SHORT, completed("a"), failed("b", code="declined"), cancelled()).when_sent().when(undone("a"))
    outcome = history.sends(COMPENSATED)
    assert (outcome.cause, outcome.step) == ("failed", "b")


def test_rule_14_a_failure_that_was_mended_by_a_substitute_is_not_the_cause() -> None:
    history = given(BREAKERS, completed("a"), failed("b", "unknown")).when_sent().when(continues("b")).when_sent()
    history = history.when(failed("c", code="no_carrier")).when_sent().when(undone("a")).then(COMPENSATED)
    assert history.sends(COMPENSATED).step == "c"


def test_rule_14_a_cancel_after_the_outcome_is_refused() -> None:
    history = given(SHORT, completed("a"), completed("b"), cancelled()).then(
        COMPLETE, refuse_cancel(), note="cancel_refused"
    )
    refused = history.sends(refuse_cancel())
    assert isinstance(refused, CancelRefused)
    assert (refused.request, refused.reason) == ("cancel-1", "the saga has completed")
    history = history.when_sent()
    history.when(cancelled()).then_nothing("duplicate")
    history.when(cancelled("cancel-2")).then(refuse_cancel("cancel-2"), note="cancel_refused")
    history.when(message(refuse_cancel())).then_nothing("duplicate")


def test_rule_14_a_cancel_that_was_heard_is_not_refused_when_it_is_said_again() -> None:
    history = given(SHORT, cancelled(), cancelled("cancel-2")).then(note="duplicate").when(failed("a"))
    history = history.then(COMPENSATED).when_sent()
    history.when(cancelled()).then_nothing("duplicate")
    history.when(cancelled("cancel-2")).then_nothing("duplicate")


@pytest.mark.parametrize("ended", ["completed", "compensated"])
def test_rule_14_the_outcome_never_changes(ended: str) -> None:
    last = completed("b") if ended == "completed" else failed("b")
    history = given(SHORT, completed("a"), last).when_sent()
    if ended == "compensated":
        history = history.when(undone("a")).when_sent()
    outcome = history.state.outcome
    assert outcome is not None
    for said in (cancelled(), completed("b", run="x"), failed("b", "unknown", run="y"), retry("a"), round_started()):
        history = history.when(said)
        assert history.state.outcome == outcome
    assert history.state.phase == ended


def test_rule_14_an_effect_after_the_outcome_is_repaired_without_another_outcome() -> None:
    history = rejected_at_b().when(undone("a")).when_sent()
    history = history.when(completed("b", run="run-2")).then(compensate("b"), note="repair").when_sent()
    history = history.when(undone("b")).then()
    assert history.state.is_settled
    assert [one.step for one in history.sends(COMPENSATED).compensations] == ["a"]


def test_rule_14_a_repair_keeps_the_order() -> None:
    history = given(LINE, failed("a", "unknown")).when_sent().when(undone("a", nothing=True)).when_sent()
    history = history.when(completed("a", run="run-2")).then(note="repair")
    history = history.when(completed("b")).then(note="repair").when(completed("c"))
    history = history.then(compensate("c"), note="repair").when_sent()
    history = history.when(undone("c")).then(compensate("b")).when_sent()
    history.when(undone("b")).then(compensate("a", 2))


def test_rule_14_the_outcome_is_finished_when_its_record_is_in_the_log() -> None:
    history = given(SHORT, completed("a"), completed("b"))
    assert history.state.finished_ms == 0
    history = history.when_sent()
    assert history.state.finished_ms == history.log[-1].at_ms


# -------------------------------------------------------------------------------------------------- 15: deadlines


def test_rule_15_a_time_out_counts_only_past_due_and_grace_by_its_own_append_time() -> None:
    history = given(WITH_DEADLINES)
    due_ms = START_MS + MINUTE_MS
    (timer,) = timers(WITH_DEADLINES, history.state)
    assert timer.at_ms == due_ms + 5_001
    assert isinstance(timer.record, StepFailed)
    assert timer.record.failure.code == "deadline"
    history.when(timed_out("a").at(timer.at_ms - 1)).then_nothing("early_timer")
    history.when(timed_out("a").at(timer.at_ms)).then(compensate("a"))


def test_rule_15_a_time_out_before_the_execute_does_not_stand_in_for_it() -> None:
    history = given(DIAMOND, completed("a"), completed("b"), completed("c")).then(execute("d"))
    history.when(timed_out("d").at(START_MS + 2 * DIAMOND.deadline_ms)).then_nothing("early_timer")


def test_rule_15_a_time_out_of_what_is_not_in_flight_is_stale() -> None:
    history = given(WITH_DEADLINES, completed("a"))
    history.when(timed_out("a").at(START_MS + HOUR_MS)).then_nothing("stale")
    history.when(timed_out("c").at(START_MS + HOUR_MS)).then_nothing("stale")


def test_rule_15_a_late_completion_is_the_steps_failure_with_a_known_effect() -> None:
    history = given(WITH_DEADLINES, completed("a"))
    due_ms = history.instance("b").due_ms
    assert due_ms == START_MS + 10 + MINUTE_MS
    assert history.when(completed("b").at(due_ms)).state.phase == Phase.FORWARD
    history = history.when(completed("b").at(due_ms + 1)).then(compensate("b"), note="late")
    assert not history.instance("c").triggered
    command = history.sends(compensate("b"))
    assert (command.own, command.effect, command.failure.code) == (True, msgspec.Raw(b'"b1"'), "late")
    history = history.when_sent().when(undone("b")).when_sent().when(undone("a"))
    assert (history.sends(COMPENSATED).step, history.sends(COMPENSATED).failure.code) == ("b", "late")


@pytest.mark.parametrize("policy", ["if_unknown", "always", "never"])
def test_rule_15_a_late_completion_is_undone_under_every_policy(policy: CompensateOnFailure) -> None:
    contract = saga(step("a", deadline="1m"), compensate_on_failure=policy)
    given(contract, completed("a").at(START_MS + MINUTE_MS + 1)).then(compensate("a"), note="late")


def test_rule_15_a_completion_after_the_time_out_is_undone() -> None:
    history = given(WITH_DEADLINES, timed_out("a").at(START_MS + 70_000)).when_sent()
    history = history.when(completed("a").at(START_MS + 71_000)).then(note="late")
    again = history.when(undone("a", nothing=True)).then(compensate("a", 2))
    assert again.sends(compensate("a", 2)).effect == msgspec.Raw(b'"a1"')
    history.when(undone("a")).then(COMPENSATED)


def test_rule_15_a_steps_due_is_at_most_the_sagas() -> None:
    contract = saga(step("a", deadline="2h"), deadline="1h")
    assert given(contract).instance("a").due_ms == START_MS + HOUR_MS


def test_rule_15_without_a_deadline_of_its_own_a_step_has_the_sagas() -> None:
    assert given(LINE).instance("a").due_ms == START_MS + LINE.deadline_ms


def test_rule_15_the_deadline_of_an_executed_step_counts_from_its_execute() -> None:
    contract = saga(step("a"), step("b", "a"), step("c", "a"), step("d", "b", "c", deadline="1m"))
    history = given(contract, completed("a"), completed("b"), completed("c"))
    assert history.instance("d").in_flight
    assert timers(contract, history.state) == [], "its trigger is not in the log yet"
    history = history.when(message(execute("d")).at(START_MS + HOUR_MS))
    assert history.instance("d").due_ms == START_MS + HOUR_MS + MINUTE_MS


def test_rule_15_once_the_saga_fails_what_is_in_flight_gets_at_most_the_settle_limit() -> None:
    history = given(DIAMOND, completed("a"), failed("b"))
    failed_ms = history.log[-1].at_ms
    (timer,) = timers(DIAMOND, history.state)
    assert timer.at_ms == failed_ms + DIAMOND.settle_ms + DIAMOND.grace_ms + 1
    assert isinstance(timer.record, StepFailed)
    assert timer.record.failure.code == "settle"
    history.when(timed_out("c").at(timer.at_ms - 1)).then_nothing("early_timer")
    history = history.when(timed_out("c").at(timer.at_ms)).then(compensate("c"))
    assert history.sends(compensate("c")).own


CHAIN = saga(step("a"), step("b"), step("c"))


def given_up(name: str) -> History:
    """A chain that is cancelled while this step is in flight, and that has waited for it to the settle limit."""
    before = tuple(completed(one.name) for one in CHAIN.steps[: [one.name for one in CHAIN.steps].index(name)])
    history = given(CHAIN, *before, cancelled())
    (timer,) = timers(CHAIN, history.state)
    return history.when(timed_out(name).at(timer.at_ms))


def test_rule_15_what_is_given_up_before_its_due_is_asked_to_settle_before_anything_is_undone() -> None:
    history = given_up("b").then(settle("b"))
    command = history.sends(settle("b"))
    assert (command.settle, command.generation) == (True, 1)
    assert status_of(CHAIN, history.state).steps[1].phase == "running"
    history = history.when_sent().when(undone("b", nothing=True)).then(compensate("b", generation=2))
    assert history.sends(compensate("b", generation=2)).own
    assert not history.sends(compensate("b", generation=2)).settle
    assert history.state.undone == (), "nothing was undone by settling"


def test_rule_15_what_completes_in_time_after_it_was_given_up_is_undone_behind_its_successors() -> None:
    history = given_up("b").when_sent().when(completed("b").at(SOON_MS)).then(note="unwanted")
    assert history.instance("c").in_flight
    history = history.when(undone("b", nothing=True)).then_nothing("duplicate")
    history = history.when(completed("c").at(SOON_MS)).then(compensate("c"))
    history = history.when_sent().when(undone("c")).then(compensate("b", generation=2))
    history.when_sent().when(undone("b", generation=2)).then(compensate("a"))


def test_rule_15_a_failure_settles_too_what_was_given_up() -> None:
    history = (
        given_up("b").when_sent().when(failed("b").at(SOON_MS)).then(compensate("b", generation=2), note="unwanted")
    )
    history.when(undone("b", nothing=True)).then_nothing("duplicate")


def test_rule_15_the_last_step_of_a_chain_triggers_nothing_and_need_not_settle() -> None:
    given_up("c").then(compensate("c"))


def test_rule_15_a_step_that_does_not_settle_within_its_compensation_deadline_leaves_the_saga_stuck() -> None:
    history = given_up("b").when_sent()
    (timer,) = timers(CHAIN, history.state)
    history = history.when(undo_timed_out("b").at(timer.at_ms)).then(stuck("b")).when_sent()
    history.when(acted("b", "retry")).then(settle("b", generation=2))
    history.when(acted("b", "skip")).then(compensate("a"))
    assert not history.when(completed("b").at(timer.at_ms)).instance("b").stuck, "that is what was waited for"


def test_rule_15_nobody_waits_for_the_settle_limit_after_the_outcome() -> None:
    history = given(SHORT, failed("a")).when_sent()
    started_ms = START_MS + HOUR_MS
    history = history.when(started(OTHER_START, "request-2").at(started_ms))
    (timer,) = timers(SHORT, history.state)
    assert timer.at_ms == started_ms + SHORT.deadline_ms + SHORT.grace_ms + 1


def test_rule_15_the_settle_limit_never_lengthens_a_steps_own_due() -> None:
    contract = saga(step("a", deadline="1m"), step("b", "nothing", deadline="1m"))
    history = given(contract, failed("a"))
    (timer,) = timers(contract, history.state)
    assert timer.at_ms == START_MS + MINUTE_MS + contract.grace_ms + 1


def test_rule_15_a_compensation_has_a_deadline_past_which_the_saga_is_stuck() -> None:
    history = given(SHORT, completed("a"), failed("b"))
    assert timers(SHORT, history.state) == [], "its command is not in the log yet"
    history = history.when_sent()
    (timer,) = timers(SHORT, history.state)
    assert isinstance(timer.record, CompensationFailed)
    assert timer.at_ms == history.log[-1].at_ms + SHORT["a"].compensation_deadline_ms + SHORT.grace_ms + 1
    assert timer.at_ms == next_due_ms(SHORT, history.state)
    history.when(undo_timed_out("a").at(timer.at_ms - 1)).then_nothing("early_timer")
    history.when(undo_timed_out("a").at(timer.at_ms)).then(stuck("a"))


def test_rule_15_timers_come_earliest_first() -> None:
    contract = saga(step("a", deadline="2m"), step("b", "nothing", deadline="1m"))
    history = given(contract)
    found = [timer.record for timer in timers(contract, history.state)]
    assert [record.step for record in found if isinstance(record, StepFailed)] == ["b", "a"]
    assert next_due_ms(contract, history.state) == START_MS + MINUTE_MS + contract.grace_ms + 1
    assert next_due_ms(SHORT, given(SHORT, failed("a")).state) is None


# ------------------------------------------------------------------------------------------------------ 16: stuck


def test_rule_16_stuck_is_told_with_what_remains_the_stuck_step_first() -> None:
    history = given(DIAMOND, completed("a"), completed("b"), completed("c"), failed("d")).when_sent()
    history = history.when(undo_failed("b")).then(stuck("b"))
    notice = history.sends(stuck("b"))
    assert isinstance(notice, SagaStuck)
    assert notice.remaining == ("b", "c", "a")
    assert notice.failure.code == "refund_refused"
    assert history.when_sent().state.outcome is None


def test_rule_16_what_remains_is_told_in_the_order_back_however_the_contract_is_written() -> None:
    contract = saga(step("c", "b"), step("b", "a"), step("a", "nothing"), step("d", "c"))
    history = given(contract, completed("a"), completed("b"), completed("c"), failed("d")).when_sent()
    assert history.when(undo_failed("c")).sends(stuck("c")).remaining == ("c", "b", "a")


def test_rule_16_what_the_saga_still_wants_does_not_remain_to_be_undone() -> None:
    history = given(SHORT, started(OTHER_START, "request-2"), completed("a", start=OTHER_START))
    history = history.when(failed("b", start=OTHER_START), completed("a")).when_sent()
    history = history.when(undo_failed("a", start=OTHER_START)).then(stuck("a", saga_round=0))
    assert history.sends(stuck("a", saga_round=0)).remaining == ("a",)
    assert history.sends(stuck("a", saga_round=0)).start == OTHER_START


def test_rule_16_an_operator_retries() -> None:
    history = stuck_at_a().when_sent().when(acted("a", "retry")).then(compensate("a", 2))
    assert history.state.phase == Phase.COMPENSATING
    history.when_sent().when(undone("a", 2)).then(COMPENSATED)


def test_rule_16_an_operator_skips() -> None:
    history = given(LINE, completed("a"), completed("b"), failed("c")).when_sent().when(undo_failed("b")).when_sent()
    history = history.when(acted("b", "skip")).then(compensate("a")).when_sent().when(undone("a"))
    assert [(one.step, one.how) for one in history.sends(COMPENSATED).compensations] == [
        ("b", "skipped"),
        ("a", "undone"),
    ]


def test_rule_16_resolve_takes_all_that_is_left_as_undone_and_gives_the_outcome() -> None:
    history = given(LINE, completed("a"), completed("b"), failed("c")).when_sent().when(undo_failed("b")).when_sent()
    history = history.when(acted("b", "resolve")).then(COMPENSATED)
    assert {one.step for one in history.sends(COMPENSATED).compensations} == {"a", "b"}
    assert {one.how for one in history.sends(COMPENSATED).compensations} == {"resolved"}
    assert history.state.standing == {}


def test_rule_16_an_act_on_what_is_not_stuck_or_on_another_generation_is_recorded_and_changes_nothing() -> None:
    rejected_at_b().when(acted("a", "resolve")).then_nothing("stale")
    stuck_at_a().when(acted("a", "skip", 2)).then_nothing("stale")
    stuck_at_a().when(acted("b", "skip")).then_nothing("stale")


def test_rule_16_a_late_answer_ends_the_stuckness_and_the_act_after_it_is_stale() -> None:
    history = stuck_at_a().when_sent().when(undone("a")).then(COMPENSATED)
    history.when(acted("a", "retry")).then_nothing("stale")


def test_rule_16_an_act_before_the_late_answer_wins() -> None:
    history = stuck_at_a().when_sent().when(acted("a", "skip")).then(COMPENSATED)
    history.when(undone("a")).then_nothing("duplicate")


def test_rule_16_a_repair_can_be_stuck_and_the_outcome_stays() -> None:
    history = rejected_at_b().when(undone("a")).when_sent().when(completed("b", run="run-2")).when_sent()
    history = history.when(undo_failed("b")).then(stuck("b"))
    assert history.state.phase == Phase.STUCK
    assert history.state.outcome is not None
    history = history.when(acted("b", "resolve")).then()
    assert history.state.phase == Phase.COMPENSATED


# ------------------------------------------------------------------------------------------------- 17: the pivot

ONCE = Retries(limit=1, backoff_ms_base=1_000, jitter=False)
PIVOT = saga(step("a"), bare("p", pivot=True, forward_retries=ONCE), step("c", forward_retries=ONCE))
"""``p`` is the pivot and cannot be undone."""
FORKED = saga(step("p", pivot=True), step("b", "p"), step("c", "p"), step("d", "b", "c"))


def pivot_open() -> History:
    return given(PIVOT, completed("a")).then(execute("p")).when_sent()


def pivot_passed() -> History:
    return pivot_open().when(completed("p"))


def stuck_at_c() -> History:
    """``c`` has failed in both its rounds."""
    history = pivot_passed().when(failed("c")).when(round_started().at(START_MS + MINUTE_MS)).when_sent()
    return history.when(failed("c", saga_round=2)).then(stuck("c", saga_round=2))


def test_rule_17_a_pivot_is_executed_because_an_event_alone_does_not_know_of_a_cancel() -> None:
    assert not given(PIVOT).when(cancelled(), completed("a")).then(compensate("a")).instance("p").triggered
    first = saga(step("p", pivot=True), step("b"))
    given(first).then(execute("p")).when_sent().when(completed("p"), completed("b")).then(COMPLETE)


def test_rule_17_a_cancel_waits_for_the_pivot_in_flight_and_is_refused_when_it_completes() -> None:
    history = pivot_open().when(cancelled()).then(note="cancel_deferred")
    assert not history.state.failing
    history.when(cancelled()).then(note="duplicate")
    history = history.when(cancelled("cancel-2"), completed("p")).then(refuse_cancel(), refuse_cancel("cancel-2"))
    refusal = history.sends(refuse_cancel())
    assert (refusal.request, refusal.reason) == ("cancel-1", "the saga is past its pivot")
    history.when_sent().when(completed("c")).then(COMPLETE)


def test_rule_17_a_cancel_that_waited_counts_when_the_pivot_certainly_has_not_happened() -> None:
    history = pivot_open().when(cancelled(reason="changed my mind"), failed("p")).then(compensate("a")).when_sent()
    assert history.state.cancelled
    history = history.when(retry("a")).then(COMPENSATED, note="retry_refused")
    outcome = history.sends(COMPENSATED)
    assert (outcome.cause, outcome.step, outcome.reason) == ("failed", "p", "changed my mind")


def test_rule_17_a_cancel_past_the_pivot_is_refused() -> None:
    pivot_passed().when(cancelled()).then(refuse_cancel(), note="cancel_refused")


def test_rule_17_a_pivot_that_certainly_has_not_happened_leaves_the_way_back_open() -> None:
    pivot_open().when(failed("p")).then(compensate("a"))
    pivot_open().when(failed("p", "unknown", kind="rejected")).then(compensate("a"))
    retried = pivot_open().when(failed("p")).when_sent().when(retry("a")).when(round_started()).when_sent()
    retried.when(completed("a", saga_round=2)).then(execute("p", 2))


def test_rule_17_what_a_pivot_may_have_left_is_undone_where_it_can_be() -> None:
    contract = saga(step("a"), step("p", pivot=True))
    history = given(contract, completed("a")).when_sent().when(failed("p", "unknown")).then(compensate("p")).when_sent()
    history.when(undone("p", nothing=True)).then(compensate("a"))


def test_rule_17_a_pivot_that_may_have_happened_is_asked_again_under_the_same_key() -> None:
    history = pivot_open().when(failed("p", "unknown")).then()
    assert history.state.phase == Phase.FORWARD
    history = history.when(cancelled()).then(note="cancel_deferred")
    history = history.when(round_started().at(START_MS + MINUTE_MS)).then(execute("p", 2))
    assert history.sends(execute("p", 2)).key_round == 1
    history.when_sent().when(completed("p", saga_round=2)).then(refuse_cancel())
    history.when_sent().when(failed("p", saga_round=2)).then(compensate("a"))


def test_rule_17_deadlines_only_alert_from_the_pivot_on() -> None:
    limits = {"deadline": "1m"}
    contract = saga(step("a"), step("p", pivot=True, **limits), step("c", **limits), deadline="1h")
    history = given(contract, completed("a")).when_sent()
    assert [timer.at_ms for timer in timers(contract, history.state)] == [history.log[-1].at_ms + MINUTE_MS + 5_001]
    late = START_MS + HOUR_MS + 1
    history = history.when(timed_out("p").at(late)).then(note="overdue")
    assert timers(contract, history.state) == []
    assert next_due_ms(contract, history.state) is None
    history = history.when(timed_out("p").at(late)).then(note="duplicate")
    history = history.when(completed("p", due_ms=NO_DUE_MS).at(late + 1)).then()
    history.when(failed("c"), round_started().at(late + HOUR_MS)).then(execute("c", 2))


def test_rule_17_what_fails_past_the_pivot_is_retried_after_a_backoff_and_nothing_is_undone() -> None:
    history = pivot_passed().when(failed("c")).then()
    assert history.state.phase == Phase.FORWARD
    due_ms = history.log[-1].at_ms + 1_000
    assert next_due_ms(PIVOT, history.state) == due_ms
    history.when(round_started().at(due_ms - 1)).then_nothing("early_timer")
    history = history.when(round_started().at(due_ms)).then(execute("c", 2))
    assert history.sends(execute("c", 2)).effects.keys() == {"a", "p"}
    history.when_sent().when(completed("c", saga_round=2)).then(COMPLETE)


def test_rule_17_a_run_that_failed_past_the_pivot_is_undone_itself_where_it_can_be() -> None:
    history = pivot_passed().when(failed("c", "unknown")).then(compensate("c")).when_sent()
    history = history.when(undone("c")).when(round_started().at(START_MS + MINUTE_MS)).then(execute("c", 2))
    assert history.sends(execute("c", 2)).key_round == 0


def test_rule_17_the_key_stays_only_as_long_as_an_effect_may_be_there() -> None:
    contract = saga(step("p", pivot=True), bare("c", forward_retries=Retries(5, jitter=False)))
    history = given(contract).when_sent().when(completed("p"), failed("c", "unknown"))
    for saga_round, effect, key_round in ((2, "unknown", 1), (3, "none", 1), (4, "unknown", 0), (5, "none", 4)):
        history = history.when(round_started(saga_round).at(START_MS + saga_round * MINUTE_MS))
        assert history.sends(execute("c", saga_round)).key_round == key_round
        history = history.when_sent().when(failed("c", effect, saga_round=saga_round))


def test_rule_17_a_step_past_the_pivot_may_have_a_substitute_also_after_an_abort() -> None:
    contract = saga(step("p", pivot=True), step("c", recover_from="rejected"), step("d"))
    history = given(contract).when_sent().when(completed("p"), failed("c", abort=True)).then(compensate("c"))
    history.when_sent().when(continues("c").at(START_MS + 2 * contract.deadline_ms)).then(execute("d"))


def test_rule_17_parallel_steps_settle_and_only_those_that_failed_run_again() -> None:
    history = given(FORKED).when_sent().when(completed("p"), failed("b")).then()
    assert next_due_ms(FORKED, history.state) == history.instance("c").due_ms + FORKED.grace_ms + 1
    history = history.when(completed("c")).then()
    history = history.when(round_started().at(START_MS + MINUTE_MS)).then(execute("b", 2)).when_sent()
    history.when(completed("b", saga_round=2)).then(execute("d", 2))


def test_rule_17_the_jitter_of_a_backoff_is_drawn_alike_by_all_who_fold() -> None:
    history = given(FORKED).when_sent().when(completed("p"), completed("b"), failed("c"))
    wait_ms = (history.state.retry_at_ms or 0) - history.log[-1].at_ms
    assert 0 < wait_ms <= 1_000
    assert refold(FORKED, history.log) == history.state


def test_rule_17_after_the_last_retry_the_saga_is_stuck() -> None:
    history = stuck_at_c()
    assert history.state.phase == Phase.STUCK
    notice = history.sends(stuck("c", saga_round=2))
    assert (notice.failure.code, notice.remaining) == ("c", ("c",))
    assert next_due_ms(PIVOT, history.state) is None
    history.when(cancelled()).then(refuse_cancel(), note="cancel_refused")
    history.when(undone("c", saga_round=2)).then_nothing("duplicate")


def test_rule_17_an_operator_retries_a_step_past_the_pivot() -> None:
    history = stuck_at_c().when(acted("c", "retry", saga_round=2)).then()
    history = history.when(round_started(3)).then(execute("c", 3)).when_sent()
    history.when(completed("c", saga_round=3)).then(COMPLETE)
    history.when(failed("c", saga_round=3)).then(stuck("c", saga_round=3))


def test_rule_17_an_operator_takes_a_step_past_the_pivot_as_done_by_hand() -> None:
    contract = saga(step("p", pivot=True), step("c", forward_retries=0), step("d"))
    history = given(contract).when_sent().when(completed("p"), failed("c")).then(stuck("c")).when_sent()
    skipped = history.when(acted("c", "skip")).then(execute("d"))
    assert skipped.sends(execute("d")).effects.keys() == {"p"}
    skipped.when_sent().when(completed("d")).then(COMPLETE)
    history.when(acted("c", "resolve")).then(COMPLETE)


def test_rule_17_an_operator_takes_a_pivot_as_done_by_hand() -> None:
    contract = saga(step("a"), bare("p", pivot=True, forward_retries=0), step("c"))
    history = given(contract, completed("a")).when_sent().when(failed("p", "unknown")).then(stuck("p", 2)).when_sent()
    history = history.when(cancelled(), acted("p", "skip", 2)).then(refuse_cancel(), execute("c"))
    assert history.state.pivot == "passed"


def test_rule_17_one_of_two_stuck_steps_waits_for_the_other() -> None:
    contract = saga(step("p", pivot=True), *(step(name, "p", forward_retries=0) for name in "bc"), step("d", "b", "c"))
    history = given(contract).when_sent().when(completed("p"), failed("b"), failed("c")).then(stuck("b"), stuck("c"))
    history = history.when_sent().when(acted("b", "retry")).then()
    history.when(round_started()).then_nothing("stale")
    both = history.when(acted("c", "retry"), round_started()).then(execute("b", 2), execute("c", 2))
    assert both.state.phase == Phase.FORWARD
    history.when(acted("c", "skip"), round_started()).then(execute("b", 2))


def test_rule_17_a_refused_start_does_not_reach_the_pivot() -> None:
    history = given(PIVOT, completed("a"), started(OTHER_START, "request-2")).when_sent()
    history = history.when(completed("a", start=OTHER_START)).then(compensate("a", saga_round=0), note="unwanted")
    assert not history.instance("p", 0).triggered


# ---------------------------------------------------------------------------------- 21, and what is not understood


def test_rule_21_a_saga_whose_start_is_not_in_the_log_gets_no_command_and_is_listed() -> None:
    history = given_log(LINE, completed("a"), failed("b", "unknown"), undone("b")).then(note="before_start")
    assert history.state.truncated
    assert history.state.owed == ()
    assert not history.when(started()).state.truncated


def test_a_step_that_the_contract_does_not_have_is_noted() -> None:
    given(LINE, completed("z")).then_nothing("unknown_step")


def test_a_record_of_a_round_that_has_not_begun_is_noted() -> None:
    given(LINE, completed("a", saga_round=2)).then_nothing("not_decided")
    given(LINE, round_started(3)).then_nothing("stale")
    given(LINE, round_started(1)).then_nothing("duplicate")


# ----------------------------------------------------------------------------------------------------- the messages


def test_a_compensate_carries_the_effect_and_the_context_as_the_step_saw_it() -> None:
    history = given(DIAMOND, completed("a"), completed("b"), completed("c"), failed("d", code="no_stock"))
    command = history.sends(compensate("b"))
    assert isinstance(command, Compensate)
    assert command.effect == msgspec.Raw(b'"b1"')
    assert command.effects == {"a": msgspec.Raw(b'"a1"')}
    assert command.input == msgspec.Raw(b'{"order":7}')
    assert command.failure is not None
    assert command.failure.code == "no_stock"
    assert command.deadline_ms == DIAMOND["b"].compensation_deadline_ms


def test_the_context_of_a_compensate_comes_from_the_rounds_in_which_its_predecessors_stood_then() -> None:
    history = given(LINE, completed("a"), completed("b"), failed("c")).when_sent().when(undone("b")).when_sent()
    history = history.when(retry("a"), round_started()).when_sent()
    history = history.when(completed("a", saga_round=2), completed("b", saga_round=2), failed("c", saga_round=2))
    assert history.sends(compensate("b", saga_round=2)).effects == {"a": msgspec.Raw(b'"a2"')}
    assert history.sends(compensate("b")).effects == {"a": msgspec.Raw(b'"a1"')}


def test_a_compensate_of_a_step_that_never_completed_has_no_effect_and_its_own_failure() -> None:
    history = given(SHORT, completed("a"), failed("b", "unknown", code="lost"))
    command = history.sends(compensate("b"))
    assert command.effect is msgspec.UNSET
    assert command.failure.code == "lost"


def test_a_compensate_after_a_cancel_has_no_failure() -> None:
    history = given(LINE, completed("a"), cancelled(), failed("b"))
    assert history.sends(compensate("a")).failure is None


def test_the_result_is_the_effect_of_the_last_step() -> None:
    history = given(SHORT, completed("a"), completed("b", b'{"tracking":"X1"}'))
    outcome = history.sends(COMPLETE)
    assert isinstance(outcome, SagaCompleted)
    assert outcome.result == msgspec.Raw(b'{"tracking":"X1"}')
    assert list(outcome.effects) == ["a", "b"]


def test_a_messagepack_saga_keeps_its_values_in_messagepack() -> None:
    pack = msgspec.msgpack.encode
    packed = given_log(SHORT, started(value=pack({"order": 7})), content_type=MSGPACK)
    packed = packed.when(completed("a", pack("a1")), completed("b", pack({"x": 1})))
    assert packed.sends(COMPLETE).result == msgspec.Raw(pack({"x": 1}))
    assert packed.state.input == pack({"order": 7})


def test_a_value_in_the_other_codec_is_turned_into_the_sagas() -> None:
    history = given(SHORT)
    record = completed("a", msgspec.msgpack.encode({"x": [1, 2]})).make(SHORT, history.state)
    state, _, _ = fold(SHORT, history.state, Entry(record, 99, START_MS + 1, MSGPACK))
    assert state.instances["a", 1].effect == b'{"x":[1,2]}'
    broken = completed("a", b"\xff\xff").make(SHORT, history.state)
    state, _, _ = fold(SHORT, history.state, Entry(broken, 99, START_MS + 1, MSGPACK))
    assert state.instances["a", 1].effect == b"null"


def test_a_history_folded_from_the_beginning_gives_the_state_it_was_built_with() -> None:
    history = stuck_at_a().when_sent().when(acted("a", "retry")).when_sent().when(retry("a", generation=2))
    assert refold(SHORT, history.log) == history.state


# ------------------------------------------------------------------------------------------------- 19: sub-sagas

PARENT = Parent(saga="trip", version=1, saga_id="t", start=START, step="order", round=1, due_ms=10**12)
OTHER_PARENT = msgspec.structs.replace(PARENT, saga_id="u")


def begun(parent: Parent | None = PARENT, **options: Any) -> Said:
    """The start of a saga that is a step of another one."""
    made = started(**options)
    return Said(lambda contract, state: msgspec.structs.replace(made.make(contract, state), parent=parent))


def undo_requested(generation: int = 1, parent: Parent = PARENT) -> Said:
    return Said(
        lambda contract, state: UndoRequested(
            saga=contract.name, version=1, saga_id=SAGA_ID, start=START, generation=generation, parent=parent
        )
    )


def answer(generation: int = 1) -> Decision:
    return Decision("undone", generation=generation)


def told(history: History, decision: Decision) -> Any:
    """What the parent is told with a decision."""
    return said_elsewhere(history.contract, history.state, decision)


def test_rule_19_a_saga_is_due_no_later_than_the_one_it_is_a_step_of() -> None:
    soon = msgspec.structs.replace(PARENT, due_ms=START_MS + 5)
    assert given_log(LINE, begun(soon)).state.due_ms == START_MS + 5
    assert given_log(LINE, begun()).state.due_ms == START_MS + LINE.deadline_ms


def test_rule_19_a_request_to_undo_what_was_never_begun_leaves_a_tombstone_and_is_answered() -> None:
    history = given_log(LINE, undo_requested()).then(answer())
    assert told(history, answer()).undone is False
    assert (told(history, answer()).saga_id, told(history, answer()).generation) == ("t", 1)
    history = history.when_sent().then()
    history = history.when(begun(), completed("a"), failed("b")).then(compensate("a")).when_sent()
    history.when(undone("a")).then(COMPENSATED)


def test_rule_19_a_request_to_undo_what_runs_cancels_it() -> None:
    history = given_log(LINE, begun(), completed("a"), undo_requested()).then()
    history = history.when(failed("b")).then(compensate("a")).when_sent()
    history = history.when(undone("a")).then(COMPENSATED, answer())
    assert told(history, COMPENSATED).effect == "none"
    assert told(history, answer()).undone is True
    history.when_sent().when(undo_requested()).then_nothing("duplicate")


def test_rule_19_a_request_to_undo_what_has_completed_undoes_it_in_order_and_leaves_the_outcome() -> None:
    history = given_log(SHORT, begun(), completed("a"), completed("b")).then(COMPLETE).when_sent()
    assert told(history, COMPLETE).effect == msgspec.Raw(b'"b1"')
    history = history.when(undo_requested()).then(compensate("b")).when_sent()
    assert history.state.phase is Phase.COMPENSATING
    history = history.when(undone("b")).then(compensate("a")).when_sent()
    history = history.when(undone("a")).then(answer()).when_sent()
    assert (history.state.outcome and history.state.outcome.kind, history.state.phase) == ("completed", "compensated")
    assert history.state.is_settled
    assert history.log[-1].record.id == f"{SAGA_ID}/undo-outcome/1"


def test_rule_19_what_is_undone_before_its_outcome_was_said_says_it_as_it_was() -> None:
    history = given_log(WRAPPED, begun(), completed("a")).when_sent().when(completed("c")).then(COMPLETE)
    as_it_was = told(history, COMPLETE), history.sends(COMPLETE)
    assert (as_it_was[0].effect, as_it_was[1].skipped) == (msgspec.Raw(b'"c1"'), ("b",))
    for said in (undo_requested(), message(compensate("c")), undone("c"), message(compensate("a")), undone("a")):
        history = history.when(said)
        assert (told(history, COMPLETE), history.sends(COMPLETE)) == as_it_was
    history.then(answer())


def test_rule_19_a_request_to_undo_what_was_compensated_is_answered_at_once() -> None:
    history = given_log(SHORT, begun(), failed("a")).then(COMPENSATED).when_sent()
    history = history.when(undo_requested()).then(answer()).when_sent()
    history.when(undo_requested(2)).then(answer(2))


def test_rule_19_a_stuck_child_tells_its_parent_and_again_when_it_is_asked_again() -> None:
    history = given_log(SHORT, begun(), completed("a"), completed("b")).when_sent().when(undo_requested()).when_sent()
    history = history.when(undo_failed("b")).then(stuck("b", undo=1))
    assert isinstance(told(history, stuck("b", undo=1)), CompensationFailed)
    history = history.when_sent().when(undo_requested(2)).then(stuck("b", undo=2))
    assert told(history, stuck("b", undo=2)).generation == 2
    history = history.when_sent().when(acted("b", "retry")).then(compensate("b", 2)).when_sent()
    history = history.when(undone("b", 2)).then(compensate("a")).when_sent().when(undone("a")).then(answer(2))


def test_rule_19_a_child_that_gets_stuck_by_itself_fails_the_step_with_an_unknown_effect() -> None:
    history = given_log(SHORT, begun(), completed("a"), failed("b")).when_sent().when(undo_failed("a")).then(stuck("a"))
    said = told(history, stuck("a"))
    assert (type(said), said.effect) == (StepFailed, "unknown")


def test_rule_19_past_its_pivot_a_child_cannot_be_undone_and_says_so() -> None:
    contract = saga(step("a"), step("p", pivot=True), step("b"))
    history = given_log(contract, begun(), completed("a")).when_sent().when(completed("p"), undo_requested())
    history = history.then(answer())
    assert isinstance(told(history, answer()), CompensationFailed)
    history.when_sent().when(completed("b")).then(COMPLETE)


def test_rule_19_an_id_that_somebody_else_has_taken_fails_the_step() -> None:
    history = given_log(LINE, started(), begun(start=OTHER_START, value=b"2", request="saga"))
    history = history.then(refuse_start(), note="start_refused")
    assert told(history, refuse_start()).failure.code == "saga_id_taken"
    history.when(undo_requested(parent=OTHER_PARENT)).then(note="stale")
