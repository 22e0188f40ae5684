"""Who comes before and after whom in a saga. Total for any input: validation uses it on contracts that are wrong."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from functools import cached_property
from typing import NamedTuple


class Hop(NamedTuple):
    """What the start of a saga, or a completion of a step, leads to.

    Attributes:
        triggered: the successors that its event alone triggers, each with its deadline in ms, ``None`` for the saga's.
        commanded: for each of the other successors, all steps that it builds on.
    """

    triggered: tuple[tuple[str, int | None], ...]
    commanded: tuple[frozenset[str], ...]


class Graph:
    """The steps' partial order.

    Attributes:
        before: each step's direct predecessors, in the order of the contract.
        needs: the same, as sets.
        after: each step's direct successors.
        roots: the steps that the saga's start alone triggers.
        commanded: the steps that no event triggers, only the saga-log's ``Execute``.
    """

    def __init__(self, before: Mapping[str, tuple[str, ...]], commanded: Iterable[str] = ()) -> None:
        self.before = dict(before)
        self.needs = {step: frozenset(others) for step, others in self.before.items()}
        self.after: dict[str, tuple[str, ...]] = {
            step: tuple(other for other, needs in self.before.items() if step in needs) for step in self.before
        }
        self.commanded = frozenset(commanded)
        self.roots = tuple(step for step, needs in self.before.items() if not needs and step not in self.commanded)

    @cached_property
    def chained(self) -> Mapping[str, tuple[str, ...]]:
        """The successors that each step's event alone triggers: those with no other predecessor, if not commanded."""
        return {
            step: tuple(other for other in others if len(self.before[other]) == 1 and other not in self.commanded)
            for step, others in self.after.items()
        }

    @cached_property
    def descendants(self) -> Mapping[str, frozenset[str]]:
        """All that builds on each step, directly or not."""
        return {step: self._reach(step, self.after) for step in self.before}

    @cached_property
    def ancestors(self) -> Mapping[str, tuple[str, ...]]:
        """All that each step builds on, in the order of the contract."""
        reach = {step: self._reach(step, self.before) for step in self.before}
        return {step: tuple(other for other in self.before if other in reach[step]) for step in self.before}

    @cached_property
    def siblings(self) -> Mapping[str, tuple[str, ...]]:
        """The steps that may run beside each step: neither builds on the other."""
        return {
            step: tuple(
                other
                for other in self.before
                if other != step and other not in self.descendants[step] and step not in self.descendants[other]
            )
            for step in self.before
        }

    @cached_property
    def cyclic(self) -> tuple[str, ...]:
        """The steps that build on themselves; none in a valid contract."""
        return tuple(step for step in self.before if step in self.descendants[step])

    @cached_property
    def depth(self) -> Mapping[str, int]:
        """The length of the longest way from the start to each step. Only for graphs without cycles."""
        depth: dict[str, int] = {}

        def measure(step: str) -> int:
            if step not in depth:
                depth[step] = 1 + max((measure(other) for other in self.before[step]), default=-1)
            return depth[step]

        for step in self.before:
            measure(step)
        return depth

    def _reach(self, step: str, edges: Mapping[str, tuple[str, ...]]) -> frozenset[str]:
        found: set[str] = set()
        todo = list(edges[step])
        while todo:
            other = todo.pop()
            if other not in found and other in edges:
                found.add(other)
                todo.extend(edges[other])
        return frozenset(found)
