"""One full instance of every record: each optional field is set to something other than its default."""

from __future__ import annotations

from typing import Any

from msgspec import Raw

from choreo.messages.codec import encode_user_value
from choreo.messages.family import Parent, SagaUndone, UndoRequested
from choreo.messages.headers import JSON
from choreo.messages.records import (
    CancelRefused,
    CancelRequested,
    CancelStep,
    Compensate,
    CompensationFailed,
    Execute,
    Failure,
    OperatorActed,
    Record,
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

SAGA_ID = "shop:7/A.42"
START = "0123456789abcdef"
ABOUT: dict[str, Any] = {"saga": "order", "version": 3, "saga_id": SAGA_ID, "start": START}
STEP: dict[str, Any] = {**ABOUT, "step": "charge_card", "round": 2}
PARENT = Parent(saga="trip", version=2, saga_id="trip-7", start=START, step="order", round=3, due_ms=1_760_000_100_000)
FAILURE = Failure(
    kind="crashed",
    code="card_declined",
    message="nö \U0001f4b3\n\x00",
    exception_type="shop.CardError",
    traceback="Traceback (most recent call last):\n  …",
)


def wire_examples(content_type: str = JSON) -> dict[type[Record], Record]:
    """The instances, the user's values in them written in that codec."""

    def user_value(value: object) -> Raw:
        return Raw(encode_user_value(value, content_type=content_type))

    context: dict[str, Any] = {
        "input": user_value({"amount": 1_200, "tags": ["a", None, 1.5]}),
        "effects": {"reserve_stock": user_value({"shelf": "B7"}), "check": user_value(None)},
    }
    effect = user_value({"charge": "ch_1"})
    records = (
        SagaStarted(
            **ABOUT,
            contract_hash="0123456789abcdef" * 2,
            request="req-1",
            saga_deadline_ms=3_600_000,
            input=context["input"],
            rules=2,
            not_before_ms=1_760_000_200_000,
            delay_ms=60_000,
            parent=PARENT,
        ),
        CancelRequested(**ABOUT, request="req-2", reason="too slow", requested_by="anna"),
        SignalReceived(**ABOUT, request="req-3", name="approved", payload=effect, reason="called", sent_by="anna"),
        SagaPaused(**ABOUT, request="req-5", operator="anna", reason="asking"),
        SagaResumed(**ABOUT, request="req-6", operator="anna", reason="asked"),
        TypePaused(**ABOUT, request="req-7", operator="anna", reason="moving"),
        TypeResumed(**ABOUT, request="req-8", operator="anna", reason="moved"),
        OperatorActed(**STEP, act="skip", generation=4, request="req-4", operator="anna", reason="done by hand"),
        StepCompleted(
            **STEP,
            **context,
            run="run-1",
            due_ms=1_760_000_000_000,
            saga_due_ms=1_760_000_100_000,
            effect=effect,
            attempts=3,
            duration_ms=17,
        ),
        StepFailed(**STEP, failure=FAILURE, effect="none", run="run-2", abort=True, attempts=2, duration_ms=5),
        Execute(**STEP, **context, saga_due_ms=1_760_000_100_000, key_round=1, signals={"approved": effect}),
        StepSkipped(**STEP, condition="input.amount > 2000"),
        CancelStep(**STEP, failed="ship"),
        Compensate(
            **STEP,
            **context,
            generation=4,
            deadline_ms=900_000,
            effect=effect,
            failure=FAILURE,
            own=True,
            remaining=("reserve_stock", "check"),
            signals={"approved": effect},
        ),
        StepCompensated(
            **STEP,
            generation=4,
            run="run-3",
            undone=True,
            verdict="continue",
            retry_limit=3,
            backoff_ms=250,
            effect=effect,
            attempts=2,
            duration_ms=9,
        ),
        CompensationFailed(**STEP, generation=4, failure=FAILURE, run="run-4", attempts=5, duration_ms=11),
        RoundStarted(**ABOUT, round=2),
        UndoRequested(**ABOUT, generation=4, parent=PARENT),
        SagaUndone(
            **ABOUT, generation=4, undone=True, compensations=(Undone(step="reserve_stock", round=1, how="undone"),)
        ),
        SagaStuck(**STEP, generation=4, failure=FAILURE, remaining=("charge_card", "reserve_stock")),
        SagaCompleted(**ABOUT, result=effect, effects={"charge_card": effect}, skipped=("gift_wrap",)),
        SagaCompensated(
            **ABOUT,
            cause="cancelled",
            step="charge_card",
            failure=FAILURE,
            compensations=(Undone(step="reserve_stock", round=1, how="undone"),),
            reason="too slow",
        ),
        StartRefused(**ABOUT, standing_start="fedcba9876543210"),
        CancelRefused(**ABOUT, request="req-2", reason="it is completed"),
    )
    return {type(record): record for record in records}
