"""``choreo start``: one saga, or one for each line of a file."""

from __future__ import annotations

import asyncio
import sys
import time
from collections import Counter
from collections.abc import AsyncIterator
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import msgspec
from cyclopts import Parameter

from choreo.cli.exits import Exit, complain
from choreo.cli.options import AsJson, BrokerUrl, SagaSpec, broker_url, write_json
from choreo.cli.values import moment, parse
from choreo.errors import ChoreoError, ConfigurationError, SagaFailed

if TYPE_CHECKING:
    from choreo.client import Client
    from choreo.client.schedule import StartTime
    from choreo.contract import Saga

IN_FLIGHT_MAX = 500


class Started(msgspec.Struct, omit_defaults=True):
    """A line of output: what became of one start.

    Attributes:
        outcome: ``started`` without ``--wait``; else ``completed``, ``compensated``, or the error's name.
    """

    saga_id: str
    outcome: str
    result: Any = None
    error: str = ""


def start(
    saga: SagaSpec,
    input: Annotated[str | None, Parameter(help="The saga's input as JSON.")] = None,  # noqa: A002 - the user's word
    *,
    file: Annotated[
        str | None, Parameter(name=["--file", "-f"], help="A JSON-lines file, an input a line; - for standard input.")
    ] = None,
    id: Annotated[str | None, Parameter(help="The saga's id; the same id and input again is the same saga.")] = None,  # noqa: A002
    id_field: Annotated[
        str | None, Parameter(help="With --file: the field of the input that is the saga's id.")
    ] = None,
    at: Annotated[
        str | None,
        Parameter(help="Begin then: 2026-05-01T08:00, of this machine's time zone if none is named; --in is a delay."),
    ] = None,
    in_: Annotated[
        str | None, Parameter(name="--in", help="Begin that long after the log has the start: 90s, 1h30m.")
    ] = None,
    wait: Annotated[bool, Parameter(negative="", help="Wait for the outcome; exit code 1 if a saga failed.")] = False,
    timeout: Annotated[float, Parameter(help="With --wait: seconds to wait for each saga.")] = 300.0,
    broker: BrokerUrl = None,
    as_json: AsJson = False,
) -> int:
    """Start a saga and print its id, or start one for each line of a file.

    Example: choreo start services.order:ORDER '{"item": "kite", "quantity": 1}' --wait
    Example: choreo start order --file orders.jsonl --id-field order_id --wait --json
    Example: choreo start order '{"item": "kite"}' --in 2h
    """
    from choreo.broker import open_broker
    from choreo.cli.names import find_saga
    from choreo.cli.process import run_async
    from choreo.client import Client
    from choreo.client.schedule import schedule_of

    if (input is None) == (file is None):
        raise ConfigurationError("give either an input, or --file with an input on each line")
    if id_field is not None and file is None:
        raise ConfigurationError("--id-field goes with --file; use --id for a single saga")
    if at is not None and in_ is not None:
        raise ConfigurationError("give either --at or --in")
    if wait and (at is not None or in_ is not None):
        raise ConfigurationError("--wait does not go with --at and --in; ask choreo status when the time has come")
    begin = in_ if at is None else moment(at)
    schedule_of(begin)  # a wrong one is said before the broker is asked
    url = broker_url(broker)

    async def work() -> int:
        opened = await open_broker(url)
        try:
            contract = await find_saga(opened, saga)
            async with Client(opened, source="cli") as client:
                task = Starter(client, contract, at=begin, wait=wait, timeout_s=timeout, as_json=as_json)
                if input is not None:
                    return await task.one(parse(input, "the input"), id)
                assert file is not None, "one of the two was given"
                return await task.many(_lines(file), id_field, total=_count(file))
        finally:
            await opened.close()

    return run_async(work)


class Starter:
    """Starts sagas, many side by side, and says what became of each."""

    def __init__(
        self, client: Client, saga: Saga, *, at: StartTime | None, wait: bool, timeout_s: float, as_json: bool
    ) -> None:
        self._client = client
        self._saga = saga
        self._at = at
        self._wait = wait
        self._timeout_s = timeout_s
        self._as_json = as_json
        self._counts: Counter[str] = Counter()

    async def one(self, user_input: object, saga_id: str | None) -> int:
        """Start one saga. Errors are raised; a failed saga is printed, exit code 1."""
        if not self._wait:
            self._say(Started(await self._client.start(self._saga, user_input, id=saga_id, at=self._at), "started"))
            return Exit.DONE
        try:
            outcome = await self._client.run(self._saga, user_input, id=saga_id, timeout_s=self._timeout_s)
        except SagaFailed as error:
            self._say(Started(error.saga_id, "compensated", error=str(error)))
            return Exit.NO
        self._say(Started(outcome.saga_id, "completed", result=msgspec.json.decode(outcome.result)))
        return Exit.DONE

    async def many(self, lines: AsyncIterator[str], id_field: str | None, *, total: int | None) -> int:
        """Start a saga for each line. A line that cannot be used is said at once; the others go on."""
        from rich.console import Console
        from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

        began = time.monotonic()
        console = Console(stderr=True)
        limit = asyncio.Semaphore(IN_FLIGHT_MAX)
        columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeRemainingColumn())
        with Progress(*columns, console=console, disable=not console.is_terminal, transient=True) as progress:
            bar = progress.add_task("sagas", total=total)

            async def go(number: int, user_input: object, saga_id: str | None) -> None:
                try:
                    await self._one_of_many(number, user_input, saga_id)
                finally:
                    limit.release()
                    progress.advance(bar)

            async with asyncio.TaskGroup() as tasks:
                number = 0
                async for line in lines:
                    number += 1
                    if not line.strip():
                        continue
                    try:
                        user_input = parse(line, f"line {number}")
                        saga_id = None if id_field is None else _id_in(user_input, id_field, number)
                    except ConfigurationError as error:
                        self._counts["unusable lines"] += 1
                        complain(error)
                        progress.advance(bar)
                        continue
                    await limit.acquire()
                    tasks.create_task(go(number, user_input, saga_id), name=f"start/{number}")
        seconds = time.monotonic() - began
        done = sum(self._counts.values())
        parts = ", ".join(f"{count} {what}" for what, count in sorted(self._counts.items())) or "no lines"
        print(f"{parts} in {seconds:.1f} s ({done / max(seconds, 1e-3):.0f} a second)", file=sys.stderr)  # noqa: T201
        good = {"started", "completed"}
        return Exit.DONE if set(self._counts) <= good else Exit.NO

    async def _one_of_many(self, number: int, user_input: object, saga_id: str | None) -> None:
        try:
            if self._wait:
                outcome = await self._client.run(self._saga, user_input, id=saga_id, timeout_s=self._timeout_s)
                line = Started(outcome.saga_id, "completed", result=msgspec.json.decode(outcome.result))
            else:
                started_id = await self._client.start(self._saga, user_input, id=saga_id, at=self._at)
                line = Started(started_id, "started")
        except SagaFailed as error:
            line = Started(error.saga_id, "compensated", error=str(error))
        except ChoreoError as error:
            complain(f"line {number}: {error}")
            line = Started(getattr(error, "saga_id", saga_id or ""), type(error).__name__, error=str(error))
        self._counts[line.outcome] += 1
        self._say(line)

    def _say(self, line: Started) -> None:
        if self._as_json:
            write_json(line)
            return
        if not self._wait:
            text = line.saga_id
        elif line.error:
            text = f"{line.saga_id} {line.outcome}: {line.error}"
        else:
            text = f"{line.saga_id} {line.outcome} {msgspec.json.encode(line.result).decode()}"
        print(text)  # noqa: T201 - the command's output


def _id_in(user_input: object, field: str, number: int) -> str:
    found = user_input.get(field) if isinstance(user_input, dict) else None
    if not isinstance(found, (str, int)):
        raise ConfigurationError(f"line {number} has no field {field!r} to take the saga's id from")
    return str(found)


async def _lines(file: str) -> AsyncIterator[str]:
    """The lines of a file, read in a thread: a slow pipe must not hold up the sagas that run."""
    try:
        opened = sys.stdin if file == "-" else await asyncio.to_thread(Path(file).open, encoding="utf-8")
    except OSError as error:
        raise ConfigurationError(f"cannot read {file!r}: {error.strerror}") from error
    try:
        while line := await asyncio.to_thread(opened.readline):
            yield line
    except UnicodeDecodeError as error:
        raise ConfigurationError(f"{file!r} is not UTF-8 text: {error.reason} at byte {error.start}") from error
    finally:
        if opened is not sys.stdin:
            opened.close()


def _count(file: str) -> int | None:
    """How many lines there are, for the progress bar; unknown for a pipe."""
    if file == "-" or not Path(file).is_file():
        return None
    with Path(file).open("rb") as opened:
        return sum(1 for line in opened if line.strip())
