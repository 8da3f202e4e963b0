"""Seconds that Lightning's training loop spends in actions it announces to the trainer's profiler."""

import time

from lightning.pytorch.profilers import Profiler


class LoopTimes:
    """Sums up the time of actions, whichever profiler the trainer has; as many instances as wanted.

    Args:
        profiler: of the trainer.
    """

    NEXT_BATCH = "train_dataloader_next"
    CHECKPOINT = "save_checkpoint"

    def __init__(self, profiler: Profiler) -> None:
        self._seconds: dict[str, float] = {}
        self._begun: dict[str, float] = {}
        self._profiler, start, stop = profiler, profiler.start, profiler.stop

        def timed_start(action_name: str) -> None:
            self._begun[action_name] = time.perf_counter()
            start(action_name)

        def timed_stop(action_name: str) -> None:
            stop(action_name)
            if action_name in self._begun:
                action, seconds = action_name.split(".")[-1], time.perf_counter() - self._begun.pop(action_name)
                self._seconds[action] = self[action] + seconds

        vars(profiler).update(start=timed_start, stop=timed_stop)

    def __getitem__(self, action: str) -> float:
        """Seconds in an action since the last :meth:`clear`; NEXT_BATCH or CHECKPOINT."""
        return self._seconds.get(action, 0.0)

    def clear(self) -> None:
        """Start to measure anew."""
        self._seconds.clear()
