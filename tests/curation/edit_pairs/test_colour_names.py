import numpy as np
import pytest

from icve.curation.edit_pairs.colour_names import PAINTS, UNNAMED, main_colour, name_colours, to_lab, to_rgb


@pytest.mark.parametrize(
    ("rgb", "name"),
    [
        ((255, 0, 0), "red"),
        ((180, 20, 30), "red"),
        ((255, 140, 0), "orange"),
        ((250, 230, 30), "yellow"),
        ((30, 140, 40), "green"),
        ((120, 200, 60), "green"),
        ((40, 190, 180), "turquoise"),
        ((20, 60, 220), "blue"),
        ((130, 40, 160), "purple"),
        ((255, 130, 180), "pink"),
        ((110, 65, 30), "brown"),
        ((225, 200, 165), "beige"),
        ((10, 10, 12), "black"),
        ((128, 128, 128), "grey"),
        ((250, 250, 250), "white"),
        ((200, 150, 130), UNNAMED),  # skin
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


def test_conversion_there_and_back():
    rgb = np.random.default_rng(0).integers(0, 256, (2, 8, 9, 3)).astype(np.uint8)
    assert np.abs(to_rgb(to_lab(rgb)).astype(int) - rgb).max() <= 1


def test_the_main_colour_is_the_most_frequent():
    colours = to_lab(np.array([[[255, 0, 0]] * 7 + [[20, 60, 220]] * 3], np.uint8))[0]
    assert main_colour(colours) == ("red", 0.7)
