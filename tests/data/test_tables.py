"""Tables of every form and encoding, record by record."""

import json

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from icve.data.tables import _CHUNK, Malformed, ManifestError, read_records

RECORDS = [{"path": "a.mp4", "text": "make it é\u2028\u2029\x85 so"}, {"path": "b.mp4", "text": "plain"}]


def written(path, encoding="utf-8"):
    """A table of RECORDS in the form that the suffix says."""
    kind = path.suffix.lower()
    if kind == ".parquet":
        pq.write_table(pa.Table.from_pylist(RECORDS), path)
        return path
    if kind in (".csv", ".tsv"):
        between = "," if kind == ".csv" else "\t"
        lines = [between.join(RECORDS[0]), *(between.join(record.values()) for record in RECORDS)]
    else:
        lines = [json.dumps(record, ensure_ascii=False) for record in RECORDS]
    text = "[" + ",\n".join(lines) + "]" if kind == ".json" else "\r\n".join(lines) + "\r\n"
    path.write_bytes(text.encode(encoding))
    return path


@pytest.mark.parametrize("encoding", ["utf-8", "utf-8-sig", "utf-16", "utf-16-le", "utf-16-be", "utf-32"])
@pytest.mark.parametrize("name", ["t.JSONL", "t.ndjson", "t.Json", "t.CSV", "t.tsv", "t.PARQUET"])
def test_every_form_in_every_letter_case_and_encoding(tmp_path, name, encoding):
    assert list(read_records(written(tmp_path / name, encoding))) == RECORDS


@pytest.mark.parametrize("chunk", [7, _CHUNK])
def test_json_of_every_layout_is_read_in_pieces(tmp_path, monkeypatch, chunk):
    monkeypatch.setattr("icve.data.tables._CHUNK", chunk)
    records = [{"n": n, "text": 'é"[,]{' * n, "list": [n, [n]]} for n in range(30)]
    forms = {
        "list.json": json.dumps(records),
        "indented.json": json.dumps(records, indent=2),
        "nested.json": json.dumps([records[:3], [records[3:]]]),
        "lines.jsonl": "\n".join(json.dumps(record, ensure_ascii=False) for record in records),
        "lines.json": "\n".join(json.dumps(record) for record in records),
        "list.jsonl": json.dumps(records, indent=1),
        "objects.jsonl": "\n".join(json.dumps(record, indent=1) for record in records),
        "objects.json": "\n".join(json.dumps(record, indent=2) for record in records),
        "folded.json": "\n".join(json.dumps(record).replace(", ", ",\n") for record in records),
    }
    for name, text in forms.items():
        (tmp_path / name).write_text(text, encoding="utf-8")
        assert list(read_records(tmp_path / name)) == records
    (tmp_path / "numbers.json").write_text("[12345678901, null, 3]")
    assert [record.given for record in read_records(tmp_path / "numbers.json")] == [12345678901, None, 3]


def test_a_damaged_line_costs_itself(tmp_path):
    lines = ['{"a": 1}', '{"a": ', "[1]", "", '{"a": 2}', "[" * 100_000, '{"a": ' + "9" * 5000 + "}", '{"a": 3}']
    (tmp_path / "t.jsonl").write_text("\n".join(lines))
    found = list(read_records(tmp_path / "t.jsonl"))
    assert [record for record in found if isinstance(record, dict)] == [{"a": 1}, {"a": 2}, {"a": 3}]
    assert [record.line for record in found if isinstance(record, Malformed)] == [2, 3, 6, 7]
    assert found[1].why.startswith("is not JSON (Expecting value at column")
    assert found[2].why == "is not a JSON object"


def test_a_csv_row_of_another_length_is_malformed(tmp_path):
    (tmp_path / "t.csv").write_text('\n a ,b\n1,2\n\n,\n1\n1,2,3\n3,"4\n5"\n')
    found = list(read_records(tmp_path / "t.csv"))
    assert [record if isinstance(record, dict) else None for record in found] == [
        {"a": "1", "b": "2"},
        None,
        None,
        {"a": "3", "b": "4\n5"},
    ]
    assert "another number of cells than the header (1, not 2)" in found[1].why


def test_csv_cells_of_any_length_and_open_quotations(tmp_path):
    long = "x" * 1_000_000
    (tmp_path / "t.csv").write_text(f'a,b\n1,{long}\n2,"open\n3,swallowed\n')
    first, second = read_records(tmp_path / "t.csv")
    assert first == {"a": "1", "b": long}
    assert "quotation that does not end" in second.why


@pytest.mark.parametrize("suffix", ["csv", "jsonl", "json"])
def test_bytes_that_are_no_utf8_cost_their_record_and_are_named(tmp_path, suffix):
    path = written(tmp_path / f"t.{suffix}")
    path.write_bytes(path.read_bytes().replace("é".encode(), b"\xe9").replace("\u2028\u2029\x85".encode(), b""))
    first, second = read_records(path)
    assert "not UTF-8 text (byte 0xE9) but looks like cp1252" in first.why
    assert second == RECORDS[1]
    path.write_bytes(path.read_bytes().replace(b"\xe9", b"\x81"))
    assert "(byte 0x81), nor cp1252" in next(read_records(path)).why


def test_tables_that_cannot_be_read(tmp_path):
    (tmp_path / "header.csv").write_bytes("a,é\n1,2\n".encode("cp1252"))
    (tmp_path / "twice.csv").write_text("a,b,a\n1,2,3\n")
    (tmp_path / "odd.jsonl").write_bytes('{"a": 1}\n'.encode("utf-16")[:-1])
    (tmp_path / "cut.json").write_text('[{"a": 1}, {"a"')
    (tmp_path / "nul.jsonl").write_bytes(b"\0")
    (tmp_path / "no.parquet").write_text("no Parquet")
    (tmp_path / "no.txt").touch()
    for name, message in {
        "header.csv": "header of .* looks like cp1252",
        "twice.csv": "two columns 'a'",
        "odd.jsonl": "is not utf-16.* text to its end",
        "nul.jsonl": "is not utf-16-be text to its end",
        "cut.json": "after its record 1, is cut off or damaged",
        "no.parquet": "not readable Parquet",
        "no.txt": "known are .csv, .json",
        "absent.csv": "No such file",
    }.items():
        with pytest.raises(ManifestError, match=message) as error:
            list(read_records(tmp_path / name))
        assert "\n" not in str(error.value)


def test_columns_of_bytes_may_be_left_out(tmp_path):
    pq.write_table(
        pa.table({"a": [b"x"], "b": pa.array([b"y"], pa.large_binary()), "c": ["z"]}), tmp_path / "t.parquet"
    )
    assert list(read_records(tmp_path / "t.parquet")) == [{"a": b"x", "b": b"y", "c": "z"}]
    assert list(read_records(tmp_path / "t.parquet", binary=False)) == [{"c": "z"}]


def test_a_header_that_is_given_takes_the_place_of_one_that_repeats_itself(tmp_path):
    (tmp_path / "t.csv").write_text("x,x\n1,2\n")
    assert list(read_records(tmp_path / "t.csv", header=("a", "b"))) == [{"a": "1", "b": "2"}]
