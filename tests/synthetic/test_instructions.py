from string import Formatter

import numpy as np
import pytest

from icve.data.edit_types import EDIT_TYPES
from icve.synthetic.edits import Edit
from icve.synthetic.instructions import TEST_TEMPLATES, TRAIN_TEMPLATES, choose_template, instruction


def words(templates: dict[str, tuple[str, ...]]) -> set[str]:
    return {w for group in templates.values() for t in group for w in t.split() if not w.startswith("{")}


def fields(template: str) -> set[str]:
    return {name for _, name, _, _ in Formatter().parse(template) if name}


@pytest.mark.parametrize("edit_type", EDIT_TYPES)
def test_templates_of_both_splits_differ_but_say_the_same(edit_type):
    train, test = TRAIN_TEMPLATES[edit_type], TEST_TEMPLATES[edit_type]
    assert len(train) >= 4
    assert len(test) >= 2
    assert not set(train) & set(test)
    assert len({frozenset(fields(t)) for t in (*train, *test)}) == 1


def test_held_out_templates_use_trained_words_only():
    assert words(TEST_TEMPLATES) <= words(TRAIN_TEMPLATES)


def test_templates_are_unambiguous_about_their_edit_type():
    marked = [t.format(**dict.fromkeys(fields(t), "X")) for g in TRAIN_TEMPLATES.values() for t in g]
    assert len(set(marked)) == len(marked)


def test_filled_in():
    edit = Edit("replace", "circle", "red", "star", "blue")
    assert instruction(edit, TRAIN_TEMPLATES["replace"][0]) == "replace the red circle with a blue star"
    edit = Edit("add", "cross", "white", position="top left")
    assert instruction(edit, TRAIN_TEMPLATES["add"][0]) == "add a white cross in the top left"


def test_template_ids_name_their_template():
    rng = np.random.default_rng(0)
    for held_out in (False, True):
        for edit_type in EDIT_TYPES:
            name, template = choose_template(edit_type, rng, held_out)
            kind, split, number = name.split("/")
            assert (TEST_TEMPLATES if held_out else TRAIN_TEMPLATES)[kind][int(number)] == template
            assert (split == "test") == held_out
