"""What a model is told by text: embeddings of every token, and whatever else its text encoder gives."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

import torch
import torch.nn.functional as F
from torch import Tensor

from icve.runtime.transfers import to_device


@dataclass(frozen=True)
class TextCondition:
    """A batch of encoded texts.

    Attributes:
        embeddings: (B, L, D), zero where padded.
        mask: (B, L) bool, True on tokens, padded on the right, at least one per text. Text encoders give it on the
            host, where it is read without waiting for a device.
        extras: (B, ...) tensors by name, of models that want more, as "pooled" (B, Dp).
    """

    embeddings: Tensor
    mask: Tensor
    extras: Mapping[str, Tensor] = field(default_factory=dict)

    def __len__(self) -> int:
        return len(self.embeddings)

    def to(self, device: torch.device | str | None = None, dtype: torch.dtype | None = None) -> TextCondition:
        """Embeddings and extras on a device and in a dtype; the mask stays where it is."""
        # Without waiting, where a loader has pinned them.
        extras = {name: extra.to(device, dtype, non_blocking=extra.is_pinned()) for name, extra in self.extras.items()}
        embeddings = self.embeddings.to(device, dtype, non_blocking=self.embeddings.is_pinned())
        return TextCondition(embeddings, self.mask, extras)

    def pin_memory(self) -> TextCondition:
        """For a loader that pins its batches."""
        extras = {name: extra.pin_memory() for name, extra in self.extras.items()}
        return TextCondition(self.embeddings.pin_memory(), self.mask, extras)

    def pad(self, length: int) -> TextCondition:
        """The same texts with L = `length` at least."""
        missing = length - self.embeddings.shape[1]
        if missing <= 0:
            return self
        embeddings, mask = F.pad(self.embeddings, (0, 0, 0, missing)), F.pad(self.mask, (0, missing))
        return TextCondition(embeddings, mask, self.extras)

    def rows(self, indices: Sequence[int]) -> TextCondition:
        """Some texts, in this order; one may occur several times."""
        rows = torch.tensor(list(indices))
        there = to_device(rows, self.embeddings.device)
        extras = {name: extra.index_select(0, there) for name, extra in self.extras.items()}
        return TextCondition(self.embeddings.index_select(0, there), self.mask[rows], extras)

    def alone(self, index: int) -> TextCondition:
        """One text without padding; its mask is on the host."""
        words = self.embeddings[index : index + 1, : int(self.mask[index].sum())]
        extras = {name: extra[index : index + 1] for name, extra in self.extras.items()}
        return TextCondition(words, torch.ones(words.shape[:2], dtype=torch.bool), extras)

    @classmethod
    def stack(cls, conditions: Sequence[TextCondition]) -> TextCondition:
        """Batches one after the other; shorter texts are padded."""
        length = max(condition.embeddings.shape[1] for condition in conditions)
        padded = [condition.pad(length) for condition in conditions]
        extras = {name: torch.cat([c.extras[name] for c in padded]) for name in padded[0].extras}
        return cls(torch.cat([c.embeddings for c in padded]), torch.cat([c.mask for c in padded]), extras)

    def tensors(self, prefix: str) -> dict[str, Tensor]:
        """Everything but the mask as named tensors: `prefix`, and `prefix.NAME` of the extras."""
        return {prefix: self.embeddings, **{f"{prefix}.{name}": extra for name, extra in self.extras.items()}}

    @classmethod
    def from_tensors(cls, tensors: Mapping[str, Tensor], prefix: str) -> TextCondition:
        """Inverse of `tensors` for texts without padding."""
        embeddings, start = tensors[prefix], f"{prefix}."
        extras = {name.removeprefix(start): extra for name, extra in tensors.items() if name.startswith(start)}
        return cls(embeddings, torch.ones(embeddings.shape[:2], dtype=torch.bool), extras)
