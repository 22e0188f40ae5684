"""Apache Kafka behind the port. The only package that sees aiokafka.

``settings`` reads the URL, ``broker`` opens everything else, ``topics`` creates and verifies, ``groups`` looks at a
group from outside, ``producer`` appends, ``fetching`` polls safely, ``salvage`` takes apart what cannot be parsed,
``consumer`` and ``reader`` are the two uses, ``patience`` learns which records need not wake them, ``gathering`` how
long others may come together, ``stalls`` notices one that does not move, ``errors`` turns aiokafka's into ours, and
``internals`` is all of aiokafka that we use without its promise.

aiokafka's defaults are not ours. Here: acks=all and idempotence, manual commits of given offsets, new groups start at
the earliest record, aborted records are not read, bytes stay bytes. Where aiokafka gives up (a producer whose sequence
is broken, a consumer that no longer moves, a record that cannot be parsed) this package replaces, resends, isolates.
"""

from __future__ import annotations

from choreo.broker.kafka.broker import KafkaBroker
from choreo.broker.kafka.salvage import Quarantined

__all__ = ["KafkaBroker", "Quarantined"]
