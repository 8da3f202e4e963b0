import json

import pyarrow.parquet as pq
import pytest

from icve.data.manifest import (
    ManifestError,
    content_id,
    read_manifest,
    relative_path,
    resolve_path,
    write_manifest,
    write_part,
)

ROWS = [
    {"source_path": "a.mp4", "target_path": "b.mp4", "source_start": 3, "instruction": "make it é"},
    {"source_path": "c.mp4", "instruction": "b", "distractor_paths": ["d.mp4", "e.mp4"], "fps": 23.976, "score": 0.5},
]


@pytest.mark.parametrize("name", ["m.jsonl", "m.parquet", "folder"])
def test_rows_survive_writing_and_reading(tmp_path, name):
    path = write_manifest(ROWS, tmp_path / name)
    rows = read_manifest(path)
    for row, original in zip(rows, ROWS, strict=True):
        assert {key: value for key, value in row.items() if value is not None} == {
            **original,
            "id": content_id(original),
        }
    assert rows[0].keys() == rows[1].keys()
    assert rows.root == (path if name == "folder" else tmp_path)
    assert not [file for file in tmp_path.rglob("*") if file.name.endswith(".tmp")]


def test_parts_with_different_columns_are_one_manifest(tmp_path):
    write_part(ROWS[:1], tmp_path / "parts", 0)
    write_part(ROWS[1:], tmp_path / "parts", 1)
    (tmp_path / "parts" / ".part-00002.parquet.tmp").write_bytes(b"half")
    rows = read_manifest(tmp_path / "parts")
    assert [row["source_path"] for row in rows] == ["a.mp4", "c.mp4"]
    assert rows[0]["distractor_paths"] is None
    assert rows[1]["distractor_paths"] == ["d.mp4", "e.mp4"]


def test_a_part_is_replaced_whole(tmp_path):
    write_part(ROWS, tmp_path, "worker1")
    part = write_part(ROWS[:1], tmp_path, "worker1")
    assert part.name == "part-worker1.parquet"
    assert len(read_manifest(tmp_path)) == 1


def test_id_is_stable_and_of_the_content_only(tmp_path):
    row = {"source_path": "a.mp4", "target_path": "b.mp4", "instruction": "x"}
    assert content_id(row) == "1f7973937393483e"
    assert content_id({**row, "score": 3, "source_start": 0}) == content_id(row)
    assert content_id({**row, "source_start": 1}) != content_id(row)
    assert content_id({**row, "instruction": "y"}) != content_id(row)
    write_manifest([{**row, "id": 7}], tmp_path / "m.jsonl")
    assert read_manifest(tmp_path / "m.jsonl")[0]["id"] == "7"


def test_csv_numbers_lists_and_delimiter(tmp_path):
    (tmp_path / "m.csv").write_text(
        "original_video;video;prompt;source_start;fps;distractor_paths\n"
        'a.mp4;b.mp4;"one, two";4;23.5;"[""x.mp4""]"\nc.mp4;;three;;;\n'
    )
    columns = {"original_video": "source_path", "video": "target_path", "prompt": "instruction"}
    first, second = read_manifest(tmp_path / "m.csv", columns=columns)
    assert (first["instruction"], first["source_start"], first["fps"]) == ("one, two", 4, 23.5)
    assert first["distractor_paths"] == ["x.mp4"]
    assert second["target_path"] is None
    assert second["source_start"] is None


def test_missing_column_is_named_with_those_there(tmp_path):
    (tmp_path / "m.jsonl").write_text(json.dumps({"source": "a.mp4", "prompt": "x"}))
    with pytest.raises(ManifestError, match=r"no column 'source_path' \(it has source, prompt\)"):
        read_manifest(tmp_path / "m.jsonl")
    rows = read_manifest(tmp_path / "m.jsonl", columns={"source": "source_path", "prompt": "instruction"})
    assert rows[0]["source_path"] == "a.mp4"
    with pytest.raises(ManifestError, match="no column 'target_path'"):
        read_manifest(
            tmp_path / "m.jsonl",
            columns={"source": "source_path", "prompt": "instruction"},
            required=("source_path", "target_path"),
        )


def test_columns_must_exist_and_not_collide(tmp_path):
    (tmp_path / "m.jsonl").write_text(json.dumps({"source": "a.mp4", "source_path": "b.mp4", "instruction": "x"}))
    with pytest.raises(ManifestError, match="already has a column 'source_path'"):
        read_manifest(tmp_path / "m.jsonl", columns={"source": "source_path"})
    with pytest.raises(ManifestError, match="has no 'video'"):
        read_manifest(tmp_path / "m.jsonl", columns={"video": "target_path"})


@pytest.mark.parametrize("bad", ["../a.mp4", "/tmp/a.mp4", "x/../../a.mp4", "", 3])
def test_paths_that_leave_the_root_are_refused(tmp_path, bad):
    (tmp_path / "m.jsonl").write_text(json.dumps({"source_path": bad, "instruction": "x"}))
    with pytest.raises(ManifestError, match="source_path in row 1"):
        read_manifest(tmp_path / "m.jsonl")
    with pytest.raises(ManifestError, match="distractor_paths in row 1"):
        write_manifest([{"source_path": "a", "instruction": "x", "distractor_paths": [bad]}], tmp_path / "w.parquet")
    assert not (tmp_path / "w.parquet").exists()


def test_links_out_of_the_root_are_refused(tmp_path):
    inside, outside = tmp_path / "root", tmp_path / "outside"
    inside.mkdir()
    outside.mkdir()
    (inside / "link").symlink_to(outside)
    assert resolve_path(inside, "a/b.mp4") == inside / "a" / "b.mp4"
    with pytest.raises(ManifestError, match="through a link"):
        resolve_path(inside, "link/b.mp4")
    with pytest.raises(ManifestError, match="leaves"):
        resolve_path(inside, "../outside/b.mp4")


def test_root_recorded_relative_so_that_the_folder_can_move(tmp_path):
    (tmp_path / "set" / "lists").mkdir(parents=True)
    path = write_manifest(ROWS, tmp_path / "set" / "lists" / "m.parquet", root=tmp_path / "set")
    assert pq.read_schema(path).metadata[b"icve.root"] == b".."
    (tmp_path / "set").rename(tmp_path / "moved")
    moved = read_manifest(tmp_path / "moved" / "lists" / "m.parquet")
    assert moved.root.resolve() == tmp_path / "moved"
    assert read_manifest(tmp_path / "moved" / "lists" / "m.parquet", root=tmp_path).root == tmp_path
    assert relative_path(moved.root / "lists" / "x.mp4", moved.root) == "lists/x.mp4"
    with pytest.raises(ManifestError, match="does not lie in"):
        relative_path(tmp_path / "x.mp4", tmp_path / "moved")


def test_jsonl_cannot_record_another_root(tmp_path):
    with pytest.raises(ManifestError, match="write Parquet"):
        write_manifest(ROWS, tmp_path / "a" / "m.jsonl", root=tmp_path)


def test_malformed_manifests_are_one_sentence(tmp_path):
    for name, text, match in [
        ("a.jsonl", '{"source_path": "a", "instr', "Line 1 of .* is not JSON"),
        ("b.jsonl", "[1]", "not a JSON object"),
        ("c.jsonl", "", "has no rows"),
        ("d.csv", "source_path,instruction\na\n", "another number of cells"),
        ("e.parquet", "no parquet", "not readable Parquet"),
        ("f.txt", "", "is not a manifest"),
        ("g.jsonl", '{"source_path": "a", "instruction": "x", "source_start": -1}', "source_start in row 1"),
        ("h.jsonl", '{"source_path": "a", "instruction": "x", "fps": "fast"}', "fps in row 1"),
    ]:
        (tmp_path / name).write_text(text)
        with pytest.raises(ManifestError, match=match) as error:
            read_manifest(tmp_path / name)
        assert "\n" not in str(error.value)
    with pytest.raises(ManifestError, match="no manifest at"):
        read_manifest(tmp_path / "nothing.jsonl")
    with pytest.raises(ManifestError, match="different types"):
        write_manifest([{**ROWS[0], "note": 1}, {**ROWS[1], "note": "x"}], tmp_path / "w.parquet")


def test_a_failed_write_leaves_the_old_file(tmp_path):
    path = write_manifest(ROWS, tmp_path / "m.jsonl")
    before = path.read_bytes()
    with pytest.raises(TypeError):
        write_manifest([{**ROWS[0], "note": object()}], path)
    assert path.read_bytes() == before
    assert [file.name for file in tmp_path.iterdir()] == ["m.jsonl"]
