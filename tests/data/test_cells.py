"""Cells keep their values between Arrow, Python and JSON."""

import datetime
import json
from decimal import Decimal

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from icve.data.cells import cell_text, column_values, json_value, table_rows, to_table

DAY = datetime.datetime(2024, 5, 1, 12, 30, tzinfo=datetime.UTC)


@pytest.mark.parametrize(
    "value",
    [
        *("text", 3, 2**64 - 1, 2.5, True, None, b"\xff\x00", Decimal("1.50"), datetime.date(2024, 5, 1), DAY),
        *(datetime.timedelta(seconds=3), datetime.time(12, 30), [1, 2], [], {"a": [1.5], "b": {"c": "d"}}, [b"x"]),
    ],
)
def test_values_survive_parquet(tmp_path, value):
    pq.write_table(to_table([{"column": value}, {"column": None}]), tmp_path / "t.parquet")
    assert table_rows(pq.read_table(tmp_path / "t.parquet")) == [{"column": value}, {"column": None}]


def test_values_without_a_type_in_common_become_text(tmp_path):
    values = [1, "x", None, 2.5, True, [1], {"a": "é"}, float("nan"), b"x", datetime.date(2024, 5, 1), 2**70]
    pq.write_table(to_table([{"column": value} for value in values]), tmp_path / "t.parquet")
    texts = ["1", "x", None, "2.5", "true", "[1]", '{"a": "é"}', "NaN", "eA==", "2024-05-01", str(2**70)]
    assert [row["column"] for row in table_rows(pq.read_table(tmp_path / "t.parquet"))] == texts
    for pair in (["text", b"bytes"], [datetime.date(2024, 5, 1), DAY]):  # that Arrow would make one type of
        assert to_table([{"column": value} for value in pair])["column"].to_pylist() == list(map(cell_text, pair))
    pq.write_table(to_table([{"column": {}}]), tmp_path / "t.parquet")  # Parquet has no objects without fields
    with pytest.raises(ValueError, match="half a character"):
        to_table([{"column": "\ud83d"}])
    with pytest.raises(ValueError, match="what no table does"):
        to_table([{"column": object()}])


@pytest.mark.parametrize("nested", [False, True])
def test_nanoseconds_are_never_cut_off(nested):
    for number, exact in ((1000, True), (1001, False)):
        array = pa.array([number, None], pa.timestamp("ns"))
        array = pa.ListArray.from_arrays([0, 1, 2], array) if nested else array
        value = column_values(array)[0]
        if exact:
            moment = datetime.datetime(1970, 1, 1, 0, 0, 0, 1)
            assert value == ([moment] if nested else moment)
        else:
            assert "00:00:00.000001001" in value
    assert column_values(pa.array([10**16, 0], pa.timestamp("ms")))[0] is not None  # a year that Python has not


def test_values_as_json():
    row = {"b": b"\xff", "d": Decimal("1.50"), "t": DAY, "p": datetime.timedelta(days=1)}
    assert json.loads(json.dumps(row, default=json_value)) == {
        "b": "/w==",
        "d": "1.50",
        "t": "2024-05-01T12:30:00+00:00",
        "p": "1 day, 0:00:00",
    }
    with pytest.raises(TypeError):
        json_value(object())
