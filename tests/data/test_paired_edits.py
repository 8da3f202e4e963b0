from itertools import islice

import numpy as np
import pytest

from icve.data.manifest import write_manifest
from icve.data.masks import save_mask
from icve.data.media.video import read_frames, resize_crop, write_video
from icve.data.paired_edits import PairedEditsDataModule


def batch_of(folder, row, bucket, **options):
    write_manifest(
        [{"source_path": "source.mp4", "target_path": "target.mp4", "instruction": "x", **row}], folder / "m.jsonl"
    )
    module = PairedEditsDataModule(str(folder / "m.jsonl"), [bucket], 1, **options)
    return next(iter(module.train_dataloader()))


def shown(clips, frame_numbers):
    return frame_numbers(np.moveaxis(clips[0].numpy(), 0, -1))


def test_both_files_show_the_same_frames_whatever_rate_they_state(tmp_path, numbered_frames, frame_numbers):
    write_video(tmp_path / "source.mp4", numbered_frames(40), fps=24)
    write_video(tmp_path / "target.mp4", numbered_frames(30), fps=16)
    batch = batch_of(tmp_path, {"source_start": 3}, [48, 64, 5], fps=8.0)
    assert shown(batch["source"], frame_numbers) == [3, 6, 9, 12, 15]
    assert shown(batch["target"], frame_numbers) == [0, 3, 6, 9, 12]


def test_the_common_length_decides(tmp_path, numbered_frames):
    write_video(tmp_path / "source.mp4", numbered_frames(40), fps=8)
    write_video(tmp_path / "target.mp4", numbered_frames(10), fps=8)
    assert batch_of(tmp_path, {}, [48, 64, 9])["target"].shape[2] == 9
    with pytest.raises(ValueError, match="there is no frame 12"):
        batch_of(tmp_path, {}, [48, 64, 13])
    with pytest.raises(ValueError, match="it has 9 frames, the shortest bucket has 10"):
        batch_of(tmp_path, {"target_frames": 9}, [48, 64, 10])


def test_an_edited_file_of_another_size_stays_aligned(tmp_path):
    picture = np.random.default_rng(0).integers(0, 255, (1, 12, 20, 3)).astype(np.uint8)
    source = resize_crop(picture, (90, 150)).repeat(5, 0)
    write_video(tmp_path / "source.mp4", source, 8, crf=4)
    write_video(tmp_path / "target.mp4", resize_crop(source, (96, 128), shape=(96, 128)), 8, crf=4)
    batch = batch_of(tmp_path, {}, [48, 48, 5])
    source, aligned = (np.moveaxis(batch[name][0].numpy(), 0, -1).astype(float) for name in ("source", "target"))
    straight = resize_crop(read_frames(tmp_path / "target.mp4"), (48, 48))
    assert np.mean((source - aligned) ** 2) < 0.1 * np.mean((source - straight) ** 2)


def test_the_real_pairs_load(shared_data):
    module = PairedEditsDataModule(
        str(shared_data / "videos" / "manifest.jsonl"),
        [[240, 416, 9], [416, 240, 9]],
        batch_size=2,
        columns={"source": "source_path", "target": "target_path"},
    )
    module.setup("fit")
    assert module.train.rows == 22
    assert len(module.train.pairs) == 14
    assert len(module.dropped) == 8
    assert set(module.dropped.values()) == {"it has no target_path."}
    shapes = set()
    for batch in islice(module.train_dataloader(), 7):
        shapes.add(tuple(batch["source"].shape))
        assert batch["source"].shape == batch["target"].shape
        # every frame of an edit is closer to its own source frame than to that of the batch's other video
        if len(set(batch["id"])) == 2 and not any("style" in name for name in batch["id"]):
            source, target = batch["source"].float(), batch["target"].float()
            own = (source - target).abs().mean((1, 3, 4))
            assert (own < (source - target.flip(0)).abs().mean((1, 3, 4))).all()
    assert shapes == {(2, 3, 9, 240, 416), (2, 3, 9, 416, 240)}
    assert len(module.dropped) == 8


def windows(folder, draws, **options):
    """(source, target, mask) frame numbers of each sample drawn, of 30 frames in windows of 5."""
    options = {"cache_in_memory": True, "temporal_crop": "random", "seed": 3, **options}
    module = PairedEditsDataModule(str(folder / "m.jsonl"), [[48, 64, 5]], 1, **options)
    return [
        (
            batch["source"][0, 0, :, 0, 0].float().sub(16).div(4).round().int().tolist(),
            batch["target"][0, 0, :, 0, 0].float().sub(16).div(4).round().int().tolist(),
            batch["mask"][0, 0, :, 0].sum(-1).tolist(),
        )
        for batch in islice(module.train_dataloader(), draws)
    ]


@pytest.fixture
def long_edit(tmp_path, numbered_frames):
    """A source of 40 frames of which 30 are the clip, its edit of 28, and a mask whose width says its frame."""
    write_video(tmp_path / "source.mp4", numbered_frames(40), fps=8)
    write_video(tmp_path / "target.mp4", numbered_frames(28), fps=8)
    mask = np.zeros((30, 48, 64), bool)
    for frame in range(30):
        mask[frame, :, : 2 * frame] = True
    save_mask(tmp_path / "mask.npz", mask)
    row = {"source_path": "source.mp4", "target_path": "target.mp4", "source_start": 6, "source_frames": 30}
    write_manifest([{**row, "instruction": "x", "mask_path": "mask.npz"}], tmp_path / "m.jsonl")
    return tmp_path


def test_random_windows_are_the_same_on_both_sides_and_of_the_mask(long_edit):
    drawn = windows(long_edit, 60)
    for source, target, mask in drawn:
        assert target == list(range(target[0], target[0] + 5))
        assert source == [number + 6 for number in target]
        assert mask == [2 * number for number in target]
    starts = {target[0] for _, target, _ in drawn}
    assert min(starts) < 3
    assert max(starts) > 20
    assert max(starts) + 4 < 28  # the edit ends there
    assert drawn == windows(long_edit, 60)
    assert drawn == windows(long_edit, 60, cache_in_memory=False)
    assert drawn != windows(long_edit, 60, seed=4)
    assert {target[0] for _, target, _ in windows(long_edit, 5, temporal_crop="start")} == {0}


def test_validation_takes_the_first_frames(long_edit):
    module = PairedEditsDataModule(
        str(long_edit / "m.jsonl"), [[48, 64, 5]], 1, val_manifest=str(long_edit / "m.jsonl"), temporal_crop="random"
    )
    (batch,) = module.val_dataloader()
    assert batch["target"][0, 0, :, 0, 0].float().sub(16).div(4).round().int().tolist() == [0, 1, 2, 3, 4]


def test_a_latent_cache_has_no_other_windows(long_edit):
    options = {"latents": str(long_edit / "latents"), "temporal_crop": "random"}
    module = PairedEditsDataModule(str(long_edit / "m.jsonl"), [[48, 64, 5]], 1, **options)
    with pytest.raises(ValueError, match=r"one window of every clip.*set data.init_args.temporal_crop to start"):
        module.setup("fit")
    with pytest.raises(ValueError, match="temporal_crop must be start or random, not middle"):
        PairedEditsDataModule("m.jsonl", [[48, 64, 5]], 1, temporal_crop="middle")


def test_slow_rows_are_counted_and_shown_once_or_dropped(tmp_path, numbered_frames, frame_numbers, caplog):
    """An 8-fps pair of 33 frames does not fill a bucket of 77 frames at 24 fps."""
    write_video(tmp_path / "source.mp4", numbered_frames(33), fps=8)
    write_video(tmp_path / "target.mp4", numbered_frames(33), fps=8)
    with caplog.at_level("WARNING"):
        batch = batch_of(tmp_path, {}, [48, 64, 33], fps=24.0)
    assert shown(batch["source"], frame_numbers) == shown(batch["target"], frame_numbers) == list(range(33))
    assert "1 row is slower than 24 fps, and taken frame by frame (slow_clips: own_rate)." in caplog.text
    with pytest.raises(ValueError, match="it has 33 frames, the shortest bucket has 77"):
        batch_of(tmp_path, {}, [48, 64, 77], fps=24.0)
    with pytest.raises(ValueError, match="slower than 24 fps: slow_clips own_rate would take it at its own rate"):
        batch_of(tmp_path, {}, [48, 64, 33], fps=24.0, slow_clips="drop")
    # columns that say otherwise are found out when the file is read
    stated = {"width": 64, "height": 48, "fps": 24.0, "source_frames": 33}
    with pytest.raises(ValueError, match="slower than 24 fps"):
        batch_of(tmp_path, stated, [48, 64, 33], fps=24.0, slow_clips="drop")
