import numpy as np

from icve.curation.edit_pairs.clean_plate import clean
from icve.curation.edit_pairs.clip_motion import clip_motion
from tests.curation.edit_pairs.disc_clips import disc_clip


def test_the_place_of_a_thing_shows_the_true_background():
    clip, mask, empty = disc_clip(step=6.0)
    cleaned = clean(clip, mask, clip_motion(clip))
    assert cleaned.unseen < 0.02
    assert cleaned.misfit < 6
    assert cleaned.seam < 1.3
    before = np.abs(clip[mask].astype(float) - empty[mask]).mean()
    after = np.abs(cleaned.frames[mask].astype(float) - empty[mask]).mean()
    assert after < 0.15 * before
    # Away from the thing nothing changes.
    far = ~np.stack(
        [np.roll(m, (dy, dx), (0, 1)) for m in [cleaned.mask.any(0)] for dy in (-6, 6) for dx in (-6, 6)]
    ).any(0)
    assert np.array_equal(cleaned.frames[:, far], clip[:, far])
    assert (cleaned.mask >= mask).all()


def test_a_thing_that_never_moves_aside_hides_its_place():
    clip, mask, _ = disc_clip(step=0.0, start=90)
    assert clean(clip, mask, clip_motion(clip)).unseen > 0.9


def test_light_that_changes_is_matched():
    clip, mask, empty = disc_clip(step=6.0)
    gain = np.linspace(0.85, 1.15, len(clip))[:, None, None, None]
    brighter, target = (np.clip(frames * gain, 0, 255).astype(np.uint8) for frames in (clip, empty))
    cleaned = clean(brighter, mask, clip_motion(clip))
    assert np.abs(cleaned.frames[mask].astype(float) - target[mask]).mean() < 9


def test_a_camera_that_turns_away_is_refused():
    clip, mask, _ = disc_clip(frames=9, pan=0.0)
    motion = clip_motion(clip)
    away = motion.camera.copy()
    away[:, 0, 2] = 80
    assert clean(clip, mask, type(motion)(**{**vars(motion), "camera": away})) is None
