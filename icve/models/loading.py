"""Load and export transformer weights: diffusers and ICVE / Tencent folders, single files, training checkpoints."""

import os
import re
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from diffusers.models.modeling_utils import ModelMixin
from torch import Tensor

from icve.models.checkpoint_files import Shard, open_shards, read_tensors, shard_tensors
from icve.models.families import arguments_of, export_formats, family_of, recognised, with_transformers
from icve.models.family import Base, Family, Rename
from icve.models.licences import bases_of, read_bases, write_bases
from icve.models.lora import ADAPTED, adapted_weights, fuse_adapter
from icve.models.remote_runs import on_disk
from icve.models.run_folders import exported, inside_run
from icve.models.state_ranges import RangesShard, has_ranges
from icve.models.weight_files import read_json
from icve.runtime.atomic import new_folder
from icve.runtime.storage.remote_path import as_path


def load_transformer(
    folder_or_file: str | os.PathLike[str],
    *,
    device: torch.device | str = "cpu",
    dtype: torch.dtype | None = None,
    ema: bool = False,
    progress: bool = False,
    mapped: bool = False,
    exact: bool = False,
    **overrides: Any,
) -> Any:
    """Build the in-context transformer from a checkpoint of any known layout.

    Known are: a diffusers folder (`config.json` and one or several safetensors files), an ICVE / Tencent folder
    (`config.json` with `hidden_size`, original parameter names), a single `.safetensors` or `.pt` file of either naming
    (without `config.json` sizes are read from the shapes), and a folder with a `transformer/` inside: a training
    checkpoint (its averaged weights; an adapter's is added to the weights it names), a run with such checkpoints, a
    pipeline, or Tencent's `ckpts`. Weights go to `device` tensor by tensor: in host memory is, besides what stays
    there, one shard. Of a checkpoint that was not exported, the weights come from the training state.

    Args:
        folder_or_file: where the weights are, also a URL (:mod:`icve.models.remote_runs`).
        device: where the model is built.
        dtype: what its weights become; None keeps what is stored.
        ema: of a `.pt` file with both trained ("module") and averaged ("ema") weights take the averaged ones. By
            default it is the trained ones, as in Tencent's own loader. Other files hold one set, which is taken.
        progress: show a progress bar.
        mapped: leave the weights in their files, on the CPU and as they are stored: they are read where they are used,
            and the processes of a machine share what is in memory of them. Not those that an adapter changes, nor
            those that come from a training state.
        exact: of a run take the newest checkpoint, exported or not, and of a checkpoint the averaged weights in its
            training state (float32): an export of it may be rounded.
        **overrides: configuration values that replace the checkpoint's, e.g. `rope_axes_dim` for a single file whose
            head width is not 128.

    Raises:
        FileNotFoundError: nothing there, no weights in the folder, or a missing shard.
        ValueError: a damaged file, a DeepSpeed checkpoint, tensors that are not finite or no floating point numbers,
            or weights that do not fit the configuration: the first mismatching keys are named, and the likely cause.
    """
    path = _locate(folder_or_file, exact)
    if (weights := adapted_weights(path)) is not None:
        options: dict[str, Any] = {"device": device, "dtype": dtype, "ema": ema, "progress": progress, "exact": exact}
        model = load_transformer(weights, **options, **overrides)
        fuse_adapter(model, path)
        return model
    shards = _open(path, ema, exact)
    stored = shard_tensors(shards)
    family, config, rename = _understood(path, stored, overrides)
    with torch.device("meta"):
        kind: Any = family.transformer_class()
        model = kind.from_config(config)
    if problem := family.layouts().mismatch(model.state_dict(), rename(stored)):
        raise ValueError(f"The weights of '{path}' do not fit their configuration: {problem}.")
    model.load_state_dict(read_tensors(shards, rename, device, dtype, progress, mapped), assign=True)
    return model.eval()


def _open(path: Path, ema: bool = False, exact: bool = False) -> list[Shard]:
    if has_ranges(path.parent) and path.name == "transformer" and (exact or not exported(path.parent)):
        return [RangesShard(path.parent)]
    return open_shards(path, ema)


def _understood(
    path: Path, stored: dict[str, Tensor], overrides: dict[str, Any]
) -> tuple[Family, dict[str, Any], Rename]:
    """The family of stored tensors, its transformer's configuration, and what gives them their names in it."""
    config = _read_config(path)
    try:
        family = recognised(config, stored)
        settings = arguments_of(family.transformer_class())
        if unknown := sorted(overrides.keys() - settings.keys()):
            raise ValueError(f"the transformer has no setting '{unknown[0]}': it has {', '.join(sorted(settings))}.")
        config, rename = family.layouts().read(config, stored, overrides)
    except (ValueError, KeyError) as error:
        reason = f"its config.json lacks {error}." if isinstance(error, KeyError) else error
        raise ValueError(f"'{path}' cannot be loaded: {reason}") from error
    return family, config, rename


def weights_family(folder_or_file: str | os.PathLike[str]) -> Family:
    """The family of the transformer at a place that `load_transformer` knows; no tensor is read.

    Raises:
        FileNotFoundError, ValueError: as `load_transformer`.
    """
    path = _locate(folder_or_file)
    if (weights := adapted_weights(path)) is not None:
        return weights_family(weights)
    return _understood(path, shard_tensors(_open(path)), {})[0]


def recorded_bases(folder_or_file: str | os.PathLike[str]) -> list[Base] | None:
    """Published weights recorded beside the transformer at a place that `load_transformer` knows; None where none are.

    Raises:
        ValueError: the record is damaged.
    """
    path = _locate(folder_or_file)
    return read_bases(path if path.is_dir() else path.parent)


def _read_config(path: Path) -> dict[str, Any]:
    file = path / "config.json" if path.is_dir() else path.with_name("config.json")
    return read_json(file) if file.is_file() else {}


def export_transformer(
    model: ModelMixin,
    folder: str | Path,
    format: str = "diffusers",
    max_shard_size: int | str | None = None,
    bases: Sequence[Base] | None = None,
) -> None:
    """Write `config.json`, safetensors and the licences of base weights to `folder`, whole or not at all.

    Args:
        model: the transformer.
        folder: must not exist yet, or be empty.
        format: "diffusers", or one of the family's own, as "icve": the original names and configuration.
        max_shard_size: bytes per file, or as "5GB"; more go to several files with an index. None leaves it to the
            layout: 10 GB for diffusers, one file for ICVE, as it was released.
        bases: published weights that the transformer was made from; None for its family's.

    Raises:
        FileExistsError: `folder` holds something.
        ValueError: unknown format or size.
    """
    limit = None if max_shard_size is None else byte_count(max_shard_size)
    family = family_of(model)
    exports = {} if family is None else family.layouts().EXPORTS
    if format != "diffusers" and format not in exports:
        known = " or ".join(f"'{name}'" for name in export_formats())
        raise ValueError(f"Unknown export format '{format}': choose {known}.")
    with new_folder(folder) as partial:
        if format == "diffusers":
            sizes: dict[str, Any] = {} if limit is None else {"max_shard_size": limit}
            model.save_pretrained(partial, **sizes)
        else:
            exports[format](model, partial, limit)
        write_bases(partial, bases_of([model]) if bases is None else bases)


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


def _locate(folder_or_file: str | os.PathLike[str], newest: bool = False) -> Path:
    """The folder or file with the transformer itself, inside what a user names."""
    path = as_path(folder_or_file)
    if path.name == "trainer.ckpt":  # what resumes a run; the weights to read are beside it
        path = path.parent
    path = on_disk(path, editor=not newest)
    if not path.exists():
        raise FileNotFoundError(f"No checkpoint at '{path}': give a folder with safetensors or a .safetensors file.")
    if path.is_file():
        return path
    folder = inside_run(path, newest)
    if (folder / "transformer").is_dir():
        return folder / "transformer"
    if (folder / ADAPTED).is_file():
        return folder
    inside = (family.layouts().locate(path) for family in with_transformers())
    return next(filter(None, inside), path)
