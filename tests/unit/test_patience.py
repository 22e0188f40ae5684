"""How much a reader lets come together: what it has learned of the log's rhythm, and when it forgets."""

from __future__ import annotations

import struct
from collections.abc import Sequence

from choreo.broker.kafka.patience import RESPONSE_BYTES_MAX, TIMES, Patience, Topics
from choreo.broker.port import TopicPartition

TOPIC = "choreo.order"
TP = TopicPartition(TOPIC, 2)
BATCH, HEAD = 100, 12
HALF = BATCH // 2


def batch(offset: int, size: int = BATCH) -> bytes:
    return struct.pack(">qi", offset, size - HEAD) + bytes(size - HEAD)


def response(*batches: bytes, partition: int = TP.partition) -> Topics:
    return [(TOPIC, [(7, 0, 0, None), (partition, 0, 0, b"".join(batches))])]


class Log:
    """Records of one batch each, of which every fourth is for us."""

    def __init__(self) -> None:
        self.patience = Patience()
        self.end = 0

    def comes(self, *, ours: bool = False, size: int = BATCH) -> None:
        self.patience.fetched(response(batch(self.end, size)))
        if ours:
            self.patience.worked_on([(TP, self.end)])
        self.end += 1

    def rhythm(self, times: int = TIMES, others: Sequence[int] = (BATCH,) * 3) -> None:
        for _ in range(times):
            for size in others:
                self.comes(size=size)
            self.comes(ours=True)


def test_a_reader_waits_for_what_is_for_it_when_the_log_has_a_rhythm() -> None:
    log = Log()
    log.rhythm(TIMES - 1)
    assert log.patience.min_bytes == 1
    log.rhythm(1)
    assert log.patience.min_bytes == 3 * BATCH + HALF + 1


def test_what_has_come_together_is_as_much_as_what_came_one_by_one() -> None:
    log = Log()
    log.rhythm(TIMES)
    for _ in range(TIMES):
        log.patience.fetched(response(*(batch(log.end + n) for n in range(4))))
        log.patience.worked_on([(TP, log.end + 3)])
        log.end += 4
    assert log.patience.min_bytes == 3 * BATCH + HALF + 1


def test_the_least_of_the_last_times_counts() -> None:
    log = Log()
    log.rhythm()
    log.rhythm(1, others=(BATCH, 30))
    assert log.patience.min_bytes == BATCH + 30 + HALF + 1
    log.rhythm(TIMES - 1)
    assert log.patience.min_bytes == BATCH + 30 + HALF + 1
    log.rhythm(1)
    assert log.patience.min_bytes == 3 * BATCH + HALF + 1


def test_what_has_come_by_the_end_of_a_request_is_waited_for_no_more() -> None:
    log = Log()
    log.rhythm(TIMES)
    log.comes()
    assert log.patience.min_bytes == 2 * BATCH + HALF + 1
    log.comes(size=2 * BATCH)
    assert log.patience.min_bytes == HALF + 1, "any record is more than that"
    log.comes()
    assert log.patience.min_bytes == 1


def test_in_silence_a_reader_waits_for_the_first_thing_that_comes() -> None:
    log = Log()
    log.rhythm(TIMES)
    log.patience.fetched(response())
    assert log.patience.min_bytes == 1
    log.comes()
    assert log.patience.min_bytes == 2 * BATCH + HALF + 1, "it is the first of three"


def test_two_for_us_at_once_end_the_rhythm() -> None:
    log = Log()
    log.rhythm(TIMES)
    log.patience.fetched(response(batch(log.end), batch(log.end + 1)))
    log.patience.worked_on([(TP, log.end), (TP, log.end + 1)])
    log.end += 2
    assert log.patience.min_bytes == 1
    log.rhythm(TIMES - 1)
    assert log.patience.min_bytes == 1
    log.rhythm(1)
    assert log.patience.min_bytes == 3 * BATCH + HALF + 1


def test_two_for_us_that_are_told_one_after_the_other_end_it_too() -> None:
    log = Log()
    log.rhythm(TIMES)
    log.patience.fetched(response(batch(log.end), batch(log.end + 1)))
    log.patience.worked_on([(TP, log.end)])
    log.patience.worked_on([(TP, log.end + 1)])
    assert log.patience.min_bytes == 1


def test_a_record_in_the_midst_of_a_batch_ends_the_rhythm() -> None:
    log = Log()
    log.rhythm(TIMES)
    log.patience.fetched(response(batch(log.end)))
    log.patience.worked_on([(TP, log.end + 1)])
    assert log.patience.min_bytes == 1


def test_much_at_once_ends_the_rhythm() -> None:
    log = Log()
    log.rhythm(TIMES)
    log.comes(size=RESPONSE_BYTES_MAX + 1)
    log.comes(ours=True)
    assert log.patience.min_bytes == 1


def test_records_of_another_brokers_partitions_say_nothing() -> None:
    log = Log()
    log.rhythm(TIMES)
    log.comes()
    log.patience.worked_on([(TopicPartition(TOPIC, 3), log.end - 1)])
    assert log.patience.min_bytes == 2 * BATCH + HALF + 1
    log.comes()
    log.comes()
    log.comes(ours=True)
    assert log.patience.min_bytes == 3 * BATCH + HALF + 1


def test_bytes_that_are_no_batches_are_passed_over() -> None:
    patience = Patience()
    for damaged in (b"short", struct.pack(">qi", 3, -1) * 3, batch(5)[:-1], struct.pack(">qi", 1, 2**31 - 1)):
        patience.fetched(response(damaged))
        patience.worked_on([(TP, 0)])
        assert patience.min_bytes == 1
