"""The DCT codec: an orthogonal projection, causal in its first frame, saved and loaded like any diffusers model."""

import math

import pytest
import torch

from icve.models.weightless.dct import DCTCodec, block_basis


@pytest.fixture(scope="module")
def codec() -> DCTCodec:
    return DCTCodec()


def noise_video(batch: int = 2, frames: int = 9, height: int = 24, width: int = 16) -> torch.Tensor:
    return torch.rand(batch, 3, frames, height, width, generator=torch.Generator().manual_seed(0)) * 2 - 1


def range_latents(codec: DCTCodec, frames: int = 3) -> torch.Tensor:
    """Random latents that some video has: temporal channels are zero in latent frame 0."""
    latents = torch.randn(2, 16, frames, 3, 2, generator=torch.Generator().manual_seed(1))
    temporal = torch.tensor([t > 0 for _, t, _, _ in codec.config.coefficients])
    latents[:, temporal, 0] = 0
    return latents


def test_the_full_transform_is_orthonormal():
    every = [(c, t, y, x) for c in range(3) for t in range(4) for y in range(8) for x in range(8)]
    basis = block_basis(every)
    torch.testing.assert_close(basis @ basis.T, torch.eye(768, dtype=torch.float64), atol=1e-12, rtol=0)
    blocks = torch.randn(5, 768, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    torch.testing.assert_close((blocks @ basis.T).square().sum(1), blocks.square().sum(1))  # Parseval


def test_basis_rows_are_cosines_of_opponent_colours():
    (row,) = block_basis([(1, 2, 0, 3)])
    t, x = 1, 5
    expected = (
        math.sqrt(1 / 2)
        * math.sqrt(2 / 4)
        * math.cos(math.pi * (t + 0.5) * 2 / 4)
        * math.sqrt(1 / 8)
        * math.sqrt(2 / 8)
        * math.cos(math.pi * (x + 0.5) * 3 / 8)
    )
    block = row.reshape(3, 4, 8, 8)
    assert block[0, t, 6, x].item() == pytest.approx(expected, rel=1e-12)
    assert block[2, t, 6, x].item() == pytest.approx(-expected, rel=1e-12)
    assert block[1].abs().max() == 0


@pytest.mark.parametrize(("frames", "height", "width"), [(1, 8, 8), (5, 16, 40), (9, 64, 64), (13, 24, 8)])
def test_shapes_of_any_multiple_of_eight_and_4k_plus_1(codec, frames, height, width):
    video = noise_video(1, frames, height, width)
    latents = codec.encode(video)
    assert latents.shape == (1, 16, (frames + 3) // 4, height // 8, width // 8)
    assert codec.decode(latents).shape == video.shape


@pytest.mark.parametrize(
    "shape",
    [(1, 3, 8, 16, 16), (1, 3, 9, 20, 16), (1, 3, 9, 16, 12), (1, 4, 9, 16, 16), (3, 9, 16, 16), (1, 3, 9, 0, 16)],
)
def test_other_shapes_are_refused(codec, shape):
    with pytest.raises(ValueError, match=r"DCTCodec\.encode needs"):
        codec.encode(torch.zeros(shape))


def test_integer_pixels_and_wrong_latents_are_refused(codec):
    with pytest.raises(ValueError, match="uint8"):
        codec.encode(torch.zeros(1, 3, 1, 8, 8, dtype=torch.uint8))
    with pytest.raises(ValueError, match=r"DCTCodec\.decode needs"):
        codec.decode(torch.zeros(1, 15, 1, 1, 1))


def test_decode_inverts_encode_on_latents(codec):
    latents = range_latents(codec)
    torch.testing.assert_close(codec.encode(codec.decode(latents)), latents, atol=2e-5, rtol=0)


def test_decode_of_encode_is_the_orthogonal_projection(codec):
    video = noise_video()
    once = codec.decode(codec.encode(video))
    torch.testing.assert_close(codec.decode(codec.encode(once)), once, atol=1e-5, rtol=0)
    # Orthogonal: what is lost is perpendicular to everything representable, in every frame group of its own.
    other = codec.decode(range_latents(codec))
    lost = (video - once).double()
    for group in (slice(0, 1), slice(1, 5), slice(5, 9)):
        product = (lost[:, :, group] * other[:, :, group].double()).sum()
        scale = lost[:, :, group].norm() * other[:, :, group].double().norm()
        assert abs(product / scale) < 1e-6


def test_energy_of_latents_is_energy_of_the_projection(codec):
    video = noise_video()
    coefficients = codec.encode(video)[:, :, 1:] * codec.scale_C[:, None, None, None]
    projected = codec.decode(codec.encode(video))[:, :, 1:]
    torch.testing.assert_close(coefficients.square().sum(), projected.square().sum(), rtol=1e-5, atol=0)


def test_constant_video_survives(codec):
    video = torch.tensor([0.5, -0.25, 0.75])[None, :, None, None, None].expand(1, 3, 5, 16, 16)
    torch.testing.assert_close(codec.decode(codec.encode(video)), video, atol=1e-5, rtol=0)


def test_first_frame_is_causal_and_equals_an_image(codec):
    video = noise_video()
    changed = video.clone()
    changed[:, :, 1:] = 0
    latents = codec.encode(video)
    torch.testing.assert_close(codec.encode(changed)[:, :, 0], latents[:, :, 0])
    torch.testing.assert_close(codec.encode(video[:, :, :1]), latents[:, :, :1])
    torch.testing.assert_close(codec.decode(latents[:, :, :1]), codec.decode(latents)[:, :, :1])
    temporal = [index for index, row in enumerate(codec.config.coefficients) if row[1]]
    assert temporal
    assert latents[:, temporal, 0].abs().max() < 1e-5


def test_temporal_channels_of_the_first_frame_decode_to_nothing(codec):
    """A sampler leaves a residue there; least squares ignores it instead of letting it into the image."""
    latents = range_latents(codec)
    noisy = latents.clone()
    noisy[:, [index for index, row in enumerate(codec.config.coefficients) if row[1]], 0] = 1
    torch.testing.assert_close(codec.decode(noisy), codec.decode(latents), atol=1e-5, rtol=0)


def test_half_precision_is_only_a_rounding_of_the_result(codec):
    video = noise_video()
    half = DCTCodec().to(torch.bfloat16)
    torch.testing.assert_close(half.encode(video), codec.encode(video))
    assert half.encode(video.bfloat16()).dtype == torch.bfloat16
    with torch.autocast("cpu", dtype=torch.bfloat16):
        torch.testing.assert_close(half.encode(video), codec.encode(video))


def test_save_and_load_keep_choice_of_channels(tmp_path):
    coefficients = [[0, 0, 0, 0], [2, 0, 0, 0], [0, 3, 0, 7]]
    codec = DCTCodec(coefficients, [2.0, 3.0, 0.5])
    codec.save_pretrained(tmp_path)
    loaded = DCTCodec.from_pretrained(tmp_path, use_safetensors=True, dtype=torch.bfloat16)
    assert loaded.latent_channels == 3
    assert not list(loaded.parameters())
    assert loaded.device.type == "cpu"
    torch.testing.assert_close(loaded.encode(noise_video()), codec.encode(noise_video()))


@pytest.mark.parametrize(
    ("coefficients", "scales"),
    [([[0, 0, 0, 0]] * 2, [1.0, 1.0]), ([[0, 0, 0, 8]], [1.0]), ([[0, 0, 0, 0]], [0.0]), ([[0, 0, 0, 0]], [1.0, 1.0])],
)
def test_impossible_channels_are_refused(coefficients, scales):
    with pytest.raises(ValueError, match=r"coefficient|scale"):
        DCTCodec(coefficients, scales)


def test_real_clips_have_unit_variance_and_keep_their_look(codec, shared_data):
    from icve.data.media.video import read_frames

    for name, size, least in (("src_seal", (64, 64), 23), ("src_dancers", (240, 384), 23)):
        frames = read_frames(shared_data / "videos" / "sources" / f"{name}.mp4", start=0, count=9, size=size)
        video = torch.from_numpy(frames).permute(3, 0, 1, 2)[None].float() / 127.5 - 1
        latents = codec.encode(video)
        assert 0.5 < latents.square().mean().sqrt() < 2
        error = (codec.decode(latents).clamp(-1, 1) - video).square().mean().item()
        assert 10 * math.log10(4 / error) > least
