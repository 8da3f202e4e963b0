from dataclasses import astuple

import numpy as np
import pytest

from icve.synthetic.distractors import distractors
from icve.synthetic.paired_clips import make_pair


@pytest.mark.parametrize("index", range(24))
def test_four_other_edits_with_the_nearest_first(index):
    pair = make_pair("test", 5, index, frames=1, with_distractors=False)
    edit = pair.edit
    wrong = distractors(pair.scene, edit, np.random.default_rng(index))
    assert len(wrong) == 4
    assert len({astuple(other) for other in (*wrong, edit)}) == 5
    first, second = wrong[:2]
    assert second.edit_type == edit.edit_type
    if edit.edit_type in ("background", "style"):
        assert first.edit_type == edit.edit_type
        return
    if edit.edit_type == "add":
        assert (first.shape, first.position) == (edit.shape, edit.position)
        assert first.colour != edit.colour
    else:
        assert (first.shape, first.colour) == (edit.shape, edit.colour)
    assert (second.shape, second.colour) != (edit.shape, edit.colour)
