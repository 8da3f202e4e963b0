"""Where a pair differs, on the latent grid: the loss can weigh the edited region more than the copied rest.

True, in a mask and in a region, is what is to change.
"""

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor


def region_from_mask(mask: Tensor, latent_shape: Sequence[int]) -> Tensor:
    """Latent positions that an edit mask in pixels touches.

    Args:
        mask: (B, 1, F, H, W) bool, F = 4k+1; as in every codec, latent frame 0 covers frame 0 and each of the others
            an equal share of the remaining frames.
        latent_shape: (T, h, w) of the latents.

    Returns:
        (B, 1, T, h, w) bool, True where any pixel that the latent covers is edited.
    """
    T, h, w = latent_shape
    mask_B1FHW = mask.float()
    touched = F.adaptive_max_pool3d(mask_B1FHW[:, :, :1], (1, h, w))
    if T > 1:
        touched = torch.cat([touched, F.adaptive_max_pool3d(mask_B1FHW[:, :, 1:], (T - 1, h, w))], dim=2)
    return touched > 0


def region_from_latents(source: Tensor, target: Tensor, threshold: float) -> Tensor:
    """Latent positions where source and target differ, for pairs without a mask.

    Args:
        source, target: (B, C, T, h, w) latents of about unit variance.
        threshold: mean absolute difference over the channels above which a position counts as edited.

    Returns:
        (B, 1, T, h, w) bool.
    """
    return (target - source).abs().mean(dim=1, keepdim=True) > threshold


def shown_mask(region: Tensor) -> Tensor:
    """What a transformer is shown of regions to change (B, 1, T, h, w) bool: float32 of the same shape.

    1 inside and -1 outside, so that every token knows by itself that it is to stay, and need not look whether there is
    a mask elsewhere. The whole picture says nothing, and is shown as what no mask is: 0 everywhere.
    """
    whole = region.flatten(1).all(1)
    return (2.0 * region.float() - 1.0) * ~whole[:, None, None, None, None]


def region_weight(region: Tensor, weight: float) -> Tensor:
    """Loss weights: `weight` inside the region (bool), 1 outside. Same shape, float32."""
    return torch.where(region, float(weight), 1.0)
