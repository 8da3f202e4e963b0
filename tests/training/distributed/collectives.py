"""Run by torchrun: trains under several strategies, and prints which collective operations each part of a step began.

Counted are those that Python asks `torch.distributed` for; DDP's reduction of gradients is not among them.
"""

import json
import logging
import sys
from collections import Counter
from functools import partial

import lightning.pytorch as L
import torch
import torch.distributed as dist

from icve.training.callbacks.ema import EMA
from icve.training.callbacks.monitor import TrainingMonitor
from icve.training.callbacks.nonfinite import SkipNonFinite
from icve.training.callbacks.stop_signal import StopOnSignal
from icve.training.checkpoints.checkpoint_io import CheckpointFolders
from icve.training.distributed import strategies
from icve.training.module import InContextEditingModule
from icve.training.objectives.in_context import InContext
from tests.training.conftest import TinyPairs, tiny_transformer, weightless

NAMES = ("all_reduce", "all_gather", "all_gather_object", "all_gather_into_tensor", "broadcast", "barrier", "reduce")
NAMES += ("broadcast_object_list", "gather", "gather_object", "all_to_all_single", "reduce_scatter_tensor", "scatter")
OURS = ("/icve/", "/lightning/")
# Their own: gradients and weights.
THEIRS = ("/deepspeed/", "/torch/distributed/fsdp/")


class Parts(L.Callback):
    """Counts what begins in the parts of every micro-batch: from its start, its backward pass and the step after it."""

    def __init__(self):
        self.parts = []

    def count(self, name, function):
        def counted(*args, **kwargs):
            frame = sys._getframe(1)
            while frame and not any(place in frame.f_code.co_filename for place in (*OURS, *THEIRS)):
                frame = frame.f_back
            file = frame.f_code.co_filename if frame else ""
            if self.parts and self.parts[-1][0] != "end" and not any(place in file for place in THEIRS):
                self.parts[-1][1][f"{name} {file.rsplit('/', 1)[-1]}"] += 1
            return function(*args, **kwargs)

        return counted

    def on_train_batch_start(self, *args):
        self.parts.append(("forward", Counter()))

    def on_before_backward(self, *args):
        self.parts.append(("backward", Counter()))

    def on_after_backward(self, *args):
        self.parts.append(("step", Counter()))

    def on_train_end(self, *args):
        self.parts.append(("end", Counter()))


def train(folder, strategy):
    """Six steps of two micro-batches, of which every third step reports."""
    parts, plain = Parts(), {name: getattr(dist, name) for name in NAMES}
    for name, function in plain.items():
        setattr(dist, name, parts.count(name, function))
    try:
        module = InContextEditingModule(
            tiny_transformer(), weightless(), InContext(), "tiny", partial(torch.optim.AdamW, lr=1e-3)
        )
        L.Trainer(
            max_steps=6,
            strategy=strategy,
            accelerator="cpu",
            devices=2,
            default_root_dir=folder,
            callbacks=[parts, EMA(), SkipNonFinite(), TrainingMonitor(), StopOnSignal()],
            plugins=[CheckpointFolders()],
            accumulate_grad_batches=2,
            gradient_clip_val=1.0,
            log_every_n_steps=3,
            logger=False,
            enable_progress_bar=False,
            enable_model_summary=False,
            enable_checkpointing=False,
            num_sanity_val_steps=0,
            check_val_every_n_epoch=None,
            val_check_interval=1000,
        ).fit(module, datamodule=TinyPairs())
    finally:
        for name, function in plain.items():
            setattr(dist, name, function)
    return parts.parts


if __name__ == "__main__":
    logging.getLogger("lightning.pytorch").setLevel(logging.ERROR)
    for choice in sys.argv[2:]:
        kind, size = choice.split(":")
        options = {"process_group_backend": "gloo", "sequence_parallel_size": int(size)}
        found = train(sys.argv[1], getattr(strategies, kind)(**options))
        if dist.get_rank() == 0:
            print("FOUND " + json.dumps([kind, found]))
