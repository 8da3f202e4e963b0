"""Low-rank adapters (LoRA) of the transformer: training them, files in diffusers' layout, merging, ComfyUI's layout.

peft trains and switches them (`pip install icve[lora]`); `adapter_files` reads them. A file holds
`transformer.<layer>.lora_A.weight` (rank, in) and `lora_B.weight` (out, rank) of every adapted layer; the layer's
weight grows by alpha/rank · B·A.
"""

import json
import math
import re
from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import torch
from torch import Tensor, nn

from icve.models.adapters.files import LORA_FILE, AdapterSource, LowRank, check_fits, read_adapter
from icve.models.adapters.key_layouts import known_layer
from icve.models.checkpoint_files import all_finite
from icve.models.families import family_of
from icve.runtime.storage.remote_path import as_path

ADAPTED = "adapted_weights.json"  # beside the adapter: {"transformer": the weights it belongs to}
PREFIX = "transformer."


@dataclass(frozen=True)
class LoRA:
    """An adapter to train.

    Args:
        rank: of every layer's update.
        alpha: the update is scaled by alpha/rank; None takes the rank (a scale of 1).
        dropout: of the adapter's input, in [0, 1). What is dropped is drawn anew when a run is resumed.
        targets: regular expression that a layer's whole name must match; None for the family's own, every projection
            of attention and MLP.
        weights_dtype: of the frozen weights; the adapter is float32. "auto" is settled by `icve fit`: bfloat16 on CUDA
            and where the run computes in it, else float32, and as before where a run is resumed.

    Raises:
        ValueError: for values out of range.
    """

    rank: int = 32
    alpha: float | None = None
    dropout: float = 0.0
    targets: str | None = None
    weights_dtype: Literal["auto", "float32", "bfloat16", "float16"] = "auto"

    def __post_init__(self) -> None:
        if self.rank < 1 or not 0.0 <= self.dropout < 1.0:
            raise ValueError(
                f"LoRA needs a rank of at least 1 and a dropout in [0, 1), not {self.rank}, {self.dropout}."
            )


def add_lora(transformer: Any, lora: LoRA) -> int:
    """Freeze the transformer and add a trainable adapter (starting as no change); returns its number of parameters.

    Raises:
        ImportError: peft is not installed.
        ValueError: no layer's name matches the targets.
    """
    try:
        from peft import LoraConfig
    except ImportError as error:
        raise ImportError("LoRA needs peft: pip install 'icve[lora]'.") from error
    family = family_of(transformer)
    targets = lora.targets or (family.lora_targets if family is not None else ".*")
    names = [n for n, m in transformer.named_modules() if isinstance(m, nn.Linear) and re.fullmatch(targets, n)]
    if not names:
        raise ValueError(f"No linear layer of the transformer matches the LoRA targets {targets!r}.")
    transformer.requires_grad_(False)
    alpha = lora.rank if lora.alpha is None else lora.alpha
    config = LoraConfig(
        r=lora.rank,
        lora_alpha=alpha,  # type: ignore[arg-type]  # fractions are as good
        lora_dropout=lora.dropout,
        target_modules=names,
    )
    transformer.add_adapter(config)
    for parameter in transformer.parameters():  # an adapter of a bf16 model is trained in float32
        if parameter.requires_grad:
            parameter.data = parameter.data.float()
    return sum(parameter.numel() for parameter in transformer.parameters() if parameter.requires_grad)


def save_lora(
    transformer: nn.Module,
    folder: str | Path,
    weights: str | Path | None = None,
    state: dict[str, Tensor] | None = None,
) -> Path:
    """Write the adapter as `pytorch_lora_weights.safetensors`, with its settings in the file's metadata.

    Args:
        transformer: with the adapter.
        folder: where to.
        weights: path of the transformer it belongs to; the folder can then be loaded like a transformer's.
        state: the adapter's parameters by name; None takes the transformer's.
    """
    from diffusers.loaders.lora_base import LoraBaseMixin
    from diffusers.training_utils import _collate_lora_metadata
    from peft import get_peft_model_state_dict

    metadata = _collate_lora_metadata({"transformer": transformer})["transformer_lora_adapter_metadata"]
    LoraBaseMixin._save_lora_weights(
        save_directory=folder,
        lora_layers={"transformer": get_peft_model_state_dict(transformer, state_dict=state)},
        lora_metadata={"transformer": metadata},
        is_main_process=True,
        weight_name=LORA_FILE,
        save_function=None,  # type: ignore[arg-type]  # diffusers' own default
        safe_serialization=True,
    )
    if weights is not None:
        (Path(folder) / ADAPTED).write_text(json.dumps({"transformer": str(weights)}) + "\n", encoding="utf-8")
    return Path(folder) / LORA_FILE


def adapted_weights(folder: Path) -> Path | None:
    """The transformer that the adapter in a folder belongs to, None where the folder holds no adapter with its place.

    Raises:
        FileNotFoundError: the transformer is not where it was.
        ValueError: the file that names it is damaged.
    """
    file = folder / ADAPTED
    if not file.is_file():
        return None
    try:
        weights = as_path(json.loads(file.read_text(encoding="utf-8"))["transformer"])
    except (ValueError, KeyError, TypeError) as error:
        raise ValueError(f'\'{file}\' is damaged: write {{"transformer": "PATH OF THE WEIGHTS"}} into it.') from error
    if not weights.exists():
        raise FileNotFoundError(
            f"The adapter in {folder} belongs to the weights in {weights}, which are not there: put them back, or "
            f"correct the path in {file}."
        )
    return weights


def fuse_adapter(transformer: nn.Module, path: str | Path, scale: float = 1.0) -> None:
    """Add an adapter (a file or its folder, of any layout) to the weights, for good.

    Raises:
        FileNotFoundError: there is no adapter.
        ValueError: it is damaged, or as `fuse_layers`.
    """
    fuse_layers(transformer, read_adapter(path), path, scale)


def fuse_layers(transformer: nn.Module, adapter: Mapping[str, LowRank], path: str | Path, scale: float = 1.0) -> None:
    """Add an adapter that was read from a path to the weights, for good.

    Raises:
        ValueError: it belongs to another model, and nothing was changed; or its change is too large for the weights'
            type, and the layers before are changed.
    """
    if not math.isfinite(scale):
        raise ValueError(f"The scale of an adapter is a finite number, not {scale}.")
    check_fits(adapter, transformer, path)
    with torch.no_grad():
        for name, layer in adapter.items():
            weight = transformer.get_parameter(f"{name}.weight")
            # In float32, rounded once; adding in 16 bits would lose small changes.
            precise = torch.promote_types(weight.dtype, torch.float32)
            fused = (weight.to(precise) + scale * layer.change(weight.device, precise)).to(weight.dtype)
            if not all_finite(fused):
                raise ValueError(
                    f"The change of {name!r} by the adapter '{path}' is too large for weights in "
                    f"{str(weight.dtype).removeprefix('torch.')}: its file is damaged, or its scale wrong."
                )
            weight.copy_(fused)


def peft_adapter(adapter: Mapping[str, LowRank]) -> tuple[dict[str, Tensor], dict[str, Any]]:
    """An adapter as peft takes it, switchable and with every layer's own scale.

    Returns:
        `transformer.<layer>.lora_A.weight` and `lora_B.weight`, and the values of a LoraConfig.
    """
    ranks = {name: len(layer.down) for name, layer in adapter.items()}
    alphas = {name: layer.scale * ranks[name] for name, layer in adapter.items()}
    rank, alpha = (Counter(values.values()).most_common(1)[0][0] for values in (ranks, alphas))
    state = {}
    for name, layer in adapter.items():
        pixels = [1] * (layer.down.ndim - 2)  # of the patch embedding, a convolution
        state[f"{PREFIX}{name}.lora_A.weight"] = layer.down
        state[f"{PREFIX}{name}.lora_B.weight"] = layer.up.reshape(*layer.up.shape, *pixels).contiguous()
    # Whole names: peft takes others for the ends of names, so that "proj_out" would match every block's.
    return state, {
        "r": rank,
        "lora_alpha": alpha,
        "rank_pattern": {f"^{re.escape(name)}": value for name, value in ranks.items() if value != rank},
        "alpha_pattern": {f"^{re.escape(name)}": value for name, value in alphas.items() if value != alpha},
        "target_modules": "|".join(re.escape(name) for name in adapter),
    }


def to_comfyui(source: AdapterSource) -> dict[str, Tensor]:
    """An adapter in ComfyUI's layout: `diffusion_model.<original name>.lora_A.weight` and `lora_B.weight`.

    The original layout stacks query, key, value (and a single-stream block's MLP input) in one matrix. Their adapters
    become one: of the same rank where they share A, else of the summed rank, the A stacked, the B on a diagonal of
    blocks. Scales are multiplied into B, in float32 where its own type would round, so no `.alpha` is needed.

    Args:
        source: an adapter of any layout, as `read_adapter` takes it.

    Raises:
        FileNotFoundError, ValueError: as `read_adapter`; or a part of a stack is missing.
    """
    adapter = read_adapter(source)
    out: dict[str, Tensor] = {}
    for name in adapter:
        family, _ = known_layer(name)
        names = family.adapter_names()
        original, parts = names.stacked(name)
        target = f"diffusion_model.{original}"
        if f"{target}.lora_A.weight" in out:
            continue
        if absent := [part for part in parts if part not in adapter]:
            raise ValueError(f"{original} stacks {', '.join(parts)}, of which the adapter lacks {absent[0]}.")
        down = [adapter[part].down for part in parts]
        up = [_scaled(adapter[part]) for part in parts]
        if all(matrix is down[0] or torch.equal(matrix, down[0]) for matrix in down):
            down, up = down[:1], [torch.cat(up)]
        a, b = torch.cat(down), torch.block_diag(*up)
        b = names.original_rows(original, b)
        out[f"{target}.lora_A.weight"] = a.clone()
        out[f"{target}.lora_B.weight"] = b.reshape(*b.shape, *[1] * (a.ndim - 2)).clone()
    return out


def _scaled(layer: LowRank) -> Tensor:
    precise = layer.up.to(torch.promote_types(layer.up.dtype, torch.float32)) * layer.scale
    rounded = precise.to(layer.up.dtype)
    return rounded if torch.equal(rounded.to(precise.dtype), precise) else precise
