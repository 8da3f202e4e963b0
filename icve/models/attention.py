"""Attention over the packed sequence [source | target | text], and the layout that says where its segments lie.

Every block packs its queries, keys and values in this order and calls `joint_attention`, the one place where the
sequence is seen as a whole: sequence parallelism exchanges heads for tokens here and nowhere else.

Shape legend: B batch, N packed tokens, H heads, D head width.
"""

from contextlib import nullcontext
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor

from icve.models.sequence_parallel import Shards

Projections = tuple[Tensor, Tensor, Tensor]  # query, key and value


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
    key_bias: Tensor | None = None
    shards: Shards | None = None

    @property
    def visual(self) -> int:
        return self.source + self.target


def valid_text_lengths(mask_BL: Tensor) -> tuple[int, ...]:
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


def text_key_bias(lengths: tuple[int, ...], before: int, text: int, device, dtype) -> Tensor:
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


def packed_attention(query: Tensor, key: Tensor, value: Tensor, layout: PackedLayout) -> Tensor:
    """Softmax attention of every token to every real token of its sample, on one process.

    Padding is cut off where all samples are equally long. Where lengths differ, padded keys get a bias that is
    broadcast over heads and queries (never a B×N×N mask); long sequences on an accelerator are attended sample by
    sample instead, which keeps the fused kernels that take no bias.

    Args:
        query, key, value: (B, N, H, D) each.
        layout: where the segments lie.

    Returns:
        (B, N, H, D). Rows of padded text hold finite values without meaning.
    """
    query, key, value = (x.transpose(1, 2) for x in (query, key, value))
    dtype, bias = value.dtype, layout.key_bias
    if layout.text_lengths is not None and attends_by_sample(query):
        out = _attend_by_sample(query, key, value, layout.text, layout.text_lengths)
    else:
        short = query.device.type == "cpu" and query.shape[2] < 1024 and query.element_size() == 2
        if short:  # the CPU's half-precision kernel takes four times its float32 one's time on short sequences
            query, key, value = query.float(), key.float(), value.float()
        bias = None if bias is None else bias.to(query.dtype)
        # Autocast would turn the float32 tensors back.
        with torch.autocast("cpu", enabled=False) if short else nullcontext():
            out = F.scaled_dot_product_attention(query, key, value, attn_mask=bias).to(dtype)
    return out.transpose(1, 2)


def joint_attention(query: Tensor, key: Tensor, value: Tensor, layout: PackedLayout) -> "JointAttention":
    """Start the attention of a block.

    Args:
        query, key, value: (B, N, H, D) of the visual tokens, and of the text's after them unless `attend` gets these.
        layout: where the segments lie; with shards, its visual tokens are those of this process.
    """
    if layout.shards is None:
        return JointAttention((query, key, value), layout)
    return SharedAttention((query, key, value), layout, layout.shards)


class JointAttention:
    """Attention of a block, in steps: start it, `attend`, ask for results, each once.

    Between them a block computes what does not wait for attention, for the sake of `SharedAttention`.
    """

    def __init__(self, projections: Projections, layout: PackedLayout):
        self.projections, self.layout = projections, layout

    def attend(self, *words: Tensor) -> None:
        """Compute it. Words: (B, L, H, D) query, key and value of the text, where they were not given before."""
        if words:
            query, key, value = (torch.cat(pair, dim=1) for pair in zip(self.projections, words, strict=True))
            self.projections = query, key, value
        self.attended = packed_attention(*self.projections, self.layout).flatten(2)
        del self.projections

    def packed(self) -> Tensor:
        """What all tokens get, (B, N, H·D)."""
        return self.attended

    def video(self) -> Tensor:
        """What the visual tokens get."""
        return self.attended[:, : self.layout.visual]

    def text(self) -> Tensor:
        """What the text gets."""
        return self.attended[:, self.layout.visual :]


class SharedAttention(JointAttention):
    """The same by several processes, each for its own visual tokens and all of the text.

    Heads are exchanged for tokens from the start to `attend`, and back until a result is asked for.
    """

    def __init__(self, projections: Projections, layout: PackedLayout, shards: Shards):
        self.layout, self.shards = layout, shards
        visual, self.words = zip(*(x.tensor_split([layout.visual], dim=1) for x in projections), strict=True)
        self.arriving = shards.to_heads(*visual)

    def attend(self, *words: Tensor) -> None:
        mine = [self.shards.my_heads(x) for x in words or self.words]
        query, key, value = (torch.cat(pair, dim=1) for pair in zip(self.arriving(), mine, strict=True))
        del self.arriving, self.words
        self.tokens, self.texts = self.shards.to_tokens(packed_attention(query, key, value, self.layout))

    def packed(self) -> Tensor:
        return torch.cat([self.video(), self.text()], dim=1)

    def video(self) -> Tensor:
        return self.tokens().flatten(2)

    def text(self) -> Tensor:
        return self.texts().flatten(2)


def attends_by_sample(query_BHND: Tensor) -> bool:
    """Whether kernels without bias, one launch per sample, are the faster way: long sequences off the CPU."""
    return query_BHND.device.type != "cpu" and query_BHND.shape[2] >= 1024


def _attend_by_sample(query: Tensor, key: Tensor, value: Tensor, text: int, lengths: tuple[int, ...]) -> Tensor:
    outputs, visual = [], query.shape[2] - text
    for i, length in enumerate(lengths):
        n = visual + length
        out = F.scaled_dot_product_attention(query[i : i + 1, :, :n], key[i : i + 1, :, :n], value[i : i + 1, :, :n])
        outputs.append(F.pad(out, (0, 0, 0, text - length)))
    return torch.cat(outputs)
