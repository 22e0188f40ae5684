"""Which partition a key belongs to, for the brokers that choose it themselves (memory and SQLite)."""

from __future__ import annotations

import zlib


def partition_of_key(key: str, partitions: int) -> int:
    """The partition of a key: the same in every process and release, since records already written depend on it."""
    return zlib.crc32(key.encode()) % partitions
