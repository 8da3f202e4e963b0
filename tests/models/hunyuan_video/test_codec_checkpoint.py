import json

import pytest
import torch
from diffusers import AutoencoderKLHunyuanVideo
from safetensors.torch import load_file

from icve.models.hunyuan_video.codec_checkpoint import export_vae, load_vae

# config.json of Tencent's autoencoder, with tiny sizes.
TENCENT = {
    "_class_name": "AutoencoderKLCausal3D",
    "_diffusers_version": "0.4.2",
    "act_fn": "silu",
    "block_out_channels": [8, 8, 16, 16],
    "down_block_types": ["DownEncoderBlockCausal3D"] * 4,
    "in_channels": 3,
    "latent_channels": 16,
    "layers_per_block": 1,
    "norm_num_groups": 4,
    "out_channels": 3,
    "sample_size": 256,
    "sample_tsize": 64,
    "up_block_types": ["UpDecoderBlockCausal3D"] * 4,
    "scaling_factor": 0.476986,
    "time_compression_ratio": 4,
    "mid_block_add_attention": True,
}


def original_shapes(widths, layers, latent=16, video=3):
    """Names and shapes of the original autoencoder, from the structure of its modules: no name comes from diffusers.

    A causal convolution holds its `conv`; a block its `resnets` and, but for the last, one down- or upsampler.
    """
    shapes = {}

    def conv(name, inside, out, kernel=3, causal=True):
        shapes[f"{name}{'.conv' if causal else ''}.weight"] = (out, inside, kernel, kernel, kernel)
        shapes[f"{name}{'.conv' if causal else ''}.bias"] = (out,)

    def norm(name, size):
        shapes[f"{name}.weight"] = shapes[f"{name}.bias"] = (size,)

    def resnet(name, inside, out):
        norm(f"{name}.norm1", inside)
        conv(f"{name}.conv1", inside, out)
        norm(f"{name}.norm2", out)
        conv(f"{name}.conv2", out, out)
        if inside != out:
            conv(f"{name}.conv_shortcut", inside, out, kernel=1)

    def half(name, inside, out, widths, layers, blocks, sampler, middle):
        conv(f"{name}.conv_in", inside, widths[0])
        size = widths[0]
        for i, width in enumerate(widths):
            for j in range(layers):
                resnet(f"{name}.{blocks}.{i}.resnets.{j}", size, width)
                size = width
            if i < len(widths) - 1:
                conv(f"{name}.{blocks}.{i}.{sampler}.0.conv", width, width)
        for j in range(2):
            resnet(f"{name}.mid_block.resnets.{j}", middle, middle)
        norm(f"{name}.mid_block.attentions.0.group_norm", middle)
        for linear in ("to_q", "to_k", "to_v", "to_out.0"):
            shapes[f"{name}.mid_block.attentions.0.{linear}.weight"] = (middle, middle)
            shapes[f"{name}.mid_block.attentions.0.{linear}.bias"] = (middle,)
        norm(f"{name}.conv_norm_out", widths[-1])
        conv(f"{name}.conv_out", widths[-1], out)

    half("encoder", video, 2 * latent, widths, layers, "down_blocks", "downsamplers", widths[-1])
    half("decoder", latent, video, widths[::-1], layers + 1, "up_blocks", "upsamplers", widths[-1])
    conv("quant_conv", 2 * latent, 2 * latent, kernel=1, causal=False)
    conv("post_quant_conv", latent, latent, kernel=1, causal=False)
    return shapes


@pytest.fixture
def state():
    generator = torch.Generator().manual_seed(0)
    shapes = original_shapes(TENCENT["block_out_channels"], TENCENT["layers_per_block"])
    return {key: 0.1 * torch.randn(shape, generator=generator) for key, shape in shapes.items()}


def test_the_released_autoencoders_names_map_one_to_one():
    with torch.device("meta"):
        vae = AutoencoderKLHunyuanVideo()
    listed = original_shapes((128, 256, 512, 512), 2)
    assert {key: tuple(value.shape) for key, value in vae.state_dict().items()} == listed


@pytest.mark.parametrize("wrapping", ["plain", "state_dict", "vae.", "both"])
def test_tencents_files_become_a_diffusers_folder(state, tmp_path, wrapping):
    saved = state
    if wrapping in ("vae.", "both"):  # training left its discriminator beside
        saved = {f"vae.{key}": value for key, value in state.items()} | {"loss.discriminator.weight": torch.ones(2)}
    if wrapping in ("state_dict", "both"):
        saved = {"state_dict": saved, "global_step": 7}
    folder = tmp_path / "vae"
    folder.mkdir()
    torch.save(saved, folder / "pytorch_model.pt")
    (folder / "config.json").write_text(json.dumps(TENCENT))
    vae = load_vae(folder)
    export_vae(vae, tmp_path / "out")
    (file,) = (tmp_path / "out").glob("*.safetensors")
    written = load_file(file)
    assert written.keys() == state.keys()
    assert all(torch.equal(written[key], state[key]) for key in state)
    peer = AutoencoderKLHunyuanVideo.from_pretrained(tmp_path / "out")
    assert peer.config.scaling_factor == TENCENT["scaling_factor"]
    assert peer.config.temporal_compression_ratio == 4
    assert peer.config.norm_num_groups == 4
    video = torch.randn(1, 3, 5, 16, 16)
    with torch.no_grad():
        latents = vae.encode(video).latent_dist.mode()
        assert torch.equal(peer.encode(video).latent_dist.mode(), latents)
        assert torch.equal(peer.decode(latents).sample, vae.decode(latents).sample)
    again = load_vae(tmp_path / "out", dtype=torch.bfloat16)
    assert all(torch.equal(again.state_dict()[key], state[key].bfloat16()) for key in state)


def test_sizes_are_read_from_the_shapes_without_a_configuration(tmp_path):
    with torch.device("meta"):
        expected = AutoencoderKLHunyuanVideo(block_out_channels=(32, 32, 64, 64), layers_per_block=2)
    state = {key: torch.zeros(value.shape) for key, value in expected.state_dict().items()}
    torch.save(state, tmp_path / "pytorch_model.pt")
    vae = load_vae(tmp_path / "pytorch_model.pt")
    assert dict(vae.config).items() >= {k: v for k, v in expected.config.items() if k != "_use_default_values"}.items()


def test_bad_files_are_named(state, tmp_path):
    with pytest.raises(FileNotFoundError, match="No autoencoder at"):
        load_vae(tmp_path / "absent")
    file = tmp_path / "pytorch_model.pt"
    torch.save({"img_in.proj.weight": torch.zeros(1)}, file)
    with pytest.raises(ValueError, match="not HunyuanVideo's autoencoder"):
        load_vae(file)
    (tmp_path / "config.json").write_text(json.dumps(TENCENT | {"layers_per_block": 2}))
    torch.save(state, file)
    with pytest.raises(ValueError, match=r"missing 'encoder\.down_blocks\.0\.resnets\.1\."):
        load_vae(file)
    (tmp_path / "config.json").write_text(json.dumps(TENCENT))
    torch.save(state | {"quant_conv.bias": torch.full((32,), torch.nan)}, file)
    with pytest.raises(ValueError, match=r"'quant_conv\.bias' of .* has NaN"):
        load_vae(file)
    file.write_bytes(file.read_bytes()[:-2000])
    with pytest.raises(ValueError, match="not a whole torch file"):
        load_vae(file)
