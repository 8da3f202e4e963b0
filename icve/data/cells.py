"""What a cell of a table may hold, brought between Arrow, Python and JSON."""

from __future__ import annotations

import base64
import datetime
import decimal
import json
import uuid
from collections.abc import Mapping, Sequence
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

# What Arrow raises for a value that Python cannot hold; which of them depends on the type.
_INEXPRESSIBLE = (ValueError, OverflowError, TypeError, NotImplementedError, pa.ArrowException)


def json_value(value: Any) -> str:
    """What JSON has no form for, as text: times in ISO 8601, bytes in base64; ``default`` of ``json.dumps``.

    Raises:
        TypeError: nothing that a table holds.
    """
    if isinstance(value, bytes):
        return base64.b64encode(value).decode()
    if isinstance(value, (datetime.date, datetime.time)):  # datetime is a date
        return value.isoformat()
    if isinstance(value, (decimal.Decimal, datetime.timedelta, uuid.UUID)):
        return str(value)
    raise TypeError(f"{type(value).__name__} has no form in JSON.")


def cell_text(value: Any) -> str:
    """A value as text: text as it is, the rest as :func:`json_value` or JSON. Raises TypeError as that does."""
    if isinstance(value, str):
        return value
    try:
        return json_value(value)
    except TypeError:
        return json.dumps(value, ensure_ascii=False, default=json_value)


_AS_JSON = {b"icve.json": b"1"}  # metadata of a field whose texts are values in JSON


def json_column(values: Sequence[Any]) -> tuple[pa.Array, dict[bytes, bytes]]:
    """A column of values of any kinds, each as JSON, and what its field says of it; :func:`table_rows` undoes it."""
    texts = (None if value is None else json.dumps(value, ensure_ascii=False, default=json_value) for value in values)
    return pa.array(list(texts), pa.string()), _AS_JSON


def is_json(field: pa.Field) -> bool:
    """Whether a field is one of :func:`json_column`."""
    return _AS_JSON.items() <= (field.metadata or {}).items()


def column_values(column: pa.Array | pa.ChunkedArray) -> list[Any]:
    """Values of an Arrow column as Python has them; as text where it cannot (nanoseconds, a year after 9999)."""
    kind, exact = column.type, _microseconds(column.type)
    if not kind.equals(exact):
        try:
            column = column.cast(exact)
        except pa.ArrowException:  # times that this would round
            nested = pa.types.is_nested(kind)
            return [None if not v.is_valid else cell_text(_value(v)) if nested else _text(v) for v in column]
    try:
        return column.to_pylist()
    except _INEXPRESSIBLE:
        return [_value(scalar) for scalar in column]


def _microseconds(kind: pa.DataType) -> pa.DataType:
    """A type with the unit of Python's times in place of nanoseconds."""
    if getattr(kind, "unit", None) == "ns":
        if pa.types.is_timestamp(kind):
            return pa.timestamp("us", kind.tz)
        return pa.duration("us") if pa.types.is_duration(kind) else pa.time64("us")
    if pa.types.is_list(kind) or pa.types.is_large_list(kind):
        within = kind.value_field.with_type(_microseconds(kind.value_type))
        return pa.list_(within) if pa.types.is_list(kind) else pa.large_list(within)
    if pa.types.is_struct(kind):
        return pa.struct([field.with_type(_microseconds(field.type)) for field in kind])
    return kind


def _text(scalar: pa.Scalar) -> str:
    try:
        return scalar.cast(pa.string()).as_py()
    except pa.ArrowException:
        return str(scalar)


def _value(scalar: pa.Scalar) -> Any:
    try:
        return scalar.as_py()
    except _INEXPRESSIBLE:
        return _text(scalar)


def to_table(rows: Sequence[Mapping[str, Any]]) -> pa.Table:
    """Rows as a table that Parquet takes: the columns of all of them, in the order they first appear.

    A column whose values have no type in common is one of text, in which what is no text stands as JSON.

    Raises:
        ValueError: text that UTF-8 cannot say, or a value that no table holds.
    """
    names = list(dict.fromkeys(name for row in rows for name in row))
    return pa.Table.from_arrays([_column(name, [row.get(name) for row in rows]) for name in names], names=names)


def table_rows(table: pa.Table | pa.RecordBatch) -> list[dict[str, Any]]:
    """The rows of a table."""
    names, columns = table.schema.names, [column_values(column) for column in table.columns]
    for place, field in enumerate(table.schema):
        if is_json(field):
            columns[place] = [None if text is None else json.loads(text) for text in columns[place]]
    return [dict(zip(names, cells, strict=True)) for cells in zip(*columns, strict=True)]


def _column(name: str, values: list[Any]) -> pa.Array:
    kinds = {type(value) for value in values if value is not None}
    # Of these pairs, Arrow would take text for bytes and cut the time off a day.
    if not ({str, bytes} <= kinds or {datetime.date, datetime.datetime} <= kinds):
        try:
            array = pa.array(values, _unsigned(values) if kinds == {int} else None)
            if _fits_parquet(array):
                return array
        except UnicodeEncodeError as error:
            raise ValueError(f"Column {name!r} holds half a character, which cannot be written as UTF-8.") from error
        except (pa.ArrowException, OverflowError, TypeError, ValueError):
            pass
    try:
        texts = [None if value is None else cell_text(value) for value in values]
        return pa.array(texts, pa.large_string() if sum(map(len, filter(None, texts))) >> 30 else pa.string())
    except TypeError as error:
        raise ValueError(f"Column {name!r} holds what no table does: {error}") from error


def _unsigned(numbers: list[int | None]) -> pa.DataType | None:
    """The type of whole numbers that only 64 bits without a sign hold, which Arrow does not find out itself."""
    known = [number for number in numbers if number is not None]
    return pa.uint64() if max(known) >= 2**63 and min(known) >= 0 else None


def _fits_parquet(array: pa.Array) -> bool:
    """Parquet has no form for an object without fields, nor for some intervals."""
    if not (pa.types.is_nested(array.type) or pa.types.is_interval(array.type)):
        return True
    try:
        pq.write_table(pa.table({"column": array[:0]}), pa.BufferOutputStream())
    except pa.ArrowException:
        return False
    return True
