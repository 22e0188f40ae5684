"""Hold the order services' databases against the log.

    python tests/e2e/audit.py --broker sqlite:///.choreo/broker.db --databases .choreo

Exit status 0 if every saga has exactly one outcome and every effect is standing (completed) or undone once
(compensated); 1 if not, with a line for each problem.
"""

from __future__ import annotations

import argparse
import asyncio
import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))

from choreo.broker import open_broker
from choreo.errors import ChoreoError
from services.demo.audit import Findings, audit, read_databases
from services.demo.log import read_histories


async def audit_at(broker_url: str, databases: Path) -> Findings:
    broker = await open_broker(broker_url)
    try:
        return audit(await read_histories(broker), read_databases(databases))
    finally:
        await broker.close()


def main(arguments: list[str]) -> int:
    parser = argparse.ArgumentParser(prog="audit.py", description="Hold the services' databases against the log.")
    parser.add_argument("--broker", required=True, help="kafka://host:9092 or sqlite:///file")
    parser.add_argument("--databases", type=Path, required=True, help="the directory with inventory.db and the others")
    options = parser.parse_args(arguments)
    try:
        findings = asyncio.run(audit_at(options.broker, options.databases))
    except ChoreoError as error:
        print(f"audit: {error}", file=sys.stderr)
        return 2
    print(findings)
    return 1 if findings.problems else 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
