import numpy as np
import pytest
import torch
from diffusers.pipelines.wan import pipeline_wan_vace

from icve.curation.edit_pairs.vace import TEXT_TOKENS, Vace


@pytest.fixture(scope="module")
def vace(tiny_vace):
    return Vace(tiny_vace, steps=2, guidance=5.0, negative_prompt="grey wall")


def clip(frames: int, height: int, width: int) -> tuple[np.ndarray, np.ndarray]:
    video = np.random.default_rng(0).integers(0, 255, (frames, height, width, 3), dtype=np.uint8)
    mask = np.zeros(video.shape[:3], bool)
    mask[:, : height // 2, width // 2 :] = True
    return video, mask


def test_text_is_embedded_as_the_pipeline_does(vace, monkeypatch):
    class Ftfy:  # what it mends does not occur here
        fix_text = staticmethod(str)

    monkeypatch.setattr(pipeline_wan_vace, "ftfy", Ftfy, raising=False)
    text = "A red  ball on the street, empty. "
    reference, _ = vace.pipeline.encode_prompt(
        text, do_classifier_free_guidance=False, max_sequence_length=TEXT_TOKENS, device="cpu"
    )
    torch.testing.assert_close(vace.embed(text), reference)


@pytest.mark.parametrize("shape", [(5, 32, 48), (1, 32, 32), (7, 40, 50)])
def test_any_length_and_size_comes_back_as_it_was(vace, shape):
    video, mask = clip(*shape)
    drawn = vace(video, mask, "a red ball", seed=0)
    assert drawn.shape == video.shape
    assert drawn.dtype == np.uint8


def test_lengths_and_sizes_are_extended_for_the_model_and_cut_again(vace, monkeypatch):
    video, mask = clip(6, 40, 50)
    given = {}
    call = type(vace.pipeline).__call__

    def spy(pipeline, **arguments):
        given.update(arguments)
        return call(pipeline, **arguments)

    monkeypatch.setattr(type(vace.pipeline), "__call__", spy)
    vace(video, mask, "a red ball", seed=0)
    assert given["video"].shape == (1, 9, 48, 64, 3)
    assert (given["num_frames"], given["height"], given["width"]) == (9, 48, 64)
    shown, hidden = given["video"][0, :6, :40, :50], given["mask"][0, :6, :40, :50, 0].astype(bool)
    np.testing.assert_array_equal(hidden, mask)
    assert (shown[mask] == 0.5).all()
    np.testing.assert_allclose(shown[~mask], video[~mask] / 255, atol=1e-6)
    np.testing.assert_array_equal(given["video"][0, 8, 47, 63], given["video"][0, 5, 39, 49])


def test_noise_follows_the_seed_and_the_masked_pixels_are_never_seen(vace):
    video, mask = clip(5, 32, 48)
    first = vace(video, mask, "a red ball", seed=1)
    np.testing.assert_array_equal(first, vace(video, mask, "a red ball", seed=1))
    assert (first != vace(video, mask, "a red ball", seed=2)).any()
    other = video.copy()
    other[mask] = 0
    np.testing.assert_array_equal(first, vace(other, mask, "a red ball", seed=1))


def test_caption_and_guidance_matter(vace, tiny_vace):
    video, mask = clip(5, 32, 48)
    first = vace(video, mask, "a red ball", seed=1)
    assert (first != vace(video, mask, "green wall on the street", seed=1)).any()
    unguided = Vace(tiny_vace, steps=2, guidance=1.0, negative_prompt="grey wall")
    assert unguided.negative is None
    assert (first != unguided(video, mask, "a red ball", seed=1)).any()
