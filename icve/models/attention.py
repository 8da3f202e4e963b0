"""Attention over a packed sequence (`icve.models.layout`), on one process or on several that share its tokens.

Every block packs its queries, keys and values in the layout's order and calls `joint_attention`, the one place where
the sequence is seen as a whole: sequence parallelism exchanges heads for tokens here and nowhere else. Cross-attention
calls `packed_attention` itself, with the layout of its keys: every process has all text, and keeps its own queries.

Shape legend: B batch, N packed tokens, H heads, D head width.
"""

from collections.abc import Iterator
from contextlib import nullcontext

import torch
import torch.nn.functional as F
from torch import Tensor

from icve.models.layout import PackedLayout
from icve.models.sequence_parallel import Shards

Projections = tuple[Tensor, Tensor, Tensor]  # query, key and value


def packed_attention(query: Tensor, key: Tensor, value: Tensor, layout: PackedLayout) -> Tensor:
    """Softmax attention of every token to every real token of its sample that the layout's rule lets it see.

    Padding is cut off where all samples are equally long. Where lengths differ or a sample lacks a segment, the keys
    that are not real get a bias that is broadcast over heads and queries (never a B×N×N mask); long sequences on an
    accelerator are attended sample by sample instead, which keeps the fused kernels that take no bias.

    Args:
        query: (B, M, H, D), M = N but in cross-attention.
        key, value: (B, N, H, D) each.
        layout: of the keys; of the queries too where its rule is not "full".

    Returns:
        (B, M, H, D). Rows of padded text hold finite values without meaning.
    """
    query, key, value = (x.transpose(1, 2) for x in (query, key, value))
    if layout.rule == "full":
        out = _attend(query, key, value, layout.key_bias, layout)
    else:
        out = _static_context(query, key, value, layout)
    return out.transpose(1, 2)


def _attend(query: Tensor, key: Tensor, value: Tensor, bias: Tensor | None, layout: PackedLayout | None) -> Tensor:
    if bias is not None and layout is not None and layout.text_lengths is not None and attends_by_sample(key):
        return _attend_by_sample(query, key, value, layout)
    dtype = value.dtype
    short = key.device.type == "cpu" and key.shape[2] < 1024 and key.element_size() == 2
    if short:  # the CPU's half-precision kernel takes four times its float32 one's time on short sequences
        query, key, value = query.float(), key.float(), value.float()
    bias = None if bias is None else bias.to(query.dtype)
    # Autocast would turn the float32 tensors back.
    with torch.autocast("cpu", enabled=False) if short else nullcontext():
        return F.scaled_dot_product_attention(query, key, value, attn_mask=bias).to(dtype)


def _static_context(query: Tensor, key: Tensor, value: Tensor, layout: PackedLayout) -> Tensor:
    """Tokens at time zero attend to each other, the others to all; no mask of queries and keys is built."""
    lengths = [tokens for tokens, _ in layout.static_pieces]
    static = [is_static for _, is_static in layout.static_pieces]

    def of(x: Tensor, dim: int, wanted: bool) -> Tensor:
        pieces = zip(x.split(lengths, dim), static, strict=True)
        return torch.cat([piece for piece, is_static in pieces if is_static == wanted], dim)

    moving = _attend(of(query, 2, False), key, value, layout.key_bias, layout)
    if not any(static):
        return moving
    # Padding is at the end of the last segment: it counts here only where that is at time zero.
    bias = layout.key_bias if layout.key_bias is not None and (static[-1] or layout.gaps) else None
    bias = None if bias is None else of(bias, 3, True)
    resting = _attend(of(query, 2, True), of(key, 2, True), of(value, 2, True), bias, None)
    counts = {wanted: [n for n, is_static in layout.static_pieces if is_static == wanted] for wanted in (True, False)}
    parts: dict[bool, Iterator[Tensor]] = {
        True: iter(resting.split(counts[True], 2)),
        False: iter(moving.split(counts[False], 2)),
    }
    return torch.cat([next(parts[is_static]) for is_static in static], 2)


def joint_attention(query: Tensor, key: Tensor, value: Tensor, layout: PackedLayout) -> "JointAttention":
    """Start the attention of a block.

    Args:
        query, key, value: (B, N, H, D) of the tokens that processes share out, and of the shared ones after them unless
            `attend` gets these.
        layout: where the segments lie.
    """
    if layout.shards is None:
        return JointAttention((query, key, value), layout)
    return ExchangedAttention((query, key, value), layout, layout.shards)


class JointAttention:
    """Attention of a block, in steps: start it, `attend`, ask for results, each once.

    Between them a block computes what does not wait for attention, for the sake of `ExchangedAttention`.
    """

    def __init__(self, projections: Projections, layout: PackedLayout):
        self.projections, self.layout = projections, layout

    def attend(self, *shared: Tensor) -> None:
        """Compute it. Shared: (B, L, H, D) query, key and value of the shared tokens, if not given before."""
        if shared:
            query, key, value = (torch.cat(pair, dim=1) for pair in zip(self.projections, shared, strict=True))
            self.projections = query, key, value
        self.attended = packed_attention(*self.projections, self.layout).flatten(2)
        del self.projections

    def packed(self) -> Tensor:
        """What all tokens get, (B, N, H·D)."""
        return self.attended

    def split(self) -> Tensor:
        """What the tokens that are shared out get."""
        return self.attended[:, : self.layout.split]

    def shared(self) -> Tensor:
        """What the shared tokens get."""
        return self.attended[:, self.layout.split :]


class ExchangedAttention(JointAttention):
    """The same by several processes, each for its own part of the tokens and for all shared ones.

    Heads are exchanged for tokens from the start to `attend`, and back until a result is asked for.
    """

    def __init__(self, projections: Projections, layout: PackedLayout, shards: Shards):
        self.layout, self.shards = layout, shards
        own, self.common = zip(*(x.tensor_split([layout.split], dim=1) for x in projections), strict=True)
        self.arriving = shards.to_heads(*own)

    def attend(self, *shared: Tensor) -> None:
        mine = [self.shards.my_heads(x) for x in shared or self.common]
        query, key, value = (torch.cat(pair, dim=1) for pair in zip(self.arriving(), mine, strict=True))
        del self.arriving, self.common
        self.results = self.shards.to_tokens(packed_attention(query, key, value, self.layout))

    def packed(self) -> Tensor:
        return torch.cat([self.split(), self.shared()], dim=1) if self.layout.shared else self.split()

    def split(self) -> Tensor:
        return self.results[0]().flatten(2)

    def shared(self) -> Tensor:
        return self.results[1]().flatten(2)


def attends_by_sample(key_BHND: Tensor) -> bool:
    """Whether kernels without bias, one launch per sample, are the faster way: long sequences off the CPU."""
    return key_BHND.device.type != "cpu" and key_BHND.shape[2] >= 1024


def _attend_by_sample(query: Tensor, key: Tensor, value: Tensor, layout: PackedLayout) -> Tensor:
    outputs = []
    for i in range(len(query)):
        pieces = layout.real(i)

        def real(x: Tensor, i: int = i, pieces: list[slice] = pieces) -> Tensor:
            parts = [x[i : i + 1, :, piece] for piece in pieces]
            return parts[0] if len(parts) == 1 else torch.cat(parts, dim=2)

        outputs.append(F.scaled_dot_product_attention(query[i : i + 1], real(key), real(value)))
    return torch.cat(outputs)
