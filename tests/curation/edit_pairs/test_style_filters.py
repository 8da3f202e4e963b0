import numpy as np
import pytest

from icve.curation.edit_pairs.style_filters import STYLES, apply_style
from tests.curation.edit_pairs.disc_clips import disc_clip


@pytest.mark.parametrize("style", STYLES)
def test_a_style_changes_the_picture_and_keeps_what_is_in_it(style):
    clip, mask, _ = disc_clip(frames=3)
    styled = apply_style(clip, style)
    assert styled.shape == clip.shape
    assert styled.dtype == np.uint8
    assert np.abs(styled.astype(int) - clip).mean() > 4
    inside, outside = (styled[where].astype(float).mean(0) for where in (mask, ~mask))
    assert np.abs(inside - outside).max() > 12


@pytest.mark.parametrize("style", STYLES)
def test_what_stands_still_does_not_flicker(style):
    clip = np.repeat(disc_clip(frames=1)[0], 5, axis=0)
    still = apply_style(clip, style)
    assert (still == still[:1]).all()
    noise = np.random.default_rng(0).normal(0, 2, clip.shape)
    noisy = np.clip(clip + noise, 0, 255).astype(np.uint8)
    flicker = np.abs(np.diff(apply_style(noisy, style).astype(float), axis=0)).mean()
    assert flicker < 6 * np.abs(np.diff(noisy.astype(float), axis=0)).mean()


@pytest.mark.parametrize("style", STYLES)
def test_black_pictures_stay_pictures(style):
    assert np.isfinite(apply_style(np.zeros((2, 32, 48, 3), np.uint8), style)).all()


def test_pixel_art_has_few_colours_and_flat_blocks():
    clip, _, _ = disc_clip(frames=3)
    styled = apply_style(clip, "pixel art")
    assert len(np.unique(styled.reshape(-1, 3), axis=0)) <= 20
    assert (styled[:, :, 1:] == styled[:, :, :-1]).all(-1).mean() > 0.75


def test_colourless_styles_have_no_colour():
    clip, _, _ = disc_clip(frames=2)
    styled = apply_style(clip, "black and white")
    assert (styled[..., 0] == styled[..., 2]).all()


def test_unknown_styles_are_refused():
    with pytest.raises(KeyError):
        apply_style(np.zeros((1, 32, 32, 3), np.uint8), "cubism")
