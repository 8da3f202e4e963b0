import numpy as np
import pytest

from icve.curation.edit_pairs.silhouette import BlackSilhouette
from icve.curation.stage import Rejected
from icve.data.masks import save_mask
from icve.data.media.video import VideoError, write_video
from tests.curation.edit_pairs.scripted import clip_row, moving_square, workspace

BLACK = (4, 4, 4)


@pytest.fixture
def work(tmp_path):
    return workspace(tmp_path)


def pair(work, source: np.ndarray, target: np.ndarray, **columns) -> dict:
    """A pair whose mask is the moving square's."""
    save_mask(work.output / "mask.npz", moving_square()[1])
    write_video(work.output / "target.mp4", target, 8, crf=4)
    return clip_row(work, video=source) | {"target_path": "target.mp4", "mask_path": "mask.npz"} | columns


def drawn(colour, part: float = 1.0, frames: slice = slice(None)) -> np.ndarray:
    """The clip with its square redrawn: the upper part in the colour, the rest grey; other frames stay."""
    video, mask = moving_square()
    new = video.copy()
    new[mask] = (120, 120, 120)
    mask[:, 16 + round(16 * part) :] = False
    new[mask] = colour
    video[frames] = new[frames]
    return video


def test_a_black_patch_in_the_masks_shape_is_a_failure(work):
    (outcome,) = BlackSilhouette()([pair(work, moving_square()[0], drawn(BLACK))], work)
    assert isinstance(outcome, Rejected)
    assert outcome.reason == "black silhouette"


@pytest.mark.parametrize("colour", [(120, 120, 120), (60, 20, 20), (20, 40, 20)])
def test_dark_but_not_black_is_none(work, colour):
    row = pair(work, moving_square()[0], drawn(colour))
    assert BlackSilhouette()([row], work) == [row]


def test_what_was_black_may_stay_black(work):
    cat = moving_square()[0]
    cat[moving_square()[1]] = BLACK
    row = pair(work, cat, drawn(BLACK))
    assert BlackSilhouette()([row], work) == [row]


def test_black_outside_the_mask_is_not_its_business(work):
    target = moving_square()[0]
    target[:, :12] = 0
    row = pair(work, moving_square()[0], target)
    assert BlackSilhouette()([row], work) == [row]


def test_how_much_of_the_mask_and_how_many_frames_are_parameters(work):
    small = pair(work, moving_square()[0], drawn(BLACK, part=0.3))
    assert isinstance(BlackSilhouette(max_share=0.15)([small], work)[0], Rejected)
    assert BlackSilhouette(max_share=0.4)([small], work) == [small]
    brief = pair(work, moving_square()[0], drawn(BLACK, frames=slice(2)))
    assert isinstance(BlackSilhouette(max_frames=0.1)([brief], work)[0], Rejected)
    assert BlackSilhouette(max_frames=0.3)([brief], work) == [brief]


def test_speckles_are_no_silhouette(work):
    rng = np.random.default_rng(0)
    target, mask = moving_square()
    target[mask & (rng.random(mask.shape) < 0.3)] = 0
    row = pair(work, moving_square()[0], target)
    assert BlackSilhouette()([row], work) == [row]


def test_of_an_addition_the_source_was_drawn(work):
    black_thing = moving_square()[0]
    black_thing[moving_square()[1]] = BLACK
    row = pair(work, drawn((120, 120, 120)), black_thing)  # a real black thing comes into a drawn scene
    assert isinstance(BlackSilhouette()([row], work)[0], Rejected)
    assert BlackSilhouette()([row | {"generated": "source"}], work) == [row | {"generated": "source"}]
    failed = pair(work, drawn(BLACK), moving_square()[0], generated="source")
    assert isinstance(BlackSilhouette()([failed], work)[0], Rejected)


def test_whole_picture_edits_have_no_mask_and_pass(work):
    row = {"key": "style", "source_path": "missing.mp4", "target_path": "missing.mp4"}
    assert BlackSilhouette()([row, row | {"mask_path": None}], work) == [row, row | {"mask_path": None}]


def test_clips_of_another_size_than_their_mask_are_errors_of_the_row(work):
    row = pair(work, moving_square()[0], drawn(BLACK)[:, :32, :64])
    with pytest.raises(VideoError, match="its mask"):
        BlackSilhouette()([row], work)


def test_parameters_are_checked():
    with pytest.raises(ValueError, match="luma"):
        BlackSilhouette(luma=300)
