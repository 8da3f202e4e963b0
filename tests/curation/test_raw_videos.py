import json

import pytest

from icve.curation.part_files import read_part, write_part
from icve.curation.raw_videos import find_inputs
from icve.curation.stage import Rejected


def test_what_a_folder_holds_is_input_or_has_a_reason(tmp_path):
    for name in ("a.mp4", "b.MTS", "caf\udce9.mp4", "notes.txt"):
        (tmp_path / name).write_bytes(name.encode("utf-8", "surrogateescape"))
    (tmp_path / "broken.mp4").symlink_to("gone.mp4")
    inputs = find_inputs(tmp_path)
    assert inputs.names == ["a.mp4", "b.MTS", "broken.mp4", "caf\udce9.mp4"]
    assert inputs.left_out == {"notes.txt": "not a video"}
    first, second, broken, unreadable = inputs.read(inputs.names)
    assert (first["video"], second["video"]) == ("a.mp4", "b.MTS")
    assert (broken[1].reason, broken[1].detail, broken[1].transient) == ("broken link", "there is no gone.mp4", True)
    assert unreadable[1].reason == "unreadable name"
    assert unreadable[1].detail.startswith("caf\\xe9.mp4 is no UTF-8")


def test_a_file_of_any_suffix_is_an_input(tmp_path):
    (tmp_path / "a.vob").write_bytes(b"x")
    assert find_inputs(tmp_path / "a.vob").names == ["a.vob"]


def test_a_folder_without_videos_says_what_it_holds(tmp_path):
    (tmp_path / "notes.txt").write_text("x")
    (tmp_path / "_part.parquet").mkdir()
    with pytest.raises(ValueError, match=r"no video in .*not a video: 1 \(notes.txt\)"):
        find_inputs(tmp_path)


def test_rejections_of_what_is_no_text_can_be_written(tmp_path):
    row = {"key": "k", "instruction": "half \ud83d"}
    rejected = [(row, Rejected("unreadable text", "caf\udce9"))]
    write_part(tmp_path / "p.parquet", "x", {}, [{"key": "j", "instruction": "red"}], rejected, 1, 0.0)
    kept, ((row, why),) = read_part(tmp_path / "p.parquet")
    assert json.dumps(kept) == '[{"key": "j", "instruction": "red"}]'
    assert (row["instruction"], why.detail) == ("half \\ud83d", "caf\\xe9")


def test_a_rejected_row_makes_no_text_of_what_the_others_hold(tmp_path):
    rows = [
        {"id": f"r{n}", "source_path": "a.mp4", "instruction": "do", "source_start": start, "meta": meta, "sure": None}
        for n, (start, meta) in enumerate([(24, {"fps": 25.0}), ("?", "broken"), (0, None)])
    ]
    (tmp_path / "list.json").write_text(json.dumps(rows))
    inputs = find_inputs(tmp_path / "list.json")
    found = inputs.read(inputs.names)
    good, bad = [row for row in found if isinstance(row, dict)], [row for row in found if not isinstance(row, dict)]
    write_part(tmp_path / "p.parquet", "x", {}, good, bad, len(good), 0.0)
    assert read_part(tmp_path / "p.parquet") == (good, bad)
    assert [row["source_start"] for row in good] == [24, 0]
    assert good[0]["meta"] == {"fps": 25.0}
    more = [*bad, ({"key": "n", "source_start": 7, "sure": None, "tags": [1]}, Rejected("too dark", "", True))]
    write_part(tmp_path / "p.parquet", "x", {}, [], more, 0, 0.0)
    assert [row["source_start"] for row, _ in read_part(tmp_path / "p.parquet")[1]] == ["?", "7"]
