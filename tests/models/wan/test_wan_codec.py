"""Wan's codecs: reference tensors, both versions, tiles."""

import json

import pytest
import torch
from diffusers import AutoencoderKLWan
from safetensors.torch import load_file
from torch.utils.flop_counter import FlopCounterMode

from icve.models.families import arguments_of
from icve.models.wan.codec import WanCodec
from icve.models.wan.key_names import vae_to_diffusers
from icve.models.wan.tiny import VAE, VAE_22


@pytest.fixture(scope="module", params=[VAE, VAE_22], ids=["2.1", "2.2"])
def folder(request, tmp_path_factory):
    folder = tmp_path_factory.mktemp("vae")
    torch.manual_seed(0)
    vae = AutoencoderKLWan(**request.param)
    for parameter in vae.parameters():
        parameter.data.add_(0.02 * torch.randn_like(parameter))
    vae.save_pretrained(folder)
    return folder


def clip(frames=5, height=64, width=96, seed=0):
    pixels = torch.randint(0, 256, (1, 3, frames, height, width), generator=torch.Generator().manual_seed(seed))
    return pixels.to(torch.uint8)


def numbers(pixels):
    return pixels.float() / 127.5 - 1.0


def test_latents_and_pixels_are_the_reference(shared_data, tmp_path):
    where = shared_data / "golden_wan" / "golden_wan_vae_latents"
    tensors = {key: value.clone() for key, value in load_file(where.with_suffix(".safetensors")).items()}
    info = json.loads(where.with_suffix(".json").read_text())
    state = {key.removeprefix("state_dict."): value for key, value in tensors.items() if key.startswith("state_dict.")}
    vae = AutoencoderKLWan(**info["config_diffusers"])
    vae.load_state_dict(vae_to_diffusers(state))
    vae.save_pretrained(tmp_path)
    codec = WanCodec(str(tmp_path))
    torch.testing.assert_close(codec.encode(tensors["input.video"]), tensors["output_latents"], atol=2e-5, rtol=1e-4)
    decoded = codec.decode(tensors["output_latents"])
    torch.testing.assert_close(decoded, tensors["output_decoded"], atol=2e-5, rtol=1e-4)


def test_sizes_follow_the_version(folder):
    codec = WanCodec(str(folder))
    latents = codec.encode(numbers(clip()))
    assert latents.shape == (1, codec.latent_channels, 2, 64 // codec.spatial_factor, 96 // codec.spatial_factor)
    assert (codec.latent_channels, codec.spatial_factor) in ((16, 8), (48, 16))
    assert codec.decode(latents).shape == (1, 3, 5, 64, 96)
    assert codec.channel_rms.shape == (codec.latent_channels,)
    assert codec.channel_rms.gt(0).all()


def test_latents_are_normalised_by_mean_and_deviation(folder, tmp_path):
    """A configuration with other statistics gives the same modes, shifted and scaled."""
    codec = WanCodec(str(folder))
    config = json.loads((folder / "config.json").read_text())
    channels = codec.latent_channels
    for file in folder.iterdir():
        (tmp_path / file.name).write_bytes(file.read_bytes())
    config |= {"latents_mean": [0.5] * channels, "latents_std": [2.0] * channels}
    (tmp_path / "config.json").write_text(json.dumps(config))
    vae = AutoencoderKLWan.from_pretrained(folder).eval()
    with torch.no_grad():
        mode = vae.encode(numbers(clip())).latent_dist.mode()
    torch.testing.assert_close(WanCodec(str(tmp_path)).encode(numbers(clip())), (mode - 0.5) / 2, atol=1e-6, rtol=1e-5)


def test_tiles_that_are_encoded_apart_are_joined_as_encode_does(folder):
    unit = WanCodec(str(folder)).spatial_factor
    for codec in (WanCodec(str(folder)), WanCodec(str(folder), tile_size=4 * unit, tile_stride=2 * unit)):
        pixels = clip(height=6 * unit, width=8 * unit)
        tiles = codec.tiles(pixels)
        assert len(tiles) == (1 if codec.config.tile_size is None else 3 * 4)
        encoded = [codec.encode_tiles(numbers(tile)) for tile in tiles]
        expected = codec.encode(numbers(pixels))
        torch.testing.assert_close(codec.join_tiles(pixels, encoded), expected, atol=1e-6, rtol=1e-5)
        assert codec.decode(expected).shape == pixels.shape


def test_a_batch_is_its_clips(folder):
    batch = numbers(torch.cat([clip(seed=1), clip(seed=2)]))
    alone = torch.cat([WanCodec(str(folder)).encode(one) for one in batch.split(1)])
    for clips in (1, 2):
        torch.testing.assert_close(WanCodec(str(folder), clips=clips).encode(batch), alone, atol=1e-5, rtol=1e-4)


@pytest.mark.parametrize("frames", [1, 5, 13])
def test_flops_are_those_of_encoding(folder, frames):
    arguments = arguments_of(WanCodec) | {"pretrained": str(folder)}
    codec = WanCodec(str(folder))
    codec.load()
    with FlopCounterMode(display=False) as flops:
        codec.encode(numbers(clip(frames)))
    [(pixels, counted)] = WanCodec.count_flops(arguments, (frames, 64, 96))
    assert pixels == frames * 64 * 96
    assert counted == pytest.approx(flops.get_total_flops(), rel=0.01)
    assert WanCodec.count_parameters(arguments) == sum(p.numel() for p in codec.parameters())


def test_wrong_arguments_and_videos_are_refused(folder):
    with pytest.raises(ValueError, match="tile_size and tile_stride of WanCodec"):
        WanCodec(str(folder), tile_size=60)
    with pytest.raises(ValueError, match="clips of WanCodec must be at least 1"):
        WanCodec(str(folder), clips=0)
    codec = WanCodec(str(folder))
    with pytest.raises(ValueError, match=r"needs 4k\+1 frames"):
        codec.encode(torch.zeros(1, 3, 4, 64, 64))
    with pytest.raises(ValueError, match=r"WanCodec\.decode needs"):
        codec.decode(torch.zeros(1, 3, 2, 4, 4))


def test_where_the_weights_are_absent_the_release_with_the_wanted_channels_is_counted():
    counted = [WanCodec.count_parameters({"pretrained": "absent", "latent_channels": n}) for n in (16, 48)]
    assert counted == [126_892_531, 704_688_668]
