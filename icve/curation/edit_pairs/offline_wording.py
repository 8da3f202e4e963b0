"""Instructions for edits made without a model: plain English, true of the pixels, worded in several ways."""

from __future__ import annotations

import numpy as np

TEMPLATES: dict[str, tuple[str, ...]] = {
    "remove": (
        "Remove {object}.",
        "Erase {object}.",
        "Take {object} out of the scene.",
        "Delete {object} and show what is behind it.",
        "Make {object} disappear.",
    ),
    "add": (
        "Add {one} {place}.",
        "Insert {one} {place}.",
        "Put {one} {place}.",
        "Place {one} {place}.",
        "Let {one} appear {place}.",
    ),
    "add copy": (
        "Add a second {noun} to the {side} of the first.",
        "Put another {noun} to the {side} of the one that is there.",
        "Duplicate {object} and place the copy on its {side}.",
        "Insert a copy of {object} to the {side} of it.",
    ),
    "remove copy": (
        "Remove the {noun} on the {side}, keep the other one.",
        "Of the two {noun}s, erase the one on the {side}.",
        "Delete the {noun} to the {side} of the other one.",
        "Take away the {side} one of the two {noun}s.",
    ),
    "recolour": (
        "Make {object} {colour}.",
        "Change the colour of {object} to {colour}.",
        "Paint {object} {colour}.",
        "Turn {object} {colour}.",
        "Recolour {object} in {colour}.",
    ),
    "background black and white": (
        "Make the background black and white and keep {object} in colour.",
        "Turn everything except {object} black and white.",
        "Take the colour out of everything but {object}.",
    ),
    "background blurred": (
        "Blur the background and keep {object} sharp.",
        "Put everything except {object} out of focus.",
        "Give {object} a blurred background.",
    ),
    "background dark": (
        "Darken the background and keep {object} as it is.",
        "Make everything around {object} dark.",
        "Dim everything except {object}.",
    ),
    "style": (
        "Turn the video into {style}.",
        "Make it look like {style}.",
        "Restyle the whole scene as {style}.",
        "Render everything as {style}.",
        "Give the video the look of {style}.",
    ),
}

# What each style is called in an instruction; the names are those of style_filters.STYLES.
STYLE_PHRASES: dict[str, tuple[str, ...]] = {
    "pencil sketch": ("a pencil sketch", "a pencil drawing", "a hand-drawn pencil sketch"),
    "oil painting": ("an oil painting", "an oil painting on canvas"),
    "watercolour": ("a watercolour painting", "a watercolour on paper"),
    "cartoon": ("a cartoon", "a cartoon with dark outlines", "a cel-shaded cartoon"),
    "pixel art": ("pixel art", "a pixel art animation", "a game in blocky pixel art"),
    "comic print": ("a printed comic with halftone dots", "a comic book print", "a halftone comic"),
    "black and white": ("a black-and-white film", "black-and-white footage"),
    "sepia": ("an old sepia film", "a sepia-toned film"),
    "neon": ("glowing neon outlines on black", "neon light drawings in the dark"),
}


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
