"""Load and export transformer weights: diffusers folders, ICVE / Tencent folders, single files, training checkpoints.

Weights are read from safetensors only.
"""

import json
import os
import shutil
from pathlib import Path
from typing import Any, Literal

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor

from .hunyuan_video import HunyuanVideoInContextTransformer3DModel
from .key_names import is_original, to_diffusers, to_original

WEIGHTS = "diffusion_pytorch_model.safetensors"
Model = HunyuanVideoInContextTransformer3DModel


def load_transformer(folder_or_file: str | Path, **overrides: Any) -> Model:
    """Build the in-context transformer from a checkpoint of any known layout, in the dtype it was stored in.

    Known are: a diffusers folder (`config.json` and one or several safetensors files), an ICVE / Tencent folder
    (`config.json` with `hidden_size`, original parameter names), a single `.safetensors` file of either naming (sizes
    are read from the shapes), and a folder with a `transformer/` inside: a training checkpoint or a pipeline.

    Args:
        folder_or_file: where the weights are.
        **overrides: configuration values that replace the checkpoint's, e.g. `rope_axes_dim` for a single file whose
            head width is not 128.

    Raises:
        FileNotFoundError: nothing there, or no weights in the folder.
        ValueError: a damaged file, or weights that do not fit the configuration: the first mismatching keys are named.
    """
    path = Path(folder_or_file)
    if not path.exists():
        raise FileNotFoundError(f"No checkpoint at '{path}': give a folder with safetensors or a .safetensors file.")
    if (path / "transformer").is_dir():
        path = path / "transformer"
    state = _read_state(path)
    config_file = path / "config.json" if path.is_dir() else path.with_name("config.json")
    config = json.loads(config_file.read_text()) if config_file.is_file() else {}
    config = _config(config, state) | overrides
    width = config["num_attention_heads"] * config["attention_head_dim"]
    if is_original(state):
        state = to_diffusers(state, width)
    with torch.device("meta"):
        model = Model.from_config(config)
    _check_keys(model.state_dict(), state, path)
    model.load_state_dict(state, assign=True)
    return model.eval()


def export_transformer(model: Model, folder: str | Path, format: Literal["diffusers", "icve"] = "diffusers") -> None:
    """Write `config.json` and safetensors to `folder`, whole or not at all.

    Args:
        model: the transformer.
        folder: must not exist yet, or be empty.
        format: "diffusers", or "icve" with the original names and configuration.

    Raises:
        FileExistsError: `folder` holds something.
        ValueError: unknown format.
    """
    folder = Path(folder)
    if folder.exists() and any(folder.iterdir()):
        raise FileExistsError(f"'{folder}' is not empty: choose another folder to export to.")
    partial = folder.with_name(folder.name + f".partial-{os.getpid()}")
    shutil.rmtree(partial, ignore_errors=True)
    try:
        if format == "diffusers":
            model.save_pretrained(partial)
        elif format == "icve":
            partial.mkdir(parents=True)
            state = {key: value.detach().cpu().contiguous() for key, value in to_original(model.state_dict()).items()}
            save_file(state, partial / WEIGHTS, metadata={"format": "pt"})
            (partial / "config.json").write_text(json.dumps(_original_config(model), indent=2) + "\n")
        else:
            raise ValueError(f"Unknown export format '{format}': choose 'diffusers' or 'icve'.")
        if folder.exists():
            folder.rmdir()
        os.replace(partial, folder)
    finally:
        shutil.rmtree(partial, ignore_errors=True)


def _read_state(path: Path) -> dict[str, Tensor]:
    files = sorted(path.glob("*.safetensors")) if path.is_dir() else [path]
    if not files:
        raise FileNotFoundError(f"'{path}' holds no .safetensors file.")
    index = path / (WEIGHTS + ".index.json")
    if index.is_file():
        needed = set(json.loads(index.read_text())["weight_map"].values())
        if missing := sorted(needed - {file.name for file in files}):
            raise FileNotFoundError(f"'{path}' lacks the shard {missing[0]}: the download is incomplete.")
        files = [file for file in files if file.name in needed]
    state = {}
    for file in files:
        try:
            with safe_open(file, framework="pt") as tensors:
                # Cloned: tensors mapped from the file are unaligned, which changes results in the last bits.
                state |= {key: tensors.get_tensor(key).clone() for key in tensors.keys()}  # noqa: SIM118
        except SafetensorError as error:
            raise ValueError(
                f"'{file}' is not a whole safetensors file ({error}): copy or download it again."
            ) from error
    return state


def _config(config: dict[str, Any], state: dict[str, Tensor]) -> dict[str, Any]:
    """diffusers' configuration from diffusers' own, from the original's, or from the tensors' shapes."""
    if "num_attention_heads" in config:
        return {key: value for key, value in config.items() if not key.startswith("_")}
    shapes = _config_from_shapes(state)
    if "hidden_size" not in config:
        return shapes
    patch = config.get("patch_size", (1, 2, 2))
    return shapes | {
        "num_attention_heads": config["heads_num"],
        "attention_head_dim": config["hidden_size"] // config["heads_num"],
        "num_layers": config["mm_double_blocks_depth"],
        "num_single_layers": config["mm_single_blocks_depth"],
        "mlp_ratio": config.get("mlp_width_ratio", 4.0),
        "patch_size_t": patch[0],
        "patch_size": patch[1],
        "rope_theta": config.get("rope_theta", 256),
        "rope_axes_dim": tuple(config.get("rope_dim_list", (16, 56, 56))),
        "guidance_embeds": config.get("guidance_embed", shapes["guidance_embeds"]),
    }


def _config_from_shapes(state: dict[str, Tensor]) -> dict[str, Any]:
    """Sizes that the tensors of a transformer give away, in either naming."""
    original = is_original(state)
    embed = state.get("img_in.proj.weight" if original else "x_embedder.proj.weight")
    if embed is None:
        raise ValueError("These weights are no HunyuanVideo transformer: neither 'img_in.proj' nor 'x_embedder.proj'.")
    width, in_channels, patch_t, patch, _ = embed.shape

    def shape(a: str, b: str) -> torch.Size:
        return state[a if original else b].shape

    def depth(a: str, b: str) -> int:
        prefix = a if original else b
        return len({key[len(prefix) :].split(".")[0] for key in state if key.startswith(prefix)})

    double, single = (
        depth("double_blocks.", "transformer_blocks."),
        depth("single_blocks.", "single_transformer_blocks."),
    )
    if double:
        head_dim = shape("double_blocks.0.img_attn_q_norm.weight", "transformer_blocks.0.attn.norm_q.weight")[0]
    else:
        head_dim = shape("single_blocks.0.q_norm.weight", "single_transformer_blocks.0.attn.norm_q.weight")[0]
    refiner = "txt_in.individual_token_refiner.blocks.", "context_embedder.token_refiner.refiner_blocks."
    return {
        "in_channels": in_channels,
        "out_channels": shape("final_layer.linear.weight", "proj_out.weight")[0] // (patch_t * patch * patch),
        "num_attention_heads": width // head_dim,
        "attention_head_dim": head_dim,
        "num_layers": double,
        "num_single_layers": single,
        "num_refiner_layers": depth(*refiner),
        "mlp_ratio": shape(refiner[0] + "0.mlp.fc1.weight", refiner[1] + "0.ff.net.0.proj.weight")[0] / width,
        "patch_size": patch,
        "patch_size_t": patch_t,
        "guidance_embeds": any("guidance_" in key for key in state),
        "text_embed_dim": shape("txt_in.input_embedder.weight", "context_embedder.proj_in.weight")[1],
        "pooled_projection_dim": shape("vector_in.in_layer.weight", "time_text_embed.text_embedder.linear_1.weight")[1],
    }


def _original_config(model: Model) -> dict[str, Any]:
    config = model.config
    return {
        "in_channels": config.in_channels,
        "out_channels": config.out_channels,
        "patch_size": [config.patch_size_t, config.patch_size, config.patch_size],
        "mlp_width_ratio": config.mlp_ratio,
        "mlp_act_type": "gelu_tanh",
        "qkv_bias": True,
        "qk_norm": True,
        "qk_norm_type": "rms",
        "text_projection": "single_refiner",
        "use_attention_mask": True,
        "rope_theta": config.rope_theta,
        "hidden_size": config.num_attention_heads * config.attention_head_dim,
        "heads_num": config.num_attention_heads,
        "mm_double_blocks_depth": config.num_layers,
        "mm_single_blocks_depth": config.num_single_layers,
        "rope_dim_list": list(config.rope_axes_dim),
        "guidance_embed": config.guidance_embeds,
        "text_states_dim": config.text_embed_dim,
        "text_states_dim_2": config.pooled_projection_dim,
    }


def _check_keys(expected: dict[str, Tensor], given: dict[str, Tensor], path: Path) -> None:
    missing = [key for key in expected if key not in given]
    unexpected = [key for key in given if key not in expected]
    misshaped = [key for key in expected if key in given and given[key].shape != expected[key].shape]
    problems = [f"missing '{missing[0]}' ({len(missing)} in all)"] if missing else []
    problems += [f"unexpected '{unexpected[0]}' ({len(unexpected)} in all)"] if unexpected else []
    for key in misshaped[:1]:
        problems.append(f"'{key}' is {tuple(given[key].shape)} where the model has {tuple(expected[key].shape)}")
    if problems:
        raise ValueError(f"The weights of '{path}' do not fit their configuration: {'; '.join(problems)}.")
