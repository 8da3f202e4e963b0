"""Ulysses sequence parallelism: several processes share the tokens of one sample (Jacobs et al., arXiv 2309.14509).

Every process holds a slice of the source's and of the target's tokens, and all text tokens. Around attention, heads
are exchanged for tokens: a process then has a share of the heads, for which it sees the whole sequence. Slices may
differ by one token, so nothing need divide anything but the heads.

Gradients: every process of a group computes the whole loss, so the gradient of its parameters, summed over the group,
is the group's size times the true one; averaging over *all* processes, as for data parallelism alone, is then exact.

Shape legend: B batch, n tokens of this process, N of all, L text tokens, H heads, h = H / processes, D head width.
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import torch
import torch.distributed as dist
from torch import Tensor
from torch.distributed import ProcessGroup
from torch.distributed._functional_collectives import all_to_all_single_autograd

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
        group: the processes.
        source, target: tokens of each.
    """

    group: ProcessGroup
    source: Sequence[int]
    target: Sequence[int]

    @property
    def rank(self) -> int:
        return dist.get_rank(self.group)

    @property
    def size(self) -> int:
        return len(self.source)

    def take(self, tokens: Tensor, dim: int) -> Tensor:
        """This process's part [source slice | target slice] of [source | target] along a dimension."""
        parts = tokens.split([*self.source, *self.target], dim)
        return torch.cat([parts[self.rank], parts[self.size + self.rank]], dim)

    def gather_target(self, tokens_BnD: Tensor) -> Tensor:
        """The target tokens of all processes (B, N, D) from this one's."""
        return _gather(tokens_BnD, self.group, self.target)

    def to_heads(self, query: Tensor, key: Tensor, value: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """(B, n + L, H, D) each to (B, N + L, h, D): all tokens, visual ones first, for this process's heads.

        One exchange for the three; the text, which every process has, is not sent.
        """
        visual = self.source[self.rank] + self.target[self.rank]
        counts = [a + b for a, b in zip(self.source, self.target, strict=True)]
        three = torch.stack([query, key, value])  # 3 B n+L H D
        three = three.unflatten(3, (self.size, -1))  # 3 B n+L P h D
        sent = three[:, :, :visual].permute(3, 2, 0, 1, 4, 5)  # P n 3 B h D
        rest = sent.shape[2:]
        received = all_to_all_single_autograd(
            sent.flatten(0, 1).contiguous(), list(counts), [visual] * self.size, self.group
        ).view(sum(counts), *rest)
        received = received.permute(1, 2, 0, 3, 4)  # 3 B N h D
        return tuple(torch.cat([received, three[:, :, visual:, self.rank]], dim=2).unbind())

    def to_tokens(self, attended: Tensor) -> Tensor:
        """(B, N + L, h, D) back to (B, n + L, H, D)."""
        counts = [a + b for a, b in zip(self.source, self.target, strict=True)]
        mine, total = counts[self.rank], sum(counts)
        sent = attended[:, :total].transpose(0, 1).contiguous()  # N B h D
        received = all_to_all_single_autograd(sent, [mine] * self.size, list(counts), self.group)
        visual = received.view(self.size, mine, *sent.shape[1:]).permute(2, 1, 0, 3, 4).flatten(2, 3)  # B n H D
        text = attended[:, total:].transpose(1, 2).contiguous()  # B h L D
        text = _gather(text, self.group, [text.shape[1]] * self.size).transpose(1, 2)
        return torch.cat([visual, text], dim=1)


def shards_of(source: int, target: int, heads: int) -> Shards | None:
    """The shards of a sample with so many tokens, or None where no tokens are shared.

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
    return Shards(_group, split_sizes(source, size), split_sizes(target, size))


def _gather(part: Tensor, group: ProcessGroup, counts: Sequence[int]) -> Tensor:
    """Concatenate along dimension 1 what the processes have; backward sums their gradients of each one's part."""
    # Not all_gather, which wants equal parts of some backends.
    sent = part.transpose(0, 1).repeat(len(counts), *[1] * (part.ndim - 1))
    received = all_to_all_single_autograd(sent, list(counts), [part.shape[1]] * len(counts), group)
    return received.transpose(0, 1)
