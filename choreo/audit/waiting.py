"""How a consumer group stands to one record that it has to handle: is somebody there, and how far away is it?"""

from __future__ import annotations

import msgspec

from choreo.broker.offsets import OffsetTracker
from choreo.broker.port import Broker, TopicPartition


class Waited(msgspec.Struct, frozen=True, kw_only=True):
    """A group, and a partition of which it has to handle a record.

    Attributes:
        members: how many are alive.
        has_partition: one of them has the partition.
        position: the next record of it that is not finished; the first one there is, if nothing was ever committed.
        lag: records from there to the end of the partition.
        ahead: of those, how many come before the record; 0 when it is next or in hand.
        finished: the group has committed that the record needs no more work.
    """

    group: str
    members: int
    has_partition: bool
    position: int
    lag: int
    ahead: int
    finished: bool

    @property
    def text(self) -> str:
        """What keeps the record, in words."""
        lag = f"lag {self.lag}"
        if not self.members:
            return f"group {self.group} has no members; {lag}"
        if not self.has_partition:
            return f"no member of group {self.group} has the partition yet (is it rebalancing?); {lag}"
        if self.finished:
            return f"group {self.group} has finished with its trigger, and no outcome is in the log"
        if self.ahead:
            return f"group {self.group} has {self.ahead} records before it; {lag}"
        return f"group {self.group} has it in hand; {lag}"


async def wait_of(broker: Broker, group: str, tp: TopicPartition, offset: int) -> Waited:
    """How the group stands to the record at ``offset``. Raises ``BrokerUnavailable``."""
    info = await broker.group_info(group)
    first, end = (await broker.offsets([tp]))[tp]
    place = info.committed.get(tp)
    position = first if place is None else max(place.offset, first)
    finished = place is not None and OffsetTracker(place.offset, place.metadata).is_finished(offset)
    return Waited(
        group=group,
        members=len(info.members),
        has_partition=any(tp in member.partitions for member in info.members),
        position=position,
        lag=max(end - position, 0),
        ahead=0 if finished else max(offset - position, 0),
        finished=finished,
    )
