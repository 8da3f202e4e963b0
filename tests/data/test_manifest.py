import datetime
import json
import os
import re
import shlex
import shutil
import subprocess
import sys
from decimal import Decimal
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from icve.data.manifest import (
    ROOTS,
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


@pytest.mark.parametrize("bad", ["../a.mp4", "/nowhere/a.mp4", "x/../../a.mp4", "", 3, "a\0.mp4"])
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


def test_a_failed_write_leaves_the_old_file(tmp_path):
    path = write_manifest(ROWS, tmp_path / "m.jsonl")
    before = path.read_bytes()
    with pytest.raises(TypeError):
        write_manifest([{**ROWS[0], "note": object()}], path)
    assert path.read_bytes() == before
    assert [file.name for file in tmp_path.iterdir()] == ["m.jsonl"]


GOOD = {"source_path": "a.mp4", "target_path": "b.mp4", "instruction": "make it red"}
BAD = [
    *({"instruction": value} for value in (float("nan"), 7, 2.5, True, ["a", "b"], {"a": 1}, "nan", "3.7", " None")),
    *({"source_start": value} for value in (-1, 3.5, float("nan"), "x", True, [1], 10**400, 2**60)),
    *({"fps": value} for value in ("fast", float("inf"), -1, {}, 1e-300)),
    *({"source_path": value} for value in (3, float("nan"), ["a.mp4"], "../a.mp4", "/elsewhere/a.mp4", "")),
    *({"mask_path": 3}, {"distractor_paths": 3}, {"distractor_paths": ["../x.mp4"]}, {"id": ["x"]}),
    *({"id": float("nan")}, {"instruction": "half \ud83d"}, {"note": ["half \ud83d"]}),
]


def test_a_bad_cell_costs_its_row_alone(tmp_path):
    lines = [json.dumps(GOOD | bad) for bad in BAD]
    (tmp_path / "m.jsonl").write_text("\n".join([json.dumps(GOOD), *lines, "{", json.dumps(GOOD | {"id": "last"})]))
    manifest = read_manifest(tmp_path / "m.jsonl", partial=True)
    assert [row["source_path"] for row in manifest] == ["a.mp4", "a.mp4"]
    assert [record.number for record in manifest.rejected] == list(range(2, len(BAD) + 3))
    for record, (name, *_) in zip(manifest.rejected, BAD, strict=False):
        assert record.reason.startswith(f"{name} in row {record.number} of {tmp_path}")
        assert record.reason.endswith(".")
        assert "\n" not in record.reason
        assert re.fullmatch("[0-9a-f]{16}", record.id)
    assert "is not JSON" in manifest.rejected[-1].reason


def test_what_is_left_out_is_told_where_nobody_else_does(tmp_path, caplog):
    bad = GOOD | {"instruction": float("nan")}
    (tmp_path / "m.jsonl").write_text("\n".join(map(json.dumps, [GOOD, bad])))
    assert len(read_manifest(tmp_path / "m.jsonl")) == 1
    assert "1 of 2 rows are left out; the first: instruction in row 2" in caplog.text
    (tmp_path / "m.jsonl").write_text(json.dumps(bad))
    with pytest.raises(ManifestError, match="no row that can be used: instruction in row 1"):
        read_manifest(tmp_path / "m.jsonl")
    assert len(read_manifest(tmp_path / "m.jsonl", partial=True).rejected) == 1


def test_parts_of_a_manifest_share_its_rows_and_rejected_records(tmp_path):
    rows = [GOOD, GOOD | {"fps": "x"}, GOOD, GOOD | {"fps": "y"}, GOOD]
    (tmp_path / "m.jsonl").write_text("\n".join(map(json.dumps, rows)))
    whole = read_manifest(tmp_path / "m.jsonl")
    parts = [whole.part(number, 2) for number in (1, 2)]
    assert [(len(part), len(part.rejected), part.root) for part in parts] == [(2, 1, tmp_path), (1, 1, tmp_path)]


def test_absolute_paths_inside_the_root_become_relative(tmp_path):
    (tmp_path / "linked").symlink_to(tmp_path)
    names = [tmp_path / "v" / "a.mp4", tmp_path / "linked" / "v" / "a.mp4", "v/a.mp4"]
    rows = [GOOD | {"source_path": str(name), "distractor_paths": [str(name)]} for name in names]
    (tmp_path / "m.jsonl").write_text("\n".join(map(json.dumps, rows)))
    for root in (tmp_path, tmp_path / "linked"):
        found = read_manifest(tmp_path / "m.jsonl", root=root)
        inside = [row["source_path"] for row in found]
        assert len(inside) == 3
        assert set(inside) <= {"v/a.mp4", "linked/v/a.mp4"}
        assert [row["distractor_paths"] for row in found] == [[name] for name in inside]
    assert resolve_path(tmp_path, str(names[0])) == names[0]
    (tmp_path / "other.jsonl").write_text(json.dumps(GOOD | {"source_path": str(tmp_path)}))
    with pytest.raises(ManifestError, match="leaves"):
        read_manifest(tmp_path / "other.jsonl")
    (tmp_path / "other.jsonl").write_text(json.dumps(GOOD | {"source_path": f"{tmp_path}-2/a.mp4"}))
    with pytest.raises(ManifestError, match="leaves"):
        read_manifest(tmp_path / "other.jsonl")
    assert read_manifest(tmp_path / "m.jsonl", root="/")[0]["source_path"] == str(names[0])[1:]


def test_the_root_is_resolved_once_for_all_absolute_paths(tmp_path, monkeypatch):
    rows = [GOOD | {"source_path": str(tmp_path / f"{n}.mp4")} for n in range(50)]
    (tmp_path / "m.jsonl").write_text("\n".join(map(json.dumps, rows)))
    resolved, resolve = [], Path.resolve
    monkeypatch.setattr(Path, "resolve", lambda path: resolved.append(path) or resolve(path))
    assert len(read_manifest(tmp_path / "m.jsonl")) == 50
    assert len(resolved) <= 1


def test_a_hugging_face_cache_is_used_as_it_is(tmp_path):
    repository = tmp_path / "hub" / "datasets--team--set"
    snapshot = repository / "snapshots" / "0123abc"
    (repository / "blobs").mkdir(parents=True)
    (snapshot / "videos").mkdir(parents=True)
    for name, up in (("metadata.jsonl", "../.."), ("videos/a.mp4", "../../..")):
        digest = name[-5:].encode().hex()
        (repository / "blobs" / digest).write_text(json.dumps(GOOD | {"source_path": "videos/a.mp4"}))
        (snapshot / name).symlink_to(f"{up}/blobs/{digest}")
    manifest = read_manifest(snapshot / "metadata.jsonl")
    file = resolve_path(manifest.root, manifest[0]["source_path"])
    assert file == snapshot / "videos" / "a.mp4"  # with its suffix
    assert file.is_file()
    (tmp_path / "short").symlink_to(snapshot)
    assert resolve_path(tmp_path / "short", "videos/a.mp4").is_file()
    (snapshot / "videos" / "b.mp4").symlink_to(tmp_path / "elsewhere.mp4")
    with pytest.raises(ManifestError, match="through a link"):
        resolve_path(snapshot, "videos/b.mp4")


def test_links_lead_into_folders_that_the_user_names(tmp_path, monkeypatch):
    for name in ("root", "disk one", "other"):
        (tmp_path / name).mkdir()
    (tmp_path / "root" / "videos").symlink_to(tmp_path / "disk one")
    (tmp_path / "root" / "b.mp4").symlink_to(tmp_path / "other" / "b.mp4")
    (tmp_path / "root" / "loop").symlink_to("loop")
    (tmp_path / "also").symlink_to(tmp_path / "disk one")
    monkeypatch.setenv(ROOTS, os.pathsep.join([str(tmp_path / "nothing"), str(tmp_path / "also"), ""]))
    assert resolve_path(tmp_path / "root", "videos/a.mp4") == tmp_path / "root" / "videos" / "a.mp4"
    for name in ("b.mp4", "loop/a.mp4"):
        with pytest.raises(ManifestError):
            resolve_path(tmp_path / "root", name)


def test_columns_of_every_type_are_carried_along(tmp_path):
    more = {
        "taken": datetime.datetime(2024, 5, 1, tzinfo=datetime.UTC),
        "price": Decimal("1.50"),
        "thumb": b"\xff\xd8",
        "meta": {"fps": 24, "tags": ["a"]},
        "raw_path": "/elsewhere/raw.mov",
    }
    table = pa.Table.from_pylist([GOOD | more])
    table = table.append_column("kind", pa.array(["x"]).dictionary_encode())
    table = table.append_column("long", pa.array(["y"], pa.large_string()))
    pq.write_table(table, tmp_path / "m.parquet")
    rows = read_manifest(tmp_path / "m.parquet")
    again = read_manifest(write_manifest(rows, tmp_path / "folder", root=rows.root))
    assert rows == again == [GOOD | more | {"kind": "x", "long": "y", "id": content_id(GOOD)}]
    lines = read_manifest(write_manifest(rows, tmp_path / "m.jsonl"))
    assert lines[0]["taken"] == "2024-05-01T00:00:00+00:00"
    assert lines[0]["meta"] == more["meta"]


def test_parts_may_differ_in_the_types_of_free_columns(tmp_path):
    for part, note in enumerate((1, "x", [2.5])):
        write_part([GOOD | {"note": note}], tmp_path, part)
    assert [row["note"] for row in read_manifest(tmp_path)] == [1, "x", [2.5]]


def test_everything_is_written_as_utf8_in_every_locale(tmp_path):
    text = "make it é\u2028 青い"
    code = (
        "from icve.data.manifest import *; import sys; rows = read_manifest(sys.argv[1]); "
        "write_manifest(rows, sys.argv[2]); print(ascii(rows[0]['instruction']))"
    )
    (tmp_path / "m.jsonl").write_text(json.dumps(GOOD | {"instruction": text}, ensure_ascii=False), encoding="utf-8")
    plain = {"LC_ALL": "C", "PYTHONUTF8": "0", "PYTHONCOERCECLOCALE": "0", "PYTHONIOENCODING": "ascii"}
    command = [sys.executable, "-c", code, str(tmp_path / "m.jsonl"), str(tmp_path / "out.jsonl")]
    done = subprocess.run(command, env=os.environ | plain, capture_output=True, text=True, check=True, timeout=60)
    assert done.stdout.strip() == ascii(text)
    written = (tmp_path / "out.jsonl").read_bytes().decode("utf-8")
    assert "é\\u2028 青い" in written  # escaped: some readers end a line there
    assert read_manifest(tmp_path / "out.jsonl")[0]["instruction"] == text


def test_a_path_beyond_the_locale_is_refused_alone_and_the_advice_is_followed(tmp_path):
    code = "from icve.data.manifest import *; import sys; resolve_path(sys.argv[1], 'caf\\xe9.mp4')"
    plain = os.environ | {"LC_ALL": "C", "PYTHONUTF8": "0", "PYTHONCOERCECLOCALE": "0"}
    for more, sentence in (({}, "ManifestError: The path 'caf\\xe9.mp4' cannot be said"), ({"PYTHONUTF8": "1"}, "")):
        command = [sys.executable, "-c", code, str(tmp_path)]
        done = subprocess.run(command, env=plain | more, capture_output=True, text=True, check=False, timeout=60)
        assert (done.returncode == 0) == (not sentence)
        assert sentence in done.stderr


def refused(path, **options) -> str:
    """The sentence for a manifest that cannot be used."""
    with pytest.raises(ManifestError) as error:
        read_manifest(path, **options)
    return str(error.value)


@pytest.mark.skipif(shutil.which("iconv") is None, reason="needs iconv")
@pytest.mark.parametrize("name", ["my table.csv", "m.jsonl"])
def test_advice_for_another_encoding_is_followed(tmp_path, name):
    text = "source_path,instruction\na,é\n" if name.endswith(".csv") else '{"source_path": "a", "instruction": "é"}'
    (tmp_path / name).write_bytes(text.encode("cp1252"))
    command = re.search("`(.*)`", refused(tmp_path / name))[1]
    subprocess.run(command, shell=True, check=True, timeout=20)
    (made,) = [file for file in tmp_path.iterdir() if file.name != name]
    assert shlex.quote(str(made)) in command
    assert read_manifest(made)[0]["instruction"] == "é"


def test_advice_for_columns_and_roots_is_followed(tmp_path, monkeypatch):
    store = tmp_path / "store"
    store.mkdir()
    (store / "a.mp4").touch()
    (store / "deep").mkdir()
    (tmp_path / "set").mkdir()
    path = tmp_path / "set" / "m.jsonl"

    path.write_text(json.dumps({"clip": "a.mp4", "instruction": "do"}))
    message = refused(path)
    assert "--columns ITS_NAME=source_path" in message
    theirs = re.search(r"it has (\w+)", message)[1]
    assert read_manifest(path, columns={theirs: "source_path"})[0]["source_path"] == "a.mp4"

    path.write_text(json.dumps(GOOD | {"source_path": str(store / "a.mp4")}))
    assert "name a folder that holds it as the root (--root" in refused(path)
    (row,) = rows = read_manifest(path, root=store)
    assert resolve_path(rows.root, row["source_path"]) == store / "a.mp4"

    names = ["../store/a.mp4", str(tmp_path / "set" / ".." / "store" / "a.mp4")]
    for name in names:
        path.write_text(json.dumps(GOOD | {"source_path": name}))
        assert "relative to a folder that holds all the files, and name it as the root (--root" in refused(path)
    files = [Path(os.path.abspath(path.parent / name)) for name in names]
    folder = os.path.commonpath([*files, path])
    rows = [GOOD | {"source_path": os.path.relpath(file, folder)} for file in files]
    path.write_text("\n".join(map(json.dumps, rows)))
    assert all(resolve_path(folder, row["source_path"]).is_file() for row in read_manifest(path, root=folder))

    (tmp_path / "set" / "linked").symlink_to(store)
    with pytest.raises(ManifestError, match="through a link") as error:
        resolve_path(path.parent, "linked/deep/a.mp4")
    name, value = re.search("`(.*)`", str(error.value))[1].split("=", 1)
    monkeypatch.setenv(name, *shlex.split(value))
    assert resolve_path(path.parent, "linked/a.mp4").is_file()

    with pytest.raises(ManifestError, match="write Parquet, or write it into") as error:
        write_manifest([GOOD], path, root=tmp_path)
    folder = re.search("write it into (.*)[.]$", str(error.value))[1]
    write_manifest([GOOD], f"{folder}/m.jsonl", root=tmp_path)
    write_manifest([GOOD], path.with_suffix(".parquet"), root=tmp_path)


def test_advice_for_cells_is_followed(tmp_path):
    path = tmp_path / "m.csv"
    for bad, advice, good in [
        ("a.mp4,7,0", "write what is to change", "a.mp4,make it red,0"),
        ("a.mp4,do,-1", "a whole number of at least 0", "a.mp4,do,0"),
        ("a.mp4,do", "another number of cells than the header (2, not 3)", "a.mp4,do,0"),
    ]:
        path.write_text(f"source_path,instruction,source_start\n{bad}\n")
        assert advice in refused(path)
        path.write_text(f"source_path,instruction,source_start\n{good}\n")
        assert len(read_manifest(path)) == 1
    path.write_text("source_path,instruction,source_path\na.mp4,do,b.mp4\n")
    assert "rename one of them" in refused(path)
    (tmp_path / "m.txt").touch()
    known = re.search("ending in (.*), or a folder", refused(tmp_path / "m.txt"))[1]
    assert {".csv", ".json", ".jsonl", ".ndjson", ".parquet", ".tsv"} == set(known.split(", "))
