"""LPIPS (Zhang et al., 2018): a perceptual distance, over the frame, inside the edited region, or outside it."""

from __future__ import annotations

import importlib.util
from collections.abc import Mapping
from functools import cache
from pathlib import Path
from typing import Literal

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional as F

from icve.editing.editors import checked_device
from icve.evaluation.metrics.metric import ClipInfo, Figure, Metric
from icve.evaluation.metrics.regions import Reference, Region, inner_region, mean_within
from icve.runtime.transfers import to_device

Net = Literal["alex", "squeeze", "vgg"]

# Layers by their number among torchvision's `features`: a convolution (number, stride, padding), a "fire" module of
# SqueezeNet (number), a pooling of 3 or 2 pixels; "tap" is where features are compared. Convolutions end in a ReLU.
_PLANS: dict[Net, tuple[tuple, ...]] = {
    "alex": (
        *(("conv", 0, 4, 2), ("tap",), ("pool", 3), ("conv", 3, 1, 2), ("tap",), ("pool", 3)),
        *(("conv", 6, 1, 1), ("tap",), ("conv", 8, 1, 1), ("tap",), ("conv", 10, 1, 1), ("tap",)),
    ),
    "squeeze": (
        *(("conv", 0, 2, 0), ("tap",), ("pool", 3), ("fire", 3), ("fire", 4), ("tap",)),
        *(("pool", 3), ("fire", 6), ("fire", 7), ("tap",), ("pool", 3), ("fire", 9), ("tap",)),
        *(("fire", 10), ("tap",), ("fire", 11), ("tap",), ("fire", 12), ("tap",)),
    ),
    "vgg": (
        *(("conv", 0, 1, 1), ("conv", 2, 1, 1), ("tap",), ("pool", 2), ("conv", 5, 1, 1), ("conv", 7, 1, 1), ("tap",)),
        *(("pool", 2), ("conv", 10, 1, 1), ("conv", 12, 1, 1), ("conv", 14, 1, 1), ("tap",)),
        *(("pool", 2), ("conv", 17, 1, 1), ("conv", 19, 1, 1), ("conv", 21, 1, 1), ("tap",)),
        *(("pool", 2), ("conv", 24, 1, 1), ("conv", 26, 1, 1), ("conv", 28, 1, 1), ("tap",)),
    ),
}
_FILES: dict[Net, str] = {
    "alex": "alexnet-owt-7be5be79.pth",
    "squeeze": "squeezenet1_1-b8a52dc0.pth",
    "vgg": "vgg16-397923af.pth",
}
_SHIFT, _SCALE = (-0.030, -0.088, -0.188), (0.458, 0.448, 0.450)  # of pixels in [-1, 1]
_MARGIN = 5  # pixels, as SSIM's window: what is farther from the other side may still be seen, but weighs little
_SMALLEST = 32


class Lpips(Metric):
    """Mean over frames of LPIPS, ``lpips_NET_REFERENCE_REGION``; 0 for equal pictures.

    Of the frame it is the published value; of a region, the mean of the map of distances over the pixels at least 5
    pixels inside it.

    Args:
        backbone: file with torchvision's weights of the network (state dict, .pth or .safetensors), such as
            https://download.pytorch.org/models/alexnet-owt-7be5be79.pth.
        net: "alex" (the usual one), "squeeze" (FiVE-Bench's), or "vgg".
        reference: what the edit is compared with: its source, or the true target.
        region: "frame"; "inside" the mask; or "outside" it.
        heads: file with the weights of the channels, version 0.1; None takes those that come with torchmetrics.
        device: None is a GPU where there is one.
    """

    lower_is_better = ("lpips_",)

    def __init__(
        self,
        backbone: str,
        net: Net = "alex",
        reference: Reference = "source",
        region: Region = "outside",
        heads: str | None = None,
        device: str | None = None,
    ) -> None:
        self._distance = perceptual_distance(backbone, net, heads, device)
        self._net, self._reference, self._region = net, reference, region
        self.needs = ("edited", reference, *(() if region == "frame" else ("mask",)))

    def reset(self, clip: ClipInfo) -> None:
        if min(clip.size) < _SMALLEST:
            raise ValueError(f"Its picture of {clip.size[0]} × {clip.size[1]} is too small: LPIPS wants {_SMALLEST}.")
        self._values: list[float] = []

    def update(self, edited: np.ndarray, mask: np.ndarray | None = None, **reference: np.ndarray) -> None:
        regions = [None] * len(edited) if mask is None else inner_region(mask, self._region, _MARGIN)
        for first, second, region in zip(edited, reference[self._reference], regions, strict=True):
            if region is None:
                self._values.append(self._distance(first, second))
            elif region.any():
                self._values.append(mean_within(self._distance.map(first, second), region))

    def compute(self) -> Mapping[str, Figure]:
        return {f"lpips_{self._net}_{self._reference}_{self._region}": Figure.mean(self._values)}


class PerceptualDistance:
    """LPIPS of two pictures.

    Args:
        weights: of the network, by torchvision's names.
        heads: weights of the channels of every tap, each (1, C, 1, 1).
        net: which network.
    """

    def __init__(self, weights: Mapping[str, Tensor], heads: list[Tensor], net: Net) -> None:
        self._weights, self._heads, self._plan = weights, heads, _PLANS[net]
        self._ceil = net == "squeeze"
        self.device = heads[0].device

    def __call__(self, first: np.ndarray, second: np.ndarray) -> float:
        """Of pictures (H, W, 3) uint8."""
        return float(torch.stack([layer.mean() for layer in self.layers(first, second)]).sum())

    def map(self, first: np.ndarray, second: np.ndarray) -> Tensor:
        """The distance at every pixel, (H, W)."""
        layers = self.layers(first, second)
        size = first.shape[:2]
        return torch.stack([F.interpolate(layer, size=size, mode="bilinear")[0, 0] for layer in layers]).sum(0)

    @torch.inference_mode()
    def layers(self, first: np.ndarray, second: np.ndarray) -> list[Tensor]:
        """Distances of every tap, each (1, 1, h, w)."""
        pictures = to_device(torch.from_numpy(np.stack([first, second])), self.device).permute(0, 3, 1, 2)
        return self.layers_of(pictures / 127.5 - 1)

    def layers_of(self, pictures: Tensor) -> list[Tensor]:
        """The same of two pictures (2, 3, H, W) in [-1, 1]."""
        shift, scale = (torch.tensor(values, device=self.device).view(3, 1, 1) for values in (_SHIFT, _SCALE))
        found: list[Tensor] = []
        x = (pictures - shift) / scale
        for kind, *options in self._plan:
            if kind == "conv":
                x = self._conv(x, f"features.{options[0]}", *options[1:])
            elif kind == "pool":
                x = F.max_pool2d(x, options[0], 2, ceil_mode=self._ceil)
            elif kind == "fire":
                name = f"features.{options[0]}"
                x = self._conv(x, f"{name}.squeeze")
                x = torch.cat([self._conv(x, f"{name}.expand1x1"), self._conv(x, f"{name}.expand3x3", 1, 1)], 1)
            else:
                unit = x / (x.square().sum(1, keepdim=True).sqrt() + 1e-10)
                found.append(F.conv2d((unit[:1] - unit[1:]).square(), self._heads[len(found)]))
        return found

    def _conv(self, x: Tensor, name: str, stride: int = 1, padding: int = 0) -> Tensor:
        weight, bias = self._weights[f"{name}.weight"], self._weights[f"{name}.bias"]
        return F.conv2d(x, weight, bias, stride, padding).relu()


def perceptual_distance(backbone: str, net: Net, heads: str | None, device: str | None) -> PerceptualDistance:
    """LPIPS from files, loaded once for all metrics; see :class:`Lpips`. Raises ValueError where one is wrong."""
    return _loaded(Path(backbone).resolve(), net, None if heads is None else Path(heads), checked_device(device))


@cache
def _loaded(backbone: Path, net: Net, heads: Path | None, device: str) -> PerceptualDistance:
    if not backbone.is_file():
        raise ValueError(
            f"There is no file {backbone}: download https://download.pytorch.org/models/{_FILES[net]} and name it."
        )
    weights = {name: tensor.float().to(device) for name, tensor in _read(backbone).items()}
    needed = [f"features.{step[1]}" for step in _PLANS[net] if step[0] in ("conv", "fire")]
    if not all(any(name.startswith(f"{layer}.") for name in weights) for layer in needed):
        raise ValueError(f"{backbone} does not hold torchvision's weights of {net}: give {_FILES[net]}.")
    stored = _read(heads or _heads_of_torchmetrics(net))
    channels = [stored[f"lin{n}.model.1.weight"].float().to(device) for n in range(len(stored))]
    return PerceptualDistance(weights, channels, net)


def _read(file: Path) -> dict[str, Tensor]:
    from safetensors.torch import load_file

    try:
        if file.suffix == ".safetensors":
            return load_file(file)
        return torch.load(file, map_location="cpu", weights_only=True)
    except Exception as error:  # of many kinds
        raise ValueError(f"{file} is no file of weights: download it again.") from error


def _heads_of_torchmetrics(net: Net) -> Path:
    # Its import is left out: it fails where torchvision and torch do not fit together.
    found = importlib.util.find_spec("torchmetrics")
    file = Path(found.origin if found and found.origin else "").parent / f"functional/image/lpips_models/{net}.pth"
    if not file.is_file():
        raise ValueError("LPIPS wants the weights of its channels: pip install torchmetrics, or name a file as heads.")
    return file
