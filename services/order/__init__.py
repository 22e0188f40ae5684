"""The contract of the order saga, shared by all services: its steps and the types of its input and effects."""

from services.order.contract import (
    ORDER,
    Booking,
    Charge,
    HandOver,
    Invoice,
    Notice,
    OrderInput,
    Reservation,
    Trouble,
)

__all__ = [
    "ORDER",
    "Booking",
    "Charge",
    "HandOver",
    "Invoice",
    "Notice",
    "OrderInput",
    "Reservation",
    "Trouble",
]
