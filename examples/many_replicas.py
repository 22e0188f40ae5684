"""Many replicas: three processes share one service's work; one is killed in the middle, and nothing is lost or doubled.

    python examples/many_replicas.py

Each replica is what ``choreo run many_replicas:thumbnails`` starts, on an embedded broker in a temporary directory.
They form a consumer group, as on Kafka: each gets some of the topic's partitions, so each saga is one replica's at a
time. When one dies, the others get its partitions, and do again what it had not finished, with the same idempotency
keys.
"""

from __future__ import annotations

import asyncio
import os
import sqlite3
import subprocess
import sys
import tempfile
import time
from collections import Counter
from contextlib import ExitStack, closing
from pathlib import Path

from choreo import Client, Context, Saga, Service, Step

PICTURE = Saga("picture", Step("make_thumbnail"), deadline="5m")
PICTURES = 60
REPLICAS = 3

thumbnails = Service("thumbnails")


@thumbnails.step(PICTURE, "make_thumbnail")
def make_thumbnail(picture: str, ctx: Context) -> int:
    """Make it, which takes a while; answer which replica did. The unique key makes a second time harmless."""
    time.sleep(0.2)
    with closing(sqlite3.connect("thumbnails.db", timeout=30)) as db, db:
        db.execute(
            "INSERT INTO thumbnails VALUES (?, ?, ?) ON CONFLICT DO NOTHING",
            (ctx.idempotency_key, picture, os.getpid()),
        )
        (replica,) = db.execute("SELECT replica FROM thumbnails WHERE key = ?", (ctx.idempotency_key,)).fetchone()
    return int(replica)


async def main() -> None:
    with ExitStack() as stack:
        directory = Path(stack.enter_context(tempfile.TemporaryDirectory()))
        with closing(sqlite3.connect(directory / "thumbnails.db")) as db:
            db.execute("CREATE TABLE thumbnails (key TEXT PRIMARY KEY, picture TEXT, replica INTEGER)")

        def start(*command: str) -> subprocess.Popen[bytes]:
            python_path = os.pathsep.join((str(Path(__file__).parent), os.environ.get("PYTHONPATH", "")))
            environment = {**os.environ, "CHOREO_BROKER": "sqlite:///log.db", "PYTHONPATH": python_path}
            arguments = [sys.executable, "-m", "choreo.cli", *command, "--log-level", "error"]
            process = subprocess.Popen(arguments, cwd=directory, env=environment)  # noqa: S603 -- our own words
            stack.callback(process.wait)
            stack.callback(process.terminate)
            return process

        replicas = [start("run", "many_replicas:thumbnails", "--concurrency", "1") for _ in range(REPLICAS)]
        start("saga-log", "many_replicas:PICTURE", "--store", "sqlite:///saga-log.db")
        names = {replica.pid: f"replica {number}" for number, replica in enumerate(replicas, 1)}
        print(f"{REPLICAS} replicas and a saga-log are starting")

        async with Client(f"sqlite:///{directory}/log.db") as client:
            ids = [await client.start(PICTURE, f"picture {n}", id=f"picture-{n}") for n in range(PICTURES)]
            print(f"{PICTURES} sagas started")
            await asyncio.to_thread(wait_for_one, directory, replicas[0].pid)
            replicas[0].kill()
            print(f"{names[replicas[0].pid]} killed, with {await asyncio.to_thread(made, directory)} thumbnails made")
            await asyncio.gather(*(client.wait(PICTURE, saga_id, timeout_s=120) for saga_id in ids))
        print(f"{PICTURES} sagas completed, {await asyncio.to_thread(made, directory)} thumbnails made")
        shares = Counter({names[pid]: await asyncio.to_thread(made_by, directory, pid) for pid in names})
        print(", ".join(f"{name}: {count}" for name, count in sorted(shares.items())))


def made(directory: Path) -> int:
    with closing(sqlite3.connect(directory / "thumbnails.db", timeout=30)) as db:
        (count,) = db.execute("SELECT count(*) FROM thumbnails").fetchone()
    return int(count)


def made_by(directory: Path, replica: int) -> int:
    with closing(sqlite3.connect(directory / "thumbnails.db", timeout=30)) as db:
        (count,) = db.execute("SELECT count(*) FROM thumbnails WHERE replica = ?", (replica,)).fetchone()
    return int(count)


def wait_for_one(directory: Path, replica: int) -> None:
    ends_at = time.monotonic() + 60
    while not made_by(directory, replica):
        if time.monotonic() > ends_at:
            raise TimeoutError("the first replica has made nothing in a minute")
        time.sleep(0.05)


if __name__ == "__main__":
    asyncio.run(main())
