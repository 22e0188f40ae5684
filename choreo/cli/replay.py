"""``choreo replay``: the log folded again, from its start."""

from __future__ import annotations

import sys
from collections import Counter
from datetime import UTC, datetime
from typing import TYPE_CHECKING, Annotated, Any

import msgspec
from cyclopts import Parameter

from choreo.cli.exits import Exit, complain
from choreo.cli.options import AsJson, BrokerUrl, SagaSpec, broker_url, write_json
from choreo.core.state import Phase

if TYPE_CHECKING:
    from choreo.broker import Broker
    from choreo.contract import Saga
    from choreo.core import SagaState
    from choreo.core.status import SagaStatus
    from choreo.saga_log.replay import Line, Replay


class Outcome(msgspec.Struct, frozen=True):
    """A saga in the list of all: times are milliseconds since the Unix epoch by the broker's clock, 0 for not yet."""

    saga_id: str
    version: int
    phase: str
    started_ms: int
    finished_ms: int
    step: str | None
    code: str
    compensated: list[str]


class Event(msgspec.Struct, frozen=True):
    """A record in a saga's history, with what it brought about."""

    offset: int
    at_ms: int
    record: Any
    note: str | None
    decided: list[str]


def replay(
    saga: SagaSpec,
    /,  # by position alone: --saga is the saga's id
    *,
    saga_id: Annotated[
        str | None, Parameter(name=["--saga", "-s"], help="Only this saga: its history and its state.")
    ] = None,
    broker: BrokerUrl = None,
    as_json: AsJson = False,
) -> int:
    """Fold a saga topic from its start and print all sagas' outcomes, or one saga's history and state.

    Sagas are printed as they settle, the unfinished ones last. Of a saga that got a record after it had settled there
    are two lines, and the later one counts. Exit code 1 if anything in the topic could not be folded.

    Example: choreo replay order --broker sqlite:///choreo.db --json
    Example: choreo replay order --saga 0199a8c3
    """
    from choreo.broker import open_broker
    from choreo.cli.names import find_saga
    from choreo.cli.process import run_async

    url = broker_url(broker)

    async def work() -> int:
        opened = await open_broker(url)
        try:
            contract = await find_saga(opened, saga)
            if saga_id is not None:
                return await _one(opened, contract, saga_id, as_json=as_json)
            return await _all(opened, contract, as_json=as_json)
        finally:
            await opened.close()

    return run_async(work)


async def _one(broker: Broker, contract: Saga, saga_id: str, *, as_json: bool) -> int:
    from choreo.broker.registry import Registry
    from choreo.cli.status import print_status
    from choreo.core.status import status_of
    from choreo.errors import SagaNotFound
    from choreo.saga_log.replay import replay as fold_log

    registry = Registry(broker)
    folded = fold_log(broker, contract.name, registry=registry, saga_id=saga_id)
    found = [one async for one in folded]
    if not found:
        raise SagaNotFound(saga_id, f"no saga {saga_id!r} in the log of {contract.name!r} at {broker.url}")
    state, history = found[-1]
    status = status_of(registry.get(contract.name, state.version) or contract, state)
    if as_json:
        write_json({"status": status, "history": [_event(line) for line in history]})
    else:
        _print_history(status, history)
        print_status(status)
    return _complain_of(folded)


async def _all(broker: Broker, contract: Saga, *, as_json: bool) -> int:
    from choreo.broker.registry import Registry
    from choreo.cli.bar import progress_bar
    from choreo.saga_log.replay import replay as fold_log

    counts: Counter[str] = Counter()
    with progress_bar("folding") as move:
        folded = fold_log(broker, contract.name, registry=Registry(broker), on_progress=move)
        async for state, _ in folded:
            if state.saga_id in folded.repeated and state.outcome is not None:
                counts[state.outcome.kind] -= 1  # it was counted when it settled; the later line counts
            outcome = _outcome(state)
            counts[outcome.phase] += 1
            if as_json:
                write_json(outcome)
            else:
                why = f"  {outcome.step} {outcome.code}".rstrip() if outcome.step else ""
                print(f"{outcome.saga_id}  {outcome.phase:<12}{why}")  # noqa: T201 - the command's output
    summary = ", ".join(f"{counts[phase]} {phase.value}" for phase in Phase if counts[phase]) or "no sagas"
    print(f"{summary}; {folded.records_read} records folded", file=sys.stderr)  # noqa: T201
    return _complain_of(folded)


def _outcome(state: SagaState) -> Outcome:
    failed = state.first_failure()
    return Outcome(
        saga_id=state.saga_id,
        version=state.version,
        phase=state.phase.value,
        started_ms=state.started_ms,
        finished_ms=state.finished_ms,
        step=failed[0] if failed else None,
        code=(failed[1].code or failed[1].kind) if failed else "",
        compensated=[one.step for one in state.undone],
    )


def _event(line: Line) -> Event:
    entry = line.entry
    return Event(
        offset=entry.offset,
        at_ms=entry.at_ms,
        record=_plain(entry.record, entry.content_type),
        note=line.note,
        decided=[f"{one.kind} {one.step}".rstrip() for one in line.owed],
    )


def _plain(record: Any, content_type: str) -> Any:
    """The record as plain values; what is written in MessagePack is decoded for the JSON output."""
    from choreo.messages.codec import encode
    from choreo.messages.headers import JSON

    encoded = encode(record, content_type=content_type)
    return msgspec.json.decode(encoded) if content_type == JSON else msgspec.msgpack.decode(encoded)


def _print_history(status: SagaStatus, history: tuple[Line, ...]) -> None:
    from rich.console import Console
    from rich.table import Table
    from rich.text import Text

    console = Console(highlight=False)
    started = datetime.fromtimestamp(status.started_ms / 1_000, UTC)
    console.print(Text(f"history of {status.saga_id}, started {started:%Y-%m-%d %H:%M:%S} UTC by the broker's clock"))
    table = Table(box=None, pad_edge=False)
    for heading in ("offset", "after", "record", "step", "about", "so it is decided"):
        table.add_column(heading, overflow="fold")
    for line in history:
        record = line.entry.record
        saga_round = getattr(record, "round", 1)
        again = f" (round {saga_round})" if saga_round > 1 else ""
        table.add_row(
            str(line.entry.offset),
            f"{line.entry.at_ms - status.started_ms:+,} ms",
            type(record).__name__,
            f"{getattr(record, 'step', None) or ''}{again}",
            Text(_about(record, line.note)),
            ", ".join(f"{one.kind} {one.step}".rstrip() for one in line.owed),
        )
    console.print(table)
    console.print()


def _about(record: Any, note: str | None) -> str:
    parts = []
    failure = getattr(record, "failure", None)
    if failure is not None:
        parts.append(f"{failure.kind} {failure.code} {failure.message}".replace("  ", " ").strip())
    if getattr(record, "attempts", 1) > 1:
        parts.append(f"{record.attempts} attempts")
    if hasattr(record, "undone"):
        parts.append("undone" if record.undone else "nothing to undo")
    if condition := getattr(record, "condition", ""):
        parts.append(f"not so: {condition}")
    if reason := getattr(record, "reason", ""):
        parts.append(reason)
    if note is not None:
        parts.append(f"[{note}]")
    return ", ".join(parts)


def _complain_of(folded: Replay) -> int:
    from choreo.saga_log.intake import Refused

    for problem in folded.problems[:20]:
        why = problem.why.message if isinstance(problem.why, Refused) else str(problem.why)
        complain(f"{problem.tp} offset {problem.offset}: {why}")
    if folded.problems_total > 20:
        complain(f"… and {folded.problems_total - 20} more records that could not be folded")
    return Exit.NO if folded.problems_total else Exit.DONE
