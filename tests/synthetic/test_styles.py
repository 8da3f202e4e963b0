import itertools

import numpy as np
import pytest

from icve.synthetic.paired_clips import make_pair
from icve.synthetic.styles import apply_style
from icve.synthetic.vocabulary import STYLES


@pytest.fixture(scope="module")
def frames() -> np.ndarray:
    return np.concatenate([make_pair("train", 3, index, frames=2).source for index in range(6)])


@pytest.mark.parametrize("style", STYLES)
def test_a_style_depends_on_each_frame_alone(frames, style):
    styled = apply_style(frames, style)
    assert styled.shape == frames.shape
    assert styled.dtype == np.uint8
    np.testing.assert_array_equal(styled[2:3], apply_style(frames[2:3], style))


def test_styles_are_strong_and_distinct(frames):
    results = [frames / 255.0, *(apply_style(frames, style) / 255.0 for style in STYLES)]
    for one, other in itertools.combinations(results, 2):
        assert np.mean((one - other) ** 2) > 0.01


def test_unknown_style():
    with pytest.raises(KeyError):
        apply_style(np.zeros((1, 32, 32, 3), np.uint8), "baroque")


def test_black_and_white_has_no_colour(frames):
    styled = apply_style(frames, "black and white")
    assert np.ptp(styled, axis=-1).max() == 0


def test_negative_is_its_own_inverse(frames):
    np.testing.assert_array_equal(apply_style(apply_style(frames, "negative"), "negative"), frames)
