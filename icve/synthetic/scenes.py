"""Scenes: a background under a moving camera and objects that move in front of it.

Lengths are in units of the frame's side, u = sqrt(height * width), so that a scene looks alike at every resolution;
positions in the world are pixels of frame 0.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from functools import cached_property

import numpy as np

from icve.synthetic.textures import compatible_colours
from icve.synthetic.vocabulary import BACKGROUNDS, COLOURS, SHAPES

OBJECT_SIZES = (0.30, 0.46)  # 5 to 17 % of the frame's area, depending on the shape
ADDED_SIZE = 0.36
LOOKS = tuple((shape, colour) for shape in SHAPES for colour in COLOURS)


@dataclass(frozen=True)
class Motion:
    """A smooth path: ``drift`` over the whole clip plus an oscillation; all tuples have the path's dimension."""

    drift: tuple[float, ...]
    amplitude: tuple[float, ...]
    cycles: float = 0.0
    phase: float = 0.0

    def at(self, progress: np.ndarray) -> np.ndarray:
        """Displacement (F, dimension) at each progress (F,) in 0..1 through the clip; 0 at the beginning."""
        swing = np.sin(2 * np.pi * self.cycles * progress + self.phase) - np.sin(self.phase)
        return progress[:, None] * np.asarray(self.drift) + swing[:, None] * np.asarray(self.amplitude)


@dataclass(frozen=True)
class SceneObject:
    """One object. ``start`` is its centre at frame 0 in pixels (x, y), ``size`` and ``motion`` are in units u.

    ``opacity`` holds one value in 0..1 per frame, None means always opaque.
    """

    identity: int
    shape: str
    colour: str
    size: float
    start: tuple[float, float]
    motion: Motion
    opacity: tuple[float, ...] | None = None

    @property
    def look(self) -> tuple[str, str]:
        """(shape, colour), by which instructions name the object."""
        return self.shape, self.colour


@dataclass(frozen=True)
class Scene:
    """Everything that is to be seen; ``objects`` are ordered from back to front.

    ``camera`` moves (x, y, log zoom), the first two in units u; ``origin`` (x, y), in units u, is the part of the
    background's canvas in the middle of frame 0.
    """

    height: int
    width: int
    frames: int
    background: str
    origin: tuple[float, float]
    camera: Motion
    objects: tuple[SceneObject, ...]

    @property
    def unit(self) -> float:
        """The length u in pixels."""
        return float(np.sqrt(self.height * self.width))

    @cached_property
    def progress(self) -> np.ndarray:
        """(F,) from 0 at the first frame to 1 at the last."""
        return np.linspace(0.0, 1.0, self.frames)

    @cached_property
    def view(self) -> tuple[np.ndarray, np.ndarray]:
        """The camera: pan (F, 2) in pixels and zoom factor (F,), which scales about the frame's centre."""
        motion = self.camera.at(self.progress)
        return motion[:, :2] * self.unit, np.exp(motion[:, 2])

    def placement(self, obj: SceneObject) -> tuple[np.ndarray, np.ndarray]:
        """Centre (F, 2) in pixels (x, y) and size (F,) in pixels of an object on the screen."""
        pan, zoom = self.view
        world = np.asarray(obj.start) + obj.motion.at(self.progress) * self.unit
        centre = np.array([self.width, self.height]) / 2
        return centre + zoom[:, None] * (world - centre) + pan, obj.size * self.unit * zoom


STILL = Motion((0.0, 0.0), (0.0, 0.0))
STILL_CAMERA = Motion((0.0, 0.0, 0.0), (0.0, 0.0, 0.0))


def clip_camera(rng: np.random.Generator) -> Motion:
    """A camera for a short clip: still (1 in 4) or panning by up to 0.05 u, or swaying, some with a slow zoom."""
    if rng.random() < 0.25:
        return STILL_CAMERA
    angle, length = rng.uniform(0, 2 * np.pi), rng.uniform(0.015, 0.05)
    x, y = length * np.cos(angle), length * np.sin(angle)
    zoom = rng.uniform(-0.07, 0.07) if rng.random() < 0.5 else 0.0
    if rng.random() < 0.7:
        return Motion((x, y, zoom), (0.0, 0.0, 0.0))
    return Motion((0.0, 0.0, zoom), (0.6 * x, 0.6 * y, 0.0), cycles=rng.uniform(0.5, 1.0))


def clip_motion(rng: np.random.Generator) -> Motion:
    """A motion for a short clip: still, drifting by up to 0.14 u, or oscillating with up to 0.05 u."""
    kind, angle = rng.random(), rng.uniform(0, 2 * np.pi)
    direction = np.array([np.cos(angle), np.sin(angle)])
    if kind < 0.3:
        return STILL
    if kind < 0.7:
        return Motion(tuple(direction * rng.uniform(0.04, 0.14)), (0.0, 0.0))
    amplitude = tuple(direction * rng.uniform(0.02, 0.05))
    return Motion((0.0, 0.0), amplitude, cycles=rng.uniform(0.5, 1.2), phase=rng.uniform(0, 2 * np.pi))


def long_camera(rng: np.random.Generator, frames: int) -> Motion:
    """A camera for a long scene: slow and bounded, so that any two clips of the scene stay nearly aligned."""
    if rng.random() < 0.25:
        return STILL_CAMERA
    angle, length = rng.uniform(0, 2 * np.pi), rng.uniform(0.008, 0.02)
    zoom = rng.uniform(-0.02, 0.02) if rng.random() < 0.5 else 0.0
    amplitude = (length * np.cos(angle), length * np.sin(angle), zoom)
    return Motion((0.0, 0.0, 0.0), amplitude, cycles=frames / rng.uniform(20, 40), phase=rng.uniform(0, 2 * np.pi))


def long_motion(rng: np.random.Generator, frames: int) -> Motion:
    """A motion for a long scene: still, or a slow bounded oscillation of up to 0.02 u."""
    if rng.random() < 0.3:
        return STILL
    angle, length = rng.uniform(0, 2 * np.pi), rng.uniform(0.008, 0.02)
    amplitude = (length * np.cos(angle), length * np.sin(angle))
    return Motion((0.0, 0.0), amplitude, cycles=frames / rng.uniform(16, 36), phase=rng.uniform(0, 2 * np.pi))


def choose_looks(rng: np.random.Generator, count: int, taken: list[tuple[str, str]]) -> list[tuple[str, str]]:
    """``count`` different (shape, colour) pairs that are not in ``taken``."""
    free = [look for look in LOOKS if look not in taken]
    return [free[i] for i in rng.choice(len(free), count, replace=False)]


def choose_background(rng: np.random.Generator, colours: set[str]) -> str | None:
    """A background against which all these colours stand out, or None."""
    fitting = [name for name in BACKGROUNDS if colours <= compatible_colours()[name]]
    return fitting[int(rng.integers(len(fitting)))] if fitting else None


def place(
    rng: np.random.Generator,
    scene: Scene,
    looks: list[tuple[str, str]],
    motions: list[Motion],
    sizes: tuple[float, float] = OBJECT_SIZES,
    apart: float = 0.45,
) -> Scene | None:
    """Give every look a size (of ``sizes``, in units u) and a place beside the scene's objects, in front of them; None
    if no room was found.

    On every frame the centres of two objects stay ``apart`` of their summed sizes apart (by default they overlap only a
    little) and each object stays inside the frame but for a fringe of 5 % of its size.
    """
    for look, motion in zip(looks, motions, strict=True):
        others = [scene.placement(obj) for obj in scene.objects]
        for _ in range(25):
            size = float(rng.uniform(*sizes))
            start = (float(rng.uniform(0, scene.width)), float(rng.uniform(0, scene.height)))
            obj = SceneObject(len(scene.objects), *look, size, start, motion)
            centre, extent = scene.placement(obj)
            border = 0.45 * extent[:, None]
            if (centre < border).any() or (centre > np.array([scene.width, scene.height]) - border).any():
                continue
            clear = (np.linalg.norm(centre - other, axis=1) >= apart * (extent + reach) for other, reach in others)
            if all(frames.all() for frames in clear):
                break
        else:
            return None
        scene = replace(scene, objects=(*scene.objects, obj))
    return scene
