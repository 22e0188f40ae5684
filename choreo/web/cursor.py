"""Cursors: where a page of a list has ended, as a word for the next request. They keep nothing here."""

from __future__ import annotations

import base64
import binascii

import msgspec

from choreo.store import Place
from choreo.web.problem import invalid


def cursor_of(place: Place, *, newest_first: bool) -> str:
    """The cursor behind a saga, in a list of that order."""
    return base64.urlsafe_b64encode(msgspec.msgpack.encode((newest_first, *place))).decode().rstrip("=")


def place_in(cursor: str, *, newest_first: bool) -> Place:
    """The place that a cursor is at. Raises ``ProblemError`` if it is none of ours, or of the other order."""
    try:
        packed = base64.urlsafe_b64decode(cursor + "=" * (-len(cursor) % 4))
        order, started_ms, saga_id, saga = msgspec.msgpack.decode(packed, type=tuple[bool, int, str, str])
    except (ValueError, binascii.Error, msgspec.MsgspecError) as error:
        raise invalid("query parameter cursor", "the cursor is none of ours", "must be `next` of a page") from error
    if order is not newest_first:
        raise invalid("query parameter cursor", "the cursor is of a list in the other order", "must fit `order`")
    return Place(started_ms, saga_id, saga)
