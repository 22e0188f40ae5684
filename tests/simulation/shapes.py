"""The contracts that are simulated, and who runs their steps. Their deadlines are short, so that many pass in a run."""

from __future__ import annotations

from typing import Any, NamedTuple

from choreo import when
from choreo.contract import Saga, Step
from choreo.contract.policy import Retries

FORWARD = Retries(limit=3, backoff_ms_base=200, backoff_ms_max=5_000)
QUICK = Retries(limit=2, backoff_ms_base=50, backoff_ms_max=1_000)
TIMES: dict[str, Any] = {"deadline": "2m", "settle": "25s", "grace": "2s"}
STEP: dict[str, Any] = {
    "timeout": "4s",
    "retries": QUICK,
    "compensation_retries": QUICK,
    "compensation_deadline": "40s",
}

LINEAR = Saga(
    "linear",
    Step("first", compensation="undo_first", **STEP),
    Step("second", compensation="undo_second", deadline="20s", **STEP),
    Step("third", compensation="undo_third", timeout="3s", compensation_deadline="30s"),
    **TIMES,
)

FORKED = Saga(
    "forked",
    Step("left", compensation="undo_left", after=(), deadline="30s", **STEP),
    Step("right", compensation="undo_right", after=(), **STEP),
    Step("note", after="right", deadline="30s", timeout="4s"),
    Step("joined", compensation="undo_joined", after=("left", "note"), **STEP),
    Step("last", compensation="undo_last", deadline="25s", **STEP),
    compensate_on_failure="always",
    **TIMES,
)

ORDER = Saga(
    "order",
    Step("reserve_stock", compensation="release_stock", **STEP),
    Step("charge_card", compensation="refund_card", after="reserve_stock", **STEP),
    Step("book_carrier", compensation="cancel_carrier", after="reserve_stock", deadline="30s", **STEP),
    Step("issue_invoice", compensation="void_invoice", after="charge_card", deadline="30s", **STEP),
    Step("notify_customer", compensation="apologise", after=("book_carrier", "issue_invoice"), **STEP),
    Step("hand_over", compensation="take_back", after="notify_customer", deadline="30s", **STEP),
    on_sibling_failure="cancel",
    **TIMES,
)


APPROVED = Saga(
    "approved",
    Step("screen", compensation="forget", **STEP),
    Step("wrap", compensation="unwrap", after="screen", when=when.input("gift"), **STEP),
    Step("pack", compensation="unpack", after="screen", deadline="30s", **STEP),
    Step(
        "release",
        compensation="withhold",
        after=("wrap", "pack"),
        await_signal="approved",
        signal_timeout="20s",
        deadline="50s",
        **STEP,
    ),
    Step("ship", compensation="recall", pivot=True, forward_retries=FORWARD, **STEP),
    Step("bill", compensation="credit", forward_retries=FORWARD, **STEP),
    **TIMES,
)


TRIP = Saga(
    "trip",
    Step("hotel", compensation="cancel_hotel", **STEP),
    Step("flight", compensation="cancel_flight", deadline="20s", **STEP),
    Step("rail", compensation="cancel_rail", after="hotel", **STEP),
    **{**TIMES, "deadline": "60s"},
)

TOUR = Saga(
    "tour",
    Step("quote", compensation="withdraw", **STEP),
    Step("travel", saga=TRIP, input={"number": when.input("number")}, deadline="45s", compensation_deadline="60s"),
    Step("insure", compensation="cancel_insurance", after="quote", deadline="30s", **STEP),
    Step("confirm", compensation="retract", after=("travel", "insure"), **STEP),
    on_sibling_failure="cancel",
    **TIMES,
)


class Shape(NamedTuple):
    """A contract, service → the steps it runs, and the sagas that steps of it are. No two steps have one name."""

    contract: Saga
    services: dict[str, tuple[str, ...]]
    children: tuple[Shape, ...] = ()

    @property
    def family(self) -> tuple[Shape, ...]:
        return (self, *self.children)


SHAPES = (
    Shape(LINEAR, {"alpha": ("first", "third"), "beta": ("second",)}),
    Shape(FORKED, {"alpha": ("left", "joined"), "beta": ("right", "note"), "gamma": ("last",)}),
    Shape(
        ORDER,
        {
            "inventory": ("reserve_stock",),
            "payment": ("charge_card", "issue_invoice"),
            "shipping": ("book_carrier", "hand_over"),
            "notification": ("notify_customer",),
        },
    ),
    Shape(APPROVED, {"office": ("screen", "release", "bill"), "warehouse": ("wrap", "pack", "ship")}),
    Shape(
        TOUR,
        {"agency": ("quote", "confirm"), "insurer": ("insure",)},
        (Shape(TRIP, {"lodging": ("hotel",), "carrier": ("flight", "rail")}),),
    ),
)

SYNC_STEPS = frozenset({"third", "note", "notify_customer"})
"""Their handlers are plain functions."""
