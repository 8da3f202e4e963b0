import numpy as np
import pytest

from icve.data.manifest import write_manifest
from icve.data.media.video import write_video
from icve.data.unpaired_clips import UnpairedClipsDataModule


@pytest.fixture
def scene(tmp_path, numbered_frames):
    """One video of 48 frames at 24 fps, and a row that goes from its frames 4.. to its frames 30.. ."""
    write_video(tmp_path / "scene.mp4", numbered_frames(48), fps=24)
    row = {
        "source_path": "scene.mp4",
        "source_start": 4,
        "source_frames": 17,
        "target_path": "scene.mp4",
        "target_start": 30,
        "target_frames": 18,
        "instruction": "brighten it",
    }
    return tmp_path, row


def first_batch(folder, row, frames, **options):
    write_manifest([row], folder / "manifest.jsonl")
    module = UnpairedClipsDataModule(str(folder / "manifest.jsonl"), [[48, 64, frames]], 1, **options)
    return next(iter(module.train_dataloader()))


def shown(clips, frame_numbers):
    return frame_numbers(np.moveaxis(clips[0].numpy(), 0, -1))


def test_each_clip_is_cut_where_its_row_says(scene, frame_numbers):
    batch = first_batch(*scene, 9)
    assert shown(batch["source"], frame_numbers) == list(range(4, 13))
    assert shown(batch["target"], frame_numbers) == list(range(30, 39))


def test_clips_are_resampled_on_their_own_timelines(scene, frame_numbers, numbered_frames):
    folder, row = scene
    write_video(folder / "slow.mp4", numbered_frames(24), fps=12)
    batch = first_batch(folder, {**row, "target_path": "slow.mp4", "target_start": 2, "target_frames": 20}, 5, fps=6.0)
    assert shown(batch["source"], frame_numbers) == [4, 8, 12, 16, 20]
    assert shown(batch["target"], frame_numbers) == [2, 4, 6, 8, 10]


def test_a_clip_ends_where_its_row_says(scene):
    folder, row = scene
    module_row = {**row, "source_frames": 8}
    with pytest.raises(ValueError, match="it has 8 frames, the shortest bucket has 9"):
        first_batch(folder, module_row, 9)
    # lengths that no column states are found when the clip is read
    unstated = {name: value for name, value in row.items() if name != "target_frames"} | {"target_start": 44}
    with pytest.raises(ValueError, match="clip from frame 44 gives 4 frames, fewer than 9"):
        first_batch(folder, unstated, 9)


def test_clip_pairs_across_a_real_video(shared_data):
    row = {
        "source_path": "long/long_01.mp4",
        "source_start": 10,
        "source_frames": 9,
        "target_path": "long/long_01.mp4",
        "target_start": 40,
        "target_frames": 9,
        "instruction": "move on",
    }
    from icve.data.buckets import Bucket
    from icve.data.manifest import Manifest
    from icve.data.pair_dataset import PairDataset
    from icve.data.selection import select

    buckets = [Bucket(64, 96, 9)]
    selection = select(Manifest([{"id": "a", **row}], shared_data / "videos"), buckets)
    dataset = PairDataset(selection, buckets, UnpairedClipsDataModule.read)
    sample = dataset._load(0)
    assert sample["source"].shape == sample["target"].shape == (3, 9, 64, 96)
    assert not np.array_equal(sample["source"], sample["target"])
