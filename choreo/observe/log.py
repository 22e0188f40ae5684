"""Log output for people (``console``) or machines (``json``, one object a line), over the standard library's logging.

A line names what it is about in fields: ``extra={"saga_id": …}`` for one line, ``with about(saga_id=…)`` for all lines
of a task. What others wrote (messages of exceptions, names out of records) may hold control characters; they are
escaped, so that nobody can forge a line or reprogram a terminal.

Payloads are never logged. Texts of failures may quote them; where these are to be hidden, ``private`` texts are left
out, and what exceptions say that are not choreo's or the system's own, in tracebacks too; types and places stay.
"""

from __future__ import annotations

import logging
import re
import sys
import traceback
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from contextvars import ContextVar
from datetime import UTC, datetime
from typing import Literal, TextIO

import msgspec

from choreo.errors import ChoreoError

LogFormat = Literal["console", "json"]

FIELDS = (
    "event",
    "service",
    "saga",
    "saga_id",
    "step",
    "round",
    "attempt",
    "result",
    "duration_ms",
    "topic",
    "partition",
    "offset",
    "trace_id",
)
"""What a line may be about, in the order of output."""

# C0 and C1 controls and DEL; line and paragraph separators; bidirectional overrides, which reorder what a person reads.
_UNSAFE = re.compile("[\x00-\x1f\x7f-\x9f\u2028\u2029\u202a-\u202e\u2066-\u2069]")

HIDDEN = "(hidden)"

# Libraries that write down statements with their parameters, or many lines a second in an outage; what that means for
# us, the adapters log themselves.
_QUIET = {"aiokafka": logging.CRITICAL, "sqlalchemy": logging.WARNING, "aiosqlite": logging.WARNING}

_about: ContextVar[Mapping[str, object]] = ContextVar("choreo.observe.log.about")


@contextmanager
def about(**fields: object) -> Iterator[None]:
    """Add fields (names from ``FIELDS``) to every line that this task and its children write in the block."""
    token = _about.set({**_about.get({}), **fields})
    try:
        yield
    finally:
        _about.reset(token)


def about_from_here(**fields: object) -> None:
    """Add fields to every line that this task writes from now on: ``about`` for a task that has one subject."""
    _about.set({**_about.get({}), **fields})


class private:  # noqa: N801 - it reads as a mark
    """Marks an argument of a log line as a text of a user's, as of a failure."""

    def __init__(self, text: str) -> None:
        self._text = text

    def __str__(self) -> str:
        return self._text

    def __repr__(self) -> str:
        return f"private({HIDDEN})"


def set_up_logging(
    level: str = "INFO",
    log_format: LogFormat = "console",
    stream: TextIO | None = None,
    *,
    hides_texts: bool = False,
) -> None:
    """Send the log of the whole process to ``stream`` (standard error by default), in place of earlier handlers.

    Args:
        hides_texts: texts of failures are left out.

    Raises:
        ValueError: ``level`` is no level's name.
    """
    handler = logging.StreamHandler(stream if stream is not None else sys.stderr)
    formatter = JsonFormatter if log_format == "json" else ConsoleFormatter
    handler.setFormatter(formatter(hides_texts=hides_texts))
    root = logging.getLogger()
    root.setLevel(level.upper())
    for old in root.handlers[:]:
        root.removeHandler(old)
    root.addHandler(handler)
    for name, least in _QUIET.items():
        logging.getLogger(name).setLevel(least)


def _without_private(record: logging.LogRecord) -> logging.LogRecord:
    """A copy of the line without users' texts."""
    hidden = logging.makeLogRecord(record.__dict__)
    if isinstance(record.args, tuple):
        hidden.args = tuple(_shown(each) for each in record.args)
    if isinstance(record.msg, BaseException):
        hidden.msg = _shown(record.msg)
    if record.exc_info and record.exc_info[1] is not None:
        hidden.exc_text = "".join(_without_texts(record.exc_info[1])).rstrip("\n")
    return hidden


def _shown(argument: object) -> object:
    if isinstance(argument, private):
        return HIDDEN
    if isinstance(argument, BaseException) and not isinstance(argument, ChoreoError | OSError):
        return f"{type(argument).__name__} {HIDDEN}"
    return argument


def _without_texts(error: BaseException) -> Iterator[str]:
    """A traceback as Python prints it, but for what exceptions say."""
    before = error.__cause__ or (None if error.__suppress_context__ else error.__context__)
    if before is not None:
        yield from _without_texts(before)
        yield "\nand then:\n\n"
    yield "Traceback (most recent call last):\n"
    yield from traceback.format_tb(error.__traceback__)
    yield f"{type(error).__module__}.{type(error).__qualname__}: {HIDDEN}\n"
    for each in error.exceptions if isinstance(error, BaseExceptionGroup) else ():
        yield from _without_texts(each)


def escape(text: str) -> str:
    r"""The text in one line: control characters as ``\n``, ``\x1b`` or ``\u2028``."""
    return _UNSAFE.sub(lambda found: found[0].encode("unicode_escape").decode("ascii"), text)


def trace_id_of(traceparent: bytes | None) -> str | None:
    """The trace id of a W3C ``traceparent`` header; ``None`` where there is none."""
    parts = traceparent.decode("ascii", "replace").split("-") if traceparent else []
    return parts[1] if len(parts) >= 4 else None


class _LineFormatter(logging.Formatter):
    def __init__(self, *, hides_texts: bool = False) -> None:
        super().__init__()
        self._hides_texts = hides_texts

    def format(self, record: logging.LogRecord) -> str:
        return self.line(_without_private(record) if self._hides_texts else record)

    def line(self, record: logging.LogRecord) -> str:
        raise NotImplementedError


class ConsoleFormatter(_LineFormatter):
    """``2026-11-22T07:43:58.120Z INFO choreo.step: message saga_id=… step=…``; tracebacks follow, indented."""

    def line(self, record: logging.LogRecord) -> str:
        fields = "".join(f" {name}={escape(str(value))}" for name, value in _fields(record).items())
        line = f"{_time(record)} {record.levelname} {record.name}: {escape(record.getMessage())}{fields}"
        # Indented, no line of a traceback can pass for a line of its own, whatever an exception says.
        return "\n".join([line, *(f"    | {escape(part)}" for part in _traceback(self, record).splitlines())])


class JsonFormatter(_LineFormatter):
    """One JSON object a line: ``time``, ``level``, ``logger``, ``message``, the fields, the lines of ``exception``."""

    def line(self, record: logging.LogRecord) -> str:
        line: dict[str, object] = {
            "time": _time(record),
            "level": record.levelname,
            "logger": record.name,
            "message": escape(record.getMessage()),
        }
        for name, value in _fields(record).items():
            line[name] = value if isinstance(value, int) else escape(str(value))
        if traceback := _traceback(self, record):
            line["exception"] = [escape(part) for part in traceback.splitlines()]
        return msgspec.json.encode(line).decode()


def _fields(record: logging.LogRecord) -> dict[str, object]:
    said = {**_about.get({}), **record.__dict__}
    return {name: said[name] for name in FIELDS if said.get(name) is not None}


def _time(record: logging.LogRecord) -> str:
    return datetime.fromtimestamp(record.created, UTC).isoformat(timespec="milliseconds").replace("+00:00", "Z")


def _traceback(formatter: logging.Formatter, record: logging.LogRecord) -> str:
    if record.exc_text:
        return record.exc_text
    return formatter.formatException(record.exc_info) if record.exc_info and record.exc_info[0] else ""
