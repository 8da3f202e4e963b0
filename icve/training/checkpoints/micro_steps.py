"""Counts of micro-batches when a run is resumed with another number of them per optimizer step."""

from __future__ import annotations

from typing import Any

STAGE_KEY = "icve"  # entry of trainer.ckpt: {stage, step, batches, micro_steps, seed, precision[, weights_dtype]}


def resplit(checkpoint: dict[str, Any], micro_steps: int) -> int:
    """Make a checkpoint one of a run with so many micro-batches per step; returns how many of them it has done.

    With fewer processes, each has more micro-batches to make the same global batch.

    Raises:
        ValueError: the checkpoint is from the middle of a step.
    """
    done, before = checkpoint[STAGE_KEY]["batches"], checkpoint[STAGE_KEY]["micro_steps"]
    if before == micro_steps:
        return done
    if done % before:
        raise ValueError(
            f"The checkpoint is from the middle of a step ({done % before} of {before} micro-batches): resume with "
            f"trainer.accumulate_grad_batches {before}, or from another checkpoint."
        )
    progress = checkpoint["loops"]["fit_loop"]["epoch_loop.batch_progress"]
    for counts in (progress["total"], progress["current"]):
        for name, count in counts.items():
            counts[name] = count // before * micro_steps
    return done // before * micro_steps
