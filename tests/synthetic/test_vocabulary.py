import itertools

import numpy as np
import pytest

from icve.synthetic.vocabulary import COLOURS, OBJECT_EDITS, SHAPES, is_held_out


@pytest.mark.parametrize("edit_type", OBJECT_EDITS)
def test_one_colour_per_shape_is_held_out_and_each_is_another(edit_type):
    held_out = {shape: [c for c in COLOURS if is_held_out(edit_type, shape, c)] for shape in SHAPES}
    assert all(len(colours) == 1 for colours in held_out.values())
    assert len({colours[0] for colours in held_out.values()}) == len(SHAPES)


def test_no_combination_is_held_out_of_all_edit_types():
    for shape, colour in itertools.product(SHAPES, COLOURS):
        assert not all(is_held_out(edit_type, shape, colour) for edit_type in OBJECT_EDITS)


@pytest.mark.parametrize("edit_type", ["background", "style"])
def test_global_edits_hold_nothing_out(edit_type):
    assert not any(is_held_out(edit_type, shape, colour) for shape in SHAPES for colour in COLOURS)


def test_object_colours_are_far_apart():
    for one, other in itertools.combinations(COLOURS.values(), 2):
        assert np.linalg.norm(np.subtract(one, other)) > 0.6
