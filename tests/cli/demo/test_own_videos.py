"""The demo on a user's own videos."""

import shutil

import numpy as np
import pytest

from icve.cli.demo.own_videos import _hold_back, curate_own, edit_own, find_own, mix, own_examples
from icve.cli.demo.resumable import CannotRun
from icve.curation.raw_videos import find_inputs
from icve.data.manifest import read_manifest, resolve_path, write_manifest
from icve.data.media.video import probe, write_video
from tests.tiny import tiny_editor


def clip(path, frames=9, side=64):
    write_video(path, np.random.default_rng(0).integers(0, 256, (frames, side, side, 3), np.uint8), 8)


def row(path, **columns):
    return {"source_path": path, "target_path": path, "instruction": "make it red", "edit_type": "recolour", **columns}


def test_own_and_made_rows_stand_in_one_manifest(tmp_path):
    made, own = tmp_path / "made", tmp_path / "own"
    for folder in (made, own):
        clip(folder / "a.mp4")
    write_manifest([row("a.mp4", scene=1)], made / "train.parquet")
    write_manifest([row("a.mp4")], made / "validation.parquet")
    write_manifest([row("a.mp4", video="mine.mp4")], own / "pairs.parquet")
    mix(own, made, "pairs", tmp_path / "mixed", tmp_path)
    train = read_manifest(tmp_path / "mixed" / "train.parquet")
    assert [row["source_path"] for row in train] == ["made/a.mp4", "own/a.mp4"]
    assert all(resolve_path(train.root, row["target_path"]).is_file() for row in train)
    validation = read_manifest(tmp_path / "mixed" / "validation.parquet")
    assert [row["source_path"] for row in validation] == ["made/a.mp4"]
    mix(own, made, "clips", tmp_path / "other", tmp_path)  # of which there are none of the user's own
    assert len(read_manifest(tmp_path / "other" / "train.parquet")) == 1


def test_edits_of_one_clip_are_all_shown_or_all_trained_on():
    rows = [{"clip": str(number // 3)} for number in range(24)]
    held = _hold_back(rows)
    assert 0 < sum(row["clip"] in held for row in rows) <= 6
    assert _hold_back([{"clip": "only"}] * 5) == set()


def test_held_out_clips_are_edited_and_shown(tmp_path):
    editor = tiny_editor(guidance_scale=1.0, num_frames=9, height=64, width=64)
    editor.save_pretrained(tmp_path / "run" / "checkpoints" / "last")
    clip(tmp_path / "a.mp4")
    write_manifest([row("a.mp4", video="<mine>.mp4", fps=8.0)], tmp_path / "held_out.parquet")
    edit_own(tmp_path / "run", tmp_path / "held_out.parquet", tmp_path / "after", 8.0, seed=0)
    (example,) = own_examples(tmp_path / "held_out.parquet", tmp_path / "after")
    assert list(example.clips) == ["source", "edited", "target"]
    assert {frames.shape for frames in example.clips.values()} == {(9, 64, 64, 3)}
    assert example.edit_type == "yours: recolour"


def test_a_folder_without_videos_is_refused(tmp_path):
    with pytest.raises(CannotRun, match="There is no video"):
        find_own(tmp_path)


@pytest.mark.slow
@pytest.mark.multiprocess
@pytest.mark.timeout(400)
def test_real_videos_become_clips_and_edits_at_the_demos_size(shared_data, tmp_path):
    for name in ("src_monkey.mp4", "src_seal.mp4"):
        (tmp_path / "raw").mkdir(exist_ok=True)
        shutil.copy(shared_data / "videos" / "sources" / name, tmp_path / "raw")
    own = tmp_path / "own"
    curate_own(find_inputs(tmp_path / "raw"), own, [(64, 64)], frames=9, fps=8.0, seed=0, workers=2)
    pairs, held_out = read_manifest(own / "pairs.parquet"), read_manifest(own / "held_out.parquet")
    assert not {row["clip"] for row in pairs} & {row["clip"] for row in held_out}
    for kept in (*pairs, *held_out):
        info = probe(resolve_path(pairs.root, kept["target_path"]))
        assert (info.height, info.width, info.frames) == (64, 64, 9)
        assert kept["video"] in ("src_monkey.mp4", "src_seal.mp4")
