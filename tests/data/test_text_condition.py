"""What a model is told by text: batches of it are picked, moved and padded."""

import torch

from icve.models.weightless.hashed import HashedTextEncoder

TEXTS = ["make the red circle blue", "remove it"]


def test_rows_are_picked_in_any_order_and_the_mask_stays_on_the_host():
    texts = HashedTextEncoder(8, 6).encode(TEXTS)
    picked = texts.rows([1, 0, 1])
    assert torch.equal(picked.embeddings, texts.embeddings[[1, 0, 1]])
    assert torch.equal(picked.mask, texts.mask[[1, 0, 1]])
    assert torch.equal(picked.extras["pooled"], texts.extras["pooled"][[1, 0, 1]])
    there = picked.to("meta", torch.float16)
    assert (there.embeddings.device.type, there.extras["pooled"].dtype) == ("meta", torch.float16)
    assert there.mask.device.type == "cpu"
    assert picked.to(dtype=torch.float64).embeddings.dtype == torch.float64
