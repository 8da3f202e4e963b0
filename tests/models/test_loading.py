import json
import shutil

import pytest
import torch
from diffusers import HunyuanVideoTransformer3DModel
from safetensors import safe_open
from safetensors.torch import load_file, save_file

from icve.models.hunyuan_video.base_folders import resolve_base
from icve.models.hunyuan_video.key_names import to_diffusers, to_original
from icve.models.hunyuan_video.transformer import HunyuanVideoInContextTransformer3DModel
from icve.models.loading import byte_count, export_transformer, load_transformer
from tests.models.conftest import batch, randomised


def same(a, b):
    return a.keys() == b.keys() and all(torch.equal(a[key], b[key]) for key in a)


def original_shapes(h, heads, double, single, refiner, text, pooled, guidance, channels=16):
    """The listing of methods §1.7 as {name: shape}; `h` is the width."""
    shapes = {}

    def linear(name, out, inside):
        shapes[f"{name}.weight"], shapes[f"{name}.bias"] = (out, inside), (out,)

    def norm(name, bias=False, size=h):
        shapes[f"{name}.weight"] = (size,)
        if bias:
            shapes[f"{name}.bias"] = (size,)

    shapes["img_in.proj.weight"], shapes["img_in.proj.bias"] = (h, channels, 1, 2, 2), (h,)
    for name in ("time_in", "guidance_in")[: 1 + guidance]:
        linear(f"{name}.mlp.0", h, 256)
        linear(f"{name}.mlp.2", h, h)
    linear("vector_in.in_layer", h, pooled)
    linear("vector_in.out_layer", h, h)
    linear("txt_in.input_embedder", h, text)
    linear("txt_in.t_embedder.mlp.0", h, 256)
    linear("txt_in.t_embedder.mlp.2", h, h)
    linear("txt_in.c_embedder.linear_1", h, text)
    linear("txt_in.c_embedder.linear_2", h, h)
    for i in range(refiner):
        block = f"txt_in.individual_token_refiner.blocks.{i}"
        norm(f"{block}.norm1", bias=True)
        norm(f"{block}.norm2", bias=True)
        linear(f"{block}.self_attn_qkv", 3 * h, h)
        linear(f"{block}.self_attn_proj", h, h)
        linear(f"{block}.mlp.fc1", 4 * h, h)
        linear(f"{block}.mlp.fc2", h, 4 * h)
        linear(f"{block}.adaLN_modulation.1", 2 * h, h)
    for i in range(double):
        for stream in ("img", "txt"):
            block = f"double_blocks.{i}.{stream}"
            linear(f"{block}_mod.linear", 6 * h, h)
            linear(f"{block}_attn_qkv", 3 * h, h)
            norm(f"{block}_attn_q_norm", size=h // heads)
            norm(f"{block}_attn_k_norm", size=h // heads)
            linear(f"{block}_attn_proj", h, h)
            linear(f"{block}_mlp.fc1", 4 * h, h)
            linear(f"{block}_mlp.fc2", h, 4 * h)
    for i in range(single):
        linear(f"single_blocks.{i}.linear1", 7 * h, h)
        linear(f"single_blocks.{i}.linear2", h, 5 * h)
        norm(f"single_blocks.{i}.q_norm", size=h // heads)
        norm(f"single_blocks.{i}.k_norm", size=h // heads)
        linear(f"single_blocks.{i}.modulation.linear", 3 * h, h)
    linear("final_layer.linear", 4 * channels, h)
    linear("final_layer.adaLN_modulation.1", 2 * h, h)
    return shapes


def shapes_of(state):
    return {key: tuple(value.shape) for key, value in state.items()}


def test_a_diffusers_text_to_video_folder_loads_unchanged(config, tmp_path):
    peer = randomised(HunyuanVideoTransformer3DModel(**config))
    peer.save_pretrained(tmp_path)
    assert same(load_transformer(tmp_path).state_dict(), peer.state_dict())


def test_sharded_folders_load_and_a_missing_shard_is_named(model, tmp_path):
    model.save_pretrained(tmp_path, max_shard_size="100KB")
    shards = sorted(tmp_path.glob("*.safetensors"))
    assert len(shards) > 1
    assert same(load_transformer(tmp_path).state_dict(), model.state_dict())
    whole = shards[1].read_bytes()
    shards[1].write_bytes(whole[: len(whole) // 2])
    with pytest.raises(ValueError, match=f"{shards[1].name}' is not a whole safetensors file"):
        load_transformer(tmp_path)
    shards[0].unlink()
    with pytest.raises(FileNotFoundError, match=shards[0].name):
        load_transformer(tmp_path)


@pytest.mark.parametrize("size", [None, "100KB"])
@pytest.mark.parametrize("format", ["diffusers", "icve"])
def test_export_and_load_are_exact(model, tmp_path, format, size):
    export_transformer(model, tmp_path / "out", format, size)
    loaded = load_transformer(tmp_path / "out")
    files = list((tmp_path / "out").glob("*.safetensors"))
    assert len(files) == 1 if size is None else len(files) > 3
    assert same(loaded.state_dict(), model.state_dict())
    assert {key: loaded.config[key] for key in loaded.config if key[0] != "_"} == {
        key: model.config[key] for key in model.config if key[0] != "_"
    }
    with torch.no_grad():
        assert torch.equal(loaded(**batch()), model(**batch()))
    assert [path.name for path in tmp_path.iterdir()] == ["out"]


def test_an_exported_diffusers_folder_opens_in_diffusers(model, tmp_path):
    export_transformer(model, tmp_path / "out")
    peer = HunyuanVideoTransformer3DModel.from_pretrained(tmp_path / "out")
    assert same(peer.state_dict(), model.state_dict())


@pytest.mark.parametrize("size", [None, "100KB"])
def test_an_exported_icve_folder_holds_exactly_the_released_names(model, config, tmp_path, size):
    export_transformer(model, tmp_path / "out", "icve", size)
    state, sizes = {}, []
    for file in (tmp_path / "out").glob("*.safetensors"):
        held = load_file(file)
        with safe_open(file, "pt") as stored:
            assert stored.metadata() == {"format": "pt"}
        assert not state.keys() & held.keys()
        state |= held
        sizes.append(sum(value.nbytes for value in held.values()))
    assert shapes_of(state) == original_shapes(32, 2, 1, 2, 1, text=12, pooled=10, guidance=False)
    if size is not None:
        index = json.loads((tmp_path / "out" / "diffusion_pytorch_model.safetensors.index.json").read_text())
        assert index["weight_map"].keys() == state.keys()
        assert index["metadata"]["total_size"] == sum(sizes)
        assert max(sizes) <= 100_000


def test_the_golden_checkpoint_survives_both_layouts(shared_data, tmp_path):
    """Key for key and value for value: original file -> model -> diffusers folder -> model -> original file."""
    tensors = load_file(shared_data / "golden" / "golden_a.safetensors")
    state = {key.removeprefix("state_dict."): value for key, value in tensors.items() if key.startswith("state_dict.")}
    config = json.loads((shared_data / "golden" / "golden_a.json").read_text())["config"]
    (tmp_path / "released").mkdir()
    save_file(state, tmp_path / "released" / "diffusion_pytorch_model.safetensors")
    (tmp_path / "released" / "config.json").write_text(json.dumps(config))
    export_transformer(load_transformer(tmp_path / "released"), tmp_path / "diffusers")
    export_transformer(load_transformer(tmp_path / "diffusers"), tmp_path / "again", "icve")
    assert same(load_file(tmp_path / "again" / "diffusion_pytorch_model.safetensors"), state)
    assert json.loads((tmp_path / "again" / "config.json").read_text()) == config


def test_an_export_never_overwrites(model, tmp_path):
    (tmp_path / "mine.txt").write_text("keep")
    with pytest.raises(FileExistsError, match="not empty"):
        export_transformer(model, tmp_path)
    with pytest.raises(ValueError, match="onnx"):
        export_transformer(model, tmp_path / "new", "onnx")
    with pytest.raises(ValueError, match="'five' is no size of a file"):
        export_transformer(model, tmp_path / "new", max_shard_size="five")
    assert not (tmp_path / "new").exists()


def test_sizes_of_a_single_file_are_read_from_its_shapes(config, tmp_path):
    config |= {"num_attention_heads": 1, "attention_head_dim": 128, "rope_axes_dim": (16, 56, 56)}
    model = randomised(HunyuanVideoInContextTransformer3DModel(**config | {"guidance_embeds": True}))
    for name, state in (("a", model.state_dict()), ("b", to_original(model.state_dict()))):
        folder = tmp_path / name
        folder.mkdir()
        save_file(state, folder / "weights.safetensors")
        loaded = load_transformer(folder / "weights.safetensors")
        assert same(loaded.state_dict(), model.state_dict())
        assert loaded.config.guidance_embeds


def test_a_checkpoint_folder_is_read_through_its_transformer(model, tmp_path):
    step = tmp_path / "checkpoints" / "step-000004"
    model.save_pretrained(step / "transformer")
    (step / "trainer.ckpt").write_bytes(b"")  # never read for weights
    (tmp_path / "checkpoints" / "last").symlink_to(step.name)
    for path in (tmp_path, step, step / "transformer", step / "trainer.ckpt"):
        assert same(load_transformer(path).state_dict(), model.state_dict())


def test_names_of_the_13b_model():
    """The key list of methods §1.7, compared on the meta device, maps one to one onto diffusers' names."""
    with torch.device("meta"):
        model = HunyuanVideoInContextTransformer3DModel()
        peer = HunyuanVideoTransformer3DModel()
    original = to_original(model.state_dict())
    assert shapes_of(original) == original_shapes(3072, 24, 20, 40, 2, text=4096, pooled=768, guidance=True)
    assert shapes_of(to_diffusers(original, 3072)) == shapes_of(model.state_dict()) == shapes_of(peer.state_dict())


@pytest.mark.parametrize("prefix", ["module.", "transformer.", "_forward_module.transformer."])
def test_names_of_a_wrapped_model_are_unwrapped(model, config, tmp_path, prefix):
    for original in (False, True):
        state = to_original(model.state_dict()) if original else model.state_dict()
        torch.save({"state_dict": {prefix + key: value for key, value in state.items()}}, tmp_path / "model.pt")
        loaded = load_transformer(tmp_path / "model.pt", rope_axes_dim=config["rope_axes_dim"])
        assert same(loaded.state_dict(), model.state_dict())


def test_tencents_tree_and_its_averaged_weights(config, tmp_path):
    config |= {"num_attention_heads": 1, "attention_head_dim": 128, "rope_axes_dim": (16, 56, 56)}
    model, averaged = (randomised(HunyuanVideoInContextTransformer3DModel(**config), seed) for seed in (0, 1))
    folder = tmp_path / "ckpts" / "hunyuan-video-t2v-720p" / "transformers"
    folder.mkdir(parents=True)
    contents = {"module": to_original(model.state_dict()), "ema": to_original(averaged.state_dict())}
    torch.save(contents, folder / "mp_rank_00_model_states.pt")
    torch.save({"module": {}}, folder / "mp_rank_00_model_states_fp8.pt")
    given = resolve_base(tmp_path, parts=("transformer",)).transformer
    for path in (tmp_path, tmp_path / "ckpts", given, folder / "mp_rank_00_model_states.pt"):
        assert same(load_transformer(path).state_dict(), model.state_dict())
    assert same(load_transformer(given, ema=True).state_dict(), averaged.state_dict())


def test_weights_come_in_the_asked_type(model, tmp_path):
    export_transformer(model, tmp_path / "out", "icve")
    half = load_transformer(tmp_path / "out", dtype=torch.bfloat16)
    expected = {key: value.bfloat16() for key, value in model.state_dict().items()}
    assert same(half.state_dict(), expected)
    assert all(value.is_contiguous() for value in half.state_dict().values())
    assert all(parameter.requires_grad for parameter in half.parameters())
    assert not half.training


@pytest.mark.skipif(not torch.accelerator.is_available(), reason="needs a GPU")
def test_weights_go_to_the_asked_device(model, tmp_path):
    export_transformer(model, tmp_path / "out", "icve", "100KB")
    device = torch.accelerator.current_accelerator()
    loaded = load_transformer(tmp_path / "out", device=device)
    assert {value.device.type for value in loaded.state_dict().values()} == {device.type}
    assert same({key: value.cpu() for key, value in loaded.state_dict().items()}, model.state_dict())


def test_sizes():
    assert [byte_count(size) for size in (7, "7", "5GB", "1.5 mb", "2MiB")] == [7, 7, 5 * 10**9, 1_500_000, 2**21]
    for size in ("0", "GB", "5 bytes", -1):
        with pytest.raises(ValueError, match="is no size"):
            byte_count(size)


def test_bad_checkpoints_are_named(model, config, tmp_path):
    with pytest.raises(FileNotFoundError, match="No checkpoint at"):
        load_transformer(tmp_path / "absent")
    with pytest.raises(FileNotFoundError, match=r"holds no \.safetensors"):
        load_transformer(tmp_path)
    model.save_pretrained(tmp_path / "m")
    with pytest.raises(ValueError, match=r"missing 'single_transformer_blocks\.2\."):
        load_transformer(tmp_path / "m", num_single_layers=3)
    with pytest.raises(ValueError, match=r"'x_embedder.proj.weight' is \(32, 16, 1, 2, 2\) where the model has"):
        load_transformer(tmp_path / "m", patch_size=1)
    with pytest.raises(ValueError, match=r"no setting 'num_heads': it has .*num_attention_heads"):
        load_transformer(tmp_path / "m", num_heads=3)
    with pytest.raises(ValueError, match=r"take 33 channels where text-to-video .* image-to-video"):
        load_transformer(tmp_path / "m", in_channels=33)
    shutil.copytree(tmp_path / "m", tmp_path / "torn")
    (tmp_path / "torn" / "config.json").write_text('{"num_atten')
    with pytest.raises(ValueError, match="not valid JSON"):
        load_transformer(tmp_path / "torn")
    (tmp_path / "torn" / "config.json").write_text('{"hidden_size": 32}')
    with pytest.raises(ValueError, match=r"cannot be loaded: its config\.json lacks 'heads_num'\."):
        load_transformer(tmp_path / "torn")
    state = to_original(model.state_dict())
    state["single_blocks.0.linear1.weight"] = torch.zeros(90, 32)
    save_file(state, tmp_path / "torn" / "diffusion_pytorch_model.safetensors")
    (tmp_path / "torn" / "config.json").unlink()
    with pytest.raises(ValueError, match=r"'single_blocks\.0\.linear1\.weight' has 90 rows.* width 32"):
        load_transformer(tmp_path / "torn", rope_axes_dim=config["rope_axes_dim"])
    weights = next((tmp_path / "m").glob("*.safetensors"))
    weights.write_bytes(weights.read_bytes()[:1000])
    with pytest.raises(ValueError, match="not a whole safetensors file"):
        load_transformer(tmp_path / "m")
    (tmp_path / "other").mkdir()
    save_file({"weight": torch.zeros(1)}, tmp_path / "other" / "a.safetensors")
    (tmp_path / "other" / "config.json").write_text(json.dumps({}))
    with pytest.raises(ValueError, match="no transformer of a known family"):
        load_transformer(tmp_path / "other")
