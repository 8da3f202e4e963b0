"""How many frames a clip may have: what codecs with fourfold compression in time take without filling up."""

from __future__ import annotations


def check_clip_length(frames: int) -> int:
    """``frames`` itself, if it is 4k + 1. Raises ValueError, naming the nearest that are, otherwise."""
    if frames >= 1 and frames % 4 == 1:
        return frames
    below = (frames - 1) // 4 * 4 + 1
    near = "1 or 5" if below < 1 else f"{below} or {below + 4}"
    raise ValueError(f"frames of a clip must be 4k + 1, as codecs take them, not {frames}: take {near}.")
