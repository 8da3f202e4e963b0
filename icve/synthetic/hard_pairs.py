"""Splits that are harder than "test", each in one way, with the same exact ground truth.

What is not said to be harder is as in split "test": scenes, edit types, shares of held-out words and combinations. So
the difference of two figures is what the one thing costs.

========== =======================================================================================================
objects    four or five smaller objects, one of the same colour and one of the same shape as the one that is meant
occlusion  another object lies over the one that is meant, or under it: a third or more of the lower one is hidden
camera     the camera pans by up to a quarter of the frame, or sways, and zooms; what is added stays where it is
long       33 frames, objects cross the frame and the camera moves as above
compound   two edits in one instruction
paraphrase instructions in words that were never trained
typos      two words of every instruction are mistyped
gradual    the edit comes slowly: of frame n of N, n / (N - 1) of it are done
========== =======================================================================================================
"""

from __future__ import annotations

from dataclasses import dataclass, replace

import numpy as np

from icve.synthetic.distractors import distractors, other_edit
from icve.synthetic.edits import Edit, added_object, apply_edit, render_edit
from icve.synthetic.instructions import (
    COMPOUND,
    GRADUAL,
    PARAPHRASES,
    TEST_TEMPLATES,
    TRAIN_TEMPLATES,
    choose_template,
    instruction,
)
from icve.synthetic.misspelling import misspell
from icve.synthetic.paired_clips import (
    HELD_OUT_LOOKS,
    HELD_OUT_TEMPLATES,
    MIN_CHANGED,
    PLAIN,
    Pair,
    SceneKind,
    draw_scene,
    scene_seed,
    told_apart,
)
from icve.synthetic.render import Rendering, render
from icve.synthetic.scenes import STILL_CAMERA, Motion, Scene
from icve.synthetic.vocabulary import BACKGROUNDS, COLOURS, EDIT_TYPES, OBJECT_EDITS, POSITIONS, SHAPES, STYLES

HIDDEN = 0.33  # least share of an object that another one hides, on a third of the frames, in split "occlusion"
_SEEN = 0.35  # least share of an object that is to be seen, over the clip


def moving_camera(rng: np.random.Generator) -> Motion:
    """A pan by 0.12 to 0.25 u, or a sway by 0.04 to 0.08 u, both with a zoom by up to a quarter."""
    angle, zoom = rng.uniform(0, 2 * np.pi), rng.uniform(-0.25, 0.25)
    direction = np.array([np.cos(angle), np.sin(angle)])
    if rng.random() < 0.6:
        return Motion((*(direction * rng.uniform(0.12, 0.25)).tolist(), zoom), (0.0, 0.0, 0.0))
    sway = (direction * rng.uniform(0.04, 0.08)).tolist()
    return Motion((0.0, 0.0, zoom), (*sway, 0.0), cycles=rng.uniform(1.0, 2.5), phase=rng.uniform(0, 2 * np.pi))


def crossing_motion(rng: np.random.Generator) -> Motion:
    """A drift by 0.2 to 0.45 u over the clip, or a swing by 0.06 to 0.14 u."""
    angle = rng.uniform(0, 2 * np.pi)
    direction = np.array([np.cos(angle), np.sin(angle)])
    if rng.random() < 0.5:
        return Motion(tuple((direction * rng.uniform(0.2, 0.45)).tolist()), (0.0, 0.0))
    swing = tuple((direction * rng.uniform(0.06, 0.14)).tolist())
    return Motion((0.0, 0.0), swing, cycles=rng.uniform(1.0, 3.0), phase=rng.uniform(0, 2 * np.pi))


@dataclass(frozen=True)
class HardSplit:
    """What is harder. ``frames`` is the length of its clips where none is asked for, ``least_frames`` the shortest."""

    scenes: SceneKind = PLAIN
    frames: int = 9
    least_frames: int = 1


HARD_SPLITS = {
    "objects": HardSplit(SceneKind(objects=(4, 5), sizes=(0.22, 0.30), alike=True)),
    "occlusion": HardSplit(SceneKind(apart=0.1)),
    "camera": HardSplit(SceneKind(camera=moving_camera), least_frames=5),
    "long": HardSplit(SceneKind(camera=moving_camera, motion=crossing_motion, apart=0.2), 33, 17),
    "compound": HardSplit(),
    "paraphrase": HardSplit(),
    "typos": HardSplit(),
    "gradual": HardSplit(least_frames=5),
}


@dataclass(frozen=True)
class Variant:
    """A right or wrong result of an instruction: edits one after the other, at once or slowly.

    ``fixed`` does as if the camera stood still.
    """

    edits: tuple[Edit, ...]
    gradual: bool = False
    fixed: bool = False


def make_hard_pair(split: str, seed: int, index: int, height: int = 64, width: int = 64, frames: int = 9) -> Pair:
    """Pair number ``index`` of a split of `HARD_SPLITS`, a function of the arguments alone.

    The edit types take turns with the index; of "compound" the first of both edits.
    """
    number = scene_seed("pair", split, seed, index)
    rng = np.random.default_rng(number)
    edit_type = EDIT_TYPES[index % len(EDIT_TYPES)]
    held_out = edit_type in OBJECT_EDITS and rng.random() < HELD_OUT_LOOKS
    while True:
        drawn = draw_scene(rng, edit_type, held_out, 2, (height, width, frames), HARD_SPLITS[split].scenes)
        if drawn is None or not _suits(split, *drawn):
            continue
        scene, edit = drawn
        right, *wrong = _variants(split, scene, edit, rng)
        if not all(_distinct(scene, variant) for variant in (right, *wrong)):
            continue
        source = render(scene)
        target, mask = _render(scene, source, right)
        if (source.frames != target).any(axis=-1).mean() < MIN_CHANGED:
            continue
        wrong_frames = tuple(_render(scene, source, variant)[0] for variant in wrong)
        if not told_apart(target, wrong_frames):
            continue
        template, text = _words(split, right, rng, rng.random() < HELD_OUT_TEMPLATES)
        texts = tuple(_words("gradual" if v.gradual else "", v, rng)[1] for v in wrong)
        texts = tuple(f"{text}, fixed to the frame" if v.fixed else text for text, v in zip(texts, wrong, strict=True))
        first, *more = right.edits
        clips = (source.frames, target, mask)
        return Pair(scene, first, number, template, text, *clips, texts, wrong_frames, tuple(more))


def hidden_shares(scene: Scene) -> np.ndarray:
    """Share of every object that others hide, float (F, N)."""
    alone = [render(replace(scene, objects=(obj,))).visible[:, 0].sum((1, 2)) for obj in scene.objects]
    return 1.0 - render(scene).visible.sum((2, 3)) / np.maximum(np.stack(alone, 1), 1e-6)


def _suits(split: str, scene: Scene, edit: Edit) -> bool:
    """Whether a scene is hard in the way of its split, and what is added stays in the frame."""
    before = scene
    if edit.edit_type == "add":
        scene = apply_edit(scene, edit)
        centre, _ = scene.placement(scene.objects[-1])
        if (centre < 0).any() or (centre > [scene.width, scene.height]).any():
            return False
    if split not in ("occlusion", "long"):
        return True
    hidden = hidden_shares(scene)
    if hidden.mean(0).max() > 1 - _SEEN:
        return False
    if split == "long":
        return True
    if edit.shape:  # pairs of the object that is meant with any other
        meant = next(n for n, obj in enumerate(scene.objects) if obj.look == (edit.shape, edit.colour))
        others = scene.objects[:meant] + scene.objects[meant + 1 :]
        if edit.edit_type == "add":
            others = before.objects
        freed = np.delete(hidden, meant, 1) - hidden_shares(replace(scene, objects=others))
        hidden = np.concatenate([hidden[:, [meant]], freed], 1)
    return bool(((hidden >= HIDDEN).mean(0) >= 1 / 3).any())


def _variants(split: str, scene: Scene, edit: Edit, rng: np.random.Generator) -> list[Variant]:
    """What is right, and four wrong results, the nearest ones first."""
    wrong = distractors(scene, edit, rng, alike=split == "objects")
    if split == "compound":
        second = other_edit(scene, edit, rng)
        if edit.edit_type == "style":  # a style is of all there is: it comes last, so that there is one reading
            edit, second, wrong = second, edit, distractors(scene, second, rng)
        other = distractors(scene, second, rng)[0]
        return [Variant(edits) for edits in ((edit, second), (edit,), (second,), (wrong[0], second), (edit, other))]
    if split == "gradual":
        found = [Variant((edit,), True), Variant((edit,)), *(Variant((other,), True) for other in wrong[:2])]
        return [*found, Variant((wrong[0],))]
    found = [Variant((edit,)), *(Variant((other,)) for other in wrong)]
    if split in ("camera", "long") and edit.edit_type in ("add", "background"):
        found[-1] = Variant((edit,), fixed=True)
    return found


def _distinct(scene: Scene, variant: Variant) -> bool:
    """Whether each edit finds the object that it names, and no two objects are alike at the end."""
    for edit in variant.edits:
        named = edit.shape and edit.edit_type != "add"
        if named and all(obj.look != (edit.shape, edit.colour) for obj in scene.objects):
            return False
        scene = apply_edit(scene, edit)
        if len({obj.look for obj in scene.objects}) < len(scene.objects):
            return False
    return True


def _render(scene: Scene, source: Rendering, variant: Variant) -> tuple[np.ndarray, np.ndarray]:
    """Frames and mask of a variant, as `render_edit` gives them of one edit."""
    mask = np.zeros(source.frames.shape[:3], bool)
    current, rendering = scene, source
    for number, edit in enumerate(variant.edits):
        if number:
            current = apply_edit(current, variant.edits[number - 1])
            rendering = render(current)
        frames, changed = render_edit(current, rendering, edit)
        mask |= changed
    if variant.fixed:
        frames = _fixed(scene, source, frames, variant.edits[0])
    if variant.gradual:
        done = scene.progress.astype(np.float32)[:, None, None, None]
        frames = np.round((1 - done) * source.frames + done * frames).astype(np.uint8)
        mask &= done[..., 0] > 0
    return frames, mask


def _fixed(scene: Scene, source: Rendering, frames: np.ndarray, edit: Edit) -> np.ndarray:
    """What the edit would be if what it brings in stuck to the frame while the camera moves; ``frames`` as it is."""
    still = replace(scene, camera=STILL_CAMERA, objects=())
    if edit.edit_type == "background":
        new = apply_edit(still, edit)
        moving = render(replace(new, camera=scene.camera)).frames.astype(np.float32)
        change = source.background[..., None] * (render(new).frames - moving)
        return np.round(np.clip(frames + change, 0, 255)).astype(np.uint8)
    added = render(replace(still, objects=(added_object(scene, edit.shape, edit.colour, edit.position),)))
    rest = added.background[..., None]
    alone = added.frames - rest * render(still).frames.astype(np.float32)
    return np.round(np.clip(rest * source.frames + alone, 0, 255)).astype(np.uint8)


def _words(split: str, variant: Variant, rng: np.random.Generator, held_out: bool = False) -> tuple[str, str]:
    """(id of the template, instruction)."""
    names, texts = [], []
    for edit in variant.edits:
        if split == "paraphrase":
            number = int(rng.integers(len(PARAPHRASES[edit.edit_type])))
            name, template = f"{edit.edit_type}/paraphrase/{number}", PARAPHRASES[edit.edit_type][number]
        else:
            name, template = choose_template(edit.edit_type, rng, held_out)
        names.append(name)
        texts.append(instruction(edit, template))
    text = texts[0]
    if len(texts) == 2:
        joined = int(rng.integers(len(COMPOUND)))
        text = COMPOUND[joined].format(first=texts[0], second=texts[1])
    if split == "gradual":
        before = [template for template in GRADUAL if not template.startswith("{")]
        after = [template for template in GRADUAL if template.startswith("{")]
        some = after if text.startswith(("please", "in the")) else [*before, *after]
        text = some[int(rng.integers(len(some)))].format(instruction=text)
    return "+".join(names), misspell(text, rng, known_words()) if split == "typos" else text


def known_words() -> frozenset[str]:
    """All words of the world's instructions."""
    templates = [text for group in (TRAIN_TEMPLATES, TEST_TEMPLATES) for texts in group.values() for text in texts]
    words = {word for text in templates for word in text.split() if not word.startswith("{")}
    names = (*SHAPES, *COLOURS, *POSITIONS, *BACKGROUNDS, *STYLES)
    return frozenset(words.union(*(name.split() for name in names)))
