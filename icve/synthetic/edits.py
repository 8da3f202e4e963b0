"""Edits of a scene: what they change, their exact mask, and the wrong edits nearest to them."""

from __future__ import annotations

from dataclasses import dataclass, replace

import numpy as np

from icve.synthetic.render import Rendering, render
from icve.synthetic.scenes import ADDED_SIZE, STILL, Scene, SceneObject
from icve.synthetic.styles import apply_style
from icve.synthetic.vocabulary import POSITIONS, is_held_out


@dataclass(frozen=True)
class Edit:
    """One change. Unused fields are empty strings.

    ``shape`` and ``colour`` name the object concerned (for "add", the new one), ``new_shape`` and ``new_colour`` what
    it becomes (for "recolour" the shape stays).
    """

    edit_type: str
    shape: str = ""
    colour: str = ""
    new_shape: str = ""
    new_colour: str = ""
    position: str = ""
    background: str = ""
    style: str = ""

    @property
    def combination(self) -> tuple[str, str, str] | None:
        """(edit type, shape, colour) as ``vocabulary.is_held_out`` counts it; None for background and style."""
        shape, colour = self.new_shape or self.shape, self.new_colour or self.colour
        return (self.edit_type, shape, colour) if shape else None

    @property
    def is_held_out(self) -> bool:
        """Whether its combination is kept out of every training split."""
        return self.combination is not None and is_held_out(*self.combination)


def added_object(scene: Scene, shape: str, colour: str, position: str) -> SceneObject:
    """The canonical object that "add" puts into a scene: fixed size, at rest in the world, in front of all others."""
    x, y = POSITIONS[position]
    identity = 1 + max((obj.identity for obj in scene.objects), default=-1)
    return SceneObject(identity, shape, colour, ADDED_SIZE, (x * scene.width, y * scene.height), STILL)


def apply_edit(scene: Scene, edit: Edit) -> Scene:
    """The scene after an edit; style edits leave the scene as it is (they change pixels).

    Raises:
        ValueError: the edit names an object that is not in the scene.
    """
    if edit.edit_type == "style":
        return scene
    if edit.edit_type == "background":
        return replace(scene, background=edit.background, origin=(0.0, 0.0))
    if edit.edit_type == "add":
        new = added_object(scene, edit.shape, edit.colour, edit.position)
        return replace(scene, objects=(*scene.objects, new))
    look = (edit.shape, edit.colour)
    if all(obj.look != look for obj in scene.objects):
        raise ValueError(f"There is no {edit.colour} {edit.shape} in the scene to {edit.edit_type}.")
    if edit.edit_type == "remove":
        return replace(scene, objects=tuple(obj for obj in scene.objects if obj.look != look))
    shape, colour = edit.new_shape, edit.new_colour
    objects = (replace(obj, shape=shape, colour=colour) if obj.look == look else obj for obj in scene.objects)
    return replace(scene, objects=tuple(objects))


def render_edit(scene: Scene, source: Rendering, edit: Edit) -> tuple[np.ndarray, np.ndarray]:
    """Frames uint8 (F, H, W, 3) of the edited scene and the edit's mask bool (F, H, W).

    The mask holds every pixel of which a changed thing covers any part, before or after the edit; outside it source
    and target are equal. For a background it is all that is not fully covered by objects, for a style everything.
    """
    if edit.edit_type == "style":
        return apply_style(source.frames, edit.style), np.ones(source.frames.shape[:3], bool)
    edited = apply_edit(scene, edit)
    if edit.edit_type == "background":
        return render(edited).frames, source.background > 0.0
    return render_change(scene, source, edited)


def render_change(scene: Scene, source: Rendering, edited: Scene) -> tuple[np.ndarray, np.ndarray]:
    """Frames of a scene of which objects were changed, and the mask of what changed, as `render_edit` gives them."""
    target = render(edited)
    mask = np.zeros(source.frames.shape[:3], bool)
    for before, visible in ((scene, source.visible), (edited, target.visible)):
        others = {(obj.identity, obj.look) for obj in (edited if before is scene else scene).objects}
        for number, obj in enumerate(before.objects):
            if (obj.identity, obj.look) not in others:
                mask |= visible[:, number] > 0.0
    return target.frames, mask
