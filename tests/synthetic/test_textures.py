import itertools

import numpy as np
import pytest

from icve.synthetic.textures import SPRITE_EXTENT, background_canvas, compatible_colours, sprite
from icve.synthetic.vocabulary import BACKGROUNDS, COLOURS, SHAPES


@pytest.mark.parametrize("name", BACKGROUNDS)
def test_backgrounds_have_fine_grain_and_coarse_structure(name):
    canvas = background_canvas(name, 64, 64, 16)
    assert canvas.shape == (96, 96, 3)
    assert canvas.dtype == np.float32
    assert 0.0 <= canvas.min() <= canvas.max() <= 1.0
    differences = np.diff(canvas, axis=1)
    assert differences.std() > 0.025
    blocks = canvas.reshape(12, 8, 12, 8, 3).mean(axis=(1, 3))
    assert blocks.std(axis=(0, 1)).max() > 0.01


def test_a_canvas_is_a_function_of_its_name_and_size():
    first = background_canvas("grass", 48, 48, 8).copy()
    background_canvas.cache_clear()
    np.testing.assert_array_equal(first, background_canvas("grass", 48, 48, 8))


def test_backgrounds_differ_from_each_other():
    canvases = [background_canvas(name, 64, 64, 16) for name in BACKGROUNDS]
    for one, other in itertools.combinations(canvases, 2):
        assert np.mean((one - other) ** 2) > 5e-3


def test_every_background_has_room_for_colours_and_every_colour_for_backgrounds():
    compatible = compatible_colours()
    assert all(len(compatible[name]) >= 5 for name in BACKGROUNDS)
    assert all(sum(colour in compatible[name] for name in BACKGROUNDS) >= 6 for colour in COLOURS)
    assert "white" not in compatible["snow"]


@pytest.mark.parametrize("shape", SHAPES)
def test_sprites_have_similar_areas_and_stay_inside_their_square(shape):
    picture = sprite(shape, 96)
    coverage = picture[..., 0]
    area = coverage.sum() / 96**2 * SPRITE_EXTENT**2
    assert 0.55 < area < 0.80
    assert max(coverage[0].max(), coverage[-1].max(), coverage[:, 0].max(), coverage[:, -1].max()) == 0.0
    assert coverage.max() == 1.0


def test_shapes_differ_from_each_other():
    for one, other in itertools.combinations(SHAPES, 2):
        assert np.abs(sprite(one, 64)[..., 0] - sprite(other, 64)[..., 0]).mean() > 0.03
