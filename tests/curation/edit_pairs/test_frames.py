import numpy as np
import pytest

from icve.curation.edit_pairs.frames import clip_of, spread
from icve.data.manifest import ManifestError
from icve.data.media.video import VideoError, read_frames
from tests.curation.edit_pairs.scripted import clip_row, workspace


@pytest.mark.parametrize(("length", "count"), [(1, 3), (5, 5), (77, 3), (77, 4), (10, 9)])
def test_spread_stays_inside_and_covers_equal_parts(length, count):
    numbers = spread(length, count)
    assert numbers[0] >= 0
    assert numbers[-1] < length
    assert len(numbers) == min(length, count)
    middles = (np.arange(count) + 0.5) * length / count
    if length >= count:
        assert np.abs(numbers + 0.5 - middles).max() <= 0.5


def test_turns_look_at_different_moments():
    turns = [set(spread(80, 4, turn, 3)) for turn in range(3)]
    assert len(set.union(*turns)) == 12


def test_a_clip_is_its_range_of_the_file(tmp_path):
    work = workspace(tmp_path)
    row = clip_row(work) | {"source_start": 2, "source_frames": 4}
    whole = read_frames(tmp_path / row["source_path"])
    clip = clip_of(row, work)
    np.testing.assert_array_equal(clip.read(), whole[2:6])
    np.testing.assert_array_equal(clip.read([0, 3]), whole[[2, 5]])
    assert clip.read([0], size=(10, 20)).shape == (1, 10, 20, 3)
    assert clip_of({**row, "source_frames": None}, work).frames == len(whole) - 2


def test_clips_outside_their_file_or_root_are_refused(tmp_path):
    work = workspace(tmp_path)
    row = clip_row(work)
    with pytest.raises(VideoError, match="ends before frame 99"):
        clip_of({**row, "source_start": 99, "source_frames": None}, work)
    with pytest.raises(ManifestError):
        clip_of({**row, "source_path": "../elsewhere.mp4"}, work)
