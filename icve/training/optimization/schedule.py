"""Learning-rate schedules as a factor of every parameter group's own learning rate."""

import math
from collections.abc import Callable
from typing import Literal

Schedule = Literal["constant", "cosine"]


def learning_rate_factor(
    kind: Schedule, warmup_steps: int, total_steps: int, final_factor: float = 0.0
) -> Callable[[int], float]:
    """Linear warm-up to 1, then constant, or half a cosine down to `final_factor` at the last step.

    Args:
        kind: "constant" or "cosine".
        warmup_steps: steps until the factor is 1; step 0 already learns, with factor 1/warmup_steps.
        total_steps: length of the stage; only "cosine" needs it (then > 0).
        final_factor: what remains of the learning rate at the end of "cosine", in [0, 1].

    Raises:
        ValueError: for an unknown kind, or "cosine" without a length.
    """
    if kind not in ("constant", "cosine"):
        raise ValueError(f"The schedule must be 'constant' or 'cosine', got {kind!r}.")
    if kind == "cosine" and total_steps <= 0:
        raise ValueError("The cosine schedule needs the length of the stage: set trainer.max_steps.")
    decay_steps = max(total_steps - warmup_steps, 1)

    def factor(step: int) -> float:
        if step < warmup_steps:
            return (step + 1) / warmup_steps
        if kind == "constant":
            return 1.0
        progress = min((step - warmup_steps) / decay_steps, 1.0)
        return final_factor + (1.0 - final_factor) * 0.5 * (1.0 + math.cos(math.pi * progress))

    return factor
