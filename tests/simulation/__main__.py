"""Runs the simulation: ``python -m tests.simulation --seeds 10000``, or one seed in full: ``--seed N --trace``."""

from __future__ import annotations

import argparse
import os
import sys
import time
from pathlib import Path

from tests.simulation.report import Totals, failure
from tests.simulation.runs import run
from tests.simulation.world import simulate

SAGAS = 100  # a seed's world costs as much as a dozen sagas; twice as many would see few faults more
TELL_EVERY_S = 15.0


def main() -> int:
    parser = argparse.ArgumentParser(prog="python -m tests.simulation", description=__doc__)
    parser.add_argument("--seeds", type=int, default=100, help="how many seeds to run (%(default)s)")
    parser.add_argument("--first", type=int, default=0, help="the first of them (%(default)s)")
    parser.add_argument("--sagas", type=int, default=SAGAS, help="sagas in each (%(default)s)")
    parser.add_argument("--jobs", type=int, default=os.cpu_count() or 1, help="processes (%(default)s, one per core)")
    parser.add_argument("--report", type=Path, help="write the sums to this file, as JSON, now and then and at the end")
    parser.add_argument("--seed", type=int, help="run this one alone")
    parser.add_argument("--trace", action="store_true", help="print all that happens")
    parser.add_argument("--inbox", action="store_true", help="let the services have inboxes")
    parser.add_argument("--pauses", action="store_true", help="let operators pause sagas, and all of them")
    asked = parser.parse_args()
    if asked.seed is not None:
        say = print if asked.trace else None
        result = simulate(asked.seed, sagas=asked.sagas, say=say, inbox=asked.inbox, pauses=asked.pauses)
        if result.violations:
            print(f"\n{failure(result, asked.sagas)}")
        print(f"seed {asked.seed}: log {result.digest}, {len(result.violations)} violations")
        return 1 if result.violations else 0
    seeds = range(asked.first, asked.first + asked.seeds)
    return run_many(seeds, asked.sagas, asked.jobs, asked.report, inbox=asked.inbox, pauses=asked.pauses)


def run_many(
    seeds: range, sagas: int, jobs: int, report: Path | None, *, inbox: bool = False, pauses: bool = False
) -> int:
    """Run seeds in several processes, tell how it goes, and come to an exit status."""
    totals = Totals(sagas)
    began = told = time.monotonic()
    for result in run(seeds, sagas, jobs, inbox=inbox, pauses=pauses):
        totals.add(result)
        if result.violations:
            print(f"\n{failure(result, sagas)}", flush=True)
        now = time.monotonic()
        if now - told >= TELL_EVERY_S or totals.seeds == len(seeds):
            told = now
            rate = totals.counts["sagas"] / (now - began)
            left_s = (len(seeds) - totals.seeds) * (now - began) / totals.seeds
            print(
                f"{totals.seeds} of {len(seeds)} seeds, {totals.counts['sagas']} sagas, {rate:.0f} sagas/s, "
                f"{len(totals.failing)} failing, {left_s / 60:.0f} min left",
                file=sys.stderr,
                flush=True,
            )
            if report is not None:
                totals.save(report, now - began)
    print(totals.text(time.monotonic() - began))
    return 1 if totals.failing else 0


if __name__ == "__main__":
    sys.exit(main())
