from itertools import islice

import numpy as np
import pytest

from icve.data.manifest import write_manifest
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
