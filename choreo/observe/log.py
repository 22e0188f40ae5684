"""Log output for people (``console``) or machines (``json``, one object a line), over the standard library's logging.

A line names what it is about in fields: ``extra={"saga_id": …}`` for one line, ``with about(saga_id=…)`` for all lines
of a task. What others wrote (messages of exceptions, names out of records) may hold control characters; they are
escaped, so that nobody can forge a line or reprogram a terminal.
"""

from __future__ import annotations

import logging
import re
import sys
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from contextvars import ContextVar
from datetime import UTC, datetime
from typing import Literal, TextIO

import msgspec

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


def set_up_logging(level: str = "INFO", log_format: LogFormat = "console", stream: TextIO | None = None) -> None:
    """Send the log of the whole process to ``stream`` (standard error by default), in place of earlier handlers.

    Raises:
        ValueError: ``level`` is no level's name.
    """
    handler = logging.StreamHandler(stream if stream is not None else sys.stderr)
    handler.setFormatter(JsonFormatter() if log_format == "json" else ConsoleFormatter())
    root = logging.getLogger()
    root.setLevel(level.upper())
    for old in root.handlers[:]:
        root.removeHandler(old)
    root.addHandler(handler)
    # The Kafka client writes dozens of errors a second in an outage. What they mean for us, the adapter logs itself.
    logging.getLogger("aiokafka").setLevel(logging.CRITICAL)


def escape(text: str) -> str:
    r"""The text in one line: control characters as ``\n``, ``\x1b`` or ``\u2028``."""
    return _UNSAFE.sub(lambda found: found[0].encode("unicode_escape").decode("ascii"), text)


def trace_id_of(traceparent: bytes | None) -> str | None:
    """The trace id of a W3C ``traceparent`` header; ``None`` where there is none."""
    parts = traceparent.decode("ascii", "replace").split("-") if traceparent else []
    return parts[1] if len(parts) >= 4 else None


class ConsoleFormatter(logging.Formatter):
    """``2026-11-22T07:43:58.120Z INFO choreo.step: message saga_id=… step=…``; tracebacks follow, indented."""

    def format(self, record: logging.LogRecord) -> str:
        fields = "".join(f" {name}={escape(str(value))}" for name, value in _fields(record).items())
        line = f"{_time(record)} {record.levelname} {record.name}: {escape(record.getMessage())}{fields}"
        # Indented, no line of a traceback can pass for a line of its own, whatever an exception says.
        return "\n".join([line, *(f"    | {escape(part)}" for part in _traceback(self, record).splitlines())])


class JsonFormatter(logging.Formatter):
    """One JSON object a line: ``time``, ``level``, ``logger``, ``message``, the fields, the lines of ``exception``."""

    def format(self, record: logging.LogRecord) -> str:
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
    return formatter.formatException(record.exc_info) if record.exc_info and record.exc_info[0] else ""
