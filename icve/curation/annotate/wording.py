"""Measured changes in words."""

from __future__ import annotations

import numpy as np

from icve.curation.annotate.camera import CameraMove
from icve.curation.annotate.changes import Change

_ZOOM = {
    True: ("Zoom in.", "Move the camera closer.", "Zoom the camera in.", "Bring the camera closer."),
    False: ("Zoom out.", "Move the camera further away.", "Zoom the camera out.", "Pull the camera back."),
}
_ASIDE = ("Pan the camera to the {aside}.", "Turn the camera to the {aside}.", "Shift the view to the {aside}.")
_UPRIGHT = ("Tilt the camera {upright}.", "Point the camera {upright}ward.", "Shift the view {upright}.")
_BOTH = ("Pan the camera to the {aside} and tilt it {upright}.", "Shift the view {upright} and to the {aside}.")
_CHANGE = {
    "add": (
        "Add {a} {colour} object {place}.",
        "Put {a} {colour} object {place}.",
        "Insert {a} {colour} object {place}.",
    ),
    "remove": (
        "Remove the {colour} object {place}.",
        "Take away the {colour} object {place}.",
        "Erase the {colour} object {place}.",
    ),
    "recolour": (
        "Make the {colour} object {place} {new_colour}.",
        "Turn the {colour} object {place} {new_colour}.",
        "Change the color of the {colour} object {place} to {new_colour}.",
    ),
    "move": ("Move the {colour} object {way}.", "Shift the {colour} object {way}.", "Bring the {colour} object {way}."),
}


def camera_wording(move: CameraMove, rng: np.random.Generator) -> tuple[str, str]:
    """An instruction for a camera's motion, and its edit type."""
    if move.zooms:
        return _choice(_ZOOM[move.scale > 1], rng), "camera_zoom"
    aside = "right" if move.right > 0 else "left"
    upright = "up" if move.up > 0 else "down"
    # Both are named where neither outweighs the other.
    lesser, greater = sorted((abs(move.right), abs(move.up)))
    templates = _BOTH if lesser > 0.6 * greater else _ASIDE if abs(move.right) > abs(move.up) else _UPRIGHT
    return _choice(templates, rng).format(aside=aside, upright=upright), "camera_pan"


def change_wording(change: Change, rng: np.random.Generator) -> tuple[str, str]:
    """An instruction for a thing's change, and its edit type."""
    text = _choice(_CHANGE[change.kind], rng).format(
        a="an" if change.colour[0] in "aeiou" else "a",
        colour=change.colour,
        new_colour=change.new_colour,
        place=_place(change.place),
        way=_way(change.place, change.new_place),
    )
    return text, change.kind


def _choice(templates: tuple[str, ...], rng: np.random.Generator) -> str:
    return templates[int(rng.integers(len(templates)))]


def _place(centre: tuple[float, float]) -> str:
    aside = _third(centre[0], "left", "right")
    upright = _third(centre[1], "top", "bottom")
    if aside and upright:
        in_corner = all(abs(at - 0.5) > 0.3 for at in centre)
        return f"in the {upright} {aside} corner" if in_corner else f"at the {upright} {aside}"
    if aside:
        return f"on the {aside} side"
    return f"at the {upright}" if upright else "in the center"


def _third(at: float, low: str, high: str) -> str:
    return low if at < 0.36 else high if at > 0.64 else ""


def _way(old: tuple[float, float], new: tuple[float, float]) -> str:
    right, down = new[0] - old[0], new[1] - old[1]
    aside = f"to the {'right' if right > 0 else 'left'}"
    upright = "down" if down > 0 else "up"
    lesser, greater = sorted((abs(right), abs(down)))
    if lesser > 0.6 * greater:
        return f"{upright} and {aside}"
    return aside if abs(right) > abs(down) else upright
