"""Whether processes can share the batches of a run, told from its configuration before anything is built."""

from __future__ import annotations

import pydoc
from collections.abc import Mapping
from typing import Any

from lightning.pytorch.accelerators import CPUAccelerator, CUDAAccelerator

from icve.data.pairs import PairsDataModule
from icve.training.distributed.ulysses import count_groups
from icve.training.run.launchers import cluster_environment

Config = Mapping[str, Any]


def check_batches(trainer: Config, data: Config) -> None:
    """Check that the groups of processes of a run can share its batches; of data modules of others, nothing is known.

    Args:
        trainer: its configuration.
        data: configuration of the data module.

    Raises:
        ValueError: they cannot, or sequence_parallel_size does not divide the processes.
    """
    strategy = trainer.get("strategy")
    options = (strategy.get("init_args") or {}) if isinstance(strategy, Mapping) else {}
    groups = count_groups(count_processes(trainer), options.get("sequence_parallel_size", 1))
    kind = pydoc.locate(data["class_path"])
    if not (isinstance(kind, type) and issubclass(kind, PairsDataModule)):
        return
    module = kind(**(data.get("init_args") or {}))
    sizes = module.step_sizes(groups, trainer.get("accumulate_grad_batches", 1))
    for bucket, ratio in enumerate(module.bucket_ratios or [1.0] * len(module.buckets)):
        if ratio > 0:
            sizes.check(bucket)


def count_processes(trainer: Config) -> int:
    """Processes of a run: those that its launcher started, else those that Lightning will start.

    Raises:
        ValueError: Slurm was asked for processes in a way that Lightning cannot count.
    """
    if (environment := cluster_environment()) is not None:
        return environment.world_size()
    devices = trainer.get("devices", "auto")  # of a node; which of them are there is for Lightning to say
    if isinstance(devices, str) and "," in devices:
        devices = [name for name in devices.split(",") if name.strip()]
    if isinstance(devices, list):
        devices = len(devices)
    elif devices in ("auto", None, -1, "-1"):
        gpus = trainer.get("accelerator", "auto") in ("auto", "gpu", "cuda") and CUDAAccelerator.is_available()
        devices = (CUDAAccelerator if gpus else CPUAccelerator).auto_device_count()
    return int(devices) * int(trainer.get("num_nodes") or 1)
