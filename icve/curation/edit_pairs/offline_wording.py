"""Instructions for edits made without a model: plain English, true of the pixels, worded in several ways."""

from __future__ import annotations

from importlib import resources

import numpy as np
import yaml

_WORDING = yaml.safe_load(
    resources.files("icve.curation.edit_pairs").joinpath("offline_wording.yaml").read_text("utf-8")
)
TEMPLATES: dict[str, list[str]] = _WORDING["instructions"]
STYLE_PHRASES: dict[str, list[str]] = _WORDING["styles"]  # by the names of style_filters.STYLES


def instruction(template: str, rng: np.random.Generator, **words: str) -> str:
    """A random wording of a template's name, filled in. Raises KeyError for unknown names and missing words."""
    return str(rng.choice(np.array(TEMPLATES[template]))).format(**words)


def noun(phrase: str) -> str:
    """ "the red object" → "red object"."""
    return phrase.removeprefix("the ")


def indefinite(phrase: str) -> str:
    """ "the orange object" → "an orange object"."""
    bare = noun(phrase)
    return f"{'an' if bare[0] in 'aeiou' else 'a'} {bare}"


def place_of(mask: np.ndarray) -> str:
    """Where in the frame a mask bool (F, H, W) is, on the whole: "on the left", "in the middle", "on the right"."""
    across = float(np.nonzero(mask)[2].mean()) / mask.shape[2]
    return "on the left" if across < 0.38 else "on the right" if across > 0.62 else "in the middle"
