"""Attention over the packed sequence [source | target | text], and the layout that says where its segments lie.

Every block packs its queries, keys and values in this order and calls `packed_attention`, the one place where the
sequence is seen as a whole: sequence parallelism exchanges heads for tokens here and nowhere else.

Shape legend: B batch, N packed tokens, H heads, D head width.
"""

from contextlib import nullcontext
from dataclasses import dataclass

import torch
import torch.nn.functional as F

from .sequence_parallel import Shards


@dataclass(frozen=True)
class PackedLayout:
    """Segment lengths of a packed sequence, and how many text tokens of each sample are real.

    Attributes:
        source: source-video tokens, 0 in plain text-to-video.
        target: target-video tokens.
        text: text tokens, trimmed to the longest valid length of the batch.
        text_lengths: valid text tokens per sample, or None when every sample fills `text`.
        key_bias: (B, 1, 1, N) additive bias, 0 on real tokens and -inf on padding; None with `text_lengths`.
        shards: how the visual tokens lie on several processes, None where one has them all. `source` and `target` are
            then this process's tokens, and N those of all processes.
    """

    source: int
    target: int
    text: int
    text_lengths: tuple[int, ...] | None = None
    key_bias: torch.Tensor | None = None
    shards: Shards | None = None

    @property
    def visual(self) -> int:
        return self.source + self.target

    @property
    def total(self) -> int:
        return self.visual + self.text


def valid_text_lengths(mask_BL: torch.Tensor) -> tuple[int, ...]:
    """Valid tokens per sample of a right-padded mask.

    Reads the mask on the host; pass it as a CPU tensor to spare an accelerator the synchronisation.

    Raises:
        ValueError: a sample has no valid token, or its valid tokens do not come first.
    """
    mask = mask_BL.bool().cpu()
    lengths = mask.sum(1)
    if empty := (lengths == 0).nonzero().flatten().tolist():
        raise ValueError(
            f"Sample {empty[0]} of the batch has no valid text token: encode an empty instruction as at least one "
            "(null) token."
        )
    if not torch.equal(mask, torch.arange(mask.shape[1]) < lengths[:, None]):
        raise ValueError("encoder_attention_mask must be right-padded: valid tokens first, padding after them.")
    return tuple(lengths.tolist())


def text_key_bias(lengths: tuple[int, ...], before: int, text: int, device, dtype) -> torch.Tensor:
    """Additive key bias (B, 1, 1, before + text): -inf on each sample's padded text tokens, 0 elsewhere."""
    valid = torch.arange(text, device=device) < torch.tensor(lengths, device=device)[:, None]
    bias = torch.zeros(len(lengths), 1, 1, before + text, device=device, dtype=dtype)
    bias[:, 0, 0, before:].masked_fill_(~valid, float("-inf"))
    return bias


def packed_layout(
    source: int, target: int, lengths: tuple[int, ...], device, dtype, shards: Shards | None = None
) -> PackedLayout:
    """Layout of a batch whose samples have `lengths` valid text tokens; the bias exists only where they differ.

    Args:
        source, target: tokens of each, on all processes together.
        lengths: valid text tokens of each sample.
        device, dtype: of the bias.
        shards: where these tokens lie.
    """
    text, visual = max(lengths), source + target
    if shards is not None:
        source, target = shards.source[shards.rank], shards.target[shards.rank]
    if min(lengths) == text:
        return PackedLayout(source, target, text, shards=shards)
    return PackedLayout(source, target, text, lengths, text_key_bias(lengths, visual, text, device, dtype), shards)


def packed_attention(
    query_BNHD: torch.Tensor, key_BNHD: torch.Tensor, value_BNHD: torch.Tensor, layout: PackedLayout
) -> torch.Tensor:
    """Softmax attention of every token to every real token of its sample.

    Padding is cut off where all samples are equally long. Where lengths differ, padded keys get a bias that is
    broadcast over heads and queries (never a B×N×N mask); long sequences on an accelerator are attended sample by
    sample instead, which keeps the fused kernels that take no bias.

    With shards, a process passes its own visual tokens and all text tokens, and gets these back.

    Returns:
        (B, N, H·D). Rows of padded text hold finite values without meaning.
    """
    if layout.shards is None:
        return _attend(query_BNHD, key_BNHD, value_BNHD, layout).flatten(2)
    heads = layout.shards.to_heads(query_BNHD, key_BNHD, value_BNHD)
    return layout.shards.to_tokens(_attend(*heads, layout)).flatten(2)


def _attend(
    query_BNHD: torch.Tensor, key_BNHD: torch.Tensor, value_BNHD: torch.Tensor, layout: PackedLayout
) -> torch.Tensor:
    """Attention on one device, (B, N, H, D) each."""
    query, key, value = (x.transpose(1, 2) for x in (query_BNHD, key_BNHD, value_BNHD))
    dtype, bias = value.dtype, layout.key_bias
    if bias is not None and attends_by_sample(query):
        out = _attend_by_sample(query, key, value, layout)
    else:
        short = query.device.type == "cpu" and query.shape[2] < 1024 and query.element_size() == 2
        if short:  # the CPU's half-precision kernel takes four times its float32 one's time on short sequences
            query, key, value = query.float(), key.float(), value.float()
        bias = None if bias is None else bias.to(query.dtype)
        # Autocast would turn the float32 tensors back.
        with torch.autocast("cpu", enabled=False) if short else nullcontext():
            out = F.scaled_dot_product_attention(query, key, value, attn_mask=bias).to(dtype)
    return out.transpose(1, 2)


def attends_by_sample(query_BHND: torch.Tensor) -> bool:
    """Whether kernels without bias, one launch per sample, are the faster way: long sequences off the CPU."""
    return query_BHND.device.type != "cpu" and query_BHND.shape[2] >= 1024


def _attend_by_sample(query, key, value, layout: PackedLayout) -> torch.Tensor:
    outputs, visual = [], query.shape[2] - layout.text
    for i, length in enumerate(layout.text_lengths):
        n = visual + length
        out = F.scaled_dot_product_attention(query[i : i + 1, :, :n], key[i : i + 1, :, :n], value[i : i + 1, :, :n])
        outputs.append(F.pad(out, (0, 0, 0, layout.text - length)))
    return torch.cat(outputs)
