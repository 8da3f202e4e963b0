"""Which editor: the one that ships with the package, a run, a checkpoint or a model folder."""

from __future__ import annotations

import logging
import os
from collections.abc import Callable
from importlib import resources
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:  # torch and diffusers load only once the arguments are known to be good
    from icve.editing.pipeline import EditPipeline

log = logging.getLogger(__name__)


def shipped_editor() -> Path:
    """Folder of the editor that comes with the package."""
    return Path(str(resources.files("icve"))) / "editor"


def resolve_model_folder(path: str | os.PathLike) -> Path:
    """The folder that holds `model_index.json`: `path` itself (model or checkpoint folder) or a run's last checkpoint.

    What is behind a URL is copied to the local disk.

    Raises:
        FileNotFoundError: if there is none.
        ValueError: the run's checkpoints are damaged.
    """
    from icve.models.remote_runs import on_disk
    from icve.models.run_folders import inside_run
    from icve.models.weight_files import foreign_format

    path = on_disk(path, editor=True)
    if path.is_file():
        raise FileNotFoundError(
            foreign_format(path)
            or f"{path} is a file: give the folder of a model (a transformer alone goes to --transformer, with --base)."
        )
    if not path.is_dir():
        raise FileNotFoundError(f"The model folder {path} does not exist.")
    folder = inside_run(path)
    if (folder / "model_index.json").is_file():
        return folder
    raise FileNotFoundError(
        foreign_format(path)
        or f"{path} holds no model: give a run folder (with checkpoints/last), a checkpoint folder or a model folder "
        "(with model_index.json)."
    )


def load_editor(
    path: str | os.PathLike,
    device: str | None = None,
    precision: str | None = None,
    processes: int = 1,
    say: Callable[[str], object] = log.info,
) -> EditPipeline:
    """Load the editor of a run, checkpoint or model folder.

    Args:
        path: where it is.
        device: None for CUDA where there is one, then MPS, else the CPU.
        precision: of the transformer, see :func:`icve.runtime.precision.editing_dtype`. None keeps what is stored, but
            float32 on a CPU.
        processes: that edit together.
        say: called with what was measured to choose the precision, in one line.

    Raises:
        FileNotFoundError: if the folder holds no model.
        ValueError: if its model is damaged or cannot be loaded, or the device does not exist. Weights that do not fit
            name the first mismatching tensor and both shapes.
    """
    folder = resolve_model_folder(path)
    import torch
    from safetensors import SafetensorError

    from icve.editing.pipeline import EditPipeline
    from icve.models.loading import load_transformer
    from icve.models.run_folders import EXPORT_AGAIN
    from icve.runtime.folder_contents import CONTENTS, find_damage
    from icve.runtime.precision import editing_dtype

    # All of it, as it is read from disk now anyway: a changed byte would spoil every edit, and nothing would say so.
    if (folder / CONTENTS).is_file() and (problem := find_damage(folder, inside="transformer/")):
        raise ValueError(f"The editor in {folder} is damaged: {problem}; {EXPORT_AGAIN}.")
    device = checked_device(device)
    if precision is None:
        dtype = torch.float32 if torch.device(device).type == "cpu" else None
    else:
        dtype, measured = editing_dtype(precision, torch.device(device).type, processes, *editor_size(folder))
        if measured:
            say(measured)
    try:
        transformer = load_transformer(folder, dtype=dtype)
        pipeline = EditPipeline.from_pretrained(folder, transformer=transformer)
    except (OSError, ValueError, RuntimeError, KeyError, TypeError, AttributeError, SafetensorError) as error:
        raise ValueError(f"The model in {folder} cannot be loaded: {first_sentence(error)}") from error
    pipeline.transformer.eval()
    return pipeline.to(device)


def editor_size(folder: Path) -> tuple[int, int]:
    """Source and target tokens of a window, and width of the transformer, of a model folder; as its files say."""
    from icve.data.latent_grid import LatentGrid
    from icve.editing.pipeline import DEFAULTS

    index = _read_json(folder / "model_index.json")
    clip = DEFAULTS | {name: value for name, value in (index.get("defaults") or {}).items() if value}
    tokens = 2 * LatentGrid().tokens(clip["height"], clip["width"], clip["num_frames"])
    return tokens, transformer_width(folder / "transformer")


def transformer_width(folder: Path) -> int:
    """Width of the transformer that a folder's config.json describes; the released one's where it does not say."""
    config = _read_json(folder / "config.json")
    if "hidden_size" in config:
        return int(config["hidden_size"])
    return int(config.get("num_attention_heads", 24)) * int(config.get("attention_head_dim", 128))


def _read_json(path: Path) -> dict[str, Any]:
    """A JSON object, empty where it is missing or broken: what loads the model says so."""
    from icve.models.weight_files import read_json

    try:
        return read_json(path)
    except (OSError, ValueError):
        return {}


def checked_device(name: str | None) -> str:
    """A device by name, None for the default one. Raises ValueError for no such one."""
    import torch

    from icve.runtime.precision import default_device

    name = name or default_device()
    try:
        torch.zeros(1, device=name)
    except (RuntimeError, AssertionError) as error:
        raise ValueError(f"There is no device {name!r} here: {first_sentence(error)}") from error
    return name


def first_sentence(error: BaseException) -> str:
    """The first sentence of an error's message."""
    text = str(error).strip() or type(error).__name__
    return text.splitlines()[0].split(". ")[0].rstrip(".") + "."
