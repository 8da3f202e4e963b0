import numpy as np

from icve.curation.edit_pairs.clip_motion import clip_motion
from icve.curation.edit_pairs.copied_object import copy_aside
from tests.curation.edit_pairs.disc_clips import disc_clip


def test_the_copy_stands_beside_the_thing():
    clip, mask, _ = disc_clip(step=2.0, start=30)
    frames, changed, side = copy_aside(clip, mask, clip_motion(clip))
    assert side == "right"
    assert not (changed & mask).any()
    assert (
        np.array_equal(frames[~changed], clip[~changed])
        or np.abs(frames[~changed].astype(int) - clip[~changed]).max() <= 6
    )
    shift = round(np.nonzero(changed)[2].mean() - np.nonzero(mask)[2].mean())
    core = np.roll(mask, shift, axis=2) & changed
    assert core.sum() > 0.9 * mask.sum()
    redder = frames[..., 0].astype(int) - frames[..., 1]
    assert np.median(redder[core]) > 100
    assert changed.sum() < 1.6 * mask.sum()


def test_no_copy_of_what_the_frame_cuts_off_or_has_no_room_for():
    clip, mask, _ = disc_clip(step=2.0, start=6)
    assert "cuts it off" in copy_aside(clip, mask, clip_motion(clip))
    clip, mask, _ = disc_clip(step=1.0, start=40, radius=30, size=(96, 96))
    assert "no room" in copy_aside(clip, mask, clip_motion(clip))


def test_no_copy_onto_what_moves():
    clip, mask, _ = disc_clip(step=1.0, pan=0.0, start=30, frames=7)
    drifting, _, _ = disc_clip(step=1.0, pan=5.0, start=30, frames=7)
    clip[:, :, 70:] = drifting[:, :, 70:]
    assert "moves" in copy_aside(clip, mask, clip_motion(clip))
