"""Load and export transformer weights: diffusers and ICVE / Tencent folders, single files, training checkpoints."""

import json
import os
import re
from pathlib import Path
from typing import Any, Literal

import torch
from torch import Tensor

from icve.models.base_folders import tencent_transformer
from icve.models.checkpoint_files import open_shards, read_tensors, shard_tensors, write_shards
from icve.models.hunyuan_video.configs import PARAMETERS, config_from, mismatch, original_config
from icve.models.hunyuan_video.key_names import is_original, sources, to_diffusers, to_original, wrapper_prefix
from icve.models.hunyuan_video.transformer import HunyuanVideoInContextTransformer3DModel
from icve.models.lora import ADAPTED, adapted_weights, fuse_adapter
from icve.models.run_folders import inside_run
from icve.models.weight_files import read_json
from icve.runtime.atomic import new_folder

Model = HunyuanVideoInContextTransformer3DModel


def load_transformer(
    folder_or_file: str | os.PathLike[str],
    *,
    device: torch.device | str = "cpu",
    dtype: torch.dtype | None = None,
    ema: bool = False,
    progress: bool = False,
    mapped: bool = False,
    **overrides: Any,
) -> Model:
    """Build the in-context transformer from a checkpoint of any known layout.

    Known are: a diffusers folder (`config.json` and one or several safetensors files), an ICVE / Tencent folder
    (`config.json` with `hidden_size`, original parameter names), a single `.safetensors` or `.pt` file of either naming
    (without `config.json` sizes are read from the shapes), and a folder with a `transformer/` inside: a training
    checkpoint (whose safetensors are its averaged weights; an adapter's is added to the weights it names), a run with
    such checkpoints, a pipeline, or Tencent's `ckpts`. Weights go to `device` tensor by tensor: in host memory is,
    besides what stays there, one shard.

    Args:
        folder_or_file: where the weights are.
        device: where the model is built.
        dtype: what its weights become; None keeps what is stored.
        ema: of a `.pt` file with both trained ("module") and averaged ("ema") weights take the averaged ones. By
            default it is the trained ones, as in Tencent's own loader. Other files hold one set, which is taken.
        progress: show a progress bar.
        mapped: leave the weights in their files, on the CPU and as they are stored: they are read where they are used,
            and the processes of a machine share what is in memory of them. Not those that an adapter changes.
        **overrides: configuration values that replace the checkpoint's, e.g. `rope_axes_dim` for a single file whose
            head width is not 128.

    Raises:
        FileNotFoundError: nothing there, no weights in the folder, or a missing shard.
        ValueError: a damaged file, a DeepSpeed checkpoint, tensors that are not finite or no floating point numbers,
            or weights that do not fit the configuration: the first mismatching keys are named, and the likely cause.
    """
    if unknown := sorted(overrides.keys() - PARAMETERS):
        raise ValueError(f"The transformer has no setting '{unknown[0]}': it has {', '.join(sorted(PARAMETERS))}.")
    path = _locate(Path(folder_or_file))
    if (weights := adapted_weights(path)) is not None:
        model = load_transformer(weights, device=device, dtype=dtype, ema=ema, progress=progress, **overrides)
        fuse_adapter(model, path)
        return model
    shards = open_shards(path, ema)
    stored = shard_tensors(shards)
    prefix = wrapper_prefix(stored)
    stored = {key.removeprefix(prefix): value for key, value in stored.items()}
    original = is_original(stored)
    file = path / "config.json" if path.is_dir() else path.with_name("config.json")
    config = read_json(file) if file.is_file() else {}
    try:
        config = config_from(config, stored) | overrides
        # The tensors' width, not the configured one, which may not fit them.
        width = stored["img_in.proj.weight"].shape[0] if "img_in.proj.weight" in stored else 0

        def rename(tensors: dict[str, Tensor]) -> dict[str, Tensor]:
            tensors = {key.removeprefix(prefix): value for key, value in tensors.items()}
            return to_diffusers(tensors, width) if original else tensors

        given = rename(stored)
        if config.get("in_channels", 16) != config.get("out_channels", 16):
            raise ValueError(
                f"These weights take {config['in_channels']} channels where text-to-video (T2V) ones take "
                f"{config['out_channels']}: they are likely an image-to-video (I2V) model's."
            )
        with torch.device("meta"):
            model = Model.from_config(config)
    except (ValueError, KeyError) as error:
        reason = f"its config.json lacks {error}." if isinstance(error, KeyError) else error
        raise ValueError(f"'{path}' cannot be loaded: {reason}") from error
    if problem := mismatch(model.state_dict(), given):
        raise ValueError(f"The weights of '{path}' do not fit their configuration: {problem}.")
    model.load_state_dict(read_tensors(shards, rename, device, dtype, progress, mapped), assign=True)
    return model.eval()


def export_transformer(
    model: Model,
    folder: str | Path,
    format: Literal["diffusers", "icve"] = "diffusers",
    max_shard_size: int | str | None = None,
) -> None:
    """Write `config.json` and safetensors to `folder`, whole or not at all.

    Args:
        model: the transformer.
        folder: must not exist yet, or be empty.
        format: "diffusers", or "icve" with the original names and configuration.
        max_shard_size: bytes per file, or as "5GB"; more go to several files with an index. None leaves it to the
            layout: 10 GB for diffusers, one file for ICVE, as it was released.

    Raises:
        FileExistsError: `folder` holds something.
        ValueError: unknown format or size.
    """
    if format not in ("diffusers", "icve"):
        raise ValueError(f"Unknown export format '{format}': choose 'diffusers' or 'icve'.")
    limit = None if max_shard_size is None else byte_count(max_shard_size)
    with new_folder(folder) as partial:
        if format == "diffusers":
            sizes: dict[str, Any] = {} if limit is None else {"max_shard_size": limit}
            model.save_pretrained(partial, **sizes)
        else:
            _save_original(model.state_dict(), partial, limit)
            (partial / "config.json").write_text(json.dumps(original_config(model), indent=2) + "\n", encoding="utf-8")


def byte_count(size: int | str) -> int:
    """ "5GB" -> 5000000000, "200MiB" -> 209715200; numbers are bytes.

    Raises:
        ValueError: not such a size, or zero.
    """
    match = re.fullmatch(r"(\d+(?:\.\d+)?)\s*([KMGT]?)(I?)B?", str(size).strip().upper())
    count = int(float(match[1]) * (1024 if match[3] else 1000) ** " KMGT".index(match[2] or " ")) if match else 0
    if count < 1:
        raise ValueError(f"'{size}' is no size of a file: give one like 5GB or 500MB.")
    return count


def _save_original(state: dict[str, Tensor], folder: Path, limit: int | None) -> None:
    """Write a state dict of diffusers' naming in the original one; one shard at a time is put together."""
    meta = to_original({key: torch.empty_like(value, device="meta") for key, value in state.items()})

    def read(keys: list[str]) -> dict[str, Tensor]:
        return to_original({part: state[part].detach().cpu() for key in keys for part in sources(key)})

    write_shards(folder, {key: value.nbytes for key, value in meta.items()}, read, limit)


def _locate(path: Path) -> Path:
    """The folder or file with the transformer itself, inside what a user names."""
    if path.name == "trainer.ckpt":  # what resumes a run; the weights to read are beside it
        path = path.parent
    if not path.exists():
        raise FileNotFoundError(f"No checkpoint at '{path}': give a folder with safetensors or a .safetensors file.")
    if path.is_file():
        return path
    folder = inside_run(path)
    if (folder / "transformer").is_dir():
        return folder / "transformer"
    if (folder / ADAPTED).is_file():
        return folder
    return tencent_transformer(path) or path
