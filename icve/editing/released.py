"""An editor made of published weights: a transformer, and the codec and text encoders of the model it comes from."""

from __future__ import annotations

import logging
import os
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING

from icve.editing.editors import transformer_width

if TYPE_CHECKING:
    from icve.editing.pipeline import EditPipeline

log = logging.getLogger(__name__)


def released_editor(
    transformer: str | os.PathLike,
    base: str | os.PathLike,
    device: str,
    precision: str = "auto",
    processes: int = 1,
    say: Callable[[str], object] = log.info,
) -> EditPipeline:
    """Build the editor with the release's settings.

    Args:
        transformer: weights in any layout that `load_transformer` knows.
        base: folder of the model they were made from, as it was published (`Family.open_base`).
        device: where it will run.
        precision: of the transformer, see `icve.runtime.precision.editing_dtype`; "auto" is bfloat16 on an accelerator.
        processes: that edit together.
        say: called with what was measured to choose the precision, in one line.

    Raises:
        FileNotFoundError: a part is missing; the sentence says where it belongs.
        ValueError: a part is damaged or another model's.
    """
    import torch
    from diffusers.schedulers.scheduling_flow_match_euler_discrete import FlowMatchEulerDiscreteScheduler

    from icve.data.latent_grid import LatentGrid
    from icve.editing.pipeline import DEFAULTS, EditPipeline
    from icve.models.family import located
    from icve.models.loading import load_transformer, weights_family
    from icve.runtime.precision import editing_dtype

    family = weights_family(transformer)
    if family.open_base is None:
        raise ValueError(f"{family.name} has no published base model: give the editor's folder with --model.")
    codec, text_encoder = located(family.open_base)(base)
    defaults = DEFAULTS | dict(family.sampling)
    tokens = 2 * LatentGrid().tokens(defaults["height"], defaults["width"], defaults["num_frames"])
    width = transformer_width(Path(transformer))
    dtype, measured = editing_dtype(precision, torch.device(device).type, processes, tokens, width, torch.bfloat16)
    if measured:
        say(measured)
    dit = load_transformer(transformer, device=device, dtype=dtype)
    scheduler = FlowMatchEulerDiscreteScheduler(shift=defaults["shift"])
    return EditPipeline(codec, text_encoder, scheduler, dit, defaults=defaults).to(device)
