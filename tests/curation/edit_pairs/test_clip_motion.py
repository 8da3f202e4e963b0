import cv2
import numpy as np

from icve.curation.edit_pairs.clip_motion import clip_motion, follow
from tests.curation.edit_pairs.disc_clips import disc_clip


def test_camera_and_own_motion_are_told_apart():
    clip, mask, _ = disc_clip(pan=2.0, step=5.0)
    motion = clip_motion(clip)
    np.testing.assert_allclose(motion.camera[:, 0, 2], -2.0, atol=0.25)
    np.testing.assert_allclose(motion.camera[:, 1, 2], 0.0, atol=0.25)
    assert motion.fit.min() > 0.7
    inside = np.stack([cv2.erode(m.astype(np.uint8), np.ones((9, 9))) for m in mask]) > 0
    outside = np.stack([cv2.dilate(m.astype(np.uint8), np.ones((25, 25))) for m in mask]) == 0
    np.testing.assert_allclose(np.median(motion.own[inside]), 5.0, atol=0.5)
    assert np.median(motion.own[outside]) < 0.3


def test_frames_are_laid_over_the_first():
    _, _, empty = disc_clip(pan=2.0, frames=9)
    laid = clip_motion(empty).to_first()
    moved = cv2.warpPerspective(empty[-1], laid[-1], (160, 96))
    error = np.abs(moved[10:-10, 30:-10].astype(float) - empty[0][10:-10, 30:-10])
    assert error.mean() < 4
    assert np.abs(empty[-1].astype(float) - empty[0]).mean() > 15


def test_reduced_motion_is_scaled_to_the_full_size():
    clip, _, _ = disc_clip(pan=4.0, frames=4, size=(320, 480), radius=30, start=90)
    motion = clip_motion(clip)
    assert motion.own.shape == (4, 160, 240)
    assert motion.scale == (2.0, 2.0)
    np.testing.assert_allclose(motion.to_first()[-1] @ [100, 100, 1], [112, 100, 1], atol=1.0)


def test_follow_reads_where_the_flow_leads():
    values = np.arange(12, dtype=np.float32).reshape(3, 4)
    flow = np.zeros((3, 4, 2), np.float32)
    flow[..., 0] = 1
    assert follow(values, flow).tolist() == [[1, 2, 3, 3], [5, 6, 7, 7], [9, 10, 11, 11]]
