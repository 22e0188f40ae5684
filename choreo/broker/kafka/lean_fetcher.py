"""aiokafka's fetcher with less between a response and the records in it.

What it decides stays aiokafka's: which partitions are asked for, what an error or another leader means, which responses
are out of date. Five things are done with less:

- Requests and responses are bytes, by ``fetch_codec``.
- With one request to make and nothing else to wait for, it is awaited where it is made. aiokafka starts a task for it
  and waits for the first of four futures. A rebalance that begins meanwhile is seen when the response comes, and no
  sooner: until then the broker answers nothing else on that connection.
- Records become the port's messages at once.
- Under load a fetch waits until the one before it is some milliseconds old: it costs both sides more than some dozen
  records do, and who fetches without a pause fetches hundreds of times a second. The pause is made here. A broker that
  is asked to gather keeps the request, and looks at it again with everything that anybody appends to its partitions.
  Where sagas take long, it may be longer, however little comes (``gathering``).
- While sagas come one by one a reader is not woken for records that are not for it (``patience``).
"""

# ruff: noqa: SLF001, ASYNC109 -- what is used of aiokafka here has no public name; the adapter's tests pin it

from __future__ import annotations

import asyncio
import contextlib
import time
from collections import defaultdict
from collections.abc import Sequence
from functools import partial
from operator import itemgetter
from typing import Any

from aiokafka import AIOKafkaConsumer
from aiokafka.consumer.fetcher import Fetcher, FetchResult, PartitionRecords
from aiokafka.errors import KafkaError
from aiokafka.structs import TopicPartition as KafkaTopicPartition

from choreo.broker.kafka.fetch_codec import LeanClient
from choreo.broker.kafka.gathering import Gathering
from choreo.broker.kafka.patience import HOLD_MS, Patience
from choreo.broker.port import Message

Records = dict[KafkaTopicPartition, list[Message]]

BUSY_RECORDS = 12  # that came at once; a record that comes alone is fetched at once
TURNS_FIRST = 6  # of the event loop before the next request: what was read is answered first, with one in flight
BUSY_S = 0.008  # from the sending of a request to the next, while records come like that


class LeanFetcher(Fetcher):  # type: ignore[misc]
    """In the place of a consumer's own; see ``internals.fetch_lean``."""

    def __init__(self, kafka: AIOKafkaConsumer, usual: Fetcher) -> None:
        """Fetch as ``usual`` would, which is closed."""
        super().__init__(
            LeanClient(usual._client, self._on_fetched),
            usual._subscriptions,
            fetch_min_bytes=usual._fetch_min_bytes,
            fetch_max_bytes=usual._fetch_max_bytes,
            fetch_max_wait_ms=usual._fetch_max_wait_ms,
            max_partition_fetch_bytes=usual._max_partition_fetch_bytes,
            check_crcs=usual._check_crcs,
            fetcher_timeout=usual._fetcher_timeout,
            prefetch_backoff=usual._prefetch_backoff,
            retry_backoff_ms=kafka._retry_backoff_ms,
            auto_offset_reset=kafka._auto_offset_reset,
            isolation_level=kafka._isolation_level,
        )
        self._gather_s = 0.0
        self._gathering = Gathering()
        self._patience: defaultdict[int, Patience] = defaultdict(Patience)  # by node

    async def _fetch_requests_routine(self) -> None:
        task = asyncio.current_task()
        assert task is not None, "the constructor starts it as one"
        assignment: Any = None
        asked_at = 0.0
        while not self._closed:
            if assignment is None or not assignment.active:
                await self._end_pending()
                self._records.clear()
                self._patience.clear()
                assignment = await self._next_assignment()
                if assignment is None:
                    continue
                assignment.unassign_future.add_done_callback(self._on_unassigned)
            if self._gather_s and (pause_s := asked_at + self._gather_s - time.monotonic()) > 0:
                await asyncio.sleep(pause_s)
                continue  # with what has changed meanwhile
            self._wait_consume_future: asyncio.Future[Any] = self._loop.create_future()
            requests, resets, timeout_s, is_stale, resumed = self._get_actions_per_node(assignment)
            if len(requests) == 1 and not resets and not is_stale and not self._pending_tasks:
                node, request = requests[0]
                asked_at = time.monotonic()
                if await self._proc_fetch_request(assignment, node, request):
                    self._wake()
                    await _within(self._wait_consume_future, self._prefetch_backoff)
                    for _ in range(TURNS_FIRST):
                        await asyncio.sleep(0)
                elif task.cancelling():
                    return  # aiokafka takes a cancelled fetch for one that brought nothing
                continue
            self._begin(assignment, requests, resets)
            await self._first_of(assignment, timeout_s, resumed, is_stale=is_stale)

    async def _next_assignment(self) -> Any:
        """The assignment that is in force, or the next one; ``None`` if it is worth another look."""
        subscription = self._subscriptions.subscription
        if subscription is None or subscription.assignment is None:
            try:
                await self._subscriptions.wait_for_assignment()
            except KafkaError:
                return None  # aiokafka tells whoever polls
            subscription = self._subscriptions.subscription
        return None if subscription is None else subscription.assignment

    def _begin(self, assignment: Any, requests: Any, resets: Any) -> None:
        """Tasks for what is to be done side by side, one for a node."""
        works = [(node, self._proc_fetch_request(assignment, node, request)) for node, request in requests]
        works += [(node, self._update_fetch_positions(assignment, node, tps)) for node, tps in resets.items()]
        for node, work in works:
            task = asyncio.create_task(work, name=f"kafka/fetch/{node}")
            self._pending_tasks.add(task)
            self._in_flight.add(node)
            task.add_done_callback(partial(self._on_done, node))

    async def _first_of(self, assignment: Any, timeout_s: float, resumed: Any, *, is_stale: bool) -> None:
        """Wait for the first thing that asks for another turn."""
        others = [self._wait_consume_future, assignment.unassign_future, *resumed]
        if is_stale:
            others.append(self._client.force_metadata_update())
        done, _ = await asyncio.wait(
            {*self._pending_tasks, *others}, timeout=timeout_s, return_when=asyncio.FIRST_COMPLETED
        )
        ended = self._pending_tasks & done
        self._pending_tasks -= ended
        has_new = [task.result() for task in ended]  # all of them are looked at
        if any(has_new):
            self._wake()

    async def _end_pending(self) -> None:
        for task in self._pending_tasks:
            task.cancel()
            with contextlib.suppress(asyncio.CancelledError):
                await task
        self._pending_tasks.clear()

    def _on_done(self, node: int, _: asyncio.Future[Any]) -> None:
        self._in_flight.discard(node)

    def _on_unassigned(self, _: asyncio.Future[Any]) -> None:
        self._notify(self._wait_consume_future)

    def _wake(self) -> None:
        for waiter in self._fetch_waiters:
            self._notify(waiter)

    def worked_on(self, places: Sequence[tuple[tuple[str, int], int]]) -> None:
        """These of the records that came last, by partition and offset, were for us."""
        for patience in self._patience.values():
            patience.worked_on(places)

    def _on_fetched(self, node_id: int, response: Any) -> None:
        self._patience[node_id].fetched(response.topics)

    async def _proc_fetch_request(self, assignment: Any, node_id: int, request: Any) -> bool:
        if (min_bytes := self._patience[node_id].min_bytes) > self._fetch_min_bytes:
            request._min_bytes, request._max_wait_ms = min_bytes, HOLD_MS
        has_new: bool = await super()._proc_fetch_request(assignment, node_id, request)
        if has_new:
            for result in self._records.values():
                if type(result) is FetchResult and result._partition_records is not None:
                    result._partition_records.__class__ = _Messages  # aiokafka makes them itself
        return has_new

    async def fetched_records(self, partitions: Any, timeout: float = 0, max_records: int | None = None) -> Records:
        """As aiokafka's, but a reassignment is waited for no longer than for records."""
        until = time.monotonic() + timeout
        while True:
            if self._subscriptions.reassignment_in_progress:
                assigned = self._subscriptions.wait_for_assignment()
                done, _ = await asyncio.wait({assigned}, timeout=max(0.0, until - time.monotonic()))
                if not done:
                    return {}
                assigned.result()
            if self._records:
                found: Records = await super().fetched_records(partitions, 0, max_records)
                if found:
                    for messages in found.values():
                        self._gathering.saw(messages)
                    busy_s = BUSY_S if sum(map(len, found.values())) >= BUSY_RECORDS else 0.0
                    self._gather_s = max(busy_s, self._gathering.gather_s)
                    return found
            left_s = until - time.monotonic()
            if left_s <= 0 or self._closed:
                return {}
            waiter = self._create_fetch_waiter()
            await _within(waiter, left_s)  # raises what the coordinator has to say


class _Messages(PartitionRecords):  # type: ignore[misc]
    """aiokafka's records of a partition, as the port's messages. On the hot path: once for each record."""

    def __iter__(self) -> Any:
        return self._records_iterator  # without a call of ``__next__`` for each

    def _consumer_record(self, tp: KafkaTopicPartition, record: Any) -> Message:
        headers = tuple(record.headers)
        if None in map(_VALUE, headers):  # Kafka knows header values that are null; the port does not
            headers = tuple((name, value or b"") for name, value in headers)
        return Message(tp[0], tp[1], record.offset, record.timestamp, record.key, record.value or b"", headers)


_VALUE = itemgetter(1)


async def _within(future: asyncio.Future[Any], timeout_s: float) -> None:
    """Wait for a future that nobody else waits for; at the end of the time it is done, too."""
    handle = future.get_loop().call_later(timeout_s, _end, future)
    try:
        await future
    finally:
        handle.cancel()


def _end(future: asyncio.Future[Any]) -> None:
    if not future.done():
        future.set_result(None)
