import numpy as np
import pytest

from icve.curation.colours import to_lab
from icve.curation.edit_pairs.clip_motion import clip_motion
from icve.curation.edit_pairs.mask_quality import mask_quality
from icve.curation.edit_pairs.offline_masks import OfflineMasks
from icve.curation.stage import Rejected, Workspace
from icve.data.masks import load_mask
from icve.data.media.video import write_video
from tests.curation.edit_pairs.disc_clips import disc_clip, overlap, texture


@pytest.fixture
def work(tmp_path):
    return Workspace(tmp_path / "in", tmp_path, tmp_path)


def rows_of(work, clip, key="k"):
    write_video(work.output / "sources" / f"{key}.mp4", clip, 12, crf=10)
    height, width = clip.shape[1:3]
    shape = {"width": width, "height": height, "source_frames": len(clip)}
    return [{"key": key, "source_path": f"sources/{key}.mp4", "note": "kept", **shape}]


def test_a_moving_thing_is_found_under_a_panning_camera(work):
    clip, mask, _ = disc_clip(size=(160, 240), colour=(30, 32, 70), step=3.0, pan=2.0, radius=24, start=60)
    (row,) = OfflineMasks()(rows_of(work, clip), work)
    assert row["object_kind"] == "moving"
    assert "moving" in row["object"]
    assert row["note"] == "kept"
    found = load_mask(work.file(row, "mask_path"))
    assert found.shape == mask.shape
    assert overlap(found, mask) > 0.9
    assert row["mask_area"] == pytest.approx(mask.mean(), rel=0.2)


def test_a_still_thing_of_its_own_colour_is_found_and_named(work):
    clip, mask, _ = disc_clip(step=0.0, pan=1.0, start=90)
    (row,) = OfflineMasks()(rows_of(work, clip), work)
    assert (row["object"], row["object_colour"], row["object_kind"]) == ("the red object", "red", "coloured")
    assert overlap(load_mask(work.file(row, "mask_path")), mask) > 0.85


@pytest.mark.parametrize("pan", [0.0, 3.0])
def test_a_scene_without_a_thing_says_so(work, pan):
    _, _, empty = disc_clip(pan=pan)
    rows = rows_of(work, empty)
    (row,) = OfflineMasks()(rows, work)
    assert row["mask_path"] is None
    assert row["object"] is None
    assert row["no_object"]
    assert not (work.output / "masks").exists()
    (rejected,) = OfflineMasks(required=True)(rows, work)
    assert isinstance(rejected, Rejected)
    assert rejected.reason == "no clear object"
    assert rejected.detail == row["no_object"]


def test_unrelated_frames_have_no_thing(work):
    noise = np.stack([texture(96, 160, seed) for seed in range(9)])
    (row,) = OfflineMasks()(rows_of(work, noise), work)
    assert row["mask_path"] is None


def test_limits_of_area_hold(work):
    clip, mask, _ = disc_clip(step=0.0, start=90)
    rows = rows_of(work, clip)
    share = float(mask.mean())
    assert OfflineMasks(max_area=0.8 * share)(rows, work)[0]["mask_path"] is None
    assert OfflineMasks(min_area=1.3 * share)(rows, work)[0]["mask_path"] is None
    assert OfflineMasks(min_area=0.7 * share, max_area=1.4 * share)(rows, work)[0]["mask_path"] is not None


def test_the_result_depends_on_the_clip_alone(work):
    clip, _, _ = disc_clip(step=0.0, start=90, frames=9)
    first, _ = OfflineMasks().find(clip)
    OfflineMasks().find(disc_clip(frames=5, step=2.0)[0])  # draws from OpenCV's random numbers
    second, _ = OfflineMasks().find(clip)
    assert np.array_equal(first.mask, second.mask)


def test_quality_tells_the_thing_from_half_of_it_and_from_what_changes():
    clip, mask, _ = disc_clip(size=(120, 200), step=4.0, radius=18, start=50)
    motion, lab = clip_motion(clip), to_lab(clip)
    true = mask_quality(mask, lab, motion)
    assert true.outline > 0.95
    assert true.stability > 0.85
    assert true.border == 0
    assert true.compactness > 0.7
    assert (true.smallest, true.largest) == (mask.mean((1, 2)).min(), mask.mean((1, 2)).max())
    half = mask & (np.cumsum(mask, axis=1) <= 18)
    assert mask_quality(half, lab, motion).outline < 0.8
    elsewhere = np.roll(mask, 30, axis=1)
    assert mask_quality(elsewhere, lab, motion).outline < 0.6
    jumping = np.stack([np.roll(m, 24 * (t % 2), axis=0) for t, m in enumerate(mask)])
    assert mask_quality(jumping, lab, motion).stability < 0.5
    swapped = mask.copy()
    swapped[-1] = np.roll(mask[-1], -40, axis=1)
    assert mask_quality(swapped, lab, motion).persistence < 0.4 < true.persistence


@pytest.mark.parametrize("wrong", [{"min_area": 0}, {"max_area": 1.0}, {"min_outline": 1.5}, {"max_border": -1}])
def test_wrong_limits_are_refused(wrong):
    with pytest.raises(ValueError, match="OfflineMasks needs"):
        OfflineMasks(**wrong)
