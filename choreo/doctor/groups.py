"""Whether somebody is there for every step, and for the saga-log's work. No I/O."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import NamedTuple

from choreo.broker.announcement import Announcement
from choreo.broker.port import GroupInfo, TopicPartition
from choreo.contract.policy import duration_text
from choreo.contract.saga import Saga
from choreo.doctor.findings import Notes

BEHIND_MS = 60_000
"""The oldest record that a group has not finished may be this old before it is worth a word."""


class Place(NamedTuple):
    """How far a group is in one partition.

    Attributes:
        lag: records from its committed offset to the end.
        waiting_ms: since when the oldest of them is there; 0 if there is none.
    """

    tp: TopicPartition
    lag: int
    waiting_ms: int


def examine_steps(
    notes: Notes,
    contract: Saga,
    hosts: Mapping[str, Sequence[Announcement]],
    *,
    in_flight: int | None,
) -> None:
    """Whether each step of a version has a service, and one only.

    Args:
        hosts: step → the services that say they run it.
        in_flight: sagas of this version under way; ``None`` for a version that new sagas start in.
    """
    version = f"{contract.name}@{contract.version}"
    for step in contract.steps:
        if step.child is not None:
            continue  # the saga-logs see to it
        words = hosts[step.name]
        subject = f"{version}/{step.name}"
        problem = None
        if not words and in_flight is None:
            problem = (
                f"no service has said that it runs step {step.name}: sagas that come to it wait for their deadline"
            )
        elif not words:
            problem = f"{in_flight} sagas of version {contract.version} are under way, and no service runs {step.name}"
        fix = f"start a service that binds {step.name} of version {contract.version}: choreo run MODULE:SERVICE"
        notes.check("step_without_service" if in_flight is None else "version_unserved", subject, problem, fix)
        problem = None
        if len(words) > 1:
            names = " and ".join(word.service for word in words)
            problem = f"services {names} both say that they run it: each trigger is run twice"
        fix = "keep the step in one service; the other one says so when it starts without it"
        notes.check("step_with_two_services", subject, problem, fix)


def examine_group(notes: Notes, group: GroupInfo, places: Sequence[Place], *, start: str, now_ms: int) -> None:
    """Whether a group lives, has all partitions, and keeps up.

    Args:
        places: all partitions that it has to read.
        start: how it is started.
    """
    lag = sum(place.lag for place in places)
    problem = None if group.members else f"the group has no members; {lag} records wait for it"
    if not notes.check("group_without_members", group.name, problem, start):
        return
    held = {tp for member in group.members for tp in member.partitions}
    missing = sorted(place.tp for place in places if place.tp not in held)
    problem = None
    if missing:
        shown = ", ".join(map(str, missing[:5])) + (f" and {len(missing) - 5} more" if len(missing) > 5 else "")
        problem = f"none of its {len(group.members)} members has {shown}"
    fix = (
        "ask again when a rebalance is over; if it stays, a member reads other topics: restart it with the new release"
    )
    notes.check("group_partitions", group.name, problem, fix)
    oldest = min((place for place in places if place.lag), key=lambda place: place.waiting_ms, default=None)
    problem = None
    if oldest is not None and now_ms - oldest.waiting_ms > BEHIND_MS:
        age = duration_text((now_ms - oldest.waiting_ms) // 1_000 * 1_000)
        problem = f"the oldest record that it has not finished, in {oldest.tp}, is {age} old; lag {lag}"
    fix = "start more members (up to one for each partition), or look at what keeps a handler"
    notes.check("group_behind", group.name, problem, fix, level="warning")
