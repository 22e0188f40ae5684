"""Dead letters for the API and the dashboard."""

from __future__ import annotations

import base64
from collections.abc import Sequence

from choreo.broker.port import Broker
from choreo.broker.topics import dead_letter_topic
from choreo.client import dead_letters
from choreo.client.dead_letters import Found, Wanted
from choreo.clock import Clock
from choreo.contract.policy import duration_ms
from choreo.web.problem import invalid, no_such
from choreo.web.shapes import LetterDetail, LettersQuery, RedrivenTo, RedriveRequest

SHOWN_BYTES_MAX = 65_536


class Letters:
    """What nobody could read, of the sagas that are looked after."""

    def __init__(self, broker: Broker, sagas: Sequence[str], clock: Clock) -> None:
        self._broker = broker
        self._sagas = sagas
        self._clock = clock

    async def list(self, saga: str, query: LettersQuery) -> list[Found]:
        """The dead letters of a saga, the newest first."""
        if saga not in self._sagas:
            raise no_such("saga", f"no saga {saga!r} is looked after here; there are: {', '.join(self._sagas)}")
        since_ms = None
        if query.younger_than is not None:
            try:
                since_ms = self._clock.now_ms() - duration_ms(query.younger_than)
            except ValueError as error:
                raise invalid("younger_than", str(error), "must be a duration such as 30s, 1h30m or 7d") from error
        if dead_letter_topic(saga) not in await self._broker.topics():
            return []
        wanted = Wanted(saga_id=query.saga_id, reason=query.reason, since_ms=since_ms)
        return (await dead_letters.find(self._broker, saga, wanted))[::-1]

    async def read(self, saga: str, letter: str) -> LetterDetail:
        """A dead letter with its bytes."""
        found = await self._found(saga, letter)
        whole = await dead_letters.read(self._broker, found)
        value = whole.value[:SHOWN_BYTES_MAX]
        return LetterDetail(
            letter=found,
            headers=tuple((name, text.decode("utf-8", "replace")) for name, text in whole.headers),
            text=value.decode("utf-8", "replace"),
            value=base64.b64encode(value).decode(),
        )

    async def redrive(self, saga: str, letter: str, request: RedriveRequest, *, by: str) -> RedrivenTo:
        """Write a dead letter back into its topic."""
        found = await self._found(saga, letter)
        appended = await dead_letters.redrive(self._broker, found, by=by, why=request.reason, again=request.again)
        return RedrivenTo(saga=saga, letter=letter, partition=appended.partition, offset=appended.offset, operator=by)

    async def _found(self, saga: str, letter: str) -> Found:
        if saga not in self._sagas or dead_letter_topic(saga) not in await self._broker.topics():
            raise no_such("saga", f"no saga {saga!r} with dead letters is looked after here")
        [found] = await dead_letters.find(self._broker, saga, Wanted(ids=(letter,)))
        return found
