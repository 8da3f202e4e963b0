from dataclasses import replace

import numpy as np
import pytest

from icve.synthetic.edits import Edit, apply_edit, render_edit
from icve.synthetic.render import render
from icve.synthetic.scenes import STILL, Motion, Scene, SceneObject

SCENE = Scene(
    64,
    64,
    3,
    "sand",
    (0.1, -0.1),
    Motion((0.05, 0.02, 0.03), (0.0,) * 3),
    (
        SceneObject(0, "circle", "red", 0.4, (20.0, 20.0), Motion((0.05, 0.0), (0.0, 0.0))),
        SceneObject(1, "star", "blue", 0.4, (38.0, 34.0), STILL),
    ),
)

EDITS = [
    Edit("add", "ring", "white", position="bottom left"),
    Edit("remove", "circle", "red"),
    Edit("replace", "circle", "red", "cross", "green"),
    Edit("recolour", "circle", "red", "circle", "cyan"),
    Edit("background", background="water"),
    Edit("style", style="negative"),
]


@pytest.mark.parametrize("edit", EDITS, ids=lambda edit: edit.edit_type)
def test_nothing_changes_outside_the_mask_and_nearly_all_inside(edit):
    source = render(SCENE)
    target, mask = render_edit(SCENE, source, edit)
    changed = (source.frames != target).any(axis=-1)
    assert mask.shape == (3, 64, 64)
    assert mask.dtype == bool
    assert not (changed & ~mask).any()
    # A pixel of which a changed thing covers a hundredth may round to the same value.
    assert changed[mask].mean() > 0.93


def test_occluded_parts_are_not_in_the_mask():
    source = render(SCENE)
    _, mask = render_edit(SCENE, source, EDITS[3])
    covered = (source.visible[:, 0] == 0.0) & (source.visible[:, 1] > 0.0)
    assert not mask[covered].any()


def test_objects_after_each_edit():
    looks = [[obj.look for obj in apply_edit(SCENE, edit).objects] for edit in EDITS]
    red, blue = ("circle", "red"), ("star", "blue")
    assert looks == [
        [red, blue, ("ring", "white")],
        [blue],
        [("cross", "green"), blue],
        [("circle", "cyan"), blue],
        [red, blue],
        [red, blue],
    ]


def test_a_replaced_object_keeps_size_and_motion():
    before, after = SCENE.objects[0], apply_edit(SCENE, EDITS[2]).objects[0]
    assert (before.size, before.start, before.motion) == (after.size, after.start, after.motion)


def test_background_is_canonical_under_the_same_camera():
    one = render_edit(SCENE, render(SCENE), EDITS[4])
    other_origin = replace(SCENE, origin=(-0.2, 0.2), background="snow")
    other = render_edit(other_origin, render(other_origin), EDITS[4])
    np.testing.assert_array_equal(one[0], other[0])


def test_missing_objects_are_named():
    with pytest.raises(ValueError, match="no green star"):
        apply_edit(SCENE, Edit("remove", "star", "green"))


def test_combinations():
    assert [edit.combination for edit in EDITS] == [
        ("add", "ring", "white"),
        ("remove", "circle", "red"),
        ("replace", "cross", "green"),
        ("recolour", "circle", "cyan"),
        None,
        None,
    ]
