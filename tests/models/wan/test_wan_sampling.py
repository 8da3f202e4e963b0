"""Wan's noise levels and Euler's steps, against the reference."""

import contextlib

import pytest
import torch
from diffusers import FlowMatchEulerDiscreteScheduler
from safetensors.torch import load_file

from icve.data.text_condition import TextCondition
from icve.editing.samplers import EulerSampler, SamplerSettings
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


@pytest.mark.parametrize("steps", [10, 50])
def test_timesteps_at_shift_5_are_wans(golden, steps):
    sampler = EulerSampler(FlowMatchEulerDiscreteScheduler(shift=5.0), "velocity")
    timesteps, _ = sampler.timesteps(SamplerSettings(steps, 5.0), torch.device("cpu"))
    torch.testing.assert_close(timesteps, golden[f"euler.timesteps_{steps}"], atol=1e-3, rtol=0)
    torch.testing.assert_close(timesteps / 1000, golden[f"euler.sigmas_{steps}"], atol=2e-5, rtol=0)


def test_eulers_steps_are_wans(golden):
    seen = []

    def keep(step, timestep, latents):
        seen.append(latents["video"].clone())
        return latents

    text = TextCondition(torch.zeros(1, 1, 4), torch.ones(1, 1, dtype=torch.bool))
    EulerSampler(FlowMatchEulerDiscreteScheduler(shift=5.0), "velocity")(
        Fixed(golden["input.velocities"].clone()),
        {"video": golden["input.x1"].clone()},
        {},
        text,
        None,
        SamplerSettings(10, 5.0),
        keep,
    )
    torch.testing.assert_close(torch.stack(seen), golden["euler.trajectory_10"], atol=2e-5, rtol=1e-5)
