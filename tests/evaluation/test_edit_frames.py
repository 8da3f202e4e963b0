"""What is decoded of an edit, from files of every kind."""

import cv2
import numpy as np
import pytest

from icve.data.masks import save_mask
from icve.data.media.video import read_frames, resize_crop, write_video
from icve.evaluation import edit_frames
from icve.evaluation.edit_frames import FRAMES_AT_ONCE, EditFrames, even_chunks
from icve.evaluation.edits import Edit

FRAMES, SIZE = 19, (32, 48)


@pytest.fixture
def edit(tmp_path, make_clip):
    """An edit of PNG frames with alpha, whose files are of several sizes, starts and kinds."""
    rng = np.random.default_rng(0)
    frames = rng.integers(0, 255, (FRAMES, *SIZE, 4), dtype=np.uint8)
    write_video(tmp_path / "edited.frames", frames, 8, format="png")
    make_clip("source.mp4", FRAMES + 5, (64, 96))
    make_clip("target.mp4", FRAMES, SIZE, seed=1)
    make_clip("alpha.mp4", FRAMES, SIZE, seed=2)
    make_clip("short.mp4", FRAMES - 1, SIZE)
    save_mask(tmp_path / "mask.npz", rng.random((FRAMES, 31, 47)) < 0.5)
    row = {"source_path": "source.mp4", "source_start": 2, "source_frames": FRAMES, "target_path": "target.mp4"}
    row |= {"edit_alpha_path": "alpha.mp4", "mask_path": "mask.npz", "distractor_paths": ["target.mp4", "short.mp4"]}
    row |= {"target_prompt": "a red dog"}
    result = {"layer": "alpha.mp4", "composite": "none.mp4"}
    return Edit("x", "", "make it red", tmp_path / "edited.frames", row, tmp_path, result, tmp_path)


def decoded(edit, *needs):
    """All frames of the edit, by name, and what is absent."""
    frames = EditFrames(edit, needs)
    chunks = list(frames.chunks(needs))
    assert {len(part) for chunk in chunks for name, part in chunk.items() if name != "distractors"} <= {16, 3}
    return {name: np.concatenate([chunk[name] for chunk in chunks]) for name in chunks[0]}, frames


def test_files_are_read_as_they_are_asked_for(edit, tmp_path):
    found, frames = decoded(
        edit, *("edited", "alpha", "source", "source_as_stored", "target", "target_alpha", "layer"), "instruction"
    )
    assert frames.absent == {}
    assert (frames.info.frames, frames.info.size) == (FRAMES, SIZE)
    assert frames.info.texts == {"instruction": "make it red", "target_caption": "a red dog"}
    source = read_frames(tmp_path / "source.mp4", start=2, count=FRAMES)
    assert np.array_equal(found["source_as_stored"], source)
    assert np.array_equal(found["source"], resize_crop(source, SIZE))
    assert np.array_equal(found["target"], read_frames(tmp_path / "target.mp4"))
    assert np.array_equal(found["layer"], read_frames(tmp_path / "alpha.mp4"))
    assert np.abs(found["target_alpha"] - found["layer"].mean(-1)).max() <= 0.5
    stored = cv2.imread(str(tmp_path / "edited.frames" / "000018.png"), cv2.IMREAD_UNCHANGED)
    assert np.array_equal(found["alpha"][18], stored[..., 3])
    assert np.array_equal(found["edited"][18], stored[..., 2::-1])


def test_what_is_not_there_has_a_reason(edit):
    needs = ("distractors", "composite", "mask", "source_caption", "alpha")
    frames = EditFrames(edit, needs)
    assert frames.absent == {
        "distractors": "Its distractor has 18 frames, the edited video 19.",
        "composite": "Its composite none.mp4 is not there: edit it again.",
        "source_caption": "",
    }
    assert set(next(iter(frames.chunks(needs)))) == {"mask", "alpha"}


@pytest.mark.parametrize("kind", ["npz", "picture", "video"])
def test_masks_of_every_kind(edit, tmp_path, kind):
    white = np.zeros((FRAMES, 32, 48), bool)
    white[:, 8:16, 16:40] = True
    if kind == "npz":
        save_mask(tmp_path / "mask.npz", white)
    elif kind == "picture":
        cv2.imwrite(str(tmp_path / "mask.png"), white[0].astype(np.uint8) * 255)
    else:
        write_video(tmp_path / "mask.mp4", np.repeat(white[..., None], 3, 3).astype(np.uint8) * 255, 8, crf=0)
    edit.row["mask_path"] = {"npz": "mask.npz", "picture": "mask.png", "video": "mask.mp4"}[kind]
    found, frames = decoded(edit, "mask", "mask_as_stored")
    assert frames.absent == {}
    assert found["mask"].dtype == bool
    assert np.array_equal(found["mask"], white)


def test_packed_masks_are_unpacked_and_scaled_chunk_by_chunk(edit, tmp_path):
    found, _ = decoded(edit, "mask", "mask_as_stored")
    with np.load(tmp_path / "mask.npz") as stored:
        bits = np.unpackbits(stored["bits"])[: FRAMES * 31 * 47].reshape(FRAMES, 31, 47).astype(bool)
    assert np.array_equal(found["mask_as_stored"], bits)
    assert found["mask"].shape == (FRAMES, *SIZE)


def test_large_pictures_come_a_few_at_a_time(tmp_path, make_clip, monkeypatch):
    monkeypatch.setattr(edit_frames, "_PIXELS_AT_ONCE", 2000)
    make_clip("large.mp4", 3)
    frames = EditFrames(Edit("x", "", "", tmp_path / "large.mp4", {}, None, {}), ["edited"])
    assert [len(chunk["edited"]) for chunk in frames.chunks(["edited"])] == [1, 1, 1]


def test_chunks_become_even():
    parts = [np.arange(n) for n in (3, 20, 1, 16)]
    found = list(even_chunks(iter(parts), FRAMES_AT_ONCE))
    assert [len(part) for part in found] == [16, 16, 8]
    assert np.array_equal(np.concatenate(found), np.concatenate(parts))
