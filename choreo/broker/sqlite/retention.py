"""Deleting what nobody needs to keep.

Records older than the retention go, and in compacted topics all but the last of each key: a little at a time, so
that nobody waits long for the write lock. Offsets go on growing.
"""

from __future__ import annotations

import sqlite3

RECORDS_MAX = 2_000  # that one call deletes of a partition


class Janitor:
    """Cleans one log. Several processes may; what one has deleted the other does not find."""

    def __init__(self, connection: sqlite3.Connection) -> None:
        self._connection = connection
        self._compacted_up_to: dict[int, int] = {}  # partition id -> its end when it was compacted last

    def clean(self, now_ms: int) -> bool:
        """Delete a part of what has to go; whether there may be more. To be called inside a write transaction."""
        more = False
        partitions = self._connection.execute(
            "SELECT partitions.id, offset_next, retention_ms, compacted "
            "FROM partitions JOIN topics ON topics.id = partitions.topic_id"
        ).fetchall()
        for partition_id, offset_next, retention_ms, compacted in partitions:
            if retention_ms is not None:
                more |= self._expire(partition_id, now_ms - retention_ms)
            if compacted and self._compacted_up_to.get(partition_id, 0) < offset_next:
                self._compact(partition_id)
                self._compacted_up_to[partition_id] = offset_next
        return more

    def _expire(self, partition_id: int, before_ms: int) -> bool:
        # Append times do not fall, so what has expired lies at the beginning; nothing else is looked at.
        deleted = self._connection.execute(
            "DELETE FROM records WHERE id IN (SELECT id FROM (SELECT id, timestamp_ms FROM records "
            "WHERE partition_id = ? ORDER BY offset LIMIT ?) WHERE timestamp_ms < ?)",
            (partition_id, RECORDS_MAX, before_ms),
        ).rowcount
        return deleted == RECORDS_MAX

    def _compact(self, partition_id: int) -> None:
        self._connection.execute(
            "DELETE FROM records WHERE partition_id = ?1 AND offset NOT IN "
            "(SELECT max(offset) FROM records WHERE partition_id = ?1 GROUP BY key)",
            (partition_id,),
        )
