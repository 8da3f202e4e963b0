"""Rectified flow: interpolant and targets, the law of the noise level, the loss, and the epsilon objective."""

import math

import pytest
import torch

from icve.flow import (
    TimestepDensity,
    flow_loss,
    interpolate,
    sampling_sigmas,
    shift_for_tokens,
    shift_sigma,
    to_velocity,
    velocity,
)


@pytest.fixture
def pair() -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    generator = torch.Generator().manual_seed(0)
    x0, noise = (torch.randn(3, 4, 2, 3, 5, generator=generator) for _ in range(2))
    return x0, noise, torch.tensor([0.1, 0.5, 0.9])


def test_velocity_is_the_derivative_of_the_interpolant(pair):
    x0, noise, sigma = pair
    assert torch.equal(interpolate(x0, noise, torch.zeros(3)), x0)
    assert torch.equal(interpolate(x0, noise, torch.ones(3)), noise)
    difference = interpolate(x0, noise, sigma + 0.05) - interpolate(x0, noise, sigma - 0.05)
    torch.testing.assert_close(difference / 0.1, velocity(x0, noise), atol=1e-5, rtol=0)


def test_both_objectives_mean_the_same_velocity(pair):
    x0, noise, sigma = pair
    x_t = interpolate(x0, noise, sigma)
    torch.testing.assert_close(to_velocity(noise, x_t, sigma, "epsilon"), velocity(x0, noise), atol=1e-5, rtol=0)
    assert torch.equal(to_velocity(velocity(x0, noise), x_t, sigma, "velocity"), velocity(x0, noise))
    with pytest.raises(ValueError, match="prediction"):
        to_velocity(noise, x_t, sigma, "x0")


@pytest.mark.parametrize("objective", ["velocity", "epsilon"])
def test_loss_is_zero_only_at_its_target(pair, objective):
    x0, noise, sigma = pair
    target = velocity(x0, noise) if objective == "velocity" else noise
    assert torch.equal(flow_loss(target, x0, noise, sigma, objective), torch.zeros(3))
    shifted = target + torch.tensor([1.0, 2.0, 3.0]).reshape(3, 1, 1, 1, 1)
    torch.testing.assert_close(flow_loss(shifted, x0, noise, sigma, objective), torch.tensor([1.0, 4.0, 9.0]))


def test_weight_is_relative_within_a_sample(pair):
    x0, noise, sigma = pair
    prediction = velocity(x0, noise)
    prediction[:, :, :, :, 0] += 1  # an error of 1 in a fifth of the elements
    weight = torch.ones(3, 1, 2, 3, 5)
    plain = flow_loss(prediction, x0, noise, sigma)
    torch.testing.assert_close(plain, torch.full((3,), 0.2))
    torch.testing.assert_close(flow_loss(prediction, x0, noise, sigma, weight=7 * weight), plain)
    weight[:, :, :, :, 0] = 6  # mean (6 + 4) / 5 = 2
    torch.testing.assert_close(flow_loss(prediction, x0, noise, sigma, weight=weight), torch.full((3,), 0.6))


def test_loss_is_float32_in_half_precision_and_differentiable(pair):
    x0, noise, sigma = pair
    prediction = velocity(x0, noise).bfloat16().requires_grad_()
    loss = flow_loss(prediction, x0.bfloat16(), noise.bfloat16(), sigma)
    assert loss.dtype == torch.float32
    loss.sum().backward()
    assert prediction.grad is not None


def test_loss_refuses_shapes_that_would_broadcast(pair):
    x0, noise, sigma = pair
    with pytest.raises(ValueError, match="one shape"):
        flow_loss(x0[:1], x0, noise, sigma)
    with pytest.raises(ValueError, match="sigma"):
        flow_loss(x0, x0, noise, sigma[:1])


@pytest.mark.parametrize(
    ("density", "median"),
    [
        (TimestepDensity("uniform"), 0.5),
        (TimestepDensity("logit_normal", mean=1.0, std=0.5), 1 / (1 + math.exp(-1.0))),
        (TimestepDensity("logit_normal", shift=7.0), 7 / 8),
    ],
)
def test_samples_follow_the_levels(density, median):
    assert density.level(0.5) == pytest.approx(median)
    generator = torch.Generator().manual_seed(0)
    samples = torch.tensor([density.sample(generator) for _ in range(2000)])
    assert ((samples > 0) & (samples < 1)).all()
    for probability in (0.1, 0.5, 0.9):
        share = (samples < density.level(probability)).float().mean().item()
        assert share == pytest.approx(probability, abs=0.03)


LAWS = [
    TimestepDensity("uniform"),
    TimestepDensity("uniform", shift=3.0),
    TimestepDensity(mean=0.5, std=0.7, shift=7.0),
    TimestepDensity(shift=7.0, uniform_share=0.2),
    TimestepDensity("uniform", shift=0.2, uniform_share=1.0),
]


@pytest.mark.parametrize("density", LAWS)
def test_shares_are_those_of_evenly_spread_numbers(density):
    levels = [density.level((i + 0.5) / 4000) for i in range(4000)]
    sigmas = (0.1, 0.3, 0.5, 0.7, 0.9)
    nearest = [min(sigmas, key=lambda sigma, level=level: abs(sigma - level)) for level in levels]
    shares = density.shares(sigmas)
    assert shares == pytest.approx([nearest.count(sigma) / 4000 for sigma in sigmas], abs=1e-3)
    assert sum(shares) == pytest.approx(1, abs=1e-12)
    assert [density.share_below(sigma) for sigma in (0.0, 1.0)] == [0.0, 1.0]


def test_the_papers_shift_leaves_little_below_a_third():
    assert TimestepDensity(shift=7.0).share_below(0.3) == pytest.approx(0.0026, abs=5e-5)


def test_a_uniform_share_is_a_mixture():
    density, plain = TimestepDensity(shift=7.0, uniform_share=0.25), TimestepDensity(shift=7.0)
    assert density.share_below(0.3) == pytest.approx(0.25 * 0.3 + 0.75 * plain.share_below(0.3))
    assert density.level(0.125) == 0.5
    assert density.level(0.25 + 0.75 * 0.4) == pytest.approx(plain.level(0.4))


def test_the_shift_follows_the_square_root_of_the_tokens():
    density = TimestepDensity(shift=6.0, shift_tokens=400, uniform_share=0.1)
    assert density.at(400) == TimestepDensity(shift=6.0, uniform_share=0.1)
    assert density.at(1600).shift == shift_for_tokens(6.0, 1600, 400) == 12.0
    assert density.at(100).shift == 3.0
    fixed = TimestepDensity(shift=6.0)
    assert fixed.at(1600) is fixed
    assert shift_for_tokens(6.0, 1600, None) == 6.0


def test_samples_are_a_function_of_the_generator():
    one, other = (TimestepDensity().sample(torch.Generator().manual_seed(5)) for _ in range(2))
    assert one == other
    assert one != TimestepDensity().sample(torch.Generator().manual_seed(6))


@pytest.mark.parametrize(
    "density", [TimestepDensity("uniform"), TimestepDensity(std=100.0, shift=9.0), TimestepDensity(uniform_share=1.0)]
)
def test_extreme_levels_stay_inside(density):
    assert 0 < density.level(0.0) < density.level(1.0) < 1


@pytest.mark.parametrize(
    "arguments", [{"kind": "beta"}, {"std": 0.0}, {"shift": -1.0}, {"uniform_share": 1.5}, {"shift_tokens": 0}]
)
def test_impossible_densities_are_refused(arguments):
    with pytest.raises(ValueError, match=r"density"):
        TimestepDensity(**arguments)


def test_sampling_sigmas():
    assert sampling_sigmas(4, 7.0) == [1.0, 0.75, 0.5, 0.25]
    for steps in (1, 10, 5000):
        levels = [shift_sigma(sigma, 7.0) for sigma in sampling_sigmas(steps, 7.0, "epsilon")]
        assert levels[0] == pytest.approx(0.999)
        assert all(a > b > 0 for a, b in zip(levels, [*levels[1:], 1e-9], strict=True))
    with pytest.raises(ValueError, match="at least 1 step"):
        sampling_sigmas(0, 7.0)
