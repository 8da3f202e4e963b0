"""Perceptual hashes of frames, which re-encoding, scaling, small crops and changes of colour leave nearly as they are.

A hash is two words of 64 bits: the low frequencies of brightness, and those of the two colour differences, each
bit whether a coefficient of the cosine transform is above the median of its kind. Hashes of unrelated frames differ in
half of the 128 bits.
"""

from __future__ import annotations

import cv2
import numpy as np

SIDE = 128  # pixels of the squares that frames are stretched to before they are hashed
BITS = 128
_SMALL = 32
_BLACK = 24  # levels up to which a border is a bar
_FLAT = 5.0  # standard deviation of brightness, of 255, below which there is nothing to tell a frame by

# Coefficients from low to high frequencies; the mean is left out.
_ORDER = sorted((u + v, u, v) for u in range(16) for v in range(16))[1:65]
_ROWS, _COLUMNS = (np.array([place[axis] for place in _ORDER]) for axis in (1, 2))


def hash_frames(frames: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Hashes of frames of one clip, uint8 (F, H, W, 3) RGB: uint64 (F, 2), and whether each frame can be told by it.

    Black bars around all frames are cut off first. Frames that are nearly of one colour cannot be told.
    """
    words = np.empty((len(frames), 2), np.uint64)
    usable = np.empty(len(frames), bool)
    top, bottom, left, right = _without_bars(frames)
    for number, frame in enumerate(frames):
        small = cv2.resize(frame[top:bottom, left:right], (_SMALL, _SMALL), interpolation=cv2.INTER_AREA)
        parts = cv2.split(cv2.cvtColor(small, cv2.COLOR_RGB2YCrCb).astype(np.float32))
        usable[number] = parts[0].std() >= _FLAT
        bright, *colours = (cv2.dct(part)[_ROWS, _COLUMNS] for part in parts)
        halves = [colour[:32] > np.median(colour[:32]) for colour in colours]
        bits = np.stack([bright > np.median(bright), np.concatenate(halves)])
        words[number] = np.packbits(bits, axis=1).view(np.uint64)[:, 0]
    return words, usable


def differing_bits(first: np.ndarray, second: np.ndarray) -> np.ndarray:
    """Bits in which hashes (..., 2) differ, 0 to 128, shapes broadcast."""
    return np.bitwise_count(first ^ second).sum(-1, dtype=np.int16)


def _without_bars(frames: np.ndarray) -> tuple[int, int, int, int]:
    """(top, bottom, left, right) of what is not black throughout; everything where hardly anything would be left."""
    brightest = frames.max(axis=(0, 3)) > _BLACK
    rows, columns = (np.flatnonzero(brightest.any(axis)) for axis in (1, 0))
    height, width = brightest.shape
    if len(rows) < height // 2 or len(columns) < width // 2:
        return 0, height, 0, width
    return rows[0], rows[-1] + 1, columns[0], columns[-1] + 1
