"""``choreo demo``: the order saga at work in one terminal, in under half a minute.

``scenes`` is what is shown, in order; ``stage`` has the processes, the broker and the follower of the log; ``screen``
writes to the terminal. ``log`` reads the topic and ``audit`` holds the databases against it: the end-to-end tests use
both as well.
"""

from __future__ import annotations

import asyncio
import os
import shutil
import time
from contextlib import ExitStack, suppress
from pathlib import Path

from choreo.errors import ConfigurationError
from deploy.kafka.local_kafka import LocalKafka, LocalKafkaError
from deploy.run_procfile import (
    ROOT,
    Processes,
    ended_by_signals,
    free_ports,
    order_environment,
    read_procfile,
)
from services.demo.scenes import play
from services.demo.screen import Screen

DIRECTORY = ROOT / ".demo"

__all__ = ["main"]


def main(broker: str | None = None, *, keep: bool = False, directory: Path = DIRECTORY) -> int:
    """Run the demo; 0 if everything ended as it should.

    Args:
        broker: ``None`` for the embedded one, ``kafka`` for a local Kafka of the demo's own, or a broker's URL.
        keep: leave everything running until Ctrl-C.
        directory: for databases and logs; what is in it is deleted.
    """
    screen = Screen()
    _make_fresh(directory)
    commands = read_procfile()
    ports = dict(zip(commands, free_ports(len(commands)), strict=True))
    with ended_by_signals(), ExitStack() as stack:
        url = broker
        if broker == "kafka":
            screen.note("starting a Kafka of the demo's own (JVM; the first time its jars are fetched)")
            try:
                url = stack.enter_context(LocalKafka()).url
            except LocalKafkaError as error:
                raise ConfigurationError(str(error)) from error
        environment = order_environment(directory, url)
        processes = stack.enter_context(Processes(commands, environment, ports=ports, logs=directory / "logs"))
        status = asyncio.run(play(processes, environment["CHOREO_BROKER"], directory, screen, keep=keep))
        if keep and status == 0:
            screen.scene("Everything keeps running; Ctrl-C ends it.")
            with suppress(KeyboardInterrupt):
                while True:
                    processes.check()
                    time.sleep(0.2)
        return status


def _make_fresh(directory: Path) -> None:
    """An empty directory, unless another demo is still at work in it."""
    holder = directory / "pid"
    if holder.exists():
        with suppress(ProcessLookupError, ValueError):
            pid = int(holder.read_text())
            os.kill(pid, 0)
            raise ConfigurationError(f"another demo is running in {directory} (process {pid}); end it first")
    shutil.rmtree(directory, ignore_errors=True)
    directory.mkdir(parents=True)
    holder.write_text(str(os.getpid()))
