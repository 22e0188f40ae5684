"""Which partition a key is in: as every Kafka client chooses it, so that foreign producers agree with us.

aiokafka's murmur2 is Python and takes some 20 µs a key, a tenth of what a service has for a whole record. Most records
that we send answer one that we have read, so the partition of its key is known already.
"""

from __future__ import annotations

from collections import defaultdict

from aiokafka.partitioner import murmur2

KEYS_MAX = 100_000  # of a topic; forgotten all at once, since they are only a saving


class Partitioner:
    """The partitions of keys, computed or remembered."""

    def __init__(self) -> None:
        self._seen: defaultdict[str, dict[bytes | None, int]] = defaultdict(dict)

    def seen(self, topic: str) -> dict[bytes | None, int]:
        """For readers: where records of which key were read."""
        seen = self._seen[topic]
        if len(seen) > KEYS_MAX:
            seen.clear()
        return seen

    def partition_of(self, topic: str, key: bytes, partitions: int) -> int:
        """The partition of a key in a topic of so many."""
        found = self._seen[topic].get(key)
        if found is None or found >= partitions:  # the topic may have been made anew, and smaller
            return murmur2_partition(key, partitions)
        return found


def murmur2_partition(key: bytes, partitions: int) -> int:
    """As Kafka's ``DefaultPartitioner``."""
    partition: int = (murmur2(key) & 0x7FFFFFFF) % partitions
    return partition
