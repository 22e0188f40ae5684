"""A producer, as a program: ``producer_process.py URL TOPIC NAME COUNT``.

Sends ``NAME-0`` to ``NAME-(COUNT-1)`` from several tasks and writes a JSON line for each acknowledgement:
``[partition, offset, value]``.
"""

from __future__ import annotations

import asyncio
import json
import sys
from collections.abc import Iterator
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parents[2]))

from choreo.broker import Producer, open_broker

TASKS = 8


async def main(url: str, topic: str, name: str, count: str) -> None:
    broker = await open_broker(url)
    producer = await broker.producer()
    numbers = iter(range(int(count)))
    async with asyncio.TaskGroup() as tasks:
        for _ in range(TASKS):
            tasks.create_task(send_next(producer, topic, name, numbers))
    await broker.close()


async def send_next(producer: Producer, topic: str, name: str, numbers: Iterator[int]) -> None:
    for number in numbers:
        value = f"{name}-{number}"
        appended = await producer.send(topic, key=value, value=value.encode())
        print(json.dumps([appended.partition, appended.offset, value]), flush=True)


if __name__ == "__main__":
    asyncio.run(main(*sys.argv[1:]))
