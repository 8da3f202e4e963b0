"""Safetensors folders as others publish them: checked before anything is allocated, then read into a model."""

import hashlib
import json
import os
from collections.abc import Iterable
from pathlib import Path

import torch
from safetensors import SafetensorError, safe_open
from torch import Tensor, nn

STANDARD_NAMES = ("diffusion_pytorch_model.safetensors", "model.safetensors")  # of diffusers and of transformers


def read_json(file: Path) -> dict:
    """A JSON file's object.

    Raises:
        ValueError: if it is not whole.
    """
    try:
        content = json.loads(file.read_text(encoding="utf-8-sig"))
    except (ValueError, RecursionError) as error:
        raise ValueError(f"'{file}' is not valid JSON ({error}): copy or download it again.") from error
    if not isinstance(content, dict):
        raise ValueError(f"'{file}' is no configuration: it holds {type(content).__name__}, not an object.")
    return content


def foreign_format(file: Path) -> str | None:
    """What a file, or one in a folder, is that should hold weights and cannot be read; None if that is not known."""
    if file.is_dir():
        inside = sorted(inner for inner in visible(file) if inner.suffix.lower() == ".gguf" and inner.is_file())
        return next(filter(None, map(foreign_format, inside)), None)
    try:
        with file.open("rb") as stream:
            head = stream.read(40)
    except OSError:
        return None
    if head.startswith(b"version https://git-lfs"):
        return f"'{file}' is a pointer of git-lfs, without the weights: run `git lfs pull` in its folder."
    if head.startswith(b"GGUF") or (file.suffix.lower() == ".gguf" and head):
        return (
            f"'{file}' is a GGUF file, whose weights are quantised for other programs and are not read here: give the "
            "safetensors weights that it was made of."
        )
    return None


def visible(folder: Path, pattern: str = "*") -> list[Path]:
    """What a folder holds, without the hidden companions (`._NAME`) of files that were copied from a Mac."""
    return sorted(path for path in folder.glob(pattern) if not path.name.startswith("."))


def weight_files(folder: Path) -> list[Path]:
    """The safetensors files that hold a model folder's weights: one under its standard name, the shards, or all.

    Raises:
        FileNotFoundError: if there is none, or a shard of the index is missing.
    """
    for name in STANDARD_NAMES:
        if (folder / name).is_file():
            return [folder / name]
        index = folder / f"{name}.index.json"
        if index.is_file():
            return indexed_shards(index)
    files = visible(folder, "*.safetensors")
    if not files:
        raise FileNotFoundError(
            foreign_format(folder) or f"'{folder}' holds no .safetensors file: give a folder with safetensors weights."
        )
    return files


def indexed_shards(index: Path) -> list[Path]:
    """The files that an index of shards names.

    Raises:
        FileNotFoundError: a shard is missing.
        ValueError: the index is damaged, or names files elsewhere.
    """
    try:
        names = set(json.loads(index.read_text(encoding="utf-8"))["weight_map"].values())
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise ValueError(f"'{index}' is not a whole index of shards: copy or download it again.") from error
    return present_shards(index.parent, names)


def present_shards(folder: Path, names: Iterable[str]) -> list[Path]:
    """The files of these names in a folder. Raises as `indexed_shards`."""
    for name in sorted(names):
        if Path(name).name != name:
            raise ValueError(f"The index in '{folder}' names '{name}', which is outside of it.")
        if not (folder / name).is_file():
            raise FileNotFoundError(
                f"'{folder}' lacks the shard {name}: the download is incomplete, copy or download it again."
            )
    return [folder / name for name in sorted(names)]


def damaged(file: Path, kind: str, error: Exception) -> str:
    """What to say of a file that cannot be read."""
    if foreign := foreign_format(file):
        return foreign
    reason = str(error).splitlines()[0].rstrip(".") if str(error) else type(error).__name__
    return f"'{file}' is not a whole {kind} file ({reason}): copy or download it again."


def model_files(folder: Path) -> list[Path]:
    """Everything that a copy of the model needs: config.json, the weights, and their index where there is one."""
    weights = weight_files(folder)
    index = [folder / f"{name}.index.json" for name in STANDARD_NAMES]
    return [folder / "config.json", *weights, *(file for file in index if file.is_file() and len(weights) > 1)]


def index_tensors(folder: Path) -> dict[str, Path]:
    """The file of every tensor of a model folder. Reads the files' headers, which say whether a file is whole.

    Raises:
        FileNotFoundError: as `weight_files`.
        ValueError: for a damaged file.
    """
    tensors: dict[str, Path] = {}
    for file in weight_files(folder):
        try:
            with safe_open(file, framework="pt") as content:
                tensors |= dict.fromkeys(content.keys(), file)
        except SafetensorError as error:
            raise ValueError(damaged(file, "safetensors", error)) from error
    return tensors


def fill(model: nn.Module, folder: Path, anchor: str, dtype: torch.dtype, device: torch.device) -> None:
    """Read a model's parameters from a folder, tensor by tensor, straight to their device and precision.

    Args:
        model: with its parameters on the meta device; tensors of the folder that it lacks are not read.
        folder: the weights. All names may carry one more prefix than the model's, or one less.
        anchor: end of the name of one parameter, by which that prefix is found.
        dtype, device: of the parameters afterwards.

    Raises:
        FileNotFoundError, ValueError: no weights, damaged or not fitting ones; the first offending tensor is named.
    """
    tensors = index_tensors(folder)
    wanted = {name: parameter.shape for name, parameter in model.state_dict().items()}
    own = next(name for name in wanted if name.endswith(anchor)).removesuffix(anchor)
    theirs = next((name.removesuffix(anchor) for name in sorted(tensors) if name.endswith(anchor)), own)
    names = {name: theirs + name.removeprefix(own) for name in wanted}
    if missing := [there for there in names.values() if there not in tensors]:
        raise ValueError(
            f"The weights in '{folder}' are not a {type(model).__name__} of the size its config.json says: "
            f"'{missing[0]}' is missing ({len(missing)} in all)."
        )
    state: dict[str, Tensor] = {}
    for file in sorted(set(tensors.values())):
        with safe_open(file, framework="pt", device=str(device)) as content:
            for name, there in names.items():
                if tensors[there] == file:
                    state[name] = _checked(content.get_tensor(there), wanted[name], there, file, dtype)
    model.load_state_dict(state, assign=True)
    model.to(device)  # the buffers, which are in no file


def _checked(tensor: Tensor, shape: torch.Size, name: str, file: Path, dtype: torch.dtype) -> Tensor:
    if tensor.shape != shape:
        raise ValueError(
            f"'{name}' in '{file}' is {tuple(tensor.shape)} where config.json asks for {tuple(shape)}: the two are not "
            "of one model."
        )
    if not tensor.is_floating_point():
        raise ValueError(f"'{name}' in '{file}' is {tensor.dtype}: give weights in a floating point precision.")
    # A tensor mapped from the file is unaligned, which changes results in the last bits: always a copy.
    copy = tensor.to(dtype, copy=True)
    if not torch.isfinite(copy).all():
        raise ValueError(f"'{name}' in '{file}' holds values that are not finite in {dtype}: the file is damaged.")
    return copy


_SAMPLED = 1 << 20  # bytes at each end of a large file that its fingerprint reads


def fingerprint(*paths: str | os.PathLike) -> str:
    """Hash of the content of model folders or files (of large ones: length and both ends), wherever they lie."""
    digest = hashlib.blake2b(digest_size=8)
    found = [(file, path) for path in map(Path, paths) for file in ([path] if path.is_file() else path.rglob("*"))]
    for file, path in sorted(found):
        if file.suffix not in (".json", ".safetensors", ".pt", ".pth") or not file.is_file():
            continue
        size = file.stat().st_size
        digest.update(f"{file.relative_to(path).as_posix()}/{size}/".encode())
        with file.open("rb") as stream:
            digest.update(stream.read(_SAMPLED))
            stream.seek(max(0, size - _SAMPLED))
            digest.update(stream.read(_SAMPLED))
    return digest.hexdigest()
