import numpy as np
import pytest

from icve.data.buckets import Draw
from icve.data.frame_choice import FrameChoice, average_rate, is_slow, sampled_frames
from icve.data.media.video import sample_indices, write_video
from icve.data.pair_reading import clip_indices


def test_slow_is_more_than_one_percent_below():
    rates = np.array([8, 23, 23.7, 23.976, 24, 25, 60])
    assert is_slow(rates, 24).tolist() == [True, True, True, False, False, False, False]
    assert not is_slow(rates, None).any()
    assert is_slow(23, 24.0)
    assert FrameChoice(24, "drop").refuses(rates).tolist() == is_slow(rates, 24).tolist()
    assert not FrameChoice(24).refuses(rates).any()


@pytest.mark.parametrize("rate", [1, 8, 15, 23.5, 23.976, 24, 25, 29.97, 30, 50, 60])
def test_as_many_frames_are_promised_as_sampling_gives(rate):
    frames = np.arange(0, 200)
    promised = sampled_frames(frames, np.full(200, rate), 24.0)
    assert (promised <= frames).all()
    for count in range(1, 200, 7):
        given = len(sample_indices(np.arange(count) / rate, 24.0))
        assert promised[count] == given == sampled_frames(count, rate, 24.0)
    assert np.array_equal(sampled_frames(frames, None, None), frames)


def test_a_slow_clip_shows_its_own_frames_once(tmp_path, numbered_frames):
    """33 frames of 8 fps used to fill a bucket of 77 at 24 fps."""
    write_video(tmp_path / "a.mp4", numbered_frames(33), 8)
    assert sampled_frames(33, 8.0, 24.0) == 33
    assert clip_indices(tmp_path / "a.mp4", 0, None, 33, FrameChoice(24.0)).tolist() == list(range(33))
    with pytest.raises(ValueError, match="gives 33 frames at 24 fps, fewer than 77"):
        clip_indices(tmp_path / "a.mp4", 0, None, 77, FrameChoice(24.0))
    with pytest.raises(ValueError, match="slower than 24 fps: slow_clips own_rate would take it at its own rate"):
        clip_indices(tmp_path / "a.mp4", 0, None, 33, FrameChoice(24.0, "drop"))


def test_a_window_lies_where_it_is_drawn(tmp_path, numbered_frames):
    write_video(tmp_path / "a.mp4", numbered_frames(40), 24)
    path, own, halved = tmp_path / "a.mp4", FrameChoice(), FrameChoice(12.0)
    assert clip_indices(path, 4, 20, 9, own, 0.0).tolist() == list(range(4, 13))
    assert clip_indices(path, 4, 20, 9, own, 0.999).tolist() == list(range(15, 24))
    assert clip_indices(path, 4, 9, 9, own, 0.7).tolist() == list(range(4, 13)), "there is but one window"
    assert clip_indices(path, 4, 20, 5, halved, 0.999).tolist() == [14, 16, 18, 20, 22]
    starts = {int(clip_indices(path, 4, 20, 9, own, place)[0]) for place in np.linspace(0, 0.999, 200)}
    assert starts == set(range(4, 16))


def test_draws_are_a_function_of_seed_and_place():
    choice = FrameChoice(24.0)
    drawn = [choice.drawn(3, Draw(7, batch, position)).places for batch in range(4) for position in range(4)]
    assert drawn == [choice.drawn(3, Draw(8, batch, position)).places for batch in range(4) for position in range(4)]
    assert len({place for places in drawn for place in places}) == 32
    assert choice.drawn(4, Draw(7, 0, 0)).places != drawn[0]


def test_wrong_settings_are_refused():
    with pytest.raises(ValueError, match="slow_clips must be own_rate or drop, not repeat"):
        FrameChoice(24.0, "repeat")
    with pytest.raises(ValueError, match="fps must be positive"):
        FrameChoice(0.0)


def test_the_average_rate_of_times():
    assert average_rate(np.arange(5) / 8 + 3) == pytest.approx(8)
