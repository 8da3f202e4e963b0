"""From a scene to pixels, with the exact visible coverage of every object."""

from __future__ import annotations

from dataclasses import dataclass

import cv2
import numpy as np

from icve.synthetic.scenes import Scene
from icve.synthetic.textures import SPRITE_EXTENT, background_canvas, sprite
from icve.synthetic.vocabulary import COLOURS

_MARGIN = 0.4  # of the frame's side: how much canvas lies around the frame for the origin, pan and zoom to move in


@dataclass(frozen=True)
class Rendering:
    """``frames`` uint8 (F, H, W, 3) RGB; ``visible`` float32 (F, N, H, W), each object's share of each pixel."""

    frames: np.ndarray
    visible: np.ndarray


def render(scene: Scene) -> Rendering:
    """Draw all frames of a scene; the result depends on nothing else."""
    height, width, unit = scene.height, scene.width, scene.unit
    margin = int(np.ceil(_MARGIN * unit))
    canvas = background_canvas(scene.background, height, width, margin)
    pan, zoom = scene.view()
    placements = [scene.placement(obj) for obj in scene.objects]
    images = np.empty((scene.frames, height, width, 3), np.float32)
    visible = np.zeros((scene.frames, len(scene.objects), height, width), np.float32)
    # Pixel centres are at half-integers on the screen and on the canvas, integers in OpenCV: hence the halves below.
    middle = np.array([width, height]) / 2
    canvas_middle = np.array([canvas.shape[1], canvas.shape[0]]) / 2 + np.asarray(scene.origin) * unit
    flags = cv2.INTER_LINEAR | cv2.WARP_INVERSE_MAP
    for f in range(scene.frames):
        scale = 1.0 / zoom[f]
        shift = canvas_middle - scale * (middle + pan[f] - 0.5) - 0.5
        matrix = np.array([[scale, 0.0, shift[0]], [0.0, scale, shift[1]]])
        image = cv2.warpAffine(canvas, matrix, (width, height), flags=flags, borderMode=cv2.BORDER_REFLECT)
        for number, (obj, (centre, size)) in enumerate(zip(scene.objects, placements, strict=True)):
            if obj.opacity is not None and obj.opacity[f] <= 0.0:
                continue
            # Sprites come in steps of 8 pixels, always a little finer than drawn, so that few are kept in memory.
            picture = sprite(obj.shape, int(np.ceil(SPRITE_EXTENT * obj.size * unit / 8)) * 8)
            scale = picture.shape[0] / (SPRITE_EXTENT * size[f])
            shift = picture.shape[0] / 2 - scale * (centre[f] - 0.5) - 0.5
            matrix = np.array([[scale, 0.0, shift[0]], [0.0, scale, shift[1]]])
            drawn = cv2.warpAffine(picture, matrix, (width, height), flags=flags)
            alpha = drawn[..., 0] if obj.opacity is None else drawn[..., 0] * np.float32(obj.opacity[f])
            colour = np.asarray(COLOURS[obj.colour], np.float32)
            # The sprite's shading is dark outside its outline, where alpha is 0.
            image += alpha[..., None] * (drawn[..., 1:] * colour - image)
            visible[f, :number] *= 1.0 - alpha
            visible[f, number] = alpha
        images[f] = image
    frames = np.round(np.clip(images, 0.0, 1.0) * 255.0).astype(np.uint8)
    return Rendering(frames, visible)
