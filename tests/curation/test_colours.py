from itertools import groupby

import cv2
import numpy as np
import pytest

from icve.curation.colours import PAINTS, UNNAMED, main_colour, name_colours, to_lab, to_rgb


@pytest.mark.parametrize(
    ("rgb", "name"),
    [
        ((255, 0, 0), "red"),
        ((180, 20, 30), "red"),
        ((255, 140, 0), "orange"),
        ((250, 230, 30), "yellow"),
        ((30, 140, 40), "green"),
        ((120, 200, 60), "green"),
        ((60, 90, 40), "green"),
        ((40, 190, 180), "turquoise"),
        ((20, 60, 220), "blue"),
        ((20, 30, 90), "blue"),
        ((130, 40, 160), "purple"),
        ((255, 130, 180), "pink"),
        ((110, 65, 30), "brown"),
        ((225, 200, 165), "beige"),
        ((10, 10, 12), "black"),
        ((128, 128, 128), "gray"),
        ((250, 250, 250), "white"),
        ((200, 150, 130), UNNAMED),  # skin
        ((160, 140, 130), UNNAMED),  # neither gray nor a hue
        ((60, 60, 62), UNNAMED),  # neither black nor gray
        ((198, 198, 196), UNNAMED),  # neither gray nor white
    ],
)
def test_plain_colours_have_their_plain_names(rgb, name):
    assert name_colours(to_lab(np.array([[rgb]], np.uint8))).item() == name


@pytest.mark.parametrize("name", PAINTS)
def test_paints_are_called_what_they_are(name):
    light, chroma, hue = PAINTS[name]
    angle = np.radians(hue)
    lab = np.array([[[light, chroma * np.cos(angle), chroma * np.sin(angle)]]], np.float32)
    assert name_colours(to_lab(to_rgb(lab))).item() == name


def test_shading_keeps_the_name():
    """A lit ball: the same hue from half to full brightness."""
    shades = np.linspace(0.55, 1, 64)[:, None]
    for rgb, name in [((255, 30, 30), "red"), ((40, 230, 60), "green"), ((40, 80, 255), "blue")]:
        assert set(name_colours(to_lab((shades * rgb).astype(np.uint8)))) == {name}


def test_around_the_circle_a_hue_has_the_name_of_a_neighbour_or_none():
    hsv = np.stack([np.arange(360), np.full(360, 0.9), np.full(360, 0.9)], -1).astype(np.float32)
    pixels = np.round(cv2.cvtColor(hsv[None], cv2.COLOR_HSV2RGB)[0] * 255).astype(np.uint8)
    names = [name for name, _ in groupby(name for name in name_colours(to_lab(pixels)) if name != UNNAMED)]
    assert names == ["red", "orange", "yellow", "green", "turquoise", "blue", "purple", "red"]


def test_conversion_there_and_back():
    rgb = np.random.default_rng(0).integers(0, 256, (2, 8, 9, 3)).astype(np.uint8)
    assert np.abs(to_rgb(to_lab(rgb)).astype(int) - rgb).max() <= 1


def test_the_main_colour_is_the_most_frequent():
    colours = to_lab(np.array([[[255, 0, 0]] * 7 + [[20, 60, 220]] * 3], np.uint8))[0]
    assert main_colour(colours) == ("red", 0.7)
