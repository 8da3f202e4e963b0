import cv2
import numpy as np
import pytest

from icve.curation.edit_pairs.dilate import DilateMask, dilate
from icve.data.masks import load_mask, save_mask
from tests.curation.edit_pairs.scripted import workspace


def dot(frames: int = 2, size: tuple[int, int] = (96, 160)) -> np.ndarray:
    mask = np.zeros((frames, *size), bool)
    mask[:, size[0] // 2, size[1] // 2] = True
    return mask


@pytest.mark.parametrize("radius", [0, 1, 4, 7])
def test_a_mask_grows_by_a_disc(radius):
    rng = np.random.default_rng(0)
    mask = rng.random((2, 40, 50)) > 0.995
    span = np.arange(-radius, radius + 1)
    kernel = (span[:, None] ** 2 + span**2 <= radius**2).astype(np.uint8)
    expected = [cv2.dilate(frame.astype(np.uint8), kernel).astype(bool) for frame in mask]
    np.testing.assert_array_equal(dilate(mask, radius), expected)


def test_empty_frames_stay_empty_and_full_ones_full():
    mask = np.stack([np.zeros((8, 8), bool), np.ones((8, 8), bool)])
    np.testing.assert_array_equal(dilate(mask, 5), mask)


@pytest.mark.parametrize("size", [(96, 160), (160, 96), (240, 384)])
def test_the_margin_scales_with_the_shorter_side(tmp_path, size):
    work = workspace(tmp_path)
    save_mask(tmp_path / "mask.npz", dot(size=size))
    scale = min(size) / 480
    margins = []
    for number in range(20):
        row = {"key": f"row{number}", "mask_path": "mask.npz"}
        (grown,) = DilateMask()([row], work)
        mask = load_mask(work.file(grown, "mask_path"))
        assert np.sqrt(mask[0].sum() / np.pi) == pytest.approx(grown["mask_margin"], abs=0.6)
        assert grown["object_mask_path"] == "mask.npz"
        margins.append(grown["mask_margin"])
    assert 20 * scale <= min(margins) < 27 * scale
    assert 43 * scale < max(margins) <= 50 * scale


def test_the_margin_depends_on_key_and_seed_alone(tmp_path):
    work = workspace(tmp_path)
    save_mask(tmp_path / "mask.npz", dot())
    rows = [{"key": key, "mask_path": "mask.npz"} for key in "abc"]
    first = [row["mask_margin"] for row in DilateMask(seed=1)(rows, work)]
    assert first == [row["mask_margin"] for row in DilateMask(seed=1)(rows[::-1], work)][::-1]
    assert first != [row["mask_margin"] for row in DilateMask(seed=2)(rows, work)]
    assert len(set(first)) == 3


def test_an_empty_range_is_refused():
    with pytest.raises(ValueError, match="min_pixels <= max_pixels"):
        DilateMask(50, 20)
