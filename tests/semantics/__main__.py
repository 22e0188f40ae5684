"""Run the rows and print them: what holds in which world, and which rows have no test yet.

python -m tests.semantics                             in the runner and over memory://
python -m tests.semantics --semantics-broker kafka    in the runner and over a real Kafka

Further arguments go to pytest. The exit status is pytest's; rows without tests are listed and do not change it.
"""

from __future__ import annotations

import sys
from collections import Counter
from pathlib import Path

import pytest

from tests.semantics.conftest import MODES
from tests.semantics.rows import ROWS, row_of

HERE = Path(__file__).parent


class Results:
    """What came of the tests, by row and world. A pytest plugin."""

    def __init__(self) -> None:
        self.tests: dict[str, set[str]] = {row: set() for row in ROWS}
        self.outcomes: dict[tuple[str, str], Counter[str]] = {}
        self.failed: list[str] = []
        self.unnamed: list[str] = []
        self._place: dict[str, tuple[str, tuple[str, ...]]] = {}

    def pytest_collection_modifyitems(self, items: list[pytest.Item]) -> None:
        for item in items:
            assert isinstance(item, pytest.Function)
            row = row_of(item.function.__name__)
            if row is None:
                self.unnamed.append(item.nodeid)
                continue
            # A test without a world asks the contract alone, which both worlds share.
            world = item.callspec.params.get("world") if hasattr(item, "callspec") else None
            self.tests[row].add(item.function.__name__)
            self._place[item.nodeid] = (row, MODES if world is None else (str(world),))

    def pytest_runtest_logreport(self, report: pytest.TestReport) -> None:
        decides = report.when == "call" or (report.when == "setup" and report.skipped) or report.failed
        if not decides or report.nodeid not in self._place:
            return
        row, modes = self._place[report.nodeid]
        outcome = "known gap" if hasattr(report, "wasxfail") else report.outcome
        if outcome == "failed":
            self.failed.append(report.nodeid)
        for mode in modes:
            self.outcomes.setdefault((row, mode), Counter())[outcome] += 1

    def table(self) -> str:
        width = max(map(len, ROWS.values()))
        lines = [f"{'row':<5} {'what':<{width}} {'tests':>5}  " + "  ".join(f"{mode:<14}" for mode in MODES)]
        for row, what in ROWS.items():
            told = "  ".join(f"{self._told(row, mode):<14}" for mode in MODES)
            lines.append(f"{row:<5} {what:<{width}} {len(self.tests[row]):>5}  {told}".rstrip())
        missing = [row for row in ROWS if not self.tests[row]]
        lines += ["", f"without a test: {', '.join(missing) or 'none'}"]
        lines += [f"named after no row: {test}" for test in self.unnamed]
        lines += [f"failed: {test}" for test in sorted(set(self.failed))]
        return "\n".join(lines)

    def _told(self, row: str, mode: str) -> str:
        if not self.tests[row]:
            return "missing"
        counts = self.outcomes.get((row, mode))
        if counts is None:
            return "-"
        if set(counts) == {"passed"}:
            return f"{counts['passed']} hold"
        return ", ".join(f"{count} {outcome}" for outcome, count in sorted(counts.items()))


def main(arguments: list[str]) -> int:
    """Run and print; returns the exit status."""
    results = Results()
    status = pytest.main([str(HERE), "-q", "--no-header", "-p", "no:cacheprovider", *arguments], plugins=[results])
    print()
    print(results.table())
    return int(status)


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
