import numpy as np
import pytest

from icve.curation.motion import Motion, shake
from icve.curation.stage import Workspace


@pytest.fixture
def judge(tmp_path):
    """judge(median, peak, pan, **limits): what becomes of one scene of a file whose other frames move wildly."""

    def make(median, peak, pan, start=0, end=None, **limits):
        count = len(pan)
        frames = np.stack([np.arange(count) * 2, np.arange(count) * 2 + 2], axis=1)
        speeds = np.broadcast_to(np.asarray(median, np.float32), count), np.broadcast_to(np.asarray(peak), count)
        np.savez(
            tmp_path / "signals.npz", flow_frames=frames, flow_median=speeds[0], flow_peak=speeds[1],
            flow_pan=np.asarray(pan, np.float32), seconds=np.arange(2 * count + 1) / 24,
        )  # fmt: skip
        row = {"key": "a", "signals": "signals.npz", "scene_start": start, "scene_end": end or 2 * count + 1}
        (outcome,) = Motion(**limits)([row], Workspace(tmp_path, tmp_path, tmp_path))
        return outcome

    return make


STEADY = np.zeros((40, 2))


def test_what_does_not_move_is_dropped(judge):
    assert judge(0.001, 0.002, STEADY).reason == "low motion"
    assert judge(0.001, 0.002, STEADY, min=0, min_peak=0)["motion"] == pytest.approx(0.001)


def test_something_small_that_moves_before_a_still_camera_is_motion(judge):
    assert judge(0.001, 0.1, STEADY)["motion_peak"] == pytest.approx(0.1)
    assert judge(0.05, 0.06, STEADY)["motion"] == pytest.approx(0.05)


def test_too_much_motion_is_dropped(judge):
    assert judge(2.0, 3.0, STEADY).reason == "excessive motion"


def test_shake_is_dropped_and_a_pan_is_not(judge):
    jitter = np.where(np.arange(40) % 2, 0.8, -0.8)[:, None] * [1, 0.5]
    pan = np.stack([np.linspace(0, 0.6, 40), np.full(40, -0.3)], axis=1)
    assert judge(0.1, 0.2, jitter).reason == "shaky"
    assert judge(0.1, 0.2, pan)["shake"] < 0.05
    assert judge(0.1, 0.2, pan + jitter).reason == "shaky"


def test_only_the_scene_counts(judge):
    median = np.where(np.arange(40) < 20, 0.05, 5.0)
    assert judge(median, median, STEADY, end=41)["motion"] == pytest.approx(0.05)
    assert judge(median, median, STEADY, start=40).reason == "excessive motion"
    assert judge(median, median, STEADY, start=10, end=12).reason == "scene too short"


def test_shake_is_the_distance_from_the_smoothed_course():
    rng = np.random.default_rng(0)
    seconds = np.cumsum(rng.uniform(0.05, 0.12, 60))
    pan = rng.normal(size=(60, 2))
    near = np.abs(seconds[:, None] - seconds) <= 0.25
    smooth = near.astype(float) @ pan / near.sum(1, keepdims=True)
    assert shake(pan, seconds) == pytest.approx(np.sqrt(np.square(pan - smooth).sum(1).mean()))


def test_parameters_are_checked():
    with pytest.raises(ValueError, match="min"):
        Motion(min=2, max=1)
