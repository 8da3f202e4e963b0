"""How frames become the pictures that models take. Scores depend on it: rounding, antialiasing and crops are stated.

A preparation is hashable, so that metrics that prepare frames alike do it once; it takes frames (n, H, W, 3) uint8 and
a device and returns pixels (n, 3, h, w) float32 there.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from functools import cache
from pathlib import Path
from typing import Any, Literal, Protocol

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from icve.runtime.transfers import to_device

IMAGENET = ((0.485, 0.456, 0.406), (0.229, 0.224, 0.225))
CLIP = ((0.48145466, 0.4578275, 0.40821073), (0.26862954, 0.26130258, 0.27577711))
Before = Literal["", "square_480", "at_most_672", "lower_square"]
"""What some papers do first: stretch to 480 × 480 (TGVE), shrink so that the longer side is at most 672 (EditVerse's
PickScore), or cut portrait frames to their lower square (EditBoard)."""


class Preparation(Protocol):
    def __call__(self, frames: np.ndarray, device: torch.device) -> Tensor: ...

    def __hash__(self) -> int: ...


@dataclass(frozen=True)
class Interpolated:
    """As VBench: the shorter side to 224, the longer in proportion (rounded down), by interpolation without
    antialiasing whose overshoot beyond 0..255 is neither clamped nor rounded.

    Attributes:
        mode: of interpolation.
        crop: cut the central square out; otherwise the proportions stay.
        statistics: mean and deviation that pixels in [0, 1] are normalised with.
    """

    mode: Literal["bilinear", "bicubic"]
    crop: bool
    statistics: tuple[tuple[float, ...], tuple[float, ...]]

    def __call__(self, frames: np.ndarray, device: torch.device) -> Tensor:
        height, width = frames.shape[1:3]
        shorter = min(height, width)
        size = (224 * height // shorter, 224 * width // shorter)
        pixels = to_device(torch.from_numpy(frames), device).permute(0, 3, 1, 2).float()
        pixels = torch.nn.functional.interpolate(pixels, size=size, mode=self.mode, align_corners=False)
        if self.crop:
            top, left = round((size[0] - 224) / 2), round((size[1] - 224) / 2)
            pixels = pixels[..., top : top + 224, left : left + 224]
        return _normalised(pixels / 255, self.statistics)


@dataclass(frozen=True)
class Squashed:
    """As IVEBench: stretched to 224 × 224 by PIL, bilinear with antialiasing, rounded; ImageNet's statistics."""

    def __call__(self, frames: np.ndarray, device: torch.device) -> Tensor:
        pictures = [Image.fromarray(frame).resize((224, 224), Image.Resampling.BILINEAR) for frame in frames]
        return _normalised(_scaled(np.stack([np.asarray(picture) for picture in pictures]), device), IMAGENET)


@dataclass(frozen=True)
class Processed:
    """By a model's own image processor, with PIL as its authors did.

    Attributes:
        settings: of the processor; models that have the same share the pictures.
        folder: of the model.
        before: what is done first.
    """

    settings: str
    folder: Path = field(compare=False)
    before: Before = ""

    @classmethod
    def of(cls, folder: Path, before: Before = "") -> Processed:
        """Raises ValueError where the folder has no processor."""
        return cls(_processor(folder).to_json_string(), folder, before)

    def __call__(self, frames: np.ndarray, device: torch.device) -> Tensor:
        processor = _processor(self.folder)
        pictures = [_before(Image.fromarray(frame), self.before) for frame in frames]
        # Scaled to [0, 1] and normalised on the device: bytes are a quarter of the way there.
        prepared = processor(pictures, do_rescale=False, do_normalize=False, return_tensors="np")["pixel_values"]
        pixels = to_device(torch.from_numpy(np.ascontiguousarray(prepared)), device).float()
        pixels = pixels * processor.rescale_factor if processor.do_rescale else pixels
        if not processor.do_normalize:
            return pixels
        return _normalised(pixels, (tuple(processor.image_mean), tuple(processor.image_std)))


@cache
def _processor(folder: Path) -> Any:
    from transformers import AutoImageProcessor, __version__

    pil: dict[str, Any] = {"backend": "pil"} if int(__version__.split(".")[0]) >= 5 else {"use_fast": False}
    try:
        return AutoImageProcessor.from_pretrained(folder, **pil)
    except (OSError, ValueError) as error:
        raise ValueError(f"{folder} has no preprocessor_config.json: download the whole model folder.") from error


def _before(picture: Image.Image, kind: Before) -> Image.Image:
    width, height = picture.size
    if kind == "square_480":
        return picture.resize((480, 480))
    if kind == "at_most_672" and max(width, height) > 672:
        scale = 672 / max(width, height)
        return picture.resize((int(scale * width), int(scale * height)))
    if kind == "lower_square" and height > width:
        return picture.crop((0, height - width, width, height))
    return picture


def _scaled(pictures: np.ndarray, device: torch.device) -> Tensor:
    return to_device(torch.from_numpy(pictures), device).permute(0, 3, 1, 2).float() / 255


def _normalised(pixels: Tensor, statistics: tuple[tuple[float, ...], tuple[float, ...]]) -> Tensor:
    mean, deviation = (torch.tensor(values, device=pixels.device).view(-1, 1, 1) for values in statistics)
    return (pixels - mean) / deviation
