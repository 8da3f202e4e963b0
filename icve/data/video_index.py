"""What a video file's packets say about it: size, rate, timestamps, key frames, and which decoder is exact on it."""

from __future__ import annotations

import importlib.util
import math
import os
from collections.abc import Sequence
from dataclasses import dataclass
from fractions import Fraction
from functools import cache, lru_cache
from typing import NamedTuple

import av
import numpy as np

from icve.data.picture import dynamic_range, orientation

# Where decord 0.6 was seen to be frame-exact, with the same pixels as PyAV. Elsewhere it is not: it has no AV1 decoder,
# miscounts in transport streams, is some frames off after a seek in files whose key frames have leading frames, and
# takes the row padding of some narrow pictures (16, 24, 48, 72 wide) for channels.
_DECORD_CODECS = frozenset({"h264", "hevc", "vp9", "mpeg4", "mjpeg", "prores", "ffv1", "png"})
_DECORD_CONTAINERS = frozenset({"mp4", "matroska"})


class VideoError(ValueError):
    """A video that cannot be read as asked. ``path`` names it, ``reason`` says why in one sentence."""

    def __init__(self, path: str | os.PathLike, reason: str) -> None:
        super().__init__(str(path), reason)
        self.path, self.reason = str(path), reason

    def __str__(self) -> str:
        return f"{self.path}: {self.reason}"


@dataclass(frozen=True)
class VideoInfo:
    """What a file's packets say about its video stream, without decoding it.

    ``width`` and ``height`` are those of the upright picture, after the stored rotation; ``fps`` is the average rate
    (frames / duration), ``duration`` is in seconds; ``rotation`` is counter-clockwise in degrees (0, 90, 180, 270),
    and ``mirrored`` (left to right, after it) are already applied by :func:`read_frames`. ``sample_aspect`` is width to
    height of an upright pixel as shown. ``dynamic_range`` is that stored: SDR, or PQ or HLG, of which SDR is made;
    ``interlaced`` frames are deinterlaced. See :mod:`icve.data.picture`.
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
    """Packets of one file's video stream, in presentation order. ``decoder`` is ``"decord"`` or ``"pyav"``."""

    info: VideoInfo
    pts: np.ndarray | None  # (F,) int64 in units of the stream's time base; None where they are missing or not unique
    seconds: np.ndarray  # (F,) float64, first frame at 0
    time_base: Fraction  # seconds per unit of pts
    origin: int  # of the file's timeline, in units of pts: where its sound begins, if that is before the picture
    keys: np.ndarray  # positions of key frames
    decoder: str


def probe(path: str | os.PathLike) -> VideoInfo:
    """Size, rate and length of a video, from its packets (nothing is decoded, except one frame for its rotation).

    Raises:
        VideoError: the file is missing, empty, not a video, without a video stream, or truncated.
    """
    return index_packets(path).info


def timestamps(path: str | os.PathLike) -> np.ndarray:
    """Presentation times in seconds, (F,) float64, ascending, the first frame at 0. Raises as :func:`probe`."""
    return index_packets(path).seconds.copy()


def index_packets(path: str | os.PathLike) -> PacketIndex:
    """Index a file (remembered until the file changes). Raises as :func:`probe`."""
    try:
        stat = os.stat(path)
    except OSError as error:
        raise VideoError(path, f"it cannot be opened ({error.strerror}).") from error
    if os.path.isdir(path):
        raise VideoError(path, "it is a folder, not a video file.")
    if stat.st_size == 0:
        raise VideoError(path, "it is empty.")
    return _indexed(os.fspath(path), stat.st_mtime_ns, stat.st_size)


@lru_cache(maxsize=1024)
def _indexed(path: str, modified: int, file_size: int) -> PacketIndex:
    _check_whole(path, file_size)
    try:
        with av.open(path) as container:
            if not container.streams.video:
                raise VideoError(path, "it has no video stream.")
            stream = container.streams.video[0]
            # A file cut exactly between two samples demuxes without complaint: compare its index with its size.
            if any(entry.pos + entry.size > file_size for entry in stream.index_entries):
                raise VideoError(path, "it is truncated: its index names frames beyond the end of the file.")
            packets = [_Packet.of(packet) for packet in container.demux(stream) if packet.size]
            average, time_base, codec = stream.average_rate, stream.time_base, stream.codec_context.codec.canonical_name
            aspect = stream.sample_aspect_ratio or stream.codec_context.sample_aspect_ratio or Fraction(1)
            containers = set(container.format.name.split(","))
            sounds = [(sound.start_time or 0) * sound.time_base for sound in container.streams.audio]
        # Rotation is only given with decoded frames.
        with av.open(path) as container:
            container.streams.video[0].thread_count = 1
            first = next(container.decode(video=0), None)
    except av.error.FFmpegError as error:
        raise VideoError(path, f"it cannot be read as a video ({error.strerror}).") from error
    if any(packet.is_corrupt for packet in packets):
        raise VideoError(path, "it is truncated or damaged: a packet is incomplete.")
    shown = [packet for packet in packets if not packet.is_discard]
    if not shown or first is None:
        raise VideoError(path, "it has no frames.")

    times = [packet.pts for packet in shown]
    fps = float(average) if average else 0.0
    if None in times or len(set(times)) < len(times):
        fps = fps or 25.0
        pts, seconds = None, np.arange(len(shown)) / fps
        keys = np.array([0])
    else:
        order = np.argsort(np.array(times, dtype=np.int64))
        pts = np.array(times, dtype=np.int64)[order]
        seconds = (pts - pts[0]) * float(time_base)
        fps = fps or ((len(pts) - 1) / float(seconds[-1]) if len(pts) > 1 else 25.0)
        keys = np.flatnonzero(np.array([packet.is_keyframe for packet in shown])[order])

    rotation, mirrored = orientation(first)
    look = (mirrored, dynamic_range(first), first.interlaced_frame)
    width, height = (first.height, first.width) if rotation % 180 else (first.width, first.height)
    origin = min([0 if pts is None else int(pts[0]), *(math.floor(time / time_base) for time in sounds if time >= 0)])
    aspect = 1 / aspect if rotation % 180 else aspect
    info = VideoInfo(width, height, fps, len(shown), len(shown) / fps, rotation, codec, aspect, *look)
    exact = (
        codec in _DECORD_CODECS
        and bool(containers & _DECORD_CONTAINERS)
        and pts is not None
        and len(shown) == len(packets)  # decord also counts the frames that an edit list hides
        and not _has_leading_frames(shown)
        and look == (False, "SDR", False)
        and all(side % 32 == 0 or side >= 96 for side in (width, height))
    )
    return PacketIndex(info, pts, seconds, time_base, origin, keys, "decord" if exact and _has_decord() else "pyav")


class _Packet(NamedTuple):
    """What is kept of a packet; with its bytes, a long film would not fit into memory."""

    pts: int | None
    is_keyframe: bool
    is_corrupt: bool
    is_discard: bool

    @classmethod
    def of(cls, packet: av.Packet) -> _Packet:
        return cls(packet.pts, packet.is_keyframe, packet.is_corrupt, packet.is_discard)


def _has_leading_frames(packets: Sequence[_Packet]) -> bool:
    """Whether a frame is decoded after a key frame but shown before it, as in open groups of pictures."""
    earliest = np.minimum.accumulate([packet.pts for packet in packets][::-1])[::-1]
    return any(packet.is_keyframe and first < packet.pts for packet, first in zip(packets, earliest, strict=True))


def _check_whole(path: str, file_size: int) -> None:
    """Raise where a Matroska or RIFF file states a greater length than it has: FFmpeg reads such a file to its end."""
    try:
        with open(path, "rb") as file:
            head = file.read(4096)
    except OSError as error:
        raise VideoError(path, f"it cannot be opened ({error.strerror}).") from error
    stated = 0
    if head[:4] == b"RIFF":
        stated = 8 + int.from_bytes(head[4:8], "little")
    elif head[:4] == bytes.fromhex("1A45DFA3") and (segment := head.find(bytes.fromhex("18538067"))) > 0:
        # An EBML length: as many bytes as the first has leading zero bits, plus one; all other bits set means unknown.
        at = segment + 4
        bytes_of_length = 9 - head[at].bit_length() if at < len(head) else 9
        if bytes_of_length <= 8:
            value = int.from_bytes(head[at : at + bytes_of_length], "big") & ((1 << 7 * bytes_of_length) - 1)
            if value != (1 << 7 * bytes_of_length) - 1:
                stated = at + bytes_of_length + value
    if stated > file_size:
        raise VideoError(path, f"it is truncated: {file_size} of {stated} bytes.")


@cache
def _has_decord() -> bool:
    return importlib.util.find_spec("decord") is not None
