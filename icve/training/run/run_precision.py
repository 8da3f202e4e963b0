"""The precision of a run, told from its configuration and from what it resumes before anything is built."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from lightning.pytorch.utilities import rank_zero_info

from icve.data.buckets import Bucket
from icve.data.latent_grid import LatentGrid
from icve.runtime.precision import AUTO, default_device, named, training_precision
from icve.training.run.stage_checks import count_processes

Config = Mapping[str, Any]
_UNKNOWN_TOKENS, _UNKNOWN_WIDTH = 1024, 512  # of data and transformers of others


def run_precision(config: Config, begun: str | None) -> str:
    """Lightning's name of the precision that a run computes in; what there is to say of it is said.

    Args:
        config: of `icve fit` or `icve validate`.
        begun: precision of the run that is resumed, None for a new one. It is kept where the configuration leaves the
            precision open.
    """
    requested = config["trainer"]["precision"]
    kept = requested == AUTO and begun is not None
    if kept:
        rank_zero_info(f"Precision {begun}, with which the run began.")
    chosen, line = training_precision(begun if kept else requested, **run_size(config))
    if line:
        rank_zero_info(line)
    if begun is not None and named(chosen) != named(begun):
        rank_zero_info(f"The precision changes from {begun}, with which the run began, to {chosen}.")
    return chosen


def frozen_weights_dtype(trainer: Config, precision: str) -> str:
    """Dtype of the weights that an adapter is trained on, where the configuration leaves it open."""
    sixteen_bits = device_type(trainer) == "cuda" or named(precision).startswith("bf16")
    return "bfloat16" if sixteen_bits else "float32"


def run_size(config: Config) -> dict[str, Any]:
    """Type of device, number of processes, tokens of a pass and width of the transformer that a run will have."""
    trainer, data = config["trainer"], (config.get("data") or {}).get("init_args") or {}
    transformer = config["model"]["transformer"].get("init_args") or {}
    grid = LatentGrid(**dict(data.get("grid") or {}))
    largest = max((2 * grid.tokens(*Bucket.parse(bucket)) for bucket in data.get("buckets") or []), default=0)
    width = (transformer.get("num_attention_heads") or 0) * (transformer.get("attention_head_dim") or 0)
    return {
        "device": device_type(trainer),
        "processes": count_processes(trainer),
        "tokens": largest * int(data.get("batch_size") or 1) or _UNKNOWN_TOKENS,  # of source and target
        "width": width or _UNKNOWN_WIDTH,
    }


def device_type(trainer: Config) -> str:
    """ "cpu", "cuda" or "mps", as Lightning will choose; the name of another accelerator as it is."""
    accelerator = str(trainer.get("accelerator") or "auto")
    return default_device() if accelerator in ("auto", "gpu") else accelerator
