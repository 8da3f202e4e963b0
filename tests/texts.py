"""Text conditions in tests."""

import torch

from icve.data.text_condition import TextCondition


def parts(text: TextCondition) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """Embeddings, mask and pooled vector."""
    return text.embeddings, text.mask, text.extras["pooled"]


def assert_same_text(ours: TextCondition, theirs: TextCondition) -> None:
    for one, other in zip(parts(ours), parts(theirs), strict=True):
        assert one.dtype == other.dtype
        assert torch.equal(one, other)
