import json

from icve.data.tables import Malformed, read_records


def test_json_is_read_in_pieces(tmp_path, monkeypatch):
    monkeypatch.setattr("icve.data.tables._CHUNK", 7)
    records = [{"n": n, "text": 'é"[,]{' * n, "list": [n, [n]]} for n in range(30)]
    forms = {
        "list.json": json.dumps(records),
        "indented.json": json.dumps(records, indent=2),
        "nested.json": json.dumps([records[:3], [records[3:]]]),
        "lines.jsonl": "\n".join(json.dumps(record, ensure_ascii=False) for record in records),
    }
    for name, text in forms.items():
        (tmp_path / name).write_text(text, encoding="utf-8")
        assert list(read_records(tmp_path / name)) == records
    (tmp_path / "numbers.json").write_text("[12345678901, null, 3]")
    assert [record.given for record in read_records(tmp_path / "numbers.json")] == [12345678901, None, 3]


def test_a_csv_row_of_another_length_is_malformed(tmp_path):
    (tmp_path / "t.csv").write_text("a,b\n1,2\n\n1\n1,2,3\n3,4\n")
    found = list(read_records(tmp_path / "t.csv"))
    assert [record if isinstance(record, dict) else None for record in found] == [
        {"a": "1", "b": "2"},
        None,
        None,
        {"a": "3", "b": "4"},
    ]
    assert isinstance(found[1], Malformed)
