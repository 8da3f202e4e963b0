"""Copies of a training state in main memory, which stay as they are while training goes on."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import replace

import torch
from torch import Tensor

from icve.runtime.transfers import reads_pinned
from icve.training.checkpoints.state_files import Slice

_BLOCK = 1 << 28  # bytes; pinned memory is handed out in powers of two
_ALIGNED = 64  # bytes


class Snapshots:
    """Copies slices, time and again into the same memory: to get it takes as long as to copy.

    For what lies on an accelerator it is pinned, so that all copies are on their way at once, at the link's full rate.
    """

    def __init__(self) -> None:
        self._room: dict[str, Tensor] = {}  # by the slices' keys
        self._block = torch.empty(0, dtype=torch.uint8)  # pinned, and not in use yet

    def copy(self, slices: Iterable[Slice]) -> list[Slice]:
        """The slices as they are now; those of the last call are no longer to be used."""
        copies, devices = [], set()
        for piece in slices:
            values, kept = piece.values.detach(), self._room.get(piece.key)
            if kept is None or kept.shape != values.shape or kept.dtype != values.dtype:
                kept = self._room[piece.key] = self._memory(values)
            kept.copy_(values, non_blocking=True)
            copies.append(replace(piece, values=kept, copied=True))
            devices.add(values.device)
        for device in devices:
            if device.type != "cpu":
                torch.accelerator.current_stream(device).synchronize()
        return copies

    def _memory(self, like: Tensor) -> Tensor:
        if not reads_pinned(like.device):
            return torch.empty(like.shape, dtype=like.dtype)
        size = -(-like.nbytes // _ALIGNED) * _ALIGNED
        if size > len(self._block):
            self._block = torch.empty(max(size, _BLOCK), dtype=torch.uint8, pin_memory=True)
        part, self._block = self._block[: like.nbytes], self._block[size:]
        return part.view(like.dtype).view(like.shape)
