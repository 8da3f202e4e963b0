"""Bytes of the frozen parts, from their configurations; no weights are read."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch

from icve.models.family import located


def frozen_bytes(part: Mapping[str, Any]) -> int:
    """Bytes of a codec or text encoder on a GPU, as it stands in a configuration (`class_path`, `init_args`).

    Parts whose class counts none (`FrozenComponent.count_parameters`) have no weights.
    """
    kind = located(part["class_path"])
    if not hasattr(kind, "count_parameters"):
        return 0
    arguments = part.get("init_args") or {}
    dtype: torch.dtype = getattr(torch, arguments.get("dtype") or kind.PRECISION)
    with torch.device("meta"):
        return dtype.itemsize * kind.count_parameters(arguments)
