"""Kills the services and the saga-log at every crash point of small sagas: ``python -m tests.crash_points --pairs``.

Alone: at every await on the outside world, before it and after it. In pairs: at every two things that have an effect on
the world, the second one also in what happens after the first death; for sagas of one step, at every two awaits.
"""

from __future__ import annotations

import argparse
import json
import multiprocessing
import os
import sys
import time
from collections import Counter
from collections.abc import Iterator
from concurrent.futures import ProcessPoolExecutor
from pathlib import Path

from tests.crash_points.scenarios import ALL
from tests.crash_points.search import Search, Tried, Wrong, die_at, points_of
from tests.crash_points.world import run

TELL_EVERY_S = 30.0


def main() -> int:
    parser = argparse.ArgumentParser(prog="python -m tests.crash_points", description=__doc__)
    parser.add_argument("--pairs", action="store_true", help="die twice in a run, too")
    parser.add_argument("--only", default="", help="only scenarios with this in their name")
    parser.add_argument("--at", help="only one run, with deaths at these points: 12 or 12,30")
    parser.add_argument("--effects", action="store_true", help="count only what has an effect on the world")
    parser.add_argument("--jobs", type=int, default=os.cpu_count() or 1, help="processes (%(default)s, one per core)")
    parser.add_argument("--report", type=Path, help="write the counts to this file, as JSON")
    asked = parser.parse_args()
    chosen = [name for name in ALL if asked.only in name]
    if not chosen:
        parser.error(f"no scenario has {asked.only!r} in its name; there are {', '.join(ALL)}")
    if asked.at:
        seen = run(ALL[chosen[0]], frozenset(map(int, asked.at.split(","))), only_effects=asked.effects)
        print(seen)
        return 1 if seen.violations else 0
    return search_all(chosen, asked.jobs, asked.report, pairs=asked.pairs, effects=asked.effects)


def search_all(names: list[str], jobs: int, report: Path | None, *, pairs: bool, effects: bool) -> int:
    searches = []
    if not effects:
        searches = [Search(name, only_effects=False, pairs=pairs and _has_one_step(name)) for name in names]
    if pairs or effects:
        searches += [Search(name, only_effects=True, pairs=pairs) for name in names]
    began = told = time.monotonic()
    counts: Counter[str] = Counter()
    failing: list[Wrong] = []
    with ProcessPoolExecutor(jobs, mp_context=multiprocessing.get_context("spawn")) as pool:
        for points, (search, (runs, wrong)) in enumerate(_searched(pool, searches), 1):
            counts[_kind(search)] += runs
            failing += wrong
            for each in wrong:
                print(each, flush=True)
            if time.monotonic() - told > TELL_EVERY_S:
                told = time.monotonic()
                print(f"{points} points, {dict(counts)}, {len(failing)} failing", file=sys.stderr, flush=True)
    took_s = time.monotonic() - began
    for kind, number in sorted(counts.items()):
        print(f"{number:8} runs: {kind}")
    print(f"{len(names)} scenarios, {sum(counts.values())} runs in {took_s:.0f} s, {len(failing)} failing")
    if report is not None:
        report.parent.mkdir(parents=True, exist_ok=True)
        found = {"scenarios": names, "runs": dict(counts), "took_s": round(took_s), "failing": list(map(str, failing))}
        report.write_text(json.dumps(found, indent=2) + "\n")
    return 1 if failing else 0


def _searched(pool: ProcessPoolExecutor, searches: list[Search]) -> Iterator[tuple[Search, Tried]]:
    """All of them, point by point."""
    points = list(pool.map(points_of, searches))
    tasks = [(search, first) for search, number in zip(searches, points, strict=True) for first in range(1, number + 1)]
    found = pool.map(die_at, *zip(*tasks, strict=True), chunksize=4)
    for (search, _), tried in zip(tasks, found, strict=True):
        yield search, tried


def _kind(search: Search) -> str:
    where = "effects" if search.only_effects else "awaits"
    return f"deaths at {'one and two' if search.pairs else 'one'} of the {where}"


def _has_one_step(name: str) -> bool:
    return len(ALL[name].shape.contract.steps) == 1


if __name__ == "__main__":
    sys.exit(main())
