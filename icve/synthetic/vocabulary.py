"""The words of the synthetic world, and which of their combinations are kept for testing.

Every name here is a word of the instructions; its look is defined in ``textures.py`` and ``styles.py``.
"""

from __future__ import annotations

from icve.data.edit_types import EDIT_TYPES

OBJECT_EDITS = EDIT_TYPES[:4]
SHAPES = ("circle", "square", "triangle", "star", "ring", "cross")

# Near the corners of the RGB cube: with so few pixels the colours must be far apart to be told from each other.
COLOURS: dict[str, tuple[float, float, float]] = {
    "red": (0.92, 0.10, 0.12),
    "green": (0.12, 0.82, 0.20),
    "blue": (0.13, 0.22, 0.95),
    "yellow": (0.98, 0.88, 0.10),
    "purple": (0.80, 0.14, 0.88),
    "cyan": (0.08, 0.86, 0.92),
    "white": (0.97, 0.97, 0.97),
}

# Centres of an added object, as fractions of the frame (x, y).
POSITIONS: dict[str, tuple[float, float]] = {
    "top left": (0.25, 0.25),
    "top right": (0.75, 0.25),
    "bottom left": (0.25, 0.75),
    "bottom right": (0.75, 0.75),
    "center": (0.5, 0.5),
}

# Two colours per background, which its pattern mixes. Muted, so that the objects' colours stand out.
BACKGROUNDS: dict[str, tuple[tuple[float, float, float], tuple[float, float, float]]] = {
    "grass": ((0.10, 0.24, 0.06), (0.30, 0.48, 0.16)),
    "sand": ((0.60, 0.46, 0.28), (0.84, 0.70, 0.48)),
    "water": ((0.04, 0.26, 0.40), (0.18, 0.48, 0.60)),
    "snow": ((0.72, 0.76, 0.82), (0.92, 0.94, 0.97)),
    "a brick wall": ((0.30, 0.25, 0.22), (0.56, 0.24, 0.16)),
    "a stone wall": ((0.26, 0.26, 0.28), (0.58, 0.57, 0.56)),
    "a starry sky": ((0.03, 0.03, 0.10), (0.55, 0.55, 0.60)),
    "a gray checkerboard": ((0.20, 0.20, 0.20), (0.52, 0.52, 0.52)),
    "blue stripes": ((0.12, 0.16, 0.42), (0.42, 0.52, 0.78)),
    "orange stripes": ((0.52, 0.24, 0.04), (0.88, 0.52, 0.16)),
    "pink dots": ((0.86, 0.60, 0.68), (0.62, 0.28, 0.42)),
    "purple dots": ((0.20, 0.10, 0.32), (0.50, 0.36, 0.64)),
}

STYLES = ("black and white", "sepia", "negative", "pixel art", "cartoon", "sketch", "sunset", "night")


def is_held_out(edit_type: str, shape: str, colour: str) -> bool:
    """Whether edits of this type that concern this (shape, colour) are kept out of every training split.

    The combination is the object that is added or removed, or the one that comes out of a replacement or recolouring.
    For each edit type one colour per shape is held out, a different one for every shape, so that each word is still
    trained in all other combinations. Background and style edits have no combinations.
    """
    if edit_type not in OBJECT_EDITS:
        return False
    code = 2 * SHAPES.index(shape) + tuple(COLOURS).index(colour) + 3 * OBJECT_EDITS.index(edit_type)
    return code % len(COLOURS) == 0
