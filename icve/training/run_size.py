"""What the precision of a run depends on, told from its configuration before anything is built."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from lightning.pytorch.accelerators import CUDAAccelerator, MPSAccelerator

from icve.data.buckets import Bucket
from icve.training.stage_checks import count_processes

Config = Mapping[str, Any]
_UNKNOWN_TOKENS, _UNKNOWN_WIDTH = 1024, 512  # of data and transformers of others


def run_size(config: Config) -> dict[str, Any]:
    """Type of device, number of processes, tokens of a pass and width of the transformer that a run will have.

    Args:
        config: of `icve fit` or `icve validate`.
    """
    trainer = config["trainer"]
    return {
        "device": device_type(trainer),
        "processes": count_processes(trainer),
        "tokens": _tokens(config.get("data") or {}),
        "width": _width(config["model"]["transformer"]),
    }


def device_type(trainer: Config) -> str:
    """ "cpu", "cuda" or "mps", as Lightning will choose; the name of another accelerator as it is."""
    accelerator = str(trainer.get("accelerator") or "auto")
    if accelerator in ("auto", "gpu"):
        if CUDAAccelerator.is_available():
            return "cuda"
        return "mps" if MPSAccelerator.is_available() else "cpu"
    return accelerator


def _tokens(data: Config) -> int:
    """Source and target tokens of the largest bucket's pass."""
    options = data.get("init_args") or {}
    if not options.get("buckets"):
        return _UNKNOWN_TOKENS
    most = max(Bucket.parse(bucket).tokens for bucket in options["buckets"])
    return most * int(options.get("batch_size") or 1)


def _width(transformer: Config) -> int:
    options = transformer.get("init_args") or {}
    heads, head_dim = (options.get(name) for name in ("num_attention_heads", "attention_head_dim"))
    return heads * head_dim if heads and head_dim else _UNKNOWN_WIDTH
