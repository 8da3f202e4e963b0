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
from icve.data.masks import read_mask
from icve.data.media.video import probe, read_frames
from icve.data.reference_picture import letterbox
from icve.editing.conditions import fitted_mask, reference_of
from icve.editing.windows import model_size

VideoInput = Tensor | np.ndarray | str | os.PathLike | Sequence[Any]
MaskInput = np.ndarray | str | os.PathLike | Sequence[Any]
ReferenceInput = np.ndarray | str | os.PathLike | Sequence[Any]


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


def as_mask(mask: MaskInput, videos: int, frames: int, padded: int, size: tuple[int, int]) -> Tensor:
    """Any form of one mask for all videos, or of one for each, as bool (B, 1, padded, *size), True where to change.

    Args:
        mask: bool or uint8 array (H, W) or (F, H, W); path of a picture or video; or a list of B of these.
        videos: B.
        frames: of a video, before the last one is repeated up to `padded`.
        size: (height, width) of the videos.

    Raises:
        ValueError: another shape, type or number, nothing marked, or a file that cannot be read.
    """
    found = []
    for given in _each(mask, videos, "masks"):
        name = "The mask"
        if isinstance(given, (str, os.PathLike)):
            name = str(given)
            try:
                given = read_mask(Path(given), np.arange(frames))
            except OSError as error:
                raise ValueError(str(error)) from error
        if given.dtype == np.uint8:
            given = given >= 128
        given = np.broadcast_to(given, (frames, *given.shape)) if given.ndim == 2 else given
        if given.ndim != 3 or given.dtype != bool or len(given) != frames:
            raise ValueError(
                f"A mask must be bool or uint8, (H, W) or ({frames}, H, W), got {given.dtype} {given.shape}."
            )
        if not given.any():
            raise ValueError(f"{name} marks nothing: make the region to change white.")
        fitted = fitted_mask(given, size, size, name)
        found.append(torch.cat([fitted, fitted[-1:].expand(padded - frames, -1, -1)]))
    return torch.stack(found)[:, None]


def as_reference(reference: ReferenceInput, videos: int, size: tuple[int, int]) -> Tensor:
    """Any form of one reference picture for all videos, or of one for each, as uint8 (B, 3, 1, *size).

    Args:
        reference: uint8 array (H, W, 3); path of a picture; or a list of B of these.
        videos: B.
        size: (height, width) of the videos.

    Raises:
        ValueError: another shape, type or number, or a file that cannot be read.
    """
    found = []
    for given in _each(reference, videos, "references"):
        if isinstance(given, (str, os.PathLike)):
            found.append(reference_of(Path(given), size))
            continue
        if given.ndim != 3 or given.shape[2] != 3 or given.dtype != np.uint8:
            raise ValueError(f"A reference must be uint8 (H, W, 3) or a path, got {given.dtype} {given.shape}.")
        found.append(torch.from_numpy(letterbox(given, size)).permute(2, 0, 1)[:, None])
    return torch.stack(found)


def _each(given: Any, videos: int, what: str) -> list[Any]:
    items = [given] * videos if isinstance(given, (str, os.PathLike, np.ndarray)) else list(given)
    if len(items) != videos:
        raise ValueError(f"Got {videos} videos and {len(items)} {what}.")
    return items


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
