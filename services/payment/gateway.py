"""The card gateway: somebody else's service, which declines cards and is not always there. Here it is played."""

from __future__ import annotations


class CardDeclined(Exception):  # noqa: N818 -- reads as the failure's code does
    """The card's bank said no."""


class GatewayUnavailable(ConnectionError):  # noqa: N818 -- says what has happened
    """The gateway did not answer. Another attempt may."""


def authorise(card: str, *, attempt: int, failures: int) -> None:
    """Ask for the money. The gateway is away for the first ``failures`` attempts.

    Raises:
        CardDeclined: asking again will not help.
        GatewayUnavailable: it may.
    """
    if attempt <= failures:
        raise GatewayUnavailable(f"the card gateway does not answer (attempt {attempt})")
    if card == "tok_declined":
        raise CardDeclined(f"card {card} was declined")
