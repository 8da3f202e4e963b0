"""Paired edits with exact ground truth: source, target, mask, instruction, and for testing four distractors."""

from __future__ import annotations

import hashlib
from collections.abc import Callable
from dataclasses import dataclass, replace

import numpy as np

from icve.synthetic.distractors import distractors
from icve.synthetic.edits import Edit, added_object, render_edit
from icve.synthetic.instructions import choose_template, instruction
from icve.synthetic.render import render
from icve.synthetic.scenes import (
    LOOKS,
    OBJECT_SIZES,
    Motion,
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
HELD_OUT_LOOKS = 0.25  # share of the test split's object edits whose combination was never trained
HELD_OUT_TEMPLATES = 0.5  # share of the test split's instructions whose template was never trained


@dataclass(frozen=True)
class SceneKind:
    """How the scenes of a split are drawn.

    Attributes:
        camera, motion: draw the camera's path and an object's.
        objects: (fewest, most) in the source; None are those of training and test.
        sizes: of objects, (least, most) in units u.
        apart: least distance of two objects' centres, of their summed sizes.
        alike: one other object has the colour of the one concerned, another its shape.
    """

    camera: Callable[[np.random.Generator], Motion] = clip_camera
    motion: Callable[[np.random.Generator], Motion] = clip_motion
    objects: tuple[int, int] | None = None
    sizes: tuple[float, float] = OBJECT_SIZES
    apart: float = 0.45
    alike: bool = False


PLAIN = SceneKind()


@dataclass(frozen=True)
class Pair:
    """One paired edit. Frames are uint8 (F, H, W, 3), the mask bool (F, H, W); no distractors in split "train".

    ``edit_type`` is that of ``edit``, or of several edits in one instruction, joined by "+".
    """

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
    more_edits: tuple[Edit, ...] = ()

    @property
    def edit_type(self) -> str:
        return "+".join(edit.edit_type for edit in (self.edit, *self.more_edits))


def scene_seed(kind: str, split: str, seed: int, index: int) -> int:
    """The 62-bit seed of one scene: even in split "train", odd in all others, so no scene is ever in both."""
    digest = hashlib.blake2b(f"{WORLD}/{kind}/{split}/{seed}/{index}".encode(), digest_size=8).digest()
    return (int.from_bytes(digest, "little") >> 3) * 2 + (split != "train")


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
    held_out = test and edit_type in OBJECT_EDITS and rng.random() < HELD_OUT_LOOKS
    while True:
        drawn = draw_scene(rng, edit_type, held_out, 2 if test else 1, (height, width, frames))
        if drawn is None:
            continue
        scene, edit = drawn
        source = render(scene)
        target, mask = render_edit(scene, source, edit)
        if (source.frames != target).any(axis=-1).mean() < MIN_CHANGED:
            continue
        template, wording = choose_template(edit_type, rng, test and rng.random() < HELD_OUT_TEMPLATES)
        wrong = distractors(scene, edit, rng) if test and with_distractors else []
        wrong_frames = tuple(render_edit(scene, source, other)[0] for other in wrong)
        if not told_apart(target, wrong_frames):
            continue
        text = instruction(edit, wording)
        wrong_texts = tuple(instruction(other, choose_template(other.edit_type, rng)[1]) for other in wrong)
        return Pair(scene, edit, number, template, text, source.frames, target, mask, wrong_texts, wrong_frames)


def told_apart(target: np.ndarray, wrong: tuple[np.ndarray, ...]) -> bool:
    """Whether wrong results differ visibly from the true target; frames are uint8 (F, H, W, 3)."""
    return all(_mse(frames, target) >= _MIN_DISTRACTOR_MSE for frames in wrong)


def _mse(a: np.ndarray, b: np.ndarray) -> float:
    return float(np.mean((a.astype(np.float32) - b.astype(np.float32)) ** 2)) / 255.0**2


def draw_scene(
    rng: np.random.Generator,
    edit_type: str,
    held_out: bool,
    least: int,
    size: tuple[int, int, int],
    kind: SceneKind = PLAIN,
) -> tuple[Scene, Edit] | None:
    """A scene and an edit that fits it, or None when this try found no room or no fitting background.

    ``held_out`` asks for a combination that was never trained, ``least`` is the fewest objects, ``size`` (height,
    width, frames).
    """
    edit = _draw_edit(rng, edit_type, held_out)
    new_looks = {(edit.new_shape, edit.new_colour)} if edit.new_shape else set()
    adds = edit.edit_type == "add"
    subject = [(edit.shape, edit.colour)] if edit.shape else []
    count = least + int(rng.choice(3, p=(0.25, 0.5, 0.25))) if least == 1 else least + int(rng.integers(2))
    count = min(count, 2 if adds else 3)
    if kind.objects is not None:
        count = int(rng.integers(kind.objects[0], kind.objects[1] + 1))
    near = _alike(rng, subject[0], new_looks) if kind.alike and subject else []
    others = near + choose_looks(
        rng, (count if adds or not subject else count - 1) - len(near), [*subject, *new_looks, *near]
    )
    looks = others if adds else [*subject, *others]
    colours = {colour for _, colour in (*looks, *subject, *new_looks)}
    background = choose_background(rng, colours)
    if background is None or (edit_type == "background" and choose_background(rng, colours) is None):
        return None
    origin = (float(rng.uniform(-0.2, 0.2)), float(rng.uniform(-0.2, 0.2)))
    scene = Scene(*size, background, origin, kind.camera(rng), ())
    if edit_type == "background":
        again = choose_background(rng, colours)
        if again is None or again == background:
            return None
        edit = replace(edit, background=again)
    if adds:
        scene = replace(scene, objects=(added_object(scene, edit.shape, edit.colour, edit.position),))
    placed = place(rng, scene, looks, [kind.motion(rng) for _ in looks], kind.sizes, kind.apart)
    if placed is None:
        return None
    objects = [obj for obj in placed.objects if not adds or obj.look != subject[0]]
    return replace(placed, objects=tuple(objects[i] for i in rng.permutation(len(objects)))), edit


def _alike(rng: np.random.Generator, look: tuple[str, str], taken: set[tuple[str, str]]) -> list[tuple[str, str]]:
    """A look of the same colour and one of the same shape."""
    same_colour = [other for other in LOOKS if other[1] == look[1] and other != look and other not in taken]
    same_shape = [other for other in LOOKS if other[0] == look[0] and other != look and other not in taken]
    return [group[int(rng.integers(len(group)))] for group in (same_colour, same_shape)]


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
