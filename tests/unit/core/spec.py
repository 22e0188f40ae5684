"""Given a history, when something is appended, then this is owed: the words in which the rules' tests are written.

Appends happen ten milliseconds apart from ``START_MS`` on, unless a record says ``at``.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass, field, replace
from typing import Any, Literal

import msgspec

from choreo.contract.saga import Saga, Step
from choreo.core import Decision, Entry, Instance, SagaState, fold, record_of
from choreo.core.fold import fold_by_the_rules
from choreo.messages.headers import JSON
from choreo.messages.records import (
    NO_START,
    AnyRecord,
    CancelRequested,
    CompensationFailed,
    Failure,
    FailureKind,
    OperatorActed,
    RoundStarted,
    SagaStarted,
    SignalReceived,
    StepCompensated,
    StepCompleted,
    StepFailed,
)

START_MS = 1_000_000
APART_MS = 10
SAGA_ID = "order-7"
START, OTHER_START = "a" * 16, "b" * 16

COMPLETE, COMPENSATED = Decision("complete"), Decision("compensated")


@dataclass(frozen=True)
class Said:
    """A record to append: made when it is appended, as its writer would make it from what the log says then."""

    make: Callable[[Saga, SagaState], AnyRecord]
    at_ms: int | None = None

    def at(self, at_ms: int) -> Said:
        """Appended then."""
        return replace(self, at_ms=at_ms)


@dataclass(frozen=True)
class History:
    """A saga's log so far, its state, and what the last append brought about."""

    contract: Saga
    state: SagaState
    content_type: str = JSON
    owed: tuple[Decision, ...] = ()
    note: str | None = None
    log: tuple[Entry, ...] = field(default=(), repr=False)

    def when(self, *said: Said) -> History:
        """Append these. What ``then`` looks at is what all of them brought about together."""
        history = replace(self, owed=(), note=None)
        for one in said:
            history = history._append(one)
        return history

    def when_sent(self) -> History:
        """The saga-log appends all that is owed."""
        return self.when(*(message(decision) for decision in self.state.owed))

    def then(self, *owed: Decision, note: str | None = None) -> History:
        """Exactly these decisions were brought about, and the last record was noted so."""
        assert self.owed == owed
        assert self.note == note
        return self

    def then_nothing(self, note: str) -> History:
        """The last record was noted, and nothing but offset and time has changed since the record before."""
        before = refold(self.contract, self.log[:-1])
        _, owed, _ = fold(self.contract, before, self.log[-1])
        assert msgspec.structs.replace(self.state, offset=before.offset, updated_ms=before.updated_ms) == before
        return replace(self, owed=owed).then(note=note)

    def instance(self, step: str, saga_round: int = 1) -> Instance:
        return self.state.instance((step, saga_round))

    def sends(self, decision: Decision) -> Any:
        """The message of a decision, as it is built from this state."""
        return record_of(self.contract, self.state, decision)

    def _append(self, said: Said) -> History:
        at_ms = said.at_ms
        if at_ms is None:
            at_ms = self.log[-1].at_ms + APART_MS if self.log else START_MS
        entry = Entry(said.make(self.contract, self.state), len(self.log), at_ms, self.content_type)
        folded = fold(self.contract, self.state, entry)
        assert folded == fold_by_the_rules(self.contract, self.state, entry), "the straight way leads elsewhere"
        return replace(
            self,
            state=folded.state,
            owed=(*self.owed, *folded.owed),
            note=folded.note,
            log=(*self.log, entry),
        )


def refold(contract: Saga, log: Iterable[Entry]) -> SagaState:
    """The fold of a log from its beginning."""
    state = SagaState(saga_id=SAGA_ID)
    for entry in log:
        state = fold(contract, state, entry).state
    return state


def given(contract: Saga, *said: Said, content_type: str = JSON) -> History:
    """The history in which a saga was started, and then this was appended."""
    return given_log(contract, started(), *said, content_type=content_type)


def given_log(contract: Saga, *said: Said, content_type: str = JSON) -> History:
    """The history in which just this was appended."""
    return History(contract, SagaState(saga_id=SAGA_ID), content_type).when(*said)


def saga(*steps: Step, **options: Any) -> Saga:
    return Saga("order", *steps, **options)


def step(name: str, *after: str, **options: Any) -> Step:
    """A step that can be undone; after the one before it, or after those named, or ``"nothing"``."""
    needs: Any = {"after": ()} if after == ("nothing",) else {"after": after} if after else {}
    return Step(name, **{"compensation": f"undo_{name}", **needs, **options})


def bare(name: str, *after: str, **options: Any) -> Step:
    """A step without a compensation."""
    return step(name, *after, compensation=None, **options)


LINE = saga(step("a"), step("b"), step("c"))
BREAKERS = saga(*(step(name, recover_from=("crashed", "timed_out")) for name in "abc"))
"""``LINE``, where each step's own compensation may have a substitute after a crash or a timeout."""
DIAMOND = saga(step("a"), step("b", "a"), step("c", "a"), step("d", "b", "c"))
DIAMOND_OF_BREAKERS = saga(
    *(
        step(name, *needs, recover_from=("crashed", "timed_out"))
        for name, *needs in (("a",), ("b", "a"), ("c", "a"), ("d", "b", "c"))
    )
)


# ------------------------------------------------------------------------------------------------------- records


def started(
    start: str = START,
    request: str = "request-1",
    value: bytes = b'{"order":7}',
    deadline_ms: int | None = None,
    **schedule: int,
) -> Said:
    return Said(
        lambda contract, state: SagaStarted(
            saga=contract.name,
            version=contract.version,
            saga_id=SAGA_ID,
            start=start,
            contract_hash=contract.content_hash,
            request=request,
            saga_deadline_ms=contract.deadline_ms if deadline_ms is None else deadline_ms,
            input=msgspec.Raw(value),
            **schedule,
        )
    )


def signalled(name: str = "approved", request: str = "signal-1", payload: bytes = b'{"by":"ada"}') -> Said:
    return Said(
        lambda contract, state: SignalReceived(
            saga=contract.name,
            version=contract.version,
            saga_id=SAGA_ID,
            start=NO_START,
            request=request,
            name=name,
            payload=msgspec.Raw(payload),
        )
    )


def cancelled(request: str = "cancel-1", reason: str = "") -> Said:
    return Said(
        lambda contract, state: CancelRequested(
            saga=contract.name,
            version=contract.version,
            saga_id=SAGA_ID,
            start=NO_START,
            request=request,
            reason=reason,
        )
    )


def of_step(kind: type[Any], name: str, saga_round: int, start: str, **fields: Any) -> Said:
    """A record about a step; ``start`` and ``saga_round`` as the record has them."""

    def make(contract: Saga, state: SagaState) -> Any:
        values = {what: value(state) if callable(value) else value for what, value in fields.items()}
        return kind(
            saga=contract.name,
            version=contract.version,
            saga_id=SAGA_ID,
            start=start,
            step=name,
            round=saga_round,
            **values,
        )

    return Said(make)


def completed(
    name: str,
    effect: bytes | None = None,
    *,
    saga_round: int = 1,
    run: str = "run-1",
    start: str = START,
    due_ms: int | None = None,
) -> Said:
    def due_of(state: SagaState) -> int:
        return state.instance((name, state.fold_round(start, saga_round) or 0)).due_ms or 2**52

    return of_step(
        StepCompleted,
        name,
        saga_round,
        start,
        run=run,
        due_ms=due_of if due_ms is None else due_ms,
        saga_due_ms=lambda state: state.due_ms,
        input=msgspec.Raw(b"{}"),
        effects={},
        effect=msgspec.Raw(effect or f'"{name}{saga_round}"'.encode()),
    )


def failed(
    name: str,
    effect: Literal["none", "unknown"] = "none",
    *,
    saga_round: int = 1,
    run: str = "run-1",
    start: str = START,
    abort: bool = False,
    code: str = "",
    kind: FailureKind | None = None,
) -> Said:
    failure = Failure(kind=kind or ("rejected" if effect == "none" else "crashed"), code=code or name)
    return of_step(StepFailed, name, saga_round, start, run=run, failure=failure, effect=effect, abort=abort)


def timed_out(name: str, *, saga_round: int = 1, start: str = START) -> Said:
    """The saga-log gives up waiting."""
    return of_step(StepFailed, name, saga_round, start, failure=Failure(kind="timed_out", code="deadline"))


def undone(
    name: str,
    generation: int = 1,
    *,
    saga_round: int = 1,
    nothing: bool = False,
    start: str = START,
    run: str = "run-1",
    **verdict: Any,
) -> Said:
    return of_step(
        StepCompensated, name, saga_round, start, generation=generation, run=run, undone=not nothing, **verdict
    )


def retry(name: str, limit: int = 5, *, saga_round: int = 1, backoff_ms: int = 0, generation: int = 1) -> Said:
    return undone(name, generation, saga_round=saga_round, verdict="retry", retry_limit=limit, backoff_ms=backoff_ms)


def continues(
    name: str, effect: bytes = b'"substitute"', *, saga_round: int = 1, generation: int = 1, nothing: bool = True
) -> Said:
    return undone(
        name, generation, saga_round=saga_round, nothing=nothing, verdict="continue", effect=msgspec.Raw(effect)
    )


def undo_failed(name: str, generation: int = 1, *, saga_round: int = 1, run: str = "run-1", start: str = START) -> Said:
    failure = Failure(kind="crashed", code="refund_refused")
    return of_step(CompensationFailed, name, saga_round, start, generation=generation, failure=failure, run=run)


def undo_timed_out(name: str, generation: int = 1, *, saga_round: int = 1) -> Said:
    failure = Failure(kind="timed_out", code="deadline")
    return of_step(CompensationFailed, name, saga_round, START, generation=generation, failure=failure)


def acted(
    name: str,
    act: Literal["retry", "skip", "resolve"],
    generation: int = 1,
    *,
    saga_round: int = 1,
    start: str = START,
) -> Said:
    return of_step(
        OperatorActed,
        name,
        saga_round,
        start,
        act=act,
        generation=generation,
        request="act-1",
        operator="ada",
        reason="by hand",
    )


def round_started(saga_round: int = 2) -> Said:
    return Said(
        lambda contract, state: RoundStarted(
            saga=contract.name, version=contract.version, saga_id=SAGA_ID, start=START, round=saga_round
        )
    )


def message(decision: Decision) -> Said:
    """The saga-log's message of a decision."""
    return Said(lambda contract, state: record_of(contract, state, decision))


# ----------------------------------------------------------------------------------------------------- decisions


def execute(name: str, saga_round: int = 1) -> Decision:
    return Decision("execute", name, saga_round)


def settle(name: str, generation: int = 1, *, saga_round: int = 1) -> Decision:
    return Decision("settle", name, saga_round, generation)


def skip(name: str, saga_round: int = 1) -> Decision:
    return Decision("skip", name, saga_round)


def compensate(name: str, generation: int = 1, *, saga_round: int = 1) -> Decision:
    return Decision("compensate", name, saga_round, generation)


def stuck(name: str, generation: int = 1, *, saga_round: int = 1, undo: int = 0) -> Decision:
    return Decision("stuck", name, saga_round, generation, undo=undo)


def refuse_start(start: str = OTHER_START) -> Decision:
    return Decision("refuse_start", reference=start)


def refuse_cancel(request: str = "cancel-1") -> Decision:
    return Decision("refuse_cancel", reference=request)
