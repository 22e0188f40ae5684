"""A member of a group, as a program: ``member_process.py URL GROUP TOPIC``.

Writes a JSON line for each change of its assignment and for each batch, commits after each batch, and stops when its
standard input is closed or it is killed.
"""

from __future__ import annotations

import asyncio
import contextlib
import json
import sys
from collections.abc import Collection
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parents[2]))

from choreo.broker import Committed, TopicPartition, open_broker
from choreo.errors import CommitRefused


async def main(url: str, group: str, topic: str) -> None:
    broker = await open_broker(url)
    stopping = asyncio.Event()
    asyncio.get_running_loop().add_reader(sys.stdin.fileno(), stopping.set)
    mine: set[TopicPartition] = set()

    def tell() -> None:
        print(json.dumps({"assignment": sorted(mine)}), flush=True)

    async def on_assigned(tps: Collection[TopicPartition]) -> None:
        mine.update(tps)
        tell()

    async def on_revoked(tps: Collection[TopicPartition]) -> None:
        mine.difference_update(tps)
        tell()

    consumer = await broker.consumer(group, [topic], on_assigned=on_assigned, on_revoked=on_revoked)
    while not stopping.is_set():
        messages = await consumer.poll(timeout_s=0.2)
        if messages:
            received = [message.value.decode() for message in messages]
            print(json.dumps({"assignment": sorted(mine), "received": received}), flush=True)
            with contextlib.suppress(CommitRefused):
                await consumer.commit({message.tp: Committed(message.offset + 1) for message in messages})
    await broker.close()


if __name__ == "__main__":
    asyncio.run(main(*sys.argv[1:]))
