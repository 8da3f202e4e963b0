import json

import pytest

from icve.data.manifest import ManifestError
from icve.editing.items import ItemError, read_items, safe_name, shard


def manifest(folder, rows):
    path = folder / "edits.jsonl"
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return path


def test_one_video(tmp_path):
    (tmp_path / "my clip.mp4").touch()
    (item,) = read_items(tmp_path / "my clip.mp4", " make it red ", seed=3)
    assert (item.id, item.instruction, item.seed) == ("my clip", "make it red", 3)
    assert item.name.startswith("my_clip-")


def test_a_folder_gives_its_videos_in_order_and_nothing_else(tmp_path):
    (tmp_path / "b").mkdir()
    for name in ("z.mp4", "a.mov", "b/a.mp4", "notes.txt", ".hidden.mp4", "z.webm"):
        (tmp_path / name).touch()
    items = read_items(tmp_path, "make it red")
    assert [item.id for item in items] == ["a", "b/a", "z.mp4", "z.webm"]
    assert len({item.name for item in items}) == 4


def test_names_may_be_anything(tmp_path):
    for name in ("caf\udce9.mp4", "caf\udce8.mp4", "a\nb.mp4", "x.m2ts"):
        (tmp_path / name).touch()
    (tmp_path / "notes.txt").touch()
    items = read_items(tmp_path, "make it red")
    assert [item.id for item in items] == ["a\nb", "caf\udce8", "caf\udce9", "x"]
    assert len({item.name for item in items}) == 4
    assert all(item.name.isascii() and item.problem is None for item in items)
    assert items.left_out == {"notes.txt": "not a video"}


def test_a_broken_link_has_its_problem(tmp_path):
    (tmp_path / "a.mp4").symlink_to("gone.mp4")
    (item,) = read_items(tmp_path, "make it red")
    assert "is a broken link: there is no gone.mp4." in item.problem


def test_half_a_character_in_an_instruction_is_a_problem(tmp_path):
    (tmp_path / "a.mp4").touch()
    (item,) = read_items(tmp_path / "a.mp4", "make it \ud83d")
    assert "no text" in item.problem


@pytest.mark.parametrize("suffix", ["jsonl", "json", "csv", "TSV", "parquet"])
def test_manifests_of_every_kind(tmp_path, suffix):
    rows = [
        {"id": "one", "source_path": "a.mp4", "instruction": "remove the dog", "seed": 5},
        {"id": "two", "source_path": "a.mp4", "instruction": "add a cat", "seed": 6},
    ]
    path = tmp_path / f"edits.{suffix}"
    if suffix == "jsonl":
        manifest(tmp_path, rows)
    elif suffix == "json":
        path.write_text(json.dumps(rows))
    elif suffix in ("csv", "TSV"):
        text = "id,source_path,instruction,seed\none,a.mp4,remove the dog,5\ntwo,a.mp4,add a cat,6\n"
        path.write_text(text if suffix == "csv" else text.replace(",", "\t"))
    else:
        from icve.data.manifest import write_manifest

        write_manifest(rows, path)
    items = read_items(path)
    assert [(i.id, i.name, i.instruction, i.seed, i.problem) for i in items] == [
        ("one", "one", "remove the dog", 5, None),
        ("two", "two", "add a cat", 6, None),
    ]
    assert items[0].source == items[1].source == tmp_path / "a.mp4"


def test_what_a_killed_process_left_makes_no_manifest_of_a_folder(tmp_path):
    (tmp_path / "a.mp4").touch()
    (tmp_path / ".part-0.parquet").touch()
    assert [item.id for item in read_items(tmp_path, "make it red")] == ["a"]


def test_rows_that_cannot_be_edited_say_why_and_cost_nobody_else(tmp_path):
    outside = tmp_path / "outside"
    outside.mkdir()
    inside = tmp_path / "inside"
    inside.mkdir()
    (inside / "link.mp4").symlink_to(outside / "secret.mp4")
    rows = [
        {"source_path": "a.mp4", "instruction": "  "},
        {"source_path": "", "instruction": "do"},
        {"source_path": "link.mp4", "instruction": "do"},
        {"source_path": "a.mp4", "instruction": "do", "seed": "x"},
        {"source_path": "a.mp4", "instruction": "do"},
    ]
    rows[1]["source_path"] = None
    problems = [item.problem for item in read_items(manifest(inside, rows))]
    assert problems[0] == "Its instruction is empty: say what to change."
    assert problems[1] == "It has no source_path."
    assert "through a link" in problems[2]
    assert "'x' is not a whole number" in problems[3]
    assert problems[4] is None


def test_a_bad_cell_or_line_is_one_item_with_its_problem_in_its_place(tmp_path):
    good = {"source_path": "a.mp4", "instruction": "do"}
    bad = [
        *({"instruction": value} for value in (float("nan"), 7, ["a"], "nan")),
        *({"seed": value} for value in (float("nan"), float("inf"), 3.7, "3.7", "x", True, 2**64, [1], "9" * 5000)),
        *({"source_start": -1}, {"source_path": "../a.mp4"}, {"source_path": "half \ud83d"}),
    ]
    rows = [good | {"id": "first", "seed": "3.0"}, *(good | cell for cell in bad), good | {"id": "last", "seed": -4}]
    path = manifest(tmp_path, rows)
    lines = path.read_text().splitlines()
    path.write_text("\n".join([*lines[:-1], '{"broken', lines[-1]]))
    items = read_items(path)
    assert [item.id for item in (items[0], items[-1])] == ["first", "last"]
    assert [items[0].seed, items[-1].seed] == [3, -4]
    assert [item.problem is None for item in items] == [True, *([False] * (len(bad) + 1)), True]
    for item, (name, *_) in zip(items[1:], bad, strict=False):
        assert name in item.problem
    assert "is not JSON" in items[-2].problem
    assert len({item.id for item in items}) == len({item.name for item in items}) == len(items)
    with_default = read_items(path, "do this")
    assert [item.problem is None for item in with_default] == [item.problem is None for item in items]


def test_the_same_edit_twice_becomes_two_items(tmp_path):
    row = {"id": "a", "source_path": "a.mp4", "instruction": "do"}
    items = read_items(manifest(tmp_path, [row, row | {"id": "A"}, row]))
    assert [item.id for item in items] == ["a", "A", "a#2"]
    assert len({item.name.casefold() for item in items}) == 3


@pytest.mark.parametrize(
    ("text", "name"),
    [
        ("clip_01.a-b", "clip_01.a-b"),
        ("../../etc/passwd", "etc_passwd"),
        ("ünï", "n"),
        ("...", "_"),
        ("con", "_con"),
        ("x" * 300, "x" * 80),
    ],
)
def test_safe_names(text, name):
    assert safe_name(text) == name


def test_shards_share_all_items_and_split_no_source(tmp_path):
    rows = [{"source_path": f"{n // 3}.mp4", "instruction": f"do {n}"} for n in range(21)]
    items = read_items(manifest(tmp_path, rows))
    parts = [shard(items, f"{i}/3") for i in (1, 2, 3)]
    assert sorted(item.id for part in parts for item in part) == sorted(item.id for item in items)
    sources = [{item.source for item in part} for part in parts]
    assert not sources[0] & sources[1]
    assert not sources[1] & sources[2]
    assert [len(part) for part in parts] == [9, 6, 6]


@pytest.mark.parametrize("text", ["0/3", "4/3", "1", "a/b", "1/0", "-1/2", "²/3"])
def test_wrong_shards(text):
    with pytest.raises(ValueError, match="shard is i/n"):
        shard([], text)


def test_inputs_that_give_nothing(tmp_path):
    with pytest.raises(ItemError, match="does not exist"):
        read_items(tmp_path / "absent.mp4", "do")
    with pytest.raises(ItemError, match="no video in"):
        read_items(tmp_path, "do")
    (tmp_path / "a.mp4").touch()
    with pytest.raises(ItemError, match="instruction is empty"):
        read_items(tmp_path / "a.mp4", " ")
    with pytest.raises(ItemError, match="needs an --instruction"):
        read_items(tmp_path / "a.mp4")
    with pytest.raises(ManifestError, match="source_path"):
        read_items(manifest(tmp_path, [{"video": "a.mp4", "instruction": "do"}]))
    with pytest.raises(ManifestError, match="instruction"):
        read_items(manifest(tmp_path, [{"source_path": "a.mp4"}]))
