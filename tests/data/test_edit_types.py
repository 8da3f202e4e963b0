import pytest

from icve.data.edit_types import edit_type


@pytest.mark.parametrize(
    ("task", "instruction", "kind"),
    [
        ("obj_removal_videos_upload2", "whatever", "remove"),
        ("local_style_transfer", "", "style"),
        ("Background Change", "", "background"),
        ("creative_edit", "Add a dragon", "other"),
        ("global_style2", "", "style"),
        ("local", "Remove the people in the background.", "remove"),
        ("local", "Add a painting on the wall", "add"),
        ("local", "Change the car's colour to blue", "recolour"),
        ("local_change", "Give the man a beard", "replace"),
        ("", "Turn the sky background into a galaxy", "background"),
        ("", "Turn the dog into a cat", "replace"),
        ("", "Make the dress red.", "recolour"),
        ("", "Transform this video into a watercolor painting", "style"),
        ("", "Add an oil painting style", "style"),
        ("", "Let it snow", "other"),
    ],
)
def test_edit_types(task, instruction, kind):
    assert edit_type(task, instruction) == kind
