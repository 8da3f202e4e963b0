"""How long editing will take, from a step of each kind rather than from a whole edit."""

from __future__ import annotations

import time
from typing import TYPE_CHECKING, Any

from icve.flow import sampling_sigmas, shift_sigma

if TYPE_CHECKING:
    from icve.pipeline import EditPipeline


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
    shift = sampling["shift"]
    sigmas = sampling_sigmas(sampling["num_inference_steps"], shift, pipeline.config.objective)
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
