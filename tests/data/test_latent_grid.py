"""Pixels, latents and tokens."""

import pytest

from icve.data.latent_grid import LatentGrid


@pytest.mark.parametrize(("frames", "expected"), [(1, 1), (2, 5), (5, 5), (6, 9), (77, 77), (78, 81)])
def test_padded_is_the_next_length(frames, expected):
    grid = LatentGrid()
    assert grid.padded(frames) == expected
    assert grid.is_length(expected)
    assert grid.is_length(frames) == (frames == expected)


@pytest.mark.parametrize(
    "grid", [LatentGrid(), LatentGrid(16, 4, (1, 2, 2)), LatentGrid(8, 2, (2, 1, 3)), LatentGrid(4, 1)]
)
def test_latents_and_pixels_are_inverse(grid):
    for latents in ((2, 6, 12), (4, 12, 6)):
        pixels = grid.pixels(*latents)
        assert grid.latents(*pixels) == latents
        assert pixels[0] % grid.multiple == pixels[1] % grid.multiple == 0
        assert grid.tokens(*pixels) * grid.patch[0] * grid.patch[1] * grid.patch[2] == latents[0] * 6 * 12
        grid.check(*pixels)


def test_what_does_not_fit_is_named():
    with pytest.raises(ValueError, match=r"multiples of 32, and frames 4k\+1 \(1, 5, 9, ...\)"):
        LatentGrid(spatial=16).check(480, 832, 80)
    with pytest.raises(ValueError, match="multiples of 16"):
        LatentGrid().check(488, 832, 81)
    with pytest.raises(ValueError, match="frames"):
        LatentGrid(patch=(2, 2, 2)).check(480, 832, 81)  # 21 latent frames are no whole patches
