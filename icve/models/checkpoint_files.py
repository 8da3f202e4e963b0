"""The files of a checkpoint: which they are, what they hold, and their tensors one after the other.

Read are safetensors and, with `weights_only=True`, torch files; in one piece or in shards with an index. Shapes and
types are known before any tensor is read, and one shard is mapped at a time, so that a model larger than half of the
memory can be loaded.
"""

import json
import math
import pickle
import re
import shlex
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor
from tqdm import tqdm

from icve.models.state_ranges import RangesShard
from icve.models.weight_files import damaged, foreign_format, indexed_shards, present_shards, visible

WEIGHTS = "diffusion_pytorch_model.safetensors"
_TORCH_SUFFIXES = (".pt", ".pth", ".bin")
_STORED = {"F64": torch.float64, "F32": torch.float32, "F16": torch.float16, "BF16": torch.bfloat16}
_NESTED = ("module", "model", "state_dict")  # where torch files keep a state dict, from the outside in
Rename = Callable[[dict[str, Tensor]], dict[str, Tensor]]


class SafetensorsShard:
    """A safetensors file. `tensors` has them on the meta device, by name.

    Raises:
        ValueError: a damaged file, or tensors that are no floating point numbers.
    """

    def __init__(self, file: Path) -> None:
        self.file = file
        self.tensors: dict[str, Tensor] = {}
        try:
            with safe_open(file, framework="pt") as stored:
                for key in stored.keys():  # noqa: SIM118
                    piece = stored.get_slice(key)
                    if _is_counter(piece.get_shape(), piece.get_dtype()):
                        continue
                    dtype = _STORED.get(piece.get_dtype())
                    if dtype is None:
                        raise ValueError(_wrong_dtype(key, file, piece.get_dtype()))
                    self.tensors[key] = torch.empty(piece.get_shape(), dtype=dtype, device="meta")
        except (SafetensorError, OSError) as error:
            raise ValueError(damaged(file, "safetensors", error)) from error

    def read(self) -> Iterator[tuple[str, Tensor]]:
        """Every tensor by name, mapped from the file, and unaligned."""
        with safe_open(self.file, framework="pt") as stored:
            for key in self.tensors:
                yield key, stored.get_tensor(key)


class TorchShard:
    """A file written by torch.save, like `SafetensorsShard`.

    Args:
        file: holds a state dict, perhaps inside "module", "model" or "state_dict", and perhaps a second one in "ema".
        ema: take the averaged weights in "ema".

    Raises:
        ValueError: a damaged file, one with other objects than tensors, no "ema", or tensors of another type.
    """

    def __init__(self, file: Path, ema: bool = False) -> None:
        self.file = file
        contents = unnest(torch_contents(file), file, ema)
        self._stored = {
            key: value
            for key, value in contents.items()
            if isinstance(value, Tensor) and not _is_counter(value.shape, str(value.dtype))
        }
        for key, value in self._stored.items():
            if value.dtype not in _STORED.values():
                raise ValueError(_wrong_dtype(key, file, str(value.dtype).removeprefix("torch.")))
        self.tensors = {key: torch.empty_like(value, device="meta") for key, value in self._stored.items()}

    def read(self) -> Iterator[tuple[str, Tensor]]:
        """Every tensor by name, each once: the shard forgets what it gave."""
        while self._stored:
            key = next(iter(self._stored))
            yield key, self._stored.pop(key)


Shard = SafetensorsShard | TorchShard | RangesShard


def open_shards(path: Path, ema: bool = False) -> list[Shard]:
    """Open the weights at a file or in a folder, without reading a tensor.

    Args:
        path: a safetensors or torch file, or a folder with one of them or with shards.
        ema: of torch files that hold two sets of weights, take the averaged one; others hold one set.

    Raises:
        FileNotFoundError: no weights there, or a shard is missing.
        ValueError: a damaged file, several sets of weights, or a DeepSpeed checkpoint.
    """
    files = [path] if path.is_file() else visible(path, "*.safetensors")
    if all(is_torch_file(file) for file in files):
        _refuse_deepspeed(path if path.is_dir() else path.parent)
    files = files if path.is_file() else _weight_files(path, ema)
    return [TorchShard(file, ema) if is_torch_file(file) else SafetensorsShard(file) for file in files]


def shard_tensors(shards: list[Shard]) -> dict[str, Tensor]:
    """All tensors of a checkpoint on the meta device, by name."""
    return {key: value for shard in shards for key, value in shard.tensors.items()}


def read_tensors(
    shards: list[Shard],
    rename: Rename,
    device: torch.device | str = "cpu",
    dtype: torch.dtype | None = None,
    progress: bool = False,
    mapped: bool = False,
) -> dict[str, Tensor]:
    """Read a checkpoint tensor by tensor onto a device: at no time are two shards in memory, unless they are mapped.

    Args:
        shards: from `open_shards`.
        rename: gives the names, and perhaps the parts, under which a stored tensor is wanted.
        device: where they go.
        dtype: what they become; None keeps each as it is stored.
        progress: show a progress bar.
        mapped: leave tensors in their files, as they are stored, whatever the device and the dtype.

    Raises:
        ValueError: a tensor has NaN or infinite values, or gets them in `dtype`.
    """
    total = sum(value.nbytes for value in shard_tensors(shards).values())
    state = {}
    with tqdm(total=total, unit="B", unit_scale=True, desc="loading", disable=not progress) as bar:
        for shard in shards:
            stored: Tensor | None
            piece: Tensor | None
            for key, stored in shard.read():
                for name, piece in rename({key: stored}).items():
                    # Copied else: tensors mapped from a file are unaligned, which changes results in the last bits.
                    state[name] = piece if mapped else piece.to(device, dtype or piece.dtype, copy=True)
                    if not all_finite(state[name]):
                        if all_finite(piece):
                            raise ValueError(f"'{key}' of '{shard.file}' is too large for {dtype}: choose bfloat16.")
                        raise ValueError(
                            f"'{key}' of '{shard.file}' has NaN or infinite values: the file is damaged or its "
                            "training had diverged, so take an earlier checkpoint."
                        )
                bar.update(stored.nbytes)
                stored = piece = None  # else this shard stays mapped while the next one is read
    return state


def write_shards(
    folder: Path,
    sizes: dict[str, int],
    read: Callable[[list[str]], dict[str, Tensor]],
    limit: int | None,
    process: tuple[int, int] = (0, 1),
) -> list[Path]:
    """Write weights under their standard name: one file, or several and an index; one file at a time is in memory.

    Args:
        folder: it exists.
        sizes: bytes of every tensor, by name.
        read: gives tensors on the CPU by their names.
        limit: bytes per file (more if a single tensor has more); None writes one file.
        process: rank and number of processes that share the work: each writes files of about equal size.

    Returns:
        the files that this process has written. The first one writes the index.
    """
    rank, world = process
    shards = _in_order(sizes, limit) if world == 1 else _in_equal_parts(sizes, limit, world)
    weight_map: dict[str, str] = {}
    files = []
    for number, keys in enumerate(shards):
        name = WEIGHTS
        if len(shards) > 1:
            name = WEIGHTS.replace(".safetensors", f"-{number + 1:05d}-of-{len(shards):05d}.safetensors")
        if number % world == rank:
            tensors = read(keys)
            save_file({key: tensors[key].contiguous() for key in keys}, folder / name, {"format": "pt"})
            files.append(folder / name)
        weight_map |= dict.fromkeys(keys, name)
    if len(shards) > 1 and rank == 0:
        index = {"metadata": {"total_size": sum(sizes.values())}, "weight_map": weight_map}
        files.append(folder / (WEIGHTS + ".index.json"))
        files[-1].write_text(json.dumps(index, indent=2) + "\n", encoding="utf-8")
    return files


def _in_order(sizes: dict[str, int], limit: int | None) -> list[list[str]]:
    """Names by file, each as full as it may be."""
    shards: list[list[str]] = [[]]
    filled = 0
    for key, size in sizes.items():
        if limit is not None and filled and filled + size > limit:
            shards.append([])
            filled = 0
        shards[-1].append(key)
        filled += size
    return shards


def _in_equal_parts(sizes: dict[str, int], limit: int | None, world: int) -> list[list[str]]:
    """Names by file, of about equal size; for every process as many, unless there are fewer tensors."""
    total, before = sum(sizes.values()), 0
    count = world * math.ceil(total / (world * (limit or total)))
    shards: list[list[str]] = [[] for _ in range(count)]
    for key, size in sizes.items():  # where its middle lies
        shards[min(count - 1, (2 * before + size) * count // (2 * total))].append(key)
        before += size
    return [shard for shard in shards if shard]


def all_finite(tensor: Tensor) -> bool:
    # One pass without a temporary: NaN wins in both, and a sum could overflow.
    return tensor.numel() == 0 or all(bool(torch.isfinite(end)) for end in tensor.aminmax())


def _weight_files(folder: Path, ema: bool) -> list[Path]:
    if indices := sorted(visible(folder, "*.index.json"), key=lambda file: (".safetensors" not in file.name, file)):
        index = folder / (WEIGHTS + ".index.json")
        index = index if index in indices else indices[0]
        return indexed_shards(index)
    files = visible(folder, "*.safetensors")
    if not files:
        # Beside the weights Tencent puts 8-bit ones, which need scales of their own.
        files = [f for f in visible(folder) if f.suffix in _TORCH_SUFFIXES and "fp8" not in f.name]
        if len(files) > 1:
            files = [f for f in files if f.stem.endswith("_ema" if ema else "_module")] or files
    if not files:
        raise FileNotFoundError(foreign_format(folder) or f"'{folder}' holds no .safetensors or .pt file with weights.")
    if match := re.search(r"-\d+-of-(\d+)(\.\w+)$", files[0].name):
        stem = files[0].name[: match.start()]
        count = int(match[1])
        names = [f"{stem}-{i:0{len(match[1])}d}-of-{match[1]}{match[2]}" for i in range(1, count + 1)]
        return present_shards(folder, names)
    if len(files) > 1 and folder / WEIGHTS in files:
        files = [folder / WEIGHTS]
    if len(files) > 1:
        raise ValueError(f"'{folder}' holds {len(files)} weights files and no index: name one, as '{files[0]}'.")
    return files


def _refuse_deepspeed(folder: Path) -> None:
    # A single `mp_rank_00_model_states.pt` is no such checkpoint: Tencent publishes the whole model under this name.
    def has(pattern: str) -> bool:
        return next(folder.glob(pattern), None) is not None

    if (folder / "latest").is_file() and has("*/*_model_states.pt"):
        where = shlex.quote(str(folder))
    elif has("*_optim_states.pt") or has("*zero_pp_rank_*"):
        where = shlex.quote(str(folder.parent))
        if not (folder.parent / "latest").is_file():
            where += f" --tag {shlex.quote(folder.name)}"
    else:
        return
    raise ValueError(
        f"'{folder}' is a DeepSpeed checkpoint, which is not read here: convert it with `python -m "
        f"deepspeed.utils.zero_to_fp32 {where} OUTPUT --safe_serialization` and give OUTPUT."
    )


def is_torch_file(file: Path) -> bool:
    with file.open("rb") as stream:
        head = stream.read(9)
    # Torch's archives have any suffix, and so have safetensors, whose header begins after its length.
    return head.startswith(b"PK\x03\x04") or (file.suffix in _TORCH_SUFFIXES and head[8:] != b"{")


def torch_contents(file: Path) -> dict[str, Any]:
    try:
        try:
            contents = torch.load(file, map_location="cpu", weights_only=True, mmap=True)
        except RuntimeError as error:
            if "mmap" not in str(error):
                raise
            contents = torch.load(file, map_location="cpu", weights_only=True)  # the format before torch 1.6
    except pickle.UnpicklingError as error:
        if "was not an allowed" not in str(error):
            raise ValueError(damaged(file, "torch", error)) from error
        raise ValueError(
            f"'{file}' holds Python objects besides tensors, which are not unpickled for safety: save its state dict "
            "alone, or as safetensors, where it came from."
        ) from error
    except MemoryError:
        raise
    except Exception as error:  # a damaged pickle fails with any of them
        raise ValueError(damaged(file, "torch", error)) from error
    if not isinstance(contents, dict):
        raise ValueError(f"'{file}' holds a {type(contents).__name__}, where a state dict belongs.")
    return contents


def unnest(contents: dict[str, Any], file: Path, ema: bool) -> dict[str, Any]:
    if ema and not isinstance(contents.get("ema"), dict) and not file.stem.endswith("_ema"):
        raise ValueError(f"'{file}' holds no averaged weights ('ema'): ask for the plain ones.")
    if ema and "ema" in contents:
        contents = contents["ema"]
    # A file that holds nothing but averages is taken as it is.
    while inner := next((contents[n] for n in (*_NESTED, "ema") if isinstance(contents.get(n), dict)), None):
        contents = inner
    return contents


def _is_counter(shape: Sequence[int], dtype: str) -> bool:
    """Whether a tensor is a number beside the weights, as `global_step`: a whole one, or one without a dimension."""
    whole = dtype.removeprefix("torch.").lower().startswith(("i", "u", "bool"))
    return len(shape) == 0 or (whole and math.prod(shape) == 1)


def _wrong_dtype(key: str, file: Path, dtype: str) -> str:
    return (
        f"'{key}' of '{file}' is stored as {dtype}, where weights are floating point numbers of 16 to 64 bits: give "
        "the checkpoint before it was quantised."
    )
