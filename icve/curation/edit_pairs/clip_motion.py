"""What moves in a clip and what only seems to because the camera does: optical flow against a homography per frame."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from itertools import pairwise

import cv2
import numpy as np

_SHORT_SIDE = 160  # pixels at which flow is computed: enough for objects, and fast
_GRID = 6  # spacing of the flow vectors that the camera is fitted to
_TOLERANCE = 0.6  # pixels that a vector may be off to count as camera motion


@dataclass(frozen=True)
class ClipMotion:
    """Motion between consecutive frames, at a reduced size h×w.

    Attributes:
        forward: flow (F-1, h, w, 2) float32 from frame t to t+1, in pixels of the reduced size.
        backward: flow (F-1, h, w, 2) float32 from frame t+1 to t.
        camera: homographies (F-1, 3, 3) float64 from frame t to t+1, in pixels of the reduced size.
        fit: (F-1,) share of flow vectors that the homography explains.
        own: (F, h, w) float32, how fast each point moves against the scene, in pixels per frame.
        scale: (x, y) full size over reduced size.
    """

    forward: np.ndarray
    backward: np.ndarray
    camera: np.ndarray
    fit: np.ndarray
    own: np.ndarray
    scale: tuple[float, float]

    def to_first(self) -> np.ndarray:
        """Homographies (F, 3, 3) that take each frame's pixels (full size) to those of frame 0."""
        steps = [np.eye(3)]
        for matrix in self.camera:
            steps.append(steps[-1] @ np.linalg.inv(matrix))
        # cv2.resize maps pixel centres: x_full + 0.5 = (x + 0.5) * scale.
        x, y = self.scale
        enlarge = np.array([[x, 0, 0.5 * x - 0.5], [0, y, 0.5 * y - 0.5], [0, 0, 1]])
        return np.stack([enlarge @ step @ np.linalg.inv(enlarge) for step in steps])


def follow(values: np.ndarray, flow: np.ndarray) -> np.ndarray:
    """Values (h, w) float32 of another frame at the places where flow (h, w, 2) leads to; the edge goes on outside."""
    h, w = flow.shape[:2]
    x, y = np.meshgrid(np.arange(w, dtype=np.float32), np.arange(h, dtype=np.float32))
    return cv2.remap(values, x + flow[..., 0], y + flow[..., 1], cv2.INTER_LINEAR, borderMode=cv2.BORDER_REPLICATE)


def spread_along(
    values: np.ndarray, motion: ClipMotion, mix: Callable[[np.ndarray, np.ndarray], np.ndarray]
) -> tuple[np.ndarray, np.ndarray]:
    """Values (F, h, w) float32, each frame mixed with what the flow brings from all before it, and from all after it.

    ``mix`` gets a frame's own values (h, w) and those brought to it.
    """
    past, future = values.copy(), values.copy()
    for t in range(1, len(values)):
        past[t] = mix(values[t], follow(past[t - 1], motion.backward[t - 1]))
    for t in range(len(values) - 2, -1, -1):
        future[t] = mix(values[t], follow(future[t + 1], motion.forward[t]))
    return past, future


def grown(mask: np.ndarray, radius: float) -> np.ndarray:
    """A mask (H, W) bool and what lies within ``radius`` pixels of it, at least one."""
    size = 2 * max(1, round(radius)) + 1
    return cv2.dilate(mask.astype(np.uint8), cv2.getStructuringElement(cv2.MORPH_ELLIPSE, (size, size))) > 0


def clip_motion(frames: np.ndarray) -> ClipMotion:
    """Flow, camera and residual motion of a clip (F, H, W, 3) uint8 RGB, F ≥ 2.

    The camera is the homography that most flow vectors agree with (RANSAC); a point's own motion is what the flow has
    beyond it, the smaller of both directions, as one of them is wrong where background is being covered or uncovered.
    """
    height, width = frames.shape[1:3]
    shrink = min(1.0, _SHORT_SIDE / min(height, width))
    size = (round(width * shrink), round(height * shrink))
    grey = [cv2.resize(cv2.cvtColor(f, cv2.COLOR_RGB2GRAY), size, interpolation=cv2.INTER_AREA) for f in frames]
    dis = cv2.DISOpticalFlow.create(cv2.DISOPTICAL_FLOW_PRESET_MEDIUM)
    # Down to single pixels and without smoothing: the preset's flow is a third too slow on small things and leaks far
    # over their outlines.
    dis.setFinestScale(0)
    dis.setVariationalRefinementIterations(0)

    def flow(a: np.ndarray, b: np.ndarray) -> np.ndarray:
        return dis.calc(a, b, None)  # type: ignore[call-overload]  # takes None for a flow to begin with

    pairs = list(pairwise(grey))
    forward = np.stack([flow(a, b) for a, b in pairs])
    backward = np.stack([flow(b, a) for a, b in pairs])
    camera, fit = zip(*(_camera(field) for field in forward), strict=True)
    ahead = np.stack([_residual(field, matrix) for field, matrix in zip(forward, camera, strict=True)])
    back = np.stack([_residual(field, _camera(field)[0]) for field in backward])
    own = np.concatenate([ahead[:1], np.minimum(ahead[1:], back[:-1]), back[-1:]])
    scale = width / size[0], height / size[1]
    return ClipMotion(forward, backward, np.stack(camera), np.array(fit, np.float32), own, scale)


def _camera(flow: np.ndarray) -> tuple[np.ndarray, float]:
    h, w = flow.shape[:2]
    y, x = np.mgrid[_GRID // 2 : h : _GRID, _GRID // 2 : w : _GRID]
    start = np.stack([x.ravel(), y.ravel()], -1).astype(np.float32)
    end = start + flow[y.ravel(), x.ravel()]
    matrix, inliers = cv2.findHomography(start, end, cv2.RANSAC, _TOLERANCE)
    return (np.eye(3), 0.0) if matrix is None else (matrix, float(inliers.mean()))


def _residual(flow: np.ndarray, matrix: np.ndarray) -> np.ndarray:
    h, w = flow.shape[:2]
    x, y = np.meshgrid(np.arange(w, dtype=np.float32), np.arange(h, dtype=np.float32))
    places = np.stack([x, y], -1)
    expected = cv2.perspectiveTransform(places.reshape(1, -1, 2), matrix).reshape(h, w, 2) - places
    return np.linalg.norm(flow - expected, axis=-1).astype(np.float32)
