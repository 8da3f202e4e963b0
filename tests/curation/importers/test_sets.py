"""Public sets in the layouts they are published in."""

import csv
import io
import json
import shutil

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from icve.curation.importers.importing import import_set
from tests.curation.importers.reports import checked


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
