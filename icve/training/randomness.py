"""Random decisions as a pure function of where in the training they are taken.

Noise, noise level and instruction dropout of a sample depend on (seed, stage, step within the stage, position in the
global batch) and on nothing else: not on rank, world size, worker count, wall time or restarts. A resumed run draws
what the uninterrupted run would have drawn, without any generator state to save.
"""

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from icve.runtime.transfers import to_device


def generator(seed: int, stage: str, step: int, position: int | str, purpose: str) -> torch.Generator:
    """A CPU generator for one decision about one sample.

    Args:
        seed: the run's seed.
        stage: name of the training stage.
        step: optimizer step within the stage, from 0.
        position: place of the sample in the global batch of that step, over all ranks and accumulation micro-steps;
            or a sample id, where the draw must not depend on the order of the samples (validation).
        purpose: what is drawn ("noise", "sigma", ...); different purposes are independent.

    Returns:
        A freshly seeded generator: equal arguments give equal draws, on every machine.
    """
    key = "\x1f".join((str(int(seed)), stage, str(int(step)), str(position), purpose))
    digest = hashlib.blake2b(key.encode(), digest_size=8).digest()
    return torch.Generator().manual_seed(int.from_bytes(digest, "little") >> 1)


@dataclass(frozen=True)
class Draws:
    """Random decisions about the samples of a micro-batch; every purpose is independent of the others.

    Attributes:
        seed, stage, step: see `generator`.
        positions: of each sample, or its id.
        total: samples of the step's global batch, which `stratified` spreads its numbers over.
    """

    seed: int
    stage: str
    step: int
    positions: Sequence[int | str]
    total: int = 1

    def generators(self, purpose: str) -> list[torch.Generator]:
        """One fresh CPU generator per sample."""
        return [generator(self.seed, self.stage, self.step, position, purpose) for position in self.positions]

    def uniform(self, purpose: str, dtype: torch.dtype = torch.float32) -> list[float]:
        """One number in [0, 1) per sample, with as many digits as the type has."""
        return [float(torch.rand((), generator=g, dtype=dtype)) for g in self.generators(purpose)]

    def stratified(self, purpose: str) -> list[float]:
        """One number in [0, 1) per sample: those of a global batch are one in each of `total` equal parts of [0, 1).

        Which position has which part is drawn for the step, and the place in the part for the position, in float64.
        """
        strata = generator(self.seed, self.stage, self.step, "all", purpose)
        parts = torch.randperm(self.total, generator=strata).tolist()
        within = self.uniform(purpose, torch.float64)
        # Where more came than were announced, they begin again: each number is uniform all the same.
        places = [int(position) % self.total for position in self.positions]
        return [(parts[place] + offset) / self.total for place, offset in zip(places, within, strict=True)]

    def normal(self, purpose: str, like: Tensor) -> Tensor:
        """Standard normal noise of the shape and on the device of `like` (B, ...), float32.

        It is drawn on the CPU, so that every device trains on the same noise.
        """
        drawn = [torch.randn(like.shape[1:], generator=g) for g in self.generators(purpose)]
        return to_device(torch.stack(drawn), like.device)
