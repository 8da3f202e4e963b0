"""A thing, and what is not the thing, in other colours: shading kept, edges soft."""

from __future__ import annotations

import cv2
import numpy as np

from icve.curation.colours import PAINTS, chroma_hue, main_colour, name_colours, to_lab, to_rgb
from icve.curation.edit_pairs.clip_motion import grown

_SHIFT = 18.0  # lightness a thing may gain or lose with its new colour, so that its shading stays true
_STRONG = 28.0  # chroma of colours that catch the eye
_LEAST, _MOST = 0.04, 0.6  # share of the picture in which repainting a colour is an edit of something
_TRUE = 0.85  # share that must hold for "everything blue" to be said
_VAGUE = 0.2  # half-painted pixels over painted ones: beyond, paint ends in the middle of things
_DISTINCT = 0.3  # share of a thing's surroundings that may have its colour for its fringe to be told from them
_DARKEST, _LIGHTEST = 20.0, 92.0  # lightness between which paint shows


def recolour(
    frames: np.ndarray, mask: np.ndarray, colour: str, rng: np.random.Generator, everywhere: bool = False
) -> tuple[np.ndarray, np.ndarray, str] | str:
    """Repaint what has the thing's main colour in another one.

    Hue and chroma become those of the paint, lightness moves by one amount for the whole thing, so light, shade and
    texture stay. Parts of the thing in other colours stay as they are. Where nothing around the thing has its colour,
    the paint also takes the fringe that the mask left out.

    Args:
        frames: uint8 RGB (F, H, W, 3).
        mask: bool (F, H, W).
        colour: name of its main colour.
        rng: chooses the paint.
        everywhere: repaint all that has this colour, not only the thing.

    Returns:
        The clip, the mask bool (F, H, W) of what changed, and the paint's name; or in a few words why not.
    """
    if not colour:
        return "it has no one colour"
    lab = to_lab(frames)
    light, chroma, hue = _typical(lab[mask])
    if not _DARKEST < light < _LIGHTEST:
        return f"with lightness {light:.0f} paint would not show on it"
    fitting = [
        name
        for name, (paint_light, _, paint_hue) in PAINTS.items()
        if abs(paint_light - light) < 2 * _SHIFT and (chroma < 20 or abs((paint_hue - hue + 180) % 360 - 180) > 55)
    ]
    if not fitting:
        return f"no paint suits its lightness of {light:.0f}"
    alike = _alike(lab, chroma, hue)
    if everywhere:
        opacity = _all_alike(lab, chroma, hue, alike)
        if fault := _misnamed(lab, opacity, colour):
            return fault
    else:
        opacity = alike * np.stack([_edge(m, a) for m, a in zip(mask, alike, strict=True)])
    strong = opacity > 0.6
    if strong.sum() < 0.5 * mask.sum():
        return "little of it has its main colour"
    for paint in rng.permutation(fitting):
        painted = _painted(lab, light, chroma, str(paint))
        result = np.stack([to_rgb(a + o[..., None] * (b - a)) for a, b, o in zip(lab, painted, opacity, strict=True)])
        came_out, share = main_colour(to_lab(result)[strong])
        if came_out == paint and share >= 0.5:
            return np.where((opacity > 0.02)[..., None], result, frames), opacity > 0.02, str(paint)
    return f"no paint that suits its lightness of {light:.0f} comes out in its own colour"


def _edge(mask: np.ndarray, alike: np.ndarray) -> np.ndarray:
    """Opacity (H, W) of a mask with a soft edge, grown into its fringe where the surroundings have other colours."""
    unit = max(1.0, min(mask.shape) / 240)
    fringe, around = (grown(mask, radius * unit) for radius in (6, 14))
    ring = around & ~fringe
    whole = fringe if ring.any() and alike[ring].mean() < _DISTINCT else mask
    return cv2.GaussianBlur(whole.astype(np.float32), (0, 0), unit)


def strong_colour(frames: np.ndarray) -> tuple[np.ndarray, str] | None:
    """The colour that stands out most in a clip (F, H, W, 3): where it is, bool (F, H, W), and its name.

    None where no strong colour with a name covers a fair part of the picture, and for the colours of skin: people would
    be painted with the rest.
    """
    lab = to_lab(frames)
    chroma, hue = chroma_hue(lab)
    strong = chroma > _STRONG
    histogram, _ = np.histogram(hue[strong], 72, (0, 360), weights=chroma[strong])
    smooth = sum((np.roll(histogram, shift) for shift in range(-3, 4)), np.zeros(72))
    peak = 5.0 * float(smooth.argmax()) + 2.5
    mask = strong & (np.abs((hue - peak + 180) % 360 - 180) < 22)
    if not _LEAST < mask.mean() < _MOST or not mask.any(axis=(1, 2)).all():
        return None
    name, share = main_colour(lab[mask])
    return (mask, name) if share > 0.7 and name in ("yellow", "green", "turquoise", "blue", "purple") else None


def found_elsewhere(frames: np.ndarray, mask: np.ndarray) -> float:
    """Share of what has the thing's colour that does not belong to it, 0..1; frames (F, H, W, 3), mask (F, H, W)."""
    lab = to_lab(frames)
    _, chroma, hue = _typical(lab[mask])
    alike = _alike(lab, chroma, hue)
    near = np.stack([grown(m, 6 * max(1.0, min(m.shape) / 240)) for m in mask])
    return float(alike[~near].sum() / max(alike.sum(), 1e-6))


def _typical(lab: np.ndarray) -> tuple[float, float, float]:
    """Lightness, chroma and hue of the median of CIELAB pixels (N, 3)."""
    median = np.median(lab, axis=0)
    chroma, hue = chroma_hue(median)
    return float(median[0]), float(chroma), float(hue)


def _alike(
    lab: np.ndarray, chroma: float, hue: float, reach: tuple[float, float] = (22.0, 36.0), least: float = 0.15
) -> np.ndarray:
    """How much pixels (F, H, W, 3) share a colour, 0..1 (F, H, W): by hue for strong colours, else by weak chroma.

    Args:
        lab: CIELAB.
        chroma, hue: of the colour.
        reach: degrees of hue from which on a pixel shares it less, and not at all.
        least: share of the chroma below which a pixel does not share it.
    """
    pixel_chroma, pixel_hue = chroma_hue(lab)
    if chroma < 14:
        alike = 1.0 - _ramp(pixel_chroma, chroma + 12, chroma + 26)
    else:
        away = np.abs((pixel_hue - hue + 180) % 360 - 180)
        alike = (1.0 - _ramp(away, *reach)) * _ramp(pixel_chroma, least * chroma, (least + 0.2) * chroma)
    # The compressed chroma of video is coarse: without smoothing, its blocks show at the borders.
    return np.stack([cv2.GaussianBlur(frame.astype(np.float32), (0, 0), 1.0) for frame in alike])


def _all_alike(lab: np.ndarray, chroma: float, hue: float, alike: np.ndarray) -> np.ndarray:
    """Opacity of paint on a colour of the whole picture: where it is strong, and where it fades out around that.

    Paler pixels elsewhere belong to something else; beside it, they are its reflections and the rims of what stands
    before it.
    """
    strong = _alike(lab, chroma, hue, reach=(30.0, 44.0), least=0.35)
    unit = max(1.0, min(lab.shape[1:3]) / 240)
    near = np.stack([cv2.blur(grown(s > 0.5, 3 * unit).astype(np.float32), (3, 3)) for s in strong])
    return np.maximum(strong, alike * near)


def _misnamed(lab: np.ndarray, opacity: np.ndarray, colour: str) -> str | None:
    """Why painting "everything" of a colour would be untrue or look wrong, on frames spread through the clip."""
    frames = np.unique(np.linspace(0, len(lab) - 1, 5).round().astype(int))
    named, painted = name_colours(lab[frames]) == colour, opacity[frames] > 0.5
    vague = float(((opacity[frames] > 0.15) & (opacity[frames] < 0.8)).sum() / max(painted.sum(), 1))
    if vague > _VAGUE:
        return f"{colour} has no clear bounds: {vague:.0%} would be painted by halves"
    both = float((named & painted).sum())
    if both < _TRUE * painted.sum():
        return f"{both / painted.sum():.0%} of what would be painted is {colour}"
    if both < _TRUE * named.sum():
        return f"{both / named.sum():.0%} of what is {colour} would be painted"
    return None


def _ramp(values: np.ndarray, low: float, high: float) -> np.ndarray:
    return np.clip((values - low) / (high - low), 0.0, 1.0)


def _painted(lab: np.ndarray, light: float, chroma: float, paint: str) -> np.ndarray:
    paint_light, paint_chroma, paint_hue = PAINTS[paint]
    result = lab.copy()
    result[..., 0] = lab[..., 0] + np.clip(paint_light - light, -_SHIFT, _SHIFT) * _ramp(lab[..., 0], 0.0, light)
    # Highlights and deep shade carry less colour; a strongly coloured thing says itself how much.
    own, _ = chroma_hue(lab)
    strength = np.clip(own / chroma, 0.2, 1.3) if chroma >= 14 else 1.0
    strength = strength * _ramp(result[..., 0], 0.0, 35.0) * (1.0 - 0.8 * _ramp(result[..., 0], 80.0, 100.0))
    angle = np.radians(paint_hue)
    result[..., 1] = np.cos(angle) * paint_chroma * strength
    result[..., 2] = np.sin(angle) * paint_chroma * strength
    return result


def change_background(frames: np.ndarray, mask: np.ndarray, look: str) -> tuple[np.ndarray, np.ndarray]:
    """Everything but the thing in another look, the thing as it is.

    Args:
        frames: uint8 RGB (F, H, W, 3).
        mask: bool (F, H, W), the thing.
        look: "black and white", "blurred" or "dark".

    Returns:
        The clip, and the mask bool (F, H, W) of what changed: the background and the soft rim of the thing.

    Raises:
        KeyError: unknown look.
    """
    unit = max(1.0, min(mask.shape[1:]) / 240)
    # Just inside the outline: a rim of the old background would shine in front of the new one.
    inner = [cv2.erode(m.astype(np.uint8), np.ones((3, 3), np.uint8)).astype(np.float32) for m in mask]
    keep = np.stack([cv2.GaussianBlur(m, (0, 0), unit) for m in inner])[..., None]
    changed = BACKGROUNDS[look](frames.astype(np.float32), 1.0 - keep)
    mixed = np.round(np.clip(changed + keep * (frames - changed), 0, 255)).astype(np.uint8)
    return mixed, keep[..., 0] < 0.98


def _grey(frames: np.ndarray, background: np.ndarray) -> np.ndarray:
    return np.repeat((frames @ np.array([0.299, 0.587, 0.114], np.float32))[..., None], 3, axis=-1)


def _blurred(frames: np.ndarray, background: np.ndarray) -> np.ndarray:
    """Blurred without the thing, whose colours would bleed into a halo around it."""
    sigma = 0.025 * min(frames.shape[1:3])
    result = []
    for frame, share in zip(frames, background, strict=True):
        total = cv2.GaussianBlur(frame * share, (0, 0), sigma)
        result.append(total / (cv2.GaussianBlur(share, (0, 0), sigma) + 1e-3)[..., None])
    return np.stack(result)


def _dark(frames: np.ndarray, background: np.ndarray) -> np.ndarray:
    return 0.28 * frames


BACKGROUNDS = {"black and white": _grey, "blurred": _blurred, "dark": _dark}
