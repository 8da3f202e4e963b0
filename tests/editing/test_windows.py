import itertools
import math

import numpy as np
import pytest

from icve.editing.windows import CrossFade, model_size, windows


@pytest.mark.parametrize("budget", [64 * 64, 240 * 384, 480 * 768])
@pytest.mark.parametrize(
    "picture", [(720, 1280), (1280, 720), (480, 480), (199, 351), (480, 640), (480, 832), (1000, 100)]
)
def test_model_size_keeps_the_picture_and_the_budget(picture, budget):
    height, width = model_size(*picture, budget, 16)
    assert height % 16 == 0
    assert width % 16 == 0
    assert abs(math.log(width * picture[0] / (height * picture[1]))) < 0.06
    assert 0.5 < height * width / budget < 2


def test_model_size_of_its_own_size_is_itself():
    assert model_size(64, 64, 64 * 64, 16) == (64, 64)
    assert model_size(240, 384, 240 * 384, 16) == (240, 384)


@pytest.mark.parametrize("length", [1, 5, 9, 77])
@pytest.mark.parametrize("extra", [0, 1, 2, 3, 7, 40, 211])
def test_windows_cover_every_frame_and_share_a_third(length, extra):
    frames = length + extra
    spans = windows(frames, length)
    assert spans[0][0] == 0
    assert sum(spans[-1]) == frames
    assert {count for _, count in spans} == {length}
    for (start, count), (following, _) in itertools.pairwise(spans):
        assert start < following
        if length > 1:
            assert start + count - following >= max(1, length // 3)


def test_a_short_clip_is_one_window():
    assert windows(3, 9) == [(0, 3)]


def joined(spans, clip):
    """Every window is its part of the clip plus a constant of its own."""
    fade = CrossFade(spans)
    return np.concatenate(
        [
            fade.add(np.clip(clip[start : start + count].astype(int) + 40 * i, 0, 255).astype(np.uint8))
            for i, (start, count) in enumerate(spans)
        ]
    )


@pytest.mark.parametrize(("frames", "length"), [(9, 9), (10, 9), (15, 9), (16, 9), (33, 9), (60, 13), (4, 1)])
def test_equal_windows_join_to_the_clip_itself(frames, length):
    clip = np.random.default_rng(0).integers(0, 256, (frames, 4, 4, 3), dtype=np.uint8)
    spans = windows(frames, length)
    fade = CrossFade(spans)
    result = np.concatenate([fade.add(clip[start : start + count]) for start, count in spans])
    assert np.array_equal(result, clip)


def test_a_difference_between_windows_is_spread_over_the_overlap():
    spans = windows(15, 9)
    assert spans == [(0, 9), (6, 9)]
    result = joined(spans, np.full((15, 2, 2, 3), 100, dtype=np.uint8))[:, 0, 0, 0]
    assert result.tolist() == [100] * 6 + [110, 120, 130] + [140] * 6


def test_padding_of_a_window_is_dropped():
    fade = CrossFade([(0, 3)])
    assert len(fade.add(np.zeros((5, 2, 2, 3), np.uint8))) == 3
