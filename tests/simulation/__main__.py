"""Runs the simulation: ``python -m tests.simulation --seeds 10000``, or one seed in full: ``--seed N --trace``."""

from __future__ import annotations

import argparse
import sys
import time
from collections import Counter

from tests.simulation.faults import KINDS
from tests.simulation.world import Result, simulate

SAGAS = 20


def main() -> int:
    parser = argparse.ArgumentParser(prog="python -m tests.simulation", description=__doc__)
    parser.add_argument("--seeds", type=int, default=100, help="how many seeds to run (%(default)s)")
    parser.add_argument("--first", type=int, default=0, help="the first of them (%(default)s)")
    parser.add_argument("--sagas", type=int, default=SAGAS, help="sagas in each (%(default)s)")
    parser.add_argument("--seed", type=int, help="run this one alone")
    parser.add_argument("--trace", action="store_true", help="print all that happens")
    asked = parser.parse_args()
    seeds = range(asked.first, asked.first + asked.seeds) if asked.seed is None else [asked.seed]
    total = Counter[str]()
    fired, outcomes, weaker = Counter[str](), Counter[str](), Counter[str]()
    failing: list[int] = []
    began = time.monotonic()
    for number, seed in enumerate(seeds, 1):
        result = simulate(seed, sagas=asked.sagas, say=print if asked.trace else None)
        total.update(sagas=result.sagas, records=result.records, contended=result.contended, repeated=result.repeated)
        total.update(given_up=result.given_up)
        total["virtual_s"] += round(result.virtual_s)
        fired += result.fired
        outcomes += result.outcomes
        weaker += result.weaker
        if result.violations:
            failing.append(seed)
            print(f"\n{failure(result, asked.sagas)}")
        if asked.seed is not None:
            print(f"seed {seed}: log {result.digest}")
        elif sys.stderr.isatty() or number % 100 == 0 or number == len(seeds):
            rate = total["sagas"] / (time.monotonic() - began)
            line = f"{number} of {len(seeds)} seeds, {total['sagas']} sagas, {rate:.0f} sagas/s, {len(failing)} failing"
            print(line, end="\r" if sys.stderr.isatty() and number < len(seeds) else "\n", file=sys.stderr, flush=True)
    print(
        f"{total['sagas']} sagas: {_listed(outcomes)}; {total['records']} records; "
        f"{total['virtual_s'] / 3600:.1f} h of virtual time in {time.monotonic() - began:.0f} s"
    )
    print(f"faults fired: {sum(fired.values())}")
    for kind in KINDS:
        print(f"  {kind:26} {fired[kind]:10}")
    print(f"sagas in which a step completed in time after it was given up: {total['given_up']}")
    print(f"sagas under weaker promises: {total['contended']} contended, {total['repeated']} repeated")
    print(f"  needed for: {_listed(weaker)}")
    print(f"violations: {len(failing)} of {len(seeds)} seeds")
    return 1 if failing else 0


def failure(result: Result, sagas: int) -> str:
    """What is wrong with a run, and how to see it again."""
    shown = "\n".join(f"  {violation[:600]}" for violation in result.violations[:5])
    return (
        f"seed {result.seed}: {len(result.violations)} violations\n{shown}\n"
        f"again: python -m tests.simulation --seed {result.seed} --sagas {sagas} --trace"
    )


def _listed(counts: Counter[str]) -> str:
    return ", ".join(f"{count} {name}" for name, count in sorted(counts.items())) or "none"


if __name__ == "__main__":
    sys.exit(main())
