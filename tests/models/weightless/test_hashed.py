"""Hashed text: deterministic vectors, order, padding and the null word."""

import pytest
import torch

from icve.models.weightless.hashed import HashedTextEncoder, hashed_signs, split_words
from tests.texts import assert_same_text, parts


@pytest.fixture(scope="module")
def encoder() -> HashedTextEncoder:
    return HashedTextEncoder()


def test_reference_values():
    """Fixed for ever: a model trained on one machine must understand instructions on every other."""
    assert hashed_signs("red", 16, "icve word").astype(int).tolist() == [
        -1,
        1,
        -1,
        1,
        1,
        1,
        1,
        -1,
        -1,
        1,
        1,
        -1,
        -1,
        -1,
        -1,
        1,
    ]
    assert hashed_signs("красный", 8, "icve pooled").astype(int).tolist() == [1, 1, -1, -1, 1, -1, 1, 1]


def test_long_vectors_continue_short_ones():
    long, short = hashed_signs("red", 1300, "icve word"), hashed_signs("red", 100, "icve word")
    assert (long[:100] == short).all()
    assert abs(long.mean()) < 0.1
    assert (long[:512] != long[512:1024]).any()


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("Make the RED circle, blue!", ["make", "the", "red", "circle", "blue"]),
        ("don't  re-colour\tit", ["don't", "re", "colour", "it"]),
        ("Füge ＡＢ hinzu", ["füge", "ab", "hinzu"]),
        ("", [""]),
        (" ...!? ", [""]),
    ],
)
def test_words(text, words):
    assert split_words(text) == words


def test_shapes_mask_and_padding(encoder):
    embeddings, mask, pooled = parts(encoder.encode(["make it blue", "", "remove the big red circle"]))
    assert embeddings.shape == (3, 5, 128)
    assert pooled.shape == (3, 128)
    assert mask.dtype == torch.bool
    assert mask.sum(1).tolist() == [3, 1, 5]
    assert (mask[:, :-1] >= mask[:, 1:]).all()  # right padded
    assert embeddings[~mask].abs().max() == 0


def test_a_text_is_encoded_alike_in_any_batch(encoder):
    alone = encoder.encode(["make it blue"])
    batch = encoder.encode(["something much longer than that", "make it blue"])
    assert_same_text(batch.alone(1), alone)


def test_statistics_are_those_of_a_normalised_embedding(encoder):
    words = [f"word{i}" for i in range(300)]
    embeddings, _, pooled = parts(encoder.encode(words))
    tokens = embeddings[:, 0]
    assert tokens.square().mean().item() == pytest.approx(1, abs=0.05)
    torch.testing.assert_close(pooled.square().mean(1), torch.ones(300))
    signs = torch.tensor([hashed_signs(word, 128, "icve word").tolist() for word in words])
    cosine = (signs @ signs.T / 128).fill_diagonal_(0)
    assert cosine.abs().max() < 0.5
    assert cosine.square().mean().sqrt().item() == pytest.approx(128**-0.5, rel=0.1)


def test_order_is_visible_but_does_not_drown_the_word(encoder):
    embeddings, _, pooled = parts(encoder.encode(["make the red circle blue", "make the blue circle red"]))
    similarity = torch.nn.functional.cosine_similarity
    red_here, red_there = embeddings[0, 2], embeddings[1, 4]
    assert not torch.equal(red_here, red_there)
    assert similarity(red_here, red_there, dim=0) > 0.7
    assert similarity(red_here, embeddings[1, 2], dim=0) < 0.6
    assert 0.5 < similarity(pooled[0], pooled[1], dim=0) < 0.99


def test_null_word_is_no_word(encoder):
    embeddings, mask, pooled = parts(encoder.encode(["", "a"]))
    assert mask.all()
    assert embeddings[0].abs().max() > 0
    assert not torch.equal(pooled[0], pooled[1])


def test_long_texts_are_cut():
    encoder = HashedTextEncoder(max_tokens=4)
    embeddings, mask, _ = parts(encoder.encode(["one two three four five six"]))
    assert embeddings.shape[1] == 4
    assert mask.all()
    assert torch.equal(embeddings, encoder.encode(["one two three four"]).embeddings)


def test_a_string_or_nothing_is_refused(encoder):
    for texts in ("make it blue", []):
        with pytest.raises(ValueError, match="list of at least one string"):
            encoder.encode(texts)
    with pytest.raises(ValueError, match="at least 1"):
        HashedTextEncoder(text_dim=0)


def test_save_and_load(tmp_path):
    encoder = HashedTextEncoder(text_dim=48, pooled_dim=24, max_tokens=8)
    encoder.save_pretrained(tmp_path)
    loaded = HashedTextEncoder.from_pretrained(tmp_path, use_safetensors=True)
    for one, other in zip(parts(encoder.encode(["make it blue"])), parts(loaded.encode(["make it blue"])), strict=True):
        assert torch.equal(one, other)
    assert loaded.to(torch.bfloat16).encode(["a"]).embeddings.dtype == torch.bfloat16
