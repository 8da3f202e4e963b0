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

    device = device or ("cuda" if torch.cuda.is_available() else "cpu")
    try:
        precise = torch.device(device).type == "cpu"
    except RuntimeError as error:
        raise ValueError(
            f"There is no device {device!r}: give cpu, cuda, cuda:1 or another that torch knows."
        ) from error
    try:
        transformer = load_transformer(folder)
        transformer = transformer.float() if precise else transformer
        pipeline = EditPipeline.from_pretrained(folder, transformer=transformer)
    except (OSError, ValueError, RuntimeError, KeyError, TypeError, AttributeError, SafetensorError) as error:
        raise ValueError(f"The model in {folder} cannot be loaded: {first_sentence(error)}") from error
    pipeline.transformer.eval()
    try:
        return pipeline.to(device)
    except (RuntimeError, AssertionError) as error:
        raise ValueError(f"The model cannot be moved to the device {device!r}: {first_sentence(error)}") from error


def fingerprint(folder: str | os.PathLike) -> str:
    """Hash of a model folder's content (of large files: their length and both ends), wherever it lies."""
    digest = hashlib.blake2b(digest_size=8)
    for file in sorted(Path(folder).rglob("*")):
        if file.suffix not in (".json", ".safetensors") or not file.is_file():
            continue
        size = file.stat().st_size
        digest.update(f"{file.relative_to(folder).as_posix()}/{size}/".encode())
        with file.open("rb") as stream:
            digest.update(stream.read(_SAMPLED))
            stream.seek(max(0, size - _SAMPLED))
            digest.update(stream.read(_SAMPLED))
    return digest.hexdigest()


def first_sentence(error: BaseException) -> str:
    """The first sentence of an error's message."""
    text = str(error).strip() or type(error).__name__
    return text.splitlines()[0].split(". ")[0].rstrip(".") + "."
