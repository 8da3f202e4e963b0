import csv
import io
import json
import shutil
import subprocess
import sys
import tarfile
import time
from argparse import ArgumentParser
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from icve.curation.importers import import_set, open_tables
from icve.curation.importers.archives import find_archives, unpack
from icve.curation.importers.command import add_arguments, run
from icve.curation.importers.edit_types import edit_type
from icve.curation.importers.tables import Malformed, read_records
from icve.data.buckets import Bucket
from icve.data.edits import PairedEditsDataModule
from icve.data.manifest import ManifestError, read_manifest, resolve_path
from icve.data.video import write_video


@pytest.fixture(scope="module")
def video(tmp_path_factory):
    """Bytes of a video of 9 frames, and of one of 7."""
    folder, frames = tmp_path_factory.mktemp("videos"), np.random.default_rng(0)
    clip = frames.integers(0, 255, (9, 48, 64, 3)).astype(np.uint8)
    for length in (9, 7):
        write_video(folder / f"{length}.mp4", clip[:length], 8)
    return {length: (folder / f"{length}.mp4").read_bytes() for length in (9, 7)}


@pytest.fixture
def put(tmp_path, video):
    """Writes files of a set: bytes, text, a list as JSON, or True for a video (or its number of frames)."""

    def write(**files):
        for name, content in files["files"].items():
            path = tmp_path / "set" / name
            path.parent.mkdir(parents=True, exist_ok=True)
            if isinstance(content, (list, dict)):
                content = json.dumps(content)
            data = content.encode() if isinstance(content, str) else content
            path.write_bytes(video[9 if data is True else data] if isinstance(data, int) else data)
        return tmp_path / "set"

    return write


def rows_of(report):
    return list(read_manifest(report.manifest))


def rejections(report):
    return [row for part in sorted(report.rejections.glob("*.parquet")) for row in pq.read_table(part).to_pylist()]


def checked(report, source):
    """The rows; every record is accounted for, and every path leads to its file."""
    rows = rows_of(report)
    assert report.read == report.kept + sum(report.rejected.values())
    assert report.kept == len(rows) == sum(report.types.values())
    assert len(rejections(report)) == sum(report.rejected.values())
    root = read_manifest(report.manifest).root
    assert root == source
    for row in rows:
        for name, value in row.items():
            if name.endswith("_path") and value is not None:
                assert resolve_path(root, value).is_file()
    return rows


def test_ditto(put, tmp_path):
    pairs = [("global_style1", "Make it anime.", "style"), ("local", "Remove the cup.", "remove")]
    pairs += [("global_freeform2", "Replace the road with a river.", "replace")]
    records = [
        {"source_path": f"source/{n}.mp4", "instruction": text, "edited_path": f"{task}/{n}_edited.mp4"}
        for n, (task, text, _) in enumerate(pairs)
    ]
    videos = {f"videos/{r[k]}": True for r in records for k in ("source_path", "edited_path")}
    # The CSVs of the set list the same pairs again.
    again = "video,vace_video,prompt\nlocal/1_edited.mp4,source/1.mp4,Remove the cup.\n"
    source = put(files={"training_metadata/all.json": records, "csvs_for_DiffSynth/a.csv": again, **videos})
    rows = checked(import_set("ditto", source, tmp_path / "out"), source)
    assert [(row["edit_type"], row["edit_subtype"]) for row in rows] == [(kind, task) for task, _, kind in pairs]
    assert rows[0]["source_path"] == "videos/source/0.mp4"
    assert rows[0]["target_path"] == "videos/global_style1/0_edited.mp4"
    assert (rows[0]["width"], rows[0]["height"], rows[0]["source_frames"], rows[0]["fps"]) == (64, 48, 9, 8)

    shutil.rmtree(source / "training_metadata")
    (row,) = checked(import_set("ditto", source, tmp_path / "from_csv"), source)
    assert (row["source_path"], row["instruction"]) == ("videos/source/1.mp4", "Remove the cup.")
    assert row["id"] == rows[1]["id"]


@pytest.mark.parametrize("delimiter", [",", ";", "\t"])
def test_openve_delimiters_and_types(put, tmp_path, delimiter):
    text = io.StringIO()
    writer = csv.writer(text, delimiter=delimiter)
    prompt = 'Change "the shirt", now blue; to red,\nbright red'
    writer.writerows([["original_video", "video", "prompt"], ["o/1.mp4", "e/1.mp4", prompt]])
    videos = {"videos/o/1.mp4": True, "videos/e/1.mp4": 7}
    tables = {"csv/global_style.csv": text.getvalue(), "csv/local_change.csv": text.getvalue().replace("e/1", "e/2")}
    source = put(files={**tables, **videos, "videos/e/2.mp4": True})
    rows = checked(import_set("openve", source, tmp_path / "out"), source)
    assert [row["instruction"] for row in rows] == [prompt, prompt]
    assert [(row["edit_subtype"], row["edit_type"]) for row in rows] == [
        ("global_style", "style"),
        ("local_change", "recolour"),
    ]
    assert rows[0]["source_frames"] == rows[0]["target_frames"] == 7  # as many as both have


def test_insvie_by_position(put, tmp_path):
    table = "a,b,c,d,e\nx.mp4,a dog,Replace the dog with a cat,a cat,cfg7\n"
    source = put(files={"train.csv": table, "original/x.mp4": True, "cfg7/x.mp4": True})
    report = import_set("insvie", source, tmp_path / "out", folders={"source_path": "original"})
    (row,) = checked(report, source)
    assert (row["source_path"], row["target_path"]) == ("original/x.mp4", "cfg7/x.mp4")
    assert (row["edit_type"], row["source_caption"], row["edit_caption"]) == ("replace", "a dog", "a cat")


def test_senorita_folders_differ_from_its_tables(put, tmp_path):
    def record(folder, name, more=""):
        paths = {"source_video_path": f"./{folder}/00/{name}_org.mp4", "target_video_path": f"./{folder}/00/{name}.mp4"}
        return {**paths, "instruction": f"Remove it{more}", "enhanced_instruction": f"Remove the cup {name}"}

    tables = {"removal.json": [[record("obj_removal_videos", "a")]], "swap.json": [record("obj_swap_videos", "b")]}
    folders = {"a": "obj_removal_videos_upload2", "b": "obj_swap_upload"}
    videos = {f"{folder}/00/{name}{end}.mp4": True for name, folder in folders.items() for end in ("", "_org")}
    source = put(files={**tables, **videos})
    rows = checked(import_set("senorita", source, tmp_path / "out"), source)
    assert [row["edit_type"] for row in rows] == ["remove", "replace"]
    assert rows[0]["target_path"] == "obj_removal_videos_upload2/00/a.mp4"
    mapped = import_set("senorita", source, tmp_path / "mapped", {"enhanced_instruction": "instruction"})
    assert [(row["instruction"], row["original_instruction"]) for row in checked(mapped, source)] == [
        ("Remove the cup a", "Remove it"),
        ("Remove the cup b", "Remove it"),
    ]


def test_reco_with_and_without_masks(put, tmp_path):
    files = {}
    for task in ("add", "style"):
        paths = {"src_video": f"{task}/src_videos/s.mp4", "tar_video": f"{task}/tar_videos/t.mp4"}
        files |= dict.fromkeys(paths.values(), True)
        files[f"{task}/{task}_data_configs.json"] = [paths | {"instruction_final_refine": "Do it.", "boxes": [[1, 2]]}]
    source = put(files=files | {"video_masks/add/t.mp4": True})
    rows = checked(import_set("reco", source, tmp_path / "out"), source)
    assert [row["edit_type"] for row in rows] == ["add", "style"]
    assert [row["mask_video_path"] for row in rows] == ["video_masks/add/t.mp4", None]
    assert rows[0]["boxes"] == "[[1, 2]]"


def test_kiwi_parquet_without_its_pictures(put, tmp_path):
    source = put(files={"v/s.mp4": True, "v/t.mp4": True, "r/1.jpg": "picture"})
    table = pa.table(
        {
            "src_video": ["v/s.mp4"],
            "tgt_video": ["v/t.mp4"],
            "prompt": ["Add a hat"],
            "ref_image": ["r/1.jpg"],
            "ref_image_bytes": [b"\xff\xd8"],
        }
    )
    pq.write_table(table, source / "chunk_0.parquet")
    (row,) = checked(import_set("kiwi", source, tmp_path / "out"), source)
    assert (row["edit_type"], row["reference_path"]) == ("add", "r/1.jpg")
    assert "ref_image_bytes" not in row


def test_vera_keeps_its_layers(put, tmp_path):
    names = ("input_video_path", "edit_rgb_path", "edit_alpha_path", "mask_path", "composite_path")
    record = {name: f"set1/{name}.mp4" for name in names} | {"edit_instruction": "Change the background to a beach."}
    table = "vera-train-set/49-frames/realistic-set1-bg-change.jsonl"
    videos = {f"vera-train-set/49-frames/{record[name]}": True for name in names}
    source = put(files={table: json.dumps(record) + "\n", **videos})
    (row,) = checked(import_set("vera", source, tmp_path / "out"), source)
    assert (row["edit_type"], row["edit_subtype"]) == ("background", "bg-change")
    assert row["target_path"].endswith("composite_path.mp4")
    assert row["edit_layer_path"].endswith("edit_rgb_path.mp4")
    assert row["mask_video_path"].endswith("mask_path.mp4")
    assert row.get("mask_path") is None  # means masks of another format here


def test_any_table_with_a_mapping(put, tmp_path):
    table = "before|after|text|kind|width|edit_subtype\na.mp4|b.mp4|Paint it|Local Remove|3|person\n"
    source = put(files={"pairs.csv": table, "videos/a.mp4": True, "videos/b.mp4": True})
    columns = {"before": "source_path", "after": "target_path", "text": "instruction", "kind": "edit_type"}
    folders = {"source_path": "videos", "target_path": "videos"}
    (row,) = checked(import_set("csv", source / "pairs.csv", tmp_path / "out", columns, folders=folders), source)
    assert (row["edit_type"], row["edit_subtype"], row["dataset"]) == ("remove", "person", "csv")
    assert (row["width"], row["original_width"]) == (64, "3")


def test_every_bad_record_is_rejected_with_its_reason(put, tmp_path):
    good = {"src": "a.mp4", "dst": "b.mp4", "text": "Add a hat."}
    (tmp_path / "elsewhere.mp4").write_bytes(b"")
    bad = {
        "malformed record": [17, ["x"], good | {"src": 3}],
        "no instruction": [good | {"text": "  "}, {"src": "a.mp4", "dst": "b.mp4"}],
        "no target_path": [good | {"dst": None}],
        "path leaves the root": [
            good | {"dst": "../elsewhere.mp4"},
            good | {"src": "/etc/hostname"},
            good | {"src": "link.mp4"},
        ],
        "missing file": [good | {"src": "absent.mp4"}, good | {"dst": "a\0b"}, good | {"dst": "\ud800.mp4"}],
        "unreadable video": [good | {"dst": "text.mp4"}, good | {"src": "empty.mp4"}],
        "source is target": [good | {"dst": "a.mp4"}],
        "duplicate": [good, good | {"note": "other columns do not make it another edit"}],
    }
    # A list within a list is no record but a list of records.
    records = [good, *(record for group in bad.values() for record in group)]
    source = put(files={"t.json": records, "a.mp4": True, "b.mp4": True, "text.mp4": "no video", "empty.mp4": ""})
    (source / "link.mp4").symlink_to(tmp_path / "elsewhere.mp4")
    columns = {"src": "source_path", "dst": "target_path", "text": "instruction"}
    report = import_set("csv", source, tmp_path / "out", columns)
    (row,) = checked(report, source)
    assert row["instruction"] == "Add a hat."
    assert dict(report.rejected) == {reason: len(group) for reason, group in bad.items()}
    found = rejections(report)
    assert all(row["stage"] == "import" and row["table"] == "t.json" and row["record"] for row in found)
    assert [row["record_number"] for row in found] == list(range(2, len(records) + 1))
    assert json.loads(found[2]["record"])["src"] == 3
    details = {row["reason"]: row["detail"] for row in found}
    assert "text.mp4" in details["unreadable video"] or "empty.mp4" in details["unreadable video"]


def test_checks(put, tmp_path):
    records = [{"src_video": "a.mp4", "tgt_video": name, "prompt": "Add it"} for name in ("b.mp4", "c.mp4", "d.mp4")]
    table = "src_video,tgt_video,prompt\n" + "".join(",".join(record.values()) + "\n" for record in records)
    source = put(files={"k.csv": table, "a.mp4": True, "b.mp4": True, "c.mp4": "no video"})
    kept = {
        check: import_set("kiwi", source, tmp_path / check, check=check).kept for check in ("none", "exists", "probe")
    }
    assert kept == {"none": 3, "exists": 2, "probe": 1}


def test_a_rerun_does_what_is_missing(put, tmp_path, monkeypatch):
    monkeypatch.setattr(open_tables, "BLOCK", 4)
    count = 14
    records = [
        {"src_video": f"s{n}.mp4", "tar_video": f"t{n}.mp4", "instruction_final_refine": f"Add {n}"}
        for n in range(count)
    ]
    videos = {record[key]: True for record in records for key in ("src_video", "tar_video")}
    absent = videos.pop("t5.mp4")
    table = "add/add_data_configs.json"
    source, output = put(files={table: records, **videos}), tmp_path / "out"
    first = import_set("reco", source, output, limit=10)
    assert (first.read, first.kept, dict(first.rejected)) == (10, 9, {"missing file": 1})

    def stamps():
        return {path.name: path.stat().st_mtime_ns for path in sorted((output / "rejected").glob("*.parquet"))}

    before = stamps()
    (output / "rejected" / sorted(before)[2]).unlink()  # as if it had been killed here
    put(files={"t5.mp4": absent})
    second = import_set("reco", source, output)
    assert [row["instruction"] for row in checked(second, source)] == [f"Add {n}" for n in range(count)]
    after = stamps()
    same = [after[name] == stamp for name, stamp in sorted(before.items())]
    assert same == [True, False, False]  # the second block had missed a file

    before = stamps()
    third = import_set("reco", source, output)
    assert stamps() == before
    assert (third.read, third.kept, third.types) == (second.read, second.kept, second.types)
    put(files={table: records[:6] + records[5:6]})
    shorter = import_set("reco", source, output)
    assert len(checked(shorter, source)) == 6
    assert dict(shorter.rejected) == {"duplicate": 1}
    assert len(stamps()) == 2

    with pytest.raises(ManifestError, match="another import"):
        import_set("reco", source, output, root=source / "add")


@pytest.mark.multiprocess
@pytest.mark.timeout(90)
def test_a_killed_import_goes_on(put, tmp_path):
    count = 12 * open_tables.BLOCK
    table = "src_video,tgt_video,prompt\n" + "".join(f"a.mp4,b.mp4,Add {n}\n" for n in range(count))
    source, output = put(files={"k.csv": table}), tmp_path / "out"
    command = [sys.executable, "-m", "icve.curate", "import", "kiwi", str(source), "--output", str(output)]
    process = subprocess.Popen([*command, "--check", "none"], stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    try:
        while process.poll() is None and len(list(output.glob("rejected/part-*.parquet"))) < 3:
            time.sleep(0.01)
    finally:
        process.kill()
        process.wait()
    before = {path: path.stat().st_mtime_ns for path in output.glob("rejected/part-*.parquet")}
    assert len(before) >= 3
    report = import_set("kiwi", source, output, check="none")
    assert {path: path.stat().st_mtime_ns for path in before} == before
    rows = rows_of(report)
    assert report.read == report.kept == len(rows) == len({row["id"] for row in rows}) == count


def test_repeats_are_found_across_blocks_and_reruns(put, tmp_path, monkeypatch):
    monkeypatch.setattr(open_tables, "BLOCK", 2)
    names = ["1", "2", "1", "3", "2"]
    table = "src_video,tgt_video,prompt\n" + "".join(f"a.mp4,b.mp4,Add {name}\n" for name in names)
    source = put(files={"k.csv": table, "a.mp4": True, "b.mp4": True})
    for _ in range(2):
        report = import_set("kiwi", source, tmp_path / "out")
        assert (report.kept, dict(report.rejected)) == (3, {"duplicate": 2})
        last = sorted((tmp_path / "out" / "rejected").glob("*.parquet"))[-1]
        last.unlink()


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ('[{"src_video": "a", "tgt_video": "b", "prompt": "x"}, {"src', "cut off or damaged"),
        ('[{"src_video": "a", "tgt_video": "b", "prompt": "x"}', "does not end"),
        ('[{"video": "a"}]', "has no column 'src_video', 'tgt_video', 'prompt' .it has video"),
        ("[]", "hold no records"),
    ],
)
def test_tables_that_cannot_be_used(put, tmp_path, text, message):
    source = put(files={"t.json": text})
    with pytest.raises(ManifestError, match=message):
        import_set("kiwi", source / "t.json", tmp_path / "out")


def test_wrong_arguments(put, tmp_path):
    source = put(files={"k.csv": "src_video,tgt_video,prompt\n"})
    for arguments, message in [
        ({"kind": "davis"}, "known are senorita"),
        ({"check": "decode"}, "must be one of"),
        ({"limit": 0}, "at least 1"),
        ({"folders": {"source": "x"}}, "no column with paths"),
        ({"columns": {"a": "instruction", "b": "instruction"}}, "mapped to twice"),
        ({"columns": {"a": "id"}}, "cannot map to id"),
        ({"tables": ["/etc/*.csv"]}, "below"),
        ({"tables": ["no*.csv"]}, "There is no table"),
    ]:
        with pytest.raises(ValueError, match=message):
            import_set(**{"kind": "kiwi", "source": source, "output": tmp_path / "out"} | arguments)
    with pytest.raises(FileNotFoundError):
        import_set("kiwi", tmp_path / "nowhere", tmp_path / "out")
    assert not (tmp_path / "out").exists()


def test_json_is_read_in_pieces(tmp_path, monkeypatch):
    monkeypatch.setattr("icve.curation.importers.tables._CHUNK", 7)
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
    (tmp_path / "latin.csv").write_bytes("a,b\né,2\n".encode("latin-1"))
    with pytest.raises(ManifestError, match="UTF-8"):
        list(read_records(tmp_path / "latin.csv"))


@pytest.mark.parametrize(
    ("task", "instruction", "kind"),
    [
        ("obj_removal_videos_upload2", "whatever", "remove"),
        ("local_style_transfer", "", "style"),
        ("Background Change", "", "background"),
        ("creative_edit", "Add a dragon", "other"),
        ("global_style2", "", "style"),
        ("local", "Remove the people in the background.", "remove"),
        ("local", "Add a painting on the wall", "add"),
        ("local", "Change the car's colour to blue", "recolour"),
        ("local_change", "Give the man a beard", "replace"),
        ("", "Turn the sky background into a galaxy", "background"),
        ("", "Turn the dog into a cat", "replace"),
        ("", "Make the dress red.", "recolour"),
        ("", "Transform this video into a watercolor painting", "style"),
        ("", "Add an oil painting style", "style"),
        ("", "Let it snow", "other"),
    ],
)
def test_edit_types(task, instruction, kind):
    assert edit_type(task, instruction) == kind


def make_tar(path: Path, members, compressed=True):
    """Members: name → bytes, or a TarInfo that is written without content."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with tarfile.open(path, "w:gz" if compressed else "w") as tar:
        for name, content in members.items():
            info = content if isinstance(content, tarfile.TarInfo) else tarfile.TarInfo(name)
            info.name = name
            info.size = len(content) if isinstance(content, bytes) else 0
            tar.addfile(info, io.BytesIO(content) if isinstance(content, bytes) else None)


def test_only_needed_members_are_unpacked(put, tmp_path, video):
    records = [
        {"source_path": f"source/{n}.mp4", "instruction": f"Make it {n} style", "edited_path": f"global_style1/{n}.mp4"}
        for n in "ab"
    ]
    source = put(files={"training_metadata/all.json": records, "videos/source/a.mp4": True})
    # The archive of one folder holds the folder too, that of the other does not and comes in parts.
    make_tar(source / "videos/source/source.tar.gz", {"source/b.mp4": video[9], "source/c.mp4": video[9]})
    make_tar(tmp_path / "whole.tar.gz", {f"{n}.mp4": video[7] for n in "abc"})
    whole = (tmp_path / "whole.tar.gz").read_bytes()
    for number in range(3):
        piece = whole[number * len(whole) // 3 : (number + 1) * len(whole) // 3]
        put(files={f"videos/global_style1/global_style1.tar.gz.0{number}": piece})
    assert import_set("ditto", source, tmp_path / "out").kept == 0
    report = import_set("ditto", source, tmp_path / "out", extract=True)
    assert [row["source_frames"] for row in checked(report, source)] == [7, 7]
    assert not list(source.rglob("c.mp4"))
    assert not report.problems


def test_archives_cannot_write_elsewhere(tmp_path):
    root = tmp_path / "root"
    outside = tmp_path / "outside"
    outside.mkdir()
    link, device = tarfile.TarInfo(), tarfile.TarInfo()
    link.type, link.linkname = tarfile.SYMTYPE, str(outside)
    device.type = tarfile.FIFOTYPE
    members = {
        "../v/a.mp4": b"1",
        "/v/b.mp4": b"2",
        "v/c.mp4": link,
        "v/d.mp4": device,
        "x/../../v/e.mp4": b"3",
        "unneeded/v.mp4": b"4",
        "v/f.mp4": b"good",
    }
    make_tar(root / "all.tar", members, compressed=False)
    wanted = {f"v/{name}.mp4": (number, f"v/{name}.mp4") for number, name in enumerate("abcdef")}
    assert unpack(root, wanted | {"v.mp4": (9, "v.mp4")}) == []
    assert sorted(path.relative_to(root).as_posix() for path in root.rglob("*")) == ["all.tar", "v", "v/f.mp4"]
    assert (root / "v/f.mp4").read_bytes() == b"good"
    assert not list(outside.iterdir())

    (root / "v/f.mp4").unlink()
    (root / "v").rmdir()
    (root / "v").symlink_to(outside)
    with pytest.raises(ManifestError, match="through a link"):
        unpack(root, wanted)
    assert not list(outside.iterdir())


def test_a_damaged_archive_is_reported_and_the_rest_goes_on(put, tmp_path, video):
    table = "src_video,tgt_video,prompt\nv/a.mp4,v/b.mp4,Add it\nw/a.mp4,w/b.mp4,Add it\n"
    source = put(files={"k.csv": table})
    for folder in "vw":
        make_tar(source / f"{folder}.tar.gz", {f"{folder}/{name}.mp4": video[9] for name in "ab"})
    (source / "v.tar.gz").write_bytes((source / "v.tar.gz").read_bytes()[:-200])
    report = import_set("kiwi", source, tmp_path / "out", extract=True)
    (row,) = checked(report, source)
    assert row["source_path"] == "w/a.mp4"
    assert dict(report.rejected) == {"missing file": 1}
    assert len(report.problems) == 1
    assert "v.tar.gz" in report.problems[0]
    assert not list(source.rglob(".*"))  # nothing half-written


def test_parts_of_archives_in_order(tmp_path):
    for name in ("a.tar.gz.aa", "a.tar.gz.ab", "b.tar", "c.tgz", "d.tar.gz.part02", "d.tar.gz.part01", "e.mp4"):
        (tmp_path / name).touch()
    assert [[path.name for path in parts] for parts in find_archives(tmp_path)] == [
        ["a.tar.gz.aa", "a.tar.gz.ab"],
        ["b.tar"],
        ["c.tgz"],
        ["d.tar.gz.part01", "d.tar.gz.part02"],
    ]


def test_an_import_trains(put, tmp_path):
    records = [
        {"src_video": "s.mp4", "tar_video": "t.mp4", "instruction_final_refine": f"Add number {n}"} for n in range(3)
    ]
    source = put(files={"add/add_data_configs.json": records, "s.mp4": True, "t.mp4": True})
    report = import_set("reco", source, tmp_path / "out")
    data = PairedEditsDataModule(str(report.manifest), [Bucket(48, 64, 5)], 1, num_workers=0)
    data.setup("fit")
    batch = next(iter(data.train_dataloader()))
    assert batch["source"].shape == batch["target"].shape == (1, 3, 5, 48, 64)
    assert batch["instruction"][0].startswith("Add number")


def test_command(put, tmp_path, capsys):
    table = "before;after;text\na.mp4;b.mp4;Remove it\na.mp4;c.mp4;Remove it\n"
    source = put(files={"k.csv": table, "videos/a.mp4": True, "videos/b.mp4": True})
    parser = ArgumentParser()
    add_arguments(parser)
    words = ["csv", str(source), "--output", str(tmp_path / "out"), "--columns", "before=source_path"]
    words += ["after=target_path", "text=instruction", "--folders", "source_path=videos", "target_path=videos"]
    assert run(parser.parse_args(words)) == 3
    printed = capsys.readouterr().out
    assert "2 records = 1 rows + 1 rejected" in printed
    assert "remove" in printed
    assert "missing file" in printed
    assert run(parser.parse_args([*words, "--limit", "1"])) == 0
    assert run(parser.parse_args([*words[:4], "--columns", "before"])) == 2
    assert "between" in capsys.readouterr().err
