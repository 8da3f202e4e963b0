import numpy as np
import pytest

from icve.curation.edit_pairs.caption import MaskedCaption, check_caption
from icve.curation.edit_pairs.requests import EDITS
from icve.curation.stage import Rejected
from icve.data.masks import save_mask
from icve.data.media.video import VideoError, read_frames
from tests.curation.edit_pairs.scripted import Scripted, clip_row, moving_square, workspace

GOOD = "A grey wall grows lighter to the right under even light."


@pytest.fixture
def work(tmp_path):
    return workspace(tmp_path)


@pytest.fixture
def row(work):
    save_mask(work.output / "mask.npz", moving_square()[1])
    return clip_row(work) | {"mask_path": "mask.npz", "object": "red square", "edit_type": "remove"}


def test_the_masked_region_is_black_and_the_rest_as_it_was(work, row):
    model = Scripted(GOOD)
    (captioned,) = MaskedCaption(model, frames=3)([row], work)
    assert captioned == {**row, "caption": GOOD}
    frames, mask = read_frames(work.output / row["source_path"], [1, 4, 7]), moving_square()[1][[1, 4, 7]]
    shown = np.stack(model.asked[0].images)
    assert (shown[mask] == 0).all()
    np.testing.assert_array_equal(shown[~mask], frames[~mask])


@pytest.mark.parametrize("edit_type", EDITS)
def test_every_edit_asks_for_another_description(work, row, edit_type):
    model = Scripted(GOOD)
    MaskedCaption(model)([row | {"edit_type": edit_type}], work)
    assert EDITS[edit_type].request.format(object="red square") in model.asked[0].prompt


def test_what_is_to_go_must_not_be_described(work, row):
    naming = "A Red square glides over a grey wall in even light."
    (outcome,) = MaskedCaption(Scripted(naming))([row], work)
    assert isinstance(outcome, Rejected)
    assert outcome.reason == "no caption"
    assert "'red square'" in outcome.detail
    (outcome,) = MaskedCaption(Scripted(naming))([row | {"edit_type": "recolour"}], work)
    assert outcome["caption"] == naming


def test_a_caption_is_one_line_and_a_corrected_one_counts(work, row):
    replies = iter(["A wall.", "A grey wall grows lighter\n\nto the right under even light."])
    (captioned,) = MaskedCaption(Scripted(lambda question: next(replies)))([row], work)
    assert captioned["caption"] == GOOD


def test_lost_connections_are_transient(work, row):
    assert MaskedCaption(Scripted(None))([row], work) == [Rejected("no caption", "no connection", transient=True)]


def test_a_mask_of_another_length_is_an_error_of_the_row(work, row):
    save_mask(work.output / "mask.npz", moving_square(frames=5)[1])
    with pytest.raises(VideoError, match="9 frames, its mask 5"):
        MaskedCaption(Scripted(GOOD))([row], work)


@pytest.mark.parametrize(
    ("text", "complaint"),
    [
        ("", "not 0"),
        ("word " * 101, "not 101"),
        ("A grey wall, and where the black area is, more of the wall.", "black area"),
        ("In this video a grey wall grows lighter to the right.", "this video"),
        ("A grey wall grows lighter to the right in a blacked-out part.", "blacked-out"),
    ],
)
def test_what_is_wrong_with_a_caption_is_said(text, complaint):
    assert complaint in check_caption(text)


@pytest.mark.parametrize("text", [GOOD, "A masked man looks at a framed picture on the black wall behind him."])
def test_scenes_may_hold_pictures_and_masks(text):
    assert check_caption(text) is None
