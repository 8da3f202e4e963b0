"""Paired edits that the words alone do not settle: a mask says which of two twins, a reference picture says what.

Twins have one look, so that "remove the red circle" could mean either: the edit is that of the one under the mask. With
a reference, the words say where to add something, and the picture what: its shape and colour.
"""

from __future__ import annotations

from dataclasses import dataclass, replace

import cv2
import numpy as np

from icve.synthetic.edits import Edit, added_object, apply_edit, render_change
from icve.synthetic.instructions import choose_template, instruction
from icve.synthetic.paired_clips import MIN_CHANGED, scene_seed
from icve.synthetic.render import render
from icve.synthetic.scenes import (
    LOOKS,
    STILL,
    STILL_CAMERA,
    Scene,
    SceneObject,
    choose_background,
    choose_looks,
    clip_camera,
    clip_motion,
    place,
)
from icve.synthetic.textures import compatible_colours
from icve.synthetic.vocabulary import COLOURS, POSITIONS, SHAPES, is_held_out

KINDS = ("mask", "reference")  # by turns
TWIN_EDITS = ("recolour", "remove", "replace")
REFERENCE_TEMPLATES = {
    "train": (
        "add the object of the picture in the {position}",
        "put the object of the picture at the {position}",
        "insert the pictured object in the {position}",
    ),
    "test": ("place the object of the picture in the {position}", "add the pictured object at the {position}"),
}
_PICTURE = 64  # pixels of a reference picture's sides


@dataclass(frozen=True)
class ConditionPair:
    """One paired edit. Frames are uint8 (F, H, W, 3), the mask bool (F, H, W), True where the target differs.

    Of a "reference" pair, ``reference`` is the picture, uint8 (H, W, 4) with alpha, and ``swapped`` another one. In
    split "test" its distractors are the edit of the swapped picture, then all other shapes in the colours of both, and
    last the right object elsewhere. Of a "mask" pair the first distractor is the edit of the other twin, the second
    that of both.
    """

    kind: str
    edit: Edit
    instruction: str
    source: np.ndarray
    target: np.ndarray
    mask: np.ndarray
    distractors: tuple[np.ndarray, ...]
    reference: np.ndarray | None = None
    swapped: np.ndarray | None = None


def make_condition_pair(
    split: str, seed: int, index: int, height: int = 64, width: int = 64, frames: int = 9
) -> ConditionPair:
    """Pair number ``index`` of a split, a function of the arguments alone; the kinds take turns (`KINDS`)."""
    rng = np.random.default_rng(scene_seed("condition", split, seed, index))
    size = (height, width, frames)
    while True:
        made = _twins(rng, split, size) if KINDS[index % 2] == "mask" else _referenced(rng, split, size)
        if made is not None and made.mask.mean() >= MIN_CHANGED:
            return made


def _twins(rng: np.random.Generator, split: str, size: tuple[int, int, int]) -> ConditionPair | None:
    edit = _twin_edit(rng, str(rng.choice(TWIN_EDITS)))
    look, new = (edit.shape, edit.colour), (edit.new_shape, edit.new_colour)
    others = choose_looks(rng, int(rng.integers(2)), [look, new])
    background = choose_background(rng, {colour for _, colour in (look, new, *others) if colour})
    if background is None:
        return None
    looks = [look, look, *others]
    scene = place(rng, _empty(rng, background, size), looks, [clip_motion(rng) for _ in looks])
    if scene is None:
        return None
    source = render(scene)
    chosen = int(rng.integers(2))  # twins come first
    (target, mask), *wrong = (
        render_change(scene, source, _changed(scene, edit, twins)) for twins in ((chosen,), (1 - chosen,), (0, 1))
    )
    words = choose_template(edit.edit_type, rng, split == "test" and rng.random() < 0.5)[1]
    return ConditionPair(
        "mask", edit, instruction(edit, words), source.frames, target, mask, tuple(frames for frames, _ in wrong)
    )


def _twin_edit(rng: np.random.Generator, edit_type: str) -> Edit:
    trained = [look for look in LOOKS if not is_held_out(edit_type, *look)]
    shape, colour = trained[int(rng.integers(len(trained)))]
    if edit_type == "remove":
        return Edit(edit_type, shape, colour)
    old_colour = str(rng.choice([name for name in COLOURS if name != colour]))
    old_shape = shape if edit_type == "recolour" else str(rng.choice([name for name in SHAPES if name != shape]))
    return Edit(edit_type, old_shape, old_colour, shape, colour)


def _changed(scene: Scene, edit: Edit, identities: tuple[int, ...]) -> Scene:
    """The scene after an edit of the objects of these identities, whatever else looks like them."""
    if edit.edit_type == "remove":
        return replace(scene, objects=tuple(obj for obj in scene.objects if obj.identity not in identities))
    shape, colour = edit.new_shape, edit.new_colour
    objects = (replace(obj, shape=shape, colour=colour) if obj.identity in identities else obj for obj in scene.objects)
    return replace(scene, objects=tuple(objects))


def _referenced(rng: np.random.Generator, split: str, size: tuple[int, int, int]) -> ConditionPair | None:
    held_out = split == "test" and rng.random() < 0.25
    possible = [look for look in LOOKS if is_held_out("add", *look) == held_out]
    shape, colour = possible[int(rng.integers(len(possible)))]
    position = str(rng.choice(list(POSITIONS)))
    edit = Edit("add", shape, colour, position=position)
    looks = choose_looks(rng, int(rng.integers(1, 3)), [(shape, colour)])
    background = choose_background(rng, {colour, *(c for _, c in looks)})
    if background is None:
        return None
    empty = _empty(rng, background, size)
    room = replace(empty, objects=(added_object(empty, shape, colour, position),))
    placed = place(rng, room, looks, [clip_motion(rng) for _ in looks])
    if placed is None:
        return None
    scene = replace(placed, objects=placed.objects[1:])
    source = render(scene)
    other_shape = str(rng.choice([name for name in SHAPES if name != shape]))
    colours = [name for name in COLOURS if name != colour and name in compatible_colours()[background]]
    if not colours:
        return None
    other_colour = str(rng.choice(colours))
    elsewhere = str(rng.choice([name for name in POSITIONS if name != position]))
    swapped = Edit("add", other_shape, other_colour, position=position)
    others = ((each, which) for which in (colour, other_colour) for each in SHAPES)
    wrong = [e for e in (Edit("add", *look, position=position) for look in others) if e not in (edit, swapped)]
    wrong = [swapped, *wrong, Edit("add", shape, colour, position=elsewhere)] if split == "test" else []
    (target, mask), *clips = (render_change(scene, source, apply_edit(scene, e)) for e in (edit, *wrong))
    templates = REFERENCE_TEMPLATES["test" if split == "test" and rng.random() < 0.5 else "train"]
    words = templates[int(rng.integers(len(templates)))].format(position=position)
    pictures = picture_of(rng, shape, colour), picture_of(rng, other_shape, other_colour)
    distractors = tuple(frames for frames, _ in clips)
    return ConditionPair("reference", edit, words, source.frames, target, mask, distractors, *pictures)


def picture_of(rng: np.random.Generator, shape: str, colour: str) -> np.ndarray:
    """A picture of one object somewhere, uint8 (H, W, 4) RGB with alpha."""
    unit = float(_PICTURE)
    size = float(rng.uniform(0.4, 0.8))
    x, y = (float(at) for at in rng.uniform(size / 2, 1 - size / 2, 2))
    obj = SceneObject(0, shape, colour, size, (x * unit, y * unit), STILL)
    background = next(name for name, colours in compatible_colours().items() if colour in colours)
    drawn = render(Scene(_PICTURE, _PICTURE, 1, background, (0.0, 0.0), STILL_CAMERA, (obj,)))
    alpha = np.round(255 * (1.0 - drawn.background[0])).astype(np.uint8)
    return np.dstack([drawn.frames[0], alpha])


def write_picture(path: str, picture: np.ndarray) -> None:
    """Write RGB with alpha as PNG."""
    if not cv2.imwrite(path, cv2.cvtColor(picture, cv2.COLOR_RGBA2BGRA)):
        raise OSError(f"{path} cannot be written.")


def _empty(rng: np.random.Generator, background: str, size: tuple[int, int, int]) -> Scene:
    origin = (float(rng.uniform(-0.2, 0.2)), float(rng.uniform(-0.2, 0.2)))
    return Scene(*size, background, origin, clip_camera(rng), ())
