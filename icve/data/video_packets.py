"""Whether a stream's packets stand for its frames one by one, so that counting them tells what decoding would."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import av
import numpy as np

# Codecs that show one frame per packet, in containers that hold whole packets and their display times. Not here: VP8,
# VP9 (hidden frames, any size at any frame), MPEG-4 part 2 (packed and empty frames) and whatever is rarer.
_CODECS = frozenset({"h264", "hevc", "av1", "prores", "ffv1"})
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
    head: bytes | None  # of a key frame: what states its picture size; None where that is not known

    @classmethod
    def of(cls, packet: av.Packet, codec: str, extradata: bytes) -> Packet:
        head = b""
        if codec in _CODECS and (packet.is_keyframe or packet.has_sidedata("new_extradata")):
            head = None if packet.has_sidedata("new_extradata") else _picture_head(codec, memoryview(packet), extradata)
        return cls(packet.pts, packet.dts, packet.is_keyframe, packet.is_corrupt, packet.is_discard, head)


def packets_are_frames(packets: Sequence[Packet], codec: str, containers: set[str]) -> bool:
    """Whether every packet (that no edit list hides) is one shown frame of one size, at the packet's time.

    The stream must begin with a key frame and show it first (no leading pictures of an open group), have a steady rate
    (no packet is missing), and state one picture size throughout.

    Args:
        packets: of one stream, in the file's order.
        codec: FFmpeg's name.
        containers: FFmpeg's names of the container.
    """
    if codec not in _CODECS or not containers & _CONTAINERS or not packets:
        return False
    times = [packet.pts for packet in packets]
    if None in times or any(packet.is_corrupt for packet in packets):
        return False
    steps = np.diff(np.sort(np.array(times, dtype=np.int64)))
    if len(steps) and (steps.min() <= 0 or steps.max() > _STEADY * np.median(steps) + 1):  # 1: of rounding
        return False
    if not packets[0].is_keyframe or min(times) < packets[0].pts:
        return False
    heads = {packet.head for packet in packets if packet.head != b""}
    return None not in heads and heads <= {packets[0].head}


def _picture_head(codec: str, data: memoryview, extradata: bytes) -> bytes | None:
    """The bytes of a key frame's packet that state its size: empty where they are in the container only."""
    if codec in ("h264", "hevc"):
        return _sequence_sets(data, extradata, 4 if codec == "h264" else 21, codec)
    if codec == "av1":
        return _sequence_header(data)
    return bytes(data[16:20]) if codec == "prores" else b""  # ProRes: 16 bits each of width and height


def _sequence_sets(data: memoryview, extradata: bytes, place: int, codec: str) -> bytes | None:
    """Sequence parameter sets among units that each follow their length (ISO/IEC 14496-15)."""
    if len(extradata) <= place or extradata[0] != 1:
        return None
    size, at, sets = (extradata[place] & 3) + 1, 0, b""
    while at + size < len(data):
        end = at + size + int.from_bytes(data[at : at + size], "big")
        kind = data[at + size]
        if (kind & 31 == 7) if codec == "h264" else (kind >> 1 & 63 == 33):
            sets += bytes(data[at + size : end])
        at = end
    return sets


def _sequence_header(data: memoryview) -> bytes | None:
    """Sequence headers among AV1's open bitstream units (AV1 specification, section 5.3)."""
    at, headers = 0, b""
    while at < len(data):
        kind, extended, sized = data[at] >> 3 & 15, data[at] >> 2 & 1, data[at] >> 1 & 1
        at += 1 + extended
        end = len(data)
        if sized:
            length = shift = 0
            while at < len(data):
                length |= (data[at] & 127) << shift
                at, shift = at + 1, shift + 7
                if data[at - 1] < 128:
                    break
            end = at + length
        if kind == 1:
            headers += bytes(data[at:end])
        at = end
    return headers
