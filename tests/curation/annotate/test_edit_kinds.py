"""The kind of an edit by its instruction."""

import pytest

from icve.curation.annotate.edit_kinds import edit_type
from icve.synthetic.instructions import TEST_TEMPLATES, TRAIN_TEMPLATES


@pytest.mark.parametrize(
    ("instruction", "kind"),
    [
        ("Add a red hat to the man.", "add"),
        ("Put a hat on the dog's head.", "add"),
        ("Give the man a beard.", "add"),
        ("Make a rainbow appear above the hill.", "add"),
        ("Remove the car in the background.", "remove"),
        ("Take the cup away.", "remove"),
        ("Get rid of the fence.", "remove"),
        ("Replace the car with a bicycle.", "replace"),
        ("Turn the swan into a cat.", "replace"),
        ("Swap the red ball for a white one.", "replace"),
        ("Make the dress red.", "recolour"),
        ("Turn the car dark blue.", "recolour"),
        ("Change the color of the wall to green.", "recolour"),
        ("Paint the door yellow.", "recolour"),
        ("Change the background to a desert.", "background"),
        ("Replace the background with a red brick wall.", "background"),
        ("Turn the scene into a watercolor painting.", "style"),
        ("Render the scene in anime style.", "style"),
        ("Make it black and white.", "style"),
        ("Zoom in.", "camera_zoom"),
        ("Move the camera closer.", "camera_zoom"),
        ("Pan the camera to the left.", "camera_pan"),
        ("Tilt the camera up.", "camera_pan"),
        ("Shift the view to the left.", "camera_pan"),
        ("Move the lamp to the right.", "move"),
        ("Lower the man's arm.", "move"),
        ("Have the man smile.", "other"),
        ("Open the door.", "other"),
        ("Please remove the dog.", "remove"),
    ],
)
def test_kind(instruction, kind):
    assert edit_type(instruction) == kind


def test_synthetic_instructions_are_told_apart():
    """The project's own wordings: nearly all of them fall into the type they were written for."""
    words = {"subject": "red circle", "new": "blue star", "colour": "green", "position": "top left"}
    words |= {"background": "a brick wall", "style": "cartoon"}
    cases = [
        (kind, template.format(**words))
        for templates in (TRAIN_TEMPLATES, TEST_TEMPLATES)
        for kind, of_kind in templates.items()
        for template in of_kind
    ]
    wrong = [(kind, text, edit_type(text)) for kind, text in cases if edit_type(text) != kind]
    assert len(wrong) <= len(cases) // 20, wrong
