"""The run that a training configuration describes, counted."""

from __future__ import annotations

import pydoc
from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any

import torch
from torch import nn

from icve.data.buckets import Bucket
from icve.data.latent_grid import LatentGrid
from icve.models.counting import Sample, block_depths, build_on_meta, count
from icve.models.families import arguments_of, family_of_class
from icve.models.lora import LoRA
from icve.preflight.encoding import Encoding, encoding_of
from icve.preflight.fits import Run, Sized
from icve.preflight.frozen_bytes import frozen_bytes
from icve.preflight.layouts import Model
from icve.runtime.precision import AUTO, named
from icve.training.distributed.activation_checkpointing import Checkpointing
from icve.training.run.configuration import parse_configuration

_DTYPES = {2: torch.bfloat16, 4: torch.float32}


def read_run(configs: Sequence[str], overrides: Sequence[str], text: int = 256, cached: bool = False) -> Run:
    """Count the run of `icve fit` with these configurations and overrides.

    Args:
        configs: YAML files.
        overrides: options of `icve fit`.
        text: valid text tokens of a sample.
        cached: no codec and text encoders are on the GPUs; so too where the data module reads latents.

    Raises:
        ValueError: the configuration cannot be used, or not be planned.
    """
    config = parse_configuration([*(word for path in configs for word in ("-c", path)), *overrides])
    kind, transformer = configured_transformer(config.model.transformer)
    lora = _adapter(config.model.start)
    empty: Any = build_on_meta(kind, transformer, lora=lora)
    grid = LatentGrid(**(dict(config.data.init_args.get("grid") or {}) | {"patch": empty.patch}))
    data = config.data.init_args
    if not data.get("buckets"):
        raise ValueError("The configuration's data module names no buckets: give --data.init_args.buckets.")
    if config.trainer.max_steps < 1:
        raise ValueError("The stage has no length: set trainer.max_steps to the number of optimizer steps.")
    cached = cached or data.get("latents") is not None
    precision = named(config.trainer.precision)
    precision = "bf16-mixed" if precision == AUTO else precision  # on the GPUs that are planned for
    weight = 2 if precision.startswith(("16", "bf16")) else 4
    channels = transformer["in_channels"]
    frozen = {name: released(part, channels) for name, part in config.model.frozen.items()}
    model = Model(
        **_parameters(empty, config.model.optimizer),
        adapted=0 if lora is None else _frozen_weights(empty, lora),
        frozen=0 if cached else sum(map(frozen_bytes, frozen.values())),
        width=transformer["num_attention_heads"] * transformer["attention_head_dim"],
        blocks=sum(block_depths(kind, transformer).values()),
        heads=transformer["num_attention_heads"],
        weight=weight,
        mixed=precision.endswith("mixed"),
        ema=any(callback["class_path"].endswith("EMA") for callback in config.trainer.callbacks or []),
    )
    buckets = [Bucket.parse(bucket) for bucket in data.buckets]
    references = bool(data.get("references"))
    ratios = data.get("bucket_ratios") or [1.0] * len(buckets)
    sized, counted = [], {}
    for bucket, ratio in zip(buckets, ratios, strict=True):
        sample = replace(latents(bucket, grid, text), reference=references)
        number = len(empty.latents + empty.context) * grid.tokens(*bucket) + text
        number += grid.tokens(bucket.height, bucket.width, 1) if references else 0
        if number not in counted:  # which side of the picture is the longer makes no difference
            counted[number] = count(kind, transformer, sample, _DTYPES[weight], lora)
        encoding = Encoding() if cached else encoding_of(frozen, bucket, text)
        sized.append(Sized(bucket, number, ratio / sum(ratios), counted[number], encoding))
    batch = data.batch_size * config.trainer.accumulate_grad_batches
    checkpointing = Checkpointing(config.model.checkpointing.mode, config.model.checkpointing.every)
    ahead = any(callback["class_path"].endswith("EncodeAhead") for callback in config.trainer.callbacks or [])
    return Run(config.model.stage, model, sized, batch, config.trainer.max_steps, checkpointing, ahead)


def configured_transformer(part: Mapping[str, Any]) -> tuple[type[nn.Module], dict[str, Any]]:
    """Class and all arguments of the configured transformer, defaults included.

    Raises:
        ValueError: it is of no model family.
    """
    family = family_of_class(part["class_path"])
    if family is None or part["class_path"] != family.transformer:
        raise ValueError(f"Only transformers of a model family can be planned, not {part['class_path']}.")
    kind = family.transformer_class()
    return kind, arguments_of(kind) | dict(part.get("init_args") or {})


def latents(bucket: Bucket, grid: LatentGrid, text: int) -> Sample:
    """Sizes of a bucket's latents.

    Raises:
        ValueError: the bucket does not consist of whole patches and latent frames.
    """
    try:
        grid.check(*bucket)
    except ValueError as error:
        raise ValueError(f"The bucket {bucket} cannot be trained on: {error}") from error
    return Sample(*grid.latents(*bucket), text)


def released(part: Mapping[str, Any], channels: int) -> dict[str, Any]:
    """A configured frozen part for counting, where its weights may be absent: `latent_channels` of the transformer tell
    a codec that was released in several sizes which one it is."""
    arguments = {**(part.get("init_args") or {}), "latent_channels": channels}
    return {"class_path": part["class_path"], "init_args": arguments}


def _adapter(start: Mapping[str, Any]) -> LoRA | None:
    lora = start.get("lora")
    return None if lora is None else LoRA(**lora)


def _frozen_weights(model: nn.Module, lora: LoRA) -> int:
    """Bytes of the weights that do not learn; "auto" is what a GPU gets."""
    dtype: torch.dtype = getattr(torch, "bfloat16" if lora.weights_dtype == AUTO else lora.weights_dtype)
    return dtype.itemsize * sum(parameter.numel() for parameter in model.parameters() if not parameter.requires_grad)


def _parameters(model: Any, optimizer: Mapping[str, Any]) -> dict[str, Any]:
    """Trained parameters, all of the largest block, and state bytes per trained one, by a step on the meta device."""
    blocks = [module for module in model.modules() if type(module).__name__ in model._repeated_blocks]
    trained = {name: parameter for name, parameter in model.named_parameters() if parameter.requires_grad}
    total = sum(parameter.numel() for parameter in trained.values())
    kind: Any = pydoc.locate(optimizer["class_path"])
    made = kind(list(trained.items()), **(optimizer.get("init_args") or {}))
    for parameter in trained.values():
        parameter.grad = torch.empty_like(parameter)
    try:
        made.step()
    except Exception as error:  # an optimizer with kernels of its own may raise anything on this device
        raise ValueError(
            f"The state of {optimizer['class_path']} cannot be counted without a GPU ({error}): plan with "
            "--model.optimizer torch.optim.AdamW."
        ) from error
    state = [value for entry in made.state.values() for value in entry.values() if isinstance(value, torch.Tensor)]
    return {
        "parameters": total,
        "block": max(sum(parameter.numel() for parameter in block.parameters()) for block in blocks),
        "optimizer": sum(tensor.nbytes for tensor in state) / total,
    }
