"""What the packets of a stream say about the size of the picture, read from their first bytes without decoding them."""

from __future__ import annotations


def picture_head(codec: str, data: memoryview, extradata: bytes) -> bytes | None:
    """The bytes of a packet that state its size: empty where only the container or an earlier packet does.

    Args:
        codec: FFmpeg's name.
        data: the packet's bytes; of VP8 and VP9 of every packet, else of a key frame.
        extradata: of the stream.

    Returns:
        Bytes to compare with those of other packets. None where they cannot be understood, or where the packet does not
        show exactly one frame.
    """
    if codec in ("h264", "hevc"):
        return _sequence_sets(data, extradata, 4 if codec == "h264" else 21, codec)
    if codec == "av1":
        return _sequence_header(data)
    if codec == "vp8":  # RFC 6386, section 9.1: the lowest bit is set in frames that are no key frames
        return None if len(data) < 10 or not data[0] & 16 else b"" if data[0] & 1 else bytes(data[6:10])
    if codec == "vp9":
        return _vp9_size(data)
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


def _vp9_size(data: memoryview) -> bytes | None:
    """The picture size that the frames of a packet state (VP9 specification, section 6.2 and annex B)."""
    shown, sizes = 0, set()
    for frame in _superframe(data):
        bits = _Bits(frame[:24])
        if bits(2) != 2:
            return None
        profile = bits(1) + 2 * bits(1)
        bits(profile == 3)
        if bits(1):  # shows an earlier frame
            shown += 1
            continue
        inter, show, resilient = bits(1), bits(1), bits(1)
        shown += show
        intra_only = inter and not show and bits(1)
        bits(2 if inter and not resilient else 0)
        if not inter or intra_only:
            bits(24)
            if not inter or profile:
                _skip_colours(bits, profile)
            bits(8 if inter else 0)
            sizes.add(bits(32))
        else:
            bits(20)
            if not any(bits(1) for _ in range(3)):  # else it is the size of an earlier frame
                sizes.add(bits(32))
    if shown != 1 or len(sizes) > 1:
        return None
    return b"".join(size.to_bytes(4, "big") for size in sizes)


def _skip_colours(bits: _Bits, profile: int) -> None:
    bits(profile >= 2)
    if bits(3) != 7:
        bits(4 if profile % 2 else 1)
    else:
        bits(profile % 2)


def _superframe(data: memoryview) -> list[memoryview]:
    """The frames of a VP9 packet, whose lengths stand at its end where there are several."""
    if not len(data):
        return []
    marker = data[-1]
    count, width = (marker & 7) + 1, (marker >> 3 & 3) + 1
    table = 2 + count * width
    if marker >> 5 != 6 or len(data) < table or data[-table] != marker:
        return [data]
    frames, at = [], 0
    for number in range(count):
        place = len(data) - table + 1 + number * width
        length = int.from_bytes(data[place : place + width], "little")
        frames.append(data[at : at + length])
        at += length
    return frames


class _Bits:
    """Reads numbers of so many bits, the highest first; zeros follow the end."""

    def __init__(self, data: memoryview) -> None:
        self._value, self._left = int.from_bytes(data, "big") << 256, 8 * len(data) + 256

    def __call__(self, count: int) -> int:
        self._left -= count
        return self._value >> self._left & ((1 << count) - 1)
