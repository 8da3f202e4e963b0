"""Moments of a clip."""

import numpy as np
import pytest

from icve.curation.annotate.sampled_frames import clip_moments
from icve.data.media.video import VideoError, timestamps


def test_moments_are_the_middles_of_equal_parts(make_clip):
    video = make_clip("a.mp4", frames=40)
    assert clip_moments(video, 0, 31, 3).tolist() == [5, 15, 25]
    assert clip_moments(video, 9, 31, 3).tolist() == [14, 24, 34]
    assert clip_moments(video, None, None, 1)[0] in (19, 20)
    assert clip_moments(video, 7, 1, 3).tolist() == [7, 7, 7]
    assert clip_moments(video, 7, 2, 5).tolist() == sorted(clip_moments(video, 7, 2, 5))


def test_moments_go_by_time_not_by_frames(shared_data):
    video = shared_data / "videos" / "filter" / "vfr.mp4"
    seconds = timestamps(video)
    moments = seconds[clip_moments(video, None, None, 4)]
    assert np.allclose(moments, seconds[-1] * (np.arange(4) + 0.5) / 4, atol=np.diff(seconds).max() / 2 + 1e-6)


@pytest.mark.parametrize(("start", "frames"), [(0, 13), (12, 1), (5, 0), (-1, 3)])
def test_a_clip_outside_of_its_file_is_refused(make_clip, start, frames):
    with pytest.raises(VideoError, match="12 frames"):
        clip_moments(make_clip("a.mp4", frames=12), start, frames, 3)
