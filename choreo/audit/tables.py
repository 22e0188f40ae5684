"""Rows as files: JSON lines, CSV and Parquet. Each writer takes batches and has constant memory."""

from __future__ import annotations

import csv
import io
from collections.abc import Iterable
from pathlib import Path
from types import TracebackType
from typing import Any, BinaryIO, Protocol, Self

import msgspec

from choreo.audit.rows import Exported, Row
from choreo.errors import ConfigurationError

COLUMNS = Row.__struct_fields__
_ROW_GROUP = 50_000


class RowWriter(Protocol):
    """Writes batches; a context manager, complete only when it is left without an error."""

    def write(self, batch: Iterable[Exported]) -> None: ...

    def __enter__(self) -> Self: ...

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None: ...


class JsonLines:
    """One JSON object a line; ``record`` is an object there, not a text."""

    def __init__(self, stream: BinaryIO) -> None:
        self._stream = stream

    def write(self, batch: Iterable[Exported]) -> None:
        for row, *_ in batch:
            plain = msgspec.structs.asdict(row)
            plain["record"] = msgspec.Raw(row.record.encode()) if row.record else None
            self._stream.write(msgspec.json.encode(plain) + b"\n")

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self._stream.flush()


class Csv:
    """RFC 4180, with a line of column names."""

    def __init__(self, stream: BinaryIO) -> None:
        self._stream = stream
        self._text(COLUMNS)

    def write(self, batch: Iterable[Exported]) -> None:
        for row, *_ in batch:
            self._text(msgspec.structs.astuple(row))

    def _text(self, values: Iterable[object]) -> None:
        line = io.StringIO()
        csv.writer(line).writerow(values)
        self._stream.write(line.getvalue().encode())

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self._stream.flush()


class Parquet:
    """Apache Parquet, by way of pyarrow (extra ``audit``); ``at`` is a timestamp in UTC beside ``at_ms``."""

    def __init__(self, path: Path) -> None:
        """Begin a file.

        Raises:
            ConfigurationError: pyarrow is not installed.
        """
        try:
            import pyarrow as pa
            import pyarrow.parquet as parquet
        except ImportError as error:
            raise ConfigurationError(
                "Parquet needs the package pyarrow, which is missing: pip install 'choreo-sagas[audit]'"
            ) from error
        kinds = {"int": pa.int64(), "str": pa.string()}
        fields = [(field.name, kinds[field.type.__name__]) for field in msgspec.structs.fields(Row)]
        self._schema = pa.schema([*fields, ("at", pa.timestamp("ms", tz="UTC"))])
        self._table = pa.Table
        self._writer = parquet.ParquetWriter(path, self._schema, compression="zstd")
        self._columns: dict[str, list[Any]] = {name: [] for name in (*COLUMNS, "at")}

    def write(self, batch: Iterable[Exported]) -> None:
        for row, *_ in batch:
            for name, value in zip(COLUMNS, msgspec.structs.astuple(row), strict=True):
                self._columns[name].append(value)
            self._columns["at"].append(row.at_ms)
        if len(self._columns["at"]) >= _ROW_GROUP:
            self._flush()

    def _flush(self) -> None:
        self._writer.write_table(self._table.from_pydict(self._columns, schema=self._schema))
        for values in self._columns.values():
            values.clear()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: type[BaseException] | None, *_: object) -> None:
        if kind is None and self._columns["at"]:
            self._flush()
        self._writer.close()
