"""The coordinator of one consumer group, as a value without I/O.

A member holds a lease that heartbeats renew. Whoever talks to the group next drops the members whose lease has
lapsed. Each partition has a *target*, the member that is to have it, and an *owner*, the member that has it. When
members come or go, the targets are shared out anew; an owner that is no longer the target finishes what it is about
and releases the partition; only then may the target claim it. So nobody has to stop for a partition that stays, and
no partition has two owners: a dead owner loses it with its lease.

``generation`` grows with every change of members, targets or owners: whoever knows the latest has seen them all.
"""

from __future__ import annotations

from collections.abc import Collection, Iterator, Mapping, Sequence
from typing import NamedTuple

import msgspec

from choreo.broker.port import MemberInfo, TopicPartition


class Membership(msgspec.Struct):
    """A member's subscription and its lease.

    Attributes:
        renewed_ms: time of the last heartbeat, by a clock that all members share.
        session_timeout_ms: how long the lease lasts from then on.
    """

    topics: tuple[str, ...]
    renewed_ms: int
    session_timeout_ms: int

    def lapsed(self, now_ms: int) -> bool:
        # A lease from the future was written before a reboot, by a clock that has begun anew since.
        return not self.renewed_ms <= now_ms <= self.renewed_ms + self.session_timeout_ms


class Standing(NamedTuple):
    """Where a member stands.

    Attributes:
        owned: the partitions that it has.
        leaving: those of them that it is to release, because others are to have them.
        generation: of the group, when this was so.
    """

    owned: frozenset[TopicPartition]
    leaving: frozenset[TopicPartition]
    generation: int


class Group(msgspec.Struct):
    """The state of a group. ``owners`` and ``targets`` have a list for each topic, an entry for each partition."""

    generation: int = 0
    members: dict[str, Membership] = msgspec.field(default_factory=dict)
    owners: dict[str, list[str | None]] = msgspec.field(default_factory=dict)
    targets: dict[str, list[str | None]] = msgspec.field(default_factory=dict)

    def join(self, member: str, membership: Membership, partitions: Mapping[str, int]) -> None:
        """Add a member. ``partitions`` is how many partitions each topic of its subscription has."""
        for topic in membership.topics:
            self.owners.setdefault(topic, [None] * partitions[topic])
            self.targets.setdefault(topic, [None] * partitions[topic])
        self.members[member] = membership
        self._share_out()

    def leave(self, member: str) -> None:
        """Remove a member and free its partitions at once."""
        if member in self.members:
            self._remove((member,))

    def heartbeat(self, member: str, now_ms: int) -> bool:
        """Renew a lease, and remove the members whose lease has lapsed. False if the member itself is not known."""
        membership = self.members.get(member)
        if membership is not None:
            membership.renewed_ms = now_ms
        dead = [name for name, other in self.members.items() if other.lapsed(now_ms)]
        if dead:
            self._remove(dead)
        return membership is not None

    def claim(self, member: str) -> Standing:
        """Take what the member is to have and nobody has, and see where it stands."""
        owned: list[TopicPartition] = []
        leaving: list[TopicPartition] = []
        for tp, owner, target in self._partitions():
            if owner is None and target == member:
                self.owners[tp.topic][tp.partition] = member
                self.generation += 1
                owned.append(tp)
            elif owner == member:
                owned.append(tp)
                if target != member:
                    leaving.append(tp)
        return Standing(frozenset(owned), frozenset(leaving), self.generation)

    def release(self, member: str, tps: Collection[TopicPartition]) -> None:
        """Give up partitions, so that their targets may claim them."""
        for tp in tps:
            if self.owns(member, tp):
                self.owners[tp.topic][tp.partition] = None
                self.generation += 1

    def owns(self, member: str, tp: TopicPartition) -> bool:
        owners = self.owners.get(tp.topic, ())
        return tp.partition < len(owners) and owners[tp.partition] == member

    def alive(self, now_ms: int) -> tuple[MemberInfo, ...]:
        """The members whose lease has not lapsed, and what they have."""
        held: dict[str, list[TopicPartition]] = {
            name: [] for name, member in self.members.items() if not member.lapsed(now_ms)
        }
        for tp, owner, _ in self._partitions():
            if owner in held:
                held[owner].append(tp)
        return tuple(MemberInfo(name=name, host="", partitions=tuple(tps)) for name, tps in held.items())

    def _partitions(self) -> Iterator[tuple[TopicPartition, str | None, str | None]]:
        for topic, owners in self.owners.items():
            for partition, (owner, target) in enumerate(zip(owners, self.targets[topic], strict=True)):
                yield TopicPartition(topic, partition), owner, target

    def _remove(self, names: Collection[str]) -> None:
        for name in names:
            del self.members[name]
        for owners in self.owners.values():
            owners[:] = [None if owner in names else owner for owner in owners]
        self._share_out()

    def _share_out(self) -> None:
        loads = dict.fromkeys(self.members, 0)
        for topic in sorted(self.owners):
            # Who has a partition keeps it if possible; where nobody has it yet, who was to have it still is.
            holders = [owner or target for owner, target in zip(self.owners[topic], self.targets[topic], strict=True)]
            subscribers = [name for name, member in self.members.items() if topic in member.topics]
            self.targets[topic] = share_out(holders, subscribers, loads)
            for target in self.targets[topic]:
                if target is not None:
                    loads[target] += 1
        self.generation += 1


def share_out(holders: Sequence[str | None], members: Sequence[str], loads: Mapping[str, int]) -> list[str | None]:
    """Who is to have each partition of a topic: evenly, with as few moves as an even share allows.

    Args:
        holders: who holds each partition now.
        members: who can have one.
        loads: how many partitions of other topics each member is to have. Where the division leaves a remainder,
            those with the least get one more; of equals, those who hold more.
    """
    if not members:
        return [None] * len(holders)
    share, remainder = divmod(len(holders), len(members))
    held = {member: sum(holder == member for holder in holders) for member in members}
    by_claim = sorted(members, key=lambda member: (loads[member], -held[member]))
    room = {member: share + (rank < remainder) for rank, member in enumerate(by_claim)}

    targets: list[str | None] = []
    for holder in holders:
        keeps = holder is not None and room.get(holder, 0) > 0
        targets.append(holder if keeps else None)
        if keeps and holder is not None:
            room[holder] -= 1
    takers = iter([member for member in members for _ in range(room[member])])
    return [next(takers) if target is None else target for target in targets]
