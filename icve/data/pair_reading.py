"""One pair of a manifest from its files: which frames a clip gives, and what a sample is made of."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import torch

from icve.data.buckets import Bucket
from icve.data.frame_choice import FrameChoice, average_rate
from icve.data.manifest import resolve_path
from icve.data.masks import read_mask
from icve.data.media.video import VideoError, read_frames, resize_crop, sample_indices, timestamps
from icve.data.reference_picture import read_reference
from icve.data.selection import Pair
from icve.runtime.storage.remote_path import RemoteError

# `read_frames` with path, indices, size and perhaps shape given, or a cache in front of it.
Decoder = Callable[..., np.ndarray]

# (source file, target file, pair, bucket, choice of frames, decoder) → source and target (F, H, W, 3) uint8 in the
# bucket's shape, and the frames (F,) of the source clip, counted from its start, that they show. Raises VideoError.
Reader = Callable[[Path, Path, Pair, Bucket, FrameChoice, Decoder], tuple[np.ndarray, np.ndarray, np.ndarray]]


def clip_indices(
    path: Path, start: int, frames: int | None, count: int, choice: FrameChoice, place: float = 0.0
) -> np.ndarray:
    """``count`` frames of a clip, each once, in a window that lies at ``place`` (0 is its start, 1 its end).

    Returns:
        (count,) int64 frame numbers of the file, ascending.

    Raises:
        VideoError: the file cannot be read, or the clip is shorter, or slow where that is refused.
    """
    seconds, fps = timestamps(path)[: None if frames is None else start + frames], choice.fps
    if fps is not None and len(seconds) > start + 1 and choice.refuses(average_rate(seconds[start:])):
        raise VideoError(path, choice.refusal)
    most = None if place else count
    indices = np.arange(start, len(seconds))[:most] if fps is None else sample_indices(seconds, fps, start, most)
    if len(indices) < count:
        rate = "" if fps is None else f" at {fps:g} fps"
        raise VideoError(path, f"its clip from frame {start} gives {len(indices)} frames{rate}, fewer than {count}.")
    first = int(place * (len(indices) - count + 1))
    return indices[first : first + count]


class FrameCache:
    """`read_frames` that decodes each file once and keeps all its frames at the size asked for.

    Clips of one raw video share it: cutting them out one by one would decode from a key frame on, for every clip.
    """

    def __init__(self) -> None:
        self._files: dict[tuple, np.ndarray] = {}

    def __call__(
        self, path: Path, indices: np.ndarray, size: tuple[int, int], shape: tuple[int, int] | None = None
    ) -> np.ndarray:
        key = (path, size, shape)
        if key not in self._files:
            self._files[key] = read_frames(path, size=size, shape=shape)
        frames = self._files[key]
        if np.min(indices) < 0 or np.max(indices) >= len(frames):
            return read_frames(path, indices, size=size, shape=shape)  # says which frame is missing
        first, last = int(indices[0]), int(indices[-1])
        if np.array_equal(indices, np.arange(first, last + 1)):
            return frames[first : last + 1]  # a view: clips that overlap share their frames
        return frames[indices]


def load_pair(
    pair: Pair, root: Path, bucket: Bucket, read: Reader, choice: FrameChoice, decode: Decoder = read_frames
) -> dict[str, Any]:
    """Decode one pair.

    Returns:
        ``source`` and ``target`` uint8 (3, F, H, W), ``instruction``, ``id``, and if the pair has them ``mask`` bool
        (1, F, H, W) and ``reference`` uint8 (3, 1, H, W).

    Raises:
        VideoError, ManifestError: a file cannot be read or leaves the root.
    """
    source_file, target_file = resolve_path(root, pair.source), resolve_path(root, pair.target)
    source_FHWC, target_FHWC, shown = read(source_file, target_file, pair, bucket, choice, decode)
    sample: dict[str, Any] = {
        "source": _channels_first(source_FHWC),
        "target": _channels_first(target_FHWC),
        "instruction": pair.instruction,
        "id": pair.id,
    }
    if pair.mask is not None:
        sample["mask"] = torch.from_numpy(clip_mask(resolve_path(root, pair.mask), shown, bucket))[None]
    if pair.reference is not None:
        picture_FHWC = read_reference(resolve_path(root, pair.reference), (bucket.height, bucket.width))
        sample["reference"] = _channels_first(picture_FHWC)
    return sample


def _channels_first(frames_FHWC: np.ndarray) -> torch.Tensor:
    return torch.from_numpy(frames_FHWC).permute(3, 0, 1, 2)


def clip_mask(path: Path, shown: np.ndarray, bucket: Bucket) -> np.ndarray:
    """Edit mask (F, H, W) of the frames shown, brought to the bucket like them: half covered counts as inside."""
    try:
        mask_FHW = read_mask(path, shown)
    except (VideoError, RemoteError):
        raise
    except (ValueError, OSError) as error:
        raise VideoError(path, str(error)) from error
    grey_FHWC = mask_FHW[..., None].astype(np.uint8) * 255
    return resize_crop(grey_FHWC, (bucket.height, bucket.width))[..., 0] >= 128
