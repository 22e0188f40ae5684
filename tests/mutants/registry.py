"""All mutants: production code broken on purpose, which rule each turns off, and which suite has to notice.

There are two kinds. A *switch* of the core (``tests/unit/core/switches.py``) is found out by the exploration of a small
case: something goes wrong in an order of events that the explorer comes to. A *broken build* of the runtimes
(``runtimes``) is found out by the simulation, within so many seeds, by an invariant that is named here: an invariant
that merely happens to be broken too does not count. ``without_an_order`` has those of the core that no order of events
shows, because the world around the core never errs in that way; an example of the rules finds them.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager
from functools import cache
from typing import Any, NamedTuple

from tests.mutants import examples, runtimes
from tests.simulation.world import simulate
from tests.unit.core.cases import Case
from tests.unit.core.explore import Explorer
from tests.unit.core.switches import SWITCHES, Switch
from tests.unit.core.world import Habits

SAGAS = 10
SECONDS_MAX = 600.0


class Found(NamedTuple):
    """How a mutant was found out.

    Attributes:
        where: the seed, the number of situations, or the test.
        how: what was wrong; empty if nothing was: the mutant has survived.
        sound: whether the same place is clean without the mutation.
    """

    where: str
    how: str
    sound: bool


class Mutant(NamedTuple):
    """Something broken.

    Attributes:
        rule: of ``docs/protocol.md``, or the invariant that it protects.
        fast: quick to find out, so that every run of the tests does.
    """

    name: str
    rule: str
    suite: str
    what: str
    hunt: Callable[[], Found]
    fast: bool


class Build(NamedTuple):
    """A broken build of the runtimes, the seeds within which it has to be found, and as what."""

    broken: Callable[[], Any]
    rule: str
    seeds: int
    found_as: tuple[str, ...]
    fast: bool = True


BUILDS = (
    Build(runtimes.owed_not_sent_on_takeover, "1", 60, ("L1",)),
    Build(runtimes.decision_taken_as_sent, "1", 60, ("L1",)),
    Build(runtimes.lanes_not_serial, "3", 10, ("R3",)),
    Build(runtimes.commit_before_acknowledgement, "3", 10, ("S13",)),
    Build(runtimes.commit_beyond_the_lowest_unfinished, "3", 20, ("S13",)),
    Build(runtimes.commit_of_what_another_owns, "3", 60, ("S13",)),
    Build(runtimes.answer_taken_as_sent, "3", 20, ("S13",)),
    Build(runtimes.reject_is_always_certain, "5", 200, ("S3", "S2"), fast=False),
    Build(runtimes.cancelled_is_always_certain, "25", 80, ("S3", "S2", "S5")),
    Build(runtimes.random_run_ids, "6", 10, ("S8",)),
    Build(runtimes.resent_under_another_id, "6", 20, ("S8",)),
    Build(runtimes.no_scan_on_assignment, "6", 10, ("S7",)),
    Build(runtimes.no_memory_of_answers, "6", 40, ("S7",)),
    Build(runtimes.key_without_the_start, "13", 10, ("S2", "S3")),
    Build(runtimes.late_completion_triggers, "15", 200, ("S8", "S5", "S2", "S3"), fast=False),
    Build(runtimes.settled_before_its_lane, "15", 400, ("S5", "S2", "S3"), fast=False),
    Build(runtimes.time_outs_count_at_any_time, "15", 60, ("S15",)),
    Build(runtimes.timers_lost_on_restart, "15", 150, ("L1",), fast=False),
    Build(runtimes.dead_letters_dropped, "18", 10, ("S14",)),
    Build(runtimes.undoing_is_told_before_it_is_done, "19", 60, ("S3",)),
    Build(runtimes.completed_children_stay, "19", 60, ("L1", "S3")),
    Build(runtimes.store_leads_the_log, "S12", 40, ("S12", "S8", "S1", "L1")),
    Build(runtimes.save_without_comparing, "S12", 100, ("S12", "S8", "S1", "L1"), fast=False),
    Build(runtimes.cache_forgets_what_is_stored, "S12", 60, ("S12", "S8", "S1", "L1", "L2")),
)


class Example(NamedTuple):
    """A switch of the core that an example of the rules finds."""

    broken: Callable[[], Any]
    rule: str
    test: Callable[[], None]


EXAMPLES = tuple(Example(*each) for each in examples.EXAMPLES)


@cache
def promises_broken(seed: int) -> tuple[str, ...]:
    """What the unbroken build does wrong in a seed: nothing."""
    return tuple(simulate(seed, sagas=SAGAS).violations)


def in_simulation(build: Build) -> Found:
    for seed in range(build.seeds):
        with build.broken():
            violations = simulate(seed, sagas=SAGAS).violations
        found = next((one for one in violations if one.startswith(build.found_as)), None)
        if found is not None:
            return Found(f"seed {seed}", found, not promises_broken(seed))
    return Found(f"{build.seeds} seeds", "", sound=True)


def by_exploring(switch: Switch) -> Found:
    with switch.without():
        seen = Explorer(switch.case).run(seconds_max=SECONDS_MAX, until=switch.kind, ends=0)
    found = [message for kind, (message, _) in seen.wrong.items() if kind.startswith(switch.kind)]
    where = f"{switch.case}, {seen.states} situations"
    return Found(where, found[0] if found else "", _is_clean(switch.case, switch.kind))


def _is_clean(case: Case, kind: str) -> bool:
    habits = Habits(inbox=case.habits.inbox, replicas=case.habits.replicas)
    seen = Explorer(case._replace(habits=habits)).run(seconds_max=SECONDS_MAX, ends=0)
    return seen.complete and not any(wrong.startswith(kind) for wrong in seen.wrong)


def by_example(example: Example) -> Found:
    example.test()  # raises where the unbroken build fails it
    with example.broken():
        return Found(example.test.__name__, _failure_of(example.test), sound=True)


def _failure_of(test: Callable[[], None]) -> str:
    try:
        test()
    except AssertionError as failed:
        return str(failed).partition("\n")[0] or "fails"
    except Exception as error:  # noqa: BLE001  # a broken build breaks tests in any way
        return repr(error)
    return ""


def mutants() -> Iterator[Mutant]:
    for switch in SWITCHES:
        yield Mutant(switch.off, str(switch.rule), "exploration", switch.off, _hunt(by_exploring, switch), fast=True)
    for example in EXAMPLES:
        what = _said(example.broken)
        yield Mutant(example.broken.__name__, example.rule, "rules", what, _hunt(by_example, example), fast=True)
    for build in BUILDS:
        what = _said(build.broken)
        hunt = _hunt(in_simulation, build)
        yield Mutant(build.broken.__name__, build.rule, "simulation", what, hunt, build.fast)


def hunt(number: int) -> tuple[Found, float]:
    """Hunt one of them, by its place among all; also how many seconds it took."""
    began = time.monotonic()
    try:
        found = list(mutants())[number].hunt()
    except Exception as error:  # noqa: BLE001  # what it breaks is perhaps called otherwise now: told beside its name
        found = Found(f"cannot be hunted: {error!r}", "", sound=True)
    return found, time.monotonic() - began


def _hunt(how: Callable[[Any], Found], what: Any) -> Callable[[], Found]:
    return lambda: how(what)


def _said(broken: Callable[[], AbstractContextManager[object]]) -> str:
    return (broken.__doc__ or "").strip().partition("\n")[0].rstrip(".")
