"""Scenes that nobody would want to learn from: black, blurred, flat or framed by bars."""

from __future__ import annotations

import warnings

import numpy as np

from icve.curation.measure import read_signals
from icve.curation.stage import Rejected, Row, RowStage, Workspace


class Quality(RowStage):
    """Drops scenes by brightness, contrast, sharpness and letterbox bars (ICVE, clip pairs: filters on segments).

    All are measured on frames of 256 pixels, so that they mean the same at every resolution, and are medians over the
    scene, so that one odd frame decides nothing.

    Reads ``signals``, ``scene_start`` and ``scene_end``. Adds ``luma`` and ``contrast`` (mean and standard deviation of
    grey, 0..255), ``sharpness`` (standard deviation of the Laplacian over that of grey) and ``letterbox`` (share of the
    picture that bars take, 0..1).

    Args:
        min_luma: darkest scene.
        max_luma: brightest scene.
        min_contrast: flattest scene.
        min_sharpness: most blurred scene.
        max_letterbox: largest bars. Only what is black in (almost) every frame of a scene is a bar.
    """

    def __init__(
        self,
        min_luma: float = 20.0,
        max_luma: float = 245.0,
        min_contrast: float = 8.0,
        min_sharpness: float = 0.13,
        max_letterbox: float = 0.1,
    ) -> None:
        if not 0 <= min_luma < max_luma <= 255:
            raise ValueError(f"0 <= min_luma < max_luma <= 255 is wanted, not {min_luma} and {max_luma}.")
        if min(min_contrast, min_sharpness) < 0 or not 0 <= max_letterbox <= 1:
            raise ValueError("min_contrast and min_sharpness must be at least 0 and max_letterbox within 0..1.")
        self.min_luma, self.max_luma, self.min_contrast = min_luma, max_luma, min_contrast
        self.min_sharpness, self.max_letterbox = min_sharpness, max_letterbox

    def outcome(self, row: Row, work: Workspace) -> Row | Rejected:
        signals = read_signals(work, row, "luma", "contrast", "sharpness", "bars")
        luma, contrast, sharpness, bars = (signal[row["scene_start"] : row["scene_end"]] for signal in signals)
        found = {
            "luma": float(np.median(luma)),
            "contrast": float(np.median(contrast)),
            "sharpness": float(np.median(sharpness)),
            "letterbox": _letterbox(bars),
        }
        for reason, name, least, most in (
            ("too dark", "luma", self.min_luma, np.inf),
            ("too bright", "luma", 0, self.max_luma),
            ("too flat", "contrast", self.min_contrast, np.inf),
            ("blurred", "sharpness", self.min_sharpness, np.inf),
            ("letterbox", "letterbox", 0, self.max_letterbox),
        ):
            if not least <= found[name] <= most:
                wanted = f"at least {least:g}" if found[name] < least else f"at most {most:g}"
                return Rejected(reason, f"{name} {found[name]:.3g}, {wanted} wanted")
        return row | found


def _letterbox(bars: np.ndarray) -> float:
    """Share of the picture that bars (F, 4) take: what is black in all but the odd frame; NaN frames say nothing."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", RuntimeWarning)  # no frame says anything
        top, bottom, left, right = np.nan_to_num(np.nanpercentile(bars, 10, axis=0))
    return float(1 - (1 - top - bottom) * (1 - left - right))
