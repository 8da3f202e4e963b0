"""A text encoder without weights: every word is a fixed pseudo-random vector derived from its hash.

Shapes: B batch, L tokens of the longest text in the batch, Dt = text_dim, Dp = pooled_dim.
"""

import hashlib
import re
import unicodedata
from functools import lru_cache
from itertools import pairwise

import numpy as np
import torch
from diffusers.configuration_utils import FrozenDict, register_to_config
from diffusers.models.modeling_utils import ModelMixin  # diffusers loads a component whose module names it
from diffusers.utils.accelerate_utils import apply_forward_hook

from icve.data.text_condition import TextCondition
from icve.models.protocols import ConfiguredModel
from icve.runtime.transfers import to_device

WORD = re.compile(r"[^\W_]+(?:['\u2019][^\W_]+)*")
NULL_WORD = ""  # no text contains it, so no word shares its vector
ORDER_RMS = 0.5  # the position shifts a token by half a word's length: visible, never louder than the word
BIGRAM_RMS = 0.5


def split_words(text: str) -> list[str]:
    """Lower-cased words of a text in order, punctuation removed, any script; [NULL_WORD] when there is none."""
    return WORD.findall(unicodedata.normalize("NFKC", text).casefold()) or [NULL_WORD]


@lru_cache(maxsize=65536)
def hashed_signs(key: str, size: int, purpose: str) -> np.ndarray:
    """(size,) float32 of +1/-1 from blake2b(key): equal on every platform, nearly orthogonal (cosine ~ size^-1/2)."""
    blocks = []
    for counter in range(-(-size // 512)):
        message = key.encode("utf-8", "surrogatepass")
        blocks.append(
            hashlib.blake2b(
                message, digest_size=64, person=purpose.encode(), salt=counter.to_bytes(4, "little")
            ).digest()
        )
    bits = np.unpackbits(np.frombuffer(b"".join(blocks), dtype=np.uint8))[:size]
    signs = bits.astype(np.float32) * 2.0 - 1.0
    signs.flags.writeable = False  # shared by every caller through the cache
    return signs


@lru_cache(maxsize=8)
def order_table(length: int, size: int) -> np.ndarray:
    """(length, size) float32 sinusoids of the word position, unit mean square, wavelengths 2*pi to 2*pi*length."""
    half = (size + 1) // 2
    frequency = float(length) ** -(np.arange(half) / max(half - 1, 1))
    angle = np.arange(length)[:, None] * frequency[None, :]
    table = np.stack([np.sin(angle), np.cos(angle)], axis=-1).reshape(length, 2 * half)[:, :size] * np.sqrt(2.0)
    return table.astype(np.float32)


class HashedConfig(FrozenDict):
    text_dim: int
    pooled_dim: int
    max_tokens: int


class HashedTextEncoder(ConfiguredModel, ModelMixin):
    """Fixed hashed words with order information; no trainable parameter and no vocabulary.

    Args:
        text_dim: width Dt of the token embeddings.
        pooled_dim: width Dp of the pooled vector.
        max_tokens: texts of more words are cut.
    """

    config: HashedConfig

    @register_to_config
    def __init__(self, text_dim: int = 128, pooled_dim: int = 128, max_tokens: int = 32):
        super().__init__()
        if min(text_dim, pooled_dim, max_tokens) < 1:
            raise ValueError("text_dim, pooled_dim and max_tokens of HashedTextEncoder must be at least 1.")
        self.text_width = text_dim
        # Carries device and dtype; stored because diffusers does not load a folder without a weights file.
        self.register_buffer("anchor", torch.zeros(1))

    def _embed(self, words: list[str]) -> np.ndarray:
        size = self.config.text_dim
        tokens = np.stack([hashed_signs(word, size, "icve word") for word in words])
        order = order_table(self.config.max_tokens, size)[: len(words)]
        return (tokens + ORDER_RMS * order) / np.sqrt(1.0 + ORDER_RMS**2, dtype=np.float32)

    def _pool(self, words: list[str]) -> np.ndarray:
        size = self.config.pooled_dim
        total = np.sum([hashed_signs(word, size, "icve pooled") for word in words], axis=0)
        # Pairs of neighbours tell "the red circle blue" from "the blue circle red".
        for pair in pairwise(words):
            total = total + BIGRAM_RMS * hashed_signs(" ".join(pair), size, "icve bigram")
        return total / max(float(np.sqrt(np.mean(total**2))), 1e-6)

    @torch.no_grad()
    @apply_forward_hook  # so that offloading moves the module for this call too
    def encode(self, texts: list[str]) -> TextCondition:
        """Encode instructions; a text without any word becomes one null word, so that every mask has a valid token.

        Args:
            texts: B strings.

        Returns:
            embeddings (B, L, Dt), about unit variance per component; "pooled" (B, Dp), unit mean square; both on the
            module's device and in its dtype, the mask on the host.

        Raises:
            ValueError: if `texts` is a single string or empty.
        """
        if isinstance(texts, str) or not texts:
            raise ValueError("HashedTextEncoder.encode needs a list of at least one string.")
        words = [split_words(text)[: self.config.max_tokens] for text in texts]
        length = max(map(len, words))
        embeddings = np.zeros((len(words), length, self.config.text_dim), dtype=np.float32)
        mask = np.zeros((len(words), length), dtype=bool)
        for row, row_words in enumerate(words):
            embeddings[row, : len(row_words)] = self._embed(row_words)
            mask[row, : len(row_words)] = True
        pooled = np.stack([self._pool(row_words) for row_words in words]).astype(np.float32)
        device, dtype = self.anchor.device, self.anchor.dtype
        return TextCondition(
            to_device(torch.from_numpy(embeddings), device).to(dtype),
            torch.from_numpy(mask),
            {"pooled": to_device(torch.from_numpy(pooled), device).to(dtype)},
        )
