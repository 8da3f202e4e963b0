import os
import time

import pytest

from icve.curation import copies
from icve.curation.copies import content_digest, mark_copies
from icve.curation.raw_videos import assign_shards, find_inputs
from icve.curation.stage import Rejected
from icve.data.identity import file_digest

LARGE = bytes(range(256)) * 10_000


@pytest.fixture
def raw(tmp_path):
    folder = tmp_path / "raw"
    folder.mkdir()
    contents = {"a": LARGE, "b": LARGE[::-1], "c": LARGE, "d": b"short", "empty1": b"", "empty2": b"", "e": LARGE}
    for name, content in contents.items():
        (folder / f"{name}.mp4").write_bytes(content)
    return folder


@pytest.fixture
def read(monkeypatch):
    """Names of the files whose content was read to find copies; "whole NAME" of those that were read whole."""
    names = []
    monkeypatch.setattr(copies, "file_digest", lambda file: names.append(file.name) or file_digest(file))
    monkeypatch.setattr(
        copies, "content_digest", lambda file: names.append(f"whole {file.name}") or content_digest(file)
    )
    return names


def marked(raw, tmp_path, order=None):
    inputs = find_inputs(raw)
    return mark_copies(tmp_path / "digests.parquet", inputs, order or inputs.names)


def test_the_first_of_equal_files_stays_and_only_files_of_equal_size_are_read(raw, tmp_path, read):
    found = marked(raw, tmp_path)
    assert found.copies == {"c.mp4": "a.mp4", "e.mp4": "a.mp4"}
    assert sorted(read) == ["a.mp4", "b.mp4", "c.mp4", "e.mp4", "whole a.mp4", "whole c.mp4", "whole e.mp4"]
    rows = dict(zip(found.names, found.read(found.names), strict=True))
    row, why = rows["c.mp4"]
    assert row["video"] == "c.mp4"
    assert why == Rejected("duplicate", "the same file as a.mp4")
    assert sum(isinstance(row, dict) for row in rows.values()) == 5
    assert marked(raw, tmp_path, ["e.mp4", "a.mp4", "b.mp4"]).copies == {"a.mp4": "e.mp4"}


def test_files_that_differ_in_any_byte_are_no_copies(raw, tmp_path, read):
    """One that `file_digest`, which takes samples of a large file, does not see."""
    changed = bytearray(LARGE)
    changed[100_000] ^= 1  # between its first two samples
    (raw / "c.mp4").write_bytes(changed)
    assert file_digest(raw / "c.mp4") == file_digest(raw / "a.mp4")
    assert marked(raw, tmp_path).copies == {"e.mp4": "a.mp4"}
    read.clear()
    assert marked(raw, tmp_path).copies == {"e.mp4": "a.mp4"}
    assert read == []


def test_what_was_read_is_read_again_only_where_it_changed(raw, tmp_path, read):
    before = marked(raw, tmp_path)
    read.clear()
    assert marked(raw, tmp_path) == before
    assert read == []
    time.sleep(0.01)
    (raw / "a.mp4").write_bytes(LARGE[::-1])
    after = marked(raw, tmp_path)
    assert after.copies == {"b.mp4": "a.mp4", "e.mp4": "c.mp4"}
    assert sorted(read) == ["a.mp4", "whole a.mp4", "whole b.mp4"]
    # A shard is done anew where a file became a copy, ceased to be one, or is now one of another file.
    changed = [name for name in after.names if before.state([name]) != after.state([name])]
    assert changed == ["b.mp4", "c.mp4", "e.mp4"]


def test_what_cannot_be_read_is_nobodys_copy(raw, tmp_path):
    (tmp_path / "elsewhere.mp4").write_bytes(LARGE)
    (raw / "0_link.mp4").symlink_to(tmp_path / "elsewhere.mp4")
    (raw / "within.mp4").symlink_to(raw / "a.mp4")
    gone = [*find_inputs(raw).names, "gone.mp4"]
    assert marked(raw, tmp_path, gone).copies == {"c.mp4": "a.mp4", "e.mp4": "a.mp4", "within.mp4": "a.mp4"}


@pytest.mark.skipif(os.name == "nt", reason="names are text there")
def test_a_name_that_is_no_text_stops_nothing(raw, tmp_path):
    with open(os.path.join(os.fsencode(raw), b"e\xff.mp4"), "wb") as file:
        file.write(LARGE)
    inputs = find_inputs(raw)
    for _ in range(2):
        shards = assign_shards(tmp_path / "shards.parquet", inputs, None, 3)
        assert sorted(name for names in shards.values() for name in names) == sorted(inputs.names)
        assert marked(raw, tmp_path).copies["e\udcff.mp4"] == "a.mp4"
    (row, why) = marked(raw, tmp_path).read(["e\udcff.mp4"])[0]
    assert (row["video"], why.reason) == ("e?.mp4", "duplicate")


def test_rows_of_a_manifest_are_all_kept(raw, tmp_path, read):
    row = '{"source_path": "%s.mp4", "instruction": "go", "video": "%s.mp4"}\n'
    (raw / "list.jsonl").write_text("".join(row % (name, name) for name in "ac"))
    assert marked(raw / "list.jsonl", tmp_path).copies == {}
    assert read == []
