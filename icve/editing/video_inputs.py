"""The forms in which a pipeline takes videos: tensors, arrays, files."""

from __future__ import annotations

import os
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from icve.data.latent_grid import LatentGrid
from icve.data.media.video import probe, read_frames
from icve.editing.windows import model_size

VideoInput = Tensor | np.ndarray | str | os.PathLike | Sequence[Any]


def as_video(video: VideoInput, budget: int, most_frames: int, grid: LatentGrid) -> tuple[Tensor, int]:
    """Any form of one or several videos as (B, 3, F, H, W) whose length the grid has, and its frames before padding.

    Args:
        video: tensor (B, 3, F, H, W) or (3, F, H, W), uint8 or floating point; array (B, F, H, W, 3) or (F, H, W, 3)
            uint8; path of a file; or a list of such videos of one shape.
        budget: pixels near which files are read.
        most_frames: that are read of a file.
        grid: of the model.

    Raises:
        ValueError: another shape or type, or videos of different shapes.
        VideoError: a file cannot be read.
    """
    if isinstance(video, (str, os.PathLike, np.ndarray, Tensor)):
        tensor = _one(video, budget, most_frames, grid)
        tensor = tensor if tensor.ndim == 5 else tensor[None]
    else:
        tensors = [_one(item, budget, most_frames, grid) for item in video]
        if len({tuple(t.shape) for t in tensors}) != 1 or tensors[0].ndim != 4:
            shapes = ", ".join(str(tuple(t.shape)) for t in tensors)
            raise ValueError(f"Videos edited together must have one shape (3, F, H, W), got {shapes or 'none'}.")
        tensor = torch.stack(tensors)
    frames = tensor.shape[2]
    missing = grid.padded(frames) - frames
    if missing:
        tensor = torch.cat([tensor, tensor[:, :, -1:].expand(-1, -1, missing, -1, -1)], dim=2)
    return tensor, frames


def _one(video: Any, budget: int, most_frames: int, grid: LatentGrid) -> Tensor:
    if isinstance(video, (str, os.PathLike)):
        info = probe(Path(video))
        size = model_size(*info.displayed, budget, grid.multiple)
        video = read_frames(video, count=min(info.frames, most_frames), size=size, shape=size)
    if isinstance(video, np.ndarray):
        if video.ndim not in (4, 5) or video.shape[-1] != 3 or video.dtype != np.uint8:
            raise ValueError(
                f"An array must be uint8 (F, H, W, 3) or (B, F, H, W, 3), got {video.dtype} {video.shape}."
            )
        video = torch.from_numpy(np.ascontiguousarray(np.moveaxis(video, -1, -4)))
    if not isinstance(video, Tensor) or video.ndim not in (4, 5) or video.shape[-4] != 3:
        what = tuple(video.shape) if isinstance(video, Tensor) else type(video).__name__
        raise ValueError(f"EditPipeline needs a video of shape (B, 3, F, H, W), an array or a path, got {what}.")
    if video.shape[-1] % grid.multiple or video.shape[-2] % grid.multiple:
        found = f"{video.shape[-2]}x{video.shape[-1]}"
        raise ValueError(f"Height and width must be multiples of {grid.multiple}, got {found}: resize the video.")
    return video
