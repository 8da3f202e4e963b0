"""The one decode: a video becomes a small file of signals, from which every later decision about it is taken."""

from __future__ import annotations

from functools import lru_cache
from pathlib import Path

import cv2
import numpy as np

from icve.curation.stage import Row, RowStage, Workspace
from icve.data.manifest import resolve_path
from icve.data.media.video import VideoError, iterate_frames, timestamps
from icve.runtime.atomic import whole_file

MOSAIC = 16  # side of the tiny picture kept of every frame
PICTURE = 32  # side of the grey picture kept of every sample
_BINS = 4  # of the colour histogram, per channel
_BAR_LUMA = 20  # no pixel of a letterbox bar is brighter, compression noise included
_FLOW_STEP = 4  # flow vectors are counted on a grid of so many pixels


class Measure(RowStage):
    """Decodes a video once, downscaled as it comes, and writes what was measured (:class:`Signals` lists it).

    Changing a threshold of a later stage therefore decodes nothing. Memory grows by under 1 kB per frame.

    Reads ``video`` and, for its time limit, ``frames``, ``width`` and ``height``. Adds ``signals``, a path relative to
    the run's output. A file that does not decode whole raises :class:`VideoError`.

    Args:
        side: longer side of the frames that are measured, in pixels; 256 is what PySceneDetect downscales to.
        flow_fps: how often optical flow is measured, per second: fast enough to see a hand shake.
        sample_fps: how often a picture and colour histogram are kept, per second.
    """

    def __init__(self, side: int = 256, flow_fps: float = 12.0, sample_fps: float = 6.0) -> None:
        if side < 64 or flow_fps <= 0 or sample_fps <= 0:
            raise ValueError("side must be at least 64, flow_fps and sample_fps positive.")
        self.side, self.flow_fps, self.sample_fps = side, flow_fps, sample_fps

    def seconds(self, row: Row) -> float:
        """Several times what a slow codec takes on one busy core."""
        return 60.0 + row["frames"] * (0.02 + row["width"] * row["height"] / 2e7)

    def outcome(self, row: Row, work: Workspace) -> Row:
        path, name = work.video(row), f"signals/{row['key']}.npz"
        signals = measure(path, (row["height"], row["width"]), self.side, self.flow_fps, self.sample_fps)
        with whole_file(resolve_path(work.output, name)) as temporary, open(temporary, "wb") as file:
            np.savez_compressed(file, **signals)  # type: ignore[arg-type]  # none is called "allow_pickle"
        return row | {"signals": name}


def read_signals(work: Workspace, row: Row, *names: str) -> tuple[np.ndarray, ...]:
    """Some of a row's signals, by name. The last few are remembered, for the scenes of one video come one by one.

    The arrays are shared: they must not be written to.

    Raises:
        ManifestError: the path leaves the run's output.
        OSError, ValueError, KeyError: the file is missing or was not written by :class:`Measure`.
    """
    path = resolve_path(work.output, row["signals"])
    return _read(path, path.stat().st_mtime_ns, names)


@lru_cache(maxsize=2)
def _read(path: Path, modified: int, names: tuple[str, ...]) -> tuple[np.ndarray, ...]:
    with np.load(path, allow_pickle=False) as file:
        return tuple(file[name] for name in names)


def measure(
    path: Path, shape: tuple[int, int], side: int = 256, flow_fps: float = 12.0, sample_fps: float = 6.0
) -> dict[str, np.ndarray]:
    """Signals of a video of F frames.

    Args:
        path: the video.
        shape: (height, width) of its upright picture.
        side, flow_fps, sample_fps: see :class:`Measure`.

    Returns:
        Of every frame: ``seconds`` (F,) float64, the first at 0; ``change`` (F,), mean difference of hue, saturation
        and value from the frame before, 0..255, as PySceneDetect's content score (0 for the first); ``luma`` and
        ``contrast`` (F,), mean and standard deviation of grey, 0..255; ``sharpness`` (F,), standard deviation of the
        Laplacian over that of grey; ``bars`` (F, 4), share of the height that is black at the top and bottom and of
        the width at the left and right, NaN where the whole frame is black; ``mosaic`` (F, 16, 16, 3) uint8 RGB.
        Of N pairs of frames: ``flow_frames`` (N, 2) int32; ``flow_median`` and ``flow_peak`` (N,), median and 95th
        percentile of the optical flow's magnitude; ``flow_pan`` (N, 2), median flow to the right and down, all in
        frame diagonals per second; ``flow_zoom`` (N,), growth of the picture per second.
        Of M samples: ``sample_frames`` (M,) int32; ``histogram`` (M, 64) of RGB colours, sums 1; ``picture``
        (M, 32, 32) uint8 grey. All float32 where nothing is said.

    Raises:
        VideoError: the file does not decode whole.
    """
    seconds = timestamps(path)
    count = len(seconds)
    height, width = (max(16, round(length * side / max(shape))) for length in shape)
    sampled, flow = frames_due(seconds, sample_fps), _Flow(seconds, height, width, flow_fps)
    positions = {number: position for position, number in enumerate(sampled)}
    frames: dict[str, np.ndarray] = {
        "change": np.zeros(count, np.float32),
        "luma": np.zeros(count, np.float32),
        "contrast": np.zeros(count, np.float32),
        "sharpness": np.zeros(count, np.float32),
        "bars": np.zeros((count, 4), np.float32),
        "mosaic": np.zeros((count, MOSAIC, MOSAIC, 3), np.uint8),
    }
    # Made before the first frame: small arrays that stay, one by one between large ones that go, would keep the
    # allocator from using the large ones' places again.
    samples: dict[str, np.ndarray] = {
        "sample_frames": np.array(sampled, np.int32),
        "histogram": np.zeros((len(sampled), _BINS**3), np.float32),
        "picture": np.zeros((len(sampled), PICTURE, PICTURE), np.uint8),
    }
    number, before = 0, None
    for chunk in iterate_frames(path, size=(height, width)):
        for frame in chunk:
            hsv, grey = cv2.cvtColor(frame, cv2.COLOR_RGB2HSV), cv2.cvtColor(frame, cv2.COLOR_RGB2GRAY)
            if before is not None:
                frames["change"][number] = cv2.norm(hsv, before, cv2.NORM_L1) / hsv.size
            before = hsv
            mean, deviation = (float(value[0, 0]) for value in cv2.meanStdDev(grey))
            frames["luma"][number], frames["contrast"][number] = mean, deviation
            edges = cv2.meanStdDev(cv2.Laplacian(grey, cv2.CV_16S))[1][0, 0]
            frames["sharpness"][number] = edges / max(deviation, 1.0)
            frames["bars"][number] = _bars(grey)
            frames["mosaic"][number] = cv2.resize(frame, (MOSAIC, MOSAIC), interpolation=cv2.INTER_AREA)
            flow.add(number, grey)
            if number in positions:
                histogram = cv2.calcHist([frame], [0, 1, 2], None, [_BINS] * 3, [0, 256] * 3).ravel()
                position = positions[number]
                samples["histogram"][position] = histogram / histogram.sum()
                samples["picture"][position] = cv2.resize(grey, (PICTURE, PICTURE), interpolation=cv2.INTER_AREA)
            number += 1
    if number != count:
        raise VideoError(path, f"it is damaged: {number} of {count} frames decode.")
    return {"seconds": seconds, **frames, **flow.signals(), **samples}


def _bars(grey: np.ndarray) -> tuple[float, ...]:
    """Four shares of the picture that are black at the top, bottom, left and right."""
    sides: list[float] = []
    for axis in (1, 0):
        bright = cv2.reduce(grey, axis, cv2.REDUCE_MAX).ravel() > _BAR_LUMA
        if not bright.any():
            return (np.nan,) * 4
        sides += [float(bright.argmax()) / bright.size, float(bright[::-1].argmax()) / bright.size]
    return tuple(sides)


def frames_due(seconds: np.ndarray, fps: float) -> list[int]:
    """Frames that a measurement at a fixed rate looks at: each the first that is a period later than the last."""
    period = 1 / fps - 1e-3  # timestamps are rounded to a millisecond in Matroska
    due: list[int] = []
    for number, time in enumerate(seconds):
        if not due or time - seconds[due[-1]] >= period:
            due.append(number)
    return due


class _Flow:
    """Dense inverse search flow (DIS) between grey frames a period apart, as a few numbers each."""

    def __init__(self, seconds: np.ndarray, height: int, width: int, fps: float) -> None:
        self.seconds, self.due = seconds, frozenset(frames_due(seconds, fps))
        self.last: tuple[int, np.ndarray] | None = None  # the frame looked at before: number and picture
        self.search = cv2.DISOpticalFlow.create(cv2.DISOPTICAL_FLOW_PRESET_ULTRAFAST)
        self.diagonal = float(np.hypot(height, width))
        y, x = np.mgrid[0:height:_FLOW_STEP, 0:width:_FLOW_STEP].astype(np.float32)
        self.from_centre = np.stack([x - (width - 1) / 2, y - (height - 1) / 2], axis=-1)
        # Near the centre a zoom moves nothing, and noise divided by nothing is anything.
        self.outer = np.linalg.norm(self.from_centre, axis=-1) > self.diagonal / 8
        self.found: list[tuple[int, int, float, float, float, float, float]] = []

    def add(self, number: int, grey: np.ndarray) -> None:
        if number not in self.due:
            return
        before, self.last = self.last, (number, grey)
        if before is None:
            return
        flow = self.search.calc(before[1], grey, None)[::_FLOW_STEP, ::_FLOW_STEP]  # type: ignore[call-overload]  # takes None
        magnitude = np.sqrt(np.square(flow).sum(-1))
        median, peak = np.percentile(magnitude, (50, 95))
        pan = np.median(flow.reshape(-1, 2), axis=0)
        radial = ((flow - pan) * self.from_centre).sum(-1)[self.outer]
        zoom = np.median(radial / np.square(self.from_centre).sum(-1)[self.outer])
        period = self.seconds[number] - self.seconds[before[0]]
        speeds = np.array([median, peak, *pan]) / (self.diagonal * period)
        self.found.append((before[0], number, *speeds, zoom / period))

    def signals(self) -> dict[str, np.ndarray]:
        table = np.array(self.found, np.float64).reshape(-1, 7)
        names: dict[str, int | slice] = {"flow_median": 2, "flow_peak": 3, "flow_pan": slice(4, 6), "flow_zoom": 6}
        values = {name: table[:, column].astype(np.float32) for name, column in names.items()}
        return {"flow_frames": table[:, :2].astype(np.int32), **values}
