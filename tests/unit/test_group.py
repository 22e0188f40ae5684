"""The coordinator of a consumer group, which is a value: shares, hand-overs and leases."""

from __future__ import annotations

from collections.abc import Callable

import msgspec
from hypothesis import given
from hypothesis import strategies as st

from choreo.broker.embedded.group import Group, Membership, share_out
from choreo.broker.port import TopicPartition

TOPIC = "choreo.order"
SESSION_MS = 6_000


def group_of(*members: str, partitions: int = 4) -> Group:
    group = Group()
    for member in members:
        join(group, member, partitions=partitions)
    return group


def join(group: Group, member: str, *, now_ms: int = 0, partitions: int = 4) -> None:
    group.join(member, Membership((TOPIC,), now_ms, SESSION_MS), {TOPIC: partitions})


def tps(*partitions: int) -> frozenset[TopicPartition]:
    return frozenset(TopicPartition(TOPIC, partition) for partition in partitions)


def test_a_lone_member_has_everything() -> None:
    group = group_of("a")
    standing = group.claim("a")
    assert standing.owned == tps(0, 1, 2, 3)
    assert standing.leaving == frozenset()


def test_a_newcomer_waits_until_its_share_is_released() -> None:
    group = group_of("a")
    group.claim("a")
    join(group, "b")
    assert group.claim("b").owned == frozenset()
    assert group.claim("a").leaving == tps(2, 3)
    group.release("a", tps(2, 3))
    assert group.claim("b").owned == tps(2, 3)
    assert group.claim("a").owned == tps(0, 1)


def test_one_who_leaves_frees_its_partitions_at_once() -> None:
    group = group_of("a", "b")
    group.claim("a")
    group.claim("b")
    group.leave("a")
    assert group.claim("b").owned == tps(0, 1, 2, 3)
    group.leave("a")
    assert group.claim("b").owned == tps(0, 1, 2, 3)


def test_a_lease_that_lapses_frees_the_partitions_of_its_holder() -> None:
    group = group_of("a", "b")
    group.claim("a")
    group.claim("b")
    assert group.heartbeat("b", SESSION_MS)
    assert group.claim("b").owned == tps(2, 3)
    assert group.heartbeat("b", SESSION_MS + 1)
    assert group.claim("b").owned == tps(0, 1, 2, 3)
    assert not group.heartbeat("a", SESSION_MS + 1)


def test_a_member_that_was_late_keeps_its_lease_if_nobody_noticed() -> None:
    group = group_of("a")
    group.claim("a")
    assert group.heartbeat("a", SESSION_MS * 10)
    assert group.claim("a").owned == tps(0, 1, 2, 3)


def test_a_lease_from_before_a_reboot_has_lapsed() -> None:
    group = group_of()
    join(group, "before", now_ms=10_000_000)
    group.claim("before")
    join(group, "after", now_ms=100)
    group.heartbeat("after", 200)
    assert group.claim("after").owned == tps(0, 1, 2, 3)


def test_only_the_owner_can_release() -> None:
    group = group_of("a")
    group.claim("a")
    generation = group.generation
    group.release("b", tps(0, 1))
    assert group.generation == generation
    assert group.owns("a", TopicPartition(TOPIC, 0))
    assert not group.owns("a", TopicPartition(TOPIC, 4))
    assert not group.owns("a", TopicPartition("other", 0))


def test_members_get_only_topics_that_they_read() -> None:
    group = Group()
    counts = {"one": 3, "two": 3}
    group.join("a", Membership(("one",), 0, SESSION_MS), counts)
    group.join("b", Membership(("one", "two"), 0, SESSION_MS), counts)
    a, b = group.claim("a").owned, group.claim("b").owned
    assert {tp.topic for tp in a} == {"one"}
    assert {tp for tp in b if tp.topic == "two"} == {TopicPartition("two", number) for number in range(3)}
    assert len(a | b) == 6


def test_remainders_of_several_topics_do_not_pile_up_on_one_member() -> None:
    group, topics = Group(), ("four", "one", "three", "two")
    for member in ("a", "b"):
        group.join(member, Membership(topics, 0, SESSION_MS), dict.fromkeys(topics, 1))
    assert len(group.claim("a").owned) == 2
    assert len(group.claim("b").owned) == 2


@given(
    st.lists(st.sampled_from(["a", "b", "c", "gone", None]), max_size=40),
    st.lists(st.sampled_from(["a", "b", "c", "d", "e"]), min_size=1, unique=True),
)
def test_shares_are_even_and_nothing_moves_without_need(holders: list[str | None], members: list[str]) -> None:
    targets = share_out(holders, members, dict.fromkeys(members, 0))
    counts = {member: targets.count(member) for member in members}
    assert sum(counts.values()) == len(holders)
    assert max(counts.values()) - min(counts.values()) <= 1
    for member in members:
        kept = sum(holder == target == member for holder, target in zip(holders, targets, strict=True))
        assert kept == min(holders.count(member), counts[member])


class World:
    """Members that act on a group, and what each believes to be its own."""

    def __init__(self) -> None:
        self.now_ms = 0
        self.group = Group()
        self.alive: dict[str, frozenset[TopicPartition]] = {}

    def join(self, member: str) -> None:
        if member not in self.group.members:
            join(self.group, member, now_ms=self.now_ms, partitions=5)
            self.alive[member] = frozenset()

    def sync(self, member: str) -> None:
        if member in self.alive:
            assert self.group.heartbeat(member, self.now_ms)
            self.alive[member] = self.group.claim(member).owned

    def release(self, member: str) -> None:
        if member in self.alive:
            leaving = self.group.claim(member).leaving
            self.group.release(member, leaving)
            self.alive[member] -= leaving

    def leave(self, member: str) -> None:
        if member in self.alive:
            self.group.leave(member)
            del self.alive[member]

    def die(self, member: str) -> None:
        self.alive.pop(member, None)

    def store_and_load(self) -> None:
        self.group = msgspec.json.decode(msgspec.json.encode(self.group), type=Group)

    def settle(self) -> None:
        """Let the leases of the dead lapse, and everybody hand over."""
        for _ in range(4):
            self.now_ms += SESSION_MS // 2
            for member in self.alive:
                self.sync(member)
                self.release(member)
        for member in self.alive:
            self.sync(member)


@given(
    st.lists(
        st.tuples(
            st.sampled_from([World.join, World.leave, World.sync, World.release, World.die]),
            st.sampled_from(["a", "b", "c", "d"]),
        ),
        max_size=60,
    )
)
def test_whatever_happens_no_partition_has_two_owners_and_in_the_end_each_has_one(
    history: list[tuple[Callable[[World, str], None], str]],
) -> None:
    world = World()
    for act, member in history:
        world.now_ms += 10
        act(world, member)
        owned = [tp for tps_owned in world.alive.values() for tp in tps_owned]
        assert len(owned) == len(set(owned))
        world.store_and_load()
    world.settle()
    if world.alive:
        assert sorted(tp for tps_owned in world.alive.values() for tp in tps_owned) == sorted(tps(0, 1, 2, 3, 4))
        shares = [len(tps_owned) for tps_owned in world.alive.values()]
        assert max(shares) - min(shares) <= 1
