"""Codecs, text encoders and what all parts share, on the simulated accelerator."""

import pytest
import torch

from icve.data.text_condition import TextCondition
from icve.models.hunyuan_video.codec import HunyuanVideoCodec
from icve.models.hunyuan_video.text import HunyuanTextEncoder
from icve.models.wan.codec import WanCodec
from icve.models.wan.text import WanTextEncoder
from icve.models.weightless.dct import DCTCodec
from icve.models.weightless.hashed import HashedTextEncoder
from icve.runtime.transfers import to_device
from tests.accelerator.device import table, waits, watch
from tests.tiny_hunyuan import save_tiny_clip, save_tiny_llama, save_tiny_vae

VIDEO = torch.rand(2, 3, 9, 32, 48, generator=torch.Generator().manual_seed(0)) * 2 - 1
TEXTS = ["make the red circle blue", "remove it", ""]


@pytest.fixture
def codec(request, tmp_path, tiny_wan):
    if request.param == "DCT":
        return DCTCodec()
    if request.param == "Wan":
        return WanCodec(str(tiny_wan[0] / "vae"), tile_size=32, tile_stride=24)
    if request.param == "Wan 2.2":
        return WanCodec(str(tiny_wan[1] / "vae"), clips=2)
    return HunyuanVideoCodec(str(save_tiny_vae(tmp_path)), dtype="float32", tile_size=32, tile_stride=24)


@pytest.fixture
def encoder(request, tmp_path, tiny_wan):
    if request.param == "hashed":
        return HashedTextEncoder(16, 12)
    if request.param == "Wan":
        return WanTextEncoder(str(tiny_wan[0] / "text_encoder"), dtype="float32")
    llama, clip = save_tiny_llama(tmp_path / "llama"), save_tiny_clip(tmp_path / "clip")
    return HunyuanTextEncoder(str(llama), str(clip), dtype="float32")


@pytest.mark.parametrize("codec", ["DCT", "HunyuanVideo", "Wan", "Wan 2.2"], indirect=True)
def test_a_codec_gives_what_it_gives_on_the_cpu_and_never_waits(codec, device):
    latents = codec.encode(VIDEO)
    video = codec.decode(latents)
    rms = codec.channel_rms
    codec.to(device)
    there = VIDEO.to(device)
    codec.decode(codec.encode(there))
    with watch() as seen:
        own = codec.encode(there)
        decoded = codec.decode(own)
    assert not waits(seen.events), table(seen.waits())
    torch.testing.assert_close(own.cpu(), latents, rtol=0, atol=1e-5)
    torch.testing.assert_close(decoded.cpu(), video, rtol=0, atol=1e-4)
    torch.testing.assert_close(codec.channel_rms.cpu(), rms)


@pytest.mark.parametrize("encoder", ["hashed", "HunyuanVideo", "Wan"], indirect=True)
def test_a_text_encoder_gives_what_it_gives_on_the_cpu_and_never_waits(encoder, device):
    expected = encoder.encode(TEXTS)
    encoder.to(device)
    encoder.encode(TEXTS)
    with watch() as seen:
        found = encoder.encode(TEXTS)
    assert not waits(seen.events), table(seen.waits())
    assert found.mask.device.type == "cpu"
    assert {tensor.device for tensor in (found.embeddings, *found.extras.values())} == {device}
    assert torch.equal(found.mask, expected.mask)
    torch.testing.assert_close(found.embeddings.cpu(), expected.embeddings, rtol=0, atol=1e-5)
    assert found.extras.keys() == expected.extras.keys()
    for name, extra in found.extras.items():
        torch.testing.assert_close(extra.cpu(), expected.extras[name], rtol=0, atol=1e-5)


def test_texts_are_picked_and_moved_without_waiting(device):
    texts = HashedTextEncoder(16, 12).encode(TEXTS).pin_memory()
    with watch() as seen:
        there = texts.to(device)
        picked = there.rows([2, 0, 2])
        stacked = TextCondition.stack([picked, there])
    assert not waits(seen.events), table(seen.waits())
    assert torch.equal(stacked.embeddings.cpu()[:3], texts.embeddings[[2, 0, 2]])


def test_the_device_refuses_what_cuda_refuses_and_tells_what_waits(device):
    """Of the simulation itself, so that the tests above mean something."""
    there = torch.arange(6.0, device=device)
    with pytest.raises(RuntimeError, match="same device"):
        there + torch.ones(6)
    for waiting in (
        lambda: there.sum().item(),
        lambda: there[[0, 2]],
        there.nonzero,
        there.cpu,
        lambda: bool(there[0]),
    ):
        with watch() as seen:
            waiting()
        assert len(seen.waits()) == 1
    with watch() as seen:
        moved = to_device(torch.ones(3), device)
    assert [event.kind for event in seen.events] == ["h2d-async"]
    assert moved.device == device
