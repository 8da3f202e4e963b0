"""Read an adapter (LoRA) from any file: every layer's two matrices and their scale, by diffusers' names, all checked.

A layer's weight W grows by scale · B·A, with A (rank, in) and B (out, rank). Layouts differ in names
(`adapter_names`), in where the scale stands (an `.alpha` per layer, settings in the header or beside, or nowhere: 1),
and in that query, key, value (and a single-stream block's MLP input) are one layer in the original naming.
"""

import logging
import math
import re
from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from torch import Tensor, nn

from icve.models.adapters.key_layouts import known_layer, parse
from icve.models.adapters.settings import CONFIG, FASTVIDEO_CONFIG, AdapterSettings, settings_beside, settings_in_header
from icve.models.checkpoint_files import all_finite, is_torch_file, torch_contents, unnest
from icve.models.layer_prefixes import bare_names
from icve.models.remote_runs import on_disk
from icve.models.run_folders import inside_run
from icve.models.weight_files import damaged, foreign_format, visible
from icve.runtime.storage.remote_path import RemotePath, as_path

log = logging.getLogger(__name__)

LORA_FILE = "pytorch_lora_weights.safetensors"
PEFT_FILES = ("adapter_model.safetensors", "adapter_model.bin")
SUFFIXES = (".safetensors", ".pt", ".pth", ".bin", ".ckpt")
_FLOATS = (torch.float64, torch.float32, torch.float16, torch.bfloat16)
_EIGHT_BITS = (torch.float8_e4m3fn, torch.float8_e5m2)

AdapterSource = str | Path | Mapping[str, Tensor]


@dataclass(frozen=True)
class LowRank:
    """The change of one layer, scale · up·down.

    Args:
        down: A, (rank, in), for the patch embedding (rank, in, t, h, w); floating point of 16 to 64 bits.
        up: B, (out, rank).
        scale: what multiplies the product.
        keys: the file's names of the two, for messages.
    """

    down: Tensor
    up: Tensor
    scale: float
    keys: tuple[str, str]

    def change(self, device: torch.device | str, dtype: torch.dtype) -> Tensor:
        """scale · up·down with the shape of the layer's weight."""
        down, up = self.down.to(device, dtype), self.up.to(device, dtype)
        return (self.scale * (up @ down.flatten(1))).reshape(len(up), *down.shape[1:])


def read_adapter(source: AdapterSource) -> dict[str, LowRank]:
    """Read an adapter of any known layout; nothing of it depends on a model, which `check_fits` compares it with.

    Args:
        source: a safetensors or torch file or a folder with one, also behind a URL, or the tensors of a file by name.
            Files with PEFT's names, and those that are alone in their folder, take the settings of the
            adapter_config.json beside them.

    Returns:
        layers by diffusers' names. Text encoders' layers are left out, with a warning.

    Raises:
        FileNotFoundError: there is no adapter.
        ValueError: a damaged file; another kind of adapter (DoRA, LoHa ...); names that no transformer here has, or
            without their other half; shapes that contradict each other; values that are not finite. The file and the
            first key are named.
    """
    if isinstance(source, Mapping):
        return _layers(source, None, "given")
    path = as_path(source)
    file = adapter_file(path)
    folder = path.parent if isinstance(path, RemotePath) and path.suffix else file.parent
    where = f"'{file}'"
    tensors, header = _contents(file)
    settings = settings_in_header(header, where)
    # In a folder of several adapters, the adapter_config.json is of the one with PEFT's names.
    if settings is None and (file.name in PEFT_FILES or _peft_key(tensors) or len(_weight_files(folder)) == 1):
        settings = settings_beside(file)
    if settings is None and file.name == LORA_FILE:
        settings = settings_beside(file, FASTVIDEO_CONFIG)
    adapter = _layers(tensors, settings, where)
    # Not kohya's and musubi's ss_network_alpha: converted files keep it where their matrices are already scaled by it.
    name = next((name for name in ("lora_alpha", "network_alpha", "alpha") if name in header), None)
    if name and settings is None and all(layer.scale == 1 for layer in adapter.values()):
        log.warning(
            "The adapter %s is applied at scale 1, as it has neither .alpha nor settings; %s = %s in its header is not "
            "used: give the scale yourself if it was trained at another one.",
            where,
            name,
            header[name],
        )
    return adapter


def adapter_file(path: Path) -> Path:
    """The file of an adapter that a file, a folder or a run's folder is; behind a URL, on the local disk.

    Raises:
        FileNotFoundError: there is none.
        ValueError: the folder holds several.
    """
    path = on_disk(path, editor=True)
    if path.is_file():
        return path
    if not path.is_dir():
        raise FileNotFoundError(f"There is no adapter at {path}.")
    folder = inside_run(path)
    for name in (LORA_FILE, *PEFT_FILES):
        if (folder / name).is_file():
            return folder / name
    files = _weight_files(path)
    if not files:
        raise FileNotFoundError(
            foreign_format(path) or f"There is no adapter at {path / LORA_FILE}, nor another one in its folder."
        )
    if len(files) > 1:
        raise ValueError(f"'{path}' holds {len(files)} files that may be an adapter: name one, as '{files[0]}'.")
    return files[0]


def _weight_files(folder: Path) -> list[Path]:
    return sorted(file for file in visible(folder) if file.suffix.lower() in SUFFIXES and file.is_file())


def check_fits(adapter: Mapping[str, LowRank], transformer: nn.Module, source: AdapterSource) -> None:
    """Raise a ValueError that names the first layer of an adapter that the transformer lacks or has in another size."""
    where = "given" if isinstance(source, Mapping) else f"'{source}'"
    another = f"The adapter {where} belongs to another model: "
    modules = dict(transformer.named_modules())
    for name, layer in adapter.items():
        module = modules.get(name)
        if not isinstance(weight := getattr(module, "weight", None), Tensor) or weight.ndim < 2:
            raise ValueError(f"{another}there is no layer {name!r} here, of {layer.keys[0]!r}.")
        for key, value, given, own, side in (
            (layer.keys[0], layer.down, layer.down.shape[1:], weight.shape[1:], "inputs"),
            (layer.keys[1], layer.up, layer.up.shape[:1], weight.shape[:1], "outputs"),
        ):
            if given != own:
                size = " x ".join(map(str, own))
                raise ValueError(f"{another}{key!r} is {tuple(value.shape)}, the layer here has {size} {side}.")


def _contents(file: Path) -> tuple[Mapping[str, Any], dict[str, str]]:
    """Tensors by name and the header of a file."""
    if file.stat().st_size == 0:
        raise ValueError(f"'{file}' is empty: copy or download it again.")
    if not is_torch_file(file):
        try:
            with safe_open(file, framework="pt") as stored:
                # Mapped, not read: the file may turn out to be a whole model.
                return {key: stored.get_tensor(key) for key in stored.keys()}, stored.metadata() or {}  # noqa: SIM118
        except (SafetensorError, OSError) as error:
            raise ValueError(damaged(file, "safetensors", error)) from error
    contents = torch_contents(file)
    tensors = unnest(contents, file, ema=False)
    if tensors is not contents and (key := _alpha_beside(contents)):
        raise ValueError(
            f"The adapter '{file}' keeps {key!r} beside its tensors, which is not read: save every layer's alpha among "
            "the tensors, as LAYER.alpha, or the adapter as a PEFT folder."
        )
    return tensors, {}


def _alpha_beside(contents: dict[str, Any]) -> str | None:
    """The name of an alpha in what a torch file holds beside its tensors."""
    for key, value in contents.items():
        if not isinstance(value, dict):
            if "alpha" in str(key):
                return str(key)
        elif not any(isinstance(inner, Tensor) for inner in value.values()) and (inner := _alpha_beside(value)):
            return inner
    return None


def _layers(tensors: Mapping[str, Any], settings: AdapterSettings | None, where: str) -> dict[str, LowRank]:
    halves, alphas = _parts(tensors, where)
    if settings is None and not alphas and (key := _peft_key(tensors)):
        advice = 'put it beside the weights, or one with {"r": RANK, "lora_alpha": SCALE x RANK}'
        if where == "given":
            advice = "give the folder instead of its tensors"
        raise ValueError(
            f"The adapter {where} has PEFT's names ({key!r}), whose scale stands in a file {CONFIG} that is not there: "
            f"{advice}."
        )
    adapter: dict[str, LowRank] = {}
    for layer, pair in halves.items():
        key = next(iter(pair.values()))
        if len(pair) == 1:
            absent = "lora_B (lora_up)" if "down" in pair else "lora_A (lora_down)"
            raise ValueError(f"The adapter {where} has {key!r} without its {absent}: copy or download it again.")
        down, up = (_matrix(pair[part], tensors[pair[part]], where) for part in ("down", "up"))
        up = up.flatten(1)
        if math.prod(down.shape[2:]) == 1:  # a linear layer's as a convolution of one pixel
            down = down.flatten(1)
        rank = len(down)
        if rank != up.shape[1] or rank == 0:
            raise ValueError(
                f"The adapter {where} is damaged: {pair['down']!r} is {tuple(down.shape)} and {pair['up']!r} "
                f"{tuple(up.shape)}, which have no rank in common."
            )
        scale = 1.0
        if layer in alphas:
            scale = alphas.pop(layer)[1] / rank
        elif settings is not None:
            try:
                scale = settings.scale(bare_names(layer), rank)
            except ValueError as error:
                raise ValueError(f"The adapter {where} contradicts its settings: {pair['down']!r} {error}.") from error
        if abs(scale) * rank * _largest(down) * _largest(up) > torch.finfo(torch.float32).max:
            raise ValueError(
                f"The adapter {where} changes a layer by more than numbers can hold ({pair['down']!r}): its file is "
                "damaged, or its alpha wrong."
            )
        for name, part in _split(layer, LowRank(down, up, scale, (pair["down"], pair["up"])), where).items():
            if name in adapter:
                raise ValueError(
                    f"The adapter {where} has the layer {name!r} twice: {adapter[name].keys[0]!r} and {key!r}."
                )
            adapter[name] = part
    if alphas:
        key = next(iter(alphas.values()))[0]
        raise ValueError(f"The adapter {where} has {key!r} without its matrices: copy or download it again.")
    return adapter


def _parts(tensors: Mapping[str, Any], where: str) -> tuple[dict[str, dict[str, str]], dict[str, tuple[str, float]]]:
    """Keys of both matrices by the file's layers, and (key, alpha) by the same."""
    halves: dict[str, dict[str, str]] = {}
    alphas: dict[str, tuple[str, float]] = {}
    text, unknown = [], []
    for key in tensors:
        try:
            part, layer = parse(str(key))
        except ValueError as kind:
            raise ValueError(
                f"The adapter {where} is {kind} ({key!r}); only plain LoRA is read: merge it where it was trained and "
                "load the merged weights, or train a plain LoRA."
            ) from None
        if part == "alpha":
            alphas[layer] = (key, _alpha(key, tensors[key], where))
        elif part == "text encoder":
            text.append(key)
        elif part == "unknown":
            unknown.append(key)
        elif part in halves.setdefault(layer, {}):
            raise ValueError(f"The adapter {where} has two adapters of one layer: {halves[layer][part]!r} and {key!r}.")
        else:
            halves[layer][part] = key
    if not halves:
        found = (
            "it is empty" if not tensors else f"{next(iter(unknown or tensors))!r} is no LoRA weight in a known layout"
        )
        if text and not unknown:
            found = f"{text[0]!r} is of a text encoder, which is not adapted here"
        raise ValueError(f"The adapter {where} holds no LoRA weights of a transformer: {found}.")
    if scaling := next((key for key in unknown if re.search("alpha|scal", str(key))), None):
        raise ValueError(
            f"The adapter {where} holds {scaling!r}, which may scale it in a way that is not read: save every layer's "
            "alpha as LAYER.alpha instead."
        )
    if unknown:
        raise ValueError(
            f"The adapter {where} holds {unknown[0]!r}, which is no part of a LoRA: remove what is not, or take the "
            "file as it was trained."
        )
    if text:
        log.warning("The adapter %s also adapts a text encoder (%r, %d in all): left out.", where, text[0], len(text))
    return halves, alphas


def _alpha(key: str, value: Any, where: str) -> float:
    number = (
        float(value)
        if isinstance(value, int | float) or (isinstance(value, Tensor) and value.numel() == 1)
        else math.nan
    )
    if not math.isfinite(number) or number == 0:
        raise ValueError(f"{key!r} of the adapter {where} is no finite number other than 0: copy or download it again.")
    return number


def _matrix(key: str, value: Any, where: str) -> Tensor:
    if isinstance(value, Tensor) and (value.layout != torch.strided or value.is_nested or value.is_meta):
        kind = "meta" if value.is_meta else "nested" if value.is_nested else "sparse"
        raise ValueError(f"{key!r} of the adapter {where} is a {kind} tensor, where a matrix belongs: save it dense.")
    if not isinstance(value, Tensor) or value.dtype not in (*_FLOATS, *_EIGHT_BITS):
        kind = str(value.dtype).removeprefix("torch.") if isinstance(value, Tensor) else type(value).__name__
        raise ValueError(
            f"{key!r} of the adapter {where} is stored as {kind}, where floating point numbers belong: give the "
            "adapter before it was quantised."
        )
    if value.dtype in _EIGHT_BITS:
        value = value.float()
    if value.ndim < 2:
        raise ValueError(f"{key!r} of the adapter {where} is {tuple(value.shape)}, where a matrix belongs.")
    if not all_finite(value):
        raise ValueError(
            f"{key!r} of the adapter {where} has NaN or infinite values: the file is damaged or its training had "
            "diverged, so take an earlier one."
        )
    return value.detach().clone()  # not mapped from its file, where it is unaligned


def _largest(matrix: Tensor) -> float:
    return max(map(abs, map(float, matrix.aminmax()))) if matrix.numel() else 0.0


def _split(layer: str, whole: LowRank, where: str) -> dict[str, LowRank]:
    """diffusers' layers of one of the file's: each has the whole A and its own rows of B."""
    another = f"The adapter {where} belongs to another model: "
    try:
        family, name = known_layer(layer)
    except KeyError:
        name = list(bare_names(layer))[-1]
        raise ValueError(f"{another}there is no layer {name!r} here, of {whole.keys[0]!r}.") from None
    width = whole.down.shape[1]
    try:
        rows = family.adapter_names().split(name, whole.up, width)
    except ValueError:
        raise ValueError(
            f"{another}{whole.keys[1]!r} has {len(whole.up)} rows, which does not fit layers of {width} inputs."
        ) from None
    return {name: replace(whole, up=piece) for name, piece in rows.items()}


def _peft_key(tensors: Mapping[str, Any]) -> str | None:
    return next((key for key in tensors if str(key).startswith("base_model.model.")), None)
