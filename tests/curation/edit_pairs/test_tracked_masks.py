import numpy as np
import pytest

from icve.curation.edit_pairs.tracked_masks import Masks
from icve.curation.stage import Rejected
from icve.data.masks import load_mask
from tests.curation.edit_pairs.scripted import clip_row, moving_square, workspace


@pytest.fixture
def work(tmp_path):
    return workspace(tmp_path)


def test_tiny_models_take_a_row_from_phrase_to_mask_file(work, tiny_detector, tiny_segmenter):
    stage = Masks(str(tiny_detector), str(tiny_segmenter), min_score=0.0)
    stage.setup()
    row = clip_row(work) | {"object": "red square"}
    (masked,) = stage([row], work)
    assert row.items() <= masked.items()
    assert masked["mask_path"] == "masks/clip.npz"
    assert 0 <= masked["mask_score"] <= 1
    mask = load_mask(work.file(masked, "mask_path"))
    assert mask.shape == (9, 48, 80)
    assert stage([row], work) == [masked]


class SquareDetector:
    """Finds the red square, surest where it stands furthest to the right."""

    def find(self, frame: np.ndarray, phrase: str) -> tuple[np.ndarray, float]:
        left = np.flatnonzero(((frame[..., 0] > 150) & (frame[..., 1] < 80)).any(axis=0))[0]
        return np.array([left, 16, left + 16, 32], np.float32), left / 80


class BoxTracker:
    """Takes the box as the mask, moving with the square."""

    def track(self, frames: np.ndarray, prompt_frame: int, box: np.ndarray) -> np.ndarray:
        mask = np.zeros(frames.shape[:3], bool)
        for number, out in enumerate(mask):
            left, top, right, bottom = box.astype(int) + np.array([3, 0, 3, 0]) * (number - prompt_frame)
            out[top:bottom, left:right] = True
        return mask


@pytest.fixture
def stage(tiny_detector, tiny_segmenter):
    stage = Masks(str(tiny_detector), str(tiny_segmenter), min_score=0.25)
    stage.detector, stage.tracker = SquareDetector(), BoxTracker()
    return stage


def test_the_surest_of_the_prompt_frames_is_followed_through_the_clip(stage, work):
    (masked,) = stage([clip_row(work) | {"object": "red square"}], work)
    found, truth = load_mask(work.file(masked, "mask_path")), moving_square()[1]
    assert (found & truth).sum() / (found | truth).sum() > 0.85  # compression frays the edge by a pixel
    assert masked["mask_score"] == pytest.approx((8 + 3 * 7) / 80, abs=0.02)


def test_phrases_that_point_nowhere_are_rejected(stage, work):
    stage.min_score = 0.9
    (outcome,) = stage([clip_row(work) | {"object": "blue circle"}], work)
    assert isinstance(outcome, Rejected)
    assert outcome.reason == "object not found"
    assert "'blue circle'" in outcome.detail
    assert not (work.output / "masks").exists()


def test_folders_and_numbers_are_checked_before_anything_is_loaded(tmp_path, tiny_detector):
    with pytest.raises(ValueError, match="There is no model in"):
        Masks(str(tiny_detector), str(tmp_path))
    with pytest.raises(ValueError, match="prompt frame"):
        Masks(str(tiny_detector), str(tiny_detector), prompt_frames=0)
