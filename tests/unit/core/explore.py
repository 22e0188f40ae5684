"""Every order of everything, breadth first, so that the trace of what goes wrong is the shortest one.

python -m tests.unit.core.explore            the cases of the test run
python -m tests.unit.core.explore --large    larger budgets; minutes on one core
python -m tests.unit.core.explore --off      each rule switched off: what goes wrong then
python -m tests.unit.core.explore --trace    with the shortest way to each thing that goes wrong
"""

from __future__ import annotations

import argparse
import sys
import time
from collections import deque
from collections.abc import Iterator
from typing import NamedTuple

from tests.unit.core.cases import CASES, LARGE, Case
from tests.unit.core.folding import Event
from tests.unit.core.switches import SWITCHES
from tests.unit.core.world import Situation, World


class Explored(NamedTuple):
    """What was seen.

    Attributes:
        states: situations of the world; ``sagas`` is how many states of the saga there were in them.
        complete: whether these are all there are.
        wrong: by kind, what is wrong and the shortest way to it.
        ends: a sample of histories that ran to their end.
    """

    states: int
    sagas: int
    complete: bool
    wrong: dict[str, tuple[str, list[str]]]
    ends: list[list[Event]]


class Explorer:
    """A breadth-first walk over a world."""

    def __init__(self, case: Case) -> None:
        self.case = case
        self.world = World(case.contract, case.habits, case.only, scheduled=case.scheduled, paused=case.paused)
        self.first, self.opening = self.world.start(case.budget)
        self.parents: dict[Situation, tuple[Situation, int] | None] = {self.first: None}

    def run(
        self, *, states_max: int = 1_000_000, seconds_max: float = 600, until: str | None = None, ends: int = 20
    ) -> Explored:
        """Go on until everything was seen, a limit is reached, or something of the kind ``until`` is wrong."""
        todo = deque([self.first])
        wrong: dict[str, tuple[str, list[str]]] = {}
        finished: list[Situation] = []
        end = time.monotonic() + seconds_max
        while todo and len(self.parents) <= states_max and time.monotonic() < end:
            now = todo.popleft()
            messages = list(now.wrong)
            if self.world.is_quiet(now):
                finished.append(now)
                messages += self.world.wrong_at_the_end(now)
            for message in messages:
                if message[:2] not in wrong:
                    wrong[message[:2]] = (message, [label for label, _ in self.way_to(now)])
            if until is not None and any(kind.startswith(until) for kind in wrong):
                break
            for i, (_, following, _) in enumerate(self.world.moves(now)):
                if following not in self.parents:
                    self.parents[following] = (now, i)
                    todo.append(following)
        sample = finished[:: max(1, len(finished) // ends)] if ends else []
        histories = [[*self.opening, *(e for _, events in self.way_to(end) for e in events)] for end in sample]
        return Explored(len(self.parents), len(self.world.folding.states), not todo, wrong, histories)

    def way_to(self, situation: Situation) -> list[tuple[str, tuple[Event, ...]]]:
        """The moves that lead there."""
        moves = []
        parent = self.parents[situation]
        while parent is not None:
            before, i = parent
            label, _, events = self.world.moves(before)[i]
            moves.append((" ".join(str(word) for word in label), events))
            parent = self.parents[before]
        return moves[::-1]


def report(cases: tuple[Case, ...], *, seconds_max: float, trace: bool) -> Iterator[bool]:
    """Explore one case after the other, tell what was seen, and yield whether it was clean."""
    for case in cases:
        began = time.monotonic()
        seen = Explorer(case).run(seconds_max=seconds_max, ends=0)
        took = time.monotonic() - began
        print(
            f"{case!s:70} {seen.states:8,} states, {seen.sagas:6,} of the saga, "
            f"{'complete' if seen.complete else 'CUT'}, {took:4.0f} s: {', '.join(seen.wrong) or 'clean'}",
            flush=True,
        )
        for message, way in seen.wrong.values():
            print(f"    {message}")
            for label in way if trace else ():
                print(f"        {label}")
        yield not seen.wrong


def report_switches(*, trace: bool) -> Iterator[bool]:
    """Explore with one rule off at a time, and yield whether it was missed."""
    for switch in SWITCHES:
        with switch.without():
            seen = Explorer(switch.case).run(until=switch.kind, ends=0)
        print(f"{switch!s:75} {seen.states:7,} states: {', '.join(seen.wrong) or 'NOT MISSED'}", flush=True)
        for message, way in seen.wrong.values():
            print(f"    {message}, after {len(way)} moves")
            for label in way if trace else ():
                print(f"        {label}")
        yield bool(seen.wrong)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--large", action="store_true", help="larger budgets")
    parser.add_argument("--off", action="store_true", help="switch the rules off, one at a time")
    parser.add_argument("--seconds", type=float, default=120, help="at most, for each case")
    parser.add_argument("--trace", action="store_true", help="print the shortest way to what is wrong")
    args = parser.parse_args()
    if args.off:
        expected = list(report_switches(trace=args.trace))
    else:
        expected = list(report(LARGE if args.large else CASES, seconds_max=args.seconds, trace=args.trace))
    sys.exit(0 if all(expected) else 1)


if __name__ == "__main__":
    main()
