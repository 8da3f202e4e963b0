"""Instructions: several templates per edit type, some of them kept for testing.

A held-out template uses only words that occur in training templates, so that it tests the wording, not the vocabulary.
"""

from __future__ import annotations

from dataclasses import asdict
from importlib import resources

import numpy as np
import yaml

from icve.synthetic.edits import Edit

_TEMPLATES = yaml.safe_load(resources.files("icve.synthetic").joinpath("instructions.yaml").read_text("utf-8"))
TRAIN_TEMPLATES: dict[str, list[str]] = _TEMPLATES["train"]
TEST_TEMPLATES: dict[str, list[str]] = _TEMPLATES["test"]
PARAPHRASES: dict[str, list[str]] = _TEMPLATES["paraphrase"]
GRADUAL: list[str] = _TEMPLATES["gradual"]
COMPOUND: list[str] = _TEMPLATES["compound"]


def instruction(edit: Edit, template: str) -> str:
    """Fill a template with what the edit says."""
    subject, new = f"{edit.colour} {edit.shape}", f"{edit.new_colour} {edit.new_shape}"
    return template.format(**asdict(edit) | {"subject": subject, "new": new, "colour": edit.new_colour})


def choose_template(edit_type: str, rng: np.random.Generator, held_out: bool = False) -> tuple[str, str]:
    """A random template of this edit type as (id, template); ids read ``add/train/3`` or ``add/test/0``."""
    templates = (TEST_TEMPLATES if held_out else TRAIN_TEMPLATES)[edit_type]
    number = int(rng.integers(len(templates)))
    return f"{edit_type}/{'test' if held_out else 'train'}/{number}", templates[number]
