import shutil
from collections import Counter

import numpy as np
import pyarrow.parquet as pq
import pytest

from icve.curation.clip_pairs import clip_pairs
from icve.data.manifest import read_manifest
from icve.data.video import read_frames, write_video
from icve.synthetic.events import EventAnnotator, edits_between
from icve.synthetic.raw_files import synthesize_raw


def describe(video, clip_a, clip_b):
    return "make it move"


@pytest.fixture(scope="module")
def raw(tmp_path_factory):
    folder = tmp_path_factory.mktemp("raw")
    synthesize_raw(folder, 2, split="train", seed=7)
    (folder / "videos" / "broken.mp4").write_bytes(b"no video")
    return folder


@pytest.fixture(scope="module")
def made(raw, tmp_path_factory):
    annotate = EventAnnotator(raw / "events.jsonl")
    return clip_pairs(raw / "videos", tmp_path_factory.mktemp("pairs"), 9, 8, annotate, pairs_per_scene=3)


def test_clips_stay_within_scenes_and_keep_away_from_cuts(raw, made):
    logs = EventAnnotator(raw / "events.jsonl").logs
    for row in read_manifest(made.manifest):
        assert row["source_path"] == row["target_path"]
        scenes = logs[row["source_path"]]["scenes"]
        (scene,) = (s for s in scenes if s["start"] <= row["source_start"] < s["end"])
        starts = sorted((row["source_start"], row["target_start"]))
        assert scene["start"] + 2 <= starts[0]
        assert starts[0] + 9 <= starts[1]
        assert starts[1] + 9 <= scene["end"] - 2
        assert row["source_frames"] == row["target_frames"] == 9


def test_instructions_say_what_differs(raw, made):
    rows = read_manifest(made.manifest)
    assert len(rows) > 20
    logs = EventAnnotator(raw / "events.jsonl").logs
    for row in rows:
        a, b = ((row[f"{s}_start"], row[f"{s}_start"] + 9) for s in ("source", "target"))
        edits = edits_between(logs[row["source_path"]], a, b)
        assert row["edit_type"] == "+".join(edit.edit_type for edit in edits)
        assert all(edit.colour in row["instruction"] for edit in edits)
    orders = Counter(row["source_start"] < row["target_start"] for row in rows)
    assert min(orders[True], orders[False]) > 3


def test_rows_lead_to_the_frames(made):
    rows = read_manifest(made.manifest)
    row = rows[0]
    frames = np.asarray(read_frames(rows.root / row["source_path"], start=row["source_start"], count=9))
    assert frames.shape == (9, 64, 64, 3)


def test_counts_add_up_and_a_bad_file_stops_nothing(made):
    assert made.videos == 3
    rejected = pq.read_table(made.rejections).to_pylist()
    assert Counter(row["stage"] for row in rejected) == Counter(made.rejected)
    assert made.rejected["video"] == 1
    assert all(row["reason"] for row in rejected)
    (broken,) = (row for row in rejected if row["stage"] == "video")
    assert broken["source_path"] == "broken.mp4"
    rows = read_manifest(made.manifest)
    assert len(rows) == made.pairs
    tried = [(r["source_path"], r["source_start"], r["target_start"]) for r in [*rows, *rejected] if r["target_start"]]
    assert len(set(tried)) == len(tried)
    used = {(row["source_path"], row["scene_start"]) for row in rows}
    assert max(Counter((row["source_path"], row["scene_start"]) for row in rows).values()) <= 3
    assert len(used) <= made.scenes - made.rejected["scene"]


def test_pairs_of_a_video_depend_on_seed_and_video_alone(raw, made, tmp_path):
    one = sorted((raw / "videos").glob("0*.mp4"))[1]
    (tmp_path / "videos").mkdir()
    shutil.copy(one, tmp_path / "videos")
    annotate = EventAnnotator(raw / "events.jsonl")
    alone = read_manifest(clip_pairs(tmp_path / "videos", tmp_path, 9, 8, annotate, pairs_per_scene=3).manifest)
    assert list(alone) == [row for row in read_manifest(made.manifest) if row["source_path"] == one.name]
    other = clip_pairs(tmp_path / "videos", tmp_path / "other", 9, 8, annotate, pairs_per_scene=3, seed=1)
    assert list(read_manifest(other.manifest)) != list(alone)


def test_frame_rates_are_counted_in_frames_of_the_file(tmp_path):
    noise = np.random.default_rng(0).integers(0, 255, (1, 64, 64, 3), np.uint8).repeat(60, axis=0)
    write_video(tmp_path / "fast.mp4", noise, 24)
    result = clip_pairs([tmp_path / "fast.mp4"], tmp_path / "out", 5, 8, describe, pairs_per_scene=1)
    (row,) = read_manifest(result.manifest)
    assert row["source_frames"] == 13  # 5 frames at 8 fps are every third of 13 at 24
    assert row["fps"] == 24
    assert row["instruction"] == "make it move"
    native = clip_pairs([tmp_path / "fast.mp4"], tmp_path / "native", 5, None, describe, pairs_per_scene=1)
    assert read_manifest(native.manifest)[0]["source_frames"] == 5


def test_real_videos(shared_data, tmp_path):
    videos = [shared_data / "videos" / "long" / "long_03_short_scenes.mp4"]
    result = clip_pairs(videos, tmp_path, 9, 8, describe)
    assert result.pairs > 5
    assert result.rejected["scene"] > 0
    assert result.rejected["video"] == 0


def test_nothing_to_do(tmp_path):
    with pytest.raises(FileNotFoundError, match="no folder"):
        clip_pairs(tmp_path / "none", tmp_path, 9, 8, describe)
    with pytest.raises(ValueError, match="no video"):
        clip_pairs(tmp_path, tmp_path, 9, 8, describe)
    with pytest.raises(ValueError, match="at least 1"):
        clip_pairs(tmp_path, tmp_path, 0, 8, describe)
    write_video(tmp_path / "short.mp4", np.zeros((4, 32, 32, 3), np.uint8), 8)
    with pytest.raises(ValueError, match="No clip pair"):
        clip_pairs([tmp_path / "short.mp4"], tmp_path / "out", 9, 8, describe)
    assert pq.read_table(tmp_path / "out" / "rejected.parquet").num_rows == 1
