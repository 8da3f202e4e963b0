import math

import numpy as np
import pytest

from icve.evaluation.metrics.psnr import PSNR_CAP, psnr
from icve.evaluation.synthetic import (
    FIGURES,
    HeldOutEdit,
    measure_edit,
    noise_generator,
    summarise,
    tensor_to_clips,
)

SHAPE = (5, 16, 16, 3)


def clip(level: int) -> np.ndarray:
    return np.full(SHAPE, level, np.uint8)


def make_edit(edit_type: str = "recolour", whole: bool = False) -> HeldOutEdit:
    """Source 100 everywhere; inside a quarter of the frame the target is 140, the distractors 20, 60, 180 and 220."""
    mask = np.zeros(SHAPE[:3], bool)
    mask[:, :8, :8] = True
    if whole:
        mask[:] = True
    versions = []
    for level in (140, 20, 60, 180, 220):
        version = clip(100)
        version[mask] = level
        versions.append(version)
    return HeldOutEdit("e0", "do it", edit_type, clip(100), versions[0], mask, tuple(versions[1:]))


def test_psnr_of_a_known_error():
    assert psnr(clip(100), clip(110)) == pytest.approx(20 * math.log10(255 / 10))


def test_psnr_does_not_wrap_around_in_uint8():
    assert psnr(clip(0), clip(255)) == pytest.approx(0.0)


def test_psnr_of_identical_clips_is_capped_and_of_an_empty_region_absent():
    assert psnr(clip(7), clip(7)) == PSNR_CAP
    assert psnr(clip(7), clip(9), np.zeros(SHAPE[:3], bool)) is None


def test_regions_are_measured_apart():
    edit = make_edit()
    result = edit.target.copy()
    result[edit.mask] += 10
    row = measure_edit(result, edit)
    assert row["psnr_inside"] == pytest.approx(20 * math.log10(255 / 10))
    assert row["psnr_outside"] == PSNR_CAP
    # a quarter of the pixels is wrong, so the whole is 10 log10(4) better than the inside
    assert row["psnr"] == pytest.approx(row["psnr_inside"] + 10 * math.log10(4))
    assert row["psnr_copy_inside"] == pytest.approx(20 * math.log10(255 / 40))
    assert row["psnr_codec"] is None


def test_codec_figures_compare_the_reconstruction_with_the_target():
    edit = make_edit()
    row = measure_edit(edit.source, edit, reconstruction=edit.target + np.uint8(1))
    assert row["psnr_codec"] == row["psnr_codec_outside"] == pytest.approx(20 * math.log10(255))
    assert row["psnr"] == row["psnr_copy"]


@pytest.mark.parametrize(
    ("inside", "success", "nearest"),
    [
        (140, True, "target"),
        (125, True, "target"),
        (120, False, "source"),  # half-way between source and target: a tie is no success
        (105, False, "source"),
        (175, False, "distractor_2"),
        (60, False, "distractor_1"),
    ],
)
def test_success_needs_the_target_to_be_strictly_nearest(inside, success, nearest):
    edit = make_edit()
    result = edit.source.copy()
    result[edit.mask] = inside
    row = measure_edit(result, edit)
    assert (row["success"], row["nearest"]) == (success, nearest)


def test_a_result_of_another_shape_or_type_is_refused_with_the_edits_id():
    edit = make_edit()
    with pytest.raises(ValueError, match="e0"):
        measure_edit(edit.target[:-1], edit)
    with pytest.raises(ValueError, match="uint8"):
        measure_edit(edit.target.astype(np.float32), edit)


def test_summary_averages_over_edits_and_leaves_absent_regions_out():
    style = measure_edit(make_edit().source, make_edit("style", whole=True))
    good = measure_edit(make_edit().target, make_edit("add"))
    figures = summarise([style, good])
    assert figures["count"] == 2
    assert figures["success_ratio"] == 0.5
    assert figures["nearest_to_source"] == 0.5
    assert figures["psnr"] == pytest.approx((style["psnr"] + good["psnr"]) / 2, abs=1e-3)
    assert figures["psnr_outside"] == good["psnr_outside"]
    assert figures["psnr_codec_inside"] is None
    assert list(figures["per_edit_type"]) == ["add", "style"]
    assert figures["per_edit_type"]["style"]["psnr_outside"] is None
    assert set(FIGURES) < set(figures["per_edit_type"]["add"])


def test_nothing_to_summarise_is_an_error():
    with pytest.raises(ValueError, match="empty"):
        summarise([])


def test_noise_depends_on_seed_and_edit_alone():
    import torch

    first = torch.randn(4, generator=noise_generator(3, "a"))
    assert torch.equal(first, torch.randn(4, generator=noise_generator(3, "a")))
    assert not torch.equal(first, torch.randn(4, generator=noise_generator(3, "b")))
    assert not torch.equal(first, torch.randn(4, generator=noise_generator(4, "a")))


def test_tensors_become_clips_without_losing_a_level():
    import torch

    levels = torch.arange(256, dtype=torch.uint8)
    video = (levels.float() / 127.5 - 1.0).reshape(1, 1, 1, 16, 16).expand(1, 3, 2, 16, 16)
    (result,) = tensor_to_clips(video)
    assert result.shape == (2, 16, 16, 3)
    assert np.array_equal(result[1, ..., 2].ravel(), levels.numpy())
    assert tensor_to_clips(torch.full((1, 3, 1, 2, 2), 1.7))[0].max() == 255
