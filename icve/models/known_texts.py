"""Texts that were encoded before: padded to a batch, and offered as a text encoder.

Shapes: B texts, L tokens of the longest of them, Dt and Dp widths of embeddings and pooled vector.
"""

from collections.abc import Mapping, Sequence

import torch
from torch import Tensor, nn

from icve.data.cache.latents import Embedding
from icve.models.protocols import TextEncoder


def pad_texts(texts: Sequence[Embedding]) -> tuple[Tensor, Tensor, Tensor]:
    """Embeddings (B, L, Dt), zero where padded, mask (B, L) bool and pooled (B, Dp), as a text encoder returns them.

    The mask is on the host, where the transformer reads it without waiting for the device.
    """
    lengths = torch.tensor([len(embeddings) for embeddings, _ in texts])
    mask = torch.arange(int(lengths.max())) < lengths[:, None]
    embeddings = nn.utils.rnn.pad_sequence([embeddings for embeddings, _ in texts], batch_first=True)
    return embeddings, mask, torch.stack([pooled for _, pooled in texts])


class KnownTexts(nn.Module):
    """A text encoder that knows some texts, and asks another one, which may have to be loaded first, for the rest.

    Args:
        known: embedding of each text.
        encoder: for other texts.
    """

    device = torch.device("cpu")  # of a part of a pipeline; the embeddings are where they are

    def __init__(self, known: Mapping[str, Embedding], encoder: TextEncoder) -> None:
        super().__init__()
        self.known = dict(known)
        self.encoder = (encoder,)  # not a part of this module: nothing moves it

    def encode(self, texts: list[str]) -> tuple[Tensor, Tensor, Tensor]:
        """As `icve.models.weightless.hashed.HashedTextEncoder.encode`."""
        for text in texts:
            if text not in self.known:
                embeddings, mask, pooled = self.encoder[0].encode([text])
                here = next(iter(self.known.values()))[0] if self.known else embeddings
                words = embeddings[0][mask[0].to(embeddings.device, torch.bool)]
                self.known[text] = words.to(here), pooled[0].to(here)
        return pad_texts([self.known[text] for text in texts])
