"""Instructions: several templates per edit type, some of them kept for testing.

A held-out template uses only words that occur in training templates, so that it tests the wording, not the vocabulary.
"""

from __future__ import annotations

from dataclasses import asdict

import numpy as np

from icve.synthetic.edits import Edit

TRAIN_TEMPLATES: dict[str, tuple[str, ...]] = {
    "add": (
        "add a {subject} in the {position}",
        "put a {subject} in the {position}",
        "place a {subject} at the {position}",
        "insert a {subject} in the {position}",
        "in the {position} add a {subject}",
        "add a new {subject} at the {position}",
    ),
    "remove": (
        "remove the {subject}",
        "delete the {subject}",
        "erase the {subject}",
        "take the {subject} away",
        "get rid of the {subject}",
        "please remove the {subject}",
    ),
    "replace": (
        "replace the {subject} with a {new}",
        "swap the {subject} for a {new}",
        "turn the {subject} into a {new}",
        "change the {subject} into a {new}",
        "exchange the {subject} for a {new}",
        "please swap the {subject} with a {new}",
    ),
    "recolour": (
        "make the {subject} {colour}",
        "turn the {subject} {colour}",
        "paint the {subject} {colour}",
        "change the color of the {subject} to {colour}",
        "color the {subject} {colour}",
        "recolor the {subject} in {colour}",
    ),
    "background": (
        "change the background to {background}",
        "make the background {background}",
        "replace the background with {background}",
        "set the background to {background}",
        "turn the background into {background}",
        "put {background} in the background",
    ),
    "style": (
        "change the style to {style}",
        "make the scene {style} style",
        "turn the scene into {style} style",
        "apply the {style} style",
        "use a {style} style",
        "render the scene in {style} style",
    ),
}

TEST_TEMPLATES: dict[str, tuple[str, ...]] = {
    "add": (
        "insert a new {subject} at the {position}",
        "in the {position} place a {subject}",
        "please put a {subject} in the {position}",
    ),
    "remove": ("please erase the {subject}", "take away the {subject}", "please get rid of the {subject}"),
    "replace": (
        "exchange the {subject} with a {new}",
        "make the {subject} into a {new}",
        "please replace the {subject} with a {new}",
    ),
    "recolour": (
        "change the {subject} to {colour}",
        "paint the {subject} in {colour}",
        "please make the {subject} {colour}",
    ),
    "background": (
        "swap the background for {background}",
        "please change the background to {background}",
        "place {background} in the background",
    ),
    "style": (
        "change the scene to {style} style",
        "please use the {style} style",
        "apply a {style} style to the scene",
    ),
}


def instruction(edit: Edit, template: str) -> str:
    """Fill a template with what the edit says."""
    subject, new = f"{edit.colour} {edit.shape}", f"{edit.new_colour} {edit.new_shape}"
    return template.format(**asdict(edit) | {"subject": subject, "new": new, "colour": edit.new_colour})


def choose_template(edit_type: str, rng: np.random.Generator, held_out: bool = False) -> tuple[str, str]:
    """A random template of this edit type as (id, template); ids read ``add/train/3`` or ``add/test/0``."""
    templates = (TEST_TEMPLATES if held_out else TRAIN_TEMPLATES)[edit_type]
    number = int(rng.integers(len(templates)))
    return f"{edit_type}/{'test' if held_out else 'train'}/{number}", templates[number]
