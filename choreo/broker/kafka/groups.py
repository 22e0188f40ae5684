"""Looking at a consumer group without joining it."""

from __future__ import annotations

from aiokafka.admin import AIOKafkaAdminClient
from aiokafka.coordinator.protocol import ConsumerProtocolMemberAssignment
from aiokafka.errors import (
    GroupCoordinatorNotAvailableError,
    GroupLoadInProgressError,
    KafkaError,
    NotCoordinatorForGroupError,
    for_code,
)

from choreo.broker.port import Committed, GroupInfo, MemberInfo, TopicPartition

# A coordinator that starts or moves; a cluster's first question about any group waits for its internal topic.
COORDINATOR_MOVES = (GroupCoordinatorNotAvailableError, GroupLoadInProgressError, NotCoordinatorForGroupError)

NO_ERROR, GROUP_ID_NOT_FOUND = 0, 69


async def look_at_group(admin: AIOKafkaAdminClient, group: str) -> GroupInfo:
    """Members with their partitions, and what is committed. Raises aiokafka's errors."""
    coordinator = await admin.find_coordinator(group)
    [described] = await admin.describe_consumer_groups([group], coordinator)
    members = tuple(
        MemberInfo(name=member, host=host.removeprefix("/"), partitions=_assigned(assignment))
        for code, _, _, _, _, found, *_ in described.groups
        if not _is_unknown(code)
        for member, _, host, _, assignment, *_ in found
    )
    committed = await admin.list_consumer_group_offsets(group, coordinator)
    places = {TopicPartition(*tp): Committed(*place) for tp, place in committed.items() if place.offset >= 0}
    return GroupInfo(name=group, members=members, committed=places)


def _is_unknown(code: int) -> bool:
    if code not in (NO_ERROR, GROUP_ID_NOT_FOUND):
        error: KafkaError = for_code(code)("the group cannot be described")
        raise error
    return code == GROUP_ID_NOT_FOUND


def _assigned(assignment: bytes) -> tuple[TopicPartition, ...]:
    if not assignment:  # while the group is rebalancing
        return ()
    decoded = ConsumerProtocolMemberAssignment.decode(assignment)
    return tuple(sorted(TopicPartition(*tp) for tp in decoded.partitions()))
