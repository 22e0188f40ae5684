"""Results as JSON lines, in a file and on standard output; progress on standard error."""

from __future__ import annotations

import json
import sys
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from benchmarks.load import Measured
from benchmarks.processes import Usage

Result = dict[str, Any]


class Report:
    """Where results go.

    Attributes:
        failed: sections that ended with an error.
    """

    def __init__(self, path: Path, *, quick: bool, fresh: bool = True) -> None:
        path.parent.mkdir(parents=True, exist_ok=True)
        self.path = path
        self.quick = quick
        self.failed: list[str] = []
        self._began = time.monotonic()
        if fresh:
            path.write_text("")

    def say(self, result: Mapping[str, object]) -> None:
        """One JSON line."""
        line = json.dumps(result)
        with self.path.open("a") as out:
            out.write(line + "\n")
        print(line, flush=True)

    def progress(self, text: str) -> None:
        """A line for who waits."""
        seconds = int(time.monotonic() - self._began)
        print(f"[{seconds // 60:02d}:{seconds % 60:02d}] {text}", file=sys.stderr, flush=True)

    @contextmanager
    def section(self, name: str) -> Iterator[None]:
        """What fails in here is said, and the sections after it still run."""
        self.progress(name)
        try:
            yield
        except Exception as error:  # noqa: BLE001 -- one part of a long run must not cost the others
            self.failed.append(name)
            self.say({"section": name, "error": f"{type(error).__name__}: {error}"})
            self.progress(f"{name} FAILED: {error}")


def read(path: Path) -> list[Result]:
    """The results in a file."""
    return [json.loads(line) for line in path.read_text().splitlines() if line.startswith("{")]


def result_of(
    name: str, layout: str, measured: Measured, before: Mapping[str, Usage], after: Mapping[str, Usage]
) -> Result:
    """A measurement's line; CPU time is in microseconds for each operation, by process."""
    operations = max(1, len(measured.latencies_ms))
    return {
        "benchmark": name,
        "layout": layout,
        "load": str(measured.load),
        "seconds": measured.seconds,
        "operations": len(measured.latencies_ms),
        "per_second": round(measured.per_second, 1),
        "p50_ms": round(measured.percentile_ms(0.50), 2) if measured.latencies_ms else None,
        "p99_ms": round(measured.percentile_ms(0.99), 2) if measured.latencies_ms else None,
        "cpu_us_each": {
            process: round((used.cpu_s - before[process].cpu_s) / operations * 1e6) for process, used in after.items()
        },
        "rss_mib": {process: round(used.rss_mib, 1) for process, used in after.items()},
    }


def ratio_of(choreo: Measured, wire: Measured) -> Result:
    """Of a measurement to the wire limit's under the same load, taken just before it."""
    if not choreo.latencies_ms or not wire.latencies_ms:
        return {"throughput": None, "p50": None, "p99": None, "cpu": None}
    return {
        "throughput": round(choreo.per_second / wire.per_second, 3),
        "p50": round(choreo.percentile_ms(0.50) / wire.percentile_ms(0.50), 2),
        "p99": round(choreo.percentile_ms(0.99) / wire.percentile_ms(0.99), 2),
        "cpu": round(choreo.cpu_us / wire.cpu_us, 2) if wire.cpu_us else None,
    }
