"""icve/data/json_lines.py: JSON lines read as columns give the rows that lines read one by one give."""

import json

import pytest

from icve.data import json_lines, tables
from icve.data.manifest import ManifestError, read_manifest
from icve.data.manifest_index import FREE

GOOD = {"source_path": "a.mp4", "target_path": "b.mp4", "instruction": "make it «blue»", "width": 64, "fps": 24}
ODD = {
    "number as text": '{"source_path": "a.mp4", "instruction": "x y", "width": "64"}',
    "fraction": '{"source_path": "a.mp4", "instruction": "x y", "width": 64.5, "fps": 1e1}',
    "whole fraction": '{"source_path": "a.mp4", "instruction": "x y", "width": 64.0, "fps": 24}',
    "too large": '{"source_path": "a.mp4", "instruction": "x y", "width": 123456789012345678901234567890}',
    "truth": '{"source_path": "a.mp4", "instruction": "x y", "width": true}',
    "NaN": '{"source_path": "a.mp4", "instruction": "x y", "fps": NaN}',
    "negative": '{"source_path": "a.mp4", "instruction": "x y", "fps": -24}',
    "two of a name": '{"source_path": "a.mp4", "instruction": "x y", "source_path": "c.mp4"}',
    "escaped name": '{"source\\u005fpath": "a.mp4", "instruction": "x y"}',
    "half a character": '{"source_path": "a.mp4", "instruction": "x \\ud800 y"}',
    "zero": '{"source_path": "a\\u0000.mp4", "instruction": "x y"}',
    "up": '{"source_path": "../a.mp4", "instruction": "x y"}',
    "no text": '{"source_path": ["a.mp4"], "instruction": {"x": 1}}',
    "date": '{"source_path": "2020-01-01", "instruction": "2020-01-01", "edit_type": "2020-01-01"}',
    "number of a type": '{"source_path": "a.mp4", "instruction": "x y", "edit_type": 3}',
    "list of paths": '{"source_path": "a.mp4", "instruction": "x y", "distractor_paths": ["c.png", null]}',
    "own name": '{"source_path": "a.mp4", "instruction": "x y", "id": 7}',
    "two records": '{"source_path": "a.mp4", "instruction": "x y"} {"source_path": "a.mp4", "instruction": "z y"}',
    "two lines": '{"source_path": "a.mp4",\n"instruction": "x y"}',
    "both": '{"source_path": "a.mp4", "instruction": "x"} {"source_path": "c.mp4",\n"instruction": "x y"}',
    "a comma": '{"source_path": "a.mp4", "instruction": "x y"},',
    "no JSON": "{'source_path': 'a.mp4'}",
    "leading zero": '{"source_path": "a.mp4", "instruction": "x y", "width": 064}',
    "null": "null",
    "empty": "",
    "nothing": "{}",
    "deep": '{"source_path": "a.mp4", "instruction": "x y", "more": ' + "[" * 2000 + "]" * 2000 + "}",
    "not UTF-8": b'{"source_path": "a.mp4", "instruction": "caf\xe9 x"}',
    "free": '{"source_path": "a.mp4", "instruction": "x y", "caption": {"a": [1, null]}}',
    "other free": '{"source_path": "a.mp4", "instruction": "x y", "note": 3}',
    "control": '{"source_path": "a.mp4", "instruction": "x\ty"}',
}


def read(path, monkeypatch, as_columns, **options):
    with monkeypatch.context() as patch:
        if not as_columns:
            patch.setattr(tables, "typed_batch", lambda block, types: None)
        try:
            manifest = read_manifest(path, partial=True, only=FREE, **options)
        except ManifestError as error:
            return str(error)
        return list(manifest), manifest.names, [(one.number, one.id, one.reason, one.row) for one in manifest.rejected]


@pytest.mark.parametrize("first", [True, False])
def test_odd_lines_are_what_they_are_alone(tmp_path, monkeypatch, first):
    path = tmp_path / "rows.jsonl"
    for name, odd in ODD.items():
        lines = [json.dumps(GOOD | {"target_path": f"{n}.mp4", "caption": "c"}) for n in range(3)]
        odd = odd if isinstance(odd, bytes) else odd.encode()
        good = "\n".join(lines).encode()
        path.write_bytes(b"\n".join([odd, good] if first else [good, odd]))
        assert read(path, monkeypatch, True) == read(path, monkeypatch, False), name


@pytest.mark.parametrize("options", [{"columns": {"caption": "instruction"}}, {"columns": {"none": "instruction"}}])
def test_names_of_columns_are_known(tmp_path, monkeypatch, options):
    path = tmp_path / "rows.jsonl"
    row = {"source_path": "a.mp4", "target_path": "b.mp4", "caption": "turn it blue", "id": 3, "fps": -1}
    path.write_text(json.dumps(row) + "\n" + json.dumps(row | {"later": 3, "fps": 8}) + "\n")
    assert read(path, monkeypatch, True, **options) == read(path, monkeypatch, False, **options)


def test_plain_lines_are_read_as_columns(tmp_path, monkeypatch):
    taken = []

    def watched(block, types):
        taken.append(json_lines.typed_batch(block, types))
        return taken[-1]

    monkeypatch.setattr(tables, "typed_batch", watched)
    path = tmp_path / "rows.jsonl"
    plain = [GOOD | {"edit_type": "replace", "free": {"a": [n]}, "fps": n / 2} for n in range(9)]
    path.write_text("\n".join(json.dumps(row, ensure_ascii=False) for row in plain))
    monkeypatch.setattr(tables, "_LINES", 200)  # lines longer and shorter than what is read at a time
    assert len(read_manifest(path, only=FREE)) == 9
    assert None not in taken
    assert len(taken) > 3
