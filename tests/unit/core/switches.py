"""The rules, each switched off by itself: what is left must go wrong, or the exploration could not fail.

A switch replaces one place of the production core, or leaves out a habit of the workers for the rules that they keep,
and names a small case in which the rule is missed.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from importlib import import_module
from typing import Any, NamedTuple
from unittest import mock

from choreo.contract.saga import StepSpec
from choreo.core import commands, condition, decide, evolve, pausing, siblings, straight
from choreo.core.order import context_of
from choreo.core.state import Decision, Key, Note, SagaState
from choreo.core.survey import Survey
from choreo.messages.records import (
    CancelRequested,
    CompensationFailed,
    RoundStarted,
    SignalReceived,
    StepCompensated,
    StepCompleted,
    StepFailed,
)
from tests.unit.core.cases import NO_INBOX, Case
from tests.unit.core.folding import Only
from tests.unit.core.world import Budget, Habits

TO_CANCEL = siblings.to_cancel
GO_ON = pausing._go_on
fold_module = import_module("choreo.core.fold")  # the package has a function of this name

Off = Callable[[], AbstractContextManager[object]]

GO_BACK, GO_FORWARD, COMPENSATE = decide._go_back, decide._go_forward, decide._compensate
TRIGGER, FOLD_ROUND, CONTEXT_OF = evolve._trigger, SagaState.fold_round, context_of


class Switch(NamedTuple):
    """A rule to leave out, a case in which it is missed, and what kind of wrong that is (empty for any)."""

    rule: int
    off: str
    without: Off
    case: Case
    kind: str = ""

    def __str__(self) -> str:
        return f"rule {self.rule}: {self.off}"


def replaced(module: Any, name: str, by: Any) -> Off:
    return lambda: by_the_rules(mock.patch.object(module, name, by))


def replaced_in(table: dict[Any, Any], kind: type, by: Any) -> Off:
    return lambda: by_the_rules(mock.patch.dict(table, {kind: by}))


@contextmanager
def by_the_rules(broken: AbstractContextManager[object]) -> Iterator[None]:
    """Break a rule, and close the straight way, which would pass by it."""
    with mock.patch.dict(straight.WAYS, clear=True), broken:
        yield


class Unsettled(Survey):
    def __init__(self, state: SagaState) -> None:
        super().__init__(state)
        self.in_flight = []


class OneGeneration(Survey):
    def __init__(self, state: SagaState) -> None:
        super().__init__(state)
        self.candidates = [key for key in self.candidates if not state.instances[key].generation]
        self.uncompensated = [*self.candidates, *self.awaiting, *self.stuck]


class OnlyWhatStood(Survey):
    def __init__(self, state: SagaState) -> None:
        super().__init__(state)
        self.candidates = [key for key in self.candidates if state.standing.get(key[0]) == key[1]]
        self.uncompensated = [*self.candidates, *self.awaiting, *self.stuck]


class Unordered(Survey):
    def __init__(self, state: SagaState) -> None:
        super().__init__(state)
        self.blockers, self.uncompensated = self.uncompensated, []

    @property
    def is_settled(self) -> bool:
        return not self.in_flight and not self.blockers


def retry_without_waiting(contract: Any, state: SagaState, survey: Survey, made: list[Decision]) -> bool:
    if state.retry_at_ms is not None and not survey.in_flight and survey.awaiting:
        state.round_ready = True
        return False
    return GO_BACK(contract, state, survey, made)


def trigger_only_while_forward(contract: Any, state: SagaState, steps: Any, saga_round: int, at_ms: int) -> None:
    if not state.failing:
        TRIGGER(contract, state, steps, saga_round, at_ms)


def execute_only_joins(contract: Any, state: SagaState, made: list[Decision], *, settled: bool) -> bool:
    before = state.owed
    changed = GO_FORWARD(contract, state, made, settled=settled)
    state.owed = tuple(
        one for one in state.owed if one in before or one.kind != "execute" or len(contract.graph.before[one.step]) > 1
    )
    return changed


def stands_until_answered(contract: Any, state: SagaState, *args: Any, **options: Any) -> bool:
    stood = dict(state.standing)
    changed = COMPENSATE(contract, state, *args, **options)
    state.standing = stood
    return changed


def nothing_to_undo_covers_all(contract: Any, state: SagaState, entry: Any, record: Any, key: Any) -> Note | None:
    if state.instance(key).ran_again:
        state.update(key, ran_again=False)
    return evolve.step_compensated(contract, state, entry, record, key)


def failed_is_undone(contract: Any, state: SagaState, entry: Any, record: Any, key: Any) -> Note | None:
    if state.instance(key).awaits_answer and state.instance(key).generation == record.generation:
        state.update(key, awaits_answer=False, may_stand=False, ran_again=False)
    return None


def keep_what_stands(contract: Any, state: SagaState, entry: Any, record: Any) -> Note | None:
    stood = dict(state.standing)
    note = evolve.round_started(contract, state, entry, record)
    state.standing = stood
    return note


def cancel_reopens(contract: Any, state: SagaState, entry: Any, record: Any) -> Note | None:
    state.outcome = None
    return evolve.cancel_requested(contract, state, entry, record)


def late_counts_for_nothing(contract: Any, state: SagaState, entry: Any, record: Any, key: Any) -> Note | None:
    if record.is_late(entry.at_ms):
        return "late"
    return evolve.step_completed(contract, state, entry, record, key)


def cancel_at_once(contract: Any, state: SagaState, entry: Any, record: Any) -> Note | None:
    state.pivot = "" if state.pivot == "open" else state.pivot
    return evolve.cancel_requested(contract, state, entry, record)


def given_up_is_over(contract: Any, state: SagaState, entry: Any, record: Any, key: Any) -> Note | None:
    note = evolve.step_failed(contract, state, entry, record, key)
    if state.instance(key).settling:
        state.update(key, settling=False)
    return note


def only_for_who_waits(contract: Any, state: SagaState, entry: Any, record: Any) -> Note | None:
    if not any(state.waits_for_signal(key) for key in state.instances):
        return "stale"
    return evolve.signal_received(contract, state, entry, record)


def forget_signals(contract: Any, state: SagaState, entry: Any, record: Any) -> Note | None:
    state.signals = {}
    return evolve.round_started(contract, state, entry, record)


def decide_all_the_same(contract: Any, state: SagaState) -> list[Decision]:
    made: list[Decision] = []
    while state.started and decide._decide_once(contract, state, made):
        continue
    return made


def trigger_behind_a_pause(contract: Any, state: SagaState, steps: Any, saga_round: int, at_ms: int) -> None:
    with mock.patch.object(SagaState, "is_paused", False):
        TRIGGER(contract, state, steps, saga_round, at_ms)


def ask_nobody(state: SagaState, at_ms: int, due_ms: int) -> None:
    GO_ON(state, at_ms, due_ms)
    for key, instance in list(state.instances.items()):
        if instance.settling and instance.first is None:
            state.update(key, settling=False)


def cancel_once(contract: Any, state: SagaState, survey: Survey) -> list[Key]:
    found = TO_CANCEL(contract, state, survey)
    return [] if any(instance.cancelling for instance in state.instances.values()) else found


def one_chain(state: SagaState, start: str, wire_round: int) -> int | None:
    return None if FOLD_ROUND(state, start, wire_round) is None else wire_round


def skipped_stands_nowhere(contract: Any, state: SagaState, made: list[Decision], *, settled: bool) -> bool:
    changed = GO_FORWARD(contract, state, made, settled=settled)
    for one in made:
        if one.kind == "skip" and state.standing.pop(one.step, None):
            state.update((one.step, one.round), first="completed")  # decided, so that it is not decided for ever
    return changed


def context_of_what_was_undone(contract: Any, state: SagaState, key: Any) -> dict[str, bytes]:
    """Looks past what was skipped, for an effect of an earlier round."""
    looked_at = state.copy()
    for other, instance in state.instances.items():
        if instance.skipped:
            del looked_at.instances[other]
    return CONTEXT_OF(contract, looked_at, key)


SWITCHES = (
    Switch(
        3,
        "records of a step are handled in any order",
        nullcontext,
        Case("a-b-c", Budget(timeout=1), NO_INBOX._replace(lanes=False)),
    ),
    Switch(
        4,
        "the way back does not wait for what is in flight",
        replaced(decide, "Survey", Unsettled),
        Case("a-[b,c]-d", Budget(failure=1)),
    ),
    Switch(
        4,
        "a completion that nobody wants any more triggers nothing",
        replaced(evolve, "_trigger", trigger_only_while_forward),
        Case("a-[b,c-e]-d", Budget(failure=1)),
    ),
    Switch(
        5,
        "a reject after an earlier attempt counts as certain",
        nullcontext,
        Case("a-b-c", Budget(crash=1, failure=1), NO_INBOX._replace(doubt=False)),
    ),
    Switch(
        6,
        "the inbox forgets failures",
        nullcontext,
        Case("a-b-c", Budget(crash=1, failure=1), Habits(keep_failures=False)),
    ),
    Switch(
        6,
        "without an inbox, nobody looks for answers in the log",
        nullcontext,
        Case("a-b-c", Budget(crash=1, failure=1), NO_INBOX._replace(scan=False)),
    ),
    Switch(
        7,
        "a step stands until its compensation is answered",
        replaced(decide, "_compensate", stands_until_answered),
        Case("a-[b,c]-d", Budget(failure=2, retry=1)),
    ),
    Switch(
        7,
        "a failed compensation counts as done",
        replaced_in(evolve.OF_STEP, CompensationFailed, failed_is_undone),
        Case("a-b-c", Budget(failure=1, undo_failure=1)),
    ),
    Switch(
        8,
        "the failed step's own compensation is like any other",
        replaced(decide, "_is_own", lambda *_: False),
        Case("a-[b,c]-d", Budget(failure=1)),
    ),
    Switch(
        8,
        "all at once instead of in reverse order",
        replaced(decide, "Survey", Unordered),
        Case("a-b-c", Budget(failure=1)),
    ),
    Switch(
        8,
        "one substitute is enough for two failures",
        replaced(decide, "_may_continue", lambda state: any(i.offer == "offered" for i in state.instances.values())),
        Case("a-[b,c]-d", Budget(failure=2, continues=1)),
    ),
    Switch(
        8,
        "Continue counts after any kind of failure",
        replaced(evolve, "_may_recover", lambda *_: True),
        Case("a-b-c", Budget(failure=1, continues=1), recover_from=None),
    ),
    Switch(
        9,
        "a round starts before every compensation is answered",
        replaced(decide, "_go_back", retry_without_waiting),
        Case("a-[b,c]-d", Budget(failure=2, retry=1)),
    ),
    Switch(
        9,
        "a new round keeps the substitutes that it passes",
        replaced_in(evolve.OF_SAGA, RoundStarted, keep_what_stands),
        Case("a-b-c", Budget(failure=2, retry=1, continues=1)),
    ),
    Switch(
        10,
        "only joins are executed",
        replaced(decide, "_go_forward", execute_only_joins),
        Case("a-b-c", Budget(failure=1, retry=1)),
    ),
    Switch(
        10,
        "what is skipped stands nowhere",
        replaced(decide, "_go_forward", skipped_stands_nowhere),
        Case("a-b-c", Budget(cancel=1), only={"b": Only("a", "a2")}),
        kind="H4",
    ),
    Switch(
        10,
        "an event alone triggers a conditional step",
        replaced(StepSpec, "is_commanded", False),
        Case("a-b-c", Budget(cancel=1), only={"b": Only("a", "a2")}),
        kind="Z",
    ),
    Switch(
        10,
        "a new round keeps what was skipped",
        replaced_in(evolve.OF_SAGA, RoundStarted, keep_what_stands),
        Case("a-b-c", Budget(failure=1, retry=1), only={"b": Only("a", "a2")}),
        kind="Z",
    ),
    Switch(
        10,
        "a step is given an effect of a step that was skipped since",
        replaced(commands, "context_of", context_of_what_was_undone),
        Case("a-b-c", Budget(failure=1, retry=2), only={"b": Only("a", "a1")}),
        kind="E1",
    ),
    Switch(
        10,
        "a condition sees an effect of a step that was skipped since",
        replaced(condition, "context_of", context_of_what_was_undone),
        Case("a-b-c", Budget(failure=1, retry=2), only={"b": Only("a", "a1"), "c": Only("b", "b1")}),
        kind="Z1",
    ),
    Switch(
        11,
        "no second generation",
        replaced(decide, "Survey", OneGeneration),
        Case("a-b-c", Budget(failure=1, undo_failure=1)),
    ),
    Switch(
        11,
        "'nothing to undo' covers the run that came after the command",
        replaced_in(evolve.OF_STEP, StepCompensated, nothing_to_undo_covers_all),
        Case("a-b-c", Budget(crash=1, failure=1), NO_INBOX._replace(replicas=True)),
        kind="H2",  # with two replicas and no inbox the order is not promised, only that nothing is left in the end
    ),
    Switch(
        12,
        "what completes unwanted is left alone",
        replaced(decide, "Survey", OnlyWhatStood),
        Case("a-b-c", Budget(second_start=1)),
    ),
    Switch(
        13,
        "both starts are one chain",
        replaced(SagaState, "fold_round", one_chain),
        Case("a-b-c", Budget(second_start=1)),
    ),
    Switch(
        14,
        "a cancel reopens the outcome",
        replaced_in(evolve.OF_SAGA, CancelRequested, cancel_reopens),
        Case("a-b-c", Budget(cancel=1)),
    ),
    Switch(
        15,
        "a late completion counts for nothing",
        replaced_in(evolve.OF_STEP, StepCompleted, late_counts_for_nothing),
        Case("a-b-c", Budget(timeout=1)),
    ),
    Switch(
        15,
        "what is given up before its due is undone at once",
        replaced_in(evolve.OF_STEP, StepFailed, given_up_is_over),
        Case("a-b-c", Budget(cancel=1, settle=1)),
    ),
    Switch(
        17,
        "past the pivot there is a way back",
        replaced(SagaState, "only_forward", False),
        Case("a-b-c", Budget(failure=1), pivots=("b",)),
        kind="P1",
    ),
    Switch(
        17,
        "a cancel does not wait for the pivot's outcome",
        replaced_in(evolve.OF_SAGA, CancelRequested, cancel_at_once),
        Case("a-b-c", Budget(cancel=1), pivots=("b",)),
        kind="P",
    ),
    Switch(
        17,
        "an event alone triggers the pivot",
        replaced(StepSpec, "is_commanded", False),
        Case("a-b-c", Budget(cancel=1), pivots=("b",)),
        kind="P",
    ),
    Switch(
        22,
        "a signal counts only for a step that waits for it already",
        replaced_in(evolve.OF_SAGA, SignalReceived, only_for_who_waits),
        Case("a-b-c", Budget(), awaiting=("b",)),
        kind="G1",
    ),
    Switch(
        22,
        "a new round forgets the signals",
        replaced_in(evolve.OF_SAGA, RoundStarted, forget_signals),
        Case("a-b-c", Budget(failure=1, retry=1), awaiting=("a",)),
        kind="G1",
    ),
    Switch(
        22,
        "an event alone triggers a step that waits for a signal",
        replaced(StepSpec, "is_commanded", False),
        Case("a-b-c", Budget(), awaiting=("b",)),
        kind="G2",
    ),
    Switch(
        23,
        "a scheduled start triggers steps",
        nullcontext,
        Case("a-b-c", Budget(), Habits(schedule=False), scheduled=True),
        kind="B1",
    ),
    Switch(
        24,
        "the saga-log decides although the saga is paused",
        replaced(fold_module, "decide", decide_all_the_same),
        Case("a-[b,c]-d", Budget(pause=1)),
        kind="Z1",
    ),
    Switch(
        24,
        "what is triggered behind a pause is in flight",
        replaced(evolve, "_trigger", trigger_behind_a_pause),
        Case("a-b-c", Budget(pause=1)),
        kind="H4",
    ),
    Switch(
        24,
        "the outcome of what ran although it was held counts for nothing",
        replaced(evolve, "take_up", lambda *_: None),
        Case("a-b-c", Budget(pause=1), Habits(pause=False)),
        kind="D1",
    ),
    Switch(
        25,
        "a sibling is cancelled although a substitute may still mend the round",
        replaced(siblings, "_may_be_mended", lambda *_: False),
        Case("a-[b,c]-d", Budget(failure=1, continues=1), cancelled=("b", "c")),
        kind="X3",
    ),
    Switch(
        25,
        "what is triggered behind the failure is left to settle",
        replaced(decide, "to_cancel", cancel_once),
        Case("a-[b,c-e]-d", Budget(failure=1), cancelled=("b", "c", "e"), recover_from=None),
        kind="X5",
    ),
    Switch(
        25,
        "what was cancelled in its middle has certainly had no effect",
        nullcontext,
        Case(
            "a-[b,c]-d",
            Budget(failure=1),
            NO_INBOX._replace(interrupted=False),
            cancelled=("b", "c"),
            recover_from=None,
        ),
        kind="H2",
    ),
    Switch(
        24,
        "nobody is asked whether what was held has run all the same",
        replaced(pausing, "_go_on", ask_nobody),
        Case("a-b-c", Budget(pause=1, cancel=1), Habits(pause=False)),
        kind="H3",
    ),
)
