"""The editor in a checkpoint, with the averaged weights, written from the checkpoint's own files."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from diffusers.models.modeling_utils import ModelMixin
from torch import Tensor
from torch.distributed.fsdp import FSDPModule

from icve.editing.pipeline import EditPipeline
from icve.models.checkpoint_files import write_shards
from icve.models.lora import save_lora
from icve.runtime.atomic import flush
from icve.training.checkpoints.state_files import WEIGHTS, StateFiles

SHARD_BYTES = 5_000_000_000


def write_model_folder(
    pipeline: EditPipeline,
    shapes: Mapping[str, Sequence[int]],
    adapted: Path | None,
    folder: Path,
    files: StateFiles,
) -> None:
    """Write an editor, without its transformer's weights: `write_weights` adds them.

    Args:
        pipeline: the editor; the weights of its transformer are not read.
        shapes: of the trained parameters, by name.
        adapted: where the weights are that a trained adapter belongs to; then the averaged adapter is written, and
            where these are. None without an adapter.
        folder: where to.
        files: the training state.
    """
    transformer = pipeline.transformer
    if adapted is not None:
        pipeline.register_modules(transformer=None)
        read = {name: _read(files, files.editing, name, shape, None) for name, shape in shapes.items()}
        save_lora(transformer, folder, adapted, read)
    else:
        pipeline.register_modules(transformer=_stand_in(transformer))
    pipeline.save_pretrained(folder)


def write_weights(
    shapes: Mapping[str, Sequence[int]],
    folder: Path,
    files: StateFiles,
    process: tuple[int, int],
    dtype: torch.dtype | None,
) -> list[Path]:
    """Write a process's share of the averaged weights (the current ones where the run keeps no average), to disk.

    The weights come from the files of the training state, a few gigabytes at a time, whoever wrote them.

    Args:
        shapes: of the trained parameters, by name.
        folder: of the editor.
        files: the training state.
        process: its rank, and the number of processes that write.
        dtype: of what is written; None for the precision that the weights are trained in.

    Returns:
        the files.
    """
    folder, kind = folder / "transformer", files.editing
    folder.mkdir(parents=True, exist_ok=True)
    sizes = {
        name: (dtype or files.dtype(WEIGHTS, name)).itemsize * torch.Size(shape).numel()
        for name, shape in shapes.items()
    }

    def read(names: list[str]) -> dict[str, Tensor]:
        return {name: _read(files, kind, name, shapes[name], dtype) for name in names}

    written = write_shards(folder, sizes, read, SHARD_BYTES, process)
    for file in written:
        flush(file)
    return written


def _read(files: StateFiles, kind: str, name: str, shape: Sequence[int], dtype: torch.dtype | None) -> Tensor:
    values = files.whole(kind, name, shape)
    if values is None:
        raise ValueError(f"{files.folder} has no {kind} of {name}.")
    # An average of bfloat16 weights has more precision than they have.
    return values.to(dtype or files.dtype(WEIGHTS, name))


def _stand_in(transformer: ModelMixin) -> ModelMixin:
    """A model without weights that saves its configuration."""
    kind: Any = type(transformer)  # one of diffusers' ConfigMixin as well
    if issubclass(kind, FSDPModule):
        kind = kind.__mro__[kind.__mro__.index(FSDPModule) + 1]  # that it was before it was sharded
    with torch.device("meta"):
        model = kind.from_config(transformer.config)

    def save_pretrained(folder: str | Path, **kwargs: Any) -> None:
        Path(folder).mkdir(parents=True, exist_ok=True)
        model.save_config(folder)

    model.save_pretrained = save_pretrained
    return model
