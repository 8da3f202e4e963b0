import pytest

from icve.curation.clip_length import check_clip_length
from icve.curation.clip_pairs import ClipPairs
from icve.curation.edit_pairs.write_clips import WriteClips


@pytest.mark.parametrize(
    ("frames", "near"), [(-3, "1 or 5"), (4, "1 or 5"), (6, "5 or 9"), (16, "13 or 17"), (80, "77 or 81")]
)
def test_a_length_that_codecs_do_not_take_is_refused_with_the_nearest(frames, near):
    for make in (check_clip_length, ClipPairs, lambda frames: WriteClips(frames, 12, [[32, 32]])):
        with pytest.raises(ValueError, match=f"4k \\+ 1, .* not {frames}: take {near}"):
            make(frames)


@pytest.mark.parametrize("frames", [1, 5, 17, 77])
def test_others_are_taken(frames):
    assert check_clip_length(frames) == frames
