"""Results as JSON lines: what was measured, and its ratio to the wire limit of the same run."""

from __future__ import annotations

import json
from collections.abc import Mapping

from benchmarks.load import Measured

WARMUP_S = 3.0

Used = tuple[float, float]
"""CPU seconds so far, and resident MiB now."""


def say(result: Mapping[str, object]) -> None:
    """One JSON line."""
    print(json.dumps(result), flush=True)


def result_of(name: str, measured: Measured, usage: Mapping[str, tuple[Used, Used]]) -> dict[str, object]:
    """A measurement's line. ``usage`` has for each process what it had used before and after.

    CPU time is microseconds for each operation; the warm-up's part is taken off by its share of the time.
    """
    operations = max(1, len(measured.latencies_ms))
    share = measured.seconds / (measured.seconds + WARMUP_S)
    return {
        "benchmark": name,
        "in_flight": measured.in_flight,
        "seconds": measured.seconds,
        "per_second": round(measured.per_second, 1),
        "p50_ms": round(measured.percentile_ms(0.50), 2),
        "p99_ms": round(measured.percentile_ms(0.99), 2),
        "cpu_us_each": {
            process: round((after[0] - before[0]) * share / operations * 1e6, 1)
            for process, (before, after) in usage.items()
        },
        "rss_mib": {process: round(after[1], 1) for process, (_, after) in usage.items()},
    }


def ratio_of(choreo: Measured, wire: Measured) -> dict[str, object]:
    """A measurement's line as ratios of the wire limit's, of the same run."""
    return {
        "benchmark": "ratio to the wire limit",
        "in_flight": choreo.in_flight,
        "throughput": round(choreo.per_second / wire.per_second, 3),
        "p50": round(choreo.percentile_ms(0.50) / wire.percentile_ms(0.50), 2),
        "p99": round(choreo.percentile_ms(0.99) / wire.percentile_ms(0.99), 2),
    }
