"""Real processes over a real Kafka, and everything that can happen to them: ``python -m tests.chaos --sagas 20000``."""

from __future__ import annotations

import argparse
import asyncio
import logging
import random
import sys
import tempfile
from pathlib import Path

import msgspec

from tests.chaos.report import markdown
from tests.chaos.run import Settings, run


def main() -> int:
    parser = argparse.ArgumentParser(prog="python -m tests.chaos", description=__doc__)
    parser.add_argument("--sagas", type=int, default=500, help="how many (%(default)s)")
    parser.add_argument("--seconds", type=float, default=60, help="over how long they are placed (%(default)s)")
    parser.add_argument("--kills", type=int, default=20, help="of services and saga-logs; others follow (%(default)s)")
    parser.add_argument("--nodes", type=int, choices=(1, 3), default=1, help="of the Kafka cluster (%(default)s)")
    parser.add_argument("--seed", type=int, default=random.SystemRandom().randrange(1, 2**32))
    parser.add_argument(
        "--end-seconds", type=float, default=300, help="for the rest, after the last fault (%(default)s)"
    )
    parser.add_argument("--report", type=Path, default=Path("build/chaos"), help="directory (%(default)s)")
    asked = parser.parse_args()
    settings = Settings(
        sagas=asked.sagas,
        over_s=asked.seconds,
        kills=asked.kills,
        nodes=asked.nodes,
        seed=asked.seed,
        end_s=asked.end_seconds,
    )
    command = (
        f"python -m tests.chaos --sagas {settings.sagas} --seconds {settings.over_s:g} --kills {settings.kills} "
        f"--nodes {settings.nodes} --seed {settings.seed}"
    )
    print(command, flush=True)
    logging.getLogger("aiokafka").setLevel(
        logging.CRITICAL
    )  # it says much about brokers that are down, as they have to be
    directory = Path(tempfile.mkdtemp(prefix="choreo-chaos-"))
    report = asyncio.run(run(settings, directory, lambda line: print(line, flush=True)))
    asked.report.mkdir(parents=True, exist_ok=True)
    name = asked.report / f"chaos-{settings.sagas}-{settings.nodes}-{settings.seed}"
    name.with_suffix(".json").write_bytes(msgspec.json.format(msgspec.json.encode(report)))
    text = markdown(report, command)
    name.with_suffix(".md").write_text(text)
    print(f"\n{text}\nlogs and databases: {directory}\nreport: {name}.json, {name}.md")
    return 1 if report.violations else 0


if __name__ == "__main__":
    sys.exit(main())
