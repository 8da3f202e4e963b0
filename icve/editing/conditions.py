"""What an edit is given beside its instruction: a mask of the region to change, a reference picture.

White, or True, marks the region to change. Masks and pictures come from files as `icve.data.masks` and
`icve.data.reference_picture` read them, and are brought to the size at which a clip is edited.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from pathlib import Path

import cv2
import numpy as np
import torch
from torch import Tensor

from icve.data.edit_region import region_from_mask
from icve.data.latent_grid import LatentGrid
from icve.data.masks import read_mask
from icve.data.reference_picture import read_reference
from icve.editing.windows import ASPECT_TOLERANCE
from icve.runtime.storage.remote_path import RemoteError


def fitted_mask(
    mask: np.ndarray, shown: tuple[int, int], size: tuple[int, int], name: str | Path = "the mask"
) -> Tensor:
    """A mask at the size at which its video is edited: half covered counts as inside.

    Args:
        mask: (F, H, W) bool.
        shown: (height, width) of the video, whose proportions it has.
        size: (height, width) wanted.
        name: of the mask, for the error.

    Returns:
        bool (F, *size).

    Raises:
        ValueError: it has other proportions.
    """
    height, width = mask.shape[1:]
    if abs(math.log(width * shown[0] / (height * shown[1]))) > ASPECT_TOLERANCE:
        raise ValueError(
            f"{name} is {width}x{height} and its video {shown[1]}x{shown[0]}: give a mask of the video's size or "
            "proportions."
        )
    if (height, width) != size:
        grey = (frame.astype(np.float32) for frame in mask)
        mask = np.stack([cv2.resize(frame, size[::-1], interpolation=cv2.INTER_AREA) >= 0.5 for frame in grey])
    return torch.from_numpy(np.ascontiguousarray(mask))


def regions_of(
    path: Path,
    spans: Sequence[tuple[int, int]],
    padded: int,
    shown: tuple[int, int],
    size: tuple[int, int],
    grid: LatentGrid,
) -> list[Tensor]:
    """The region to change of every window of a clip, on the latent grid: bool (1, T, h, w) each.

    Args:
        path: of the mask, a picture for all frames or a video for each.
        spans: (start, count) of the windows, counted from the clip's start.
        padded: frames of a window as the model sees it; the last one is repeated.
        shown, size: (height, width) of the video and of what is edited.
        grid: of the model.

    Raises:
        ValueError: it is no mask, marks nothing, or does not fit the clip.
    """
    regions = []
    for start, count in spans:
        mask = fitted_mask(_read(path, start, count), shown, size, path)
        mask = torch.cat([mask, mask[-1:].expand(padded - count, -1, -1)])
        regions.append(region_from_mask(mask[None, None], grid.latents(*size, padded))[0])
    if not any(region.any() for region in regions):
        raise ValueError(f"{path} marks nothing: make the region to change white.")
    return regions


def _read(path: Path, start: int, count: int) -> np.ndarray:
    try:
        return read_mask(path, np.arange(start, start + count))
    except RemoteError:
        raise
    except OSError as error:
        raise ValueError(str(error)) from error


def reference_of(path: Path, size: tuple[int, int]) -> Tensor:
    """A reference picture as a clip of one frame, uint8 (3, 1, *size). Raises ValueError, RemoteError."""
    return torch.from_numpy(read_reference(path, size)).permute(3, 0, 1, 2).contiguous()
