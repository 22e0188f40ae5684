"""The contract of the service in ``inbox_process``; it is the unit tests' but for a shorter timeout."""

from choreo.contract import Saga, Step

HURRIED = Saga("order", Step("reserve_stock"), Step("charge_card", compensation="refund_card", timeout="2s", retries=5))
