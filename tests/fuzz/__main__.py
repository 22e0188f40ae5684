"""Malformed records among sagas that run: ``python -m tests.fuzz --records 100000 --sagas 10000``."""

from __future__ import annotations

import argparse
import asyncio
import logging
import random
import sys
import tempfile
from pathlib import Path

import msgspec

from deploy.kafka.local_kafka import LocalKafka
from tests.fuzz.run import Report, Settings, run


def main() -> int:
    parser = argparse.ArgumentParser(prog="python -m tests.fuzz", description=__doc__)
    parser.add_argument("--records", type=int, default=10_000, help="malformed ones (%(default)s)")
    parser.add_argument("--sagas", type=int, help="that run among them (a tenth)")
    parser.add_argument("--seed", type=int, default=random.SystemRandom().randrange(1, 2**32))
    parser.add_argument("--broker", help="URL, or kafka for one of our own (default: the embedded one)")
    parser.add_argument("--report", type=Path, default=Path("build/fuzz.json"), help="(%(default)s)")
    asked = parser.parse_args()
    settings = Settings(records=asked.records, sagas=asked.sagas or max(1, asked.records // 10), seed=asked.seed)
    print(f"seed {settings.seed}", flush=True)
    logging.getLogger().addHandler(logging.NullHandler())  # a line for each bad record is right, and here too much
    with tempfile.TemporaryDirectory(prefix="choreo-fuzz-") as directory:
        if asked.broker == "kafka":
            with LocalKafka() as kafka:
                report = asyncio.run(run(settings, kafka.url, Path(directory), _say))
        else:
            url = asked.broker or f"sqlite:///{directory}/log.db"
            report = asyncio.run(run(settings, url, Path(directory), _say))
    asked.report.parent.mkdir(parents=True, exist_ok=True)
    asked.report.write_bytes(msgspec.json.format(msgspec.json.encode(report)))
    print(told(report))
    return 1 if report.faults else 0


def told(report: Report) -> str:
    """The figures, and each fault on a line."""
    malformed, sagas, seed = sum(report.records.values()), report.settings.sagas, report.settings.seed
    lines = [
        f"{malformed} malformed records of {len(report.records)} kinds and {sagas} sagas, seed {seed}",
        f"over {report.broker} in {report.took_s:.0f} s; {report.log_records} records in the log",
        f"fates {report.fates}; {report.dead_letters} dead letters, {report.sagas_parked} sagas parked",
        f"valid sagas: {report.outcomes}",
        f"memory {report.rss_mib_before:.0f} MiB at the start, {report.rss_mib_peak:.0f} MiB at the most",
        f"{len(report.faults)} faults",
        *(f"FAULT {each}" for each in report.faults[:30]),
    ]
    return "\n".join(lines)


def _say(line: str) -> None:
    print(line, flush=True)


if __name__ == "__main__":
    sys.exit(main())
