"""A replica of a payment service with an inbox, as a program: ``inbox_process.py BROKER DATABASE SCHEMA [PAUSE]``.

Its handlers are naive. It writes a line for each call of one, and stops itself (SIGSTOP) at the point that ``PAUSE``
names, the first time that it comes there, after a line that says so.
"""

from __future__ import annotations

import asyncio
import os
import signal
import sys
import time
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).parents[2]))

from choreo.broker import open_broker
from choreo.inbox.transaction import Transaction
from choreo.step import Options, Service, StepRuntime
from choreo.step.publish import Publisher
from tests.conformance.bank import Bank
from tests.integration.inbox_contract import HURRIED


def say(what: str) -> None:
    print(what, flush=True)


class Pause:
    """Stops the process once."""

    def __init__(self, at: str) -> None:
        self._at = at

    def here(self, point: str) -> None:
        if point == self._at:
            self._at = ""
            say(f"paused {point}")
            os.kill(os.getpid(), signal.SIGSTOP)
            time.sleep(0.2)  # this thread may run on for a moment until the process stands still: not past this point


async def main(broker: str, database: str, schema: str, at: str = "") -> None:
    pause = Pause(at)
    begin, publish = Transaction.begin, Publisher.publish

    async def begin_or_pause(self: Transaction) -> None:
        pause.here("before the transaction")
        await begin(self)

    async def publish_or_pause(self: Publisher, *args: Any, **options: Any) -> Any:
        pause.here("before the answer")
        appended = await publish(self, *args, **options)
        pause.here("behind the answer")
        return appended

    Transaction.begin = begin_or_pause  # type: ignore[method-assign]
    Publisher.publish = publish_or_pause  # type: ignore[method-assign]
    bank = Bank(database, "connection", schema or None)
    bank.during = lambda _: (say("charge"), pause.here("in the transaction"))[-1]
    bank.during_undo = lambda _: say("refund")
    options = Options(commit_interval_s=3_600, commit_records=10**6) if at == "behind the answer" else Options()
    service: Service = bank.service(saga=HURRIED)
    runtime = StepRuntime(service, await open_broker(broker), options=options)
    say("up")
    await runtime.run()


if __name__ == "__main__":
    asyncio.run(main(*sys.argv[1:]))
