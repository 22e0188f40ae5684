"""Everything that we use of aiokafka 0.14 without its promise, in one place, pinned by tests.

Each function says why the public way does not do.
"""

from __future__ import annotations

import asyncio
import contextlib
import ssl
import urllib.error
from collections.abc import Mapping, Sequence
from typing import Any

from aiokafka import AIOKafkaConsumer, AIOKafkaProducer
from aiokafka.conn import AIOKafkaConnection
from aiokafka.errors import (
    AuthenticationFailedError,
    KafkaError,
    NoError,
    SaslAuthenticationFailed,
    UnsupportedSaslMechanismError,
    for_code,
)
from aiokafka.protocol.fetch import FetchRequest
from aiokafka.structs import OffsetAndMetadata
from aiokafka.structs import TopicPartition as KafkaTopicPartition

from choreo.broker.kafka.lean_fetcher import LeanFetcher
from choreo.broker.port import Headers

UNKNOWN_OFFSET = -1
READ_COMMITTED = 1
RAW_BYTES_MAX = 1_048_576  # the broker sends at least one whole batch, however large


async def refusal(settings: Mapping[str, Any], host: str, port: int, timeout_ms: int) -> Exception | None:
    """Why a broker does not take us, if no second try would mend it: the clients only log that, and try on."""
    told = {name: settings[name] for name in settings.keys() - {"bootstrap_servers", "metadata_max_age_ms"}}
    connection = AIOKafkaConnection(host, port, request_timeout_ms=timeout_ms, **told)
    try:
        await connection.connect()
    except (SaslAuthenticationFailed, AuthenticationFailedError, UnsupportedSaslMechanismError) as error:
        return None if is_silence(error.__cause__) else error
    except ssl.SSLCertVerificationError as error:
        return error
    except (KafkaError, OSError, TimeoutError):
        return None
    finally:
        connection.close()
    return None


def is_silence(cause: BaseException | None) -> bool:
    """Whether the server of tokens gave no answer at all, which it may do later."""
    return isinstance(cause, OSError) and not isinstance(cause, urllib.error.HTTPError)


async def fetch_committed(kafka: AIOKafkaConsumer, tp: KafkaTopicPartition) -> OffsetAndMetadata | None:
    """What the group has committed, with its metadata: the public ``committed`` drops the text."""
    found = await kafka._coordinator.fetch_committed_offsets([tp])  # noqa: SLF001
    committed: OffsetAndMetadata | None = found.get(tp)
    return None if committed is None or committed.offset == UNKNOWN_OFFSET else committed


def position(kafka: AIOKafkaConsumer, tp: KafkaTopicPartition) -> int | None:
    """The next offset to fetch, if it is known by now: the public ``position`` waits until it is."""
    subscription = kafka._subscription.subscription  # noqa: SLF001
    if subscription is None or subscription.assignment is None:
        return None
    state = subscription.assignment.state_value(tp)
    return None if state is None or not state.has_valid_position else int(state.position)


async def fetch_lean(kafka: AIOKafkaConsumer) -> None:
    """Put a leaner fetcher in the place of a consumer's own. It has started, and has nothing to fetch yet.

    There is no public way to another one.
    """
    usual = kafka._fetcher  # noqa: SLF001
    await usual.close()
    kafka._fetcher = LeanFetcher(kafka, usual)  # noqa: SLF001


def worked_on(kafka: AIOKafkaConsumer, places: Sequence[tuple[tuple[str, int], int]]) -> None:
    """Tell the fetcher, of which aiokafka's users know nothing, what was of use."""
    kafka._fetcher.worked_on(places)  # noqa: SLF001


async def fetch_raw(
    kafka: AIOKafkaConsumer, tp: KafkaTopicPartition, offset: int
) -> tuple[bytes, list[tuple[int, int]]]:
    """The bytes of the log from the batch with ``offset`` on, and the aborted transactions (producer, first offset).

    There is no public way to bytes; ``getmany`` parses them, and raises for all of a batch if it cannot.
    """
    client = kafka._client  # noqa: SLF001
    request = FetchRequest(
        max_wait_time=0,  # what is there; nothing is an answer, too
        min_bytes=1,
        max_bytes=RAW_BYTES_MAX,
        isolation_level=READ_COMMITTED,
        topics=[(tp.topic, [(tp.partition, offset, RAW_BYTES_MAX)])],
    )
    response = await client.send(client.cluster.leader_for_partition(tp), request)
    for _, partitions in response.topics:
        for _, error_code, _, *data in partitions:
            if (error := for_code(error_code)) is not NoError:
                raise error(tp)
            aborted = data[2 if response.API_VERSION >= 11 else -2] or []
            return bytes(data[-1] or b""), [(producer_id, first) for producer_id, first in aborted]
    return b"", []


def append_now(
    kafka: AIOKafkaProducer, tp: KafkaTopicPartition, key: bytes, value: bytes, headers: Headers
) -> tuple[Any, Any] | None:
    """Put a record into the batch that is filled for its partition: that batch, and the record's place in it.

    ``None`` if there is no room, or anything else to wait for: the public ``send`` waits. That one makes a future for
    each record, and a set of all partitions, which costs more than the rest of a send. Here the batch's own ``future``
    tells of all its records.
    """
    accumulator = kafka._message_accumulator  # noqa: SLF001
    if (
        accumulator._closed  # noqa: SLF001
        or accumulator._exception is not None  # noqa: SLF001
        or tp.partition not in kafka._metadata._partitions.get(tp.topic, ())  # noqa: SLF001
    ):
        return None
    batches = accumulator._batches.get(tp)  # noqa: SLF001
    batch = batches[-1] if batches else accumulator._append_batch(accumulator.create_builder(), tp)  # noqa: SLF001
    place = batch._builder.append(timestamp=None, key=key, value=value, headers=list(headers))  # noqa: SLF001
    return None if place is None else (batch, place)


def sender_task(kafka: AIOKafkaProducer) -> asyncio.Task[None]:
    """The task that sends batches. When it has ended nothing is sent any more, and nobody is told."""
    task: asyncio.Task[None] = kafka._sender.sender_task  # noqa: SLF001
    return task


async def retire(kafka: AIOKafkaProducer, in_flight_s: float) -> None:
    """End a producer without its flush, which has no end while a batch cannot be delivered.

    Requests on the wire get ``in_flight_s`` for their answers; what is left fails with ``KafkaError``.
    """
    sender = kafka._sender.sender_task  # noqa: SLF001
    if sender is not None and not sender.done():
        sender.cancel()
        await asyncio.wait({sender}, timeout=in_flight_s)
    accumulator = kafka._message_accumulator  # noqa: SLF001
    error = KafkaError("the producer was replaced")
    queued = [batch for batches in accumulator._batches.values() for batch in batches]  # noqa: SLF001
    for batch in [*queued, *accumulator._pending_batches]:  # noqa: SLF001
        batch.failure(error)
        with contextlib.suppress(asyncio.InvalidStateError):
            batch._drain_waiter.exception()  # noqa: SLF001 -- looked at, or asyncio complains that nobody did
    accumulator._exception = error  # noqa: SLF001
    await kafka.client.close()
    if sender is not None and not sender.done():
        await asyncio.wait({sender}, timeout=in_flight_s)
    with contextlib.suppress(KafkaError):
        await kafka.stop()


async def abandon(kafka: AIOKafkaConsumer) -> None:
    """Let go of a consumer whose ``stop`` has not come to its end: cancel its tasks, close its connections."""
    coordinator: Any = kafka._coordinator  # noqa: SLF001
    fetcher: Any = kafka._fetcher  # noqa: SLF001
    tasks = [
        getattr(coordinator, "_coordination_task", None),
        getattr(coordinator, "_heartbeat_task", None),
        getattr(coordinator, "_commit_refresh_task", None),
        getattr(fetcher, "_fetch_task", None),
        *getattr(fetcher, "_pending_tasks", ()),
    ]
    running = {task for task in tasks if task is not None and not task.done()}
    for task in running:
        task.cancel()
    if running:
        await asyncio.wait(running, timeout=1)
    # Cut, not closed: over TLS a close waits for the peer's, which may be what has taken too long. And in a task,
    # because the wait for a connection that was cancelled before raises that again.
    for connection in kafka._client._conns.values():  # noqa: SLF001
        if connection._writer is not None:  # noqa: SLF001
            connection._writer.transport.abort()  # noqa: SLF001
    closing = asyncio.create_task(kafka._client.close(), name="kafka/close")  # noqa: SLF001
    await asyncio.wait({closing}, timeout=1)
    closing.cancel()
