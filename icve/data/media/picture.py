"""A decoded frame as it is shown: upright, progressive, in standard dynamic range.

* **Display matrix** (:func:`orientation`): the eight ways to turn and mirror; other angles go to the nearest of them.
* **Interlaced frames**: FFmpeg's field filters look at the frames around, so that a frame would depend on where reading
  began. Here a frame stays a function of itself. The first field's lines are kept; a line of the second field is kept
  where it lies between its neighbours (nothing moved) and is their mean where it stands out as a comb.
* **PQ and HLG** (SMPTE ST 2084, ARIB STD-B67; ITU-R BT.2100) become SDR: light in nits by the EOTF (HLG: for a display
  of 1000 nits, system gamma 1.2), BT.2020 primaries to BT.709, reference white (203 nits, BT.2408) to 1, highlights by
  the Möbius tone curve (linear up to 0.8, 1000 nits to 1) on the largest of R, G and B so that hue is kept, then the
  sRGB transfer function. White of 203 nits comes out as 244, grey of 26 nits as 100. All files are taken to be mastered
  for 1000 nits; what is brighter is white.

Anything else is what FFmpeg's conversion to RGB gives.
"""

from __future__ import annotations

from functools import cache

import av
import numpy as np
from av.sidedata.sidedata import SideData

_HDR = {16: "PQ", 18: "HLG"}  # by FFmpeg's number of the transfer function
_WHITE, _PEAK, _LINEAR_TO = 203.0, 1000.0, 0.8
_COMB = 8  # levels by which a line stands out
_LUMA = {1: (0.2126, 0.0722), 5: (0.299, 0.114), 6: (0.299, 0.114)}  # weights of R and B by number of the matrix
_LUMA_2020 = (0.2627, 0.0593)
# Chromaticities (x, y) of R, G, B by number of the primaries; the white of all is D65.
_PRIMARIES = {
    1: ((0.640, 0.330), (0.300, 0.600), (0.150, 0.060)),
    9: ((0.708, 0.292), (0.170, 0.797), (0.131, 0.046)),
    12: ((0.680, 0.320), (0.265, 0.690), (0.150, 0.060)),
}
_D65 = (0.3127, 0.3290)


def upright(frame: av.VideoFrame, rotation: int = 0, mirrored: bool = False) -> np.ndarray:
    """The picture of a frame, (H, W, 3) uint8 RGB, turned and mirrored as :func:`orientation` says for its file."""
    picture = _progressive(frame) if frame.interlaced_frame else _rgb(frame)
    picture = np.rot90(picture, k=rotation // 90)
    return picture[:, ::-1] if mirrored else picture


def orientation(frame: av.VideoFrame) -> tuple[int, bool]:
    """How the stored picture becomes the one shown: degrees counter-clockwise (0, 90, 180, 270), then whether mirrored
    left to right."""
    try:
        data = frame.side_data.get("DISPLAYMATRIX")
    except (ValueError, KeyError):  # side data of a kind that PyAV does not know
        return round(frame.rotation / 90) % 4 * 90, False
    if not isinstance(data, SideData):  # None
        return 0, False
    # Row vectors: (x, y) as stored goes to (a x + c y, b x + d y).
    a, b, _, c, d = np.frombuffer(bytes(data), np.int32, 5).astype(float)
    area = a * d - b * c
    if area == 0:  # damaged: it would flatten the picture to a line
        return 0, False
    mirrored = area < 0
    if mirrored:
        a = -a
    return round(-np.degrees(np.arctan2(b, a)) / 90) % 4 * 90, bool(mirrored)


def dynamic_range(frame: av.VideoFrame) -> str:
    """``"SDR"``, ``"PQ"`` or ``"HLG"``."""
    return _HDR.get(int(frame.color_trc), "SDR")


def _rgb(frame: av.VideoFrame) -> np.ndarray:
    if dynamic_range(frame) == "SDR":
        return frame.to_ndarray(format="rgb24", threads=1)
    return _tone_mapped(_signal(frame), dynamic_range(frame), int(frame.color_primaries))


def _signal(frame: av.VideoFrame) -> np.ndarray:
    """R'G'B' of a frame of any format, (H, W, 3) float32 in [0, 1]. FFmpeg's own conversion is 0.4 % too dark here."""
    if frame.format.is_rgb:
        return frame.to_ndarray(format="rgb48le", threads=1).astype(np.float32) / 65535
    full = int(frame.color_range) == 2
    planes = frame.reformat(format="yuv444p16le", threads=1).planes  # only repeats bits and interpolates chroma
    y, u, v = (
        np.frombuffer(memoryview(plane), np.uint16)
        .reshape(-1, plane.line_size // 2)[: frame.height, : frame.width]
        .astype(np.float32)
        for plane in planes
    )
    bits = max(component.bits for component in frame.format.components)
    unit = 2**16 - 2 ** (16 - bits) if full else 256
    luma = y / unit if full else (y / unit - 16) / 219
    u, v = ((chroma - 2**15) / (unit if full else unit * 224) for chroma in (u, v))
    red, blue = _LUMA.get(int(frame.colorspace), _LUMA_2020)
    r, b = luma + 2 * (1 - red) * v, luma + 2 * (1 - blue) * u
    g = (luma - red * r - blue * b) / (1 - red - blue)
    return np.clip(np.stack([r, g, b], axis=-1), 0, 1)


def _tone_mapped(signal: np.ndarray, kind: str, primaries: int) -> np.ndarray:
    """SDR (H, W, 3) uint8 of R'G'B' (H, W, 3) in [0, 1]."""
    light = _light_table(kind)[(signal * 65535 + 0.5).astype(np.uint16)]
    if kind == "HLG":  # scene light to that of the display, BT.2100 table 5
        luminance = light @ np.array([0.2627, 0.6780, 0.0593], np.float32)
        light *= (_PEAK / _WHITE * luminance**0.2)[..., None]
    light = np.maximum(light @ _to_709(primaries).T, 0)
    brightest = np.maximum(np.maximum(light[..., 0], light[..., 1]), np.maximum(light[..., 2], 1e-6))[..., None]
    light *= _moebius(brightest) / brightest
    return _srgb_table()[(np.minimum(light, 1) * 65535 + 0.5).astype(np.uint16)]


@cache
def _light_table(kind: str) -> np.ndarray:
    """Light of 65536 signal values, float32: PQ in units of reference white, HLG as scene light in [0, 1]."""
    signal = np.linspace(0, 1, 65536)
    if kind == "PQ":
        m1, m2, c1, c2, c3 = 1305 / 8192, 2523 / 32, 107 / 128, 2413 / 128, 2392 / 128
        root = signal ** (1 / m2)
        light = (np.maximum(root - c1, 0) / (c2 - c3 * root)) ** (1 / m1) * 10000 / _WHITE
    else:
        a, b, c = 0.17883277, 0.28466892, 0.55991073
        light = np.where(signal <= 0.5, signal**2 / 3, (np.exp((signal - c) / a) + b) / 12)
    return light.astype(np.float32)


@cache
def _srgb_table() -> np.ndarray:
    """sRGB of 65536 values of light in [0, 1], uint8."""
    light = np.linspace(0, 1, 65536)
    return np.round(255 * np.where(light <= 0.0031308, 12.92 * light, 1.055 * light ** (1 / 2.4) - 0.055)).astype(
        np.uint8
    )


def _moebius(light: np.ndarray) -> np.ndarray:
    """Light up to the peak brought into [0, 1]: unchanged up to a point, and without a kink there."""
    j, peak = _LINEAR_TO, _PEAK / _WHITE
    a = -j * j * (peak - 1) / (j * j - 2 * j + peak)
    b = (j * j - 2 * j * peak + peak) / (peak - 1)
    curve = (b * b + 2 * b * j + j * j) / (b - a) * (light + a) / (light + b)
    return np.where(light <= j, light, np.minimum(curve, 1))


@cache
def _to_709(primaries: int) -> np.ndarray:
    """Matrix (3, 3) float32 from linear R, G, B of these primaries (BT.2020 where they are not known) to BT.709's."""
    source = _xyz(_PRIMARIES.get(primaries, _PRIMARIES[9]))
    return (np.linalg.inv(_xyz(_PRIMARIES[1])) @ source).astype(np.float32)


def _xyz(primaries: tuple[tuple[float, float], ...]) -> np.ndarray:
    """Matrix from linear R, G, B to X, Y, Z, whose white is D65."""
    columns = np.array([(x / y, 1, (1 - x - y) / y) for x, y in (*primaries, _D65)]).T
    return columns[:, :3] * np.linalg.solve(columns[:, :3], columns[:, 3])


def _progressive(frame: av.VideoFrame) -> np.ndarray:
    """The picture of an interlaced frame at the time of its upper field."""
    # Each field is converted by itself: chroma lines belong to fields, too.
    upper, lower = (_rgb(_field(frame, parity)) for parity in (0, 1))
    picture = np.empty((frame.height, *upper.shape[1:]), np.uint8)
    picture[0::2] = upper[: (frame.height + 1) // 2]
    above = upper[: frame.height // 2].astype(np.int16)
    below = upper[np.minimum(np.arange(1, frame.height // 2 + 1), len(upper) - 1)].astype(np.int16)
    line = lower[: frame.height // 2].astype(np.int16)
    low, high = np.minimum(above, below) - _COMB, np.maximum(above, below) + _COMB
    comb = ((line < low) | (line > high)).any(axis=-1, keepdims=True)
    picture[1::2] = np.where(comb, (above + below + 1) // 2, line)
    return picture


def _field(frame: av.VideoFrame, parity: int) -> av.VideoFrame:
    """Every second line of every plane, as a frame of half the height."""
    field = av.VideoFrame(frame.width, (frame.height + 1) // 2, frame.format.name)
    for source, target in zip(frame.planes, field.planes, strict=True):
        lines = np.frombuffer(memoryview(source), np.uint8).reshape(-1, source.line_size)[parity::2]
        rows = np.zeros((target.buffer_size // target.line_size, target.line_size), np.uint8)
        width = min(source.line_size, target.line_size)
        numbers = np.minimum(np.arange(len(rows)), len(lines) - 1)  # of an odd number, the upper field has one more
        rows[:, :width] = lines[numbers, :width]
        target.update(rows.tobytes())
    for tag in ("colorspace", "color_range", "color_trc", "color_primaries"):
        setattr(field, tag, getattr(frame, tag))
    return field
