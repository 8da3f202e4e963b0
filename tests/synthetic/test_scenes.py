import numpy as np
import pytest

from icve.synthetic.scenes import (
    OBJECT_SIZES,
    Motion,
    Scene,
    SceneObject,
    choose_background,
    choose_looks,
    clip_camera,
    clip_motion,
    long_camera,
    long_motion,
    place,
)
from icve.synthetic.textures import compatible_colours


def scene(height: int = 64, width: int = 64, frames: int = 9, camera: Motion | None = None) -> Scene:
    return Scene(height, width, frames, "sand", (0.0, 0.0), camera or Motion((0.0,) * 3, (0.0,) * 3), ())


def test_motion_starts_at_zero_and_drifts_as_far_as_it_says():
    motion = Motion((0.1, -0.2), (0.03, 0.0), cycles=2.0, phase=0.7)
    path = motion.at(np.linspace(0, 1, 9))
    np.testing.assert_allclose(path[0], 0.0, atol=1e-12)
    np.testing.assert_allclose(path[-1], (0.1, -0.2), atol=1e-9)


def test_camera_moves_world_and_zooms_about_the_centre():
    moved = scene(camera=Motion((0.25, 0.0, np.log(2.0)), (0.0,) * 3))
    middle = SceneObject(0, "star", "red", 0.4, (32.0, 32.0), Motion((0.0, 0.0), (0.0, 0.0)))
    corner = SceneObject(1, "star", "blue", 0.4, (40.0, 32.0), Motion((0.0, 0.0), (0.0, 0.0)))
    (centre, size), (centre_2, _) = moved.placement(middle), moved.placement(corner)
    np.testing.assert_allclose(centre[-1], (48.0, 32.0))
    np.testing.assert_allclose(centre_2[-1], (64.0, 32.0))
    assert size[-1] == pytest.approx(2 * size[0])


@pytest.mark.parametrize("size", [(64, 64, 9), (64, 96, 17)])
def test_placed_objects_stay_in_the_frame_and_apart(size):
    rng = np.random.default_rng(0)
    placed = 0
    for _ in range(40):
        empty = scene(*size, camera=clip_camera(rng))
        full = place(rng, empty, choose_looks(rng, 3, []), [clip_motion(rng) for _ in range(3)])
        if full is None:
            continue
        placed += 1
        boxes = [full.placement(obj) for obj in full.objects]
        for number, (centre, extent) in enumerate(boxes):
            assert OBJECT_SIZES[0] <= full.objects[number].size <= OBJECT_SIZES[1]
            assert (centre >= 0.45 * extent[:, None]).all()
            assert (centre <= np.array([full.width, full.height]) - 0.45 * extent[:, None]).all()
            for other, reach in boxes[:number]:
                assert (np.linalg.norm(centre - other, axis=1) >= 0.45 * (extent + reach)).all()
    assert placed > 10


def test_long_scenes_stay_nearly_aligned():
    rng = np.random.default_rng(1)
    progress = np.linspace(0, 1, 48)
    for _ in range(50):
        assert np.ptp(long_camera(rng, 48).at(progress)[:, :2], axis=0).max() <= 0.041
        assert np.ptp(long_motion(rng, 48).at(progress), axis=0).max() <= 0.041


def test_looks_are_distinct_and_free():
    taken = [("star", "red"), ("ring", "blue")]
    looks = choose_looks(np.random.default_rng(0), 40, taken)
    assert len(set(looks)) == 40
    assert not set(looks) & set(taken)


def test_background_suits_the_colours():
    rng = np.random.default_rng(0)
    for _ in range(20):
        name = choose_background(rng, {"white", "green"})
        assert {"white", "green"} <= compatible_colours()[name]
