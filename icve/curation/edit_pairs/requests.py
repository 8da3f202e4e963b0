"""The edits that inpainting a masked thing can make, and what is to be described in its place for each."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

Layer = Literal["foreground", "background"]


@dataclass(frozen=True)
class Edit:
    """An edit of one thing.

    Attributes:
        layer: of the things it is made of.
        request: what a description that leads to it says about the black area where the thing (`{object}`) was.
        names_object: whether the description may speak of the thing.
    """

    layer: Layer
    request: str
    names_object: bool = True


EDITS = {
    "remove": Edit(
        "foreground",
        "The black area hides a thing that is to be gone ({object}). Describe the scene without it: what lies around "
        "the black area goes on through it. Do not mention the thing.",
        names_object=False,
    ),
    "replace": Edit(
        "foreground",
        "The black area hides this: {object}. Put something of another kind there that has about the same size, suits "
        "the place and could move the same way, and describe the scene with it and without what was there before.",
        names_object=False,
    ),
    "recolour": Edit(
        "foreground",
        "The black area hides this: {object}. Give it another colour, material or pattern that is plain to see, and "
        "describe the scene with the same thing looking so.",
    ),
    "background": Edit(
        "background",
        "The black area hides a part of the surroundings: {object}. Put quite different surroundings there that go "
        "with the light and the camera, and describe the scene with them.",
    ),
}
