import numpy as np
import pytest

from icve.curation.edit_pairs.offline_wording import STYLE_PHRASES, TEMPLATES, indefinite, instruction, noun, place_of
from icve.curation.edit_pairs.recolour import BACKGROUNDS
from icve.curation.edit_pairs.style_filters import STYLES

WORDS = {
    "object": "the red object",
    "one": "a red object",
    "noun": "red object",
    "place": "on the left",
    "side": "left",
    "colour": "blue",
    "style": "a cartoon",
}


@pytest.mark.parametrize("name", TEMPLATES)
def test_every_wording_is_a_sentence(name):
    said = {instruction(name, np.random.default_rng(seed), **WORDS) for seed in range(60)}
    assert len(said) == len(TEMPLATES[name]) >= 3
    for sentence in said:
        assert sentence[0].isupper()
        assert sentence.endswith(".")
        assert "{" not in sentence


def test_a_missing_word_is_an_error():
    with pytest.raises(KeyError):
        instruction("recolour", np.random.default_rng(0), object="the red object")


def test_every_style_and_background_has_words():
    assert set(STYLE_PHRASES) == set(STYLES)
    assert {f"background {look}" for look in BACKGROUNDS} <= set(TEMPLATES)


def test_articles():
    assert noun("the moving red object") == "moving red object"
    assert indefinite("the orange object") == "an orange object"
    assert indefinite("the blue object") == "a blue object"


@pytest.mark.parametrize(("column", "place"), [(5, "on the left"), (50, "in the middle"), (90, "on the right")])
def test_places(column, place):
    mask = np.zeros((2, 10, 100), bool)
    mask[:, 4, column] = True
    assert place_of(mask) == place
