"""Given a history, when something is appended, then this is decided: the protocol, asked about a contract of yours.

    given(ORDER, completed("reserve_stock")).when(rejected("charge_card")).then(compensate("reserve_stock"))

No services, no broker, no time: the pure core alone. What the saga-log has to say is said at once after every record,
so a history names only what clients, services and time say. Records are appended ten milliseconds apart.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from random import Random
from typing import Any

import msgspec

from choreo import ids
from choreo.client.schedule import StartTime, schedule_of
from choreo.contract.saga import Saga
from choreo.core import Decision, Entry, SagaState, Timer, fold, record_of, timers
from choreo.core.status import SagaStatus, status_of
from choreo.messages.codec import encode_user_value
from choreo.messages.records import (
    NO_START,
    AnyRecord,
    CancelRequested,
    CompensationFailed,
    Failure,
    RoundStarted,
    SagaStarted,
    SignalReceived,
    StepCompensated,
    StepCompleted,
    StepFailed,
    StepRecord,
)
from choreo.step import AbortRetries, CompensationAnswer, Continue, NothingToUndo, Retry
from choreo.testing.clock import EPOCH_MS

SAGA_ID = "saga-1"
APART_MS = 10


@dataclass(frozen=True)
class Fact:
    """Something that happens: the record is made when it is appended, as its writer would make it then.

    Attributes:
        text: for messages, as the test wrote it.
    """

    text: str
    make: Callable[[Spec], AnyRecord]


@dataclass(frozen=True)
class Expected:
    """A decision to expect; what is ``None`` may be anything."""

    kind: str
    step: str = ""
    round: int | None = None
    generation: int | None = None

    def matches(self, decision: Decision) -> bool:
        return (
            (self.kind, self.step) == (decision.kind, decision.step)
            and self.round in (None, decision.round)
            and self.generation in (None, decision.generation)
        )

    def __str__(self) -> str:
        return _text(self.kind, self.step, self.round or 1, self.generation or 1)


@dataclass(frozen=True)
class Spec:
    """A saga after a history; a value, so that one history can be gone on with in several ways.

    Attributes:
        records: the whole log, what the saga-log said included.
        decided: what the last ``when`` brought about.
    """

    contract: Saga
    state: SagaState
    now_ms: int = EPOCH_MS
    records: tuple[AnyRecord, ...] = ()
    decided: tuple[Decision, ...] = ()

    @property
    def status(self) -> SagaStatus:
        """Where the saga is now."""
        return status_of(self.contract, self.state)

    def when(self, *facts: Fact | AnyRecord) -> Spec:
        """Append these, and what the saga-log says to them. What all of them bring about is for ``then`` to check."""
        spec = replace(self, decided=())
        for fact in facts:
            spec = _append(spec, fact.make(spec) if isinstance(fact, Fact) else fact)
            while spec.state.owed:
                spec = _append(spec, record_of(spec.contract, spec.state, spec.state.owed[0]))
        return spec

    def then(self, *expected: Expected) -> Spec:
        """Exactly this was decided, in this order; nothing, if nothing is given.

        Raises:
            AssertionError: something else was; the message has the history.
        """
        if len(expected) != len(self.decided) or not all(map(Expected.matches, expected, self.decided)):
            said = ", ".join(_record_text(record) for record in self.records)
            raise AssertionError(
                f"expected {', '.join(map(str, expected)) or 'nothing'}; "
                f"decided was {', '.join(map(_decision_text, self.decided)) or 'nothing'}\nhistory: {said}"
            )
        return self


def given(contract: Saga, *history: Fact | AnyRecord) -> Spec:
    """A saga with this history. It begins with a start with input ``None`` unless it begins with a start of its own.

    Args:
        history: facts, in the words of this module, or records, such as ``Runner.history`` gives.
    """
    begun = history and (isinstance(history[0], SagaStarted) or getattr(history[0], "text", "") == "started")
    saga_id = history[0].saga_id if history and isinstance(history[0], SagaStarted) else SAGA_ID
    spec = Spec(contract, SagaState(saga_id)).when(*(() if begun else (started(),)), *history)
    return replace(spec, decided=())


# What may happen


def started(value: object = None, *, at: StartTime | None = None) -> Fact:
    """A client starts the saga with this input; scheduled, it begins when ``time_passes``."""

    def make(spec: Spec) -> SagaStarted:
        encoded = encode_user_value(value)
        schedule = schedule_of(at)
        return SagaStarted(
            saga=spec.contract.name,
            version=spec.contract.version,
            saga_id=spec.state.saga_id,
            start=ids.start_hash(encoded, **schedule),
            contract_hash=spec.contract.content_hash,
            request=f"request-{len(spec.records)}",
            saga_deadline_ms=spec.contract.deadline_ms,
            input=msgspec.Raw(encoded),
            **schedule,
        )

    return Fact("started", make)


def signalled(name: str, payload: object = None) -> Fact:
    """Something outside of the saga has happened that steps may wait for."""

    def make(spec: Spec) -> SignalReceived:
        about = {**_about(spec), "start": spec.state.start or NO_START}
        payload_of = msgspec.Raw(encode_user_value(payload))
        return SignalReceived(**about, request=f"request-{len(spec.records)}", name=name, payload=payload_of)

    return Fact("signalled", make)


def cancelled(reason: str = "") -> Fact:
    """A client asks for the saga to be undone."""

    def make(spec: Spec) -> CancelRequested:
        about = {**_about(spec), "start": spec.state.start or NO_START}
        return CancelRequested(**about, request=f"request-{len(spec.records)}", reason=reason)

    return Fact("cancelled", make)


def completed(step: str, effect: object = None, *, round: int | None = None) -> Fact:  # noqa: A002 - the field's word
    """The step's service has done its work; by default in the current round."""

    def make(spec: Spec) -> StepCompleted:
        contract_step, state = spec.contract[step], spec.state
        due_ms = state.instance((step, round or state.round)).due_ms or state.due_ms
        before = {other: msgspec.Raw(b"null") for other in spec.contract.graph.ancestors[contract_step.name]}
        return StepCompleted(
            **_about_step(spec, step, round),
            run=f"run-{len(spec.records)}",
            due_ms=due_ms,
            saga_due_ms=state.due_ms,
            input=msgspec.Raw(state.input),
            effects=before,
            effect=msgspec.Raw(encode_user_value(effect)),
        )

    return Fact("completed", make)


def rejected(step: str, code: str = "", *, abort: bool = False, round: int | None = None) -> Fact:  # noqa: A002
    """The step's handler has raised ``Reject``, or ``Abort``: there is certainly no effect."""

    def make(spec: Spec) -> StepFailed:
        spec.contract[step]
        return StepFailed(
            **_about_step(spec, step, round),
            run=f"run-{len(spec.records)}",
            failure=Failure(kind="rejected", code=code),
            effect="none",
            abort=abort,
        )

    return Fact("rejected", make)


def crashed(step: str, *, round: int | None = None) -> Fact:  # noqa: A002
    """The step's handler has raised something else, or was cancelled at its timeout: there may be an effect."""

    def make(spec: Spec) -> StepFailed:
        spec.contract[step]
        return StepFailed(
            **_about_step(spec, step, round), run=f"run-{len(spec.records)}", failure=Failure(kind="crashed")
        )

    return Fact("crashed", make)


def answered(step: str, answer: CompensationAnswer = None, *, round: int | None = None) -> Fact:  # noqa: A002
    """The step's compensation has ended with this answer: ``None`` is "undone". A ``Retry`` waits without jitter."""

    def make(spec: Spec) -> StepCompensated:
        key = (step, round or _latest_round(spec, step))
        changes: dict[str, Any] = {}
        match answer:
            case Retry(limit=limit):
                backoff_ms = msgspec.structs.replace(answer, jitter=False).backoff_ms(key[1], Random(0))  # noqa: S311  # nothing is drawn
                changes = {"verdict": "retry", "retry_limit": limit, "backoff_ms": backoff_ms}
            case Continue(effect=effect):
                changes = {"verdict": "continue", "effect": msgspec.Raw(encode_user_value(effect))}
            case AbortRetries():
                changes = {"verdict": "abort"}
        return StepCompensated(
            **_about_step(spec, step, key[1]),
            generation=spec.state.instance(key).generation,
            run=f"run-{len(spec.records)}",
            undone=not isinstance(answer, NothingToUndo),
            **changes,
        )

    return Fact("answered", make)


def undo_failed(step: str, *, round: int | None = None) -> Fact:  # noqa: A002
    """The step's compensation has failed, its retries included."""

    def make(spec: Spec) -> CompensationFailed:
        key = (step, round or _latest_round(spec, step))
        return CompensationFailed(
            **_about_step(spec, step, key[1]),
            generation=spec.state.instance(key).generation,
            run=f"run-{len(spec.records)}",
            failure=Failure(kind="crashed"),
        )

    return Fact("undo_failed", make)


def time_passes() -> Fact:
    """The next timer fires, and nothing else happens before.

    That is a deadline without an outcome, a wait for a signal that was in vain, a backoff that is over, or the time of
    a scheduled start. Appending it raises ``AssertionError`` if the saga waits for no time.
    """

    def make(spec: Spec) -> StepFailed | CompensationFailed | RoundStarted:
        return _next_timer(spec).record

    return Fact("time_passes", make)


# What may be decided


def execute(step: str, *, round: int | None = None) -> Expected:  # noqa: A002
    """The step is told to run: a join, after a signal, the frontier of a new round or of a scheduled saga.

    Steps with one predecessor need no telling.
    """
    return Expected("execute", step, round)


def skip(step: str, *, round: int | None = None) -> Expected:  # noqa: A002
    """The step's condition does not hold, so it does not run in this round."""
    return Expected("skip", step, round)


def compensate(step: str, *, round: int | None = None, generation: int | None = None) -> Expected:  # noqa: A002
    """The step is told to undo its effect."""
    return Expected("compensate", step, round, generation)


def stuck(step: str) -> Expected:
    """An operator is needed for this step's compensation."""
    return Expected("stuck", step)


COMPLETE = Expected("complete")
"""The outcome: all steps stand."""

COMPENSATED = Expected("compensated")
"""The outcome: nothing stands any more."""


def _append(spec: Spec, record: AnyRecord) -> Spec:
    at_ms = spec.now_ms + APART_MS
    timer = next((each for each in timers(spec.contract, spec.state) if each.record == record), None)
    if timer is not None:  # the saga-log appends it when it is time
        at_ms = max(at_ms, timer.at_ms)
    folded = fold(spec.contract, spec.state, Entry(record, len(spec.records), at_ms))
    return replace(
        spec,
        state=folded.state,
        now_ms=at_ms,
        records=(*spec.records, record),
        decided=(*spec.decided, *folded.owed),
    )


def _about(spec: Spec) -> dict[str, Any]:
    return {
        "saga": spec.contract.name,
        "version": spec.contract.version,
        "saga_id": spec.state.saga_id,
        "start": spec.state.start,
    }


def _about_step(spec: Spec, step: str, saga_round: int | None) -> dict[str, Any]:
    return {**_about(spec), "step": step, "round": saga_round or spec.state.round}


def _latest_round(spec: Spec, step: str) -> int:
    """The round of the step's last ``Compensate``; the current one if it never got any."""
    spec.contract[step]
    rounds = [
        saga_round
        for (name, saga_round), instance in spec.state.instances.items()
        if name == step and instance.generation
    ]
    return max(rounds, default=spec.state.round)


def _next_timer(spec: Spec) -> Timer:
    found = timers(spec.contract, spec.state)
    assert found, (
        "the saga waits for no time: no step is in flight or waits for a signal, no compensation is awaited, "
        "no backoff is running"
    )
    return found[0]


def _record_text(record: AnyRecord) -> str:
    step = f" {record.step}/{record.round}" if isinstance(record, StepRecord) else ""
    return f"{type(record).__name__}{step}"


def _decision_text(decision: Decision) -> str:
    return _text(decision.kind, decision.step, decision.round, decision.generation)


def _text(kind: str, step: str, saga_round: int, generation: int) -> str:
    extra = f", round={saga_round}" if saga_round > 1 else ""
    extra += f", generation={generation}" if generation > 1 else ""
    return f"{kind}({step}{extra})" if step else kind
