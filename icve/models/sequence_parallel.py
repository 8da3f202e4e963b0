"""Ulysses sequence parallelism: several processes share the tokens of one sample (Jacobs et al., arXiv 2309.14509).

Each rank holds a shard of every segment that is shared out (source, target, ...), and all of the shared ones (text).
An all-to-all before attention gives each rank the whole sequence for a part of the heads; another one after attention
gives the shards back. Shards may differ by one token: only the number of heads must be a multiple of the number of
ranks.

An all-to-all is started and waited for in two places, so that a block computes what needs no attention meanwhile. In
the backward pass it starts where the forward pass waited for it, and is waited for where the forward pass started it.

Gradients: each rank of a sequence-parallel group computes the whole loss. The gradients of a group's ranks therefore
sum to the group's size times the true gradient, and the mean over all ranks is exact, as in plain data parallelism.

Shape legend: B batch, n tokens of this process, N of all, L shared tokens, H heads, h = H / processes, D head width.
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.distributed import ProcessGroup

_group: ProcessGroup | None = None


def set_sequence_parallel(group: ProcessGroup | None) -> None:
    """Let the transformers of this process share their tokens with the others of a group; None: with nobody."""
    global _group
    _group = group if group is not None and group.size() > 1 else None


@contextlib.contextmanager
def sequence_parallel(group: ProcessGroup | None) -> Iterator[None]:
    """`set_sequence_parallel` for a while."""
    before = _group
    set_sequence_parallel(group)
    try:
        yield
    finally:
        set_sequence_parallel(before)


def split_sizes(tokens: int, processes: int) -> list[int]:
    """Tokens of each process: as even as can be, the first ones have one more."""
    share, more = divmod(tokens, processes)
    return [share + (rank < more) for rank in range(processes)]


@dataclass(frozen=True)
class Shards:
    """How the tokens of one sample lie on the processes of a group.

    Attributes:
        group: the name of the processes' group.
        rank: of this process among them.
        segments: tokens that each process has, of every segment that is shared out.
    """

    group: str
    rank: int
    segments: tuple[Sequence[int], ...]

    @property
    def size(self) -> int:
        return len(self.segments[0])

    @property
    def totals(self) -> list[int]:
        """Tokens of all segments together, of each process."""
        return [sum(counts) for counts in zip(*self.segments, strict=True)]

    def take(self, tokens: Tensor, dim: int) -> Tensor:
        """This process's part of every segment, from all segments' tokens one after the other along a dimension."""
        parts = tokens.split([count for counts in self.segments for count in counts], dim)
        return torch.cat(parts[self.rank :: self.size], dim)

    def gather(self, tokens_BnD: Tensor, segment: int) -> Tensor:
        """A segment's tokens of all processes (B, N, D) from this one's."""
        return _gather(tokens_BnD, self.group, self.segments[segment])()

    def to_heads(self, *projections: Tensor) -> Callable[[], Iterator[Tensor]]:
        """Start one exchange that turns projections (B, n, H, D) of a process's tokens into (B, N, h, D) each.

        Returns:
            What waits for it and gives them in order.
        """
        by_head = (x.unflatten(2, (self.size, -1)).permute(2, 1, 0, 3, 4) for x in projections)  # P n B h D
        sent = torch.stack(list(by_head), dim=2).flatten(0, 1)  # P·n 3 B h D
        received = _exchange(sent, self.totals, [projections[0].shape[1]] * self.size, self.group)
        return lambda: (x.transpose(0, 1) for x in received().unbind(1))

    def my_heads(self, shared: Tensor) -> Tensor:
        """This process's heads (B, L, h, D) of the shared tokens' (B, L, H, D), which needs no exchange."""
        return shared.unflatten(2, (self.size, -1))[:, :, self.rank]

    def to_tokens(self, attended: Tensor) -> tuple[Callable[[], Tensor], Callable[[], Tensor]]:
        """Start the ways back of (B, N + L, h, D): this process's tokens (B, n, H, D) and all shared ones (B, L, H, D).

        Returns:
            What waits for each. The shared tokens' is under way first: they are few.
        """
        own, shared = attended.tensor_split([sum(self.totals)], dim=1)
        heads = [shared.shape[2]] * self.size
        # Nothing is exchanged where nothing is shared: nobody would wait for it.
        gathered = _gather(shared.transpose(1, 2), self.group, heads) if shared.shape[1] else None  # B H L D
        mine = self.totals[self.rank]
        received = _exchange(own.transpose(0, 1).contiguous(), [mine] * self.size, self.totals, self.group)

        def tokens() -> Tensor:
            by_head = received().unflatten(0, (self.size, mine))  # P n B h D
            return by_head.permute(2, 1, 0, 3, 4).flatten(2, 3)

        def common() -> Tensor:
            return shared.repeat(1, 1, self.size, 1) if gathered is None else gathered().transpose(1, 2)

        return tokens, common


def sequence_parallel_group() -> ProcessGroup | None:
    """The processes that share a sample's tokens with this one, None where there are none."""
    return _group


def shards_of(tokens: Sequence[int], heads: int) -> Shards | None:
    """The shards of a sample whose segments have so many tokens, or None where no tokens are shared out.

    Raises:
        ValueError: the heads cannot be shared evenly.
    """
    if _group is None:
        return None
    size = _group.size()
    if heads % size:
        raise ValueError(
            f"{heads} attention heads cannot be shared by {size} processes: choose a sequence-parallel size that "
            f"divides {heads}."
        )
    return Shards(_group.group_name, _group.rank(), tuple(split_sizes(count, size) for count in tokens))


def _gather(part: Tensor, group: str, counts: Sequence[int]) -> Callable[[], Tensor]:
    """Start to concatenate along dimension 1 what the processes have; backward sums their gradients of each one's part.

    Returns:
        What waits for it.
    """
    # Not all_gather, which wants equal parts of some backends.
    sent = part.transpose(0, 1).repeat(len(counts), *[1] * (part.ndim - 1))
    received = _exchange(sent, counts, [part.shape[1]] * len(counts), group)
    return lambda: received().transpose(0, 1)


def _exchange(sent: Tensor, received: Sequence[int], counts: Sequence[int], group: str) -> Callable[[], Tensor]:
    """Start an all-to-all of the rows of a contiguous tensor.

    Args:
        sent: first the rows for the first process of the group.
        received: rows that come from each process.
        counts: rows that go to each.
        group: name of the processes' group.

    Returns:
        What waits for it and gives the rows that came.
    """
    how = list(received), list(counts), group
    under_way = torch.ops.icve.start_exchange(sent, *how)
    return lambda: torch.ops.icve.wait_for_exchange(*under_way, *how)


class _Start(torch.autograd.Function):
    """Start an all-to-all. Backward waits for the gradient.

    Autograd wants the gradient of what came to have its shape, but on its way back it has the shape of what was sent.
    Hence the second result, without memory, of that shape: values go forward by the first one, the gradient comes back
    by the second one. Nothing is kept elsewhere, so that a compiler may trace it.

    Returns:
        The rows under way, which only `_Wait` may look at, and a tensor that stands for those that were sent.
    """

    @staticmethod
    def forward(ctx, sent: Tensor, received: list[int], counts: list[int], group: str) -> tuple[Tensor, Tensor]:
        under_way = torch.ops._c10d_functional.all_to_all_single(sent, received, counts, group)
        ctx.mark_non_differentiable(under_way)
        return under_way, sent.new_empty(()).expand(sent.shape)

    @staticmethod
    def backward(ctx, _: Tensor, gradient: Tensor) -> tuple[Tensor, None, None, None]:
        return torch.ops._c10d_functional.wait_tensor(gradient), None, None, None


class _Wait(torch.autograd.Function):
    """Wait for what `_Start` started. Backward starts the exchange of the gradient."""

    @staticmethod
    def forward(ctx, under_way: Tensor, sent: Tensor, received: list[int], counts: list[int], group: str) -> Tensor:
        ctx.how = counts, received, group
        return torch.ops._c10d_functional.wait_tensor(under_way)

    @staticmethod
    def backward(ctx, gradient: Tensor) -> tuple[None, Tensor, None, None, None]:
        back = torch.ops._c10d_functional.all_to_all_single(gradient.contiguous(), *ctx.how)
        return None, back, None, None, None


# As operators, because torch's tracer (2.13) cannot put an autograd function with symbolic sizes into a checkpointed
# graph. Composite ones are opened where gradients are worked out, so that the compiler sees torch's own collectives.
_HOW = "SymInt[] received, SymInt[] counts, str group"
for _name, _arguments, _function in (
    ("start_exchange", f"(Tensor sent, {_HOW}) -> (Tensor, Tensor)", _Start),
    ("wait_for_exchange", f"(Tensor under_way, Tensor sent, {_HOW}) -> Tensor", _Wait),
):
    torch.library.define(f"icve::{_name}", _arguments)
    torch.library.impl(f"icve::{_name}", "CompositeImplicitAutograd", _function.apply)
