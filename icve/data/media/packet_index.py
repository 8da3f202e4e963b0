"""What is known of a video file once its packets were looked at."""

from __future__ import annotations

from dataclasses import dataclass
from fractions import Fraction
from functools import cached_property

import numpy as np


@dataclass(frozen=True)
class VideoInfo:
    """What a file's video stream shows.

    ``width`` and ``height`` are those of the upright picture, after the stored rotation; ``fps`` is the average rate
    (frames / duration), ``duration`` is in seconds; ``rotation`` is counter-clockwise in degrees (0, 90, 180, 270),
    and ``mirrored`` (left to right, after it) are already applied by :func:`read_frames`. ``sample_aspect`` is width to
    height of an upright pixel as shown. ``dynamic_range`` is that stored: SDR, or PQ or HLG, of which SDR is made;
    ``interlaced`` frames are deinterlaced. See :mod:`icve.data.media.picture`.
    """

    width: int
    height: int
    fps: float
    frames: int
    duration: float
    rotation: int
    codec: str
    sample_aspect: Fraction = Fraction(1)
    mirrored: bool = False
    dynamic_range: str = "SDR"
    interlaced: bool = False

    @property
    def displayed(self) -> tuple[int, int]:
        """(height, width) of the picture as shown, in square pixels; the longer stored side keeps its length."""
        shown = self.width * self.sample_aspect
        return (
            (self.height, round(shown))
            if shown >= self.width
            else (round(self.height * self.width / shown), self.width)
        )


@dataclass(frozen=True, eq=False)
class PacketIndex:
    """Frames of one file's video stream, in display order."""

    info: VideoInfo
    pts: np.ndarray | None  # (F,) int64 in units of the stream's time base, ascending; None where the file has no times
    time_base: Fraction  # seconds per unit of pts
    origin: int  # of the file's timeline, in units of pts: where its sound begins, if that is before the picture
    keys: np.ndarray  # positions of key frames
    stamps: np.ndarray | None  # (F,) int64, the decoder's own timestamps; None where they do not tell frames apart
    stored: tuple[int, int]  # (width, height) as decoded
    places: np.ndarray | None = None  # bytes before each key frame, -1 where not known; only of formats without a table

    @cached_property
    def seconds(self) -> np.ndarray:
        """(F,) float64, when the frames are shown, the first at 0."""
        if self.pts is None:
            return np.arange(self.info.frames) / self.info.fps
        return (self.pts - self.pts[0]) * float(self.time_base)
