"""Times of frames in display order, made from the timestamps that files give them."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

# No codec shows a frame further than this from its place in decoding order (H.264 and HEVC allow 16 waiting frames).
_REORDERED = 16
# Seconds: a longer step in a format whose clock may jump is a jump, for pictures and sound. FFmpeg's own limit.
JUMP = 10.0


def display_times(stamps: Sequence[int | None], jumps: float | None) -> np.ndarray | None:
    """Strictly ascending times of frames that are given in display order.

    Three kinds of timestamps come out of decoders: ascending ones, which are kept; those of containers that only know
    decoding order (AVI), which belong to other frames nearby and are sorted; and those of clocks that restart or jump
    (joined transport streams), where the step at the break becomes an ordinary one.

    Missing ones (Matroska has none below zero) are filled in at the usual step.

    Args:
        stamps: timestamps of the frames, None where one is missing.
        jumps: units per second, for formats whose clock may jump; None for all others, whose gaps are meant.

    Returns:
        (F,) int64 in the units of ``stamps``; None where they say nothing (all missing, or repeated).
    """
    known = np.array([number for number, stamp in enumerate(stamps) if stamp is not None], dtype=np.int64)
    if known.size == 0 or (known.size == 1 and len(stamps) > 1):
        return None
    times = np.array([stamps[number] for number in known], dtype=np.int64)
    if len(stamps) == 1:
        return times
    rates = np.diff(times) / np.diff(known)
    if known.size < len(stamps):
        step = np.median(rates[rates > 0]) if (rates > 0).any() else 0
        numbers = np.arange(len(stamps))
        before, after = np.minimum(numbers - known[0], 0), np.maximum(numbers - known[-1], 0)
        times = np.rint(np.interp(numbers, known, times) + (before + after) * step).astype(np.int64)
    order = np.argsort(times, kind="stable")
    if np.abs(order - np.arange(times.size)).max() <= _REORDERED:
        times = times[order]
    steps = np.diff(times)
    if (steps > 0).any():
        usual = max(1, int(np.median(steps[steps > 0])))
        breaks = steps < 0
        if jumps is not None:
            breaks |= steps > max(JUMP * jumps, 10 * usual)
        if breaks.any():
            times = times[0] + np.concatenate([[0], np.cumsum(np.where(breaks, usual, steps))])
    return times if (np.diff(times) > 0).all() else None
