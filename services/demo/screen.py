"""What the demo writes to the terminal: plain where that is no terminal, without colours under NO_COLOR."""

from __future__ import annotations

from collections.abc import Sequence

import msgspec
from rich.console import Console
from rich.table import Table
from rich.text import Text

from choreo.messages.records import (
    AnyRecord,
    Compensate,
    CompensationFailed,
    Execute,
    SagaCompensated,
    SagaCompleted,
    SagaStarted,
    SagaStuck,
    StepCompensated,
    StepCompleted,
    StepFailed,
)
from services.demo.log import Line
from services.order import ORDER

WIDTH_PLAIN = 120  # what is read later, in a file or a build's log, should not be folded at 80


class Screen:
    """Scenes, lines of the log, tables."""

    def __init__(self, console: Console | None = None) -> None:
        found = console or Console(highlight=False)
        self.console = found if found.is_terminal else Console(highlight=False, width=WIDTH_PLAIN, file=found.file)

    def scene(self, title: str, about: str = "") -> None:
        self.console.print()
        self.console.print(Text(title, "bold cyan"))
        if about:
            self.console.print(Text(about, "dim"))

    def note(self, text: str, style: str = "") -> None:
        self.console.print(Text(f"  {text}", style))

    def failure(self, text: str) -> None:
        self.console.print(Text(f"FAILED: {text}", "bold red"))

    def table(self, headings: tuple[str, ...], rows: Sequence[tuple[str, ...]]) -> None:
        table = Table(box=None, pad_edge=True, header_style="bold")
        for heading in headings:
            table.add_column(heading, justify="right" if heading == "ms" else "left", no_wrap=True)
        for row in rows:
            table.add_row(*map(Text, row))
        self.console.print(table)

    def line(self, line: Line, started_ms: int) -> None:
        """One record of the log, as it comes: when, who, what."""
        what, style = described(line.record)
        text = Text(f"  {line.at_ms - started_ms:>+6} ms  {line.source:<13} {what}", style)
        self.console.print(text, no_wrap=True, overflow="ellipsis")


def described(record: AnyRecord) -> tuple[str, str]:
    """A record in words, and its style: ``->`` goes forward, ``<-`` back, as ``choreo describe`` draws it."""
    return _forward(record) or _back(record) or (type(record).__name__, "dim")


def _forward(record: AnyRecord) -> tuple[str, str] | None:
    match record:
        case SagaStarted():
            return f"saga started   {_short(record.input)}", "bold"
        case StepCompleted():
            again = f", attempt {record.attempts}" if record.attempts > 1 else ""
            return f"-> {record.step} completed{again}   {_short(record.effect)}", "green"
        case StepFailed():
            code = f" {record.failure.code}" if record.failure.code else ""
            tries = f" ({record.attempts} attempts)" if record.attempts > 1 else ""
            return f"!! {record.step} failed{code}: {record.failure.message}{tries}", "red"
        case Execute():
            return f"-> execute {record.step}", "blue"
        case SagaCompleted():
            return "saga completed", "bold green"
    return None


def _back(record: AnyRecord) -> tuple[str, str] | None:
    match record:
        case Compensate():
            return f"<- compensate {record.step}", "yellow"
        case StepCompensated():
            undo = ORDER[record.step].compensation
            return f"<- {undo} {'done' if record.undone else 'found nothing to undo'}", "magenta"
        case CompensationFailed():
            return f"!! {ORDER[record.step].compensation} failed   {record.failure.message}", "red"
        case SagaStuck():
            return f"!! stuck at {record.step}", "bold red"
        case SagaCompensated():
            undone = sum(one.how == "undone" for one in record.compensations)
            return f"saga compensated   {undone} effects undone, last first", "bold magenta"
    return None


def _short(value: msgspec.Raw, length: int = 48) -> str:
    """The values of a JSON object, in one short line."""
    decoded = msgspec.json.decode(value)
    text = ", ".join(map(str, decoded.values())) if isinstance(decoded, dict) else str(decoded)
    return text if len(text) <= length else f"{text[: length - 1]}…"
