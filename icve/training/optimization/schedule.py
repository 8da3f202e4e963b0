"""Learning-rate schedules as a factor of every parameter group's own learning rate."""

import math
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Literal


@dataclass(frozen=True)
class Schedule:
    """Linear warm-up to 1, then constant, or half a cosine down to `final_factor` at the last step.

    Args:
        shape: "constant" or "cosine", after the warm-up.
        warmup_steps: optimizer steps until the factor is 1; step 0 already learns, with factor 1/warmup_steps.
        final_factor: what remains of the learning rate at the end of "cosine", in [0, 1].
        parts: regular expression, searched in the parameters' names → factor of their learning rate all along; the
            first that matches counts.

    Raises:
        ValueError: for an unknown shape or a value out of range.
    """

    shape: Literal["constant", "cosine"] = "constant"
    warmup_steps: int = 0
    final_factor: float = 0.0
    parts: dict[str, float] = field(default_factory=dict)

    def __post_init__(self) -> None:
        if self.shape not in ("constant", "cosine"):
            raise ValueError(f"The schedule must be 'constant' or 'cosine', got {self.shape!r}.")
        if self.warmup_steps < 0 or not 0 <= self.final_factor <= 1:
            raise ValueError("warmup_steps must not be negative, and final_factor lies in [0, 1].")

    def factor(self, total_steps: int) -> Callable[[int], float]:
        """The factor at every step of a stage of this length, which only "cosine" needs (then > 0).

        Raises:
            ValueError: "cosine" without a length.
        """
        if self.shape == "cosine" and total_steps <= 0:
            raise ValueError("The cosine schedule needs the length of the stage: set trainer.max_steps.")
        decay_steps = max(total_steps - self.warmup_steps, 1)

        def at(step: int) -> float:
            if step < self.warmup_steps:
                return (step + 1) / self.warmup_steps
            if self.shape == "constant":
                return 1.0
            progress = min((step - self.warmup_steps) / decay_steps, 1.0)
            return self.final_factor + (1.0 - self.final_factor) * 0.5 * (1.0 + math.cos(math.pi * progress))

        return at
