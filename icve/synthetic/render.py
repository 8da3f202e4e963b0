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
    """``frames`` uint8 (F, H, W, 3) RGB; ``visible`` float32 (F, N, H, W), each object's share of each pixel, and
    ``background`` float32 (F, H, W), what remains. A share of exactly 0 means no influence at all on the pixel.
    """

    frames: np.ndarray
    visible: np.ndarray
    background: np.ndarray


def render(scene: Scene) -> Rendering:
    """Draw all frames of a scene; the result depends on nothing else."""
    height, width, unit = scene.height, scene.width, scene.unit
    margin = int(np.ceil(_MARGIN * unit))
    canvas = background_canvas(scene.background, height, width, margin)
    pan, zoom = scene.view
    placements = [scene.placement(obj) for obj in scene.objects]
    images = np.empty((scene.frames, height, width, 3), np.float32)
    visible = np.zeros((scene.frames, len(scene.objects), height, width), np.float32)
    background = np.ones((scene.frames, height, width), np.float32)
    middle = np.array([width, height]) / 2
    canvas_middle = np.array([canvas.shape[1], canvas.shape[0]]) / 2 + np.asarray(scene.origin) * unit
    for f in range(scene.frames):
        images[f] = _warp(canvas, canvas_middle, 1.0 / zoom[f], middle + pan[f], (0, 0, width, height))
        for number, (obj, (centre, size)) in enumerate(zip(scene.objects, placements, strict=True)):
            reach = SPRITE_EXTENT / 2 * size[f] + 1
            left, top = np.maximum(np.floor(centre[f] - reach).astype(int), 0)
            right, bottom = np.minimum(np.ceil(centre[f] + reach).astype(int), (width, height))
            opacity = 1.0 if obj.opacity is None else obj.opacity[f]
            if opacity <= 0.0 or left >= right or top >= bottom:
                continue
            # Sprites come in steps of 8 pixels, always a little finer than drawn, so that few are kept in memory.
            picture = sprite(obj.shape, int(np.ceil(SPRITE_EXTENT * obj.size * unit / 8)) * 8)
            scale = picture.shape[0] / (SPRITE_EXTENT * size[f])
            drawn = _warp(picture, picture.shape[0] / 2, scale, centre[f], (left, top, right, bottom))
            alpha = drawn[..., 0] * np.float32(opacity)
            box = (slice(top, bottom), slice(left, right))
            rest = 1.0 - alpha
            # Weights of exactly 0 and 1, so that what is fully covered leaves no trace, not even in rounding.
            # Outside the outline the shading is dark, but there alpha is 0.
            colour = drawn[..., 1:] * np.asarray(COLOURS[obj.colour], np.float32)
            images[f][box] = rest[..., None] * images[f][box] + alpha[..., None] * colour
            visible[f, :number][:, *box] *= rest
            visible[f, number][box] = alpha
            background[f][box] *= rest
    frames = np.round(np.clip(images, 0.0, 1.0) * 255.0).astype(np.uint8)
    return Rendering(frames, visible, background)


def _warp(
    picture: np.ndarray, picture_point: np.ndarray | float, scale: float, point: np.ndarray, box: tuple[int, ...]
) -> np.ndarray:
    """The part ``box`` (left, top, right, bottom) of a screen on which ``picture_point`` lies at ``point``.

    One screen pixel is ``scale`` picture pixels. Points count from the corner, OpenCV from the centre of the first
    pixel: hence the halves.
    """
    left, top, right, bottom = box
    shift = picture_point + scale * (np.array([left, top]) + 0.5 - point) - 0.5
    matrix = np.array([[scale, 0.0, shift[0]], [0.0, scale, shift[1]]])
    flags = cv2.INTER_LINEAR | cv2.WARP_INVERSE_MAP
    return cv2.warpAffine(picture, matrix, (right - left, bottom - top), flags=flags, borderMode=cv2.BORDER_REFLECT)
