"""Tensors of the host on the device that computes; tests/accelerator has one that is not the host."""

import torch

from icve.runtime.transfers import to_device


def test_what_is_there_already_is_not_copied():
    tensor = torch.ones(3)
    assert to_device(tensor, "cpu") is tensor
    assert to_device(tensor, torch.device("meta")).is_meta
