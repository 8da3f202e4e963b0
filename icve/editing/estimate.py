"""What editing will do and how long it will take, from a step of each kind rather than from a whole edit."""

from __future__ import annotations

import time
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from icve.editing.batch import batch_size_for
from icve.editing.items import Item
from icve.editing.jobs import Clip, Settings, plan
from icve.editing.processes import Processes
from icve.flow import sampling_sigmas, shift_sigma

if TYPE_CHECKING:
    from icve.editing.pipeline import EditPipeline


def seconds_per_batch(
    pipeline: EditPipeline, shape: tuple[int, int, int], size: int, sampling: dict[str, Any]
) -> float:
    """Seconds that a batch of ``size`` windows of ``shape`` (height, width, frames) spends in model and codec.

    Measured on random pixels: one step with guidance, one without, and the codec; multiplied by the steps of either
    kind that ``sampling`` (arguments of ``EditPipeline.edit_latents``) asks for.
    """
    import torch

    height, width, frames = shape
    video = torch.randint(0, 256, (size, 3, frames, height, width), dtype=torch.uint8)
    words = ["make the picture brighter"] * size

    def timed(work, *arguments, **options) -> tuple[Any, float]:
        best, result = float("inf"), None
        for _ in range(2):  # the first call warms up
            started = time.perf_counter()
            with torch.inference_mode():
                result = work(*arguments, **options)
            if pipeline.device.type == "cuda":
                torch.cuda.synchronize(pipeline.device)
            best = min(best, time.perf_counter() - started)
        return result, best

    latents, seconds = timed(pipeline.encode_video, video)
    shift = pipeline.default_shift(latents.shape[2:]) if sampling["shift"] is None else sampling["shift"]
    sigmas = sampling_sigmas(sampling["num_inference_steps"], shift, pipeline.config.prediction)
    guided = (
        0
        if sampling["guidance_scale"] == 1
        else sum(shift_sigma(sigma, shift) > sampling["guidance_until"] for sigma in sigmas)
    )
    for count, scale in ((guided, sampling["guidance_scale"]), (len(sigmas) - guided, 1.0)):
        if count:
            one = sampling | {"num_inference_steps": 1, "guidance_scale": scale}
            seconds += count * timed(pipeline.edit_latents, latents, words, **one)[1]
    return seconds + timed(pipeline.decode_latents, latents)[1]


def print_estimate(
    pipeline: EditPipeline, items: Sequence[Item], settings: Settings, output: Path, processes: Processes
) -> int:
    """Print what all groups of processes would do; returns the number of items that would fail.

    The time is extrapolated from one step at every size.
    """
    work, refused = plan(items, settings)
    for item, error in refused:
        print(f"would fail: {item.id}: {error}")
    groups: dict[tuple, list[tuple[Clip, list[Item]]]] = {}
    for clip, group in work:
        groups.setdefault((clip.shape, clip.info.displayed), []).append((clip, group))
    total = 0.0
    timed: dict[tuple, float] = {}
    for (shape, displayed), found in groups.items():
        edits = sum(len(group) for _, group in found)
        count = sum(len(clip.spans) * len(group) for clip, group in found)
        size = min(batch_size_for(shape, settings), count)
        if (shape, size) not in timed:
            timed[shape, size] = seconds_per_batch(pipeline, shape, size, settings.sampling)
        seconds = timed[shape, size] * count / size / processes.groups
        total += seconds
        written = shape[:2] if settings.size == "model" else displayed
        print(
            f"{edits} edits of {len(found)} clips of {displayed[1]}x{displayed[0]}: edited at {shape[1]}x{shape[0]} in "
            f"{count} windows of {shape[2]} frames, batches of {size}; written at {written[1]}x{written[0]}; "
            f"about {_duration(seconds)}"
        )
    steps = settings.sampling["num_inference_steps"]
    where = str(pipeline.device)
    if processes.world > 1:
        where = f"{processes.world} processes, {processes.size} to an edit"
    print(
        f"{len(items) - len(refused)} edits into {output}, {steps} steps each, guidance "
        f"{settings.sampling['guidance_scale']:g}: about {_duration(total)} on {where}, "
        "decoding and writing aside"
    )
    return len(refused)


def _duration(seconds: float) -> str:
    if seconds < 90:
        return f"{seconds:.0f} s"
    return f"{seconds / 60:.0f} min" if seconds < 5400 else f"{seconds / 3600:.1f} h"
