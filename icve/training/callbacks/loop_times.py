"""Seconds that Lightning's training loop spends in actions it announces to the trainer's profiler."""

import time
from collections import defaultdict

from lightning.pytorch.profilers import Profiler


class LoopTimes:
    """Sums up the time of actions, whichever profiler the trainer has; as many instances as wanted.

    Args:
        profiler: of the trainer.
    """

    NEXT_BATCH = "train_dataloader_next"
    CHECKPOINT = "save_checkpoint"

    def __init__(self, profiler: Profiler) -> None:
        self.seconds: dict[str, float] = defaultdict(float)  # in NEXT_BATCH and CHECKPOINT
        starts: dict[str, float] = {}
        start, stop = profiler.start, profiler.stop

        def timed_start(action_name: str) -> None:
            starts[action_name] = time.perf_counter()
            start(action_name)

        def timed_stop(action_name: str) -> None:
            stop(action_name)
            if action_name in starts:
                self.seconds[action_name.split(".")[-1]] += time.perf_counter() - starts.pop(action_name)

        vars(profiler).update(start=timed_start, stop=timed_stop)
