"""Wan's noise levels and the steps of both solvers, against the reference."""

import contextlib

import pytest
import torch
from diffusers import FlowMatchEulerDiscreteScheduler
from safetensors.torch import load_file

from icve.data.text_condition import TextCondition
from icve.editing.samplers import FlowSampler, SamplerSettings
from icve.models.denoiser import Denoiser


class Fixed(Denoiser):
    """Gives velocities that are known before, whatever it is asked."""

    def __init__(self, velocities):
        self.answers, self.dtype = iter(velocities), torch.float32

    def denoise(self, *args, **kwargs):
        return {"video": next(self.answers)}

    def branch(self, name):
        return contextlib.nullcontext()

    def forget(self):
        """There is no step cache."""


@pytest.fixture(scope="module")
def golden(shared_data):
    return load_file(shared_data / "golden_wan" / "golden_wan_scheduler.safetensors")


def sampler():
    return FlowSampler(FlowMatchEulerDiscreteScheduler(shift=1.0), "velocity")


@pytest.mark.parametrize("steps", [10, 50])
def test_eulers_noise_levels_at_shift_5_are_wans(golden, steps):
    scheduler, sigmas, _ = sampler().schedule(SamplerSettings(steps, 5.0), torch.device("cpu"))
    torch.testing.assert_close(scheduler.timesteps, golden[f"euler.timesteps_{steps}"], atol=1e-3, rtol=0)
    torch.testing.assert_close(sigmas, golden[f"euler.sigmas_{steps}"], atol=2e-5, rtol=0)


@pytest.mark.parametrize("shift", [3, 5, 8])
@pytest.mark.parametrize("steps", [10, 50])
def test_unipcs_noise_levels_are_wans(golden, steps, shift):
    settings = SamplerSettings(steps, float(shift), solver="unipc")
    scheduler, sigmas, guided = sampler().schedule(settings, torch.device("cpu"))
    name = f"shift{shift}_{steps}"
    torch.testing.assert_close(scheduler.sigmas, golden[f"unipc.sigmas_{name}"], atol=2e-5, rtol=0)
    torch.testing.assert_close(sigmas, golden[f"unipc.sigmas_{name}"][:-1], atol=2e-5, rtol=0)
    assert (scheduler.timesteps - golden[f"unipc.timesteps_{name}"]).abs().max() <= 1  # cut off, after other roundings
    assert guided == [True] * steps + [False]


@pytest.mark.parametrize(
    ("solver", "trajectory"), [("euler", "euler.trajectory_10"), ("unipc", "unipc.trajectory_shift5_10")]
)
def test_steps_are_wans(golden, solver, trajectory):
    seen = []

    def keep(step, timestep, latents):
        seen.append(latents["video"].clone())
        return latents

    text = TextCondition(torch.zeros(1, 1, 4), torch.ones(1, 1, dtype=torch.bool))
    flow = sampler()
    for _ in range(2):  # nothing stays of one edit for the next
        seen.clear()
        flow(
            Fixed(golden["input.velocities"].clone()),
            {"video": golden["input.x1"].clone()},
            {},
            text,
            None,
            SamplerSettings(10, 5.0, solver=solver),
            keep,
        )
    torch.testing.assert_close(torch.stack(seen), golden[trajectory], atol=2e-5, rtol=1e-5)


def test_an_unknown_solver_is_refused():
    with pytest.raises(ValueError, match="The solver is 'euler' or 'unipc', not 'heun'"):
        SamplerSettings(10, 5.0, solver="heun")
