"""The saga-log: folds every record of a partition into its sagas' states, and appends what is owed.

``runtime`` runs the batches; ``ownership`` loads and saves the partitions that the group gives us; ``shard`` holds the
sagas of one partition, without I/O, ``kept`` and ``known`` those in memory and in the store; ``timer`` knows when time
has something to say, ``census`` how many sagas are where; ``outbound`` turns decisions into records that are in the
log, ``side_by_side``, in ``smaller`` ones where they are too large; ``dead_letter`` keeps what nobody could read;
``accounts`` counts and logs what was folded; ``intake`` decides what is a record of ours; ``replay`` folds the log
again for whoever asks, ``window`` is what it has in memory meanwhile, and ``check`` compares a store with it.

Guarantee: every decision that the log implies is in the log, at least once, under an id that is the same each time.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from choreo.saga_log.runtime import SagaLog

__all__ = ["SagaLog"]


def __getattr__(name: str) -> object:
    """Load the runtime when it is asked for: clients, who fold one saga with ``replay``, do without it."""
    if name == "SagaLog":
        from choreo.saga_log.runtime import SagaLog

        return SagaLog
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
