"""The production fold as a table: states are interned, and each (state, event) pair is folded once.

A world takes every order of events, so it comes to the same few thousand saga states by very many ways. Here a state
is a number and an event a small tuple; the record behind the tuple is built, and folded, only the first time. Times and
offsets are normalised: what a due means is chosen by the append time of the one record that is early or late.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from types import MappingProxyType
from typing import Any, NamedTuple

import msgspec

from choreo.contract import when
from choreo.contract.graph import Graph
from choreo.contract.policy import Retries
from choreo.contract.saga import Saga, Step
from choreo.core import Decision, Entry, Instance, SagaState, fold, record_of
from choreo.core.fold import fold_by_the_rules
from choreo.core.survey import Survey
from choreo.messages.records import (
    AnyRecord,
    CancelRequested,
    CompensationFailed,
    Failure,
    OperatorActed,
    RoundStarted,
    SagaPaused,
    SagaResumed,
    SagaStarted,
    SignalReceived,
    StepCompensated,
    StepCompleted,
    StepFailed,
)

Event = tuple[Any, ...]
Key = tuple[str, int]

START, OTHER_START = "a" * 16, "b" * 16
NOW_MS = 1_000_000
STEP_DEADLINE_MS = 60_000
GRACE_MS = 5_000
SETTLE_MS = 30_000
DUE_MS = NOW_MS + STEP_DEADLINE_MS
UNDO_DUE_MS = NOW_MS + 900_000
RETRY_LIMIT = 100
FORWARD_RETRIES = Retries(limit=1)
SIGNAL = "go"
SIGNAL_DUE_MS = NOW_MS + 3_600_000
DELAY_MS = 1_000


class Only(NamedTuple):
    """When a conditional step runs: if the effect of ``of``, or the saga's input where that is empty, is this or not.

    The effect of ``a`` in round 2 is ``"a2"``, that of its substitute ``"substitute"``; the input of the saga is 1.
    """

    of: str
    value: str | int
    equal: bool = True

    def __str__(self) -> str:
        return f"{self.of or 'input'} {'==' if self.equal else '!='} {self.value}"

    @property
    def condition(self) -> when.Condition:
        place = when.effect(self.of) if self.of else when.input()
        return place == self.value if self.equal else place != self.value

    def holds(self, contract: Saga, state: SagaState) -> bool:
        """The answer by what stands, without the core's own idea of a context."""
        found: str | int | None = 1
        if self.of:
            stands_in = state.standing.get(self.of)
            instance = state.instances.get((self.of, stands_in or 0), Instance())
            found = f"{self.of}{stands_in}" if instance.offer != "taken" else None
            if instance.offer == "taken" and instance.substitute is not None:
                found = "substitute"
        return (found == self.value) == self.equal


LINEAR = {"a": (), "b": ("a",), "c": ("b",)}
PARALLEL = {"a": (), "b": ("a",), "c": ("a",), "d": ("b", "c")}
PARALLEL_CHAIN = {"a": (), "b": ("a",), "c": ("a",), "e": ("c",), "d": ("b", "e")}


def contract_of(
    graph: Mapping[str, tuple[str, ...]],
    *,
    bare: Iterable[str] = (),
    policy: Any = "if_unknown",
    recover_from: Any = ("crashed", "timed_out"),
    pivots: Iterable[str] = (),
    awaiting: Iterable[str] = (),
    only: Mapping[str, Only] = MappingProxyType({}),
    cancelled: Iterable[str] = (),
) -> Saga:
    """A saga with these steps.

    Those in ``bare`` have no compensation, those ``awaiting`` wait for ``SIGNAL``, those in ``only`` have a condition,
    those ``cancelled`` are so when a sibling fails.
    """
    ancestors = Graph(graph).ancestors
    reach = {name: {name, *ancestors[name]} for name in graph}
    return Saga(
        "world",
        *(
            Step(
                name,
                compensation=None if name in bare else f"undo_{name}",
                after=needs,
                deadline=STEP_DEADLINE_MS / 1_000,
                compensation_deadline="15m",
                recover_from=None if name in bare or policy == "never" else recover_from,
                pivot=name in pivots,
                forward_retries=FORWARD_RETRIES if any(pivot in reach[name] for pivot in pivots) else None,
                await_signal=SIGNAL if name in awaiting else None,
                signal_timeout="1h" if name in awaiting else None,
                when=only[name].condition if name in only else None,
                on_sibling_failure="cancel" if name in cancelled else None,
            )
            for name, needs in graph.items()
        ),
        compensate_on_failure=policy,
        settle=SETTLE_MS / 1_000,
    )


class View(NamedTuple):
    """What the world has to know of a saga's state."""

    outcome: str
    settles_early: bool
    round_ready: int
    in_flight: tuple[Key, ...]
    awaiting: tuple[tuple[str, int, int], ...]
    stuck: tuple[tuple[str, int, int], ...]
    uncompensated: tuple[Key, ...]
    standing: frozenset[Key]
    substituted: frozenset[Key]
    skipped: frozenset[Key]
    settled: bool
    waiting: tuple[Key, ...]
    scheduled: bool
    paused: bool


class Folded(NamedTuple):
    """What an event leads to: the next state's number, what it made the saga-log owe, and what is wrong with it."""

    state: int
    owed: tuple[Event, ...]
    note: str | None
    wrong: tuple[str, ...]


class Folding:
    """All states that a saga of this contract has been in."""

    def __init__(self, contract: Saga, only: Mapping[str, Only] = MappingProxyType({})) -> None:
        self.contract = contract
        self.only = only
        self.states: list[SagaState] = []
        self.views: list[View] = []
        self._numbers: dict[bytes, int] = {}
        self._folded: dict[tuple[int, Event], Folded] = {}
        self.first = self._intern(SagaState(saga_id="s"))

    def fold(self, number: int, event: Event) -> Folded:
        known = self._folded.get((number, event))
        if known is None:
            known = self._folded[number, event] = self._fold(number, event)
        return known

    def entry(self, state: SagaState, event: Event, offset: int = 0) -> Entry:
        """The record that the event stands for, where it is appended to a log in this state."""
        record, at_ms = record_for(self.contract, state, event)
        return Entry(record, offset, at_ms)

    def off_the_rules(self) -> list[tuple[SagaState, Event]]:
        """Where the straight way leads elsewhere than the rules do."""
        found = []
        for number, event in self._folded:
            before = self.states[number]
            entry = self.entry(before, event)
            if fold(self.contract, before, entry) != fold_by_the_rules(self.contract, before, entry):
                found.append((before, event))
        return found

    def _fold(self, number: int, event: Event) -> Folded:
        before = self.states[number]
        after, owed, note = fold(self.contract, before, self.entry(before, event))
        wrong = (
            *wrongs(self.contract, before, after, owed, note),
            *wrong_contexts(self.contract, after, owed),
            *wrong_choices(self.contract, self.only, after, owed),
        )
        return Folded(self._intern(after), tuple(decision_event(one) for one in owed), note, wrong)

    def _intern(self, state: SagaState) -> int:
        state = normal(state)
        frozen = msgspec.msgpack.encode(state)
        number = self._numbers.get(frozen)
        if number is None:
            number = self._numbers[frozen] = len(self.states)
            self.states.append(state)
            self.views.append(view_of(state))
        return number


def normal(state: SagaState) -> SagaState:
    """The state without what only tells by which way it was reached."""
    return msgspec.structs.replace(
        state,
        offset=-1,
        updated_ms=0,
        finished_ms=min(state.finished_ms, 1),
        failing_since_ms=min(state.failing_since_ms, DUE_MS),  # it counts whether the settle limit is before a due
        retry_at_ms=None if state.retry_at_ms is None else NOW_MS,
        standing=dict(sorted(state.standing.items())),
        instances={
            key: msgspec.structs.replace(
                instance,
                runs=tuple(sorted(instance.runs)),
                signal_due_ms=SIGNAL_DUE_MS if instance.signal_due_ms else 0,
            )
            for key, instance in sorted(state.instances.items())
        },
        failures=_in_order(state),
        undone=(),
        outcome=None if state.outcome is None else msgspec.structs.replace(state.outcome, compensations=()),
    )


def _in_order(state: SagaState) -> tuple[tuple[str, int, Failure], ...]:
    """The failures by round and step, in each round the one first that the saga goes back for."""
    first: dict[int, str] = {}
    for step, saga_round, _ in state.failures:
        if state.instance((step, saga_round)).offer != "taken":
            first.setdefault(saga_round, step)
    return tuple(sorted(state.failures, key=lambda one: (one[1], first.get(one[1]) != one[0], one[0])))


def view_of(state: SagaState) -> View:
    instances = sorted(state.instances.items())
    return View(
        outcome="" if state.outcome is None else state.outcome.kind,
        settles_early=state.failing_since_ms == NOW_MS and state.outcome is None and not state.only_forward,
        round_ready=0
        if state.is_paused
        else state.round + 1
        if state.round_ready
        else 1
        if state.waits_for_begin
        else 0,
        in_flight=tuple(key for key, i in instances if i.in_flight),
        awaiting=tuple((*key, i.generation) for key, i in instances if i.awaits_answer and i.compensation_due_ms),
        stuck=tuple((*key, i.generation) for key, i in instances if i.stuck),
        uncompensated=tuple(Survey(state).uncompensated),
        standing=frozenset(state.standing.items()),
        substituted=frozenset(key for key, i in instances if i.offer),
        skipped=frozenset(key for key, i in instances if i.skipped),
        settled=state.is_settled,
        waiting=tuple(key for key, _ in instances if state.waits_for_signal(key)),
        scheduled=state.scheduled,
        paused=state.is_paused,
    )


def wrongs(
    contract: Saga, before: SagaState, after: SagaState, owed: tuple[Decision, ...], note: str | None
) -> Iterable[str]:
    """What no transition of a saga may ever show, whatever the workers did."""
    if note == "not_decided":
        yield "D1 a record that no prefix implies"
    yield from decided_in_a_pause(before, after, owed)
    if len(set(after.owed)) < len(after.owed):
        yield "D2 a decision is owed twice"
    if before.outcome is not None and after.outcome != before.outcome:
        yield "H1 the outcome changed"
    yield from wrong_substitutes(contract, after)
    yield from wrong_past_the_pivot(before, after, owed)
    yield from wrong_cancels(contract, after, owed)
    if after.round > before.round and any(i.awaits_answer or i.stuck for i in after.instances.values()):
        yield "R1 a round starts before every compensation is answered"
    commanded = [(one.step, one.round) for one in owed if one.kind == "compensate"]
    if after.outcome is not None:
        yield from wrong_after_the_outcome(contract, after, commanded)
    elif not after.failing:
        for step in after.standing:
            if any(other not in after.standing for other in contract.graph.before[step]):
                yield f"S1 {step!r} stands although something that it builds on does not"
    elif any(key[1] == after.round for key in commanded):
        yield from out_of_turn(contract, after, commanded)


def wrong_contexts(contract: Saga, state: SagaState, owed: tuple[Decision, ...]) -> Iterable[str]:
    """What is executed is given the effects that stand, and no others."""
    for one in owed:
        if one.kind != "execute":
            continue
        given = {step: bytes(effect) for step, effect in record_of(contract, state, one).effects.items()}
        wanted = {}
        for step in contract.graph.ancestors[one.step]:
            instance = state.instances.get((step, state.standing.get(step, 0)), Instance())
            effect = instance.substitute if instance.offer == "taken" else instance.effect
            wanted |= {} if effect is None else {step: effect}
        if given != wanted:
            yield f"E1 {one.step!r} is given {given}, and {wanted} stand"


def wrong_choices(
    contract: Saga, only: Mapping[str, Only], after: SagaState, owed: tuple[Decision, ...]
) -> Iterable[str]:
    """A step runs, or is skipped, as its condition says at the moment of the decision; what is skipped does nothing."""
    for one in owed:
        if one.kind in ("execute", "skip"):
            held = one.step not in only or only[one.step].holds(contract, after)
            if held != (one.kind == "execute"):
                yield f"Z1 {one.kind} of {one.step!r} in round {one.round} is against its condition"
    for step, condition in only.items():
        key = (step, after.round)
        instance = after.instances.get(key, Instance())
        if instance.skipped and (instance.triggered or instance.completed or instance.generation):
            yield f"Z2 {key} was skipped, and does something"
        ready = not after.failing and all(other in after.standing for other in contract.graph.before[step])
        if instance.triggered and ready and not condition.holds(contract, after):
            yield f"Z4 {key} runs, although its condition does not hold"
        stands = after.standing.get(step) is not None and after.outcome is None and not after.failing
        if stands and after.instances[step, after.standing[step]].skipped and condition.holds(contract, after):
            yield f"Z3 {key} is still skipped, although its condition holds now"


def wrong_cancels(contract: Saga, state: SagaState, owed: tuple[Decision, ...]) -> Iterable[str]:
    """A sibling is cancelled where the saga has turned back for good in this round, then at once, and nowhere else."""
    for one in owed:
        if one.kind == "cancel" and contract[one.step].on_sibling_failure != "cancel":
            yield f"X1 {one.step!r} is cancelled, and nobody wanted that"
        if one.kind == "cancel" and (state.only_forward or not state.failing):
            yield f"X2 {one.step!r} is cancelled on the way forward"
    if not state.failing and state.outcome is None:
        for key, instance in state.instances.items():
            if instance.cancelling and key[1] == state.round:
                yield f"X3 the saga goes on in the round in which {key} was cancelled"
    if state.outcome is not None and state.outcome.failure is not None and state.outcome.failure.kind == "cancelled":
        yield "X4 what was cancelled is told to be what failed"
    yield from left_to_settle(contract, state)


def left_to_settle(contract: Saga, state: SagaState) -> Iterable[str]:
    in_doubt = any(
        instance.first not in (None, "completed") and instance.may_stand for instance in state.instances.values()
    )
    if state.failing and not in_doubt and not state.only_forward and not state.is_paused and state.outcome is None:
        for key, instance in state.instances.items():
            is_asked = contract[key[0]].on_sibling_failure == "cancel" and key[1] == state.round
            if instance.in_flight and is_asked and not instance.cancelling:
                yield f"X5 {key} is left to settle"


def decided_in_a_pause(before: SagaState, after: SagaState, owed: tuple[Decision, ...]) -> Iterable[str]:
    if after.is_paused and before.outcome is None and any(one.kind not in ANSWERS for one in owed):
        yield f"Z1 decided while the saga is paused: {owed}"


def wrong_substitutes(contract: Saga, state: SagaState) -> Iterable[str]:
    for (step, _), instance in state.instances.items():
        failure = instance.failure if instance.offer and instance.substitute is not None else None
        if failure is not None and not contract[step].may_recover_from(failure.kind):
            yield f"K1 a substitute for {step!r}, which failed in a way from which nobody wanted to recover"


def wrong_past_the_pivot(before: SagaState, after: SagaState, owed: tuple[Decision, ...]) -> Iterable[str]:
    if before.pivot != "passed":
        return
    for one in owed:
        stood = one.kind == "compensate" and before.standing.get(one.step) == one.round
        if stood and after.instances[one.step, one.round].offer != "taken":
            yield f"P1 {one.step!r} is undone although the pivot stands"
    if after.pivot != "passed" or after.cancelled:
        yield "P2 there is a way back past the pivot"
    if after.outcome is not None and after.outcome.kind == "compensated":
        yield "P3 the saga ends undone past its pivot"


def wrong_after_the_outcome(contract: Saga, state: SagaState, commanded: list[Key]) -> Iterable[str]:
    if state.outcome is not None and state.outcome.kind == "completed":
        for key in commanded:
            if state.standing.get(key[0]) == key[1] and state.instances[key].offer != "taken":
                yield f"C1 {key} is compensated although it stands in a completed saga"
    if state.is_settled:
        left = [key for key in Survey(state).uncompensated if contract[key[0]].compensation]
        if left:
            yield f"C2 nothing is under way to undo {left}"


def out_of_turn(contract: Saga, state: SagaState, commanded: list[Key]) -> Iterable[str]:
    """The failed steps' own compensations come first and alone, where nothing uncompensated builds on them."""
    current = {step: i for (step, saga_round), i in state.instances.items() if saga_round == state.round}
    left = {key[0] for key in Survey(state).uncompensated}
    for step, instance in current.items():
        first_time = (instance.awaits_answer and instance.generation == 1) or (
            instance.may_stand and instance.generation == 0
        )
        if instance.first in ("failed", "unknown", "timed_out", "late") and not instance.completed and first_time:
            for key in commanded:
                other = current.get(key[0], Instance())
                completed = key[1] == state.round and other.first == "completed"
                if completed and not contract.graph.descendants[step] & left:
                    yield f"O1 {key} is compensated before the failed step {step!r} has been"


def decision_event(decision: Decision) -> Event:
    return ("decided", decision.kind, decision.step, decision.round, decision.generation, decision.reference)


def record_for(contract: Saga, state: SagaState, event: Event) -> tuple[AnyRecord, int]:  # noqa: C901 - one case a kind
    """The record of an event, and its append time."""
    common: dict[str, Any] = {"saga": contract.name, "version": contract.version, "saga_id": "s", "start": START}
    match event:
        case ("decided", kind, step, saga_round, generation, reference):
            return record_of(contract, state, Decision(kind, step, saga_round, generation, reference)), NOW_MS
        case ("started", start, request, scheduled):
            return (
                SagaStarted(
                    **{**common, "start": start},
                    contract_hash=contract.content_hash,
                    request=request,
                    saga_deadline_ms=contract.deadline_ms,
                    input=msgspec.Raw(b"1" if start == START else b"2"),
                    delay_ms=DELAY_MS if scheduled else 0,
                ),
                NOW_MS,
            )
        case ("cancelled", request):
            return CancelRequested(**common, request=request), NOW_MS
        case ("paused",):
            return SagaPaused(**common, request="pause"), NOW_MS
        case ("resumed",):
            return SagaResumed(**common, request="resume"), NOW_MS
        case ("signal", request):
            return SignalReceived(**common, request=request, name=SIGNAL, payload=msgspec.Raw(b'"go"')), NOW_MS
        case ("round", saga_round):
            return RoundStarted(**common, round=saga_round), max(NOW_MS, state.begins_ms, state.retry_at_ms or 0)
    kind, step, fold_round = event[:3]
    common["start"], common["round"] = state.wire_round(fold_round)
    common["step"] = step
    match kind, event[3:]:
        case "completed", (late, run):
            record: AnyRecord = StepCompleted(
                **common,
                run=f"run-{run}",
                due_ms=DUE_MS,
                saga_due_ms=NOW_MS + contract.deadline_ms,
                input=msgspec.Raw(b"1"),
                effects={},
                effect=msgspec.Raw(f'"{step}{fold_round}"'.encode()),
            )
            return record, DUE_MS + 1 if late else NOW_MS
        case "failed", (known, run):
            effect = "unknown" if known.endswith("unknown") else "none"
            return StepFailed(**common, failure=FAILURES[known], effect=effect, run=f"run-{run}"), NOW_MS
        case "timed_out", ():
            return StepFailed(**common, failure=TIMED_OUT), DUE_MS + GRACE_MS + 1
        case "settle_limit", ():
            return StepFailed(**common, failure=SETTLE_LIMIT), NOW_MS + SETTLE_MS + GRACE_MS + 1
        case "no_signal", ():
            due_ms = state.instance((step, fold_round)).signal_due_ms
            return StepFailed(**common, failure=NO_SIGNAL, effect="none"), due_ms + GRACE_MS + 1
        case "undone", (generation, verdict, undone):
            return (
                StepCompensated(
                    **common,
                    generation=generation,
                    run="run",
                    undone=undone,
                    verdict=verdict,
                    retry_limit=RETRY_LIMIT if verdict == "retry" else 0,
                    effect=msgspec.Raw(b'"substitute"') if verdict == "continue" else msgspec.UNSET,
                ),
                NOW_MS,
            )
        case "undo_failed", (generation,):
            return CompensationFailed(**common, generation=generation, failure=CRASHED, run="run"), NOW_MS
        case "undo_timed_out", (generation,):
            record = CompensationFailed(**common, generation=generation, failure=TIMED_OUT)
            return record, UNDO_DUE_MS + GRACE_MS + 1
        case "acted", (generation, act):
            return (
                OperatorActed(**common, act=act, generation=generation, request="act", operator="o", reason="r"),
                NOW_MS,
            )
    raise AssertionError(f"no record for {event}")


ANSWERS = ("refuse_start", "refuse_cancel", "stuck")
"""What a saga-log says without deciding anything about the saga."""

CRASHED = Failure(kind="crashed", message="crashed")
TIMED_OUT = Failure(kind="timed_out", code="deadline")
SETTLE_LIMIT = Failure(kind="timed_out", code="settle")
NO_SIGNAL = Failure(kind="timed_out", code="signal")
SIBLING_FAILED = Failure(kind="cancelled", code="sibling_failed")
FAILURES = {
    "none": Failure(kind="rejected", code="no"),
    "unknown": CRASHED,
    "cancelled-none": SIBLING_FAILED,
    "cancelled-unknown": SIBLING_FAILED,
}
