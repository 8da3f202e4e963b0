import numpy as np
import pytest

from icve.curation.colours import main_colour, to_lab
from icve.curation.edit_pairs.recolour import BACKGROUNDS, change_background, found_elsewhere, recolour, strong_colour
from tests.curation.edit_pairs.disc_clips import disc_clip


def rng():
    return np.random.default_rng(3)


def test_a_thing_gets_the_colour_that_is_named_and_keeps_its_shading():
    clip, mask, _ = disc_clip(frames=3)
    frames, changed, paint = recolour(clip, mask, "red", rng())
    assert paint != "red"
    assert main_colour(to_lab(frames)[mask])[0] == paint
    assert np.array_equal(frames[~changed], clip[~changed])
    assert changed.sum() < 1.6 * mask.sum()
    before, after = (to_lab(video)[mask][:, 0] for video in (clip, frames))
    assert np.corrcoef(before, after)[0, 1] > 0.9


def test_paints_vary():
    clip, mask, _ = disc_clip(frames=2)
    assert len({recolour(clip, mask, "red", np.random.default_rng(seed))[2] for seed in range(8)}) > 2


@pytest.mark.parametrize("colour", [(8, 8, 8), (252, 252, 252)])
def test_black_and_white_take_no_paint(colour):
    clip, mask, _ = disc_clip(frames=2, colour=colour)
    assert "would not show" in recolour(clip, mask, "black", rng())
    assert "no one colour" in recolour(clip, mask, "", rng())


def test_everything_of_a_colour_is_repainted_and_nothing_else():
    clip, mask, _ = disc_clip(frames=3, colour=(30, 60, 210), radius=24)
    both = np.maximum(mask, mask[:, :, ::-1])
    clip[both & ~mask] = (30, 60, 210)
    assert found_elsewhere(clip, mask) > 0.3
    assert found_elsewhere(clip, both) < 0.05
    found, name = strong_colour(clip)
    assert name == "blue"
    frames, changed, paint = recolour(clip, found, name, rng(), everywhere=True)
    assert main_colour(to_lab(frames)[both])[0] == paint
    assert (changed & both).sum() > 0.97 * both.sum()
    assert changed.sum() < 1.25 * both.sum()


def test_everything_is_not_said_where_it_would_be_untrue():
    clip, _, _ = disc_clip(frames=3, colour=(30, 60, 210), radius=24)
    clip[:, :40] = (95, 115, 145)  # blue too, but too pale to be painted like the disc
    found, name = strong_colour(clip)
    assert "would be painted" in recolour(clip, found, name, rng(), everywhere=True)


def test_without_a_strong_colour_there_is_none():
    _, _, empty = disc_clip(frames=2)
    assert strong_colour(empty) is None
    skin = np.full_like(empty, (210, 150, 120))
    assert strong_colour(skin) is None


@pytest.mark.parametrize("look", BACKGROUNDS)
def test_the_background_changes_and_the_thing_does_not(look):
    clip, mask, _ = disc_clip(frames=3)
    frames, changed = change_background(clip, mask, look)
    assert np.abs(frames[~changed].astype(int) - clip[~changed]).max() < 6
    assert changed[~mask].all()
    core = np.stack([m & np.roll(m, 5, 0) & np.roll(m, -5, 0) & np.roll(m, 5, 1) & np.roll(m, -5, 1) for m in mask])
    assert np.abs(frames[core].astype(int) - clip[core]).max() <= 2
    assert np.abs(frames[~mask].astype(int) - clip[~mask]).mean() > 2


def test_a_blurred_background_has_no_halo_of_the_thing():
    clip, mask, _ = disc_clip(frames=1)
    frames, _ = change_background(clip, mask, "blurred")
    near = np.stack([np.roll(m, 16, 0) & ~np.roll(m, 0, 0) for m in mask]) & ~mask
    redder = frames[..., 0].astype(int) - frames[..., 1]
    assert redder[near].mean() < 25
