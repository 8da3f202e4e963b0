"""Paired edits with exact ground truth: source, target, mask, instruction, and for testing four distractors."""

from __future__ import annotations

import hashlib
from dataclasses import dataclass, replace

import numpy as np

from icve.synthetic.distractors import distractors
from icve.synthetic.edits import Edit, added_object, render_edit
from icve.synthetic.instructions import choose_template, instruction
from icve.synthetic.render import render
from icve.synthetic.scenes import (
    LOOKS,
    Scene,
    choose_background,
    choose_looks,
    clip_camera,
    clip_motion,
    place,
)
from icve.synthetic.vocabulary import (
    BACKGROUNDS,
    COLOURS,
    EDIT_TYPES,
    OBJECT_EDITS,
    POSITIONS,
    SHAPES,
    STYLES,
    is_held_out,
)

SPLITS = ("train", "test")
WORLD = 1  # raised whenever the same seed would give other pixels
# The edit types by turns. Training gets more of what is hard to learn: an object that becomes another.
TURNS = {
    "train": (
        *("replace", "add", "recolour", "background", "replace"),
        *("remove", "recolour", "replace", "add", "style"),
    ),
    "test": EDIT_TYPES,
}
MIN_CHANGED = 0.01  # least share of the clip's pixels an edit must change
_MIN_DISTRACTOR_MSE = 1e-4  # between a distractor and the true target, full scale 1
_HELD_OUT_LOOKS = 0.25  # share of the test split's object edits whose combination was never trained
_HELD_OUT_TEMPLATES = 0.5  # share of the test split's instructions whose template was never trained


@dataclass(frozen=True)
class Pair:
    """One paired edit. Frames are uint8 (F, H, W, 3), the mask bool (F, H, W); distractors only in split "test"."""

    scene: Scene
    edit: Edit
    scene_seed: int
    template: str
    instruction: str
    source: np.ndarray
    target: np.ndarray
    mask: np.ndarray
    distractor_instructions: tuple[str, ...] = ()
    distractors: tuple[np.ndarray, ...] = ()


def scene_seed(kind: str, split: str, seed: int, index: int) -> int:
    """The 62-bit seed of one scene: even in split "train", odd in "test", so no scene is ever in both."""
    digest = hashlib.blake2b(f"{WORLD}/{kind}/{split}/{seed}/{index}".encode(), digest_size=8).digest()
    return (int.from_bytes(digest, "little") >> 3) * 2 + SPLITS.index(split)


def make_pair(
    split: str, seed: int, index: int, height: int = 64, width: int = 64, frames: int = 9, with_distractors: bool = True
) -> Pair:
    """Paired edit number ``index`` of a split: a function of the arguments alone.

    The edit types take turns with the index (`TURNS`). In split "test" scenes have two or three objects, half of the
    instructions use held-out templates and a quarter of the object edits held-out combinations.
    """
    number = scene_seed("pair", split, seed, index)
    rng = np.random.default_rng(number)
    edit_type = TURNS[split][index % len(TURNS[split])]
    test = split == "test"
    held_out = test and edit_type in OBJECT_EDITS and rng.random() < _HELD_OUT_LOOKS
    while True:
        drawn = _draw(rng, edit_type, held_out, 2 if test else 1, (height, width, frames))
        if drawn is None:
            continue
        scene, edit = drawn
        source = render(scene)
        target, mask = render_edit(scene, source, edit)
        if (source.frames != target).any(axis=-1).mean() < MIN_CHANGED:
            continue
        template, wording = choose_template(edit_type, rng, test and rng.random() < _HELD_OUT_TEMPLATES)
        wrong = distractors(scene, edit, rng) if test and with_distractors else []
        wrong_frames = tuple(render_edit(scene, source, other)[0] for other in wrong)
        if any(_mse(frames_, target) < _MIN_DISTRACTOR_MSE for frames_ in wrong_frames):
            continue
        text = instruction(edit, wording)
        wrong_texts = tuple(instruction(other, choose_template(other.edit_type, rng)[1]) for other in wrong)
        return Pair(scene, edit, number, template, text, source.frames, target, mask, wrong_texts, wrong_frames)


def _mse(a: np.ndarray, b: np.ndarray) -> float:
    return float(np.mean((a.astype(np.float32) - b.astype(np.float32)) ** 2)) / 255.0**2


def _draw(
    rng: np.random.Generator, edit_type: str, held_out: bool, least: int, size: tuple[int, int, int]
) -> tuple[Scene, Edit] | None:
    """A scene and an edit that fits it, or None when this try found no room or no fitting background."""
    edit = _draw_edit(rng, edit_type, held_out)
    new_looks = {(edit.new_shape, edit.new_colour)} if edit.new_shape else set()
    adds = edit.edit_type == "add"
    subject = [(edit.shape, edit.colour)] if edit.shape else []
    count = least + int(rng.choice(3, p=(0.25, 0.5, 0.25))) if least == 1 else least + int(rng.integers(2))
    count = min(count, 2 if adds else 3)
    others = choose_looks(rng, count if adds or not subject else count - 1, [*subject, *new_looks])
    looks = others if adds else [*subject, *others]
    colours = {colour for _, colour in (*looks, *subject, *new_looks)}
    background = choose_background(rng, colours)
    if background is None or (edit_type == "background" and choose_background(rng, colours) is None):
        return None
    origin = (float(rng.uniform(-0.2, 0.2)), float(rng.uniform(-0.2, 0.2)))
    scene = Scene(*size, background, origin, clip_camera(rng), ())
    if edit_type == "background":
        again = choose_background(rng, colours)
        if again is None or again == background:
            return None
        edit = replace(edit, background=again)
    if adds:
        scene = replace(scene, objects=(added_object(scene, edit.shape, edit.colour, edit.position),))
    placed = place(rng, scene, looks, [clip_motion(rng) for _ in looks])
    if placed is None:
        return None
    objects = [obj for obj in placed.objects if not adds or obj.look != subject[0]]
    return replace(placed, objects=tuple(objects[i] for i in rng.permutation(len(objects)))), edit


def _draw_edit(rng: np.random.Generator, edit_type: str, held_out: bool) -> Edit:
    """An edit with a trained or a held-out combination; a background is chosen later, to suit the scene."""
    if edit_type == "background":
        return Edit(edit_type, background=str(rng.choice(list(BACKGROUNDS))))
    if edit_type == "style":
        return Edit(edit_type, style=str(rng.choice(STYLES)))
    possible = [look for look in LOOKS if is_held_out(edit_type, *look) == held_out]
    shape, colour = possible[int(rng.integers(len(possible)))]
    if edit_type == "add":
        return Edit(edit_type, shape, colour, position=str(rng.choice(list(POSITIONS))))
    if edit_type == "remove":
        return Edit(edit_type, shape, colour)
    old_colour = str(rng.choice([name for name in COLOURS if name != colour]))
    old_shape = shape if edit_type == "recolour" else str(rng.choice([name for name in SHAPES if name != shape]))
    return Edit(edit_type, old_shape, old_colour, shape, colour)
