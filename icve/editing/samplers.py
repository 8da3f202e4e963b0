"""From noise to latents: a sampler integrates the flow that a denoiser predicts."""

from __future__ import annotations

import copy
from collections.abc import Callable
from dataclasses import dataclass
from typing import get_args

import numpy as np
import torch
from diffusers.schedulers.scheduling_flow_match_euler_discrete import FlowMatchEulerDiscreteScheduler
from diffusers.schedulers.scheduling_unipc_multistep import UniPCMultistepScheduler
from torch import Tensor

from icve.data.text_condition import TextCondition
from icve.editing.sampling import Solver
from icve.flow import Prediction, sampling_sigmas, to_velocity
from icve.models.denoiser import Denoiser, Latents, on_device
from icve.runtime.transfers import to_device

# Called after every step with its number, its timestep and the latents by name; what it returns takes their place.
Scheduler = FlowMatchEulerDiscreteScheduler | UniPCMultistepScheduler
UNIPC_START = 0.999  # Wan's: at 1 UniPC would divide by nothing
AfterStep = Callable[[int, Tensor, dict[str, Tensor]], dict[str, Tensor]]


@dataclass(frozen=True)
class SamplerSettings:
    """How an edit is sampled.

    Attributes:
        steps: of the integration.
        shift: of the noise levels towards 1, positive.
        guidance_scale: of classifier-free guidance; used where there is a negative text.
        guidance_until: noise level, in [0, 1), down to which steps are guided.
        embedded_guidance: what guidance-distilled models embed, times 1000 already.
        solver: "euler", or "unipc", which also uses what was predicted in the step before.

    Raises:
        ValueError: an unknown solver.
    """

    steps: int
    shift: float
    guidance_scale: float = 1.0
    guidance_until: float = 0.0
    embedded_guidance: float = 1000.0
    solver: Solver = "euler"

    def __post_init__(self) -> None:
        if self.solver not in get_args(Solver):
            raise ValueError(f"The solver is 'euler' or 'unipc', not {self.solver!r}.")


class FlowSampler:
    """Integrates along noise levels, in float32 whatever precision the transformer has.

    Args:
        scheduler: gives the noise levels and makes the steps of Euler's method.
        prediction: what the transformer predicts.
    """

    def __init__(self, scheduler: FlowMatchEulerDiscreteScheduler, prediction: Prediction) -> None:
        self.scheduler, self.prediction = scheduler, prediction

    def schedule(self, settings: SamplerSettings, device: torch.device) -> tuple[Scheduler, Tensor, list[bool]]:
        """A scheduler before its first step, the noise levels (steps,), and which steps are guided, if any is.

        The levels and the scheduler's timesteps, 1000 times as much, are on the device; a step of UniPC wants its own
        copy of the levels on the host.
        """
        sigmas = sampling_sigmas(settings.steps, settings.shift, self.prediction)
        scheduler: Scheduler
        if settings.solver == "euler":
            scheduler = self.scheduler
            scheduler.set_shift(settings.shift)
            scheduler.set_timesteps(sigmas=sigmas, device="cpu")
        else:
            scheduler = UniPCMultistepScheduler(
                prediction_type="flow_prediction", use_flow_sigmas=True, flow_shift=settings.shift
            )
            # It says a list, and computes with an array.
            scheduler.set_timesteps(sigmas=np.array(sigmas) * UNIPC_START, device="cpu")  # type: ignore[arg-type]
        levels = torch.as_tensor(scheduler.sigmas)
        on_its_device = to_device(levels, device)
        if settings.solver == "euler":
            scheduler.sigmas = on_its_device
        scheduler.timesteps = to_device(torch.as_tensor(scheduler.timesteps), device)
        scheduler.set_begin_index(0)  # else it looks for the first timestep among them, on the device
        return scheduler, on_its_device[:-1], (levels > settings.guidance_until).tolist()

    def __call__(
        self,
        denoiser: Denoiser,
        noise: Latents,
        context: Latents,
        text: TextCondition,
        negative: TextCondition | None,
        settings: SamplerSettings,
        after_step: AfterStep | None = None,
    ) -> dict[str, Tensor]:
        """Latents by the names of the noise.

        Args:
            denoiser: asked at every step.
            noise: (B, ...) float32 each; where they are, everything is computed.
            context: clean latents that every step sees, with the same B.
            text, negative: of B instructions, and of what is guided away from; None guides no step.
            settings: of this call.
            after_step: may look at the latents and replace them.
        """
        latents = dict(noise)
        device, batch = next(iter(latents.values())).device, len(text)
        scheduler, levels, guided = self.schedule(settings, device)
        # Every kind of latents has its own: a scheduler counts its steps, and may keep what was predicted.
        schedulers = {name: copy.deepcopy(scheduler) for name in latents}
        # Cast once, not at every step.
        context = on_device(context, device, denoiser.dtype)
        text = text.to(device, denoiser.dtype)
        # Under guidance the batch is [negative, positive]; the context is present in both branches.
        both = None if negative is None else TextCondition.stack([negative.to(device, denoiser.dtype), text])

        def predict(x: Latents, text: TextCondition, context: Latents, sigma: Tensor) -> dict[str, Tensor]:
            found = denoiser.denoise(x, sigma.expand(len(text)), text, context, settings.embedded_guidance)
            return {name: value.float() for name, value in found.items()}

        def twice(latents: Latents) -> dict[str, Tensor]:
            return {name: torch.cat([value, value]) for name, value in latents.items()}

        denoiser.forget()
        for index, (timestep, sigma) in enumerate(zip(torch.as_tensor(scheduler.timesteps), levels, strict=True)):
            # Guided and plain steps differ in batch size, so a step cache keeps them apart.
            if both is not None and guided[index]:
                with denoiser.branch("cond_uncond"):
                    found = predict(twice(latents), both, twice(context), sigma)
                prediction = {
                    name: value[:batch] + settings.guidance_scale * (value[batch:] - value[:batch])
                    for name, value in found.items()
                }
            else:
                with denoiser.branch("cond"):
                    prediction = predict(latents, text, context, sigma)
            for name, value in prediction.items():
                velocity = to_velocity(value, latents[name], sigma, self.prediction)
                # It says FloatTensor, which no function of torch returns.
                step = schedulers[name].step(velocity, timestep, latents[name], return_dict=False)  # type: ignore[arg-type]
                latents[name] = step[0]
            if after_step is not None:
                latents = after_step(index, timestep, latents)
        return latents
