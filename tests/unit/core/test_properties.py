"""What holds for every contract and every history, legal or not."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any

import hypothesis.strategies as st
import msgspec
from hypothesis import HealthCheck, given, settings

from choreo.contract.graph import Graph
from choreo.contract.saga import Saga
from choreo.core import Entry, Instance, SagaState, fold, next_due_ms, record_of, timers
from choreo.core.fold import fold_by_the_rules
from choreo.core.survey import Survey
from choreo.messages.headers import JSON, MSGPACK
from choreo.messages.records import (
    AnyRecord,
    CancelRefused,
    CancelRequested,
    CancelStep,
    Compensate,
    CompensationFailed,
    Execute,
    Failure,
    OperatorActed,
    RoundStarted,
    SagaCompensated,
    SagaCompleted,
    SagaPaused,
    SagaResumed,
    SagaStarted,
    SagaStuck,
    SignalReceived,
    StartRefused,
    StepCompensated,
    StepCompleted,
    StepFailed,
    StepSkipped,
    TypePaused,
    TypeResumed,
    Undone,
)
from tests.unit.core.cases import FORGETFUL, INBOX, NO_INBOX
from tests.unit.core.folding import GRACE_MS, NOW_MS, OTHER_START, START, Event, Only, contract_of
from tests.unit.core.world import Budget, World

NAMES = "abcdef"
SLOW = settings(max_examples=60, suppress_health_check=[HealthCheck.too_slow, HealthCheck.data_too_large])
MOVES_MAX = 400


# ------------------------------------------------------------------------------------------------ random histories


CHOICES = st.builds(
    Only,
    st.sampled_from(["", *NAMES]),
    st.sampled_from([1, "substitute", *(f"{name}{number}" for name in NAMES for number in (1, 2))]),
    st.booleans(),
)


@st.composite
def contracts(draw: st.DrawFn) -> tuple[Saga, Mapping[str, Only]]:
    """A graph of up to six steps, in a topological order, some conditional, some without compensation, any policy."""
    graph: dict[str, tuple[str, ...]] = {}
    for name in NAMES[: draw(st.integers(1, len(NAMES)))]:
        needs = draw(st.sets(st.sampled_from(sorted(graph)), max_size=3)) if graph else set()
        graph[name] = tuple(sorted(needs))
    bare = draw(st.sets(st.sampled_from(sorted(graph)), max_size=2))
    policy = draw(st.sampled_from(["if_unknown", "if_unknown", "always", "never"]))
    kinds = st.sets(st.sampled_from(["rejected", "crashed", "timed_out"]))
    recover_from = draw(st.none() | kinds.map(lambda named: tuple(sorted(named))))
    order = Graph(graph)
    ordered = [name for name in graph if len(order.ancestors[name]) + len(order.descendants[name]) + 1 == len(graph)]
    pivots = draw(st.sets(st.sampled_from(ordered), max_size=2)) if ordered else set()
    awaiting = draw(st.sets(st.sampled_from(sorted(graph)), max_size=2))
    drawn = draw(st.dictionaries(st.sampled_from(sorted(graph)), CHOICES, max_size=3))
    only = {
        name: each if each.of in order.ancestors[name] else each._replace(of="")
        for name, each in drawn.items()
        if name not in pivots
    }
    contract = contract_of(
        graph, bare=bare, policy=policy, recover_from=recover_from, pivots=pivots, awaiting=awaiting, only=only
    )
    return contract, only


@st.composite
def budgets(draw: st.DrawFn, *, pauses: bool) -> Budget:
    counts = {name: draw(st.integers(0, 2)) for name in Budget._fields}
    counts["second_start"] = min(counts["second_start"], 1)
    if not pauses or counts["crash"]:  # what was held and is then said twice may be undone out of order
        counts["pause"] = 0
    return Budget(**counts)


class Walk:
    """A random way through a random world, to its end: a legal history, as a log with offsets and append times."""

    def __init__(self, contract: Saga, world: World, history: Iterable[Event], wrong: list[str]) -> None:
        self.contract = contract
        self.wrong = wrong
        self.log: list[Entry] = []
        state = SagaState(saga_id="s")
        for offset, event in enumerate(history):
            entry = world.folding.entry(state, event, offset)
            self.log.append(entry)
            state = fold(contract, state, entry).state
        self.state = state

    def __repr__(self) -> str:
        steps = {step.name: step.after for step in self.contract.steps}
        return "\n".join([f"{steps} {self.wrong}", *(f"{entry.at_ms} {entry.record}" for entry in self.log)])


@st.composite
def walks(draw: st.DrawFn, *, pauses: bool = True) -> Walk:
    contract, only = draw(contracts())
    habits = draw(st.sampled_from([INBOX, INBOX, NO_INBOX, FORGETFUL]))
    world = World(contract, habits, only, scheduled=draw(st.sampled_from([False, False, True])))
    choices = draw(st.lists(st.integers(0, 2**16), min_size=5, max_size=60))
    now, history = world.start(draw(budgets(pauses=pauses)))
    events = list(history)
    for i in range(MOVES_MAX):
        if world.is_quiet(now) and i >= len(choices):
            break
        moves = world.moves(now)
        if not moves:
            break
        # When the choices are used up the first move is taken, so that every walk comes to its end.
        _, now, appended = moves[choices[i] % len(moves) if i < len(choices) else 0]
        events += appended
    assert world.is_quiet(now), "the walk has no end"
    return Walk(contract, world, events, [*now.wrong, *world.wrong_at_the_end(now)])


def folded(contract: Saga, log: Iterable[Entry], state: SagaState | None = None) -> SagaState:
    state = state or SagaState(saga_id="s")
    for entry in log:
        state = fold(contract, state, entry).state
    return state


def but_position(state: SagaState) -> SagaState:
    return msgspec.structs.replace(state, offset=0, updated_ms=0)


@SLOW
@given(walks())
def test_every_saga_ends_and_nothing_is_left_hanging_or_missing(walk: Walk) -> None:
    wrong = walk.wrong
    if walk.contract.compensate_on_failure == "never":  # what a failed step may have left is not looked for
        wrong = [message for message in wrong if message[:2] not in ("H2", "H3", "O1", "W1", "W2", "W3")]
    assert wrong == []
    assert walk.state.outcome is not None
    assert walk.state.owed == ()


@SLOW
@given(walks())
def test_a_completed_saga_undoes_nothing_that_stands_and_a_compensated_one_has_nothing_standing(walk: Walk) -> None:
    outcome = walk.state.outcome
    assert outcome is not None
    assert Survey(walk.state).is_settled
    if outcome.kind == "compensated":
        assert walk.state.standing == {}
        assert not any(instance.may_stand for instance in walk.state.instances.values())
    else:
        assert set(walk.state.standing) == set(walk.contract.graph.before)
        for key in walk.state.standing.items():
            instance = walk.state.instance(key)
            assert instance.offer == "taken" or (instance.may_stand and instance.generation == 0)


def is_early_timeout(walk: Walk, entry: Entry) -> bool:
    """Whether it says that nothing came, before anything was due: said again later, it is no duplicate but right."""
    if not isinstance(entry.record, StepFailed) or entry.record.run:
        return False
    after = folded(walk.contract, walk.log[: entry.offset + 1])
    return after.instance((entry.record.step, entry.record.round)).first is None


@SLOW
@given(walks(pauses=False), st.data())  # a trigger said again behind a pause is one
def test_duplicates_anywhere_change_nothing(walk: Walk, data: st.DataObject) -> None:
    log: list[tuple[AnyRecord, int]] = [(entry.record, entry.at_ms) for entry in walk.log]
    early = [entry.record for entry in walk.log if is_early_timeout(walk, entry)]
    for _ in range(data.draw(st.integers(1, 5))):
        source = data.draw(st.sampled_from([i for i, (record, _) in enumerate(log) if record not in early]))
        target = data.draw(st.integers(source + 1, len(log)))
        log.insert(target, log[source])
    doubled = folded(walk.contract, (Entry(record, i, at_ms) for i, (record, at_ms) in enumerate(log)))
    assert but_position(doubled) == but_position(walk.state)


@SLOW
@given(walks(), st.data())
def test_a_state_that_was_dropped_and_read_back_goes_on_as_if_it_had_stayed(walk: Walk, data: st.DataObject) -> None:
    cut = data.draw(st.integers(0, len(walk.log)))
    kept = folded(walk.contract, walk.log[:cut])
    read = msgspec.msgpack.decode(msgspec.msgpack.encode(kept), type=SagaState)
    assert read == kept
    for entry in walk.log[cut:]:
        one, other = fold(walk.contract, kept, entry), fold(walk.contract, read, entry)
        assert one == other
        kept, read = one.state, other.state
    assert read == walk.state


@SLOW
@given(walks(), st.data())
def test_reading_again_from_an_earlier_offset_changes_nothing(walk: Walk, data: st.DataObject) -> None:
    cut = data.draw(st.integers(0, len(walk.log)))
    assert folded(walk.contract, walk.log[cut:], walk.state) == walk.state


@SLOW
@given(walks())
def test_every_decision_can_be_said_and_its_message_pays_for_it(walk: Walk) -> None:
    state = SagaState(saga_id="s")
    for entry in walk.log:
        state, owed, _ = fold(walk.contract, state, entry)
        assert set(owed) <= set(state.owed)
        for decision in state.owed:
            record = record_of(walk.contract, state, decision)
            paid = fold(walk.contract, state, Entry(record, state.offset + 1, entry.at_ms)).state
            assert decision not in paid.owed
            assert set(paid.owed) == set(state.owed) - {decision}


# ------------------------------------------------------------------------------------------------------- nonsense

STEPS: Mapping[str, tuple[str, ...]] = {"a": (), "b": ("a",), "c": ("a",), "d": ("b", "c"), "e": ("d",)}
CONTRACTS = (
    contract_of(STEPS, bare="c"),
    contract_of(STEPS, bare="ad", pivots="d"),
    contract_of(STEPS, pivots="a"),
    contract_of(STEPS, pivots="d", awaiting="ace"),
    contract_of(STEPS, only={"a": Only("", 1), "b": Only("a", 1, equal=False), "d": Only("c", "substitute")}),
    contract_of(STEPS, pivots="a", only={"c": Only("a", 1), "e": Only("b", 1)}),
)
VALUES = st.sampled_from([b"1", b'{"x":[1]}', b"null"]).map(msgspec.Raw)
RUNS = st.sampled_from(["run-1", "run-2", "run-3"])
FAILURES = st.builds(Failure, kind=st.sampled_from(["rejected", "crashed", "timed_out", "cancelled"]))
TIMES = st.integers(0, 3).map(lambda n: NOW_MS + n * (60_000 + GRACE_MS + 1))
COMMON: dict[str, st.SearchStrategy[Any]] = {
    "saga": st.just("world"),
    "version": st.just(1),
    "saga_id": st.just("s"),
    "start": st.sampled_from([START, START, START, START, OTHER_START, "c" * 16]),
}
OF_STEP: dict[str, st.SearchStrategy[Any]] = {
    **COMMON,
    "step": st.sampled_from("aaabbbcccdddeez"),
    "round": st.sampled_from([1, 1, 1, 1, 2, 2, 3, 7]),
}
GENERATIONS = st.sampled_from([1, 1, 1, 2, 3])
REQUESTS = st.sampled_from(["request-1", "request-2", "request-3"])
EFFECTS = st.dictionaries(st.sampled_from("abc"), VALUES, max_size=2)
ACCOUNT = st.lists(st.builds(Undone, step=st.just("a"), round=st.just(1), how=st.just("undone")), max_size=1)

RECORDS: st.SearchStrategy[AnyRecord] = st.one_of(
    st.builds(
        SagaStarted,
        **COMMON,
        contract_hash=st.just("0" * 32),
        request=REQUESTS,
        saga_deadline_ms=st.sampled_from([0, 1_000, 86_400_000]),
        input=VALUES,
        delay_ms=st.sampled_from([0, 0, 1_000]),
    ),
    st.builds(CancelRequested, **COMMON, request=REQUESTS),
    st.builds(SignalReceived, **COMMON, request=REQUESTS, name=st.sampled_from(["go", "paid"]), payload=VALUES),
    *(st.builds(kind, **COMMON, request=REQUESTS) for kind in (SagaPaused, SagaResumed, TypePaused, TypeResumed)),
    st.builds(RoundStarted, **COMMON, round=st.integers(1, 4)),
    st.builds(SagaCompleted, **COMMON, result=VALUES, effects=EFFECTS),
    st.builds(
        SagaCompensated, **COMMON, cause=st.sampled_from(["failed", "cancelled"]), compensations=ACCOUNT.map(tuple)
    ),
    st.builds(StartRefused, **COMMON, standing_start=st.just(START)),
    st.builds(CancelRefused, **COMMON, request=REQUESTS),
    st.builds(
        StepCompleted,
        **OF_STEP,
        run=RUNS,
        due_ms=TIMES,
        saga_due_ms=TIMES,
        input=VALUES,
        effects=EFFECTS,
        effect=VALUES,
    ),
    st.builds(
        StepFailed,
        **OF_STEP,
        failure=FAILURES,
        effect=st.sampled_from(["none", "unknown"]),
        run=st.one_of(st.just(""), RUNS),
        abort=st.sampled_from([False, False, False, True]),
    ),
    st.builds(Execute, **OF_STEP, saga_due_ms=TIMES, input=VALUES, effects=EFFECTS),
    st.builds(StepSkipped, **OF_STEP),
    st.builds(CancelStep, **OF_STEP, failed=st.none()),
    st.builds(Compensate, **OF_STEP, generation=GENERATIONS, deadline_ms=TIMES, input=VALUES, effects=EFFECTS),
    st.builds(
        StepCompensated,
        **OF_STEP,
        generation=GENERATIONS,
        run=RUNS,
        undone=st.booleans(),
        verdict=st.sampled_from(["proceed", "proceed", "retry", "continue", "abort"]),
        retry_limit=st.integers(0, 4),
        backoff_ms=st.sampled_from([0, 10]),
        effect=st.one_of(st.just(msgspec.UNSET), VALUES),
    ),
    st.builds(
        CompensationFailed, **OF_STEP, generation=GENERATIONS, failure=FAILURES, run=st.one_of(st.just(""), RUNS)
    ),
    st.builds(
        OperatorActed,
        **OF_STEP,
        act=st.sampled_from(["retry", "skip", "resolve"]),
        generation=GENERATIONS,
        request=REQUESTS,
        operator=st.just("o"),
        reason=st.just("r"),
    ),
    st.builds(SagaStuck, **OF_STEP, generation=GENERATIONS, failure=FAILURES, remaining=st.just(())),
)

ENTRIES = st.lists(st.tuples(RECORDS, TIMES, st.sampled_from([JSON, JSON, MSGPACK]), st.booleans()), max_size=60)
"""Records of any kind; the last word of each says whether the saga-log then sends what it owes."""


@settings(max_examples=300, suppress_health_check=[HealthCheck.too_slow])
@given(st.sampled_from(CONTRACTS), ENTRIES, st.booleans())
def test_the_fold_is_total_and_keeps_its_promises_whatever_is_in_the_log(
    contract: Saga, said: list[tuple[AnyRecord, int, str, bool]], begins_with_a_start: bool
) -> None:
    log = list(said)
    if begins_with_a_start:
        start = SagaStarted(
            saga="world",
            version=1,
            saga_id="s",
            start=START,
            contract_hash="0" * 32,
            request="request-1",
            saga_deadline_ms=86_400_000,
            input=msgspec.Raw(b"1"),
        )
        log.insert(0, (start, NOW_MS, JSON, False))
    state = SagaState(saga_id="s")
    for record, at_ms, content_type, sends in log:
        state = _promising_fold(contract, state, Entry(record, state.offset + 1, at_ms, content_type))
        for decision in state.owed if sends else ():
            sent = record_of(contract, state, decision)
            state = _promising_fold(contract, state, Entry(sent, state.offset + 1, at_ms))
            assert decision not in state.owed


def _promising_fold(contract: Saga, before: SagaState, entry: Entry) -> SagaState:
    frozen = msgspec.msgpack.encode(before)
    after, owed, note = fold(contract, before, entry)
    assert (after, owed, note) == fold_by_the_rules(contract, before, entry), "the straight way leads elsewhere"
    assert msgspec.msgpack.encode(before) == frozen, "the fold has changed the state it was given"
    assert set(owed) <= set(after.owed)
    if not after.started:
        assert after.owed == ()
    if before.outcome is not None:
        assert after.outcome == before.outcome
    if before.pivot == "passed":
        assert after.pivot == "passed"
        assert before.standing.items() <= after.standing.items() or after.round > before.round
    for decision in owed:
        assert decision.step in {*STEPS, ""}
        if decision.kind == "compensate":
            instance = after.instance((decision.step, decision.round))
            assert instance.generation == decision.generation == before_generation(before, decision) + 1
            assert contract[decision.step].compensation is not None
    for key in after.standing.items():
        instance = after.instance(key)
        assert instance.completed or instance.offer == "taken"
    found = timers(contract, after)
    assert next_due_ms(contract, after) == (found[0].at_ms if found else None)
    return after


def before_generation(state: SagaState, decision: Any) -> int:
    return state.instances.get((decision.step, decision.round), Instance()).generation
