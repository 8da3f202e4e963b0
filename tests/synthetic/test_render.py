from dataclasses import replace

import numpy as np
import pytest

from icve.synthetic.render import render
from icve.synthetic.scenes import STILL, Motion, Scene, SceneObject
from icve.synthetic.vocabulary import COLOURS, SHAPES

STILL_CAMERA = Motion((0.0,) * 3, (0.0,) * 3)


def scene(*objects: SceneObject, camera: Motion = STILL_CAMERA, frames: int = 3) -> Scene:
    return Scene(64, 64, frames, "grass", (0.0, 0.0), camera, objects)


@pytest.mark.parametrize("shape", SHAPES)
def test_visible_coverage_is_the_share_of_each_object(shape):
    back = SceneObject(0, shape, "red", 0.4, (28.0, 30.0), STILL)
    front = SceneObject(1, "square", "blue", 0.4, (40.0, 34.0), STILL)
    rendering = render(scene(back, front))
    visible = rendering.visible
    assert visible.shape == (3, 2, 64, 64)
    alone = render(scene(back)).visible
    np.testing.assert_allclose(visible[:, 0], alone[:, 0] * (1.0 - visible[:, 1]), atol=1e-6)
    assert visible[:, 0].sum() < alone[:, 0].sum()
    np.testing.assert_allclose(visible.sum(axis=1) + rendering.background, 1.0, atol=1e-6)


def test_pixels_have_the_colour_of_their_object_and_nothing_else_changes():
    background = render(scene()).frames
    obj = SceneObject(0, "circle", "blue", 0.4, (32.0, 20.0), STILL)
    rendering = render(scene(obj))
    outside = rendering.visible[:, 0] == 0.0
    np.testing.assert_array_equal(rendering.frames[outside], background[outside])
    inside = rendering.visible[:, 0] >= 0.999
    mean = rendering.frames[inside].mean(axis=0) / 255.0
    assert mean[2] > 2.5 * mean[:2].max()
    rows, columns = np.nonzero(inside[0])
    assert rows.mean() + 0.5 == pytest.approx(20.0, abs=0.3)
    assert columns.mean() + 0.5 == pytest.approx(32.0, abs=0.3)


def test_background_and_objects_move_together_under_the_camera():
    obj = SceneObject(0, "square", "white", 0.4, (32.0, 32.0), STILL)
    panned = render(scene(obj, camera=Motion((4 / 64, -2 / 64, 0.0), (0.0,) * 3), frames=2)).frames
    np.testing.assert_array_equal(panned[1, 2:60, 6:62], panned[0, 4:62, 2:58])


def test_opacity_fades_between_background_and_object():
    obj = SceneObject(0, "circle", "red", 0.4, (32.0, 32.0), STILL)
    half = render(scene(replace(obj, opacity=(0.0, 0.5, 1.0)))).frames.astype(float)
    np.testing.assert_allclose(half[1], (half[0] + half[2]) / 2, atol=1.0)


@pytest.mark.parametrize("size", [(64, 96, 17), (96, 64, 5), (128, 128, 2)])
def test_frames_of_any_size_look_alike(size):
    height, width, frames = size
    obj = SceneObject(0, "ring", "cyan", 0.4, (width / 2, height / 2), STILL)
    rendering = render(Scene(height, width, frames, "a stone wall", (0.1, 0.0), STILL_CAMERA, (obj,)))
    assert rendering.frames.shape == (frames, height, width, 3)
    assert rendering.visible[0].mean() == pytest.approx(0.61 * 0.4**2, rel=0.1)


def test_colours_are_those_of_the_vocabulary():
    for colour, rgb in COLOURS.items():
        obj = SceneObject(0, "square", colour, 0.5, (32.0, 32.0), STILL)
        rendering = render(scene(obj, frames=1))
        shown = rendering.frames[rendering.visible[:, 0] == 1.0].mean(axis=0) / 255.0
        nearest = min(
            COLOURS, key=lambda name: np.linalg.norm(shown / shown.max() - np.divide(COLOURS[name], max(COLOURS[name])))
        )
        assert nearest == colour, rgb
