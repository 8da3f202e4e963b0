"""Callbacks for the configurations of tests: a signal at a stage's end, and a record of process groups."""

import os
import signal
from pathlib import Path

import torch.distributed as dist
from lightning.pytorch import Callback


class ToldAtTheEnd(Callback):
    """SIGUSR1 comes to one process of a stage when it has done its last step."""

    def __init__(self, stage: str, rank: int = 0):
        self.stage, self.rank = stage, rank

    def on_train_end(self, trainer, pl_module):
        if (pl_module.stage, trainer.global_rank) == (self.stage, self.rank):
            os.kill(os.getpid(), signal.SIGUSR1)


class GroupCount(Callback):
    """RUN/groups: how many groups of processes there are while the stage trains."""

    def on_train_start(self, trainer, pl_module):
        if trainer.is_global_zero:
            Path(trainer.default_root_dir, "groups").write_text(str(len(dist.distributed_c10d._world.pg_map)))
