"""Whether a stream's packets stand for its frames one by one, so that counting them tells what decoding would."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import av
import numpy as np

from icve.data.media.picture_heads import picture_head

# Codecs that show one frame per packet (VP8 and VP9 may hide some, which their packets say), in containers that hold
# whole packets and their display times. Not here: MPEG-4 part 2 (packed and empty frames) and whatever is rarer.
_CODECS = frozenset({"h264", "hevc", "av1", "vp8", "vp9", "prores", "ffv1"})
_CONTAINERS = frozenset({"mp4", "matroska"})
# A longer step than this many usual ones may be a packet that is missing, and decoders drop or repeat frames there.
_STEADY = 1.5


class Packet(NamedTuple):
    """What is kept of a packet; with its bytes, a long film would not fit into memory."""

    pts: int | None
    dts: int | None
    is_keyframe: bool
    is_corrupt: bool
    is_discard: bool
    head: bytes | None  # what states its picture size; None where that is not known or it shows no frame
    pos: int | None = None  # bytes before it

    @classmethod
    def of(cls, packet: av.Packet, codec: str, extradata: bytes) -> Packet:
        head: bytes | None = b""
        if packet.has_sidedata("new_extradata"):
            head = None
        elif codec in _CODECS and (packet.is_keyframe or codec in ("vp8", "vp9")):
            head = picture_head(codec, memoryview(packet), extradata)
        return cls(packet.pts, packet.dts, packet.is_keyframe, packet.is_corrupt, packet.is_discard, head, packet.pos)


def packets_are_frames(packets: Sequence[Packet], codec: str, containers: set[str]) -> bool:
    """Whether every packet (that no edit list hides) is one shown frame of one size, at the packet's time.

    The stream must begin with a key frame and show it first (no leading pictures of an open group), have a steady rate
    (no packet is missing), and state one picture size throughout.

    Args:
        packets: of one stream, in the file's order, all of them whole.
        codec: FFmpeg's name.
        containers: FFmpeg's names of the container.
    """
    if codec not in _CODECS or not containers & _CONTAINERS or not packets:
        return False
    times = [packet.pts for packet in packets if packet.pts is not None]
    if len(times) < len(packets):
        return False
    steps = np.diff(np.sort(np.array(times, dtype=np.int64)))
    if len(steps) and (steps.min() <= 0 or steps.max() > _STEADY * np.median(steps) + 1):  # 1: of rounding
        return False
    if not packets[0].is_keyframe or min(times) < times[0]:
        return False
    heads = {packet.head for packet in packets if packet.head != b""}
    return None not in heads and heads <= {packets[0].head}
