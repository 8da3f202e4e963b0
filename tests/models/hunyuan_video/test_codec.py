"""HunyuanVideoCodec: equal to diffusers' VAE, tiled as the release tiles, saved as a reference or with its weights."""

import json
import shutil
from pathlib import Path

import pytest
import torch
from diffusers import AutoencoderKLHunyuanVideo
from safetensors.torch import load_file, save_file

from icve.models.frozen_codec import measure_channel_rms
from icve.models.hunyuan_video.codec import HunyuanVideoCodec
from icve.models.weightless.dct import DCTCodec
from tests.tiny_hunyuan import save_tiny_vae


@pytest.fixture(scope="module")
def folder(tmp_path_factory) -> Path:
    return save_tiny_vae(tmp_path_factory.mktemp("hunyuan") / "vae")


@pytest.fixture(scope="module")
def codec(folder) -> HunyuanVideoCodec:
    return HunyuanVideoCodec(str(folder))


def released(folder: Path, **tiles) -> AutoencoderKLHunyuanVideo:
    """The library's own VAE with the released editor's tiles."""
    vae = AutoencoderKLHunyuanVideo.from_pretrained(folder).eval()
    names = ("min_height", "min_width", "min_num_frames", "stride_height", "stride_width", "stride_num_frames")
    settings = zip(names, (256, 256, 64, 192, 192, 48), strict=True)
    vae.enable_tiling(**{f"tile_sample_{name}": value for name, value in settings} | tiles)
    return vae


def video(batch: int = 1, frames: int = 5, height: int = 16, width: int = 24) -> torch.Tensor:
    return torch.rand(batch, 3, frames, height, width, generator=torch.Generator().manual_seed(0)) * 2 - 1


def copy_of(folder: Path, target: Path) -> Path:
    return Path(shutil.copytree(folder, target))


WEIGHTS = "diffusion_pytorch_model.safetensors"


# ---- what it computes ------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("frames", "height", "width"),
    [(1, 8, 8), (5, 16, 24), (69, 16, 8), (5, 264, 16), (1, 272, 264)],
    ids=["image", "one tile", "tiled in time", "tiled in height", "tiled in both"],
)
@torch.no_grad()
def test_latents_and_pixels_are_the_librarys(codec, folder, frames, height, width):
    pixels, vae = video(1, frames, height, width), released(folder)
    latents = codec.encode(pixels)
    assert latents.shape == (1, 16, (frames + 3) // 4, height // 8, width // 8)
    assert latents.dtype == torch.float32
    expected = vae.encode(pixels).latent_dist.mode() * vae.config.scaling_factor
    torch.testing.assert_close(latents, expected, atol=1e-6, rtol=0)
    assert latents.std() > 0.1
    decoded = codec.decode(latents)
    assert decoded.shape == pixels.shape
    torch.testing.assert_close(decoded, vae.decode(latents / vae.config.scaling_factor).sample, atol=1e-5, rtol=0)


@torch.no_grad()
def test_the_release_tiles_time_otherwise_than_the_library(codec, folder):
    """Its default would tile the 21 frames of a clip at 16, which gives other latents."""
    library = AutoencoderKLHunyuanVideo.from_pretrained(folder)
    expected = library.encode(video(frames=21)).latent_dist.mode() * library.config.scaling_factor
    assert (codec.encode(video(frames=21)) - expected).abs().max() > 0.01
    like_it = HunyuanVideoCodec(str(folder), tile_frames=16, tile_frame_stride=12)
    torch.testing.assert_close(like_it.encode(video(frames=21)), expected, atol=1e-6, rtol=0)


def test_tiles_are_those_of_the_arguments(codec, folder):
    def tiles(codec):
        codec.load()
        names = ("min_height", "min_width", "min_num_frames", "stride_height", "stride_width", "stride_num_frames")
        return codec.vae.use_tiling, *(getattr(codec.vae, f"tile_sample_{name}") for name in names)

    assert tiles(codec) == (True, 256, 256, 64, 192, 192, 48)
    other = HunyuanVideoCodec(str(folder), tile_size=64, tile_stride=32, tile_frames=32, tile_frame_stride=16)
    assert tiles(other) == (True, 64, 64, 32, 32, 32, 16)
    assert tiles(HunyuanVideoCodec(str(folder), tile_size=None))[0] is False


@torch.no_grad()
def test_one_spatial_tile_on_request(codec, folder):
    whole = HunyuanVideoCodec(str(folder), tile_size=None)
    vae = released(folder)
    vae.disable_tiling()
    expected = vae.encode(video(height=264)).latent_dist.mode() * vae.config.scaling_factor
    torch.testing.assert_close(whole.encode(video(height=264)), expected, atol=1e-6, rtol=0)
    assert (codec.encode(video(height=264)) - expected).abs().max() > 0.01


def test_chunks_bound_what_the_network_sees_and_change_nothing(folder):
    pixels = video(batch=3, frames=9)
    results, most = [], []
    for chunk_frames in (1, 18, 1000):
        codec = HunyuanVideoCodec(str(folder), chunk_frames=chunk_frames)
        codec.load()
        seen = []
        for part in (codec.vae.encoder, codec.vae.decoder):
            part.register_forward_hook(lambda module, inputs, output, seen=seen: seen.append(len(inputs[0])))
        latents = codec.encode(pixels)
        results.append((latents, codec.decode(latents)))
        most.append(max(seen))
    assert most == [1, 2, 3]
    for latents, decoded in results[:2]:
        torch.testing.assert_close(latents, results[2][0], atol=1e-5, rtol=0)
        torch.testing.assert_close(decoded, results[2][1], atol=1e-4, rtol=0)


@pytest.mark.parametrize(
    ("size", "dtype"),
    [((1, 8, 8), "float32"), ((9, 56, 40), "float32"), ((21, 40, 16), "float32"), ((21, 40, 16), "bfloat16")],
    ids=["image", "tiled in space", "tiled in both", "16 bits"],
)
@torch.no_grad()
def test_tiles_encoded_by_themselves_and_joined_are_what_encoding_gives(folder, size, dtype):
    """Bit for bit, from pixels that are brought to [-1, 1] tile by tile."""
    tiles = {"tile_size": 32, "tile_stride": 24, "tile_frames": 8, "tile_frame_stride": 4}
    codec = HunyuanVideoCodec(str(folder), dtype=dtype, **tiles)
    pixels = ((video(1, *size) + 1) * 127.5).to(torch.uint8)
    cut = codec.tiles(pixels)
    assert (len(cut) > 1) == (size[0] > 1)
    assert all(tile._base is pixels or tile is pixels for tile in cut)
    joined = codec.join_tiles(pixels, [codec.encode_tiles(tile.float() / 127.5 - 1) for tile in cut])
    assert torch.equal(joined, codec.encode(pixels.float() / 127.5 - 1))


def test_the_network_never_sees_more_than_one_tile(folder):
    tiles = {"tile_size": 32, "tile_stride": 24, "tile_frames": 8, "tile_frame_stride": 4}
    codec = HunyuanVideoCodec(str(folder), **tiles, chunk_frames=9)
    codec.load()
    sizes = []
    codec.vae.encoder.register_forward_hook(lambda module, inputs, output: sizes.append(tuple(inputs[0].shape)))
    codec.encode(video(2, 17, 64, 40))
    assert [max(size) for size in zip(*sizes, strict=True)] == [1, 3, 9, 32, 32]


@pytest.mark.parametrize("dtype", ["float16", "bfloat16"])
@torch.no_grad()
def test_half_precision_is_the_librarys(codec, folder, dtype):
    half, precision = HunyuanVideoCodec(str(folder), dtype=dtype), getattr(torch, dtype)
    latents = half.encode(video())
    assert half.dtype == half.vae.encoder.conv_in.conv.weight.dtype == precision
    vae = AutoencoderKLHunyuanVideo.from_pretrained(folder, torch_dtype=precision)
    expected = vae.encode(video().to(precision)).latent_dist.mode().float() * vae.config.scaling_factor
    assert torch.equal(latents, expected)
    pixels = half.decode(latents)
    assert latents.dtype == pixels.dtype == torch.float32
    assert half.decode(latents.bfloat16()).dtype == torch.bfloat16
    for there, here in ((codec.encode(video()), latents), (codec.decode(latents), pixels)):
        assert 0 < (there - here).norm() < 0.05 * there.norm()


def test_casting_the_pipeline_keeps_the_precision(folder):
    codec = HunyuanVideoCodec(str(folder))
    exact = codec.encode(video())
    codec.to(torch.bfloat16).half()
    assert codec.dtype == torch.float32
    assert torch.equal(codec.encode(video()), exact)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        assert torch.equal(codec.encode(video()), exact)


def test_no_gradient(codec):
    latents = codec.encode(video().requires_grad_())
    assert not latents.requires_grad
    assert not any(parameter.requires_grad for parameter in codec.parameters())


@pytest.mark.parametrize(
    ("shape", "reason"),
    [
        ((1, 3, 8, 16, 16), r"4k\+1 frames .* got 8 frames of 16x16"),
        ((1, 3, 5, 20, 16), "multiples of 8"),
        ((1, 3, 5, 16, 12), "multiples of 8"),
        ((1, 3, 5, 0, 16), "multiples of 8"),
        ((1, 4, 5, 16, 16), r"\(B, 3, F, H, W\)"),
        ((3, 5, 16, 16), r"\(B, 3, F, H, W\)"),
    ],
)
def test_other_shapes_are_refused(codec, shape, reason):
    with pytest.raises(ValueError, match=reason):
        codec.encode(torch.zeros(shape))


def test_integer_pixels_and_wrong_latents_are_refused(codec):
    with pytest.raises(ValueError, match="uint8"):
        codec.encode(torch.zeros(1, 3, 1, 8, 8, dtype=torch.uint8))
    with pytest.raises(ValueError, match=r"decode needs .* \(B, 16, T, h, w\)"):
        codec.decode(torch.zeros(1, 15, 1, 1, 1))


# ---- how much a channel matters --------------------------------------------------------------------------------------


def test_channel_rms_of_a_linear_codec_is_exact():
    codec = DCTCodec()
    torch.testing.assert_close(measure_channel_rms(codec, torch.device("cpu")), codec.channel_rms, atol=0, rtol=1e-3)


def test_channel_rms_of_the_decoder(codec, folder, tmp_path):
    rms = codec.channel_rms
    assert rms.shape == (16,)
    assert rms.min() > 0
    state = load_file(folder / WEIGHTS)
    state["post_quant_conv.weight"][:, 5] = 0  # the decoder no longer hears channel 5
    deaf = copy_of(folder, tmp_path / "deaf")
    save_file(state, deaf / WEIGHTS)
    assert HunyuanVideoCodec(str(deaf)).channel_rms.ne(0).tolist() == [channel != 5 for channel in range(16)]


# ---- when and where the weights are ----------------------------------------------------------------------------------


def test_weights_are_read_at_the_first_use(folder):
    codec = HunyuanVideoCodec(str(folder)).to("cpu")
    assert list(codec.parameters()) == []
    assert codec.device == torch.device("cpu")
    with torch.inference_mode():  # where Lightning validates before it trains
        codec.encode(video())
    assert not any(parameter.is_inference() for parameter in codec.parameters())
    assert not codec.vae.training


def test_hooks_of_offloading_find_the_weights(codec, folder):
    from accelerate import cpu_offload

    exact = codec.encode(video())
    sequential = HunyuanVideoCodec(str(folder))
    cpu_offload(sequential, torch.device("cpu"))
    assert {parameter.device.type for parameter in sequential.parameters()} == {"meta"}
    assert torch.equal(sequential.encode(video()), exact)
    grouped = HunyuanVideoCodec(str(folder))
    grouped.enable_group_offload(torch.device("cpu"), offload_type="leaf_level")
    assert any(hasattr(module, "_diffusers_hook") for module in grouped.vae.modules())
    assert torch.equal(grouped.encode(video()), exact)


# ---- folders ---------------------------------------------------------------------------------------------------------


def test_saved_as_a_reference(folder, codec, tmp_path, monkeypatch):
    monkeypatch.chdir(folder.parent)
    relative = HunyuanVideoCodec("vae", dtype="bfloat16", chunk_frames=5)
    monkeypatch.chdir(tmp_path)
    relative.save_pretrained(tmp_path / "saved")
    assert [file.name for file in (tmp_path / "saved").iterdir()] == ["config.json"]
    saved = json.loads((tmp_path / "saved" / "config.json").read_text())
    assert saved["pretrained"] == str(folder)
    assert saved["_class_name"] == "HunyuanVideoCodec"
    loaded = HunyuanVideoCodec.from_pretrained(tmp_path / "saved")
    assert (loaded.config.dtype, loaded.config.chunk_frames) == ("bfloat16", 5)
    assert torch.equal(loaded.encode(video()), relative.encode(video()))
    exact = HunyuanVideoCodec.from_pretrained(tmp_path / "saved", dtype="float32")
    assert torch.equal(exact.encode(video()), codec.encode(video()))


def test_saved_with_its_weights_it_can_be_moved(folder, codec, tmp_path):
    source = copy_of(folder, tmp_path / "source")
    HunyuanVideoCodec(str(source)).save_pretrained(tmp_path / "saved", embed=True)
    shutil.rmtree(source)
    (tmp_path / "saved").rename(tmp_path / "moved")
    loaded = HunyuanVideoCodec.from_pretrained(tmp_path / "moved")
    assert torch.equal(loaded.encode(video()), codec.encode(video()))
    # Saving once more into the same folder, either way, leaves it complete and movable.
    for embed in (False, True):
        loaded.save_pretrained(tmp_path / "moved", embed=embed)
        assert json.loads((tmp_path / "moved" / "config.json").read_text())["pretrained"] == "pretrained"
        assert sorted(file.name for file in (tmp_path / "moved" / "pretrained").iterdir()) == ["config.json", WEIGHTS]
    loaded.save_pretrained(tmp_path / "other")
    assert json.loads((tmp_path / "other" / "config.json").read_text())["pretrained"] == str(
        tmp_path / "moved" / "pretrained"
    )


def test_sharded_weights(codec, tmp_path):
    folder = save_tiny_vae(tmp_path / "sharded", max_shard_size="100KB")
    assert len(list(folder.glob("*.safetensors"))) > 1
    sharded = HunyuanVideoCodec(str(folder))
    assert torch.equal(sharded.encode(video()), codec.encode(video()))
    sharded.save_pretrained(tmp_path / "saved", embed=True)
    assert torch.equal(HunyuanVideoCodec.from_pretrained(tmp_path / "saved").encode(video()), codec.encode(video()))


# ---- mistakes: one sentence at construction --------------------------------------------------------------------------


def refuse(error: type[Exception], match: str, **settings) -> None:
    with pytest.raises(error, match=match) as caught:
        HunyuanVideoCodec(**settings)
    assert "\n" not in str(caught.value)
    assert str(caught.value).endswith(".")


def test_missing_folders_and_files(folder, tmp_path):
    refuse(FileNotFoundError, "the folder '/nowhere' does not exist; give", pretrained="/nowhere")
    refuse(ValueError, "is s3://bucket/vae, a URL: copy the folder to a disk", pretrained="s3://bucket/vae")
    refuse(FileNotFoundError, "has no config.json; give", pretrained=str(tmp_path))
    bare = copy_of(folder, tmp_path / "bare")
    (bare / WEIGHTS).unlink()
    refuse(FileNotFoundError, r"holds no \.safetensors", pretrained=str(bare))
    torch.save({}, bare / "diffusion_pytorch_model.bin")  # pickles are never read
    refuse(FileNotFoundError, r"holds no \.safetensors", pretrained=str(bare))
    sharded = save_tiny_vae(tmp_path / "sharded", max_shard_size="100KB")
    shard = sorted(sharded.glob("*.safetensors"))[1]
    shard.unlink()
    refuse(FileNotFoundError, f"lacks the shard {shard.name}: the download is incomplete", pretrained=str(sharded))


def test_damaged_and_foreign_files(folder, tmp_path):
    half = copy_of(folder, tmp_path / "half")
    content = (half / WEIGHTS).read_bytes()
    (half / WEIGHTS).write_bytes(content[: len(content) // 2])
    refuse(ValueError, "not a whole safetensors file", pretrained=str(half))
    (half / "config.json").write_text('{"_class_name": "Auto')
    refuse(ValueError, "not valid JSON", pretrained=str(half))
    (half / "config.json").write_text('{"_class_name": "AutoencoderKLWan"}')
    refuse(ValueError, "holds a AutoencoderKLWan, not a AutoencoderKLHunyuanVideo", pretrained=str(half))


@pytest.mark.parametrize(
    ("settings", "match"),
    [
        ({"dtype": "int8"}, "dtype of HunyuanVideoCodec is"),
        ({"tile_size": 100}, "multiples of 8"),
        ({"tile_size": 64}, "the stride not the larger"),
        ({"tile_frames": 64, "tile_frame_stride": 0}, "positive multiples of 4"),
        ({"tile_frames": 66}, "multiples of 4"),
        ({"chunk_frames": 0}, "at least 1"),
    ],
)
def test_settings_out_of_range(folder, settings, match):
    refuse(ValueError, match, pretrained=str(folder), **settings)


@pytest.mark.parametrize(
    ("change", "match"),
    [
        (lambda state: state.pop("encoder.conv_out.conv.bias"), r"'encoder\.conv_out\.conv\.bias' is missing \(1 in"),
        (lambda state: state.update({"quant_conv.bias": torch.zeros(3)}), r"\(3,\) where config\.json asks for \(32,"),
        (lambda state: state["quant_conv.bias"].fill_(float("nan")), r"'quant_conv\.bias' .* not finite"),
        (lambda state: state.update({"quant_conv.bias": torch.zeros(32).int()}), r"torch\.int32: give weights in a"),
    ],
)
def test_weights_that_do_not_fit(folder, tmp_path, change, match):
    broken = copy_of(folder, tmp_path / "broken")
    state = load_file(broken / WEIGHTS)
    change(state)
    save_file(state, broken / WEIGHTS)
    with pytest.raises(ValueError, match=match) as caught:
        HunyuanVideoCodec(str(broken)).encode(video())
    assert "\n" not in str(caught.value)


def test_a_reference_to_weights_that_are_gone(folder, tmp_path):
    source = copy_of(folder, tmp_path / "source")
    HunyuanVideoCodec(str(source)).save_pretrained(tmp_path / "saved")
    source.rename(tmp_path / "elsewhere")
    with pytest.raises(FileNotFoundError, match=r"source' does not exist; .*saved/config\.json' refers to"):
        HunyuanVideoCodec.from_pretrained(tmp_path / "saved")
    found = HunyuanVideoCodec.from_pretrained(tmp_path / "saved", pretrained=str(tmp_path / "elsewhere"))
    assert found.encode(video()).shape == (1, 16, 2, 2, 3)
    with pytest.raises(FileNotFoundError, match="save_pretrained"):
        HunyuanVideoCodec.from_pretrained(tmp_path / "nothing")
