"""Which editor: the one that ships with the package, a run, a checkpoint or a model folder."""

from __future__ import annotations

import hashlib
import os
from importlib import resources
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:  # torch and diffusers load only once the arguments are known to be good
    from icve.pipeline import EditPipeline

_SAMPLED = 1 << 20  # bytes at each end of a large file that its fingerprint reads


def shipped_editor() -> Path:
    """Folder of the editor that comes with the package."""
    return Path(str(resources.files("icve"))) / "editor"


def resolve_model_folder(path: str | os.PathLike) -> Path:
    """The folder that holds `model_index.json`: `path` itself (model or checkpoint folder) or a run's last checkpoint.

    Raises:
        FileNotFoundError: if there is none.
    """
    path = Path(path)
    if not path.is_dir():
        raise FileNotFoundError(f"The model folder {path} does not exist.")
    for folder in (path, path / "checkpoints" / "last"):
        if (folder / "model_index.json").is_file():
            return folder
    raise FileNotFoundError(
        f"{path} holds no model: give a run folder (with checkpoints/last), a checkpoint folder or a model folder "
        "(with model_index.json)."
    )


def load_editor(path: str | os.PathLike, device: str | None = None) -> EditPipeline:
    """Load the editor of a run, checkpoint or model folder on a device (None: CUDA where there is one, else CPU).

    The transformer keeps the precision it is stored in, except on a CPU, where it is float32.

    Raises:
        FileNotFoundError: if the folder holds no model.
        ValueError: if its model cannot be loaded, or the device does not exist. Weights that do not fit name the first
            mismatching tensor and both shapes.
    """
    folder = resolve_model_folder(path)
    import torch
    from safetensors import SafetensorError

    from icve.model import load_transformer
    from icve.pipeline import EditPipeline

    device = checked_device(device)
    precise = torch.device(device).type == "cpu"
    try:
        transformer = load_transformer(folder, dtype=torch.float32 if precise else None)
        pipeline = EditPipeline.from_pretrained(folder, transformer=transformer)
    except (OSError, ValueError, RuntimeError, KeyError, TypeError, AttributeError, SafetensorError) as error:
        raise ValueError(f"The model in {folder} cannot be loaded: {first_sentence(error)}") from error
    pipeline.transformer.eval()
    return pipeline.to(device)


def checked_device(name: str | None) -> str:
    """A device by name, None for CUDA where there is one and the CPU elsewhere. Raises ValueError for no such one."""
    import torch

    name = name or ("cuda" if torch.cuda.is_available() else "cpu")
    try:
        torch.zeros(1, device=name)
    except (RuntimeError, AssertionError) as error:
        raise ValueError(f"There is no device {name!r} here: {first_sentence(error)}") from error
    return name


def fingerprint(*paths: str | os.PathLike) -> str:
    """Hash of the content of model folders or files (of large ones: length and both ends), wherever they lie."""
    digest = hashlib.blake2b(digest_size=8)
    found = [(file, path) for path in map(Path, paths) for file in ([path] if path.is_file() else path.rglob("*"))]
    for file, path in sorted(found):
        if file.suffix not in (".json", ".safetensors", ".pt") or not file.is_file():
            continue
        size = file.stat().st_size
        digest.update(f"{file.relative_to(path).as_posix()}/{size}/".encode())
        with file.open("rb") as stream:
            digest.update(stream.read(_SAMPLED))
            stream.seek(max(0, size - _SAMPLED))
            digest.update(stream.read(_SAMPLED))
    return digest.hexdigest()


def first_sentence(error: BaseException) -> str:
    """The first sentence of an error's message."""
    text = str(error).strip() or type(error).__name__
    return text.splitlines()[0].split(". ")[0].rstrip(".") + "."
