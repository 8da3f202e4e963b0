"""Counts of micro-batches when a run is resumed with another number of them per optimizer step."""

from __future__ import annotations

from typing import Any

STAGE_KEY = "icve"  # entry of trainer.ckpt: {stage, step, micro_steps, seed, data, precision[, weights_dtype]}


def resplit(checkpoint: dict[str, Any], micro_steps: int) -> None:
    """Make Lightning's counts in a checkpoint those of a run with so many micro-batches per step.

    With fewer processes, each has more micro-batches to make the same global batch.

    Raises:
        ValueError: the checkpoint is from the middle of a step.
    """
    before = checkpoint[STAGE_KEY]["micro_steps"]
    if before == micro_steps:
        return
    progress = checkpoint["loops"]["fit_loop"]["epoch_loop.batch_progress"]
    if (done := progress["total"]["processed"]) % before:
        raise ValueError(
            f"The checkpoint is from the middle of a step ({done % before} of {before} micro-batches): resume with "
            f"trainer.accumulate_grad_batches {before}, or from another checkpoint."
        )
    for counts in (progress["total"], progress["current"]):
        processed = counts["processed"]
        for name, count in counts.items():  # of the batch in progress, some are one behind
            counts[name] = processed // before * micro_steps - (processed - count)
