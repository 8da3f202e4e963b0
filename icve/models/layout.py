"""The layout of a packed sequence: its segments, their times and positions, and which tokens may see which.

Segments that processes share out come first, those that every process has (text, for one) after them. A model packs its
tokens in this order; attention, modulation, rotations and sequence parallelism all ask the layout.

Shape legend: B batch, N packed tokens, D head width.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from itertools import accumulate
from typing import Literal

import torch
import torch.nn.functional as F
from torch import Tensor

from icve.models.rope import kept_tables, rotary_frequencies
from icve.models.sequence_parallel import Shards, shards_of
from icve.runtime.transfers import to_device

Time = Literal["zero", "target"]
Rule = Literal["full", "static_context"]
# Position of a reference in time, in latent frames. Near the video it would pass for a neighbour of its frames, and
# behind it its distance would depend on the video's length.
REFERENCE_TIME = -16
TEXT_STEP = 64  # text on an accelerator is padded to a multiple of so many tokens


@dataclass(frozen=True)
class Grid:
    """Positions of a segment's tokens.

    Attributes:
        size: tokens along (time, height, width), row-major.
        origin: position of the first token. References and prefixes begin elsewhere in time; it may be negative.
    """

    size: tuple[int, int, int]
    origin: tuple[int, int, int] = (0, 0, 0)

    @property
    def tokens(self) -> int:
        return math.prod(self.size)


@dataclass(frozen=True)
class Segment:
    """Neighbouring tokens of one kind.

    Attributes:
        name: what they are ("source", "target", "text", ...).
        tokens: how many, on all processes together.
        time: the timestep that they are modulated at: "target" is the noised video's, "zero" that of clean tokens.
        rope: their positions; "identity" for none; "zero" multiplies query and key by 0 (SAMA's semantic tokens).
        shared: every process has all of them. False: processes share them out.
        present: whether each sample (B,) has them; None where all do. Nothing attends to them in the others, whose
            results are those of a sequence without the segment.
    """

    name: str
    tokens: int
    time: Time = "target"
    rope: Grid | Literal["identity", "zero"] = "identity"
    shared: bool = False
    present: tuple[bool, ...] | None = None


@dataclass(frozen=True)
class Runs:
    """How tokens are modulated: neighbours at one time get the same vectors.

    Attributes:
        times: indices, among the layout's times, of those that occur.
        lengths: (index among these times, number of tokens) in the order of the tokens.
    """

    times: tuple[int, ...]
    lengths: tuple[tuple[int, int], ...]


@dataclass(frozen=True)
class PackedLayout:
    """Segments of a packed sequence, and how much of the last one is real in each sample.

    Attributes:
        segments: in packed order, shared ones last.
        rule: "full": every token attends to all. "static_context": tokens at time zero attend to each other only, so
            that what they give the others does not change from step to step.
        text_lengths: valid tokens of the last segment per sample, or None when every sample fills it and has all
            segments.
        key_bias: (B, 1, 1, N) additive bias, 0 on real tokens and -inf on padding and on what a sample has not; None
            with `text_lengths`.
        shards: how the tokens that are shared out lie on several processes, None where one has them all.
        times: the distinct times, in order of appearance: a model computes one modulation for each.
        counts: tokens of each segment on this process.
        split: tokens of this process that are shared out; `shared` ones, which every process has, follow them.
        runs: how all tokens are modulated; `split_runs`, `shared_runs`: the same of those two parts, for models whose
            shared segments are a stream of their own.
        static_pieces: (tokens, whether at time zero) of the whole sequence, as it lies after processes exchanged.
        gaps: (start, stop, which samples have it) of what some samples have not, in the same sequence.

    Raises:
        ValueError: segments are out of order, a grid has another number of tokens, or the rule is unknown.
    """

    segments: tuple[Segment, ...]
    rule: Rule = "full"
    text_lengths: tuple[int, ...] | None = None
    key_bias: Tensor | None = None
    shards: Shards | None = None
    # What follows from these; worked out once, because every block asks, and the compiler reads fields only.
    times: tuple[Time, ...] = field(init=False)
    counts: tuple[int, ...] = field(init=False)
    split: int = field(init=False)
    shared: int = field(init=False)
    runs: Runs = field(init=False)
    split_runs: Runs = field(init=False)
    shared_runs: Runs = field(init=False)
    static_pieces: tuple[tuple[int, bool], ...] = field(init=False)
    gaps: tuple[tuple[int, int, tuple[bool, ...]], ...] = field(init=False)

    def __post_init__(self) -> None:
        if self.rule not in ("full", "static_context"):
            raise ValueError(f"The attention rule is 'full' or 'static_context', not {self.rule!r}.")
        order = [segment.shared for segment in self.segments]
        if order != sorted(order):
            raise ValueError("Segments that every process has come after those that are shared out.")
        for segment in self.segments:
            if isinstance(segment.rope, Grid) and segment.rope.tokens != segment.tokens:
                raise ValueError(f"Segment {segment.name!r} has {segment.tokens} tokens on a grid {segment.rope.size}.")
        own = len(order) - sum(order)  # segments that are shared out
        rank, size = (0, 1) if self.shards is None else (self.shards.rank, self.shards.size)
        # Tokens of every segment on every process.
        lying = [(s.tokens,) for s in self.segments[:own]] if self.shards is None else self.shards.segments
        counts = (*(of_segment[rank] for of_segment in lying), *(s.tokens for s in self.segments[own:]))
        pieces = [
            *((s, n[process]) for process in range(size) for s, n in zip(self.segments[:own], lying, strict=True)),
            *((s, s.tokens) for s in self.segments[own:]),
        ]
        ends = list(accumulate(n for _, n in pieces))
        derived = {
            "times": tuple(dict.fromkeys(segment.time for segment in self.segments)),
            "counts": counts,
            "split": sum(counts[:own]),
            "shared": sum(counts[own:]),
            "static_pieces": tuple((n, s.time == "zero") for s, n in pieces),
            "gaps": tuple(
                (end - n, end, s.present) for (s, n), end in zip(pieces, ends, strict=True) if s.present is not None
            ),
        }
        for name, value in derived.items():
            object.__setattr__(self, name, value)
        for name, part in (("runs", slice(None)), ("split_runs", slice(own)), ("shared_runs", slice(own, None))):
            object.__setattr__(self, name, _runs(self.segments[part], counts[part], self.times))

    def real(self, sample: int) -> list[slice]:
        """Where, in the whole sequence, lie the tokens that a sample has."""
        start, slices = 0, []
        for gap, end, present in self.gaps:
            if not present[sample]:
                slices.append(slice(start, gap))
                start = end
        stop = sum(n for n, _ in self.static_pieces)
        if self.text_lengths is not None:
            stop -= self.segments[-1].tokens - self.text_lengths[sample]
        return [*slices, slice(start, stop)]

    def section(self, name: str) -> slice:
        """Where a segment's tokens lie on this process."""
        index = [segment.name for segment in self.segments].index(name)
        start = sum(self.counts[:index])
        return slice(start, start + self.counts[index])

    def rotations(self, axes_dim: Sequence[int], theta: float, device: torch.device) -> Tensor:
        """Rotary multipliers of this process's tokens, complex (N, D/2).

        Args:
            axes_dim: how many of the head's channels turn with each axis.
            theta: base of the frequencies.
            device: where they are wanted.
        """
        split, shared = ([s for s in self.segments if s.shared == wanted] for wanted in (False, True))
        parts = [_rotations(segment.rope, segment.tokens, axes_dim, theta, device) for segment in shared]
        if split:
            # Of the segments that go through the blocks in every step; the text's length varies, and it is short.
            order = tuple((segment.rope, segment.tokens) for segment in split)
            place = None if self.shards is None else (self.shards.rank, tuple(map(tuple, self.shards.segments)))
            parts.insert(0, _split_rotations(order, place, tuple(axes_dim), theta, torch.device(device)))
        return torch.cat(parts) if len(parts) > 1 else parts[0]


def _rotations(rope: Grid | str, tokens: int, axes_dim: Sequence[int], theta: float, device: torch.device) -> Tensor:
    if isinstance(rope, Grid):
        return rotary_frequencies(rope.size, axes_dim, theta, device, rope.origin)
    size, value = (tokens, sum(axes_dim) // 2), float(rope == "identity")
    return torch.full(size, value, dtype=torch.complex64, device=device)


@kept_tables
def _split_rotations(
    order: tuple[tuple[Grid | str, int], ...],
    place: tuple[int, tuple[tuple[int, ...], ...]] | None,
    axes_dim: tuple[int, ...],
    theta: float,
    device: torch.device,
) -> Tensor:
    """Of the segments that processes share out; place: a process's rank, and the tokens that each has of each."""
    whole = torch.cat([_rotations(rope, tokens, axes_dim, theta, device) for rope, tokens in order])
    if place is None:
        return whole
    rank, counts = place
    return torch.cat(whole.split([n for segment in counts for n in segment])[rank :: len(counts[0])])


def _runs(segments: Sequence[Segment], counts: Sequence[int], times: Sequence[Time]) -> Runs:
    occurring = [time for time in times if any(segment.time == time for segment in segments)]
    lengths: list[tuple[int, int]] = []
    for segment, count in zip(segments, counts, strict=True):
        time = occurring.index(segment.time)
        before = lengths.pop()[1] if lengths and lengths[-1][0] == time else 0
        lengths.append((time, before + count))
    return Runs(tuple(map(times.index, occurring)), tuple(lengths))


def pack(
    segments: Sequence[Segment],
    lengths: tuple[int, ...] | None = None,
    device: torch.device | None = None,
    dtype: torch.dtype = torch.float32,
    heads: int = 1,
    rule: Rule = "full",
) -> PackedLayout:
    """Layout of a batch on this process; a bias exists only where samples differ in text length or segments.

    Args:
        segments: the last one is padded to its `tokens`.
        lengths: valid tokens of the last segment in each sample; None where all are and all samples have all segments.
        device, dtype: of the bias.
        heads: of attention, which processes that share tokens divide among them.
        rule: see `PackedLayout`.

    Raises:
        ValueError: the heads cannot be shared evenly, or as `PackedLayout`.
    """
    tokens = [segment.tokens for segment in segments if not segment.shared]
    shards = shards_of(tokens, heads) if tokens else None
    segments = tuple(replace(s, present=None) if s.present is not None and all(s.present) else s for s in segments)
    layout = PackedLayout(segments, rule, shards=shards)
    if lengths is None or (min(lengths) == segments[-1].tokens and not layout.gaps):
        return layout
    before = sum(segment.tokens for segment in segments[:-1])
    bias = text_key_bias(lengths, before, segments[-1].tokens, device, dtype)
    for start, stop, present in layout.gaps:
        absent = ~to_device(torch.tensor(present), device or "cpu")
        bias[..., start:stop].masked_fill_(absent[:, None, None, None], float("-inf"))
    return replace(layout, text_lengths=lengths, key_bias=bias)


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
    if not torch.equal(mask, torch.arange(mask.shape[1], device="cpu") < lengths[:, None]):
        raise ValueError("encoder_attention_mask must be right-padded: valid tokens first, padding after them.")
    return tuple(lengths.tolist())


def text_tokens(longest: int, device: torch.device) -> int:
    """Tokens that the texts of a batch are padded to, from those of the longest one.

    On an accelerator a multiple of 64: texts of up to 256 tokens have four lengths, and neither kernels, compiled
    graphs nor blocks of memory are made anew for every other one. A CPU plans little and computes what it is given, so
    that there it is the longest text's own length.
    """
    return longest if device.type in ("cpu", "meta") else math.ceil(longest / TEXT_STEP) * TEXT_STEP


def padded_text(text_BLD: Tensor, longest: int) -> Tensor:
    """Texts cut or padded to `text_tokens`."""
    tokens = text_tokens(longest, text_BLD.device)
    missing = tokens - text_BLD.shape[1]
    return F.pad(text_BLD, (0, 0, 0, missing)) if missing > 0 else text_BLD[:, :tokens]


def text_key_bias(lengths: tuple[int, ...], before: int, text: int, device, dtype) -> Tensor:
    """Additive key bias (B, 1, 1, before + text): -inf on each sample's padded text tokens, 0 elsewhere."""
    counts = to_device(torch.tensor(lengths), device or "cpu")[:, None]
    valid = torch.arange(text, device=device) < counts
    bias = torch.zeros(len(lengths), 1, 1, before + text, device=device, dtype=dtype)
    bias[:, 0, 0, before:].masked_fill_(~valid, float("-inf"))
    return bias
