"""``make bench``: choreo beside the wire limit, over a real Kafka and embedded; its growth, memory and replay.

A JSON line a result, on standard output and in a file; tables and plots from that file.

    python -m benchmarks                      all of it: about half an hour; a local Kafka is started for the run
    python -m benchmarks --quick              the main figures: a few minutes
    python -m benchmarks --broker kafka://…   another broker
    python -m benchmarks --only growth        a part: kafka, one-process, growth (several may be given)
    python -m benchmarks --only kafka --scenario inbox   those of its scenarios that have this in their name
    python -m benchmarks --docs               write tables and plots into docs/performance.md, docs/scale.md after them
    python -m benchmarks --replayed 10000000  only replay so many records, with a progress bar: minutes
    python -m benchmarks --render FILE        only write tables and plots, from the results of an earlier run
"""

from __future__ import annotations

import argparse
import logging
import os
import platform
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from contextlib import ExitStack
from pathlib import Path

from benchmarks import scale
from benchmarks.over_kafka import measure_over_kafka
from benchmarks.render import DOCS, render
from benchmarks.report import Report
from choreo.cli.process import run_async

PARTS = ("kafka", "one-process", "growth")
RESULTS = Path(".choreo") / "bench"

FINISHED = (2_000, 10_000, 100_000, 1_000_000)
UNFINISHED = (10_000, 100_000, 1_000_000)
PARTITIONS = (1, 2, 4, 8, 12)
REPLAYED = 20_000
SERVED, QUICK_SERVED = 4_000, 800
QUICK_FINISHED, QUICK_UNFINISHED, QUICK_PARTITIONS, QUICK_REPLAYED = (2_000, 20_000), (10_000,), (4,), 4_000


def main() -> int:
    """Run the benchmark. 1 if a part of it failed."""
    parser = argparse.ArgumentParser(
        prog="benchmarks", description=__doc__, formatter_class=argparse.RawTextHelpFormatter
    )
    parser.add_argument("--broker", help="kafka://host:port; a local Kafka is started if left out")
    parser.add_argument("--seconds", type=float, help="length of each measurement; 10, or 5 with --quick")
    parser.add_argument("--quick", action="store_true", help="the main figures only")
    parser.add_argument("--only", action="append", choices=PARTS, help="a part of it")
    parser.add_argument("--scenario", default="", help="over Kafka, only scenarios with this in their name")
    parser.add_argument("--out", type=Path, default=RESULTS, help=f"directory for what it finds; {RESULTS} by default")
    parser.add_argument("--docs", action="store_true", help="write tables and plots into docs/performance.md, too")
    parser.add_argument("--render", type=Path, metavar="FILE", help="the results of an earlier run")
    parser.add_argument(
        "--replayed", type=int, metavar="N", help="only replay so many records, made up as they are read"
    )
    options = parser.parse_args()
    if options.render is not None:
        print(show(options.render, options))
        return 0
    logging.getLogger("aiokafka").setLevel(logging.CRITICAL)  # it speaks of every new topic that has no leader yet
    report = Report(options.out / "results.jsonl", quick=options.quick)
    if options.replayed is not None:
        run_beside("benchmarks.long_log", report.path, options.replayed)
        return 0
    seconds = options.seconds or (5.0 if options.quick else 10.0)
    parts = options.only or PARTS
    report.say(machine())
    with ExitStack() as stack:
        work = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="choreo-bench-")))
        if "growth" in parts:  # first, while no broker takes its share of the machine
            for command in growth_commands(quick=options.quick):
                with report.section(f"growth: {' '.join(command)}"):
                    what, *numbers = command
                    run_beside("benchmarks.growth", what, report.path, work, *numbers)
            with report.section("a service by itself"):
                run_beside("benchmarks.service", report.path, QUICK_SERVED if options.quick else SERVED)
        if "one-process" in parts:
            with report.section("embedded"):
                embedded = f"sqlite:///{work}/embedded.db"
                quick = "quick" if options.quick else "full"
                run_beside("benchmarks.one_process", embedded, work, report.path, seconds, quick)
        if "kafka" in parts:
            url, pid = options.broker, 0
            with report.section("Kafka"):
                if url is None:
                    from deploy.kafka.local_kafka import LocalKafka

                    kafka = stack.enter_context(LocalKafka())
                    url, pid = kafka.url, kafka.pid or 0
                run_async(lambda: measure_over_kafka(report, url, pid, seconds, work, scenario=options.scenario))
                if not options.quick and not options.scenario:
                    run_beside("benchmarks.one_process", url, work, report.path, seconds, "full")
    print(show(report.path, options), file=sys.stderr)
    report.progress(f"done; failed: {', '.join(report.failed) or 'nothing'}")
    return bool(report.failed)


def show(results: Path, options: argparse.Namespace) -> str:
    """Write tables and plots where they are wanted, and what follows from them."""
    text = render(results, DOCS if options.docs else options.out)
    return f"{text}\n\n{scale.follow(results)}" if options.docs else text


def machine() -> dict[str, object]:
    """What the figures were taken on."""
    return {
        "benchmark": "machine",
        "python": platform.python_version(),
        "system": platform.platform(terse=True),
        "cores": os.cpu_count(),
    }


def growth_commands(*, quick: bool) -> Iterator[tuple[str, ...]]:
    """The arguments of ``benchmarks.growth``: a process for each, so that none measures what another has left."""
    yield ("replay", str(QUICK_REPLAYED if quick else REPLAYED))
    yield ("finished", *map(str, QUICK_FINISHED if quick else FINISHED))
    for number in QUICK_UNFINISHED if quick else UNFINISHED:
        yield ("unfinished", str(number))
    for number in QUICK_PARTITIONS if quick else PARTITIONS:
        yield ("partitions", str(number))


def run_beside(module: str, *arguments: object) -> None:
    """Run a module in a process of its own. It writes its results into the file itself."""
    subprocess.run([sys.executable, "-m", module, *map(str, arguments)], check=True)


if __name__ == "__main__":
    sys.exit(main())
