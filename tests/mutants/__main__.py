"""Hunts all mutants and prints how each was found out: ``python -m tests.mutants``.

Ends with status 1 if one has survived, or if what finds it also finds fault with the unbroken build.
"""

from __future__ import annotations

import argparse
import json
import multiprocessing
import os
import sys
import time
from concurrent.futures import ProcessPoolExecutor
from pathlib import Path

from tests.mutants.registry import hunt, mutants


def main() -> int:
    parser = argparse.ArgumentParser(prog="python -m tests.mutants", description=__doc__)
    parser.add_argument("--fast", action="store_true", help="only those that are found out quickly")
    parser.add_argument("--only", default="", help="only those with this in their name")
    parser.add_argument("--jobs", type=int, default=os.cpu_count() or 1, help="processes (%(default)s, one per core)")
    parser.add_argument("--report", type=Path, help="write what was found to this file, as JSON")
    asked = parser.parse_args()
    everyone = list(mutants())
    chosen = [n for n, one in enumerate(everyone) if asked.only in one.name and (one.fast or not asked.fast)]
    if not chosen:
        parser.error(f"no mutant has {asked.only!r} in its name; there are {', '.join(one.name for one in everyone)}")
    began, bad, rows = time.monotonic(), 0, []
    print(f"{'rule':5} {'suite':12} {'s':>6}  mutant: found out where, as what")
    with ProcessPoolExecutor(asked.jobs, mp_context=multiprocessing.get_context("spawn")) as pool:
        for number, (found, took_s) in zip(chosen, pool.map(hunt, chosen), strict=True):
            one = everyone[number]
            how = found.how[:110] or "SURVIVED"
            if not found.sound:
                how = f"UNSOUND, the unbroken build fails there too: {how}"
            bad += not found.how or not found.sound
            print(f"{one.rule:5} {one.suite:12} {took_s:6.1f}  {one.name}: {found.where}: {how}", flush=True)
            rows.append({"mutant": one.name, "rule": one.rule, "suite": one.suite, "what": one.what, **found._asdict()})
    print(f"{len(chosen)} mutants, {bad} not found out, {time.monotonic() - began:.0f} s")
    if asked.report is not None:
        asked.report.parent.mkdir(parents=True, exist_ok=True)
        asked.report.write_text(json.dumps(rows, indent=2) + "\n")
    return 1 if bad else 0


if __name__ == "__main__":
    sys.exit(main())
