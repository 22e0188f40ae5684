"""What the API takes and gives, as types: the OpenAPI document is made of them.

Times are milliseconds since the Unix epoch by the broker's clock, 0 for "not yet". Durations are texts such as ``90s``
or ``1h30m``.
"""

from __future__ import annotations

from datetime import datetime
from typing import Annotated, Any, Literal

import msgspec
from msgspec import Meta

from choreo import ids
from choreo.client.dead_letters import Found
from choreo.contract.policy import CompensateOnFailure
from choreo.contract.saga import StepSpec
from choreo.messages.records import Record

SagaName = Annotated[str, Meta(pattern=ids.SAGA_NAME_PATTERN)]
SagaId = Annotated[str, Meta(pattern=ids.SAGA_ID_PATTERN)]
StepName = Annotated[str, Meta(pattern=ids.STEP_NAME_PATTERN)]
Phase = Literal["scheduled", "forward", "compensating", "stuck", "completed", "compensated", "unstarted", "truncated"]
Reason = Annotated[str, Meta(min_length=1, max_length=2_000, description="why; it stays in the sagas' histories")]
Duration = Annotated[str, Meta(min_length=1, max_length=40, examples=["30s", "1h30m", "7d"])]
SearchText = Annotated[str, Meta(max_length=200)]
Limit = Annotated[int, Meta(ge=1, le=500)]

Act = Literal["cancel", "pause", "resume", "retry", "skip", "resolve"]
"""What an operator can do: turn a saga round; hold it; of a stuck step: try again, take it as done by hand, or all."""


class Filter(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True, omit_defaults=True):
    """Which sagas. What is left out does not matter.

    Attributes:
        saga: the contract's name.
        version: the contract's version.
        phases: in one of these.
        step: that go back for a failure of this step, or at which it runs, is being undone or is stuck.
        code: with this failure code (the failure's kind, where it has none).
        text: in the words of what went wrong, or at the beginning of the saga's id.
        paused: held by a pause of their own, or not.
        older_than: started longer ago than this.
        younger_than: started since.
        silent_for: of which nothing was heard for so long.
    """

    saga: SagaName | None = None
    version: Annotated[int, Meta(ge=1)] | None = None
    phases: Annotated[tuple[Phase, ...], Meta(max_length=8)] = ()
    step: StepName | None = None
    code: SearchText | None = None
    text: SearchText = ""
    paused: bool | None = None
    older_than: Duration | None = None
    younger_than: Duration | None = None
    silent_for: Duration | None = None


class ListQuery(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True, omit_defaults=True):
    """The query parameters of a list: a filter, an order, and a page.

    Attributes:
        saga: the contract's name.
        version: the contract's version.
        phase: in this phase, or one of several between commas.
        step: that go back for a failure of this step, or at which it runs, is being undone or is stuck.
        code: with this failure code (the failure's kind, where it has none).
        text: in the words of what went wrong, or at the beginning of the saga's id.
        paused: held by a pause of their own, or not.
        older_than: started longer ago than this.
        younger_than: started since.
        silent_for: of which nothing was heard for so long.
        order: by the time of the start.
        limit: sagas on a page.
        cursor: ``next`` of the page before.
    """

    saga: SagaName | None = None
    version: Annotated[int, Meta(ge=1)] | None = None
    phase: Annotated[str, Meta(max_length=100, examples=["stuck", "forward,compensating"])] = ""
    step: StepName | None = None
    code: SearchText | None = None
    text: SearchText = ""
    paused: bool | None = None
    older_than: Duration | None = None
    younger_than: Duration | None = None
    silent_for: Duration | None = None
    order: Literal["newest", "oldest"] = "newest"
    limit: Limit = 50
    cursor: Annotated[str, Meta(max_length=500)] | None = None


class SagaLine(msgspec.Struct, frozen=True, kw_only=True):
    """A saga in a list.

    Attributes:
        step, code, message: of the failure that it goes back for; empty for none.
        busy: the steps that run, are being undone or are stuck.
        paused: held by a pause of its own.
    """

    saga: str
    version: int
    saga_id: str
    phase: Phase
    round: int
    started_ms: int
    updated_ms: int
    finished_ms: int
    due_ms: int
    step: str
    code: str
    message: str
    busy: tuple[str, ...]
    paused: bool


class SagaPage(msgspec.Struct, frozen=True, kw_only=True):
    """A page of sagas.

    Attributes:
        next: the cursor of the next page; absent on the last.
    """

    sagas: tuple[SagaLine, ...]
    next: str | None = None


class StartRequest(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """A saga to be started.

    Attributes:
        input: what the first steps get.
        saga_id: of the caller's choice: the same id and input again is the same saga. Drawn if left out.
        version: of the contract; the newest if left out.
        after: begin so long after the log has the start, not at once.
        not_before: begin then, not at once; RFC 3339, with a time zone.
    """

    input: Any
    saga_id: SagaId | None = None
    version: Annotated[int, Meta(ge=1)] | None = None
    after: Duration | None = None
    not_before: Annotated[datetime, Meta(tz=True)] | None = None


class Started(msgspec.Struct, frozen=True, kw_only=True):
    """A saga that was started.

    Attributes:
        new: false if the same start was in the log already.
        status: the path of its status.
    """

    saga: str
    version: int
    saga_id: str
    new: bool
    status: str


class SignalRequest(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """Word that something outside of the saga has happened.

    Attributes:
        name: which signal: one that a step of the contract waits for.
        payload: what the handlers of those steps get.
        id: of the caller's choice: the same id again is the same signal.
    """

    name: StepName
    payload: Any = None
    id: Annotated[str, Meta(min_length=1, max_length=64)] | None = None
    reason: Annotated[str, Meta(max_length=2_000)] = ""


class ReasonedAct(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """Something to be done to a saga, or to all of a name."""

    reason: Reason


class StepAct(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """An answer to a stuck step."""

    step: StepName
    reason: Reason


class Accepted(msgspec.Struct, frozen=True, kw_only=True):
    """The log has the request; what becomes of it the saga's status will show."""

    saga: str
    saga_id: str
    act: str
    operator: str


class SagaCounts(msgspec.Struct, frozen=True, kw_only=True):
    """How many sagas of one name are where, as far as retention says.

    Attributes:
        oldest_ms: start of the oldest one without an outcome; 0 if there is none.
    """

    saga: str
    scheduled: int = 0
    forward: int = 0
    compensating: int = 0
    stuck: int = 0
    completed: int = 0
    compensated: int = 0
    other: int = 0
    oldest_ms: int = 0


class Stretch(msgspec.Struct, frozen=True, kw_only=True):
    """What happened in one stretch of time, of all sagas."""

    from_ms: int
    started: int = 0
    completed: int = 0
    compensated: int = 0


class Lag(msgspec.Struct, frozen=True, kw_only=True):
    """How far this process is behind in one partition that it has."""

    topic: str
    partition: int
    records: int


class Overview(msgspec.Struct, frozen=True, kw_only=True):
    """How things are.

    Attributes:
        now_ms: this machine's clock.
        not_ready_because: why this saga-log does not do its part; absent if it does.
        stretch_ms: the length of the stretches of ``activity``, which cover the last hour, the oldest first.
    """

    now_ms: int
    not_ready_because: str | None
    sagas: tuple[SagaCounts, ...]
    stretch_ms: int
    activity: tuple[Stretch, ...]
    lag: tuple[Lag, ...]


class ContractLine(msgspec.Struct, frozen=True, kw_only=True):
    """A registered contract."""

    saga: str
    version: int
    content_hash: str
    description: str
    steps: tuple[str, ...]


class ContractDetail(msgspec.Struct, frozen=True, kw_only=True):
    """A registered contract as a whole.

    Attributes:
        mermaid: the contract drawn as a Mermaid flowchart.
        text: the contract drawn as text.
    """

    saga: str
    version: int
    content_hash: str
    description: str
    deadline_ms: int
    settle_ms: int
    grace_ms: int
    compensate_on_failure: CompensateOnFailure
    steps: tuple[StepSpec, ...]
    mermaid: str
    text: str


class BulkRequest(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """Something to be done to many sagas; nothing is done before it is confirmed.

    Attributes:
        filter: which; finished ones are passed over, for retry, skip and resolve all that are not stuck, and those that
            are paused already, or are not.
        step: of retry, skip and resolve: at which step a saga must be stuck; every stuck step if left out.
    """

    act: Act
    filter: Filter
    step: StepName | None = None


class BulkConfirm(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """The word that it is meant.

    Attributes:
        count: as many as the preview said, to show that it was read.
        per_second: how many sagas to act on in a second at most, so that what has just come back is not flooded.
    """

    count: Annotated[int, Meta(ge=0)]
    reason: Reason
    per_second: Annotated[float, Meta(gt=0, le=1_000)] = 100.0


class BulkSkipped(msgspec.Struct, frozen=True, kw_only=True):
    """A saga on which nothing was done, and why."""

    saga: str
    saga_id: str
    why: str


class Bulk(msgspec.Struct, frozen=True, kw_only=True):
    """Something done to many sagas.

    Attributes:
        state: ``preview`` until it is confirmed; ``running``; ``done``; ``stopped`` by somebody, or by an error.
        count: how many sagas there are to act on: those that the filter found when it was asked.
        more: the filter finds more than one bulk may have; the rest is for another one.
        sample: the first of them.
        done: on how many it was done so far.
        skipped: those passed over: they were elsewhere by then. The first hundred.
        expires_ms: until when a preview can be confirmed.
        error: what ended it.
    """

    id: str
    act: Act
    step: str | None
    state: Literal["preview", "running", "done", "stopped"]
    by: str
    count: int
    more: bool
    sample: tuple[SagaLine, ...]
    done: int = 0
    skipped_count: int = 0
    skipped: tuple[BulkSkipped, ...] = ()
    expires_ms: int = 0
    error: str = ""


class EventsQuery(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """Which changes to tell of; all if nothing is said.

    Attributes:
        saga: only of sagas of this name.
        saga_id: only of the saga with this id.
    """

    saga: SagaName | None = None
    saga_id: SagaId | None = None


class LettersQuery(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """Which dead letters; all if nothing is said.

    Attributes:
        saga_id: with this key.
        reason: refused for this reason.
        younger_than: refused since.
    """

    saga_id: SearchText | None = None
    reason: SearchText | None = None
    younger_than: Duration | None = None


class LetterDetail(msgspec.Struct, frozen=True, kw_only=True):
    """A dead letter with its bytes.

    Attributes:
        headers: the original's; what is no text is shown as far as it is.
        text: the original's value as text, as far as it is; at most 64 KiB.
        value: the original's value in base64; at most 64 KiB.
    """

    letter: Found
    headers: tuple[tuple[str, str], ...]
    text: str
    value: str


class RedriveRequest(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """A dead letter to be written back into its topic.

    Attributes:
        again: also if it was written back before.
    """

    reason: Reason
    again: bool = False


class RedrivenTo(msgspec.Struct, frozen=True, kw_only=True):
    """Where a dead letter was written back."""

    saga: str
    letter: str
    partition: int
    offset: int
    operator: str


class Change(msgspec.Struct, frozen=True, kw_only=True):
    """A record that was appended to the log.

    Attributes:
        type: the record's tag ("step_completed").
        partition, offset: where it is in the saga's topic.
    """

    saga: str
    saga_id: str
    type: str
    step: str | None
    round: int
    at_ms: int
    partition: int
    offset: int


def tag_of(kind: type[Record]) -> str:
    """The word for a type of record, on the wire and in the API."""
    return str(kind.__struct_config__.tag)
