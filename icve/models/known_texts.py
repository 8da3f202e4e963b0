"""Texts that were encoded before, offered as a text encoder."""

from collections.abc import Mapping

import torch
from torch import nn

from icve.data.text_condition import TextCondition
from icve.models.protocols import TextEncoder


class KnownTexts(nn.Module):
    """A text encoder that knows some texts, and asks another one, which may have to be loaded first, for the rest.

    Args:
        known: each text's condition, B = 1 and without padding.
        encoder: for other texts.
    """

    device = torch.device("cpu")  # of a part of a pipeline; the embeddings are where they are

    def __init__(self, known: Mapping[str, TextCondition], encoder: TextEncoder) -> None:
        super().__init__()
        self.known = dict(known)
        self.encoder = (encoder,)  # not a part of this module: nothing moves it

    def encode(self, texts: list[str]) -> TextCondition:
        """As every text encoder's; the mask is on the host."""
        for text in texts:
            if text not in self.known:
                condition = self.encoder[0].encode([text]).alone(0)
                like = next(iter(self.known.values())).embeddings if self.known else condition.embeddings
                self.known[text] = condition.to(like.device, like.dtype)
        return TextCondition.stack([self.known[text] for text in texts])
