"""Whether a codec or text encoder is still what it was, by class, configuration and weights."""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Protocol, runtime_checkable

import torch
from torch import Tensor, nn

_SAMPLED = 4096  # values read of a large weight tensor
_SHOWN = 60  # characters of a value shown in an error


@runtime_checkable
class _DigestsItself(Protocol):
    config: Any

    def weights_digest(self) -> str: ...


def describe_encoder(module: nn.Module) -> dict[str, Any]:
    """What a codec's or text encoder's output depends on: ``class``, ``config`` and a digest of its ``weights``.

    Left out of the configuration are private entries and paths that exist: where weights lie says nothing about them,
    and the digest speaks for their content. The digest is the encoder's own where it has a method
    ``weights_digest() -> str`` (one that reads its weights late has, so that training from a cache never does);
    otherwise it reads names, shapes, precision and up to 4096 values, spread evenly, of every tensor.
    """
    kind = f"{type(module).__module__}.{type(module).__qualname__}"
    if isinstance(module, _DigestsItself):
        return {"class": kind, "config": _settings(module.config), "weights": module.weights_digest()}
    config: dict[str, Any] = {}
    described: set[int] = set()
    for name, part in module.named_modules():
        settings = _settings(getattr(part, "config", None))
        # The blocks of a transformers model all refer to the model's own configuration.
        if settings and id(part.config) not in described:
            described.add(id(part.config))
            config |= {f"{name}.{key}".lstrip("."): value for key, value in settings.items()}
    weights = hashlib.blake2b(digest_size=16)
    for name, tensor in sorted(module.state_dict().items()):
        weights.update(f"{name}/{tuple(tensor.shape)}/{tensor.dtype}/".encode())
        weights.update(_sample(tensor))
    return {"class": kind, "config": config, "weights": weights.hexdigest()}


def difference(there: Mapping[str, Any], here: Mapping[str, Any], name: str) -> str | None:
    """First difference of two descriptions by :func:`describe_encoder`, in words, or None."""
    if there["class"] != here["class"]:
        return f"its {name} is {there['class']} and the configuration's is {here['class']}"
    for key in sorted(there["config"].keys() | here["config"].keys()):
        values = [_short(side["config"][key]) if key in side["config"] else "absent" for side in (there, here)]
        if there["config"].get(key) != here["config"].get(key) or "absent" in values:
            return f"{key} of its {name} is {values[0]} and the configuration's is {values[1]}"
    return None if there["weights"] == here["weights"] else f"its {name} had other weights"


def _settings(config: Any) -> dict[str, Any]:
    """A configuration of diffusers or transformers as JSON has it; nothing for anything else."""
    if hasattr(config, "to_diff_dict"):  # what differs from the defaults, which grow with every version
        config = config.to_diff_dict()
    if not isinstance(config, Mapping):
        return {}
    kept = {
        name: value
        for name, value in config.items()
        if not name.startswith("_")
        and name != "transformers_version"
        and not (isinstance(value, str | Path) and value and os.path.exists(value))
    }
    return json.loads(json.dumps(kept, sort_keys=True, default=str))


def _sample(tensor: Tensor) -> bytes:
    if tensor.numel() == 0 or tensor.is_meta:
        return b""
    count = tensor.numel()
    index = torch.linspace(0, count - 1, min(count, _SAMPLED), dtype=torch.float64).long()
    values = tensor.detach().reshape(-1)[index.to(tensor.device)]
    return values.cpu().contiguous().view(torch.uint8).numpy().tobytes()


def _short(value: Any) -> str:
    text = json.dumps(value)
    return text if len(text) <= _SHOWN else f"{text[:_SHOWN]}…"
