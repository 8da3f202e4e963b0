"""Wrong edits of the same scene: an editor has understood an instruction only if it comes nearer to the true target."""

from __future__ import annotations

from collections.abc import Iterable

import numpy as np

from icve.synthetic.edits import Edit
from icve.synthetic.scenes import LOOKS, Scene
from icve.synthetic.textures import compatible_colours
from icve.synthetic.vocabulary import BACKGROUNDS, COLOURS, POSITIONS, STYLES


def distractors(scene: Scene, edit: Edit, rng: np.random.Generator, alike: bool = False) -> list[Edit]:
    """Four edits other than ``edit``, the first two the nearest wrong ones: same object, other value; same verb, other
    object (for background and style, which concern no object: two other values).

    The scene must hold at least two objects, or one besides what an "add" edit brings in. ``alike`` makes the other
    object one that shares its shape or colour, where there is one.
    """
    look = (edit.shape, edit.colour)
    others = [obj.look for obj in scene.objects if obj.look != look]
    others = (alike and [other for other in others if set(other) & set(look)]) or others
    other = others[int(rng.integers(len(others)))]
    if edit.edit_type == "add":
        colour = _pick(rng, _colours(scene), edit.colour)
        shape, second = _new_look(scene, edit.shape, edit.colour, rng)
        return [
            Edit("add", edit.shape, colour, position=edit.position),
            Edit("add", shape, second, position=edit.position),
            Edit("add", *look, position=_pick(rng, POSITIONS, edit.position)),
            _recolour(scene, other, rng),
        ]
    if edit.edit_type == "remove":
        return [
            _recolour(scene, look, rng),
            Edit("remove", *other),
            _replace(scene, look, rng),
            _background(scene, rng),
        ]
    if edit.edit_type == "replace":
        new = (edit.new_shape, edit.new_colour)
        return [
            _replace(scene, look, rng, avoid=new),
            Edit("replace", *other, *new) if other != new else _replace(scene, other, rng),
            Edit("remove", *look),
            _recolour(scene, look, rng),
        ]
    if edit.edit_type == "recolour":
        possible = other[1] != edit.new_colour
        return [
            _recolour(scene, look, rng, avoid=edit.new_colour),
            Edit("recolour", *other, other[0], edit.new_colour) if possible else _recolour(scene, other, rng),
            Edit("remove", *look),
            _replace(scene, look, rng, avoid=(edit.new_shape, edit.new_colour)),
        ]
    kind = edit.edit_type  # background or style, which is also the field that holds its value
    choices, right = (_backgrounds(scene) if kind == "background" else STYLES), getattr(edit, kind)
    first = _pick(rng, choices, right)
    wrong = [Edit(kind, **{kind: value}) for value in (first, _pick(rng, choices, right, first))]
    if kind == "background":
        return [*wrong, Edit("style", style=_pick(rng, STYLES)), Edit("remove", *other)]
    return [*wrong, _background(scene, rng), _recolour(scene, other, rng)]


def other_edit(scene: Scene, edit: Edit, rng: np.random.Generator) -> Edit:
    """An edit of another type than ``edit``, of another object or of the whole scene."""
    others = [obj.look for obj in scene.objects if obj.look != (edit.shape, edit.colour)]
    other = others[int(rng.integers(len(others)))]
    kind = _pick(rng, ("remove", "replace", "recolour", "background", "style"), edit.edit_type)
    if kind == "background":
        return _background(scene, rng)
    if kind == "style":
        return Edit("style", style=_pick(rng, STYLES))
    if kind == "remove":
        return Edit("remove", *other)
    return _recolour(scene, other, rng) if kind == "recolour" else _replace(scene, other, rng)


def _pick(rng: np.random.Generator, choices: Iterable[str], *avoid: str) -> str:
    left = [choice for choice in choices if choice not in avoid]
    return left[int(rng.integers(len(left)))]


def _colours(scene: Scene) -> list[str]:
    return [colour for colour in COLOURS if colour in compatible_colours()[scene.background]]


def _backgrounds(scene: Scene) -> list[str]:
    """Other backgrounds; those on which all objects stand out, or simply all if there are too few."""
    colours = {obj.colour for obj in scene.objects}
    others = [name for name in BACKGROUNDS if name != scene.background]
    fitting = [name for name in others if colours <= compatible_colours()[name]]
    return fitting if len(fitting) >= 3 else others


def _background(scene: Scene, rng: np.random.Generator) -> Edit:
    return Edit("background", background=_pick(rng, _backgrounds(scene)))


def _new_look(scene: Scene, shape: str, colour: str, rng: np.random.Generator) -> tuple[str, str]:
    """A look of another shape and another colour that no object has."""
    used = {obj.look for obj in scene.objects}
    colours = [name for name in _colours(scene) if name != colour]
    free = [new for new in LOOKS if new not in used and new[0] != shape and new[1] in colours]
    return free[int(rng.integers(len(free)))]


def _recolour(scene: Scene, look: tuple[str, str], rng: np.random.Generator, avoid: str = "") -> Edit:
    used = {obj.colour for obj in scene.objects if obj.shape == look[0]}
    return Edit("recolour", *look, look[0], _pick(rng, _colours(scene), avoid, look[1], *used))


def _replace(scene: Scene, look: tuple[str, str], rng: np.random.Generator, avoid: tuple[str, ...] = ()) -> Edit:
    new = _new_look(scene, *look, rng)
    while set(new) & set(avoid):
        new = _new_look(scene, *look, rng)
    return Edit("replace", *look, *new)
