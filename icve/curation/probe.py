"""What a file says about itself, before anything is decoded: the cheapest way to drop what can never become a clip."""

from __future__ import annotations

from pathlib import Path

import av
import numpy as np

from icve.curation.stage import Rejected, Row, RowStage, Workspace
from icve.data.identity import file_digest
from icve.data.media.video import VideoError, probe, timestamps
from icve.data.media.video_stream import open_media, video_stream

_USUAL_INTERVALS = 8  # a pause of fewer frames is a slow stretch of a variable-rate file, not a gap


class Probe(RowStage):
    """Drops videos by size, length, frame rate and timestamps (ICVE, clip pairs: filters on raw videos).

    Reads ``video``. Adds ``width`` and ``height`` of the upright picture in pixels, ``fps`` (average), ``frames``,
    ``duration`` in seconds, ``rotation`` in degrees (already applied to width and height), ``codec`` and ``digest``, by
    which copies of a file can be told.

    Args:
        min_side: least width and height, in pixels.
        max_pixels: most pixels of a frame; checked before the first frame is decoded, so that a small file of enormous
            frames costs nothing.
        min_seconds: shortest video.
        max_seconds: longest video.
        min_fps: lowest average frame rate.
        max_fps: highest average frame rate.
        max_gap: longest time between two frames in seconds. Up to eight times the file's usual interval is allowed in
            any case.
        hdr: whether PQ and HLG are taken; their pictures are tone-mapped to SDR, which is a choice of its own.
        interlaced: whether interlaced videos are taken; their pictures are deinterlaced, which costs sharpness.
    """

    def __init__(
        self,
        min_side: int = 240,
        max_pixels: int = 8192 * 4320,
        min_seconds: float = 2.0,
        max_seconds: float = 6 * 3600.0,
        min_fps: float = 8.0,
        max_fps: float = 130.0,
        max_gap: float = 1.0,
        hdr: bool = True,
        interlaced: bool = True,
    ) -> None:
        if min_side < 1 or max_pixels < min_side**2:
            raise ValueError(f"min_side {min_side} must be positive and its square at most max_pixels {max_pixels}.")
        if not 0 <= min_seconds <= max_seconds or not 0 <= min_fps <= max_fps or max_gap <= 0:
            raise ValueError("Each of the limits must be positive and the lower one at most the upper one.")
        self.min_side, self.max_pixels = min_side, max_pixels
        self.min_seconds, self.max_seconds = min_seconds, max_seconds
        self.min_fps, self.max_fps, self.max_gap = min_fps, max_fps, max_gap
        self.hdr, self.interlaced = hdr, interlaced

    def outcome(self, row: Row, work: Workspace) -> Row | Rejected:
        path = work.video(row)
        pixels = stated_pixels(path)
        if pixels > self.max_pixels:
            return Rejected("too large", f"{pixels} pixels, at most {self.max_pixels} wanted")
        info = probe(path)
        seconds = timestamps(path)
        if info.frames < 2:
            return Rejected("too short", f"{info.frames} frame")
        if min(info.width, info.height) < self.min_side:
            return Rejected("too small", f"{info.width}x{info.height}, at least {self.min_side} either way wanted")
        if info.dynamic_range != "SDR" and not self.hdr:
            return Rejected("HDR", f"{info.dynamic_range}, only SDR wanted")
        if info.interlaced and not self.interlaced:
            return Rejected("interlaced", "only progressive frames wanted")
        known = np.isfinite([info.fps, info.duration, *seconds]).all()
        intervals = np.diff(seconds) if known else np.zeros(1)
        if intervals.min() <= 0:
            return Rejected("bad timestamps", "times of frames are missing, infinite or not ascending")
        longest = float(intervals.max())
        if longest > max(self.max_gap, _USUAL_INTERVALS * float(np.median(intervals))):
            frame = int(intervals.argmax()) + 1
            return Rejected("timestamp gap", f"{longest:.2f} s before frame {frame}, at most {self.max_gap:g} s wanted")
        if info.duration < self.min_seconds:
            return Rejected("too short", f"{info.duration:.2f} s, at least {self.min_seconds:g} s wanted")
        if max(info.duration, float(seconds[-1])) > self.max_seconds:
            return Rejected("too long", f"{info.duration:.0f} s, at most {self.max_seconds:g} s wanted")
        if not self.min_fps <= info.fps <= self.max_fps:
            return Rejected("frame rate", f"{info.fps:.2f} fps, {self.min_fps:g} to {self.max_fps:g} wanted")
        facts = ("width", "height", "fps", "frames", "duration", "rotation", "codec")
        return row | {name: getattr(info, name) for name in facts} | {"digest": file_digest(path)}


def stated_pixels(path: Path) -> int:
    """Pixels of a frame as the file's header has them; 0 where it cannot be opened, of which `probe` says why."""
    try:
        with open_media(path) as container:
            stream = video_stream(container, path)
            return stream.width * stream.height
    except (av.error.FFmpegError, OSError, VideoError):
        return 0
    except ValueError as error:  # PyAV's, for a picture size it has no format for
        raise VideoError(path, "its picture size is not possible.") from error
