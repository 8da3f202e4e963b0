"""What there is to read in a video file: its frames, their size, rate, times and key frames.

Frames are those that the decoder shows, in display order, numbered once. Where a file's packets provably are its frames
(:mod:`icve.data.media.video_packets`), which holds for most, they are counted; elsewhere the file is decoded once.
"""

from __future__ import annotations

import math
import os
import time
from fractions import Fraction
from functools import lru_cache
from typing import NamedTuple

import av
import numpy as np

from icve.data.media import stored_index
from icve.data.media.media_paths import foreign_path
from icve.data.media.packet_index import PacketIndex, VideoInfo
from icve.data.media.picture import dynamic_range, orientation
from icve.data.media.still_picture import is_picture, picture_size
from icve.data.media.timeline import display_times
from icve.data.media.video_packets import Packet, packets_are_frames
from icve.data.media.video_stream import VideoError, clock_may_jump, open_media, shown_frames, time_unit, video_stream
from icve.runtime.storage.files import file_state, open_file
from icve.runtime.storage.remote_path import RemoteError

__all__ = ["STILL", "PacketIndex", "VideoError", "VideoInfo", "index_packets", "probe", "timestamps"]

STILL = "still picture"  # `VideoInfo.codec` of a file that is a single picture (icve.data.media.still_picture)
# How far the rate a container states may be from that of its frames' times, which is taken then.
_RATE_ERROR = 0.01
# Packets between a break in a transport stream and the one that FFmpeg marks.
_NEAR = 4


def probe(path: str | os.PathLike) -> VideoInfo:
    """Size, rate and length of a video, from its packets where these tell them, else from decoding it once.

    Raises:
        VideoError: the file is missing, empty, not a video, without a video stream, truncated, damaged where it had to
            be decoded, or its picture changes size.
    """
    return index_packets(path).info


def timestamps(path: str | os.PathLike) -> np.ndarray:
    """Presentation times in seconds, (F,) float64, ascending, the first frame at 0. Raises as :func:`probe`."""
    return index_packets(path).seconds.copy()


def index_packets(path: str | os.PathLike) -> PacketIndex:
    """Index a file, or take what is remembered or stored of it (:mod:`icve.data.media.stored_index`) unless it has
    changed since. Raises as :func:`probe`."""
    try:
        size, modified = file_state(path)
    except RemoteError:
        raise
    except IsADirectoryError as error:
        raise VideoError(path, "it is a folder, not a video file.") from error
    except OSError as error:
        reason = foreign_path(path, "it") or f"it cannot be opened ({error.strerror})."
        raise VideoError(path, reason) from error
    if size == 0:
        raise VideoError(path, "it is empty.")
    if is_picture(path):
        return _of_picture(path)
    return _indexed(os.fspath(path), modified, size)


def _of_picture(path: str | os.PathLike) -> PacketIndex:
    """A picture as a video of one frame, at the rate that FFmpeg gives pictures: it has to be some."""
    size, first = picture_size(path), np.zeros(1, np.int64)
    info = VideoInfo(*size, fps=25.0, frames=1, duration=1 / 25, rotation=0, codec=STILL)
    return PacketIndex(info, None, Fraction(1, 25), 0, first, None, size)


def forget() -> None:
    """Forget what this process remembers of files, and which stored indices it uses."""
    _indexed.cache_clear()
    stored_index.use_none()


@lru_cache(maxsize=1024)
def _indexed(path: str, modified: int, file_size: int) -> PacketIndex:
    if (known := stored_index.find(path, modified, file_size)) is not None:
        return known
    began, noted = time.perf_counter(), stored_index.identify(path)
    index = _scanned(path, file_size)
    stored_index.add(path, modified, file_size, noted, index, time.perf_counter() - began)
    return index


def _scanned(path: str, file_size: int) -> PacketIndex:
    _check_whole(path, file_size)
    try:
        with open_media(path) as container:
            stream = video_stream(container, path)
            # A file cut exactly between two samples demuxes without complaint: compare its index with its size.
            if any(entry.pos + entry.size > file_size for entry in stream.index_entries):
                raise VideoError(path, "it is truncated: its index names frames beyond the end of the file.")
            codec, extradata = stream.codec_context.codec.canonical_name, stream.codec_context.extradata or b""
            packets = [Packet.of(packet, codec, extradata) for packet in container.demux(stream) if packet.size]
            average, time_base = stream.average_rate, time_unit(stream)
            aspect = stream.sample_aspect_ratio or stream.codec_context.sample_aspect_ratio or Fraction(1)
            containers = set(container.format.name.split(","))
            jumps = float(1 / time_base) if clock_may_jump(container) else None
            sounds = [(sound.start_time or 0) * time_unit(sound) for sound in container.streams.audio]
        # Rotation is only given with decoded frames.
        with open_media(path) as container:
            first = next(shown_frames(container, video_stream(container, path), path, None), None)
        if _incomplete(packets, jumps):
            raise VideoError(path, "it is truncated or damaged: a packet is incomplete.")
        if not packets or first is None:
            raise VideoError(path, "it is damaged: no frame of it decodes." if packets else "it has no frames.")
        if packets_are_frames(packets, codec, containers):
            frames = sorted(_Frame(packet.pts, packet.is_keyframe) for packet in packets if not packet.is_discard)
        else:
            frames = _decoded(path)
    except av.error.FFmpegError as error:
        raise VideoError(path, f"it cannot be read as a video ({error.strerror}).") from error
    except VideoError:
        raise
    except ValueError as error:  # PyAV's, for a picture size it has no format for
        raise VideoError(path, "its picture size is not possible.") from error
    if not frames:
        raise VideoError(path, "it has no frames.")

    fps = float(average) if average else 0.0
    stamps = [frame.stamp for frame in frames]
    pts = display_times(stamps, jumps)
    if pts is None:
        fps = fps or 25.0
    else:
        length = int(pts[-1] - pts[0]) * float(time_base)
        measured = (len(pts) - 1) / length if len(pts) > 1 else fps or 25.0
        # Rounded times give a rough rate; containers that state none, or not that of what is shown, are overruled.
        fps = fps if abs(fps - measured) <= _RATE_ERROR * measured else measured

    rotation, mirrored = orientation(first)
    look = (mirrored, dynamic_range(first), first.interlaced_frame)
    width, height = (first.height, first.width) if rotation % 180 else (first.width, first.height)
    origin = min([0 if pts is None else int(pts[0]), *(math.floor(time / time_base) for time in sounds if time >= 0)])
    aspect = 1 / aspect if rotation % 180 else aspect
    info = VideoInfo(width, height, fps, len(frames), len(frames) / fps, rotation, codec, aspect, *look)
    keys = np.array([number for number, frame in enumerate(frames) if frame.is_key], dtype=np.int64)
    distinct = None not in stamps and len(set(stamps)) == len(stamps)
    unique = np.array(stamps, dtype=np.int64) if distinct else None
    places = None
    if jumps is not None and distinct:
        # To seek by time, such a format is searched, and what is found need not be a key frame.
        at = {packet.pts: packet.pos for packet in packets if packet.is_keyframe and packet.pos is not None}
        places = np.array([at.get(stamps[key], -1) for key in keys], dtype=np.int64)
    stored = (first.width, first.height)
    return PacketIndex(info, pts, time_base, origin, keys, unique, stored, places)


class _Frame(NamedTuple):
    """What is kept of a frame."""

    stamp: int | None
    is_key: bool


def _decoded(path: str) -> list[_Frame]:
    """All frames of a file, decoded once."""
    frames = []
    try:
        with open_media(path) as container:
            stream = video_stream(container, path)
            # Much of the time, and none of what is kept.
            stream.codec_context.options = {"skip_loop_filter": "all"}
            for frame in shown_frames(container, stream, path, None):
                frames.append(_Frame(frame.pts, frame.key_frame))
    except av.error.FFmpegError as error:
        raise VideoError(path, f"it is damaged: what follows frame {len(frames) - 1} does not decode.") from error
    return frames


def _incomplete(packets: list[Packet], jumps: float | None) -> bool:
    """Whether a packet is marked as incomplete. Where a clock of so many units per second jumps, two streams were
    joined, and packets that are whole are marked a few before or after."""
    for number, packet in enumerate(packets):
        if not packet.is_corrupt:
            continue
        times = [one.dts for one in packets[max(0, number - _NEAR) : number + _NEAR + 1] if one.dts is not None]
        if jumps is None or all(0 < step <= jumps for step in np.diff(times)):
            return True
    return False


def _check_whole(path: str, file_size: int) -> None:
    """Raise where a file states a greater length than it has, or has no end: FFmpeg reads it as far as it goes."""
    try:
        with open_file(path) as file:
            head = file.read(4096)
            file.seek(max(0, file_size - 64))
            tail = file.read()
    except RemoteError:
        raise
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
    elif head[:4] == b"GIF8" and not tail.rstrip(b"\0\r\n").endswith(b";"):
        raise VideoError(path, "it is truncated: the end mark of a GIF is missing.")
    if stated > file_size:
        raise VideoError(path, f"it is truncated: {file_size} of {stated} bytes.")
