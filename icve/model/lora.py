"""Low-rank adapters (LoRA) of the transformer: which layers, files in diffusers' layout, ComfyUI's layout.

peft does the work (`pip install icve[lora]`). A file holds `transformer.<layer>.lora_A.weight` (rank, in) and
`lora_B.weight` (out, rank) of every adapted layer; the layer's weight grows by alpha/rank · B·A.
"""

import json
import re
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import torch
from torch import Tensor, nn

from .key_names import original_parts

LORA_FILE = "pytorch_lora_weights.safetensors"
ADAPTED = "adapted_weights.json"  # beside the adapter: {"transformer": the weights it belongs to}
PREFIX = "transformer."
# Every projection of attention and MLP in the transformer's blocks; not modulation, embeddings, refiner and output.
ATTENTION_AND_MLP = (
    r"(single_)?transformer_blocks\.\d+\.(attn\.(to_[qkv]|to_out\.0|add_[qkv]_proj|to_add_out)"
    r"|ff(_context)?\.net\.(0\.proj|2)|proj_mlp|proj_out)"
)


@dataclass(frozen=True)
class LoRA:
    """An adapter to train.

    Args:
        rank: of every layer's update.
        alpha: the update is scaled by alpha/rank; None takes the rank (a scale of 1).
        dropout: of the adapter's input, in [0, 1). What is dropped is drawn anew when a run is resumed.
        targets: regular expression that a layer's whole name must match.
        weights_dtype: of the frozen weights; the adapter is float32.

    Raises:
        ValueError: for values out of range.
    """

    rank: int = 32
    alpha: float | None = None
    dropout: float = 0.0
    targets: str = ATTENTION_AND_MLP
    weights_dtype: Literal["float32", "bfloat16", "float16"] = "bfloat16"

    def __post_init__(self) -> None:
        if self.rank < 1 or not 0.0 <= self.dropout < 1.0:
            raise ValueError(
                f"LoRA needs a rank of at least 1 and a dropout in [0, 1), not {self.rank}, {self.dropout}."
            )


def add_lora(transformer: nn.Module, lora: LoRA) -> int:
    """Freeze the transformer and add a trainable adapter (starting as no change); returns its number of parameters.

    Raises:
        ImportError: peft is not installed.
        ValueError: no layer's name matches the targets.
    """
    try:
        from peft import LoraConfig
    except ImportError as error:
        raise ImportError("LoRA needs peft: pip install 'icve[lora]'.") from error
    names = [n for n, m in transformer.named_modules() if isinstance(m, nn.Linear) and re.fullmatch(lora.targets, n)]
    if not names:
        raise ValueError(f"No linear layer of the transformer matches the LoRA targets {lora.targets!r}.")
    transformer.requires_grad_(False)
    alpha = lora.rank if lora.alpha is None else lora.alpha
    config = LoraConfig(r=lora.rank, lora_alpha=alpha, lora_dropout=lora.dropout, target_modules=names)
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
    from diffusers.training_utils import _collate_lora_metadata
    from peft import get_peft_model_state_dict

    from icve.pipeline import EditPipeline

    EditPipeline.save_lora_weights(
        folder,
        transformer_lora_layers=get_peft_model_state_dict(transformer, state_dict=state),
        **_collate_lora_metadata({"transformer": transformer}),
    )
    if weights is not None:
        (Path(folder) / ADAPTED).write_text(json.dumps({"transformer": str(weights)}) + "\n", encoding="utf-8")
    return Path(folder) / LORA_FILE


def adapted_weights(folder: Path) -> Path | None:
    """The transformer that the adapter in a folder belongs to, None where the folder holds no adapter with its place.

    Raises:
        FileNotFoundError: the transformer is not where it was.
    """
    file = folder / ADAPTED
    if not file.is_file():
        return None
    weights = Path(json.loads(file.read_text(encoding="utf-8"))["transformer"])
    if not weights.exists():
        raise FileNotFoundError(
            f"The adapter in {folder} belongs to the weights in {weights}, which are not there: put them back, or "
            f"correct the path in {file}."
        )
    return weights


def fuse_adapter(transformer: nn.Module, path: str | Path, scale: float = 1.0) -> None:
    """Add an adapter (a file or its folder) to the weights, for good.

    Raises:
        ImportError: peft is not installed.
        FileNotFoundError: there is no adapter.
        ValueError: it belongs to another model.
    """
    from icve.pipeline import EditPipeline

    file = Path(path) / LORA_FILE if Path(path).is_dir() else Path(path)
    if not file.is_file():
        raise FileNotFoundError(f"There is no adapter at {file}.")
    state, metadata = EditPipeline.lora_state_dict(file, use_safetensors=True, return_lora_metadata=True)
    check_lora(state, transformer, str(file))
    transformer.load_lora_adapter(state, metadata=metadata)
    transformer.fuse_lora(lora_scale=scale)
    transformer.unload_lora()


def check_lora(state: dict[str, Tensor], transformer: nn.Module, where: str) -> None:
    """Raise a ValueError that names the first layer of an adapter that the transformer lacks or has in another size."""
    layers = {name: module for name, module in transformer.named_modules() if hasattr(module, "in_features")}
    pairs = 0
    for key, value in state.items():
        match = re.fullmatch(r"(?:transformer\.)?(.+)\.(lora_[AB])\.weight", key)
        if match is None:
            continue
        pairs += 1
        name, kind = match.groups()
        if name not in layers:
            raise ValueError(f"The adapter {where} belongs to another model: there is no layer {name!r} here.")
        size = layers[name].in_features if kind == "lora_A" else layers[name].out_features
        given = value.shape[1] if kind == "lora_A" else value.shape[0]
        if given != size:
            raise ValueError(
                f"The adapter {where} belongs to another model: {key!r} is {tuple(value.shape)}, "
                f"the layer here has {size} {'inputs' if kind == 'lora_A' else 'outputs'}."
            )
    if not pairs:
        raise ValueError(f"{where} holds no LoRA weights in diffusers' layout (transformer.*.lora_A.weight).")


def to_comfyui(state: dict[str, Tensor], alpha: float | None = None) -> dict[str, Tensor]:
    """An adapter in ComfyUI's layout: `diffusion_model.<original name>.lora_A.weight` and `lora_B.weight`.

    The original layout stacks query, key, value (and a single-stream block's MLP input) in one matrix. Their adapters
    become one of the summed rank: the A stacked, the B on a diagonal of blocks.

    Args:
        state: as `save_lora` writes it.
        alpha: of the adapter; None for the rank. alpha/rank is multiplied into B, so no `.alpha` is needed.

    Raises:
        ValueError: a layer has no counterpart, or a part of a stack is missing.
    """
    layers: dict[str, dict[str, Tensor]] = {}
    for key, value in state.items():
        name, _, kind = key.removeprefix(PREFIX).removesuffix(".weight").rpartition(".")
        if kind not in ("lora_A", "lora_B"):
            raise ValueError(f"{key!r} is no LoRA weight in diffusers' layout.")
        layers.setdefault(name, {})[kind] = value
    out: dict[str, Tensor] = {}
    for name in layers:
        try:
            original, parts = original_parts(name)
        except KeyError as error:
            raise ValueError(f"The layer {name!r} has no counterpart in the original layout.") from error
        target = f"diffusion_model.{original}"
        if f"{target}.lora_A.weight" in out:
            continue
        if absent := [part for part in parts if part not in layers]:
            raise ValueError(f"{original} stacks {', '.join(parts)}, of which the adapter lacks {absent[0]}.")
        down = [layers[part]["lora_A"] for part in parts]
        scale = [1.0 if alpha is None else alpha / len(a) for a in down]
        up = [layers[part]["lora_B"] * factor for part, factor in zip(parts, scale, strict=True)]
        out[f"{target}.lora_A.weight"] = torch.cat(down).contiguous()
        out[f"{target}.lora_B.weight"] = torch.block_diag(*up).contiguous()
    return out
