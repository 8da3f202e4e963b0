from pathlib import Path

import numpy as np
import pytest

from icve.evaluation.leakage.clips import Clip, Fingerprint
from icve.evaluation.leakage.hashing import join
from icve.evaluation.leakage.matching import FrameTable, find_matches


def moving(seed, seconds, rate):
    """A clip of which every second is another picture, by hashes of frames that stand for it."""
    pictures = np.random.default_rng(seed).integers(0, 2**64, (60, 2), np.uint64)
    times = np.arange(0, seconds, 1 / rate)
    return pictures[times.astype(int)], times


def clips(*made, step):
    names = [Clip(Path(str(number))) for number in range(len(made))]
    return join(names, [Fingerprint(words, times.astype(np.float32), step) for words, times in made])


def flipped(words, count, seed=0):
    """Hashes with so many other bits."""
    rng = np.random.default_rng(seed)
    bits = np.unpackbits(words.view(np.uint8).reshape(len(words), -1), axis=1)
    for row in bits:
        row[rng.choice(128, count, replace=False)] ^= 1
    return np.packbits(bits, axis=1).view(np.uint64)


def test_near_hashes_are_found_and_far_ones_are_not():
    words = np.random.default_rng(1).integers(0, 2**64, (5000, 2), np.uint64)
    table = FrameTable(words)
    found = [number in table.near(word) for number, word in enumerate(flipped(words[:200], 12))]
    assert np.mean(found) > 0.9
    assert all(list(table.near(word)) == [number] for number, word in enumerate(words[:20]))


def test_a_copy_cut_at_both_ends_is_found_with_its_place():
    train = clips(moving(1, 20, 2), moving(2, 20, 2), step=0.5)
    words, times = moving(2, 20, 8)
    inside = (times >= 6.3) & (times < 12)
    test = clips((flipped(words[inside], 10), times[inside] - 6.3), moving(3, 5, 8), step=0.125)
    (match,) = find_matches(train, test)
    assert (match.test, match.train) == (test.clips[0], train.clips[1])
    assert match.test_seconds == 0
    assert match.train_seconds == pytest.approx(6.3, abs=0.8)
    assert match.seconds == pytest.approx(5.7, abs=0.8)
    assert match.score == pytest.approx(1 - 10 / 64, abs=0.05)


def test_what_only_begins_with_the_same_title_is_no_copy():
    title = np.random.default_rng(9).integers(0, 2**64, (1, 2), np.uint64)

    def titled(seed, rate):
        words, times = moving(seed, 12, rate)
        return np.where((times < 3)[:, None], title, words), times

    assert not find_matches(clips(titled(1, 2), step=0.5), clips(titled(2, 8), step=0.125))
    assert find_matches(clips(titled(1, 2), step=0.5), clips(titled(1, 8), step=0.125))


def test_few_frames_that_agree_by_chance_are_no_copy():
    (words, times), (others, _) = moving(1, 10, 2), moving(2, 10, 2)
    others[4:6] = words[4:6]
    assert not find_matches(clips((words, times), step=0.5), clips((others, times), step=0.5))


def test_a_picture_is_found_in_a_clip_only_where_it_is_nearly_the_same():
    train = clips(moving(1, 10, 2), step=0.5)
    for bits, found in ((8, 1), (24, 0)):
        picture = flipped(train.words[6:7], bits), np.zeros(1)
        assert len(find_matches(train, clips(picture, step=1e-3))) == found


def test_clips_without_frames_to_tell_them_by_match_nothing():
    nothing = np.empty((0, 2), np.uint64), np.empty(0)
    train, test = clips(nothing, moving(1, 5, 2), step=0.5), clips(nothing, moving(2, 5, 8), step=0.125)
    assert not find_matches(train, test)
    assert not find_matches(clips(step=0.5), test)
