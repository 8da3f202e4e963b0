"""Small tensors made on the host, brought to the device that computes without waiting for it."""

from __future__ import annotations

import torch
from torch import Tensor


def reads_pinned(device: torch.device) -> bool:
    """Whether a device copies from and to pinned memory by itself, while the host goes on."""
    return device.type not in ("cpu", "meta", "mps")


def to_device(tensor: Tensor, device: torch.device | str) -> Tensor:
    """A tensor of the host on a device, while the device goes on with what it has to do.

    It goes through pinned memory, which the device reads when it gets there: a copy from other memory waits until all
    work before it is done. A tensor that is not on the host is moved as usual.
    """
    device = torch.device(device)
    if not reads_pinned(device) or tensor.device.type != "cpu" or torch.compiler.is_compiling():
        return tensor.to(device)
    return (tensor if tensor.is_pinned() else tensor.pin_memory()).to(device, non_blocking=True)
