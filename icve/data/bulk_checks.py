"""Many records of a manifest checked at once, as Arrow columns.

What :func:`icve.data.rows.row_checker` makes of a record is known here for the plain ones without asking it. All others
are called odd, and it decides on them one by one: a check here may call a good record odd, never an odd one good.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from icve.data.cells import json_column
from icve.data.rows import FILE_LISTS, FILES, IDENTITY, INTEGERS, LARGEST, SLOWEST, is_unwritable

Checked = tuple[pa.Array, pa.Array]  # a column as rows have it, null where odd; and what is odd of it, bool

_TEXT_LIST = pa.list_(pa.string())
# Columns that rows have in one type, whatever the table has.
TYPES: dict[str, pa.DataType] = (
    dict.fromkeys(("id", "instruction", *FILES), pa.string())
    | dict.fromkeys(INTEGERS, pa.int64())
    | dict.fromkeys(FILE_LISTS, _TEXT_LIST)
    | {"fps": pa.float64()}
)
# Nothing but numbers and signs, or one of the words that stand for a number or for nothing.
_NO_WORDS = r"(?i)^[^\pL]*(e|nan|inf|infinity|none|null|na|n/a)?[^\pL]*$"
_ESCAPED_IN_JSON = r'["\\\x00-\x1f]'

_Forms = tuple[tuple[frozenset[type], pa.DataType], ...]
_TEXT, _LIST = (frozenset({str}), pa.string()), (frozenset({list}), _TEXT_LIST)
_WHOLE, _REAL = (frozenset({int}), pa.int64()), (frozenset({int, float}), pa.float64())
# What a column's values may be in Python: the last form is of the column whose values differ.
_FORMS: dict[str, _Forms] = {
    name: (_LIST,) if name in FILE_LISTS else (_WHOLE, _TEXT) if name == "id" else (_TEXT,) for name in TYPES
} | dict.fromkeys((*INTEGERS, "fps"), (_TEXT, _WHOLE, _REAL))


def records_batch(records: Sequence[dict[str, Any]], names: Sequence[str]) -> tuple[pa.RecordBatch, np.ndarray]:
    """Records as a batch of such columns, and which of them are odd (bool), because a cell is of no type for these."""
    odd = np.zeros(len(records), dtype=bool)
    fields, columns = [], []
    layouts = dict.fromkeys(map(tuple, records))
    alike: dict[str, Sequence[Any]] = {}
    if len(layouts) == 1:
        alike = dict(zip(*layouts, zip(*map(dict.values, records), strict=True), strict=True))
    for name in names:
        values = alike.get(name) or [record.get(name) for record in records]
        column = _known(values, _FORMS[name], odd) if name in _FORMS else _free(values, odd)
        array, metadata = column if isinstance(column, tuple) else (column, None)
        fields.append(pa.field(name, array.type, metadata=metadata))
        columns.append(array)
    return pa.RecordBatch.from_arrays(columns, schema=pa.schema(fields)), odd


def line_types(first: Mapping[str, Any], columns: Mapping[str, str], keeps: Callable[[str], bool]) -> pa.Schema | None:
    """Types in which the values of a first record's columns are exact, of those that are kept; None if one has none.

    Args:
        first: names in the file → values.
        columns: names in the file → names used here.
        keeps: whether a name used here is that of a column to keep.
    """
    fields = []
    for name, value in first.items():
        ours = columns.get(name, name)
        forms = _FORMS.get(ours, (_TEXT,) if keeps(ours) else ())
        kinds = [kind for allowed, kind in forms if value is None or type(value) in allowed]
        if forms and not kinds:
            return None
        if kinds:
            fields.append((name, kinds[-1 if value is None else 0]))
    return pa.schema(fields)


def check_batch(batch: pa.RecordBatch, folders: Callable[[], Sequence[str]]) -> tuple[dict[str, pa.Array], np.ndarray]:
    """Check a batch.

    Args:
        batch: columns under the manifest's names, in any types.
        folders: gives the names of the root, each with a slash at its end, which absolute paths may begin with.

    Returns:
        columns of :data:`TYPES` that are there, and always ``id``; and which rows are odd (bool).
    """
    odd = np.zeros(len(batch), dtype=bool)
    columns: dict[str, pa.Array] = {}
    for name in batch.schema.names:
        if name in TYPES:
            check = _CHECKS.get(name) or (lambda column: _paths(column, folders))
            column = batch.column(name)
            try:
                columns[name], of_column = check(_decoded(column))
            except pa.ArrowException:  # a type that Arrow does not compute with
                columns[name], of_column = _of_no_type(column, TYPES[name])
            odd |= of_column.to_numpy(zero_copy_only=False)
    columns["id"] = _ids(columns, ~odd, len(batch))
    return columns, odd


def _known(values: Sequence[Any], forms: _Forms, odd: np.ndarray) -> pa.Array:
    kinds = {type(value) for value in values} - {type(None)}
    for allowed, kind in forms:
        if kinds <= allowed:
            try:
                return pa.array(values, kind)
            except (pa.ArrowException, OverflowError, TypeError, ValueError):
                break
    allowed, kind = forms[-1]
    kept = [value if type(value) in allowed and _fits(value) else None for value in values]
    odd |= np.fromiter((k is None and v is not None for k, v in zip(kept, values, strict=True)), bool, len(values))
    return pa.array(kept, kind)


def _fits(value: Any) -> bool:
    if isinstance(value, list):
        return all(isinstance(item, str) and not is_unwritable(item) for item in value)
    return not is_unwritable(value) if isinstance(value, str) else abs(value) <= LARGEST


def _free(values: Sequence[Any], odd: np.ndarray) -> pa.Array | tuple[pa.Array, dict[bytes, bytes]]:
    """Any other column. It keeps its values exactly: as JSON where Arrow would bring them to one type."""
    kinds = {type(value) for value in values} - {type(None)}
    if len(kinds) <= 1 and not kinds & {list, dict, tuple}:
        try:
            return pa.array(values)
        except UnicodeEncodeError:
            bad = np.fromiter(map(is_unwritable, values), bool, len(values))
            odd |= bad
            return pa.array([None if no else value for no, value in zip(bad, values, strict=True)], pa.string())
        except (pa.ArrowException, OverflowError):
            pass
    bad = np.fromiter(map(is_unwritable, values), bool, len(values))
    odd |= bad
    return json_column([None if no else value for no, value in zip(bad, values, strict=True)])


def _decoded(column: pa.Array) -> pa.Array:
    """A column with plain text where it has text in another layout."""
    if pa.types.is_dictionary(column.type):
        column = column.dictionary_decode()
    if pa.types.is_large_string(column.type) or pa.types.is_string_view(column.type):
        column = column.cast(pa.string())
    return column


def _no(odd: pa.Array) -> pa.Array:
    return pc.fill_null(odd, False)


def _of_no_type(column: pa.Array, kind: pa.DataType) -> Checked:
    return pa.nulls(len(column), kind), column.is_valid()


def _where(good: pa.Array, values: pa.Array) -> pa.Array:
    return pc.if_else(good, values, pa.scalar(None, values.type))


def _numbers(column: pa.Array, kind: pa.DataType) -> Checked:
    whole = pa.types.is_integer(kind)
    if pa.types.is_null(column.type):
        return column.cast(kind), pa.array(np.zeros(len(column), dtype=bool))
    if pa.types.is_string(column.type):
        plain = "^[0-9]{1,15}$" if whole else r"^[0-9]{1,15}(\.[0-9]{1,15})?$"
        good = pc.match_substring_regex(column, plain)
        column = _where(good, column).cast(pa.float64())
    elif pa.types.is_integer(column.type) or pa.types.is_floating(column.type):
        if not pa.types.is_uint64(column.type) and not pa.types.is_int64(column.type):
            column = column.cast(pa.float64())  # exactly
        good = pc.and_(pc.greater_equal(column, 0), pc.less_equal(column, LARGEST))
        column = _where(good, column).cast(pa.float64())
        good = pc.and_kleene(good, pc.equal(pc.floor(column), column)) if whole else good
    else:
        return _of_no_type(column, kind)
    if not whole:
        good = pc.and_kleene(good, pc.or_(pc.equal(column, 0), pc.greater_equal(column, SLOWEST)))
    good = pc.fill_null(good, True)  # NaN compares as false: it is not good
    return _where(good, column).cast(kind), pc.invert(good)


def _instructions(column: pa.Array) -> Checked:
    if pa.types.is_null(column.type):
        column = column.cast(pa.string())
    if not pa.types.is_string(column.type):
        return _of_no_type(column, pa.string())
    odd = pc.and_(pc.match_substring_regex(column, _NO_WORDS), pc.not_equal(column, ""))
    return column, _no(odd)


def _paths(column: pa.Array, folders: Callable[[], Sequence[str]]) -> Checked:
    if pa.types.is_null(column.type):
        column = column.cast(pa.string())
    if not pa.types.is_string(column.type):
        return _of_no_type(column, pa.string())
    # A colon before a slash may be a URL's.
    odd = pc.or_(pc.match_substring_regex(column, r"\.\.|:/"), pc.match_substring(column, "\0"))
    odd = pc.or_(odd, pc.equal(column, ""))
    absolute = _no(pc.starts_with(column, "/"))
    if absolute.true_count:
        elsewhere = pc.or_(absolute, False)
        # Others are spelled in a way that is brought into order first.
        plain = pc.invert(pc.match_substring_regex(column, r"//|/\./|/\.?$"))
        for folder in folders():
            below = pc.and_(pc.and_(elsewhere, plain), pc.starts_with(column, folder))
            column = pc.if_else(_no(below), pc.utf8_slice_codeunits(column, len(folder)), column)
            elsewhere = pc.and_not(elsewhere, _no(below))
        odd = pc.or_(odd, elsewhere)
    return column, _no(odd)


def _path_lists(column: pa.Array) -> Checked:
    if pa.types.is_null(column.type):
        return column.cast(_TEXT_LIST), pa.array(np.zeros(len(column), dtype=bool))
    if not (pa.types.is_list(column.type) and pa.types.is_string(column.type.value_type)):
        return _of_no_type(column, _TEXT_LIST)
    items, rows = column.flatten(), pc.list_parent_indices(column).to_numpy()
    # Absolute ones are odd: their root is cut off one by one.
    bad = pc.or_(pc.match_substring_regex(items, r"^$|^/|\.\.|:/"), pc.match_substring(items, "\0"))
    odd = np.zeros(len(column), dtype=bool)
    odd[rows[pc.fill_null(bad, True).to_numpy(zero_copy_only=False)]] = True
    return column.cast(_TEXT_LIST), pa.array(odd)


def _own_ids(column: pa.Array) -> Checked:
    if pa.types.is_integer(column.type) or pa.types.is_null(column.type):
        column = column.cast(pa.string())
    if not pa.types.is_string(column.type):
        return _of_no_type(column, pa.string())
    return column, pa.array(np.zeros(len(column), dtype=bool))


_CHECKS: dict[str, Callable[[pa.Array], Checked]] = (
    dict.fromkeys(INTEGERS, lambda column: _numbers(column, pa.int64()))
    | dict.fromkeys(FILE_LISTS, _path_lists)
    | {"fps": lambda column: _numbers(column, pa.float64()), "instruction": _instructions, "id": _own_ids}
)


def _ids(columns: Mapping[str, pa.Array], good: np.ndarray, rows: int) -> pa.Array:
    """The rows' own ids, and :func:`icve.data.rows.content_id` of good rows without one."""
    own = columns.get("id", pa.nulls(rows, pa.string()))
    lacking = pc.and_(pc.fill_null(pc.equal(own, ""), True), pa.array(good))
    if not lacking.true_count:
        return own
    parts = [_json(columns[name].filter(lacking)) if name in columns else "null" for name in IDENTITY]
    texts = pc.binary_join_element_wise(*(pa.scalar(p) if isinstance(p, str) else p for p in parts), ", ")
    if isinstance(texts, pa.Scalar):  # a manifest without any of these columns
        texts = pa.repeat(texts, lacking.true_count)
    names = [
        hashlib.blake2b(b"[" + text + b"]", digest_size=8).hexdigest() for text in texts.cast(pa.binary()).to_pylist()
    ]
    return pc.replace_with_mask(own, lacking, pa.array(names, pa.string()))


def _json(values: pa.Array) -> pa.Array:
    """Texts or numbers as JSON; what is empty or 0 is null."""
    if not pa.types.is_string(values.type):
        return pc.if_else(_no(pc.not_equal(values, 0)), values.cast(pa.string()), "null")
    quoted = pc.binary_join_element_wise('"', values, '"', "")
    special = _no(pc.match_substring_regex(values, _ESCAPED_IN_JSON))
    if special.true_count:
        spelled = [json.dumps(value, ensure_ascii=False) for value in values.filter(special).to_pylist()]
        quoted = pc.replace_with_mask(quoted, special, pa.array(spelled, pa.string()))
    return pc.if_else(_no(pc.not_equal(values, "")), quoted, "null")
