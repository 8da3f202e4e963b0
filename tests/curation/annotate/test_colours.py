"""Names of colours."""

import cv2
import numpy as np
import pytest

from icve.curation.annotate.colours import colour_name


def flat(*rgb: int, count: int = 50) -> np.ndarray:
    return np.tile(np.array(rgb, np.uint8), (count, 1))


@pytest.mark.parametrize(
    ("rgb", "name"),
    [
        ((220, 30, 30), "red"),
        ((240, 130, 20), "orange"),
        ((250, 220, 30), "yellow"),
        ((40, 180, 60), "green"),
        ((60, 90, 40), "green"),
        ((30, 200, 210), "cyan"),
        ((30, 60, 220), "blue"),
        ((20, 30, 90), "blue"),
        ((130, 40, 190), "purple"),
        ((250, 140, 190), "pink"),
        ((110, 65, 30), "brown"),
        ((128, 128, 128), "gray"),
        ((250, 250, 250), "white"),
        ((15, 15, 15), "black"),
        ((160, 140, 130), None),  # neither gray nor a hue
        ((60, 60, 62), None),  # neither black nor gray
    ],
)
def test_clear_colours_have_names_and_others_none(rgb, name):
    assert colour_name(flat(*rgb)) == name


def test_most_pixels_must_agree():
    red, blue = flat(220, 30, 30, count=60), flat(30, 60, 220, count=40)
    assert colour_name(np.concatenate([red, blue])) == "red"
    assert colour_name(np.concatenate([red, blue]), share=0.7) is None
    assert colour_name(np.zeros((0, 3), np.uint8)) is None


def test_shading_keeps_the_name():
    """A lit ball: the same hue from half to full brightness."""
    shades = np.linspace(0.55, 1, 64)[:, None]
    for rgb, name in [((255, 30, 30), "red"), ((40, 230, 60), "green"), ((40, 80, 255), "blue")]:
        assert colour_name((shades * rgb).astype(np.uint8), share=0.95) == name


def test_every_hue_has_one_of_the_names_of_its_neighbours():
    hues = np.arange(360, dtype=np.float32)
    hsv = np.stack([hues, np.full(360, 0.9), np.full(360, 0.9)], -1).astype(np.float32)
    pixels = (cv2.cvtColor(hsv[None], cv2.COLOR_HSV2RGB)[0] * 255).astype(np.uint8)
    names = [colour_name(pixel[None]) for pixel in pixels]
    assert None not in names
    changes = [b for a, b in zip(names, names[1:] + names[:1], strict=True) if a != b]
    assert changes == ["orange", "yellow", "green", "cyan", "blue", "purple", "pink", "red"]
